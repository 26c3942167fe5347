"""Completes an image, once: merges its features, delivers them, and publishes its terminal status."""

import dataclasses
import json
import random
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import closing, nullcontext, suppress
from functools import partial
from typing import Any

import structlog

from aws.osml.model_runner.common.channel import Threads, spread
from aws.osml.model_runner.common.job_rules import (
    POISON_IMAGE_S,
    aggregation_wait_s,
    delivery_wait_s,
    image_status,
    is_passing,
    is_poison,
    late_reason,
)
from aws.osml.model_runner.common.memory_budget import MemoryBudget
from aws.osml.model_runner.common.typing import ImageDimensions, ImageRegion, RequestStatus
from aws.osml.model_runner.config import ServiceConfig
from aws.osml.model_runner.database.job_table import JobItem, JobTable
from aws.osml.model_runner.exceptions import (
    AggregateFeaturesException,
    AggregationDeferredError,
    AggregationTooLargeError,
    ConservationError,
    LeaseLostError,
    RetryableJobException,
    SinkError,
    SinkPermanentError,
    StatusError,
)
from aws.osml.model_runner.features.selection import FeatureSelector
from aws.osml.model_runner.sink.delivery import Delivery, FeatureBatch
from aws.osml.model_runner.sink.sink import Sink
from aws.osml.model_runner.status.image_status_monitor import ImageStatusMonitor
from aws.osml.model_runner.telemetry.metrics import MetricsRecorder
from aws.osml.model_runner.telemetry.redaction import safe_text
from aws.osml.model_runner.tiling.strategy import TilingStrategy

from .coverage import ImageCoverage, TileStates
from .leases import Lease, LeaseKeeper
from .merging import MergedImage, distillation_of
from .progress import publish_progress
from .tile_reader import ImageTiles, NewFeatureTable

logger = structlog.get_logger(__name__)

Feature = dict[str, Any]

# Wait before an image is finished that lacked memory here.
_DEFERRAL_S = (5.0, 15.0)
# Number of batches that the merge may be ahead of each output.
_BATCHES_ON_THEIR_WAY = 4


@dataclasses.dataclass
class _Claim:
    """An image that this worker finishes, under the fence in its row; ``progressed_at`` is a Unix time in seconds."""

    job: JobItem
    progressed_at: float
    lost: threading.Event = dataclasses.field(default_factory=threading.Event)

    @property
    def fence(self) -> int:
        return self.job.agg_fence or 0

    def check(self, is_ours: bool) -> None:
        """Raise LeaseLostError unless the claim is still ours."""
        if not is_ours or self.lost.is_set():
            raise LeaseLostError("another worker finishes the image")


