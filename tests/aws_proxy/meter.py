"""Counts the capacity units of DynamoDB calls by table and operation."""

import re
import threading
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from aws_proxy.proxy import Answer, Call, Forward, Units
from aws_proxy.units import item_bytes, read_units, write_units

_WRITES = frozenset({"PutItem", "UpdateItem", "DeleteItem", "BatchWriteItem", "TransactWriteItems"})
_READS = frozenset({"GetItem", "BatchGetItem", "TransactGetItems", "Query", "Scan"})
# A read is charged for whole items, even if it returns parts of them.
_NARROWING = frozenset({"ProjectionExpression", "FilterExpression", "AttributesToGet", "Select"})
_PLACEHOLDER = re.compile(r"[:#]\w+")


class UnitMeter:
    """A step that counts units; it has to be the last step, so that it sees what reaches the tables.

    The emulator charges writes as AWS does, by the larger of the old and the new item, when a call has it return that.
    Reads are charged here, from the size of the whole items. ``writes``, ``reads`` and ``calls`` count by table and
    operation.
    """

    def __init__(self) -> None:
        self.writes: Counter[tuple[str, str]] = Counter()
        self.reads: Counter[tuple[str, str]] = Counter()
        self.calls: Counter[tuple[str, str]] = Counter()
        self._lock = threading.Lock()

    def __call__(self, call: Call, forward: Forward) -> Answer:
        if call.service != "dynamodb":
            return forward(call)
        if call.operation in _WRITES:
            answer, units = _metered_write(call, forward)
        elif call.operation in _READS:
            answer, units = _metered_read(call, forward)
        else:
            return forward(call)
        call.units += units
        with self._lock:
            for one in units:
                self.writes[one.table, call.operation] += one.write
                self.reads[one.table, call.operation] += one.read
            for table in {one.table for one in units}:
                self.calls[table, call.operation] += 1
        return answer

    def written(self, table: str = "") -> float:
        """Return the write units of a table, or of all."""
        return sum(units for (name, _), units in self.writes.items() if table in ("", name))

    def read(self, table: str = "") -> float:
        """Return the read units of a table, or of all."""
        return sum(units for (name, _), units in self.reads.items() if table in ("", name))


def _metered_write(call: Call, forward: Forward) -> tuple[Answer, list[Units]]:
    request = call.document
    has_condition = "ConditionExpression" in request
    changed = {**request, "ReturnConsumedCapacity": "TOTAL"}
    if has_condition:
        changed["ReturnValuesOnConditionCheckFailure"] = "ALL_OLD"
    answer = forward(call.with_document(changed))
    result = answer.document
    if answer.status == 200:
        consumed = result.pop("ConsumedCapacity", [])
        consumed = consumed if isinstance(consumed, list) else [consumed]
        return answer.with_document(result), [Units(one["TableName"], write=one["CapacityUnits"]) for one in consumed]
    code = str(result.get("__type", "")).rpartition("#")[2]
    if code == "TransactionCanceledException":
        return answer, list(_units_of_cancelled(call, forward))
    if code != "ConditionalCheckFailedException":
        return answer, []
    # A write whose condition fails is charged as well, for the larger of what is there and what it brought.
    sizes = [item_bytes(item) for item in (result.get("Item", {}), request.get("Item", {}))]
    if request.get("ReturnValuesOnConditionCheckFailure") != "ALL_OLD":
        result.pop("Item", None)
    return answer.with_document(result), [Units(request["TableName"], write=write_units(max(sizes)))]


def _units_of_cancelled(call: Call, forward: Forward) -> Iterator[Units]:
    """Yield the units of a transaction that was cancelled: each of its items is charged."""
    for entry in call.document["TransactItems"]:
        ((kind, write),) = entry.items()
        size = item_bytes(write["Item"]) if kind == "Put" else _stored_bytes(call, forward, write)
        yield Units(write["TableName"], write=write_units(size, is_transaction=True))


def _stored_bytes(call: Call, forward: Forward, write: Mapping[str, Any]) -> int:
    read = {"TableName": write["TableName"], "Key": write["Key"], "ConsistentRead": True}
    return item_bytes(forward(_as(call, "GetItem", read)).document.get("Item", {}))


def _metered_read(call: Call, forward: Forward) -> tuple[Answer, list[Units]]:
    request = call.document
    answer = forward(call)
    if answer.status != 200:
        return answer, []
    whole = _whole(request)
    result = answer.document if whole == request else forward(call.with_document(whole)).document
    return answer, list(_READ_UNITS[call.operation](whole, result))


def _whole(request: Mapping[str, Any]) -> dict[str, Any]:
    """Return a read that finds the same items and returns all of each."""
    if "RequestItems" in request:
        return {**request, "RequestItems": {name: _whole(keys) for name, keys in request["RequestItems"].items()}}
    if not _NARROWING.intersection(request):
        return dict(request)
    kept = {name: value for name, value in request.items() if name not in _NARROWING}
    used = set(_PLACEHOLDER.findall(kept.get("KeyConditionExpression", "")))
    for name in ("ExpressionAttributeNames", "ExpressionAttributeValues"):
        placeholders = {key: value for key, value in kept.pop(name, {}).items() if key in used}
        kept |= {name: placeholders} if placeholders else {}
    return kept


def _units_of_get(request: Mapping[str, Any], result: Mapping[str, Any]) -> Iterator[Units]:
    size = item_bytes(result.get("Item", {}))
    yield Units(request["TableName"], read=read_units(size, bool(request.get("ConsistentRead"))))


def _units_of_batch(request: Mapping[str, Any], result: Mapping[str, Any]) -> Iterator[Units]:
    for table, read in request["RequestItems"].items():
        is_consistent = bool(read.get("ConsistentRead"))
        found = result["Responses"].get(table, [])
        unread = len(result.get("UnprocessedKeys", {}).get(table, {}).get("Keys", []))
        absent = len(read["Keys"]) - unread - len(found)
        units = sum(read_units(item_bytes(item), is_consistent) for item in found)
        yield Units(table, read=units + absent * read_units(0, is_consistent))


def _units_of_pages(request: Mapping[str, Any], result: Mapping[str, Any]) -> Iterator[Units]:
    size = sum(map(item_bytes, result.get("Items", [])))
    yield Units(request["TableName"], read=read_units(size, bool(request.get("ConsistentRead"))))


def _units_of_transaction(request: Mapping[str, Any], result: Mapping[str, Any]) -> Iterator[Units]:
    for entry, response in zip(request["TransactItems"], result["Responses"], strict=True):
        size = item_bytes(response.get("Item", {}))
        yield Units(entry["Get"]["TableName"], read=read_units(size, True, is_transaction=True))


_READ_UNITS = {
    "GetItem": _units_of_get,
    "BatchGetItem": _units_of_batch,
    "TransactGetItems": _units_of_transaction,
    "Query": _units_of_pages,
    "Scan": _units_of_pages,
}


def _as(call: Call, operation: str, document: Mapping[str, Any]) -> Call:
    target = {"x-amz-target": f"DynamoDB_20120810.{operation}"}
    return replace(call, operation=operation, headers={**call.headers, **target}).with_document(document)
