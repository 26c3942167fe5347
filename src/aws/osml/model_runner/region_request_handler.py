"""Handles regions: claims a region, runs its tiles, ends it and counts it, once."""

import dataclasses
import random
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from typing import Any, TypeVar

import structlog
from aws_embedded_metrics import MetricsLogger
from botocore.exceptions import BotoCoreError, ClientError

from aws.osml.model_runner.tiling.strategy import Tile

from .api.image_request import ImageRequest
from .api.inference import ModelInvokeMode
from .api.region_request import RegionName, RegionRequest
from .common.backoff import HALF_JITTER, backoff_s
from .common.endpoint_utils import EndpointUtils
from .common.job_rules import POISON_REGION_S, is_poison, late_reason, region_status, region_wait_s
from .common.typing import TileState
from .config import ServiceConfig
from .database.ddb_helper import DDBHelper
from .database.endpoint_statistics_table import EndpointStatisticsTable
from .database.feature_table import TileKey, TileOutcome
from .database.job_table import JobItem, JobTable
from .database.region_request_table import (
    RegionClaim,
    RegionEnded,
    RegionHeld,
    RegionRequestItem,
    RegionRequestTable,
)
from .database.tile_problems import MAX_REASON_CHARACTERS
from .exceptions import (
    FeatureError,
    ImageError,
    LeaseLostError,
    ModelBackPressureError,
    StatusError,
    TableBusyError,
)
from .inference.exceptions import ModelJobError
from .jobs.completion import ImageCompletion
from .jobs.isolation import Isolation
from .jobs.leases import Lease, LeaseKeeper
from .jobs.model_endpoints import ModelEndpoints
from .jobs.region import Deferred, Ended, RegionProcessor
from .pipeline.call_shares import CallShares
from .pipeline.region_run import RegionProgress
from .queue.request_queue import MAX_VISIBILITY_S
from .scheduler.load import lane_of
from .status.region_status_monitor import RegionStatusMonitor
from .telemetry.logs import bind_job
from .telemetry.metrics import MetricsRecorder
from .telemetry.redaction import safe_text
from .tiling.strategy import TilingStrategy

logger = structlog.get_logger(__name__)

T = TypeVar("T", bound=DDBHelper)

# Error code of tiles that were never processed because their region was abandoned.
ABANDONED = "ABANDONED"

# Back-offs in a row for an endpoint that is missing or denied, and for an image that does not open. Both worked when
# the image was planned, so an operator may be repairing them. Nine waits take about a quarter of an hour.
_MAX_ENDPOINT_TRIES = 9
_MAX_OPEN_TRIES = 5

# Interval at which the progress of an image with one region is published.
_PROGRESS_EVERY_S = 30.0

# Checks for room at the endpoint, the pause between them, and the wait before a refused message is visible again.
_ROOM_LOOKS = 20
_ROOM_PAUSE_S = 0.25
_NO_ROOM_S = (20.0, 40.0)
# Limit of doublings of the wait for a slot at an endpoint.
_SLOT_DOUBLINGS = 3
# Wait before a region is tried again when its tables are busy, or when another worker took its lease.
_TABLE_BUSY_S = (10.0, 30.0)
_LEASE_LOST_S = (30.0, 60.0)


def _nothing() -> None:
    pass


