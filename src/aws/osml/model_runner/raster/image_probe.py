"""Reads an image for the first time in a child process, so that a file that crashes or hangs GDAL ends the child alone.

A decoder may abort, or never return, on a file that is damaged with intent. In the worker that would take every job
along that runs beside it. The child opens the image as the worker will, reads its header and two tiles, and waits for
the next image; one that died is replaced. ``python -m`` runs this module as the child: settings, then one image a line.
"""

import dataclasses
import json
import os
import resource
import select
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import structlog

from aws.osml.model_runner.common.typing import ImageCoord, ImageDimensions, ImageRegion
from aws.osml.model_runner.exceptions import ModelRunnerError

from .exceptions import LoadImageException
from .handle_pool import AwsKeys
from .image_header import ImageHeader, check_limits, is_same, read_header
from .open import check_store, forget_remote, is_remote, open_dataset
from .sensor_model import UNREADABLE
from .settings import MIB, RasterSettings, configure_gdal
from .window import read_pixels

logger = structlog.get_logger(__name__)

_COMMAND = (sys.executable, "-m", "aws.osml.model_runner.raster.image_probe")
# So many children have to die of an image before it is given up: one may die of something else.
_MOST_DEATHS = 3
_MOST_IDLE = 1
_START_S = 60.0
_TILE_PX = 256
# Python, GDAL and their libraries, beside what GDAL's cache and the pieces of an image may take.
_OWN_BYTES = 768 * MIB
_DONE, _NO_MEMORY = "done", "memory"


class ImageProbe:
    """Reads images for the first time; any number of threads may ask at once, each of which gets a child of its own."""

    def __init__(self, settings: RasterSettings, timeout_s: float, command: Sequence[str] = _COMMAND) -> None:
        self._settings = settings
        self._timeout_s = timeout_s
        self._command = tuple(command)
        self._idle: list[_Child] = []
        self._is_closed = False
        self._lock = threading.Lock()

    def warm(self) -> None:
        """Start a child, so that the first image need not wait for it."""
        child = self._take()
        if child is not None:
            self._give_back(child)

    def check(self, path: str, url: str, keys: AwsKeys | None) -> None:
        """Raise LoadImageException where each child that reads the image dies of it, or takes too long or too much.

        Raise ImageUnreachableError where its store does not respond meanwhile. Any other error of an image is left to
        the opening that follows.
        """
        reason = ""
        for deaths in range(1, _MOST_DEATHS + 1):
            child = self._take()
            if child is None:
                return
            reason = child.read(path, url, keys, self._timeout_s)
            if not reason:
                self._give_back(child)
                return
            child.end()
            logger.warning("image.probe_died", deaths=deaths, reason=reason)
        if is_remote(path):
            # A store that does not respond takes time as well, and is not the image's fault.
            check_store(path, url, keys, None)
        raise LoadImageException(f"{url} cannot be read: reading its header and first tiles {reason}")

    def close(self) -> None:
        """End all children that read nothing; the others end when they are done."""
        with self._lock:
            self._is_closed = True
            idle, self._idle = self._idle, []
        for child in idle:
            child.end()

    def _take(self) -> "_Child | None":
        """Return an idle child, or a new one; None where there can be none, and images are opened without."""
        with self._lock:
            while self._idle:
                child = self._idle.pop()
                if child.is_alive:
                    return child
                child.end()
        try:
            return _Child(self._command, self._settings, self._timeout_s)
        except OSError as err:
            logger.warning("image.probe_missing", reason=str(err))
            return None

    def _give_back(self, child: "_Child") -> None:
        with self._lock:
            if not self._is_closed and len(self._idle) < _MOST_IDLE:
                self._idle.append(child)
                return
        child.end()


