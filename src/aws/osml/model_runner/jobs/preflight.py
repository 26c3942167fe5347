"""Preflight: checks before the first tile that the model of a job can be called and its results delivered.

Every output, role and endpoint of a request is checked at the same time. The calls leave nothing behind and cost no
model call. A check that cannot be made now, because a service is throttled, slow or away, refuses nothing.
"""

import dataclasses
import json
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, TypeVar

import structlog
from botocore.exceptions import BotoCoreError, ClientError
from cachetools import TLRUCache

from aws.osml.model_runner.api.image_request import ImageRequest
from aws.osml.model_runner.api.image_url import parse_image_url
from aws.osml.model_runner.api.inference import ModelInvokeMode
from aws.osml.model_runner.api.problems import role_problem
from aws.osml.model_runner.aws.errors import error_code, is_role_refusal
from aws.osml.model_runner.aws.role_session import RoleSession, calling_session, reading_session
from aws.osml.model_runner.config import ServiceConfig
from aws.osml.model_runner.exceptions import (
    InvalidImageRequestException,
    RequestDeferredError,
    UnsupportedModelException,
)
from aws.osml.model_runner.inference.endpoint_address import parse_endpoint_address
from aws.osml.model_runner.inference.endpoint_check import (
    UNKNOWN,
    Describe,
    Finding,
    check_http,
    check_invocation,
    check_sagemaker,
)
from aws.osml.model_runner.sink.sink import Sink

from .image_roi import ROI_FIELD, ReadArea
from .model_endpoints import ModelEndpoints

logger = structlog.get_logger(__name__)

T = TypeVar("T")

# How long all checks of a request may take together; a check that is not made by then stays unknown.
_WITHIN_S = 10.0
# A thousand jobs to one bucket check it once. A refusal is never cached, because its reason may be mended at any time.
_KNOWN_S = 300.0
_UNKNOWN_S = 30.0
_KEPT = 2_000

# A request is refused at this receive while its HTTP endpoint refuses the connection. A model that is being replaced
# refuses connections for a while.
_MAX_TRIES = 4
_RETRY_S = 10.0


@dataclasses.dataclass(frozen=True)
class Check:
    """A question about a ``field`` of a request, which ``look`` answers. Checks of one ``key`` have one finding."""

    field: str
    key: tuple[str, ...]
    look: Callable[[], Finding]

    def finding(self) -> Finding:
        """Make the check. An error of the check refuses no job: deliveries and calls meet the same error themselves."""
        try:
            return self.look()
        except Exception as err:  # noqa: BLE001 - an error here is one of the check, not of the job
            reason = error_code(err) if isinstance(err, ClientError | BotoCoreError) else str(err)
            logger.warning("preflight.unknown", check=self.key[0], error=type(err).__name__, reason=reason)
            return dataclasses.replace(UNKNOWN, reason=reason)


def at_once(looks: Sequence[Callable[[], T]], within_s: float) -> list[T | None]:
    """Call every function in a thread of its own; return their results, and None for each that took too long.

    A thread that is late ends by itself, at the time-outs of its own calls.
    """
    results: list[T | None] = [None] * len(looks)

    def run(index: int) -> None:
        results[index] = looks[index]()

    threads = [
        threading.Thread(target=run, args=(index,), name="preflight", daemon=True) for index in range(len(looks))
    ]
    for thread in threads:
        thread.start()
    ends_s = time.monotonic() + within_s
    for thread in threads:
        thread.join(max(0.0, ends_s - time.monotonic()))
    return list(results)


