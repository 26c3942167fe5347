import itertools

import numpy as np
import pytest
import shapely
from shapely.geometry import mapping, shape

from aws.osml.model_runner.api.post_processing import FeatureDistillationSeam, SeamMerge
from aws.osml.model_runner.common.typing import ImageRegion
from aws.osml.model_runner.features import LocationGrid, refine_features
from aws.osml.model_runner.features.image_geometry import box_polygon
from aws.osml.model_runner.features.selection import FeatureSelector
from aws.osml.model_runner.features.union import join_features

LEFT, RIGHT = [[0, 0], [60, 60]], [[0, 40], [60, 60]]
UNION = FeatureSelector(FeatureDistillationSeam(merge=SeamMerge.UNION))


def ground(x, y, west=10.0):
    """Where a pixel lies: a ten-thousandth of a degree wide, a little turned, higher to the right."""
    longitude = west + 1e-4 * x + 1e-5 * y
    return [round(longitude - 360 if longitude > 180 else longitude, 6), round(50 - 1e-4 * y, 6), round(0.5 * x, 6)]


def on_the_ground(geometry, west=10.0):
    places = [ground(x, y, west) for x, y in shapely.get_coordinates(shape(geometry))]
    return mapping(shapely.set_coordinates(shapely.force_3d(shape(geometry)), places))


def feature(name, geometry, tile, score=0.5, west=10.0, **properties):
    geometry = {"type": geometry.geom_type, "coordinates": mapping(geometry)["coordinates"]}
    return {
        "type": "Feature",
        "id": name,
        "geometry": on_the_ground(geometry, west),
        "properties": {
            "imageGeometry": geometry,
            "featureClasses": [{"iri": "field", "score": score}],
            "_modelRunnerTile": tile,
            **properties,
        },
    }


def boxed(name, box, tile, score=0.5):
    made = feature(name, shape(box_polygon(box)), tile, score)
    del made["properties"]["imageGeometry"]
    made["properties"]["imageBBox"] = list(box)
    west, south, east, north = shape(made["geometry"]).bounds
    return made | {"bbox": [west, south, east, north]}


def in_pixels(joined):
    return shape(joined["properties"]["imageGeometry"])


def test_polygon_that_seam_cuts_is_joined():
    field = shapely.Polygon([(5, 10), (95, 14), (90, 50), (12, 44)])
    cut = [field.intersection(shapely.box(col, row, col + w, row + h)) for (row, col), (w, h) in (LEFT, RIGHT)]
    parts = [feature("a", cut[0], LEFT, 0.6, crop="oats"), feature("b", cut[1], RIGHT, 0.9, crop="rye")]
    (joined,) = UNION.select_features(parts)
    assert in_pixels(joined).symmetric_difference(field).area < 1e-3
    assert (joined["id"], joined["properties"]["crop"]) == ("b", "rye")
    assert in_pixels(parts[1]).equals(cut[1])


def test_joined_geometry_matches_its_pixels():
    parts = [
        feature("a", shapely.box(5, 10, 60, 50), LEFT, 0.9, center_longitude=0.0, center_latitude=0.0),
        feature("b", shapely.box(40, 10, 80, 50), RIGHT),
    ]
    (joined,) = UNION.select_features(parts)
    expected = on_the_ground(joined["properties"]["imageGeometry"])
    assert shape(joined["geometry"]).exterior.is_ccw
    found, expected = (
        shapely.get_coordinates(shape(geometry).normalize(), include_z=True)
        for geometry in (joined["geometry"], expected)
    )
    assert found == pytest.approx(expected, abs=2e-6)
    centre = joined["properties"]["center_longitude"], joined["properties"]["center_latitude"]
    assert centre == pytest.approx(ground(42.5, 30)[:2], abs=2e-6)


def test_boxes_become_box_around_both():
    (joined,) = UNION.select_features([boxed("a", (5, 10, 60, 20), LEFT, 0.9), boxed("b", (40, 11, 80, 21), RIGHT)])
    assert joined["properties"]["imageBBox"] == [5, 10, 80, 21]
    assert "imageGeometry" not in joined["properties"]
    assert joined["bbox"] == pytest.approx([10.0006, 49.9979, 2.5, 10.00821, 49.999, 40.0], abs=2e-6)


