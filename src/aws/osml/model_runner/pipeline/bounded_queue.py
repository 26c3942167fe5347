"""A queue between two stages, bounded by count and by bytes."""

import threading
from collections import deque
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

T = TypeVar("T")

# Interval at which a waiting thread checks again whether an item is ready, when nothing wakes it.
_POLL_S = 0.1


class QueueClosedError(Exception):
    """The queue is closed: it takes no item, and is empty when ``get`` raises this."""


class BoundedQueue(Generic[T]):
    """First in, first out, for any number of threads.

    ``put`` waits while the queue holds ``max_items`` items or ``max_bytes`` bytes; None sets no bound. An item larger
    than ``max_bytes`` goes in when the queue is empty, because it would never fit.
    """

    def __init__(self, max_items: int | None = None, max_bytes: int | None = None) -> None:
        self._max_items = max_items
        self._max_bytes = max_bytes
        self._items: deque[tuple[T, int]] = deque()
        self._bytes = 0
        self._is_closed = self._is_polled = False
        lock = threading.Lock()
        self._filled = threading.Condition(lock)
        self._emptied = threading.Condition(lock)

    def put(self, item: T, size_bytes: int = 0) -> None:
        """Append ``item`` when there is room.

        Raises:
            QueueClosedError: the queue is closed, or was closed during the wait.
        """
        with self._emptied:
            self._emptied.wait_for(lambda: self._is_closed or self._has_room(size_bytes))
            if self._is_closed:
                raise QueueClosedError
            self._items.append((item, size_bytes))
            self._bytes += size_bytes
            self._filled.notify()

    def get(
        self, is_ready: Callable[[T], bool] = lambda _: True, kind_of: Callable[[T], Hashable] = lambda _: None
    ) -> T:
        """Wait for an item that is ready, and remove and return the oldest; a closed queue returns its oldest item.

        Items of another kind pass an item that is not ready: ``is_ready`` is called for the oldest item of each kind.

        Raises:
            QueueClosedError: the queue is closed and empty.
        """
        with self._filled:
            while True:
                index = 0 if self._is_closed and self._items else self._first_ready(is_ready, kind_of)
                if index is not None:
                    break
                if self._is_closed:
                    raise QueueClosedError
                self._wait()
            item, size_bytes = self._items[index]
            del self._items[index]
            self._bytes -= size_bytes
            self._emptied.notify_all()
            if self._items and not self._is_polled:
                # This thread may have been the polling thread, so another one has to take over.
                self._filled.notify()
            return item

    def wake(self) -> None:
        """Wake one waiting thread, so that it checks again whether an item is ready."""
        with self._filled:
            self._filled.notify()

    def close(self) -> None:
        """Refuse further items, and wake every waiting thread."""
        with self._filled:
            self._is_closed = True
            self._filled.notify_all()
            self._emptied.notify_all()

    def _wait(self) -> None:
        """Wait for an item. While items are not ready, one of the waiting threads polls them."""
        if self._is_polled or not self._items:
            self._filled.wait()
            return
        self._is_polled = True
        try:
            self._filled.wait(_POLL_S)
        finally:
            self._is_polled = False

    def _first_ready(self, is_ready: Callable[[T], bool], kind_of: Callable[[T], Hashable]) -> int | None:
        checked: set[Hashable] = set()
        for index, (item, _) in enumerate(self._items):
            kind = kind_of(item)
            if kind not in checked and is_ready(item):
                return index
            checked.add(kind)
        return None

    def _has_room(self, size_bytes: int) -> bool:
        if not self._items:
            return True
        fits = self._max_bytes is None or self._bytes + size_bytes <= self._max_bytes
        return fits and (self._max_items is None or len(self._items) < self._max_items)
