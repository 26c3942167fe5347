"""Messages off a queue: never more at once than there are slots, and no error ends the daemon."""

import queue
import threading
from collections.abc import Callable, Iterator

import pytest
import structlog
from botocore.exceptions import EndpointConnectionError

from aws.osml.model_runner.exceptions import QueueError
from aws.osml.model_runner.queue.request_queue import QueueMessage
from aws.osml.model_runner.worker import consumer as queue_consumer
from aws.osml.model_runner.worker.consumer import QueueConsumer

WAIT_S = 5.0


class FakeQueue:
    """A queue in memory. An exception that is put in is raised by the receive that finds it."""

    def __init__(self) -> None:
        self.waiting: queue.Queue[QueueMessage | Exception] = queue.Queue()
        self.received = 0
        self.given_back: list[str] = []
        self.on_receive: Callable[[], None] = lambda: None
        self.reset_error: Exception | None = None

    def send(self, count: int) -> None:
        for number in range(count):
            self.waiting.put(QueueMessage(f"handle-{number}", f"body-{number}", 1))

    def receive(self) -> list[QueueMessage]:
        try:
            item = self.waiting.get(timeout=0.01)
        except queue.Empty:
            return []
        if isinstance(item, Exception):
            raise item
        self.received += 1
        self.on_receive()
        return [item]

    def reset_request(self, receipt_handle: str, visibility_timeout: int = 0) -> None:
        assert visibility_timeout == 0
        self.given_back.append(receipt_handle)
        if self.reset_error is not None:
            raise self.reset_error


@pytest.fixture(autouse=True)
def logs() -> Iterator[list[dict[str, object]]]:
    with structlog.testing.capture_logs() as caught:
        yield caught


@pytest.fixture
def stopping() -> Iterator[threading.Event]:
    event = threading.Event()
    yield event
    event.set()


@pytest.fixture
def source() -> FakeQueue:
    return FakeQueue()


def ended(consumer: QueueConsumer) -> bool:
    """Return True when the work and the receiver have ended."""
    is_worked_off = consumer.join(WAIT_S)
    consumer._thread.join(WAIT_S)
    return is_worked_off and not consumer._thread.is_alive()


def test_every_message_is_worked_on_once(source, stopping):
    source.send(20)
    handled: list[str] = []
    all_done = threading.Event()

    def handle(message: QueueMessage, _make_room: object) -> None:
        handled.append(message.body)
        if len(handled) == 20:
            all_done.set()

    consumer = QueueConsumer("test", source, handle, 3, stopping)
    consumer.start()
    assert all_done.wait(WAIT_S)
    stopping.set()
    assert ended(consumer)
    assert sorted(handled) == sorted(f"body-{n}" for n in range(20))
    assert source.given_back == []


def end_after(consumer: QueueConsumer, handled: list[str], count: int, stopping: threading.Event) -> None:
    """Wait until so many messages were handled, and stop."""
    while len(handled) < count:
        threading.Event().wait(0.005)
    stopping.set()
    assert ended(consumer)


def test_no_more_is_taken_than_there_are_slots(source, stopping, monkeypatch):
    monkeypatch.setattr(queue_consumer, "_SLOT_POLL_S", 0.01)
    source.send(10)
    release, three_at_work = threading.Event(), threading.Barrier(4, timeout=WAIT_S)
    handled: list[str] = []

    def handle(message: QueueMessage, _make_room: object) -> None:
        if not release.is_set():
            three_at_work.wait()
            release.wait(WAIT_S)
        handled.append(message.body)

    consumer = QueueConsumer("test", source, handle, 3, stopping)
    consumer.start()
    three_at_work.wait()
    threading.Event().wait(0.05)
    assert source.received == 3, "what cannot be begun is left to another worker"
    release.set()
    end_after(consumer, handled, 10, stopping)


def test_slot_released_early_is_reused_within_limit(source, stopping, monkeypatch):
    monkeypatch.setattr(queue_consumer, "_SLOT_POLL_S", 0.01)
    source.send(10)
    handled: list[str] = []
    release, four_at_work = threading.Event(), threading.Barrier(5, timeout=WAIT_S)

    def handle(message: QueueMessage, make_room: Callable[[], None]) -> None:
        make_room()
        make_room()
        if not release.is_set():
            four_at_work.wait()
            release.wait(WAIT_S)
        handled.append(message.body)

    consumer = QueueConsumer("test", source, handle, 1, stopping, most_given_up=3)
    consumer.start()
    four_at_work.wait()
    threading.Event().wait(0.05)
    assert source.received == 4, "three abandoned receives, and a successful one"
    release.set()
    end_after(consumer, handled, 10, stopping)


