"""Handles images: accepts them, plans their regions, and finishes them when the last region has ended."""

import dataclasses
import functools
import json
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from typing import TYPE_CHECKING

import geojson
import structlog
from aws_embedded_metrics import MetricsLogger

from .api.image_request import ImageRequest
from .api.inference import VALID_MODEL_HOSTING_OPTIONS
from .api.region_of_interest import parse_roi
from .api.region_request import RegionName, RegionRequest
from .common.endpoint_utils import EndpointUtils
from .common.job_rules import image_status, is_hopeless, is_redrivable
from .common.typing import ImageDimensions, ImageRegion, RequestStatus
from .config import ServiceConfig
from .database.endpoint_statistics_table import EndpointStatisticsTable
from .database.job_table import JobItem, JobTable
from .database.outstanding_jobs_table import Acceptance, OpenJob, OutstandingJobsTable
from .database.region_item import packed_rules, packed_tiles
from .database.region_request_table import RegionRequestItem, RegionRequestTable
from .exceptions import (
    AggregateOutputFeaturesException,
    ConditionNotMetError,
    InvalidImageRequestException,
    LoadImageException,
    ModelRunnerError,
    Problem,
    ProcessImageException,
    RequestDeferredError,
    RetryableJobException,
    StartRegionException,
    UnsupportedModelException,
)
from .features.properties import FeatureStamp
from .jobs.completion import ImageCompletion, end_message
from .jobs.image_roi import LendImage, ReadArea, interest_in, with_area
from .jobs.leases import Lease, LeaseKeeper
from .jobs.planning import FixedRegions, ImagePlan, PlanLimits, plan_image, preparation_of
from .jobs.preflight import Preflight
from .jobs.progress import publish
from .jobs.region import Deferred
from .jobs.skipping import SkippedTiles, TileSkipping
from .queue.request_queue import RequestQueue
from .region_request_handler import RegionRequestHandler
from .scheduler.endpoint_capacity import EndpointCapacityEstimator
from .sink.sink_factory import SinkFactory
from .status.image_status_monitor import ImageStatusMonitor
from .telemetry.logs import bind_job
from .telemetry.metrics import MetricsRecorder
from .tiling.region_plan import processing_bounds, region_id_of
from .tiling.strategy import TilingStrategy

if TYPE_CHECKING:
    from osgeo import gdal
    from shapely.geometry.base import BaseGeometry

    from aws.osml.photogrammetry import SensorModel

logger = structlog.get_logger(__name__)

# Number of threads that write the rows of regions.
_REGION_WRITERS = 16


@dataclasses.dataclass(frozen=True)
class ImageParts:
    """The parts of an image handler beside the arguments of its published constructor."""

    outstanding_jobs: OutstandingJobsTable
    endpoints: EndpointCapacityEstimator
    completion: ImageCompletion
    preflight: Preflight
    lend_image: LendImage
    skipping: TileSkipping
    read_area: ReadArea
    leases: LeaseKeeper
    metrics: MetricsRecorder
    make_writers: Callable[[int], Executor]
    owner: str
    now: Callable[[], float]


