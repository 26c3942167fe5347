"""Table of open jobs: images that were accepted and are not closed. The sweeper and the scheduler read these rows.

Each open image has a row, which is deleted as the last step (G5). So a job that stops on the way is always found.
"""

import dataclasses
import enum
import random
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import structlog

from aws.osml.model_runner.api.image_request import ImageRequest, skipping_format
from aws.osml.model_runner.api.image_url import public_url
from aws.osml.model_runner.api.job_keys import job_id_of_key, open_job_key
from aws.osml.model_runner.api.request_utils import json_text
from aws.osml.model_runner.exceptions import ConditionNotMetError

from .ddb_helper import DDBHelper, Item, to_dynamodb
from .job_table import JobItem, JobTable, Redirection, new_row, reopening_update

logger = structlog.get_logger(__name__)


class Acceptance(enum.Enum):
    """Result of accepting a request."""

    ACCEPTED = "accepted"
    KNOWN = "known"  # the same request was accepted before: a second delivery, or a resubmission
    REUSED = "reused"  # another request holds its job id


@dataclasses.dataclass(frozen=True)
class OpenJob:
    """One image that was accepted and is not closed. Times are epoch seconds; None means it has not happened.

    ``request`` holds only the fields that the scheduler needs: job, model, variant or component, role, priority.
    """

    endpoint_id: str
    job_key: str
    image_id: str
    request_time: float
    num_attempts: int
    last_attempt: float
    planned_time: float | None
    swept_time: float | None
    request: ImageRequest
    generation: int = 0
    first_attempt: float | None = None
    region_count: int | None = None

    @property
    def job_id(self) -> str:
        """Id of the image's job."""
        return self.request.job_id

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> "OpenJob":
        """Return the job that a row describes.

        Raises:
            KeyError, TypeError: an attribute is missing or has another type.
            InvalidImageRequestException: the request cannot be read.
        """
        names = [*_NUMBERS, *(name for name in _OPTIONAL_NUMBERS if row.get(name) is not None)]
        wrong = [name for name in names if _number(row[name]) is None]
        if wrong:
            raise TypeError(f"attributes must be numbers: {', '.join(wrong)}")
        return cls(
            endpoint_id=row.get("endpoint_id", ""),
            job_key=row["job_id"],
            image_id=row["image_id"],
            request_time=row["request_time"],
            num_attempts=row["num_attempts"],
            last_attempt=row["last_attempt"],
            planned_time=row.get("planned_time"),
            swept_time=row.get("swept_time"),
            request=ImageRequest.from_item(row["request_payload"]),
            generation=row.get("generation", 0),
            first_attempt=row.get("first_attempt"),
            region_count=row.get("region_count"),
        )


_NUMBERS = ("request_time", "num_attempts", "last_attempt")
_OPTIONAL_NUMBERS = ("planned_time", "swept_time", "first_attempt", "region_count", "generation")


@dataclasses.dataclass(frozen=True)
class UnreadableJob:
    """An open job whose row this version cannot read: its keys, its readable times, and the reason.

    A newer version may have written the row, so this version ends the job only after its deadline.
    """

    endpoint_id: str
    job_key: str
    image_id: str
    job_id: str
    request_time: float
    first_attempt: float | None
    generation: int
    reason: str

    @classmethod
    def from_row(cls, row: Mapping[str, Any], error: Exception) -> "UnreadableJob":
        """Read keys and times from a row of any content."""
        return cls(
            endpoint_id=str(row.get("endpoint_id", "")),
            job_key=str(row.get("job_id", "")),
            image_id=str(row.get("image_id", "")),
            job_id=job_id_of_key(str(row.get("job_id", ""))),
            request_time=_number(row.get("request_time")) or 0.0,
            first_attempt=_number(row.get("first_attempt")),
            generation=int(_number(row.get("generation")) or 0),
            reason=f"{type(error).__name__}: {error}",
        )


def _number(value: object) -> float | None:
    return float(value) if isinstance(value, int | float) else None


