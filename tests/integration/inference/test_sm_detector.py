"""The SageMaker detector against a real HTTP server that answers as sagemaker-runtime does."""

import io
import json
import random
import time
from collections.abc import Iterator
from typing import Any

import boto3
import pytest
from botocore.config import Config

from aws.osml.model_runner.api.inference import ModelInvokeMode
from aws.osml.model_runner.aws.clients import client_config, default_clients
from aws.osml.model_runner.exceptions import ModelErrorClass, ModelTileError
from aws.osml.model_runner.inference import FeatureDetectorFactory, ModelJobError, invoke_with_retries
from aws.osml.model_runner.inference.sm_detector import SMDetector, SMDetectorBuilder
from recording_server import RecordingHandler, RecordingServer, failure

FEATURE = {"type": "Feature", "geometry": None, "properties": {"imageBBox": [0, 0, 4, 4]}}
BODY = json.dumps({"type": "FeatureCollection", "features": [FEATURE]}).encode()

C = ModelErrorClass


class Answer:
    """One answer of the service; with ``piece``, the head is followed by that piece again and again, slowly."""

    def __init__(self, status: int = 200, body: bytes = BODY, error: str = "", piece: bytes = b"", **headers: str):
        self.status, self.body, self.error, self.piece, self.headers = status, body, error, piece, headers


def aws_error(code: str, status: int, message: str = "", **fields: Any) -> Answer:
    return Answer(status, json.dumps({"message": message, **fields}).encode(), error=code)


class Handler(RecordingHandler):
    server: "Runtime"

    def respond(self) -> None:
        answer = self.server.answers.pop(0) if self.server.answers else Answer()
        head = [f"HTTP/1.1 {answer.status} X", "Content-Type: application/json"]
        head.append(f"Content-Length: {answer.headers.get('length', len(answer.body))}")
        if answer.error:
            head.append(f"x-amzn-errortype: {answer.error}")
        self.write("\r\n".join([*head, "", ""]).encode() + answer.body)
        while answer.piece and not self.close_connection and not self.server.closing.wait(0.1):
            self.write(answer.piece)


class Runtime(RecordingServer):
    def __init__(self) -> None:
        super().__init__(Handler)
        self.answers: list[Answer] = []


@pytest.fixture
def runtime(monkeypatch: pytest.MonkeyPatch) -> Iterator[Runtime]:
    for name, value in {
        "AWS_ACCESS_KEY_ID": "own-key",
        "AWS_SECRET_ACCESS_KEY": "own-secret",
        "AWS_DEFAULT_REGION": "us-west-2",
        "AWS_EC2_METADATA_DISABLED": "true",
    }.items():
        monkeypatch.setenv(name, value)
    with Runtime().running() as running:
        monkeypatch.setenv("AWS_ENDPOINT_URL_SAGEMAKER_RUNTIME", running.url)
        default_clients.cache_clear()
        yield running
    default_clients.cache_clear()


@pytest.fixture
def client(runtime: Runtime) -> Iterator[Any]:
    made = boto3.client("sagemaker-runtime", config=client_config("sagemaker-runtime", 4))
    yield made
    made.close()


@pytest.mark.parametrize("tile", [b"\x00tile\xff", memoryview(b"_\x00tile\xff_")[1:-1]], ids=["bytes", "memory"])
def test_tile_is_sent_unchanged(runtime: Runtime, client: Any, tile: bytes | memoryview) -> None:
    detector = SMDetector("ships", client=client, tile_format="GTIFF")
    assert detector.invoke(tile) == BODY
    path, headers, body = runtime.requests[0]
    assert (path, body) == ("/endpoints/ships/invocations", b"\x00tile\xff")
    assert headers["Content-Type"] == "image/tiff"
    assert headers["Content-Length"] == "6"
    assert (detector.request_count, detector.mode) == (1, ModelInvokeMode.SM_ENDPOINT)


def test_parameters_reach_endpoint(runtime: Runtime, client: Any) -> None:
    parameters = {"TargetVariant": "blue", "CustomAttributes": "a=1", "ContentType": "application/x-tile", "Nope": "x"}
    SMDetector("ships", client=client, parameters=parameters, tile_format="NITF").invoke(b"")
    headers = {name.lower(): value for name, value in runtime.requests[0][1].items()}
    assert headers["x-amzn-sagemaker-target-variant"] == "blue"
    assert headers["x-amzn-sagemaker-custom-attributes"] == "a=1"
    assert headers["content-type"] == "application/x-tile"


