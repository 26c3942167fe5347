"""Ground control points as a sensor model: the simplest map through them that is good enough.

The map is fitted in the points' own coordinate system, where it is smoothest. These maps are tried in order, until the
largest error of a point is at most half a pixel:

===================  ===================================================================================================
affine               three points or more
perspective          four points or more; four corners always fit
polynomial           of degree two with nine points or more, of degree three with sixteen or more
thin-plate spline    passes through every point; its error is the largest leave-one-out error
===================  ===================================================================================================
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from aws.osml.photogrammetry import GeodeticWorldCoordinate, ImageCoordinate, SensorModel

FloatArray = npt.NDArray[np.float64]
PointMap = Callable[[FloatArray], FloatArray]

# Largest error of a point, in pixels, at which a map is accepted.
_GOOD_PX = 0.5
# Points on a line narrower than this part of its length, or than a pixel, do not fix a map.
_MIN_SPREAD = 1e-4
_DEGREES_AND_POINTS = ((2, 9), (3, 16))
# The cost of a spline grows with the cube of its points. All other points only check its error.
_MAX_SPLINE_POINTS = 400
_AT_ONCE = 4_096
_MAX_STEPS = 30
_CONVERGED_PX = 1e-4
# Nearer to a pole, or over more longitudes, degrees cannot be used as a plane.
_HIGHEST_LATITUDE, _WIDEST_DEG = 80.0, 180.0


@dataclass(frozen=True)
class PlaneMap:
    """Map from a plane to longitude and latitude in degrees, and its inverse; both (n, 2) to (n, 2)."""

    to_lonlat: PointMap
    from_lonlat: PointMap


class ControlPointModel(SensorModel):  # type: ignore[misc]  # the toolkit has no types
    """A map from pixels to a plane on the ground; ``method`` is its name, ``error_px`` its largest error."""

    def __init__(self, to_plane: PointMap, plane: PlaneMap, start: FloatArray, method: str, error_px: float) -> None:
        super().__init__()
        self.method, self.error_px = method, error_px
        self._to_plane = to_plane
        self._plane = plane
        self._start = start

    @classmethod
    def fitted(cls, pixels: FloatArray, lonlat: FloatArray, plane: PlaneMap | None = None) -> "ControlPointModel":
        """Return the model of (n, 2) pixels at (n, 2) degrees; ``plane`` is the points' own coordinate system.

        Raises ValueError where the points do not determine a map: fewer than three, or on one line.
        """
        plane = plane or _plane_of(lonlat)
        pixels, first = np.unique(pixels, axis=0, return_index=True)
        ground = plane.from_lonlat(lonlat[first])
        if len(pixels) < 3:
            raise ValueError(f"{len(pixels)} control points are too few: at least 3")
        if _are_on_line(pixels) or _are_on_line(ground):
            raise ValueError("the control points lie on one line")
        affine = _polynomial(pixels, ground, 1)
        per_pixel = affine(np.array([[1.0, 0.0], [0.0, 1.0]])) - affine(np.zeros((1, 2)))
        to_pixels = np.linalg.inv(per_pixel)
        start = np.vstack([to_pixels, -affine(np.zeros((1, 2))) @ to_pixels])
        for method, to_plane in _candidates(pixels, ground):
            off_px = np.linalg.norm((to_plane(pixels) - ground) @ to_pixels, axis=1).max()
            if off_px <= _GOOD_PX:
                return cls(to_plane, plane, start, method, float(off_px))
        chosen = np.unique(np.linspace(0, len(pixels) - 1, min(len(pixels), _MAX_SPLINE_POINTS)).round().astype(int))
        spline, left_out = _spline(pixels[chosen], ground[chosen])
        missed = np.vstack([left_out, spline(pixels) - ground])
        off_px = np.linalg.norm(missed @ to_pixels, axis=1).max()
        return cls(spline, plane, start, "thin-plate spline", float(off_px))

    def places(self, pixels: FloatArray) -> FloatArray:
        """Return (n, 3) longitude, latitude and zero elevation of (n, 2) pixels; NaN off the Earth."""
        lonlat = self._plane.to_lonlat(self._to_plane(np.asarray(pixels, dtype=np.float64)))
        with np.errstate(invalid="ignore"):
            is_place = np.isfinite(lonlat).all(axis=1) & (np.abs(lonlat[:, 1]) <= 90.0)
        return np.where(is_place[:, None], np.column_stack((lonlat, np.zeros(len(lonlat)))), np.nan)

    def pixels(self, lonlat: FloatArray) -> FloatArray:
        """Return (n, 2) pixels of (n, 2) degrees, by Newton's method."""
        target = self._plane.from_lonlat(np.asarray(lonlat, dtype=np.float64))
        pixels = np.column_stack((target, np.ones(len(target)))) @ self._start
        side = np.array([[0.5, 0.0], [0.0, 0.5]])
        with np.errstate(all="ignore"):
            for _ in range(_MAX_STEPS):
                (a, c), (b, d) = ((self._to_plane(pixels + step) - self._to_plane(pixels - step)).T for step in side)
                east, north = (target - self._to_plane(pixels)).T
                step_px = np.column_stack((d * east - b * north, a * north - c * east)) / (a * d - b * c)[:, None]
                pixels = pixels + step_px
                if np.fmax.reduce(np.abs(step_px), axis=None, initial=0.0) < _CONVERGED_PX:
                    break
        return pixels

    def image_to_world(
        self,
        image_coordinate: ImageCoordinate,
        elevation_model: Any | None = None,
        options: Any | None = None,  # noqa: ARG002  # the toolkit names it
    ) -> GeodeticWorldCoordinate:
        """Return the place of one pixel, as the toolkit's models do."""
        ((longitude, latitude, elevation),) = self.places(np.array([[image_coordinate.x, image_coordinate.y]]))
        place = GeodeticWorldCoordinate([np.radians(longitude), np.radians(latitude), elevation])
        if elevation_model is not None:
            elevation_model.set_elevation(place)
        return place

    def world_to_image(self, world_coordinate: GeodeticWorldCoordinate) -> ImageCoordinate:
        """Return the pixel of one place, as the toolkit's models do."""
        degrees = np.degrees([[world_coordinate.longitude, world_coordinate.latitude]])
        return ImageCoordinate(self.pixels(degrees)[0])


