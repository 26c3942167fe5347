"""The queue between two stages: its bounds hold for any number of threads, and closing it leaves nobody waiting."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aws.osml.model_runner.pipeline.bounded_queue import BoundedQueue, QueueClosedError

WAIT_S = 5.0


def is_waiting(thread: threading.Thread) -> bool:
    """Return True when a thread that may only wait is still there after a moment."""
    thread.join(0.03)
    return thread.is_alive()


def started(target, *arguments) -> threading.Thread:
    thread = threading.Thread(target=target, args=arguments, daemon=True)
    thread.start()
    return thread


def test_queue_keeps_order():
    queue: BoundedQueue[int] = BoundedQueue(10)
    for number in range(10):
        queue.put(number)
    assert [queue.get() for _ in range(10)] == list(range(10))


def test_put_waits_for_room_by_count():
    queue: BoundedQueue[str] = BoundedQueue(max_items=1)
    queue.put("first")
    putting = started(queue.put, "second")
    assert is_waiting(putting)
    assert queue.get() == "first"
    putting.join(WAIT_S)
    assert queue.get() == "second"


def test_put_waits_for_room_by_bytes():
    queue: BoundedQueue[str] = BoundedQueue(max_items=10, max_bytes=100)
    queue.put("first", 60)
    queue.put("second", 40)
    putting = started(queue.put, "third", 61)
    assert is_waiting(putting)
    queue.get()
    assert is_waiting(putting), "60 bytes have gone, so 60 would fit and 61 do not"
    queue.get()
    putting.join(WAIT_S)
    assert queue.get() == "third"


def test_oversized_item_passes_when_queue_is_empty():
    queue: BoundedQueue[str] = BoundedQueue(max_items=10, max_bytes=100)
    queue.put("small", 1)
    putting = started(queue.put, "huge", 1000)
    assert is_waiting(putting)
    assert queue.get() == "small"
    putting.join(WAIT_S)
    behind = started(queue.put, "next", 1)
    assert is_waiting(behind)
    assert queue.get() == "huge"
    behind.join(WAIT_S)
    assert queue.get() == "next"


def test_get_waits_for_item():
    queue: BoundedQueue[str] = BoundedQueue(1)
    got: list[str] = []
    getting = started(lambda: got.append(queue.get()))
    assert is_waiting(getting)
    queue.put("item")
    getting.join(WAIT_S)
    assert got == ["item"]


class Watched(BoundedQueue):
    """Notes the most that it ever held, in the moment that something went in."""

    peak_items = 0
    peak_bytes = 0

    def put(self, item, size_bytes=0):
        super().put(item, size_bytes)

    def _has_room(self, size_bytes):
        has_room = super()._has_room(size_bytes)
        if has_room:
            self.peak_items = max(self.peak_items, len(self._items) + 1)
            self.peak_bytes = max(self.peak_bytes, self._bytes + size_bytes)
        return has_room


@given(
    sizes=st.lists(st.integers(0, 50), min_size=1, max_size=60),
    max_items=st.integers(1, 6),
    max_bytes=st.integers(50, 120),
)
def test_queue_respects_bounds_and_loses_no_item_with_many_threads(sizes, max_items, max_bytes):
    queue = Watched(max_items, max_bytes)
    got: list[int] = []
    lock = threading.Lock()

    def consume():
        while True:
            try:
                item = queue.get()
            except QueueClosedError:
                return
            with lock:
                got.append(item)

    consumers = [started(consume) for _ in range(3)]
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda pair: queue.put(pair[0], pair[1]), enumerate(sizes)))
    queue.close()
    for thread in consumers:
        thread.join(WAIT_S)
    assert sorted(got) == list(range(len(sizes)))
    assert queue.peak_items <= max_items
    assert queue.peak_bytes <= max_bytes


def test_close_wakes_waiting_producers():
    queue: BoundedQueue[int] = BoundedQueue(1)
    queue.put(0)
    refused: list[int] = []

    def put(number):
        try:
            queue.put(number)
        except QueueClosedError:
            refused.append(number)

    threads = [started(put, number) for number in range(1, 6)]
    time.sleep(0.02)
    queue.close()
    for thread in threads:
        thread.join(WAIT_S)
    assert sorted(refused) == [1, 2, 3, 4, 5]


def test_close_wakes_waiting_consumers():
    queue: BoundedQueue[int] = BoundedQueue(1)
    ended: list[bool] = []

    def get():
        with pytest.raises(QueueClosedError):
            queue.get()
        ended.append(True)

    threads = [started(get) for _ in range(5)]
    time.sleep(0.02)
    queue.close()
    for thread in threads:
        thread.join(WAIT_S)
    assert len(ended) == 5


def test_closed_queue_is_emptied_and_refuses_items():
    queue: BoundedQueue[str] = BoundedQueue(5)
    queue.put("left")
    queue.close()
    queue.close()
    with pytest.raises(QueueClosedError):
        queue.put("late")
    assert queue.get() == "left"
    with pytest.raises(QueueClosedError):
        queue.get()