@pytest.mark.parametrize(
    ("answer", "error_class", "code"),
    [
        (aws_error("ThrottlingException", 400, "Rate exceeded"), C.THROTTLE, "THROTTLED"),
        (aws_error("ModelNotReadyException", 429), C.THROTTLE, "THROTTLED"),
        (aws_error("ServiceUnavailable", 503), C.THROTTLE, "THROTTLED"),
        (Answer(429, b""), C.THROTTLE, "THROTTLED"),
        (aws_error("InternalFailure", 500), C.TRANSIENT, "SERVICE_5XX"),
        (aws_error("InternalDependencyException", 530), C.TRANSIENT, "SERVICE_5XX"),
        (aws_error("ModelError", 424, OriginalStatusCode=503, OriginalMessage="busy"), C.THROTTLE, "THROTTLED"),
        (aws_error("ModelError", 424, OriginalStatusCode=500), C.SUSPICIOUS, "MODEL_5XX"),
        (aws_error("ModelError", 424, OriginalStatusCode=507), C.SUSPICIOUS, "MODEL_5XX"),
        (aws_error("ModelError", 424, OriginalStatusCode=0, OriginalMessage="timed out"), C.TRANSIENT, "TIMEOUT"),
        (aws_error("ModelError", 424), C.TRANSIENT, "TIMEOUT"),
        (aws_error("ModelError", 424, OriginalStatusCode=422), C.PERMANENT, "MODEL_4XX"),
        (aws_error("ValidationError", 400, "Endpoint ships of account 1 not found."), C.JOB, "ENDPOINT_NOT_FOUND"),
        (aws_error("ValidationError", 400, "Bad Accept"), C.PERMANENT, "BAD_REQUEST"),
        (aws_error("AccessDeniedException", 403), C.JOB, "ACCESS_DENIED"),
        (aws_error("ExpiredTokenException", 403), C.CREDENTIAL, "CREDENTIALS"),
        (aws_error("InvalidClientTokenId", 403), C.CREDENTIAL, "CREDENTIALS"),
    ],
)
def test_response_status_decides_error_class(
    runtime: Runtime, client: Any, answer: Answer, error_class: ModelErrorClass, code: str
) -> None:
    runtime.answers = [answer]
    error = failure(SMDetector("ships", client=client))
    assert (error.error_class, error.code) == (error_class, code)
    assert len(runtime.requests) == 1, "botocore must not retry beneath the retry layer"


def test_silence_ends_with_read_timeout(runtime: Runtime) -> None:
    config = client_config("sagemaker-runtime", 1).merge(Config(read_timeout=0.3))
    impatient = boto3.client("sagemaker-runtime", config=config)
    runtime.answers = [Answer(200, b"{", length="1000")]
    error = failure(SMDetector("ships", client=impatient))
    assert (error.error_class, error.code) == (C.TRANSIENT, "TIMEOUT")
    impatient.close()


def test_tile_that_is_too_long_is_not_sent(runtime: Runtime, client: Any) -> None:
    detector = SMDetector("ships", client=client, max_body_bytes=4)
    assert detector.invoke(b"1234") == BODY
    error = failure(detector, b"12345")
    assert (error.error_class, error.code) == (C.PERMANENT, "TILE_TOO_LARGE")
    assert (len(runtime.requests), detector.request_count) == (1, 1)


@pytest.mark.parametrize("name", ["", "a b", "-a", "a-", "ships/../x", "s" * 64, "http://model.example.com"])
def test_name_that_is_none_is_not_called(runtime: Runtime, client: Any, name: str) -> None:
    error = failure(SMDetector(name, client=client))
    assert (error.error_class, error.code) == (C.PERMANENT, "BAD_ENDPOINT")
    assert runtime.requests == []


def test_unsupported_parameter_is_refused_at_once(runtime: Runtime, client: Any) -> None:
    error = failure(SMDetector("ships", client=client, parameters={"TargetModel": ""}))
    assert (error.error_class, error.code) == (C.PERMANENT, "BAD_REQUEST")
    assert runtime.requests == []


def test_response_that_is_too_long_is_not_read(runtime: Runtime, client: Any) -> None:
    runtime.answers = [Answer(body=b" " * 2_000_000)]
    error = failure(SMDetector("ships", client=client, max_answer_bytes=1_000_000))
    assert (error.error_class, error.code) == (C.PERMANENT, "BAD_RESPONSE")


