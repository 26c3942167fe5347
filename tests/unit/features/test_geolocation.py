"""From detections in a tile to located features of the image, against a plain version and against the toolkit."""

import copy
import json
import math

import geojson
import numpy as np
import orjson
import pyproj
import pytest
import shapely
import shapely.affinity
from aws.osml.features import Geolocator, ImagedFeaturePropertyAccessor
from aws.osml.photogrammetry import GDALAffineSensorModel, ImageCoordinate
from hypothesis import given
from hypothesis import strategies as st

from aws.osml.model_runner.common.pixel_ratio import PixelRatio
from aws.osml.model_runner.common.typing import ImageRegion
from aws.osml.model_runner.exceptions import FeatureError
from aws.osml.model_runner.features import (
    FeatureStamp,
    LocationGrid,
    check_features,
    encode_feature,
    parse_response,
    refine_features,
)
from aws.osml.model_runner.features.geolocation import decimals_of
from aws.osml.model_runner.features.properties import FeatureOrigin
from aws.osml.model_runner.features.selection import with_score
from aws.osml.model_runner.features.text_stamp import TextStamp, own_end
from examples import examples

TIME = "2026-11-20T22:42:58Z"
TILE = ImageRegion.of(((400, 1000), (512, 512)))
SQUARE = [[10.0, 20.0], [30.0, 20.0], [30.0, 60.0], [10.0, 60.0], [10.0, 20.0]]
PLACES = {
    "Point": [3.0, 4.0],
    "MultiPoint": [[3.0, 4.0], [5.0, 6.0]],
    "LineString": [[3.0, 4.0], [5.0, 6.0]],
    "MultiLineString": [[[3.0, 4.0], [5.0, 6.0]], [[0.0, 0.0], [1.0, 1.0], [2.0, 0.0]]],
    "Polygon": [SQUARE, [[12.0, 22.0], [14.0, 22.0], [14.0, 24.0], [12.0, 22.0]]],
    "MultiPolygon": [[SQUARE], [[[60.0, 60.0], [70.0, 60.0], [70.0, 80.0], [60.0, 60.0]]]],
}


def degrees_model(longitude=10.0, latitude=20.0, step=1e-5, height=0.0):
    def locate(xy):
        longitudes = (longitude + step * xy[:, 0] + 180.0) % 360.0 - 180.0
        return np.column_stack([longitudes, latitude - step * xy[:, 1], np.full(len(xy), height)])

    return locate


def toolkit_model(sensor_model):
    """The sensor model of the toolkit as the callable that a grid asks."""

    def locate(xy):
        places = [sensor_model.image_to_world(ImageCoordinate(pixel)) for pixel in xy]
        return np.array([[math.degrees(p.longitude), math.degrees(p.latitude), p.elevation] for p in places])

    return locate


GRID = LocationGrid.from_sensor_model(degrees_model(), ImageRegion.of(((0, 0), (4096, 4096))))


def feature(**properties):
    return {"type": "Feature", "id": "a", "geometry": None, "properties": properties}


def polygon(*rings):
    return {"type": "Polygon", "coordinates": [list(ring) for ring in rings]}


def right_handed(shape):
    """Return a shape whose rings follow the right-hand rule; each begins where it did."""
    if shape.geom_type == "Polygon":
        return shapely.geometry.polygon.orient(shape)
    if shape.geom_type in ("MultiPolygon", "GeometryCollection"):
        return type(shape)([right_handed(part) for part in shape.geoms])
    return shape


@given(st.floats(0.05, 8), st.floats(0.05, 8), st.lists(st.floats(-100, 600), min_size=4, max_size=4))
def test_positions_of_scaled_tile_become_pixels_of_image(x_scale, y_scale, box):
    ratio, tile = PixelRatio(1 / x_scale, 1 / y_scale), ImageRegion.of(((300, 1001), (512, 512)))
    corner = np.array([1001.0, 300.0])
    low, high = np.sort(np.reshape(box, (2, 2)), axis=0)
    ring = [[float(x), float(y)] for x, y in ((low[0], low[1]), (high[0], low[1]), (high[0], high[1]))]
    answer = [feature(imageBBox=box), feature(imageGeometry=polygon(ring))]
    boxed, shaped = refine_features(answer, tile, GRID, ratio)
    expected = [*(low + corner) * ratio, *(high + corner) * ratio]
    assert boxed["properties"]["imageBBox"] == pytest.approx(expected, abs=1e-5)
    found = np.array(shaped["properties"]["imageGeometry"]["coordinates"][0])[:3]
    assert np.abs(found - (np.array(ring) + corner) * ratio).max() < 1e-5
    on_ground = np.array(shaped["geometry"]["coordinates"][0])[:3, :2]
    assert np.abs(np.sort(on_ground, axis=0) - np.sort(GRID.locate(found)[:, :2], axis=0)).max() < 1e-6


