"""The HTTP detector against a real server that behaves well, badly, slowly, or not at all."""

import io
import json
import random
import socket
import ssl
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID
from urllib3 import Retry

from aws.osml.model_runner.api.inference import ModelInvokeMode
from aws.osml.model_runner.exceptions import (
    BadModelResponseError,
    ModelBackPressureError,
    ModelCallError,
    ModelErrorClass,
    ModelTileError,
)
from aws.osml.model_runner.inference import FeatureDetectorFactory, invoke_with_retries
from aws.osml.model_runner.inference.endpoint_address import checked_addresses
from aws.osml.model_runner.inference.http_detector import CallTimeouts, HTTPDetector, HTTPDetectorBuilder
from recording_server import RecordingHandler, RecordingServer, failure

COLLECTION = {
    "type": "FeatureCollection",
    "features": [
        {
            "type": "Feature",
            "id": "a",
            "geometry": {"type": "Point", "coordinates": [1.123456789012, 2.5]},
            "properties": {"imageBBox": [1.0, 2.0, 3.25, 4.5], "featureClasses": [{"iri": "ship", "score": 0.5}]},
        },
        {
            "type": "Feature",
            "geometry": None,
            "properties": {"imageGeometry": {"type": "Point", "coordinates": [1, 2]}},
        },
    ],
}
BODY = json.dumps(COLLECTION).encode()
QUICK = CallTimeouts(connect_s=1.0, read_s=0.5, total_s=1.0)

Behaviour = Callable[["Handler"], None]


class Handler(RecordingHandler):
    server: "ModelServer"

    def setup(self) -> None:
        self.server.connections += 1
        super().setup()

    def respond(self) -> None:
        self.server.behaviour(self)

    def do_GET(self) -> None:
        self.server.requests.append((self.path, dict(self.headers.items()), b""))
        self.answer()

    def answer(self, status: int = 200, body: bytes = BODY, **headers: str) -> None:
        head = [f"HTTP/1.1 {status} X", f"Content-Length: {len(body)}"]
        head += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
        self.write("\r\n".join([*head, "", ""]).encode() + body)


class ModelServer(RecordingServer):
    def __init__(self) -> None:
        super().__init__(Handler)
        self.behaviour: Behaviour = lambda handler: handler.answer()
        self.connections = 0

    @property
    def url(self) -> str:
        return f"{super().url}/invocations"


@pytest.fixture
def server() -> Iterator[ModelServer]:
    with ModelServer().running() as running:
        yield running


@pytest.fixture
def make(server: ModelServer) -> Iterator[Callable[..., HTTPDetector]]:
    made: list[HTTPDetector] = []

    def make_detector(endpoint: str | None = None, **options: Any) -> HTTPDetector:
        made.append(HTTPDetector(endpoint or server.url, **options))
        return made[-1]

    yield make_detector
    for detector in made:
        detector.close()


@pytest.mark.parametrize("tile", [b"tile-bytes", memoryview(b"_tile-bytes_")[1:-1]], ids=["bytes", "memory"])
def test_tile_is_posted_with_its_length_and_media_type(
    server: ModelServer, make: Any, tile: bytes | memoryview
) -> None:
    assert make(endpoint=server.url + "?model=a", tile_format="PNG").invoke(tile) == BODY
    path, headers, body = server.requests[0]
    assert (path, body) == ("/invocations?model=a", b"tile-bytes")
    assert headers["Content-Length"] == "10"
    assert headers["Content-Type"] == "image/png"
    assert "Transfer-Encoding" not in headers


def test_parameters_become_headers(server: ModelServer, make: Any) -> None:
    parameters = {"CustomAttributes": "a=1", "X-Key": 7, "Host": "evil", "content-type": "application/x-tile"}
    make(parameters=parameters, tile_format="NITF").invoke(b"")
    headers = server.requests[0][1]
    assert headers["X-Amzn-SageMaker-Custom-Attributes"] == "a=1"
    assert headers["X-Key"] == "7"
    assert headers["Host"] != "evil"
    assert [value for name, value in headers.items() if name.lower() == "content-type"] == ["application/x-tile"]


