"""Header of an image, and the check that a worker can process it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from osgeo import gdal

from .exceptions import LoadImageException
from .gdal_text import metadata_of
from .open import refuse_excess
from .sensor_model import build_sensor_model
from .settings import RasterSettings
from .tile_formats import PLAIN_SAMPLES, Samples

# The words that messages and tables use for a driver's files; other drivers go by their own name.
_EXTENSIONS = {"GTIFF": "TIFF", "JP2OPENJPEG": "JP2"}


@dataclass(frozen=True)
class ImageHeader:
    """Properties of an image, read once.

    ``data_type`` is GDAL's name of the pixel type that holds every band; ``block_size`` is (width, height) in pixels of
    the pieces that the file is stored in. ``image_count`` is the number of images in the file; this is the first.
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
        """The kind of file as messages name it: ``TIFF``, ``NITF``, ``PNG``, ``JPEG``, ``JP2``."""
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
    """Return the memory that one stored piece takes when decoded; with pixel interleave it holds every band."""
    band = dataset.GetRasterBand(1)
    block_width, block_height = band.GetBlockSize()
    is_interleaved = dataset.GetMetadataItem("INTERLEAVE", "IMAGE_STRUCTURE") == "PIXEL"
    bytes_per_pixel = gdal.GetDataTypeSize(band.DataType) // 8
    return int(block_width * block_height * bytes_per_pixel * (dataset.RasterCount if is_interleaved else 1))


def handle_limit(dataset: Any, is_remote: bool, settings: RasterSettings) -> int:
    """Return the number of handles of an image whose decoding buffers together fit into the size of the cache.

    Each handle keeps one decoded piece beside the cache. A progressive JPEG is one piece, with two bytes per
    coefficient; every JPEG counts as progressive, because GDAL does not report it.

    A remote GeoTIFF gets at most half of ``max_handles``. For it, GDAL fetches all blocks of a read at once and
    bypasses the shared cache of fetched bytes. So each handle fetches the blocks that two tiles share.
    """
    driver, piece_bytes = dataset.GetDriver().ShortName, _block_bytes(dataset)
    if driver == "JPEG":
        piece_bytes = 2 * dataset.RasterXSize * dataset.RasterYSize * dataset.RasterCount
    limit = settings.cache_bytes // max(1, piece_bytes)
    if driver == "GTiff" and is_remote:
        limit = min(limit, settings.max_handles // 2)
    return max(1, limit)


def read_header(dataset: Any, etag: str | None, settings: RasterSettings) -> ImageHeader:
    """Return the header of a dataset; ``etag`` identifies the version of its file."""
    block_width, block_height = dataset.GetRasterBand(1).GetBlockSize()
    return ImageHeader(
        width=dataset.RasterXSize,
        height=dataset.RasterYSize,
        band_count=dataset.RasterCount,
        data_type=_data_type(dataset),
        driver_name=dataset.GetDriver().ShortName.upper(),
        block_size=(block_width, block_height),
        metadata=metadata_of(dataset),
        sensor_model=build_sensor_model(dataset, settings),
        etag=etag,
        geo_transform=dataset.GetGeoTransform(can_return_null=True),
        samples=_samples(dataset),
        image_count=_image_count(dataset),
    )


def is_same(dataset: Any, header: ImageHeader) -> bool:
    """Return whether a dataset has the size, geotransform and metadata of ``header``."""
    size = dataset.RasterXSize, dataset.RasterYSize, dataset.RasterCount
    return (
        size == (header.width, header.height, header.band_count)
        and dataset.GetGeoTransform(can_return_null=True) == header.geo_transform
        and metadata_of(dataset) == header.metadata
    )


def _data_type(dataset: Any) -> str:
    """Return the name of the smallest type that holds every band."""
    union = dataset.GetRasterBand(1).DataType
    for number in range(2, dataset.RasterCount + 1):
        union = gdal.DataTypeUnion(union, dataset.GetRasterBand(number).DataType)
    return str(gdal.GetDataTypeName(union))


def _samples(dataset: Any) -> Samples:
    bands = [dataset.GetRasterBand(number + 1) for number in range(dataset.RasterCount)]
    bits = [_bits(band) for band in bands]
    palettes = [table.GetCount() for band in bands if (table := band.GetColorTable()) is not None]
    is_signed = any(band.GetMetadataItem("PIXELTYPE", "IMAGE_STRUCTURE") == "SIGNEDBYTE" for band in bands)
    return Samples(min(bits), max(palettes, default=0), is_signed)


def _bits(band: Any) -> int:
    """Return how many bits the file stores per sample."""
    bits = band.GetMetadataItem("NBITS", "IMAGE_STRUCTURE") or ""
    return int(bits) if bits.isdigit() else int(gdal.GetDataTypeSize(band.DataType))


def _image_count(dataset: Any) -> int:
    """Return how many image segments a NITF has, or pages a TIFF; their overviews and masks do not count."""
    if dataset.GetDriver().ShortName not in ("NITF", "GTiff"):
        return 1
    names = metadata_of(dataset, "SUBDATASETS")
    return max(1, sum(name.endswith("_NAME") for name in names))
