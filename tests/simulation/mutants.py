"""The protocol with one guard taken away at a time: the oracle has to notice, or it is not worth much.

A mutant replaces a few attributes of production objects. It names the profile in which its guard matters; some make
one fault of it more frequent, so that few worlds are enough.
"""

import copy
import dataclasses
import random
import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import Any
from unittest.mock import patch

from aws.osml.model_runner import region_request_handler
from aws.osml.model_runner.database import outstanding_jobs_table as outstanding_jobs_table
from aws.osml.model_runner.database import region_request_table
from aws.osml.model_runner.database.ddb_helper import DDBHelper, to_dynamodb
from aws.osml.model_runner.database.endpoint_statistics_table import EndpointStatisticsTable
from aws.osml.model_runner.database.feature_table import FeatureTable
from aws.osml.model_runner.database.job_table import CANCELLED, TERMINAL_VALUES, JobItem, JobTable
from aws.osml.model_runner.database.outstanding_jobs_table import OutstandingJobsTable
from aws.osml.model_runner.database.region_request_table import RegionRequestItem, RegionRequestTable
from aws.osml.model_runner.database.scheduler_lock import SchedulerLock
from aws.osml.model_runner.exceptions import ConditionNotMetError, TableError
from aws.osml.model_runner.image_request_handler import ImageRequestHandler
from aws.osml.model_runner.jobs import completion as image_completion
from aws.osml.model_runner.jobs import region as region_work
from aws.osml.model_runner.jobs.completion import ImageCompletion
from aws.osml.model_runner.jobs.leases import LeaseKeeper
from aws.osml.model_runner.jobs.planning import ImagePlan
from aws.osml.model_runner.jobs.region import RegionProcessor
from aws.osml.model_runner.region_request_handler import RegionRequestHandler
from aws.osml.model_runner.sink import kinesis_sink
from aws.osml.model_runner.worker import sweeper as job_sweeper
from aws.osml.model_runner.worker.sweeper import JobSweeper

from .faults import PROFILES, Faults

Replacement = tuple[Any, str, Any]