def refine(*features, tile=TILE, grid=GRID):
    return refine_features(list(features), tile, grid)


def moved(coordinates, x, y):
    if isinstance(coordinates[0], float):
        return [coordinates[0] + x, coordinates[1] + y]
    return [moved(item, x, y) for item in coordinates]


@pytest.mark.parametrize("kind", PLACES)
def test_pixels_move_by_origin_of_tile(kind):
    place = {"type": kind, "coordinates": PLACES[kind]}

    (refined,) = refine(feature(imageGeometry=place), grid=None)

    assert refined["properties"]["imageGeometry"] == {"type": kind, "coordinates": moved(PLACES[kind], 1000, 400)}
    assert refined["geometry"] is None
    assert "bbox" not in refined
    assert "center_longitude" not in refined["properties"]


@pytest.mark.parametrize("kind", PLACES)
def test_geometry_keeps_type_and_follows_right_hand_rule(kind):
    place = {"type": kind, "coordinates": PLACES[kind]}

    (refined,) = refine(feature(imageGeometry=place))

    ground = shapely.geometry.shape(refined["geometry"])
    located = shapely.get_coordinates(right_handed(ground))
    place = shapely.geometry.shape(refined["properties"]["imageGeometry"])
    expected = shapely.transform(place, lambda xy: [10, 20] + 1e-5 * xy * [1, -1])
    assert (refined["geometry"]["type"], ground.has_z) == (kind, False)
    np.testing.assert_allclose(located, shapely.get_coordinates(right_handed(expected)), atol=6e-7)
    assert ground.equals(right_handed(ground))
    np.testing.assert_array_equal(located, shapely.get_coordinates(ground))


def test_detection_in_known_tile_has_known_numbers():
    tile = ImageRegion.of(((390, 0), (512, 512)))
    box = [10, 8, 20, 20]
    ring = [[10, 8], [20, 8], [20, 20], [10, 20], [10, 8]]
    grid = LocationGrid.from_sensor_model(degrees_model(height=12.5), ImageRegion.of(((0, 0), (1024, 1024))))
    classes = [{"iri": "ship", "score": 0.9}]

    (refined,) = refine(
        feature(imageGeometry=polygon(ring), imageBBox=box, featureClasses=classes, extra=1), tile=tile, grid=grid
    )

    assert refined == {
        "type": "Feature",
        "id": "a",
        "bbox": [10.0001, 19.9959, 12.5, 10.0002, 19.99602, 12.5],
        "geometry": {
            "type": "Polygon",
            "coordinates": [
                [
                    [10.0001, 19.99602, 12.5],
                    [10.0001, 19.9959, 12.5],
                    [10.0002, 19.9959, 12.5],
                    [10.0002, 19.99602, 12.5],
                    [10.0001, 19.99602, 12.5],
                ]
            ],
        },
        "properties": {
            "imageGeometry": {
                "type": "Polygon",
                "coordinates": [[[10.0, 398.0], [20.0, 398.0], [20.0, 410.0], [10.0, 410.0], [10.0, 398.0]]],
            },
            "imageBBox": [10.0, 398.0, 20.0, 410.0],
            "featureClasses": classes,
            "extra": 1,
            "class": "ship",
            "score": 0.9,
            "center_longitude": 10.00015,
            "center_latitude": 19.99596,
        },
    }


