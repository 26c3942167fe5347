"""The name, clients, threads, clock and random source of a worker process."""

import os
import random
import socket
import threading
import time
import uuid
from collections.abc import Callable
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from aws.osml.model_runner.aws.clients import AwsClients, default_clients
from aws.osml.model_runner.common.channel import Threads
from aws.osml.model_runner.common.machine import share_of_memory, usable_cores
from aws.osml.model_runner.config import ServiceConfig
from aws.osml.model_runner.database.feature_table import ReadAll, read_in_threads
from aws.osml.model_runner.jobs.leases import Lease, LeaseKeeper
from aws.osml.model_runner.jobs.model_endpoints import NewDetector
from aws.osml.model_runner.jobs.skipping import NewInvalidTiles
from aws.osml.model_runner.pipeline.pipeline import TilePipeline
from aws.osml.model_runner.raster import RasterSettings, TileEncoder, open_elevation_model
from aws.osml.model_runner.raster.image_probe import ImageProbe
from aws.osml.model_runner.raster.invalid_tiles import InvalidTiles
from aws.osml.model_runner.raster.open_images import OpenImages
from aws.osml.model_runner.sink.sink import Sink
from aws.osml.model_runner.sink.sink_factory import SinkFactory
from aws.osml.model_runner.telemetry.metrics import MetricsRecorder

_BEATS_PER_LEASE = 3


@dataclass
class WorkerProcess:
    """The parts of a process from which ``wired`` makes a worker. No other part receives this object.

    ``now``, ``sleep`` and ``rng`` are time and chance, so that tests own them.
    """

    config: ServiceConfig
    clients: AwsClients
    raster_settings: RasterSettings
    images: OpenImages
    pipeline: TilePipeline
    leases: LeaseKeeper
    metrics: MetricsRecorder
    owner: str
    now: Callable[[], float] = time.time
    sleep: Callable[[float], None] = time.sleep
    rng: random.Random = field(default_factory=random.Random)
    note_progress: Callable[[], None] = lambda: None
    make_sinks: Callable[[list[dict[str, Any]]], list[Sink]] = SinkFactory.outputs_to_sinks
    read_all: ReadAll = read_in_threads
    make_encoder: Callable[..., TileEncoder] = TileEncoder
    new_invalid_tiles: NewInvalidTiles = InvalidTiles
    new_detector: NewDetector | None = None
    threads: Threads = field(default_factory=Threads.of_process)
    elevation_model: Any = None
    # Makes the threads, as many as are given, in which the rows of an image's regions are written.
    make_writers: Callable[[int], Executor] = ThreadPoolExecutor
    stopping: threading.Event = field(default_factory=threading.Event)
    # Set when an image may be started here: one came in, or a region ended.
    image_due: threading.Event = field(default_factory=threading.Event)
    # Held while a region is claimed.
    claiming: AbstractContextManager[object] = field(default_factory=threading.Lock)

    @classmethod
    def from_config(
        cls,
        config: ServiceConfig,
        clients: AwsClients | None = None,
        *,
        is_probing: bool = False,
        stopping: threading.Event | None = None,
        note_progress: Callable[[], None] = lambda: None,
        on_stall: Callable[[Lease], None] = lambda _lease: None,
    ) -> "WorkerProcess":
        """Return a process at rest; ``start`` starts its threads and ``close`` ends them.

        ``is_probing``: a child process reads each new image first. ``on_stall`` is called for work that stands still.
        """
        stopping = stopping or threading.Event()
        clients = clients or default_clients()
        clients.set_role_terms(config.role_external_id, config.role_session_policies)
        cores = usable_cores()
        settings = RasterSettings(
            cache_bytes=share_of_memory(config.gdal_cache_bytes),
            # A handle for each cutter, and one for whoever plans or looks something up meanwhile.
            max_handles=cores + 1,
            region_width_px=config.region_size.width,
            regions_at_once=config.regions_in_progress,
            max_side_px=config.max_image_side_px,
            max_pixels=config.max_image_pixels,
            max_bands=config.max_image_bands,
            max_block_bytes=config.max_block_bytes,
            max_copy_bytes=config.max_http_copy_bytes,
            max_tile_bytes=config.max_tile_bytes,
            directories=config.image_directories,
        )
        timeout_s = config.image_open_timeout_s
        return cls(
            config=config,
            clients=clients,
            raster_settings=settings,
            images=OpenImages(
                settings,
                config.image_sources,
                clients.credentials,
                sleep=stopping.wait,
                probe=ImageProbe(settings, timeout_s) if is_probing and timeout_s else None,
                allowed_buckets=config.image_buckets,
            ),
            pipeline=TilePipeline(
                cutters=cores,
                callers=config.workers,
                storers=min(config.workers, 2 * cores),
                max_encoded_bytes=share_of_memory(config.tile_queue_bytes),
            ),
            leases=LeaseKeeper(config.region_lease_s / _BEATS_PER_LEASE, config.tile_stall_s, on_stall=on_stall),
            metrics=MetricsRecorder(namespace=config.metrics_namespace),
            elevation_model=open_elevation_model(
                config.elevation_data_location,
                config.elevation_data_extension,
                config.elevation_data_version,
                settings,
            ),
            make_sinks=partial(SinkFactory.outputs_to_sinks, bucket_owner=config.output_bucket_owner),
            owner=f"{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:8]}",
            stopping=stopping,
            note_progress=note_progress,
        )

    def start(self) -> None:
        """Start the threads that process tiles and renew leases, and the child process of the probe."""
        if self.images.probe is not None:
            threading.Thread(target=self.images.probe.warm, name="probe", daemon=True).start()
        self.pipeline.start()
        self.leases.start()

    def pause(self, seconds: float) -> None:
        """Wait between two tries of a call, or until the process stops."""
        self.stopping.wait(seconds)

    def close(self) -> None:
        """End the threads and close the images."""
        self.stopping.set()
        self.leases.close()
        self.pipeline.close()
        self.images.close()
