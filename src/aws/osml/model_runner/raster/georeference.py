"""Maps pixels to the Earth and back, for many points at once.

Pixels are (n, 2) arrays of x (column) and y (row), counted from the outer corner of the upper left pixel. Places are
(n, 3) arrays of longitude and latitude in degrees (WGS 84) and elevation in metres.
"""

import functools
import itertools
import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from aws.osml.model_runner.exceptions import LoadImageException
from aws.osml.photogrammetry import (
    CompositeSensorModel,
    GDALAffineSensorModel,
    GeodeticWorldCoordinate,
    ImageCoordinate,
    ProjectiveSensorModel,
    RPCSensorModel,
)

from .control_points import ControlPointModel
from .rpc import RPCModel
from .solution import CLOSED_PX, UNREADABLE, default_height, is_solution, surface_of

FloatArray = npt.NDArray[np.float64]
_EXTENT_NODES = 17
_CHECKED_NODES = 5
# A larger error, in pixels, makes `Georeference.warning` report it.
ROUGH_PX = 1.0
_METHODS = {
    "GDALAffineSensorModel": "geotransform",
    "ProjectiveSensorModel": "corners",
    "RPCSensorModel": "RPC",
    "RSMPolynomialSensorModel": "RSM",
    "SICDSensorModel": "SICD",
}
# A feature at the edge of a global grid may begin some pixels outside the image.
_PIXELS_BEYOND_POLE = 10.0
# Points per mapping that the slow search of the toolkit may solve after Newton's method failed.
_MAX_SEARCHED_POINTS = 32
_NEWTON_STEPS, _NEWTON_PX, _MAX_STEP_RAD = 20, 1e-3, 0.1
# A cylindrical projection has the same scale along all parallels, within this relative tolerance.
_CYLINDRICAL = 1e-6

ImageToWorld = Callable[[FloatArray], FloatArray]


class HasExtent(Protocol):
    """An image with a size and, where it is georeferenced, a sensor model."""

    width: int
    height: int
    sensor_model: Any | None


def image_to_world(sensor_model: Any, elevation_model: Any | None = None) -> ImageToWorld:
    """Return the function that maps (n, 2) pixels to (n, 3) places on the Earth.

    Affine, control point and projective models are computed for all points at once, as are RPCs without an elevation
    model. The toolkit computes the others point by point, in milliseconds each: evaluate a grid and interpolate.

    A solver's result is accepted only if it lies on the Earth and projects back to its pixel; else the row is NaN.
    Where no point of the elevation model's surface projects to the pixel, the sensor model's own height is used.
    """
    model = _precise(sensor_model)
    if isinstance(model, GDALAffineSensorModel):
        return _with_elevation(_affine(model), elevation_model)
    if isinstance(model, ControlPointModel):
        return _with_elevation(model.places, elevation_model)
    if isinstance(model, ProjectiveSensorModel):

        def locate(pixels: FloatArray) -> FloatArray:
            # Three corners on one line have a horizon, where the division is by zero.
            with np.errstate(divide="ignore", invalid="ignore"):
                lonlat = np.degrees(model.lonlat_to_xy_transform.inverse(np.asarray(pixels, dtype=np.float64)))
            return _at_height_zero(lonlat)

        return _with_elevation(locate, elevation_model)
    each = _point_by_point(sensor_model, elevation_model)
    if isinstance(model, RPCSensorModel) and elevation_model is None:
        return _rational(model, each)
    return each


def is_quick(sensor_model: Any, elevation_model: Any | None = None) -> bool:
    """Return whether ``image_to_world`` computes many pixels at once; other models take milliseconds per pixel."""
    model = _precise(sensor_model)
    if isinstance(model, RPCSensorModel):
        return elevation_model is None
    return isinstance(model, GDALAffineSensorModel | ControlPointModel | ProjectiveSensorModel)


class Georeference(NamedTuple):
    """The method that maps an image to the Earth, and the largest error that can be measured, in pixels.

    For control points, the error is their largest residual. For other models, it is the largest distance between a
    pixel and its projection to the ground and back. It is infinite where no tried pixel has a place, or where the way
    back from a place fails.
    """

    method: str
    error_px: float

    @property
    def warning(self) -> str:
        """Reason not to rely on the places; empty where their error is at most one pixel."""
        if not math.isfinite(self.error_px):
            return f"places are not to be relied on: pixels could not be placed and led back ({self.method})"
        if self.error_px > ROUGH_PX:
            return f"places may be off by {self.error_px:.1f} pixels ({self.method})"
        return ""