def _open_row(row: Mapping[str, Any]) -> OpenJob | UnreadableJob:
    """Return the job of a row. An unreadable row becomes a value, so it does not stop a scan of all jobs."""
    try:
        return OpenJob.from_row(row)
    except Exception as err:  # noqa: BLE001 - another version may write any content
        return UnreadableJob.from_row(row, err)


def key_of_image(image: ImageRequest | JobItem) -> str:
    """Return the sort key of an image's open job."""
    return open_job_key(str(image.job_id), public_url(str(image.image_url)) if image.result_name else None)


# A worker of an earlier generation must not change the row of the next one. Rows of earlier versions have no
# generation.
_IS_ITS_GENERATION = "(generation = :generation OR attribute_not_exists(generation))"


_IS_OUR_ATTEMPT = "lease_owner = :owner AND num_attempts = :attempt AND attribute_not_exists(planned_time)"


def planning_update(job: OpenJob, owner: str, now_s: float, stale_s: float) -> tuple[str, dict[str, Any], str]:
    """Return A2 as an expression, its values and its condition.

    The condition holds the count of attempts that was read, so only one of several workers succeeds.
    """
    expression = (
        "SET last_attempt = :now, num_attempts = :next, lease_owner = :owner,"
        " first_attempt = if_not_exists(first_attempt, :now)"
    )
    values = {
        ":now": now_s,
        ":next": job.num_attempts + 1,
        ":seen": job.num_attempts,
        ":owner": owner,
        ":zero": 0,
        ":stale": now_s - stale_s,
    }
    condition = (
        "num_attempts = :seen AND (num_attempts = :zero OR last_attempt < :stale)"
        " AND attribute_not_exists(planned_time)"
    )
    return expression, values, condition


def attempted(job: OpenJob, now_s: float) -> OpenJob:
    """Return the job after A2."""
    first = job.first_attempt if job.first_attempt is not None else now_s
    return dataclasses.replace(job, num_attempts=job.num_attempts + 1, last_attempt=now_s, first_attempt=first)


# Parameters that select a part of an endpoint with a capacity of its own.
_TARGETS = ("TargetVariant", "InferenceComponentName")
_OUTLINED = ("job_id", "image_id", "model_name", "model_invoke_mode", "model_invocation_role", "priority")


def _outline(request: ImageRequest, is_skipping: bool = False) -> Item:
    """Return the fields that the scheduler needs: each scheduling pass reads them for every open job."""
    item = request.to_item()
    if is_skipping:
        item["tile_format"] = skipping_format(item["tile_format"])
    target = {name: value for name, value in (request.model_endpoint_parameters or {}).items() if name in _TARGETS}
    parameters = {"model_endpoint_parameters": json_text(target)} if target else {}
    # Earlier versions refuse a marked format, so they put off the job. They would not process it as it asks, and at its
    # deadline they would count skipped tiles as failed.
    marked = {} if item["tile_format"] == str(request.tile_format) else {"tile_format": item["tile_format"]}
    return {name: item[name] for name in _OUTLINED} | parameters | marked


_SWEEP_KEY = {"endpoint_id": "_sweeper", "job_id": "_"}


