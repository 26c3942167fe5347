"""Computes the region of interest in pixels of an image, once per open image."""

import functools
from typing import Any

import shapely

from aws.osml.model_runner.common.typing import ImageCoord, ImageDimensions, ImageRegion
from aws.osml.model_runner.features.geolocation_grid import LocationGrid
from aws.osml.model_runner.raster import image_to_world, is_quick
from aws.osml.model_runner.tiling.pixel_roi import roi_in_pixels


@functools.lru_cache(maxsize=16)
def interest_in(sensor_model: Any, width: int, height: int, roi: shapely.Geometry) -> shapely.Geometry:
    """Return the part of a georeferenced image that lies in ``roi``, in pixels; see ``roi_in_pixels``.

    Every region of an image needs the same shape, so the result is cached by the image's sensor model.
    """
    locate = image_to_world(sensor_model)
    if not is_quick(sensor_model):
        whole = ImageRegion(ImageCoord(0, 0), ImageDimensions(width, height))
        locate = LocationGrid.from_sensor_model(locate, whole).locate
    return roi_in_pixels(roi, locate, width, height)
