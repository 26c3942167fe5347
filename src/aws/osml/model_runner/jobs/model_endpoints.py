"""The endpoints that this process calls: their detectors, call limits and retry budgets."""

import json
import random
import threading
from collections import defaultdict
from collections.abc import Callable

from cachetools import LRUCache

from aws.osml.model_runner.api.image_request import ImageRequest
from aws.osml.model_runner.api.inference import ModelInvokeMode
from aws.osml.model_runner.api.model_protocol import ModelProtocol
from aws.osml.model_runner.api.region_request import RegionRequest
from aws.osml.model_runner.aws.role_session import calling_session
from aws.osml.model_runner.config import ServiceConfig
from aws.osml.model_runner.exceptions import UnsupportedModelException
from aws.osml.model_runner.inference.call_limit import CallLimit
from aws.osml.model_runner.inference.detector import Detector
from aws.osml.model_runner.inference.endpoint_factory import FeatureDetectorFactory
from aws.osml.model_runner.inference.http_detector import CallTimeouts
from aws.osml.model_runner.inference.model_credentials import ModelCredentials
from aws.osml.model_runner.inference.retry import RetryBudget
from aws.osml.model_runner.scheduler.policy import Lane

_CACHED_DETECTORS = 32

NewDetector = Callable[[RegionRequest], Detector]


class ModelEndpoints:
    """Detectors, call limits and retry budgets, which all regions of the process share. Any thread may call.

    ``max_body_bytes`` returns the longest tile that the endpoint of a request takes; None where no limit is known.
    ``new_detector`` replaces the detectors of SageMaker and HTTP endpoints. ``credentials`` are those of HTTP models.
    """

    def __init__(
        self,
        config: ServiceConfig,
        max_body_bytes: Callable[[RegionRequest], int | None],
        rng: random.Random,
        new_detector: NewDetector | None = None,
        credentials: ModelCredentials | None = None,
    ) -> None:
        self._config = config
        self._max_body_bytes = max_body_bytes
        self._rng = rng
        self._new_detector = new_detector
        self._credentials = credentials
        self._detectors: LRUCache[object, Detector] = LRUCache(_CACHED_DETECTORS)
        self._budgets: dict[Lane, RetryBudget] = defaultdict(RetryBudget)
        self._call_limits: dict[Lane, CallLimit] = {}
        self._lock = threading.Lock()

    def detector_for(self, request: RegionRequest) -> Detector:
        """Return the process's detector for a request's endpoint, role and parameters, with its open connections.

        Raises:
            UnsupportedModelException: the invoke mode of the request calls no model.
        """
        if self._new_detector is not None:
            return self._new_detector(request)
        parameters, body_bytes = request.model_endpoint_parameters, self._max_body_bytes(request)
        role = calling_session(request.model_invocation_role, request.job_id, request.model_name)
        key = (
            *(request.model_invoke_mode, request.model_name, role, request.tile_format, body_bytes),
            json.dumps([parameters, request.model_protocol], sort_keys=True),
        )
        with self._lock:
            if key not in self._detectors:
                detector = self.detector_factory(request, body_bytes).build()
                if detector is None:
                    raise UnsupportedModelException(f"{request.model_invoke_mode} calls no model")
                self._detectors[key] = detector
            return self._detectors[key]

    def detector_factory(
        self, request: RegionRequest | ImageRequest, body_bytes: int | None = None
    ) -> FeatureDetectorFactory:
        """Return the factory of a request's detector, within the limits of the environment and of ``body_bytes``."""
        limits = (self._config.sm_max_body_bytes, body_bytes)
        timeout_s = self._config.http_endpoint_timeout_s
        return FeatureDetectorFactory(
            request.model_name,
            ModelInvokeMode(request.model_invoke_mode),
            parameters=request.model_endpoint_parameters,
            tile_format=str(request.tile_format),
            assumed_role=calling_session(request.model_invocation_role, request.job_id, request.model_name),
            allowed_hosts=self._config.http_endpoint_hosts,
            max_body_bytes=min(limit for limit in limits if limit is not None),
            max_connections=self._config.workers,
            timeouts=CallTimeouts(read_s=timeout_s, total_s=timeout_s),
            max_answer_bytes=self._config.max_answer_bytes,
            protocol=ModelProtocol.of(request.model_protocol),
            credentials=self._credentials,
        )

    def retry_budget_for(self, lane: Lane) -> RetryBudget:
        """Return the budget from which every retry at an endpoint, or at one of its parts, is paid."""
        with self._lock:
            return self._budgets[lane]

    def call_limit_for(self, lane: Lane) -> CallLimit:
        """Return the limit that all calls of this process to an endpoint, or to one of its parts, share."""
        with self._lock:
            return self._call_limits.setdefault(lane, CallLimit(self._config.workers, rng=self._rng))