class OutstandingJobsTable(DDBHelper):
    """The table of open jobs: partition ``endpoint_id`` (the model's name), sort key ``job_id``. It has no expiry."""

    def __init__(
        self,
        table_name: str,
        job_table: JobTable,
        client: Any = None,
        now: Callable[[], float] = time.time,
        sleep: Callable[[float], None] = time.sleep,
        rng: random.Random | None = None,
    ) -> None:
        super().__init__(table_name, client, sleep, rng, now)
        self._job_table = job_table

    def accept(self, request: ImageRequest, message_id: str = "", body: str = "") -> Acceptance:
        """A0, A1: put the request's row, then the open job and the image's row, both or neither, unless one exists.

        ``body`` is the text of the request's message.
        """
        if not self._job_table.claim(request, body):
            return Acceptance.REUSED
        now_s, images = self._now(), self._job_table
        job, image = self._new_row(request, now_s), new_row(request, now_s, images.life_s, message_id)
        try:
            self._transact(
                _put_new(self.table_name, job, "job_id", now_s),
                _put_new(images.table_name, image, "image_id", now_s),
            )
        except ConditionNotMetError:
            # A second delivery of one request, or another request under its job id.
            known = images.find(request.image_id)
            is_same = known is not None and (known.request_sha256 or "") == request.request_sha256
            return Acceptance.KNOWN if is_same else Acceptance.REUSED
        return Acceptance.ACCEPTED

    def reopen(
        self,
        image: JobItem,
        request: ImageRequest,
        message_id: str,
        redirection: Redirection | None = None,
        outputs_only: bool = False,
    ) -> bool:
        """D1, D3: put the open job again and move the image's row to its next generation, both or neither.

        The image has ended PARTIAL or FAILED. Return False when this was done before. ``redirection`` replaces its
        outputs. With ``outputs_only`` its failed tiles stay failed.
        """
        now_s, images = self._now(), self._job_table
        job = self._new_row(request, now_s, (image.generation or 0) + 1, is_skipping=bool(image.tiles_skipped))
        if image.region_count is not None:
            job["region_count"] = image.region_count
        if image.needs_outputs_only(now_s, outputs_only):
            job["planned_time"] = now_s
        update = reopening_update(images.table_name, image, message_id, now_s, images.life_s, redirection, outputs_only)
        images.keep_request(str(image.job_id))
        try:
            self._transact(_put_new(self.table_name, job, "job_id", now_s), update)
        except ConditionNotMetError:
            return False
        return True

    def find(self, request: ImageRequest) -> OpenJob | None:
        """Return the open job of a request, or None when it is closed, unreadable, expired or was never accepted."""
        row = self.read({"endpoint_id": request.model_name, "job_id": key_of_image(request)})
        if row is None or "request_payload" not in row or self._job_table.is_expired(row):
            return None
        job = _open_row(row)
        if isinstance(job, UnreadableJob):
            logger.debug("job.unreadable", endpoint_id=job.endpoint_id, job_key=job.job_key, reason=job.reason)
            return None
        return job

    def open_jobs(self) -> Iterator[OpenJob]:
        """Yield every open job that this version can read."""
        return (job for job in self.open_rows() if isinstance(job, OpenJob))

    def open_rows(self) -> Iterator[OpenJob | UnreadableJob]:
        """Yield every open job, including jobs that this version cannot read."""
        # The table also holds rows of leases and of endpoint facts, which have neither attribute.
        for row in self.scan(FilterExpression="attribute_exists(request_payload) AND attribute_exists(image_id)"):
            yield _open_row(row)

    def record_region_count(self, job: OpenJob, region_count: int) -> None:
        """Record how many regions a waiting image has, so that its load is known before it starts."""
        values = {":count": region_count, ":generation": job.generation}
        self._try(job, "SET region_count = :count", values, f"attribute_exists(job_id) AND {_IS_ITS_GENERATION}")

    def start_planning(self, job: OpenJob, owner: str, stale_s: float) -> OpenJob | None:
        """A2: claim the right to plan, unless another worker renewed its claim within the last ``stale_s``.

        Return the job with the attempt counted, or None when another worker holds the right or the plan is done.
        """
        now_s = self._now()
        return attempted(job, now_s) if self._try(job, *planning_update(job, owner, now_s, stale_s)) else None

    def renew_planning(self, job: OpenJob, owner: str) -> bool:
        """A2: renew the right to plan; False after it was lost."""
        values = {":now": self._now(), ":owner": owner, ":attempt": job.num_attempts}
        return self._try(job, "SET last_attempt = :now", values, _IS_OUR_ATTEMPT)

    def release_planning(self, job: OpenJob, owner: str) -> None:
        """A2: release the right to plan. A worker that can release it did not crash, so the attempt is not counted."""
        values = {":zero": 0, ":before": job.num_attempts - 1, ":owner": owner, ":attempt": job.num_attempts}
        # This was the first attempt: the image waits again, and its deadline does not count yet.
        expression = "SET last_attempt = :zero, num_attempts = :before"
        if job.num_attempts == 1:
            expression += " REMOVE first_attempt"
        self._try(job, expression, values, _IS_OUR_ATTEMPT)

    def mark_skipping(self, job: OpenJob, request: ImageRequest) -> None:
        """Mark a job whose plan skips tiles, before the plan is stored, so that earlier versions put it off."""
        values = {":payload": _outline(request, is_skipping=True), ":generation": job.generation}
        self._try(job, "SET request_payload = :payload", values, f"attribute_exists(job_id) AND {_IS_ITS_GENERATION}")

    def finish_planning(self, job: OpenJob) -> None:
        """Record that every region has its row and was sent."""
        values = {":now": self._now(), ":generation": job.generation}
        self._try(job, "SET planned_time = :now", values, f"attribute_exists(job_id) AND {_IS_ITS_GENERATION}")

    def mark_swept(self, job: OpenJob) -> bool:
        """Claim the right to send a job's stalled regions again; False when another sweeper was faster."""
        values = {":now": self._now()}
        if job.swept_time is None:
            return self._try(
                job, "SET swept_time = :now", values, "attribute_exists(job_id) AND attribute_not_exists(swept_time)"
            )
        return self._try(job, "SET swept_time = :now", values | {":seen": job.swept_time}, "swept_time = :seen")

    def close(self, image: JobItem) -> None:
        """G5: delete the row. Deleting it twice is harmless, and a row of the next generation stays."""
        self._delete({"endpoint_id": image.model_name, "job_id": key_of_image(image)}, image.generation or 0)

    def strike_off(self, job: OpenJob | UnreadableJob) -> None:
        """G5: delete a job by the keys of its row; the rest of the row and the image's row are not read."""
        self._delete(_key(job), job.generation)

    def claim_sweep(self, owner: str, for_s: float) -> bool:
        """Claim the right to sweep for all workers, for ``for_s`` seconds; False while another worker holds it."""
        now_s = self._now()
        try:
            self.update(
                _SWEEP_KEY,
                "SET lease_owner = :owner, lease_until = :until",
                {":owner": owner, ":until": now_s + for_s, ":now": now_s},
                "attribute_not_exists(lease_until) OR lease_until < :now",
            )
        except ConditionNotMetError:
            return False
        return True

    def _new_row(self, request: ImageRequest, now_s: float, generation: int = 0, is_skipping: bool = False) -> Item:
        return {
            "generation": generation,
            "endpoint_id": request.model_name,
            "job_id": key_of_image(request),
            "image_id": request.image_id,
            "request_time": int(now_s),
            "last_attempt": 0,
            "num_attempts": 0,
            "request_payload": _outline(request, is_skipping),
            # DynamoDB does not expire rows of this table, but a job whose image has expired counts as deleted.
            "expire_time": int(now_s + self._job_table.life_s),
        }

    def _try(self, job: OpenJob, expression: str, values: dict[str, Any], condition: str) -> bool:
        try:
            self.update(_key(job), expression, values, condition)
        except ConditionNotMetError:
            return False
        return True

    def _delete(self, key: Mapping[str, Any], generation: int) -> None:
        try:
            self.delete(key, f"attribute_exists(job_id) AND {_IS_ITS_GENERATION}", {":generation": generation})
        except ConditionNotMetError:
            return


def _key(job: OpenJob | UnreadableJob) -> dict[str, str]:
    return {"endpoint_id": job.endpoint_id, "job_id": job.job_key}


def _put_new(table_name: str, item: Item, key: str, now_s: float) -> Item:
    """Return a put that succeeds where the table has no row with this key, or only an expired row."""
    put = {
        "TableName": table_name,
        "Item": to_dynamodb(item),
        "ConditionExpression": f"attribute_not_exists({key}) OR expire_time < :now",
        "ExpressionAttributeValues": to_dynamodb({":now": now_s}),
    }
    return {"Put": put}
