"""A queue between two stages that holds no more than it may, by count and by bytes."""

import threading
from collections import deque
from typing import Generic, TypeVar

T = TypeVar("T")


class QueueClosedError(Exception):
    """The queue was closed: nothing goes in any more, and what was in it has come out."""


class BoundedQueue(Generic[T]):
    """First in, first out, for any number of threads.

    ``put`` waits while the queue holds ``max_items`` items or ``max_bytes`` bytes. An item larger than ``max_bytes``
    goes in when the queue is empty, so that it passes at all.
    """

    def __init__(self, max_items: int, max_bytes: int | None = None) -> None:
        self._max_items = max_items
        self._max_bytes = max_bytes
        self._items: deque[tuple[T, int]] = deque()
        self._bytes = 0
        self._is_closed = False
        self._changed = threading.Condition()

    def put(self, item: T, size_bytes: int = 0) -> None:
        """Append ``item`` when there is room.

        Raises:
            QueueClosedError: the queue is closed, or was closed while this waited.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._is_closed or self._has_room(size_bytes))
            if self._is_closed:
                raise QueueClosedError
            self._items.append((item, size_bytes))
            self._bytes += size_bytes
            self._changed.notify_all()

    def get(self) -> T:
        """Remove and return the oldest item, when there is one.

        Raises:
            QueueClosedError: the queue is closed and empty.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._is_closed or bool(self._items))
            if not self._items:
                raise QueueClosedError
            item, size_bytes = self._items.popleft()
            self._bytes -= size_bytes
            self._changed.notify_all()
            return item

    def close(self) -> None:
        """Let nothing more in, and wake every thread that waits."""
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()

    def _has_room(self, size_bytes: int) -> bool:
        if not self._items:
            return True
        fits = self._max_bytes is None or self._bytes + size_bytes <= self._max_bytes
        return fits and len(self._items) < self._max_items
