"""Opens the image of a request, and computes its region of interest in pixels."""

import functools
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import shapely

from aws.osml.model_runner.api.image_request import ImageRequest
from aws.osml.model_runner.api.image_url import parse_image_url
from aws.osml.model_runner.api.problems import shortened
from aws.osml.model_runner.api.region_request import RegionRequest
from aws.osml.model_runner.aws.role_session import reading_session
from aws.osml.model_runner.common.pixel_ratio import ONE, PixelRatio
from aws.osml.model_runner.common.typing import ImageCoord, ImageDimensions, ImageRegion
from aws.osml.model_runner.exceptions import (
    InvalidImageRequestException,
    InvalidImageURLException,
    LoadImageException,
    Problem,
)
from aws.osml.model_runner.features.geolocation_grid import LocationGrid
from aws.osml.model_runner.raster import ImageSource, ImageUnreachableError, image_to_world, is_quick
from aws.osml.model_runner.raster.area_reader import AreaFile
from aws.osml.model_runner.raster.open_images import OpenImages
from aws.osml.model_runner.tiling.pixel_roi import roi_in_pixels

LendImage = Callable[[ImageRequest | RegionRequest], AbstractContextManager[ImageSource]]


def lend_image(images: OpenImages, request: ImageRequest | RegionRequest) -> AbstractContextManager[ImageSource]:
    """Lend the image of a request, read under its role, for the length of a ``with`` block; see ``OpenImages``."""
    bucket = parse_image_url(request.image_url).bucket
    role = reading_session(request.image_read_role, request.job_id, bucket) if bucket else None
    # The plan of an image comes first, and its regions only where that could be made.
    return images.lend(request.image_url, role, is_new=isinstance(request, ImageRequest))


def read_area(images: OpenImages, request: ImageRequest, url: str, field: str) -> AreaFile:
    """Return the area of the file at ``url``, read under the role by which the images of a request are read.

    Raises:
        InvalidImageRequestException: the file is missing, forbidden or not one of polygons; ``field`` is the field that
            names it.
        ImageUnreachableError: its store does not respond.
    """
    try:
        bucket = parse_image_url(url).bucket
        role = reading_session(request.image_read_role, request.job_id, bucket) if bucket else None
        return images.read_area(url, role)
    except ImageUnreachableError:
        raise
    except (InvalidImageURLException, LoadImageException) as err:
        expectation = err.problems[0].expectation if isinstance(err, InvalidImageURLException) else str(err)
        problem = Problem(field, shortened(url), expectation)
        raise InvalidImageRequestException("an area of the request cannot be used", [problem]) from err


@functools.lru_cache(maxsize=16)
def interest_in(
    sensor_model: Any, width: int, height: int, roi: shapely.Geometry, ratio: PixelRatio = ONE
) -> shapely.Geometry:
    """Return the part of a georeferenced image that lies in ``roi``, in model pixels; see ``roi_in_pixels``.

    Every region of an image needs the same shape, so the result is cached by the image's sensor model.
    """
    locate = image_to_world(sensor_model)
    if not is_quick(sensor_model):
        whole = ImageRegion(ImageCoord(0, 0), ImageDimensions(width, height))
        locate = LocationGrid.from_sensor_model(locate, whole).locate
    in_image = roi_in_pixels(roi, locate, width, height)
    return in_image if ratio.is_one else shapely.transform(in_image, lambda pixels: pixels / ratio)
