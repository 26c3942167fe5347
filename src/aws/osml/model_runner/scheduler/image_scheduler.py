"""Starts images: claims the scheduler lock, reads the load snapshot, decides, and claims the chosen images."""

import dataclasses
import math
import random
import threading
import time
from collections.abc import Callable, Mapping
from typing import NamedTuple, Protocol

import structlog
from botocore.exceptions import BotoCoreError, ClientError

from aws.osml.model_runner.api.image_request import ImageRequest
from aws.osml.model_runner.common.job_rules import is_passing
from aws.osml.model_runner.config import ServiceConfig
from aws.osml.model_runner.database.outstanding_jobs_table import OpenJob
from aws.osml.model_runner.database.scheduler_lock import LockClaim, SchedulerLock, SchedulerState
from aws.osml.model_runner.exceptions import TableError
from aws.osml.model_runner.telemetry.metrics import COUNT, MILLISECONDS, PERCENT, MetricsRecorder

from .load import ClusterLoad, LoadRules, cluster_load
from .look_ahead import waiting_by_endpoint
from .policy import Decision, Lane, LaneCapacity, LaneLoad, WaitingImage, decide, work_waiting

logger = structlog.get_logger(__name__)

# Lease of the scheduler lock. A pass takes some tenths of a second; after a crash, others wait for the lease to end.
LOCK_LEASE_S = 15.0
# No image is started under a claim that is older than this, so that its start does not meet the next claim.
_STARTING_S = 5.0
# Images started per pass. A pass reads all open jobs, so it may start several images.
_MAX_STARTS_PER_PASS = 8
# Time until the next pass when nothing could start: with changes, and without.
LOOK_EVERY_S = 0.5
QUIET_LOOK_S = 3.0
# Interval at which a worker reads the scheduler state, while images wait and while none waits.
_POLL_S = 2.0
_IDLE_POLL_S = 5.0
_POLL_JITTER = (0.7, 1.3)
# Wait of a worker with changes beyond the time of the next pass, and while another worker holds the lock.
_BUSY_PAUSE_S = (0.05, 0.25)
_COUNTED_EVERY_S = 60.0


class ScheduledImage(NamedTuple):
    """An image that this worker has to plan, in the form of a queue message."""

    receipt_handle: str
    job: OpenJob
    receive_count: int


class ImageScheduler(Protocol):
    """Decides which images this worker starts next."""

    def receive(self) -> list[ScheduledImage]:
        """Return images to start, or an empty list after a wait."""
        ...

    def reset_request(self, receipt_handle: str, visibility_timeout: int = 0) -> None:
        """Release an image that was not begun; with a time-out, its claim runs out by itself instead."""
        ...


class Capacities(Protocol):
    """Returns the capacity of endpoints."""

    def capacity(self, request: ImageRequest) -> LaneCapacity:
        """Return the capacity of a request's lane."""
        ...


