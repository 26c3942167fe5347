"""Table of images: one row per image, from acceptance to its terminal status, and one row per request.

R3 and every heartbeat pay for the size of an image's row. So large attributes lie in the request's row, once for all
images of a job. A0 writes that row once. It is read when an image is planned, located, merged or dead-lettered. The row
also reserves the job id: only the request that it describes may have images under that id.

The conditional writes carry the letters of docs/explanation/what-happens-when-a-worker-dies.md: A0 to A3 begin an
image. F0 and F1 fail an image that cannot be planned, F2 an image that cannot be continued. C1 cancels an image, G1 to
G4 finish it, D1 and D3 start it again.
"""

import dataclasses
import json
import math
import random
import time
import zlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

from aws.osml.model_runner.api.image_request import ImageRequest
from aws.osml.model_runner.api.job_keys import request_key
from aws.osml.model_runner.api.request_utils import json_text
from aws.osml.model_runner.common.typing import (
    RequestStatus,
)
from aws.osml.model_runner.exceptions import (
    ConditionNotMetError,
    GetImageRequestItemException,
    IsImageCompleteException,
)

from ._published import PublishedJobTable
from .ddb_helper import Item
from .job_item import JobItem as JobItem

# The row of an ended image outlives every copy of its message in SQS: 14 days of retention and two days of margin.
ROW_LIFE_S = 16 * 24 * 3600

# SQS lets a message stay in flight for 12 hours, and several workers may process it in turn.
_CLAIM_MARGIN_S = 24 * 3600

# Maximum number and age of the claims that a process remembers.
_MAX_KNOWN = 64
_KNOWN_FOR_S = 600.0

# Message of a cancelled image.
CANCELLED = "cancelled"

# A row holds at most 400 KB, and the request takes most of it.
_MAX_PACKED_BODY_BYTES = 64 * 1024

TERMINAL_VALUES = {":success": "SUCCESS", ":partial": "PARTIAL", ":failed": "FAILED"}
NOT_TERMINAL = "NOT image_status IN (:success, :partial, :failed)"
# The row exists and is not terminal. Without the first part, a late update would create a deleted row again.
IS_OPEN = f"attribute_exists(image_id) AND {NOT_TERMINAL}"
_IS_GENERATION = "generation = :generation"
# Attributes of ``record_sink_done``'s counts.
COUNTS_OF_MERGE = (
    *("tile_errors", "first_failure", "features_dropped"),
    *("features_stored", "features_delivered", "features_unmerged"),
)
# Only the newest claim may continue: a worker whose lease ran out has an older fence.
IS_OUR_AGGREGATION = f"agg_fence = :fence AND {NOT_TERMINAL}"
# Progress resets the count of failed tries.
_IS_PROGRESS = "agg_stalled = :zero REMOVE agg_first_time, agg_error"


class Redirection(NamedTuple):
    """Outputs of an image's next generation, as JSON, and the names of outputs that are already complete."""

    outputs: str
    done: frozenset[str]