class ImageCompletion:
    """Finishes images whose regions have all been counted. Any worker may try; the claim admits one at a time.

    ``dead_letter`` is called with the row of an image that could not be planned; the row holds the message.
    """

    def __init__(
        self,
        job_table: JobTable,
        close_job: Callable[[JobItem], None],
        status_monitor: ImageStatusMonitor,
        strategy: TilingStrategy,
        dead_letter: Callable[[JobItem], None],
        *,
        config: ServiceConfig,
        owner: str,
        leases: LeaseKeeper,
        metrics: MetricsRecorder,
        memory: MemoryBudget,
        threads: Threads,
        make_sinks: Callable[[list[dict[str, Any]]], list[Sink]],
        coverage: ImageCoverage,
        new_feature_table: NewFeatureTable,
        hurried_dynamodb: Any,
        stopping: threading.Event,
        now: Callable[[], float],
        rng: random.Random,
        note_progress: Callable[[], None],
    ) -> None:
        self._job_table = job_table
        self._close_job = close_job
        self._status_monitor = status_monitor
        self._strategy = strategy
        self._dead_letter = dead_letter
        self._config = config
        self._owner = owner
        self._leases = leases
        self._metrics = metrics
        self.memory = memory
        self._threads = threads
        self._make_sinks = make_sinks
        self._coverage = coverage
        self._new_feature_table = new_feature_table
        self._hurried_dynamodb = hurried_dynamodb
        self._stopping = stopping
        self._now = now
        self._rng = rng
        self._note_progress = note_progress

    def region_ended(self, job: JobItem) -> None:
        """Finish an image if all its regions have ended, else publish its progress.

        If the image cannot be finished now, the sweeper finishes it later; the region itself has ended.
        """
        if JobTable.is_image_request_complete(job):
            with suppress(AggregateFeaturesException):
                self.finish(job.image_id)
        elif not job.is_terminal:
            self.publish_progress(job)

    def publish_progress(self, job: JobItem) -> None:
        """Publish the progress of an image."""
        publish_progress(self._status_monitor, job)

    def finish(self, image_id: str) -> None:
        """Finish an image if every region was counted and no other worker finishes it; else do nothing.

        Raises:
            AggregateFeaturesException: it cannot be finished now; the sweeper tries again.
            LeaseLostError: another worker took it over.
        """
        job = self._job_table.find(image_id)
        if job is None or job.region_count is None:
            return
        if job.is_terminal:
            self.close(job)
            return
        if not JobTable.is_image_request_complete(job):
            return
        wait_s = aggregation_wait_s(job.agg_stalled or 0)
        claimed = self._job_table.claim_aggregation(job, self._owner, self._lease_s, wait_s)
        if claimed is not None:
            self._finish_claimed(claimed)

    def close(self, job: JobItem) -> bool:
        """G4, G5: publish the status in the outbox, clear the outbox, and close the job, in this order.

        Return False when the status could not be published; the sweeper tries again.
        """
        if job.status_outbox:
            # A row that lacks fields of a status message will not get them later, so defaults replace them.
            shown = dataclasses.replace(
                job,
                job_id=job.job_id or job.image_id.partition(":")[0],
                processing_duration=job.processing_duration or 0,
            )
            status = RequestStatus(job.status_outbox.get("status") or str(job.image_status))
            try:
                self._status_monitor.process_event(shown, status, job.status_outbox.get("message") or job.message or "")
            except StatusError as err:
                logger.warning("status.not_published", status=str(status), reason=str(err))
                return False
            if job.status_outbox.get("is_dead_letter"):
                # The message is stored with the request, in a separate row.
                self._dead_letter(self._job_table.find_whole(job.image_id) or job)
            self._job_table.clear_outbox(job.image_id, job.generation or 0)
        self._close_job(job)
        return True

    def end(self, job: JobItem, status: RequestStatus, message: str) -> JobItem | None:
        """G3 and what follows: write the terminal status and close. None after the claim was lost."""
        if job.tile_error and self._is_late(job) and "JOB_DEADLINE_S" not in message:
            message = f"{message}; {late_reason(self._config.job_deadline_s)}"
        ended = self._job_table.end_aggregation(job.image_id, job.agg_fence or 0, status, message)
        if ended is None:
            return None
        logger.info("image.finished", status=str(status), reason=message, duration_s=ended.processing_duration)
        self._record(ended, status)
        self.close(ended)
        return ended

    def merged(self, job: JobItem, features: Sequence[Feature]) -> list[Feature]:
        """Return the features without the duplicates that overlapping tiles made.

        For callers that hold the features in memory; the features that a job delivers go through ``MergedImage``.
        """
        options = distillation_of(job)
        if options is None:
            return list(features)
        return self._strategy.cleanup_duplicate_features(
            ImageRegion.of(job.processing_bounds or [[0, 0], [job.width or 0, job.height or 0]]),
            ImageDimensions(*(job.region_size or self._config.region_size)),
            job.tile_dimensions,
            job.overlap_dimensions,
            list(features),
            FeatureSelector(options),
        )

    # Aggregation ----------------------------------------------------------------------------------------------------

    def _finish_claimed(self, job: JobItem) -> None:
        if self._is_given_up(job):
            self.end(job, RequestStatus.FAILED, _given_up_because(job))
            return
        claim = _Claim(job, progressed_at=self._now())
        try:
            with self._leases.keep(self._lease(claim)):
                self._aggregate(claim)
        except LeaseLostError:
            raise
        except AggregationDeferredError as err:
            wait_s = 0.0 if self._stopping.is_set() else self._rng.uniform(*_DEFERRAL_S)
            logger.info("image.deferred", reason=str(err), wait_s=wait_s)
            self._job_table.release_aggregation(job.image_id, claim.fence, wait_s, job.agg_backoffs or 0)
        except BaseException as err:
            self._release(claim, err)
            raise

    def _is_given_up(self, job: JobItem) -> bool:
        """Return True after too many attempts; before the deadline they must also span an hour or more."""
        stalled, config = job.agg_stalled or 0, self._config
        if self._is_late(job):
            return stalled > config.max_aggregation_attempts
        now_s = self._now()
        return is_poison(stalled, job.agg_first_time, now_s, config.max_aggregation_attempts, POISON_IMAGE_S)

    def _release(self, claim: _Claim, err: BaseException) -> None:
        """Release a claim after a failed attempt. The attempt counts, unless its error is unrelated to the image."""
        job, is_stopping = claim.job, self._stopping.is_set()
        error = f"{type(err).__name__}: {err}"
        is_counted = self._is_counted(job, err)
        logger.warning("image.not_finished", error=type(err).__name__, reason=str(err), is_counted=is_counted)
        if isinstance(err, ConservationError):
            logger.critical("image.not_conserved")
        if is_counted:
            wait_s = aggregation_wait_s(job.agg_stalled or 1)
            self._job_table.fail_aggregation(job.image_id, claim.fence, wait_s, safe_text(error))
            return
        backoffs = job.agg_backoffs or 0
        wait_s = 0.0 if is_stopping else delivery_wait_s(backoffs, self._rng)
        self._job_table.release_aggregation(job.image_id, claim.fence, wait_s, backoffs + 1)

    def _is_counted(self, job: JobItem, err: BaseException) -> bool:
        """Return False when the worker stops, and for passing errors before the job's deadline."""
        if not isinstance(err, Exception) or self._stopping.is_set():
            return False
        return not isinstance(err, RetryableJobException) and (self._is_late(job) or not is_passing(err))

    def _lease(self, claim: _Claim) -> Lease:
        image_id, jobs = claim.job.image_id, self._job_table.through(self._hurried_dynamodb)
        return Lease(
            name=f"{image_id} aggregation",
            renew=lambda: jobs.renew_aggregation(image_id, claim.fence, self._lease_s),
            on_lost=claim.lost.set,
            last_progress=lambda: claim.progressed_at,
        )

    def _aggregate(self, claim: _Claim) -> None:
        job, errors = claim.job, dict(claim.job.sink_errors or {})
        # Every worker resumes an output under one name: its index in the request and its kind.
        sinks = {
            f"{index}:{sink.name()}": sink
            for index, sink in enumerate(self._make_sinks(json.loads(job.outputs or "[]")))
        }
        ended = {*(job.sinks_done or ()), *errors}
        pending = {name: sink for name, sink in sinks.items() if name not in ended}
        if pending or not sinks:
            errors |= self._deliver(claim, pending, errors)
        status = image_status(job.tile_success or 0, job.tile_error or 0, len(sinks), len(errors))
        self.end(claim.job, status, end_message(claim.job, status, errors.values()))

    def _deliver(self, claim: _Claim, pending: Mapping[str, Sink], errors_before: Mapping[str, str]) -> dict[str, str]:
        """Write outputs, all from one read of the tiles; return the permanent errors by output."""
        job = claim.job
        note = self._sign_of_life(claim)
        table = self._new_feature_table(job.tile_dimensions, job.overlap_dimensions, note)
        positions = dict(job.sink_positions or {})
        has_coverage = any(sink.has_coverage for sink in pending.values())
        with (
            self.memory.share(note) as memory,
            self._metrics.timed("FeatureDissemination"),
            closing(TileStates()) if has_coverage else nullcontext() as states,
        ):
            image = MergedImage(
                *(job, ImageTiles.of(job, self._strategy, table), distillation_of(job), table.read_tiles, memory),
                *(self._threads, note, self._metrics),
                outputs=len(pending),
                states=states,
            )
            writers = [partial(self._write, claim, image, name, sink, positions) for name, sink in pending.items()]
            try:
                failures = spread(image, writers, self._threads, _BATCHES_ON_THEIR_WAY)
                claim.job = dataclasses.replace(job, **_counts_of(image))
            except AggregationTooLargeError as err:
                # No worker is larger: each output fails with the name of the setting.
                failures = [SinkPermanentError(str(err)) for _ in pending]
        logger.info("image.aggregated", features=image.kept, stored=image.stored)
        if image.unmerged:
            logger.warning("features.unmerged", features=image.unmerged)
        return self._settled(claim, dict(zip(pending, failures, strict=True)), errors_before)

    def _write(
        self,
        claim: _Claim,
        image: MergedImage,
        name: str,
        sink: Sink,
        positions: dict[str, int],
        batches: Iterable[FeatureBatch],
    ) -> None:
        """Write an output, in a thread of its own when there are several, and record that it is complete."""
        job, note = claim.job, self._sign_of_life(claim)

        def on_progress(position: int) -> None:
            note()
            positions[name] = position
            # Threads record positions at the same time, so one may lag by a batch; a resumed delivery sends it again.
            claim.check(self._job_table.record_sink_progress(job.image_id, claim.fence, dict(positions)))

        coverage = None
        if image.states is not None:
            may_wait = not self._is_late(job)
            coverage = partial(self._coverage.batches, job, image.states, note, may_wait=may_wait)
        delivery = Delivery(
            *(str(job.job_id), job.result_name or "", batches, positions.get(name, 0)),
            note=note,
            members=image.members,
            coverage=coverage,
        )
        sink.deliver(delivery, on_progress)
        claim.check(self._job_table.record_sink_done(job.image_id, claim.fence, name, _counts_of(image)))

    def _settled(
        self, claim: _Claim, failures: Mapping[str, BaseException | None], errors_before: Mapping[str, str]
    ) -> dict[str, str]:
        """Record outputs with permanent errors and return these errors; raise any other failure."""
        errors: dict[str, str] = {}
        passing: list[BaseException] = []
        for name, failure in failures.items():
            if isinstance(failure, SinkPermanentError) or (isinstance(failure, SinkError) and self._is_late(claim.job)):
                logger.error("sink.failed", sink=name, reason=str(failure))
                errors[name] = str(failure)
            elif isinstance(failure, SinkError):
                passing.append(AggregateFeaturesException(f"{name}: {failure}"))
            elif failure is not None:
                passing.append(failure)
        if errors:
            all_errors = {**errors_before, **errors}
            claim.check(self._job_table.record_sink_failed(claim.job.image_id, claim.fence, all_errors))
        # A lost claim or a stopping process takes precedence over an output that is not available.
        passing.sort(key=lambda failure: not isinstance(failure, RetryableJobException))
        for failure in passing:
            raise failure
        return errors

    def _sign_of_life(self, claim: _Claim) -> Callable[[], None]:
        """Return a function that records progress, and raises when the work has to stop."""

        def note() -> None:
            claim.progressed_at = self._now()
            self._note_progress()
            claim.check(is_ours=True)
            if self._stopping.is_set():
                raise AggregationDeferredError("the process stops")

        return note

    @property
    def _lease_s(self) -> float:
        return self._config.aggregation_lease_s

    def _is_late(self, job: JobItem) -> bool:
        return self._now() - job.running_since > self._config.job_deadline_s

    def _record(self, job: JobItem, status: RequestStatus) -> None:
        metrics = self._metrics
        dimensions = {"ModelName": str(job.model_name), "InputFormat": str(job.image_format)}
        metrics.record("ImageProcessing", "Duration", job.processing_duration or 0, "Seconds", **dimensions)
        metrics.record("ImageProcessing", "Invocations", 1, "Count", **dimensions)
        if job.tiles_skipped:
            metrics.record("ImageProcessing", "TilesSkipped", job.tiles_skipped, "Count", **dimensions)
        if status is not RequestStatus.SUCCESS:
            metrics.record("ImageProcessing", "Errors", 1, "Count", **dimensions)
        metrics.flush()