class Preflight:
    """Checks requests. Any thread may call it. A finding without a problem is cached for a while.

    ``describe`` returns the descriptions of SageMaker endpoints that the fleet shares: the scheduler uses them too.
    ``runtime`` returns the client of SageMaker's runtime that signs as a role.
    ``run`` makes several checks at the same time, within a number of seconds.
    """

    def __init__(
        self,
        config: ServiceConfig,
        endpoints: ModelEndpoints,
        describe: Describe,
        credentials: Callable[[RoleSession | None], Any],
        runtime: Callable[[RoleSession | None], Any],
        make_sinks: Callable[[list[dict[str, Any]]], list[Sink]],
        read_area: ReadArea,
        now: Callable[[], float] = time.monotonic,
        run: Callable[[Sequence[Callable[[], Finding]], float], list[Finding | None]] = at_once,
    ) -> None:
        self._config = config
        self._endpoints = endpoints
        self._describe = describe
        self._credentials = credentials
        self._runtime = runtime
        self._make_sinks = make_sinks
        self._read_area = read_area
        self._run = run

        def forgotten_at(_key: object, finding: Finding, now_s: float) -> float:
            return now_s + (_KNOWN_S if finding.is_known else _UNKNOWN_S)

        self._found: TLRUCache[tuple[str, ...], Finding] = TLRUCache(_KEPT, forgotten_at, timer=now)
        self._lock = threading.Lock()

    def check(self, request: ImageRequest, tries: int | None = None) -> None:
        """Refuse a request that can never be carried out as things stand.

        ``tries`` counts how often its message came; None for a request that is refused for nothing that may pass.

        Raises:
            InvalidImageRequestException: with every problem of its outputs, roles and endpoint.
            RequestDeferredError: nothing listens at its HTTP endpoint, and it has not come often enough yet.
        """
        findings = self.findings(request).values()
        problems = [problem for finding in findings for problem in finding.problems]
        absent = [finding.absent for finding in findings if finding.absent is not None and tries is not None]
        if problems or (absent and (tries or 0) >= _MAX_TRIES):
            raise InvalidImageRequestException("the job cannot be carried out", [*problems, *absent])
        if absent:
            raise RequestDeferredError("; ".join(map(str, absent)), _RETRY_S * (tries or 1))

    def findings(self, request: ImageRequest) -> dict[str, Finding]:
        """Return the finding of each check of a request, by the field that the check is about."""
        checks = list(self._checks(request))
        return {check.field: finding for check, finding in zip(checks, self._findings(checks), strict=True)}

    def max_body_bytes(self, request: ImageRequest) -> int | None:
        """Return the longest tile that the endpoint of a request takes; None where no limit is known."""
        if request.model_invoke_mode != ModelInvokeMode.SM_ENDPOINT:
            return None
        (finding,) = self._findings([self._endpoint_check(request)])
        limits = (self._config.sm_max_body_bytes, finding.max_body_bytes)
        return min(limit for limit in limits if limit is not None)

    # Checks ---------------------------------------------------------------------------------------------------------

    def _checks(self, request: ImageRequest) -> Iterator[Check]:
        yield self._endpoint_check(request)
        if request.model_invoke_mode == ModelInvokeMode.SM_ENDPOINT:
            yield self._invocation_check(request)
        role, bucket = request.image_read_role, parse_image_url(request.image_url).bucket
        if role and bucket:

            def check_reader() -> Finding:
                try:
                    self._credentials(reading_session(role, request.job_id, bucket)).get_frozen_credentials()
                except ClientError as err:
                    if not is_role_refusal(err):
                        raise
                    return Finding((role_problem("imageReadRole", role, error_code(err)),))
                return Finding()

            yield Check("imageReadRole", ("role", role, bucket), check_reader)

        if request.roi_url:
            yield Check("regionOfInterest", ("area", request.roi_url, role), lambda: self._check_area(request))

        def check_output(index: int, sink: Sink) -> Finding:
            problems = sink.check(request.job_id, request.result_name)
            return Finding(
                tuple(dataclasses.replace(problem, field=f"outputs[{index}].{problem.field}") for problem in problems)
            )

        sinks = self._make_sinks(request.outputs)
        for index, (output, sink) in enumerate(zip(request.outputs, sinks, strict=True)):
            key = ("output", json.dumps(output, sort_keys=True))
            yield Check(f"outputs[{index}]", key, partial(check_output, index, sink))

    def _endpoint_check(self, request: ImageRequest) -> Check:
        parameters = request.model_endpoint_parameters or {}
        part = (str(parameters.get(name, "")) for name in ("TargetVariant", "InferenceComponentName"))
        key = (str(request.model_invoke_mode), request.model_name, request.model_invocation_role, *part)

        def check_endpoint() -> Finding:
            name = request.model_name
            try:
                self._endpoints.detector_factory(request).check()
            except UnsupportedModelException as err:
                return Finding(err.problems)
            if request.model_invoke_mode == ModelInvokeMode.SM_ENDPOINT:
                return check_sagemaker(self._describe, name, request.model_invocation_role, parameters)
            return check_http(parse_endpoint_address(name, self._config.http_endpoint_hosts), name)

        return Check("imageProcessor.name", key, check_endpoint)

    def _invocation_check(self, request: ImageRequest) -> Check:
        name, role = request.model_name, request.model_invocation_role
        parameters = request.model_endpoint_parameters or {}

        def check_permission() -> Finding:
            return check_invocation(self._runtime(calling_session(role, request.job_id, name)), name, parameters)

        key = ("invocation", name, role, str(parameters.get("InferenceComponentName", "")))
        return Check("imageProcessor", key, check_permission)

    def _check_area(self, request: ImageRequest) -> Finding:
        try:
            self._read_area(request, request.roi_url or "", ROI_FIELD)
        except InvalidImageRequestException as err:
            return Finding(err.problems)
        return Finding()

    # Findings -------------------------------------------------------------------------------------------------------

    def _findings(self, checks: Iterator[Check] | Sequence[Check]) -> list[Finding]:
        wanted = list(checks)
        with self._lock:
            found = {check.key: self._found[check.key] for check in wanted if check.key in self._found}
        missing = [check for check in wanted if check.key not in found]
        if missing:
            made = self._run([check.finding for check in missing], _WITHIN_S)
            for check, finding in zip(missing, made, strict=True):
                if finding is None:
                    reason = f"no response within {_WITHIN_S:g} s"
                    logger.warning("preflight.unknown", check=check.key[0], reason=reason)
                    finding = dataclasses.replace(UNKNOWN, reason=reason)
                found[check.key] = finding
            with self._lock:
                self._found.update({check.key: found[check.key] for check in missing if found[check.key].is_good})
        return [found[check.key] for check in wanted]