class _Child:
    """One child process, ready to read. Raises OSError when it cannot be started."""

    def __init__(self, command: Sequence[str], settings: RasterSettings, timeout_s: float) -> None:
        self._process = subprocess.Popen(  # noqa: S603 - this module's own command
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "OPENBLAS_NUM_THREADS": "1"},
            start_new_session=True,  # Ctrl-C reaches the worker alone, which ends its children
        )
        self._send({"settings": dataclasses.asdict(settings), "timeout_s": timeout_s})
        if self._received(_START_S) is None:
            self.end()
            raise OSError("the process that reads images first does not start")

    @property
    def is_alive(self) -> bool:
        return self._process.poll() is None

    def read(self, path: str, url: str, keys: AwsKeys | None, timeout_s: float) -> str:
        """Return what went wrong with the child, empty where it could read the image or say why not."""
        self._send({"path": path, "url": url, "keys": keys})
        outcome = self._received(timeout_s)
        if outcome == _DONE:
            return ""
        if outcome == _NO_MEMORY:
            return "takes too much memory"
        if outcome is None and self._is_running_on():
            return f"takes longer than {timeout_s:g} s"
        return f"ends its process by signal {-self._process.returncode}"

    def end(self) -> None:
        """Kill the child."""
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()

    def _is_running_on(self) -> bool:
        try:
            self._process.wait(1.0)
        except subprocess.TimeoutExpired:
            return True
        # The child ends itself by an alarm at the same time as it is given up.
        return self._process.returncode == -signal.SIGALRM

    def _send(self, message: Any) -> None:
        if self._process.stdin is None:
            raise AssertionError("a child has pipes")
        try:
            self._process.stdin.write(json.dumps(message).encode() + b"\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            pass  # it has died, which reading from it shows

    def _received(self, timeout_s: float) -> str | None:
        """Return what the child says, in a line that it writes at once; None where it says nothing in time."""
        pipe = self._process.stdout
        if pipe is None or not select.select([pipe], [], [], timeout_s)[0]:
            return None
        return pipe.readline().decode().strip() or None


def main() -> None:
    """Read the images that the parent names, one a line, until it closes the pipe or dies."""
    # Libraries may print, and would spoil what the parent reads.
    parent = os.dup(sys.stdout.fileno())
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    start = json.loads(sys.stdin.readline())
    settings = RasterSettings(**{name: _as_tuple(value) for name, value in start["settings"].items()})
    _limit_memory(settings)
    structlog.configure(logger_factory=structlog.ReturnLoggerFactory())
    configure_gdal(settings, os.environ)
    os.write(parent, b"ready\n")
    for line in sys.stdin:
        # Ends a child that hangs even where its parent has died meanwhile.
        signal.alarm(max(1, int(start["timeout_s"])))
        outcome = _read(settings, **json.loads(line))
        signal.alarm(0)
        os.write(parent, f"{outcome}\n".encode())


def _as_tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _limit_memory(settings: RasterSettings) -> None:
    hard = resource.getrlimit(resource.RLIMIT_DATA)[1]
    most_bytes = _OWN_BYTES + settings.cache_bytes + settings.curl_cache_bytes + 2 * settings.max_block_bytes
    most_bytes = most_bytes if hard == resource.RLIM_INFINITY else min(most_bytes, hard)
    resource.setrlimit(resource.RLIMIT_DATA, (most_bytes, most_bytes))


def _read(settings: RasterSettings, path: str, url: str, keys: list[str] | None) -> str:
    def opened() -> Any:
        return open_dataset(path, url, AwsKeys(*keys) if keys else None, settings)

    try:
        dataset = opened()
        check_limits(dataset, url, settings)
        header = read_header(dataset, None, settings)
        _read_tiles(dataset, header)
        # A worker cuts tiles of other handles too, which nobody asked for a header: GDAL may behave otherwise.
        other = opened()
        if is_same(other, header):
            _read_tiles(other, header)
    except MemoryError:
        return _NO_MEMORY
    except (*UNREADABLE, OSError, ModelRunnerError):
        return _DONE
    finally:
        forget_remote(path)
    return _DONE


def _read_tiles(dataset: Any, header: ImageHeader) -> None:
    """Read the first tile and the last one, whether the first can be read or not."""
    width, height = min(_TILE_PX, header.width), min(_TILE_PX, header.height)
    for row, col in ((0, 0), (header.height - height, header.width - width)):
        tile = ImageRegion(ImageCoord(row, col), ImageDimensions(width, height))
        with suppress(*UNREADABLE, OSError, ModelRunnerError):
            read_pixels(dataset, tile, header.data_type)


if __name__ == "__main__":
    main()
