"""Image geometry of a feature, in pixels: which property holds it, and whether it is valid.

All pixel coordinates are (x, y) = (column, row), with (0, 0) at the outer corner of the upper left pixel. They are
relative to the tile in a model's response, and to the full image after ``geolocation``.

Models write the geometry in five ways. The first of these properties is used; a ``null`` property counts as absent:

1. ``imageGeometry``: a GeoJSON geometry of any type
2. ``imageBBox``: ``[minx, miny, maxx, maxy]``
3. ``geom_imcoords`` (deprecated): the outer ring of a polygon, as a list of positions
4. ``detection`` (deprecated): ``{"type": …, "pixelCoordinates": …}``, a GeoJSON geometry under another name
5. ``bounds_imcoords`` (deprecated): a box like ``imageBBox``

The three deprecated properties are read only if both of the first two are absent.
"""

from collections.abc import Iterable, Mapping, Sequence
from enum import StrEnum
from itertools import chain
from math import isnan
from typing import Any

Geometry = dict[str, Any]
Position = list[float]
Path = list[Position]
Box = tuple[float, float, float, float]

IMAGE_GEOMETRY = "imageGeometry"
IMAGE_BBOX = "imageBBox"
GEOM_IMCOORDS = "geom_imcoords"
BOUNDS_IMCOORDS = "bounds_imcoords"
DETECTION = "detection"

COLLECTION = "GeometryCollection"

# How many lists enclose a position in the coordinates of each type.
NESTING = {"Point": 0, "MultiPoint": 1, "LineString": 1, "MultiLineString": 2, "Polygon": 2, "MultiPolygon": 3}
AREAS = frozenset({"Polygon", "MultiPolygon"})
_LINES = frozenset({"LineString", "MultiLineString"})

_LISTS = (list, tuple)
_LIST_TYPES = frozenset(_LISTS)
_NUMBER_TYPES = frozenset({int, float})

# The largest image has 2^20 pixels on a side. A coordinate far beyond it is an error of the model, and its square
# would make areas that are computed from it useless.
MAX_COORDINATE_PX = 2.0**24


class GeometryProblem(StrEnum):
    """Reason why an image geometry is not valid; a short code for counters."""

    NO_IMAGE_GEOMETRY = "NO_IMAGE_GEOMETRY"
    BAD_IMAGE_GEOMETRY = "BAD_IMAGE_GEOMETRY"
    BAD_COORDINATES = "BAD_COORDINATES"
    BAD_IMAGE_BBOX = "BAD_IMAGE_BBOX"


def feature_image_bounds(feature: Mapping[str, Any]) -> Box | None:
    """Return (minx, miny, maxx, maxy) of a feature's image geometry, or None if no geometry is valid."""
    properties = feature.get("properties")
    if not isinstance(properties, Mapping):
        return None
    geometry = None if image_geometry_problem(properties) else find_image_geometry(properties)
    if geometry is None:
        return None
    xs, ys = zip(*(position[:2] for path in geometry_paths(geometry) for position in path), strict=True)
    return float(min(xs)), float(min(ys)), float(max(xs)), float(max(ys))


def find_image_geometry(properties: Mapping[str, Any]) -> Geometry | None:
    """Return the GeoJSON geometry in pixels, a box as a polygon, or None if every such property is absent.

    The properties must be valid: see ``image_geometry_problem``.
    """
    geometry: Geometry | None = properties.get(IMAGE_GEOMETRY)
    if geometry is not None:
        return geometry
    if properties.get(IMAGE_BBOX) is not None:
        return box_polygon(properties[IMAGE_BBOX])
    return find_deprecated_geometry(properties)


def find_deprecated_geometry(properties: Mapping[str, Any]) -> Geometry | None:
    """Return the geometry of the deprecated properties, as ``find_image_geometry`` does."""
    ring = properties.get(GEOM_IMCOORDS)
    if ring is not None:
        return {"type": "Polygon", "coordinates": [ring]}
    detection = properties.get(DETECTION)
    if isinstance(detection, Mapping) and detection.get("pixelCoordinates") is not None:
        return {"type": detection.get("type"), "coordinates": detection["pixelCoordinates"]}
    box = properties.get(BOUNDS_IMCOORDS)
    return None if box is None else box_polygon(box)


