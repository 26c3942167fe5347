"""Ends jobs that nobody wants any more, when a person asks."""

import dataclasses

from aws.osml.model_runner.database.job_table import JobTable
from aws.osml.model_runner.database.outstanding_jobs_table import OutstandingJobsTable
from aws.osml.model_runner.exceptions import JobNotFoundError


@dataclasses.dataclass(frozen=True)
class CancelReport:
    """What became of the open images of a job: cancelled, had just ended (how), or could not be cancelled (why)."""

    cancelled: tuple[str, ...]
    ended: dict[str, str]
    failed: dict[str, str] = dataclasses.field(default_factory=dict)


class JobCanceller:
    """Ends waiting and running jobs by their rows alone.

    Their load counts no more from then on. Workers stop the regions of a cancelled image at their next heartbeat and
    drop those that wait; the fleet's sweeper publishes the status.
    """

    def __init__(self, job_table: JobTable, outstanding_jobs: OutstandingJobsTable) -> None:
        self._job_table = job_table
        self._outstanding_jobs = outstanding_jobs

    def cancel(self, job_id: str) -> CancelReport:
        """C1: end each open image of a job as FAILED, with the reason "cancelled".

        Raises:
            JobNotFoundError: no image of such a job is open.
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
            except Exception as err:  # noqa: BLE001 - the other images of the job are to be cancelled all the same
                failed[image_id] = f"{type(err).__name__}: {err}"
        return CancelReport(tuple(cancelled), ended, failed)
