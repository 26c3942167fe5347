"""How many calls at once an endpoint takes, and which of its variants an image goes to."""

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

# Says of an endpoint how many calls at once one of its instances, or one copy of a component, takes.
CONCURRENCY_TAG = "osml:instance-concurrency"

# When a description is looked up again, after a success and after an error; spread, so that those of many endpoints
# do not come due together.
_DUE_AFTER_S = (240.0, 300.0)
_DUE_AFTER_ERROR_S = (15.0, 30.0)
# How long the right to look up holds; a worker that dies in it delays the next try by so much.
_LOOK_UP_S = 60.0
# How old the descriptions that a process has read may be.
_READ_EVERY_S = 10.0
# Maximum age of a description that shows that nothing is wrong, and of a description by which a request is refused.
_RECENT_S = _DUE_AFTER_S[1] + _LOOK_UP_S
_NEW_S = 5.0
# How long a request waits while another worker looks its endpoint up. A preflight has twice that time.
_WAIT_S = 5.0
_WAIT_POLL_S = (0.2, 0.4)


@dataclass(frozen=True)
class Variant:
    """A production variant: so many instances, or so many calls at once where it is serverless; its share of images."""

    instances: int
    max_concurrency: int | None
    weight: float


@dataclass(frozen=True)
class Endpoint:
    """A description of an endpoint; ``concurrency`` is in calls at once per instance."""

    variants: Mapping[str, Variant]
    concurrency: int


@dataclass(frozen=True)
class _Subject:
    """An endpoint or an inference component, described under a role; another role may see another account."""

    kind: str
    name: str
    role: str

    @property
    def key(self) -> str:
        digest = hashlib.sha256(self.role.encode()).hexdigest()[:16] if self.role else "-"
        # Earlier versions stored less, in rows without the number.
        return f"{self.kind}#{self.name}#{digest}#2"


