"""Size of GDAL's cache of decoded blocks: large enough for the blocks that neighbouring tiles share.

The cache never shrinks by itself. A cache of the allowed size would be filled by any large image, mostly with blocks
that no tile reads again.
"""

from osgeo import gdal

from .image_header import ImageHeader
from .settings import RasterSettings

# Tiles are rarely taller.
_TILE_PX = 1024


def shared_bytes(header: ImageHeader, settings: RasterSettings) -> int:
    """Return the bytes of the blocks that one tile or row of tiles decodes and the next reads again.

    A block as wide as the image is shared by all tiles in its rows, so all blocks that a tile touches have to stay.
    With smaller blocks, the next row of tiles of a region reads only the last row of blocks again.
    """
    block_width, block_height = header.block_size
    pixel_bytes = header.band_count * gdal.GetDataTypeSize(gdal.GetDataTypeByName(header.data_type)) // 8
    is_striped = block_width >= header.width
    rows = _TILE_PX + block_height if is_striped else 2 * block_height
    columns = header.width if is_striped else min(header.width, settings.region_width_px)
    return int(settings.regions_at_once * min(rows, header.height) * columns * pixel_bytes)


def make_room(header: ImageHeader, settings: RasterSettings, is_remote: bool) -> None:
    """Let the cache grow to the size that an image needs, within the settings. It never shrinks: other images use it.

    For a remote image, the blocks that neighbouring regions share stay as well. Otherwise they are fetched again.
    """
    wanted = min(settings.cache_bytes, shared_bytes(header, settings) * (2 if is_remote else 1))
    if wanted > gdal.GetCacheMax():
        gdal.SetCacheMax(wanted)
