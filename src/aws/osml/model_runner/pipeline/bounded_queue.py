"""A queue between two stages that holds no more than it may, by count and by bytes."""

import threading
from collections import deque
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

T = TypeVar("T")

# How often items that were not ready are looked at again, when nothing else happens.
_LOOK_AGAIN_S = 0.1


class QueueClosedError(Exception):
    """The queue was closed: nothing goes in any more, and what was in it has come out."""


class BoundedQueue(Generic[T]):
    """First in, first out, for any number of threads.

    ``put`` waits while the queue holds ``max_items`` items or ``max_bytes`` bytes; None is no bound. An item larger
    than ``max_bytes`` goes in when the queue is empty, so that it passes at all.
    """

    def __init__(self, max_items: int | None = None, max_bytes: int | None = None) -> None:
        self._max_items = max_items
        self._max_bytes = max_bytes
        self._items: deque[tuple[T, int]] = deque()
        self._bytes = 0
        self._is_closed = self._is_watched = False
        lock = threading.Lock()
        self._filled = threading.Condition(lock)
        self._emptied = threading.Condition(lock)

    def put(self, item: T, size_bytes: int = 0) -> None:
        """Append ``item`` when there is room.

        Raises:
            QueueClosedError: the queue is closed, or was closed while this waited.
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
        """Remove and return the oldest item that is ready, when there is one; of a closed queue, the oldest.

        An item that is not ready lets items of another kind pass: ``is_ready`` is asked for the oldest of each kind.

        Raises:
            QueueClosedError: the queue is closed and empty.
        """
        with self._filled:
            while True:
                place = 0 if self._is_closed and self._items else self._first_ready(is_ready, kind_of)
                if place is not None:
                    return self._take(place)
                if self._is_closed:
                    raise QueueClosedError
                self._wait()

    def wake(self) -> None:
        """Have one thread that waits look again whether an item is ready."""
        with self._filled:
            self._filled.notify()

    def close(self) -> None:
        """Let nothing more in, and wake every thread that waits."""
        with self._filled:
            self._is_closed = True
            self._filled.notify_all()
            self._emptied.notify_all()

    def _wait(self) -> None:
        """Wait for an item, or for items that are not ready: of the threads that wait, one looks again and again."""
        if self._is_watched or not self._items:
            self._filled.wait()
            return
        self._is_watched = True
        try:
            self._filled.wait(_LOOK_AGAIN_S)
        finally:
            self._is_watched = False

    def _first_ready(self, is_ready: Callable[[T], bool], kind_of: Callable[[T], Hashable]) -> int | None:
        asked: set[Hashable] = set()
        for place, (item, _) in enumerate(self._items):
            kind = kind_of(item)
            if kind not in asked and is_ready(item):
                return place
            asked.add(kind)
        return None

    def _take(self, place: int) -> T:
        item, size_bytes = self._items[place]
        del self._items[place]
        self._bytes -= size_bytes
        self._emptied.notify_all()
        if self._items and not self._is_watched:
            # This thread may have been the one that looked at the others.
            self._filled.notify()
        return item

    def _has_room(self, size_bytes: int) -> bool:
        if not self._items:
            return True
        fits = self._max_bytes is None or self._bytes + size_bytes <= self._max_bytes
        return fits and (self._max_items is None or len(self._items) < self._max_items)
