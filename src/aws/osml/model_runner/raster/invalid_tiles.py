"""Finds the tiles of an image that have no valid pixel, as far as the image declares which pixels are valid.

Each step reads more than the step before, and for fewer tiles. Blocks that a sparse TIFF lacks need no read. A valid
sample of an overview shows that a tile has a valid pixel. Other tiles are read until the first valid pixel.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from typing import Any

import numpy as np
import numpy.typing as npt
from osgeo import gdal

from aws.osml.model_runner.common.typing import ImageCoord, ImageDimensions, ImageRegion

from .handle_pool import ImageHandle
from .image_source import ImageSource
from .overviews import Level, level_for
from .pixel_map import representable
from .preparation import dtype_of
from .sensor_model import UNREADABLE
from .settings import MIB
from .validity import names_a_file, read_mask

BoolArray = npt.NDArray[np.bool_]

# Limit of the decoded samples of an image, and of the reads of a remote image, which take some 30 ms each. Tiles that
# are not decided then are processed.
MAX_READ_BYTES = 32 * 1024 * MIB
MAX_REMOTE_READS = 8192
# Samples of a band that are read at once.
_PART_PX = 4 * MIB
# A tile has about so many samples of an overview on each side. Overviews of less than this factor are not used.
_SAMPLES_PER_TILE = 16
_LEAST_FACTOR = 3.5
# A sample of an overview may be made from pixels of its neighbours: those at the edge of a tile decide nothing.
_EDGE_SAMPLES = 2


@dataclass(eq=False)
class ReadBudget:
    """Bytes and reads that are left for an image."""

    bytes_left: int = MAX_READ_BYTES
    reads_left: int = MAX_REMOTE_READS

    def take(self, read_bytes: int, is_remote: bool) -> bool:
        """Count a read and return True; False when nothing is left for it."""
        if read_bytes > self.bytes_left or (is_remote and not self.reads_left):
            return False
        self.bytes_left -= read_bytes
        self.reads_left -= is_remote
        return True


@dataclass(frozen=True)
class Declaration:
    """Facts that an image declares about its valid pixels.

    ``nodata`` maps the bands of a tile, by number, to the sample that marks a pixel as not valid. It is empty unless
    each of these bands has one. A pixel is not valid where all bands have it. ``has_mask``: a mask counts for all
    bands. ``alpha`` are further bands that are 0 where pixels are not valid.
    """

    nodata: dict[int, Any]
    has_mask: bool
    alpha: tuple[int, ...]

    def __bool__(self) -> bool:
        """Return True when the image declares anything."""
        return bool(self.nodata or self.has_mask or self.alpha)

    @classmethod
    def of(cls, dataset: Any, numbers: Sequence[int] | None) -> "Declaration":
        """Return what a dataset declares for tiles of the bands ``numbers``; None for all bands."""
        bands = {number: dataset.GetRasterBand(number) for number in range(1, dataset.RasterCount + 1)}
        alpha = tuple(number for number, band in bands.items() if band.GetColorInterpretation() == gdal.GCI_AlphaBand)
        has_mask = not names_a_file(dataset) and bool(bands[1].GetMaskFlags() & gdal.GMF_PER_DATASET)
        coloured = [number for number in numbers or bands if number not in alpha]
        nodata = {number: _nodata_of(bands[number]) for number in coloured}
        if None in nodata.values():
            nodata = {}
        return cls(nodata, has_mask, () if has_mask else alpha)


def _dtype(band: Any) -> np.dtype[Any]:
    is_signed = band.GetMetadataItem("PIXELTYPE", "IMAGE_STRUCTURE") == "SIGNEDBYTE"
    return dtype_of("Int8" if is_signed else str(gdal.GetDataTypeName(band.DataType)))


def _nodata_of(band: Any) -> Any | None:
    """Return the sample that marks pixels as not valid; None where the band has none, or where no sample has it."""
    nodata, dtype = band.GetNoDataValue(), _dtype(band)
    if nodata is not None and dtype.kind == "f" and np.isnan(nodata):
        return dtype.type(np.nan)
    if nodata is not None and dtype.kind == "f" and np.isinf(nodata):
        return dtype.type(nodata)
    return representable(nodata, dtype)


class InvalidTiles:
    """Finds tiles without a valid pixel in an open image. ``bands`` are the bands of a tile; None for all."""

    def __init__(self, source: ImageSource, bands: Sequence[int] | None, budget: ReadBudget) -> None:
        self._source = source
        self._budget = budget
        self._bands = None if bands is None else tuple(dict.fromkeys(bands))
        self._is_remote = source.location.gdal_path.startswith("/vsi")
        self.declaration: Declaration = source.read(self._declared)

    def find(self, windows: Sequence[ImageRegion]) -> Iterator[BoolArray]:
        """Yield which windows, in image pixels, have no valid pixel: a part of them at a time, in order.

        ``windows`` are in reading order. Windows that cannot be read count as valid, because their tiles fail later.
        Raises ImageUnreachableError when the image's store does not respond.
        """
        for _, row in groupby(windows, key=lambda window: window.origin.row):
            tiles = list(row)
            if not self.declaration:
                yield np.zeros(len(tiles), np.bool_)
                continue
            is_invalid = self._source.read(partial(self._missing, tiles))
            is_open = ~is_invalid
            if is_open.any():
                is_open &= ~self._source.read(partial(self._seen_valid, tiles))
            for index in np.flatnonzero(is_open).tolist():
                is_invalid[index] = self._is_invalid(tiles[index])
            yield is_invalid

    def _declared(self, handle: ImageHandle) -> Declaration:
        return handle.companion(
            ("declared validity", self._bands), lambda dataset: Declaration.of(dataset, self._bands)
        )

    def _missing(self, tiles: Sequence[ImageRegion], handle: ImageHandle) -> BoolArray:
        """Return which tiles consist of blocks that a sparse TIFF lacks: they are read as not valid."""
        dataset, declared = handle.dataset, self.declaration
        if dataset.GetDriver().ShortName != "GTiff":
            return np.zeros(len(tiles), np.bool_)
        # Each group of bands by itself makes a pixel invalid where all of the group's blocks are missing.
        groups = [[dataset.GetRasterBand(number) for number in declared.nodata]] if declared.nodata else []
        groups += [[dataset.GetRasterBand(1).GetMaskBand()]] if declared.has_mask else []
        groups += [[dataset.GetRasterBand(number)] for number in declared.alpha if not declared.nodata]
        empty = [all(_is_empty(band, region_around(tiles)) for band in bands) for bands in groups]
        if any(empty):
            return np.ones(len(tiles), np.bool_)
        return np.array([any(all(_is_empty(band, tile) for band in bands) for bands in groups) for tile in tiles])

    def _seen_valid(self, tiles: Sequence[ImageRegion], handle: ImageHandle) -> BoolArray:
        """Return which tiles have a valid pixel, as the samples of an overview show; others may have one too."""
        source, declared = self._source, self.declaration
        ratio = max(1.0, min(min(tile.size) for tile in tiles) / _SAMPLES_PER_TILE)
        level = handle.companion(
            ("level for validity", ratio, declared.has_mask),
            lambda dataset: level_for(dataset, (ratio, ratio), declared.has_mask, source.settings.max_block_bytes),
        )
        across, down = source.width / level.width, source.height / level.height
        around = _scaled(region_around(tiles), across, down, (level.width, level.height), inset=0)
        if level.overview is None or min(across, down) < _LEAST_FACTOR or not self._may_read(around.size):
            return np.zeros(len(tiles), np.bool_)
        try:
            is_valid = self._valid(level, around, handle)
        except UNREADABLE:
            return np.zeros(len(tiles), np.bool_)
        found = []
        for tile in tiles:
            inner = _scaled(tile, across, down, (level.width, level.height), inset=_EDGE_SAMPLES)
            row, col = inner.origin.row - around.origin.row, inner.origin.col - around.origin.col
            found.append(bool(is_valid[row : row + inner.size.height, col : col + inner.size.width].any()))
        return np.array(found)

    def _is_invalid(self, tile: ImageRegion) -> bool:
        """Return True when all pixels of a tile are read and none is valid."""
        whole = Level(None, self._source.width, self._source.height)
        try:
            for part in _parts(tile, self._source.block_size):
                if not self._may_read(part.size):
                    return False
                if self._source.read(partial(self._valid, whole, part)).any():
                    return False
        except UNREADABLE:
            return False
        return True

    def _may_read(self, size: ImageDimensions) -> bool:
        source, declared = self._source, self.declaration
        sample_bytes = gdal.GetDataTypeSize(gdal.GetDataTypeByName(source.data_type)) // 8
        pixel_bytes = len(declared.nodata) * sample_bytes + declared.has_mask + len(declared.alpha)
        return self._budget.take(size.width * size.height * pixel_bytes, self._is_remote)

    def _valid(self, level: Level, window: ImageRegion, handle: ImageHandle) -> BoolArray:
        """Return which pixels of a window are valid as (rows, columns)."""
        dataset, declared = handle.dataset, self.declaration
        (row, col), (width, height) = window
        is_valid = np.ones((height, width), np.bool_)
        if declared.has_mask:
            is_valid = read_mask(level.band(dataset, 1), col, row, width, height) != 0
        for number in declared.alpha:
            is_valid &= read_samples(level.band(dataset, number), window) != 0
        if declared.nodata:
            has_data = np.zeros((height, width), np.bool_)
            for number, nodata in declared.nodata.items():
                samples = read_samples(level.band(dataset, number), window)
                has_data |= ~np.isnan(samples) if nodata != nodata else samples != nodata
                if has_data.all():
                    break
            is_valid &= has_data
        return is_valid


def read_samples(band: Any, window: ImageRegion) -> npt.NDArray[Any]:
    """Return the stored samples of a window of a band as (rows, columns)."""
    (row, col), (width, height) = window
    raw = band.ReadRaster(col, row, width, height, buf_type=band.DataType)
    return np.frombuffer(raw, _dtype(band)).reshape(height, width)


def _is_empty(band: Any, window: ImageRegion) -> bool:
    (row, col), (width, height) = window
    flags, _ = band.GetDataCoverageStatus(col, row, width, height)
    return bool(flags == gdal.GDAL_DATA_COVERAGE_STATUS_EMPTY)


def region_around(tiles: Sequence[ImageRegion]) -> ImageRegion:
    """Return the smallest region that holds all tiles."""
    row, col = min(tile.origin.row for tile in tiles), min(tile.origin.col for tile in tiles)
    size = ImageDimensions(max(tile.right for tile in tiles) - col, max(tile.bottom for tile in tiles) - row)
    return ImageRegion(ImageCoord(row, col), size)


def _scaled(region: ImageRegion, across: float, down: float, size: tuple[int, int], inset: int) -> ImageRegion:
    """Return the samples of an overview of ``size`` that touch a region, without ``inset`` samples at each edge."""
    left, top = int(region.origin.col / across) + inset, int(region.origin.row / down) + inset
    right = min(size[0], -int(-region.right // across)) - inset
    bottom = min(size[1], -int(-region.bottom // down)) - inset
    return ImageRegion(ImageCoord(top, left), ImageDimensions(max(0, right - left), max(0, bottom - top)))


def _parts(tile: ImageRegion, block: tuple[int, int]) -> Iterator[ImageRegion]:
    """Yield parts of a tile: a stored block in its middle, which decides most tiles, then all of the tile."""
    (row, col), (width, height) = tile
    size = ImageDimensions(min(width, block[0]), min(height, block[1], max(1, _PART_PX // width)))
    middle = col + (width - size.width) // 2, row + (height - size.height) // 2
    left, top = (max(start, at - at % step) for start, at, step in zip((col, row), middle, block, strict=True))
    size = ImageDimensions(min(size.width, tile.right - left), min(size.height, tile.bottom - top))
    yield ImageRegion(ImageCoord(top, left), size)
    if size == tile.size:
        return
    rows = max(1, _PART_PX // width)
    for first in range(row, tile.bottom, rows):
        yield ImageRegion(ImageCoord(first, col), ImageDimensions(width, min(rows, tile.bottom - first)))
