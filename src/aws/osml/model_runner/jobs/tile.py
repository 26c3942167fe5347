"""The steps of a tile: cut, call the model, locate the features, and store them, each step timed."""

import random
import threading
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime

import structlog

from aws.osml.model_runner.api.region_request import RegionRequest
from aws.osml.model_runner.common.pixel_ratio import PixelRatio
from aws.osml.model_runner.common.typing import EncodedTile, TileState
from aws.osml.model_runner.database.feature_table import FeatureTable, TileKey, TileOutcome
from aws.osml.model_runner.database.tile_problems import MAX_REASON_CHARACTERS, split_dropped
from aws.osml.model_runner.exceptions import FeaturesTooLargeError, ModelCallError, TileEncodingError
from aws.osml.model_runner.features.answer_reader import ReadResponse
from aws.osml.model_runner.features.encoding import encode_features
from aws.osml.model_runner.features.geolocation import refine_features
from aws.osml.model_runner.features.geolocation_grid import LocationGrid
from aws.osml.model_runner.features.model_response import MAX_PARSED_BYTES
from aws.osml.model_runner.inference.call_errors import ModelErrorCode
from aws.osml.model_runner.inference.call_limit import CallLimit
from aws.osml.model_runner.inference.detector import Detector
from aws.osml.model_runner.inference.retry import ALONE_POLICY, DEFAULT_POLICY, RetryBudget, invoke_with_retries
from aws.osml.model_runner.raster import ImageBreaksOffError, TileEncoder
from aws.osml.model_runner.scheduler.policy import Lane
from aws.osml.model_runner.telemetry.metrics import MetricsRecorder
from aws.osml.model_runner.telemetry.redaction import safe_text
from aws.osml.model_runner.tiling.strategy import Tile

logger = structlog.get_logger(__name__)

# Error code of a tile whose features are too large to store.
FEATURES_TOO_LARGE = "FEATURES_TOO_LARGE"

# Parsing a response larger than this takes several hundred megabytes, so one thread parses such a response at a time.
_LARGE_RESPONSE_BYTES = 4 * 1024 * 1024
_LARGE_RESPONSES = threading.Lock()


