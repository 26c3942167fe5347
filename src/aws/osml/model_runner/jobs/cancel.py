"""Cancels open jobs, for the command line."""

import dataclasses

from aws.osml.model_runner.database.job_table import JobTable
from aws.osml.model_runner.database.outstanding_jobs_table import OutstandingJobsTable
from aws.osml.model_runner.exceptions import JobNotFoundError


@dataclasses.dataclass(frozen=True)
class CancelReport:
    """Outcome per open image of a job: cancelled, already ended (status), or not cancelled (error)."""

    cancelled: tuple[str, ...]
    ended: dict[str, str]
    failed: dict[str, str] = dataclasses.field(default_factory=dict)


class JobCanceller:
    """Ends waiting and running jobs by their rows alone.

    A cancelled job no longer counts as load. Workers stop its regions at the next heartbeat and drop waiting ones; the
    sweeper publishes the status.
    """

    def __init__(self, job_table: JobTable, outstanding_jobs: OutstandingJobsTable) -> None:
        self._job_table = job_table
        self._outstanding_jobs = outstanding_jobs

    def cancel(self, job_id: str) -> CancelReport:
        """C1: end each open image of a job as FAILED, with the reason "cancelled".

        Raises:
            JobNotFoundError: no image of the job is open.
        """
        images = [job.image_id for job in self._outstanding_jobs.open_rows() if job.job_id == job_id]
        if not images:
            raise JobNotFoundError(f"there is no open job {job_id}")
        cancelled, ended, failed = [], {}, {}
        for image_id in images:
            try:
                if self._job_table.cancel(image_id) is not None:
                    cancelled.append(image_id)
                    continue
                known = self._job_table.find(image_id)
                ended[image_id] = str(known.image_status) if known is not None else "unknown, its row has expired"
            except Exception as err:  # noqa: BLE001 - the other images of the job are cancelled after any error
                failed[image_id] = f"{type(err).__name__}: {err}"
        return CancelReport(tuple(cancelled), ended, failed)
