"""urllib3 connections that go to a checked address, and whose answer has to come in time as a whole.

Two things that urllib3 leaves open: it looks a name up by itself, after any check of ours; and its read time-out is
per piece, so that a peer who sends a byte a minute holds a thread for ever. Both are closed here, below urllib3's
pooling and TLS: the name of the URL stays what the certificate and the Host header are about.
"""

import functools
import http.client
import io
import socket
import time
from collections.abc import Callable
from typing import Any

from urllib3 import HTTPConnectionPool, HTTPSConnectionPool, PoolManager
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.exceptions import ConnectTimeoutError, NameResolutionError, NewConnectionError

from .web_address import allowed_addresses

Resolve = Callable[[str, int], list[str]]

MAX_ADDRESSES = 4


class _TimedReader(io.RawIOBase):
    """The raw end of a socket's file, which gives up when the whole answer is late."""

    def __init__(self, sock: socket.socket, read_timeout_s: float | None, deadline_s: float) -> None:
        self._sock = sock
        self._read_timeout_s = read_timeout_s
        self._deadline_s = deadline_s
        # The socket counts this file among its users, so closing the connection leaves it readable to the end.
        self._raw = sock.makefile("rb", buffering=0)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        left_s = self._deadline_s - time.monotonic()
        if left_s <= 0:
            raise TimeoutError("the answer came too slowly")
        self._sock.settimeout(left_s if self._read_timeout_s is None else min(left_s, self._read_timeout_s))
        return self._raw.readinto(buffer)

    def close(self) -> None:
        self._raw.close()
        super().close()


class _TimedFiles:
    """What http.client's response asks of a socket: a file to read from."""

    def __init__(self, make: Callable[[], io.RawIOBase]) -> None:
        self._make = make

    def makefile(self, _mode: str) -> io.BufferedReader:
        return io.BufferedReader(self._make())


class _CheckedConnection(HTTPConnection):
    """The two behaviours; mixed into the plain and the TLS connection."""

    def __init__(self, *args: Any, total_s: float, resolve: Resolve = allowed_addresses, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._total_s = total_s
        self._resolve = resolve
        self._deadline_s = 0.0
        self.response_class = self._timed_response  # type: ignore[assignment]  # http.client only calls it

    def request(self, *args: Any, **kwargs: Any) -> None:
        """Send a request; the time for its answer runs from here."""
        self._deadline_s = time.monotonic() + self._total_s
        if self.sock is None:
            self.connect()
        # urllib3 would send the body under the connect time-out, which a large tile on a slow line exceeds.
        self.timeout = self._total_s
        super().request(*args, **kwargs)

    def _timed_response(self, sock: socket.socket, *_args: Any, method: str | None = None) -> http.client.HTTPResponse:
        make = functools.partial(_TimedReader, sock, sock.gettimeout(), self._deadline_s)
        return http.client.HTTPResponse(_TimedFiles(make), method=method)  # type: ignore[arg-type]

    def _new_conn(self) -> socket.socket:
        """Connect to the first checked address that answers."""
        host, timeout = self._dns_host, self.timeout
        try:
            addresses = self._resolve(host, self.port)[:MAX_ADDRESSES]
            if isinstance(timeout, int | float):
                self.timeout = timeout / len(addresses)
            return self._connect_to_one_of(addresses)
        except socket.gaierror as err:
            raise NameResolutionError(host, self, err) from err
        finally:
            self._dns_host, self.timeout = host, timeout

    def _connect_to_one_of(self, addresses: list[str]) -> socket.socket:
        *others, last = addresses
        for address in others:
            self._dns_host = address
            try:
                return super()._new_conn()
            except (NewConnectionError, ConnectTimeoutError):
                continue
        self._dns_host = last
        return super()._new_conn()


class _CheckedTLSConnection(_CheckedConnection, HTTPSConnection):
    """A TLS connection to a checked address; certificate and server name are the URL's."""


class _CheckedPool(HTTPConnectionPool):
    ConnectionCls = _CheckedConnection


class _CheckedTLSPool(HTTPSConnectionPool):
    ConnectionCls = _CheckedTLSConnection


def checked_pool_manager(
    total_s: float, max_connections: int, resolve: Resolve = allowed_addresses, max_hosts: int = 1
) -> PoolManager:
    """Return a pool manager that gives each answer ``total_s`` seconds.

    It keeps up to ``max_connections`` open to each of the last ``max_hosts`` hosts.
    """
    manager = PoolManager(num_pools=max_hosts, maxsize=max_connections, block=False, cert_reqs="CERT_REQUIRED")
    # Pools pass what they do not know on to their connections; the manager would not let it through.
    pools: dict[str, Any] = {
        "http": functools.partial(_CheckedPool, total_s=total_s, resolve=resolve),
        "https": functools.partial(_CheckedTLSPool, total_s=total_s, resolve=resolve),
    }
    manager.pool_classes_by_scheme = pools
    return manager
