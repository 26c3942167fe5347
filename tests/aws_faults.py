"""Faults between a real boto3 client and a real server: errors, lost replies, calls that are never sent."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import boto3
from botocore.awsrequest import AWSResponse
from botocore.config import Config
from botocore.exceptions import ClientError, ConnectTimeoutError, ReadTimeoutError
from botocore.httpsession import URLLib3Session


def single_try_client(emulator: Any, service: str) -> Any:
    """Return a client that sends each call once, so that a fault is not retried beneath the code under test."""
    environment = emulator.environment
    return boto3.Session(
        aws_access_key_id=environment["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=environment["AWS_SECRET_ACCESS_KEY"],
        region_name=environment["AWS_REGION"],
    ).client(
        service,
        endpoint_url=emulator.url,
        config=Config(retries={"total_max_attempts": 1}, proxies={}, s3={"addressing_style": "path"}),
    )


def client_error(code: str, operation: str = "PutItem", status: int = 400) -> ClientError:
    """Return what boto3 raises when a service refuses a call."""
    response = {"Error": {"Code": code, "Message": "m"}, "ResponseMetadata": {"HTTPStatusCode": status}}
    return ClientError(response, operation)  # type: ignore[arg-type]


class Raw:
    """The body of an answer that is made up, as botocore reads it."""

    def __init__(self, body: bytes) -> None:
        self.body = body

    def stream(self) -> Iterator[bytes]:
        yield self.body


def json_error(code: str, status: int = 400) -> tuple[int, dict[str, str], bytes]:
    """Return an error answer of a service that speaks JSON."""
    return status, {"Content-Type": "application/x-amz-json-1.1"}, json.dumps({"__type": code, "message": ""}).encode()


def json_answer(document: dict[str, Any]) -> tuple[int, dict[str, str], bytes]:
    """Return a successful answer of a service that speaks JSON."""
    return 200, {"Content-Type": "application/x-amz-json-1.1"}, json.dumps(document).encode()


def xml_error(code: str, status: int = 400) -> tuple[int, dict[str, str], bytes]:
    """Return an error answer of S3 (``Error``) and of SNS (``ErrorResponse``)."""
    error = f"<Error><Code>{code}</Code><Message>m</Message></Error>"
    return status, {"Content-Type": "text/xml"}, error.encode()


def query_error(code: str, status: int = 400) -> tuple[int, dict[str, str], bytes]:
    """Return an error answer of a service that speaks the query protocol."""
    body = f"<ErrorResponse><Error><Type>Sender</Type><Code>{code}</Code></Error></ErrorResponse>"
    return status, {"Content-Type": "text/xml"}, body.encode()


@contextmanager
def answering(client: Any, operation: str, *answers: tuple[int, dict[str, str], bytes] | None) -> Iterator[list[str]]:
    """Answer the next calls of ``operation`` in place of the server; ``None`` lets one through, the last one stays."""
    calls: list[str] = []
    script = list(answers)

    def answer(request: Any, **_: Any) -> AWSResponse | None:
        calls.append(request.url)
        made = script.pop(0) if len(script) > 1 else script[0]
        return None if made is None else AWSResponse(request.url, made[0], made[1], Raw(made[2]))

    with _hook(client, operation, answer):
        yield calls


@contextmanager
def losing_first_reply(client: Any, operation: str) -> Iterator[list[str]]:
    """Execute the first call of ``operation`` in the server, and drop its response."""
    lost: list[str] = []

    def lose(request: Any, **_: Any) -> None:
        if not lost:
            lost.append(request.url)
            session = URLLib3Session()
            session.send(request)
            session.close()
            raise ReadTimeoutError(endpoint_url=request.url)

    with _hook(client, operation, lose):
        yield lost


@contextmanager
def never_sending(client: Any, operation: str) -> Iterator[None]:
    """Let no call of ``operation`` leave the client."""

    def fail(request: Any, **_: Any) -> None:
        raise ConnectTimeoutError(endpoint_url=request.url)

    with _hook(client, operation, fail):
        yield


@contextmanager
def _hook(client: Any, operation: str, handler: Any) -> Iterator[None]:
    event = f"before-send.{client.meta.service_model.service_id.hyphenize()}.{operation}"
    client.meta.events.register_first(event, handler)
    try:
        yield
    finally:
        client.meta.events.unregister(event, handler)
