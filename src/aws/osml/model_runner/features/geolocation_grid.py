"""Where pixels lie on the ground, from a few sensor model points and interpolation between them.

A point of a sensor model costs milliseconds, an interpolated one less than a microsecond. Horizontal places are
interpolated as n-vectors, the unit normals of the ellipsoid (K. Gade, "A Non-singular Horizontal Position
Representation", The Journal of Navigation 63, 2010): unlike longitudes they are smooth across the antimeridian and at
the poles, so that nothing needs to be unwrapped.
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
# The error of the densest grid of a slow sensor model is measured in every so many cells of a row and a column.
_MEASURED_STEP = 4
# A quick sensor model is compared at so many more points on a side: a cut of a projection may lie between the nodes.
_PROBES = 40


@dataclass(frozen=True)
class LocationGrid:
    """A smooth map from pixels of a region to places on the ground; safe to share between threads."""

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
        """Return a grid for a region and a few pixels around it.

        It begins with 5 x 5 nodes. The middles of the cells are compared with the sensor model, and the grid is made
        twice as dense while the worst of them is off by more than the tolerance, up to ``max_nodes`` on a side. The
        tolerance is horizontal and counts in pixels, whose size on the ground follows from the nodes. A slow sensor
        model computes no point twice.

        ``error_px`` is the worst error that was measured. Where it is above the tolerance, or where nodes are off the
        Earth, a quick sensor model places the points themselves. A slow one is interpolated between the densest nodes,
        linearly where some are off the Earth.
        """
        nodes = _Nodes.covering(image_to_world, bounds, FIRST_NODES)
        while True:
            is_whole = bool(np.isfinite(nodes.world).all())
            if not is_whole and is_quick:
                return cls._through(nodes, 0.0, image_to_world)
            is_densest = 2 * len(nodes.xs) - 1 > max_nodes
            grid = cls._through(nodes)
            middles = nodes.cell_middles(image_to_world, _MEASURED_STEP if is_densest and not is_quick else 1)
            error_px = grid._farthest_px(middles, nodes.pixel_size())
            is_good = is_whole and error_px <= tolerance_px
            if is_good and is_quick:
                error_px = grid._farthest_px(_Nodes.covering(image_to_world, bounds, _PROBES), nodes.pixel_size())
                is_good = error_px <= tolerance_px
            if is_good:
                return replace(grid, error_px=error_px)
            if is_densest:
                return replace(grid, error_px=error_px, _exact=image_to_world if is_quick else None)
            nodes = nodes.denser(image_to_world, middles)

    @classmethod
    def _through(cls, nodes: "_Nodes", error_px: float = 0.0, exact: ImageToWorld | None = None) -> "LocationGrid":
        xs, ys = nodes.xs, nodes.ys
        normals = _normals(nodes.world)
        is_whole = bool(np.isfinite(nodes.world).all())
        # Terrain is not smooth: a cubic would overshoot at its edges.
        elevation = _linear_through(xs, ys, nodes.world[..., 2:])
        horizontal = _cubic_through(xs, ys, normals) if is_whole else _linear_through(xs, ys, normals)
        low, high = np.array([xs[0], ys[0]]), np.array([xs[-1], ys[-1]])
        return cls(low, high, horizontal, elevation, error_px, exact)

    def locate(self, xy: FloatArray) -> FloatArray:
        """Return (n, 3) degrees of longitude in [-180, 180] and latitude, and metres of elevation, for (n, 2) pixels.

        Points off the Earth are NaN. Beyond the grid the map goes on straight, with the direction and scale that it has
        at the edge; elevation keeps the value of the edge.
        """
        if self._exact is not None:
            places = np.array(self._exact(xy), dtype=np.float64)
            places[~np.isfinite(places).all(axis=1)] = np.nan
            places[:, 0] -= 360.0 * np.round(places[:, 0] / 360.0)
            return places
        x, y, z = self._normals_at(xy).T
        inside = np.clip(xy, self._low, self._high)
        elevation = self._elevation(inside)
        return np.column_stack([np.degrees(np.arctan2(y, x)), np.degrees(np.arctan2(z, np.hypot(x, y))), elevation])

    def _farthest_px(self, true: "_Nodes", pixel_size: float) -> float:
        """Return by how many pixels the grid is off these points of the sensor model at most.

        Infinite where the grid has a place for a point off the Earth; a grid without one there is right.
        """
        found = self._normals_at(true.points())
        off = np.linalg.norm(found - _normals(true.world.reshape(-1, 3)), axis=-1)
        off[np.isnan(found[:, 0])] = 0.0
        worst = float(np.max(off, initial=0.0))
        return worst / pixel_size if np.isfinite(worst) else np.inf

    @cached_property
    def has_heights(self) -> bool:
        """False where every elevation is zero: then nothing is known of it."""
        return bool(np.nan_to_num(self._elevation.c).any())

    @cached_property
    def pixel_degrees(self) -> float:
        """The shorter side of a usual pixel of the region, in degrees of latitude; infinite off the Earth."""
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

    def cell_middles(self, image_to_world: ImageToWorld, step: int = 1) -> "_Nodes":
        """Return the middles of the cells, or of every ``step``-th cell of a row and a column."""
        xs, ys = ((axis[1:] + axis[:-1])[::step] / 2 for axis in (self.xs, self.ys))
        return _Nodes(xs, ys, _evaluated(image_to_world, _lattice(xs, ys)).reshape(len(xs), len(ys), 3))

    def denser(self, image_to_world: ImageToWorld, middles: "_Nodes") -> "_Nodes":
        """Return the lattice of half the spacing; only the middles of cell edges are asked of the sensor model."""
        xs, ys = _interleaved(self.xs, middles.xs), _interleaved(self.ys, middles.ys)
        world = np.full((len(xs), len(ys), 3), np.nan)
        world[::2, ::2], world[1::2, 1::2] = self.world, middles.world
        is_missing = np.ones(world.shape[:2], dtype=bool)
        is_missing[::2, ::2] = is_missing[1::2, 1::2] = False
        world[is_missing] = _evaluated(image_to_world, _lattice(xs, ys)[is_missing.ravel()])
        return _Nodes(xs, ys, world)

    def pixel_size(self) -> float:
        """Return the shorter side of a mean pixel, as an angle seen from the centre of the earth in radians."""
        normals = _normals(self.world)
        steps = [np.linalg.norm(np.diff(normals, axis=axis), axis=2) for axis in (0, 1)]
        sides = [
            step[np.isfinite(step)].mean() / (values[1] - values[0])
            for step, values in zip(steps, (self.xs, self.ys), strict=True)
            if np.isfinite(step).any()
        ]
        return float(min(sides, default=np.inf))


def _cubic_through(xs: FloatArray, ys: FloatArray, values: FloatArray) -> NdBSpline:
    """Return the spline through ``values`` (x, y, channel), all channels of it in one, which is quick to evaluate."""
    splines = [RectBivariateSpline(xs, ys, channel) for channel in np.moveaxis(values, -1, 0)]
    x_knots, y_knots = splines[0].get_knots()
    shape = len(x_knots) - 4, len(y_knots) - 4
    coefficients = np.stack([spline.get_coeffs().reshape(shape) for spline in splines], axis=-1)
    return NdBSpline((x_knots, y_knots), coefficients, 3)


def _linear_through(xs: FloatArray, ys: FloatArray, values: FloatArray) -> NdBSpline:
    """Return the linear interpolation of ``values`` (x, y, channel); NaN spreads to the cells beside it only."""
    knots = tuple(np.concatenate([axis[:1], axis, axis[-1:]]) for axis in (xs, ys))
    return NdBSpline(knots, np.ascontiguousarray(values), 1)


def _lattice(xs: FloatArray, ys: FloatArray) -> FloatArray:
    """Return every (x, y), y running fastest."""
    points: FloatArray = np.stack(np.meshgrid(xs, ys, indexing="ij"), axis=-1).reshape(-1, 2)
    return points


def _interleaved(outer: FloatArray, inner: FloatArray) -> FloatArray:
    return np.sort(np.concatenate([outer, inner]))


def _evaluated(image_to_world: ImageToWorld, xy: FloatArray) -> FloatArray:
    world = np.array(image_to_world(xy), dtype=np.float64)
    world[~np.isfinite(world).all(axis=1)] = np.nan
    return world


def _normals(world: FloatArray) -> FloatArray:
    """Return the n-vectors (…, 3) of places (…, 3) whose longitude and latitude are in degrees."""
    longitude, latitude = np.radians(world[..., 0]), np.radians(world[..., 1])
    across = np.cos(latitude)
    return np.stack([across * np.cos(longitude), across * np.sin(longitude), np.sin(latitude)], axis=-1)