class LockedScheduler:
    """Base of both schedulers: it claims the lock and starts the images that were decided."""

    def __init__(
        self,
        lock: SchedulerLock,
        config: ServiceConfig,
        owner: str,
        metrics: MetricsRecorder,
        now: Callable[[], float] = time.time,
        pause: Callable[[float], object] = time.sleep,
        rng: random.Random | None = None,
        due: threading.Event | None = None,
    ) -> None:
        self._lock = lock
        self._owner = owner
        self._metrics = metrics
        self._now = now
        self._pause = pause
        self._rng = rng or random.Random()
        # Set after a change here: an image was accepted, or a waiting image may have room.
        self.due = due or threading.Event()
        self._lease_s = config.region_lease_s
        self._slots = config.regions_in_progress
        self._rules = LoadRules(config.tile_workers_per_instance, config.region_lease_s)
        # Images started here whose planning and first region have not ended.
        self._held: dict[str, OpenJob] = {}
        # Time of a change here that no pass has read yet, and how long to wait before the next claim.
        self._changed_at: float | None = None
        self._pause_s = 0.0
        self._is_anything_waiting = True
        self._state_read_at = -math.inf
        self._counted_at: float | None = None
        self._last_held_back: tuple[Lane, ...] = ()
        self._left_out: frozenset[str] = frozenset()

    def decision(self, found: ClusterLoad, now_s: float) -> tuple[Decision, Mapping[Lane, LaneCapacity]]:
        """Return the decision, and the capacities that it used."""
        raise NotImplementedError

    def capacities(self, found: ClusterLoad) -> Mapping[Lane, LaneCapacity]:
        """Return the capacity of each lane with open jobs; a lane without a description has no limit."""
        return dict.fromkeys(found.requests, LaneCapacity())

    def receive(self) -> list[ScheduledImage]:
        """Return images to start, at most one per free slot; or an empty list after some seconds.

        After a change a worker waits for the next pass instead of claiming the lock at once. The next pass reads the
        changes of all workers.
        """
        if self._changed_at is not None:
            self._pause(self._pause_s)
            is_changed = self.due.is_set()
        else:
            poll_s = _POLL_S if self._is_anything_waiting else _IDLE_POLL_S
            is_changed = self.due.wait(poll_s * self._rng.uniform(*_POLL_JITTER))
        self.due.clear()
        if is_changed:
            self._changed_at = self._now()
        state, now_s = self._read_state(), self._now()
        if self._changed_at is not None and state.looked_at >= self._changed_at:
            self._changed_at = None
        look_at = state.next_look
        if look_at and self._changed_at is None:
            look_at += QUIET_LOOK_S - LOOK_EVERY_S
        if look_at > now_s:
            self._pause_s = look_at - now_s + self._rng.uniform(*_BUSY_PAUSE_S)
            return []
        claim = self._lock.claim(self._owner, LOCK_LEASE_S) if state.locked_until < now_s else None
        if claim is None:
            self._pause_s = self._rng.uniform(*_BUSY_PAUSE_S)
            return []
        self._changed_at = None
        jobs = self._run_pass(claim)
        self._held |= {job.image_id: job for job in jobs}
        return [ScheduledImage(job.image_id, job, job.num_attempts) for job in jobs]

    def record_room(self) -> None:
        """Record that a region has ended, because a waiting image may fit now.

        A pass reads every open job, so regions that end do not cause a pass while no image waits.
        """
        try:
            if not self._is_anything_waiting and self._now() - self._state_read_at > LOOK_EVERY_S:
                self._read_state()
        except (TableError, ClientError, BotoCoreError):
            # The scheduler's own thread will meet the same error and handle it.
            self._is_anything_waiting = True
        if self._is_anything_waiting:
            self.due.set()

    def reset_request(self, receipt_handle: str, visibility_timeout: int = 0) -> None:
        """See ``ImageScheduler``."""
        job = self._held.pop(receipt_handle, None)
        if job is not None and visibility_timeout == 0:
            self._lock.release(job, self._owner)

    def record_ended(self, image: ScheduledImage) -> None:
        """Free the slot of an image."""
        self._held.pop(image.receipt_handle, None)

    def _read_state(self) -> SchedulerState:
        state, self._state_read_at = self._lock.state(), self._now()
        self._is_anything_waiting = state.waiting > 0
        return state

    # A pass ---------------------------------------------------------------------------------------------------------

    def _run_pass(self, claim: LockClaim) -> list[OpenJob]:
        """Decide and start images; always publish the scheduler state and release the lock."""
        began_s, jobs = self._now(), list[OpenJob]()
        waiting, is_more, images = 0, False, dict[str, WaitingImage]()
        try:
            found = cluster_load(self._lock.open_jobs(), self._lock.progress, began_s, self._rules)
            waiting, images = len(found.waiting), found.waiting
            self._count(found)
            if waiting:
                is_more = self._start_images(claim, found, jobs)
                self._metrics.record("Scheduling", "Invocations", 1, COUNT)
                self._metrics.record("Scheduling", "Duration", 1000 * (self._now() - began_s), MILLISECONDS)
            # An image is logged once while it stays skipped.
            for image_id in found.left_out.keys() - self._left_out:
                logger.warning("image.left_out", image_id=image_id, reason=found.left_out[image_id])
                self._metrics.record("Scheduling", "Errors", 1, COUNT)
            self._left_out = frozenset(found.left_out)
        finally:
            left = max(0, waiting - len(jobs))
            waiting_for = waiting_by_endpoint(image.lane for image in images.values())
            self._is_anything_waiting = left > 0
            if is_more:
                self.due.set()
            self._lock.end(claim, 0.0 if is_more else self._now() + LOOK_EVERY_S, left, began_s, waiting_for)
        return jobs

    def _start_images(self, claim: LockClaim, found: ClusterLoad, jobs: list[OpenJob]) -> bool:
        """Start images and append them to ``jobs``; True when more may start than this worker has slots or time for."""
        limit = min(_MAX_STARTS_PER_PASS, max(1, self._slots - len(self._held)))
        while len(jobs) < limit and self._now() < claim.until - LOCK_LEASE_S + _STARTING_S:
            decision, capacities = self.decision(found, self._now())
            if not jobs:
                for lane, capacity in capacities.items():
                    used = found.loads.get(lane, LaneLoad()).calls / capacity.calls if capacity.calls else 1.0
                    percent = 100.0 * min(1.0, used)
                    self._metrics.record("Scheduling", "Utilization", percent, PERCENT, ModelName=lane.endpoint)
                self._record_held_back(decision, found)
            if decision.image is None:
                return False
            try:
                started = self._lock.start(claim, found.jobs[decision.image.key], self._lease_s)
            except Exception as err:
                if is_passing(err):
                    raise
                # Every pass would try this image first again: skip it, so that others start.
                found.leave_out(decision.image.key, f"{type(err).__name__}: {err}")
                continue
            if started is None:
                reason = "another worker was faster"
                logger.info("image.not_scheduled", image_id=decision.image.key, reason=reason)
                return False
            self._log_start(decision.image, decision, found, capacities)
            jobs.append(started)
            found.record_start(decision.image)
        return True

    def _log_start(
        self, image: WaitingImage, decision: Decision, found: ClusterLoad, capacities: Mapping[Lane, LaneCapacity]
    ) -> None:
        load, target = found.loads.get(image.lane, LaneLoad()), capacities.get(image.lane, LaneCapacity()).target
        logger.info(
            "image.scheduled",
            tag="SCHEDULER EVENT",
            reason=decision.reason.value,
            job_id=found.jobs[image.key].request.job_id,
            image_id=image.key,
            endpoint=image.lane.endpoint,
            part=image.lane.part,
            load=image.load,
            running_load=load.calls,
            running_images=load.images,
            # An infinite target is not valid JSON.
            target=target if math.isfinite(target) else None,
            waited_s=round(self._now() - image.request_time, 1),
            waiting=len(found.waiting),
        )

    def _record_held_back(self, decision: Decision, found: ClusterLoad) -> None:
        """Record and log that endpoints were full; log at info level only when the set of lanes changes."""
        for lane in decision.full:
            self._metrics.record("Scheduling", "Throttles", 1, COUNT, ModelName=lane.endpoint)
        if decision.image is not None:
            self._last_held_back = ()
            return
        reason, waiting = decision.reason.value, len(found.waiting)
        endpoints = [lane.endpoint for lane in decision.full]
        # The same decision may repeat twice a second.
        if decision.full == self._last_held_back:
            logger.debug("image.held_back", tag="SCHEDULER EVENT", reason=reason, endpoints=endpoints, waiting=waiting)
        else:
            logger.info("image.held_back", tag="SCHEDULER EVENT", reason=reason, endpoints=endpoints, waiting=waiting)
        self._last_held_back = decision.full

    # Measurements ---------------------------------------------------------------------------------------------------

    def _count(self, found: ClusterLoad) -> None:
        """Record the images that run or wait and those ready to start, and the work that waits, once a minute."""
        now_s = self._now()
        if self._counted_at is not None and now_s - self._counted_at < _COUNTED_EVERY_S:
            return
        self._counted_at = now_s
        running = sum(load.images for load in found.loads.values())
        ready = sum(image.ready_at <= now_s for image in found.waiting.values())
        self._metrics.record("Scheduling", "ApproximateNumberOfRequestsBuffered", running + len(found.waiting), COUNT)
        self._metrics.record("Scheduling", "ApproximateNumberOfRequestsVisible", ready, COUNT)
        images, rules = found.waiting.values(), self._rules
        work = work_waiting(images, found.loads, self.capacities(found), rules.calls_per_region, now_s)
        self._metrics.record("Scheduling", "WorkWaiting", work, COUNT)
        self._metrics.flush()