def test_connections_are_kept_alive(server: ModelServer, make: Any) -> None:
    detector = make()
    for _ in range(20):
        detector.invoke(b"tile")
    assert (server.connections, detector.request_count) == (1, 20)


def test_errors_do_not_cost_connection(server: ModelServer, make: Any) -> None:
    detector = make()
    server.behaviour = lambda handler: handler.answer(400, b"x" * 1000)
    for _ in range(5):
        failure(detector)
    assert server.connections == 1


def test_threads_share_detector(server: ModelServer, make: Any) -> None:
    detector = make(max_connections=4)
    with ThreadPoolExecutor(4) as threads:
        answers = list(threads.map(detector.invoke, [b"tile"] * 60))
    assert answers == [BODY] * 60
    assert detector.request_count == 60
    assert server.connections <= 4


@pytest.mark.parametrize(
    ("status", "error_class"),
    [
        (201, ModelErrorClass.PERMANENT),
        (400, ModelErrorClass.PERMANENT),
        (404, ModelErrorClass.PERMANENT),
        (422, ModelErrorClass.PERMANENT),
        (429, ModelErrorClass.THROTTLE),
        (500, ModelErrorClass.SUSPICIOUS),
        (503, ModelErrorClass.THROTTLE),
    ],
)
def test_only_200_is_success_even_with_good_body(
    server: ModelServer, make: Any, status: int, error_class: ModelErrorClass
) -> None:
    server.behaviour = lambda handler: handler.answer(status)
    assert failure(make()).error_class is error_class


def test_retry_after_is_honoured(server: ModelServer, make: Any) -> None:
    server.behaviour = lambda handler: handler.answer(503, b"", Retry_After="17")
    assert failure(make()).retry_after_s == 17.0
    server.behaviour = lambda handler: handler.answer(429, b"", Retry_After="Tue, 14 Nov 2023 22:13:50 GMT")
    assert failure(make(now=lambda: 1_700_000_000.0)).retry_after_s == 30.0


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_redirects_are_not_followed(server: ModelServer, make: Any, status: int) -> None:
    server.behaviour = lambda handler: handler.answer(status, b"", Location=server.url + "/elsewhere")
    error = failure(make())
    assert (error.error_class, error.code) == (ModelErrorClass.PERMANENT, "BAD_RESPONSE")
    assert len(server.requests) == 1


def test_detector_responds_after_mixed_failures(server: ModelServer, make: Any) -> None:
    script = [503, 500, 429, 200]
    server.behaviour = lambda handler: handler.answer(script.pop(0))
    answer = invoke_with_retries(make(), b"tile", sleep=lambda _s: None, rng=random.Random(1))
    assert (answer.body, answer.retries) == (BODY, 3)


@pytest.mark.parametrize(("status", "raised"), [(500, ModelTileError), (503, ModelBackPressureError)])
def test_failures_that_last_end_by_their_class(
    server: ModelServer, make: Any, status: int, raised: type[Exception]
) -> None:
    server.behaviour = lambda handler: handler.answer(status)
    with pytest.raises(raised):
        invoke_with_retries(make(), b"tile", sleep=lambda _s: None, rng=random.Random(1))


def test_response_that_is_too_long_is_not_read(server: ModelServer, make: Any) -> None:
    sent = []

    def flood(handler: Handler) -> None:
        piece = b" " * 2**20
        handler.write(b"HTTP/1.1 200 OK\r\nContent-Length: 62914560\r\n\r\n")
        while len(sent) < 60 and not handler.close_connection:
            handler.write(piece)
            sent.append(1)

    server.behaviour = flood
    error = failure(make(max_answer_bytes=2**20))
    assert (error.error_class, error.code) == (ModelErrorClass.PERMANENT, "BAD_RESPONSE")


