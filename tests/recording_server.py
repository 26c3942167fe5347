"""An HTTP server that records the calls of a detector, and the failure of such a call."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self

import pytest

from aws.osml.model_runner.exceptions import ModelCallError
from aws.osml.model_runner.inference.detector import Detector


class RecordingHandler(BaseHTTPRequestHandler):
    """Records each POST, then lets ``respond`` of a subclass respond."""

    protocol_version = "HTTP/1.1"
    server: "RecordingServer"

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.server.requests.append((self.path, dict(self.headers.items()), body))
        self.respond()

    def respond(self) -> None:
        raise NotImplementedError

    def write(self, data: bytes) -> None:
        try:
            self.wfile.write(data)
        except OSError:
            self.close_connection = True

    def log_message(self, *_args: Any) -> None:
        pass


class RecordingServer(ThreadingHTTPServer):
    """``requests`` are (path, headers, body). ``closing`` is set when the server stops, so that slow responses end."""

    daemon_threads = True
    block_on_close = False

    def __init__(self, handler: type[RecordingHandler]) -> None:
        super().__init__(("127.0.0.1", 0), handler)
        self.requests: list[tuple[str, dict[str, str], bytes]] = []
        self.closing = threading.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def handle_error(self, *_args: Any) -> None:
        pass

    @contextmanager
    def running(self) -> Iterator[Self]:
        with self:
            thread = threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.02})
            thread.start()
            yield self
            self.closing.set()
            self.shutdown()
            thread.join()


def failure(detector: Detector, tile: bytes = b"tile") -> ModelCallError:
    """Return the error of a call that has to fail."""
    with pytest.raises(ModelCallError) as caught:
        detector.invoke(tile)
    return caught.value
