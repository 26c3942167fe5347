"""Plays fleets against endpoints that are sent more calls than they can serve, in virtual time, and prints a table.

``.venv/bin/python benchmarks/overload.py``. The endpoint and the threads of the workers are modelled; limits, budgets,
retries, classes of errors and waits of regions are the product's own. SageMaker ends a call after 60 s without a
response with a ModelError of original status 0. The container serves such a call all the same. Every tile is healthy.
A row prints the job's time beside the least possible time, the failed tiles, and the calls per tile. Each row is played
twice: by a fleet that knows the endpoint's capacity, and by a fleet that does not.
"""

import argparse
import dataclasses
import heapq
import itertools
import random
import sys
from collections import deque
from collections.abc import Callable

from aws.osml.model_runner.common.job_rules import region_wait_s
from aws.osml.model_runner.exceptions import ModelCallError
from aws.osml.model_runner.inference.call_errors import error_of_aws_response
from aws.osml.model_runner.inference.call_limit import CallLimit
from aws.osml.model_runner.inference.retry import Action, RetryBudget, Tries

TIME_LIMIT_S = 60.0
CALLERS = 16
TILES_PER_REGION = 100
SLOTS = 2

TIMED_OUT = {
    "Error": {"Code": "ModelError", "Message": "Your invocation timed out while waiting for a response"},
    "ResponseMetadata": {"HTTPStatusCode": 424},
    "OriginalStatusCode": 0,
}
UNAVAILABLE = {"Error": {"Code": "ServiceUnavailable"}, "ResponseMetadata": {"HTTPStatusCode": 503}}


@dataclasses.dataclass(frozen=True)
class Scenario:
    """A fleet, and an endpoint of ``servers`` behind one queue.

    ``backlog`` is how many calls the endpoint takes before it refuses with 503; None means any number. With
    ``drops_abandoned`` it does not serve calls whose time is over. ``is_known``: the fleet knows its capacity.
    """

    workers: int
    servers: int
    service_s: float
    tiles: int
    backlog: int | None = None
    drops_abandoned: bool = False
    is_known: bool = True

    @property
    def ideal_s(self) -> float:
        """Least time in which the servers can do all tiles."""
        return self.tiles * self.service_s / self.servers

    def __str__(self) -> str:
        if self.backlog is not None:
            queue = f"{self.backlog}, then 503"
        else:
            queue = "drops the abandoned" if self.drops_abandoned else "unbounded"
        return f"{self.workers} | {self.servers} | {self.service_s:g} | {queue} | {'yes' if self.is_known else 'no'}"


SCENARIOS = [
    Scenario(60, 20, 1, 20_000),
    Scenario(100, 20, 1, 20_000),
    Scenario(100, 20, 2, 20_000),
    Scenario(100, 20, 3, 20_000),
    Scenario(100, 20, 2, 5_000, drops_abandoned=True),
    Scenario(100, 20, 2, 20_000, backlog=700),
    Scenario(100, 20, 2, 20_000, backlog=400),
    Scenario(1, 1, 5, 500),
    Scenario(1, 1, 10, 500),
    Scenario(10, 10, 8, 500),
]


@dataclasses.dataclass(frozen=True)
class Outcome:
    """Time, tiles and calls of a finished job."""

    took_s: float
    failed_tiles: int
    calls: int
    timeouts: int
    tiles: int

    @property
    def calls_per_tile(self) -> float:
        """Calls that reached the endpoint, refused ones too, for each tile."""
        return self.calls / self.tiles


