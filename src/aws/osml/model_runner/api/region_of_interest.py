"""Parses a region of interest: a polygon in WKT, longitude before latitude, in degrees.

The parser is native code that recurses and needs more than linear time, so untrusted text is checked first.
Deep nesting, as of 50,000 parentheses, would end the process. The repair of a random polygon with some hundred vertices
takes a minute.
"""

import math
import re
from typing import NoReturn

import numpy as np
import shapely
from shapely.geometry import MultiPolygon, Polygon

from aws.osml.model_runner.exceptions import InvalidImageRequestException, Problem

from .problems import shortened

MAX_WKT_BYTES = 64 * 1024
MAX_VERTICES = 5_000
MAX_DEPTH = 4
# The time of a repair grows with the cube of the vertices. A polygon of this size takes some hundredths of a second.
MAX_REPAIRED_VERTICES = 250
# About a tenth of a micrometre. Numbers with so few digits are not changed by writing them as text.
GRID_DEGREES = 1e-12
_GRID_DECIMALS = 12

_FIELD = "regionOfInterest"
_SHAPE = re.compile(r"\s*(?:MULTI)?POLYGON\s*(?:(?:ZM?|M)\s*)?\(", re.IGNORECASE)
_REST = re.compile(r"[0-9eE+\-.,()\s]*")
_NUMBER = re.compile(r"[^\s,()]+")
_RING_END = re.compile(r"\)\s*,")


def parse_roi(wkt: str) -> Polygon | MultiPolygon:
    """Return the region of ``wkt``: valid, with an area, and with at most twelve decimals.

    POLYGON and MULTIPOLYGON are accepted, with or without heights. A small polygon that crosses itself is repaired.
    Latitudes must be in [-90, 90], longitudes in [-360, 360], so that a region can cross the antimeridian.
    Raises InvalidImageRequestException, in milliseconds, for anything else.
    """
    _check_before_parsing(wkt)
    try:
        geometry = shapely.from_wkt(wkt)
    except shapely.errors.GEOSException as err:
        _refuse(wkt, f"valid WKT: {str(err).splitlines()[0][:120]}", err)
    coordinates = shapely.get_coordinates(geometry)
    if not (np.abs(coordinates) <= (360.0, 90.0)).all():
        _refuse(wkt, "longitudes within ±360 and latitudes within ±90 degrees, in this order")
    if not geometry.is_valid:
        if shapely.get_num_coordinates(geometry) > MAX_REPAIRED_VERTICES:
            _refuse(wkt, f"a valid polygon; only polygons of up to {MAX_REPAIRED_VERTICES} vertices are repaired")
        geometry = shapely.make_valid(geometry, method="structure", keep_collapsed=False)
    # Numbers far smaller than the grid make GEOS divide by zero.
    rounded = shapely.transform(geometry, lambda positions: np.round(positions, _GRID_DECIMALS))
    try:
        precise = shapely.set_precision(shapely.make_valid(rounded), GRID_DEGREES)
    except shapely.errors.GEOSException as err:
        _refuse(wkt, "a region with an area, apart from rounding", err)
    # The detour through WKB removes the precision grid from the geometry.
    geometry = shapely.from_wkb(shapely.to_wkb(precise, output_dimension=3))
    if not isinstance(geometry, (Polygon, MultiPolygon)) or not geometry.area > 0:
        _refuse(wkt, "a region with an area")
    return geometry


def _check_before_parsing(wkt: str) -> None:
    """Reject text that could crash or block the parser, in linear time."""
    if len(wkt.encode("utf-8", "replace")) > MAX_WKT_BYTES:
        _refuse(wkt, f"at most {MAX_WKT_BYTES} bytes")
    shape = _SHAPE.match(wkt)
    if shape is None or _REST.fullmatch(wkt, shape.end()) is None:
        _refuse(wkt, "a POLYGON or MULTIPOLYGON in WKT")
    if _depth(wkt) > MAX_DEPTH:
        _refuse(wkt, f"at most {MAX_DEPTH} levels of parentheses")
    if wkt.count(",") + 1 - len(_RING_END.findall(wkt)) > MAX_VERTICES:
        _refuse(wkt, f"at most {MAX_VERTICES} vertices")
    try:
        is_finite = all(math.isfinite(float(number)) for number in _NUMBER.findall(wkt, shape.end()))
    except ValueError:
        is_finite = False
    if not is_finite:
        _refuse(wkt, "finite numbers")


def _depth(wkt: str) -> int:
    level = max_level = 0
    for character in wkt:
        if character == "(":
            level += 1
            max_level = max(max_level, level)
        elif character == ")":
            level -= 1
    return max_level


def _refuse(wkt: str, expectation: str, cause: Exception | None = None) -> NoReturn:
    problem = Problem(_FIELD, shortened(wkt), expectation)
    raise InvalidImageRequestException("the region of interest cannot be used", [problem]) from cause
