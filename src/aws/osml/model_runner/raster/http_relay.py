"""Relay on loopback between GDAL and web servers, so that one HTTP client decides which addresses are called.

libcurl in GDAL resolves names by itself and follows redirects; no option forbids either for one file system. So GDAL
reads from the relay, which fetches the image by the same rules as model calls. It resolves the host, connects to the
addresses that it checked, verifies the certificate, and bounds the total time of a response. It does not follow
redirects. The relay serves the URLs of images that this process has opened, each under a path that cannot be guessed.
It copies an image to a temporary file when the image's server does not serve ranges.
"""

import hashlib
import hmac
import os
import secrets
import threading
from collections import OrderedDict
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit

import structlog
from urllib3 import BaseHTTPResponse, PoolManager, Retry, Timeout
from urllib3.exceptions import HTTPError

from aws.osml.model_runner.common.checked_connection import Resolve, checked_pool_manager
from aws.osml.model_runner.common.web_address import ForbiddenAddressError, allowed_addresses
from aws.osml.model_runner.exceptions import ImageUnreachableError, LoadImageException

from .http_copies import Copy, HttpCopies, requested_bytes
from .settings import RasterSettings

logger = structlog.get_logger(__name__)

_HOST = "127.0.0.1"
_DEFAULT_PORTS = {"http": 80, "https": 443}
_MAX_URLS = 4_096
_MAX_HOSTS, _CONNECTIONS = 16, 32
_CONNECT_S = 10.0
_PIECE_BYTES = 256 * 1024
# A URL that is signed for GET refuses HEAD, and some servers do not implement it.
_NO_HEAD = frozenset({400, 401, 403, 405, 501})
_REQUEST_HEADERS = ("Range", "If-Range")
# Without Location, so that GDAL cannot follow a redirect.
_RESPONSE_HEADERS = (
    "Content-Length",
    "Content-Range",
    "Content-Type",
    "ETag",
    "Last-Modified",
    "Accept-Ranges",
    "Retry-After",
)


class HttpRelay:
    """Serves images of web servers on loopback. Thread-safe; its server starts with the first image."""

    def __init__(self, settings: RasterSettings, resolve: Resolve = allowed_addresses) -> None:
        self._settings = settings
        self._resolve = resolve
        self._key = secrets.token_bytes(32)
        self._urls: OrderedDict[str, str] = OrderedDict()
        self._copies = HttpCopies(settings.max_copy_bytes)
        self._lock = threading.Lock()
        self._server: ThreadingHTTPServer | None = None

    def gdal_path(self, url: str) -> str:
        """Return the path by which GDAL reads the image at ``url``.

        Raises:
            LoadImageException: the URL's host has an address that may not be called.
            ImageUnreachableError: the URL's host cannot be resolved.
        """
        self._check_host(url)
        name = hmac.new(self._key, url.encode(), hashlib.sha256).hexdigest()
        with self._lock:
            self._urls[f"/{name}"] = url
            self._urls.move_to_end(f"/{name}")
            if len(self._urls) > _MAX_URLS:
                self._urls.popitem(last=False)
            if self._server is None:
                self._server = self._start_server()
            return f"/vsicurl/http://{_HOST}:{self._server.server_port}/{name}"

    def fetch(self, url: str, max_bytes: int) -> bytes:
        """Return the whole file at ``url``, by the same rules as images and without the relay's server.

        Raises:
            LoadImageException: it is missing, forbidden, redirects or has more than ``max_bytes``.
            ImageUnreachableError: its server does not respond.
        """
        self._check_host(url)
        settings = self._settings
        pool = checked_pool_manager(settings.http_timeout_s, 1, self._resolve)
        retries = Retry(settings.http_max_retries, redirect=False, status=0, backoff_factor=settings.http_retry_delay_s)
        try:
            response = pool.request(
                "GET",
                url,
                headers={"Accept": "*/*", "Accept-Encoding": "identity"},
                redirect=False,
                retries=retries,
                timeout=Timeout(connect=min(_CONNECT_S, settings.http_timeout_s), read=settings.http_stall_s),
                preload_content=False,
                decode_content=False,
            )
            try:
                _check_status(response.status, url)
                body = response.read(max_bytes + 1)
            finally:
                response.close()
        except (HTTPError, OSError) as err:
            raise ImageUnreachableError(f"{url} cannot be reached: {type(err).__name__}") from err
        finally:
            pool.clear()
        if len(body) > max_bytes:
            raise LoadImageException(f"{url} is too large: it has more than {max_bytes} bytes")
        return body

    def close(self) -> None:
        """Stop the server, if it was started."""
        with self._lock:
            server, self._server = self._server, None
        if server is not None:
            server.shutdown()
            server.server_close()

    def _check_host(self, url: str) -> None:
        """Raise LoadImageException for a host that may not be called, ImageUnreachableError for an unknown one."""
        parts = urlsplit(url)
        try:
            self._resolve(parts.hostname or "", parts.port or _DEFAULT_PORTS[parts.scheme])
        except ForbiddenAddressError as err:
            raise LoadImageException(f"{url} may not be read: {err}") from err
        except OSError as err:
            raise ImageUnreachableError(f"{url} cannot be reached: {err}") from err

    def _start_server(self) -> ThreadingHTTPServer:
        # libcurl must call the relay directly where the environment names a proxy.
        has_proxy = any(os.environ.get(name) for name in ("http_proxy", "all_proxy", "ALL_PROXY"))
        excepted = os.environ.get("no_proxy") or os.environ.get("NO_PROXY") or ""
        if has_proxy and excepted != "*" and _HOST not in excepted.split(","):
            os.environ["no_proxy"] = f"{excepted},{_HOST}".lstrip(",")
        settings = self._settings
        pool = checked_pool_manager(settings.http_timeout_s, _CONNECTIONS, self._resolve, _MAX_HOSTS)
        timeout = Timeout(connect=min(_CONNECT_S, settings.http_timeout_s), read=settings.http_stall_s)

        class Handler(_Handler):
            urls, copies, pool_manager, timeouts = self._urls, self._copies, pool, timeout

        server = ThreadingHTTPServer((_HOST, 0), Handler)
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, name="image-relay", daemon=True).start()
        return server


