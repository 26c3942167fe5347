"""Fenced lock of the scheduler, so that one worker at a time starts images.

A decision depends on the load that the worker read. Two workers that decide at once would both fill the same free
capacity. So each claim of the lock has a fence, and an image starts only while that fence is the highest. A worker
whose claim has expired cannot start an image.
"""

import dataclasses
import time
from collections.abc import Callable, Iterator, Mapping

from aws.osml.model_runner.exceptions import ConditionNotMetError, TransactionConflictError

from .ddb_helper import DDBHelper, Item, to_dynamodb
from .job_table import JobItem, JobTable
from .outstanding_jobs_table import OpenJob, OutstandingJobsTable, attempted, planning_update

_KEY = {"endpoint_id": "_scheduler", "job_id": "_"}
_PROGRESS = ("image_id", "image_status", "region_count", "region_success", "region_error")


@dataclasses.dataclass(frozen=True)
class LockClaim:
    """A claim of the lock, valid while the row holds its fence; ``until`` is in epoch seconds."""

    owner: str
    fence: int
    until: float


@dataclasses.dataclass(frozen=True)
class SchedulerState:
    """State that the last claim published: end of the claim, time of the next pass, number of waiting images.

    ``looked_at`` is the time at which the last pass began to read the open jobs, so it includes all earlier changes.
    ``waiting_for`` has the number of images that wait for each endpoint, by ``endpoint_key``.
    """

    locked_until: float = 0.0
    next_look: float = 0.0
    waiting: int = 0
    looked_at: float = 0.0
    waiting_for: Mapping[str, int] = dataclasses.field(default_factory=dict)


class SchedulerLock(DDBHelper):
    """The lock, stored in a reserved row of the table of open jobs."""

    def __init__(
        self, outstanding_jobs: OutstandingJobsTable, job_table: JobTable, now: Callable[[], float] = time.time
    ) -> None:
        super().__init__(
            outstanding_jobs.table_name, outstanding_jobs.client, outstanding_jobs._sleep, outstanding_jobs._rng, now
        )
        self._outstanding_jobs = outstanding_jobs
        self._job_table = job_table

    def state(self) -> SchedulerState:
        """Read the state that the last claim published."""
        row = self.read(_KEY) or {}
        locked_until, next_look, waiting, looked_at = (
            row.get(name, 0) for name in ("lease_until", "next_look", "waiting", "look_time")
        )
        return SchedulerState(locked_until, next_look, waiting, looked_at, row.get("waiting_for", {}))

    def claim(self, owner: str, for_s: float) -> LockClaim | None:
        """Q1: claim the lock under a new fence; None while another worker holds it."""
        now_s, holder = self._now(), self.name_of_claim(owner)
        values = {":owner": holder, ":until": now_s + for_s, ":now": now_s, ":one": 1}
        try:
            row = self.update(
                _KEY,
                "SET lease_owner = :owner, lease_until = :until ADD fence :one",
                values,
                "attribute_not_exists(lease_until) OR lease_until < :now",
            )
        except ConditionNotMetError as err:
            if err.old is None or err.old.get("lease_owner") != holder:
                return None
            row = err.old
        return LockClaim(owner, int(row["fence"]), row["lease_until"])

    def end(
        self,
        claim: LockClaim,
        next_look: float,
        waiting: int,
        looked_at: float,
        waiting_for: Mapping[str, int] | None = None,
    ) -> None:
        """Q2: release the lock and publish the state; the next pass begins at ``next_look`` or later."""
        values: Item = {":zero": 0, ":look": next_look, ":waiting": waiting, ":seen": looked_at, ":fence": claim.fence}
        values[":endpoints"] = dict(waiting_for or {})
        expression = (
            "SET lease_until = :zero, next_look = :look, waiting = :waiting, look_time = :seen,"
            " waiting_for = :endpoints"
        )
        try:
            self.update(_KEY, expression, values, "fence = :fence")
        except ConditionNotMetError:
            return

    def start(self, claim: LockClaim, job: OpenJob, stale_s: float) -> OpenJob | None:
        """A2 under the lock: claim the right to plan a job, if it is free and ``claim`` still holds the lock.

        Return the job with the attempt counted, else None.
        """
        now_s = self._now()
        expression, values, condition = planning_update(job, claim.owner, now_s, stale_s)
        start = {
            "TableName": self.table_name,
            "Key": {"endpoint_id": job.endpoint_id, "job_id": job.job_key},
            "UpdateExpression": expression,
            "ConditionExpression": condition,
            "ExpressionAttributeValues": to_dynamodb(values),
        }
        held_lock = {
            "TableName": self.table_name,
            "Key": _KEY,
            # This writes the stored value again: a ConditionCheck needs a permission that older roles lack.
            "UpdateExpression": "SET lease_until = :until",
            "ConditionExpression": "fence = :fence",
            "ExpressionAttributeValues": to_dynamodb({":until": claim.until, ":fence": claim.fence}),
        }
        try:
            self._transact({"Update": start}, {"Update": held_lock})
        except (ConditionNotMetError, TransactionConflictError):
            return None
        return attempted(job, now_s)

    def open_jobs(self) -> Iterator[OpenJob]:
        """Yield every open job that this version can read."""
        return self._outstanding_jobs.open_jobs()

    def progress(self, jobs: list[OpenJob]) -> dict[str, JobItem]:
        """Return the images' rows of ``jobs``, by image id, with status and counts of regions only."""
        keys: list[dict[str, str]] = [{"image_id": job.image_id} for job in jobs]
        return {row["image_id"]: JobItem.from_row(row) for row in self._job_table.batch_get(keys, _PROGRESS)}

    def release(self, job: OpenJob, owner: str) -> None:
        """Release the right to plan a job."""
        self._outstanding_jobs.release_planning(job, owner)
