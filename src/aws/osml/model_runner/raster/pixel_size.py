"""The size of an image's pixels on the ground."""

import math

import numpy as np
from osgeo import osr
from pyproj import Geod

from .georeference import image_to_world
from .image_source import ImageSource

# A projection that keeps lengths so well is taken at its word: half a metre of UTM is half a metre.
_TRUE_TO_SCALE = 0.005


def pixel_size_m(source: ImageSource) -> tuple[float, float] | None:
    """Return width and height in metres of the pixel in the middle of an image; None where it has no place.

    Where the coordinate system is a projection that is true to scale there, its own units count.
    """
    if source.sensor_model is None:
        return None
    x, y = source.width / 2, source.height / 2
    places = image_to_world(source.sensor_model)(np.array([[x - 0.5, y], [x + 0.5, y], [x, y - 0.5], [x, y + 0.5]]))
    if not np.isfinite(places[:, :2]).all():
        return None
    geod = Geod(ellps="WGS84")
    true = [geod.inv(*places[first, :2], *places[first + 1, :2])[2] for first in (0, 2)]
    nominal = source.read(lambda handle: _nominal_size(handle.dataset.GetSpatialRef(), source.header.geo_transform))
    width, height = (
        own if own and abs(measured / own - 1) <= _TRUE_TO_SCALE else measured
        for measured, own in zip(true, nominal, strict=True)
    )
    return (width, height) if width > 0 and height > 0 else None


def _nominal_size(system: osr.SpatialReference | None, transform: tuple[float, ...] | None) -> tuple[float, float]:
    """Return the size of a pixel in metres of a projection; zeros for other coordinate systems."""
    if system is None or transform is None or not system.IsProjected():
        return 0.0, 0.0
    unit_m = system.GetLinearUnits()
    return math.hypot(transform[1], transform[4]) * unit_m, math.hypot(transform[2], transform[5]) * unit_m
