"""Files in GDAL's memory file system, each in a folder that one caller uses and that is deleted afterwards."""

import contextlib
import secrets
from collections.abc import Iterator

from osgeo import gdal


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