def georeference_of(source: HasExtent) -> Georeference | None:
    """Return the method and the error of an image's georeference; None without one."""
    model = source.sensor_model
    if model is None:
        return None
    precise = _precise(model)
    if isinstance(precise, ControlPointModel):
        return Georeference(f"control points: {precise.method}", precise.error_px)
    method = _METHODS.get(type(precise).__name__, type(precise).__name__)
    try:
        return Georeference(method, _round_trip_px(source))
    except UNREADABLE:
        return Georeference(method, math.inf)


def _round_trip_px(source: HasExtent) -> float:
    """Return the largest round-trip error over a lattice of pixels; infinite where no pixel of it has a place."""
    model = source.sensor_model
    xs, ys = np.meshgrid(*(np.linspace(0.5, side - 0.5, _CHECKED_NODES) for side in (source.width, source.height)))
    pixels = np.column_stack([xs.ravel(), ys.ravel()])
    places = image_to_world(model)(pixels)
    is_place = np.isfinite(places).all(axis=1)
    if not is_place.any():
        return math.inf
    places, pixels = places[is_place], pixels[is_place]
    # The error of a place is the smallest over longitudes that differ by full turns.
    off_px = np.full(len(places), np.inf)
    for turn in (0.0, 360.0, -360.0):
        is_open = ~(off_px <= CLOSED_PX)
        if not is_open.any():
            break
        with np.errstate(divide="ignore", invalid="ignore"):
            back = world_to_image(model, places[is_open] + [turn, 0.0, 0.0])
        off_px[is_open] = np.fmin(off_px[is_open], np.linalg.norm(back - pixels[is_open], axis=1))
    if isinstance(_precise(model), GDALAffineSensorModel):
        # A projection maps a place past the antimeridian to one side only. ``_affine`` checked the way there.
        off_px = off_px[off_px < source.width / 2]
    return float(np.max(off_px, initial=0.0))


def world_to_image(sensor_model: Any, lonlat: npt.ArrayLike, elevation_model: Any | None = None) -> FloatArray:
    """Map (n, 2) longitude and latitude in degrees, or (n, 3) with elevation in metres, to (n, 2) x, y.

    A place without elevation gets the elevation model's. Where that has no data, it gets the height that the sensor
    model uses by itself. So this is the inverse of ``image_to_world``.
    """
    places = np.asarray(lonlat, dtype=np.float64)
    model = _precise(sensor_model)
    if isinstance(model, GDALAffineSensorModel):
        # All places at once; a geotransform does not depend on the elevation.
        coordinates = np.column_stack((places[:, :2], np.ones(len(places))))
        if model.image_to_wgs84 is not None and len(places):
            coordinates = transformed(model.image_to_wgs84, "INVERSE", coordinates)
        return np.asarray((coordinates @ model.inv_transform.T)[:, :2])
    pixels = np.empty((len(places), 2))
    height = default_height(sensor_model)
    for index, place in enumerate(places):
        elevation = place[2] if len(place) > 2 else height
        world = GeodeticWorldCoordinate([np.radians(place[0]), np.radians(place[1]), elevation])
        if elevation_model is not None and len(place) == 2:
            elevation_model.set_elevation(world)
        coordinate = sensor_model.world_to_image(world)
        pixels[index] = coordinate.x, coordinate.y
    return pixels


def extents(source: HasExtent) -> dict[str, float]:
    """Return the bounds of the image's four corners in degrees: ``north``, ``south``, ``east``, ``west``.

    Where a corner is off the Earth, the bounds are those of the points of a lattice that are on it.

    Where the image crosses the antimeridian, ``west`` is greater than ``east``, as in a GeoJSON bounding box.
    Raises LoadImageException without a sensor model, when it fails, or when no point is on the Earth.
    """
    if source.sensor_model is None:
        raise LoadImageException("the image has no georeference, so it has no extents")
    width, height = float(source.width), float(source.height)
    corners = np.array([[0.0, 0.0], [width, 0.0], [width, height], [0.0, height]])
    xs, ys = np.meshgrid(np.linspace(0.0, width, _EXTENT_NODES), np.linspace(0.0, height, _EXTENT_NODES))
    try:
        locate = image_to_world(source.sensor_model)
        places = locate(corners)
        if not np.isfinite(places).all():
            places = locate(np.column_stack([xs.ravel(), ys.ravel()]))
    except UNREADABLE as err:
        raise LoadImageException(f"the image's corners cannot be placed: {err}") from err
    places = places[np.isfinite(places).all(axis=1)]
    if not len(places):
        raise LoadImageException("the image's corners cannot be placed: the sensor model finds no place for them")
    longitudes, latitudes = places[:, 0], places[:, 1]
    west, east = float(longitudes.min()), float(longitudes.max())
    # A damaged sensor model can map all corners to one side beyond the globe, so both signs are required.
    if east - west > 180.0 and west < 0.0 <= east:
        west, east = float(longitudes[longitudes >= 0].min()), float(longitudes[longitudes < 0].max())
    return {"north": float(latitudes.max()), "south": float(latitudes.min()), "east": east, "west": west}


