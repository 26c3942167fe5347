"""Pixels of tiles of another scale than the image: read from the image or an overview, and resampled."""

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from aws.osml.model_runner.common.pixel_ratio import PixelRatio
from aws.osml.model_runner.common.typing import ImageCoord, ImageDimensions, ImageRegion

from .georeference import ImageToWorld
from .handle_pool import ImageHandle
from .image_source import ImageSource
from .overviews import Level, level_for
from .preparation import Preparation
from .resampling import AxisCache, AxisWeights, kernel_width, nearest_pixels, resampled
from .stored_blocks import BlockRead
from .tile_pixels import PreparedPixels
from .validity import Validity
from .window import corner_of

# Samples of one band, as floats, that are resampled at once; they fit into the cache of a core.
_STRIP_SAMPLES = 256 * 1024
# Tiles of one row or column of a grid have an axis in common, in each job of the process.
_AXES = AxisCache()


class ResampledPixels(PreparedPixels):
    """Pixels of tiles in the bands, range, type and scale of a ``Preparation``. Tiles are in model pixels."""

    is_read_whole = False

    def __init__(
        self,
        source: ImageSource,
        preparation: Preparation,
        on_part: Callable[[ImageRegion], object] = lambda _tile: None,
    ) -> None:
        super().__init__(source, preparation, on_part)
        self._ratio = preparation.ratio
        self._level: Level | None = None
        self.width, self.height = preparation.ratio.size_of(source.width, source.height)
        self._work_type = "f4" if np.dtype(preparation.source_dtype).str[1:] in ("u1", "i1", "u2", "i2", "f4") else "f8"

    def locate(self) -> ImageToWorld | None:
        """Return the function that maps (n, 2) model pixels x, y to the Earth; see ``TilePixels.locate``."""
        locate = super().locate()
        return None if locate is None else lambda pixels: locate(np.asarray(pixels) * self._ratio)

    def corner(self, handle: ImageHandle, tile: ImageRegion) -> tuple[float, float] | None:
        """Return x and y of the tile's upper left corner; see ``TilePixels.corner``."""
        return corner_of(handle.dataset, tile, self._ratio)

    def source_bytes(self, size: ImageDimensions) -> int:
        """Return the bytes of samples that are read for a tile; see ``TilePixels.source_bytes``."""
        level = self._source.read(self._level_of)
        share = level.width * level.height / (self._source.width * self._source.height)
        is_nearest = self._preparation.resampling == "NEAREST"
        pixels = size.width * size.height * self._ratio.x * self._ratio.y * (1.0 if is_nearest else share)
        return int(pixels * np.dtype(self._preparation.source_dtype).itemsize * len(self._read_bands))

    def block_read(self, handle: ImageHandle, tile: ImageRegion) -> BlockRead:
        """Return the window that is read for a tile; see ``TilePixels.block_read``."""
        if self._preparation.resampling == "NEAREST":
            whole, (row, col) = super().block_read(handle, tile), tile.origin
            # The first and the last pixel of each axis.
            columns = nearest_pixels(self._ratio.x, col, tile.size.width, self._source.width)[[0, -1]].tolist()
            lines = nearest_pixels(self._ratio.y, row, tile.size.height, self._source.height)[[0, -1]].tolist()
            size = ImageDimensions(columns[1] - columns[0] + 1, lines[1] - lines[0] + 1)
            return whole._replace(window=ImageRegion(ImageCoord(lines[0], columns[0]), size))
        level = self._level_of(handle)
        _, across, down = self._all_weights(level, tile)
        window = ImageRegion(ImageCoord(down.first, across.first), ImageDimensions(across.width, down.width))
        return super().block_read(handle, tile)._replace(level=level, window=window)

    def _fill(self, handle: ImageHandle, tile: ImageRegion, out: npt.NDArray[Any]) -> None:
        if self._preparation.resampling == "NEAREST":
            self._fill_nearest(handle, tile, out)
            return
        level = self._level_of(handle)
        ratio, all_across, all_down = self._all_weights(level, tile)
        kernel = partial(kernel_width, self._preparation.resampling)
        for rows, columns in self._parts(handle, level, tile, ratio, kernel):
            down, across = all_down.part(rows.start, rows.stop), all_across.part(columns.start, columns.stop)
            window = ImageRegion(ImageCoord(down.first, across.first), ImageDimensions(across.width, down.width))
            source, mask = self._samples(handle, level, window)
            step = max(1, _STRIP_SAMPLES * down.height // (across.width * down.width))
            for first in range(0, down.height, step):
                strip = down.part(first, min(first + step, down.height))
                lines = slice(strip.first - down.first, strip.first - down.first + strip.width)
                part_mask = None if mask is None else mask[lines]
                strip_out = out[rows, columns][first : first + step]
                self._fill_strip(handle, source[:, lines], part_mask, strip, across, strip_out)

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
        all_columns = nearest_pixels(self._ratio.x, col, width, self._whole.width)
        all_lines = nearest_pixels(self._ratio.y, row, height, self._whole.height)
        for rows, columns in self._parts(handle, self._whole, tile, self._ratio):
            across, down = all_columns[columns], all_lines[rows]
            origin = ImageCoord(int(down[0]), int(across[0]))
            size = ImageDimensions(int(across[-1]) - origin.col + 1, int(down[-1]) - origin.row + 1)
            source, mask = self._samples(handle, self._whole, ImageRegion(origin, size))
            chosen = np.ix_(down - origin.row, across - origin.col)
            chosen_mask = None if mask is None else mask[chosen]
            for index, number in enumerate(self._preparation.bands):
                samples = source[self._read_bands.index(number)][chosen]
                self._map(handle, index).apply(samples, chosen_mask, out[rows, columns, index])

    def _all_weights(self, level: Level, tile: ImageRegion) -> tuple[PixelRatio, AxisWeights, AxisWeights]:
        """Return the pixels of a level per model pixel, and the weights of a tile's columns and rows."""
        (row, col), (width, height) = tile
        ratio = PixelRatio(
            self._ratio.x * level.width / self._source.width, self._ratio.y * level.height / self._source.height
        )
        across = self._weights(ratio.x, col, width, level.width)
        return ratio, across, self._weights(ratio.y, row, height, level.height)

    def _weights(self, ratio: float, start: int, count: int, length: int) -> AxisWeights:
        return _AXES.weights(self._preparation.resampling, ratio, start, count, length, self._work_type)

    def _level_of(self, handle: ImageHandle) -> Level:
        """Return the level that tiles are made from: the same with each handle of the image."""
        if self._level is None:
            has_mask = handle.companion("validity", Validity.of).has_mask
            max_block_bytes = self._source.settings.max_block_bytes
            self._level = level_for(handle.dataset, self._ratio, has_mask, max_block_bytes)
        return self._level


def pixels_of(
    source: ImageSource, preparation: Preparation, on_part: Callable[[ImageRegion], object] = lambda _tile: None
) -> PreparedPixels:
    """Return the pixels of tiles that a preparation makes; see ``PreparedPixels``."""
    kind = PreparedPixels if preparation.ratio.is_one else ResampledPixels
    return kind(source, preparation, on_part)