def test_chunked_response_is_bounded_too(server: ModelServer, make: Any) -> None:
    def flood(handler: Handler) -> None:
        handler.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        for _ in range(40):
            handler.write(b"10000\r\n" + b" " * 0x10000 + b"\r\n")
        handler.write(b"0\r\n\r\n")

    server.behaviour = flood
    assert failure(make(max_answer_bytes=2**20)).code == "BAD_RESPONSE"
    assert len(make().invoke(b"tile")) == 40 * 0x10000


def test_response_just_as_long_as_allowed_is_read(server: ModelServer, make: Any) -> None:
    assert make(max_answer_bytes=len(BODY)).invoke(b"tile") == BODY
    assert failure(make(max_answer_bytes=len(BODY) - 1)).code == "BAD_RESPONSE"


def trickle(handler: Handler, head: bytes, piece: bytes) -> None:
    handler.write(head)
    while not handler.server.closing.wait(0.1) and not handler.close_connection:
        handler.write(piece)


@pytest.mark.parametrize(
    ("head", "piece"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n", b" "),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"1\r\n \r\n"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"0"),
        (b"HTTP/1.1 200 OK\r\nX-Slow: ", b"a"),
        (b"HTTP/1.1 500 OK\r\nContent-Length: 100000\r\n\r\n", b" "),
    ],
    ids=["body", "chunks", "chunk size", "headers", "error page"],
)
def test_trickle_ends_with_total_timeout(server: ModelServer, make: Any, head: bytes, piece: bytes) -> None:
    server.behaviour = lambda handler: trickle(handler, head, piece)
    start_s = time.monotonic()
    error = failure(make(timeouts=QUICK))
    assert error.error_class is ModelErrorClass.TRANSIENT
    assert error.code == "TIMEOUT"
    assert time.monotonic() - start_s < 2.5


def test_interim_responses_end_with_total_timeout(server: ModelServer, make: Any) -> None:
    def flood(handler: Handler) -> None:
        while not handler.server.closing.is_set() and not handler.close_connection:
            handler.write(b"HTTP/1.1 100 Continue\r\n\r\n" * 100)

    server.behaviour = flood
    error = failure(make(timeouts=CallTimeouts(1.0, 1.0, 0.5)))
    assert (error.error_class, error.code) == (ModelErrorClass.TRANSIENT, "TIMEOUT")


def test_silence_ends_with_read_timeout(server: ModelServer, make: Any) -> None:
    server.behaviour = lambda handler: handler.server.closing.wait(5)
    start_s = time.monotonic()
    error = failure(make(timeouts=CallTimeouts(1.0, 0.3, 30.0)))
    assert (error.error_class, error.code) == (ModelErrorClass.TRANSIENT, "TIMEOUT")
    assert time.monotonic() - start_s < 2.0


def test_after_timeout_next_call_starts_afresh(server: ModelServer, make: Any) -> None:
    detector = make(timeouts=QUICK)
    server.behaviour = lambda handler: trickle(handler, b"HTTP/1.1 200 OK\r\nContent-Length: 9999\r\n\r\n", b" ")
    failure(detector)
    server.behaviour = lambda handler: handler.answer()
    assert detector.invoke(b"tile") == BODY
    time.sleep(QUICK.total_s + 0.1)
    assert detector.invoke(b"tile") == BODY, "a kept connection must not inherit the last call's deadline"


def test_server_that_hangs_up_is_transient(server: ModelServer, make: Any) -> None:
    def hang_up(handler: Handler) -> None:
        handler.close_connection = True
        handler.connection.shutdown(socket.SHUT_RDWR)

    server.behaviour = hang_up
    error = failure(make())
    assert (error.error_class, error.code) == (ModelErrorClass.TRANSIENT, "CONNECTION")