def _counts_of(image: MergedImage) -> dict[str, Any]:
    """Return the counts of a complete merge for the image's row."""
    tally = image.tally
    return {
        "tile_errors": dict(tally.failed),
        **({"first_failure": tally.first_failure} if tally.first_failure else {}),
        "features_dropped": dict(tally.dropped),
        "features_stored": image.stored,
        "features_delivered": image.kept,
        "features_unmerged": image.unmerged,
    }


def end_message(job: JobItem, status: RequestStatus, output_errors: Iterable[str] = ()) -> str:
    """Return the reasons of an image's end: failed tiles, dropped features, failed outputs, a bad georeference."""
    tiles, failed = (job.tile_success or 0) + (job.tile_error or 0), job.tile_error or 0
    reasons = [*job.problems.reasons(tiles, failed), *dict.fromkeys(output_errors)]
    if job.features_unmerged:
        reasons.append(f"{job.features_unmerged} features of crowded tiles were delivered without a merge")
    if warning := (job.accuracy or {}).get("warning"):
        reasons.append(warning)
    if status is RequestStatus.SUCCESS or not reasons:
        reasons = ["Completed image processing", *reasons]
    if job.tiles_skipped:
        reasons.append(f"{job.tiles_skipped} tiles were skipped")
    if job.image_count:
        reasons.append(f"the file holds {job.image_count} images (segments or pages), the first was processed")
    return safe_text("; ".join(reasons))


def _given_up_because(job: JobItem) -> str:
    if job.agg_error:
        # The current claim made no attempt, so it is not counted.
        return f"the image could not be finished in {(job.agg_stalled or 0) - 1} tries: {job.agg_error}"
    return f"aggregation crashed {job.agg_stalled} workers"
