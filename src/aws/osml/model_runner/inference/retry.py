"""The one retry layer of the model call. The rule is a pure function; the loop around it acts.

What is decided after a failed try, by the class of the error:

===========  ====================  ===========================================================================
Class        Tries                 What happens
===========  ====================  ===========================================================================
THROTTLE     4, within the budget  wait and call again; then give the region back: a busy endpoint fails no tile
TRANSIENT    4, within the budget  the same; a tile that is called alone fails after 3 time-outs with ``TIMEOUT``
SUSPICIOUS   3                     wait and call again; then the tile fails with ``MODEL_5XX``
PERMANENT    1                     the tile fails with the error's code
JOB          1                     the job cannot go on: give back now, fail later if nobody mends it
CREDENTIAL   1, then as TRANSIENT  refresh the credentials once and call again at once
===========  ====================  ===========================================================================

The wait is full jitter, uniform in [0, min(20 s, 0.5 s * 2^(try - 1))] (Brooker, "Exponential Backoff And Jitter"),
but at least what the endpoint asked for in ``Retry-After`` when that is a minute or less. An endpoint that asks for
more gets its region's rest at once instead of a thread that waits.
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
    """What follows a failed try."""

    RETRY = "RETRY"
    RELEASE = "RELEASE"
    FAIL_TILE = "FAIL_TILE"
    FAIL_JOB = "FAIL_JOB"


@dataclass(frozen=True)
class Decision:
    """What to do after a failed try.

    ``delay_s`` is the wait before the next try, or, with RELEASE, the rest that the endpoint asked for (0 for none).
    ``should_refresh`` asks for new credentials before the next try.
    """

    action: Action
    delay_s: float
    code: str
    should_refresh: bool = False


@dataclass(frozen=True)
class RetryPolicy:
    """The numbers of the table above.

    ``max_timeouts`` is None where a time-out may come from the queue of an endpoint that is sent too many calls.
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
    """The bytes of a successful answer, and how many calls failed before it came."""

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
    """How many retries all threads that call one endpoint may spend: a tenth of their calls, after a first allowance.

    Without it, an endpoint that is down gets every call four times, just when it needs peace.
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
        """Count one retry; the balance never falls below nothing."""
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
    """Return what follows the failure of try number ``attempt``.

    That counts from 1, leaves refreshes out, and counts tries that crashed the model apart from all others.
    ``timeouts`` of the tries so far ended by a time-out, this one included.
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
    # A tile that is alone is only called again to see whether it times out each time.
    is_probe = policy.max_timeouts is not None and timeouts == 0
    is_exhausted = attempt >= policy.max_tries or not has_budget or rest_s > policy.max_retry_after_s or is_probe
    if is_exhausted and error.error_class is not ModelErrorClass.SUSPICIOUS:
        return Decision(Action.RELEASE, rest_s, error.code)
    delay_s = max(min(rest_s, policy.max_retry_after_s), jittered_delay_s(attempt, rng, policy))
    return Decision(Action.RETRY, delay_s, error.code)


class Tries:
    """Counts the tries of one tile's call, and decides what follows each that failed.

    ``budget`` is shared by all calls of an endpoint.
    """

    def __init__(self, budget: RetryBudget, rng: random.Random, policy: RetryPolicy = DEFAULT_POLICY) -> None:
        self.retries = 0
        self._budget = budget
        self._rng = rng
        self._policy = policy
        # Apart, because a tile must not fail for one crash of its model after two refusals.
        self._crashed = self._refused = self._timeouts = 0
        self._has_refreshed = False
        budget.earn()

    def failed(self, error: ModelCallError) -> Decision:
        """Count a try that failed, and the retry where one follows."""
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
    """Call the model until it answers or the table says otherwise.

    ``sleep`` may be a stop event's ``wait``, so that stopping need not wait. ``budget`` is shared by all calls of an
    endpoint.

    Raises:
        ModelTileError: this tile fails, with a code.
        ModelBackPressureError: the endpoint refuses for now, or the process is to stop.
        ModelJobError: no tile of the job can be answered.
    """
    tries = Tries(budget or RetryBudget(), rng, policy)
    while True:
        try:
            return ModelResponse(detector.invoke(tile), tries.retries)
        except ModelCallError as err:
            decision = tries.failed(err)
            _raise_unless_again(decision, err)
        if decision.should_refresh:
            detector.refresh_credentials()
            continue
        _wait(decision.delay_s, sleep, should_stop)


def _raise_unless_again(decision: Decision, error: ModelCallError) -> None:
    match decision.action:
        case Action.FAIL_TILE:
            raise ModelTileError(str(error), decision.code) from error
        case Action.FAIL_JOB:
            raise ModelJobError(str(error), decision.code) from error
        case Action.RELEASE:
            raise ModelBackPressureError(str(error), decision.delay_s or None) from error


def _wait(delay_s: float, sleep: Callable[[float], object], should_stop: Callable[[], bool]) -> None:
    """Wait, unless the process is to stop: then the region goes back, and no try is started that nobody waits for."""
    if not should_stop():
        sleep(delay_s)
    if should_stop():
        raise ModelBackPressureError("the process is stopping")
