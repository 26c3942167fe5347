"""How many calls an endpoint gets at once from this process: more while it keeps up, fewer when it refuses.

Additive increase, multiplicative decrease (D. Chiu and R. Jain, "Analysis of the Increase and Decrease Algorithms for
Congestion Avoidance in Computer Networks", 1989), with a slow start as in TCP: until the first sign of strain each
answer raises the limit by one, so that it doubles with every round; then each round raises it by one. Where calls were
refused before, it is only felt out now and then, as in S. Ha et al., "CUBIC: A New TCP-Friendly High-Speed TCP
Variant", 2008: a refused call is work done in vain. A latency beyond ``_SLOW_FACTOR`` times what the endpoint took at
its best stops the rise: more calls would only queue there.
"""

import math
import threading
import time
from collections.abc import Callable

_FIRST_LIMIT = 8
_DECREASE = 0.7
_CAUTIOUS_STEP = 0.02
_SLOW_FACTOR = 2.0
# The weight of one answer in the mean latency.
_LATENCY_WEIGHT = 0.1
# By how much the best latency is taken to have worsened with every round: what was once may be true no more.
_DRIFT = 0.001
_SHORTEST_CALL_S = 0.05


class CallLimit:
    """The limit of one endpoint, shared by all threads that call it. ``most`` is never exceeded, and 1 always allowed.

    Refusals lower the limit once in the time that a call takes, since they come for all calls that are under way. An
    endpoint that says how long it wants to be left alone is left alone by every caller.
    """

    def __init__(self, most: int, now: Callable[[], float] = time.monotonic) -> None:
        self.most = most
        self._now = now
        self._lock = threading.Lock()
        self._limit = float(min(most, _FIRST_LIMIT))
        self._in_flight = 0
        self._is_starting = True
        self._refused_at = math.inf
        self._rests_until = self._lowered_at = self._full_at = -math.inf
        self._mean_s: float | None = None
        self._best_s = 0.0

    @property
    def calls(self) -> int:
        """How many calls may be under way now."""
        return int(self._limit)

    @property
    def in_flight(self) -> int:
        """How many calls are under way."""
        return self._in_flight

    def try_enter(self) -> bool:
        """Begin a call if there is room for it; who was let in has to ``leave``."""
        with self._lock:
            now_s = self._now()
            is_free = self._in_flight < self.calls and now_s >= self._rests_until
            self._in_flight += is_free
            if self._in_flight >= self.calls:
                self._full_at = now_s
            return is_free

    def leave(self) -> None:
        """End a call."""
        with self._lock:
            self._in_flight -= 1

    def note_answer(self, latency_s: float) -> None:
        """Hear of a call that was answered at once, and raise the limit if it was made use of and latency holds."""
        with self._lock:
            self._learn_latency(latency_s)
            is_used = self._now() - self._full_at <= 2 * self._round_s()
            if is_used and not self._is_slow():
                self._limit = min(float(self.most), self._limit + self._step())

    def note_refusal(self, retry_after_s: float | None = None) -> None:
        """Hear of a call that the endpoint refused, or did not answer in time."""
        with self._lock:
            now_s, self._is_starting = self._now(), False
            self._rests_until = max(self._rests_until, now_s + (retry_after_s or 0.0))
            if now_s >= self._lowered_at + self._round_s():
                self._refused_at = float(self.calls)
                self._limit = max(1.0, self._limit * _DECREASE)
                self._lowered_at = now_s

    def _step(self) -> float:
        """Return by how much one answer raises the limit."""
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
        self._mean_s += _LATENCY_WEIGHT * (latency_s - self._mean_s)
        self._best_s = min(self._best_s * (1 + _DRIFT / self._limit), self._mean_s)

    def _round_s(self) -> float:
        """Return the time that a call takes."""
        return max(self._mean_s or 0.0, _SHORTEST_CALL_S)

    def _is_slow(self) -> bool:
        is_slow = self._mean_s is not None and self._mean_s > _SLOW_FACTOR * self._best_s
        self._is_starting = self._is_starting and not is_slow
        return is_slow
