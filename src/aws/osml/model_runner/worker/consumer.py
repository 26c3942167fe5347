"""Receives messages of one queue and passes them to a handler, a limited number at a time."""

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Generic, Protocol, TypeVar

import structlog
from botocore.exceptions import BotoCoreError, ClientError

from aws.osml.model_runner.common.backoff import backoff_s
from aws.osml.model_runner.exceptions import ModelRunnerError

logger = structlog.get_logger(__name__)

_ERROR_PAUSE_S = 2.0
_SLOT_POLL_S = 1.0
_FIRST_DELAY_S = 5
_LONGEST_DELAY_S = 300


class Message(Protocol):
    """A message as its queue delivered it."""

    @property
    def receipt_handle(self) -> str:
        """The handle that releases or deletes the message."""
        ...

    @property
    def receive_count(self) -> int:
        """Number of receives, this one included: 1 the first time."""
        ...


M = TypeVar("M", bound=Message)


class Source(Protocol[M]):
    """A queue, or an object with the same interface, such as the scheduler."""

    def receive(self) -> list[M]:
        """Return messages; an empty list after a wait without any."""
        ...

    def reset_request(self, receipt_handle: str, visibility_timeout: int = 0) -> None:
        """Release a message; it becomes visible again after ``visibility_timeout`` seconds."""
        ...


class QueueConsumer(Generic[M]):
    """One thread receives messages; ``slots`` threads and more process them.

    The consumer takes a slot before it receives, so that a message without a slot stays for another worker.
    ``handle`` is called with a message and a function that frees the slot early. A handler calls it when its remaining
    work no longer blocks new messages. At most ``most_given_up`` messages without a slot are processed at a time;
    for further ones the function does nothing.
    """

    def __init__(
        self,
        name: str,
        queue: Source[M],
        handle: Callable[[M, Callable[[], None]], None],
        slots: int,
        stopping: threading.Event,
        on_poll: Callable[[str], None] = lambda _state: None,
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
        """Start the thread that receives."""
        self._thread.start()

    def join(self, timeout_s: float) -> bool:
        """Stop taking messages and wait for the handlers in progress; return True when all ended in time.

        A receive in progress may still return a message, which is then released. So the call also waits for the
        receive: otherwise the message would stay invisible until its visibility timeout ends.
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
            try:
                messages = self._queue.receive()
                self._on_poll("running")
            except Exception as err:  # noqa: BLE001 - no failure of AWS may end the daemon; it pauses and receives again
                # A new process could not reach AWS either. A failure of the worker's own code does not count.
                if isinstance(err, (ModelRunnerError, BotoCoreError, ClientError)):
                    self._on_poll("aws_unreachable")
                logger.error("queue.not_received", queue=self._name, error=type(err).__name__, reason=str(err))
                self._stopping.wait(_ERROR_PAUSE_S)
                messages = []
            # A source that returns several messages counts free slots itself. A message without a slot is released.
            has_slot = True
            for message in messages:
                has_slot = has_slot or self._slots.acquire(blocking=False)
                if has_slot and self._submit(message):
                    has_slot = False
                else:
                    self._release(message)
            if has_slot:
                self._slots.release()

    def _submit(self, message: M) -> bool:
        """Process a message in the pool; return False when the worker stops or no thread can be started."""
        if self._stopping.is_set():
            return False
        try:
            future = self._pool.submit(self._work, message)
        except RuntimeError:
            # The pool was shut down because the worker stops, or memory for another thread is lacking.
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
        except Exception:  # An error of one message must not end the daemon; the message is delivered again
            logger.exception("message.failed", queue=self._name, receive_count=message.receive_count)
            # The delay doubles, because SQS dead-letters a message after too many receives.
            self._release(message, int(backoff_s(message.receive_count - 1, _FIRST_DELAY_S, _LONGEST_DELAY_S)))
        finally:
            (self._given_up if is_given_up else self._slots).release()

    def _release(self, message: M, delay_s: int = 0) -> None:
        try:
            self._queue.reset_request(message.receipt_handle, delay_s)
        except Exception as err:  # noqa: BLE001 - an error must not end the thread that receives
            # The message becomes visible again in any case, when its visibility timeout ends.
            logger.warning("message.not_given_back", queue=self._name, reason=f"{type(err).__name__}: {err}")
