"""Fetches the blocks of several tiles of a remote image at once, with one network latency instead of one per tile.

GDAL requests all blocks of one read of a GeoTIFF at the same time, and keeps them in its cache.
"""

from collections.abc import Iterable, Mapping

from aws.osml.model_runner.common.typing import ImageCoord, ImageDimensions, ImageRegion

from .handle_pool import ImageHandle
from .settings import MIB, RasterSettings

# Four tiles of 1024 pixels in three bands.
_MAX_STRIP_BYTES = 12 * MIB


def strips_of(tiles: Iterable[ImageRegion], max_pixels: int) -> Mapping[ImageRegion, ImageRegion]:
    """Return the strip in which each tile is fetched: consecutive tiles, side by side without gaps.

    Strips of more than one tile have at most ``max_pixels``.
    """
    strips: list[list[ImageRegion]] = []
    for tile in tiles:
        first, last = (strips[-1][0], strips[-1][-1]) if strips else (tile, tile)
        is_beside = last.origin.row == tile.origin.row and last.size.height == tile.size.height
        continues = is_beside and last.origin.col < tile.origin.col <= last.right
        if continues and (tile.right - first.origin.col) * tile.size.height <= max_pixels:
            strips[-1].append(tile)
        else:
            strips.append([tile])
    bounds: dict[ImageRegion, ImageRegion] = {}
    for strip in strips:
        (row, col), (_, height) = strip[0]
        size = ImageDimensions(strip[-1].right - col, height)
        bounds |= dict.fromkeys(strip, ImageRegion(ImageCoord(row, col), size))
    return bounds


class ReadAhead:
    """Fetches a whole strip with the first of its tiles. One object per region; ``tiles`` in the order of reading."""

    def __init__(self, tiles: Iterable[ImageRegion], pixel_bytes: int, settings: RasterSettings) -> None:
        max_bytes = min(_MAX_STRIP_BYTES, settings.cache_bytes // 4)
        self._strips = strips_of(tiles, max_bytes // pixel_bytes)

    def fetch(self, handle: ImageHandle, tile: ImageRegion) -> None:
        """Fetch the strip of ``tile``, unless it is one of the last that this handle fetched.

        Errors are ignored, because reading the tile itself raises them, if they concern the tile.
        """
        strip = self._strips.get(tile, tile)
        if strip == tile or strip in handle.fetched:
            return
        handle.fetched.append(strip)
        (row, col), (width, height) = strip
        try:
            handle.dataset.ReadRaster(col, row, width, height)
        except RuntimeError:
            return