def test_box_alone_gets_polygon_on_ground_and_no_image_geometry():
    (refined,) = refine(feature(imageBBox=[30, 60, 10, 20]))

    properties = refined["properties"]
    assert properties["imageBBox"] == [1010.0, 420.0, 1030.0, 460.0]
    assert "imageGeometry" not in properties
    assert refined["geometry"]["type"] == "Polygon"
    assert shapely.geometry.shape(refined["geometry"]).bounds == (10.0101, 19.9954, 10.0103, 19.9958)
    assert shapely.geometry.shape(refined["geometry"]).exterior.is_ccw
    assert refined["bbox"] == [10.0101, 19.9954, 10.0103, 19.9958]
    assert (properties["center_longitude"], properties["center_latitude"]) == (10.0102, 19.9956)


@pytest.mark.parametrize(
    ("properties", "expected"),
    [
        ({"geom_imcoords": SQUARE}, polygon(moved(SQUARE, 1000, 400))),
        ({"geom_imcoords": SQUARE[:-1]}, polygon(moved(SQUARE, 1000, 400))),
        (
            {"detection": {"type": "Point", "pixelCoordinates": [3, 4]}},
            {"type": "Point", "coordinates": [1003.0, 404.0]},
        ),
    ],
)
def test_deprecated_geometry_becomes_image_geometry(properties, expected):
    (refined,) = refine(feature(**properties))

    assert refined["properties"]["imageGeometry"] == expected
    assert refined["geometry"]["type"] == expected["type"]
    assert "bbox" not in refined
    for name, value in properties.items():
        assert refined["properties"][name] == value


def test_deprecated_bounds_become_polygon():
    (refined,) = refine(feature(bounds_imcoords=[10, 20, 30, 60]))

    place = shapely.geometry.shape(refined["properties"]["imageGeometry"])
    assert place.bounds == (1010, 420, 1030, 460)
    assert place.equals(shapely.box(1010, 420, 1030, 460))


@pytest.mark.parametrize(
    ("properties", "classes"),
    [
        ({"feature_types": {"ship": 0.5, "boat": 0.1}}, [{"iri": "ship", "score": 0.5}, {"iri": "boat", "score": 0.1}]),
        ({"feature_types": {"ship": 0.5}, "featureClasses": None}, [{"iri": "ship", "score": 0.5}]),
        ({"feature_types": {}}, []),
        ({"feature_types": {"ship": 0.5}, "featureClasses": [{"iri": "boat"}]}, [{"iri": "boat"}]),
        ({"feature_types": None}, None),
        ({}, None),
    ],
)
def test_feature_types_become_classes_where_there_are_none(properties, classes):
    (refined,) = refine(feature(imageBBox=[1, 2, 3, 4], **properties))

    assert refined["properties"].get("featureClasses") == classes


def test_model_properties_of_image_and_time_are_left_out():
    (refined,) = refine(feature(imageBBox=[1, 2, 3, 4], image_id="other", inferenceTime="never"))

    assert refined["properties"].keys().isdisjoint({"image_id", "inferenceTime"})


@pytest.mark.parametrize("geometry", [None, {"type": "Point", "coordinates": [1.25, 2]}])
def test_geometry_of_model_is_kept_without_grid(geometry):
    (refined,) = refine({**feature(imageBBox=[1, 2, 3, 4]), "geometry": geometry}, grid=None)

    assert refined["geometry"] == geometry


def test_no_features_stay_no_features():
    assert refine() == []


def test_feature_without_image_geometry_is_refused():
    with pytest.raises(FeatureError, match="no image geometry"):
        refine(feature())


def test_coordinates_carry_no_noise():
    (refined,) = refine(feature(imageGeometry={"type": "Point", "coordinates": [0.1 + 0.2, 1 / 3]}))

    assert refined["properties"]["imageGeometry"]["coordinates"] == [1000.3, 400.333333]


def test_numbers_are_never_minus_zero():
    grid = LocationGrid.from_sensor_model(degrees_model(0, 0, height=-0.0), ImageRegion.of(((0, 0), (64, 64))))
    tile = ImageRegion.of(((0, 0), (64, 64)))

    body = orjson.dumps(refine(feature(imageBBox=[-0.0, -1e-9, 5, 5]), tile=tile, grid=grid))

    assert b"-0.0," not in body
    assert b"-0.0]" not in body


