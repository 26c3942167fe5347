"""Reads an image first in a child process, so that a file that crashes or hangs GDAL ends only the child.

A decoder may abort, or never return, on a file that is damaged with intent. In the worker that would end all other jobs
too. The child opens the image as the worker will, reads its header and two tiles, and waits for the next image. A child
that died is replaced. ``python -m`` runs this module as the child: settings, then one image a line.
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
from aws.osml.model_runner.exceptions import LoadImageException, ModelRunnerError

from .handle_pool import AwsKeys
from .image_header import ImageHeader, check_limits, is_same, read_header
from .open import check_store, forget_remote, is_remote, open_dataset
from .sensor_model import UNREADABLE
from .settings import MIB, RasterSettings, configure_gdal
from .window import read_pixels

logger = structlog.get_logger(__name__)

_COMMAND = (sys.executable, "-m", "aws.osml.model_runner.raster.image_probe")
# An image is refused after so many children died on it, because one child may die for another reason.
_MAX_DEATHS = 3
_MAX_IDLE = 1
_START_S = 60.0
_TILE_PX = 256
# Memory of Python, GDAL and their libraries, without GDAL's caches and the blocks of an image.
_OWN_BYTES = 768 * MIB
_DONE, _NO_MEMORY = "done", "memory"


class ImageProbe:
    """Reads images first in child processes. Thread-safe: each call of ``check`` uses its own child."""

    def __init__(self, settings: RasterSettings, timeout_s: float, command: Sequence[str] = _COMMAND) -> None:
        self._settings = settings
        self._timeout_s = timeout_s
        self._command = tuple(command)
        self._idle: list[_Child] = []
        self._is_closed = False
        self._lock = threading.Lock()

    def warm(self) -> None:
        """Start a child, so that the first image does not wait for the start."""
        child = self._take()
        if child is not None:
            self._give_back(child)

    def check(self, path: str, url: str, keys: AwsKeys | None) -> None:
        """Raise LoadImageException when each child that reads the image dies, takes too long or needs too much memory.

        Raises ImageUnreachableError when the image's store does not respond then. All other errors of an image are
        raised by the opening that follows.
        """
        reason = ""
        for deaths in range(1, _MAX_DEATHS + 1):
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
        """End all idle children; the others end when they are done."""
        with self._lock:
            self._is_closed = True
            idle, self._idle = self._idle, []
        for child in idle:
            child.end()

    def _take(self) -> "_Child | None":
        """Return an idle or a new child; None when it cannot be started: images are then opened without a probe."""
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
            if not self._is_closed and len(self._idle) < _MAX_IDLE:
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
            raise OSError("the process that reads images first did not start")

    @property
    def is_alive(self) -> bool:
        return self._process.poll() is None

    def read(self, path: str, url: str, keys: AwsKeys | None, timeout_s: float) -> str:
        """Return the reason for the child's failure; empty when the child read the image or handled its error."""
        self._send({"path": path, "url": url, "keys": keys})
        outcome = self._received(timeout_s)
        if outcome == _DONE:
            return ""
        if outcome == _NO_MEMORY:
            return "takes too much memory"
        if outcome is None:
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(1.0)
            # The child's own alarm fires at about the same time as the timeout.
            if self._process.returncode in (None, -signal.SIGALRM):
                return f"takes longer than {timeout_s:g} s"
        return f"ends its process by signal {-self._process.returncode}"

    def end(self) -> None:
        """Kill the child."""
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()

    def _send(self, message: Any) -> None:
        if self._process.stdin is None:
            raise AssertionError("the child was started without a pipe to its stdin")
        with suppress(BrokenPipeError):  # the child has died, which the following read detects
            self._process.stdin.write(json.dumps(message).encode() + b"\n")
            self._process.stdin.flush()

    def _received(self, timeout_s: float) -> str | None:
        """Return the line that the child writes at once; None after the timeout, or when the child has ended."""
        pipe = self._process.stdout
        if pipe is None or not select.select([pipe], [], [], timeout_s)[0]:
            return None
        return pipe.readline().decode().strip() or None


def main() -> None:
    """Read the images that the parent names, one a line, until it closes the pipe or dies."""
    # Libraries may print to stdout, so the pipe to the parent gets another descriptor.
    parent = os.dup(sys.stdout.fileno())
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    start = json.loads(sys.stdin.readline())
    # JSON holds the tuples of the settings as lists.
    values: dict[str, Any] = start["settings"]
    values = {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}
    settings = RasterSettings(**values)
    _limit_memory(settings)
    structlog.configure(logger_factory=structlog.ReturnLoggerFactory())
    configure_gdal(settings, os.environ)
    os.write(parent, b"ready\n")
    for line in sys.stdin:
        # The alarm ends a child that hangs, even when its parent has died.
        signal.alarm(max(1, int(start["timeout_s"])))
        outcome = _read(settings, **json.loads(line))
        signal.alarm(0)
        os.write(parent, f"{outcome}\n".encode())


def _limit_memory(settings: RasterSettings) -> None:
    hard = resource.getrlimit(resource.RLIMIT_DATA)[1]
    most_bytes = _OWN_BYTES + settings.cache_bytes + settings.curl_cache_bytes + 2 * settings.max_block_bytes
    most_bytes = most_bytes if hard == resource.RLIM_INFINITY else min(most_bytes, hard)
    resource.setrlimit(resource.RLIMIT_DATA, (most_bytes, most_bytes))


def _read(settings: RasterSettings, path: str, url: str, keys: list[Any] | None) -> str:
    def opened() -> Any:
        return open_dataset(path, url, AwsKeys(*keys) if keys else None, settings)

    try:
        dataset = opened()
        check_limits(dataset, url, settings)
        header = read_header(dataset, None, settings)
        _read_tiles(dataset, header)
        # A worker also reads tiles from handles whose header was not read. GDAL may behave differently there.
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
    """Read the first tile and the last tile, even if the first cannot be read."""
    width, height = min(_TILE_PX, header.width), min(_TILE_PX, header.height)
    for row, col in ((0, 0), (header.height - height, header.width - width)):
        tile = ImageRegion(ImageCoord(row, col), ImageDimensions(width, height))
        with suppress(*UNREADABLE, OSError, ModelRunnerError):
            read_pixels(dataset, tile, header.data_type)


if __name__ == "__main__":
    main()
