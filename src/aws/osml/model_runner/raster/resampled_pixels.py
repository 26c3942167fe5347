"""Pixels of tiles of another scale than the image: read from the image or an overview, and resampled."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from aws.osml.model_runner.common.typing import ImageCoord, ImageDimensions, ImageRegion

from .georeference import ImageToWorld
from .handle_pool import ImageHandle
from .image_source import ImageSource
from .overviews import Level, level_for
from .preparation import Preparation
from .resampling import AxisWeights, axis_weights, nearest_pixels, resampled
from .settings import MIB
from .tile_pixels import PreparedPixels
from .validity import Validity
from .window import corner_of

# Samples of the image that are read at once, unless one row of stored blocks has more.
_MAX_PART_BYTES = 32 * MIB
# Samples of one band, as floats, that are resampled at once; they fit into the cache of a core.
_STRIP_SAMPLES = 256 * 1024


class ResampledPixels(PreparedPixels):
    """Pixels of tiles in the bands, range, type and scale of a ``Preparation``. Tiles are in model pixels."""

    is_read_whole = False

    def __init__(self, source: ImageSource, preparation: Preparation) -> None:
        super().__init__(source, preparation)
        self._ratio = preparation.ratio
        self._size = preparation.ratio.size_of(source.width, source.height)
        self._work_type = "f4" if np.dtype(preparation.source_dtype).str[1:] in ("u1", "i1", "u2", "i2", "f4") else "f8"

    @property
    def width(self) -> int:
        """Columns of the raster that tiles are cut from."""
        return self._size.width

    @property
    def height(self) -> int:
        """Rows of the raster that tiles are cut from."""
        return self._size.height

    def locate(self) -> ImageToWorld | None:
        """Return the function that maps (n, 2) model pixels x, y to the Earth; see ``TilePixels.locate``."""
        locate = super().locate()
        return None if locate is None else lambda pixels: locate(np.asarray(pixels) * self._ratio)

    def corner(self, handle: ImageHandle, tile: ImageRegion) -> tuple[float, float] | None:
        """Return x and y of the tile's upper left corner; see ``TilePixels.corner``."""
        return corner_of(handle.dataset, tile, self._ratio)

    def source_bytes(self, size: ImageDimensions) -> int:
        """Return the bytes of samples that are read for a tile; see ``TilePixels.source_bytes``."""
        level = self._source.read(lambda handle: handle.companion(("level", self._ratio), self._level))
        share = level.width * level.height / (self._source.width * self._source.height)
        is_nearest = self._preparation.resampling == "NEAREST"
        pixels = size.width * size.height * self._ratio.x * self._ratio.y * (1.0 if is_nearest else share)
        return int(pixels * np.dtype(self._preparation.source_dtype).itemsize * len(self._read_bands))

    def _fill(self, handle: ImageHandle, tile: ImageRegion, out: npt.NDArray[Any]) -> None:
        if self._preparation.resampling == "NEAREST":
            self._fill_nearest(handle, tile, out)
            return
        level: Level = handle.companion(("level", self._ratio), self._level)
        (row, col), (width, height) = tile
        across = self._weights(self._ratio.x * level.width / self._source.width, col, width, level.width)
        down = self._weights(self._ratio.y * level.height / self._source.height, row, height, level.height)
        for start, end in self._parts(handle, level, across, down):
            rows = down.part(start, end)
            window = ImageRegion(ImageCoord(rows.first, across.first), ImageDimensions(across.width, rows.width))
            source, mask = self._samples(handle, level, window)
            step = max(1, _STRIP_SAMPLES * (end - start) // (across.width * rows.width))
            for first in range(start, end, step):
                strip = down.part(first, min(first + step, end))
                lines = slice(strip.first - rows.first, strip.first - rows.first + strip.width)
                part_mask = None if mask is None else mask[lines]
                self._fill_strip(handle, source[:, lines], part_mask, strip, across, out[first : first + step])

    def _fill_strip(
        self,
        handle: ImageHandle,
        source: npt.NDArray[Any],
        mask: npt.NDArray[np.uint8] | None,
        down: AxisWeights,
        across: AxisWeights,
        out: npt.NDArray[Any],
    ) -> None:
        """Write samples of some rows of a tile to ``out``; ``source`` is (bands read, image rows, image columns)."""
        for number, samples in zip(self._read_bands, source, strict=True):
            indices = [index for index, band in enumerate(self._preparation.bands) if band == number]
            is_valid = self._map(handle, indices[0]).valid(samples, mask)
            values, is_valid = resampled(samples.astype(self._work_type), is_valid, down, across)
            for index in indices:
                own = values if index == indices[-1] else values.copy()
                self._map(handle, index).apply_computed(own, is_valid, out[:, :, index])

    def _fill_nearest(self, handle: ImageHandle, tile: ImageRegion, out: npt.NDArray[Any]) -> None:
        (row, col), (width, height) = tile
        whole = Level(None, self._source.width, self._source.height)
        columns = nearest_pixels(self._ratio.x, col, width, whole.width)
        rows = nearest_pixels(self._ratio.y, row, height, whole.height)
        step = max(1, _MAX_PART_BYTES // self._row_bytes(int(columns[-1] - columns[0]) + 1, self._ratio.y))
        for first in range(0, height, step):
            lines = rows[first : first + step]
            origin = ImageCoord(int(lines[0]), int(columns[0]))
            size = ImageDimensions(int(columns[-1]) - origin.col + 1, int(lines[-1]) - origin.row + 1)
            source, mask = self._samples(handle, whole, ImageRegion(origin, size))
            chosen = np.ix_(lines - origin.row, columns - origin.col)
            chosen_mask = None if mask is None else mask[chosen]
            for index, number in enumerate(self._preparation.bands):
                samples = source[self._read_bands.index(number)][chosen]
                self._map(handle, index).apply(samples, chosen_mask, out[first : first + step, :, index])

    def _parts(
        self, handle: ImageHandle, level: Level, across: AxisWeights, down: AxisWeights
    ) -> Iterator[tuple[int, int]]:
        """Yield [start, end) of the rows of a tile that are made from one read of the image."""
        ratio = self._ratio.y * level.height / self._source.height
        # A row of stored blocks is decoded once, as far as it may be.
        block_rows = level.band(handle.dataset, 1).GetBlockSize()[1]
        fitting = _MAX_PART_BYTES // self._row_bytes(across.width, ratio)
        step = max(1, fitting, int(block_rows / ratio))
        for start in range(0, down.height, step):
            yield start, min(start + step, down.height)

    def _row_bytes(self, columns: int, ratio: float) -> int:
        """Return the bytes of the image that a row of a tile is made from."""
        sample_bytes = np.dtype(self._preparation.source_dtype).itemsize
        return max(1, int(columns * max(1.0, ratio) * sample_bytes * len(self._read_bands)))

    def _weights(self, ratio: float, start: int, count: int, length: int) -> AxisWeights:
        return axis_weights(self._preparation.resampling, ratio, start, count, length, self._work_type)

    def _level(self, dataset: Any) -> Level:
        has_mask = Validity.of(dataset).has_mask
        return level_for(dataset, self._ratio, has_mask, self._source.settings.max_block_bytes)


def pixels_of(source: ImageSource, preparation: Preparation) -> PreparedPixels:
    """Return the pixels of tiles that a preparation makes."""
    return PreparedPixels(source, preparation) if preparation.ratio.is_one else ResampledPixels(source, preparation)
