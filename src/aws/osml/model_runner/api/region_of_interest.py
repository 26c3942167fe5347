"""The part of the Earth that a request is about: a polygon in WKT, longitude and latitude in degrees.

The parser of such text is native code that recurses and that costs more than linear time, so a stranger's text is
measured first: 50,000 nested parentheses end the process, and a random polygon of some hundred vertices takes a minute
to repair.
"""

import math
import re
from typing import NoReturn

import numpy as np
import shapely
from shapely.geometry import MultiPolygon, Polygon
from shapely.geometry.base import BaseGeometry

from aws.osml.model_runner.exceptions import InvalidImageRequestException, Problem

from .problems import shortened

MAX_WKT_BYTES = 64 * 1024
MAX_VERTICES = 5_000
MAX_DEPTH = 4
# Repairing takes the cube of the number of vertices; this many take some hundredths of a second.
MAX_REPAIRED_VERTICES = 250
# About a tenth of a micrometre, and few enough digits for every number to survive being written as text.
GRID_DEGREES = 1e-12
_GRID_DECIMALS = 12

_FIELD = "regionOfInterest"
_SHAPE = re.compile(r"\s*(?:MULTI)?POLYGON\s*(?:Z|M|ZM)?\s*\(", re.IGNORECASE)
_REST = re.compile(r"[0-9eE+\-.,()\s]*")
_NUMBER = re.compile(r"[^\s,()]+")
_RING_END = re.compile(r"\)\s*,")


def parse_roi(wkt: str) -> Polygon | MultiPolygon:
    """Return the region that ``wkt`` describes, valid, with an area, and with coordinates of at most twelve decimals.

    POLYGON and MULTIPOLYGON are accepted, with or without heights. A polygon that crosses itself is repaired when it is
    small. Latitudes lie in [-90, 90] and longitudes in [-360, 360], so that a region may cross the antimeridian.
    Raises InvalidImageRequestException, in milliseconds, for anything else.
    """
    _check_before_parsing(wkt)
    try:
        geometry = shapely.from_wkt(wkt)
    except shapely.errors.GEOSException as err:
        _refuse(wkt, f"WKT that can be read: {str(err).splitlines()[0][:120]}", err)
    coordinates = shapely.get_coordinates(geometry)
    if not (np.abs(coordinates) <= (360.0, 90.0)).all():
        _refuse(wkt, "longitudes within ±360 and latitudes within ±90 degrees, in this order")
    return _on_grid(_repaired(geometry, wkt), wkt)


def _check_before_parsing(wkt: str) -> None:
    """Refuse what the parser should not see, in one pass over the text."""
    if len(wkt.encode("utf-8", "replace")) > MAX_WKT_BYTES:
        _refuse(wkt, f"at most {MAX_WKT_BYTES} bytes")
    shape = _SHAPE.match(wkt)
    if shape is None or _REST.fullmatch(wkt, shape.end()) is None:
        _refuse(wkt, "a POLYGON or MULTIPOLYGON in WKT")
    if _depth(wkt) > MAX_DEPTH:
        _refuse(wkt, f"at most {MAX_DEPTH} levels of parentheses")
    if wkt.count(",") + 1 - len(_RING_END.findall(wkt)) > MAX_VERTICES:
        _refuse(wkt, f"at most {MAX_VERTICES} vertices")
    if not all(_is_finite(number) for number in _NUMBER.findall(wkt, shape.end())):
        _refuse(wkt, "finite numbers")


def _depth(wkt: str) -> int:
    level = deepest = 0
    for character in wkt:
        if character == "(":
            level += 1
            deepest = max(deepest, level)
        elif character == ")":
            level -= 1
    return deepest


def _is_finite(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False


def _repaired(geometry: BaseGeometry, wkt: str) -> BaseGeometry:
    if not geometry.is_valid:
        if shapely.get_num_coordinates(geometry) > MAX_REPAIRED_VERTICES:
            _refuse(wkt, f"a valid polygon; only those of up to {MAX_REPAIRED_VERTICES} vertices are repaired")
        geometry = shapely.make_valid(geometry, method="structure", keep_collapsed=False)
    return geometry


def _on_grid(geometry: BaseGeometry, wkt: str) -> Polygon | MultiPolygon:
    """Return a valid geometry with its numbers rounded, still valid; by way of bytes, which forget the grid."""
    # Numbers far smaller than the grid make GEOS divide by zero.
    rounded = shapely.transform(geometry, lambda places: np.round(places, _GRID_DECIMALS))
    try:
        precise = shapely.set_precision(shapely.make_valid(rounded), GRID_DEGREES)
    except shapely.errors.GEOSException as err:
        _refuse(wkt, "a region with an area, apart from rounding", err)
    geometry = shapely.from_wkb(shapely.to_wkb(precise, output_dimension=3))
    if not isinstance(geometry, (Polygon, MultiPolygon)) or not geometry.area > 0:
        _refuse(wkt, "a region with an area")
    return geometry


def _refuse(wkt: str, expectation: str, cause: Exception | None = None) -> NoReturn:
    problem = Problem(_FIELD, shortened(wkt), expectation)
    raise InvalidImageRequestException("the region of interest cannot be used", [problem]) from cause