def reopening_update(
    table_name: str,
    item: JobItem,
    message_id: str,
    now_s: float,
    life_s: float,
    redirection: Redirection | None = None,
    outputs_only: bool = False,
) -> Item:
    """Return D1 or D3 for an image's row: the next generation of a job that ended PARTIAL or FAILED.

    After D1 the image is as if just accepted. After D3 its regions stay counted, so only the merge and the delivery
    remain. The condition holds the previous status and generation, so the write succeeds once. The fence rises, because
    a worker may still finish the previous generation. Complete outputs stay complete only if no tile is processed
    again: processing a tile again can change its features.
    """
    keeps_tiles = item.needs_outputs_only(now_s, outputs_only)
    changes = [
        *("image_status = :open", "generation = :next", "message_id = :message_id", "start_time = :now_ms"),
        *("expire_time = :expire", "agg_lease_until = :zero", "agg_not_before = :zero", "agg_stalled = :zero"),
        "agg_backoffs = :zero",
    ]
    removed = ["end_time", "message", "sink_errors", "sink_positions", "agg_first_time", "agg_error", "first_attempt"]
    if not keeps_tiles:
        removed += COUNTS_OF_MERGE
    values = {
        ":open": "ACCEPTED" if item.region_count is None else str(RequestStatus.IN_PROGRESS),
        ":next": (item.generation or 0) + 1,
        ":seen": item.generation or 0,
        ":left": item.image_status,
        ":message_id": message_id,
        ":now_ms": int(now_s * 1000),
        ":expire": int(now_s + life_s),
        ":zero": 0,
        ":one": 1,
    }
    if not keeps_tiles:
        changes += [f"{name} = :zero" for name in ("region_success", "region_error", "tile_success", "tile_error")]
        removed.append("sinks_done")
    if redirection is not None:
        changes.append("outputs = :outputs")
        values[":outputs"] = redirection.outputs
        if keeps_tiles and redirection.done:
            changes.append("sinks_done = :done")
            values[":done"] = set(redirection.done)
        elif keeps_tiles:
            removed.append("sinks_done")
    update = {
        "TableName": table_name,
        "Key": {"image_id": item.image_id},
        "UpdateExpression": f"SET {', '.join(changes)} REMOVE {', '.join(removed)} ADD agg_fence :one",
        "ConditionExpression": "image_status = :left AND generation = :seen AND attribute_not_exists(status_outbox)",
        "ExpressionAttributeValues": values,
    }
    return {"Update": update}


def new_row(image_request: ImageRequest, now_s: float, life_s: float = ROW_LIFE_S, message_id: str = "") -> Item:
    """Return the row that A1 puts; counters and leases are zero, since no comparison holds for absent attributes."""
    item = JobItem.from_image_request(image_request)
    item.feature_properties = item.roi_wkt = item.processor_input = item.skip = None
    item.model_protocol = item.image_assets = item.roi_url = None
    item.image_status = "ACCEPTED"
    item.start_time = int(now_s * 1000)
    item.expire_time = int(now_s + life_s)
    item.region_success = item.region_error = item.tile_success = item.tile_error = 0
    item.agg_fence = item.agg_stalled = item.agg_backoffs = 0
    item.agg_lease_until = item.agg_not_before = 0.0
    item.processing_duration = item.generation = 0
    item.message_id = message_id or None
    return item.to_put()


def request_row(image_request: ImageRequest, now_s: float, life_s: float = ROW_LIFE_S, body: str = "") -> Item:
    """Return the request's row, which A0 puts; ``body`` is the text of the request's message.

    The request's images may be accepted later. The margin in ``expire_time`` lets this row outlive their rows.
    """
    packed = _packed(body)
    row = {
        "request_sha256": image_request.request_sha256,
        "full_request": image_request.to_item(),
        "expire_time": int(now_s + life_s + _CLAIM_MARGIN_S),
    }
    return _request_key(image_request.job_id) | row | ({} if packed is None else {"message_body": packed})


def _request_key(job_id: str) -> dict[str, Any]:
    return {"image_id": request_key(job_id)}


def _packed(body: str) -> bytes | None:
    """Compress a message, so that it can be dead-lettered unchanged; None when it is empty or too long."""
    packed = zlib.compress(body.encode())
    return packed if body and len(packed) <= _MAX_PACKED_BODY_BYTES else None


