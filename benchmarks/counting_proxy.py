"""Passes connections on to a server and counts the bytes that come back: what a worker fetches of an image in S3."""

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

_PIECE_BYTES = 1 << 16


class CountingProxy:
    """Listens on a loopback port, ``address``, in place of ``host:port``. ``fetched_bytes`` counts headers too."""

    def __init__(self, host: str, port: int) -> None:
        self.fetched_bytes = 0
        self._target = (host, port)
        self._lock = threading.Lock()
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=64)

    @property
    def address(self) -> str:
        """Where it listens, as ``host:port``."""
        host, port = self._listener.getsockname()
        return f"{host}:{port}"

    @contextmanager
    def serving(self) -> Iterator["CountingProxy"]:
        """Serve for as long as the caller is inside."""
        threading.Thread(target=self._accept, name="proxy", daemon=True).start()
        try:
            yield self
        finally:
            self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            server = socket.create_connection(self._target)
            for source, sink, is_counted in ((client, server, False), (server, client, True)):
                threading.Thread(target=self._copy, args=(source, sink, is_counted), daemon=True).start()

    def _copy(self, source: socket.socket, sink: socket.socket, is_counted: bool) -> None:
        try:
            while piece := source.recv(_PIECE_BYTES):
                sink.sendall(piece)
                if is_counted:
                    with self._lock:
                        self.fetched_bytes += len(piece)
        except OSError:
            pass  # one of the two has hung up
        finally:
            sink.close()
