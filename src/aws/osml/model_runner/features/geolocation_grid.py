"""Locates pixels on the ground by interpolation between a few points of the sensor model.

A point of a sensor model costs milliseconds, an interpolated point less than a microsecond. Horizontal positions are
interpolated as n-vectors, the unit normals of the ellipsoid (K. Gade, "A Non-singular Horizontal Position
Representation", The Journal of Navigation 63, 2010). Unlike longitudes they are smooth across the antimeridian and at
the poles, so no angle has to be unwrapped.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from scipy.interpolate import NdBSpline, RectBivariateSpline

from aws.osml.model_runner.common.typing import ImageRegion

FloatArray = NDArray[np.float64]

# (n, 2) pixels x, y -> (n, 3) degrees of longitude and latitude, metres of elevation; NaN off the Earth
ImageToWorld = Callable[[FloatArray], FloatArray]

FIRST_NODES = 5
MAX_NODES = 33
TOLERANCE_PX = 0.05
MARGIN_PX = 10.0
# The error of a slow sensor model's densest grid is measured in every nth cell of a row and of a column.
_MEASURED_STEP = 4
# A quick sensor model is also compared at n x n points, because a discontinuity may lie between the nodes.
_PROBES = 40


@dataclass(frozen=True)
class LocationGrid:
    """A smooth mapping from pixels of a region to positions on the ground; safe to share between threads."""

    _low: FloatArray
    _high: FloatArray
    _normals: NdBSpline
    _elevation: NdBSpline
    error_px: float
    _exact: ImageToWorld | None = None

    @classmethod
    def from_sensor_model(
        cls,
        image_to_world: ImageToWorld,
        bounds: ImageRegion,
        *,
        is_quick: bool = False,
        tolerance_px: float = TOLERANCE_PX,
        max_nodes: int = MAX_NODES,
    ) -> "LocationGrid":
        """Return a grid for a region and ``MARGIN_PX`` around it.

        The first grid has 5 x 5 nodes. The centres of its cells are compared with the sensor model. While the largest
        error is above the tolerance, the spacing is halved, up to ``max_nodes`` on a side. The tolerance is horizontal,
        in pixels; their size on the ground follows from the nodes. A slow sensor model computes each point once.

        ``error_px`` is the largest measured error. If it stays above the tolerance, or if nodes are off the Earth, a
        quick sensor model locates each point exactly. A slow sensor model is interpolated between the densest nodes,
        linearly if some of them are off the Earth.
        """
        nodes = _Nodes.covering(image_to_world, bounds, FIRST_NODES)
        while True:
            is_whole = bool(np.isfinite(nodes.world).all())
            if not is_whole and is_quick:
                return cls._through(nodes, 0.0, image_to_world)
            is_densest = 2 * len(nodes.xs) - 1 > max_nodes
            grid = cls._through(nodes)
            centres = nodes.cell_centres(image_to_world, _MEASURED_STEP if is_densest and not is_quick else 1)
            error_px = grid._max_error_px(centres, nodes.pixel_size())
            is_good = is_whole and error_px <= tolerance_px
            if is_good and is_quick:
                error_px = grid._max_error_px(_Nodes.covering(image_to_world, bounds, _PROBES), nodes.pixel_size())
                is_good = error_px <= tolerance_px
            if is_good:
                return replace(grid, error_px=error_px)
            if is_densest:
                return replace(grid, error_px=error_px, _exact=image_to_world if is_quick else None)
            nodes = nodes.denser(image_to_world, centres)

    @classmethod
    def _through(cls, nodes: "_Nodes", error_px: float = 0.0, exact: ImageToWorld | None = None) -> "LocationGrid":
        xs, ys = nodes.xs, nodes.ys
        normals = _normals(nodes.world)
        is_whole = bool(np.isfinite(nodes.world).all())
        # Terrain is not smooth: a cubic would overshoot at its edges.
        elevation = _linear_through(xs, ys, nodes.world[..., 2:])
        if is_whole:
            # One spline with all channels is quicker to evaluate than one per channel.
            splines = [RectBivariateSpline(xs, ys, channel) for channel in np.moveaxis(normals, -1, 0)]
            knots = splines[0].get_knots()
            shape = tuple(len(axis) - 4 for axis in knots)
            horizontal = NdBSpline(knots, np.stack([s.get_coeffs().reshape(shape) for s in splines], axis=-1), 3)
        else:
            horizontal = _linear_through(xs, ys, normals)
        low, high = np.array([xs[0], ys[0]]), np.array([xs[-1], ys[-1]])
        return cls(low, high, horizontal, elevation, error_px, exact)

    def locate(self, xy: FloatArray) -> FloatArray:
        """Return (n, 3) degrees of longitude in [-180, 180] and latitude, and metres of elevation, for (n, 2) pixels.

        Points off the Earth are NaN. Outside the grid the mapping is extrapolated linearly from the edge; the elevation
        is that of the edge.
        """
        if self._exact is not None:
            world = _evaluated(self._exact, xy)
            world[:, 0] -= 360.0 * np.round(world[:, 0] / 360.0)
            return world
        x, y, z = self._normals_at(xy).T
        inside = np.clip(xy, self._low, self._high)
        elevation = self._elevation(inside)
        return np.column_stack([np.degrees(np.arctan2(y, x)), np.degrees(np.arctan2(z, np.hypot(x, y))), elevation])

    def _max_error_px(self, true: "_Nodes", pixel_size: float) -> float:
        """Return the largest distance in pixels between the grid and these points of the sensor model.

        Infinite if the grid locates a point that is off the Earth. A point that the grid does not locate has no error.
        """
        found = self._normals_at(true.points())
        off = np.linalg.norm(found - _normals(true.world.reshape(-1, 3)), axis=-1)
        off[np.isnan(found[:, 0])] = 0.0
        worst = float(np.max(off, initial=0.0))
        if worst == 0.0:
            return 0.0
        # All pixels of a damaged georeference may lie at one place.
        return worst / pixel_size if np.isfinite(worst) and pixel_size > 0.0 else np.inf

    @cached_property
    def has_heights(self) -> bool:
        """False if every elevation is zero, because then the elevation is unknown."""
        return bool(np.nan_to_num(self._elevation.c).any())

    @cached_property
    def pixel_degrees(self) -> float:
        """The shorter side of a median pixel of the region, in degrees of latitude; infinite off the Earth."""
        xs, ys = np.linspace(self._low, self._high, FIRST_NODES)[:-1].T
        points = _lattice(xs, ys)
        normals = [self._normals_at(points + step) for step in ([0.0, 0.0], [1.0, 0.0], [0.0, 1.0])]
        sides = [np.linalg.norm(beside - normals[0], axis=1) for beside in normals[1:]]
        known = [np.median(side[np.isfinite(side)]) for side in sides if np.isfinite(side).any()]
        return float(np.degrees(min(known, default=np.inf)))

    def _normals_at(self, xy: FloatArray) -> FloatArray:
        """Return the n-vectors, (n, 3) and not quite of unit length, for (n, 2) pixels."""
        inside = np.clip(xy, self._low, self._high)
        normals: FloatArray = self._normals(inside)
        beyond = xy - inside
        outer = np.flatnonzero(beyond.any(axis=1))
        if outer.size:
            for axis, nu in enumerate([(1, 0), (0, 1)]):
                normals[outer] += beyond[outer, axis, None] * self._normals(inside[outer], nu=nu)
        return normals


@dataclass(frozen=True)
class _Nodes:
    """Sensor model points on a lattice: ``world[i, j]`` is (longitude, latitude, elevation) at ``xs[i], ys[j]``."""

    xs: FloatArray
    ys: FloatArray
    world: FloatArray

    @classmethod
    def covering(cls, image_to_world: ImageToWorld, bounds: ImageRegion, count: int) -> "_Nodes":
        (row, col), (width, height) = bounds
        xs = np.linspace(col - MARGIN_PX, col + width + MARGIN_PX, count)
        ys = np.linspace(row - MARGIN_PX, row + height + MARGIN_PX, count)
        return cls(xs, ys, _evaluated(image_to_world, _lattice(xs, ys)).reshape(count, count, 3))

    def points(self) -> FloatArray:
        return _lattice(self.xs, self.ys)

    def cell_centres(self, image_to_world: ImageToWorld, step: int = 1) -> "_Nodes":
        """Return the centres of the cells, or of every ``step``-th cell of a row and a column."""
        xs, ys = ((axis[1:] + axis[:-1])[::step] / 2 for axis in (self.xs, self.ys))
        return _Nodes(xs, ys, _evaluated(image_to_world, _lattice(xs, ys)).reshape(len(xs), len(ys), 3))

    def denser(self, image_to_world: ImageToWorld, centres: "_Nodes") -> "_Nodes":
        """Return the lattice of half the spacing. The sensor model computes only the middles of cell edges."""
        xs, ys = np.sort(np.concatenate([self.xs, centres.xs])), np.sort(np.concatenate([self.ys, centres.ys]))
        world = np.full((len(xs), len(ys), 3), np.nan)
        world[::2, ::2], world[1::2, 1::2] = self.world, centres.world
        is_missing = np.ones(world.shape[:2], dtype=bool)
        is_missing[::2, ::2] = is_missing[1::2, 1::2] = False
        world[is_missing] = _evaluated(image_to_world, _lattice(xs, ys)[is_missing.ravel()])
        return _Nodes(xs, ys, world)

    def pixel_size(self) -> float:
        """Return the shorter side of a mean pixel, in radians at the centre of the Earth."""
        normals = _normals(self.world)
        steps = [np.linalg.norm(np.diff(normals, axis=axis), axis=2) for axis in (0, 1)]
        sides = [
            step[np.isfinite(step)].mean() / (values[1] - values[0])
            for step, values in zip(steps, (self.xs, self.ys), strict=True)
            if np.isfinite(step).any()
        ]
        return float(min(sides, default=np.inf))


def _linear_through(xs: FloatArray, ys: FloatArray, values: FloatArray) -> NdBSpline:
    """Return the linear interpolation of ``values`` (x, y, channel). NaN affects only the adjacent cells."""
    knots = tuple(np.concatenate([axis[:1], axis, axis[-1:]]) for axis in (xs, ys))
    return NdBSpline(knots, np.ascontiguousarray(values), 1)


def _lattice(xs: FloatArray, ys: FloatArray) -> FloatArray:
    """Return all pairs (x, y); y varies fastest."""
    points: FloatArray = np.stack(np.meshgrid(xs, ys, indexing="ij"), axis=-1).reshape(-1, 2)
    return points


def _evaluated(image_to_world: ImageToWorld, xy: FloatArray) -> FloatArray:
    world = np.array(image_to_world(xy), dtype=np.float64)
    world[~np.isfinite(world).all(axis=1)] = np.nan
    return world


def _normals(world: FloatArray) -> FloatArray:
    """Return the n-vectors (…, 3) of positions (…, 3): degrees of longitude and latitude, then elevation."""
    longitude, latitude = np.radians(world[..., 0]), np.radians(world[..., 1])
    across = np.cos(latitude)
    return np.stack([across * np.cos(longitude), across * np.sin(longitude), np.sin(latitude)], axis=-1)
