"""Geometries on the ground as RFC 7946 has them: rings by the right-hand rule, cut at the antimeridian, around poles.

Positions are [longitude, latitude] or [longitude, latitude, elevation]. Most geometries only need their rings wound,
for which ``ring_order`` takes arrays. Geometries that cross the antimeridian are stored as one piece, because merging
needs a position for each pixel; ``cut`` makes pieces of them when they are delivered.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import shapely
from numpy.typing import NDArray
from shapely.geometry import LineString, Polygon, mapping
from shapely.geometry.base import BaseGeometry
from shapely.geometry.polygon import orient

from .geometry_arrays import FloatArray, GeometryArrays, IndexArray
from .image_geometry import COLLECTION, Geometry

_FULL_TURN = 360.0
# Positions that a cut adds: a tenth of a millimetre.
_DECIMALS = 9


def wrapped(degrees: FloatArray) -> FloatArray:
    """Return angles moved by full turns into [-180, 180]."""
    turns: FloatArray = np.round(degrees / _FULL_TURN)
    return degrees - _FULL_TURN * turns


def crosses_antimeridian(longitudes: FloatArray) -> NDArray[np.bool_]:
    """Return for each longitude whether the way from the one before it leads across the antimeridian."""
    flags: NDArray[np.bool_] = np.abs(np.diff(longitudes, axis=-1)) > _FULL_TURN / 2
    return flags


def ring_areas(rings: FloatArray, ends: IndexArray, are_degrees: bool = True) -> FloatArray:
    """Return twice the area of paths, positive for those that run from x to y: counterclockwise on the ground.

    ``rings`` (n, 2 or 3): the positions of one path after another; ``ends``: the index past the last of each.
    """
    starts = np.concatenate([[0], ends[:-1]])
    first = np.repeat(starts, ends - starts)
    x, y = (rings[:, :2] - rings[first, :2]).T
    if are_degrees:
        x = wrapped(x)
    after = np.minimum(np.arange(1, len(rings) + 1), np.repeat(ends, ends - starts) - 1)
    areas: FloatArray = np.add.reduceat(x * y[after] - x[after] * y, starts)
    return areas


def ring_order(arrays: GeometryArrays, world: FloatArray) -> IndexArray:
    """Return the order of positions in which outer rings run counterclockwise on the ground, and holes clockwise.

    ``world``: (n, 2 or 3) the positions of ``arrays`` on the ground.
    """
    return right_hand_order(arrays, ring_areas(world, arrays.ends))


def right_hand_order(arrays: GeometryArrays, areas: FloatArray) -> IndexArray:
    """Return the order of positions after rings are reversed whose areas have the wrong sign; ``areas``: of paths."""
    order = np.arange(arrays.ends[-1] if len(arrays.ends) else 0)
    is_ring = arrays.is_ring
    if not is_ring.any():
        return order
    starts = np.concatenate([[0], arrays.ends[:-1]])
    is_reversed = is_ring & np.where(arrays.is_outer, areas < 0, areas > 0)
    lengths = arrays.ends - starts
    mirrored = np.repeat(starts + arrays.ends - 1, lengths) - order
    return np.where(np.repeat(is_reversed, lengths), mirrored, order)


def conformed(feature: Mapping[str, Any]) -> dict[str, Any]:
    """Return a feature with its geometry cut, and its ``bbox`` that of the geometry where it has one."""
    geometry = cut(feature["geometry"])
    changed = {**feature, "geometry": geometry}
    if "bbox" in feature:
        changed["bbox"] = bounds_of(geometry)
    return changed


def cut(geometry: Geometry) -> Geometry:
    """Return a geometry without a part that crosses the antimeridian (3.1.9), and with areas around their poles (5.3).

    What has no area, because the model gave it none, stays in one piece.
    """
    kind = geometry["type"]
    if kind == COLLECTION:
        return {"type": kind, "geometries": [cut(member) for member in geometry["geometries"]]}
    if "Point" in kind:
        return geometry
    nested = geometry["coordinates"] if kind.startswith("Multi") else [geometry["coordinates"]]
    make = _areas if "Polygon" in kind else _lines
    pieces = [piece for part in nested for piece in make(part)]
    if not pieces:
        return geometry
    coordinates = [_lists(mapping(piece)["coordinates"]) for piece in pieces]
    single = kind.removeprefix("Multi")
    if len(coordinates) == 1 and kind == single:
        return {"type": single, "coordinates": coordinates[0]}
    return {"type": f"Multi{single}", "coordinates": coordinates}


def bounds_of(geometry: Geometry) -> list[float]:
    """Return the ``bbox`` of a geometry that is cut; across the antimeridian west is greater than east (5.2)."""
    parts = [np.array(path, dtype=np.float64) for path in _paths(geometry)]
    low = np.min([part.min(axis=0) for part in parts], axis=0)
    high = np.max([part.max(axis=0) for part in parts], axis=0)
    low[0], high[0] = _around([(part[:, 0].min(), part[:, 0].max()) for part in parts])
    return [*low.tolist(), *high.tolist()]


def _around(spans: Iterable[tuple[float, float]]) -> tuple[float, float]:
    """Return west and east of spans of longitude: what lies between them is the widest gap."""
    merged: list[list[float]] = []
    for west, east in sorted(spans):
        if merged and west <= merged[-1][1]:
            merged[-1][1] = max(merged[-1][1], east)
        else:
            merged.append([west, east])
    last = merged[-1][1] - _FULL_TURN
    gaps = [west - before for (west, _), before in zip(merged, [last, *(east for _, east in merged)], strict=False)]
    widest = int(np.argmax(gaps))
    # -1 is the last: what comes before the first span.
    return (merged[widest][0], merged[widest - 1][1]) if max(gaps) > 0 else (-180.0, 180.0)


def _lines(path: Sequence[Sequence[float]]) -> list[BaseGeometry]:
    return _windows(LineString(_continuous(path)), "LineString")


def _areas(rings: Sequence[Sequence[Sequence[float]]]) -> list[BaseGeometry]:
    outer, *holes = (Polygon(_closed(_continuous(ring))) for ring in rings if len(ring) > 3)
    area = shapely.make_valid(outer)
    for hole in holes:
        turns = round((area.centroid.x - hole.centroid.x) / _FULL_TURN)
        area = area.difference(shapely.make_valid(_moved(hole, turns)))
    # What goes around a pole meets itself where it began.
    pieces = shapely.get_parts(shapely.union_all(_windows(area, "Polygon")))
    return [orient(piece) for piece in pieces if isinstance(piece, Polygon)]


def _continuous(path: Sequence[Sequence[float]]) -> FloatArray:
    """Return positions whose longitudes go on beyond the antimeridian."""
    places = np.array(path, dtype=np.float64)
    places[1:, 0] = places[0, 0] + np.cumsum(wrapped(np.diff(places[:, 0])))
    return places


def _closed(ring: FloatArray) -> FloatArray:
    """Return a ring closed: one that runs around a pole goes there and back, along the antimeridian it began at."""
    if round((ring[-1, 0] - ring[0, 0]) / _FULL_TURN) == 0:
        return ring
    at_pole = ring[[-1, 0]]
    at_pole[:, 1] = np.copysign(90.0, ring[:, 1].mean())
    return np.concatenate([ring, at_pole, ring[:1]])


def _windows(shape: BaseGeometry, kind: str) -> list[BaseGeometry]:
    """Return the pieces of this kind that a shape has in each turn of longitude, all moved into the first."""
    west, _, east, _ = shape.bounds
    turns = range(round(west / _FULL_TURN), round(east / _FULL_TURN) + 1)
    pieces = []
    for turn in turns:
        middle = turn * _FULL_TURN
        window = shapely.box(middle - 180, -90, middle + 180, 90)
        found = _moved(shape if len(turns) == 1 else shapely.intersection(shape, window), -turn)
        pieces += [part for part in shapely.get_parts(found) if part.geom_type == kind and not part.is_empty]
    return pieces


def _moved(shape: BaseGeometry, turns: int) -> BaseGeometry:
    def move(places: FloatArray) -> FloatArray:
        places[:, 0] += turns * _FULL_TURN
        moved: FloatArray = np.round(places, _DECIMALS) + 0.0
        return moved

    return shapely.transform(shape, move, include_z=shape.has_z)


def _paths(geometry: Geometry) -> list[Any]:
    if geometry["type"] == COLLECTION:
        return [path for member in geometry["geometries"] for path in _paths(member)]
    nested = [geometry["coordinates"]]
    while isinstance(nested[0][0], list) and isinstance(nested[0][0][0], list):
        nested = [inner for outer in nested for inner in outer]
    return nested if isinstance(nested[0][0], list) else [nested]


def _lists(nested: object) -> object:
    return [_lists(inner) for inner in nested] if isinstance(nested, tuple) else nested