@dataclasses.dataclass(frozen=True)
class Mutant:
    """A replacement of production code, and the world in which its fault shows.

    ``is_harmless``: the mutant costs work and breaks nothing. ``seeds``: worlds to try until the fault shows.
    """

    name: str
    replacements: Callable[[], list[Replacement]]
    profile: str = "hard"
    more: dict[str, Any] = dataclasses.field(default_factory=dict)
    seeds: int = 150
    is_harmless: bool = False

    @property
    def worlds(self) -> range:
        """The worlds to try, from the one on in which it showed last."""
        first = _SHOWN_IN.get(self.name, 0)
        return range(first, first + self.seeds)

    @property
    def faults(self) -> Faults:
        return dataclasses.replace(PROFILES[self.profile], **self.more)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Have production code without the guard."""
        with ExitStack() as stack:
            for thing, name, value in self.replacements():
                stack.enter_context(patch.object(thing, name, value))
            yield


def _nothing(*_: Any, **__: Any) -> None:
    """Do nothing where something was done."""


def _never(*_: Any, **__: Any) -> bool:
    return False


def _named(values: dict[str, Any], expressions: str) -> dict[str, Any]:
    """Return the values that are named; DynamoDB refuses others."""
    named = set(re.findall(r":\w+", expressions))
    return {name: value for name, value in values.items() if name in named}


def _write(table: DDBHelper, write: dict[str, Any], condition: str = "") -> None:
    """Do one write of a transaction by itself, under another condition or none."""
    update = write["Update"]
    values = _named(update["ExpressionAttributeValues"], f"{update['UpdateExpression']} {condition}")
    table.update(update["Key"], update["UpdateExpression"], values, condition or None)


# A1 to F0 ---------------------------------------------------------------------------------------------------------


def _accepted_again() -> list[Replacement]:
    def put_new(table_name: str, item: dict[str, Any], _key: str, _now_s: float) -> dict[str, Any]:
        return {"Put": {"TableName": table_name, "Item": to_dynamodb(item)}}

    return [(outstanding_jobs_table, "_put_new", put_new)]


class _Careless:
    """A table whose writes have no condition."""

    def __init__(self, table: Any) -> None:
        self._table = table

    def __getattr__(self, name: str) -> Any:
        return getattr(self._table, name)

    def put(self, item: Any, *_condition: Any) -> Any:
        return self._table.put(item)

    def update(self, key: Any, expression: str, values: Any, _condition: str | None = None) -> Any:
        return self._table.update(key, expression, _named(values, expression))

    def _try(self, job: Any, expression: str, values: Any, _condition: str) -> bool:
        self.update(outstanding_jobs_table._key(job), expression, values)
        return True

    def _try_update(self, image_id: str, expression: str, values: Any, _condition: str) -> Any:
        return self._table._try_update(image_id, expression, _named(values, expression), "attribute_exists(image_id)")

    def _while_ours(self, claim: Any, expression: str, values: Any) -> bool:
        self.update(claim.key, expression, values)
        return True

    def _transact(self, *writes: Any) -> None:
        """Do writes each without its condition."""
        for write in writes:
            ((kind, request),) = write.items()
            request = {name: part for name, part in request.items() if name != "ConditionExpression"}
            if kind == "Put":
                request.pop("ExpressionAttributeValues", None)
                self._table._api.put_item(**request)
                continue
            values = request["ExpressionAttributeValues"]
            request["ExpressionAttributeValues"] = _named(values, request["UpdateExpression"])
            self._table._api.update_item(**request)

    def _end(self, image_id: str, values: Any, _condition: str, _generation: int | None = None) -> Any:
        named = {name: value for name, value in values.items() if name not in TERMINAL_VALUES}
        return self._table._end(image_id, named, "attribute_exists(image_id)")


def _without_condition(table: Any, method: str) -> list[Replacement]:
    original = getattr(table, method)
    return [(table, method, lambda self, *given, **named: original(_Careless(self), *given, **named))]


# R3 ---------------------------------------------------------------------------------------------------------------


_end_region = RegionRequestTable.end_region


def _halves_of_end(table: Any, *arguments: Any) -> list[dict[str, Any]]:
    """Return the two writes of R3, which are not made."""
    writes: list[dict[str, Any]] = []
    idle = copy.copy(table)
    idle._transact = lambda *both: writes.extend(both)
    _end_region(idle, *arguments)
    return writes


def _plain_counters() -> list[Replacement]:
    def end_region(self: Any, job_table: Any, claim: Any, *arguments: Any) -> Any:
        row, count = _halves_of_end(self, job_table, claim, *arguments)
        _write(self, row)
        _write(job_table, count)
        return claim.item

    return [(RegionRequestTable, "end_region", end_region)]


def _row_then_counter() -> list[Replacement]:
    def end_region(self: Any, job_table: Any, claim: Any, *arguments: Any) -> Any:
        row, count = _halves_of_end(self, job_table, claim, *arguments)
        try:
            _write(self, row, row["Update"]["ConditionExpression"])
        except ConditionNotMetError:
            return None
        _write(job_table, count)
        return claim.item

    return [(RegionRequestTable, "end_region", end_region)]


# T1 ---------------------------------------------------------------------------------------------------------------


def _random_keys() -> list[Replacement]:
    original, rng = FeatureTable._tile_row_key, random.Random(1)

    def row_key(self: Any, key: Any) -> dict[str, str]:
        names = original(self, key)
        return names | {"range_key": f"{names['range_key']}#{rng.random()}"}

    return [(FeatureTable, "_tile_row_key", row_key)]


def _tile_overwrite() -> list[Replacement]:
    def put(self: Any, item: Any, condition: Any = None, values: Any = None) -> None:
        DDBHelper.put(self, item)

    return [(FeatureTable, "put", put)]


class _SameBits:
    def __init__(self, rng: random.Random) -> None:
        self.uniform = rng.uniform

    def getrandbits(self, _count: int) -> int:
        return 0


def _chunks_without_token() -> list[Replacement]:
    original = FeatureTable.__init__

    def init(self: Any, *arguments: Any, **named: Any) -> None:
        original(self, *arguments, **named)
        self._rng = _SameBits(self._rng)

    return [(FeatureTable, "__init__", init)]


# G1 to G5 ---------------------------------------------------------------------------------------------------------


def _terminal_without_fence() -> list[Replacement]:
    def end(self: Any, image_id: str, fence: int, status: Any, message: str) -> Any:
        return self._end(image_id, self._terminal_values(status, message), "attribute_exists(image_id)")

    return [(JobTable, "end_aggregation", end)]


def _aggregation_without_count() -> list[Replacement]:
    return [(JobTable, "is_image_request_complete", staticmethod(lambda item: item.region_count is not None))]


def _no_outbox() -> list[Replacement]:
    original = JobTable._end

    def end(self: Any, image_id: str, values: dict[str, Any], condition: str, generation: int | None = None) -> Any:
        item = original(self, image_id, values | {":outbox": {}}, condition, generation)
        if item is not None:
            item.status_outbox = values[":outbox"]
        return item

    return [(JobTable, "_end", end)]


def _closed_before_published() -> list[Replacement]:
    original = ImageCompletion.close

    def close(self: Any, job: Any) -> None:
        self._close_job(job)
        original(self, job)

    return [(ImageCompletion, "close", close)]


def _close_of_any_generation() -> list[Replacement]:
    def close(self: Any, image: Any) -> None:
        key = {"endpoint_id": image.model_name, "job_id": outstanding_jobs_table.key_of_image(image)}
        with suppress(ConditionNotMetError):
            self.delete(key, "attribute_exists(job_id)")

    return [(OutstandingJobsTable, "close", close)]


# Reads, attempts and caps -----------------------------------------------------------------------------------------


class _Eventually:
    def __init__(self, api: Any) -> None:
        self._api = api

    def __getattr__(self, operation: str) -> Any:
        call = getattr(self._api, operation)

        def careless(**request: Any) -> Any:
            request.pop("ConsistentRead", None)
            for wanted in request.get("RequestItems", {}).values():
                if isinstance(wanted, dict):
                    wanted.pop("ConsistentRead", None)
            return call(**request)

        return careless


def _eventual_reads() -> list[Replacement]:
    api = property(lambda self: _Eventually(self.client.meta.client))
    return [(DDBHelper, "_api", api)]


def _backoffs_are_attempts() -> list[Replacement]:
    def release(self: Any, claim: Any, not_before: float = 0.0, is_backoff: bool = False) -> bool:
        values = {":zero": 0, ":not_before": not_before, ":backoff": int(is_backoff)}
        expression = "SET lease_until = :zero, not_before = :not_before ADD backoffs :backoff"
        return bool(self._while_ours(claim, expression, values))

    return [(RegionRequestTable, "release", release)]


def _no_shuffle() -> list[Replacement]:
    def run_tiles(self: Any, run: Any, steps: Any, tiles: Any, _known: Any, item: Any) -> None:
        # The tile that kills is the last of the plan; without the shuffle it is always the first to be begun here.
        for tile in reversed(tiles):
            self._pipeline.run(run, steps, [tile])

    return [(region_work.RegionProcessor, "_run_tiles", run_tiles)]


def _kept_on_error() -> list[Replacement]:
    return [(RegionRequestTable, "release", lambda *_, **__: True)]


def _sweep_ends_at_an_error() -> list[Replacement]:
    def sweep(self: Any, should_stop: Callable[[], bool] = lambda: False) -> None:
        for job in self._outstanding_jobs.open_rows():
            if should_stop():
                return
            if isinstance(job, outstanding_jobs_table.UnreadableJob):
                self._advance_unreadable(job)
            else:
                self._advance(job)

    return [(JobSweeper, "sweep", sweep)]


def _walk_ends_at_a_row() -> list[Replacement]:
    def strictly(row: Any) -> Any:
        try:
            return outstanding_jobs_table.OpenJob.from_row(row)
        except TypeError as err:
            raise TableError(str(err)) from err

    return [(outstanding_jobs_table, "_open_row", strictly)]


def _failed_finish_is_released() -> list[Replacement]:
    def fail(self: Any, image_id: str, fence: int, wait_s: float, _error: str) -> bool:
        return bool(self.release_aggregation(image_id, fence, wait_s))

    return [(JobTable, "fail_aggregation", fail)]


# A2, the turns, and the slots at endpoints -----------------------------------------------------------------------


def _with_writes(thing: Any, method: str, changed: Callable[[dict[str, Any]], dict[str, Any]]) -> list[Replacement]:
    """Have a method's transaction changed, write by write."""
    original = getattr(thing, method)

    class Changed:
        def __init__(self, table: Any) -> None:
            self._table = table

        def __getattr__(self, name: str) -> Any:
            return getattr(self._table, name)

        def _transact(self, *writes: dict[str, Any]) -> None:
            self._table._transact(*({kind: changed(request)} for write in writes for kind, request in write.items()))

    return [(thing, method, lambda self, *given, **named: original(Changed(self), *given, **named))]


