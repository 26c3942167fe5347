"""Files in GDAL's memory file system that never outlive their use and never meet another thread's."""

import contextlib
import secrets
from collections.abc import Iterator

from osgeo import gdal


@contextlib.contextmanager
def memory_folder() -> Iterator[str]:
    """Yield the path of a folder of one's own in memory; it goes with everything in it."""
    folder = f"/vsimem/{secrets.token_hex(16)}"
    try:
        yield folder
    finally:
        with contextlib.suppress(RuntimeError):  # nothing was written
            gdal.RmdirRecursive(folder)


def read_memory_file(path: str) -> bytes:
    """Return the content of a file in memory; empty when there is none."""
    status = gdal.VSIStatL(path, gdal.VSI_STAT_SIZE_FLAG)
    if status is None:
        return b""
    file = gdal.VSIFOpenL(path, "rb")
    try:
        return bytes(gdal.VSIFReadL(1, status.size, file))
    finally:
        gdal.VSIFCloseL(file)
