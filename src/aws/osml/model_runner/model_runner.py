"""The daemon: receives messages, runs their handlers, renews leases, sweeps, and stops in order."""

import os
import resource
import signal
import sys
import threading
import time
from collections.abc import Callable
from types import FrameType
from typing import Any

import structlog

from .aws.clients import AwsClients, default_clients
from .common.machine import memory_limit_bytes, tune_gc, tune_malloc
from .config import ServiceConfig
from .database.scheduler_lock import SchedulerLock
from .jobs.leases import Lease
from .raster import configure_gdal
from .scheduler.image_scheduler import EndpointLoadImageScheduler, FIFOImageScheduler, LockedScheduler
from .scheduler.look_ahead import BufferedImageRequestQueue, LookAhead
from .tiling.strategy import TilingStrategy, VariableOverlapTilingStrategy
from .worker.consumer import QueueConsumer, Source
from .worker.health import HealthFile
from .worker.messages import DeadLetters, ImageMessages, RegionMessages, ScheduledImages
from .worker.process import WorkerProcess
from .worker.wiring import wired

logger = structlog.get_logger(__name__)

# Number of requests that are accepted at a time; accepting reads the headers of their images.
_INTAKE_SLOTS = 4

_SWEEP_JITTER = (0.7, 1.3)
# Interval at which a worker checks whether a description of an endpoint is due.
_REFRESH_EVERY_S = 5.0

# Eighths of the container's memory that the process may allocate; the rest is for its stacks and child processes.
_MEMORY_SHARE = 7

# EX_SOFTWARE of sysexits.h, an internal software error; the container service then starts a new worker.
_STUCK = 70


def _exit_stuck(lease: Lease) -> None:
    """End the process at once: Python cannot end a thread that hangs, and other workers can take over its work."""
    logger.critical("worker.stuck", lease=lease.name)
    sys.stdout.flush()
    os._exit(_STUCK)


