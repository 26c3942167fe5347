"""An HTTP proxy in front of the AWS emulator and the SageMaker gateway, through which tests add what AWS does.

Every call passes through a chain of ``Step``. A step may answer by itself, pass the call on and change the response,
or only count. ``limits``, ``storage`` and ``meter`` hold the steps.
"""

import itertools
import json
import re
import socket
import struct
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import reduce
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Protocol, Self
from urllib.parse import parse_qs, urlsplit

import urllib3

_CREDENTIAL = re.compile(r"Credential=([^/,]+)/\d+/[^/]+/([^/]+)/")
# Headers of the connection, and headers that the proxy replaces.
_HOP = frozenset({"connection", "transfer-encoding", "content-length", "host", "expect", "keep-alive", "te", "trailer"})
_RESET = struct.pack("ii", 1, 0)
_SAGEMAKER = frozenset({"sagemaker", "sagemaker-runtime"})
_OPERATIONS_OF_S3 = {"GET": "GetObject", "HEAD": "HeadObject", "PUT": "PutObject", "DELETE": "DeleteObject"}


@dataclass(frozen=True)
class Units:
    """Capacity units that one operation on one table consumed."""

    table: str
    write: float = 0.0
    read: float = 0.0


@dataclass
class Call:
    """One request. Header names are lower case; ``path`` includes the query; ``key`` is the access key id.

    ``role`` and ``units`` are notes that steps leave for each other.
    """

    service: str
    operation: str
    method: str
    path: str
    headers: dict[str, str]
    body: bytes = b""
    key: str = ""
    role: str = ""
    units: list[Units] = field(default_factory=list)

    @property
    def document(self) -> dict[str, Any]:
        """The body, of a service that speaks JSON."""
        return dict(json.loads(self.body or b"{}"))

    def with_document(self, document: Mapping[str, Any]) -> "Call":
        """Return the same call with another JSON body."""
        return replace(self, body=json.dumps(document).encode())


@dataclass
class Answer:
    """One response. With ``cut_at``, the connection is reset after so many bytes of the body.

    ``RESET`` is a reset without any response.
    """

    status: int
    headers: dict[str, str]
    body: bytes = b""
    cut_at: int | None = None

    @property
    def document(self) -> dict[str, Any]:
        """The body, of a service that speaks JSON."""
        return dict(json.loads(self.body or b"{}"))

    def with_document(self, document: Mapping[str, Any]) -> "Answer":
        """Return the same response with another JSON body, without the checksum of the old one."""
        headers = {name: value for name, value in self.headers.items() if name.lower() != "x-amz-crc32"}
        return replace(self, headers=headers, body=json.dumps(document).encode())


RESET = Answer(0, {}, cut_at=0)
Forward = Callable[[Call], Answer]


class Step(Protocol):
    """Answers a call, or has ``forward`` answer it."""

    def __call__(self, call: Call, forward: Forward) -> Answer: ...


def json_error(code: str, message: str = "", status: int = 400, **more: Any) -> Answer:
    """Return an error response of a service that speaks JSON."""
    body = {"__type": code, "message": message, **more}
    return Answer(status, {"Content-Type": "application/x-amz-json-1.0"}, json.dumps(body).encode())


def xml_error(code: str, message: str = "", status: int = 400) -> Answer:
    """Return an error response of S3."""
    body = f"<Error><Code>{code}</Code><Message>{message}</Message></Error>"
    return Answer(status, {"Content-Type": "application/xml"}, body.encode())


def query_error(code: str, message: str = "", status: int = 400) -> Answer:
    """Return an error response of a service that speaks the query protocol, such as SNS."""
    error = f"<Error><Type>Sender</Type><Code>{code}</Code><Message>{message}</Message></Error>"
    return Answer(status, {"Content-Type": "text/xml"}, f"<ErrorResponse>{error}</ErrorResponse>".encode())


