"""A model behind a container that queues: calls wait for a server, and go on when their callers have given up."""

import threading
import time

from pydantic import PrivateAttr

from aws.osml.model_runner.local.models.example_model import ModelReply
from faults.numbered_scene import NumberedModel


class QueueingModel(NumberedModel):
    """A ``NumberedModel`` with ``servers``, each of which works on one tile for ``call_ms``."""

    servers: int = 1
    call_ms: float = 100.0
    _servers: threading.Semaphore = PrivateAttr()
    _lock: threading.Lock = PrivateAttr(default_factory=threading.Lock)
    _waiting: int = PrivateAttr(default=0)
    _most_waiting: int = PrivateAttr(default=0)

    def model_post_init(self, _: object) -> None:
        self._servers = threading.Semaphore(self.servers)

    def forget(self) -> None:
        """Begin to count ``most_at_once`` anew."""
        with self._lock:
            self._most_waiting = self._waiting

    @property
    def most_at_once(self) -> int:
        """The most calls that were in the container at once, since the last ``forget``."""
        return self._most_waiting

    def reply(self, tile: bytes, attempt: int) -> ModelReply:
        """Answer a tile when one of the servers has had its time for it."""
        with self._lock:
            self._waiting += 1
            self._most_waiting = max(self._most_waiting, self._waiting)
        with self._servers:
            time.sleep(self.call_ms / 1000)
        with self._lock:
            self._waiting -= 1
        return super().reply(tile, attempt)
