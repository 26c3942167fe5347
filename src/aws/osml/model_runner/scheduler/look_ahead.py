"""How many images may wait in the table of open jobs, and how many of them at one endpoint.

Each turn of the scheduler reads every open job, so their number is bounded; what is left on the queue is safe there.
Each endpoint has a share of the bound, so one that never responds keeps no other's messages on the queue. The shares
are dynamic thresholds, as in a switch whose ports share a buffer (A. Choudhury and E. Hahne, "Dynamic Queue Length
Thresholds for Shared-Memory Packet Switches", 1998): an endpoint has room while fewer of its images wait than are free.
"""

import hashlib
import math
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping

from aws.osml.model_runner.database.scheduler_lock import SchedulerLock, SchedulerState

from .policy import Lane

# How old what a worker knows of the waiting images may be.
_KNOWN_FOR_S = 2.0
# How long it takes until the rows of a message's images are there, so that a turn sees them.
_STORED_S = 2.0
_STORED_S_PER_IMAGE = 0.1
# Whoever's they are, no more images wait: a turn over so many takes about four seconds.
MOST_WAITING = 20_000
# A turn publishes the counts of these many endpoints, the ones with most images. The others have room anyway.
_MOST_ENDPOINTS = 1_000


def waiting_by_endpoint(lanes: Iterable[Lane]) -> dict[str, int]:
    """Return how many of ``lanes``, one for each image that waits, are of each endpoint, under ``endpoint_key``."""
    return dict(Counter(map(endpoint_key, lanes)).most_common(_MOST_ENDPOINTS))


def endpoint_key(lane: Lane) -> str:
    """Return a short key of the endpoint of a lane: its variant is drawn only when an image is accepted."""
    return hashlib.sha256(f"{lane.account} {lane.endpoint}".encode()).hexdigest()[:16]


def room_of_an_endpoint(look_ahead: int, waiting: Mapping[str, int]) -> int:
    """Return how many images of one endpoint may wait, where so many of each do.

    One endpoint alone gets half of ``look_ahead``, and each of n that are full gets ``look_ahead / (n + 1)``. Images
    beyond that, of a message that has many, do not count against other endpoints. 1 is left in any case.
    """
    share = max(1, look_ahead // (len(waiting) + 1))
    return max(1, look_ahead - sum(min(count, share) for count in waiting.values()))


class LookAhead:
    """Room for further images as a worker sees it. Any thread may call.

    Workers learn from the last scheduling turn how many images wait, so several of them may overshoot by what each
    takes in two seconds.
    """

    def __init__(self, turns: SchedulerLock, look_ahead: int, now: Callable[[], float] = time.time) -> None:
        self._turns = turns
        self._look_ahead = look_ahead
        self._now = now
        self._notice = SchedulerState()
        self._known_at = -math.inf
        # What was taken here and may be missing in the notice: until when, for which endpoint, how many images.
        self._taken: list[tuple[float, str, int]] = []
        self._lock = threading.Lock()

    def is_full(self) -> bool:
        """Return True while so many images wait that no message is received, whoever sent it."""
        self._learn()
        with self._lock:
            return self._notice.waiting + sum(images for _, _, images in self._taken) >= MOST_WAITING

    def take(self, lane: Lane, images: int) -> bool:
        """Count ``images`` as waiting for an endpoint and return True; return False where it has no room."""
        key = endpoint_key(lane)
        self._learn()
        with self._lock:
            waiting = Counter(self._notice.waiting_for)
            for _, endpoint, count in self._taken:
                waiting[endpoint] += count
            if waiting[key] >= room_of_an_endpoint(self._look_ahead, +waiting):
                return False
            self._taken.append((self._now() + _STORED_S + images * _STORED_S_PER_IMAGE, key, images))
            return True

    def _learn(self) -> None:
        now_s = self._now()
        if now_s - self._known_at <= _KNOWN_FOR_S:
            return
        # No lock is held while a table is read.
        notice = self._turns.notice()
        with self._lock:
            self._notice, self._known_at = notice, now_s
            self._taken = [taken for taken in self._taken if taken[0] >= notice.looked_at]