class ModelRunner:
    """One worker process. ``run`` returns after ``stop`` is called, from a signal handler or another thread.

    ``process`` holds its clients, threads and clock; by default it is made from the configuration.
    """

    def __init__(
        self,
        tiling_strategy: TilingStrategy = VariableOverlapTilingStrategy(),  # noqa: B008 - it holds no state
        config: ServiceConfig | None = None,
        clients: AwsClients | None = None,
        process: WorkerProcess | None = None,
    ) -> None:
        self.config = config or ServiceConfig.from_environment(os.environ)
        self.tiling_strategy = tiling_strategy
        self.running = False
        self._health = HealthFile(self.config.health_file)
        self.process = process or WorkerProcess.from_config(
            self.config,
            clients or default_clients(),
            is_probing=True,
            note_progress=self._health.note_progress,
            on_stall=_exit_stuck,
        )
        parts = wired(self.config, self.tiling_strategy, self.process)
        self.job_table = parts.job_table
        self.region_request_table = parts.region_request_table
        self.endpoint_statistics_table = parts.endpoint_statistics_table
        self.outstanding_jobs = parts.outstanding_jobs
        self.image_request_queue = parts.image_request_queue
        self.region_request_queue = parts.region_request_queue
        self.image_status_monitor = parts.image_status_monitor
        self.region_status_monitor = parts.region_status_monitor
        self.endpoint_utils = parts.endpoint_utils
        self.endpoint_capacities = parts.endpoint_capacities
        self.image_dead_letters = parts.image_dead_letters
        self.region_request_handler = parts.region_request_handler
        self.image_request_handler = parts.image_request_handler
        self.sweeper = parts.sweeper
        self._visibility = parts.visibility

    def run(self) -> int:
        """Process messages until stopped; return 0 when all work was ended or released in time, else 1."""
        # An oversized allocation then raises MemoryError instead of triggering the OOM killer.
        max_bytes = self.config.memory_limit_bytes or _MEMORY_SHARE * memory_limit_bytes() // 8
        resource.setrlimit(resource.RLIMIT_DATA, (max_bytes, max_bytes))
        tune_malloc()
        tune_gc()
        configure_gdal(self.process.raster_settings, os.environ)
        self._install_signal_handlers()
        self._health.start()
        consumers = self._consumers()
        helpers = [
            threading.Thread(target=work, name=name, daemon=True)
            for name, work in (("sweeper", self._sweep), ("capacities", self._refresh_capacities))
        ]
        self.process.start()
        for consumer in consumers:
            consumer.start()
        for helper in helpers:
            helper.start()
        self.running = True
        logger.info("worker.started", owner=self.process.owner, workers=self.config.workers)
        self.process.stopping.wait()
        return self._drain(consumers)

    def stop(self) -> None:
        """Stop receiving, begin no further tile, and release unfinished work; then ``run`` returns."""
        self.process.stopping.set()
        # The scheduler waits for this event; setting it lets the scheduler see that the process stops.
        self.process.image_due.set()

    def monitor_work_queues(self) -> None:
        """Process messages until stopped: the name of ``run`` in earlier versions."""
        self.run()

    # Consumers ------------------------------------------------------------------------------------------------------

    def _consumers(self) -> list[QueueConsumer[Any]]:
        lock = SchedulerLock(self.outstanding_jobs, self.job_table, self.process.now)
        scheduler = self._scheduler(lock)
        look_ahead = LookAhead(lock, self.config.image_look_ahead, self.process.now)
        buffered = BufferedImageRequestQueue(self.image_request_queue, look_ahead, self.process.pause)
        messages = ImageMessages(
            self.image_request_queue,
            self.image_dead_letters,
            self.image_request_handler,
            self._visibility,
            on_waiting=scheduler.due.set,
            look_ahead=look_ahead,
            pause=self.process.pause,
            rng=self.process.rng,
        )
        starts = ScheduledImages(scheduler, self.image_request_handler)
        regions = RegionMessages(
            self.region_request_queue,
            DeadLetters(self.region_request_queue, self.config.region_dlq),
            self.region_request_handler,
            self._visibility,
            on_ended=scheduler.record_room,
        )
        return [
            self._consumer("images", buffered, lambda message, _make_room: messages.handle(message), _INTAKE_SLOTS),
            # An image frees its slot when its first region is cut: else a model that never responds takes all slots.
            self._consumer("starts", scheduler, starts.handle, self._slots, self.config.workers),
            # At most WORKERS regions can have a tile in flight, so freeing more slots would add no concurrency.
            self._consumer("regions", self.region_request_queue, regions.handle, self._slots, self.config.workers),
        ]

    def _scheduler(self, lock: SchedulerLock) -> LockedScheduler:
        process = self.process
        parts = (lock, self.config, process.owner, process.metrics, process.now, process.pause, process.rng)
        if self.config.image_scheduler == "fifo":
            return FIFOImageScheduler(*parts, process.image_due)
        return EndpointLoadImageScheduler(self.endpoint_capacities, *parts, process.image_due)

    def _consumer(
        self,
        name: str,
        source: Source[Any],
        handle: Callable[[Any, Callable[[], None]], None],
        slots: int,
        most_given_up: int = 0,
    ) -> QueueConsumer[Any]:
        stopping, note_progress = self.process.stopping, self._health.note_progress
        return QueueConsumer(name, source, handle, slots, stopping, note_progress, most_given_up)

    @property
    def _slots(self) -> int:
        """Number of regions from the queue that are cut at a time, and of images that are started at a time."""
        return self.config.regions_in_progress

    # Life -----------------------------------------------------------------------------------------------------------

    def _install_signal_handlers(self) -> None:
        """Stop on SIGTERM and Ctrl-C. A second signal ends the process at once, which the tables allow at any time."""
        if threading.current_thread() is not threading.main_thread():
            return

        def on_signal(number: int, _frame: FrameType | None) -> None:
            if self.process.stopping.is_set():
                os._exit(128 + number)
            self.stop()

        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, on_signal)

    def _drain(self, consumers: list[QueueConsumer[Any]]) -> int:
        """Stop in order, within the shutdown budget; return 0 when all consumers drained in time, else 1."""
        budget_s = self.config.shutdown_budget_s
        logger.info("worker.stopping", budget_s=budget_s)
        deadline_s = time.monotonic() + budget_s
        is_drained = min([consumer.join(deadline_s - time.monotonic()) for consumer in consumers])
        self.process.metrics.flush()
        self.process.close()
        self.running = False
        self._health.note_progress("stopped")
        logger.info("worker.stopped", is_drained=is_drained)
        return 0 if is_drained else 1

    def _sweep(self) -> None:
        """Sweep the open jobs at intervals; one worker of all does it at a time."""
        process = self.process
        every_s = self.config.sweep_interval_s
        while not process.stopping.wait(every_s * process.rng.uniform(*_SWEEP_JITTER)):
            try:
                if self.outstanding_jobs.claim_sweep(process.owner, every_s):
                    self.sweeper.sweep(process.stopping.is_set)
            except Exception:  # Stuck jobs depend on the sweeper, so no error may end it
                logger.exception("sweeper.failed")

    def _refresh_capacities(self) -> None:
        """Refresh descriptions of endpoints in a thread of their own, so that no decision waits for one."""
        process = self.process
        while not process.stopping.wait(_REFRESH_EVERY_S * process.rng.uniform(*_SWEEP_JITTER)):
            try:
                self.endpoint_capacities.refresh()
            except Exception:  # Scheduling continues with older descriptions; no error may end this thread
                logger.exception("endpoint.capacities_not_refreshed")