class JobTable(PublishedJobTable):
    """The table of images."""

    def __init__(
        self,
        table_name: str,
        client: Any = None,
        now: Callable[[], float] = time.time,
        life_s: float = ROW_LIFE_S,
        sleep: Callable[[float], None] = time.sleep,
        rng: random.Random | None = None,
    ) -> None:
        super().__init__(table_name, client, sleep, rng, now)
        self.life_s = life_s
        # Job ids that this process has claimed, so that a job of many images needs one claim only.
        self._claimed: dict[str, tuple[str, float]] = {}

    @staticmethod
    def is_image_request_complete(image_request_item: JobItem) -> bool:
        """Return True when every region of the plan was counted.

        Raises:
            IsImageCompleteException: the row has no counters, so the image was never started.
        """
        success, error = image_request_item.region_success, image_request_item.region_error
        if success is None or error is None:
            raise IsImageCompleteException(
                f"the image {image_request_item.image_id} was never started: its row has no counters"
            )
        return image_request_item.region_count is not None and success + error == image_request_item.region_count

    def get_image_request(self, image_id: str) -> JobItem:
        """Return an image's row as it stands now.

        Raises:
            GetImageRequestItemException: the image has no row, or its row has expired.
        """
        item = self.find_whole(image_id)
        if item is None:
            raise GetImageRequestItemException(f"the image {image_id} has no row, or the row has expired")
        return item

    def find_whole(self, image_id: str) -> JobItem | None:
        """Return an image's row with the attributes of its request's row, or None."""
        item = self.find(image_id)
        return None if item is None else self.with_request(item)

    def request_of(self, item: JobItem) -> ImageRequest:
        """Return the request of an image, with the outputs of its row, which may have been replaced.

        Raises:
            InvalidImageRequestException: this version cannot read the request.
        """
        row, own = self._request_row(item), item.image_request()
        if row is None:
            return own
        return dataclasses.replace(
            ImageRequest.from_item(row["full_request"]),
            image_id=own.image_id,
            image_url=own.image_url,
            result_name=own.result_name,
            model_endpoint_parameters=own.model_endpoint_parameters,
            outputs=own.outputs,
            image_item=own.image_item,
        )

    def claim(self, request: ImageRequest, body: str = "") -> bool:
        """A0: store a request under its job id, once; False when the id belongs to another request.

        ``body`` is the text of the request's message.
        """
        now_s = self._now()
        if self._claimed.get(request.job_id) == (request.request_sha256, now_s // _KNOWN_FOR_S):
            return True
        row, condition = request_row(request, now_s, self.life_s, body), "attribute_not_exists(image_id)"
        try:
            self.put(row, f"{condition} OR expire_time < :now", {":now": now_s})
        except ConditionNotMetError as err:
            if err.old is None or err.old.get("request_sha256") != request.request_sha256:
                return False
        if len(self._claimed) >= _MAX_KNOWN:
            self._claimed.clear()
        self._claimed[request.job_id] = (request.request_sha256, now_s // _KNOWN_FOR_S)
        return True

    def keep_request(self, job_id: str) -> None:
        """Extend the life of a request's row, so that it outlives an image that starts again now."""
        expire = {":expire": int(self._now() + self.life_s + _CLAIM_MARGIN_S)}
        try:
            self.update(_request_key(job_id), "SET expire_time = :expire", expire, "attribute_exists(image_id)")
        except ConditionNotMetError:
            return

    def _request_row(self, item: JobItem) -> Item | None:
        """Return the row of an image's request; None for an image that ``start_image_request`` started."""
        row = self.read(_request_key(str(item.job_id))) or {}
        is_its = row.get("request_sha256", "") == (item.request_sha256 or "")
        return row if is_its and "full_request" in row else None

    def with_request(self, item: JobItem) -> JobItem:
        """Add the attributes of the request's row to an image's row.

        A row that ``start_image_request`` wrote holds all attributes itself.
        """
        row = self._request_row(item)
        if row is None:
            return item
        request = row["full_request"]
        properties = json.loads(request.get("feature_properties") or "[]")
        properties += json.loads(item.source_properties or "[]")
        return dataclasses.replace(
            item,
            feature_properties=json_text(properties),
            roi_wkt=request.get("roi"),
            processor_input=request.get("processor_input"),
            skip=request.get("skip"),
            model_protocol=request.get("model_protocol"),
            image_assets=request.get("image_assets"),
            roi_url=json.loads(request.get("roi_url") or "null"),
            message_body=row.get("message_body"),
        )

    def find(self, image_id: str) -> JobItem | None:
        """Return an image's current row, or None when the row does not exist or has expired.

        The attributes of the request's row are missing: properties, region of interest, protocol, message.
        """
        row = self.read({"image_id": image_id})
        if row is None or self.is_expired(row):
            return None
        return JobItem.from_row(row)

    def is_expired(self, row: Mapping[str, Any]) -> bool:
        """Return True for a row that DynamoDB may delete at any time; callers treat it as deleted."""
        return bool(row.get("expire_time", math.inf) < self._now())

    def images_of(self, job_id: str) -> Iterator[JobItem]:
        """Yield the rows of a job's images. The scan reads the whole table, so only commands of operators use it."""
        rows = self.scan(FilterExpression="job_id = :job", ExpressionAttributeValues={":job": job_id})
        yield from (self.with_request(JobItem.from_row(row)) for row in rows)

    # The protocol's writes ------------------------------------------------------------------------------------------

    def fix_plan(self, item: JobItem) -> JobItem:
        """A3: store the plan, once. A second caller gets the plan that was stored first.

        ``item.first_attempt`` is stored once in each generation.

        Raises:
            ConditionNotMetError: the image has ended, or its row is gone.
        """
        plan = {
            name: getattr(item, name)
            for name in (
                *("region_count", "tile_count", "width", "height", "extents", "region_size", "processing_bounds"),
                *("image_etag", "image_extension", "image_format", "image_count", "source_properties", "georeference"),
                *("pixel_preparation", "first_attempt", "tiles_skipped", "skip_versions", "tile_format", "image_item"),
                "roi_sha256",
            )
            if getattr(item, name) is not None
        } | {"image_status": str(RequestStatus.IN_PROGRESS), "tiles_since": self._now()}
        expression = "SET " + ", ".join(f"{name} = :{name}" for name in plan)
        values = {f":{name}": value for name, value in plan.items()} | TERMINAL_VALUES
        condition = f"{IS_OPEN} AND attribute_not_exists(region_count)"
        try:
            return JobItem.from_row(self.update({"image_id": item.image_id}, expression, values, condition))
        except ConditionNotMetError as err:
            stored = JobItem.from_row(err.old) if err.old else None
            if stored is None or stored.is_terminal:
                raise
            return stored if stored.first_attempt is not None else self._begin_again(item)

    def _begin_again(self, item: JobItem) -> JobItem:
        """A3 in a later generation, whose plan exists already: record when this generation began."""
        values = {":first": item.first_attempt, ":generation": item.generation or 0} | TERMINAL_VALUES
        condition = f"{IS_OPEN} AND attribute_not_exists(first_attempt) AND {_IS_GENERATION}"
        try:
            row = self.update({"image_id": item.image_id}, "SET first_attempt = :first", values, condition)
        except ConditionNotMetError as err:
            stored = JobItem.from_row(err.old) if err.old else None
            if stored is None or stored.is_terminal or stored.generation != item.generation:
                raise
            return stored
        return JobItem.from_row(row)

    def fail_unplanned(self, image_id: str, message: str, generation: int = 0) -> JobItem | None:
        """F0: end an image that has no plan, in the generation that was to be planned.

        Return its row, or None when it has a plan, has ended, or was started again meanwhile.
        """
        values = self._terminal_values(RequestStatus.FAILED, message, is_dead_letter=True) | TERMINAL_VALUES
        condition = f"{IS_OPEN} AND attribute_not_exists(region_count)"
        return self._end(image_id, values, condition, generation)

    def fail_unshared(self, image_id: str, message: str, generation: int = 0) -> JobItem | None:
        """F1: end a planned image that cannot be read any more, after its planner died before it sent all regions.

        Regions that were already sent end with the image and are not counted (R3). Return None when the image has
        ended, or was started again meanwhile.
        """
        values = self._terminal_values(RequestStatus.FAILED, message, is_dead_letter=True) | TERMINAL_VALUES
        return self._end(image_id, values, f"{IS_OPEN} AND attribute_exists(region_count)", generation)

    def fail_hopeless(self, image_id: str, message: str, generation: int | None = None) -> JobItem | None:
        """F2: end an image that cannot be continued, past its deadline. None when it has ended.

        Like C1, it needs the key only: regions in progress are not counted any more (R3). ``generation`` is None where
        the open job cannot be read.
        """
        values = self._terminal_values(RequestStatus.FAILED, message) | TERMINAL_VALUES
        return self._end(image_id, values, IS_OPEN, generation)

    def cancel(self, image_id: str) -> JobItem | None:
        """C1: end an image as FAILED because its job was cancelled. None when it has ended.

        Its regions are not counted any more (R3). A worker that processes a region stops at the next heartbeat.
        """
        values = self._terminal_values(RequestStatus.FAILED, CANCELLED) | TERMINAL_VALUES
        return self._end(image_id, values, IS_OPEN)

    def claim_aggregation(self, item: JobItem, owner: str, lease_s: float, wait_s: float) -> JobItem | None:
        """G1: claim the right to finish an image whose regions have all been counted, under a new fence.

        The condition holds the counters that the caller read, because a condition cannot add. If this worker dies, the
        next claim waits ``wait_s``. Return None when another worker holds the claim, or when regions are missing. The
        claim's unique name lets a repeated call recognise its own write after a lost response.
        """
        if not self.is_image_request_complete(item):
            return None
        now_s, holder = self._now(), self.name_of_claim(owner)
        expression = (
            "SET agg_owner = :owner, agg_lease_until = :until, agg_not_before = :not_before,"
            " agg_first_time = if_not_exists(agg_first_time, :now) ADD agg_fence :one, agg_stalled :one"
        )
        values = {
            ":owner": holder,
            ":until": now_s + lease_s,
            ":not_before": now_s + wait_s,
            ":now": now_s,
            ":one": 1,
            ":a": item.region_success,
            ":b": item.region_error,
            ":c": item.region_count,
        } | TERMINAL_VALUES
        condition = (
            "region_success = :a AND region_error = :b AND region_count = :c"
            f" AND agg_lease_until < :now AND agg_not_before <= :now AND {NOT_TERMINAL}"
        )
        try:
            row = self.update({"image_id": item.image_id}, expression, values, condition)
        except ConditionNotMetError as err:
            if err.old is None or err.old.get("agg_owner") != holder:
                return None
            row = err.old
        return self.with_request(JobItem.from_row(row))

    def renew_aggregation(self, image_id: str, fence: int, lease_s: float) -> bool:
        """Extend our claim; False when another worker holds it or the image has ended."""
        values = {":until": self._now() + lease_s, ":fence": fence} | TERMINAL_VALUES
        return self._try_update(image_id, "SET agg_lease_until = :until", values, IS_OUR_AGGREGATION) is not None

    def release_aggregation(self, image_id: str, fence: int, wait_s: float = 0.0, backoffs: int = 0) -> bool:
        """Release the claim after a try that failed for a reason outside the image; the try does not count.

        ``backoffs``: number of releases in a row because an output did not take the features.
        """
        expression = (
            "SET agg_lease_until = :zero, agg_stalled = :zero, agg_backoffs = :backoffs, agg_not_before = :not_before"
            " REMOVE agg_first_time, agg_error"
        )
        values = {
            ":zero": 0,
            ":backoffs": backoffs,
            ":not_before": self._now() + wait_s if wait_s else 0,
            ":fence": fence,
        } | TERMINAL_VALUES
        return self._try_update(image_id, expression, values, IS_OUR_AGGREGATION) is not None

    def fail_aggregation(self, image_id: str, fence: int, wait_s: float, error: str) -> bool:
        """Release the claim after a failed try. The try stays counted, as the try of a crashed worker does.

        ``error`` is the reason, which the status names if no further try is made.
        """
        expression = "SET agg_lease_until = :zero, agg_not_before = :not_before, agg_error = :error"
        values = {":zero": 0, ":not_before": self._now() + wait_s, ":error": error, ":fence": fence} | TERMINAL_VALUES
        return self._try_update(image_id, expression, values, IS_OUR_AGGREGATION) is not None

    def record_sink_progress(self, image_id: str, fence: int, positions: Mapping[str, int]) -> bool:
        """G2: record how many features each sink has confirmed; False after the claim was lost."""
        expression = f"SET sink_positions = :positions, agg_backoffs = :zero, {_IS_PROGRESS}"
        values = {":positions": dict(positions), ":zero": 0, ":fence": fence} | TERMINAL_VALUES
        return self._try_update(image_id, expression, values, IS_OUR_AGGREGATION) is not None

    def record_sink_done(self, image_id: str, fence: int, sink: str, counts: Mapping[str, Any] | None = None) -> bool:
        """G2: record that a sink is complete, and ``counts`` of the merge, by attribute."""
        counts = counts or {}
        set_counts = "".join(f"{name} = :{name}, " for name in counts)
        expression = f"SET {set_counts}agg_backoffs = :zero, {_IS_PROGRESS} ADD sinks_done :sink"
        values = {":sink": {sink}, ":zero": 0, ":fence": fence} | TERMINAL_VALUES
        values |= {f":{name}": value for name, value in counts.items()}
        return self._try_update(image_id, expression, values, IS_OUR_AGGREGATION) is not None

    def record_sink_failed(self, image_id: str, fence: int, errors: Mapping[str, str]) -> bool:
        """G2: record the errors of all sinks that have failed for good so far, by sink."""
        expression = f"SET sink_errors = :errors, {_IS_PROGRESS}"
        values = {":errors": dict(errors), ":zero": 0, ":fence": fence} | TERMINAL_VALUES
        return self._try_update(image_id, expression, values, IS_OUR_AGGREGATION) is not None

    def end_aggregation(self, image_id: str, fence: int, status: RequestStatus, message: str) -> JobItem | None:
        """G3: write the terminal status and its outbox in one item; None when the claim is not ours."""
        values = self._terminal_values(status, message) | {":fence": fence} | TERMINAL_VALUES
        return self._end(image_id, values, IS_OUR_AGGREGATION)

    def clear_outbox(self, image_id: str, generation: int = 0) -> None:
        """G4: remove the published status from the row; a row of another generation stays as it is."""
        condition = "attribute_exists(image_id) AND (generation = :generation OR attribute_not_exists(generation))"
        try:
            self.update({"image_id": image_id}, "REMOVE status_outbox", {":generation": generation}, condition)
        except ConditionNotMetError:
            return

    def _terminal_values(self, status: RequestStatus, message: str, is_dead_letter: bool = False) -> dict[str, Any]:
        outbox = {"status": str(status), "message": message} | ({"is_dead_letter": True} if is_dead_letter else {})
        return {":status": str(status), ":message": message, ":outbox": outbox, ":zero": 0}

    def _end(
        self, image_id: str, values: dict[str, Any], condition: str, generation: int | None = None
    ) -> JobItem | None:
        """Write a terminal status, only for ``generation`` unless that is None.

        A slow worker must not end the next generation for a reason of the last one. The duration needs the start time,
        which does not change within a generation, so it is read first.
        """
        if generation is not None:
            condition += f" AND {_IS_GENERATION}"
            values = values | {":generation": generation}
        now_ms = int(self._now() * 1000)
        item = self.find(image_id)
        duration_s = max(0, now_ms - (item.start_time or now_ms)) // 1000 if item else 0
        expression = (
            "SET image_status = :status, message = :message, status_outbox = :outbox, agg_lease_until = :zero,"
            " end_time = :end, processing_duration = :duration"
        )
        return self._try_update(image_id, expression, values | {":end": now_ms, ":duration": duration_s}, condition)

    def _try_update(self, image_id: str, expression: str, values: dict[str, Any], condition: str) -> JobItem | None:
        try:
            return JobItem.from_row(self.update({"image_id": image_id}, expression, values, condition))
        except ConditionNotMetError:
            return None
