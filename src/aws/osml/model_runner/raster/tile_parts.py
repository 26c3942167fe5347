"""Parts of a tile, each made from one read of the image, so that no tile takes memory in proportion to its source."""

import math
from collections.abc import Iterator
from typing import NamedTuple

from .settings import MIB

# Samples of the image, and their mask, that are held at once for one tile.
MAX_PART_BYTES = 32 * MIB
_LEAST_KERNELS = 4


class PartAxis(NamedTuple):
    """One axis of a tile: ``length`` model pixels of ``ratio`` image pixels each.

    A model pixel is made from ``kernel`` image pixels. ``block`` is the number of image pixels of a stored block.
    """

    length: int
    block: int
    ratio: float = 1.0
    kernel: float = 1.0

    def image_pixels(self, count: int) -> int:
        """Return the most image pixels that ``count`` neighbouring model pixels are made from."""
        # A span that begins within a pixel touches one more at each end.
        is_whole = self.ratio == 1.0 and self.kernel == 1.0
        return count if is_whole else int((count - 1) * self.ratio + self.kernel) + 2

    def fitting(self, image_pixels: float) -> int:
        """Return the most neighbouring model pixels that are made from so many image pixels, from 1 to all."""
        is_whole = self.ratio == 1.0 and self.kernel == 1.0
        count = int(image_pixels) if is_whole else int((image_pixels - 2 - self.kernel) / self.ratio) + 1
        return max(1, min(self.length, count))


def parts_of(down: PartAxis, across: PartAxis, pixel_bytes: int) -> Iterator[tuple[slice, slice]]:
    """Yield the (rows, columns) of each part of a tile; together they are the tile, and none overlap.

    A part is made from at most ``MAX_PART_BYTES`` of image pixels of ``pixel_bytes``, or is one pixel. Where parts of
    the tile's whole width would cut a row of stored blocks, parts are narrower, so that few blocks are decoded twice.
    """
    pixels = MAX_PART_BYTES // pixel_bytes
    rows, columns = down.fitting(pixels / across.image_pixels(across.length)), across.length
    height, width = down.image_pixels(rows), across.image_pixels(columns)
    if height * width > pixels or height < min(down.block, down.image_pixels(down.length)):
        # Neighbours share the width of the kernel; much narrower parts would mostly read the same pixels again.
        least = across.image_pixels(across.fitting(min(math.sqrt(pixels), _LEAST_KERNELS * across.kernel)))
        rows = min(down.fitting(down.block), down.fitting(pixels / least))
        columns = across.fitting(pixels / down.image_pixels(rows))
    for row in range(0, down.length, rows):
        for column in range(0, across.length, columns):
            yield slice(row, min(row + rows, down.length)), slice(column, min(column + columns, across.length))
