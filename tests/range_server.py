"""An HTTP server of files in memory that serves ranges as S3 does, and breaks off where a test requires it."""

import contextlib
import re
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

_RANGE = re.compile(r"bytes=(\d+)-(\d*)$")


@dataclass(frozen=True)
class Request:
    """A request that is about to be answered: bytes ``start`` to ``stop``, half-open; ``number`` counts from 0."""

    number: int
    method: str
    path: str
    start: int
    stop: int


@dataclass(frozen=True)
class Fault:
    """How an answer goes wrong.

    ``status`` instead of the content; ``close`` the connection unanswered; ``sent`` bytes of the body at most (a
    negative number counts from its end), after which the connection is reset or closed. With ``is_announced`` the
    headers announce the short body as if it were whole. ``wait_s`` before all this.
    """

    status: int | None = None
    close: bool = False
    sent: int | None = None
    is_reset: bool = True
    is_announced: bool = False
    wait_s: float = 0.0


Faults = Callable[[Request], Fault | None]


@dataclass
class RangeServer:
    """``files`` by path, such as ``/bucket/key``; ``faults`` decides how each request goes wrong, None for not at all.

    Use it as a context manager. ``requests`` lists the received requests, in order.
    """

    files: dict[str, bytes] = field(default_factory=dict)
    faults: Faults = lambda _request: None
    requests: list[Request] = field(default_factory=list)
    _server: Any = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def gets(self) -> list[Request]:
        return [request for request in self.requests if request.method == "GET"]

    @contextlib.contextmanager
    def failing(self, faults: Faults) -> Iterator[None]:
        """Go wrong in this way for the length of a ``with`` block."""
        before, self.faults = self.faults, faults
        try:
            yield
        finally:
            self.faults = before

    def __enter__(self) -> "RangeServer":
        lock = threading.Lock()

        class Handler(_Handler):
            files = self.files

            def note(_handler, method: str, path: str, start: int, stop: int) -> Fault | None:
                with lock:
                    request = Request(len(self.requests), method, path, start, stop)
                    self.requests.append(request)
                    return self.faults(request)

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    files: dict[str, bytes]

    def note(self, method: str, path: str, start: int, stop: int) -> Fault | None:
        raise NotImplementedError

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def log_message(self, *_: Any) -> None:
        pass

    def _answer(self) -> None:
        path = self.path.partition("?")[0]
        content = self.files.get(path)
        start, stop, is_part = self._range(len(content or b""))
        fault = self.note(self.command, path, start, stop) or Fault()
        time.sleep(fault.wait_s)
        if fault.close:
            self.close_connection = True
            return
        if fault.status or content is None:
            self._send(fault.status or 404, b"", {})
            return
        if is_part and start >= len(content):
            self._send(416, b"", {"Content-Range": f"bytes */{len(content)}"})
            return
        headers = {"ETag": f'"{hash(content) & 0xFFFFFFFF:x}"', "Accept-Ranges": "bytes"}
        if is_part:
            headers["Content-Range"] = f"bytes {start}-{stop - 1}/{len(content)}"
        self._send(206 if is_part else 200, content[start:stop], headers, fault)

    def _range(self, size: int) -> tuple[int, int, bool]:
        found = _RANGE.match(self.headers.get("Range", ""))
        if not found:
            return 0, size, False
        return int(found[1]), min(size, int(found[2]) + 1 if found[2] else size), True

    def _send(self, status: int, body: bytes, headers: dict[str, str], fault: Fault | None = None) -> None:
        fault = fault or Fault()
        part = body if fault.sent is None else body[: fault.sent]
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(part if fault.is_announced else body)))
        self.end_headers()
        if self.command == "HEAD":
            return
        # A reader that gave up has hung up.
        with contextlib.suppress(ConnectionError):
            self.wfile.write(part)
        if len(part) < len(body) and not fault.is_announced:
            self.wfile.flush()
            if fault.is_reset:
                # So that close() sends RST, which also throws away what the reader has not taken yet.
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.close_connection = True
            with contextlib.suppress(OSError):
                self.connection.close() if fault.is_reset else self.connection.shutdown(socket.SHUT_RDWR)
