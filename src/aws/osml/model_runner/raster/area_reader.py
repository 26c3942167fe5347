"""Reads a file of areas, such as a region of interest, from where images may be read.

The worker copies the file, and a child process parses it, within limits of memory and time. So a hostile file ends only
that process. ``python -m`` runs this module as the child: the file is its standard input.
"""

import hashlib
import os
import resource
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from typing import IO, Any, NamedTuple

import shapely
from osgeo import gdal
from shapely.geometry import MultiPolygon, Polygon

from aws.osml.model_runner.exceptions import ImageUnreachableError, LoadImageException

from .area_files import MAX_AREA_VERTICES, AreaFileError, area_of
from .handle_pool import AwsKeys
from .open import check_store, entity_tag, forget_remote, refuse_odd_path, signing_with
from .patient_reads import PatientReads
from .settings import MIB, RasterSettings
from .transfers import TransferWatch

MAX_AREA_BYTES = 64 * MIB
MAX_AREA_S = 60.0
# A list of lists of numbers takes twenty times the bytes of its JSON.
MAX_MEMORY_BYTES = 1536 * MIB
_PIECE_BYTES = MIB
# Two numbers for each vertex; long edges of projected areas are divided, up to as many again.
_MAX_WKB_BYTES = 4 * 16 * MAX_AREA_VERTICES
_COMMAND = (sys.executable, "-m", "aws.osml.model_runner.raster.area_reader")
_REFUSED = 2


class AreaFile(NamedTuple):
    """An area in longitude and latitude, and the SHA-256 of its file in hexadecimal."""

    area: Polygon | MultiPolygon
    sha256: str


class AreaReader:
    """Reads areas, one at a time, and remembers the last one while its file does not change. Thread-safe."""

    def __init__(
        self,
        settings: RasterSettings,
        sleep: Callable[[float], object] = time.sleep,
        timeout_s: float = MAX_AREA_S,
        command: Sequence[str] = _COMMAND,
    ) -> None:
        self._settings = settings
        self._sleep = sleep
        self._timeout_s = timeout_s
        self._command = tuple(command)
        self._lock = threading.Lock()
        self._last: tuple[str, str, AreaFile] | None = None

    def read(self, path: str, url: str, keys: AwsKeys | None) -> AreaFile:
        """Return the area of the file that GDAL reads at ``path``; ``url`` is its name in messages.

        Raises:
            LoadImageException: missing, forbidden, too large, or not a file of polygons.
            ImageUnreachableError: its store does not respond.
        """
        with self._lock:
            refuse_odd_path(path, url, self._settings)
            # The request proves that these keys may read the file.
            tag = entity_tag(path, url, keys)
            if self._last is not None and tag is not None and self._last[:2] == (url, tag):
                return self._last[2]
            self._last = None
            with tempfile.TemporaryFile() as copy:
                digest = self._copied(path, url, keys, copy)
                found = AreaFile(self._parsed(copy, url), digest)
            if tag is not None:
                self._last = (url, tag, found)
            return found

    def _copied(self, path: str, url: str, keys: AwsKeys | None, copy: IO[bytes]) -> str:
        """Copy the file, and return its SHA-256."""

        def attempt(transfers: TransferWatch) -> str:
            copy.seek(0)
            copy.truncate()
            forget_remote(path)
            with signing_with(keys):
                digest = _copy(path, url, copy)
            transfers.check(is_header=True)
            return digest

        reads = PatientReads(path, url, self._settings, lambda: check_store(path, url, keys, None), self._sleep)
        try:
            return reads.read(attempt)
        finally:
            forget_remote(path)

    def _parsed(self, copy: IO[bytes], url: str) -> Any:
        copy.seek(0)
        try:
            done = subprocess.run(  # noqa: S603 - this module's own command
                self._command,
                stdin=copy,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                # It reads no store, so it gets no credentials.
                env={name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
                | {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"},
                timeout=self._timeout_s,
                check=False,
                start_new_session=True,  # Ctrl-C reaches the worker alone, which ends its children
            )
        except subprocess.TimeoutExpired as err:
            raise LoadImageException(f"{url} must be simpler: it takes longer than {self._timeout_s:g} s") from err
        except OSError as err:
            raise ImageUnreachableError(f"{url} cannot be parsed now: {err}") from err
        if done.returncode == _REFUSED:
            raise LoadImageException(f"{url} must be {done.stdout.decode(errors='replace')}")
        if done.returncode or len(done.stdout) > _MAX_WKB_BYTES:
            raise LoadImageException(f"{url} must be simpler: parsing it takes too much memory, or ends its process")
        return shapely.from_wkb(done.stdout)


def _copy(path: str, url: str, copy: IO[bytes]) -> str:
    file = gdal.VSIFOpenExL(path, "rb", 1)
    if file is None:
        raise LoadImageException(f"{url} does not exist, or may not be read: {gdal.VSIGetLastErrorMsg()}")
    digest, size = hashlib.sha256(), 0
    try:
        while piece := gdal.VSIFReadL(1, _PIECE_BYTES, file):
            size += len(piece)
            if size > MAX_AREA_BYTES:
                raise LoadImageException(f"{url} must be a file of at most {MAX_AREA_BYTES} bytes")
            digest.update(piece)
            copy.write(piece)
    finally:
        gdal.VSIFCloseL(file)
    copy.flush()
    return digest.hexdigest()


def main() -> int:
    """Write the area of the file on standard input as WKB to standard output, or an error's text."""
    # Libraries may print to stdout, so the result gets another descriptor.
    output = os.dup(sys.stdout.fileno())
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    hard = resource.getrlimit(resource.RLIMIT_DATA)[1]
    limit = MAX_MEMORY_BYTES if hard == resource.RLIM_INFINITY else min(MAX_MEMORY_BYTES, hard)
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    # The alarm ends a child that hangs, even when its parent has died.
    signal.alarm(int(2 * MAX_AREA_S))
    gdal.UseExceptions()
    try:
        result, status = shapely.to_wkb(area_of(sys.stdin.buffer.read())), 0
    except AreaFileError as err:
        result, status = str(err).encode(errors="replace"), _REFUSED
    with os.fdopen(output, "wb") as pipe:
        pipe.write(result)
    return status


if __name__ == "__main__":
    sys.exit(main())
