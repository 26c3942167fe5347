"""Limits the concurrent calls of this process to an endpoint: more while it keeps up, fewer when it refuses.

Additive increase, multiplicative decrease (D. Chiu and R. Jain, "Analysis of the Increase and Decrease Algorithms for
Congestion Avoidance in Computer Networks", 1989), with a slow start as in TCP. Until the first refusal or slow
response, each response raises the limit by one, so it doubles with every round. After that each round raises it by one.
Near the limit at which calls were refused, it rises slowly, because a refused call is wasted work. CUBIC does the same
(S. Ha et al., "CUBIC: A New TCP-Friendly High-Speed TCP Variant", 2008). A latency above ``_SLOW_FACTOR`` times the
best one stops the rise, because more calls would only queue at the endpoint.

A call that times out is the most expensive refusal, because an endpoint may still process it. Two rules keep a fleet
of workers from collapse by time-outs. The first limit is 1, because all processes of a fleet begin at the same time.
The first response shows how many calls a single server completes within some seconds, and the limit rises to that
number. And the limit may fall below 1: then the process makes one call and pauses after it. Otherwise a hundred
processes with one call each would keep a slow instance busy with calls that have timed out.
"""

import math
import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from aws.osml.model_runner.exceptions import ModelCallError, ModelErrorClass

_FIRST_LIMIT = 1.0
# After the first response the limit is the number of calls that one server completes in _FIRST_ROUND_S, at most this.
_SECOND_LIMIT = 8
_FIRST_ROUND_S = 8.0
_MIN_LIMIT = 1 / 16
_DECREASE = 0.7
_CAUTIOUS_STEP = 0.02
# Share by which a response raises a limit below 1.
_RECOVERY = 0.25
_SLOW_FACTOR = 2.0
# Minimum weight of one response in the mean latency.
_MIN_LATENCY_WEIGHT = 0.1
# Share by which the best latency is assumed to rise with every round, because endpoints change.
_DRIFT = 0.001
_MIN_CALL_S = 0.05
# Maximum pause between calls, because the endpoint requires it or because the limit is below 1.
_MAX_REST_S = 300.0
_REST_JITTER = (0.5, 1.5)
# How long other calls wait for a call that has to be alone, after its last attempt to begin.
_ALONE_S = 1.0
# The queue for an endpoint is full when its tiles wait longer than _FULL_S and make up _FULL_ROUNDS rounds of calls or
# more. It is also full when no call has ended for _FULL_S.
_FULL_S = 30.0
_FULL_ROUNDS = 2


