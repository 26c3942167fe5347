"""A fleet, its endpoints and its images in virtual time, so that rules of scheduling can be compared.

The rule is production's or a peer's; everything around it is the same. An endpoint serves the calls of its regions side
by side, up to its capacity; a region makes so many calls at once. Images arrive, wait in a buffer of bounded
look-ahead, are started by the fleet's workers, and their regions go through one queue. Workers die, and their regions
come again when the leases end, with the tiles that are done.
"""

import heapq
import itertools
import random
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from aws.osml.model_runner.scheduler.policy import Decision, Lane, LaneCapacity, LaneLoad, Reason, WaitingImage, decide

CALLS_PER_REGION = 4
LOOK_S = 0.5
LEASE_S = 60.0
RESTART_S = 30.0
PLANNING_S = 0.5
REGION_SLOTS = 12
IMAGE_SLOTS = 12


@dataclass(frozen=True)
class Endpoint:
    """One endpoint: so many calls at once, each of so many seconds."""

    name: str
    calls: int
    call_s: float

    @property
    def tiles_per_s(self) -> float:
        return self.calls / self.call_s


@dataclass(eq=False)
class Image:
    """One image: its regions, each of so many tiles, and what became of it."""

    number: int
    endpoint: Endpoint
    regions: tuple[int, ...]
    arrives_at: float
    priority: int = 0
    started_at: float | None = None
    planned_at: float | None = None
    ended_at: float | None = None
    regions_left: int = 0
    starts: int = 0

    @property
    def key(self) -> str:
        return f"{self.number:06}"

    @property
    def tiles(self) -> int:
        return sum(self.regions)


@dataclass(frozen=True)
class Candidate:
    """Image as a rule sees it."""

    image: WaitingImage
    regions: int
    regions_left: int
    is_running: bool
    started_at: float | None


class Rule(Protocol):
    """Chooses the images that start: by production's decision, or by that of 2.3.0."""

    def __call__(
        self, jobs: Sequence[Candidate], capacities: Mapping[Lane, LaneCapacity], now_s: float
    ) -> Decision: ...


def our_rule(jobs: Sequence[Candidate], capacities: Mapping[Lane, LaneCapacity], now_s: float) -> Decision:
    """Return what production decides."""
    loads: dict[Lane, LaneLoad] = {}
    for job in jobs:
        if job.is_running:
            load = loads.get(job.image.lane, LaneLoad())
            calls = load.calls + job.regions_left * CALLS_PER_REGION
            loads[job.image.lane] = LaneLoad(load.images + 1, calls)
    return decide([job.image for job in jobs if not job.is_running], loads, capacities, now_s)


PEER_VISIBLE_AGAIN_S = 600.0


def peer_rule(jobs: Sequence[Candidate], capacities: Mapping[Lane, LaneCapacity], now_s: float) -> Decision:
    """Return what the known release candidate decides.

    Waiting jobs count as load where it orders endpoints. It considers one candidate, and no other when that does not
    fit. A running job keeps its whole load until it ends, or until ten minutes are over.
    """
    waiting = [job for job in jobs if not job.is_running]
    if not waiting:
        return Decision(None, Reason.NOTHING_WAITS)
    shares: dict[Lane, float] = {}
    for job in jobs:
        shares[job.image.lane] = shares.get(job.image.lane, 0.0) + job.regions_left / capacities[job.image.lane].calls
    first = min(waiting, key=lambda job: (shares[job.image.lane], job.image.request_time, job.image.key))
    lane = first.image.lane
    running = [
        job
        for job in jobs
        if job.is_running and job.image.lane == lane and (job.started_at or 0) + PEER_VISIBLE_AGAIN_S >= now_s
    ]
    used = sum(job.regions * CALLS_PER_REGION for job in running)
    if first.image.load <= capacities[lane].target - used:
        return Decision(first.image, Reason.FITS)
    if not running:
        return Decision(first.image, Reason.ALONE)
    return Decision(None, Reason.ALL_FULL, (lane,))


@dataclass(eq=False)
class _Region:
    image: Image
    tiles_left: float
    worker: "_Worker | None" = None
    is_first: bool = False
    v_end: float = 0.0
    serial: int = 0