class ImageRequestHandler:
    """Processes images. Any number of threads may call it.

    Without ``parts`` the handler makes the parts of a worker of its own from ``config``, at their first use.
    """

    def __init__(
        self,
        job_table: JobTable,
        image_status_monitor: ImageStatusMonitor,
        endpoint_statistics_table: EndpointStatisticsTable | None,
        tiling_strategy: TilingStrategy,
        region_request_queue: RequestQueue,
        region_request_table: RegionRequestTable,
        endpoint_utils: EndpointUtils,
        config: ServiceConfig,
        region_request_handler: RegionRequestHandler,
        parts: ImageParts | None = None,
    ) -> None:
        self.job_table = job_table
        self.image_status_monitor = image_status_monitor
        self.endpoint_statistics_table = endpoint_statistics_table
        self.tiling_strategy = tiling_strategy
        self.region_request_queue = region_request_queue
        self.region_request_table = region_request_table
        self.endpoint_utils = endpoint_utils
        self.config = config
        self.region_request_handler = region_request_handler
        self._given = parts

    @functools.cached_property
    def parts(self) -> ImageParts:
        """The parts that the constructor got, or the parts of a worker, made from ``config`` at the first use."""
        if self._given is not None:
            return self._given
        # The composition root imports this module.
        from .worker.process import WorkerProcess
        from .worker.wiring import wired

        process = WorkerProcess.from_config(self.config)
        process.leases.start()
        return wired(self.config, self.tiling_strategy, process).image_parts

    def process_image_request(self, image_request: ImageRequest) -> None:
        """Accept an image, plan its regions, put each on the queue, and process the first here.

        For a request that was accepted before, a terminal status is published again.

        Raises:
            InvalidImageRequestException: its job id belongs to another request, or it cannot be carried out.
            ProcessImageException: the image failed before it had a plan; its FAILED status was published.
        """
        self.check(image_request)
        job = self.accept(image_request)
        if job is not None:
            self.process_first(self.plan(job))

    def process_first(self, region: RegionName | None, on_cut: Callable[[], None] = lambda: None) -> None:
        """Process the first region of a plan here. Its message is on the queue, so another worker can do it too."""
        if region is None:
            return
        outcome = self.region_request_handler.process_region_request(region, on_cut=on_cut)
        if isinstance(outcome, Deferred):
            with bind_job(job_id=region.job_id, image_id=region.image_id, region_id=region.region_id):
                logger.info("region.left_to_queue", reason=outcome.reason)

    def check(self, image_request: ImageRequest, tries: int | None = None) -> None:
        """Refuse a new request that cannot be carried out now; see ``Preflight.check``, also for ``tries``.

        A request that was accepted before already has a job and is not refused.

        Raises:
            InvalidImageRequestException: with every problem of its outputs, roles and endpoint.
            RequestDeferredError: its endpoint does not respond yet.
        """
        with bind_job(job_id=image_request.job_id, image_id=image_request.image_id):
            try:
                self.parts.preflight.check(image_request, tries)
            except (InvalidImageRequestException, RequestDeferredError):
                if self.job_table.find(image_request.image_id) is None:
                    raise

    def accept(self, image_request: ImageRequest, message_id: str = "", body: str = "") -> OpenJob | None:
        """A1: accept an image, once. Return its open job, or None when the job is closed.

        ``body`` is the text of the request's message. A job that ended PARTIAL or FAILED begins again (D1) when its
        request was sent again: ``message_id`` then differs from the stored id. A second delivery has the same id.

        Raises:
            InvalidImageRequestException: its job id belongs to another request.
            RetryableJobException: the request was sent again while the job's last status is still being published.
        """
        with bind_job(job_id=image_request.job_id, image_id=image_request.image_id):
            variant = self.parts.endpoints.choose_variant(image_request)
            if variant is not None:
                # Variants may hold different models, so all tiles of an image go to one.
                parameters = (image_request.model_endpoint_parameters or {}) | {"TargetVariant": variant}
                image_request = dataclasses.replace(image_request, model_endpoint_parameters=parameters)
            acceptance = self.parts.outstanding_jobs.accept(image_request, message_id, body)
            logger.info("image.received", acceptance=acceptance.value)
            if acceptance is Acceptance.REUSED:
                problem = Problem("jobId", image_request.job_id, "JOB_ID_REUSED: an id that no other request has")
                raise InvalidImageRequestException("the job id belongs to another request", [problem])
            if acceptance is Acceptance.ACCEPTED:
                item = dataclasses.replace(JobItem.from_image_request(image_request), processing_duration=0)
                publish(self.image_status_monitor, item, RequestStatus.STARTED, "Started image request")
            else:
                self._handle_resubmission(image_request, message_id)
            return self.parts.outstanding_jobs.find(image_request)

    def redrive(self, item: JobItem, image_request: ImageRequest, message_id: str) -> bool:
        """D1, D3: begin an image again that ended PARTIAL or FAILED: failed tiles are processed again, others stay.

        Return False when the image is open, has succeeded, or was begun again by another process.
        """
        # Regions take the parameters from the image's row, and all regions must call the same variant. The outputs in
        # the row may have been replaced since the request was sent.
        request = dataclasses.replace(
            image_request,
            model_endpoint_parameters=item.endpoint_parameters,
            outputs=json.loads(item.outputs or "[]"),
        )
        if not is_redrivable(item.image_status) or not self.parts.outstanding_jobs.reopen(item, request, message_id):
            return False
        logger.info("image.redriven", generation=(item.generation or 0) + 1, left=item.image_status)
        begun = dataclasses.replace(item, generation=(item.generation or 0) + 1, processing_duration=0)
        publish(self.image_status_monitor, begun, RequestStatus.STARTED, "Started image request again")
        return True

    def plan(self, job: OpenJob) -> RegionName | None:
        """A2 to A4: plan an image and return its first open region; None when it is planned here or elsewhere already.

        Raises:
            ProcessImageException: it cannot be planned; its FAILED status was published.
        """
        if job.planned_time is not None:
            return None
        started = self.parts.outstanding_jobs.start_planning(job, self.parts.owner, self.config.region_lease_s)
        return None if started is None else self.plan_started(started)

    def plan_started(self, job: OpenJob) -> RegionName | None:
        """A3 and A4: plan an image that this worker has claimed, and return its first open region.

        Raises:
            ProcessImageException: it cannot be planned; its FAILED status was published.
        """
        progressed_at = self.parts.now()

        def note() -> None:
            nonlocal progressed_at
            progressed_at = self.parts.now()

        lease = Lease(
            name=f"{job.image_id} plan",
            renew=lambda: self.parts.outstanding_jobs.renew_planning(job, self.parts.owner),
            # Another worker may plan the image too: the first write of the plan and of each region's row counts.
            on_lost=lambda: None,
            last_progress=lambda: progressed_at,
        )
        with bind_job(job_id=job.request.job_id, image_id=job.image_id), self.parts.leases.keep(lease):
            item = self.job_table.get_image_request(job.image_id)
            if item.is_terminal:
                # The image was cancelled while it waited.
                self.parts.completion.close(item)
                return None
            request = self._stored_request(item)
            if request is None:
                return None
            try:
                plan = self._plan_of(request, item, measures=True, note=note)
                planned = dataclasses.replace(plan.applied_to(item), first_attempt=job.first_attempt)
                if planned.tiles_skipped:
                    self.parts.outstanding_jobs.mark_skipping(job, request)
                stored = self.job_table.fix_plan(planned)
                plan = self._plan_that_counts(plan, planned, request, stored, note)
            except ConditionNotMetError:
                return None
            except Exception as err:  # noqa: BLE001 - each has a verdict
                self._planning_failed(item, err)
                return None
            if (stored.generation or 0) != job.generation:
                # This worker paused while the job ended and began again. Beginning its regions again would count them
                # twice when only outputs are missing.
                return None
            if stored.tiles_skipped is None:
                # An earlier version was faster, and its plan skips nothing.
                plan = dataclasses.replace(plan, skipped=None)
            elif not plan.is_of_files(stored):
                reason = "a file of skip or regionOfInterest was replaced after its job began"
                self._planning_failed(stored, LoadImageException(reason))
                return None
            tiles, skipped = stored.tile_count, stored.tiles_skipped
            logger.info("image.planned", regions=len(plan.regions), tiles=tiles, tiles_skipped=skipped)
            self.parts.completion.publish_progress(stored)
            return self._enqueue_regions(
                plan.regions, request, stored.image_extension or "", stored.generation or 0, plan
            )

    def _plan_that_counts(
        self, plan: ImagePlan, planned: JobItem, request: ImageRequest, stored: JobItem, note: Callable[[], None]
    ) -> ImagePlan:
        """Return the plan of the ``stored`` row; another worker may have stored it, and this worker ``plan`` too late.

        Raises LoadImageException when the image was replaced since then.
        """
        if (stored.image_item, stored.image_etag) == (planned.image_item, planned.image_etag):
            return plan
        # The STAC Item may have changed too: the assets of the first plan count.
        request = dataclasses.replace(request, image_item=stored.image_item)
        return self._plan_of(request, stored, measures=False, note=note)

    def estimate_load(self, job: OpenJob) -> None:
        """Plan a waiting image from its header and record its number of regions, so that the scheduler knows its load.

        The image ends here when an error is permanent. After any other error it is planned again when it starts.

        Raises:
            ProcessImageException: it cannot be planned; its FAILED status was published.
        """
        if job.region_count is not None or job.planned_time is not None:
            return
        with bind_job(job_id=job.request.job_id, image_id=job.image_id):
            item = self.job_table.get_image_request(job.image_id)
            request = self._stored_request(item)
            if request is None:
                return
            try:
                plan = self._plan_of(request, item, measures=False, note=lambda: None)
            except Exception as err:  # noqa: BLE001 - each has a verdict
                self.parts.metrics.record("Scheduling", "Errors", 1, "Count", ModelName=request.model_name)
                self._planning_failed(item, err)
                return
            regions = len(plan.work)
            self.parts.outstanding_jobs.record_region_count(job, regions)
            logger.info("image.buffered", regions=regions, priority=request.priority)

    def queue_region_request(
        self,
        all_regions: list[ImageRegion],
        image_request: ImageRequest,
        raster_dataset: "gdal.Dataset",
        sensor_model: "SensorModel | None",
        image_extension: str | None,
    ) -> None:
        """A4: write a row for each region, put each on the queue, and process the first here.

        The first region has a message too, so that another worker can process it if this worker dies.
        """
        self.process_first(self._enqueue_regions(all_regions, image_request, image_extension or "", 0))

    def load_image_request(
        self, job_item: JobItem, roi: "BaseGeometry | None"
    ) -> "tuple[str, gdal.Dataset, SensorModel | None, list[ImageRegion]]":
        """Open an image and return its extension, a dataset of it, its sensor model, and the regions of its plan.

        Raises:
            InvalidImageURLException: its URL may not be read here.
            LoadImageException: it cannot be opened, or ``roi`` is not in it.
        """
        request = dataclasses.replace(job_item.image_request(), roi=roi)
        limits = PlanLimits(self.config.max_regions, self.config.max_tiles_per_region, self.config.max_tiles_per_image)
        with self.parts.lend_image(request) as source:
            preparation = preparation_of(source, request, job_item.pixel_preparation, measures=False)
            region_size = self._region_size(job_item)
            plan = plan_image(source, request, self.tiling_strategy, region_size, limits, preparation)
            return source.extension, source.open_dataset(), source.sensor_model, plan.regions

    def fail_image_request(self, job_item: JobItem, err: Exception) -> None:
        """F0: end an image without a plan as FAILED, and publish the reason.

        An image that has ended, or that was begun again since ``job_item`` was read, stays as it is.

        F1: if ``job_item`` has a plan, a worker died before it had queued all regions, and the image fails too. An
        image that got a plan after ``job_item`` was read stays as it is.
        """
        fail = self.job_table.fail_unplanned if job_item.region_count is None else self.job_table.fail_unshared
        ended = fail(job_item.image_id, str(err), job_item.generation or 0)
        if ended is None:
            return
        logger.error("image.failed", reason=str(err))
        self.parts.completion.close(ended)

    def complete_image_request(
        self,
        region_request: RegionRequest,
        image_format: str,
        raster_dataset: "gdal.Dataset | None" = None,
        sensor_model: "SensorModel | None" = None,
    ) -> None:
        """Finish the region's image if this was its last region: merge its features, deliver them, and end it.

        Raises:
            AggregateFeaturesException: the image cannot be finished now; the sweeper tries again.
        """
        with bind_job(job_id=region_request.job_id, image_id=region_request.image_id):
            self.parts.completion.finish(region_request.image_id)

    def deduplicate(
        self,
        job_item: JobItem,
        features: list[geojson.Feature],
        raster_dataset: "gdal.Dataset | None" = None,
        sensor_model: "SensorModel | None" = None,
        metrics: MetricsLogger | None = None,
    ) -> list[geojson.Feature]:
        """Return the features without duplicates, with the job's properties on them and internal ones removed."""
        if job_item.processing_bounds is None and raster_dataset is not None:
            bounds = self.calculate_processing_bounds(raster_dataset, sensor_model, job_item.roi_wkt)
            job_item.processing_bounds = ImageRegion.of(bounds).to_lists()
        stamp = FeatureStamp.from_request(str(job_item.job_id), json.loads(job_item.feature_properties or "[]"))
        return [stamp.finalized(feature) for feature in self.parts.completion.merged(job_item, features)]

    def validate_model_hosting(self, image_request: JobItem) -> None:
        """Check the invoke mode of the model.

        Raises:
            UnsupportedModelException: the mode does not exist.
        """
        mode = str(image_request.model_invoke_mode)
        if mode not in VALID_MODEL_HOSTING_OPTIONS:
            problem = Problem("imageProcessor.type", mode, f"one of {', '.join(VALID_MODEL_HOSTING_OPTIONS)}")
            raise UnsupportedModelException("the model cannot be called", [problem])

    def end_image_request(self, job_item: JobItem, image_format: str, metrics: MetricsLogger | None = None) -> None:
        """G3 to G5: write an image's terminal status, decided by its tiles, publish it, and close the job.

        Nothing happens unless ``job_item`` carries the fence of the current claim.
        """
        job_item.image_format = job_item.image_format or image_format
        status = image_status(job_item.tile_success or 0, job_item.tile_error or 0, sinks=1, failed_sinks=0)
        self.parts.completion.end(job_item, status, end_message(job_item, status))

    @staticmethod
    def calculate_processing_bounds(
        raster_dataset: "gdal.Dataset", sensor_model: "SensorModel | None", roi_wkt: str | None = None
    ) -> tuple[tuple[int, int], tuple[int, int]]:
        """Return ``((row, col), (width, height))`` of the pixels to process: all, or the bounds of the ROI.

        Raises:
            LoadImageException: the region of interest is not in the image, or the image is not georeferenced.
        """
        roi = None
        if roi_wkt:
            if sensor_model is None:
                raise LoadImageException("regionOfInterest needs an image that is georeferenced, and this one is not")
            width, height = raster_dataset.RasterXSize, raster_dataset.RasterYSize
            roi = interest_in(sensor_model, width, height, parse_roi(roi_wkt))
        return processing_bounds(raster_dataset.RasterXSize, raster_dataset.RasterYSize, roi)

    @staticmethod
    def sink_features(job_item: JobItem, features: list[geojson.Feature], metrics: MetricsLogger | None = None) -> None:
        """Write features to every output of a job, without completing the job.

        Raises:
            AggregateOutputFeaturesException: every output failed.
        """
        if not SinkFactory.sink_features(str(job_item.job_id), job_item.outputs or "", features):
            raise AggregateOutputFeaturesException(f"no output of {job_item.job_id} took its features")

    # Planning -------------------------------------------------------------------------------------------------------

    def _stored_request(self, item: JobItem) -> ImageRequest | None:
        """Return the request of an image; None when this version cannot read it, because another version may."""
        try:
            return self.job_table.request_of(item)
        except InvalidImageRequestException as err:
            logger.warning("image.planning_put_off", reason=str(err))
            return None

    def _plan_of(self, request: ImageRequest, item: JobItem, measures: bool, note: Callable[[], object]) -> ImagePlan:
        """Return the plan of an image; without ``measures`` it is an estimate. ``note`` is called now and then."""
        self.validate_model_hosting(item)
        # A job whose tiles may have been processed continues, even if an output or its endpoint is missing by now.
        if item.region_count is None or item.first_attempt is None:
            self.parts.preflight.check(request)
        config, body_bytes = self.config, self.parts.preflight.max_body_bytes(request)
        limits = PlanLimits(config.max_regions, config.max_tiles_per_region, config.max_tiles_per_image, body_bytes)
        with self.parts.lend_image(request) as source:
            if item.image_etag and source.etag and item.image_etag != source.etag:
                raise LoadImageException("the image was replaced after its job began")
            preparation = preparation_of(source, request, item.pixel_preparation, measures)
            fixed, sha256 = self._fixed_regions(item), item.roi_sha256
            if fixed is None:
                request, sha256 = with_area(request, self.parts.read_area)
                if item.roi_sha256 not in (None, sha256):
                    raise LoadImageException("the file of regionOfInterest was replaced while its image was planned")
            size = self._region_size(item)
            plan = plan_image(source, request, self.tiling_strategy, size, limits, preparation, fixed)
            plan = dataclasses.replace(plan, roi_sha256=sha256)
            if item.region_count is not None and item.tiles_skipped is None:
                return plan  # the stored plan skips nothing
            # Regions whose rows exist keep the tiles that their plan skips: files of rules may have changed since.
            rows = self.region_request_table.regions_of(item.image_id) if item.region_count is not None else ()
            stored = {ImageRegion.of(row.region_bounds): row.rules_by_tile for row in rows if row.region_bounds}
            new = [region for region in plan.regions if region not in stored]
            skipped = self.parts.skipping.skipped(
                source, request, plan.planner, new, preparation, note, is_estimate=not measures
            )
            return dataclasses.replace(
                plan, skipped=dataclasses.replace(skipped, by_region={**stored, **skipped.by_region})
            )

    def _fixed_regions(self, item: JobItem) -> FixedRegions | None:
        """Return the regions of a plan that a file decided, if all have rows, because the file may have changed."""
        if item.roi_sha256 is None or item.processing_bounds is None:
            return None
        rows = self.region_request_table.regions_of(item.image_id)
        regions = sorted(ImageRegion.of(row.region_bounds) for row in rows if row.region_bounds)
        if len(regions) != item.region_count:
            return None
        tile_count = (item.tile_count or 0) + (item.tiles_skipped or 0)
        return FixedRegions(ImageRegion.of(item.processing_bounds), regions, tile_count)

    def _region_size(self, item: JobItem) -> ImageDimensions:
        """Return the region size of the job's plan; a deployment may have changed the setting since."""
        return ImageDimensions(*(item.region_size or self.config.region_size))

    def _planning_failed(self, item: JobItem, err: Exception) -> None:
        """End an image after a permanent error; after any other error a later attempt plans it again."""
        if not is_hopeless(err):
            logger.warning("image.planning_put_off", reason=str(err) or type(err).__name__)
            return
        if not isinstance(err, ModelRunnerError):
            logger.error("image.planning_failed", exc_info=err)
            err = LoadImageException(f"the image cannot be planned: {type(err).__name__}: {err}")
        self.fail_image_request(item, err)
        raise ProcessImageException(str(err)) from err

    def _enqueue_regions(
        self,
        regions: Sequence[ImageRegion],
        request: ImageRequest,
        extension: str,
        generation: int,
        plan: ImagePlan | None = None,
    ) -> RegionName | None:
        """A4: write a row for each region and put it on the queue; return the first that has not ended.

        A region without a tile to process is ended here (R1, R3) and not put on the queue.
        """
        requests = [
            RegionRequest(
                request.get_shared_values(),
                region_bounds=region,
                region_id=region_id_of(region, request.job_id),
                image_extension=extension,
            )
            for region in regions
        ]

        skipped = (plan and plan.skipped) or SkippedTiles()

        def begin(region: RegionRequest) -> bool:
            # D2: a region of an earlier generation is reopened. False when it ended in this generation.
            item = RegionRequestItem.from_region_request(region)
            item.generation = generation
            if rules_by_tile := skipped.of(region.region_bounds):
                item.tiles_skipped, item.skipped_tiles = len(rules_by_tile), packed_rules(rules_by_tile)
            if plan is not None and plan.planner.has_roi:
                item.outside_tiles = packed_tiles(plan.planner.outside(region.region_bounds))
            try:
                stored = self.region_request_table.start_region_request(item)
            except StartRegionException:
                return self.region_request_table.reopen(region.image_id, region.region_id, generation)
            if (stored.generation or 0) < generation:
                # Its generation was cancelled or failed before the region ended.
                self.region_request_table.reopen(region.image_id, region.region_id, generation)
            return True

        # Each write takes some milliseconds, and a large image has thousands of regions.
        with self.parts.make_writers(_REGION_WRITERS) as writers:
            is_begun = writers.map(begin, requests)
            waiting = [RegionName.of(region) for region, is_open in zip(requests, is_begun, strict=True) if is_open]
        ended = set[str]()
        if plan is not None and skipped.count:
            empty = {
                region_id_of(region, request.job_id)
                for region, rules_by_tile in skipped.by_region.items()
                if plan.is_skipped(region, rules_by_tile)
            }
            if to_end := [name for name in waiting if name.region_id in empty]:
                row = self.job_table.get_image_request(request.image_id)
                ended = {name.region_id for name in to_end if self.region_request_handler.end_skipped_region(name, row)}
        waiting = [name for name in waiting if name.region_id not in ended]
        self.region_request_queue.send_requests([region.to_message() for region in waiting])
        job = self.parts.outstanding_jobs.find(request)
        # If the job ended and began again meanwhile, this worker has not queued the regions of the new generation.
        if job is not None and job.generation == generation:
            self.parts.outstanding_jobs.finish_planning(job)
        image = self.job_table.find(request.image_id) if ended else None
        if image is not None:
            self.parts.completion.region_ended(image)
        return waiting[0] if waiting else None

    def _handle_resubmission(self, request: ImageRequest, message_id: str) -> None:
        """Handle a request that was accepted before: redrive it if it was sent again, else publish its status again.

        Raises:
            RetryableJobException: the request was sent again while the job's last status is still being published.
        """
        item = self.job_table.find(request.image_id)
        if item is None or not item.is_terminal:
            return
        is_sent_again = bool(message_id) and message_id != item.message_id
        if is_sent_again and is_redrivable(item.image_status):
            if not self.redrive(item, request, message_id):
                raise RetryableJobException("the job is being closed, or was begun again just now")
        elif not item.status_outbox:
            publish(self.image_status_monitor, item, RequestStatus(str(item.image_status)), item.message or "")
