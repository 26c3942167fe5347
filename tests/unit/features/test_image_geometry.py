"""Pixel geometry of a feature: the property that holds it, and refused values."""

import math

import geojson
import numpy as np
import pytest
import shapely
from hypothesis import given
from hypothesis import strategies as st

from aws.osml.model_runner.features import feature_image_bounds, find_image_geometry
from aws.osml.model_runner.features.geometry_arrays import GeometryArrays
from aws.osml.model_runner.features.image_geometry import (
    MAX_COORDINATE_PX,
    box_polygon,
    geometry_paths,
    geometry_problem,
    image_geometry_problem,
)

SQUARE = [[1, 2], [5, 2], [5, 8], [1, 8], [1, 2]]
HOLE = [[2, 3], [4, 3], [4, 5], [2, 3]]
GEOMETRIES = {
    "Point": [3, 4],
    "MultiPoint": [[3, 4], [5, 6]],
    "LineString": [[3, 4], [5, 6]],
    "MultiLineString": [[[3, 4], [5, 6]], [[0, 0], [1, 1], [2, 0]]],
    "Polygon": [SQUARE, HOLE],
    "MultiPolygon": [[SQUARE, HOLE], [[[20, 20], [30, 20], [30, 40], [20, 20]]]],
}

coordinates = st.floats(-2000, 20000, allow_nan=False).map(lambda value: round(value, 3))
positions = st.tuples(coordinates, coordinates).map(list)


@st.composite
def rings(draw):
    """A star around a centre, closed or left open."""
    x, y = draw(positions)
    radii = draw(st.lists(st.floats(1, 200), min_size=3, max_size=8))
    turns = [2 * math.pi * index / len(radii) for index in range(len(radii))]
    ring = [[x + r * math.cos(a), y + r * math.sin(a)] for r, a in zip(radii, turns, strict=True)]
    return [*ring, list(ring[0])] if draw(st.booleans()) else ring


polygons = rings().map(lambda ring: [ring])
lines = st.lists(positions, min_size=2, max_size=6)


def _of_type(kind, values):
    return values.map(lambda value: {"type": kind, "coordinates": value})


simple_geometries = st.one_of(
    _of_type("Point", positions),
    _of_type("MultiPoint", st.lists(positions, min_size=1, max_size=5)),
    _of_type("LineString", lines),
    _of_type("MultiLineString", st.lists(lines, min_size=1, max_size=3)),
    _of_type("Polygon", polygons),
    _of_type("MultiPolygon", st.lists(polygons, min_size=1, max_size=3)),
)
geometries = st.one_of(
    simple_geometries,
    st.lists(simple_geometries, min_size=1, max_size=3).map(
        lambda members: {"type": "GeometryCollection", "geometries": members}
    ),
)


@pytest.mark.parametrize(
    ("properties", "expected"),
    [
        ({"imageGeometry": {"type": "Point", "coordinates": [1, 2]}, "imageBBox": [5, 5, 9, 9]}, (1, 2, 1, 2)),
        ({"imageBBox": [5, 6, 7, 8], "geom_imcoords": SQUARE}, (5, 6, 7, 8)),
        ({"imageBBox": [7, 8, 5, 6]}, (5, 6, 7, 8)),
        ({"imageGeometry": None, "imageBBox": [5, 6, 7, 8]}, (5, 6, 7, 8)),
        (
            {
                "geom_imcoords": SQUARE,
                "detection": {"type": "Point", "pixelCoordinates": [0, 0]},
                "bounds_imcoords": [9, 9, 10, 10],
            },
            (1, 2, 5, 8),
        ),
        (
            {"detection": {"type": "Point", "pixelCoordinates": [3, 4]}, "bounds_imcoords": [9, 9, 10, 10]},
            (3, 4, 3, 4),
        ),
        ({"detection": {"type": "Polygon", "pixelCoordinates": [SQUARE]}}, (1, 2, 5, 8)),
        ({"detection": {"score": 1}, "bounds_imcoords": [9, 9, 10, 11]}, (9, 9, 10, 11)),
        ({"detection": "yes", "bounds_imcoords": [9, 9, 10, 11]}, (9, 9, 10, 11)),
        ({"bounds_imcoords": [9, 9, 10, 11]}, (9, 9, 10, 11)),
        ({"imageBBox": [5, 6, 7, 8], "bounds_imcoords": "broken, and not looked at"}, (5, 6, 7, 8)),
        ({}, None),
        ({"imageGeometry": None, "imageBBox": None}, None),
        ({"imageGeometry": {"type": "Point", "coordinates": ["1", 2]}}, None),
        ({"imageBBox": [1, 2, 3]}, None),
        ({"bounds_imcoords": [1, 2, 3]}, None),
    ],
)
def test_first_geometry_property_wins(properties, expected):
    assert feature_image_bounds({"type": "Feature", "geometry": None, "properties": properties}) == expected


