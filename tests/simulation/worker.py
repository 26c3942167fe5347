"""One worker: the production daemon's own parts, with greenlets for its threads and the world behind its ports."""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor, Future
from contextlib import AbstractContextManager, contextmanager, nullcontext
from types import SimpleNamespace
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from aws.osml.model_runner.common.channel import Threads
from aws.osml.model_runner.common.typing import ImageRegion
from aws.osml.model_runner.config import ServiceConfig
from aws.osml.model_runner.exceptions import ImageUnreachableError, LoadImageException
from aws.osml.model_runner.inference.sm_detector import SMDetector
from aws.osml.model_runner.jobs.leases import Lease, LeaseKeeper, LeaseKind
from aws.osml.model_runner.jobs.model_endpoints import ModelEndpoints
from aws.osml.model_runner.jobs.preflight import Preflight
from aws.osml.model_runner.model_runner import ModelRunner
from aws.osml.model_runner.pipeline.pipeline import TilePipeline, _TileInFlight
from aws.osml.model_runner.pipeline.region_run import RegionProgress, TileStages
from aws.osml.model_runner.pipeline.shares import QueueShares
from aws.osml.model_runner.raster import RasterSettings
from aws.osml.model_runner.raster.tiff_templates import TiffTemplates
from aws.osml.model_runner.raster.tile_formats import PLAIN_SAMPLES
from aws.osml.model_runner.sink import KinesisSink, S3Sink, Sink, SinkFactory
from aws.osml.model_runner.tiling.strategy import Tile
from aws.osml.model_runner.worker.consumer import QueueConsumer
from aws.osml.model_runner.worker.process import WorkerProcess

from .faults import InjectedError
from .jobs import Job
from .ports import Clients, Port
from .scheduler import Event, Mutex, Process, Scheduler, Semaphore
from .services import Chance

_CALLERS = 3
# Small enough that a result of a few features goes up in parts now and then.
_PART_BYTES = 4000


class InTurn(Executor):
    """Does each thing when it is asked to."""

    def submit(self, work: Any, /, *args: Any, **kwargs: Any) -> Future[Any]:
        done: Future[Any] = Future()
        done.set_result(work(*args, **kwargs))
        return done


class Surroundings(Protocol):
    """Services and clock of a worker in its world."""

    scheduler: Scheduler
    chance: Chance
    config: ServiceConfig
    twins: dict[str, Any]
    jobs: dict[str, Job]

    def is_poison(self, kind: str, job: Job, column: int = 0) -> bool: ...


class _Pool:
    """An executor whose threads are greenlets."""

    def __init__(self, process: Process) -> None:
        self._process = process
        self.running = 0

    def submit(self, work: Callable[..., None], *arguments: Any) -> "_Future":
        future = _Future()
        self.running += 1

        def run() -> None:
            try:
                work(*arguments)
            finally:
                self.running -= 1
                future.finish()

        self._process.spawn(run)
        return future


class _Future:
    def __init__(self) -> None:
        self._callbacks: list[Callable[[Any], None]] = []

    def add_done_callback(self, callback: Callable[[Any], None]) -> None:
        self._callbacks.append(callback)

    def finish(self) -> None:
        for callback in self._callbacks:
            callback(self)


class _InOrder(dict[Any, None]):
    """A set that keeps the order in which things came, so that a seed always means the same."""

    def add(self, thing: Any) -> None:
        self[thing] = None

    def discard(self, thing: Any) -> None:
        self.pop(thing, None)


class _Leases(LeaseKeeper):
    def __init__(self, scheduler: Scheduler, process: Process, interval_s: float, stall_s: float) -> None:
        super().__init__(
            interval_s, stall_s, process.now, on_stall=lambda _lease: process.die(), make_pool=lambda _kind: InTurn()
        )
        self._scheduler = scheduler
        self._process = process
        self._stopped: Any = Event(scheduler)
        self._leases: Any = _InOrder()

    @contextmanager
    def keep(self, lease: Lease) -> Iterator[Lease]:
        lease.renewing = Mutex(self._scheduler)  # type: ignore[assignment]
        with super().keep(lease):
            yield lease

    def start(self) -> None:
        for kind in LeaseKind:
            self._process.spawn(functools.partial(self._beat, kind))


class _Next:
    """A stage's queue that nobody waits in: what is put goes on at once."""

    def __init__(self, go_on: Callable[[_TileInFlight], None]) -> None:
        self._plan_or_buffer = go_on

    def put(self, item: _TileInFlight, _size: int = 0) -> None:
        self._plan_or_buffer(item)