def test_trickle_ends(runtime: Runtime, client: Any) -> None:
    runtime.answers = [Answer(body=b"{", piece=b" ", length="100000")]
    start_s = time.monotonic()
    error = failure(SMDetector("ships", client=client, total_s=0.5))
    assert (error.error_class, error.code) == (C.TRANSIENT, "TIMEOUT")
    assert time.monotonic() - start_s < 2.0


def test_no_listener_is_transient(runtime: Runtime) -> None:
    config = client_config("sagemaker-runtime", 1)
    nowhere = boto3.client("sagemaker-runtime", endpoint_url="http://127.0.0.1:9", config=config)
    error = failure(SMDetector("ships", client=nowhere))
    assert (error.error_class, error.code) == (C.TRANSIENT, "CONNECTION")
    nowhere.close()


def test_missing_credentials_are_of_their_own_class(runtime: Runtime, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/dev/null")
    monkeypatch.setenv("AWS_CONFIG_FILE", "/dev/null")
    error = failure(SMDetector("ships"))
    assert (error.error_class, error.code) == (C.CREDENTIAL, "CREDENTIALS")


def signer(request: tuple[str, dict[str, str], bytes]) -> str:
    return request[1]["Authorization"].partition("Credential=")[2].partition("/")[0]


def test_calls_are_signed_with_own_or_assumed_keys(runtime: Runtime) -> None:
    SMDetector("ships").invoke(b"")
    assumed = {"AccessKeyId": "role-key", "SecretAccessKey": "s", "SessionToken": "session"}
    SMDetector("ships", assumed).invoke(b"")
    assert [signer(request) for request in runtime.requests] == ["own-key", "role-key"]
    assert runtime.requests[1][1]["X-Amz-Security-Token"] == "session"


def test_expired_credentials_are_refreshed_once(runtime: Runtime, monkeypatch: pytest.MonkeyPatch) -> None:
    detector = SMDetector("ships")
    detector.invoke(b"")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "new-key")
    runtime.answers = [aws_error("ExpiredTokenException", 403)]
    answer = invoke_with_retries(detector, b"tile", sleep=lambda _s: None, rng=random.Random(1))
    assert (answer.body, answer.retries) == (BODY, 1)
    assert [signer(request) for request in runtime.requests] == ["own-key", "own-key", "new-key"]


def test_refresh_for_many_threads_happens_once(runtime: Runtime) -> None:
    detector = SMDetector("ships")
    detector.refresh_credentials()
    refreshed = detector.sm_client
    detector.refresh_credentials()
    assert detector.sm_client is refreshed


def test_given_client_is_never_replaced(runtime: Runtime, client: Any) -> None:
    detector = SMDetector("ships", client=client)
    detector.refresh_credentials()
    assert detector.sm_client is client


@pytest.mark.parametrize(
    ("answer", "calls", "raised", "code"),
    [
        (aws_error("ModelError", 424, OriginalStatusCode=500), 3, ModelTileError, "MODEL_5XX"),
        (aws_error("ModelError", 424, OriginalStatusCode=400), 1, ModelTileError, "MODEL_4XX"),
        (aws_error("AccessDeniedException", 403), 1, ModelJobError, "ACCESS_DENIED"),
    ],
)
def test_retry_layer_over_service(
    runtime: Runtime, client: Any, answer: Answer, calls: int, raised: type[Any], code: str
) -> None:
    runtime.answers = [answer] * 10
    with pytest.raises(raised) as caught:
        invoke_with_retries(SMDetector("ships", client=client), b"tile", sleep=lambda _s: None, rng=random.Random(1))
    assert (len(runtime.requests), caught.value.code) == (calls, code)


def test_features_are_found(runtime: Runtime, client: Any) -> None:
    detector = SMDetector("ships", client=client)
    collection = detector.find_features(io.BufferedReader(io.BytesIO(b"tile")), None)
    assert [feature["properties"]["imageBBox"] for feature in collection.features] == [[0, 0, 4, 4]]
    assert runtime.requests[0][2] == b"tile"


def test_builder_and_factory_make_detector(runtime: Runtime) -> None:
    made = SMDetectorBuilder("ships").build()
    also = FeatureDetectorFactory("ships", ModelInvokeMode.SM_ENDPOINT, None, {"SessionId": "1"}, "PNG").build()
    for detector in (made, also):
        assert isinstance(detector, SMDetector)
        assert detector.invoke(b"tile") == BODY
    assert runtime.requests[1][1]["Content-Type"] == "image/png"
