"""A small threaded HTTP/1.1 server for loopback: connections stay open, and each answer leaves in one packet."""

import socket
import sys
import threading
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Self
from urllib.parse import parse_qsl, urlsplit

from .environment import LOOPBACK

IDLE_TIMEOUT_S = 120
SHUTDOWN_POLL_S = 0.05


@dataclass(frozen=True)
class HttpRequest:
    """What a client sent. Header names are lower case; ``path`` has no query."""

    method: str
    path: str
    query: Mapping[str, str]
    headers: Mapping[str, str]
    body: bytes


@dataclass(frozen=True)
class HttpResponse:
    """What goes back; Content-Length is added."""

    status: int = 200
    body: bytes = b""
    content_type: str = "application/json"
    headers: Mapping[str, str] = field(default_factory=dict)


class HttpService:
    """Serves ``answer`` on a loopback port while its ``with`` block runs; one thread per connection.

    ``port`` 0 takes a free one; ``url`` is known inside the block.
    """

    def __init__(self, answer: Callable[[HttpRequest], HttpResponse], port: int = 0, host: str = LOOPBACK) -> None:
        self.url = ""
        self._answer = answer
        self._address = (host, port)
        self._running = ExitStack()

    def __enter__(self) -> Self:
        server = _Server(self._address, self._answer)
        self.url = f"http://{self._address[0]}:{server.server_address[1]}"
        thread = threading.Thread(target=server.serve_forever, args=(SHUTDOWN_POLL_S,), daemon=True)
        thread.start()
        for end in (server.server_close, thread.join, server.shutdown):
            self._running.callback(end)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._running.close()


class _Server(ThreadingHTTPServer):
    daemon_threads = False  # server_close then waits for the handlers, whose connections it has shut
    request_queue_size = 256

    def __init__(self, address: tuple[str, int], answer: Callable[[HttpRequest], HttpResponse]) -> None:
        self.answer = answer
        self._connections: set[socket.socket] = set()
        self._connections_lock = threading.Lock()
        super().__init__(address, _Handler)

    def process_request(self, request: Any, client_address: Any) -> None:
        with self._connections_lock:
            self._connections.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        with self._connections_lock:
            self._connections.discard(request)
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Keep quiet about clients that hang up; anything else is the server's fault and is shown."""
        if not _is_hang_up():
            super().handle_error(request, client_address)

    def server_close(self) -> None:
        with self._connections_lock:
            for connection in self._connections:
                _shut(connection)
        super().server_close()


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    timeout = IDLE_TIMEOUT_S

    def _serve(self) -> None:
        parts = urlsplit(self.path)
        request = HttpRequest(
            method=self.command,
            path=parts.path,
            query=dict(parse_qsl(parts.query)),
            headers={name.lower(): value for name, value in self.headers.items()},
            body=self._read_body(),
        )
        self._write(self.server.answer(request))

    do_GET = do_POST = do_PUT = do_DELETE = do_HEAD = _serve  # noqa: N815 - names that http.server calls

    def _read_body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() == "chunked":
            return b"".join(self._read_chunks())
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def _read_chunks(self) -> list[bytes]:
        chunks = []
        while size := int(self.rfile.readline().split(b";")[0] or b"0", 16):
            chunks.append(self.rfile.read(size))
            self.rfile.readline()
        while self.rfile.readline().strip():  # trailers
            pass
        return chunks

    def _write(self, response: HttpResponse) -> None:
        reason = HTTPStatus(response.status).phrase if response.status in HTTPStatus._value2member_map_ else "Unknown"
        lines = [f"HTTP/1.1 {response.status} {reason}", f"Content-Length: {len(response.body)}"]
        lines += [f"Content-Type: {response.content_type}"] if response.body else []
        lines += [f"{name}: {value}" for name, value in response.headers.items()]
        # One write: with two, Nagle's algorithm and the client's delayed ACK cost 40 ms a request.
        body = b"" if self.command == "HEAD" else response.body
        self.wfile.write("\r\n".join([*lines, "", ""]).encode("latin-1") + body)

    def log_message(self, *_arguments: object) -> None:
        """Write nothing per request."""


def _is_hang_up() -> bool:
    return isinstance(sys.exc_info()[1], ConnectionError | TimeoutError)


def _shut(connection: socket.socket) -> None:
    try:
        connection.shutdown(socket.SHUT_RDWR)
    except OSError:  # the client has closed it
        return
