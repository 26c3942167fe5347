"""Answers SageMaker's runtime and the few control calls that a worker makes, and forwards tiles to model servers.

``POST /endpoints/NAME/invocations`` behaves as InvokeEndpoint: the model's answer comes back as it is, and a model that
fails becomes a ModelError (424) that carries its status. A model that does not respond in time, or breaks off, becomes
one with original status 0. Bodies above SageMaker's limits are refused, and so are calls above the concurrency of a
serverless variant. A ``Refusal`` makes an endpoint answer every call as a busy one does. ``DescribeEndpoint``,
``DescribeEndpointConfig`` and ``ListTags`` answer in the JSON 1.1 protocol of the SageMaker API.
"""

import json
import threading
import urllib.parse
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from types import TracebackType
from typing import Any, Self

import urllib3

from aws.osml.model_runner.api.inference import MAX_SAGEMAKER_BODY_BYTES, MAX_SERVERLESS_BODY_BYTES

from .environment import REGION
from .http_service import HttpRequest, HttpResponse, HttpService

ACCOUNT = "000000000000"
MODEL_TIMEOUT_S = 60.0  # what SageMaker gives a model to answer
CREATED = 1_700_000_000  # a fixed date: the endpoints have no history
TIMED_OUT = (
    "Your invocation timed out while waiting for a response from container primary. Review the latency metrics for each"
    " container in Amazon CloudWatch, resolve the issue, and try again."
)
NO_RESPONSE = (
    "Amazon SageMaker could not get a response from the primary endpoint. This can occur when CPU or memory utilization"
    " is high."
)
TARGET_PREFIX = "SageMaker."
_FORWARDED = ("content-type", "accept")
_FORWARDED_PREFIX = "x-amzn-sagemaker-"


class Refusal(StrEnum):
    """How a busy endpoint answers."""

    THROTTLING = "ThrottlingException"
    NOT_READY = "ModelNotReadyException"
    UNAVAILABLE = "ServiceUnavailable"
    NO_RESPONSE = "ModelError"


_REFUSAL_STATUSES = {Refusal.THROTTLING: 400, Refusal.NOT_READY: 429, Refusal.UNAVAILABLE: 503}
_REFUSAL_MESSAGES = {
    Refusal.THROTTLING: "Rate exceeded",
    Refusal.NOT_READY: "Model is not ready for inference yet. Please wait for the model to be ready.",
    Refusal.UNAVAILABLE: "The service is temporarily unavailable.",
}


@dataclass(frozen=True)
class Variant:
    """A production variant of an endpoint, as the control calls describe it; serverless with ``max_concurrency``."""

    name: str = "AllTraffic"
    instance_type: str = "ml.m5.xlarge"
    instance_count: int = 1
    weight: float = 1.0
    max_concurrency: int | None = None


@dataclass(frozen=True)
class LocalEndpoint:
    """An endpoint: the URL that takes its tiles, and what SageMaker would tell about it.

    With ``refusal`` no call reaches the model.
    """

    invocations_url: str
    variants: tuple[Variant, ...] = (Variant(),)
    tags: Mapping[str, str] = field(default_factory=dict)
    refusal: Refusal | None = None

    @property
    def max_concurrency(self) -> int | None:
        """Calls at once that the first variant takes where it is serverless."""
        return self.variants[0].max_concurrency


