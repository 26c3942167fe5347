"""A small threaded HTTP/1.1 server for loopback: connections stay open, and each response is one packet."""

import contextlib
import json
import math
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

from .child_process import LOOPBACK

IDLE_TIMEOUT_S = 120
SHUTDOWN_POLL_S = 0.05


@dataclass(frozen=True)
class HttpRequest:
    """A request of a client. Header names are lower case; ``path`` does not contain the query."""

    method: str
    path: str
    query: Mapping[str, str]
    headers: Mapping[str, str]
    body: bytes


@dataclass(frozen=True)
class HttpResponse:
    """A response; the server adds Content-Length."""

    status: int = 200
    body: bytes = b""
    content_type: str = "application/json"
    headers: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of_json(cls, document: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Self:
        """Return a response whose body is ``document`` as JSON."""
        return cls(status, json.dumps(document).encode(), headers=headers or {})


class HttpService:
    """Calls ``respond`` for each request while its ``with`` block runs; one thread per connection.

    ``port`` 0 selects a free port; ``url`` is ``http://host:port`` inside the block. A body above ``max_body_bytes``
    is refused with 413.
    """

    def __init__(
        self,
        respond: Callable[[HttpRequest], HttpResponse],
        port: int = 0,
        host: str = LOOPBACK,
        max_body_bytes: float = math.inf,
    ) -> None:
        self.url = ""
        self._respond = respond
        self._address = (host, port)
        self._max_body_bytes = max_body_bytes
        self._running = ExitStack()
        self._server: _Server | None = None

    def __enter__(self) -> Self:
        server = self._server = _Server(self._address, self._respond, self._max_body_bytes)
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

    def drain(self, timeout_s: float) -> bool:
        """Wait until no request is answered; return False if there still is one after ``timeout_s``."""
        server = self._server
        if server is None:
            return True
        with server.idle:
            return server.idle.wait_for(lambda: not server.answering, timeout_s)


class _Server(ThreadingHTTPServer):
    daemon_threads = False  # server_close shuts the connections, then waits for their handlers
    request_queue_size = 256

    def __init__(
        self, address: tuple[str, int], respond: Callable[[HttpRequest], HttpResponse], max_body_bytes: float
    ) -> None:
        self.respond = respond
        self.max_body_bytes = max_body_bytes
        self.answering = 0
        self.idle = threading.Condition()
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
        """Print the traceback, except for a client that has closed its connection."""
        if not isinstance(sys.exc_info()[1], ConnectionError | TimeoutError):
            super().handle_error(request, client_address)

    def server_close(self) -> None:
        with self._connections_lock:
            for connection in self._connections:
                with contextlib.suppress(OSError):  # the client has closed the connection
                    connection.shutdown(socket.SHUT_RDWR)
        super().server_close()


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    timeout = IDLE_TIMEOUT_S

    def do_GET(self) -> None:
        """Read a request of any method, and write the response."""
        most = self.server.max_body_bytes
        if self.headers.get("Transfer-Encoding", "").lower() == "chunked":
            chunks, received = [], 0
            while size := int(self.rfile.readline().split(b";")[0] or b"0", 16):
                received += size
                if received > most:
                    self._refuse_body(received)
                    return
                chunks.append(self.rfile.read(size))
                self.rfile.readline()
            while self.rfile.readline().strip():  # trailers
                pass
            body = b"".join(chunks)
        else:
            size = int(self.headers.get("Content-Length", 0))
            if size > most:
                self._refuse_body(size)
                return
            body = self.rfile.read(size)
        parts = urlsplit(self.path)
        headers = {name.lower(): value for name, value in self.headers.items()}
        request = HttpRequest(self.command, parts.path, dict(parse_qsl(parts.query)), headers, body)
        with self.server.idle:
            self.server.answering += 1
        try:
            self._write(self.server.respond(request))
        finally:
            with self.server.idle:
                self.server.answering -= 1
                self.server.idle.notify_all()

    do_POST = do_PUT = do_DELETE = do_HEAD = do_GET  # noqa: N815 - names that http.server calls

    def _refuse_body(self, size_bytes: int) -> None:
        """Respond with 413 and close the connection, because the rest of the body is not read."""
        error = f"the body has {size_bytes} bytes or more, at most {self.server.max_body_bytes:.0f} are allowed"
        self._write(HttpResponse.of_json({"error": error}, 413, {"Connection": "close"}))
        self.close_connection = True

    def _write(self, response: HttpResponse) -> None:
        reason = HTTPStatus(response.status).phrase if response.status in HTTPStatus._value2member_map_ else "Unknown"
        lines = [f"HTTP/1.1 {response.status} {reason}", f"Content-Length: {len(response.body)}"]
        lines += [f"Content-Type: {response.content_type}"] if response.body else []
        lines += [f"{name}: {value}" for name, value in response.headers.items()]
        # One write: with two, Nagle's algorithm and the client's delayed ACK cost 40 ms a request.
        sent = b"" if self.command == "HEAD" else response.body
        self.wfile.write("\r\n".join([*lines, "", ""]).encode("latin-1") + sent)

    def log_message(self, *_arguments: object) -> None:
        """Do not log requests."""
