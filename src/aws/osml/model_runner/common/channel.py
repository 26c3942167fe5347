"""Hands things from one thread to others, a few at a time, so that neither side runs away from the other."""

import contextvars
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

T = TypeVar("T")


class Semaphore(Protocol):
    """What ``threading.Semaphore`` does."""

    def acquire(self) -> object:
        """Wait until the count is above zero, and lower it."""

    def release(self) -> object:
        """Raise the count."""


@dataclass(frozen=True)
class Threads:
    """How threads are started, and how they wait for each other."""

    start: Callable[[Callable[[], None]], object]
    semaphore: Callable[[int], Semaphore]

    @classmethod
    def of_process(cls) -> "Threads":
        """Return the threads of this process; each begins with the context of the one that starts it."""

        def start(work: Callable[[], None]) -> None:
            context = contextvars.copy_context()
            threading.Thread(target=context.run, args=(work,), name="aggregation", daemon=True).start()

        return cls(start, threading.Semaphore)


class BrokenStreamError(Exception):
    """A stream ended before its end; the thread that filled it knows why."""


class _End:
    """The last thing in a channel; ``error`` is raised where the stream is broken."""

    def __init__(self, error: BaseException | None) -> None:
        self.error = error


class Channel(Generic[T]):
    """At most ``capacity`` things on their way from one thread to another."""

    def __init__(self, capacity: int, threads: Threads) -> None:
        self._slots = threads.semaphore(capacity)
        self._ready = threads.semaphore(0)
        self._things: deque[T | _End] = deque()
        self._is_left = False

    def reserve(self) -> bool:
        """Wait until there is room for one more; False when nobody reads any more."""
        self._slots.acquire()
        if self._is_left:
            self._slots.release()
        return not self._is_left

    def put(self, thing: T) -> None:
        """Hand over a thing, after ``reserve``."""
        self._things.append(thing)
        self._ready.release()

    def end(self, error: BaseException | None = None) -> None:
        """End the stream; ``error`` is raised to the thread that reads."""
        self._things.append(_End(error))
        self._ready.release()

    def leave(self) -> None:
        """Read no more."""
        self._is_left = True
        self._things.clear()
        self._slots.release()

    def __iter__(self) -> Iterator[T]:
        while True:
            self._ready.acquire()
            thing = self._things.popleft()
            if isinstance(thing, _End):
                if thing.error is not None:
                    raise thing.error
                return
            self._slots.release()
            yield thing


def read_ahead(things: Iterable[T], threads: Threads) -> Generator[T, None, None]:
    """Yield what another thread reads: the next thing while the caller works on one."""
    channel, is_over = Channel[T](1, threads), threads.semaphore(0)

    def read() -> None:
        try:
            rest = iter(things)
            while channel.reserve():
                try:
                    channel.put(next(rest))
                except StopIteration:
                    channel.end()
                    return
        except BaseException as err:  # noqa: BLE001 - raised in the thread that reads
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
    things: Iterable[T],
    readers: Sequence[Callable[[Iterable[T]], object]],
    threads: Threads,
    capacity: int,
) -> list[BaseException | None]:
    """Have every reader read all things, each in a thread of its own, and return the error of each.

    A reader that fails does not stop the others; where all fail, the rest is not read. Where the things themselves end
    in an error, each reader gets a ``BrokenStreamError``, and the error is raised when all of them have ended.
    """
    if len(readers) == 1:
        return [_read_alone(things, readers[0])]
    channels = [Channel[T](capacity, threads) for _ in readers]
    errors: list[BaseException | None] = [None] * len(readers)
    one_is_over = threads.semaphore(0)

    def start(number: int) -> None:
        def read() -> None:
            try:
                readers[number](channels[number])
            except BaseException as err:  # noqa: BLE001 - returned
                errors[number] = err
            finally:
                channels[number].leave()
                one_is_over.release()

        threads.start(read)

    for number in range(len(readers)):
        start(number)
    failure = None
    rest = iter(things)
    try:
        _hand_out(rest, channels, lambda: bool(errors) and None not in errors)
    except BaseException as err:  # noqa: BLE001 - raised below, when every reader has ended
        failure = err
    finally:
        _close(rest)
    for channel in channels:
        channel.end(BrokenStreamError() if failure else None)
    for _ in channels:
        one_is_over.acquire()
    if failure is not None:
        raise failure
    return errors


def _hand_out(things: Iterable[T], channels: Sequence[Channel[T]], have_all_failed: Callable[[], bool]) -> None:
    for thing in things:
        for channel in channels:
            if channel.reserve():
                channel.put(thing)
        if have_all_failed():
            return


def _read_alone(things: Iterable[T], reader: Callable[[Iterable[T]], object]) -> BaseException | None:
    """Do what ``spread`` does in the caller's thread."""
    failure: BaseException | None = None
    error: BaseException | None = None

    def guarded() -> Generator[T, None, None]:
        nonlocal failure
        rest = iter(things)
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
        # A reader may leave early; whether the things end well is still to be seen.
        for _ in guard:
            pass
    except BaseException as err:  # noqa: BLE001 - returned
        error = err
    finally:
        guard.close()
    if failure is not None:
        raise failure
    return error


def _close(things: Iterator[T]) -> None:
    """End what makes the things, where that is a generator."""
    if isinstance(things, Generator):
        things.close()
