"""Geometries as RFC 7946 has them; the expected ones are written out by hand."""

import pytest
import shapely
from shapely.geometry import shape

from aws.osml.model_runner.features.rfc7946 import bounds_of, conformed, cut

ACROSS = [[179.0, 10.0], [-179.0, 10.0], [-179.0, 12.0], [179.0, 12.0], [179.0, 10.0]]
EAST, WEST = shapely.box(179, 10, 180, 12), shapely.box(-180, 10, -179, 12)


def polygon(*rings):
    return {"type": "Polygon", "coordinates": list(rings)}


def test_area_and_its_box_are_cut_at_antimeridian():
    found = cut(polygon(ACROSS))
    assert found["type"] == "MultiPolygon"
    assert shape(found).equals(shapely.union(EAST, WEST))
    assert bounds_of(found) == [179.0, 10.0, -179.0, 12.0]


def test_hole_is_cut_too():
    hole = [[179.5, 10.5], [-179.5, 10.5], [-179.5, 11.5], [179.5, 11.5], [179.5, 10.5]]
    assert shape(cut(polygon(ACROSS, hole))).area == pytest.approx(4.0 - 1.0)


def test_line_is_cut_at_antimeridian():
    found = cut({"type": "LineString", "coordinates": [[178.0, 0.0], [-178.0, 2.0]]})
    assert found == {
        "type": "MultiLineString",
        "coordinates": [[[178.0, 0.0], [180.0, 1.0]], [[-180.0, 1.0], [-178.0, 2.0]]],
    }


def test_ring_around_pole_becomes_polar_area():
    ring = [[longitude, 80.0] for longitude in (0.0, 90.0, 180.0, -90.0, 0.0)]
    found = shape(cut(polygon(ring)))
    assert found.equals(shapely.box(-180, 80, 180, 90))
    assert bounds_of(cut(polygon(ring))) == [-180.0, 80.0, 180.0, 90.0]


@pytest.mark.parametrize(
    "geometry",
    [
        {"type": "Point", "coordinates": [180.0, 1.0]},
        {"type": "MultiPoint", "coordinates": [[179.0, 1.0], [-179.0, 1.0]]},
        polygon([[0.0, 0.0], [1.0, 0.0], [0.0, 0.0], [0.0, 0.0]]),
        polygon([[0.0, 0.0], [2.0, 0.0], [2.0, 1.0], [0.0, 1.0], [0.0, 0.0]]),
    ],
    ids=["point", "points", "no area", "elsewhere"],
)
def test_geometry_that_needs_no_cut_stays(geometry):
    assert shape(cut(geometry)).equals(shape(geometry))
    assert cut(geometry)["type"] == geometry["type"]


def test_members_of_collection_are_cut_each_and_box_is_that_of_all():
    members = [{"type": "Point", "coordinates": [178.0, 1.0]}, polygon(ACROSS)]
    feature = {
        "type": "Feature",
        "bbox": [0, 0, 0, 0],
        "geometry": {"type": "GeometryCollection", "geometries": members},
    }
    found = conformed(feature)
    assert [member["type"] for member in found["geometry"]["geometries"]] == ["Point", "MultiPolygon"]
    assert found["bbox"] == [178.0, 1.0, -179.0, 12.0]


def test_longitudes_that_overlap_are_one_span():
    geometry = {"type": "MultiLineString", "coordinates": [[[0.0, 0.0], [3.0, 1.0]], [[2.0, 0.0], [5.0, 1.0]]]}
    assert bounds_of(geometry) == [0.0, 0.0, 5.0, 1.0]
