"""Passes items from one thread to others through bounded channels, so that the reader is at most a few items behind."""

import contextvars
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

T = TypeVar("T")


class Semaphore(Protocol):
    """The part of ``threading.Semaphore`` that channels use."""

    def acquire(self) -> object:
        """Wait until the count is above 0, and lower it by 1."""

    def release(self) -> object:
        """Raise the count by 1."""


@dataclass(frozen=True)
class Threads:
    """Starts threads and makes their semaphores; the simulation replaces both."""

    start: Callable[[Callable[[], None]], object]
    semaphore: Callable[[int], Semaphore]

    @classmethod
    def of_process(cls) -> "Threads":
        """Return the threads of this process; each begins with a copy of the context of the thread that starts it."""

        def start(work: Callable[[], None]) -> None:
            context = contextvars.copy_context()
            threading.Thread(target=context.run, args=(work,), name="aggregation", daemon=True).start()

        return cls(start, threading.Semaphore)


class BrokenStreamError(Exception):
    """The stream of a reader broke off; the thread that fills the channel raises the cause."""


class _End:
    """The last item of a channel; a reader raises ``error`` if the stream broke off."""

    def __init__(self, error: BaseException | None) -> None:
        self.error = error


class Channel(Generic[T]):
    """Holds at most ``capacity`` items between the thread that fills it and the thread that reads it."""

    def __init__(self, capacity: int, threads: Threads) -> None:
        self._slots = threads.semaphore(capacity)
        self._ready = threads.semaphore(0)
        self._items: deque[T | _End] = deque()
        self._is_left = False

    def reserve(self) -> bool:
        """Wait until there is room for one more item; return False when the reader has left."""
        self._slots.acquire()
        if self._is_left:
            self._slots.release()
        return not self._is_left

    def put(self, item: T) -> None:
        """Add an item, after ``reserve``."""
        self._items.append(item)
        self._ready.release()

    def end(self, error: BaseException | None = None) -> None:
        """End the stream; the thread that reads raises ``error``."""
        self._items.append(_End(error))
        self._ready.release()

    def leave(self) -> None:
        """Read no more."""
        self._is_left = True
        self._items.clear()
        self._slots.release()

    def __iter__(self) -> Iterator[T]:
        while True:
            self._ready.acquire()
            item = self._items.popleft()
            if isinstance(item, _End):
                if item.error is not None:
                    raise item.error
                return
            self._slots.release()
            yield item


def read_ahead(items: Iterable[T], threads: Threads) -> Generator[T, None, None]:
    """Yield the items; another thread reads the next item while the caller works on one."""
    channel, is_over = Channel[T](1, threads), threads.semaphore(0)

    def read() -> None:
        try:
            rest = iter(items)
            while channel.reserve():
                try:
                    channel.put(next(rest))
                except StopIteration:
                    channel.end()
                    return
        except BaseException as err:  # noqa: BLE001 - the reading thread raises it
            channel.end(err)
        finally:
            is_over.release()

    threads.start(read)
    try:
        yield from channel
    finally:
        channel.leave()
        is_over.acquire()


def spread(
    items: Iterable[T],
    readers: Sequence[Callable[[Iterable[T]], object]],
    threads: Threads,
    capacity: int,
) -> list[BaseException | None]:
    """Let every reader read all items, each in a thread of its own, and return the error of each reader.

    A reader that fails does not stop the others; if all fail, the other items are not read. If ``items`` raises an
    error, each reader gets a ``BrokenStreamError``, and the error is raised when all of them have ended.
    """
    if len(readers) == 1:
        return [_read_alone(items, readers[0])]
    channels = [Channel[T](capacity, threads) for _ in readers]
    errors: list[BaseException | None] = [None] * len(readers)
    reader_ended = threads.semaphore(0)

    def start(number: int) -> None:
        def read() -> None:
            try:
                readers[number](channels[number])
            except BaseException as err:  # noqa: BLE001 - returned to the caller
                errors[number] = err
            finally:
                channels[number].leave()
                reader_ended.release()

        threads.start(read)

    for number in range(len(readers)):
        start(number)
    failure = None
    rest = iter(items)
    try:
        _fan_out(rest, channels, lambda: bool(errors) and None not in errors)
    except BaseException as err:  # noqa: BLE001 - raised below, when every reader has ended
        failure = err
    finally:
        _close(rest)
    for channel in channels:
        channel.end(BrokenStreamError() if failure else None)
    for _ in channels:
        reader_ended.acquire()
    if failure is not None:
        raise failure
    return errors


def _fan_out(items: Iterable[T], channels: Sequence[Channel[T]], have_all_failed: Callable[[], bool]) -> None:
    """Put each item into all channels; stop after an item if ``have_all_failed`` returns True."""
    for item in items:
        for channel in channels:
            if channel.reserve():
                channel.put(item)
        if have_all_failed():
            return


def _read_alone(items: Iterable[T], reader: Callable[[Iterable[T]], object]) -> BaseException | None:
    """Let one reader read all items in the caller's thread; errors as in ``spread``."""
    failure: BaseException | None = None
    error: BaseException | None = None

    def guarded() -> Generator[T, None, None]:
        nonlocal failure
        rest = iter(items)
        try:
            yield from rest
        except GeneratorExit:
            _close(rest)
            raise
        except BaseException as err:
            failure = err
            raise BrokenStreamError from err

    guard = guarded()
    try:
        reader(guard)
        # A reader may leave early, and a later item may still raise an error.
        for _ in guard:
            pass
    except BaseException as err:  # noqa: BLE001 - returned to the caller
        error = err
    finally:
        guard.close()
    if failure is not None:
        raise failure
    return error


def _close(items: Iterator[T]) -> None:
    """Close the generator behind the items, if there is one."""
    if isinstance(items, Generator):
        items.close()