def _without(text: str) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """Return what takes one part out of the conditions of a transaction."""

    def changed(request: dict[str, Any]) -> dict[str, Any]:
        condition = request.get("ConditionExpression", "")
        if text not in condition:
            return request
        rest = " AND ".join(part for part in condition.replace(text, "").split(" AND ") if part.strip())
        others = {name: part for name, part in request.items() if name != "ConditionExpression"}
        if "ExpressionAttributeValues" in request:
            values = _named(request["ExpressionAttributeValues"], f"{request.get('UpdateExpression', '')} {rest}")
            others["ExpressionAttributeValues"] = values
        return others | ({"ConditionExpression": rest} if rest else {})

    return changed


def _without_lease() -> list[Replacement]:
    original = RegionRequestTable.claim

    class Greedy(_Careless):
        def update(self, key: Any, expression: str, values: Any, condition: str | None = None) -> Any:
            still = str(condition).replace(" AND lease_until < :now", "")
            return self._table.update(key, expression, _named(values, f"{expression} {still}"), still)

    return [(RegionRequestTable, "claim", lambda self, *given, **named: original(Greedy(self), *given, **named))]


def _start_whatever_became_of_it() -> list[Replacement]:
    def changed(request: dict[str, Any]) -> dict[str, Any]:
        if "num_attempts" not in request["UpdateExpression"]:
            return request
        values = _named(request["ExpressionAttributeValues"], request["UpdateExpression"])
        rest = {name: part for name, part in request.items() if name != "ConditionExpression"}
        return rest | {"ExpressionAttributeValues": values}

    return _with_writes(SchedulerLock, "start", changed)


