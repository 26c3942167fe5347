"""Steps that break S3: bodies that end in a reset, and a store that asks for fewer requests or is away."""

import itertools
import random
import threading
import time
from collections.abc import Callable
from dataclasses import replace

from aws_proxy.proxy import Answer, Call, Forward, xml_error


def one_in(number: int) -> Callable[[], bool]:
    """Return a choice that is True at every ``number``-th call, the first one included."""
    numbers = itertools.count()
    return _locked(lambda: next(numbers) % number == 0)


def by_chance(share: float, seed: int) -> Callable[[], bool]:
    """Return a choice that is True for a ``share`` of the calls, the same ones for a ``seed``."""
    rng = random.Random(seed)
    return _locked(lambda: rng.random() < share)


def _locked(choose: Callable[[], bool]) -> Callable[[], bool]:
    lock = threading.Lock()

    def chosen() -> bool:
        with lock:
            return choose()

    return chosen


class CutBodies:
    """Resets the connection in the middle of the body of those GETs of objects that ``choose`` picks.

    Only keys that contain ``key`` are touched. ``cut`` counts.
    """

    def __init__(self, choose: Callable[[], bool], key: str = "") -> None:
        self.cut = 0
        self._choose = choose
        self._key = key

    def __call__(self, call: Call, forward: Forward) -> Answer:
        answer = forward(call)
        is_meant = call.service == "s3" and call.operation == "GetObject" and self._key in call.path
        if not is_meant or answer.status not in (200, 206) or not answer.body or not self._choose():
            return answer
        self.cut += 1
        return replace(answer, cut_at=len(answer.body) // 2)


SLOW_DOWN = xml_error("SlowDown", "Please reduce your request rate.", 503)


class Outage:
    """Gives ``answer`` to each GET and HEAD of an object for ``seconds``, once ``after`` of them have passed.

    Only keys that contain ``key`` are touched. ``refused`` counts.
    """

    def __init__(
        self,
        seconds: float,
        answer: Answer = SLOW_DOWN,
        after: int = 0,
        key: str = "",
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.refused = 0
        self._seconds = seconds
        self._answer = answer
        self._left = after
        self._key = key
        self._clock = clock
        self._until: float | None = None
        self._lock = threading.Lock()

    def __call__(self, call: Call, forward: Forward) -> Answer:
        is_meant = call.service == "s3" and call.method in ("GET", "HEAD") and self._key in call.path
        return self._answer if is_meant and self._is_refused() else forward(call)

    def _is_refused(self) -> bool:
        with self._lock:
            if self._left > 0:
                self._left -= 1
                return False
            if self._until is None:
                self._until = self._clock() + self._seconds
            is_refused = self._clock() < self._until
            self.refused += is_refused
            return is_refused
