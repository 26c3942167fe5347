"""How many calls at once an endpoint takes, and which of its variants an image goes to."""

import random
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import structlog
from botocore.exceptions import BotoCoreError, ClientError
from cachetools import TLRUCache

from aws.osml.model_runner.api.image_request import ImageRequest
from aws.osml.model_runner.api.inference import ModelInvokeMode
from aws.osml.model_runner.app_config import ServiceConfig
from aws.osml.model_runner.common.aws_clients import AwsClients
from aws.osml.model_runner.common.role_session import describing_session
from aws.osml.model_runner.metrics import COUNT, MetricsRecorder

from .decision import Lane, LaneCapacity
from .survey import lane_of

logger = structlog.get_logger(__name__)

# Says of an endpoint how many calls at once one of its instances, or one copy of a component, takes.
CONCURRENCY_TAG = "osml:instance-concurrency"

_CACHED_S = 300.0
# One that could not be described may be so soon.
_UNKNOWN_CACHED_S = 30.0
_CACHED_ENDPOINTS = 100


@dataclass(frozen=True)
class Variant:
    """A production variant: so many instances, or so many calls at once where it is serverless; its share of images."""

    instances: int
    max_concurrency: int | None
    weight: float


@dataclass(frozen=True)
class Endpoint:
    """What SageMaker says of an endpoint; ``concurrency`` is in calls at once per instance."""

    variants: Mapping[str, Variant]
    concurrency: int


class EndpointCapacityEstimator:
    """Looks endpoints up, and remembers each for five minutes. Any thread may ask."""

    def __init__(
        self,
        config: ServiceConfig,
        clients: AwsClients,
        metrics: MetricsRecorder,
        now: Callable[[], float] = time.time,
        rng: random.Random | None = None,
    ) -> None:
        self._config = config
        self._clients = clients
        self._metrics = metrics
        self._rng = rng or random.Random()
        self._known: TLRUCache[Any, Any] = TLRUCache(_CACHED_ENDPOINTS, _time_to_use, timer=now)
        self._lock = threading.Lock()

    def capacity(self, request: ImageRequest) -> LaneCapacity:
        """Return what the lane of a request takes; an endpoint that cannot be described is taken for one instance."""
        config = self._config
        calls = self._calls(request, lane_of(request))
        target = int(calls * config.capacity_target_percentage)
        return LaneCapacity(calls, target if config.scheduler_throttling_enabled else float("inf"))

    def choose_variant(self, request: ImageRequest) -> str | None:
        """Draw a variant of a request's endpoint by weight; None where the request names one, or there is none."""
        parameters = request.model_endpoint_parameters or {}
        if request.model_invoke_mode != ModelInvokeMode.SM_ENDPOINT or not parameters.keys().isdisjoint(
            ("TargetVariant", "InferenceComponentName")
        ):
            return None
        endpoint = self._endpoint(request.model_name, request.model_invocation_role)
        if endpoint is None or not endpoint.variants:
            return None
        names = sorted(endpoint.variants)
        weights = [endpoint.variants[name].weight for name in names]
        if not any(weights):
            return None
        return self._rng.choices(names, weights)[0]

    def _calls(self, request: ImageRequest, lane: Lane) -> int:
        if request.model_invoke_mode != ModelInvokeMode.SM_ENDPOINT:
            return self._config.default_http_endpoint_concurrency
        role, default = request.model_invocation_role, self._config.default_instance_concurrency
        endpoint = self._endpoint(lane.endpoint, role)
        if endpoint is None:
            return default
        component = (request.model_endpoint_parameters or {}).get("InferenceComponentName")
        if component:
            copies = self._copies(str(component), role)
            return default if copies is None else copies * endpoint.concurrency
        variants = endpoint.variants
        if lane.part:
            variants = {name: variant for name, variant in variants.items() if name == lane.part}
        return sum(_calls_of(variant, endpoint.concurrency) for variant in variants.values())

    def _endpoint(self, name: str, role: str) -> Endpoint | None:
        found: Endpoint | None = self._cached(("endpoint", name, role), name, lambda: self._described(name, role))
        return found

    def _copies(self, component: str, role: str) -> int | None:
        key = ("component", component, role)
        found: int | None = self._cached(key, component, lambda: self._counted(component, role))
        return found

    def _cached(self, key: object, name: str, look_up: Callable[[], Any]) -> Any:
        # Two threads that miss at once both ask; neither waits for the other's network.
        with self._lock:
            if key in self._known:
                return self._known[key]
        try:
            found = look_up()
        except (ClientError, BotoCoreError) as err:
            logger.warning("endpoint.capacity_unknown", endpoint=name, error=type(err).__name__)
            self._metrics.record("Scheduling", "Errors", 1, COUNT, ModelName=name)
            found = None
        with self._lock:
            self._known[key] = found
        return found

    def _described(self, name: str, role: str) -> Endpoint:
        sagemaker = self._clients.client("sagemaker", describing_session(role, name))
        answer = sagemaker.describe_endpoint(EndpointName=name)
        variants = {variant["VariantName"]: _variant(variant) for variant in answer.get("ProductionVariants", ())}
        return Endpoint(variants, self._concurrency(sagemaker, answer.get("EndpointArn", "")))

    def _concurrency(self, sagemaker: Any, arn: str) -> int:
        default = self._config.default_instance_concurrency
        # No resource has more than 50 tags, so one page holds them all.
        tags = sagemaker.list_tags(ResourceArn=arn, MaxResults=100)["Tags"]
        text = next((tag["Value"] for tag in tags if tag["Key"] == CONCURRENCY_TAG), None)
        if text is None:
            return default
        try:
            concurrency = int(text)
        except ValueError:
            concurrency = 0
        if concurrency < 1:
            logger.warning("endpoint.bad_tag", endpoint=arn, tag=CONCURRENCY_TAG, value=text, used=default)
            return default
        return concurrency

    def _counted(self, component: str, role: str) -> int:
        sagemaker = self._clients.client("sagemaker", describing_session(role, component))
        answer = sagemaker.describe_inference_component(InferenceComponentName=component)
        return int(answer.get("RuntimeConfig", {}).get("CurrentCopyCount", 0))


def _time_to_use(_key: object, value: object, now_s: float) -> float:
    return now_s + (_UNKNOWN_CACHED_S if value is None else _CACHED_S)


def _variant(described: Mapping[str, Any]) -> Variant:
    serverless = described.get("CurrentServerlessConfig") or {}
    return Variant(
        instances=int(described.get("CurrentInstanceCount", 0)),
        max_concurrency=serverless.get("MaxConcurrency"),
        weight=float(described.get("CurrentWeight", 1.0)),
    )


def _calls_of(variant: Variant, concurrency: int) -> int:
    return variant.max_concurrency if variant.max_concurrency is not None else variant.instances * concurrency
