"""Limits how many calls an endpoint gets at once from this process: more while it keeps up, fewer when it refuses.

Additive increase, multiplicative decrease (D. Chiu and R. Jain, "Analysis of the Increase and Decrease Algorithms for
Congestion Avoidance in Computer Networks", 1989), with a slow start as in TCP: until the first sign of strain each
response raises the limit by one, so that it doubles with every round; then each round raises it by one. Where calls
were refused before, the limit rises only now and then, as in S. Ha et al., "CUBIC: A New TCP-Friendly High-Speed TCP
Variant", 2008: a refused call is wasted work. A latency beyond ``_SLOW_FACTOR`` times the best one stops the rise: more
calls would only queue at the endpoint.

A call that times out is the most expensive refusal, since an endpoint may serve it all the same. Two rules keep a fleet
from collapse by time-outs. The first limit is 1, because all processes of a fleet begin at the same time; the first
response shows how many calls a single server does within some seconds, and so many follow. And the limit may fall below
1: then one call is under way, and the process pauses after it. Else a hundred processes with one call each would keep a
slow instance busy with calls that have timed out.
"""

import math
import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from aws.osml.model_runner.exceptions import ModelCallError, ModelErrorClass

_FIRST_LIMIT = 1.0
# After the first response the limit is at most this many calls, and as many as one server does in _FIRST_ROUND_S.
_SECOND_LIMIT = 8
_FIRST_ROUND_S = 8.0
_LEAST_LIMIT = 1 / 16
_DECREASE = 0.7
_CAUTIOUS_STEP = 0.02
# By what share one response raises a limit below 1.
_RECOVERY = 0.25
_SLOW_FACTOR = 2.0
# The least weight of one response in the mean latency.
_LATENCY_WEIGHT = 0.1
# Share by which the best latency is assumed to worsen with every round, since endpoints change.
_DRIFT = 0.001
_SHORTEST_CALL_S = 0.05
# The longest that calls rest, because the endpoint requires it or because the limit is below 1.
_LONGEST_REST_S = 300.0
_REST_JITTER = (0.5, 1.5)
# How long other calls wait for a call that has to be alone, after that call was last tried.
_ALONE_S = 1.0
# A queue here is full when its tiles wait for longer than this, and for more calls than _FULL_ROUNDS times the limit.
# It is also full when no call has ended for so long.
_FULL_S = 30.0
_FULL_ROUNDS = 2


