"""Sweeper: continues or ends the open jobs that no worker processes, so that no job waits for an operator."""

import dataclasses
import enum
import time
from collections.abc import Callable

import structlog
from botocore.exceptions import BotoCoreError, ClientError

from aws.osml.model_runner.api.region_request import RegionName
from aws.osml.model_runner.common.job_rules import (
    POISON_IMAGE_S,
    SILENT_LEASES,
    is_late,
    is_passing,
    is_poison,
    late_reason,
    silence_s,
)
from aws.osml.model_runner.config import ServiceConfig
from aws.osml.model_runner.database.job_table import JobItem, JobTable
from aws.osml.model_runner.database.outstanding_jobs_table import OpenJob, OutstandingJobsTable, UnreadableJob
from aws.osml.model_runner.database.region_request_table import RegionRequestItem, RegionRequestTable
from aws.osml.model_runner.exceptions import ConservationError, IsImageCompleteException, ModelRunnerError
from aws.osml.model_runner.image_request_handler import ImageRequestHandler
from aws.osml.model_runner.jobs.region import Deferred
from aws.osml.model_runner.queue.request_queue import RequestQueue
from aws.osml.model_runner.region_request_handler import RegionRequestHandler
from aws.osml.model_runner.telemetry.logs import bind_job
from aws.osml.model_runner.telemetry.metrics import COUNT, MetricsRecorder
from aws.osml.model_runner.telemetry.redaction import safe_text

logger = structlog.get_logger(__name__)

_MAX_PLANNING_ATTEMPTS = 5


class NextStep(enum.Enum):
    """The step that an open job needs."""

    NOTHING = "nothing"
    FORGET = "forget"  # its row has expired
    CLOSE = "close"  # it has ended, but a worker died before it published the status
    GIVE_UP_PLANNING = "give up planning"
    FINISH = "finish"  # every region was counted, but a worker died before it finished the image
    LOOK_AT_REGIONS = "look at regions"
    SEAL_REGIONS = "seal regions"  # past its deadline


def next_step(job: OpenJob, item: JobItem | None, now_s: float, config: ServiceConfig) -> NextStep:
    """Return the step that an open job needs, from its open row and its image's row. Pure."""
    if item is None:
        return NextStep.FORGET
    if item.is_terminal:
        return NextStep.CLOSE
    if job.planned_time is None:
        is_planned_now = job.num_attempts and job.last_attempt + config.region_lease_s >= now_s
        began_s = _running_since(job)
        is_broken = is_poison(job.num_attempts, began_s, now_s, _MAX_PLANNING_ATTEMPTS, POISON_IMAGE_S)
        if not is_planned_now and (is_broken or _is_late(job, now_s, config)):
            return NextStep.GIVE_UP_PLANNING
        # The worker that holds the scheduler lock starts the image, for a second time if necessary.
        return NextStep.NOTHING
    if JobTable.is_image_request_complete(item):
        return NextStep.FINISH
    if _is_late(job, now_s, config):
        return NextStep.SEAL_REGIONS
    is_silent = now_s - (job.swept_time or job.planned_time) >= SILENT_LEASES * config.region_lease_s
    return NextStep.LOOK_AT_REGIONS if is_silent else NextStep.NOTHING


def _running_since(job: OpenJob | UnreadableJob) -> float | None:
    """Return the Unix time at which the first plan of a job was begun; None while the job waits."""
    is_begun = isinstance(job, OpenJob) and (job.num_attempts or job.planned_time is not None)
    # Rows of earlier versions hold only the time of acceptance.
    return job.request_time if job.first_attempt is None and is_begun else job.first_attempt


def _is_late(job: OpenJob | UnreadableJob, now_s: float, config: ServiceConfig) -> bool:
    limits = config.job_wait_limit_s, config.job_deadline_s
    return is_late(job.request_time, _running_since(job), now_s, *limits)