@dataclass(eq=False)
class _Worker:
    number: int
    is_alive: bool = True
    images: set[Image] = field(default_factory=set)
    regions: set[_Region] = field(default_factory=set)


class _Service:
    """An endpoint at work: its regions share its capacity evenly. ``v`` is the tiles that one region has got so far."""

    def __init__(self, endpoint: Endpoint) -> None:
        self.endpoint = endpoint
        self.v = 0.0
        self.updated_at = 0.0
        self.active: dict[_Region, None] = {}
        self.ends: list[tuple[float, int, _Region]] = []
        self.busy_call_s = 0.0
        self.peak_calls = 0
        self.serial = 0

    def _rate(self) -> float:
        count = len(self.active)
        return min(CALLS_PER_REGION, self.endpoint.calls / count) / self.endpoint.call_s if count else 0.0

    def advance(self, now_s: float) -> None:
        span_s = now_s - self.updated_at
        self.v += self._rate() * span_s
        self.busy_call_s += min(self.endpoint.calls, CALLS_PER_REGION * len(self.active)) * span_s
        self.updated_at = now_s

    def begin(self, region: _Region, now_s: float) -> None:
        self.advance(now_s)
        self.active[region] = None
        self.peak_calls = max(self.peak_calls, CALLS_PER_REGION * len(self.active))
        self.serial += 1
        region.v_end, region.serial = self.v + region.tiles_left, self.serial
        heapq.heappush(self.ends, (region.v_end, self.serial, region))

    def stop(self, region: _Region, now_s: float) -> None:
        """Take a region away whose worker died; the tiles that are done stay so."""
        self.advance(now_s)
        del self.active[region]
        region.tiles_left = max(0.0, region.v_end - self.v)

    def next_end(self) -> tuple[float, _Region] | None:
        while self.ends and (self.ends[0][2] not in self.active or self.ends[0][1] != self.ends[0][2].serial):
            heapq.heappop(self.ends)
        if not self.ends:
            return None
        return self.updated_at + max(0.0, self.ends[0][0] - self.v) / self._rate(), self.ends[0][2]


@dataclass
class Outcome:
    """Result of a run; times are in seconds."""

    images: int
    makespan_s: float
    bound_s: float
    utilisation: float
    longest_wait_s: float
    mean_wait_s: float
    overloads: int
    exceptions: int
    blocked_s: float
    idle_s: float
    decisions: int
    deaths: int
    unfinished: int
    started_twice: int

    @property
    def share_of_bound(self) -> float:
        return self.bound_s / self.makespan_s