def _slot_beyond_the_most() -> list[Replacement]:
    original = EndpointStatisticsTable.take_slot

    def take(self: Any, endpoint: str, owner: str, most: int, lease_s: float) -> Any:
        return original(self, endpoint, owner, most + 1, lease_s)

    return [(EndpointStatisticsTable, "take_slot", take)]


def _slot_for_ever() -> list[Replacement]:
    original = EndpointStatisticsTable.take_slot

    def take(self: Any, endpoint: str, owner: str, most: int, _lease_s: float) -> Any:
        return original(self, endpoint, owner, most, 1e9)

    return [(EndpointStatisticsTable, "take_slot", take)]


def _slot_of_whoever_deleted() -> list[Replacement]:
    def leave(self: Any, slot: Any) -> None:
        self.delete(slot.key)

    return [(EndpointStatisticsTable, "leave_slot", leave)]


# Generations ------------------------------------------------------------------------------------------------------


def _failures_stay() -> list[Replacement]:
    def put(self: Any, item: Any, condition: Any = None, values: Any = None) -> None:
        DDBHelper.put(self, item, "attribute_not_exists(range_key)")

    return [(FeatureTable, "put", put)]


def _begun_again_under_the_old_number() -> list[Replacement]:
    original = outstanding_jobs_table.reopening_update

    def update(*given: Any, **named: Any) -> dict[str, Any]:
        made = original(*given, **named)["Update"]
        expression = made["UpdateExpression"].replace(" ADD agg_fence :one", "")
        return {
            "Update": made
            | {
                "UpdateExpression": expression,
                "ExpressionAttributeValues": _named(
                    made["ExpressionAttributeValues"], f"{expression} {made['ConditionExpression']}"
                ),
            }
        }

    return [(outstanding_jobs_table, "reopening_update", update)]


