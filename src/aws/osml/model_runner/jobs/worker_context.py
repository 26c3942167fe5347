"""What the handlers of one process share: its name, its threads, its open images and its clients."""

import json
import os
import random
import socket
import threading
import time
import uuid
from collections import defaultdict
from collections.abc import Callable
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar

from cachetools import LRUCache

from aws.osml.model_runner.api.image_request import ImageRequest
from aws.osml.model_runner.api.image_url import parse_image_url
from aws.osml.model_runner.api.inference import ModelInvokeMode
from aws.osml.model_runner.api.region_request import RegionRequest
from aws.osml.model_runner.aws.clients import AwsClients, default_clients
from aws.osml.model_runner.aws.role_session import RoleSession, calling_session, reading_session
from aws.osml.model_runner.common.channel import Threads
from aws.osml.model_runner.common.cores import usable_cores
from aws.osml.model_runner.common.job_rules import TILE_MARGIN_S
from aws.osml.model_runner.common.memory import memory_limit_bytes
from aws.osml.model_runner.common.memory_budget import MemoryBudget
from aws.osml.model_runner.common.typing import ImageDimensions
from aws.osml.model_runner.config import ServiceConfig
from aws.osml.model_runner.database.blob_store import BlobStore, WorkBucket
from aws.osml.model_runner.database.ddb_helper import DDBHelper
from aws.osml.model_runner.database.endpoint_callers import EndpointCallers
from aws.osml.model_runner.database.feature_table import FeatureTable, ReadAll, read_in_threads
from aws.osml.model_runner.exceptions import UnsupportedModelException
from aws.osml.model_runner.inference.call_limit import CallLimit
from aws.osml.model_runner.inference.detector import Detector
from aws.osml.model_runner.inference.endpoint_factory import FeatureDetectorFactory
from aws.osml.model_runner.inference.http_detector import CallTimeouts
from aws.osml.model_runner.inference.retry import RetryBudget
from aws.osml.model_runner.pipeline.call_shares import CallShares
from aws.osml.model_runner.pipeline.pipeline import TilePipeline
from aws.osml.model_runner.raster import ImageSource, RasterSettings, TileEncoder, open_elevation_model
from aws.osml.model_runner.raster.image_probe import ImageProbe
from aws.osml.model_runner.raster.open_images import OpenImages
from aws.osml.model_runner.scheduler.policy import Lane
from aws.osml.model_runner.sink.sink import Sink
from aws.osml.model_runner.sink.sink_factory import SinkFactory
from aws.osml.model_runner.telemetry.metrics import MetricsRecorder

from .isolation import Isolation
from .leases import Lease, LeaseKeeper

T = TypeVar("T", bound=DDBHelper)

_BEATS_PER_LEASE = 3
_CACHED_ENDPOINTS = 32