class EndpointCapacityEstimator:
    """Describes endpoints, with descriptions that the whole fleet shares. Any thread may call.

    One worker at a time looks an endpoint up; all others read its description from a table. Only ``describe``,
    ``choose_variant`` and ``refresh`` call the control plane. A description that cannot be renewed stays in force.
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
        # What was needed here and is due.
        self._due: dict[str, _Subject] = {}
        self._lock = threading.Lock()

    def capacity(self, request: ImageRequest) -> LaneCapacity:
        """Return what the lane of a request takes; an endpoint that was never described counts as one instance."""
        config = self._config
        if request.model_invoke_mode == ModelInvokeMode.SM_ENDPOINT:
            known = self.known_calls(request)
            calls = config.default_instance_concurrency if known is None else known
        else:
            calls = config.default_http_endpoint_concurrency
        target = int(calls * config.capacity_target_percentage)
        return LaneCapacity(calls, target if config.scheduler_throttling_enabled else float("inf"))

    def known_calls(self, request: ImageRequest | RegionRequest) -> int | None:
        """Return how many calls at once the endpoint, variant or component of a request takes, as last described.

        None where nothing is known: an HTTP endpoint, and a SageMaker endpoint whose first description is still to
        come. 0 where no instance serves it at present. This reads a table each ten seconds at most, and never calls
        the control plane, so it may be called for each region.
        """
        if request.model_invoke_mode != ModelInvokeMode.SM_ENDPOINT:
            return None
        lane = lane_of(request)
        component = _component_of(request)
        endpoint = self._endpoint(_subject("endpoint", lane.endpoint, request))
        copies = self._copies(_subject("component", component, request)) if component else None
        if endpoint is None or (component and copies is None):
            return None
        if copies is not None:
            return copies * endpoint.concurrency
        variants = endpoint.variants
        if lane.part:
            variants = {name: variant for name, variant in variants.items() if name == lane.part}
        return sum(_calls_of(variant, endpoint.concurrency) for variant in variants.values())

    def certain_calls(self, request: ImageRequest | RegionRequest) -> int | None:
        """Return ``known_calls`` where the endpoint itself says it, by its tag or because it is serverless; else None.

        ``DEFAULT_INSTANCE_CONCURRENCY`` is a guess. The scheduler may rest on it, a limit of calls must not.
        """
        if request.model_invoke_mode != ModelInvokeMode.SM_ENDPOINT:
            return None
        value = self._fact(_subject("endpoint", request.model_name, request)).value
        if value is None:
            return None
        is_serverless = all("max_concurrency" in variant for variant in value["variants"].values())
        return self.known_calls(request) if "concurrency" in value or is_serverless else None

    def max_body_bytes(self, request: RegionRequest) -> int | None:
        """Return the longest tile that the endpoint of a request takes, as last described; None where none is known.

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
        """Draw a variant of a request's endpoint by weight; None where the request names one, or there is none.

        Afterwards the capacity of the request's lane is known, unless it cannot be described.
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
        """Look up what is due and was needed in this process, unless another worker does."""
        with self._lock:
            due, self._due = self._due, {}
        for subject in due.values():
            if self._facts.claim(subject.key, _LOOK_UP_S):
                try:
                    self._look_up(subject)
                except (ClientError, BotoCoreError) as err:
                    self._record_error(subject, err)

    # Facts ----------------------------------------------------------------------------------------------------------

    def _endpoint(self, subject: _Subject) -> Endpoint | None:
        value = self._fact(subject).value
        return None if value is None else self._endpoint_from(value)

    def _endpoint_from(self, value: Mapping[str, Any]) -> Endpoint:
        variants = {
            name: Variant(int(variant["instances"]), variant.get("max_concurrency"), float(variant["weight"]))
            for name, variant in value["variants"].items()
        }
        return Endpoint(variants, int(value.get("concurrency", self._config.default_instance_concurrency)))

    def _copies(self, subject: _Subject) -> int | None:
        value = self._fact(subject).value
        return None if value is None else int(value["copies"])

    def _fact(self, subject: _Subject) -> Fact:
        """Return what this process has read of a subject; one that is due is looked up by the next ``refresh``."""
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
        """Return the last description, which is looked up now if nobody ever did; None if that failed."""
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
        """Look a subject up and store what is found.

        Raises:
            ClientError, BotoCoreError: the subject cannot be described.
        """
        value = self._endpoint_facts(subject) if subject.kind == "endpoint" else self._component_facts(subject)
        self._facts.store(subject.key, value, self._now() + self._rng.uniform(*_DUE_AFTER_S))
        fact = self._facts.get(subject.key)
        self._remember(subject, fact)
        return fact

    def _record_error(self, subject: _Subject, err: ClientError | BotoCoreError) -> None:
        """Record when a subject is looked up again; its last description stays in force."""
        logger.warning("endpoint.capacity_unknown", endpoint=subject.name, error=error_code(err))
        self._metrics.record("Scheduling", "Errors", 1, COUNT, ModelName=subject.name)
        self._facts.note_error(subject.key, error_code(err), self._now() + self._rng.uniform(*_DUE_AFTER_ERROR_S))
        self._remember(subject, self._facts.get(subject.key))

    def _remember(self, subject: _Subject, fact: Fact) -> None:
        with self._lock:
            self._read = {**self._read, subject.key: fact}

    # The control plane ----------------------------------------------------------------------------------------------

    def _endpoint_facts(self, subject: _Subject) -> dict[str, Any]:
        sagemaker = self._clients.client("sagemaker", describing_session(subject.role, subject.name))
        answer = sagemaker.describe_endpoint(EndpointName=subject.name)
        variants = {variant["VariantName"]: _variant_facts(variant) for variant in answer.get("ProductionVariants", ())}
        concurrency = self._tagged_concurrency(sagemaker, answer.get("EndpointArn", ""))
        facts = {"variants": variants, "state": answer.get("EndpointStatus", "InService")}
        if config_name := answer.get("EndpointConfigName"):
            facts["config"] = config_name
        return facts | ({} if concurrency is None else {"concurrency": concurrency})

    def _tagged_concurrency(self, sagemaker: Any, arn: str) -> int | None:
        # No resource has more than 50 tags, so one page holds them all.
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

    def _component_facts(self, subject: _Subject) -> dict[str, Any]:
        sagemaker = self._clients.client("sagemaker", describing_session(subject.role, subject.name))
        answer = sagemaker.describe_inference_component(InferenceComponentName=subject.name)
        facts = {"copies": int(answer.get("RuntimeConfig", {}).get("CurrentCopyCount", 0))}
        described = {"state": answer.get("InferenceComponentStatus"), "endpoint": answer.get("EndpointName")}
        return facts | {name: value for name, value in described.items() if value is not None}


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


def _variant_facts(described: Mapping[str, Any]) -> dict[str, Any]:
    serverless = described.get("CurrentServerlessConfig") or {}
    facts = {
        "instances": int(described.get("CurrentInstanceCount", 0)),
        "weight": float(described.get("CurrentWeight", 1.0)),
    }
    return facts | ({"max_concurrency": int(serverless["MaxConcurrency"])} if "MaxConcurrency" in serverless else {})


def _calls_of(variant: Variant, concurrency: int) -> int:
    return variant.max_concurrency if variant.max_concurrency is not None else variant.instances * concurrency
