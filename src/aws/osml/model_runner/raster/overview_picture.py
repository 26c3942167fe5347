"""A small picture of a whole image for people: decimated, 8 bits, in colour where the image has colours."""

from collections.abc import Iterable
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
from osgeo import gdal

from aws.osml.model_runner.exceptions import LoadImageException

from .georeference import image_to_world, is_quick
from .image_source import ImageSource
from .overviews import Level, level_for
from .preparation import dtype_of
from .tile_encoder import encode_picture
from .validity import Validity

# Without overviews, a picture decodes all pixels of an image.
MAX_DECODED_PIXELS = 1_000_000_000
_STRETCH_PERCENT = (2.0, 98.0)
_DARK = 24
# Colour of outlines as RGB, and parts of a pixel of their points.
_OUTLINE = (255, 196, 61)
_LEAST_PX, _FINE_BITS = 4, 4
_FINE = 1 << _FINE_BITS
_COLOURS = (gdal.GCI_RedBand, gdal.GCI_GreenBand, gdal.GCI_BlueBand)
# Nodes on a side of the grid of places. Slow sensor models take milliseconds for each.
_NODES, _SLOW_NODES = 33, 9


def overview_picture(overview: npt.NDArray[np.uint8]) -> bytes:
    """Return the pixels of ``overview_pixels`` as a JPEG file."""
    return encode_picture(overview, "JPEG")


def preview_picture(
    overview: npt.NDArray[np.uint8], size: tuple[int, int], lines: Iterable[npt.ArrayLike], side_px: int = 1600
) -> bytes:
    """Return the pixels of ``overview_pixels`` as a PNG file with lines drawn on it.

    Its longer side has at most ``side_px`` pixels. ``size`` is (width, height) of the image. ``lines`` are (n, 2)
    arrays of x and y in pixels of the image; a single point becomes a circle.
    """
    height, width = overview.shape[:2]
    factor = min(1.0, side_px / max(width, height))
    small = (max(1, round(width * factor)), max(1, round(height * factor)))
    reduced = cv2.resize(overview, small, interpolation=cv2.INTER_AREA).reshape(small[1], small[0], -1)
    pixels = np.broadcast_to(reduced, (small[1], small[0], 3)).copy()
    scale = np.divide(small, size)
    for line in lines:
        points = np.rint(np.asarray(line, np.float64) * scale * _FINE).astype(np.int32)
        if len(points) == 1 or np.ptp(points, axis=0).max() < _LEAST_PX * _FINE:
            centre = tuple(int(value) for value in points.mean(axis=0))
            cv2.circle(pixels, centre, _LEAST_PX * _FINE, _OUTLINE, 1, cv2.LINE_AA, _FINE_BITS)
        else:
            cv2.polylines(pixels, [points], False, _OUTLINE, 2, cv2.LINE_AA, _FINE_BITS)
    return encode_picture(pixels, "PNG")


def overview_pixels(source: ImageSource, side_px: int = 4096) -> npt.NDArray[np.uint8]:
    """Return (rows, columns, 1 or 3) pixels of the whole image; its longer side has at most ``side_px`` pixels.

    Bands of red, green and blue are its colours, else the first three bands of at least three, else the first band in
    grey. Other types than 8 bits are stretched between the percentiles 2 and 98 of each band. Pixels that are not valid
    are dark.

    Raises:
        LoadImageException: the image has no overviews, and more pixels than MAX_DECODED_PIXELS.
    """
    ratio = max(source.width, source.height) / side_px
    size = tuple(max(1, round(side / max(ratio, 1.0))) for side in (source.width, source.height))
    with source.dataset() as dataset:
        validity = Validity.of(dataset)
        level = level_for(dataset, (ratio, ratio), validity.has_mask, source.settings.max_block_bytes)
        if level.width * level.height > MAX_DECODED_PIXELS:
            raise LoadImageException(
                f"{source.location.url} has no overviews: a picture of it would decode {level.width * level.height}"
                f" pixels, the limit is {MAX_DECODED_PIXELS}; `gdaladdo` makes overviews"
            )
        table = dataset.GetRasterBand(1).GetColorTable()
        bands = [1] if table is not None else _bands_of(dataset)
        samples = np.stack([_decimated(level.band(dataset, band), source.data_type, level, size) for band in bands])
        is_valid = np.ones(samples.shape[1:], bool)
        if validity.has_mask:
            mask = level.band(dataset, 1).GetMaskBand()
            is_valid &= _decimated(mask, "Byte", level, size) != 0
        for values, band in zip(samples, bands, strict=True):
            nodata = validity.nodata[band - 1]
            is_valid &= np.isfinite(values)
            if nodata is not None:
                is_valid &= values != np.asarray(nodata).astype(values.dtype)
    if table is not None:
        entries = [table.GetColorEntry(index)[:3] for index in range(table.GetCount())]
        picture = np.asarray(entries, np.uint8)[np.clip(samples[0], 0, len(entries) - 1).astype(int)]
    elif source.data_type == "Byte":
        picture = np.moveaxis(samples, 0, 2).astype(np.uint8)
    else:
        picture = np.stack([_stretched(values, is_valid) for values in samples], axis=2)
    picture[~is_valid] = _DARK
    return np.ascontiguousarray(picture)


def place_grid(source: ImageSource) -> npt.NDArray[np.float64] | None:
    """Return (rows, columns, 2) longitudes and latitudes of a grid from corner to corner; None without georeference.

    Nodes without a place are NaN.
    """
    model = source.sensor_model
    if model is None:
        return None
    count = _NODES if is_quick(model) else _SLOW_NODES
    x, y = np.meshgrid(np.linspace(0, source.width, count), np.linspace(0, source.height, count))
    places = image_to_world(model)(np.column_stack([x.ravel(), y.ravel()]))
    return np.asarray(places[:, :2].reshape(count, count, 2), np.float64)


def _bands_of(dataset: Any) -> list[int]:
    meanings = [dataset.GetRasterBand(number + 1).GetColorInterpretation() for number in range(dataset.RasterCount)]
    if all(colour in meanings for colour in _COLOURS):
        return [meanings.index(colour) + 1 for colour in _COLOURS]
    visible = [number + 1 for number, meaning in enumerate(meanings) if meaning != gdal.GCI_AlphaBand]
    return visible[:3] if len(visible) >= 3 else (visible or [1])[:1]


def _decimated(band: Any, data_type: str, level: Level, size: tuple[int, ...]) -> npt.NDArray[Any]:
    """Return a band as (rows, columns) of ``size`` (width, height); complex values become magnitudes."""
    is_complex = data_type.startswith("C")
    name = {"Int8": "Byte"}.get(data_type, "CFloat32" if is_complex else data_type)
    number = gdal.GetDataTypeByName(name)
    raw = band.ReadRaster(0, 0, level.width, level.height, buf_xsize=size[0], buf_ysize=size[1], buf_type=number)
    values = np.frombuffer(raw, np.complex64 if is_complex else dtype_of(data_type)).reshape(size[1], size[0])
    return np.abs(values) if is_complex else values


def _stretched(values: npt.NDArray[Any], is_valid: npt.NDArray[np.bool_]) -> npt.NDArray[np.uint8]:
    if not is_valid.any():
        return np.zeros(values.shape, np.uint8)
    low, high = np.percentile(values[is_valid].astype(np.float64), _STRETCH_PERCENT)
    scaled = (values.astype(np.float64) - low) / max(high - low, np.finfo(np.float64).tiny)
    levels: npt.NDArray[np.float64] = np.nan_to_num(np.clip(scaled, 0.0, 1.0) * 255.0)
    return levels.astype(np.uint8)