class AwsProxy:
    """Runs while its ``with`` block does. ``url`` is for AWS_ENDPOINT_URL; ``steps`` may change at any time.

    The first step sees a call first. ``requests`` counts the calls that arrived, by service and operation, and
    ``received_bytes`` the bodies that went back, by service.
    """

    def __init__(self, upstream: str, sagemaker: str = "", steps: Iterable[Step] = ()) -> None:
        self.steps: list[Step] = list(steps)
        self.requests: Counter[tuple[str, str]] = Counter()
        self.received_bytes: Counter[str] = Counter()
        self._upstream = upstream
        self._sagemaker = sagemaker
        self._lock = threading.Lock()
        self._http = urllib3.PoolManager(maxsize=128, retries=False)
        self._server = _Server(self)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    @property
    def environment(self) -> dict[str, str]:
        """The variables that send a worker's calls here, GDAL's included."""
        names = ["AWS_ENDPOINT_URL", *(["AWS_ENDPOINT_URL_SAGEMAKER"] if self._sagemaker else [])]
        names += ["AWS_ENDPOINT_URL_SAGEMAKER_RUNTIME"] if self._sagemaker else []
        return {**dict.fromkeys(names, self.url), "AWS_S3_ENDPOINT": self.url.removeprefix("http://")}

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._http.clear()

    def answer(self, call: Call) -> Answer:
        """Send a call through every step."""
        with self._lock:
            self.requests[call.service, call.operation] += 1
        answer = reduce(_before, reversed(self.steps), self.forward)(call)
        with self._lock:
            self.received_bytes[call.service] += len(answer.body)
        return answer

    def forward(self, call: Call) -> Answer:
        """Send a call to the emulator or the gateway, past every step."""
        host = self._sagemaker if call.service in _SAGEMAKER and self._sagemaker else self._upstream
        headers = {name: value for name, value in call.headers.items() if name not in _HOP}
        response = self._http.request(
            call.method, host + call.path, body=call.body, headers=headers, redirect=False, decode_content=False
        )
        return Answer(response.status, dict(response.headers), response.data)

    def count(self, service: str, *operations: str) -> int:
        """Return how many calls of a service arrived, of these operations or of all."""
        with self._lock:
            return sum(
                number
                for (name, operation), number in self.requests.items()
                if name == service and (not operations or operation in operations)
            )


def _before(forward: Forward, step: Step) -> Forward:
    return lambda call: step(call, forward)


def read_call(method: str, path: str, headers: Mapping[str, str], body: bytes) -> Call:
    """Return a request as a ``Call``: the signature names the service, and each protocol names its operation."""
    headers = {name.lower(): value for name, value in headers.items()}
    query = parse_qs(urlsplit(path).query)
    signature = headers.get("authorization") or "Credential=" + query.get("X-Amz-Credential", [""])[0]
    found = _CREDENTIAL.search(signature)
    key, service = found.groups() if found else ("", "s3")
    return Call(service, _operation(service, method, path, headers, body), method, path, headers, body, key)


def _operation(service: str, method: str, path: str, headers: Mapping[str, str], body: bytes) -> str:
    if target := headers.get("x-amz-target"):
        return target.rpartition(".")[2]
    if service == "s3":
        return _operation_of_s3(method, urlsplit(path).path, parse_qs(urlsplit(path).query, keep_blank_values=True))
    if "/invocations" in path:
        return "InvokeEndpoint"
    return parse_qs(body.decode(errors="replace")).get("Action", [f"{method} {path}"])[0]


def _operation_of_s3(method: str, path: str, query: Mapping[str, list[str]]) -> str:
    if "uploadId" in query:
        return {"PUT": "UploadPart", "POST": "CompleteMultipartUpload"}.get(method, "AbortMultipartUpload")
    if method == "POST":
        return "CreateMultipartUpload" if "uploads" in query else "DeleteObjects"
    if "/" not in path.strip("/"):
        return "ListObjects" if method == "GET" else f"{method}Bucket"
    return _OPERATIONS_OF_S3.get(method, method)


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 256

    def __init__(self, proxy: AwsProxy) -> None:
        self.proxy = proxy
        super().__init__(("127.0.0.1", 0), _Handler)

    def shutdown_request(self, request: Any) -> None:
        # A connection that lingers for no time is reset by its close; shutting it down first would end it in order.
        if request.getsockopt(socket.SOL_SOCKET, socket.SO_LINGER, len(_RESET)) == _RESET:
            self.close_request(request)
        else:
            super().shutdown_request(request)

    def handle_error(self, *_: Any) -> None:
        """Ignore clients that hung up."""


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def handle_any(self) -> None:
        call = read_call(self.command, self.path, dict(self.headers.items()), self._read_body())
        answer = self.server.proxy.answer(call)
        length = str(len(answer.body))
        headers = [f"HTTP/1.1 {answer.status} -"]
        for name, value in answer.headers.items():
            if name.lower() == "content-length" and self.command == "HEAD":
                length = value
            if name.lower() not in _HOP:
                headers.append(f"{name}: {value}")
        head = "\r\n".join([*headers, f"Content-Length: {length}", "", ""]).encode("latin-1")
        if answer.cut_at is None:
            self.wfile.write(head + answer.body)
        else:
            self.wfile.write(head + answer.body[: answer.cut_at] if answer.status else b"")
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            self.close_connection = True

    do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = handle_any

    def _read_body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        sizes = iter(lambda: int(self.rfile.readline().split(b";")[0], 16), 0)
        body = b"".join(self._read_chunk(size) for size in sizes)
        for _ in itertools.takewhile(bytes.strip, iter(self.rfile.readline, b"")):
            pass  # trailers
        return body

    def _read_chunk(self, size: int) -> bytes:
        chunk = self.rfile.read(size)
        self.rfile.readline()
        return chunk

    def log_message(self, *_: object) -> None:
        """Write nothing per request."""
