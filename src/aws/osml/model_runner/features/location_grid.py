"""Where pixels lie on the ground, from a few sensor model points and interpolation between them.

A point of a sensor model costs milliseconds, an interpolated one less than a microsecond. Horizontal places are
interpolated as n-vectors, the unit normals of the ellipsoid (K. Gade, "A Non-singular Horizontal Position
Representation", The Journal of Navigation 63, 2010): unlike longitudes they are smooth across the antimeridian and at
the poles, so that nothing needs to be unwrapped.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.interpolate import NdBSpline, RectBivariateSpline

from aws.osml.model_runner.common.typing import ImageRegion
from aws.osml.model_runner.exceptions import FeatureError

FloatArray = NDArray[np.float64]

# (n, 2) pixels x, y -> (n, 3) degrees of longitude and latitude, metres of elevation
ImageToWorld = Callable[[FloatArray], FloatArray]

FIRST_NODES = 5
MAX_NODES = 33
TOLERANCE_PX = 0.05
MARGIN_PX = 10.0


@dataclass(frozen=True)
class LocationGrid:
    """A smooth map from pixels of a region to places on the ground; safe to share between threads."""

    _low: FloatArray
    _high: FloatArray
    _normals: NdBSpline
    _elevation: NdBSpline

    @classmethod
    def from_sensor_model(
        cls,
        image_to_world: ImageToWorld,
        bounds: ImageRegion,
        *,
        tolerance_px: float = TOLERANCE_PX,
        max_nodes: int = MAX_NODES,
    ) -> "LocationGrid":
        """Return a grid for a region and a few pixels around it.

        It begins with 5 x 5 nodes. The middles of the cells are compared with the sensor model, and the grid is made
        twice as dense while the worst of them is off by more than the tolerance, up to ``max_nodes`` on a side. The
        tolerance is horizontal and counts in pixels, whose size on the ground the nodes themselves tell. No point is
        asked of the sensor model twice.

        Raises FeatureError where the sensor model has no finite answer for a node.
        """
        nodes = _Nodes.covering(image_to_world, bounds, FIRST_NODES)
        while True:
            grid = cls._through(nodes)
            if 2 * len(nodes.xs) - 1 > max_nodes:
                return grid
            middles = nodes.cell_middles(image_to_world)
            error = _farthest(grid._normals_at(middles.points()), _normals(middles.world.reshape(-1, 3)))
            if error <= tolerance_px * nodes.pixel_size():
                return grid
            nodes = nodes.denser(image_to_world, middles)

    @classmethod
    def _through(cls, nodes: "_Nodes") -> "LocationGrid":
        xs, ys = nodes.xs, nodes.ys
        normals = _normals(nodes.world)
        # Terrain is not smooth: a cubic would overshoot at its edges.
        elevation = _spline_through(xs, ys, nodes.world[..., 2:], degree=1)
        low, high = np.array([xs[0], ys[0]]), np.array([xs[-1], ys[-1]])
        return cls(low, high, _spline_through(xs, ys, normals, degree=3), elevation)

    def locate(self, xy: FloatArray) -> FloatArray:
        """Return (n, 3) degrees of longitude in [-180, 180] and latitude, and metres of elevation, for (n, 2) pixels.

        Beyond the grid the map goes on straight, with the direction and scale that it has at the edge; elevation
        keeps the value of the edge.
        """
        x, y, z = self._normals_at(xy).T
        inside = np.clip(xy, self._low, self._high)
        elevation = self._elevation(inside)
        return np.column_stack([np.degrees(np.arctan2(y, x)), np.degrees(np.arctan2(z, np.hypot(x, y))), elevation])

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

    def cell_middles(self, image_to_world: ImageToWorld) -> "_Nodes":
        xs, ys = (self.xs[1:] + self.xs[:-1]) / 2, (self.ys[1:] + self.ys[:-1]) / 2
        return _Nodes(xs, ys, _evaluated(image_to_world, _lattice(xs, ys)).reshape(len(xs), len(ys), 3))

    def denser(self, image_to_world: ImageToWorld, middles: "_Nodes") -> "_Nodes":
        """Return the lattice of half the spacing; only the middles of cell edges are asked of the sensor model."""
        xs, ys = _interleaved(self.xs, middles.xs), _interleaved(self.ys, middles.ys)
        world = np.full((len(xs), len(ys), 3), np.nan)
        world[::2, ::2], world[1::2, 1::2] = self.world, middles.world
        is_missing = np.isnan(world[..., 0])
        world[is_missing] = _evaluated(image_to_world, _lattice(xs, ys)[is_missing.ravel()])
        return _Nodes(xs, ys, world)

    def pixel_size(self) -> float:
        """Return the shorter side of a mean pixel, as an angle seen from the centre of the earth in radians."""
        normals = _normals(self.world)
        along_x = np.linalg.norm(np.diff(normals, axis=0), axis=2).mean() / (self.xs[1] - self.xs[0])
        along_y = np.linalg.norm(np.diff(normals, axis=1), axis=2).mean() / (self.ys[1] - self.ys[0])
        return float(min(along_x, along_y))


def _spline_through(xs: FloatArray, ys: FloatArray, values: FloatArray, degree: int) -> NdBSpline:
    """Return the spline through ``values`` (x, y, channel), all channels of it in one, which is quick to evaluate."""
    splines = [RectBivariateSpline(xs, ys, channel, kx=degree, ky=degree) for channel in np.moveaxis(values, -1, 0)]
    x_knots, y_knots = splines[0].get_knots()
    shape = len(x_knots) - degree - 1, len(y_knots) - degree - 1
    coefficients = np.stack([spline.get_coeffs().reshape(shape) for spline in splines], axis=-1)
    return NdBSpline((x_knots, y_knots), coefficients, degree)


def _lattice(xs: FloatArray, ys: FloatArray) -> FloatArray:
    """Return every (x, y), y running fastest."""
    points: FloatArray = np.stack(np.meshgrid(xs, ys, indexing="ij"), axis=-1).reshape(-1, 2)
    return points


def _interleaved(outer: FloatArray, inner: FloatArray) -> FloatArray:
    return np.sort(np.concatenate([outer, inner]))


def _evaluated(image_to_world: ImageToWorld, xy: FloatArray) -> FloatArray:
    world = np.asarray(image_to_world(xy), dtype=np.float64)
    if not np.isfinite(world).all():
        x, y = xy[np.flatnonzero(~np.isfinite(world).all(axis=1))[0]]
        raise FeatureError(f"the sensor model has no finite place for pixel x={x:.1f}, y={y:.1f}")
    return world


def _normals(world: FloatArray) -> FloatArray:
    """Return the n-vectors (…, 3) of places (…, 3) whose longitude and latitude are in degrees."""
    longitude, latitude = np.radians(world[..., 0]), np.radians(world[..., 1])
    across = np.cos(latitude)
    return np.stack([across * np.cos(longitude), across * np.sin(longitude), np.sin(latitude)], axis=-1)


def _farthest(found: FloatArray, true: FloatArray) -> float:
    return float(np.linalg.norm(found - true, axis=-1).max())