def _candidates(pixels: FloatArray, ground: FloatArray) -> Sequence[tuple[str, PointMap]]:
    maps = [("affine", _polynomial(pixels, ground, 1))]
    if len(pixels) >= 4:
        maps.append(("perspective", _perspective(pixels, ground)))
    for degree, count in _DEGREES_AND_POINTS:
        if len(pixels) >= count:
            maps.append((f"polynomial of degree {degree}", _polynomial(pixels, ground, degree)))
    if len(pixels) == 3:
        # Three points determine an affine map exactly.
        return maps[:1]
    return maps


def _plane_of(lonlat: FloatArray) -> PlaneMap:
    """Return the plane of degrees, continuous across the antimeridian; near a pole, a plane that touches the pole."""
    reference = lonlat[0, 0]
    east = lonlat[:, 0] - reference
    span = np.ptp(east - 360.0 * np.round(east / 360.0))
    if np.abs(lonlat[:, 1]).max() <= _HIGHEST_LATITUDE and span < _WIDEST_DEG:

        def unwrapped(places: FloatArray) -> FloatArray:
            away = places[:, 0] - reference
            return np.column_stack((reference + away - 360.0 * np.round(away / 360.0), places[:, 1]))

        return PlaneMap(lambda plane: plane, unwrapped)
    sign = 1.0 if lonlat[:, 1].mean() >= 0 else -1.0

    def to_pole(places: FloatArray) -> FloatArray:
        turn, away = np.radians(places[:, 0]), 90.0 - sign * places[:, 1]
        return np.column_stack((away * np.cos(turn), away * np.sin(turn)))

    def from_pole(plane: FloatArray) -> FloatArray:
        longitudes = np.degrees(np.arctan2(plane[:, 1], plane[:, 0]))
        return np.column_stack((longitudes, sign * (90.0 - np.hypot(plane[:, 0], plane[:, 1]))))

    return PlaneMap(from_pole, to_pole)