class _Pipeline(TilePipeline):
    """The production stages, each tile passing them in one greenlet, a few tiles at a time."""

    def __init__(self, scheduler: Scheduler, process: Process) -> None:
        self._scheduler = scheduler
        self._process = process
        self._finished: list[Event] = []
        # No region is put in here, so none has a share to keep to.
        self._shares = QueueShares(0, 0, 0)
        self._to_detect: Any = _Next(lambda item: self._advance(item, self._detect))
        self._to_store: Any = _Next(lambda item: self._advance(item, self._locate_and_store))

    def run(
        self, run: RegionProgress, steps: TileStages, tiles: Iterable[Tile], on_cut: Callable[[], None] = lambda: None
    ) -> None:
        waiting = list(tiles)
        waiting.reverse()
        callers = min(_CALLERS, len(waiting))
        if not waiting:
            return
        finished = Event(self._scheduler)

        def call() -> None:
            nonlocal callers
            while waiting:
                tile = waiting.pop()
                if not run.enter():
                    break
                self._advance(_TileInFlight(run, steps, tile), self._cut)
                if not waiting:
                    on_cut()
            callers -= 1
            if callers == 0:
                finished.set()

        for _ in range(callers):
            self._process.spawn(call)
        self._finished.append(finished)
        finished.wait()
        self._finished.remove(finished)

    def give_up(self) -> None:
        """Wait no longer for tiles in flight, as a run does when the process stops."""
        for finished in self._finished:
            finished.set()


class _Source:
    """An opened image."""

    height = 16
    band_count = 1
    data_type = "Byte"
    driver_name = "GTIFF"
    extension = "TIFF"
    sensor_model = None
    item = None
    settings = RasterSettings()
    tiff_templates = TiffTemplates()
    header = SimpleNamespace(samples=PLAIN_SAMPLES, image_count=1)

    def __init__(self, job: Job) -> None:
        self.job = job
        self.width = job.width
        self.etag = job.job_id


class _Images:
    """The images of the world's jobs; opening one is a call that may go wrong."""

    def __init__(self, world: Surroundings, port: Port, process: Process) -> None:
        self._world = world
        self._port = port
        self._process = process

    @contextmanager
    def lend(self, url: str, role: str | None = None, is_new: bool = False, pays: bool = False) -> Iterator[_Source]:
        job = self._world.jobs[url]
        try:
            self._port.call("head_object", lambda: True, {}, 1)
        except Exception as err:
            raise ImageUnreachableError("the bucket does not answer") from err
        if self._world.is_poison("plan", job):
            self._process.die()
        if job.is_unreadable:
            raise LoadImageException("no image")
        yield _Source(job)


class _InvalidTiles:
    """Finds the tiles of an image that have no valid pixel."""

    def __init__(self, source: _Source, *_: object) -> None:
        self._job = source.job

    def find(self, windows: Sequence[ImageRegion]) -> Iterator[npt.NDArray[np.bool_]]:
        yield np.array([window.origin.col in self._job.skipped for window in windows], np.bool_)


class _Encoder:
    def __init__(self, world: Surroundings, process: Process, source: _Source, *_: object) -> None:
        self._world = world
        self._process = process
        self._job = source.job

    def encode(self, tile: ImageRegion) -> bytes:
        if self._world.is_poison("tile", self._job, tile.origin.col):
            self._process.die()
        return f"{self._job.url}|{tile.origin.col}".encode()


class _NoMetrics:
    """Measures nothing."""

    def record(self, *_: Any, **__: Any) -> None: ...

    def timed(self, *_: Any, **__: Any) -> AbstractContextManager[None]:
        return _NOTHING

    def flush(self) -> None: ...


_NOTHING = nullcontext()


