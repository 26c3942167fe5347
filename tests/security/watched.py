"""A web server and a directory that may not be touched, and that record each touch."""

import ctypes
import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from aws.osml.model_runner.local.stack.http_service import HttpRequest, HttpResponse, HttpService

_IN_OPEN = 0x20
_EVENT = struct.Struct("iIII")


class CanaryServer:
    """Answers every request with ``body`` and remembers it in ``hits``."""

    def __init__(self, body: bytes = b"") -> None:
        self.hits: list[str] = []
        self.body = body
        self._service = HttpService(self._answer)

    def __enter__(self) -> "CanaryServer":
        self._service.__enter__()
        return self

    def __exit__(self, *details: object) -> None:
        self._service.__exit__(None, None, None)

    @property
    def url(self) -> str:
        return self._service.url

    def _answer(self, request: HttpRequest) -> HttpResponse:
        self.hits.append(f"{request.method} {request.path}")
        return HttpResponse(body=b"" if request.method == "HEAD" else self.body, content_type="image/tiff")


class OpenedFiles:
    """The names of files that any process has opened in a directory since the last look; see inotify(7)."""

    def __init__(self, watch: int) -> None:
        self._watch = watch

    def names(self) -> set[str]:
        found = set()
        while data := _read(self._watch):
            offset = 0
            while offset < len(data):
                *_, length = _EVENT.unpack_from(data, offset)
                offset += _EVENT.size
                found.add(data[offset : offset + length].rstrip(b"\0").decode())
                offset += length
        return found - {""}


@contextmanager
def watching(directory: Path) -> Iterator[OpenedFiles]:
    """Watch the files of a directory, not those in directories below."""
    libc = ctypes.CDLL(None, use_errno=True)
    watch = libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
    assert libc.inotify_add_watch(watch, os.fsencode(directory), _IN_OPEN) > 0, os.strerror(ctypes.get_errno())
    try:
        yield OpenedFiles(watch)
    finally:
        os.close(watch)


def _read(watch: int) -> bytes:
    try:
        return os.read(watch, 65_536)
    except BlockingIOError:
        return b""
