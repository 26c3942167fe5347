"""The only retry layer of the model call: ``decide`` is the pure rule, ``invoke_with_retries`` applies it.

The decision after a failed try, by the class of the error:

| Class      | Tries                | Decision                                                                       |
|------------|----------------------|--------------------------------------------------------------------------------|
| THROTTLE   | 4, within the budget | wait and retry; then release the region: a busy endpoint fails no tile         |
| TRANSIENT  | 4, within the budget | the same; a tile that is called alone fails after 3 time-outs with ``TIMEOUT`` |
| SUSPICIOUS | 3                    | wait and retry; then the tile fails with ``MODEL_5XX``                         |
| PERMANENT  | 1                    | the tile fails with the error's code                                           |
| JOB        | 1                    | release the region; the job fails later if the operator does not act           |
| CREDENTIAL | 1, then as TRANSIENT | refresh the credentials once and retry at once                                 |

The wait has full jitter: it is uniform in [0, min(20 s, 0.5 s * 2^(try - 1))], see Brooker, "Exponential Backoff And
Jitter". It is at least the ``Retry-After`` of the endpoint, if that is a minute or less. For a longer ``Retry-After``
the region is released, so that no thread is blocked.
"""

import random
import threading
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from aws.osml.model_runner.common.backoff import backoff_s
from aws.osml.model_runner.common.typing import EncodedTile
from aws.osml.model_runner.exceptions import (
    ModelBackPressureError,
    ModelCallError,
    ModelErrorClass,
    ModelTileError,
)

from .call_errors import ModelErrorCode
from .exceptions import ModelJobError


class Action(StrEnum):
    """The action after a failed try."""

    RETRY = "RETRY"
    RELEASE = "RELEASE"
    FAIL_TILE = "FAIL_TILE"
    FAIL_JOB = "FAIL_JOB"


@dataclass(frozen=True)
class Decision:
    """An action after a failed try, and its details.

    ``delay_s`` is the wait before the next try, or, with RELEASE, the endpoint's ``Retry-After`` (0 without one).
    ``should_refresh`` requires new credentials before the next try.
    """

    action: Action
    delay_s: float
    code: str
    should_refresh: bool = False


@dataclass(frozen=True)
class RetryPolicy:
    """The numbers of the table above.

    ``max_timeouts`` is None where an endpoint may get too many calls, because its queue can then cause the time-out.
    """

    max_tries: int = 4
    max_timeouts: int | None = None
    max_suspicious_tries: int = 3
    base_delay_s: float = 0.5
    max_delay_s: float = 20.0
    max_retry_after_s: float = 60.0
    max_rest_s: float = 300.0


DEFAULT_POLICY = RetryPolicy()
# For a tile that is the only call of its process at an endpoint that responds to other tiles.
ALONE_POLICY = RetryPolicy(max_timeouts=3)


@dataclass(frozen=True)
class ModelResponse:
    """The body of a successful response, and the number of calls that failed before it."""

    body: bytes
    retries: int


class Invokable(Protocol):
    """The part of a detector that a retried call needs."""

    def invoke(self, tile: EncodedTile) -> bytes:
        """Call the model once; raises ModelCallError."""
        ...

    def refresh_credentials(self) -> None:
        """Sign the next call with new credentials."""
        ...


class RetryBudget:
    """Limits the retries of all threads that call one endpoint.

    The balance starts at ``floor``. Each call adds ``ratio``, up to ``ceiling``, and each retry takes 1.

    Without a budget, an endpoint that is overloaded would get every call four times.
    """

    def __init__(self, ratio: float = 0.1, floor: int = 10, ceiling: int = 100) -> None:
        self.ratio = ratio
        self.ceiling = ceiling
        self._balance = float(floor)
        self._lock = threading.Lock()

    def earn(self) -> None:
        """Count one call."""
        with self._lock:
            self._balance = min(self.ceiling, self._balance + self.ratio)

    def spend(self) -> None:
        """Count one retry; the balance never falls below 0."""
        with self._lock:
            self._balance = max(0.0, self._balance - 1)

    @property
    def has_retry(self) -> bool:
        """True when a retry is left."""
        with self._lock:
            return self._balance >= 1