def _check_status(status: int, url: str) -> None:
    """Raise LoadImageException for a response without the file."""
    if status == HTTPStatus.OK:
        return
    if 300 <= status < 400:
        raise LoadImageException(f"{url} redirects to another URL; give the file's own URL")
    if status in (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN):
        raise LoadImageException(f"{url} may not be read: its server responds with status {status}")
    if status in (HTTPStatus.NOT_FOUND, HTTPStatus.GONE):
        raise LoadImageException(f"{url} does not exist: its server responds with status {status}")
    if status == HTTPStatus.TOO_MANY_REQUESTS or status >= 500:
        raise ImageUnreachableError(f"{url} cannot be reached: its server responds with status {status}")
    raise LoadImageException(f"{url} cannot be read: its server responds with status {status}")


class _Handler(BaseHTTPRequestHandler):
    """One connection from GDAL, kept open for many reads."""

    protocol_version = "HTTP/1.1"
    # A small response leaves in one write, headers and body together.
    wbufsize = 64 * 1024
    disable_nagle_algorithm = True
    urls: OrderedDict[str, str]
    copies: HttpCopies
    pool_manager: PoolManager
    timeouts: Timeout

    def log_message(self, *_: Any) -> None:
        """Log nothing, because GDAL's own messages contain the failures."""

    def do_GET(self) -> None:
        url = self.urls.get(self.path)
        if url is None:
            self.send_error(404)
            return
        headers = {name: value for name in _REQUEST_HEADERS if (value := self.headers.get(name))}
        is_part = self.command == "GET" and "Range" in headers
        try:
            copy = self.copies.find(url) if is_part else None
            if copy is None:
                response = self._fetch(self.command, url, headers)
                if self.command == "HEAD" and response.status in _NO_HEAD:
                    response.close()
                    response = self._fetch("GET", url, {"Range": "bytes=0-0"})
                    self.copies.forget_older(url, response)
                    self._respond_to_head(response)
                    return
                if self.command == "HEAD":
                    self.copies.forget_older(url, response)
                if is_part and response.status == HTTPStatus.OK:
                    copy = self.copies.make(url, response)
            if copy is not None:
                self._respond_from(copy)
                return
        except ForbiddenAddressError:
            self.send_error(403)
        except (HTTPError, OSError) as err:
            # GDAL then treats it as a connection that the web server closed.
            logger.info("relay.failed", error=type(err).__name__)
            self.close_connection = True
        else:
            self._respond(response)

    do_HEAD = do_GET  # noqa: N815 - a name that http.server calls

    def _fetch(self, method: str, url: str, headers: dict[str, str]) -> BaseHTTPResponse:
        return self.pool_manager.request(
            method,
            url,
            headers=headers | {"Accept-Encoding": "identity"},
            redirect=False,
            retries=False,
            timeout=self.timeouts,
            preload_content=False,
            decode_content=False,
        )

    def _respond_to_head(self, response: BaseHTTPResponse) -> None:
        """Respond to HEAD with the headers of a response to GET of the first byte, and the size of the whole file."""
        headers = {name: response.headers[name] for name in _RESPONSE_HEADERS if name in response.headers}
        response.close()
        whole = headers.pop("Content-Range", "").rpartition("/")[2]
        if response.status == HTTPStatus.PARTIAL_CONTENT and whole.isdigit():
            headers["Content-Length"] = whole
        is_part = response.status == HTTPStatus.PARTIAL_CONTENT
        self.send_response_only(HTTPStatus.OK if is_part else response.status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.flush()

    def _respond_from(self, copy: Copy) -> None:
        part = requested_bytes(self.headers["Range"], copy.size_bytes)
        if part is None or not part:
            self.send_error(HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE)
            return
        self.send_response_only(HTTPStatus.PARTIAL_CONTENT)
        self.send_header("Content-Length", str(len(part)))
        self.send_header("Content-Range", f"bytes {part.start}-{part.stop - 1}/{copy.size_bytes}")
        self.end_headers()
        for start in part[::_PIECE_BYTES]:
            self.wfile.write(os.pread(copy.file.fileno(), min(_PIECE_BYTES, part.stop - start), start))
        self.wfile.flush()

    def _respond(self, response: BaseHTTPResponse) -> None:
        is_whole = False
        try:
            self.send_response_only(response.status)
            for name in _RESPONSE_HEADERS:
                if value := response.headers.get(name):
                    self.send_header(name, value)
            if "Content-Length" not in response.headers and self.command == "GET":
                self.send_header("Connection", "close")
            self.end_headers()
            for piece in response.stream(_PIECE_BYTES, decode_content=False):
                self.wfile.write(piece)
            self.wfile.flush()
            is_whole = True
        except (HTTPError, OSError) as err:
            logger.info("relay.broken", error=type(err).__name__)
        finally:
            if is_whole:
                response.release_conn()
            else:
                self.close_connection = True
                response.close()
