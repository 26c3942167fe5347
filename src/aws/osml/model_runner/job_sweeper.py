"""Looks after open jobs, so that none waits for a person: what a dead worker left undone is begun again or ended."""

import dataclasses
import enum
import time
from collections.abc import Callable

import structlog
from botocore.exceptions import BotoCoreError, ClientError

from .app_config import ServiceConfig
from .database.job_ledger import JobLedger, OpenJob
from .database.job_table import JobItem, JobTable
from .database.region_request_table import RegionRequestItem, RegionRequestTable
from .exceptions import ModelRunnerError
from .image_request_handler import ImageRequestHandler
from .job_rules import POISON_IMAGE_S, SILENT_LEASES, is_poison, silence_s
from .observability import bind_job
from .queue.request_queue import RequestQueue
from .region_request_handler import RegionRequestHandler, region_request_of

logger = structlog.get_logger(__name__)

_MAX_PLANNING_ATTEMPTS = 5


class NextStep(enum.Enum):
    """What an open job needs."""

    NOTHING = "nothing"
    FORGET = "forget"  # its row has expired
    CLOSE = "close"  # it has ended, and somebody died before saying so
    GIVE_UP_PLANNING = "give up planning"
    PLAN = "plan"
    FINISH = "finish"  # every region was counted, and somebody died before finishing it
    LOOK_AT_REGIONS = "look at regions"
    SEAL_REGIONS = "seal regions"  # past its deadline


def next_step(job: OpenJob, item: JobItem | None, now_s: float, config: ServiceConfig) -> NextStep:
    """Return what an open job needs, from its two rows. Pure."""
    if item is None:
        return NextStep.FORGET
    if item.is_terminal:
        return NextStep.CLOSE
    if job.planned_time is None:
        return _planning_step(job, now_s, config)
    if JobTable.is_image_request_complete(item):
        return NextStep.FINISH
    if now_s - job.request_time > config.job_deadline_s:
        return NextStep.SEAL_REGIONS
    is_silent = now_s - (job.swept_time or job.planned_time) >= SILENT_LEASES * config.region_lease_s
    return NextStep.LOOK_AT_REGIONS if is_silent else NextStep.NOTHING


def _planning_step(job: OpenJob, now_s: float, config: ServiceConfig) -> NextStep:
    if job.num_attempts and job.last_attempt + config.region_lease_s >= now_s:
        return NextStep.NOTHING
    is_late = now_s - job.request_time > config.job_deadline_s
    # Counted from the first try: an image may have waited for its endpoint before.
    began_s = job.first_attempt if job.first_attempt is not None else job.request_time
    if is_late or is_poison(job.num_attempts, began_s, now_s, _MAX_PLANNING_ATTEMPTS, POISON_IMAGE_S):
        return NextStep.GIVE_UP_PLANNING
    # Where images are scheduled, whoever has its turn starts it, again if need be.
    return NextStep.NOTHING if config.outstanding_jobs_table else NextStep.PLAN


class JobSweeper:
    """Gives each open job its next step. ``sweep`` is called every half minute by every worker; one of them does it."""

    def __init__(
        self,
        ledger: JobLedger,
        job_table: JobTable,
        region_table: RegionRequestTable,
        region_queue: RequestQueue,
        images: ImageRequestHandler,
        regions: RegionRequestHandler,
        config: ServiceConfig,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._ledger = ledger
        self._job_table = job_table
        self._region_table = region_table
        self._region_queue = region_queue
        self._images = images
        self._regions = regions
        self._config = config
        self._now = now

    def sweep(self, should_stop: Callable[[], bool] = lambda: False) -> None:
        """Walk the open jobs; one that cannot be helped now does not keep the others waiting."""
        for job in self._ledger.open_jobs():
            if should_stop():
                return
            with bind_job(job_id=job.request.job_id, image_id=job.image_id):
                try:
                    self._advance(job)
                except (ModelRunnerError, ClientError, BotoCoreError) as err:
                    logger.warning("job.not_advanced", error=type(err).__name__, reason=str(err))

    def _advance(self, job: OpenJob) -> None:
        item = self._job_table.find(job.image_id)
        step = next_step(job, item, self._now(), self._config)
        if step is NextStep.NOTHING:
            return
        logger.info("job.swept", step=step.value)
        if item is None:
            self._ledger.close(dataclasses.replace(JobItem.from_image_request(job.request), generation=job.generation))
            return
        match step:
            case NextStep.CLOSE:
                self._images.completion.close(item)
            case NextStep.GIVE_UP_PLANNING:
                self._images.fail_image_request(item, ModelRunnerError(_given_up_because(job)))
            case NextStep.PLAN:
                self._images.plan(job)
            case NextStep.FINISH:
                self._images.completion.finish(job.image_id)
            case NextStep.LOOK_AT_REGIONS | NextStep.SEAL_REGIONS:
                if self._ledger.mark_swept(job):
                    self._sweep_regions(item, job.planned_time or 0.0, is_late=step is NextStep.SEAL_REGIONS)

    def _sweep_regions(self, job: JobItem, planned_s: float, is_late: bool) -> None:
        now_s = self._now()
        for region in self._region_table.regions_of(job.image_id):
            if region.is_terminal or (region.lease_until or 0) > now_s:
                continue
            if is_late:
                self._seal(job, region)
                continue
            sent_s = region.queued_time or 0.0
            has_been_silent = now_s - sent_s > silence_s(sent_s - planned_s, self._config.region_lease_s)
            if has_been_silent and (region.not_before or 0) <= now_s:
                self._send_again(job, region)

    def _send_again(self, job: JobItem, region: RegionRequestItem) -> None:
        if self._region_table.note_queued(job.image_id, region.region_id):
            logger.info("region.sent_again", region_id=region.region_id)
            self._region_queue.send_request(region_request_of(job, region).to_message())

    def _seal(self, job: JobItem, region: RegionRequestItem) -> None:
        region.message = f"the job's deadline of {self._config.job_deadline_s:g} s is over"
        ended = self._regions.fail_region_request(region)
        self._images.region_ended(region_request_of(job, region), ended)


def _given_up_because(job: OpenJob) -> str:
    if job.num_attempts == 0:
        return "its endpoint had no room for it until the time of the job was over"
    return f"planning failed {job.num_attempts} times"