def _precise(sensor_model: Any) -> Any:
    """Return the exact model of a composite one; any other model as it is."""
    is_pair = isinstance(sensor_model, CompositeSensorModel)
    return sensor_model.precision_sensor_model if is_pair else sensor_model


def _affine(model: Any) -> ImageToWorld:
    """Return the map of a geotransform for arrays; rows are NaN off the Earth.

    Projections return wrong places, not errors, for points off the Earth or outside their area of validity. So the row
    of a projected image is also NaN where the inverse does not return to the pixel.
    """
    to_lonlat = model.image_to_wgs84
    if to_lonlat is None:
        return lambda pixels: _geographic(model, pixels, 90.0)
    if to_lonlat.source_crs is not None and to_lonlat.source_crs.is_geographic:
        pole = np.pi / 2 / to_lonlat.source_crs.axis_info[0].unit_conversion_factor
        return lambda pixels: _at_height_zero(transformed(to_lonlat, "FORWARD", _geographic(model, pixels, pole)))
    turn = _full_turn(to_lonlat)

    def locate(pixels: FloatArray) -> FloatArray:
        projected = np.column_stack((pixels, np.ones(len(pixels)))) @ model.transform.T
        places = transformed(to_lonlat, "FORWARD", projected)
        with np.errstate(all="ignore"):
            missing = projected[:, :2] - transformed(to_lonlat, "INVERSE", places)[:, :2]
            if turn:
                missing[:, 0] -= turn * np.round(missing[:, 0] / turn)
            off_px = np.abs(missing @ model.inv_transform[:2, :2].T).max(axis=1, initial=0.0)
        return np.where((off_px <= CLOSED_PX)[:, None], _at_height_zero(places), np.nan)

    return locate


def _geographic(model: Any, pixels: FloatArray, pole: float) -> FloatArray:
    """Return longitude and latitude in units of the image; ``pole`` is the latitude of the north pole in them.

    The outer rows of a global grid may reach half a pixel beyond a pole, and a feature some pixels more. Their latitude
    is clipped to the pole; farther beyond it is NaN.
    """
    places = np.column_stack((pixels, np.ones(len(pixels)))) @ model.transform.T
    most_beyond = _PIXELS_BEYOND_POLE * np.abs(model.transform[1, :2]).sum()
    beyond = np.abs(places[:, 1]) - pole
    latitudes = np.where(beyond <= most_beyond, np.clip(places[:, 1], -pole, pole), np.nan)
    return np.column_stack((places[:, 0], latitudes, np.zeros(len(pixels))))


def _at_height_zero(places: FloatArray) -> FloatArray:
    """Return longitudes and latitudes with zeros; NaN where a transformation failed."""
    is_place = np.isfinite(places[:, :2]).all(axis=1)
    return np.where(is_place[:, None], np.column_stack((places[:, :2], np.zeros(len(places)))), np.nan)


def _full_turn(to_lonlat: Any) -> float:
    """Return the width of the Earth in a cylindrical projection, where x is periodic; 0 for other projections."""
    longitudes = np.arange(-180.0, 180.0)
    steps = []
    for latitude in (0.0, 45.0):
        places = np.column_stack((longitudes, np.full(len(longitudes), latitude), np.zeros(len(longitudes))))
        projected = transformed(to_lonlat, "INVERSE", places)[:, :2]
        if not np.isfinite(projected).all():
            return 0.0
        step = float(np.median(np.diff(projected[:, 0])))
        if np.ptp(projected[:, 1]) > abs(step) * _CYLINDRICAL:
            return 0.0
        steps.append(step)
    is_cylindrical = abs(steps[0] - steps[1]) <= abs(steps[0]) * _CYLINDRICAL
    return abs(steps[0]) * 360.0 if is_cylindrical else 0.0