class EndpointLoadImageScheduler(LockedScheduler):
    """Starts images of the least loaded endpoint first, and fills endpoints up to their target."""

    def __init__(
        self,
        capacities: Capacities,
        lock: SchedulerLock,
        config: ServiceConfig,
        owner: str,
        metrics: MetricsRecorder,
        now: Callable[[], float] = time.time,
        pause: Callable[[float], object] = time.sleep,
        rng: random.Random | None = None,
        due: threading.Event | None = None,
    ) -> None:
        super().__init__(lock, config, owner, metrics, now, pause, rng, due)
        self._capacities = capacities

    def decision(self, found: ClusterLoad, now_s: float) -> tuple[Decision, Mapping[Lane, LaneCapacity]]:
        """Decide by the load and capacity of each lane."""
        lanes = {image.lane for image in found.waiting.values()}
        capacities = {lane: self._capacities.capacity(found.requests[lane]) for lane in lanes}
        return decide(found.waiting.values(), found.loads, capacities, now_s), capacities

    def capacities(self, found: ClusterLoad) -> Mapping[Lane, LaneCapacity]:
        """See ``LockedScheduler``."""
        return {lane: self._capacities.capacity(request) for lane, request in found.requests.items()}


_ONE_LANE = Lane("")


class FIFOImageScheduler(LockedScheduler):
    """Starts the oldest image first, independent of the load of its endpoint."""

    def decision(self, found: ClusterLoad, now_s: float) -> tuple[Decision, Mapping[Lane, LaneCapacity]]:
        """Decide as if all images were in one lane without limits."""
        waiting = [dataclasses.replace(image, lane=_ONE_LANE) for image in found.waiting.values()]
        decision = decide(waiting, {}, {}, now_s)
        if decision.image is not None:
            decision = dataclasses.replace(decision, image=found.waiting[decision.image.key])
        return decision, {}