class SageMakerGateway:
    """Serves endpoints by name while its ``with`` block runs. ``url`` is for AWS_ENDPOINT_URL_SAGEMAKER and …_RUNTIME.

    ``endpoints`` may change at any time. ``model_timeout_s`` is how long a model may take to respond.
    """

    def __init__(
        self, endpoints: Mapping[str, LocalEndpoint], port: int = 0, model_timeout_s: float = MODEL_TIMEOUT_S
    ) -> None:
        self._lock = threading.Lock()
        self._endpoints = dict(endpoints)
        self._in_flight: Counter[str] = Counter()
        self._service = HttpService(self._answer, port)
        # One send each: whether to try again is the worker's decision.
        self._models = urllib3.PoolManager(num_pools=16, maxsize=64, retries=False, timeout=model_timeout_s)

    @property
    def url(self) -> str:
        """``http://host:port`` of the gateway."""
        return self._service.url

    @property
    def environment(self) -> dict[str, str]:
        """The variables that send a worker's SageMaker calls here."""
        return {"AWS_ENDPOINT_URL_SAGEMAKER_RUNTIME": self.url, "AWS_ENDPOINT_URL_SAGEMAKER": self.url}

    def add_endpoint(self, name: str, endpoint: LocalEndpoint) -> None:
        """Serve ``endpoint`` under ``name`` from now on."""
        with self._lock:
            self._endpoints[name] = endpoint

    def __enter__(self) -> Self:
        self._service.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._service.__exit__(kind, error, trace)
        self._models.clear()

    def _answer(self, request: HttpRequest) -> HttpResponse:
        parts = request.path.strip("/").split("/")
        if request.method == "POST" and len(parts) == 3 and parts[::2] == ["endpoints", "invocations"]:
            return self._invoke(urllib.parse.unquote(parts[1]), request)
        target = request.headers.get("x-amz-target", "")
        if request.method == "POST" and target.startswith(TARGET_PREFIX):
            return self._control(target.removeprefix(TARGET_PREFIX), json.loads(request.body or b"{}"))
        return _error(404, "UnknownOperationException", f"{request.method} {request.path} is not served here")

    def _invoke(self, name: str, request: HttpRequest) -> HttpResponse:
        endpoint = self._find(name)
        if endpoint is None:
            return _error(400, "ValidationError", f"Endpoint {name} of account {ACCOUNT} not found.")
        is_serverless = endpoint.max_concurrency is not None
        max_body_bytes = MAX_SERVERLESS_BODY_BYTES if is_serverless else MAX_SAGEMAKER_BODY_BYTES
        if len(request.body) > max_body_bytes:
            message = f"HTTP content length exceeded {max_body_bytes} bytes."
            return HttpResponse(413, json.dumps({"Message": message}).encode())
        with self._lock:
            is_above = endpoint.max_concurrency is not None and self._in_flight[name] >= endpoint.max_concurrency
            refusal = Refusal.THROTTLING if is_above else endpoint.refusal
            self._in_flight[name] += refusal is None
        if refusal is not None:
            return _refused(name, refusal)
        try:
            return self._forward(name, endpoint, request)
        finally:
            with self._lock:
                self._in_flight[name] -= 1

    def _forward(self, name: str, endpoint: LocalEndpoint, request: HttpRequest) -> HttpResponse:
        sent = request.headers.items()
        headers = {key: value for key, value in sent if key in _FORWARDED or key.startswith(_FORWARDED_PREFIX)}
        try:
            answer = self._models.request("POST", endpoint.invocations_url, body=request.body, headers=headers)
        except urllib3.exceptions.ReadTimeoutError:
            return _model_error(name, 0, TIMED_OUT)
        except urllib3.exceptions.ProtocolError:
            return _model_error(name, 0, NO_RESPONSE)
        except urllib3.exceptions.HTTPError:
            return _error(503, "ServiceUnavailable", "The service is currently unavailable, or no container answers.")
        if not 200 <= answer.status < 300:
            return _model_error(name, answer.status, answer.data.decode(errors="replace"))
        variant = request.headers.get("x-amzn-sagemaker-target-variant") or endpoint.variants[0].name
        content_type = answer.headers.get("Content-Type", "application/json")
        return HttpResponse(200, answer.data, content_type, {"x-Amzn-Invoked-Production-Variant": variant})

    def _control(self, operation: str, arguments: Mapping[str, Any]) -> HttpResponse:
        match operation:
            case "DescribeEndpoint":
                return self._describe(str(arguments.get("EndpointName", "")), _endpoint_description)
            case "DescribeEndpointConfig":
                return self._describe(str(arguments.get("EndpointConfigName", "")), _config_description)
            case "ListTags":
                return self._describe(str(arguments.get("ResourceArn", "")).rpartition("/")[2], _tag_list)
        return _error(400, "UnknownOperationException", f"{operation} is not served here")

    def _describe(self, name: str, description: Callable[[str, LocalEndpoint], Any]) -> HttpResponse:
        endpoint = self._find(name)
        if endpoint is None:
            return _error(400, "ValidationException", f'Could not find endpoint "{_arn(name)}".')
        body = json.dumps(description(name, endpoint)).encode()
        return HttpResponse(200, body, "application/x-amz-json-1.1")

    def _find(self, name: str) -> LocalEndpoint | None:
        with self._lock:
            return self._endpoints.get(name)


