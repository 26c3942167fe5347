"""From pixels to the Earth and back, for many points at once.

Pixels are (n, 2) arrays of x (column) and y (row), counted from the outer corner of the upper left pixel; places are
(n, 3) arrays of longitude and latitude in degrees (WGS 84) and elevation in metres.
"""

import functools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol

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

from .rpc import RationalCamera
from .sensor_model import UNREADABLE, default_height, is_solution

FloatArray = npt.NDArray[np.float64]
ImageToWorld = Callable[[FloatArray], FloatArray]


class HasExtent(Protocol):
    """An image of a known size that may know where it is."""

    @property
    def width(self) -> int:
        """Columns."""
        ...

    @property
    def height(self) -> int:
        """Rows."""
        ...

    @property
    def sensor_model(self) -> Any | None:
        """The toolkit's sensor model."""
        ...


def image_to_world(sensor_model: Any, elevation_model: Any | None = None) -> ImageToWorld:
    """Return the function that places pixels on the Earth.

    Affine and projective models, and RPCs where there is no elevation model, are computed for all points at once; the
    others point by point by the toolkit, which takes milliseconds each: evaluate a grid and interpolate.

    A solver's result is accepted only if it lies on the Earth and projects back to its pixel; else the row is NaN.
    Where no point of the elevation model's surface projects to the pixel, the sensor model's own height counts.
    """
    model = _precise(sensor_model)
    if isinstance(model, GDALAffineSensorModel):
        return _with_elevation(_affine(model), elevation_model)
    if isinstance(model, ProjectiveSensorModel):
        return _with_elevation(_projective(model), elevation_model)
    each = _point_by_point(sensor_model, elevation_model)
    if isinstance(model, RPCSensorModel) and elevation_model is None:
        return _rational(model, each)
    return each


def world_to_image(sensor_model: Any, lonlat: npt.ArrayLike, elevation_model: Any | None = None) -> FloatArray:
    """Map (n, 2) longitude and latitude in degrees, or (n, 3) with elevation in metres, to (n, 2) x, y.

    A place without elevation lies on the elevation model's surface, or where that says nothing at the height at which
    the sensor model places pixels by itself, so that this is the way back of ``image_to_world``.
    """
    places = np.asarray(lonlat, dtype=np.float64)
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
    """Return the degrees that the image's four corners span: ``north``, ``south``, ``east``, ``west``.

    Where the image crosses the antimeridian, ``west`` is greater than ``east``, as in a GeoJSON bounding box.
    Raises LoadImageException when the image has no sensor model, or one that fails at a corner.
    """
    if source.sensor_model is None:
        raise LoadImageException("the image has no georeference, so it has no extents")
    width, height = float(source.width), float(source.height)
    corners = np.array([[0.0, 0.0], [width, 0.0], [width, height], [0.0, height]])
    try:
        places = image_to_world(source.sensor_model)(corners)
    except UNREADABLE as err:
        raise LoadImageException(f"the image's corners cannot be placed: {err}") from err
    if not np.isfinite(places).all():
        raise LoadImageException("the image's corners cannot be placed: the sensor model finds no place for them")
    longitudes, latitudes = places[:, 0], places[:, 1]
    west, east = float(longitudes.min()), float(longitudes.max())
    # A damaged sensor model places all corners beyond the globe on one side.
    if east - west > 180.0 and west < 0.0 <= east:
        west, east = float(longitudes[longitudes >= 0].min()), float(longitudes[longitudes < 0].max())
    return {"north": float(latitudes.max()), "south": float(latitudes.min()), "east": east, "west": west}


def _precise(sensor_model: Any) -> Any:
    """Return the model that decides: of a pair, the exact one."""
    is_pair = isinstance(sensor_model, CompositeSensorModel)
    return sensor_model.precision_sensor_model if is_pair else sensor_model


def _affine(model: Any) -> ImageToWorld:
    """Return the toolkit's own computation, over arrays."""

    def locate(pixels: FloatArray) -> FloatArray:
        projected = np.column_stack((pixels, np.ones(len(pixels)))) @ model.transform.T
        if model.image_to_wgs84 is not None:
            # Lists, because pyproj takes an array of one element for a number.
            lon, lat, _ = _projecting().submit(model.image_to_wgs84.transform, *projected.T.tolist()).result()
            projected = np.column_stack((lon, lat))
        return np.column_stack((projected[:, :2], np.zeros(len(pixels))))

    return locate


@functools.cache
def _projecting() -> ThreadPoolExecutor:
    """Return the one thread that projects: a transformer of pyproj makes itself anew in each, which takes 20 ms."""
    return ThreadPoolExecutor(max_workers=1, thread_name_prefix="project")


def _projective(model: Any) -> ImageToWorld:
    def locate(pixels: FloatArray) -> FloatArray:
        lonlat = np.degrees(model.lonlat_to_xy_transform.inverse(np.asarray(pixels, dtype=np.float64)))
        return np.column_stack((lonlat, np.zeros(len(pixels))))

    return locate


def _rational(model: Any, each: ImageToWorld) -> ImageToWorld:
    """Return Newton's method at the camera's own height; ``each`` places the points where it finds nothing."""
    camera = RationalCamera.from_sensor_model(model)
    height = default_height(model)

    def locate(pixels: FloatArray) -> FloatArray:
        places = camera.to_world(np.asarray(pixels, dtype=np.float64), height)
        is_missing = np.isnan(places[:, 0])
        if is_missing.any():
            places[is_missing] = each(pixels[is_missing])
        return places

    return locate


def _point_by_point(sensor_model: Any, elevation_model: Any | None) -> ImageToWorld:
    surfaces = [None] if elevation_model is None else [elevation_model, None]

    def locate(pixels: FloatArray) -> FloatArray:
        places = np.full((len(pixels), 3), np.nan)
        for row, pixel in zip(places, map(ImageCoordinate, pixels), strict=True):
            for surface in surfaces:
                place = sensor_model.image_to_world(pixel, elevation_model=surface)
                if is_solution(sensor_model, pixel, place):
                    row[:] = np.degrees(place.longitude), np.degrees(place.latitude), place.elevation
                    break
        return places

    return locate


def _with_elevation(locate: ImageToWorld, elevation_model: Any | None) -> ImageToWorld:
    if elevation_model is None:
        return locate

    def locate_on_surface(pixels: FloatArray) -> FloatArray:
        places = locate(pixels)
        for place in places:
            world = GeodeticWorldCoordinate([np.radians(place[0]), np.radians(place[1]), place[2]])
            elevation_model.set_elevation(world)
            place[2] = world.elevation
        return places

    return locate_on_surface