def decide(
    error: ModelCallError,
    attempt: int,
    rng: random.Random,
    policy: RetryPolicy = DEFAULT_POLICY,
    *,
    has_refreshed: bool = False,
    has_budget: bool = True,
    timeouts: int = 0,
) -> Decision:
    """Return the decision after try number ``attempt`` failed with ``error``.

    ``attempt`` is 1-based and excludes credential refreshes. Tries that crashed the model have a count of their own.
    ``timeouts`` is the number of tries that timed out, including this one.
    """
    match error.error_class:
        case ModelErrorClass.PERMANENT:
            return Decision(Action.FAIL_TILE, 0.0, error.code)
        case ModelErrorClass.JOB:
            return Decision(Action.FAIL_JOB, 0.0, error.code)
        case ModelErrorClass.CREDENTIAL if not has_refreshed:
            return Decision(Action.RETRY, 0.0, error.code, should_refresh=True)
        case ModelErrorClass.SUSPICIOUS if attempt >= policy.max_suspicious_tries:
            return Decision(Action.FAIL_TILE, 0.0, error.code)
        case ModelErrorClass.TRANSIENT if policy.max_timeouts is not None and timeouts >= policy.max_timeouts:
            return Decision(Action.FAIL_TILE, 0.0, error.code)
    rest_s = min(error.retry_after_s or 0.0, policy.max_rest_s)
    # A tile that is called alone is retried only after a time-out, to find out whether each try times out.
    is_probe = policy.max_timeouts is not None and timeouts == 0
    is_exhausted = attempt >= policy.max_tries or not has_budget or rest_s > policy.max_retry_after_s or is_probe
    if is_exhausted and error.error_class is not ModelErrorClass.SUSPICIOUS:
        return Decision(Action.RELEASE, rest_s, error.code)
    delay_s = max(min(rest_s, policy.max_retry_after_s), jittered_delay_s(attempt, rng, policy))
    return Decision(Action.RETRY, delay_s, error.code)


class Tries:
    """Counts the tries of one tile's call, and decides after each failed try.

    All calls of an endpoint share ``budget``.
    """

    def __init__(self, budget: RetryBudget, rng: random.Random, policy: RetryPolicy = DEFAULT_POLICY) -> None:
        self.retries = 0
        self._budget = budget
        self._rng = rng
        self._policy = policy
        # Counted separately, because a tile must not fail for one crash of its model after two refusals.
        self._crashed = self._refused = self._timeouts = 0
        self._has_refreshed = False
        budget.earn()

    def failed(self, error: ModelCallError) -> Decision:
        """Count a failed try, and its retry if there is one; return the decision."""
        is_crash = error.error_class is ModelErrorClass.SUSPICIOUS
        self._timeouts += error.code == ModelErrorCode.TIMEOUT
        attempt = (self._crashed if is_crash else self._refused) + 1
        decision = decide(
            error,
            attempt,
            self._rng,
            self._policy,
            has_refreshed=self._has_refreshed,
            has_budget=self._budget.has_retry,
            timeouts=self._timeouts if error.code == ModelErrorCode.TIMEOUT else 0,
        )
        if decision.action is not Action.RETRY:
            return decision
        self.retries += 1
        if decision.should_refresh:
            self._has_refreshed = True
            return decision
        if is_crash:
            self._crashed = attempt
        else:
            self._refused = attempt
        self._budget.spend()
        return decision


def jittered_delay_s(attempt: int, rng: random.Random, policy: RetryPolicy = DEFAULT_POLICY) -> float:
    """Return a wait in seconds after try number ``attempt``, counted from 1: full jitter under a doubling ceiling."""
    return backoff_s(attempt - 1, policy.base_delay_s, policy.max_delay_s, rng)


def invoke_with_retries(
    detector: Invokable,
    tile: EncodedTile,
    *,
    sleep: Callable[[float], object],
    rng: random.Random,
    policy: RetryPolicy = DEFAULT_POLICY,
    should_stop: Callable[[], bool] = lambda: False,
    budget: RetryBudget | None = None,
) -> ModelResponse:
    """Call the model until it responds, or ``decide`` returns another action than a retry.

    ``sleep`` may be the ``wait`` of a stop event, which ends when the process stops. Pass the same ``budget`` to calls
    that share retries; None makes a new one.

    Raises:
        ModelTileError: this tile fails, with a code.
        ModelBackPressureError: the endpoint refuses for now, or the process stops.
        ModelJobError: no call of the job can succeed.
    """
    tries = Tries(budget or RetryBudget(), rng, policy)
    while True:
        try:
            return ModelResponse(detector.invoke(tile), tries.retries)
        except ModelCallError as err:
            decision = tries.failed(err)
            match decision.action:
                case Action.FAIL_TILE:
                    raise ModelTileError(str(err), decision.code) from err
                case Action.FAIL_JOB:
                    raise ModelJobError(str(err), decision.code) from err
                case Action.RELEASE:
                    raise ModelBackPressureError(str(err), decision.delay_s or None) from err
        if decision.should_refresh:
            detector.refresh_credentials()
            continue
        if not should_stop():
            sleep(decision.delay_s)
        if should_stop():
            # The region is released, so no result of a further try is needed.
            raise ModelBackPressureError("the process is stopping")
