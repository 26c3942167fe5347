"""The image queue as workers see it: requests are taken off it while the buffer of those that wait has room.

The buffer is the table of open jobs. Each turn of the scheduler reads it whole, so it must not grow without end; what
is left on the queue is safe there.
"""

import time
from collections.abc import Callable
from typing import Any

from aws.osml.model_runner.database.scheduling_turns import SchedulingTurns
from aws.osml.model_runner.queue.request_queue import QueueMessage, RequestQueue

# How old what a worker knows of the buffer may be.
_KNOWN_FOR_S = 2.0
_FULL_PAUSE_S = 2.0


class BufferedImageRequestQueue:
    """Receives image requests, unless ``look_ahead`` of them wait already.

    Workers learn from the last scheduling turn how many wait, so several of them may overshoot by what each takes in
    two seconds.
    """

    def __init__(
        self,
        queue: RequestQueue,
        turns: SchedulingTurns,
        look_ahead: int,
        now: Callable[[], float] = time.time,
        pause: Callable[[float], Any] = time.sleep,
    ) -> None:
        self._queue = queue
        self._turns = turns
        self._look_ahead = look_ahead
        self._now = now
        self._pause = pause
        self._waiting = 0
        self._known_at: float | None = None

    def receive(self) -> list[QueueMessage]:
        """Receive as the queue does; nothing, after a pause, while the buffer is full.

        Raises:
            QueueError: SQS could not be asked.
        """
        if not self._has_room():
            self._pause(_FULL_PAUSE_S)
            return []
        messages = self._queue.receive()
        self._waiting += len(messages)
        return messages

    def reset_request(self, receipt_handle: str, visibility_timeout: int = 0) -> None:
        """Hide a message for so many seconds from now; 0 gives it back at once."""
        self._queue.reset_request(receipt_handle, visibility_timeout)

    def _has_room(self) -> bool:
        now_s = self._now()
        if self._known_at is None or now_s - self._known_at > _KNOWN_FOR_S:
            self._waiting, self._known_at = self._turns.notice().waiting, now_s
        return self._waiting < self._look_ahead
