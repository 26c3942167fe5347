"""Geometries of many features as arrays, so that one numpy call replaces thousands of small calls."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import chain, pairwise
from typing import Any

import numpy as np
import shapely
from numpy.typing import NDArray

from .image_geometry import AREAS, COLLECTION, NESTING, Geometry, Path, Position

FloatArray = NDArray[np.float64]
IndexArray = NDArray[np.intp]
ObjectArray = NDArray[np.object_]

_POINTS, _LINE, _RING = range(3)
_PATH_KINDS = {kind: _POINTS if "Point" in kind else _RING if kind in AREAS else _LINE for kind in NESTING}


@dataclass(frozen=True)
class GeometryArrays:
    """Valid GeoJSON geometries, and the positions of all of them in one array.

    ``positions`` is (n, 2), x before y; a third number of a position is dropped. A path is a ring, a line, or all
    points of a (multi)point. Each of the other arrays has one entry per path. ``ends`` is the index after its last
    position, and ``owners`` the index of its geometry. ``parts`` is a number that the rings of one polygon share, and
    ``kinds`` the kind of the path. Rings that the model left open are closed here.
    """

    geometries: Sequence[Geometry]
    positions: FloatArray
    ends: IndexArray
    owners: IndexArray
    parts: IndexArray
    kinds: IndexArray

    @classmethod
    def of(cls, geometries: Sequence[Geometry]) -> "GeometryArrays":
        """Return the arrays of geometries, which must be valid: see ``geometry_problem``."""
        positions: list[Position] = []
        paths: list[tuple[int, int, int, int]] = []
        part_number = -1
        for owner, geometry in enumerate(geometries):
            for kind, part in _parts(geometry):
                part_number += 1
                for path in part:
                    positions += path
                    if kind == _RING and path[0] != path[-1]:
                        positions.append(path[0])
                    paths.append((len(positions), owner, part_number, kind))
        ends, owners, parts, kinds = np.array(paths, dtype=np.intp).reshape(-1, 4).T
        if set(map(len, positions)) - {2}:
            positions = [position[:2] for position in positions]
        numbers = np.fromiter(chain.from_iterable(positions), dtype=np.float64, count=2 * len(positions))
        return cls(geometries, numbers.reshape(-1, 2), ends, owners, parts, kinds)

    def with_positions(self, positions: FloatArray) -> list[Geometry]:
        """Return the geometries, types unchanged, with other positions: (n, 2) or (n, 3), in the same order."""
        rows = positions.tolist()
        paths = (rows[start:end] for start, end in pairwise([0, *self.ends.tolist()]))
        return [_rebuilt(geometry, paths) for geometry in self.geometries]

    def moved_to(self, positions: FloatArray) -> "GeometryArrays":
        """Return arrays of the same geometries at other (n, 2) positions."""
        return replace(self, geometries=self.with_positions(positions), positions=positions)

    def bounds(self) -> FloatArray:
        """Return (minx, miny, maxx, maxy) of each geometry, one row each."""
        return self.extremes(self.positions)

    def extremes(self, positions: FloatArray) -> FloatArray:
        """Return minima, then maxima, of the columns of (n, k) positions; one row for each geometry."""
        starts = self.position_starts
        return np.hstack([extreme.reduceat(positions, starts) for extreme in (np.minimum, np.maximum)])

    def centroids(self) -> FloatArray:
        """Return the centroid (x, y) of each geometry: of its areas, or else its lines, or else its points.

        Each centroid is clipped to the geometry's bounds. Otherwise a ring that crosses itself, whose signed areas
        nearly cancel, would have a centroid far away.
        """
        parts, owners = self._shapes()
        order = np.argsort(owners, kind="stable")
        wholes = shapely.geometrycollections(parts[order], indices=owners[order])
        centroids: FloatArray = shapely.get_coordinates(shapely.centroid(wholes))
        bounds = self.bounds()
        return np.clip(centroids, bounds[:, :2], bounds[:, 2:])

    @property
    def is_ring(self) -> NDArray[np.bool_]:
        """Paths that are rings."""
        flags: NDArray[np.bool_] = self.kinds == _RING
        return flags

    @property
    def is_outer(self) -> NDArray[np.bool_]:
        """For each path, True if it is the first path of its part; in a polygon, that is the outer ring."""
        flags: NDArray[np.bool_] = np.diff(self.parts, prepend=-1) != 0
        return flags

    def _shapes(self) -> tuple[ObjectArray, IndexArray]:
        """Return each point, line and polygon as a shape, and the index of its geometry."""
        lengths = np.diff(self.ends, prepend=0)
        kinds = np.repeat(self.kinds, lengths)
        path_of = np.repeat(np.arange(len(self.ends)), lengths)
        points = shapely.points(self.positions[kinds == _POINTS])
        lines = _grouped(shapely.linestrings, self.positions[kinds == _LINE], path_of[kinds == _LINE])
        rings = _grouped(shapely.linearrings, self.positions[kinds == _RING], path_of[kinds == _RING])
        ring_parts = self.parts[self.kinds == _RING]
        polygons = _grouped(shapely.polygons, rings, ring_parts)
        first_rings = np.flatnonzero(np.diff(ring_parts, prepend=-1))
        owners = [
            self.owners[path_of[kinds == _POINTS]],
            self.owners[self.kinds == _LINE],
            self.owners[self.kinds == _RING][first_rings],
        ]
        return np.concatenate([points, lines, polygons]), np.concatenate(owners)

    @cached_property
    def position_starts(self) -> IndexArray:
        """The index of each geometry's first position."""
        first_paths = np.flatnonzero(np.diff(self.owners, prepend=-1))
        starts: IndexArray = np.concatenate([[0], self.ends])[first_paths]
        return starts


def _parts(geometry: Geometry) -> Iterator[tuple[int, list[Path]]]:
    """Yield the kind and the paths of each point, line and polygon, also in a collection."""
    if geometry["type"] == COLLECTION:
        for member in geometry["geometries"]:
            yield from _parts(member)
        return
    name, coordinates = geometry["type"], geometry["coordinates"]
    kind = _PATH_KINDS[name]
    if NESTING[name] == 3:
        yield from ((kind, polygon) for polygon in coordinates)
    elif name == "MultiLineString":
        yield from ((kind, [line]) for line in coordinates)
    elif name == "Polygon":
        yield kind, coordinates
    else:
        yield kind, [coordinates if NESTING[name] else [coordinates]]


def _rebuilt(geometry: Geometry, paths: Iterator[Path]) -> Geometry:
    kind = geometry["type"]
    if kind == COLLECTION:
        return {"type": kind, "geometries": [_rebuilt(member, paths) for member in geometry["geometries"]]}
    return {"type": kind, "coordinates": _take(geometry["coordinates"], NESTING[kind], paths)}


def _take(pattern: Any, nesting: int, paths: Iterator[Path]) -> Any:
    """Take as many paths as ``pattern`` has, with the same nesting."""
    if nesting < 2:
        path = next(paths)
        return path if nesting else path[0]
    if nesting == 2:
        return [next(paths) for _ in pattern]
    return [[next(paths) for _ in polygon] for polygon in pattern]


def _grouped(make: Any, items: Any, groups: IndexArray) -> ObjectArray:
    """Make one shape of each run of items that share a group; ``groups`` ascends, with gaps allowed."""
    if len(groups) == 0:
        return np.empty(0, dtype=object)
    shapes: ObjectArray = make(items, indices=np.cumsum(np.diff(groups, prepend=groups[0]) != 0))
    return shapes