def _delivered_whatever_is_missing() -> list[Replacement]:
    return [(JobItem, "needs_outputs_only", lambda self, *_: self.region_count is not None)]


def _failures_of_any_generation() -> list[Replacement]:
    original = FeatureTable.committed_tiles
    return [(FeatureTable, "committed_tiles", lambda self, *given: original(self, *given[:3]))]


def _plan_of_any_generation() -> list[Replacement]:
    original = ImageRequestHandler._enqueue_regions

    def share_out(self: Any, regions: Any, request: Any, *others: Any) -> Any:
        waiting = original(self, regions, request, *others)
        job = self.parts.outstanding_jobs.find(request)
        if job is not None:
            self.parts.outstanding_jobs.finish_planning(job)
        return waiting

    return [(ImageRequestHandler, "_enqueue_regions", share_out)]


_NOT_ENDED = region_request_table.IS_OPEN
_OUR_GENERATION = region_request_table.IS_OUR_GENERATION

# Worlds in which workers sleep through the end of what they hold.
_SLOW = {"stall": 0.3, "pause": 0.0, "kill": 0.0, "throttle": 0.0, "max_region_attempts": 1000}
_SLOW_AND_SENT_AGAIN = _SLOW | {"again": 1.0}
# Worlds whose endpoint has a place or a few, and whose clocks agree, so that it is known when a place runs out.
_FEW_SLOTS = {"throttle": 1.0, "skew_s": 0.0}
# Worlds whose jobs are cancelled, by somebody who may sleep over it.
_CANCELLED = _SLOW | {"cancel": 1.0}
# Worlds whose jobs are cancelled, and in which one kind of write is late.
_CANCELLED_AND_LATE = {"cancel": 1.0, "late": 0.9}

# Where mutants showed when this was written, other than in the first world. Any change of the code that runs changes
# the worlds, and what has moved is found again, only later.
_SHOWN_IN = {
    "start whatever became of it": 1979,
    "error of one job ends the sweep": 112,
    "begun again twice": 59,
    "region begun again twice": 4,
    "region of another generation": 785,
    "accepted again": 1,
    "region begun anew": 12,
    "plain counters": 17,
    "row then counter": 1,
    "tile overwrite": 1,
    "chunks without token": 1,
    "terminal write without fence": 1,
    "closed before published": 5,
    "eventually consistent reads": 2,
    "no other order": 3,
}

