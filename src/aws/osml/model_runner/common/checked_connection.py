"""urllib3 connections to checked addresses, with a deadline for the whole response.

They correct two properties of urllib3. It looks a name up by itself, after any check before. Its read time-out is per
piece, so a server that sends a byte a minute holds a thread for ever. Both corrections are below urllib3's pools and
TLS: the certificate and the Host header still use the name in the URL.
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
    """The raw file of a socket, whose reads raise TimeoutError after the deadline of the whole response."""

    def __init__(self, sock: socket.socket, read_timeout_s: float | None, deadline_s: float) -> None:
        self._sock = sock
        self._read_timeout_s = read_timeout_s
        self._deadline_s = deadline_s
        # The socket counts its open files, so this file stays readable to the end when the connection is closed.
        self._raw = sock.makefile("rb", buffering=0)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        left_s = self._deadline_s - time.monotonic()
        if left_s <= 0:
            raise TimeoutError("the response came too slowly")
        self._sock.settimeout(left_s if self._read_timeout_s is None else min(left_s, self._read_timeout_s))
        return self._raw.readinto(buffer)

    def close(self) -> None:
        self._raw.close()
        super().close()


class _TimedFiles:
    """The part of a socket that http.client's response uses: a file to read from."""

    def __init__(self, make: Callable[[], io.RawIOBase]) -> None:
        self._make = make

    def makefile(self, _mode: str) -> io.BufferedReader:
        return io.BufferedReader(self._make())


class _CheckedConnection(HTTPConnection):
    """A connection to a checked address, with a deadline for the response."""

    def __init__(self, *args: Any, total_s: float, resolve: Resolve = allowed_addresses, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._total_s = total_s
        self._resolve = resolve
        self._deadline_s = 0.0
        self.response_class = self._timed_response  # type: ignore[assignment]  # http.client only calls it

    def request(self, *args: Any, **kwargs: Any) -> None:
        """Send a request; the deadline of its response counts from here."""
        self._deadline_s = time.monotonic() + self._total_s
        if self.sock is None:
            self.connect()
        # urllib3 would send the body with the connect time-out, which is too short for a large tile on a slow line.
        self.timeout = self._total_s
        super().request(*args, **kwargs)

    def _timed_response(self, sock: socket.socket, *_args: Any, method: str | None = None) -> http.client.HTTPResponse:
        make = functools.partial(_TimedReader, sock, sock.gettimeout(), self._deadline_s)
        return http.client.HTTPResponse(_TimedFiles(make), method=method)  # type: ignore[arg-type]

    def _new_conn(self) -> socket.socket:
        """Connect to the first checked address that accepts the connection."""
        host, timeout = self._dns_host, self.timeout
        try:
            addresses = self._resolve(host, self.port)[:MAX_ADDRESSES]
            if isinstance(timeout, int | float):
                self.timeout = timeout / len(addresses)
            *others, last = addresses
            for address in others:
                self._dns_host = address
                try:
                    return super()._new_conn()
                except (NewConnectionError, ConnectTimeoutError):
                    continue
            self._dns_host = last
            return super()._new_conn()
        except socket.gaierror as err:
            raise NameResolutionError(host, self, err) from err
        finally:
            self._dns_host, self.timeout = host, timeout


class _CheckedTLSConnection(_CheckedConnection, HTTPSConnection):
    """A TLS connection to a checked address; certificate and server name belong to the name in the URL."""


class _CheckedPool(HTTPConnectionPool):
    ConnectionCls = _CheckedConnection


class _CheckedTLSPool(HTTPSConnectionPool):
    ConnectionCls = _CheckedTLSConnection


def checked_pool_manager(
    total_s: float, max_connections: int, resolve: Resolve = allowed_addresses, max_hosts: int = 1
) -> PoolManager:
    """Return a pool manager whose responses have to be complete within ``total_s`` seconds.

    It keeps up to ``max_connections`` connections open to each of the last ``max_hosts`` hosts.
    """
    manager = PoolManager(num_pools=max_hosts, maxsize=max_connections, block=False, cert_reqs="CERT_REQUIRED")
    # Pools pass unknown arguments on to their connections; the manager refuses such arguments.
    pools: dict[str, Any] = {
        "http": functools.partial(_CheckedPool, total_s=total_s, resolve=resolve),
        "https": functools.partial(_CheckedTLSPool, total_s=total_s, resolve=resolve),
    }
    manager.pool_classes_by_scheme = pools
    return manager
