"""Takes messages off one queue and has them worked on, so many at once."""

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Generic, Protocol, TypeVar

import structlog

from aws.osml.model_runner.common.backoff import backoff_s

logger = structlog.get_logger(__name__)

_ERROR_PAUSE_S = 2.0
_SLOT_POLL_S = 1.0
_FIRST_DELAY_S = 5
_LONGEST_DELAY_S = 300


class Message(Protocol):
    """What comes off a queue; ``receive_count`` is 1 the first time."""

    @property
    def receipt_handle(self) -> str:
        """What the message is given back by."""
        ...

    @property
    def receive_count(self) -> int:
        """How often it came, this time included."""
        ...


M = TypeVar("M", bound=Message)


class Source(Protocol[M]):
    """A queue, or what behaves like one."""

    def receive(self) -> list[M]:
        """Return a message, or none after a while."""
        ...

    def reset_request(self, receipt_handle: str, visibility_timeout: int = 0) -> None:
        """Give a message back, to come again in so many seconds."""
        ...


class QueueConsumer(Generic[M]):
    """One thread that waits for messages, and others that work on them.

    No message is taken before there is a slot for it: what a worker cannot begin is another worker's. ``handle`` is
    called with a message and a function by which it gives its slot up early, when what is left of its work keeps this
    process from nothing. ``most_given_up`` messages may have done so at a time; others keep theirs.
    """

    def __init__(
        self,
        name: str,
        queue: Source[M],
        handle: Callable[[M, Callable[[], None]], None],
        slots: int,
        stopping: threading.Event,
        on_poll: Callable[[], None] = lambda: None,
        most_given_up: int = 0,
    ) -> None:
        self._name = name
        self._queue = queue
        self._handle = handle
        self._slots = threading.Semaphore(slots)
        self._given_up = threading.Semaphore(most_given_up)
        self._stopping = stopping
        self._on_poll = on_poll
        self._pool = ThreadPoolExecutor(slots + most_given_up, thread_name_prefix=name)
        self._running: set[Future[None]] = set()
        self._thread = threading.Thread(target=self._receive, name=f"{name}-receive", daemon=True)

    def start(self) -> None:
        """Start to receive."""
        self._thread.start()

    def join(self, timeout_s: float) -> bool:
        """Begin nothing more and wait for what is being worked on; True when that ended in time.

        A message that a receive under way still brings is given back. So the receive is waited for as well: else the
        message would be hidden until its time is over.
        """
        deadline_s = time.monotonic() + timeout_s
        self._pool.shutdown(wait=False)
        is_drained = not wait(list(self._running), timeout_s).not_done
        if self._thread.is_alive():
            self._thread.join(max(0.0, deadline_s - time.monotonic()))
        return is_drained

    def _receive(self) -> None:
        while not self._stopping.is_set():
            if not self._slots.acquire(timeout=_SLOT_POLL_S):
                continue
            # A source that returns several knows how many slots are free; one too many is given back.
            has_slot = True
            for message in self._poll():
                has_slot = has_slot or self._slots.acquire(blocking=False)
                if has_slot and self._submit(message):
                    has_slot = False
                else:
                    self._give_back(message)
            if has_slot:
                self._slots.release()

    def _submit(self, message: M) -> bool:
        """Have a message worked on; False when this worker is to stop and begins nothing more."""
        if self._stopping.is_set():
            return False
        try:
            future = self._pool.submit(self._work, message)
        except RuntimeError:
            # The pool was shut down since, and this worker stops; or it finds no memory for another thread.
            self._stopping.wait(_ERROR_PAUSE_S)
            return False
        self._running.add(future)
        future.add_done_callback(self._running.discard)
        return True

    def _work(self, message: M) -> None:
        is_given_up = False

        def make_room() -> None:
            nonlocal is_given_up
            if not is_given_up and self._given_up.acquire(blocking=False):
                is_given_up = True
                self._slots.release()

        try:
            self._handle(message, make_room)
        except Exception:  # One message's error must not end the daemon; the message comes again
            logger.exception("message.failed", queue=self._name, receive_count=message.receive_count)
            # Later each time, since SQS sets aside what is received too often.
            self._give_back(message, int(backoff_s(message.receive_count - 1, _FIRST_DELAY_S, _LONGEST_DELAY_S)))
        finally:
            (self._given_up if is_given_up else self._slots).release()

    def _give_back(self, message: M, delay_s: int = 0) -> None:
        try:
            self._queue.reset_request(message.receipt_handle, delay_s)
        except Exception as err:  # noqa: BLE001 - the thread that receives must not end by it
            # It comes again in any case, when its time hidden is over.
            logger.warning("message.not_given_back", queue=self._name, reason=f"{type(err).__name__}: {err}")

    def _poll(self) -> list[M]:
        try:
            messages = self._queue.receive()
            self._on_poll()
        except Exception as err:  # noqa: BLE001 - the daemon outlives whatever AWS does; it pauses and asks again
            logger.error("queue.not_received", queue=self._name, error=type(err).__name__, reason=str(err))
            self._stopping.wait(_ERROR_PAUSE_S)
            return []
        return messages
