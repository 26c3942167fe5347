"""Serves SageMaker's runtime and the few control calls that a worker makes, and forwards tiles to model servers.

``POST /endpoints/NAME/invocations`` behaves as InvokeEndpoint. The model's response is returned unchanged. A model that
fails causes a ModelError (424) with its status. A variant that the endpoint does not have is refused. If the model does
not respond in time, or closes the connection, the original status is 0. Bodies above SageMaker's limits are refused,
and so are calls above the concurrency of a serverless variant. An endpoint with a ``Refusal`` refuses every call, as a
busy endpoint does. ``DescribeEndpoint``, ``DescribeEndpointConfig`` and ``ListTags`` follow the JSON 1.1 protocol of
the SageMaker API.
"""

import json
import threading
import urllib.parse
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from types import TracebackType
from typing import Any

import urllib3

from aws.osml.model_runner.api.inference import MAX_SAGEMAKER_BODY_BYTES, MAX_SERVERLESS_BODY_BYTES

from .child_process import REGION
from .http_service import HttpRequest, HttpResponse, HttpService

ACCOUNT = "000000000000"
MODEL_TIMEOUT_S = 60.0  # SageMaker's limit for a response
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
# For each control call, the argument that names the endpoint: its name, or an ARN that ends with "/" and the name.
_NAME_ARGUMENTS = {
    "DescribeEndpoint": "EndpointName",
    "DescribeEndpointConfig": "EndpointConfigName",
    "ListTags": "ResourceArn",
}
_FORWARDED = ("content-type", "accept")
_FORWARDED_PREFIX = "x-amzn-sagemaker-"


class Refusal(StrEnum):
    """Error codes by which a busy endpoint refuses a call."""

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
    """A production variant, as the control calls describe it. It is serverless if it has a ``max_concurrency``."""

    name: str = "AllTraffic"
    instance_type: str = "ml.m5.xlarge"
    instance_count: int = 1
    weight: float = 1.0
    max_concurrency: int | None = None


@dataclass(frozen=True)
class LocalEndpoint:
    """An endpoint: the URL of its model, and its variants and tags, as SageMaker describes them.

    With ``refusal`` no call reaches the model.
    """

    invocations_url: str
    variants: tuple[Variant, ...] = (Variant(),)
    tags: Mapping[str, str] = field(default_factory=dict)
    refusal: Refusal | None = None

    @property
    def max_concurrency(self) -> int | None:
        """Maximum of concurrent calls of the first variant; None unless it is serverless."""
        return self.variants[0].max_concurrency