def image_geometry_problem(properties: Mapping[str, Any]) -> GeometryProblem | None:
    """Return the first problem of a feature's image geometry, or None if it is valid.

    Only properties that are used are checked. So a deprecated property beside a valid ``imageBBox`` is not. A bad
    ``imageBBox`` beside a valid ``imageGeometry`` is a problem, because both are delivered.
    """
    box = properties.get(IMAGE_BBOX)
    if box is not None and not is_box(box):
        return GeometryProblem.BAD_IMAGE_BBOX
    geometry = properties.get(IMAGE_GEOMETRY)
    if geometry is not None:
        return geometry_problem(geometry)
    if box is not None:
        return None
    detection, bounds = properties.get(DETECTION), properties.get(BOUNDS_IMCOORDS)
    has_detection = isinstance(detection, Mapping) and detection.get("pixelCoordinates") is not None
    has_geometry = properties.get(GEOM_IMCOORDS) is not None or has_detection
    if not has_geometry and bounds is not None and not is_box(bounds):
        return GeometryProblem.BAD_IMAGE_BBOX
    geometry = find_deprecated_geometry(properties)
    return GeometryProblem.NO_IMAGE_GEOMETRY if geometry is None else geometry_problem(geometry)


def geometry_problem(geometry: object) -> GeometryProblem | None:
    """Return the first problem of a GeoJSON geometry, or None if each of its paths has valid positions.

    A line needs two positions. A ring needs three, or four if the last repeats the first. A collection needs a member
    and must not contain a collection (RFC 7946, 3.1.8, advises against it).
    """
    if not isinstance(geometry, dict):
        return GeometryProblem.BAD_IMAGE_GEOMETRY
    if geometry.get("type") != COLLECTION:
        return _simple_geometry_problem(geometry)
    members = geometry.get("geometries")
    if not isinstance(members, list) or not members or not all(isinstance(member, dict) for member in members):
        return GeometryProblem.BAD_IMAGE_GEOMETRY
    return next(filter(None, map(_simple_geometry_problem, members)), None)


def _simple_geometry_problem(geometry: Geometry) -> GeometryProblem | None:
    kind, coordinates = geometry.get("type"), geometry.get("coordinates")
    if not isinstance(kind, str) or kind not in NESTING or not _is_nested(coordinates, NESTING[kind]):
        return GeometryProblem.BAD_IMAGE_GEOMETRY
    for path in _paths(coordinates, NESTING[kind]):
        are_positions = set(map(type, path)) <= _LIST_TYPES and min(map(len, path)) >= 2
        if not are_positions or not _are_coordinates([*chain(*path)]):
            return GeometryProblem.BAD_COORDINATES
        min_length = 1
        if kind in _LINES:
            min_length = 2
        elif kind in AREAS:
            min_length = 4 if path[0] == path[-1] else 3
        if len(path) < min_length:
            return GeometryProblem.BAD_IMAGE_GEOMETRY
    return None


def _is_nested(coordinates: Any, nesting: int) -> bool:
    """Return True if non-empty lists are nested so deep that the innermost can hold positions, or numbers at 0."""
    if not isinstance(coordinates, _LISTS) or not coordinates:
        return False
    return nesting < 2 or all(_is_nested(item, nesting - 1) for item in coordinates)


def _are_coordinates(values: Sequence[Any]) -> bool:
    """Return True if all values are finite numbers in the range of pixel coordinates. Booleans do not count.

    The sum is NaN if a value is, which min and max do not always show.
    """
    return (
        set(map(type, values)) <= _NUMBER_TYPES
        and min(values) >= -MAX_COORDINATE_PX
        and max(values) <= MAX_COORDINATE_PX
        and not isnan(sum(values))
    )


def is_box(value: object) -> bool:
    """Return True for a list of four valid coordinates."""
    return isinstance(value, _LISTS) and len(value) == 4 and _are_coordinates(value)


def box_polygon(box: Iterable[float]) -> Geometry:
    """Return a box of two opposite corners as a polygon, counterclockwise on the ground if north is up."""
    x_1, y_1, x_2, y_2 = box
    left, right, top, bottom = min(x_1, x_2), max(x_1, x_2), min(y_1, y_2), max(y_1, y_2)
    ring = [[left, top], [left, bottom], [right, bottom], [right, top], [left, top]]
    return {"type": "Polygon", "coordinates": [ring]}


def geometry_paths(geometry: Geometry) -> list[Path]:
    """Return each point, line and ring of a geometry as a list of positions, in the order of its coordinates."""
    if geometry["type"] == COLLECTION:
        return [path for member in geometry["geometries"] for path in geometry_paths(member)]
    return _paths(geometry["coordinates"], NESTING[geometry["type"]])


def _paths(coordinates: Any, nesting: int) -> list[Path]:
    if nesting < 2:
        return [coordinates if nesting else [coordinates]]
    paths: list[Path] = coordinates if nesting == 2 else [path for part in coordinates for path in part]
    return paths