def test_response_that_breaks_off_is_transient(server: ModelServer, make: Any) -> None:
    def break_off(handler: Handler) -> None:
        handler.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n{")
        handler.close_connection = True

    server.behaviour = break_off
    error = failure(make())
    assert (error.error_class, error.code) == (ModelErrorClass.TRANSIENT, "CONNECTION")


def test_response_that_ends_with_its_connection_is_whole(server: ModelServer, make: Any) -> None:
    def old_style(handler: Handler) -> None:
        handler.write(b"HTTP/1.0 200 OK\r\nConnection: close\r\n\r\n" + BODY)
        handler.close_connection = True

    server.behaviour = old_style
    assert make().invoke(b"tile") == BODY


def test_garbage_instead_of_http_is_transient(server: ModelServer, make: Any) -> None:
    def garbage(handler: Handler) -> None:
        handler.write(b"\x00\x01 this is not HTTP\r\n\r\n")
        handler.close_connection = True

    server.behaviour = garbage
    assert failure(make()).error_class is ModelErrorClass.TRANSIENT


def test_no_listener_is_transient(make: Any) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        error = failure(make(endpoint=f"http://127.0.0.1:{taken.getsockname()[1]}/"))
    assert (error.error_class, error.code) == (ModelErrorClass.TRANSIENT, "CONNECTION")


def test_name_that_does_not_resolve_is_transient(make: Any) -> None:
    error = failure(make(endpoint="http://no-such-host.invalid/"))
    assert (error.error_class, error.code) == (ModelErrorClass.TRANSIENT, "CONNECTION")


@pytest.mark.parametrize("url", ["http://169.254.169.254/", "file:///etc/passwd", "http://user:x@127.0.0.1/"])
def test_refused_address_is_never_called(make: Any, url: str) -> None:
    error = failure(make(endpoint=url))
    assert (error.error_class, error.code) == (ModelErrorClass.PERMANENT, "BAD_ENDPOINT")


def test_hosts_that_are_not_listed_are_never_called(server: ModelServer, make: Any) -> None:
    assert failure(make(allowed_hosts=("models.example.com",))).error_class is ModelErrorClass.PERMANENT
    assert server.requests == []
    assert make(allowed_hosts=("127.0.0.1",)).invoke(b"tile") == BODY


def test_connection_uses_checked_address(server: ModelServer, make: Any) -> None:
    port = server.server_address[1]
    detector = make(endpoint=f"http://model.example.com:{port}/x", resolve=lambda _host, _port: ["127.0.0.1"])
    assert detector.invoke(b"tile") == BODY
    assert server.requests[0][1]["Host"] == f"model.example.com:{port}"


def test_next_address_is_tried_when_first_refuses(server: ModelServer, make: Any) -> None:
    assert make(resolve=lambda _host, _port: ["127.0.0.2", "::1", "127.0.0.1"]).invoke(b"tile") == BODY


def test_metadata_service_is_never_called_by_name(server: ModelServer, make: Any) -> None:
    def rebound(host: str, port: int) -> list[str]:
        answers = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("169.254.169.254", port))]
        return checked_addresses(host, port, lambda *_args, **_options: answers)

    error = failure(make(endpoint="http://model.example.com/", resolve=rebound))
    assert (error.error_class, error.code) == (ModelErrorClass.JOB, "BAD_ENDPOINT")


@pytest.fixture
def tls_server(server: ModelServer, tmp_path: Path) -> tuple[ModelServer, Path]:
    """The server behind TLS, with a certificate for model.example.com that only its own file vouches for."""
    certificate = self_signed("model.example.com", tmp_path / "server.pem")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    return server, certificate


def self_signed(name: str, path: Path) -> Path:
    key = ec.generate_private_key(ec.SECP256R1())
    who = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder(who, who, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
        .sign(key, hashes.SHA256())
    )
    plain = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    path.write_bytes(plain + certificate.public_bytes(Encoding.PEM))
    return path


