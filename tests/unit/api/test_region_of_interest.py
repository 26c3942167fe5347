import contextlib
import math
import random

import numpy as np
import pytest
import shapely
from hypothesis import given
from hypothesis import strategies as st

from aws.osml.model_runner.api import parse_roi
from aws.osml.model_runner.api.exceptions import InvalidImageRequestException

SQUARE = "POLYGON ((0 0, 2 0, 2 2, 0 2, 0 0))"


def ring(count):
    """Return the WKT of a polygon with this many vertices on a circle."""
    angles = np.linspace(0, 2 * math.pi, count - 1, endpoint=False)
    points = [(round(50 * math.cos(angle), 6), round(50 * math.sin(angle), 6)) for angle in angles]
    return shapely.Polygon(points).wkt


def scribble(count):
    """Return the WKT of a polygon with this many vertices at random, which crosses itself everywhere."""
    rng = random.Random(1)
    points = [f"{rng.uniform(-170, 170):.6f} {rng.uniform(-80, 80):.6f}" for _ in range(count - 1)]
    return f"POLYGON(({','.join([*points, points[0]])}))"


@pytest.mark.parametrize(
    ("wkt", "area"),
    [
        (SQUARE, 4),
        ("polygon((0 0,2 0,2 2,0 2,0 0))", 4),
        ("POLYGON Z ((0 0 5, 2 0 5, 2 2 5, 0 2 5, 0 0 5))", 4),
        ("POLYGON((0 0, 4 0, 4 4, 0 4, 0 0), (1 1, 2 1, 2 2, 1 2, 1 1))", 15),
        ("MULTIPOLYGON(((0 0, 1 0, 1 1, 0 0)), ((5 5, 6 5, 6 6, 5 5)))", 1),
        ("POLYGON((179 0, 181 0, 181 1, 179 1, 179 0))", 2),
        ("POLYGON((0 0, 2 2, 2 0, 0 2, 0 0))", 2),
        ("POLYGON((1e-3 0, 1 0, 1 1, 1e-3 0))", 0.4995),
    ],
)
def test_region_of_interest(wkt, area):
    roi = parse_roi(wkt)
    assert roi.is_valid
    assert roi.geom_type in ("Polygon", "MultiPolygon")
    assert roi.area == pytest.approx(area)


@pytest.mark.parametrize(
    ("wkt", "word"),
    [
        ("", "POLYGON"),
        ("POINT (1 2)", "POLYGON"),
        ("LINESTRING (0 0, 1 1)", "POLYGON"),
        ("GEOMETRYCOLLECTION(POLYGON((0 0,1 0,1 1,0 0)))", "POLYGON"),
        ("SRID=4326;POLYGON((0 0,1 0,1 1,0 0))", "POLYGON"),
        ("POLYGON EMPTY", "POLYGON"),
        ("POLYGON((a b, c d, e f, a b))", "POLYGON"),
        ("POLYGON((0 0, 1 0, 1 1, 0 0)); DROP TABLE", "POLYGON"),
        ("POLYGON((0 0, 1 0, 1 1\x00, 0 0))", "POLYGON"),
        ("POLYGON((0 0, 1 0, 1 1, 0 0)", "valid WKT"),
        ("POLYGON((0 0, 1 0, 1 1))", "valid WKT"),
        ("POLYGON((0, 1, 2, 0))", "valid WKT"),
        ("POLYGON((0 0, nan 0, 1 1, 0 0))", "POLYGON"),
        ("POLYGON((0 0, 1e400 0, 1 1, 0 0))", "finite"),
        ("POLYGON((0 0, e 0, 1 1, 0 0))", "finite"),
        ("POLYGON((0 0, 0 91, 1 1, 0 0))", "latitudes"),
        ("POLYGON((0 0, 361 0, 1 1, 0 0))", "longitudes"),
        ("POLYGON((0 0, 1 1, 0 0, 0 0))", "area"),
        ("POLYGON((0 0, 1e-13 0, 1e-13 1e-13, 0 0))", "area"),
        ("POLYGON((((((0 0, 1 0, 1 1, 0 0))))))", "parentheses"),
        (scribble(400), "repaired"),
    ],
)
def test_invalid_region_of_interest_is_refused(wkt, word):
    with pytest.raises(InvalidImageRequestException, match=word) as refusal:
        parse_roi(wkt)
    (problem,) = refusal.value.problems
    assert problem.field == "regionOfInterest"
    assert len(problem.value) <= 80


BOMBS = {
    "nested collections": "GEOMETRYCOLLECTION(" * 50_000,
    "nested polygons": "MULTIPOLYGON(" + "(" * 60_000,
    "one megabyte": "POLYGON((" + "0 0," * 250_000 + "0 0))",
    "many vertices": ring(5_002).replace(", ", ","),
    "many tiny rings": "POLYGON(" + ",".join(["(0 0,1 0,1 1,0 0)"] * 2_000) + ")",
    "a scribble": scribble(3_000),
}


@pytest.mark.parametrize("name", BOMBS)
def test_deeply_nested_text_is_refused_before_parsing(name):
    with pytest.raises(InvalidImageRequestException):
        parse_roi(BOMBS[name])


def test_large_regions_that_are_well_formed_are_accepted():
    assert parse_roi(ring(2_000)).area == pytest.approx(math.pi * 2_500, rel=1e-3)


def test_small_scribble_is_repaired():
    assert parse_roi(scribble(250)).is_valid


degrees = st.floats(-80, 80, allow_nan=False)


@given(st.lists(st.tuples(degrees, degrees), min_size=3, max_size=8))
def test_region_survives_being_written_as_text(points):
    wkt = shapely.Polygon(points).wkt
    roi = refusal = None
    try:
        roi = parse_roi(wkt)
    except InvalidImageRequestException as err:
        refusal = err
    if refusal is not None:
        assert "area" in str(refusal)
    else:
        assert shapely.from_wkt(roi.wkt) == roi
        assert roi.is_valid


@given(st.text("POLYGN()0123456789.,- eZM", max_size=60).map(lambda text: f"POLYGON(({text}"))
def test_any_text_is_parsed_or_refused(wkt):
    with contextlib.suppress(InvalidImageRequestException):
        assert parse_roi(wkt).area > 0
