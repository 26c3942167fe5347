"""Geometries on the ground by RFC 7946: right-hand rule for rings, cut at the antimeridian, around poles.

Positions are [longitude, latitude] or [longitude, latitude, elevation]. For most geometries only the direction of rings
matters; ``ring_order`` computes it for arrays. Geometries that cross the antimeridian are stored in one piece, because
merging needs a position for each pixel. ``cut`` splits them at delivery.
"""

from collections.abc import Mapping, Sequence
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
# Decimals of cut geometries, in degrees: a tenth of a millimetre.
_DECIMALS = 9


def wrapped(degrees: FloatArray) -> FloatArray:
    """Return angles moved by full turns into [-180, 180]."""
    turns: FloatArray = np.round(degrees / _FULL_TURN)
    return degrees - _FULL_TURN * turns


def crosses_antimeridian(longitudes: FloatArray) -> NDArray[np.bool_]:
    """Return for each longitude but the first whether the step to it crosses the antimeridian."""
    flags: NDArray[np.bool_] = np.abs(np.diff(longitudes, axis=-1)) > _FULL_TURN / 2
    return flags


def ring_areas(rings: FloatArray, ends: IndexArray, are_degrees: bool = True) -> FloatArray:
    """Return twice the signed area of paths, positive if they turn from x to y: counterclockwise on the ground.

    ``rings``: (n, 2 or 3) the positions of all paths. ``ends``: the index after the last position of each path.
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
    """Return the order of positions that makes outer rings counterclockwise on the ground and holes clockwise.

    ``world``: (n, 2 or 3) the positions of ``arrays`` on the ground.
    """
    return right_hand_order(arrays, ring_areas(world, arrays.ends))


def right_hand_order(arrays: GeometryArrays, areas: FloatArray) -> IndexArray:
    """Return the order of positions that reverses rings of the wrong direction; ``areas``: signed, of each path."""
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
    """Return a feature with its geometry cut, and with the ``bbox`` of the cut geometry if it has a ``bbox``."""
    geometry = cut(feature["geometry"])
    changed = {**feature, "geometry": geometry}
    if "bbox" in feature:
        changed["bbox"] = bounds_of(geometry)
    return changed


def cut(geometry: Geometry) -> Geometry:
    """Return a geometry that is cut at the antimeridian (3.1.9) and includes the pole that it surrounds (5.3).

    Polygons without an area are returned as they are.
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
    coordinates = [lists_of(mapping(piece)["coordinates"]) for piece in pieces]
    single = kind.removeprefix("Multi")
    if len(coordinates) == 1 and kind == single:
        return {"type": single, "coordinates": coordinates[0]}
    return {"type": f"Multi{single}", "coordinates": coordinates}


def bounds_of(geometry: Geometry) -> list[float]:
    """Return the ``bbox`` of a cut geometry. West is greater than east across the antimeridian (5.2)."""
    parts = [np.array(path, dtype=np.float64) for path in _paths(geometry)]
    low = np.min([part.min(axis=0) for part in parts], axis=0)
    high = np.max([part.max(axis=0) for part in parts], axis=0)
    spans = [(part[:, 0].min(), part[:, 0].max()) for part in parts]
    merged: list[list[float]] = []
    for west, east in sorted(spans):
        if merged and west <= merged[-1][1]:
            merged[-1][1] = max(merged[-1][1], east)
        else:
            merged.append([west, east])
    last = merged[-1][1] - _FULL_TURN
    gaps = [west - before for (west, _), before in zip(merged, [last, *(east for _, east in merged)], strict=False)]
    widest = int(np.argmax(gaps))
    # Index -1 is the last span, which precedes the first.
    low[0], high[0] = (merged[widest][0], merged[widest - 1][1]) if max(gaps) > 0 else (-180.0, 180.0)
    return [*low.tolist(), *high.tolist()]


def _lines(path: Sequence[Sequence[float]]) -> list[BaseGeometry]:
    return _windows(LineString(_continuous(path)), "LineString")


def _areas(rings: Sequence[Sequence[Sequence[float]]]) -> list[BaseGeometry]:
    polygons = []
    for ring in rings:
        if len(ring) <= 3:
            continue
        positions = _continuous(ring)
        if round((positions[-1, 0] - positions[0, 0]) / _FULL_TURN) != 0:
            # A ring around a pole is extended to the pole and back along its first meridian.
            at_pole = positions[[-1, 0]]
            at_pole[:, 1] = np.copysign(90.0, positions[:, 1].mean())
            positions = np.concatenate([positions, at_pole, positions[:1]])
        polygons.append(Polygon(positions))
    outer, *holes = polygons
    area = shapely.make_valid(outer)
    for hole in holes:
        turns = round((area.centroid.x - hole.centroid.x) / _FULL_TURN)
        area = area.difference(shapely.make_valid(_moved(hole, turns)))
    # The pieces of an area around a pole touch at the antimeridian; the union joins them.
    pieces = shapely.get_parts(shapely.union_all(_windows(area, "Polygon")))
    return [orient(piece) for piece in pieces if isinstance(piece, Polygon)]


def _continuous(path: Sequence[Sequence[float]]) -> FloatArray:
    """Return positions with continuous longitudes, which may exceed 180 degrees."""
    positions = np.array(path, dtype=np.float64)
    positions[1:, 0] = positions[0, 0] + np.cumsum(wrapped(np.diff(positions[:, 0])))
    return positions


def _windows(shape: BaseGeometry, kind: str) -> list[BaseGeometry]:
    """Return the pieces of this kind in each window of 360 degrees, all moved to [-180, 180]."""
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
    def move(positions: FloatArray) -> FloatArray:
        positions[:, 0] += turns * _FULL_TURN
        moved: FloatArray = np.round(positions, _DECIMALS) + 0.0
        return moved

    return shapely.transform(shape, move, include_z=shape.has_z)


def _paths(geometry: Geometry) -> list[Any]:
    if geometry["type"] == COLLECTION:
        return [path for member in geometry["geometries"] for path in _paths(member)]
    nested = [geometry["coordinates"]]
    while isinstance(nested[0][0], list) and isinstance(nested[0][0][0], list):
        nested = [inner for outer in nested for inner in outer]
    return nested if isinstance(nested[0][0], list) else [nested]


def lists_of(nested: object) -> object:
    """Return nested tuples as nested lists, as all other features have their coordinates."""
    return [lists_of(inner) for inner in nested] if isinstance(nested, tuple) else nested