class Worker:
    """A process that runs a ``ModelRunner``."""

    def __init__(self, world: Surroundings, name: str, skew_s: float) -> None:
        self._scheduler = world.scheduler
        self._world = world
        self.process = Process(world.scheduler, name, skew_s)
        port = Port(world.scheduler, world.chance, self.process)
        self._clients = Clients(world.twins, port, world.chance)
        self._pipeline = _Pipeline(world.scheduler, self.process)
        self._runner = ModelRunner(config=world.config, process=self._worker_process(name, port))
        handler = self._runner.image_request_handler
        preflight = Preflight(
            world.config,
            ModelEndpoints(world.config, lambda _request: None, world.scheduler.rng),
            self._runner.endpoint_capacities.describe,
            self._clients.credentials,
            functools.partial(self._clients.client, "sagemaker-runtime"),
            self._make_sinks,
            handler.parts.read_area,
            self.process.now,
            lambda looks, _within_s: [look() for look in looks],
        )
        handler.parts = dataclasses.replace(handler.parts, preflight=preflight)
        for monitor in (self._runner.image_status_monitor, self._runner.region_status_monitor):
            monitor.sns_helper.sns_client = self._clients.client("sns")
        self._pools = [self._as_fibers(consumer) for consumer in self._runner._consumers()]
        self._runner.process.leases.start()
        self._is_sweeping = False
        sweep = self._runner.sweeper.sweep
        self._runner.sweeper.sweep = lambda should_stop: self._noted(sweep, should_stop)  # type: ignore[method-assign]
        self.process.spawn(self._runner._sweep)
        self.process.spawn(self._runner._refresh_capacities)

    @property
    def is_stopping(self) -> bool:
        return self._runner.process.stopping.is_set()

    @property
    def is_idle(self) -> bool:
        """True when nothing is in hand, so that nothing that it may still do was begun before."""
        return not self._is_sweeping and not any(pool.running for pool in self._pools)

    def _noted(self, sweep: Callable[[Callable[[], bool]], None], should_stop: Callable[[], bool]) -> None:
        self._is_sweeping = True
        try:
            sweep(should_stop)
        finally:
            self._is_sweeping = False

    def terminate(self) -> None:
        """Send SIGTERM: begin nothing more, release the unfinished work, and exit."""
        self._runner.stop()
        budget_s = self._world.config.shutdown_budget_s
        self._scheduler.at(budget_s / 2, self._pipeline.give_up)
        self.process.spawn(lambda: self._drain(budget_s))

    def _drain(self, budget_s: float) -> None:
        ends = self._scheduler.now + budget_s
        while any(pool.running for pool in self._pools) and self._scheduler.now < ends:
            self._scheduler.sleep(0.5)
        self.process.kill()

    def _as_fibers(self, consumer: QueueConsumer) -> _Pool:
        slots = consumer._slots._value  # type: ignore[attr-defined]  # how many, before any is taken
        consumer._slots = Semaphore(self._scheduler, slots)  # type: ignore[assignment]
        pool = _Pool(self.process)
        consumer._pool = pool  # type: ignore[assignment]
        self.process.spawn(consumer._receive)
        return pool

    def _worker_process(self, name: str, port: Port) -> WorkerProcess:
        world, process = self._world, self.process
        config = world.config
        return WorkerProcess(
            config=config,
            clients=self._clients,  # type: ignore[arg-type]
            raster_settings=_RASTER,
            images=_Images(world, port, process),  # type: ignore[arg-type]
            pipeline=self._pipeline,
            leases=_Leases(world.scheduler, process, config.region_lease_s / 3, config.tile_stall_s),
            metrics=_NoMetrics(),  # type: ignore[arg-type]
            owner=name,
            now=process.now,
            sleep=world.scheduler.sleep,
            rng=world.scheduler.rng,
            make_sinks=self._make_sinks,
            new_detector=self._new_detector,
            read_all=port.read_together,
            make_writers=lambda _count: InTurn(),
            threads=Threads(process.spawn, lambda count: Semaphore(world.scheduler, count)),
            new_invalid_tiles=_InvalidTiles,  # type: ignore[arg-type]
            make_encoder=functools.partial(_Encoder, world, process),  # type: ignore[arg-type]
            stopping=Event(world.scheduler),  # type: ignore[arg-type]
            image_due=Event(world.scheduler),  # type: ignore[arg-type]
            claiming=Mutex(world.scheduler),
        )

    def _new_detector(self, request: Any) -> SMDetector:
        client = self._clients.client("sagemaker-runtime")
        return SMDetector(request.model_name, client=client, tile_format=str(request.tile_format))

    def _make_sinks(self, outputs: list[dict[str, Any]]) -> list[Sink]:
        """Make the sinks that production makes, with this process's clients."""
        job = next(job for job in self._world.jobs.values() if job.job_id == outputs[0]["prefix"])
        sinks = SinkFactory.outputs_to_sinks(outputs)
        for sink in sinks:
            if isinstance(sink, S3Sink):
                sink._client, sink.part_bytes = self._clients.client("s3"), _PART_BYTES
                sink.make_writer = InTurn
                sink.deliver = functools.partial(self._deliver, job, sink.deliver)  # type: ignore[method-assign]
            elif isinstance(sink, KinesisSink):
                sink._client, sink._sleep = self._clients.client("kinesis"), self._scheduler.sleep
                sink._rng = self._scheduler.rng
        return sinks

    def _deliver(self, job: Job, deliver: Callable[..., None], *given: Any) -> None:
        if self._world.is_poison("aggregation", job):
            self.process.die()
        if self._world.is_poison("finish", job):
            raise InjectedError("these features cannot be written")
        deliver(*given)


_RASTER = RasterSettings()
