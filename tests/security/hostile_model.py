"""A model whose path selects its behaviour: a good response, a bad, an endless, or none."""

import socketserver
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

_FEATURE = (
    b'{"type":"Feature","geometry":null,"properties":{"imageGeometry":{"type":"Point","coordinates":[%s]},'
    b'"featureClasses":[{"iri":"ship","score":0.5}]}}'
)
GOOD = _FEATURE % b"5.0,6.0"


def collection(*features: bytes) -> bytes:
    return b'{"type":"FeatureCollection","features":[' + b",".join(features) + b"]}"


BODIES = {
    "good": collection(GOOD),
    # Dropped features, beside a kept one.
    "far": collection(GOOD, _FEATURE % b"1e300,1e300"),
    "nothing": collection(GOOD, b"null", b"[]", b'"text"', b"{}", b'{"type":"Feature"}'),
    "nested": collection(GOOD, b'{"type":"Feature","properties":{"imageGeometry":' + b"[" * 900 + b"]" * 900 + b"}}"),
    "long": collection(GOOD, _FEATURE.replace(b"ship", b"s" * 400_000) % b"1,2"),
    "names": collection(GOOD, _FEATURE.replace(b"ship", b"\\u0000\\u202e") % b"1,2"),
    # Answers of which nothing can be kept.
    "nan": collection(_FEATURE % b"NaN,0"),
    "infinite": collection(GOOD, _FEATURE % b"1e999,0"),
    "surrogate": collection(GOOD, _FEATURE.replace(b"ship", b"\\ud800") % b"1,2"),
    "deep": b"[" * 100_000,
    "deep-object": b'{"features":' * 50_000,
    "no-json": b"<html>",
    "empty": b"",
    "no-list": b'{"features":{"0":1}}',
    "lists": b'{"features":[' + b"[]," * 8_000_000 + b"1]}",
}
# Responses that never come, and responses that never end.
LATE = ("trickle", "silent", "header-flood")
NO_ANSWER = ("endless", "redirect")
LONG_BYTES = 60 * 1024 * 1024
PAUSE_S = 0.2


class HostileModel:
    """``url("good")`` and its kin; ``canary`` is where it sends those who follow redirects."""

    def __init__(self, canary: str) -> None:
        model = self

        class Handler(socketserver.StreamRequestHandler):
            def handle(self) -> None:
                model.answer(self)

        class Server(socketserver.ThreadingTCPServer):
            daemon_threads = True
            allow_reuse_address = True

            def handle_error(self, *_: object) -> None:
                """A client that has had enough."""

        self._canary = canary
        self._stopped = threading.Event()
        self._server = Server(("127.0.0.1", 0), Handler)
        self.port = self._server.server_address[1]

    def url(self, kind: str) -> str:
        return f"http://127.0.0.1:{self.port}/{kind}"

    @contextmanager
    def running(self) -> Iterator["HostileModel"]:
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        try:
            yield self
        finally:
            self._stopped.set()
            self._server.shutdown()
            self._server.server_close()

    def answer(self, request: socketserver.StreamRequestHandler) -> None:
        kind = request.rfile.readline().split()[1].decode().lstrip("/").partition("?")[0]
        length = 0
        while (line := request.rfile.readline().strip()) != b"":
            if line.lower().startswith(b"content-length:"):
                length = int(line.partition(b":")[2])
        request.rfile.read(length)
        for piece in self._pieces(kind):
            request.wfile.write(piece)

    def _pieces(self, kind: str) -> Iterator[bytes]:
        if kind in BODIES:
            yield _head(200, len(BODIES[kind])) + BODIES[kind]
        elif kind == "endless":
            yield _head(200, LONG_BYTES) + b'{"features":['
            for _ in range(LONG_BYTES // 65_536):
                yield b" " * 65_536
        elif kind == "trickle":
            yield _head(200, 10_000)
            yield from self._forever(b" ")
        elif kind == "header-flood":
            yield from self._forever(b"HTTP/1.1 100 Continue\r\n\r\n", 0.001)
        elif kind == "redirect":
            yield _head(307, 0, f"Location: {self._canary}/moved\r\n")
        else:
            yield from self._forever(b"")

    def _forever(self, piece: bytes, pause_s: float = PAUSE_S) -> Iterator[bytes]:
        until = time.monotonic() + 10.0
        while time.monotonic() < until and not self._stopped.wait(pause_s):
            yield piece


def _head(status: int, length: int, more: str = "") -> bytes:
    return f"HTTP/1.1 {status} X\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n{more}\r\n".encode()