class CallLimit:
    """The limit of one endpoint, shared by all threads that call it: from 1 to ``max_calls`` concurrent calls.

    Refusals and time-outs lower the limit at most once per round, because they affect all calls in flight. While the
    endpoint requires a pause, no call begins.

    ``in_flight`` is the number of calls in flight. ``ceiling`` is the share of this process in the endpoint's capacity.
    ``last_response_s`` is the latency of the last response, 0 before the first one.
    """

    def __init__(
        self, max_calls: int, now: Callable[[], float] = time.monotonic, rng: random.Random | None = None
    ) -> None:
        self.max_calls = max_calls
        self._now = now
        self._rng = rng or random.Random()
        self._lock = threading.Lock()
        self.ceiling = float(max_calls)
        self._limit = _FIRST_LIMIT
        self.in_flight = self._waiting = 0
        self._is_starting = True
        self._is_alone = False
        self._refused_at = math.inf
        self._rests_until = self._lowered_at = self._full_at = self._alone_at = -math.inf
        # When the last call ended, or when a call began while no other was in flight.
        self._quiet_since = now()
        self._mean_s: float | None = None
        self._best_s = self._last_s = self.last_response_s = 0.0

    @property
    def calls(self) -> int:
        """The number of calls that may be in flight now."""
        return max(1, int(self._limit))

    def set_ceiling(self, calls: int | None) -> None:
        """Set this process's share of the endpoint's capacity in calls: below 1 counts as 1, None as ``max_calls``."""
        with self._lock:
            self.ceiling = float(self.max_calls if calls is None else max(1, min(self.max_calls, calls)))
            self._limit = min(self._limit, self.ceiling)

    # Tiles that wait ------------------------------------------------------------------------------------------------

    @contextmanager
    def expecting(self, tiles: int) -> Iterator[Callable[[], None]]:
        """Count ``tiles`` as waiting for a call; yield the function to call when the call of one of them begins."""
        left = tiles

        def begun() -> None:
            nonlocal left
            with self._lock:
                if left:
                    left -= 1
                    self._waiting -= 1

        with self._lock:
            self._waiting += tiles
        try:
            yield begun
        finally:
            with self._lock:
                self._waiting -= left
                left = 0

    @property
    def is_full(self) -> bool:
        """True when the waiting tiles keep this process busy at the endpoint for more than ``_FULL_S``."""
        with self._lock:
            if not self._waiting:
                return False
            quiet_s = self._now() - self._quiet_since if self.in_flight else 0.0
            if quiet_s > _FULL_S:
                return True
            rounds = self._waiting / self.calls
            # The next call may take as long as a call that timed out.
            call_s = max(self._mean_s or 0.0, self._last_s, quiet_s)
            is_unknown = self._mean_s is None and self._waiting >= _FULL_ROUNDS * self.max_calls
            return is_unknown or (rounds >= _FULL_ROUNDS and rounds * call_s > _FULL_S)

    # Calls ----------------------------------------------------------------------------------------------------------

    def try_enter(self, is_alone: bool = False) -> bool:
        """Begin a call if the limit allows it; a caller that gets True has to call ``leave``.

        With ``is_alone`` the call begins when no other is in flight, and no other begins while it waits or runs.
        """
        with self._lock:
            now_s = self._now()
            if is_alone:
                self._alone_at = now_s
                has_room = self.in_flight == 0
            else:
                has_to_wait = self._is_alone or now_s < self._alone_at + _ALONE_S
                has_room = self.in_flight < self.calls and not has_to_wait
            is_free = has_room and now_s >= self._rests_until
            if is_free and not self.in_flight:
                self._quiet_since = now_s
            self.in_flight += is_free
            self._is_alone = self._is_alone or (is_free and is_alone)
            if self.in_flight >= self.calls:
                self._full_at = now_s
            return is_free

    def leave(self) -> None:
        """End a call; with a limit below 1 the next call begins after a pause."""
        with self._lock:
            self.in_flight -= 1
            self._quiet_since = self._now()
            if self._is_alone:
                self._is_alone, self._alone_at = False, -math.inf
            if self._limit < 1:
                pause_s = self._last_s * (1 / self._limit - 1) * self._rng.uniform(*_REST_JITTER)
                self._rest(pause_s)

    def record_response(self, latency_s: float) -> None:
        """Record the latency of a response; raise the limit if it was in full use and latency is stable."""
        with self._lock:
            is_first, self._last_s, self.last_response_s = self._mean_s is None, latency_s, latency_s
            mean_s = self._update_latency(latency_s)
            if mean_s > _SLOW_FACTOR * self._best_s:
                self._is_starting = False
                return
            if is_first and self._is_starting:
                calls = min(_SECOND_LIMIT, int(_FIRST_ROUND_S / max(latency_s, _MIN_CALL_S)))
                self._limit = min(self.ceiling, max(self._limit, float(calls)))
                return
            if self._limit < 1:
                self._limit = min(1.0, self._limit * (1 + _RECOVERY))
            elif self._now() - self._full_at <= 2 * self._round_s():
                self._limit = min(self.ceiling, self._limit + self._step())

    def record_failure(self, error: ModelCallError, elapsed_s: float) -> None:
        """Record a call that failed after ``elapsed_s``; a refusal or a time-out lowers the limit.

        A crash of the model lowers it too, if other calls were in flight: models run out of memory under load. A call
        that began before the limit was last lowered does not lower it again.
        """
        with self._lock:
            is_refusal = error.error_class in (ModelErrorClass.THROTTLE, ModelErrorClass.TRANSIENT)
            is_crash_under_load = error.error_class is ModelErrorClass.SUSPICIOUS and self.in_flight > 1
            if not is_refusal and not is_crash_under_load:
                return
            now_s = self._now()
            self._last_s, self._is_starting = elapsed_s, False
            self._rest(error.retry_after_s or 0.0)
            if now_s - elapsed_s >= self._lowered_at and now_s >= self._lowered_at + self._round_s():
                self._refused_at = float(self.calls)
                self._limit = max(_MIN_LIMIT, self._limit * _DECREASE)
                self._lowered_at = now_s

    def _rest(self, seconds: float) -> None:
        self._rests_until = max(self._rests_until, self._now() + min(seconds, _MAX_REST_S))

    def _step(self) -> float:
        """Return the amount by which one response raises the limit."""
        if self._is_starting:
            return 1.0
        if self._limit >= self._refused_at + 1:
            self._refused_at = math.inf
        is_near_refusal = self._limit + 1 > self._refused_at
        return (_CAUTIOUS_STEP if is_near_refusal else 1.0) / self._limit

    def _update_latency(self, latency_s: float) -> float:
        """Update the mean and the best latency, and return the mean."""
        if self._mean_s is None:
            self._mean_s = self._best_s = latency_s
            return latency_s
        # With a small limit responses are few, and the mean has to follow within a round or two.
        weight = max(_MIN_LATENCY_WEIGHT, 1 / (1 + self.calls))
        self._mean_s += weight * (latency_s - self._mean_s)
        self._best_s = min(self._best_s * (1 + _DRIFT / self.calls), self._mean_s)
        return self._mean_s

    def _round_s(self) -> float:
        """Return the duration of a round: the mean latency of a call."""
        return max(self._mean_s or 0.0, _MIN_CALL_S)
