"""Ends jobs that nobody wants any more, when a person asks."""

import dataclasses

import structlog

from .database.job_ledger import JobLedger
from .database.job_table import JobTable
from .exceptions import InvalidImageRequestException
from .observability import bind_job

logger = structlog.get_logger(__name__)


@dataclasses.dataclass(frozen=True)
class CancelReport:
    """What became of the open images of a job: those cancelled, and those that had just ended, with how."""

    cancelled: tuple[str, ...]
    ended: dict[str, str]


class JobCanceller:
    """Ends waiting and running jobs by their rows alone.

    Their load counts no more from then on. Workers stop the regions of a cancelled image at their next heartbeat and
    drop those that wait; the fleet's sweeper publishes the status.
    """

    def __init__(self, job_table: JobTable, ledger: JobLedger) -> None:
        self._job_table = job_table
        self._ledger = ledger

    def cancel(self, job_id: str) -> CancelReport:
        """C1: end each open image of a job as FAILED, with the reason "cancelled".

        Raises:
            InvalidImageRequestException: no image of such a job is open.
        """
        jobs = [job for job in self._ledger.open_jobs() if job.request.job_id == job_id]
        if not jobs:
            raise InvalidImageRequestException(f"there is no open job {job_id}")
        cancelled, ended = [], {}
        for job in jobs:
            with bind_job(job_id=job_id, image_id=job.image_id):
                if self._job_table.cancel(job.image_id) is not None:
                    logger.info("image.cancelled")
                    cancelled.append(job.image_id)
                    continue
            known = self._job_table.find(job.image_id)
            ended[job.image_id] = str(known.image_status) if known is not None else "unknown, its row has expired"
        return CancelReport(tuple(cancelled), ended)
