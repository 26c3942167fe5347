"""How large GDAL's cache of decoded blocks is: what neighbouring tiles share fits, and no more memory is taken.

The cache never gives memory back by itself, so a cache as large as the setting allows would be filled by any image of
that size, most of it with blocks that no tile asks for again.
"""

from osgeo import gdal

from .image_header import ImageHeader
from .settings import RasterSettings

# Tiles are rarely taller.
_TILE_PX = 1024


def shared_bytes(header: ImageHeader, settings: RasterSettings) -> int:
    """Return the bytes of the blocks that a row of tiles decodes and the next tile, or the next row, asks for again.

    A block as wide as the image is shared by every tile beside it, so all of those that a tile touches have to stay. Of
    smaller blocks, the last row of a region's row of tiles is what its next row asks for again.
    """
    block_width, block_height = header.block_size
    pixel_bytes = header.band_count * gdal.GetDataTypeSize(gdal.GetDataTypeByName(header.data_type)) // 8
    is_striped = block_width >= header.width
    rows = _TILE_PX + block_height if is_striped else 2 * block_height
    columns = header.width if is_striped else min(header.width, settings.region_width_px)
    return int(settings.regions_at_once * min(rows, header.height) * columns * pixel_bytes)


def make_room(header: ImageHeader, settings: RasterSettings, is_remote: bool) -> None:
    """Let the cache grow to what an image needs, within the settings; it does not shrink, others may need it.

    Of a remote image, what a region shares with the one beside it is to stay as well: it would be fetched again.
    """
    wanted = min(settings.cache_bytes, shared_bytes(header, settings) * (2 if is_remote else 1))
    if wanted > gdal.GetCacheMax():
        gdal.SetCacheMax(wanted)
