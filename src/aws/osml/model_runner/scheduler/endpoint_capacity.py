"""Capacity of endpoints in concurrent calls, and the choice of the variant that gets an image."""

import hashlib
import random
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import structlog
from botocore.exceptions import BotoCoreError, ClientError

from aws.osml.model_runner.api.image_request import ImageRequest
from aws.osml.model_runner.api.inference import ModelInvokeMode
from aws.osml.model_runner.api.region_request import RegionRequest
from aws.osml.model_runner.aws.clients import AwsClients
from aws.osml.model_runner.aws.errors import error_code, is_role_refusal
from aws.osml.model_runner.aws.role_session import describing_session
from aws.osml.model_runner.config import ServiceConfig
from aws.osml.model_runner.database.endpoint_facts import Fact, SharedFacts
from aws.osml.model_runner.exceptions import TableError
from aws.osml.model_runner.inference.endpoint_check import endpoint_finding, is_missing
from aws.osml.model_runner.telemetry.metrics import COUNT, MetricsRecorder

from .load import lane_of
from .policy import LaneCapacity

logger = structlog.get_logger(__name__)

# Tag of an endpoint: concurrent calls per instance, or per copy of an inference component.
CONCURRENCY_TAG = "osml:instance-concurrency"

# Age at which a description is looked up again, after a success and after an error. It is random, so that the
# descriptions of many endpoints are not due together.
_DUE_AFTER_S = (240.0, 300.0)
_DUE_AFTER_ERROR_S = (15.0, 30.0)
# Length of the claim of a look-up. A worker that dies meanwhile delays the next look-up by this time.
_LOOK_UP_S = 60.0
# Maximum age of the descriptions that a process has read.
_READ_EVERY_S = 10.0
# Maximum age of a description that shows that nothing is wrong, and of a description by which a request is refused.
_RECENT_S = _DUE_AFTER_S[1] + _LOOK_UP_S
_NEW_S = 5.0
# Maximum wait of a request while another worker looks its endpoint up. A preflight has twice that time.
_WAIT_S = 5.0
_WAIT_POLL_S = (0.2, 0.4)


@dataclass(frozen=True)
class Variant:
    """A production variant. ``max_concurrency`` is in concurrent calls, of a serverless variant only.

    ``weight`` is proportional to the variant's share of images.
    """

    instances: int
    max_concurrency: int | None
    weight: float


@dataclass(frozen=True)
class Endpoint:
    """A description of an endpoint; ``concurrency`` is in concurrent calls per instance."""

    variants: Mapping[str, Variant]
    concurrency: int


@dataclass(frozen=True)
class _Subject:
    """An endpoint or an inference component, described under a role. Another role may belong to another account."""

    kind: str
    name: str
    role: str

    @property
    def key(self) -> str:
        digest = hashlib.sha256(self.role.encode()).hexdigest()[:16] if self.role else "-"
        # Earlier versions stored less, in rows without the number.
        return f"{self.kind}#{self.name}#{digest}#2"