class Clock:
    """Virtual time: what is to happen, in order."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._numbers = itertools.count()

    def __call__(self) -> float:
        """Return the time in seconds."""
        return self.now_s

    def after(self, delay_s: float, event: Callable[[], None]) -> None:
        """Have ``event`` happen in ``delay_s``."""
        heapq.heappush(self._events, (self.now_s + delay_s, next(self._numbers), event))

    def run(self, is_over: Callable[[], bool], most_s: float) -> None:
        """Let time pass until ``is_over``, or for ``most_s``."""
        while self._events and not is_over() and self.now_s < most_s:
            self.now_s, _, event = heapq.heappop(self._events)
            event()


class Endpoint:
    """So many servers behind one queue."""

    def __init__(self, scenario: Scenario, clock: Clock, rng: random.Random) -> None:
        self._scenario = scenario
        self._clock = clock
        self._rng = rng
        self._waiting: deque[Call] = deque()
        self._free = scenario.servers
        self.calls = self.timeouts = 0

    def send(self, on_end: Callable[[ModelCallError | None], None]) -> None:
        """Take a call; ``on_end`` is called with its error, or None for a response."""
        self.calls += 1
        backlog = self._scenario.backlog
        if backlog is not None and len(self._waiting) + self._scenario.servers - self._free >= backlog:
            self._clock.after(0.02, lambda: on_end(error_of_aws_response(UNAVAILABLE)))
            return
        call = Call(on_end)
        self._clock.after(TIME_LIMIT_S, lambda: self._time_out(call))
        self._waiting.append(call)
        self._serve()

    def _serve(self) -> None:
        while self._free and self._waiting:
            call = self._waiting.popleft()
            if call.is_over and self._scenario.drops_abandoned:
                continue
            self._free -= 1
            self._clock.after(
                self._scenario.service_s * self._rng.uniform(0.9, 1.1), lambda call=call: self._done(call)
            )

    def _done(self, call: "Call") -> None:
        self._free += 1
        call.end(None)
        self._serve()

    def _time_out(self, call: "Call") -> None:
        if not call.is_over:
            self.timeouts += 1
            call.end(error_of_aws_response(TIMED_OUT))


class Call:
    """A call that ends once: by its response or by its time."""

    def __init__(self, on_end: Callable[[ModelCallError | None], None]) -> None:
        self._on_end = on_end
        self.is_over = False

    def end(self, error: ModelCallError | None) -> None:
        """End the call, unless it has ended."""
        if not self.is_over:
            self.is_over = True
            self._on_end(error)


class Region:
    """A region's tiles that have no outcome, and what its row holds."""

    def __init__(self, tiles: int) -> None:
        self.left = tiles
        self.backoffs = 0