class SageMakerGateway(HttpService):
    """Serves endpoints by name while its ``with`` block runs. ``url`` is for AWS_ENDPOINT_URL_SAGEMAKER and …_RUNTIME.

    ``endpoints`` may change at any time. ``model_timeout_s`` limits the response of a model.
    """

    def __init__(
        self, endpoints: Mapping[str, LocalEndpoint], port: int = 0, model_timeout_s: float = MODEL_TIMEOUT_S
    ) -> None:
        super().__init__(self._route, port)
        self._lock = threading.Lock()
        self._endpoints = dict(endpoints)
        self._in_flight: Counter[str] = Counter()
        # Without retries, because the worker decides about retries.
        self._models = urllib3.PoolManager(num_pools=16, maxsize=64, retries=False, timeout=model_timeout_s)

    @property
    def environment(self) -> dict[str, str]:
        """Environment variables that direct a worker's SageMaker calls to this gateway."""
        return {"AWS_ENDPOINT_URL_SAGEMAKER_RUNTIME": self.url, "AWS_ENDPOINT_URL_SAGEMAKER": self.url}

    def add_endpoint(self, name: str, endpoint: LocalEndpoint) -> None:
        """Serve ``endpoint`` under ``name`` from now on."""
        with self._lock:
            self._endpoints[name] = endpoint

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        super().__exit__(kind, error, trace)
        self._models.clear()

    def _route(self, request: HttpRequest) -> HttpResponse:
        parts = request.path.strip("/").split("/")
        if request.method == "POST" and len(parts) == 3 and parts[::2] == ["endpoints", "invocations"]:
            return self._invoke(urllib.parse.unquote(parts[1]), request)
        target = request.headers.get("x-amz-target", "")
        if request.method == "POST" and target.startswith(TARGET_PREFIX):
            return self._describe(target.removeprefix(TARGET_PREFIX), json.loads(request.body or b"{}"))
        return _error(404, "UnknownOperationException", f"{request.method} {request.path} is not served here")

    def _invoke(self, name: str, request: HttpRequest) -> HttpResponse:
        endpoint = self._find(name)
        if endpoint is None:
            return _error(400, "ValidationError", f"Endpoint {name} of account {ACCOUNT} not found.")
        variant = request.headers.get("x-amzn-sagemaker-target-variant")
        if variant is not None and variant not in {known.name for known in endpoint.variants}:
            return _error(400, "ValidationError", f"Variant {variant} of endpoint {name} not found.")
        is_serverless = endpoint.max_concurrency is not None
        max_body_bytes = MAX_SERVERLESS_BODY_BYTES if is_serverless else MAX_SAGEMAKER_BODY_BYTES
        if len(request.body) > max_body_bytes:
            return HttpResponse.of_json({"Message": f"HTTP content length exceeded {max_body_bytes} bytes."}, 413)
        with self._lock:
            is_full = endpoint.max_concurrency is not None and self._in_flight[name] >= endpoint.max_concurrency
            refusal = Refusal.THROTTLING if is_full else endpoint.refusal
            self._in_flight[name] += refusal is None
        if refusal is Refusal.NO_RESPONSE:
            return _model_error(name, 0, NO_RESPONSE)
        if refusal is not None:
            return _error(_REFUSAL_STATUSES[refusal], refusal.value, _REFUSAL_MESSAGES[refusal])
        try:
            return self._forward(name, endpoint, request)
        finally:
            with self._lock:
                self._in_flight[name] -= 1

    def _forward(self, name: str, endpoint: LocalEndpoint, request: HttpRequest) -> HttpResponse:
        sent = request.headers.items()
        headers = {key: value for key, value in sent if key in _FORWARDED or key.startswith(_FORWARDED_PREFIX)}
        try:
            response = self._models.request("POST", endpoint.invocations_url, body=request.body, headers=headers)
        except urllib3.exceptions.ReadTimeoutError:
            return _model_error(name, 0, TIMED_OUT)
        except urllib3.exceptions.ProtocolError:
            return _model_error(name, 0, NO_RESPONSE)
        except urllib3.exceptions.HTTPError:
            return _error(503, "ServiceUnavailable", "The service is currently unavailable, or no container responds.")
        if not 200 <= response.status < 300:
            return _model_error(name, response.status, response.data.decode(errors="replace"))
        variant = request.headers.get("x-amzn-sagemaker-target-variant") or endpoint.variants[0].name
        content_type = response.headers.get("Content-Type", "application/json")
        return HttpResponse(200, response.data, content_type, {"x-Amzn-Invoked-Production-Variant": variant})

    def _describe(self, operation: str, arguments: Mapping[str, Any]) -> HttpResponse:
        if operation not in _NAME_ARGUMENTS:
            return _error(400, "UnknownOperationException", f"{operation} is not served here")
        name = str(arguments.get(_NAME_ARGUMENTS[operation], "")).rpartition("/")[2]
        endpoint = self._find(name)
        if endpoint is None:
            return _error(400, "ValidationException", f'Could not find endpoint "{_arn(name)}".')
        if operation == "DescribeEndpoint":
            document = _endpoint_description(name, endpoint)
        elif operation == "DescribeEndpointConfig":
            document = _config_description(name, endpoint)
        else:
            document = {"Tags": [{"Key": key, "Value": value} for key, value in endpoint.tags.items()]}
        return HttpResponse(200, json.dumps(document).encode(), "application/x-amz-json-1.1")

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


def _arn(name: str, kind: str = "endpoint") -> str:
    return f"arn:aws:sagemaker:{REGION}:{ACCOUNT}:{kind}/{name}"


def _model_error(name: str, status: int, message: str) -> HttpResponse:
    """Return SageMaker's response for a container that failed; ``status`` is 0 if the container did not respond."""
    body = {
        "Message": f'Received server error ({status}) from primary with message "{message}".',
        "OriginalMessage": message,
        "OriginalStatusCode": status,
        "LogStreamArn": f"arn:aws:logs:{REGION}:{ACCOUNT}:log-group:/aws/sagemaker/Endpoints/{name}",
    }
    return HttpResponse.of_json(body, 424, {"x-amzn-ErrorType": "ModelError"})


def _error(status: int, code: str, message: str) -> HttpResponse:
    return HttpResponse.of_json(
        {"__type": code, "message": message, "Message": message}, status, {"x-amzn-ErrorType": code}
    )