def test_across_antimeridian_west_is_greater_than_east():
    grid = LocationGrid.from_sensor_model(degrees_model(179.99), ImageRegion.of(((0, 0), (4096, 512))))
    tile = ImageRegion.of(((0, 0), (4096, 512)))

    before, across, after = refine(
        *(feature(imageBBox=[x, 10, x + 200, 20]) for x in (100, 900, 1900)), tile=tile, grid=grid
    )

    assert before["bbox"] == [179.991, 19.9998, 179.993, 19.9999]
    assert across["bbox"] == [179.999, 19.9998, -179.999, 19.9999]
    assert after["bbox"] == [-179.991, 19.9998, -179.989, 19.9999]
    assert abs(across["properties"]["center_longitude"]) == 180.0
    ring = shapely.get_coordinates(shapely.geometry.shape(across["geometry"]))
    assert set(ring[:, 0].tolist()) == {179.999, -179.999}


coordinates = st.floats(-50, 600).map(lambda value: round(value, 3))
positions = st.tuples(coordinates, coordinates).map(list)
boxes = st.tuples(coordinates, coordinates, coordinates, coordinates).map(list)


@st.composite
def rings(draw):
    x, y = draw(positions)
    radii = draw(st.lists(st.floats(5, 80), min_size=3, max_size=7))
    turns = [2 * math.pi * index / len(radii) for index in range(len(radii))]
    ring = [[x + r * math.cos(a), y + r * math.sin(a)] for r, a in zip(radii, turns, strict=True)]
    return [*ring, list(ring[0])] if draw(st.booleans()) else ring


lines = st.lists(positions, min_size=2, max_size=5)
simple_places = st.one_of(
    st.fixed_dictionaries({"type": st.just("Point"), "coordinates": positions}),
    st.fixed_dictionaries({"type": st.just("MultiPoint"), "coordinates": st.lists(positions, min_size=1, max_size=4)}),
    st.fixed_dictionaries({"type": st.just("LineString"), "coordinates": lines}),
    st.fixed_dictionaries({"type": st.just("MultiLineString"), "coordinates": st.lists(lines, min_size=1, max_size=3)}),
    st.fixed_dictionaries({"type": st.just("Polygon"), "coordinates": st.tuples(rings()).map(list)}),
    st.fixed_dictionaries(
        {
            "type": st.just("MultiPolygon"),
            "coordinates": st.lists(st.tuples(rings()).map(list), min_size=1, max_size=3),
        }
    ),
)
places = simple_places | st.fixed_dictionaries(
    {"type": st.just("GeometryCollection"), "geometries": st.lists(simple_places, min_size=1, max_size=3)}
)
detections = st.one_of(
    st.builds(lambda place: feature(imageGeometry=place), places),
    st.builds(lambda place, box: feature(imageGeometry=place, imageBBox=box), places, boxes),
    st.builds(lambda box: feature(imageBBox=box), boxes),
    st.builds(lambda ring: feature(geom_imcoords=ring), rings()),
    st.builds(lambda box: feature(bounds_imcoords=box), boxes),
    st.builds(
        lambda place: feature(detection={"type": place["type"], "pixelCoordinates": place["coordinates"]}),
        simple_places,
    ),
)
batches = st.lists(detections, min_size=1, max_size=6)
origins = st.tuples(st.integers(0, 100_000), st.integers(0, 100_000))


def plainly_refined(said, tile, grid):
    """One feature by itself, as the toolkit's classes do it; the reference for the arrays."""
    accessor = ImagedFeaturePropertyAccessor()
    (row, col), _ = tile
    wrapped = geojson.Feature(geometry=None, properties=said["properties"])
    place = shapely.affinity.translate(accessor.find_image_geometry(wrapped), col, row)

    geometry = shapely.transform(place, lambda pixels: grid.locate(pixels)[:, :2])
    return {
        "place": place,
        "geometry": geometry,
        "centre": grid.locate(np.array([place.centroid.coords[0]]))[0, :2],
        "bbox": geometry.bounds if "imageBBox" in said["properties"] else None,
    }


