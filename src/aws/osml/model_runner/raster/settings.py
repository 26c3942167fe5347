"""Configuration of GDAL for a worker: caches of a known size, no reads of neighbouring files, nothing on stderr."""

import functools
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import urlsplit

import structlog
from osgeo import gdal

from .transfers import record_message

logger = structlog.get_logger(__name__)

MIB = 1024 * 1024

# Enough for any image in blocks of usual size; see ``grow_block_cache`` for others.
FIRST_CACHE_BYTES = 64 * MIB

# Besides the allowed formats, a worker needs MEM for a tile's pixels and may find its elevation data in DTED or
# SRTM files. All other drivers are deregistered, because GDAL opens overviews and masks with any registered driver. A
# file beside the image, or a file that its metadata names, may be a VRT that leads anywhere.
_INTERNAL_DRIVERS = ("MEM", "DTED", "SRTMHGT")


@dataclass(frozen=True)
class RasterSettings:
    """Limits of each image, and the memory that GDAL may use for all images together.

    ``cache_bytes`` bounds the decoded blocks of all open images; ``curl_cache_bytes`` bounds the bytes fetched from S3
    and HTTP. ``vsi_cache_bytes`` is per open file and comes on top of both; 0 leaves it off. It is not needed, because
    the system caches local files and the fetch cache holds remote files. The limits refuse an image before a pixel of
    it is read.
    ``directories`` are the allowed roots of local files, and an empty tuple allows any. ``region_width_px`` and
    ``regions_at_once`` determine how much of the cache is needed.

    GDAL repeats a failed request ``http_max_retries`` times. ``http_timeout_s`` bounds a whole body, and
    ``http_stall_s`` the time without any byte. A read that still fails is repeated, see ``patient_reads``.
    An image of a web server without ranges is copied to a temporary file of at most ``max_copy_bytes``.
    """

    cache_bytes: int = 256 * MIB
    curl_cache_bytes: int = 64 * MIB
    curl_chunk_bytes: int = 16 * 1024
    vsi_cache_bytes: int = 0
    http_timeout_s: int = 30
    http_stall_s: int = 15
    http_max_retries: int = 2
    http_retry_delay_s: float = 0.5
    read_tries: int = 4
    read_retry_delay_s: float = 0.5
    read_patience_s: float = 30.0
    allowed_drivers: tuple[str, ...] = ("GTiff", "NITF", "PNG", "JPEG", "JP2OpenJPEG")
    max_handles: int = 4
    region_width_px: int = 10240
    regions_at_once: int = 2
    max_side_px: int = 2**20
    max_pixels: int = 10**12
    max_bands: int = 64
    max_block_bytes: int = 256 * MIB
    max_tile_bytes: int = 256 * MIB
    max_xml_bytes: int = 8 * MIB
    max_copy_bytes: int = 256 * MIB
    directories: tuple[str, ...] = ()


def gdal_options(settings: RasterSettings, environ: Mapping[str, str]) -> dict[str, str]:
    """Return every configuration option that GDAL gets, by name."""
    return {
        # A cached listing hides objects uploaded later, and a file beside the image must not change its meaning.
        "GDAL_DISABLE_READDIR_ON_OPEN": "EMPTY_DIR",
        "GDAL_PAM_ENABLED": "NO",
        "GDAL_VRT_ENABLE_PYTHON": "NO",
        # The pipeline has a thread per core already.
        "GDAL_NUM_THREADS": "1",
        "GDAL_CACHEMAX": str(min(FIRST_CACHE_BYTES, settings.cache_bytes)),
        "VSI_CACHE": "YES" if settings.vsi_cache_bytes else "NO",
        "VSI_CACHE_SIZE": str(settings.vsi_cache_bytes),
        # Stored bytes that one read fetches at once: enough for a strip of tiles and all blocks that it touches. A
        # larger read fetches its blocks one after the other.
        "GDAL_MAX_RAW_BLOCK_CACHE_SIZE": str(32 * MIB),
        "CPL_VSIL_CURL_CHUNK_SIZE": str(settings.curl_chunk_bytes),
        "CPL_VSIL_CURL_CACHE_SIZE": str(settings.curl_cache_bytes),
        "GDAL_HTTP_TIMEOUT": str(settings.http_timeout_s),
        "GDAL_HTTP_CONNECTTIMEOUT": str(min(10, settings.http_timeout_s)),
        "GDAL_HTTP_LOW_SPEED_TIME": str(settings.http_stall_s),
        "GDAL_HTTP_LOW_SPEED_LIMIT": "1",
        "GDAL_HTTP_MAX_RETRY": str(settings.http_max_retries),
        "GDAL_HTTP_RETRY_DELAY": str(settings.http_retry_delay_s),
        "CPL_DEBUG": "OFF",
        # GDAL looks for credentials under a handler of its own, which passes messages of libcurl on to its log.
        "CPL_LOG": os.devnull,
        **_endpoint_options(environ),
    }


def _endpoint_options(environ: Mapping[str, str]) -> dict[str, str]:
    """Return the options that send /vsis3 to boto3's endpoint; empty without one, or where GDAL's variable is set."""
    url = environ.get("AWS_ENDPOINT_URL_S3") or environ.get("AWS_ENDPOINT_URL")
    if not url or environ.get("AWS_S3_ENDPOINT"):
        return {}
    parts = urlsplit(url)
    return {
        "AWS_S3_ENDPOINT": parts.netloc + parts.path.rstrip("/"),
        "AWS_HTTPS": "YES" if parts.scheme == "https" else "NO",
        "AWS_VIRTUAL_HOSTING": environ.get("AWS_VIRTUAL_HOSTING", "FALSE"),
    }


def configure_gdal(settings: RasterSettings, environ: Mapping[str, str]) -> None:
    """Set GDAL up for this process: options, exceptions instead of error codes, messages as log events.

    Call it once per process, before the first image is opened and before threads start. Another call applies the
    options again and is harmless.
    """
    for name, value in gdal_options(settings, environ).items():
        gdal.SetConfigOption(name, value)
    # GDAL reads the option only at the first use of the cache.
    gdal.SetCacheMax(min(FIRST_CACHE_BYTES, settings.cache_bytes))
    for driver in [gdal.GetDriver(index) for index in range(gdal.GetDriverCount())]:
        if driver.ShortName not in (*settings.allowed_drivers, *_INTERNAL_DRIVERS):
            driver.Deregister()
    _log_messages_and_raise_errors()


@functools.lru_cache(maxsize=1)
def _log_messages_and_raise_errors() -> None:
    # Exceptions mode adds its own handler above, which forwards all messages except errors. So this one is set first.
    gdal.DontUseExceptions()
    gdal.SetErrorHandler(log_gdal_message)
    gdal.UseExceptions()


def log_gdal_message(error_class: int, number: int, message: str) -> None:
    """Log one of GDAL's messages, without query strings, because presigned URLs carry secrets there."""
    if record_message(error_class, message):
        return
    text = re.sub(r"\?\S*", "?[cut]", message)
    if error_class >= gdal.CE_Failure:
        logger.warning("gdal.error", number=number, message=text)
    elif error_class == gdal.CE_Warning:
        logger.info("gdal.warning", number=number, message=text)
    else:
        logger.debug("gdal.debug", message=text)
