"""Virtual time, and processes whose threads are greenlets: one runs until it waits; the seed decides who is next."""

import heapq
import random
from collections.abc import Callable
from typing import Any

from greenlet import GreenletExit, getcurrent, greenlet

START_S = 1_700_000_000.0


class Process:
    """A worker's operating system process: it has a clock of its own, may be paused, and dies without a word."""

    def __init__(self, scheduler: "Scheduler", name: str, skew_s: float = 0.0) -> None:
        self._scheduler = scheduler
        self.name = name
        self.skew_s = skew_s
        self.is_alive = True
        self.paused_until = 0.0

    def now(self) -> float:
        """The time by this process's clock."""
        return self._scheduler.now + self.skew_s

    def spawn(self, work: Callable[[], object]) -> None:
        """Start a thread."""
        self._scheduler.spawn(self, work)

    def pause(self, seconds: float) -> None:
        """Let no thread run for so long: a stopped virtual machine, a long collection of garbage."""
        self.paused_until = self._scheduler.now + seconds

    def kill(self) -> None:
        """Let no thread run ever again."""
        self.is_alive = False

    def die(self) -> None:
        """Kill this process from one of its own threads, which does not return."""
        self.kill()
        self._scheduler.park()


class Fiber(greenlet):
    """A thread of a process."""

    process: Process


class _Ticket:
    """The right to wake a fiber once, by time or by an event, whichever comes first."""

    __slots__ = ("fiber", "is_spent")

    def __init__(self, fiber: Fiber) -> None:
        self.fiber = fiber
        self.is_spent = False


class Scheduler:
    """The hub: it keeps the time and resumes whoever is due."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.now = START_S
        self._heap: list[tuple[float, int, Any]] = []
        self._count = 0
        self._hub = getcurrent()
        self._fibers: list[Fiber] = []
        self._is_over = False

    def at(self, delay_s: float, action: Callable[[], object]) -> None:
        """Call ``action`` in ``delay_s``, outside all processes."""
        self._push(self.now + delay_s, action)

    def spawn(self, process: Process, work: Callable[[], object]) -> None:
        """Start a thread of a process."""
        fiber = Fiber(work, self._hub)
        fiber.process = process
        self._fibers.append(fiber)
        self._push(self.now, _Ticket(fiber))

    def sleep(self, seconds: float) -> None:
        """Let the running thread wait."""
        # ``_push``, ``ticket`` and ``park`` in one: half of what a world does is to wait.
        fiber = getcurrent()
        if self._is_over or not fiber.process.is_alive:
            raise GreenletExit
        self._count += 1
        heapq.heappush(self._heap, (self.now + max(0.0, seconds), self._count, _Ticket(fiber)))
        self._hub.switch()

    def ticket(self) -> _Ticket:
        """Return what wakes the running thread; ``park`` after it was handed out."""
        fiber = getcurrent()
        if not fiber.process.is_alive:
            raise GreenletExit
        return _Ticket(fiber)

    def park(self) -> None:
        """Let the running thread wait until one of its tickets is used; that of a dead process waits for ever."""
        if self._is_over:
            raise GreenletExit
        self._hub.switch()

    def wake(self, ticket: _Ticket, delay_s: float = 0.0) -> None:
        """Use a ticket."""
        self._push(self.now + delay_s, ticket)

    def stop(self) -> None:
        """End ``run``."""
        self._heap.clear()

    def run(self, until_s: float) -> None:
        """Let everything happen in order of time, until nothing is left to happen or the time is over."""
        heap = self._heap
        while heap and heap[0][0] <= until_s:
            when, _, event = heapq.heappop(heap)
            if type(event) is not _Ticket:
                self.now = when
                event()
                continue
            process = event.fiber.process
            if event.is_spent or not process.is_alive:
                continue
            if process.paused_until > when:
                self._push(process.paused_until, event)
                continue
            event.is_spent = True
            self.now = when
            event.fiber.switch()

    def close(self) -> None:
        """Unwind every thread that still waits; its next call ends it."""
        self._is_over = True
        for fiber in self._fibers:
            fiber.process.kill()
        for fiber in self._fibers:
            if fiber:
                fiber.throw(GreenletExit)
        self._fibers.clear()

    def _push(self, when: float, event: Any) -> None:
        self._count += 1
        heapq.heappush(self._heap, (when, self._count, event))


class Event:
    """``threading.Event`` for fibers."""

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler
        self._is_set = False
        self._waiting: list[_Ticket] = []

    def is_set(self) -> bool:
        return self._is_set

    def set(self) -> None:
        self._is_set = True
        for ticket in self._waiting:
            self._scheduler.wake(ticket)
        self._waiting.clear()

    def clear(self) -> None:
        self._is_set = False

    def wait(self, timeout: float | None = None) -> bool:
        if self._is_set:
            return True
        ticket = self._scheduler.ticket()
        self._waiting.append(ticket)
        if timeout is not None:
            self._scheduler.wake(ticket, timeout)
        self._scheduler.park()
        if ticket not in self._waiting:
            return True
        self._waiting.remove(ticket)
        return False


class Mutex:
    """``threading.Lock`` for fibers, to be entered."""

    def __init__(self, scheduler: Scheduler) -> None:
        self._inside = Semaphore(scheduler, 1)

    def __enter__(self) -> None:
        self._inside.acquire()

    def __exit__(self, *_: object) -> None:
        self._inside.release()


class Semaphore:
    """``threading.Semaphore`` for fibers; who waits, waits until there is room, whatever time-out it names."""

    def __init__(self, scheduler: Scheduler, count: int) -> None:
        self._scheduler = scheduler
        self._count = count
        self._waiting: list[_Ticket] = []

    def acquire(self, blocking: bool = True, timeout: float | None = None) -> bool:
        if self._count == 0 and not blocking:
            return False
        while self._count == 0:
            self._waiting.append(self._scheduler.ticket())
            self._scheduler.park()
        self._count -= 1
        return True

    def release(self) -> None:
        self._count += 1
        if self._waiting:
            self._scheduler.wake(self._waiting.pop(0))
