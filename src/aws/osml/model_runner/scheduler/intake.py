"""Intake of image requests: messages are received while the table of open jobs has room."""

import time
from collections.abc import Callable
from typing import Any

from aws.osml.model_runner.queue.request_queue import QueueMessage, RequestQueue

from .look_ahead import LookAhead

_FULL_PAUSE_S = 2.0


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