@given(batches, origins)
@examples(150)
def test_arrays_agree_with_plain_version(said, origin):
    tile = ImageRegion.of((origin, (512, 512)))
    grid = LocationGrid.from_sensor_model(degrees_model(), tile)

    for detection, refined in zip(said, refine(*said, tile=tile, grid=grid), strict=True):
        plain = plainly_refined(detection, tile, grid)
        properties = refined["properties"]
        assert refined["geometry"]["type"] == plain["geometry"].geom_type
        located = shapely.geometry.shape(refined["geometry"])
        np.testing.assert_allclose(located.bounds, plain["geometry"].bounds, atol=1.1e-6)
        # The ring of a box begins at another corner here than there, so only given rings are compared one by one.
        if "imageGeometry" in detection["properties"]:
            found, expected = shapely.get_coordinates(located), shapely.get_coordinates(plain["geometry"])
            np.testing.assert_allclose(np.sort(found, axis=0), np.sort(expected, axis=0), atol=1.1e-6)
            found = shapely.get_coordinates(shapely.geometry.shape(properties["imageGeometry"]))
            np.testing.assert_allclose(found, shapely.get_coordinates(plain["place"]), atol=1.1e-6)
        centre = [properties["center_longitude"], properties["center_latitude"]]
        np.testing.assert_allclose(centre, plain["centre"], atol=1e-8)
        assert ("bbox" in refined) == (plain["bbox"] is not None)
        if plain["bbox"] is not None:
            np.testing.assert_allclose(refined["bbox"], plain["bbox"], atol=1.1e-6)
            assert tuple(refined["bbox"]) == located.bounds


@given(batches, origins)
@examples(60)
def test_tile_offset_moves_only_pixels(said, origin):
    row, col = origin
    here = refine(*said, tile=ImageRegion.of(((0, 0), (512, 512))), grid=None)
    there = refine(*said, tile=ImageRegion.of(((row, col), (512, 512))), grid=None)

    for at_origin, away in zip(here, there, strict=True):
        for name in ("imageGeometry", "imageBBox"):
            before, after = (one["properties"].pop(name, None) for one in (at_origin, away))
            assert (before is None) == (after is None)
            if name == "imageGeometry" and before is not None:
                first, second = (shapely.get_coordinates(shapely.geometry.shape(one)) for one in (before, after))
                np.testing.assert_allclose(np.add(first, [col, row]), second, atol=2e-6)
            elif before is not None:
                np.testing.assert_allclose(np.add(before, [col, row, col, row]), after, atol=2e-6)
        assert at_origin == away


@given(batches)
@examples(60)
def test_features_are_located_independently(said):
    before = copy.deepcopy(said)

    together = refine(*said)

    assert said == before
    for alone, refined in zip((refine(one)[0] for one in said), together, strict=True):
        assert alone == refined


@given(batches)
@examples(60)
def test_refined_feature_survives_json_and_is_usable_feature_again(said):
    refined = refine(*check_features(said).features)

    parsed = parse_response(orjson.dumps({"type": "FeatureCollection", "features": refined}))

    assert parsed == check_features(refined)
    assert parsed.dropped.total() == 0
    assert orjson.dumps(parsed.features) == orjson.dumps(refined)


@given(batches)
@examples(60)
def test_feature_in_tile_is_located_in_footprint(said):
    tile = ImageRegion.of(((1000, 2000), (512, 512)))
    utm = GDALAffineSensorModel([400_000, 0.5, 0.1, 5_000_000, 0.1, -0.5], pyproj.CRS.from_epsg(32759).to_wkt())
    grid = LocationGrid.from_sensor_model(toolkit_model(utm), tile)
    edge = np.linspace(-50, 610, 40)
    outline = np.concatenate(
        [np.column_stack([edge, np.full(40, y)]) for y in (-50, 610)]
        + [np.column_stack([np.full(40, x), edge]) for x in (-50, 610)]
    )
    footprint = shapely.MultiPoint(toolkit_model(utm)(np.add(outline, [2000, 1000]))[:, :2]).convex_hull.buffer(2e-5)

    for refined in refine(*said, tile=tile, grid=grid):
        properties = refined["properties"]
        place = shapely.geometry.shape(properties.get("imageGeometry") or shapely.box(*properties["imageBBox"]))
        if shapely.box(1950, 950, 2610, 1610).contains(place):
            assert footprint.contains(shapely.geometry.shape(refined["geometry"]))
            assert footprint.contains(shapely.Point(properties["center_longitude"], properties["center_latitude"]))


