"""Bytes of an image's file that reads of its pixels take, from the blocks in which the file holds them.

GDAL decodes whole blocks. A TIFF has an index with the size of each block, as it is stored; a sparse block has none.
Blocks of an uncompressed NITF have the size of their pixels. For other formats GDAL gives no sizes. There a pixel has
its share of the file. PNG and JPEG are read from their first byte on.
"""

from collections.abc import Iterable
from enum import StrEnum
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from osgeo import gdal

from aws.osml.model_runner.common.typing import ImageRegion

from .handle_pool import ImageHandle
from .image_source import ImageSource
from .open import signing_with
from .overviews import Level

# The number that stands for a mask beside the numbers of bands.
_MASK = 0


class BlockSizes(StrEnum):
    """How the sizes of stored blocks are known."""

    INDEX = "INDEX"  # from the index of a TIFF
    PIXELS = "PIXELS"  # the size of their pixels: the file is not compressed
    SHARE = "SHARE"  # each pixel has the same share of the file
    WHOLE_FILE = "WHOLE_FILE"  # any read takes the whole file


def file_bytes(source: ImageSource) -> int:
    """Return the size of an image's file, or of all its files."""

    def sizes(handle: ImageHandle) -> int:
        total = 0
        for file, keys in zip(source.files, handle.keys, strict=True):
            with signing_with(keys):
                total += gdal.VSIStatL(file.location.gdal_path, gdal.VSI_STAT_SIZE_FLAG).size
        return total

    return source.read(sizes)


class BlockRead(NamedTuple):
    """A window of a level that is read: the numbers of its bands, from 1, and whether its mask is read too."""

    level: Level
    window: ImageRegion
    bands: tuple[int, ...]
    has_mask: bool = False


def known_block_sizes(source: ImageSource) -> BlockSizes:
    """Return how the sizes of an image's blocks are known."""
    if len(source.files) > 1:
        return BlockSizes.SHARE
    if source.driver_name == "GTIFF":
        return BlockSizes.INDEX
    if source.driver_name == "NITF" and source.header.metadata.get("NITF_IC") in ("NC", "NM"):
        return BlockSizes.PIXELS
    return BlockSizes.WHOLE_FILE if source.driver_name in ("PNG", "JPEG") else BlockSizes.SHARE


class StoredBlocks:
    """The stored blocks of an image, seen through one handle of it; used by one thread."""

    def __init__(self, dataset: Any, known_by: BlockSizes, size_bytes: int) -> None:
        self._dataset = dataset
        self.known_by = known_by
        self._file_bytes = size_bytes
        self._sizes: dict[tuple[int | None, int], npt.NDArray[np.int64]] = {}
        self._is_interleaved = dataset.GetMetadataItem("INTERLEAVE", "IMAGE_STRUCTURE") == "PIXEL"

    def bytes_of(self, reads: Iterable[BlockRead]) -> int:
        """Return the stored bytes of all blocks that some reads touch, each block once."""
        touched: dict[tuple[int | None, int], npt.NDArray[np.bool_]] = {}
        for read in reads:
            if self.known_by is BlockSizes.WHOLE_FILE:
                return self._file_bytes
            (row, col), _ = read.window
            for number in self._stored_bands(read):
                width, height = self._band(read.level, number).GetBlockSize()
                key = (read.level.overview, number)
                if key not in touched:
                    touched[key] = np.zeros((-(-read.level.height // height), -(-read.level.width // width)), np.bool_)
                rows = slice(row // height, (read.window.bottom - 1) // height + 1)
                touched[key][rows, col // width : (read.window.right - 1) // width + 1] = True
        return sum(self._stored_bytes(*key, is_touched) for key, is_touched in touched.items())

    def _stored_bands(self, read: BlockRead) -> Iterable[int]:
        """Return the bands whose blocks a read takes, ``_MASK`` for the mask; bands that share blocks count once."""
        is_one = self._is_interleaved or self.known_by is BlockSizes.SHARE
        bands = (1,) if is_one else read.bands
        if not read.has_mask or self.known_by is BlockSizes.SHARE:
            return bands
        if not self._dataset.GetRasterBand(1).GetMaskFlags() & gdal.GMF_ALPHA:
            return *bands, _MASK
        # The mask is a band of the image.
        return bands if is_one else {*bands, self._alpha_band}

    @property
    def _alpha_band(self) -> int:
        numbers = range(1, self._dataset.RasterCount + 1)
        colours = {number: self._dataset.GetRasterBand(number).GetColorInterpretation() for number in numbers}
        return next((number for number in numbers if colours[number] == gdal.GCI_AlphaBand), self._dataset.RasterCount)

    def _band(self, level: Level, number: int) -> Any:
        return level.band(self._dataset, number) if number != _MASK else level.band(self._dataset, 1).GetMaskBand()

    def _stored_bytes(self, overview: int | None, number: int, is_touched: npt.NDArray[np.bool_]) -> int:
        rows, columns = np.nonzero(is_touched)
        band = self._band(Level(overview, 0, 0), number)
        if self.known_by is BlockSizes.SHARE:
            level_share = band.XSize * band.YSize / (self._dataset.RasterXSize * self._dataset.RasterYSize)
            return int(self._file_bytes * level_share * len(rows) / is_touched.size)
        if self.known_by is BlockSizes.PIXELS:
            width, height = band.GetBlockSize()
            bands = self._dataset.RasterCount if self._is_interleaved else 1
            return int(len(rows) * width * height * bands * gdal.GetDataTypeSize(band.DataType) // 8)
        key = (overview, number)
        if key not in self._sizes:
            self._sizes[key] = np.full(is_touched.shape, -1, np.int64)
        sizes = self._sizes[key]
        for row, column in zip(rows.tolist(), columns.tolist(), strict=True):
            if sizes[row, column] < 0:
                sizes[row, column] = int(band.GetMetadataItem(f"BLOCK_SIZE_{column}_{row}", "TIFF") or 0)
        return int(sizes[rows, columns].sum())
