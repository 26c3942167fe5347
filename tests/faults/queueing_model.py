"""A model behind a container that queues: calls wait for a server, and go on when their callers have given up."""

import threading
import time
from collections import deque

from pydantic import PrivateAttr

from aws.osml.model_runner.local.models.example_model import ModelReply
from faults.numbered_scene import NumberedModel


class QueueingModel(NumberedModel):
    """A ``NumberedModel`` with ``servers``, each of which works on one tile for ``call_ms``."""

    servers: int = 1
    call_ms: float = 100.0
    _free: int = PrivateAttr()
    # Serves callers in the order of arrival: with a semaphore some callers would wait without end.
    _queue: deque[threading.Event] = PrivateAttr(default_factory=deque)
    _lock: threading.Lock = PrivateAttr(default_factory=threading.Lock)
    _waiting: int = PrivateAttr(default=0)
    _most_waiting: int = PrivateAttr(default=0)

    def model_post_init(self, _: object) -> None:
        self._free = self.servers

    def forget(self) -> None:
        """Reset ``most_at_once``."""
        with self._lock:
            self._most_waiting = self._waiting

    @property
    def most_at_once(self) -> int:
        """The most calls that were in the container at once, since the last ``forget``."""
        return self._most_waiting

    def reply(self, tile: bytes, attempt: int) -> ModelReply:
        """Answer a tile when one of the servers has had its time for it."""
        served = threading.Event()
        with self._lock:
            self._waiting += 1
            self._most_waiting = max(self._most_waiting, self._waiting)
            self._queue.append(served)
            self._serve()
        served.wait()
        time.sleep(self.call_ms / 1000)
        with self._lock:
            self._waiting -= 1
            self._free += 1
            self._serve()
        return super().reply(tile, attempt)

    def _serve(self) -> None:
        if self._free and self._queue:
            self._free -= 1
            self._queue.popleft().set()