@pytest.mark.parametrize("feature", [{}, {"properties": None}, {"properties": []}, {"properties": "x"}])
def test_feature_without_properties_has_no_bounds(feature):
    assert feature_image_bounds(feature) is None


def test_objects_of_geojson_library_are_features_too():
    feature = geojson.Feature(properties={"imageGeometry": geojson.Polygon([[(1, 2), (5, 2), (5, 8), (1, 2)]])})

    assert feature_image_bounds(feature) == (1.0, 2.0, 5.0, 8.0)


@pytest.mark.parametrize("kind", GEOMETRIES)
def test_every_type_has_bounds_that_shapely_finds(kind):
    geometry = {"type": kind, "coordinates": GEOMETRIES[kind]}

    assert feature_image_bounds({"properties": {"imageGeometry": geometry}}) == shapely.geometry.shape(geometry).bounds


def test_box_becomes_closed_ring_that_is_counterclockwise_on_ground():
    ring = box_polygon([5, 8, 1, 2])["coordinates"][0]

    assert ring[0] == ring[-1]
    assert shapely.Polygon(ring).bounds == (1, 2, 5, 8)
    assert shapely.LinearRing([(x, -y) for x, y in ring]).is_ccw  # y points down in pixels


@given(geometries)
def test_geometry_is_usable_when_shapely_reads_it(geometry):
    assert geometry_problem(geometry) is None
    assert image_geometry_problem({"imageGeometry": geometry}) is None
    assert find_image_geometry({"imageGeometry": geometry}) is geometry


@pytest.mark.parametrize(
    ("geometry", "problem"),
    [
        *[(value, "BAD_IMAGE_GEOMETRY") for value in (7, "Point", [], [1, 2], True, {})],
        *[({"type": kind, "coordinates": [1, 2]}, "BAD_IMAGE_GEOMETRY") for kind in ("Circle", None, 5, [], {})],
        *[({"type": kind}, "BAD_IMAGE_GEOMETRY") for kind in (*GEOMETRIES, "GeometryCollection")],
        *[({"type": kind, "coordinates": value}, "BAD_IMAGE_GEOMETRY") for kind in GEOMETRIES for value in ([], {}, 1)],
        ({"type": "Polygon", "coordinates": [[]]}, "BAD_IMAGE_GEOMETRY"),
        ({"type": "Polygon", "coordinates": [SQUARE, []]}, "BAD_IMAGE_GEOMETRY"),
        ({"type": "Polygon", "coordinates": [[[0, 0], [1, 1]]]}, "BAD_IMAGE_GEOMETRY"),
        ({"type": "Polygon", "coordinates": [[[0, 0], [1, 1], [0, 0]]]}, "BAD_IMAGE_GEOMETRY"),
        ({"type": "MultiPolygon", "coordinates": [[SQUARE], [[[0, 0]]]]}, "BAD_IMAGE_GEOMETRY"),
        ({"type": "MultiPolygon", "coordinates": [SQUARE]}, "BAD_COORDINATES"),
        ({"type": "LineString", "coordinates": [[0, 0]]}, "BAD_IMAGE_GEOMETRY"),
        ({"type": "LineString", "coordinates": [0, 0]}, "BAD_COORDINATES"),
        ({"type": "LineString", "coordinates": [[0, 0], [1]]}, "BAD_COORDINATES"),
        ({"type": "LineString", "coordinates": [[0, 0], []]}, "BAD_COORDINATES"),
        ({"type": "LineString", "coordinates": [[0, 0], None]}, "BAD_COORDINATES"),
        ({"type": "Point", "coordinates": [[1, 2]]}, "BAD_COORDINATES"),
        *[
            ({"type": "Point", "coordinates": pair}, "BAD_COORDINATES")
            for value in (
                "1",
                None,
                True,
                {},
                [],
                math.nan,
                math.inf,
                -math.inf,
                1e300,
                -2 * MAX_COORDINATE_PX,
                10**400,
            )
            for pair in ([value, 1], [1, value], [1.5, 2, value])
        ],
        ({"type": "MultiPoint", "coordinates": [[1, math.nan], [0.5, 10**400]]}, "BAD_COORDINATES"),
        ({"type": "GeometryCollection", "geometries": []}, "BAD_IMAGE_GEOMETRY"),
        ({"type": "GeometryCollection", "geometries": {}}, "BAD_IMAGE_GEOMETRY"),
        ({"type": "GeometryCollection", "geometries": [None]}, "BAD_IMAGE_GEOMETRY"),
        ({"type": "GeometryCollection", "geometries": [{"type": "Point", "coordinates": [1]}]}, "BAD_COORDINATES"),
        (
            {
                "type": "GeometryCollection",
                "geometries": [
                    {"type": "GeometryCollection", "geometries": [{"type": "Point", "coordinates": [1, 2]}]}
                ],
            },
            "BAD_IMAGE_GEOMETRY",
        ),
    ],
)
def test_unusable_geometry_has_reason(geometry, problem):
    assert geometry_problem(geometry) == problem
    assert image_geometry_problem({"imageGeometry": geometry}) == problem