class RegionRequestHandler:
    """Processes regions. Any number of threads may call it.

    ``new_processor`` makes the processor of a region; its second argument is ``on_cut``. ``endpoint_calls`` returns how
    many concurrent calls the endpoint of a request can take, by its last description; None when that is not known.
    ``hurried_dynamodb`` sends the renewals of leases once.
    """

    def __init__(
        self,
        region_request_table: RegionRequestTable,
        job_table: JobTable,
        region_status_monitor: RegionStatusMonitor,
        endpoint_statistics_table: EndpointStatisticsTable | None,
        tiling_strategy: TilingStrategy,
        endpoint_utils: EndpointUtils,
        config: ServiceConfig,
        *,
        completion: ImageCompletion,
        new_processor: Callable[[RegionRequest, Callable[[], None]], RegionProcessor],
        endpoints: ModelEndpoints,
        endpoint_calls: Callable[[ImageRequest], int | None],
        shares: CallShares,
        isolation: Isolation,
        leases: LeaseKeeper,
        metrics: MetricsRecorder,
        hurried_dynamodb: Any,
        owner: str,
        stopping: threading.Event,
        now: Callable[[], float],
        rng: random.Random,
    ) -> None:
        self.region_request_table = region_request_table
        self.job_table = job_table
        self.region_status_monitor = region_status_monitor
        self.endpoint_statistics_table = endpoint_statistics_table
        self.tiling_strategy = tiling_strategy
        self.endpoint_utils = endpoint_utils
        self.config = config
        self._completion = completion
        self._new_processor = new_processor
        self._endpoints = endpoints
        self._endpoint_calls = endpoint_calls
        self._shares = shares
        self._isolation = isolation
        self._leases = leases
        self._metrics = metrics
        self._hurried_dynamodb = hurried_dynamodb
        self._owner = owner
        self._stopping = stopping
        self._now = now
        self._rng = rng

    def process_region_request(
        self, region: RegionName, receive_count: int = 1, on_cut: Callable[[], None] = _nothing
    ) -> Ended | Deferred:
        """Claim a region, process tiles without an outcome, end the region, and finish its image if it was the last.

        The message only names the region; its parameters are read from the tables. ``receive_count`` counts the
        receives of the message. ``on_cut`` is called when few tiles are left to cut, unless workers throttle the
        endpoint by regions: then it would refuse the next region anyway.
        """
        with bind_job(job_id=region.job_id, image_id=region.image_id, region_id=region.region_id):
            try:
                outcome = self._process(region, receive_count, on_cut)
                if isinstance(outcome, Ended) and outcome.job is not None:
                    self._completion.region_ended(outcome.job)
            except TableBusyError as err:
                logger.warning("table.busy", reason=str(err))
                return Deferred(str(err), self._rng.uniform(*_TABLE_BUSY_S))
            except LeaseLostError as err:
                return Deferred(str(err), self._rng.uniform(*_LEASE_LOST_S))
            return outcome

    def fail_region_request(
        self, region_request_item: RegionRequestItem, metrics: MetricsLogger | None = None
    ) -> Ended | Deferred:
        """Abandon a region: fail each tile without an outcome, then end the region.

        ``region_request_item.message`` is the reason. Tiles with an outcome keep it. A region that another worker
        processes is deferred.
        """
        item = region_request_item
        with bind_job(job_id=item.job_id or "", image_id=item.image_id, region_id=item.region_id):
            job = self.job_table.get_image_request(item.image_id)
            claim = self._claim(item.image_id, item.region_id, is_to_abandon=True)
            outcome: Ended | Deferred = Ended(job)
            if isinstance(claim, Deferred):
                return claim
            if claim is not None:
                work = self._new_processor(region_request_of(job, claim.item), _nothing)
                outcome = self._released_unless_ended(
                    claim, lambda: self._abandon(claim, work, job, item.message or "the region was given up")
                )
            if isinstance(outcome, Ended) and outcome.job is not None:
                self._completion.region_ended(outcome.job)
            return outcome

    def end_skipped_region(self, region: RegionName, job: JobItem) -> bool:
        """R1, R3: end a region whose tiles are all skipped; False when another worker has to do it.

        ``job`` is the row of its image, which the caller completes. A region that this call does not end has a message,
        or gets it.
        """
        with bind_job(job_id=region.job_id, image_id=region.image_id, region_id=region.region_id):
            try:
                claim = self._claim(region.image_id, region.region_id)
                if not isinstance(claim, RegionClaim):
                    return claim is None
                work = self._new_processor(region_request_of(job, claim.item), _nothing)

                def end() -> Ended | Deferred:
                    if work.tiles(job, claim.item):
                        # Another worker planned the region first, with another version of a file that a rule names.
                        return Deferred("the region has tiles that are not skipped", 0.0)
                    return self._end(claim, work, job, [], {})

                return isinstance(self._released_unless_ended(claim, end), Ended)
            except TableBusyError:
                return False

    def _process(self, name: RegionName, receive_count: int, on_cut: Callable[[], None]) -> Ended | Deferred:
        job = self.job_table.find(name.image_id)
        if job is None:
            logger.info("message.outlived_its_job")
            return Ended(None)
        if job.is_terminal:
            return Ended(job)
        # The row of the image names the endpoint, and the claim returns the row of the region.
        request = job.image_request()
        lane, is_throttled = lane_of(request), self._is_throttled(request)
        if refusal := self._wait_for_room(request):
            return refusal
        with ExitStack() as held:
            keep_slot = held.enter_context(self._slot_at_endpoint(request, receive_count))
            if isinstance(keep_slot, Deferred):
                return keep_slot
            # Taken before the claim, because the lease of a claim would run while these tables are slow.
            capacity, limit = partial(self._endpoint_calls, request), self._endpoints.call_limit_for(lane)
            refresh_share = held.enter_context(self._shares.holding(lane.name, capacity, limit))

            def is_suspect(claim: RegionClaim | Deferred | None) -> bool:
                # It used more than half of the attempts after which it is abandoned.
                attempts = claim.item.stalled_attempts or 0 if isinstance(claim, RegionClaim) else 0
                return attempts > max(1, self.config.max_region_attempts // 2)

            claim = held.enter_context(
                self._isolation.entered(partial(self._claim, name.image_id, name.region_id), is_suspect)
            )
            if isinstance(claim, Deferred):
                return claim
            if claim is None:
                return Ended(self.job_table.find(name.image_id))

            def keep() -> bool:
                refresh_share()
                return keep_slot()

            return self._released_unless_ended(
                claim, lambda: self._process_claimed(claim, job, keep, _nothing if is_throttled else on_cut)
            )

    def _process_claimed(
        self, claim: RegionClaim, job: JobItem, keep_slot: Callable[[], bool], on_cut: Callable[[], None]
    ) -> Ended | Deferred:
        if (claim.item.generation or 0) == (job.generation or 0):
            job = self.job_table.with_request(job)
        else:
            # The image began again since its row was read: the deadline of the region follows from the new row.
            job = self.job_table.get_image_request(claim.item.image_id)
            if job.is_terminal:
                return Ended(job)
        work = self._new_processor(region_request_of(job, claim.item), on_cut)
        attempts, now_s = claim.item.stalled_attempts or 0, self._now()
        if is_poison(attempts, claim.item.stall_first_time, now_s, self.config.max_region_attempts, POISON_REGION_S):
            return self._abandon(claim, work, job, f"no progress in {attempts} attempts")
        item = claim.item
        run = RegionProgress(
            now=self._now,
            log_fields={"job_id": item.job_id or "", "image_id": item.image_id, "region_id": item.region_id},
            # On the first attempt too: the time without progress after which a region is abandoned begins there.
            on_progress=lambda: self.region_request_table.record_progress(claim),
            stopping=self._stopping,
            # The other half of the shutdown budget is reserved for releasing regions.
            stop_grace_s=self.config.shutdown_budget_s / 2,
            deadline=job.running_since + self.config.job_deadline_s,
        )
        run.on_tick = self._progress_publisher(job, run)
        if run.is_late():
            return self._abandon(claim, work, job, late_reason(self.config.job_deadline_s))
        result = self._run_under_lease(claim, work, job, run, keep_slot)
        if not isinstance(result, tuple):
            return result
        tiles, outcomes = result
        if len(outcomes) == len(tiles):
            return self._end(claim, work, job, tiles, outcomes)
        if run.is_late():
            return self._abandon(claim, work, job, late_reason(self.config.job_deadline_s))
        return self._defer_or_abandon(claim, work, job, run)

    def _run_under_lease(
        self,
        claim: RegionClaim,
        work: RegionProcessor,
        job: JobItem,
        run: RegionProgress,
        keep_slot: Callable[[], bool],
    ) -> tuple[list[Tile], dict[int, TileState]] | Ended | Deferred:
        """Return the tiles of the region and their outcomes, or how a region ends that cannot be processed."""
        lost = LeaseLostError(f"{claim.item.region_id} was taken over, or its job was ended")
        lease = self._lease(claim, run, keep_slot)
        try:
            with self._leases.keep(lease):
                result = work.run(run, job, claim.item)
        except (LeaseLostError, TableBusyError):
            raise
        except Exception as err:  # A region has to end, whatever its image or this code does
            if lease.lost.is_set():
                raise lost from err
            return (
                Deferred("the worker stops", 0.0) if self._stopping.is_set() else self._give_up(claim, work, job, err)
            )
        if lease.lost.is_set() and not isinstance(result, Deferred):
            raise lost
        return result

    def _released_unless_ended(self, claim: RegionClaim, work: Callable[[], Ended | Deferred]) -> Ended | Deferred:
        """Release the claim after any failure of ``work``, so that the attempt does not count as a crash."""
        try:
            outcome = work()
        except LeaseLostError:
            raise
        except TableBusyError as err:
            wait_s = region_wait_s(claim.item.backoffs or 0, self._rng)
            with suppress(TableBusyError):  # the lease ends by itself
                self.region_request_table.release(claim, self._now() + wait_s, is_backoff=True)
            return Deferred(f"a table is busy: {err}", wait_s, is_backoff=True)
        except BaseException:
            self.region_request_table.release(claim)
            raise
        if isinstance(outcome, Deferred):
            not_before = self._now() + outcome.retry_after_s if outcome.retry_after_s else 0.0
            self.region_request_table.release(claim, not_before, outcome.is_backoff)
        return outcome

    # Claim ----------------------------------------------------------------------------------------------------------

    def _wait_for_room(self, request: ImageRequest) -> Deferred | None:
        """Wait a few seconds for room at the request's endpoint; return Deferred when there is none.

        A fast endpoint has room soon. For a slow endpoint the region goes to a worker with less load: claimed here, it
        would only wait in a queue.
        """
        lane = lane_of(request)
        limit = self._endpoints.call_limit_for(lane)
        for _ in range(_ROOM_LOOKS):
            if not limit.is_full or self._stopping.is_set():
                break
            self._stopping.wait(_ROOM_PAUSE_S)
        if limit.is_full:
            return Deferred("tiles for its endpoint wait in this worker", self._rng.uniform(*_NO_ROOM_S))
        if not self._shares.has_room(lane.name, self._endpoint_calls(request)):
            return Deferred("other workers use the whole capacity of its endpoint", self._rng.uniform(*_NO_ROOM_S))
        return None

    def _claim(self, image_id: str, region_id: str, is_to_abandon: bool = False) -> RegionClaim | Deferred | None:
        """Return our claim, None when the region has ended, or Deferred while another worker holds it."""
        claim = self.region_request_table.claim(
            image_id, region_id, self._owner, self.config.region_lease_s, is_to_abandon
        )
        if isinstance(claim, RegionHeld):
            jitter_s = self._rng.uniform(0, 2)
            return Deferred(f"{region_id} has to wait", claim.retry_after_s + jitter_s)
        return None if isinstance(claim, RegionEnded) else claim

    def _progress_publisher(self, job: JobItem, run: RegionProgress) -> Callable[[], None]:
        """Return a function that publishes the progress of an image with one region, at most once per interval.

        Images with several regions publish after each region, because a worker does not know the tiles of the others.
        """
        if job.region_count != 1:
            return _nothing
        next_at, last_count = self._now() + _PROGRESS_EVERY_S, 0

        def publish_if_due() -> None:
            nonlocal next_at, last_count
            now_s = self._now()
            if now_s < next_at:
                return
            next_at = now_s + _PROGRESS_EVERY_S
            states = run.states()
            if len(states) > last_count:
                last_count, failed = len(states), states.count(TileState.FAILED)
                self._completion.publish_progress(
                    dataclasses.replace(job, tile_success=last_count - failed, tile_error=failed)
                )
                run.record_life()

        return publish_if_due

    def _lease(self, claim: RegionClaim, run: RegionProgress, keep_slot: Callable[[], bool]) -> Lease:
        regions, jobs = self._hurried(self.region_request_table), self._hurried(self.job_table)

        def renew() -> bool:
            # The lease is not renewed for a job that was cancelled, so that the region stops.
            states = run.states()
            failed = states.count(TileState.FAILED)
            is_ours = regions.renew(claim, self.config.region_lease_s, len(states) - failed, failed)
            return is_ours and keep_slot() and self._is_open(jobs, claim.item.image_id)

        return Lease(
            name=claim.item.region_id,
            renew=renew,
            on_lost=run.lose,
            last_progress=lambda: run.last_life,
        )

    def _hurried(self, table: T) -> T:
        return table.through(self._hurried_dynamodb)

    @staticmethod
    def _is_open(jobs: JobTable, image_id: str) -> bool:
        job = jobs.find(image_id)
        return job is not None and not job.is_terminal

    @contextmanager
    def _slot_at_endpoint(self, request: ImageRequest, receive_count: int) -> Iterator[Callable[[], bool] | Deferred]:
        """Hold a slot of the endpoint for a region, when workers throttle themselves; yield a function that renews it.

        Yield ``Deferred`` when all slots are taken. The wait doubles with each receive of the message, so that many
        such regions cost few calls.
        """
        table, lease_s = self.endpoint_statistics_table, self.config.region_lease_s
        endpoint = dataclasses.replace(lane_of(request), part="").name
        if table is None or not self._is_throttled(request):
            yield lambda: True
            return

        def look_up_max_regions() -> int | None:
            try:
                return self.endpoint_utils.calculate_max_regions(request.model_name, request.model_invocation_role)
            except (ClientError, BotoCoreError) as err:
                # The endpoint is missing, or the role may not describe it: the calls of the tiles decide.
                logger.warning("endpoint.capacity_unknown", endpoint=request.model_name, error=type(err).__name__)
                return None

        slot = None
        if not table.is_full(endpoint):
            max_regions = table.max_regions(endpoint, look_up_max_regions)
            if max_regions is None:
                yield lambda: True
                return
            # A serverless endpoint has no instances to count, so 0 regions become 1: else they would wait for ever.
            slot = table.take_slot(endpoint, self._owner, max(1, max_regions), lease_s)
        if slot is None:
            self._metrics.record("RegionProcessing", "Throttles", 1, "Count", ModelName=request.model_name)
            doublings, base_s = min(receive_count - 1, _SLOT_DOUBLINGS), self.config.throttling_retry_timeout
            wait_s = backoff_s(doublings, base_s, MAX_VISIBILITY_S, self._rng, HALF_JITTER)
            yield Deferred(f"all region slots of {request.model_name} are taken", wait_s)
            return
        try:
            hurried = self._hurried(table)
            yield lambda: hurried.renew_slot(slot, lease_s)
        finally:
            table.leave_slot(slot)

    def _is_throttled(self, request: ImageRequest) -> bool:
        return self.config.self_throttling and request.model_invoke_mode == ModelInvokeMode.SM_ENDPOINT

    # Ends -----------------------------------------------------------------------------------------------------------

    def _defer_or_abandon(
        self, claim: RegionClaim, work: RegionProcessor, job: JobItem, run: RegionProgress
    ) -> Ended | Deferred:
        """Decide when an unfinished region is tried again, or abandon it."""
        reason, rng, backoffs = run.stopped_by, self._rng, claim.item.backoffs or 0
        if isinstance(reason, ModelJobError) and backoffs >= _MAX_ENDPOINT_TRIES:
            return self._abandon(claim, work, job, _endpoint_trouble(job, reason))
        if self._stopping.is_set():
            return Deferred("the worker stops", 0.0)
        if isinstance(reason, ImageError):
            return self._give_up(claim, work, job, reason)
        at_least_s = reason.retry_after_s or 0.0 if isinstance(reason, ModelBackPressureError) else 0.0
        if isinstance(reason, MemoryError | TableBusyError):
            lack = "memory for the region" if isinstance(reason, MemoryError) else f"a table that responds: {reason}"
            return Deferred(f"the worker lacks {lack}", region_wait_s(backoffs, rng), is_backoff=True)
        if run.outcomes:
            return Deferred("the region was interrupted", at_least_s)
        return Deferred(_endpoint_trouble(job, reason), region_wait_s(backoffs, rng, at_least_s), is_backoff=True)

    def _give_up(self, claim: RegionClaim, work: RegionProcessor, job: JobItem, err: Exception) -> Ended | Deferred:
        """Defer a region that cannot be processed, or abandon it after several tries.

        An image opened for the plan, so it is tried again. An error that can be retried is deferred without limit, and
        so is a lack of memory. Features that cannot be located are never retried. An error that nothing foresees is
        logged with its stack and tried as often as an endpoint, because AWS may have raised it.
        """
        backoffs, reason = claim.item.backoffs or 0, str(err)
        if isinstance(err, ImageError | FeatureError):
            may_try = err.can_retry or (isinstance(err, ImageError) and backoffs < _MAX_OPEN_TRIES)
        else:
            logger.exception("region.failed_unexpectedly", error_type=type(err).__name__)
            may_try = isinstance(err, MemoryError) or backoffs < _MAX_ENDPOINT_TRIES
            reason = f"{type(err).__name__}: {err}"
        if may_try:
            return Deferred(reason, region_wait_s(backoffs, self._rng), is_backoff=True)
        return self._abandon(claim, work, job, reason)

    def _abandon(self, claim: RegionClaim, work: RegionProcessor, job: JobItem, reason: str) -> Ended:
        """Fail every tile without an outcome, then end the region; a later write of such a tile has no effect."""
        logger.warning("region.abandoned", reason=reason)
        reason = safe_text(reason, MAX_REASON_CHARACTERS)
        try:
            tiles = work.tiles(job, claim.item)
        except ImageError:
            # The image does not open, so its region of interest cannot be applied: every tile counts.
            tiles = work.tiles(dataclasses.replace(job, roi_wkt=None), claim.item)
        outcomes = work.committed(tiles, claim.item)
        for tile in tiles:
            if tile.index not in outcomes:
                key = TileKey(claim.item.image_id, claim.item.region_id, tile.index)
                failed = TileOutcome(TileState.FAILED, error_code=ABANDONED, error_reason=reason)
                generation = claim.item.generation or 0
                outcomes[tile.index] = work.features.commit_tile(key, tile.bounds, failed, generation)
        return self._end(claim, work, job, tiles, outcomes, reason)

    def _end(
        self,
        claim: RegionClaim,
        work: RegionProcessor,
        job: JobItem,
        tiles: Sequence[Tile],
        outcomes: dict[int, TileState],
        message: str | None = None,
    ) -> Ended:
        """R3, then publish the status; a failure to publish changes no count."""
        succeeded = [tile.bounds for tile in tiles if outcomes[tile.index] is TileState.SUCCEEDED]
        failed = [tile.bounds for tile in tiles if outcomes[tile.index] is not TileState.SUCCEEDED]
        status = region_status(len(succeeded), len(failed))
        if failed and not message:
            indexes = [index for index, state in outcomes.items() if state is not TileState.SUCCEEDED]
            problems = work.features.failures_of(claim.item.image_id, claim.item.region_id, indexes)
            message = "; ".join(problems.reasons(len(tiles), len(failed)))
        ended = self.region_request_table.end_region(self.job_table, claim, status, succeeded, failed, message)
        if ended is not None:
            tile_count, failed_count, reason = len(tiles), len(failed), message or None
            logger.info(
                "region.finished", status=str(status), tiles=tile_count, failed_tiles=failed_count, reason=reason
            )
            self._publish(ended)
            self._record(claim, job, len(failed))
        return Ended(self.job_table.find(claim.item.image_id))

    def _publish(self, item: RegionRequestItem) -> None:
        try:
            status = self.region_status_monitor.get_status(item)
            self.region_status_monitor.process_event(item, status, item.message or "Completed region processing")
        except StatusError as err:
            logger.warning("status.not_published", reason=str(err))

    def _record(self, claim: RegionClaim, job: JobItem, failed_tiles: int) -> None:
        # The claim was the first write of this attempt, so it holds the start time.
        duration_s = self._now() - (claim.item.last_updated_time or 0) / 1000
        metrics, model, image_format = self._metrics, str(job.model_name), str(job.image_format)
        metrics.record("RegionProcessing", "Duration", duration_s, "Seconds", ModelName=model, InputFormat=image_format)
        metrics.record("RegionProcessing", "Invocations", 1, "Count", ModelName=model, InputFormat=image_format)
        if failed_tiles:
            metrics.record("RegionProcessing", "Errors", 1, "Count", ModelName=model, InputFormat=image_format)
        metrics.flush()


def _endpoint_trouble(job: JobItem, reason: Exception | None) -> str:
    """Return the reason why a region waits for its endpoint."""
    code = f"{reason.code}: " if isinstance(reason, ModelJobError) else ""
    return f"{code}the endpoint {job.model_name}: {reason or 'no tile was done'}"


def region_request_of(job: JobItem, region: RegionRequestItem) -> RegionRequest:
    """Return the request of a region, made from its row and its image's row."""
    return RegionRequest(
        image_id=job.image_id,
        job_id=job.job_id,
        image_url=job.image_url,
        image_read_role=job.image_read_role or "",
        model_name=job.model_name,
        model_invoke_mode=job.model_invoke_mode,
        model_endpoint_parameters=job.endpoint_parameters,
        model_invocation_role=job.model_invocation_role or "",
        tile_size=region.tile_size,
        tile_overlap=region.tile_overlap,
        tile_format=region.tile_format,
        tile_compression=region.tile_compression,
        region_bounds=region.region_bounds,
        region_id=region.region_id,
        image_extension=job.image_extension or "",
        model_protocol=job.protocol_keys,
        image_item=job.image_item,
        requester_pays=bool(job.requester_pays),
    )
