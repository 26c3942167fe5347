"""Values that GDAL returns: text and metadata as ``str``, also where the file is not UTF-8, and files in memory."""

import contextlib
import secrets
from collections.abc import Iterator
from typing import Any

import structlog
from osgeo import gdal

logger = structlog.get_logger(__name__)


def decoded(text: str | bytes | None) -> str:
    """Return text of a file, decoded as Latin-1 where it is not UTF-8.

    GDAL returns such text as bytes, or as ``str`` with surrogates, which its setters refuse.
    """
    if not isinstance(text, str):
        return (text or b"").decode("latin-1")
    raw = text.encode("utf-8", "surrogateescape")
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return raw.decode("latin-1")


def metadata_of(owner: Any, domain: str = "") -> dict[str, str]:
    """Return the metadata of a dataset or band in ``domain``; empty, with a warning, where GDAL cannot parse it.

    A picture with a damaged EXIF block has sound pixels.
    """
    try:
        items = owner.GetMetadata(domain) or {}
    except RuntimeError as err:
        logger.warning("image.metadata_unreadable", domain=domain, reason=str(err))
        return {}
    return {decoded(name): decoded(value) for name, value in items.items()}


@contextlib.contextmanager
def memory_folder() -> Iterator[str]:
    """Yield the path of a new folder in memory; the folder is deleted with its files afterwards."""
    folder = f"/vsimem/{secrets.token_hex(16)}"
    try:
        yield folder
    finally:
        with contextlib.suppress(RuntimeError):  # nothing was written
            gdal.RmdirRecursive(folder)


def read_memory_file(path: str) -> bytes:
    """Return the content of a file in memory; empty when the file does not exist."""
    status = gdal.VSIStatL(path, gdal.VSI_STAT_SIZE_FLAG)
    if status is None:
        return b""
    file = gdal.VSIFOpenL(path, "rb")
    try:
        return bytes(gdal.VSIFReadL(1, status.size, file))
    finally:
        gdal.VSIFCloseL(file)