class EndpointCapacityEstimator:
    """Estimates the capacity of endpoints from descriptions that all workers share. Thread-safe.

    One worker at a time looks an endpoint up; all others read its description from a table. Only ``describe``,
    ``choose_variant`` and ``refresh`` call the control plane. A description stays valid while it cannot be renewed.
    """

    def __init__(
        self,
        config: ServiceConfig,
        clients: AwsClients,
        metrics: MetricsRecorder,
        facts: SharedFacts,
        now: Callable[[], float] = time.time,
        rng: random.Random | None = None,
        sleep: Callable[[float], object] = time.sleep,
    ) -> None:
        self._config = config
        self._clients = clients
        self._metrics = metrics
        self._now = now
        self._rng = rng or random.Random()
        self._facts = facts
        self._sleep = sleep
        self._read: dict[str, Fact] = {}
        self._read_at: float | None = None
        # Descriptions that were needed in this process and are due.
        self._due: dict[str, _Subject] = {}
        self._lock = threading.Lock()

    def capacity(self, request: ImageRequest) -> LaneCapacity:
        """Return the capacity of a request's lane; an endpoint that was never described counts as one instance."""
        config = self._config
        if request.model_invoke_mode == ModelInvokeMode.SM_ENDPOINT:
            known = self.known_calls(request)
            calls = config.default_instance_concurrency if known is None else known
        else:
            calls = config.default_http_endpoint_concurrency
        target = int(calls * config.capacity_target_percentage)
        return LaneCapacity(calls, target if config.scheduler_throttling_enabled else float("inf"))

    def known_calls(self, request: ImageRequest | RegionRequest) -> int | None:
        """Return the concurrent calls that the endpoint, variant or component of a request takes, as last described.

        None for an HTTP endpoint, and for a SageMaker endpoint that was never described. 0 where no instance is in
        service. This reads a table once in ten seconds at most, and never calls the control plane, so it may be called
        for each region.
        """
        if request.model_invoke_mode != ModelInvokeMode.SM_ENDPOINT:
            return None
        lane, component = lane_of(request), _component_of(request)
        described = self._fact(_subject("endpoint", lane.endpoint, request)).value
        described_component = self._fact(_subject("component", component, request)).value if component else None
        if described is None or (component and described_component is None):
            return None
        endpoint = self._endpoint_from(described)
        if described_component is not None:
            return int(described_component["copies"]) * endpoint.concurrency
        return sum(
            variant.instances * endpoint.concurrency if variant.max_concurrency is None else variant.max_concurrency
            for name, variant in endpoint.variants.items()
            if not lane.part or name == lane.part
        )

    def certain_calls(self, request: ImageRequest | RegionRequest) -> int | None:
        """Return ``known_calls`` where the endpoint has the tag ``CONCURRENCY_TAG`` or is serverless; else None.

        ``DEFAULT_INSTANCE_CONCURRENCY`` is a guess. The scheduler may rely on it, a limit of calls must not.
        """
        if request.model_invoke_mode != ModelInvokeMode.SM_ENDPOINT:
            return None
        value = self._fact(_subject("endpoint", request.model_name, request)).value
        if value is None:
            return None
        is_serverless = all("max_concurrency" in variant for variant in value["variants"].values())
        return self.known_calls(request) if "concurrency" in value or is_serverless else None

    def max_body_bytes(self, request: RegionRequest) -> int | None:
        """Return the largest body in bytes that the endpoint of a request takes, as last described; None if unknown.

        Like ``known_calls``, this reads a table at most.
        """
        if request.model_invoke_mode != ModelInvokeMode.SM_ENDPOINT:
            return None
        fact = self._fact(_subject("endpoint", request.model_name, request))
        if not self._is_within(fact, _RECENT_S) or fact.value is None:
            return None
        parameters = request.model_endpoint_parameters or {}
        return endpoint_finding(_described_form(fact.value), request.model_name, parameters).max_body_bytes

    def describe(self, kind: str, name: str, role: str, is_new: bool = False) -> Mapping[str, Any]:
        """Return the description of an endpoint or a component; see ``Describe``.

        Without ``is_new`` it may be six minutes old, and this waits a few seconds while another worker looks it up.
        """
        subject = _Subject(kind, name, role)
        fact = self._fact(subject)
        if not self._is_within(fact, _NEW_S if is_new else _RECENT_S):
            try:
                fact = self._look_up(subject) if is_new else self._shared_look_up(subject)
            except (ClientError, BotoCoreError) as err:
                if isinstance(err, ClientError) and (is_missing(err) or is_role_refusal(err)):
                    with self._lock:
                        self._due.pop(subject.key, None)
                    self._facts.forget(subject.key)
                else:
                    self._record_error(subject, err)
                raise
        return _described_form(fact.value or {})

    def choose_variant(self, request: ImageRequest) -> str | None:
        """Draw a variant of a request's endpoint by weight; None where the request names a variant or component.

        Also None where the endpoint cannot be described or has no variants with a weight. Afterwards the capacity of
        the request's lane is known, unless the endpoint cannot be described.
        """
        if request.model_invoke_mode != ModelInvokeMode.SM_ENDPOINT:
            return None
        value = self._any_description(_subject("endpoint", request.model_name, request))
        if component := _component_of(request):
            self._any_description(_subject("component", component, request))
        variants = {} if value is None else self._endpoint_from(value).variants
        if not variants or lane_of(request).part:
            return None
        names = sorted(variants)
        weights = [variants[name].weight for name in names]
        return self._rng.choices(names, weights)[0] if any(weights) else None

    def refresh(self) -> None:
        """Look up descriptions that are due and were needed in this process, unless another worker claimed them."""
        with self._lock:
            due, self._due = self._due, {}
        for subject in due.values():
            if self._facts.claim(subject.key, _LOOK_UP_S):
                try:
                    self._look_up(subject)
                except (ClientError, BotoCoreError) as err:
                    self._record_error(subject, err)

    # Facts ----------------------------------------------------------------------------------------------------------

    def _endpoint_from(self, value: Mapping[str, Any]) -> Endpoint:
        variants = {
            name: Variant(int(variant["instances"]), variant.get("max_concurrency"), float(variant["weight"]))
            for name, variant in value["variants"].items()
        }
        return Endpoint(variants, int(value.get("concurrency", self._config.default_instance_concurrency)))

    def _fact(self, subject: _Subject) -> Fact:
        """Return the description that this process has read; the next ``refresh`` looks a due description up."""
        now_s = self._now()
        with self._lock:
            is_old = self._read_at is None or not 0 <= now_s - self._read_at < _READ_EVERY_S
            if is_old:
                self._read_at = now_s
        if is_old:
            self._read_all()
        with self._lock:
            fact = self._read.get(subject.key, Fact())
            if fact.due_at <= now_s:
                self._due[subject.key] = subject
            return fact

    def _read_all(self) -> None:
        try:
            facts = self._facts.all()
        except (TableError, ClientError, BotoCoreError) as err:
            logger.warning("endpoint.facts_not_read", error=str(err))
            return
        with self._lock:
            self._read = facts

    def _is_within(self, fact: Fact, max_age_s: float) -> bool:
        return fact.value is not None and fact.error is None and self._now() - fact.looked_up_at <= max_age_s

    def _any_description(self, subject: _Subject) -> Mapping[str, Any] | None:
        """Return the last description, or look the first description up now; None if that failed."""
        fact = self._fact(subject)
        if fact.value is None and (fact.error is None or fact.due_at <= self._now()):
            try:
                fact = self._shared_look_up(subject)
            except (ClientError, BotoCoreError) as err:
                self._record_error(subject, err)
        return fact.value

    def _shared_look_up(self, subject: _Subject) -> Fact:
        """Look a subject up, or wait until the worker that looks it up has stored it."""
        waited_s = 0.0
        while not self._facts.claim(subject.key, _LOOK_UP_S):
            fact = self._facts.get(subject.key)
            self._remember(subject, fact)
            if self._is_within(fact, _RECENT_S):
                return fact
            if fact.error is not None or waited_s >= _WAIT_S:
                break
            pause_s = self._rng.uniform(*_WAIT_POLL_S)
            self._sleep(pause_s)
            waited_s += pause_s
        return self._look_up(subject)

    def _look_up(self, subject: _Subject) -> Fact:
        """Look a subject up and store its description.

        Raises:
            ClientError, BotoCoreError: the subject cannot be described.
        """
        sagemaker = self._clients.client("sagemaker", describing_session(subject.role, subject.name))
        if subject.kind == "endpoint":
            value = self._endpoint_facts(sagemaker, subject.name)
        else:
            response = sagemaker.describe_inference_component(InferenceComponentName=subject.name)
            facts = {"state": response.get("InferenceComponentStatus"), "endpoint": response.get("EndpointName")}
            value = {name: fact for name, fact in facts.items() if fact is not None}
            value["copies"] = int(response.get("RuntimeConfig", {}).get("CurrentCopyCount", 0))
        self._facts.store(subject.key, value, self._now() + self._rng.uniform(*_DUE_AFTER_S))
        fact = self._facts.get(subject.key)
        self._remember(subject, fact)
        return fact

    def _record_error(self, subject: _Subject, err: ClientError | BotoCoreError) -> None:
        """Record an error and the time of the next look-up; the last description stays valid."""
        logger.warning("endpoint.capacity_unknown", endpoint=subject.name, error=error_code(err))
        self._metrics.record("Scheduling", "Errors", 1, COUNT, ModelName=subject.name)
        self._facts.record_error(subject.key, error_code(err), self._now() + self._rng.uniform(*_DUE_AFTER_ERROR_S))
        self._remember(subject, self._facts.get(subject.key))

    def _remember(self, subject: _Subject, fact: Fact) -> None:
        with self._lock:
            self._read = {**self._read, subject.key: fact}

    # The control plane ----------------------------------------------------------------------------------------------

    def _endpoint_facts(self, sagemaker: Any, name: str) -> dict[str, Any]:
        response = sagemaker.describe_endpoint(EndpointName=name)
        variants: dict[str, dict[str, Any]] = {}
        for variant in response.get("ProductionVariants", ()):
            facts = {
                "instances": int(variant.get("CurrentInstanceCount", 0)),
                "weight": float(variant.get("CurrentWeight", 1.0)),
            }
            serverless = variant.get("CurrentServerlessConfig") or {}
            if "MaxConcurrency" in serverless:
                facts["max_concurrency"] = int(serverless["MaxConcurrency"])
            variants[variant["VariantName"]] = facts
        concurrency = self._tagged_concurrency(sagemaker, response.get("EndpointArn", ""))
        endpoint_facts = {"variants": variants, "state": response.get("EndpointStatus", "InService")}
        if config_name := response.get("EndpointConfigName"):
            endpoint_facts["config"] = config_name
        return endpoint_facts | ({} if concurrency is None else {"concurrency": concurrency})

    def _tagged_concurrency(self, sagemaker: Any, arn: str) -> int | None:
        # A resource has at most 50 tags, so one page holds them all.
        tags = sagemaker.list_tags(ResourceArn=arn, MaxResults=100)["Tags"]
        text = next((tag["Value"] for tag in tags if tag["Key"] == CONCURRENCY_TAG), None)
        if text is None:
            return None
        try:
            concurrency = int(text)
        except ValueError:
            concurrency = 0
        if concurrency < 1:
            default = self._config.default_instance_concurrency
            logger.warning("endpoint.bad_tag", endpoint=arn, tag=CONCURRENCY_TAG, value=text, used=default)
            return None
        return concurrency


def _component_of(request: ImageRequest | RegionRequest) -> str:
    return str((request.model_endpoint_parameters or {}).get("InferenceComponentName") or "")


def _subject(kind: str, name: str, request: ImageRequest | RegionRequest) -> _Subject:
    return _Subject(kind, name, request.model_invocation_role or "")


def _described_form(value: Mapping[str, Any]) -> dict[str, Any]:
    """Return the facts of an endpoint or a component in the form of SageMaker's response."""
    if "copies" in value:
        names = {"state": "InferenceComponentStatus", "endpoint": "EndpointName"}
        return {names[name]: value[name] for name in names if name in value}
    variants = value["variants"]
    return {
        "EndpointStatus": value["state"],
        "EndpointConfigName": value.get("config"),
        "ProductionVariants": [
            {
                "VariantName": name,
                "CurrentInstanceCount": variants[name]["instances"],
                "CurrentServerlessConfig": variants[name].get("max_concurrency"),
            }
            for name in variants
        ],
    }
