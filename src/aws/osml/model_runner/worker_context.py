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
from dataclasses import dataclass, field
from typing import Any

from cachetools import LRUCache

from .api.image_request import ImageRequest
from .api.inference import ModelInvokeMode
from .api.region_request import RegionRequest
from .app_config import ServiceConfig
from .common.aws_clients import AwsClients, default_clients
from .common.typing import ImageDimensions
from .database.feature_table import FeatureTable, ReadAll, read_in_threads
from .exceptions import UnsupportedModelException
from .inference.detector import Detector
from .inference.endpoint_factory import FeatureDetectorFactory
from .inference.retry import RetryBudget
from .lease_keeper import LeaseKeeper
from .metrics import MetricsRecorder
from .raster import RasterSettings, TileEncoder, open_elevation_model
from .raster.open_images import OpenImages
from .sink.sink import Sink
from .sink.sink_factory import SinkFactory
from .tile_worker.pipeline import TilePipeline

_BEATS_PER_LEASE = 3
_FEATURE_MARGIN_S = 48 * 3600
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
    make_sinks: Callable[[list[dict[str, Any]]], list[Sink]] = SinkFactory.outputs_to_sinks
    read_all: ReadAll = read_in_threads
    make_encoder: Callable[..., TileEncoder] = TileEncoder
    elevation_model: Any = None
    stopping: threading.Event = field(default_factory=threading.Event)
    # Set when an image may be started here: one came in, or a region ended.
    image_due: threading.Event = field(default_factory=threading.Event)
    _detectors: LRUCache[object, Detector] = field(default_factory=lambda: LRUCache(_CACHED_ENDPOINTS))
    _budgets: dict[str, RetryBudget] = field(default_factory=lambda: defaultdict(RetryBudget))
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @classmethod
    def from_config(cls, config: ServiceConfig, clients: AwsClients | None = None) -> "WorkerContext":
        """Return a context at rest; ``start`` starts its threads and ``close`` ends them."""
        clients = clients or default_clients()
        cores = os.cpu_count() or 1
        # A handle for each cutter, and one for whoever plans or looks something up meanwhile.
        settings = RasterSettings(cache_bytes=config.gdal_cache_bytes, max_handles=cores + 1)
        return cls(
            config=config,
            clients=clients,
            raster_settings=settings,
            images=OpenImages(settings, config.image_sources, clients.credentials),
            pipeline=TilePipeline(
                cutters=cores,
                callers=config.workers,
                storers=min(config.workers, 2 * cores),
                max_encoded_bytes=config.tile_queue_bytes,
            ),
            leases=LeaseKeeper(config.region_lease_s / _BEATS_PER_LEASE, config.tile_stall_s),
            metrics=MetricsRecorder(),
            elevation_model=open_elevation_model(
                config.elevation_data_location, config.elevation_data_extension, config.elevation_data_version
            ),
            owner=f"{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:8]}",
        )

    def start(self) -> None:
        """Start the threads that cut, call and store tiles, and the one that renews leases."""
        self.pipeline.start()
        self.leases.start()

    def pause(self, seconds: float) -> None:
        """Wait between two tries of a call, or until the process stops."""
        self.stopping.wait(seconds)

    def feature_table(self, tile_size: ImageDimensions, overlap: ImageDimensions) -> FeatureTable:
        """Return the table of features, for a request with such tiles; its rows outlive the longest job."""
        return FeatureTable(
            self.config.feature_table,
            tile_size,
            overlap,
            client=self.clients.dynamodb_resource(),
            now=self.now,
            life_s=self.config.job_deadline_s + _FEATURE_MARGIN_S,
            rng=self.rng,
            read_all=self.read_all,
            sleep=self.sleep,
        )

    def detector_for(self, request: RegionRequest) -> Detector:
        """Return the process's detector for a request's endpoint, role and parameters, with its open connections."""
        parameters = request.model_endpoint_parameters
        key = (
            *(request.model_invoke_mode, request.model_name, request.model_invocation_role, request.tile_format),
            json.dumps(parameters, sort_keys=True),
        )
        with self._lock:
            if key not in self._detectors:
                self._detectors[key] = self._new_detector(request)
            return self._detectors[key]

    def retry_budget_for(self, endpoint: str) -> RetryBudget:
        """Return the budget from which every retry at an endpoint is paid."""
        with self._lock:
            return self._budgets[endpoint]

    def detector_factory(self, request: RegionRequest | ImageRequest) -> FeatureDetectorFactory:
        """Return what makes the detector of a request, within the limits that the environment sets."""
        return FeatureDetectorFactory(
            request.model_name,
            ModelInvokeMode(request.model_invoke_mode),
            parameters=request.model_endpoint_parameters,
            tile_format=str(request.tile_format),
            assumed_role=request.model_invocation_role or None,
            allowed_hosts=self.config.http_endpoint_hosts,
            max_body_bytes=self.config.sm_max_body_bytes,
            max_connections=self.config.workers,
        )

    def _new_detector(self, request: RegionRequest) -> Detector:
        detector = self.detector_factory(request).build()
        if detector is None:
            raise UnsupportedModelException(f"{request.model_invoke_mode} calls no model")
        return detector

    def close(self) -> None:
        """End the threads and close the images."""
        self.stopping.set()
        self.leases.close()
        self.pipeline.close()
        self.images.close()