class FleetModel:
    """One run, from a seed. ``run`` plays it to the end."""

    def __init__(
        self,
        endpoints: Sequence[Endpoint],
        images: Sequence[Image],
        rule: Rule,
        workers: int = 30,
        look_ahead: int = 500,
        death_every_s: float | None = None,
        seed: int = 1,
    ) -> None:
        self.endpoints = endpoints
        self.images = list(images)
        self.rule = rule
        self.rng = random.Random(seed)
        self.look_ahead = look_ahead
        self.death_every_s = death_every_s
        self.now_s = 0.0
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._serial = itertools.count()
        self._services = {endpoint.name: _Service(endpoint) for endpoint in endpoints}
        self._wakes: dict[str, int] = dict.fromkeys(self._services, 0)
        self._workers = [_Worker(number) for number in range(workers)]
        self._inbox: deque[Image] = deque()
        self._buffer: dict[Image, None] = {}
        self._region_queue: deque[_Region] = deque()
        self._left = len(self.images)
        self.capacities = {Lane(e.name): LaneCapacity(e.calls, e.calls) for e in endpoints}
        self.overloads = self.exceptions = self.decisions = self.deaths = self.started_twice = 0
        self.blocked_s = self.idle_s = 0.0

    def run(self, horizon_s: float = 10_000_000.0) -> Outcome:
        for image in self.images:
            self._at(image.arrives_at, lambda image=image: self._inbox.append(image))
        self._at(0.0, self._look)
        if self.death_every_s:
            self._at(self.rng.expovariate(1 / self.death_every_s), self._someone_dies)
        while self._events and self._left and self.now_s < horizon_s:
            self.now_s, _, act = heapq.heappop(self._events)
            act()
        return self._outcome()

    def _at(self, at_s: float, act: Callable[[], None]) -> None:
        heapq.heappush(self._events, (at_s, next(self._serial), act))

    # Images -------------------------------------------------------------------------------------------------------

    def _look(self) -> None:
        """Do the scheduler's work of each second: fill the buffer, start the images that the rule chooses."""
        while self._inbox and self._waiting() < self.look_ahead:
            self._buffer[self._inbox.popleft()] = None
        free = [worker for worker in self._workers if worker.is_alive and len(worker.images) < IMAGE_SLOTS]
        slots = deque(worker for worker in free for _ in range(IMAGE_SLOTS - len(worker.images)))
        self.rng.shuffle(slots)
        jobs = {image.key: self._candidate(image) for image in self._buffer}
        while slots:
            self.decisions += 1
            decision = self.rule(list(jobs.values()), self.capacities, self.now_s)
            if decision.image is None:
                break
            image = self.images[int(decision.image.key)]
            self._note_start(image, decision)
            self._start(image, slots.popleft())
            jobs[image.key] = self._candidate(image)
        self._note_idleness(bool(slots))
        self._at(self.now_s + LOOK_S, self._look)

    def _waiting(self) -> int:
        return sum(not self._is_running(image) for image in self._buffer)

    def _is_running(self, image: Image) -> bool:
        if image.started_at is None:
            return False
        return image.planned_at is not None or image.started_at + LEASE_S >= self.now_s

    def _candidate(self, image: Image) -> Candidate:
        left = image.regions_left if image.planned_at is not None else len(image.regions)
        waiting = WaitingImage(
            image.key,
            Lane(image.endpoint.name),
            len(image.regions) * CALLS_PER_REGION,
            image.arrives_at,
            image.priority,
        )
        return Candidate(waiting, len(image.regions), left, self._is_running(image), image.started_at)

    def _start(self, image: Image, worker: _Worker) -> None:
        image.started_at = self.now_s
        image.starts += 1
        worker.images.add(image)
        self._at(self.now_s + PLANNING_S, lambda: self._planned(image, worker, image.starts))

    def _planned(self, image: Image, worker: _Worker, start: int) -> None:
        if not worker.is_alive or image.starts != start:
            return
        image.planned_at = self.now_s
        image.regions_left = len(image.regions)
        first, *others = (_Region(image, float(tiles)) for tiles in image.regions)
        self._region_queue.extend(others)
        first.is_first = True
        self._begin(first, worker)
        self._hand_out()

    # Regions ------------------------------------------------------------------------------------------------------

    def _begin(self, region: _Region, worker: _Worker) -> None:
        region.worker = worker
        worker.regions.add(region)
        name = region.image.endpoint.name
        self._services[name].begin(region, self.now_s)
        self._expect(name)

    def _hand_out(self) -> None:
        free = [
            worker
            for worker in self._workers
            if worker.is_alive
            for _ in range(REGION_SLOTS - sum(not region.is_first for region in worker.regions))
        ]
        self.rng.shuffle(free)
        while self._region_queue and free:
            self._begin(self._region_queue.popleft(), free.pop())

    def _expect(self, name: str) -> None:
        """Plan the next end of a region at an endpoint; what was planned before counts no more."""
        self._wakes[name] += 1
        found = self._services[name].next_end()
        if found is not None:
            wake = self._wakes[name]
            self._at(max(self.now_s, found[0]), lambda: self._ended(name, found[1], wake))

    def _ended(self, name: str, region: _Region, wake: int) -> None:
        if wake != self._wakes[name]:
            return
        self._services[name].stop(region, self.now_s)
        self._release(region)
        self._expect(name)
        image = region.image
        image.regions_left -= 1
        if image.regions_left == 0:
            image.ended_at = self.now_s
            del self._buffer[image]
            self._left -= 1
        self._hand_out()

    def _release(self, region: _Region) -> None:
        worker = region.worker
        if worker is not None:
            worker.regions.discard(region)
            if region.is_first:
                worker.images.discard(region.image)
        region.worker, region.is_first = None, False

    # Deaths -------------------------------------------------------------------------------------------------------

    def _someone_dies(self) -> None:
        alive = [worker for worker in self._workers if worker.is_alive]
        if alive:
            self._die(self.rng.choice(alive))
        self._at(self.now_s + self.rng.expovariate(1 / (self.death_every_s or 1.0)), self._someone_dies)

    def _die(self, worker: _Worker) -> None:
        self.deaths += 1
        worker.is_alive = False
        for region in sorted(worker.regions, key=lambda region: region.image.number):
            name = region.image.endpoint.name
            self._services[name].stop(region, self.now_s)
            self._release(region)
            self._expect(name)
            self._at(self.now_s + LEASE_S, lambda region=region: self._comes_again(region))
        worker.images.clear()
        self._at(self.now_s + RESTART_S, lambda: self._restart(worker))

    def _comes_again(self, region: _Region) -> None:
        self._region_queue.append(region)
        self._hand_out()

    def _restart(self, worker: _Worker) -> None:
        worker.is_alive = True
        self._hand_out()

    # Counters ----------------------------------------------------------------------------------------------------

    def _note_start(self, image: Image, decision: Decision) -> None:
        """Count a start above the target: an overload where the endpoint had no room at all, else an exception."""
        others = [
            other
            for other in self._buffer
            if other is not image and other.endpoint is image.endpoint and self._is_running(other)
        ]
        left = CALLS_PER_REGION * sum(self._candidate(other).regions_left for other in others)
        self.started_twice += image.planned_at is not None
        target = self.capacities[Lane(image.endpoint.name)].target
        if left + CALLS_PER_REGION * len(image.regions) > target:
            if others and left >= target:
                self.overloads += 1
            else:
                self.exceptions += 1

    def _note_idleness(self, has_free_slot: bool) -> None:
        """Count the seconds in which an endpoint does nothing while an image for it waits, and somebody could start it.

        ``blocked_s`` counts all images that wait for an idle endpoint, in the buffer or not.
        """
        busy = {image.endpoint.name for image in self._buffer if self._is_running(image)}
        buffered = {image.endpoint.name for image in self._buffer if not self._is_running(image)}
        outside = {image.endpoint.name for image in self._inbox}
        if has_free_slot:
            self.idle_s += LOOK_S * len(buffered - busy)
        self.blocked_s += LOOK_S * len((buffered | outside) - busy)

    def _outcome(self) -> Outcome:
        makespan_s = max((image.ended_at or self.now_s) for image in self.images)
        waits = [
            (image.started_at if image.started_at is not None else self.now_s) - image.arrives_at
            for image in self.images
        ]
        return Outcome(
            images=len(self.images),
            makespan_s=makespan_s,
            bound_s=lower_bound_s(self.endpoints, self.images),
            utilisation=self._utilisation(),
            longest_wait_s=max(waits),
            mean_wait_s=sum(waits) / len(waits),
            overloads=self.overloads,
            exceptions=self.exceptions,
            blocked_s=self.blocked_s,
            idle_s=self.idle_s,
            decisions=self.decisions,
            deaths=self.deaths,
            unfinished=self._left,
            started_twice=self.started_twice,
        )

    def _utilisation(self) -> float:
        """Return the share of an endpoint's capacity that was used until its last image ended, over all endpoints."""
        used = total = 0.0
        for service in self._services.values():
            ends = [image.ended_at or self.now_s for image in self.images if image.endpoint is service.endpoint]
            used += service.busy_call_s
            total += service.endpoint.calls * max(ends, default=0.0)
        return used / total


def lower_bound_s(endpoints: Sequence[Endpoint], images: Sequence[Image]) -> float:
    """Return the least time in which any rule can end: the slowest endpoint's work, from its first image on."""
    bounds = [0.0]
    for endpoint in endpoints:
        mine = [image for image in images if image.endpoint is endpoint]
        if mine:
            bounds.append(
                min(image.arrives_at for image in mine) + sum(image.tiles for image in mine) / endpoint.tiles_per_s
            )
    return max(bounds)