MUTANTS = [
    Mutant(
        "start after the turn",
        lambda: _with_writes(SchedulerLock, "start", _without("fence = :fence")),
        "zombie",
        _SLOW,
    ),
    Mutant("start whatever became of it", _start_whatever_became_of_it, "zombie", _CANCELLED, 300),
    Mutant(
        "plan kept after its end",
        lambda: _without_condition(OutstandingJobsTable, "renew_planning"),
        more=_CANCELLED_AND_LATE | {"late_write": "SET last_attempt = :now'"},
        seeds=300,
    ),
    Mutant(
        "plan marked as sent after its end",
        lambda: _without_condition(OutstandingJobsTable, "finish_planning"),
        more=_CANCELLED_AND_LATE | {"late_write": "SET planned_time"},
    ),
    Mutant(
        "regions noted after the end",
        lambda: _without_condition(OutstandingJobsTable, "record_region_count"),
        more=_CANCELLED_AND_LATE | {"late_write": "SET region_count"},
    ),
    Mutant(
        "swept after the end",
        lambda: _without_condition(OutstandingJobsTable, "mark_swept"),
        more=_CANCELLED_AND_LATE | {"late_write": "SET swept_time", "loss": 0.5},
    ),
    Mutant(
        "slot taken whoever has it",
        lambda: _without_condition(EndpointStatisticsTable, "_claim_slot"),
        "hard",
        _FEW_SLOTS,
    ),
    Mutant("slot beyond the most", _slot_beyond_the_most, "hard", _FEW_SLOTS),
    Mutant(
        "slot taken back",
        lambda: _without_condition(EndpointStatisticsTable, "renew_slot"),
        "zombie",
        _SLOW | _FEW_SLOTS,
    ),
    Mutant("slot of another deleted", _slot_of_whoever_deleted, "zombie", _SLOW | _FEW_SLOTS),
    Mutant("slot for ever", _slot_for_ever, "hard", _FEW_SLOTS),
    Mutant(
        "slot not given back",
        lambda: [(EndpointStatisticsTable, "leave_slot", _nothing)],
        "hard",
        _FEW_SLOTS,
        seeds=6,
        is_harmless=True,
    ),
    Mutant(
        "cancelled after its end",
        lambda: _without_condition(JobTable, "cancel"),
        more=_CANCELLED_AND_LATE | {"late_write": CANCELLED},
    ),
    Mutant(
        "counted after its end",
        lambda: _with_writes(RegionRequestTable, "end_region", _without(_NOT_ENDED)),
        more=_CANCELLED_AND_LATE | {"late_write": "region_success"},
    ),
    Mutant(
        "region of another generation",
        lambda: _with_writes(RegionRequestTable, "end_region", _without(_OUR_GENERATION)),
        "zombie",
        _CANCELLED | _SLOW_AND_SENT_AGAIN,
    ),
    Mutant(
        "plan of any generation",
        _plan_of_any_generation,
        more=_CANCELLED_AND_LATE | {"again": 1.0, "late_write": "attribute_not_exists(region_id)"},
    ),
    Mutant(
        "begun again twice", lambda: _without_condition(OutstandingJobsTable, "reopen"), "zombie", _SLOW_AND_SENT_AGAIN
    ),
    Mutant(
        "begun again under the old number",
        _begun_again_under_the_old_number,
        "lossy",
        {"denied": 1.0, "lost_reply": 0.4, "late": 0.9, "late_write": "end_time"},
    ),
    Mutant("delivered whatever is missing", _delivered_whatever_is_missing, "zombie", _SLOW_AND_SENT_AGAIN),
    Mutant(
        "region begun again twice",
        lambda: _without_condition(RegionRequestTable, "reopen"),
        "zombie",
        _SLOW_AND_SENT_AGAIN,
    ),
    Mutant("failures stay", _failures_stay, "sqs", {"is_resubmitted": 1.0}),
    Mutant("failures of any generation", _failures_of_any_generation, "sqs", {"is_resubmitted": 1.0}),
    Mutant("turn of another taken", lambda: _without_condition(SchedulerLock, "claim"), seeds=6, is_harmless=True),
    Mutant(
        "turn of another ended",
        lambda: _without_condition(SchedulerLock, "end"),
        "zombie",
        seeds=6,
        is_harmless=True,
    ),
    Mutant(
        "cancelled and gone on",
        lambda: [(RegionRequestHandler, "_is_open", lambda *_: True)],
        more={"cancel": 1.0},
        seeds=6,
        is_harmless=True,
    ),
    Mutant("region of another taken", _without_lease, seeds=6, is_harmless=True),
    Mutant(
        "region of another given back",
        lambda: _without_condition(RegionRequestTable, "release"),
        "zombie",
        seeds=6,
        is_harmless=True,
    ),
    Mutant(
        "every worker sweeps",
        lambda: [(OutstandingJobsTable, "claim_sweep", lambda *_: True)],
        seeds=6,
        is_harmless=True,
    ),
    Mutant("skipped tiles processed", lambda: [(RegionRequestItem, "rules_by_tile", {})]),
    Mutant(
        "skipped regions left to messages",
        lambda: [(RegionRequestHandler, "end_skipped_region", _never)],
        seeds=6,
        is_harmless=True,
    ),
    # The row of the region decides.
    Mutant(
        "every region taken for skipped",
        lambda: [(ImagePlan, "is_skipped", lambda *_: True)],
        seeds=6,
        is_harmless=True,
    ),
    Mutant("accepted again", _accepted_again, "sqs"),
    Mutant(
        "plan of an ended job",
        lambda: _without_condition(JobTable, "fix_plan"),
        more=_CANCELLED_AND_LATE | {"late_write": "region_count"},
    ),
    Mutant("region begun anew", lambda: _without_condition(RegionRequestTable, "start_region_request")),
    Mutant("end of a planned job", lambda: _without_condition(JobTable, "fail_unplanned"), "zombie", _SLOW),
    Mutant("no deadline", list, "dead", {"job_deadline_s": 86_400.0}),
    Mutant("kept on error", _kept_on_error, "outage"),
    Mutant("plain counters", _plain_counters),
    Mutant("row then counter", _row_then_counter),
    Mutant("random feature keys", _random_keys),
    Mutant("tile overwrite", _tile_overwrite, "zombie"),
    Mutant("chunks without token", _chunks_without_token, "zombie"),
    Mutant("terminal write without fence", _terminal_without_fence, "zombie", _SLOW, 300),
    Mutant("aggregation without count", _aggregation_without_count),
    Mutant("no sweeper", lambda: [(JobSweeper, "sweep", _nothing)]),
    Mutant("no second send", lambda: [(RegionRequestTable, "record_queued", _never)], "sqs"),
    Mutant("no outbox", _no_outbox, more={"crash_after": 0.02, "error": 0.3}),
    Mutant("closed before published", _closed_before_published, more={"crash_before": 0.02, "crash_after": 0.06}),
    Mutant(
        "close of any generation",
        _close_of_any_generation,
        # One of two workers that close a job is late. In the text of a request, the condition follows the key only
        # where a row is deleted.
        more={
            "cancel": 1.0,
            "again": 1.0,
            "late": 0.7,
            "late_write": "}, 'ConditionExpression': 'attribute_exists(job_id)",
        },
    ),
    Mutant("Kinesis refusals ignored", lambda: [(kinesis_sink, "refused", lambda *_: [])]),
    Mutant("eventually consistent reads", _eventual_reads),
    Mutant("back-offs are attempts", _backoffs_are_attempts, "outage"),
    Mutant("no plan cap", lambda: [(job_sweeper, "is_poison", _never)], "poison-plan", {"horizon_s": 9000.0}),
    Mutant(
        "no region cap", lambda: [(region_request_handler, "is_poison", _never)], "poison-tile", {"horizon_s": 9000.0}
    ),
    Mutant(
        "no aggregation cap",
        lambda: [(image_completion, "is_poison", _never)],
        "poison-aggregation",
        {"horizon_s": 9000.0},
    ),
    Mutant("failed finish does not count", _failed_finish_is_released, "poison-finish", {"horizon_s": 9000.0}),
    Mutant("error of one job ends the sweep", _sweep_ends_at_an_error, "spoilt", {"loss": 0.8}),
    Mutant("row that cannot be read ends every walk", _walk_ends_at_a_row, "spoilt"),
    Mutant("hopeless job is led on for ever", lambda: [(JobSweeper, "_is_hopeless", _never)], "spoilt"),
    Mutant(
        "no time gate",
        lambda: [(region_request_handler, "POISON_REGION_S", 0.0)],
        "lossy",
        # A lease is 60 s, so seven deaths in a row, as many as the default takes, are over within 600 s only by chance.
        # Four are, and with rarer deaths seldom does a healthy region lose its workers for the whole time.
        {"crash_before": 0.01, "crash_after": 0.01, "max_region_attempts": 3},
    ),
    Mutant("no other order", _no_shuffle, "poison-tile"),
    Mutant("no heartbeat", lambda: [(LeaseKeeper, "_renew", _nothing)], seeds=6, is_harmless=True),
    Mutant("no resume", lambda: [(RegionProcessor, "committed", lambda *_: {})], seeds=6, is_harmless=True),
]