def _endpoint_description(name: str, endpoint: LocalEndpoint) -> dict[str, Any]:
    variants = [
        {
            "VariantName": variant.name,
            "CurrentWeight": variant.weight,
            "DesiredWeight": variant.weight,
            "CurrentInstanceCount": variant.instance_count,
            "DesiredInstanceCount": variant.instance_count,
        }
        | _serverless("CurrentServerlessConfig", variant)
        for variant in endpoint.variants
    ]
    return {
        "EndpointName": name,
        "EndpointArn": _arn(name),
        "EndpointConfigName": name,
        "EndpointStatus": "InService",
        "ProductionVariants": variants,
        "CreationTime": CREATED,
        "LastModifiedTime": CREATED,
    }


def _config_description(name: str, endpoint: LocalEndpoint) -> dict[str, Any]:
    variants = [
        {
            "VariantName": variant.name,
            "ModelName": name,
            "InitialInstanceCount": variant.instance_count,
            "InstanceType": variant.instance_type,
            "InitialVariantWeight": variant.weight,
        }
        | _serverless("ServerlessConfig", variant)
        for variant in endpoint.variants
    ]
    return {
        "EndpointConfigName": name,
        "EndpointConfigArn": _arn(name, "endpoint-config"),
        "ProductionVariants": variants,
        "CreationTime": CREATED,
    }


def _serverless(name: str, variant: Variant) -> dict[str, Any]:
    if variant.max_concurrency is None:
        return {}
    return {name: {"MemorySizeInMB": 4096, "MaxConcurrency": variant.max_concurrency}}


def _tag_list(_name: str, endpoint: LocalEndpoint) -> dict[str, Any]:
    return {"Tags": [{"Key": key, "Value": value} for key, value in endpoint.tags.items()]}


def _arn(name: str, kind: str = "endpoint") -> str:
    return f"arn:aws:sagemaker:{REGION}:{ACCOUNT}:{kind}/{name}"


def _refused(name: str, refusal: Refusal) -> HttpResponse:
    if refusal is Refusal.NO_RESPONSE:
        return _model_error(name, 0, NO_RESPONSE)
    return _error(_REFUSAL_STATUSES[refusal], refusal.value, _REFUSAL_MESSAGES[refusal])


def _model_error(name: str, status: int, message: str) -> HttpResponse:
    """Return what SageMaker makes of a container's failure; ``status`` 0 stands for no answer at all."""
    body = {
        "Message": f'Received server error ({status}) from primary with message "{message}".',
        "OriginalMessage": message,
        "OriginalStatusCode": status,
        "LogStreamArn": f"arn:aws:logs:{REGION}:{ACCOUNT}:log-group:/aws/sagemaker/Endpoints/{name}",
    }
    return HttpResponse(424, json.dumps(body).encode(), headers={"x-amzn-ErrorType": "ModelError"})


def _error(status: int, code: str, message: str) -> HttpResponse:
    body = {"__type": code, "message": message, "Message": message}
    return HttpResponse(status, json.dumps(body).encode(), headers={"x-amzn-ErrorType": code})