@pytest.mark.parametrize("is_south_up", [False, True])
def test_parts_with_reversed_rings_are_joined(is_south_up):
    def locate(xy):
        x, y = xy.T
        return np.column_stack([10 + 1e-5 * x, 50 + (1e-5 if is_south_up else -1e-5) * y, 0 * x])

    grid = LocationGrid.from_sensor_model(locate, ImageRegion.of([[0, 0], [100, 60]]))
    parts = []
    for (row, col), _ in (LEFT, RIGHT):
        seen = shapely.box(max(col, 5), 10, min(col + 60, 90), 30 + col / 20)
        for ring in (seen.exterior.coords, seen.exterior.coords[::-1]):
            geometry = {"type": "Polygon", "coordinates": [[[x - col, y] for x, y in ring]]}
            properties = {"imageGeometry": geometry, "featureClasses": [{"iri": "field", "score": 0.5}]}
            said = {"type": "Feature", "geometry": None, "properties": properties}
            parts += refine_features([said], ImageRegion.of([[row, col], [60, 60]]), grid)
    for first, second in itertools.product(parts[:2], parts[2:]):
        joined = join_features([first, second], 1.0)
        assert shape(joined["geometry"]).exterior.is_ccw
        expected = shapely.transform(in_pixels(joined), lambda xy: locate(xy)[:, :2])
        assert shape(joined["geometry"]).symmetric_difference(expected).area < 1e-4 * expected.area


def test_uncut_geometry_is_kept_unchanged():
    whole = feature("a", shapely.box(46, 20, 54, 30), LEFT, 0.9)
    (kept,) = UNION.select_features([whole, feature("b", shapely.box(47, 21, 55, 31), RIGHT)])
    assert kept == whole


def test_lines_that_seam_cuts_become_one_line():
    parts = [
        feature("a", shapely.LineString([(5, 30), (30, 32), (60, 32)]), LEFT, 0.9),
        feature("b", shapely.LineString([(40, 32.5), (70, 32.5), (90, 40)]), RIGHT),
    ]
    (joined,) = UNION.select_features(parts)
    line = in_pixels(joined)
    assert line.geom_type == "LineString"
    ends = sorted([line.coords[0], line.coords[-1]])
    assert ends == [(5, 30), (90, 40)]
    assert line.length == pytest.approx(parts_length(parts), rel=0.02)


def parts_length(parts):
    first, second = (in_pixels(part) for part in parts)
    return first.length + second.length - 20  # what both saw


def test_fork_of_one_tile_is_kept():
    parts = [
        feature("a", shapely.LineString([(5, 30), (60, 30)]), LEFT, 0.9),
        feature("b", shapely.MultiLineString([[(40, 30), (90, 30)], [(70, 30), (70, 55)]]), RIGHT),
    ]
    joined = join_features(parts, 1.25)
    assert in_pixels(joined).length == pytest.approx(85 + 25, abs=3)


def test_parts_on_both_sides_of_antimeridian_are_joined_there():
    west = 180 - 45e-4
    parts = [
        feature("a", shapely.box(5, 10, 60, 50), LEFT, 0.9, west=west),
        feature("b", shapely.box(40, 10, 80, 50), RIGHT, west=west),
    ]
    for part in parts:
        part["bbox"] = [0.0, 0.0, 0.0, 0.0]
    (joined,) = UNION.select_features(parts)
    longitudes = shapely.get_coordinates(shape(joined["geometry"]))[:, 0]
    assert (np.abs(longitudes) > 179.99).all()
    assert joined["bbox"][0] == pytest.approx(west + 6e-4, abs=2e-6)
    assert joined["bbox"][3] == pytest.approx(west + 80e-4 + 5e-4 - 360, abs=2e-6)


@pytest.mark.parametrize("geometry", [None, {"type": "Point", "coordinates": [1.0, 2.0]}])
def test_geometry_unrelated_to_pixels_is_kept(geometry):
    parts = [feature("a", shapely.box(5, 10, 60, 50), LEFT, 0.9), feature("b", shapely.box(40, 10, 80, 50), RIGHT)]
    for part in parts:
        part["geometry"] = geometry
    (joined,) = UNION.select_features(parts)
    assert joined["geometry"] == geometry
    assert in_pixels(joined).equals(shapely.box(5, 10, 80, 50))


def test_points_have_no_parts():
    parts = [feature("a", shapely.Point(50, 10), LEFT, 0.9), feature("b", shapely.Point(51, 10), RIGHT)]
    assert UNION.select_features(parts) == [parts[0]]


def comb(tile, name, is_upright):
    """Return a feature of an upright comb whose teeth cross the teeth of a lying comb."""
    teeth = [(place, 0 if number % 2 else 50) for number, place in enumerate(np.linspace(41, 59, 400))]
    outline = [*teeth, (59, -1), (41, -1)]
    turned = outline if is_upright else [(y / 50 * 18 + 41, (x - 41) / 18 * 50) for x, y in outline]
    return feature(name, shapely.Polygon(turned), tile)


def test_parts_that_are_entangled_are_not_joined():
    parts = [comb(LEFT, "a", is_upright=True), comb(RIGHT, "b", is_upright=False)]
    assert join_features(parts, 1.0) == parts[0]


def test_points_are_not_joined():
    parts = [feature("a", shapely.Point(50, 10), LEFT, 0.9), feature("b", shapely.Point(51, 10), RIGHT)]
    assert join_features(parts, 5.0) == parts[0]
