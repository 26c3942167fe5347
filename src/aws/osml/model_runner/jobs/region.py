"""Processes one region: opens its image, plans its tiles, and runs those without an outcome."""

import dataclasses
import random
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import structlog

from aws.osml.model_runner.api.image_url import store_of
from aws.osml.model_runner.api.model_protocol import ModelProtocol
from aws.osml.model_runner.api.region_of_interest import parse_roi
from aws.osml.model_runner.api.region_request import RegionRequest
from aws.osml.model_runner.common.job_rules import region_wait_s
from aws.osml.model_runner.common.typing import ImageDimensions, ImageRegion, TileState
from aws.osml.model_runner.database.job_table import JobItem
from aws.osml.model_runner.database.region_request_table import RegionRequestItem
from aws.osml.model_runner.exceptions import LoadImageException
from aws.osml.model_runner.features.answer_reader import reader_of
from aws.osml.model_runner.features.geolocation_grid import LocationGrid
from aws.osml.model_runner.inference.retry import RetryBudget
from aws.osml.model_runner.pipeline.pipeline import TilePipeline
from aws.osml.model_runner.pipeline.region_run import RegionProgress
from aws.osml.model_runner.raster import ImageSource, TileEncoder, image_to_world, is_quick
from aws.osml.model_runner.raster.preparation import Preparation, ratio_of
from aws.osml.model_runner.scheduler.load import lane_of
from aws.osml.model_runner.telemetry.metrics import MetricsRecorder
from aws.osml.model_runner.tiling.region_plan import TilePlanner
from aws.osml.model_runner.tiling.strategy import Tile, TilingStrategy

from .image_roi import LendImage, interest_in
from .model_endpoints import ModelEndpoints
from .planning import encoded_format
from .tile import TileProcessor
from .tile_reader import NewFeatureTable

logger = structlog.get_logger(__name__)

# A model that crashes on more than this share of a region's tiles counts as down, at most this many times in a row.
_OUTAGE_SHARE = 0.5
_MAX_OUTAGE_TRIES = 5
# Back-offs in a row without a tile that ended, after which the next tile is called alone. After the second number it
# may fail even if no other tile shows that the endpoint responds. That takes more than half an hour.
_BACKOFFS_BEFORE_ALONE = 2
_BACKOFFS_BEFORE_BLAME = 10
# Number of tiles that are processed one at a time in a region that killed a worker, before batches grow.
_TILES_ALONE = 4
# A response within a third of the time that SageMaker gives a model did not wait in a long queue.
_QUICK_S = 20.0

# A tile fails when the store of its image responds and breaks off at this tile. Before that, no tile of its region
# ended in this many attempts in a row. They take about 20 minutes.
_MAX_BREAKS = 10


@dataclasses.dataclass(frozen=True)
class Ended:
    """The region needs no further work: its message is deleted.

    The region has ended, here or before, or its image has. ``job`` is the image's row; None when the row is gone.
    """

    job: JobItem | None


@dataclasses.dataclass(frozen=True)
class Deferred:
    """The region cannot be processed now: its message becomes visible again after ``retry_after_s``.

    ``is_backoff`` is True when the region's endpoint, image or tables are the reason: the row counts those waits.
    """

    reason: str
    retry_after_s: float
    is_backoff: bool = False


