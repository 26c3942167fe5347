"""Opens the image of a request, and computes its region of interest in pixels."""

import functools
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any

import shapely

from aws.osml.model_runner.api.image_request import ImageRequest, asset_choice_of
from aws.osml.model_runner.api.image_url import parse_image_url
from aws.osml.model_runner.api.problems import shortened
from aws.osml.model_runner.api.region_request import RegionRequest
from aws.osml.model_runner.api.stac_item import MAX_ITEM_BYTES, ItemImage, image_of, is_item_url, parse_item
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
from aws.osml.model_runner.raster.open_images import Access, OpenImages
from aws.osml.model_runner.tiling.pixel_roi import roi_in_pixels

# Field of a request that names the file of its region of interest.
ROI_FIELD = "regionOfInterest.url"
# Takes a request, the URL of a file, and the field that names it.
ReadArea = Callable[[ImageRequest, str, str], AreaFile]
LendImage = Callable[[ImageRequest | RegionRequest], AbstractContextManager[ImageSource]]


def lend_image(images: OpenImages, request: ImageRequest | RegionRequest) -> AbstractContextManager[ImageSource]:
    """Lend the image of a request, read under its role, for the length of a ``with`` block; see ``OpenImages``.

    The STAC Item of a request is read for its first plan only. The assets of that plan are fixed with the job. So every
    worker opens the same files, also when the Item has changed.
    """
    access = functools.partial(_access, request)
    # The plan of an image comes first, and its regions only where that could be made.
    is_new = isinstance(request, ImageRequest)
    url, bucket = request.image_url, parse_image_url(request.image_url).bucket
    if request.image_item:
        return images.lend_item(ItemImage.from_text(request.image_item), access, is_new)
    if isinstance(request, ImageRequest) and is_item_url(url):
        item = parse_item(images.read_file(url, MAX_ITEM_BYTES, access(bucket)))
        return images.lend_item(image_of(item, url, asset_choice_of(request), images.allow), access, is_new)
    role, pays = access(bucket)
    return images.lend(url, role, is_new, pays=pays)


def _access(request: ImageRequest | RegionRequest, bucket: str | None) -> Access:
    """Return how files of a bucket are read for a request; None stands for files that are in no bucket."""
    role = reading_session(request.image_read_role, request.job_id, bucket) if bucket else None
    return Access(role, request.requester_pays)


def read_area(images: OpenImages, request: ImageRequest, url: str, field: str) -> AreaFile:
    """Return the area of the file at ``url``, read under the role by which the images of a request are read.

    Raises:
        InvalidImageRequestException: the file is missing, forbidden or not one of polygons; ``field`` is the field that
            names it.
        ImageUnreachableError: its store does not respond.
    """
    try:
        return images.read_area(url, *_access(request, parse_image_url(url).bucket))
    except ImageUnreachableError:
        raise
    except (InvalidImageURLException, LoadImageException) as err:
        problems = err.problems if isinstance(err, InvalidImageURLException) else ()
        expectation = problems[0].expectation if problems else str(err).removeprefix(f"{url} ")
        problem = Problem(field, shortened(url), expectation)
        raise InvalidImageRequestException("an area of the request cannot be used", [problem]) from err


def with_area(request: ImageRequest, read: ReadArea) -> tuple[ImageRequest, str | None]:
    """Return a request with the region of interest that its file holds, and the SHA-256 of the file.

    A request without such a file is returned as it is. Raises the errors of ``read_area``.
    """
    if not request.roi_url:
        return request, None
    area, sha256 = read(request, request.roi_url, ROI_FIELD)
    return replace(request, roi=area), sha256


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