@pytest.mark.parametrize(
    ("properties", "problem"),
    [
        ({}, "NO_IMAGE_GEOMETRY"),
        ({"imageGeometry": None, "imageBBox": None, "geom_imcoords": None}, "NO_IMAGE_GEOMETRY"),
        ({"detection": {"type": "Point"}}, "NO_IMAGE_GEOMETRY"),
        ({"geom_imcoords": "x"}, "BAD_IMAGE_GEOMETRY"),
        ({"geom_imcoords": []}, "BAD_IMAGE_GEOMETRY"),
        ({"geom_imcoords": [[1, 2], [3, 4]]}, "BAD_IMAGE_GEOMETRY"),
        ({"geom_imcoords": [["1", 2], [3, 4], [5, 6]]}, "BAD_COORDINATES"),
        ({"detection": {"pixelCoordinates": [1, 2]}}, "BAD_IMAGE_GEOMETRY"),
        ({"detection": {"type": "GeometryCollection", "pixelCoordinates": [1, 2]}}, "BAD_IMAGE_GEOMETRY"),
        ({"imageGeometry": {"type": "Point", "coordinates": [1, 2]}, "imageBBox": [1, 2, 3]}, "BAD_IMAGE_BBOX"),
        *[
            ({name: box}, "BAD_IMAGE_BBOX")
            for name in ("imageBBox", "bounds_imcoords")
            for box in ([], [1, 2, 3], [1, 2, 3, 4, 5], "1234", 5, {}, [1, 2, 3, None], [1, 2, 3, "4"], [[1], 2, 3, 4])
        ],
        ({"imageBBox": [1, 2, 3, math.nan]}, "BAD_IMAGE_BBOX"),
        ({"imageBBox": [0, 0, 1, True]}, "BAD_IMAGE_BBOX"),
    ],
)
def test_property_that_would_be_used_must_be_usable(properties, problem):
    assert image_geometry_problem(properties) == problem


@given(st.lists(geometries, min_size=1, max_size=6))
def test_arrays_restore_geometries_with_closed_rings(originals):
    arrays = GeometryArrays.of(originals)

    rebuilt = arrays.with_positions(arrays.positions)

    for original, copy in zip(originals, rebuilt, strict=True):
        assert copy["type"] == original["type"]
        assert shapely.geometry.shape(copy).equals_exact(shapely.geometry.shape(original), 0)
        for path, copied in zip(geometry_paths(original), geometry_paths(copy), strict=True):
            assert copied[: len(path)] == path
            assert copied[len(path) :] in ([], [path[0]])


@given(st.lists(geometries, min_size=1, max_size=6))
def test_bounds_and_centroids_of_arrays_are_those_of_single_shapes(originals):
    arrays = GeometryArrays.of(originals)
    shapes = [shapely.geometry.shape(original) for original in originals]

    np.testing.assert_array_equal(arrays.bounds(), [shape.bounds for shape in shapes])
    np.testing.assert_allclose(arrays.centroids(), [shape.centroid.coords[0] for shape in shapes], atol=1e-6)


@pytest.mark.parametrize(
    ("coordinates", "centroid"),
    [
        ([[3, 3], [3, 3], [3, 3], [3, 3]], (3, 3)),
        ([[0, 0], [4, 0], [8, 0], [0, 0]], (4, 0)),
        ([[0, 0], [4, 4], [4, 0], [0, 4], [0, 0]], (2, 2)),
    ],
    ids=["one point", "one line", "bow tie"],
)
def test_empty_area_has_centroid(coordinates, centroid):
    arrays = GeometryArrays.of([{"type": "Polygon", "coordinates": [coordinates]}])

    np.testing.assert_allclose(arrays.centroids(), [centroid])


def test_ring_that_crosses_itself_keeps_its_centroid_within_its_bounds():
    almost_nothing = [[0, 0], [4, 4], [4, 0], [0, 4 + 1e-7], [0, 0]]
    arrays = GeometryArrays.of([{"type": "Polygon", "coordinates": [almost_nothing]}])

    (x, y), (minx, miny, maxx, maxy) = arrays.centroids()[0], arrays.bounds()[0]

    assert minx <= x <= maxx
    assert miny <= y <= maxy


def test_third_number_of_position_is_left_behind():
    arrays = GeometryArrays.of([{"type": "MultiPoint", "coordinates": [[1, 2, 3], [4, 5], [6, 7, 8, 9]]}])

    assert arrays.positions.tolist() == [[1, 2], [4, 5], [6, 7]]