def test_message_is_released_while_stopping(source, stopping):
    source.on_receive = stopping.set
    source.send(2)
    handled: list[QueueMessage] = []
    consumer = QueueConsumer("test", source, lambda message, _: handled.append(message), 2, stopping)
    consumer.start()
    assert ended(consumer)
    assert handled == []
    assert source.given_back == ["handle-0"]
    assert source.received == 1


@pytest.mark.parametrize("reset_error", [None, QueueError("SQS is away")])
def test_message_is_released_after_pool_shutdown(source, stopping, reset_error):
    consumer = QueueConsumer("test", source, lambda message, _: pytest.fail("begun"), 2, stopping)

    def shut_down() -> None:
        # The receiver has not seen yet that the worker stops.
        consumer._pool.shutdown(wait=False)

    source.on_receive = shut_down
    source.reset_error = reset_error
    source.send(1)
    consumer.start()
    while not source.given_back:
        threading.Event().wait(0.005)
    stopping.set()
    assert ended(consumer)
    assert source.given_back == ["handle-0"]


def test_slot_is_freed_when_message_raises(source, stopping, logs):
    source.send(5)
    handled: list[str] = []
    all_done = threading.Event()

    def handle(message: QueueMessage, _make_room: object) -> None:
        handled.append(message.body)
        if len(handled) == 5:
            all_done.set()
        raise KeyError("unforeseen")

    consumer = QueueConsumer("test", source, handle, 1, stopping)
    consumer.start()
    assert all_done.wait(WAIT_S)
    stopping.set()
    assert ended(consumer)
    assert handled == [f"body-{n}" for n in range(5)]
    failed = [log for log in logs if log["event"] == "message.failed"]
    assert len(failed) == 5
    assert (failed[0]["queue"], failed[0]["receive_count"]) == ("test", 1)
    assert source.given_back == [], "it comes again by itself, and its receives are counted"


def test_receive_that_fails_is_tried_again_after_pause(source, stopping, logs, monkeypatch):
    monkeypatch.setattr(queue_consumer, "_ERROR_PAUSE_S", 0.01)
    states: list[str] = []
    done = threading.Event()
    source.waiting.put(QueueError("SQS receive_message failed"))
    source.waiting.put(EndpointConnectionError(endpoint_url="https://sqs"))
    source.waiting.put(ValueError("unforeseen"))
    source.send(1)
    consumer = QueueConsumer("test", source, lambda message, _: done.set(), 1, stopping, states.append)
    consumer.start()
    assert done.wait(WAIT_S)
    stopping.set()
    assert ended(consumer)
    errors = [log["error"] for log in logs if log["event"] == "queue.not_received"]
    assert errors == ["QueueError", "EndpointConnectionError", "ValueError"]
    first_success = states.index("running")
    assert states[:first_success] == ["aws_unreachable"] * 2, "a failure of the worker's own code does not count"


def test_join_returns_false_when_work_outlasts_timeout(source, stopping):
    source.send(1)
    began, release = threading.Event(), threading.Event()

    def handle(message: QueueMessage, _make_room: object) -> None:
        began.set()
        release.wait(WAIT_S)

    consumer = QueueConsumer("test", source, handle, 1, stopping)
    consumer.start()
    assert began.wait(WAIT_S)
    stopping.set()
    assert not consumer.join(0.02)
    release.set()
    assert ended(consumer)


def test_late_message_is_released_before_join_returns(source, stopping):
    polling, release = threading.Event(), threading.Event()

    def arrive_late() -> list[QueueMessage]:
        polling.set()
        release.wait(WAIT_S)
        return [QueueMessage("late", "body", 1)]

    source.receive = arrive_late
    consumer = QueueConsumer("test", source, lambda message, _: pytest.fail("begun"), 2, stopping)
    consumer.start()
    assert polling.wait(WAIT_S)
    stopping.set()
    threading.Timer(0.1, release.set).start()
    assert consumer.join(WAIT_S)
    assert source.given_back == ["late"]


def test_receive_is_not_waited_for_longer_than_time_to_stop(source, stopping):
    polling, release = threading.Event(), threading.Event()

    def hang() -> list[QueueMessage]:
        polling.set()
        release.wait(WAIT_S)
        return []

    source.receive = hang
    consumer = QueueConsumer("test", source, lambda message, _: None, 2, stopping)
    consumer.start()
    assert polling.wait(WAIT_S)
    stopping.set()
    assert consumer.join(0.05)
    assert consumer._thread.is_alive()
    release.set()
    assert ended(consumer)
