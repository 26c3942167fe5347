"""Table of regions: one row per region, claimed under a lease, ended once.

The conditional writes carry the letters of docs/explanation/what-happens-when-a-worker-dies.md. A4 creates a row, R1
claims it, R2 renews or releases the claim. R3 ends the region and counts it on the image's row in one transaction. D2
starts the region again.
"""

import dataclasses
import random
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from aws.osml.model_runner.common.backoff import backoff_s
from aws.osml.model_runner.common.typing import ImageRegion, RequestStatus
from aws.osml.model_runner.exceptions import (
    ConditionNotMetError,
    StartRegionException,
    TableBusyError,
)

from ._published import PublishedRegionRequestTable
from .ddb_helper import FIRST_CONFLICT_WAIT_S, Item, to_dynamodb
from .job_table import IS_OPEN, ROW_LIFE_S, TERMINAL_VALUES, JobTable
from .region_item import RegionRequestItem as RegionRequestItem

NOT_TERMINAL = "NOT region_status IN (:success, :partial, :failed)"
# The claim is still ours: every other claim has another fence, and the region has not ended.
IS_OUR_CLAIM = f"lease_owner = :owner AND fence = :fence AND {NOT_TERMINAL}"
# A worker that still processes an earlier generation must not end a region of the next one.
IS_OUR_GENERATION = "(generation = :generation OR attribute_not_exists(generation))"
IS_OPEN_REGION = f"attribute_exists(region_id) AND {NOT_TERMINAL}"

# Maximum number of tiles that a row lists: a longer list might not fit into an item of 400 KB.
MAX_LISTED_TILES = 5000

_CONFLICT_TRIES = 6
_CONFLICT_WAIT_S = 20.0


@dataclasses.dataclass(frozen=True)
class RegionClaim:
    """The right to process a region: ours as long as the row holds the claim's owner and fence."""

    item: RegionRequestItem
    owner: str
    fence: int

    @property
    def key(self) -> dict[str, str]:
        """The row's key."""
        return {"image_id": self.item.image_id, "region_id": self.item.region_id}


@dataclasses.dataclass(frozen=True)
class RegionHeld:
    """Another worker holds the region, or the region has to wait: claim it again after ``retry_after_s``."""

    retry_after_s: float


@dataclasses.dataclass(frozen=True)
class RegionEnded:
    """The region has ended, or its row no longer exists: nothing remains to be done."""