class CallLimit:
    """The limit of one endpoint, shared by all threads that call it. ``most`` is never exceeded, and 1 always allowed.

    Refusals and time-outs lower the limit once in the time that a call takes, since they come for all calls that are
    under way. While the endpoint requires a rest, no caller calls it.
    """

    def __init__(self, most: int, now: Callable[[], float] = time.monotonic, rng: random.Random | None = None) -> None:
        self.most = most
        self._now = now
        self._rng = rng or random.Random()
        self._lock = threading.Lock()
        self._ceiling = float(most)
        self._limit = _FIRST_LIMIT
        self._in_flight = self._waiting = 0
        self._is_starting = True
        self._is_alone = False
        self._refused_at = math.inf
        self._rests_until = self._lowered_at = self._full_at = self._alone_at = -math.inf
        # When the last call ended, or when the first call began since none was under way.
        self._quiet_since = now()
        self._mean_s: float | None = None
        self._best_s = self._last_s = self._last_response_s = 0.0

    @property
    def calls(self) -> int:
        """How many calls may be under way now."""
        return max(1, int(self._limit))

    @property
    def in_flight(self) -> int:
        """How many calls are under way."""
        return self._in_flight

    @property
    def last_response_s(self) -> float:
        """Latency of the last response; 0 before the first one."""
        return self._last_response_s

    def set_ceiling(self, calls: int | None) -> None:
        """Set this process's share of an endpoint whose capacity is known, at least 1; None where it is not known."""
        with self._lock:
            self._ceiling = float(self.most if calls is None else max(1, min(self.most, calls)))
            self._limit = min(self._limit, self._ceiling)

    # Tiles that wait ------------------------------------------------------------------------------------------------

    @contextmanager
    def expecting(self, tiles: int) -> Iterator[Callable[[], None]]:
        """Count ``tiles`` as waiting for a call; yield what counts one of them off when its call begins."""
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
        """True when the tiles that wait here keep this process busy at the endpoint for a while."""
        with self._lock:
            if not self._waiting:
                return False
            quiet_s = self._now() - self._quiet_since if self._in_flight else 0.0
            if quiet_s > _FULL_S:
                return True
            rounds = self._waiting / self.calls
            # A call that timed out took as long as the next one may.
            call_s = max(self._mean_s or 0.0, self._last_s, quiet_s)
            is_unknown = self._mean_s is None and self._waiting >= _FULL_ROUNDS * self.most
            return is_unknown or (rounds >= _FULL_ROUNDS and rounds * call_s > _FULL_S)

    # Calls ----------------------------------------------------------------------------------------------------------

    def try_enter(self, is_alone: bool = False) -> bool:
        """Begin a call if there is room for it; a caller that got True has to ``leave``.

        With ``is_alone`` the call begins when no other is under way, and no other begins while it waits or runs.
        """
        with self._lock:
            now_s = self._now()
            if is_alone:
                self._alone_at = now_s
                has_room = self._in_flight == 0
            else:
                has_to_wait = self._is_alone or now_s < self._alone_at + _ALONE_S
                has_room = self._in_flight < self.calls and not has_to_wait
            is_free = has_room and now_s >= self._rests_until
            if is_free and not self._in_flight:
                self._quiet_since = now_s
            self._in_flight += is_free
            self._is_alone = self._is_alone or (is_free and is_alone)
            if self._in_flight >= self.calls:
                self._full_at = now_s
            return is_free

    def leave(self) -> None:
        """End a call; with a limit below 1 the next one begins after a pause."""
        with self._lock:
            self._in_flight -= 1
            self._quiet_since = self._now()
            if self._is_alone:
                self._is_alone, self._alone_at = False, -math.inf
            if self._limit < 1:
                pause_s = self._last_s * (1 / self._limit - 1) * self._rng.uniform(*_REST_JITTER)
                self._rest(pause_s)

    def record_response(self, latency_s: float) -> None:
        """Note a call that got a response, and raise the limit if it was in full use and latency holds."""
        with self._lock:
            is_first, self._last_s, self._last_response_s = self._mean_s is None, latency_s, latency_s
            self._learn_latency(latency_s)
            if self._is_slow():
                return
            if is_first and self._is_starting:
                calls = min(_SECOND_LIMIT, int(_FIRST_ROUND_S / max(latency_s, _SHORTEST_CALL_S)))
                self._limit = min(self._ceiling, max(self._limit, float(calls)))
                return
            if self._limit < 1:
                self._limit = min(1.0, self._limit * (1 + _RECOVERY))
            elif self._now() - self._full_at <= 2 * self._round_s():
                self._limit = min(self._ceiling, self._limit + self._step())

    def record_failure(self, error: ModelCallError, elapsed_s: float) -> None:
        """Note a call that failed after ``elapsed_s``; a refusal or a time-out lowers the limit.

        So does a crash of the model, unless the call was the only one: models run out of memory under load. A call that
        began before the limit was last lowered shows nothing new.
        """
        with self._lock:
            is_refusal = error.error_class in (ModelErrorClass.THROTTLE, ModelErrorClass.TRANSIENT)
            is_crash_under_load = error.error_class is ModelErrorClass.SUSPICIOUS and self._in_flight > 1
            if not is_refusal and not is_crash_under_load:
                return
            now_s = self._now()
            self._last_s, self._is_starting = elapsed_s, False
            self._rest(error.retry_after_s or 0.0)
            if now_s - elapsed_s >= self._lowered_at and now_s >= self._lowered_at + self._round_s():
                self._refused_at = float(self.calls)
                self._limit = max(_LEAST_LIMIT, self._limit * _DECREASE)
                self._lowered_at = now_s

    def _rest(self, seconds: float) -> None:
        self._rests_until = max(self._rests_until, self._now() + min(seconds, _LONGEST_REST_S))

    def _step(self) -> float:
        """Return by how much one response raises the limit."""
        if self._is_starting:
            return 1.0
        if self._limit >= self._refused_at + 1:
            self._refused_at = math.inf
        is_near_refusal = self._limit + 1 > self._refused_at
        return (_CAUTIOUS_STEP if is_near_refusal else 1.0) / self._limit

    def _learn_latency(self, latency_s: float) -> None:
        if self._mean_s is None:
            self._mean_s = self._best_s = latency_s
            return
        # With a small limit responses are few, and the mean has to follow within a round or two.
        weight = max(_LATENCY_WEIGHT, 1 / (1 + self.calls))
        self._mean_s += weight * (latency_s - self._mean_s)
        self._best_s = min(self._best_s * (1 + _DRIFT / self.calls), self._mean_s)

    def _round_s(self) -> float:
        """Return the time that a call takes."""
        return max(self._mean_s or 0.0, _SHORTEST_CALL_S)

    def _is_slow(self) -> bool:
        is_slow = self._mean_s is not None and self._mean_s > _SLOW_FACTOR * self._best_s
        self._is_starting = self._is_starting and not is_slow
        return is_slow
