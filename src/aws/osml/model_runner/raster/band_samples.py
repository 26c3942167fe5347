"""Valid samples of a whole image, of a bounded number: the values from which a stretch is computed.

An image of at most 2048 x 2048 pixels is read whole. A larger image is read at windows in a lattice over it, each in
few stored blocks. So the number of blocks that are decoded is bounded too. Every worker reads the same windows.
"""

from collections.abc import Iterator, Mapping, Sequence
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


def valid_samples(dataset: Any, bands: Sequence[int], data_type: str) -> Mapping[int, npt.NDArray[Any]]:
    """Return valid, finite samples of each of ``bands`` (from 1) as flat arrays, of at most 2048 x 2048 each.

    ``data_type`` is GDAL's name of their type, or ``Int8``. Raises RuntimeError where pixels cannot be read.
    """
    validity, dtype = Validity.of(dataset), dtype_of(data_type)
    number = gdal.GetDataTypeByName("Byte" if data_type == "Int8" else data_type)
    found: dict[int, list[npt.NDArray[Any]]] = {band: [] for band in bands}
    block = dataset.GetRasterBand(1).GetBlockSize()
    for col, row, width, height in windows_of((dataset.RasterXSize, dataset.RasterYSize), (block[0], block[1])):
        raw = dataset.ReadRaster(col, row, width, height, buf_type=number, band_list=list(bands))
        mask = None
        if validity.has_mask:
            mask = read_mask(dataset.GetRasterBand(1), col, row, width, height).ravel() != 0
        for band, samples in zip(bands, np.frombuffer(raw, dtype).reshape(len(bands), -1), strict=True):
            nodata = representable(validity.nodata[band - 1], dtype)
            is_valid = np.isfinite(samples)
            if nodata is not None:
                is_valid &= samples != nodata
            if mask is not None:
                is_valid &= mask
            found[band].append(samples[is_valid])
    return {band: np.concatenate(parts) for band, parts in found.items()}


def windows_of(size: tuple[int, int], block: tuple[int, int]) -> Iterator[tuple[int, int, int, int]]:
    """Yield (col, row, width, height) of the windows that are read; ``size`` and ``block`` are (width, height)."""
    for row, rows in _spans(size[1], block[1]):
        for col, columns in _spans(size[0], block[0]):
            yield col, row, columns, rows


def _spans(length: int, block: int) -> list[tuple[int, int]]:
    """Return (start, length) of windows on one side: all of it, or eight that are spread evenly.

    A window begins with a block, or lies within one.
    """
    if length <= MAX_SAMPLES_SIDE:
        return [(0, length)]
    count = MAX_SAMPLES_SIDE // _WINDOW_PX
    starts = (index * (length - _WINDOW_PX) // (count - 1) for index in range(count))
    return [(min(start, start - start % block + max(0, block - _WINDOW_PX)), _WINDOW_PX) for start in starts]