def test_locations_agree_with_geolocator_of_toolkit():
    tile = ImageRegion.of(((3000, 5000), (1024, 1024)))
    utm = GDALAffineSensorModel([300_000, 0.4, 0, 4_000_000, 0, -0.4], pyproj.CRS.from_epsg(32633).to_wkt())
    grid = LocationGrid.from_sensor_model(toolkit_model(utm), ImageRegion.of(((0, 0), (8192, 8192))))
    rng = np.random.default_rng(3)
    said = []
    for x, y in rng.uniform(0, 1000, (40, 2)).tolist():
        ring = [[x, y], [x + 20, y + 3], [x + 17, y + 22], [x, y]]
        said.append(feature(imageGeometry=polygon(ring), imageBBox=[x, y, x + 20, y + 22]))
    said.append(feature(imageGeometry={"type": "LineString", "coordinates": [[1, 2], [900, 800]]}))
    said.append(feature(imageGeometry={"type": "Point", "coordinates": [512, 512]}))

    refined = refine(*said, tile=tile, grid=grid)
    located = [geojson.Feature(geometry=None, properties=copy.deepcopy(one["properties"])) for one in refined]
    Geolocator(ImagedFeaturePropertyAccessor(), utm).geolocate_features(located)

    for ours, theirs in zip(refined, located, strict=True):
        assert ours["geometry"]["type"] == theirs["geometry"]["type"]
        found, expected = (
            shapely.get_coordinates(right_handed(shapely.geometry.shape(one["geometry"]))) for one in (ours, theirs)
        )
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)
        for name in ("center_longitude", "center_latitude"):
            assert ours["properties"][name] == pytest.approx(theirs["properties"][name], abs=1e-6)
        assert ("bbox" in ours) == ("bbox" in theirs)
        if "bbox" in ours:
            # Theirs is that of the box, ours that of the geometry, as RFC 7946 has it.
            assert tuple(ours["bbox"]) == shapely.geometry.shape(ours["geometry"]).bounds


def finalized(*features, tile, grid):
    """Return features as they are delivered, and their shapes."""
    refined = refine(*features, tile=tile, grid=grid)
    made = [FeatureStamp("job", {}).finalized(feature) for feature in refined]
    return made, [shapely.geometry.shape(feature["geometry"]) for feature in made]


def test_feature_is_split_at_antimeridian():
    tile = ImageRegion.of(((0, 0), (4096, 512)))
    grid = LocationGrid.from_sensor_model(degrees_model(179.99), tile)
    hole = [[980.0, 12.0], [980.0, 18.0], [1020.0, 18.0], [1020.0, 12.0], [980.0, 12.0]]
    ring = [[900.0, 10.0], [1100.0, 10.0], [1100.0, 20.0], [900.0, 20.0], [900.0, 10.0]]
    line = {"type": "LineString", "coordinates": [[900, 10], [1100, 30]]}
    ends_there = feature(imageBBox=[900, 10, 1000, 20])
    said = [feature(imageGeometry=polygon(ring, hole), imageBBox=[900, 10, 1100, 20]), feature(imageGeometry=line)]

    features, shapes = finalized(*said, ends_there, tile=tile, grid=grid)

    area, way, whole = shapes
    assert [shape.geom_type for shape in shapes] == ["MultiPolygon", "MultiLineString", "Polygon"]
    assert features[0]["bbox"] == [179.999, 19.9998, -179.999, 19.9999]
    for shape in (area, way):
        assert {part.bounds[0::2] for part in shape.geoms} == {(179.999, 180.0), (-180.0, -179.999)}
    assert area.is_valid
    assert area.area == pytest.approx((200 * 10 - 40 * 6) * 1e-10)
    assert right_handed(area).equals_exact(area)
    assert whole.bounds == (179.999, 19.9998, 180.0, 19.9999)
    assert "_modelRunnerUncut" not in features[0]["properties"]