class RegionProcessor:
    """Processes a region that the worker has claimed.

    ``on_cut`` is called when another region can be cut soon; see ``TilePipeline.run``. It may be called several times.
    """

    def __init__(
        self,
        request: RegionRequest,
        on_cut: Callable[[], None] = lambda: None,
        *,
        strategy: TilingStrategy,
        lend_image: LendImage,
        pipeline: TilePipeline,
        endpoints: ModelEndpoints,
        new_feature_table: NewFeatureTable,
        metrics: MetricsRecorder,
        make_encoder: Callable[..., TileEncoder],
        elevation_model: Any,
        max_parsed_bytes: int,
        now: Callable[[], float],
        rng: random.Random,
        pause: Callable[[float], object],
        note_progress: Callable[[], None],
    ) -> None:
        self._request = request
        self._on_cut = on_cut
        self._strategy = strategy
        self._lend_image = lend_image
        self._pipeline = pipeline
        self._endpoints = endpoints
        self._metrics = metrics
        self._make_encoder = make_encoder
        self._elevation_model = elevation_model
        self._max_parsed_bytes = max_parsed_bytes
        self._now = now
        self._rng = rng
        self._pause = pause
        self._note_progress = note_progress
        self._run: RegionProgress | None = None

        def on_wait() -> None:
            # The region's own thread waits for a busy table, and does not hang.
            note_progress()
            if self._run is not None:
                self._run.record_life()

        self.features = new_feature_table(
            ImageDimensions(*request.tile_size), ImageDimensions(*request.tile_overlap), on_wait
        )

    def tiles(self, job: JobItem, item: RegionRequestItem) -> list[Tile]:
        """Return the region's tiles, without tiles that its row ``item`` skips or leaves out.

        With a region of interest in the request the image has to be open, or have been planned here.
        """
        roi = None
        if job.roi_wkt:
            ratio = ratio_of(Preparation.from_text(job.pixel_preparation))
            with self._lend_image(self._request) as source:
                roi = interest_in(source.sensor_model, source.width, source.height, parse_roi(job.roi_wkt), ratio)
        planner = TilePlanner(
            self._strategy,
            ImageDimensions(*self._request.tile_size),
            ImageDimensions(*self._request.tile_overlap),
            roi,
        )
        left_out = item.rules_by_tile.keys() | item.outside
        tiles = planner.tiles(ImageRegion.of(self._request.region_bounds))
        return [tile for tile in tiles if tile.index not in left_out]

    def committed(self, tiles: Sequence[Tile], item: RegionRequestItem) -> dict[int, TileState]:
        """Return the outcomes that the table already holds, by the index of the tile."""
        indexes = [tile.index for tile in tiles]
        return self.features.committed_tiles(item.image_id, item.region_id, indexes, item.generation or 0)

    def run(
        self, run: RegionProgress, job: JobItem, item: RegionRequestItem
    ) -> tuple[list[Tile], dict[int, TileState]] | Deferred:
        """Process every tile without an outcome; return all tiles, and their outcomes by index.

        Outcomes are missing when ``run`` was stopped. The region is deferred when most of its tiles crash the model,
        because the model may be repaired soon.

        Raises:
            ImageError: the image cannot be opened, or it was replaced after it was planned.
            FeatureError: the features of the image cannot be located.
        """
        self._run = run
        with self._lend_image(self._request) as source:
            if job.image_etag and source.etag and source.etag != job.image_etag:
                raise LoadImageException("the image was replaced after its job began")
            tiles, backoffs = self.tiles(job, item), item.backoffs or 0
            is_first_attempt = (item.region_retry_count or 0) <= 1
            run.done_before = done = {} if is_first_attempt else self.committed(tiles, item)
            todo = [tile for tile in tiles if tile.index not in done]
            logger.info("region.started", tiles=len(tiles), done_before=len(done), attempt=item.region_retry_count)
            if not todo:
                return tiles, done
            known = [tile for tile in tiles if done.get(tile.index) is TileState.SUCCEEDED][:1]
            steps = self._steps(run, source, job, [*known, *todo], item.generation or 0)
            with run.waiting(), steps.call_limit.expecting(len(todo)) as note_begun:
                self._run_tiles(run, dataclasses.replace(steps, note_begun=note_begun), todo, known, item)
            if not run.is_stopped:
                if len(steps.suspects) > len(tiles) * _OUTAGE_SHARE and backoffs < _MAX_OUTAGE_TRIES:
                    example = steps.suspects[0][1].error_reason
                    reason = f"{len(steps.suspects)} of {len(tiles)} tiles crash the model, for example: {example}"
                    return Deferred(reason, region_wait_s(backoffs, self._rng), is_backoff=True)
                for tile, result in steps.suspects:
                    run.outcomes[tile.index] = steps.commit(tile, result)
        return tiles, done | run.outcomes

    def _run_tiles(
        self, run: RegionProgress, steps: TileProcessor, tiles: list[Tile], known: list[Tile], item: RegionRequestItem
    ) -> None:
        """Run ``tiles``; ``known`` holds a tile that succeeded before, if there is one."""
        pipeline, backoffs = self._pipeline, item.backoffs or 0
        if backoffs >= _MAX_BREAKS:
            steps = dataclasses.replace(steps, waits_for_image=False)
        if (item.stalled_attempts or 0) > 1:
            # A worker died here. First one tile at a time, so that a tile that kills its worker does not take its
            # neighbours with it. The order is random, and every second attempt reverses it, so that the tiles before
            # and after such a tile are reached within two attempts. Each pair of attempts has a new order, so two
            # such tiles do not block the tiles between them for ever.
            pair, is_second = divmod(item.fence or 0, 2)
            ordered = sorted(tiles, key=lambda tile: random.Random(f"{pair}:{tile.index}").random())
            for batch in careful_batches(ordered[::-1] if is_second else ordered):
                pipeline.run(run, steps, batch)
            return
        if backoffs:
            # The endpoint refused before. One call without retries shows whether it still refuses. Each attempt uses
            # another tile, because the tile itself may be the reason.
            first = backoffs % len(tiles)
            tiles = tiles[first:] + tiles[:first]
            probe = dataclasses.replace(steps, retry_budget=RetryBudget(floor=0))
            if backoffs < _BACKOFFS_BEFORE_ALONE:
                pipeline.run(run, probe, tiles[:1], self._on_cut)
            else:
                self._run_alone(run, probe, tiles[0], known, is_last_resort=backoffs >= _BACKOFFS_BEFORE_BLAME)
            tiles = tiles[1:]
        pipeline.run(run, steps, tiles, self._on_cut)

    def _run_alone(
        self, run: RegionProgress, probe: TileProcessor, tile: Tile, known: list[Tile], *, is_last_resort: bool
    ) -> None:
        """Run the tile at which the region makes no progress, as the only call of this process at its endpoint.

        The tile fails when it times out several times, but only if the endpoint works. It works if it responds quickly
        to a tile that succeeded before. Otherwise the region waits, until ``is_last_resort``.
        """
        pipeline, is_quick = self._pipeline, False
        if known:
            pipeline.run(run, dataclasses.replace(probe, is_control=True), known, self._on_cut)
            is_quick = probe.call_limit.last_response_s <= _QUICK_S
        if is_quick or is_last_resort:
            probe = dataclasses.replace(probe, is_alone=True, retry_budget=RetryBudget())
        pipeline.run(run, probe, [tile], self._on_cut)

    def _steps(
        self, run: RegionProgress, source: ImageSource, job: JobItem, tiles: Sequence[Tile], generation: int
    ) -> TileProcessor:
        request, preparation = self._request, Preparation.from_text(job.pixel_preparation)
        tile_bounds = [tile.bounds for tile in tiles]
        at_bounds = {tile.bounds: tile for tile in tiles}

        def on_part(bounds: ImageRegion) -> None:
            # A tile of a small scale is made from many reads, each of which may take a while.
            run.record_life(at_bounds[bounds])

        protocol = ModelProtocol.of(request.model_protocol)
        tile_format = encoded_format(protocol, request.tile_format)
        encoder = self._make_encoder(source, tile_format, request.tile_compression, tile_bounds, preparation, on_part)
        grid, ratio = None, ratio_of(preparation)
        if source.sensor_model is not None:
            to_world = image_to_world(source.sensor_model, self._elevation_model)
            grid = LocationGrid.from_sensor_model(
                to_world,
                ratio.in_image(ImageRegion.of(request.region_bounds)),
                is_quick=is_quick(source.sensor_model, self._elevation_model),
            )
        lane = lane_of(request)
        return TileProcessor(
            request=request,
            endpoint=lane,
            image_store=store_of(request.image_url),
            encoder=encoder,
            detector=self._endpoints.detector_for(request),
            read_response=reader_of(protocol),
            grid=grid,
            ratio=ratio,
            features=self.features,
            metrics=self._metrics,
            image_format=source.driver_name,
            generation=generation,
            retry_budget=self._endpoints.retry_budget_for(lane),
            call_limit=self._endpoints.call_limit_for(lane),
            sleep=self._pause,
            rng=self._rng,
            now=self._now,
            should_stop=lambda: run.is_stopped,
            note_progress=self._note_progress,
            record_life=run.record_life,
            may_store=lambda: run.may_store,
            max_parsed_bytes=self._max_parsed_bytes,
        )


def careful_batches(tiles: Sequence[Tile]) -> Iterator[Sequence[Tile]]:
    """Yield tiles in order, the first alone, then in batches that double, each at most a quarter of the remainder.

    In most cases the worker died for another reason than a tile of the region. If a tile killed it, the next crash
    loses the outcomes of one batch only, so that a few attempts find the tile.
    """
    begun = 0
    size = 1
    while begun < len(tiles):
        if begun >= _TILES_ALONE:
            size = min(2 * size, max(1, (len(tiles) - begun) // 4))
        yield tiles[begun : begun + size]
        begun += size
