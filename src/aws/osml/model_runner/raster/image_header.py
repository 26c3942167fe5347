"""Header of an image, the check that a worker can process it, and the memory and handles that it needs."""

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from osgeo import gdal

from aws.osml.model_runner.exceptions import LoadImageException

from .gdal_values import metadata_of
from .open import refuse_excess
from .sensor_model import build_sensor_model
from .settings import RasterSettings
from .tile_formats import PLAIN_SAMPLES, Samples

# Names of formats in messages and tables. Other formats have the name of GDAL's driver.
_EXTENSIONS = {"GTIFF": "TIFF", "JP2OPENJPEG": "JP2"}
# Tiles are rarely taller than this.
_TILE_PX = 1024


@dataclass(frozen=True)
class ImageHeader:
    """Properties of an image, read once.

    ``data_type`` is GDAL's name of the smallest pixel type that holds every band. ``block_size`` is (width, height) in
    pixels of the blocks that the file is stored in. ``image_count`` is the number of image segments of a NITF, or pages
    of a TIFF; the header is that of the first.
    """

    width: int
    height: int
    band_count: int
    data_type: str
    driver_name: str
    block_size: tuple[int, int]
    metadata: Mapping[str, str]
    sensor_model: Any | None
    etag: str | None
    geo_transform: tuple[float, ...] | None = None
    samples: Samples = PLAIN_SAMPLES
    image_count: int = 1

    @property
    def extension(self) -> str:
        """Name of the file's format in messages: ``TIFF``, ``NITF``, ``PNG``, ``JPEG``, ``JP2``."""
        return _EXTENSIONS.get(self.driver_name, self.driver_name)


def check_limits(dataset: Any, url: str, settings: RasterSettings) -> None:
    """Check the header against the limits of the settings.

    Raises LoadImageException that names the exceeded limit.
    """
    width, height, bands = dataset.RasterXSize, dataset.RasterYSize, dataset.RasterCount
    if bands == 0:
        raise LoadImageException(f"{url} does not hold an image")
    for name, value, limit, setting in (
        ("width in pixels", width, settings.max_side_px, "MAX_IMAGE_SIDE"),
        ("height in pixels", height, settings.max_side_px, "MAX_IMAGE_SIDE"),
        ("number of pixels", width * height, settings.max_pixels, "MAX_IMAGE_PIXELS"),
        ("number of bands", bands, settings.max_bands, "MAX_IMAGE_BANDS"),
        ("block in bytes", _block_bytes(dataset), settings.max_block_bytes, "MAX_BLOCK_BYTES"),
    ):
        refuse_excess(url, name, value, limit, setting)


def _block_bytes(dataset: Any) -> int:
    """Return the memory of one decoded block; with pixel interleave it holds every band."""
    band = dataset.GetRasterBand(1)
    block_width, block_height = band.GetBlockSize()
    is_interleaved = dataset.GetMetadataItem("INTERLEAVE", "IMAGE_STRUCTURE") == "PIXEL"
    bytes_per_pixel = gdal.GetDataTypeSize(band.DataType) // 8
    return int(block_width * block_height * bytes_per_pixel * (dataset.RasterCount if is_interleaved else 1))


def handle_limit(dataset: Any, is_remote: bool, settings: RasterSettings) -> int:
    """Return the number of handles of an image whose decoding buffers together fit into the size of the cache.

    Each handle keeps one decoded block beside the cache. A progressive JPEG is one block, with two bytes per
    coefficient; every JPEG counts as progressive, because GDAL does not report it.

    A remote GeoTIFF gets at most half of ``max_handles``. For it, GDAL fetches all blocks of a read at once and
    bypasses the shared cache of fetched bytes. So each handle fetches the blocks that two tiles share.
    """
    driver, block_bytes = dataset.GetDriver().ShortName, _block_bytes(dataset)
    if driver == "JPEG":
        block_bytes = 2 * dataset.RasterXSize * dataset.RasterYSize * dataset.RasterCount
    limit = settings.cache_bytes // max(1, block_bytes)
    if driver == "GTiff" and is_remote:
        limit = min(limit, settings.max_handles // 2)
    return max(1, limit)


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


def grow_block_cache(header: ImageHeader, settings: RasterSettings, is_remote: bool) -> None:
    """Let GDAL's cache of blocks grow to the size that an image needs, within the settings.

    It never shrinks, because other images use it. It does not get the allowed size at once: any large image would fill
    it, mostly with blocks that no tile reads again.

    For a remote image, the blocks that neighbouring regions share stay as well. Otherwise they are fetched again.
    """
    wanted = min(settings.cache_bytes, shared_bytes(header, settings) * (2 if is_remote else 1))
    if wanted > gdal.GetCacheMax():
        gdal.SetCacheMax(wanted)


def read_header(dataset: Any, etag: str | None, settings: RasterSettings) -> ImageHeader:
    """Return the header of a dataset; ``etag`` identifies the version of its file."""
    bands = [dataset.GetRasterBand(number + 1) for number in range(dataset.RasterCount)]
    block_width, block_height = bands[0].GetBlockSize()
    smallest_type = functools.reduce(gdal.DataTypeUnion, [band.DataType for band in bands])
    driver = dataset.GetDriver().ShortName
    # The image segments of a NITF, or the pages of a TIFF. Their overviews and masks are not listed.
    parts = metadata_of(dataset, "SUBDATASETS") if driver in ("NITF", "GTiff") else {}
    return ImageHeader(
        width=dataset.RasterXSize,
        height=dataset.RasterYSize,
        band_count=dataset.RasterCount,
        data_type=str(gdal.GetDataTypeName(smallest_type)),
        driver_name=driver.upper(),
        block_size=(block_width, block_height),
        metadata=metadata_of(dataset),
        sensor_model=build_sensor_model(dataset, settings),
        etag=etag,
        geo_transform=dataset.GetGeoTransform(can_return_null=True),
        samples=_samples(bands),
        image_count=max(1, sum(name.endswith("_NAME") for name in parts)),
    )


def is_same(dataset: Any, header: ImageHeader) -> bool:
    """Return whether a dataset has the size, geotransform and metadata of ``header``."""
    size = dataset.RasterXSize, dataset.RasterYSize, dataset.RasterCount
    return (
        size == (header.width, header.height, header.band_count)
        and dataset.GetGeoTransform(can_return_null=True) == header.geo_transform
        and metadata_of(dataset) == header.metadata
    )


def _samples(bands: Sequence[Any]) -> Samples:
    stored_bits = []
    for band in bands:
        bits = band.GetMetadataItem("NBITS", "IMAGE_STRUCTURE") or ""
        stored_bits.append(int(bits) if bits.isdigit() else int(gdal.GetDataTypeSize(band.DataType)))
    palettes = [table.GetCount() for band in bands if (table := band.GetColorTable()) is not None]
    is_signed = any(band.GetMetadataItem("PIXELTYPE", "IMAGE_STRUCTURE") == "SIGNEDBYTE" for band in bands)
    return Samples(min(stored_bits), max(palettes, default=0), is_signed)