class RegionRequestTable(PublishedRegionRequestTable):
    """The table of regions."""

    def __init__(
        self,
        table_name: str,
        client: Any = None,
        now: Callable[[], float] = time.time,
        sleep: Callable[[float], None] = time.sleep,
        rng: random.Random | None = None,
        life_s: float = ROW_LIFE_S,
    ) -> None:
        super().__init__(table_name, client, sleep, rng, now)
        self._life_s = life_s

    def start_region_request(self, region_request_item: RegionRequestItem) -> RegionRequestItem:
        """Write the first row of a region, with its start time and every counter at zero.

        An existing row is not changed, and is returned: a region is planned once, however often this is called.

        Raises:
            StartRegionException: the row exists and has ended.
        """
        row = self._new_row(region_request_item)
        try:
            condition = "attribute_not_exists(region_id) OR expire_time < :now"
            self.put(row, condition, {":now": self._now()})
        except ConditionNotMetError as err:
            stored = RegionRequestItem.from_row(err.old or row)
            if stored.is_terminal:
                raise StartRegionException(f"the region {stored.region_id} has ended already") from err
            return stored
        return RegionRequestItem.from_row(row)

    def get_region_request(self, region_id: str, image_id: str) -> RegionRequestItem | None:
        """Return a region's current row, or None when the row does not exist or has expired."""
        row = self.read({"image_id": image_id, "region_id": region_id})
        if row is None or row.get("expire_time", self._now()) < self._now():
            return None
        return RegionRequestItem.from_row(row)

    def _new_row(self, item: RegionRequestItem) -> Item:
        now_s = self._now()
        fresh = dataclasses.replace(item, start_time=int(now_s * 1000), last_updated_time=int(now_s * 1000))
        fresh.region_status = str(RequestStatus.STARTED)
        fresh.expire_time = int(now_s + self._life_s)
        fresh.queued_time = now_s
        # No comparison holds for an absent attribute, so the attributes of the lease exist from the start.
        fresh.lease_until = fresh.not_before = 0.0
        fresh.generation = fresh.generation or 0
        fresh.fence = fresh.stalled_attempts = fresh.backoffs = fresh.region_retry_count = 0
        fresh.processing_duration = fresh.failed_tile_count = fresh.succeeded_tile_count = 0
        return fresh.to_put()

    # The protocol's writes ------------------------------------------------------------------------------------------

    def claim(
        self, image_id: str, region_id: str, owner: str, lease_s: float, is_to_abandon: bool = False
    ) -> RegionClaim | RegionHeld | RegionEnded:
        """R1: claim a region that no worker holds, under a new fence. The claim counts as an attempt without progress.

        A region that is claimed to be abandoned skips its back-off, because its endpoint is not called any more. The
        claim's unique name lets a repeated call recognise its own write after a lost response. Otherwise that write
        would count as the claim of a crashed worker.
        """
        now_s, holder = self._now(), self.name_of_claim(owner)
        expression = (
            "SET region_status = :in_progress, lease_owner = :owner, lease_until = :until, last_updated_time = :now_ms,"
            " stall_first_time = if_not_exists(stall_first_time, :now)"
            " ADD fence :one, region_retry_count :one, stalled_attempts :one"
        )
        values = {
            ":in_progress": str(RequestStatus.IN_PROGRESS),
            ":owner": holder,
            ":until": now_s + lease_s,
            ":now": now_s,
            ":now_ms": int(now_s * 1000),
            ":one": 1,
        } | TERMINAL_VALUES
        condition = f"{IS_OPEN_REGION} AND lease_until < :now"
        if not is_to_abandon:
            condition += " AND not_before <= :now"
        try:
            row = self.update({"image_id": image_id, "region_id": region_id}, expression, values, condition)
        except ConditionNotMetError as err:
            if err.old is None or err.old.get("region_status") in TERMINAL_VALUES.values():
                return RegionEnded()
            if err.old.get("lease_owner") != holder:
                wait_s = max(err.old.get("lease_until", 0), err.old.get("not_before", 0)) - now_s
                return RegionHeld(retry_after_s=max(1.0, wait_s))
            row = err.old
        item = RegionRequestItem.from_row(row)
        return RegionClaim(item, holder, item.fence or 0)

    def renew(self, claim: RegionClaim, lease_s: float, succeeded: int = 0, failed: int = 0) -> bool:
        """R2: extend a claim, and store the numbers of tiles that are done; False after it was lost."""
        expression = "SET lease_until = :until, succeeded_tile_count = :good, failed_tile_count = :bad"
        values = {":until": self._now() + lease_s, ":good": succeeded, ":bad": failed}
        return self._while_ours(claim, expression, values)

    def record_progress(self, claim: RegionClaim) -> bool:
        """R2: record that a tile was processed: only the current attempt stays counted as stalled.

        It stays counted because this worker may still crash on the region as earlier workers did.
        """
        expression = "SET stalled_attempts = :one, backoffs = :zero REMOVE stall_first_time"
        return self._while_ours(claim, expression, {":zero": 0, ":one": 1})

    def release(self, claim: RegionClaim, not_before: float = 0.0, is_backoff: bool = False) -> bool:
        """R2: release a claim. A worker that can release it did not crash, so the attempt does not count as stalled."""
        expression = (
            "SET lease_until = :zero, stalled_attempts = :zero, not_before = :not_before"
            " ADD backoffs :backoff REMOVE stall_first_time"
        )
        values = {":zero": 0, ":not_before": not_before, ":backoff": int(is_backoff)}
        return self._while_ours(claim, expression, values)

    def end_region(
        self,
        job_table: JobTable,
        claim: RegionClaim,
        status: RequestStatus,
        succeeded: Sequence[ImageRegion],
        failed: Sequence[ImageRegion],
        message: str | None = None,
    ) -> RegionRequestItem | None:
        """R3: end a region and count it and its tiles on the image's row, both or neither; return the ended region.

        Return None when the region or its image had ended before, or is in another generation. An earlier send of this
        call, whose response was lost, may have ended it too. In every case the region is counted at most once.

        Raises:
            TableBusyError: a table, or the image's row, was busy at each of several tries.
        """
        end = self._end_of(claim, status, succeeded, failed, message)
        update = {
            "TableName": self.table_name,
            "Key": claim.key,
            "UpdateExpression": "SET " + ", ".join(f"{name} = :{name}" for name in end),
            "ConditionExpression": f"{IS_OPEN_REGION} AND {IS_OUR_GENERATION}",
            "ExpressionAttributeValues": to_dynamodb({f":{name}": value for name, value in end.items()})
            | {":generation": claim.item.generation or 0}
            | TERMINAL_VALUES,
        }
        writes = (
            {"Update": update},
            _count_write(job_table.table_name, claim.item, status, len(succeeded), len(failed)),
        )
        for attempt in range(_CONFLICT_TRIES):
            try:
                self._transact(*writes)
            except ConditionNotMetError:
                return None
            except TableBusyError:
                if attempt == _CONFLICT_TRIES - 1:
                    raise
                # The wait grows by a factor of four, because all regions of a large image contend for one row.
                self._sleep(backoff_s(2 * attempt, FIRST_CONFLICT_WAIT_S, _CONFLICT_WAIT_S, self._rng))
            else:
                return dataclasses.replace(claim.item, **end)
        raise AssertionError("unreachable")

    def reopen(self, image_id: str, region_id: str, generation: int) -> bool:
        """D2: start a region of an earlier generation again; False when this was done before.

        The region need not have ended: an image that is cancelled or fails ends before its regions.
        """
        expression = (
            "SET region_status = :started, generation = :next, lease_until = :zero, not_before = :zero,"
            " stalled_attempts = :zero, backoffs = :zero, queued_time = :now, expire_time = :expire,"
            " succeeded_tile_count = :zero, failed_tile_count = :zero"
            " REMOVE stall_first_time, end_time, message, succeeded_tiles, failed_tiles, tiles_truncated"
            " ADD fence :one"
        )
        values = {
            ":started": str(RequestStatus.STARTED),
            ":next": generation,
            ":now": self._now(),
            ":expire": int(self._now() + self._life_s),
            ":zero": 0,
            ":one": 1,
        }
        condition = "attribute_exists(region_id) AND generation < :next"
        try:
            self.update({"image_id": image_id, "region_id": region_id}, expression, values, condition)
        except ConditionNotMetError:
            return False
        return True

    def regions_of(self, image_id: str) -> Iterator[RegionRequestItem]:
        """Yield every region of an image, in order of the region ids."""
        for row in self.query_partition("image_id", image_id):
            yield RegionRequestItem.from_row(row)

    def tiles_in_work(self, image_id: str) -> tuple[int, int]:
        """Return how many tiles succeeded and failed in regions that have not ended, as of their last renewals."""
        rows = self.query_partition(
            "image_id",
            image_id,
            ProjectionExpression="succeeded_tile_count, failed_tile_count",
            FilterExpression="region_status = :in_progress",
            ExpressionAttributeValues={":hash_value": image_id, ":in_progress": str(RequestStatus.IN_PROGRESS)},
        )
        counts = [(row.get("succeeded_tile_count", 0), row.get("failed_tile_count", 0)) for row in rows]
        return sum(succeeded for succeeded, _ in counts), sum(failed for _, failed in counts)

    def record_queued(self, image_id: str, region_id: str) -> bool:
        """Record that a region's message is being sent again; False when the region has ended."""
        values = {":now": self._now()} | TERMINAL_VALUES
        try:
            key = {"image_id": image_id, "region_id": region_id}
            self.update(key, "SET queued_time = :now", values, IS_OPEN_REGION)
        except ConditionNotMetError:
            return False
        return True

    def _while_ours(self, claim: RegionClaim, expression: str, values: dict[str, Any]) -> bool:
        values = values | {":owner": claim.owner, ":fence": claim.fence} | TERMINAL_VALUES
        try:
            self.update(claim.key, expression, values, IS_OUR_CLAIM)
        except ConditionNotMetError:
            return False
        return True

    def _end_of(
        self,
        claim: RegionClaim,
        status: RequestStatus,
        succeeded: Sequence[ImageRegion],
        failed: Sequence[ImageRegion],
        message: str | None,
    ) -> dict[str, Any]:
        """Return the attributes that R3 writes to the region's row."""
        now_ms = int(self._now() * 1000)
        end: dict[str, Any] = {
            "region_status": str(status),
            "total_tiles": len(succeeded) + len(failed),
            "succeeded_tile_count": len(succeeded),
            "failed_tile_count": len(failed),
            "end_time": now_ms,
            "last_updated_time": now_ms,
            "processing_duration": now_ms - (claim.item.start_time or now_ms),
            "lease_until": 0,
        }
        if message:
            end["message"] = message
        if len(succeeded) + len(failed) <= MAX_LISTED_TILES:
            end["succeeded_tiles"] = [tile.to_lists() for tile in succeeded]
            end["failed_tiles"] = [tile.to_lists() for tile in failed]
        else:
            end["tiles_truncated"] = True
        return end


def _count_write(
    table_name: str, region: RegionRequestItem, status: RequestStatus, succeeded: int, failed: int
) -> Item:
    """Return the half of R3 that counts on the image's row. A region that is not SUCCESS counts as failed."""
    counter = "region_success" if status is RequestStatus.SUCCESS else "region_error"
    update = {
        "TableName": table_name,
        "Key": {"image_id": region.image_id},
        "UpdateExpression": f"ADD {counter} :one, tile_success :succeeded, tile_error :failed_tiles",
        "ConditionExpression": f"{IS_OPEN} AND {IS_OUR_GENERATION}",
        "ExpressionAttributeValues": {":one": 1, ":succeeded": succeeded, ":failed_tiles": failed}
        | {":generation": region.generation or 0}
        | TERMINAL_VALUES,
    }
    return {"Update": update}
