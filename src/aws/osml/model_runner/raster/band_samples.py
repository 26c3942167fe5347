"""Valid samples of a whole image, of a bounded number: the values from which a stretch is computed.

An image of at most 2048 x 2048 pixels is read whole. A larger image is read at windows in a lattice over it. So the
number of stored blocks that are decoded is bounded too. Every worker reads the same windows.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
from osgeo import gdal

from .pixel_map import representable
from .preparation import dtype_of
from .validity import Validity, read_mask

# Most samples of a side, of all windows together.
MAX_SAMPLES_SIDE = 2048
_WINDOW_PX = 256


def valid_samples(dataset: Any, band: int, data_type: str) -> npt.NDArray[Any]:
    """Return valid, finite samples of ``band`` (from 1) as a flat array, at most 2048 x 2048.

    ``data_type`` is GDAL's name of their type, or ``Int8``. Raises RuntimeError where pixels cannot be read.
    """
    validity = Validity.of(dataset)
    dtype = dtype_of(data_type)
    number = gdal.GetDataTypeByName("Byte" if data_type == "Int8" else data_type)
    nodata = representable(validity.nodata[band - 1], dtype)
    found = []
    for col, row, width, height in windows_of(dataset.RasterXSize, dataset.RasterYSize):
        raw = dataset.GetRasterBand(band).ReadRaster(col, row, width, height, buf_type=number)
        samples = np.frombuffer(raw, dtype)
        is_valid = np.isfinite(samples)
        if nodata is not None:
            is_valid &= samples != nodata
        if validity.has_mask:
            is_valid &= read_mask(dataset.GetRasterBand(1), col, row, width, height).ravel() != 0
        found.append(samples[is_valid])
    return np.concatenate(found)


def windows_of(width: int, height: int) -> Iterator[tuple[int, int, int, int]]:
    """Yield (col, row, width, height) of the windows that are read of an image of this size."""
    for row, rows in _spans(height):
        for col, columns in _spans(width):
            yield col, row, columns, rows


def _spans(length: int) -> list[tuple[int, int]]:
    """Return (start, length) of windows on one side: all of it, or eight that are spread evenly from end to end."""
    if length <= MAX_SAMPLES_SIDE:
        return [(0, length)]
    count = MAX_SAMPLES_SIDE // _WINDOW_PX
    return [(index * (length - _WINDOW_PX) // (count - 1), _WINDOW_PX) for index in range(count)]