@pytest.mark.parametrize(
    ("host", "is_trusted", "is_answered"),
    [("model.example.com", True, True), ("other.example.com", True, False), ("model.example.com", False, False)],
    ids=["good", "wrong name", "unknown authority"],
)
def test_tls_is_verified_against_name_in_url(
    tls_server: tuple[ModelServer, Path],
    make: Any,
    monkeypatch: pytest.MonkeyPatch,
    host: str,
    is_trusted: bool,
    is_answered: bool,
) -> None:
    server, certificate = tls_server
    if is_trusted:
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    url = f"https://{host}:{server.server_address[1]}/"
    detector = make(endpoint=url, resolve=lambda _host, _port: ["127.0.0.1"])
    if is_answered:
        assert [detector.invoke(b"tile") for _ in range(3)] == [BODY] * 3
        assert server.connections == 1
    else:
        error = failure(detector)
        assert (error.error_class, error.code) == (ModelErrorClass.JOB, "BAD_ENDPOINT")
        assert server.requests == []


def test_features_come_back_as_geojson_with_all_decimals(server: ModelServer, make: Any) -> None:
    collection = make().find_features(io.BufferedReader(io.BytesIO(b"tile")), None)
    assert collection["type"] == "FeatureCollection"
    first, second = collection.features
    assert first.geometry.coordinates == [1.123456789012, 2.5]
    assert first["id"] == "a"
    assert second["geometry"] is None
    assert server.requests[0][2] == b"tile"


@pytest.mark.parametrize("body", [b"not json", b"{}", b"[1, 2]", b'{"type":"FeatureCollection"}', b""])
def test_response_that_is_not_feature_collection_is_refused(server: ModelServer, make: Any, body: bytes) -> None:
    server.behaviour = lambda handler: handler.answer(200, body)
    with pytest.raises(BadModelResponseError):
        make().find_features(b"tile", None)


class Metrics:
    """Keeps what it is given, as the embedded metrics logger does."""

    def __init__(self) -> None:
        self.dimensions: list[dict[str, str]] = []
        self.values: dict[str, tuple[float, str]] = {}

    def set_dimensions(self, *dimensions: dict[str, str]) -> None:
        self.dimensions = list(dimensions)

    def put_metric(self, name: str, value: float, unit: str) -> None:
        self.values[name] = (value, unit)


def test_calls_are_measured(server: ModelServer, make: Any) -> None:
    metrics = Metrics()
    make().find_features(b"tile", metrics)
    assert metrics.dimensions == [{"Operation": "ModelInvocation", "ModelName": "http"}]
    assert set(metrics.values) == {"Duration", "Invocations", "Retries"}
    server.behaviour = lambda handler: handler.answer(400)
    with pytest.raises(ModelCallError):
        make(name="ships").find_features(b"tile", metrics)
    assert metrics.values["Errors"] == (1, "Count")
    assert metrics.dimensions[0]["ModelName"] == "ships"


def test_urllib3_retries_work_when_configured(server: ModelServer, make: Any) -> None:
    script = [503, 200]
    server.behaviour = lambda handler: handler.answer(script.pop(0))
    retry = Retry(total=3, allowed_methods=None, status_forcelist=[503], backoff_factor=0)
    assert make(retry=retry).invoke(b"tile") == BODY
    script[:] = [503] * 4
    assert failure(make(retry=retry)).error_class is ModelErrorClass.TRANSIENT


def test_builder_and_factory_make_detector(server: ModelServer) -> None:
    made = HTTPDetectorBuilder(server.url).build()
    also = FeatureDetectorFactory(server.url, ModelInvokeMode.HTTP_ENDPOINT, parameters={"X-A": "b"}).build()
    for detector in (made, also):
        assert isinstance(detector, HTTPDetector)
        assert detector.mode is ModelInvokeMode.HTTP_ENDPOINT
        assert (detector.name, detector.request_count) == ("http", 0)
        assert detector.invoke(b"tile") == BODY
        detector.close()
    assert FeatureDetectorFactory("x", ModelInvokeMode.NONE).build() is None