def _are_on_line(points: FloatArray) -> bool:
    spread = np.linalg.svd(points - points.mean(axis=0), compute_uv=False)
    return bool(spread[1] <= _MIN_SPREAD * spread[0])


def _units_of(points: FloatArray) -> PointMap:
    """Return the map that takes these points into the square from -1 to 1."""
    low, high = points.min(axis=0), points.max(axis=0)
    return lambda values: (values - (low + high) / 2) / ((high - low).max() / 2)


def _powers(units: FloatArray, degree: int) -> FloatArray:
    x, y = units.T
    return np.column_stack([x**i * y ** (total - i) for total in range(degree + 1) for i in range(total + 1)])


def _polynomial(pixels: FloatArray, ground: FloatArray, degree: int) -> PointMap:
    units = _units_of(pixels)
    terms, *_ = np.linalg.lstsq(_powers(units(pixels), degree), ground, rcond=None)
    return lambda values: np.asarray(_powers(units(values), degree) @ terms)


def _perspective(pixels: FloatArray, ground: FloatArray) -> PointMap:
    """Return the projective map; NaN beyond its horizon."""
    units, middle, scale = _units_of(pixels), ground.mean(axis=0), np.ptp(ground, axis=0).max()
    (x, y), (east, north) = units(pixels).T, ((ground - middle) / scale).T
    one, zero = np.ones(len(x)), np.zeros(len(x))
    rows = np.vstack([
        np.column_stack([x, y, one, zero, zero, zero, -east * x, -east * y]),
        np.column_stack([zero, zero, zero, x, y, one, -north * x, -north * y]),
    ])  # fmt: skip
    terms, *_ = np.linalg.lstsq(rows, np.concatenate([east, north]), rcond=None)
    matrix = np.append(terms, 1.0).reshape(3, 3)

    def project(values: FloatArray) -> FloatArray:
        mapped = np.column_stack((units(values), np.ones(len(values)))) @ matrix.T
        depth = np.where(mapped[:, 2:] > 0, mapped[:, 2:], np.nan)
        return np.asarray(middle + scale * mapped[:, :2] / depth)

    return project


def _spline(pixels: FloatArray, ground: FloatArray) -> tuple[PointMap, FloatArray]:
    """Return the thin-plate spline through the points, and the leave-one-out error of each point."""
    units, middle = _units_of(pixels), ground.mean(axis=0)
    knots = units(pixels)
    linear = _powers(knots, 1)
    system = np.block([[_kernel(knots, knots), linear], [linear.T, np.zeros((3, 3))]])
    inverse = np.linalg.inv(system)
    weights = inverse[:, : len(knots)] @ (ground - middle)
    missed = weights[: len(knots)] / np.diag(inverse)[: len(knots), None]

    def bend(values: FloatArray) -> FloatArray:
        bent = [
            np.hstack([_kernel(part, knots), _powers(part, 1)]) @ weights
            for part in np.split(units(values), range(_AT_ONCE, len(values), _AT_ONCE))
        ]
        return np.asarray(middle + np.concatenate(bent))

    return bend, missed


def _kernel(values: FloatArray, knots: FloatArray) -> FloatArray:
    """Return r^2 log r^2 of all distances r."""
    square = ((values[:, None] - knots[None]) ** 2).sum(axis=2)
    bent: FloatArray = square * np.log(np.where(square > 0, square, 1.0))
    return bent