class JobSweeper:
    """Takes the next step of each open job. Workers claim the sweep now and then, and one at a time sweeps."""

    def __init__(
        self,
        outstanding_jobs: OutstandingJobsTable,
        job_table: JobTable,
        region_table: RegionRequestTable,
        region_queue: RequestQueue,
        images: ImageRequestHandler,
        regions: RegionRequestHandler,
        config: ServiceConfig,
        metrics: MetricsRecorder,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._outstanding_jobs = outstanding_jobs
        self._job_table = job_table
        self._region_table = region_table
        self._region_queue = region_queue
        self._images = images
        self._regions = regions
        self._config = config
        self._metrics = metrics
        self._now = now

    def sweep(self, should_stop: Callable[[], bool] = lambda: False) -> None:
        """Take the next step of every open job. An error in one job does not stop the others."""
        for job in self._outstanding_jobs.open_rows():
            if should_stop():
                break
            with bind_job(job_id=job.job_id, image_id=job.image_id):
                try:
                    if isinstance(job, UnreadableJob):
                        self._advance_unreadable(job)
                    else:
                        self._advance(job)
                except Exception as err:  # noqa: BLE001 - MemoryError included; the next sweep tries again
                    self._record_error(err)
        self._metrics.flush()

    def _record_error(self, err: Exception) -> None:
        self._metrics.record("JobSweep", "Errors", 1, COUNT)
        if isinstance(err, ModelRunnerError | ClientError | BotoCoreError):
            logger.warning("job.not_advanced", error=type(err).__name__, reason=str(err))
        else:
            logger.exception("job.not_advanced", error=type(err).__name__, reason=str(err))

    def _advance_unreadable(self, job: UnreadableJob) -> None:
        """Log a job that this version cannot read. After its deadline, end it; of its row, only the keys are needed."""
        logger.error("job.unreadable", endpoint_id=job.endpoint_id, job_key=job.job_key, reason=job.reason)
        self._metrics.record("JobSweep", "Errors", 1, COUNT)
        item = self._job_table.find(job.image_id) if job.image_id else None
        if item is not None and not item.is_terminal and _is_counted(item):
            self._images.parts.completion.finish(job.image_id)
        elif item is not None and item.is_terminal:
            self._close(job, item)
        elif self._is_late(job, item):
            self._fail(job, f"this version cannot read the job, and its time is over: {job.reason}")

    def _fail(self, job: OpenJob | UnreadableJob, reason: str) -> None:
        """F2: fail a job by its keys and close it; delete the open row when the image has no row."""
        generation = job.generation if isinstance(job, OpenJob) else None
        ended = self._job_table.fail_hopeless(job.image_id, safe_text(reason), generation) if job.image_id else None
        item = ended or (self._job_table.find(job.image_id) if job.image_id else None)
        if ended is not None:
            logger.error("image.failed", reason=reason)
        if item is None:
            self._outstanding_jobs.strike_off(job)
        elif item.is_terminal:
            self._close(job, item)

    def _close(self, job: OpenJob | UnreadableJob, item: JobItem) -> None:
        if self._images.parts.completion.close(item):
            # The keys of its row may differ from the keys that the image's row implies.
            self._outstanding_jobs.strike_off(job)

    def _is_late(self, job: UnreadableJob, item: JobItem | None) -> bool:
        if item is not None:
            accepted_s, first_attempt = job.request_time or (item.start_time or 0) / 1000, item.first_attempt
            job = dataclasses.replace(job, request_time=accepted_s, first_attempt=job.first_attempt or first_attempt)
        return _is_late(job, self._now(), self._config)

    def _advance(self, job: OpenJob) -> None:
        try:
            self._take_step(job)
        except Exception as err:
            if is_passing(err) or not self._is_hopeless(job):
                raise
            self._fail(job, f"the job could not be ended at its deadline: {type(err).__name__}: {err}")

    def _is_hopeless(self, job: OpenJob) -> bool:
        """Return True when a job is long past its deadline, and its regions were not all counted.

        The completion of a counted image limits its own attempts.
        """
        if not _is_late(job, self._now() - POISON_IMAGE_S, self._config):
            return False
        item = self._job_table.find(job.image_id)
        return item is not None and not item.is_terminal and not _is_counted(item)

    def _take_step(self, job: OpenJob) -> None:
        item = self._job_table.find(job.image_id)
        step = next_step(job, item, self._now(), self._config)
        if step is NextStep.NOTHING:
            return
        logger.info("job.swept", step=step.value)
        if item is None:
            self._outstanding_jobs.strike_off(job)
            return
        match step:
            case NextStep.CLOSE:
                self._close(job, item)
            case NextStep.GIVE_UP_PLANNING:
                self._images.fail_image_request(item, ModelRunnerError(_given_up_because(job, self._config)))
            case NextStep.FINISH:
                self._images.parts.completion.finish(job.image_id)
            case NextStep.LOOK_AT_REGIONS | NextStep.SEAL_REGIONS:
                if self._outstanding_jobs.mark_swept(job):
                    self._sweep_regions(item, job.planned_time or 0.0, is_late=step is NextStep.SEAL_REGIONS)

    def _sweep_regions(self, job: JobItem, planned_s: float, is_late: bool) -> None:
        """Send again or end the regions of a job that no worker processes.

        An error in one region does not stop the others; a permanent error is raised rather than a passing one.

        Raises:
            ConservationError: the job is late and every region has ended, but the image's counters say otherwise.
        """
        gravest: Exception | None = None
        is_any_open = False
        for region in self._region_table.regions_of(job.image_id):
            is_any_open = is_any_open or not region.is_terminal
            try:
                self._sweep_region(job, region, planned_s, is_late)
            except Exception as err:  # noqa: BLE001 - the other regions are continued after any error
                error, reason = type(err).__name__, str(err)
                logger.warning("region.not_advanced", region_id=region.region_id, error=error, reason=reason)
                gravest = err if gravest is None or is_passing(gravest) else gravest
        if gravest is not None:
            raise gravest
        if is_late and not is_any_open:
            raise ConservationError("every region has ended, but the image has not counted all of them")

    def _sweep_region(self, job: JobItem, region: RegionRequestItem, planned_s: float, is_late: bool) -> None:
        now_s = self._now()
        if region.is_terminal or (region.lease_until or 0) > now_s:
            return
        if is_late:
            region.message = late_reason(self._config.job_deadline_s)
            outcome = self._regions.fail_region_request(region)
            if isinstance(outcome, Deferred):
                logger.warning("region.not_advanced", region_id=region.region_id, reason=outcome.reason)
            return
        sent_s = region.queued_time or 0.0
        has_been_silent = now_s - sent_s > silence_s(sent_s - planned_s, self._config.region_lease_s)
        is_due = has_been_silent and (region.not_before or 0) <= now_s
        if is_due and self._region_table.record_queued(job.image_id, region.region_id):
            logger.info("region.sent_again", region_id=region.region_id)
            name = RegionName(image_id=job.image_id, region_id=region.region_id, job_id=str(job.job_id))
            self._region_queue.send_request(name.to_message())


def _is_counted(item: JobItem) -> bool:
    """Return True when every region was counted, so that the image only needs to be finished."""
    try:
        return JobTable.is_image_request_complete(item)
    except IsImageCompleteException:
        return False


def _given_up_because(job: OpenJob, config: ServiceConfig) -> str:
    if _running_since(job) is None:
        return (
            f"its endpoint had no room for it within {config.job_wait_limit_s:g} s (JOB_WAIT_LIMIT_S):"
            " send the job again when the endpoint has less load, or add instances"
        )
    if job.num_attempts > _MAX_PLANNING_ATTEMPTS:
        return f"planning failed {job.num_attempts} times"
    return (
        f"it could not be planned within {config.job_deadline_s:g} s of the first attempt (JOB_DEADLINE_S);"
        " image.planning_put_off in the log has the reason"
    )