def transformed(transformer: Any, direction: str, places: FloatArray) -> FloatArray:
    """Return (n, 2) or (n, 3) places after a pyproj transformer, infinite where it fails."""
    # Lists, because pyproj takes an array of one element for a number.
    transform = functools.partial(transformer.transform, direction=direction)
    return np.column_stack(_projection_thread().submit(transform, *places.T.tolist()).result())


@functools.cache
def _projection_thread() -> ThreadPoolExecutor:
    """Return the only thread that projects: pyproj rebuilds a transformer in each thread, which takes 20 ms."""
    return ThreadPoolExecutor(max_workers=1, thread_name_prefix="project")


def _rational(model: Any, each: ImageToWorld) -> ImageToWorld:
    """Return Newton's method at the RPC's own height.

    ``each`` solves the first points where Newton's method does not converge. It takes some 10 ms per point, so the
    returned function gives it ``_MAX_SEARCHED_POINTS`` in all its calls; later points are NaN.
    """
    rpc = RPCModel.from_sensor_model(model)
    height = default_height(model)
    numbers = itertools.count()

    def locate(pixels: FloatArray) -> FloatArray:
        places = rpc.to_world(np.asarray(pixels, dtype=np.float64), height)
        for index in np.flatnonzero(np.isnan(places[:, 0])):
            if next(numbers) >= _MAX_SEARCHED_POINTS:
                break
            places[index] = each(pixels[index : index + 1])[0]
        return places

    return locate


def _point_by_point(sensor_model: Any, elevation_model: Any | None) -> ImageToWorld:
    own_surface = surface_of(sensor_model)
    surfaces = [own_surface] if elevation_model is None else [elevation_model, own_surface]

    def locate(pixels: FloatArray) -> FloatArray:
        places = np.full((len(pixels), 3), np.nan)
        start: Any | None = None
        for row, pixel in zip(places, map(ImageCoordinate, pixels), strict=True):
            for surface in surfaces:
                place = sensor_model.image_to_world(pixel, elevation_model=surface)
                if not is_solution(sensor_model, pixel, place):
                    place = _improved(sensor_model, pixel, start or place, surface)
                if is_solution(sensor_model, pixel, place):
                    row[:] = np.degrees(place.longitude), np.degrees(place.latitude), place.elevation
                    start = place
                    break
        return places

    return locate


def _improved(sensor_model: Any, pixel: Any, start: Any, surface: Any | None) -> Any:
    """Return the result of Newton's method on a surface, from ``start``, converged or not.

    The toolkit's own search stops at the edge of the domain of some models.
    """

    def placed(lonlat: FloatArray) -> Any:
        place = GeodeticWorldCoordinate([*lonlat, start.elevation])
        if surface is not None:
            surface.set_elevation(place)
        return place

    def missed(lonlat: FloatArray) -> FloatArray:
        found = sensor_model.world_to_image(placed(lonlat))
        return np.array([pixel.x - found.x, pixel.y - found.y])

    lonlat, step = np.array([start.longitude, start.latitude]), 1e-6
    for _ in range(_NEWTON_STEPS):
        off = missed(lonlat)
        if not np.isfinite(off).all() or np.abs(off).max() < _NEWTON_PX:
            break
        east, north = ((off - missed(lonlat + side)) / step for side in np.eye(2) * step)
        determinant = east[0] * north[1] - north[0] * east[1]
        if not determinant:
            break
        change = np.array([north[1] * off[0] - north[0] * off[1], east[0] * off[1] - east[1] * off[0]]) / determinant
        lonlat = lonlat + np.clip(change, -_MAX_STEP_RAD, _MAX_STEP_RAD)
    return placed(lonlat)


def _with_elevation(locate: ImageToWorld, elevation_model: Any | None) -> ImageToWorld:
    if elevation_model is None:
        return locate

    def locate_on_surface(pixels: FloatArray) -> FloatArray:
        places = locate(pixels)
        for place in places:
            if np.isnan(place[0]):
                continue
            world = GeodeticWorldCoordinate([np.radians(place[0]), np.radians(place[1]), place[2]])
            elevation_model.set_elevation(world)
            place[2] = world.elevation
        return places

    return locate_on_surface
