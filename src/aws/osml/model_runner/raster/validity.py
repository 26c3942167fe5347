"""Which pixels of an image are valid, as far as the image declares it: value for "no data", mask, alpha band.

GDAL looks for masks in files beside the image, which the settings rule out, and opens a file that the metadata item
OVERVIEW_FILE names. The mask of an image with such an item is not used, so that no other file is opened.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from osgeo import gdal


@dataclass(frozen=True)
class Validity:
    """``nodata`` is the value of each band that marks samples as not valid, or None.

    ``has_mask``: one mask, or an alpha band, counts for all bands.
    """

    nodata: tuple[float | None, ...]
    has_mask: bool

    @classmethod
    def of(cls, dataset: Any) -> "Validity":
        """Return what a dataset declares."""
        bands = [dataset.GetRasterBand(number + 1) for number in range(dataset.RasterCount)]
        flags = 0 if names_a_file(dataset) else bands[0].GetMaskFlags()
        return cls(tuple(band.GetNoDataValue() for band in bands), bool(flags & gdal.GMF_PER_DATASET))


def names_a_file(dataset: Any) -> bool:
    """Return True when the metadata of an image name a file in which GDAL would look for overviews and masks."""
    return bool(dataset.GetMetadataItem("OVERVIEW_FILE", "OVERVIEWS"))


def read_mask(band: Any, col: int, row: int, width: int, height: int) -> npt.NDArray[np.uint8]:
    """Return the mask of a window of ``band`` as (rows, columns); pixels that are not valid are 0."""
    raw = band.GetMaskBand().ReadRaster(col, row, width, height, buf_type=gdal.GDT_Byte)
    return np.frombuffer(raw, np.uint8).reshape(height, width)
