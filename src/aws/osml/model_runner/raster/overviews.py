"""Overviews inside an image's file, from which tiles of a smaller scale are read.

GDAL opens a file that the metadata item OVERVIEW_FILE names, so an image with such an item is read without overviews.
Overviews of JPEG are not read: one of them is the thumbnail, which may show anything.
"""

from typing import Any, NamedTuple

from osgeo import gdal

from .validity import names_a_file

_DRIVERS = frozenset({"GTiff", "NITF", "JP2OpenJPEG"})
_ROUNDING = 1e-9


class Level(NamedTuple):
    """A raster to read from: the image itself, where ``overview`` is None, or an overview of each of its bands."""

    overview: int | None
    width: int
    height: int

    def band(self, dataset: Any, number: int) -> Any:
        """Return GDAL's band ``number``, from 1, of this level."""
        band = dataset.GetRasterBand(number)
        return band if self.overview is None else band.GetOverview(self.overview)


def level_for(dataset: Any, ratio: tuple[float, float], needs_mask: bool, max_block_bytes: int) -> Level:
    """Return the smallest level that is not smaller than the raster of ``ratio`` image pixels per model pixel.

    ``needs_mask``: the level has a mask for all bands. Blocks of a level have at most ``max_block_bytes``.
    """
    whole = Level(None, dataset.RasterXSize, dataset.RasterYSize)
    if dataset.GetDriver().ShortName not in _DRIVERS or names_a_file(dataset) or max(ratio) <= 1.0:
        return whole
    bands = [dataset.GetRasterBand(number + 1) for number in range(dataset.RasterCount)]
    found = whole
    for index in range(min(band.GetOverviewCount() for band in bands)):
        overviews = [band.GetOverview(index) for band in bands]
        sizes = {(overview.XSize, overview.YSize) for overview in overviews}
        level = Level(index, *sizes.pop())
        width, height = found.width, found.height
        is_fine = all(
            step * of_level >= of_image * (1 - _ROUNDING)
            for step, of_level, of_image in zip(ratio, level[1:], whole[1:], strict=True)
        )
        is_sound = not sizes and _block_bytes(overviews) <= max_block_bytes
        has_mask = not needs_mask or bool(overviews[0].GetMaskFlags() & gdal.GMF_PER_DATASET)
        if is_fine and is_sound and has_mask and level.width * level.height < width * height:
            found = level
    return found


def _block_bytes(bands: list[Any]) -> int:
    """Return the bytes of a decoded block, all bands of it."""
    return sum(
        band.GetBlockSize()[0] * band.GetBlockSize()[1] * gdal.GetDataTypeSize(band.DataType) // 8 for band in bands
    )