@dataclass
class WorkerContext:
    """One process's shared parts. ``now``, ``sleep`` and ``rng`` are time and chance, so that tests own them."""

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
    # Longest tile that the endpoint of a request takes, where its description limits it. See
    # ``EndpointCapacityEstimator.max_body_bytes``.
    endpoint_body_bytes: Callable[[RegionRequest], int | None] = lambda _request: None
    make_sinks: Callable[[list[dict[str, Any]]], list[Sink]] = SinkFactory.outputs_to_sinks
    read_all: ReadAll = read_in_threads
    make_encoder: Callable[..., TileEncoder] = TileEncoder
    threads: Threads = field(default_factory=Threads.of_process)
    elevation_model: Any = None
    # Makes the threads, as many as are given, in which the rows of an image's regions are written.
    make_writers: Callable[[int], Executor] = ThreadPoolExecutor
    stopping: threading.Event = field(default_factory=threading.Event)
    # Set when an image may be started here: one came in, or a region ended.
    image_due: threading.Event = field(default_factory=threading.Event)
    # Held while a region is claimed.
    claiming: AbstractContextManager[object] = field(default_factory=threading.Lock)
    isolation: Isolation = field(init=False)
    shares: CallShares = field(init=False)
    aggregation_memory: MemoryBudget = field(init=False)
    _detectors: LRUCache[object, Detector] = field(default_factory=lambda: LRUCache(_CACHED_ENDPOINTS))
    _budgets: dict[Lane, RetryBudget] = field(default_factory=lambda: defaultdict(RetryBudget))
    _call_limits: dict[Lane, CallLimit] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        self.isolation = Isolation(self.pause, self.claiming)
        self.shares = CallShares(self._endpoint_callers, self.owner, self.now)
        self.aggregation_memory = aggregation_memory(self.config, self.now, self.pause)

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
    ) -> "WorkerContext":
        """Return a context at rest; ``start`` starts its threads and ``close`` ends them.

        ``is_probing``: a child process reads each new image first. ``on_stall`` is called for work that stands still.
        """
        stopping = stopping or threading.Event()
        clients = clients or default_clients()
        clients.set_role_terms(config.role_external_id, config.role_session_policies)
        cores = usable_cores()
        # A handle for each cutter, and one for whoever plans or looks something up meanwhile.
        settings, timeout_s = _raster_settings(config, max_handles=cores + 1), config.image_open_timeout_s
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
            ),
            pipeline=TilePipeline(
                cutters=cores,
                callers=config.workers,
                storers=min(config.workers, 2 * cores),
                max_encoded_bytes=_share(config.tile_queue_bytes),
            ),
            leases=LeaseKeeper(config.region_lease_s / _BEATS_PER_LEASE, config.tile_stall_s, on_stall=on_stall),
            metrics=MetricsRecorder(),
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
        """Start the threads that cut, call and store tiles, those that renew leases, and the probe's child."""
        if self.images.probe is not None:
            threading.Thread(target=self.images.probe.warm, name="probe", daemon=True).start()
        self.pipeline.start()
        self.leases.start()

    def pause(self, seconds: float) -> None:
        """Wait between two tries of a call, or until the process stops."""
        self.stopping.wait(seconds)

    def feature_table(
        self, tile_size: ImageDimensions, overlap: ImageDimensions, on_wait: Callable[[], None] = lambda: None
    ) -> FeatureTable:
        """Return the table of features, for a request with such tiles; its rows outlive the longest job.

        ``on_wait`` is called before each wait for a busy table.
        """
        return FeatureTable(
            self.config.feature_table,
            tile_size,
            overlap,
            client=self.clients.dynamodb_resource(),
            now=self.now,
            life_s=self.config.job_deadline_s + TILE_MARGIN_S,
            rng=self.rng,
            read_all=self.read_all,
            sleep=self.sleep,
            on_wait=on_wait,
            blobs=self._blob_store(),
        )

    def _blob_store(self) -> BlobStore | None:
        bucket = self.config.work_bucket
        return WorkBucket(bucket, self.clients.client("s3")) if bucket else None

    def hurried(self, table: T) -> T:
        """Return ``table`` for renewals: its calls are sent once and fail within seconds, since they come again."""
        return table.through(self.clients.dynamodb_resource(is_hurried=True))

    def lend_image(self, request: ImageRequest | RegionRequest) -> AbstractContextManager[ImageSource]:
        """Lend the image of a request, read under its role, for the length of a ``with`` block; see ``OpenImages``."""
        bucket = parse_image_url(request.image_url).bucket
        role = reading_session(request.image_read_role, request.job_id, bucket) if bucket else None
        # The plan of an image comes first, and its regions only where that could be made.
        return self.images.lend(request.image_url, role, is_new=isinstance(request, ImageRequest))

    def detector_for(self, request: RegionRequest) -> Detector:
        """Return the process's detector for a request's endpoint, role and parameters, with its open connections."""
        parameters, body_bytes = request.model_endpoint_parameters, self.endpoint_body_bytes(request)
        key = (
            *(request.model_invoke_mode, request.model_name, _calling_role(request), request.tile_format, body_bytes),
            json.dumps(parameters, sort_keys=True),
        )
        with self._lock:
            if key not in self._detectors:
                self._detectors[key] = self._new_detector(request, body_bytes)
            return self._detectors[key]

    def retry_budget_for(self, lane: Lane) -> RetryBudget:
        """Return the budget from which every retry at an endpoint, or at one of its parts, is paid."""
        with self._lock:
            return self._budgets[lane]

    def call_limit_for(self, lane: Lane) -> CallLimit:
        """Return the limit that all calls of this process to an endpoint, or to one of its parts, share."""
        with self._lock:
            return self._call_limits.setdefault(lane, CallLimit(self.config.workers, rng=self.rng))

    def _endpoint_callers(self) -> EndpointCallers:
        client = self.clients.dynamodb_resource(is_hurried=True)
        return EndpointCallers(self.config.region_request_table, client, self.now, self.sleep, self.rng)

    def detector_factory(
        self, request: RegionRequest | ImageRequest, body_bytes: int | None = None
    ) -> FeatureDetectorFactory:
        """Return what makes the detector of a request, within the limits of the environment and of ``body_bytes``."""
        limits = (self.config.sm_max_body_bytes, body_bytes)
        timeout_s = self.config.http_endpoint_timeout_s
        return FeatureDetectorFactory(
            request.model_name,
            ModelInvokeMode(request.model_invoke_mode),
            parameters=request.model_endpoint_parameters,
            tile_format=str(request.tile_format),
            assumed_role=_calling_role(request),
            allowed_hosts=self.config.http_endpoint_hosts,
            max_body_bytes=min(limit for limit in limits if limit is not None),
            max_connections=self.config.workers,
            timeouts=CallTimeouts(read_s=timeout_s, total_s=timeout_s),
            max_answer_bytes=self.config.max_answer_bytes,
        )

    def _new_detector(self, request: RegionRequest, body_bytes: int | None) -> Detector:
        detector = self.detector_factory(request, body_bytes).build()
        if detector is None:
            raise UnsupportedModelException(f"{request.model_invoke_mode} calls no model")
        return detector

    def close(self) -> None:
        """End the threads and close the images."""
        self.stopping.set()
        self.leases.close()
        self.pipeline.close()
        self.images.close()


def _share(most_bytes: int, part: int = 8) -> int:
    """Return so many bytes, or an eighth, or another part, of what the container may use where that is less."""
    return min(most_bytes, memory_limit_bytes() // part)


def aggregation_memory(
    config: ServiceConfig, now: Callable[[], float], pause: Callable[[float], object]
) -> MemoryBudget:
    """Return the memory that all aggregations of a process share."""
    most_bytes = _share(config.aggregation_memory_bytes, part=2)
    if config.memory_limit_bytes:
        most_bytes = min(most_bytes, config.memory_limit_bytes // 2)
    return MemoryBudget(most_bytes, now, pause)


def _raster_settings(config: ServiceConfig, max_handles: int) -> RasterSettings:
    return RasterSettings(
        cache_bytes=_share(config.gdal_cache_bytes),
        max_handles=max_handles,
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


def _calling_role(request: RegionRequest | ImageRequest) -> RoleSession | None:
    return calling_session(request.model_invocation_role, request.job_id, request.model_name)