@dataclass(frozen=True)
class TileProcessor:
    """The steps of every tile of one region. ``grid`` is None where the image is not georeferenced.

    Tiles are in model pixels, of ``ratio`` image pixels; features are in image pixels.

    ``note_progress`` is called for each tile that ended. ``record_life`` is called between the attempts of a step,
    which may then last longer than ``TILE_STALL_S``. ``may_store`` returns whether results of the region's tiles are
    needed.
    ``note_begun`` is called when the call of a tile begins. With ``is_alone`` a tile is the only call of this process
    at its endpoint, and fails when it times out several times. With ``is_control`` a result is not stored: the call
    only finds out whether the endpoint responds. With ``waits_for_image`` no tile fails because the store of its image
    breaks off.
    """

    request: RegionRequest
    endpoint: Lane
    image_store: str
    encoder: TileEncoder
    detector: Detector
    read_response: ReadResponse
    grid: LocationGrid | None
    ratio: PixelRatio
    features: FeatureTable
    metrics: MetricsRecorder
    image_format: str
    generation: int
    retry_budget: RetryBudget
    call_limit: CallLimit
    sleep: Callable[[float], object]
    rng: random.Random
    now: Callable[[], float]
    should_stop: Callable[[], bool]
    note_progress: Callable[[], None]
    record_life: Callable[[Tile], None]
    may_store: Callable[[], bool]
    note_begun: Callable[[], None] = lambda: None
    is_alone: bool = False
    is_control: bool = False
    max_parsed_bytes: int = MAX_PARSED_BYTES
    waits_for_image: bool = True
    suspects: list[tuple[Tile, TileOutcome]] = field(default_factory=list)
    _begun: dict[int, float] = field(default_factory=dict)

    def cut(self, tile: Tile) -> EncodedTile:
        """Return the tile's pixels in the format and compression of the request."""
        self._begun[tile.index] = self.now()
        try:
            with self.metrics.timed("TileGeneration", InputFormat=self.image_format):
                return self.encoder.encode(tile.bounds)
        except ImageBreaksOffError as err:
            if self.waits_for_image:
                raise
            raise TileEncodingError(str(err)) from err

    def begin_call(self) -> bool:
        """Take a slot of the endpoint's call limit; return False when none is free."""
        is_begun = self.call_limit.try_enter(self.is_alone)
        if is_begun:
            self.note_begun()
        return is_begun

    def end_call(self) -> None:
        """Free the slot of a call."""
        self.call_limit.leave()

    def detect(self, tile: Tile, encoded: EncodedTile) -> bytes:
        """Return the model's response; see ``invoke_with_retries`` for the errors of a failed call."""
        with self.metrics.timed("ModelInvocation", ModelName=self.request.model_name):
            response = invoke_with_retries(
                _WatchedDetector(self, tile),
                encoded,
                sleep=self.sleep,
                rng=self.rng,
                policy=ALONE_POLICY if self.is_alone else DEFAULT_POLICY,
                should_stop=self.should_stop,
                budget=self.retry_budget,
            )
        self.metrics.record("ModelInvocation", "Retries", response.retries, "Count", ModelName=self.request.model_name)
        return response.body

    def locate(self, tile: Tile, response: bytes) -> TileOutcome:
        """Return the features of a response, in pixels of the image and, with a grid, in degrees."""
        lock = _LARGE_RESPONSES if len(response) > _LARGE_RESPONSE_BYTES else nullcontext()
        with lock, self.metrics.timed("FeatureRefinement"):
            parsed = self.read_response(response, tile.bounds.size, self.max_parsed_bytes)
            inference_time = datetime.fromtimestamp(self.now(), UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
            encoded = encode_features(refine_features(parsed.features, tile.bounds, self.grid, self.ratio))
        counts = dict(parsed.dropped + encoded.dropped)
        dropped, unselected = split_dropped(counts)
        if dropped:
            logger.warning("features.dropped", tile_index=tile.index, **dropped)
        if unselected:
            logger.warning("features.unselected", tile_index=tile.index, **unselected)
        return TileOutcome(
            TileState.SUCCEEDED,
            tuple(encoded.bodies),
            encoded.detections,
            dropped=counts,
            inference_time=inference_time,
        )

    def store(self, tile: Tile, result: TileOutcome) -> TileState | None:
        """Commit a result; if several workers commit one tile, the first outcome counts.

        A tile that crashed the model is kept as a suspect: the other tiles show whether the tile or the model failed.
        """
        if self.is_control:
            return None
        if result.error_code == ModelErrorCode.MODEL_5XX:
            self.suspects.append((tile, result))
            self.note_progress()
            return None
        return self.commit(tile, result)

    def commit(self, tile: Tile, result: TileOutcome) -> TileState:
        """Write a result, and return the state that counts: that of the first write."""
        key = TileKey(self.request.image_id, self.request.region_id, tile.index)
        outcome = replace(result, error_reason=safe_text(result.error_reason, MAX_REASON_CHARACTERS))

        def keep_storing() -> bool:
            # A busy table refused the write. The tile makes progress, so its lease stays.
            self.record_life(tile)
            self.note_progress()
            return self.may_store()

        try:
            with self.metrics.timed("FeatureStorage"):
                state = self.features.commit_tile(key, tile.bounds, outcome, self.generation, keep_storing)
        except FeaturesTooLargeError as err:
            logger.warning("tile.failed", tile_index=tile.index, code=FEATURES_TOO_LARGE, reason=str(err))
            failed = TileOutcome(TileState.FAILED, error_code=FEATURES_TOO_LARGE, error_reason=str(err))
            return self.commit(tile, failed)
        self.note_progress()
        self._record(tile, state)
        return state

    def _record(self, tile: Tile, state: TileState) -> None:
        """Record the metrics of a tile; the duration runs from its first step to its last, waits included."""
        model_name = self.request.model_name
        duration_s = self.now() - self._begun.pop(tile.index, self.now())
        self.metrics.record("TileProcessing", "Duration", duration_s, "Seconds", ModelName=model_name)
        self.metrics.record("TileProcessing", "Invocations", 1, "Count", ModelName=model_name)
        if state is TileState.FAILED:
            self.metrics.record("TileProcessing", "Errors", 1, "Count", ModelName=model_name)


class _WatchedDetector:
    """Reports each call for a tile to the endpoint's call limit and as progress of the region."""

    def __init__(self, steps: TileProcessor, tile: Tile) -> None:
        self._steps = steps
        self._tile = tile

    def invoke(self, tile: EncodedTile) -> bytes:
        """See ``Detector.invoke``."""
        steps, began_at = self._steps, self._steps.now()
        try:
            body = steps.detector.invoke(tile)
        except ModelCallError as err:
            steps.call_limit.record_failure(err, steps.now() - began_at)
            raise
        finally:
            steps.record_life(self._tile)
        steps.call_limit.record_response(steps.now() - began_at)
        return body

    def refresh_credentials(self) -> None:
        """See ``Detector.refresh_credentials``."""
        self._steps.detector.refresh_credentials()
