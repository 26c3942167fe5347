"""Whose turn it is to start an image: one worker of the fleet decides at a time, so no endpoint is filled twice over.

What a worker decides rests on the loads that it read. Were two to decide at once, each would fill the room that both
saw. So a turn is claimed under a number, and an image starts only while that number is the highest: a worker that
slept through its turn starts nothing.
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
class Turn:
    """The right to start images: ours as long as the row carries its number; ``until`` is in epoch seconds."""

    owner: str
    fence: int
    until: float


@dataclasses.dataclass(frozen=True)
class SchedulerState:
    """What the last turn left for all workers: until when it is taken, when to look next, and how many images wait.

    ``looked_at`` is when the last turn began to read the open jobs: it has seen what happened before. ``waiting_for``
    has the number of images that wait for each endpoint, under a short key.
    """

    taken_until: float = 0.0
    next_look: float = 0.0
    waiting: int = 0
    looked_at: float = 0.0
    waiting_for: Mapping[str, int] = dataclasses.field(default_factory=dict)


class SchedulerLock(DDBHelper):
    """The fleet's turns, in a row of the table of open jobs that is no job."""

    def __init__(
        self, outstanding_jobs: OutstandingJobsTable, job_table: JobTable, now: Callable[[], float] = time.time
    ) -> None:
        super().__init__(
            outstanding_jobs.table_name, outstanding_jobs.client, outstanding_jobs._sleep, outstanding_jobs._rng, now
        )
        self._outstanding_jobs = outstanding_jobs
        self._job_table = job_table

    def notice(self) -> SchedulerState:
        """Return what the last turn left."""
        row = self.read(_KEY) or {}
        taken_until, next_look, waiting, looked_at = (
            row.get(name, 0) for name in ("lease_until", "next_look", "waiting", "look_time")
        )
        return SchedulerState(taken_until, next_look, waiting, looked_at, row.get("waiting_for", {}))

    def claim(self, owner: str, for_s: float) -> Turn | None:
        """Q1: take the turn under a new number; None while another worker has it."""
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
        return Turn(owner, int(row["fence"]), row["lease_until"])

    def end(
        self, turn: Turn, next_look: float, waiting: int, looked_at: float, waiting_for: Mapping[str, int] | None = None
    ) -> None:
        """Q2: let the next worker have its turn, not before ``next_look``; the jobs were read from ``looked_at`` on."""
        values: Item = {":zero": 0, ":look": next_look, ":waiting": waiting, ":seen": looked_at, ":fence": turn.fence}
        values[":endpoints"] = dict(waiting_for or {})
        expression = (
            "SET lease_until = :zero, next_look = :look, waiting = :waiting, look_time = :seen,"
            " waiting_for = :endpoints"
        )
        try:
            self.update(_KEY, expression, values, "fence = :fence")
        except ConditionNotMetError:
            return

    def start(self, turn: Turn, job: OpenJob, stale_s: float) -> OpenJob | None:
        """A2 within a turn: take the right to plan a job, if nobody took it and the turn is still ours.

        Return the job with the attempt counted, else None.
        """
        now_s = self._now()
        expression, values, condition = planning_update(job, turn.owner, now_s, stale_s)
        start = {
            "TableName": self.table_name,
            "Key": {"endpoint_id": job.endpoint_id, "job_id": job.job_key},
            "UpdateExpression": expression,
            "ConditionExpression": condition,
            "ExpressionAttributeValues": to_dynamodb(values),
        }
        ours = {
            "TableName": self.table_name,
            "Key": _KEY,
            # What stands there already: a mere check would need a permission that older roles do not have.
            "UpdateExpression": "SET lease_until = :until",
            "ConditionExpression": "fence = :fence",
            "ExpressionAttributeValues": to_dynamodb({":until": turn.until, ":fence": turn.fence}),
        }
        try:
            self._transact({"Update": start}, {"Update": ours})
        except (ConditionNotMetError, TransactionConflictError):
            return None
        return attempted(job, now_s)

    def open_jobs(self) -> Iterator[OpenJob]:
        """Yield every open job, as it stands now."""
        return self._outstanding_jobs.open_jobs()

    def progress(self, jobs: list[OpenJob]) -> dict[str, JobItem]:
        """Return by image what the rows of ``jobs`` say of their regions."""
        keys: list[dict[str, str]] = [{"image_id": job.image_id} for job in jobs]
        return {row["image_id"]: JobItem.from_row(row) for row in self._job_table.batch_get(keys, _PROGRESS)}

    def release(self, job: OpenJob, owner: str) -> None:
        """Give back the right to plan a job."""
        self._outstanding_jobs.release_planning(job, owner)