@pytest.mark.parametrize("sign", [1, -1])
def test_area_around_pole_reaches_it(sign):
    tile = ImageRegion.of(((0, 0), (512, 512)))

    def polar(xy):
        x, y = (xy - 250.0).T * 1e-4
        return np.column_stack([np.degrees(np.arctan2(y, x)), sign * (90 - np.hypot(x, y)), 0 * x])

    grid = LocationGrid.from_sensor_model(polar, tile)
    ring = [[230, 230], [270, 230], [270, 270], [230, 270], [230, 230]]
    hole = [[260, 248], [265, 248], [265, 252], [260, 252], [260, 248]]

    said = [feature(imageBBox=[230, 230, 270, 270]), feature(imageGeometry=polygon(ring, hole))]
    (boxed, _), shapes = finalized(*said, tile=tile, grid=grid)

    west, south, east, north = boxed["bbox"]
    assert (west, east, sign * 90.0) == (-180.0, 180.0, north if sign > 0 else south)
    for shape in shapes:
        assert shape.is_valid
        assert shape.contains(shapely.Point(12.0, sign * 89.99999))
        assert right_handed(shape).equals_exact(shape)
    assert not shapes[1].contains(shapely.Point(polar(np.array([[262.0, 250.0]]))[0]))


@pytest.mark.parametrize(("step", "decimals"), [(1e-3, 6), (9e-6, 7), (4.5e-7, 8), (9e-8, 9), (1e-12, 9)])
def test_decimals_distinguish_tenths_of_pixel(step, decimals):
    grid = LocationGrid.from_sensor_model(degrees_model(10, 20, step), ImageRegion.of(((0, 0), (512, 512))))
    assert decimals_of(grid) == decimals


def test_class_and_score_are_flat_unless_model_sets_them():
    classes = [{"iri": "boat", "score": 0.2}, {"iri": "ship", "score": 0.7}]
    said = [
        feature(imageBBox=[1, 2, 3, 4], featureClasses=classes),
        feature(imageBBox=[1, 2, 3, 4], featureClasses=classes, **{"class": 7}),
        feature(imageBBox=[1, 2, 3, 4], featureClasses=[{"iri": "ship"}]),
        feature(imageBBox=[1, 2, 3, 4]),
    ]
    found = [[one["properties"].get(name) for name in ("class", "score")] for one in refine(*said)]
    assert found == [["ship", 0.7], [7, 0.7], ["ship", None], [None, None]]
    lowered = with_score(refine(said[0])[0], 0.5)["properties"]
    assert (lowered["score"], lowered["featureClasses"][1]) == (0.5, {"iri": "ship", "score": 0.5, "rawScore": 0.7})


@pytest.mark.parametrize(("own", "expected"), [({"id": 7}, 7), ({"id": None}, "f"), ({"id": {}}, "f"), ({}, "f")])
def test_feature_without_id_gets_its_own(own, expected):
    said = {**feature(imageBBox=[1, 2, 3, 4]), **own}
    if not own:
        del said["id"]
    (refined,) = refine(said)
    body = encode_feature(refined)
    for stamped in (
        FeatureStamp("job", {}).finalized(refined, FeatureOrigin("f", TILE)),
        orjson.loads(TextStamp(FeatureStamp("job", {}), TILE, None).stamped(body, own_end(refined, body), "f", 0)),
    ):
        assert stamped["id"] == expected


@pytest.mark.parametrize("grid_options", [{"is_quick": True}, {}], ids=["quick", "slow"])
def test_feature_off_earth_has_no_geometry(grid_options):
    def half_of_the_earth(xy):
        places = degrees_model()(xy)
        places[xy[:, 0] > 1300] = np.nan
        return places

    grid = LocationGrid.from_sensor_model(half_of_the_earth, TILE, **grid_options)
    boxes = [[10.0, 20.0, 40.0, 60.0], [400.0, 20.0, 440.0, 60.0]]
    squares = [shapely.geometry.mapping(shapely.box(*box)) for box in boxes]
    places = [{"imageBBox": box} for box in boxes] + [{"imageGeometry": square} for square in squares]
    answer = [{"type": "Feature", "geometry": None, "properties": place} for place in places]
    found = refine_features(check_features(json.loads(json.dumps(answer))).features, TILE, grid)
    assert [feature["geometry"] is None for feature in found] == [False, True, False, True]
    assert ["bbox" in feature for feature in found] == [True, False, False, False]
    assert ["center_longitude" in feature["properties"] for feature in found] == [True, False, True, False]
