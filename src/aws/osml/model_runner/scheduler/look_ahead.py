"""Limits of waiting images in the table of open jobs: in total, and per endpoint.

Each scheduling pass reads every open job, so their number is bounded; further messages stay in the queue. Each endpoint
has a share of the bound, so a stuck endpoint does not keep messages for other endpoints in the queue. The shares
are dynamic thresholds, as in a switch whose ports share a buffer (A. Choudhury and E. Hahne, "Dynamic Queue Length
Thresholds for Shared-Memory Packet Switches", 1998): an endpoint has room while fewer of its images wait than are free.
"""

import hashlib
import math
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from aws.osml.model_runner.database.scheduler_lock import SchedulerLock, SchedulerState
from aws.osml.model_runner.queue.request_queue import QueueMessage, RequestQueue

from .policy import Lane

# Maximum age of a worker's counts of waiting images.
_KNOWN_FOR_S = 2.0
# Time until the rows of a message's images are stored, so that a scheduling pass counts them.
_STORED_S = 2.0
_STORED_S_PER_IMAGE = 0.1
# Maximum number of waiting images in total. A scheduling pass over so many takes about four seconds.
MAX_WAITING = 20_000
# Number of endpoints, with the most images, whose counts a scheduling pass publishes. The others have room anyway.
_MAX_ENDPOINTS = 1_000
# Wait of the intake while the table of open jobs is full.
_FULL_PAUSE_S = 2.0


def waiting_by_endpoint(lanes: Iterable[Lane]) -> dict[str, int]:
    """Count waiting images by ``endpoint_key``; ``lanes`` has the lane of each waiting image."""
    return dict(Counter(map(endpoint_key, lanes)).most_common(_MAX_ENDPOINTS))


def endpoint_key(lane: Lane) -> str:
    """Return a short key of a lane's endpoint, without the variant, which is drawn later, at acceptance."""
    return hashlib.sha256(f"{lane.account} {lane.endpoint}".encode()).hexdigest()[:16]


def room_of_an_endpoint(look_ahead: int, waiting: Mapping[str, int]) -> int:
    """Return how many images of one endpoint may wait, given the waiting images of each endpoint.

    A single endpoint gets half of ``look_ahead``, and each of n full endpoints gets ``look_ahead / (n + 1)``. Images
    beyond a share, from one message with many, do not reduce the room of other endpoints. The result is at least 1.
    """
    share = max(1, look_ahead // (len(waiting) + 1))
    return max(1, look_ahead - sum(min(count, share) for count in waiting.values()))


class LookAhead:
    """A worker's view of the room for further images. Thread-safe.

    Workers read the counts of the last scheduling pass. So several workers together may exceed the limit by the images
    that each accepts in two seconds.
    """

    def __init__(self, scheduler_lock: SchedulerLock, look_ahead: int, now: Callable[[], float] = time.time) -> None:
        self._scheduler_lock = scheduler_lock
        self._look_ahead = look_ahead
        self._now = now
        self._state = SchedulerState()
        self._read_at = -math.inf
        # Images accepted here that the counts may lack: time of expiry, key of the endpoint, number of images.
        self._taken: list[tuple[float, str, int]] = []
        self._lock = threading.Lock()

    def is_full(self) -> bool:
        """Return True while so many images wait that no message may be received."""
        self._refresh()
        with self._lock:
            return self._state.waiting + sum(images for _, _, images in self._taken) >= MAX_WAITING

    def take(self, lane: Lane, images: int) -> bool:
        """Count ``images`` as waiting for an endpoint and return True; return False if it has no room."""
        key = endpoint_key(lane)
        self._refresh()
        with self._lock:
            waiting = Counter(self._state.waiting_for)
            for _, endpoint, count in self._taken:
                waiting[endpoint] += count
            if waiting[key] >= room_of_an_endpoint(self._look_ahead, +waiting):
                return False
            self._taken.append((self._now() + _STORED_S + images * _STORED_S_PER_IMAGE, key, images))
            return True

    def _refresh(self) -> None:
        now_s = self._now()
        if now_s - self._read_at <= _KNOWN_FOR_S:
            return
        # No lock is held while a table is read.
        state = self._scheduler_lock.state()
        with self._lock:
            self._state, self._read_at = state, now_s
            self._taken = [taken for taken in self._taken if taken[0] >= state.looked_at]


class BufferedImageRequestQueue:
    """Receives image requests, unless as many images wait as a scheduling pass may read."""

    def __init__(self, queue: RequestQueue, look_ahead: LookAhead, pause: Callable[[float], Any] = time.sleep) -> None:
        self._queue = queue
        self._look_ahead = look_ahead
        self._pause = pause

    def receive(self) -> list[QueueMessage]:
        """Receive messages; while the table of open jobs is full, pause and return an empty list.

        Raises:
            QueueError: the call to SQS failed.
        """
        if self._look_ahead.is_full():
            self._pause(_FULL_PAUSE_S)
            return []
        return self._queue.receive()

    def reset_request(self, receipt_handle: str, visibility_timeout: int = 0) -> None:
        """Set a message's visibility, in seconds from now; 0 releases it at once."""
        self._queue.reset_request(receipt_handle, visibility_timeout)