class Fleet:
    """Workers, the queue of regions that they share, and the endpoint."""

    def __init__(self, scenario: Scenario, seed: int) -> None:
        self.clock = Clock()
        self.rng = random.Random(seed)
        self.endpoint = Endpoint(scenario, self.clock, self.rng)
        self.queue: deque[Region] = deque()
        self.tiles_left = self.tiles = scenario.tiles
        self.failed = 0
        size = min(TILES_PER_REGION, max(1, scenario.tiles // scenario.workers))
        while scenario.tiles > size * len(self.queue):
            self.queue.append(Region(min(size, scenario.tiles - size * len(self.queue))))
        capacity = scenario.servers if scenario.is_known else None
        self.capacity = capacity
        self.workers = [Worker(self) for _ in range(scenario.workers)]

    def holders(self) -> int:
        """Return how many workers hold regions."""
        return sum(bool(worker.attempts) for worker in self.workers)

    def run(self) -> Outcome:
        """Play until every tile has ended, for sixteen hours at most."""
        for worker in self.workers:
            # Workers of a fleet do not receive their messages in the same instant.
            self.clock.after(self.rng.uniform(0, 1), worker.poll)
        self.clock.run(lambda: self.tiles_left == 0, 14_400 * 4)
        return Outcome(self.clock.now_s, self.failed, self.endpoint.calls, self.endpoint.timeouts, self.tiles)


class Worker:
    """One process: the regions that it holds, and its limit and budget for the endpoint."""

    def __init__(self, fleet: Fleet) -> None:
        self.fleet = fleet
        self.limit = CallLimit(CALLERS, fleet.clock, fleet.rng)
        self.budget = RetryBudget()
        self.attempts: list[Attempt] = []

    def poll(self) -> None:
        """Take regions while there are slots, and look again soon."""
        while self.fleet.queue and len(self.attempts) < SLOTS and not self.limit.is_full and self.has_room():
            region = self.fleet.queue.popleft()
            self.attempts.append(Attempt(self, region))
        self.set_ceiling()
        self.go()
        if self.fleet.tiles_left:
            self.fleet.clock.after(1.0, self.poll)

    def has_room(self) -> bool:
        """Return False when others use an endpoint of known capacity fully."""
        capacity = self.fleet.capacity
        return capacity is None or bool(self.attempts) or self.fleet.holders() < capacity

    def set_ceiling(self) -> None:
        """Divide the endpoint's capacity, where it is known, by the workers that call it."""
        if self.fleet.capacity is not None:
            self.limit.set_ceiling(self.fleet.capacity // max(1, self.fleet.holders()))

    def go(self) -> None:
        """Begin what calls may begin; the tiles of the older region come first."""
        for attempt in list(self.attempts):
            while attempt.waiting and attempt.can_begin() and self.limit.try_enter():
                attempt.begin()


class Attempt:
    """A region that a worker has claimed."""

    def __init__(self, worker: Worker, region: Region) -> None:
        self.worker, self.region = worker, region
        self.waiting = region.left
        self.in_flight = self.ended = 0
        self.is_stopped = False
        self.is_probing = region.backoffs > 0
        self.expected = worker.limit.expecting(region.left)
        self.note_begun = self.expected.__enter__()

    def can_begin(self) -> bool:
        """Return True when another tile may be called: a probe is alone."""
        return not self.is_stopped and not (self.is_probing and self.in_flight)

    def begin(self) -> None:
        """Call the model for one tile."""
        self.waiting -= 1
        self.in_flight += 1
        self.note_begun()
        budget = RetryBudget(floor=0) if self.is_probing else self.worker.budget
        self._call(Tries(budget, self.worker.fleet.rng))

    def _call(self, tries: Tries) -> None:
        began_s = self.worker.fleet.clock()
        self.worker.fleet.endpoint.send(lambda error: self._ended(tries, began_s, error))

    def _ended(self, tries: Tries, began_s: float, error: ModelCallError | None) -> None:
        fleet, limit = self.worker.fleet, self.worker.limit
        if error is None:
            limit.record_response(fleet.clock() - began_s)
            self.is_probing = False
            self.ended += 1
            self.region.left -= 1
            self.region.backoffs = 0
            fleet.tiles_left -= 1
            self._leave()
            return
        limit.record_failure(error, fleet.clock() - began_s)
        decision = tries.failed(error)
        if decision.action is Action.RETRY and not self.is_stopped:
            fleet.clock.after(decision.delay_s, lambda: self._again(tries))
            return
        if decision.action is Action.FAIL_TILE:
            fleet.failed += 1
            fleet.tiles_left -= 1
            self.region.left -= 1
        else:
            self.is_stopped = True
        self._leave()

    def _again(self, tries: Tries) -> None:
        if self.is_stopped:
            self._leave()
        else:
            self._call(tries)

    def _leave(self) -> None:
        self.in_flight -= 1
        self.worker.limit.leave()
        if self.is_stopped:
            self.waiting = 0
        if not self.waiting and not self.in_flight:
            self._release()
        self.worker.go()

    def _release(self) -> None:
        fleet, region = self.worker.fleet, self.region
        self.worker.attempts.remove(self)
        self.expected.__exit__(None, None, None)
        if not region.left:
            return
        wait_s = 0.0
        if not self.ended:
            wait_s = region_wait_s(region.backoffs, fleet.rng)
            region.backoffs += 1
        fleet.clock.after(wait_s + 0.05, lambda: fleet.queue.append(region))


def play(scenario: Scenario, seed: int = 0) -> Outcome:
    """Return what becomes of a job."""
    return Fleet(scenario, seed).run()


def main() -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=0, help="seed of all jitter")
    parser.add_argument("--share", type=float, default=1.0, help="share of each row's tiles; less is faster")
    arguments = parser.parse_args()
    write = sys.stdout.write
    write("| Workers | Servers | s per tile | Queue | Capacity known ")
    write("| Ideal s | Took s | Tiles failed | Calls per tile |\n")
    write("|---|---|---|---|---|---|---|---|---|\n")
    for scenario in SCENARIOS:
        for is_known in (True, False):
            row = dataclasses.replace(scenario, is_known=is_known, tiles=int(scenario.tiles * arguments.share))
            outcome = play(row, arguments.seed)
            write(f"| {row} | {row.ideal_s:,.0f} | {outcome.took_s:,.0f} | {outcome.failed_tiles}")
            write(f" | {outcome.calls_per_tile:.2f} |\n")
            sys.stdout.flush()
    return 0


if __name__ == "__main__":
    sys.exit(main())
