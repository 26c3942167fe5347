"""Temporary copies of images whose web server does not serve ranges.

GDAL reads windows of a file. A server that returns the whole file for each of them, as ``python -m http.server`` does,
is read once, to an unnamed temporary file.
"""

import contextlib
import re
import tempfile
import threading
import weakref
from collections import OrderedDict
from dataclasses import dataclass
from typing import IO

from urllib3 import BaseHTTPResponse

_MAX_COPIES = 4
_PIECE_BYTES = 1024 * 1024
_RANGE = re.compile(r"bytes=(\d+)-(\d*)$")
# Headers that differ between two versions of a file.
_VERSION = ("Content-Length", "ETag", "Last-Modified")

Version = tuple[str | None, ...]


@dataclass(frozen=True, eq=False)
class Copy:
    """A file on disk, and the version of the image that it holds."""

    file: IO[bytes]
    size_bytes: int
    version: Version


class HttpCopies:
    """The last copies, each of at most ``max_bytes``. Thread-safe."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._copies: OrderedDict[str, Copy] = OrderedDict()
        self._making: dict[str, threading.Lock] = {}
        self._lock = threading.Lock()

    def find(self, url: str) -> Copy | None:
        """Return the copy of the file at ``url``, or None."""
        with self._lock:
            if url in self._copies:
                self._copies.move_to_end(url)
            return self._copies.get(url)

    def make(self, url: str, response: BaseHTTPResponse) -> Copy | None:
        """Return a copy of the body of ``response``, or None without reading it where its size is unknown or too large.

        A copy that another thread makes at the same time is awaited instead. Raises HTTPError for a broken body and
        OSError when it cannot be stored.
        """
        size = response.headers.get("Content-Length", "")
        if not size.isdigit() or int(size) > self._max_bytes:
            return None
        with self._lock:
            making = self._making.setdefault(url, threading.Lock())
        try:
            with making:
                copy = self.find(url)
                if copy is not None:
                    response.close()
                    return copy
                copy = _copied(response)
                with self._lock:
                    self._copies[url] = copy
                    if len(self._copies) > _MAX_COPIES:
                        self._copies.popitem(last=False)
                return copy
        finally:
            with self._lock:
                self._making.pop(url, None)

    def forget_older(self, url: str, response: BaseHTTPResponse) -> None:
        """Forget the copy of another version than that of ``response``."""
        with self._lock:
            copy = self._copies.get(url)
            # A response to HEAD may lack some of the headers that identify a version.
            pairs = () if copy is None else zip(copy.version, _version_of(response), strict=True)
            if any(None not in pair and pair[0] != pair[1] for pair in pairs):
                del self._copies[url]


def requested_bytes(header: str, size_bytes: int) -> range | None:
    """Return the bytes of a file that a ``Range`` header requests; None for a form that GDAL does not use.

    The range is empty where it begins at or after the end of the file.
    """
    found = _RANGE.match(header)
    if not found:
        return None
    return range(int(found[1]), min(size_bytes, int(found[2]) + 1 if found[2] else size_bytes))


def _copied(response: BaseHTTPResponse) -> Copy:
    with contextlib.ExitStack() as opened:
        file = opened.enter_context(tempfile.TemporaryFile())
        for piece in response.stream(_PIECE_BYTES, decode_content=False):
            file.write(piece)
        file.flush()
        response.release_conn()
        copy = Copy(file, file.tell(), _version_of(response))
        # Other threads may still read a copy that is forgotten, so its file closes with the last reference.
        weakref.finalize(copy, opened.pop_all().close)
    return copy


def _version_of(response: BaseHTTPResponse) -> Version:
    return tuple(response.headers.get(name) for name in _VERSION)
