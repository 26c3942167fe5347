"""A twin of DynamoDB in memory, called as boto3's client of a resource is: Python values in, Python values out.

Each operation takes effect at once and whole. Conditional writes, transactions with their reasons, the old item on a
failed condition, pages, consistent and other reads, and refusals behave as in the service. The same tests run against
this twin and against an emulator.
"""

import dataclasses
import functools
import random
import threading
from collections.abc import Callable, Iterable, Mapping
from decimal import Decimal
from types import SimpleNamespace
from typing import Any, NamedTuple

from botocore.exceptions import ClientError

from .expressions import SyntaxProblem, condition, projection, update

Item = dict[str, Any]
Key = tuple[Any, ...]

MAX_ITEM_BYTES = 400 * 1024
# How a worker's environment names the tables of ``worker_tables``.
TABLE_NAMES = {
    "JOB_TABLE": "images",
    "REGION_REQUEST_TABLE": "regions",
    "FEATURE_TABLE": "features",
    "OUTSTANDING_JOBS_TABLE": "outstanding",
    "ENDPOINT_TABLE": "endpoints",
}
# How long a read that is not consistent may still give what stood there before.
_STALE_S = 1.0
_WIRE_NAMES: dict[type, str] = {str: "S", Decimal: "N", bool: "BOOL", bytes: "B"}
_TOKEN_LIFE_S = 600.0


def aws_error(code: str, operation: str, message: str = "", status: int = 400, **more: Any) -> ClientError:
    """Return an error in the shape that botocore gives those of the services."""
    response = {"Error": {"Code": code, "Message": message}, "ResponseMetadata": {"HTTPStatusCode": status}, **more}
    return ClientError(response, operation)  # type: ignore[arg-type]


def _invalid(operation: str, message: str) -> ClientError:
    return aws_error("ValidationException", operation, message)


def _refused(operation: str, old: Item | None) -> ClientError:
    more = {} if old is None else {"Item": _wire_item(old)}
    return aws_error("ConditionalCheckFailedException", operation, "The conditional request failed", **more)


def frozen(value: Any) -> Any:
    """Return a value as it is stored; nothing that a caller holds is shared. Floats are refused, as boto3 does."""
    kind = type(value)
    if kind is str or kind is Decimal or kind is bool or value is None or kind is bytes:
        return value
    if kind is int:
        return Decimal(value)
    if kind is dict:
        return {key: frozen(inner) for key, inner in value.items()}
    if isinstance(value, str):
        return str(value)
    if isinstance(value, int):
        return Decimal(value)
    if isinstance(value, list):
        return [frozen(inner) for inner in value]
    if isinstance(value, Mapping):
        return {key: frozen(inner) for key, inner in value.items()}
    if isinstance(value, set | frozenset):
        if not value:
            raise _invalid("PutItem", "An set may not be empty")
        return frozenset(frozen(inner) for inner in value)
    raise TypeError(f"Unsupported type {kind} for value {value!r}")


def _wire(value: Any) -> Any:
    kind = type(value)
    if kind in _WIRE_NAMES:
        return {_WIRE_NAMES[kind]: str(value) if kind is Decimal else value}
    if value is None:
        return {"NULL": True}
    if kind is list:
        return {"L": [_wire(inner) for inner in value]}
    if kind is dict:
        return {"M": _wire_item(value)}
    members = sorted(value)
    return {"SS": members} if isinstance(members[0], str) else {"NS": [str(member) for member in members]}


def _wire_item(item: Mapping[str, Any]) -> dict[str, Any]:
    return {name: _wire(value) for name, value in item.items()}


def size_bytes(value: Any) -> int:
    """Return about how many bytes DynamoDB counts for a value, or for an item."""
    if isinstance(value, str):
        return len(value) if value.isascii() else len(value.encode())
    if isinstance(value, Decimal):
        return 1 + (len(value.as_tuple().digits) + 1) // 2
    if isinstance(value, dict):
        return 3 + sum(len(name) + 1 + size_bytes(inner) for name, inner in value.items())
    if isinstance(value, list | frozenset):
        return 3 + sum(1 + size_bytes(inner) for inner in value)
    return len(value) if isinstance(value, bytes) else 1


@dataclasses.dataclass(slots=True)
class _Row:
    item: Item | None
    written: float
    before: Item | None = None


class Table:
    """One table: rows by partition and, within it, by sort key."""

    def __init__(self, name: str, hash_key: str, range_key: str | None = None) -> None:
        self.name = name
        self.keys = (hash_key,) if range_key is None else (hash_key, range_key)
        self.partitions: dict[Any, dict[Key, _Row]] = {}
        self._key_names = frozenset(self.keys)

    def key_of(self, item: Mapping[str, Any], operation: str, is_whole_item: bool = False) -> Key:
        """Return the key of an item, or of a request's ``Key``, which names nothing else."""
        if not is_whole_item and item.keys() != self._key_names:
            raise _invalid(operation, "The provided key element does not match the schema")
        values = tuple([item.get(name) for name in self.keys])
        for value in values:
            if not value or not isinstance(value, str):
                raise _invalid(operation, "One or more parameter values were invalid: missing, empty or mistyped key")
        return values

    def row(self, key: Key) -> _Row | None:
        return self.partitions.get(key[0], {}).get(key)

    def item(self, key: Key) -> Item | None:
        row = self.row(key)
        return None if row is None else row.item

    def items(self) -> list[Item]:
        return [row.item for rows in self.partitions.values() for row in rows.values() if row.item is not None]


class Write(NamedTuple):
    """One change of one item, as observers receive it."""

    table: str
    key: Key
    old: Item | None
    new: Item | None


class DynamoDB:
    """The service: tables, and the operations that the production code calls, by their names in boto3."""

    def __init__(
        self,
        tables: Iterable[Table],
        now: Callable[[], float],
        rng: random.Random,
        page_items: int = 1000,
        max_item_bytes: int | None = MAX_ITEM_BYTES,
        stale_probability: float = 0.0,
        unprocessed_probability: Callable[[], float] = lambda: 0.0,
    ) -> None:
        self.tables = {table.name: table for table in tables}
        self.observers: list[Callable[[Write], None]] = []
        self._now = now
        self._rng = rng
        self._page_items = page_items
        self._max_item_bytes = max_item_bytes
        self._stale_probability = stale_probability
        self._unprocessed_probability = unprocessed_probability
        self._tokens: dict[str, float] = {}

    def resource(self) -> SimpleNamespace:
        """Return what boto3 calls a resource, for threads: one operation at a time."""
        return SimpleNamespace(meta=SimpleNamespace(client=_OneAtATime(self)))

    # Reads ----------------------------------------------------------------------------------------------------------

    def get_item(self, *, TableName: str, Key: Item, ConsistentRead: bool = False) -> Item:
        table = self._table(TableName, "GetItem")
        item = self._read(table.row(table.key_of(Key, "GetItem")), ConsistentRead)
        return {} if item is None else {"Item": dict(item)}

    def batch_get_item(self, *, RequestItems: dict[str, Any]) -> Item:
        answer: Item = {"Responses": {}, "UnprocessedKeys": {}}
        if sum(len(wanted["Keys"]) for wanted in RequestItems.values()) > 100:
            raise _invalid("BatchGetItem", "Too many items requested for the BatchGetItem call")
        for name, wanted in RequestItems.items():
            table = self._table(name, "BatchGetItem")
            keys = [table.key_of(key, "BatchGetItem") for key in wanted["Keys"]]
            if len(set(keys)) < len(keys):
                raise _invalid("BatchGetItem", "Provided list of item keys contains duplicates")
            done, left = self._processed(wanted["Keys"])
            found = [self._read(table.row(table.key_of(key, "")), wanted.get("ConsistentRead", False)) for key in done]
            names = _compiled("BatchGetItem", projection, wanted["ProjectionExpression"])
            answer["Responses"][name] = [
                {attribute: item[attribute] for attribute in names if attribute in item}
                for item in found
                if item is not None
            ]
            if left:
                answer["UnprocessedKeys"][name] = {**wanted, "Keys": left}
        return answer

    def query(
        self,
        *,
        TableName: str,
        KeyConditionExpression: str,
        ExpressionAttributeValues: Item,
        ConsistentRead: bool = False,
        FilterExpression: str | None = None,
        ExclusiveStartKey: Item | None = None,
    ) -> Item:
        table = self._table(TableName, "Query")
        values = self._values("Query", ExpressionAttributeValues, KeyConditionExpression, FilterExpression)
        wanted = _compiled("Query", condition, KeyConditionExpression).holds
        name = table.keys[0]
        partition = next((value for value in values.values() if wanted({name: value}, values)), None)
        if partition is None:
            raise _invalid("Query", "Query condition missed key schema element")
        rows = sorted(table.partitions.get(partition, {}).items())
        return self._page(table, rows, ConsistentRead, wanted, FilterExpression, values, ExclusiveStartKey)

    def scan(
        self,
        *,
        TableName: str,
        ConsistentRead: bool = False,
        FilterExpression: str | None = None,
        ExpressionAttributeValues: Item | None = None,
        ExclusiveStartKey: Item | None = None,
    ) -> Item:
        table = self._table(TableName, "Scan")
        values = self._values("Scan", ExpressionAttributeValues, FilterExpression)
        rows = sorted(pair for rows in table.partitions.values() for pair in rows.items())
        return self._page(
            table, rows, ConsistentRead, lambda _item, _values: True, FilterExpression, values, ExclusiveStartKey
        )

    def _page(
        self,
        table: Table,
        rows: list[tuple[Key, _Row]],
        is_consistent: bool,
        wanted: Callable[[Item, Item], bool],
        filter_text: str | None,
        values: Item,
        start: Item | None,
    ) -> Item:
        after = None if start is None else table.key_of(start, "Query")
        keep = condition(filter_text).holds if filter_text else None
        items: list[Item] = []
        seen = 0
        for key, row in rows:
            if after is not None and key <= after:
                continue
            item = self._read(row, is_consistent)
            if item is None or not wanted(item, values):
                continue
            if keep is None or keep(item, values):
                items.append(dict(item))
            seen += 1
            if seen == self._page_items:
                last = dict(zip(table.keys, key, strict=True))
                return {"Items": items, "Count": len(items), "ScannedCount": seen, "LastEvaluatedKey": last}
        return {"Items": items, "Count": len(items), "ScannedCount": seen}

    def _read(self, row: _Row | None, is_consistent: bool) -> Item | None:
        if row is None:
            return None
        is_recent = self._stale_probability and self._now() - row.written < _STALE_S
        if not is_consistent and is_recent and self._rng.random() < self._stale_probability:
            return row.before
        return row.item

    # Writes ---------------------------------------------------------------------------------------------------------

    def put_item(
        self,
        *,
        TableName: str,
        Item: Item,
        ConditionExpression: str | None = None,
        ExpressionAttributeValues: Item | None = None,
        ReturnValuesOnConditionCheckFailure: str = "NONE",
    ) -> Item:
        table, key, new = self._put(
            "PutItem", TableName, Item, ConditionExpression, ExpressionAttributeValues,
            ReturnValuesOnConditionCheckFailure,
        )  # fmt: skip
        self._store(table, key, new)
        return {}

    def update_item(
        self,
        *,
        TableName: str,
        Key: Item,
        UpdateExpression: str,
        ConditionExpression: str | None = None,
        ExpressionAttributeValues: Item | None = None,
        ReturnValues: str = "NONE",
        ReturnValuesOnConditionCheckFailure: str = "NONE",
    ) -> Item:
        table, key, new = self._update(
            "UpdateItem", TableName, Key, UpdateExpression, ConditionExpression, ExpressionAttributeValues,
            ReturnValuesOnConditionCheckFailure,
        )  # fmt: skip
        self._store(table, key, new)
        if ReturnValues not in ("NONE", "ALL_NEW"):
            raise _invalid("UpdateItem", f"the twin does not return {ReturnValues}")
        return {"Attributes": dict(new)} if ReturnValues == "ALL_NEW" else {}

    def delete_item(
        self,
        *,
        TableName: str,
        Key: Item,
        ConditionExpression: str | None = None,
        ExpressionAttributeValues: Item | None = None,
        ReturnValuesOnConditionCheckFailure: str = "NONE",
    ) -> Item:
        table = self._table(TableName, "DeleteItem")
        key = table.key_of(Key, "DeleteItem")
        values = self._values("DeleteItem", ExpressionAttributeValues, ConditionExpression)
        self._check("DeleteItem", table.item(key), ConditionExpression, values, ReturnValuesOnConditionCheckFailure)
        self._store(table, key, None)
        return {}

    def batch_write_item(self, *, RequestItems: dict[str, list[Item]]) -> Item:
        if sum(len(requests) for requests in RequestItems.values()) > 25:
            raise _invalid("BatchWriteItem", "Too many items requested for the BatchWriteItem call")
        unprocessed: dict[str, list[Item]] = {}
        for name, requests in RequestItems.items():
            done, left = self._processed(requests)
            for request in done:
                self.put_item(TableName=name, Item=request["PutRequest"]["Item"])
            if left:
                unprocessed[name] = left
        return {"UnprocessedItems": unprocessed}

    def transact_write_items(self, *, TransactItems: list[Item], ClientRequestToken: str | None = None) -> Item:
        """Do all writes or none; the same token within ten minutes is the same call, and was done already."""
        if ClientRequestToken is not None and self._now() - self._tokens.get(ClientRequestToken, -1e9) < _TOKEN_LIFE_S:
            return {}
        operation = "TransactWriteItems"
        planned, reasons = [], []
        for action in TransactItems:
            ((kind, request),) = action.items()
            try:
                planned.append(self._planned(operation, kind, request))
                reasons.append({"Code": "None"})
            except ClientError as err:
                if err.response["Error"]["Code"] != "ConditionalCheckFailedException":
                    raise
                old = {"Item": err.response["Item"]} if "Item" in err.response else {}
                reasons.append({"Code": "ConditionalCheckFailed", "Message": "The conditional request failed", **old})
        touched = [(table.name, key) for table, key, _new in planned]
        if len(set(touched)) < len(touched) or len(TransactItems) > 100:
            raise _invalid(operation, "Transaction request cannot include multiple operations on one item")
        if len(planned) < len(TransactItems):
            raise cancelled([reason["Code"] for reason in reasons], reasons)
        for table, key, new in planned:
            self._store(table, key, new)
        if ClientRequestToken is not None:
            self._tokens[ClientRequestToken] = self._now()
        return {}

    def _planned(self, operation: str, kind: str, request: Item) -> tuple[Table, Key, Item]:
        returned = request.get("ReturnValuesOnConditionCheckFailure", "NONE")
        extra = (request.get("ConditionExpression"), request.get("ExpressionAttributeValues"), returned)
        match kind:
            case "Put":
                return self._put(operation, request["TableName"], request["Item"], *extra)
            case "Update":
                return self._update(
                    operation, request["TableName"], request["Key"], request["UpdateExpression"], *extra
                )
        raise _invalid(operation, f"the twin does not know {kind}")

    def _put(
        self, operation: str, name: str, item: Item, condition_text: str | None, given: Item | None, returned: str
    ) -> tuple[Table, Key, Item]:
        table = self._table(name, operation)
        values = self._values(operation, given, condition_text)
        new = frozen(item)
        key = table.key_of(new, operation, is_whole_item=True)
        self._check(operation, table.item(key), condition_text, values, returned)
        self._check_size(operation, new)
        return table, key, new

    def _update(
        self,
        operation: str,
        name: str,
        key_item: Item,
        text: str,
        condition_text: str | None,
        given: Item | None,
        returned: str,
    ) -> tuple[Table, Key, Item]:
        table = self._table(name, operation)
        key = table.key_of(key_item, operation)
        change = _compiled(operation, update, text)
        if change.names & set(table.keys):
            raise _invalid(operation, "Cannot update attribute. This attribute is part of the key")
        values = self._values(operation, given, condition_text, update_text=text)
        old = table.item(key)
        self._check(operation, old, condition_text, values, returned)
        try:
            new = change.apply(old if old is not None else dict(key_item), values)
        except SyntaxProblem as err:
            raise _invalid(operation, str(err)) from err
        self._check_size(operation, new)
        return table, key, new

    def _check_size(self, operation: str, item: Item) -> None:
        if self._max_item_bytes is not None and size_bytes(item) > self._max_item_bytes:
            raise _invalid(operation, "Item size has exceeded the maximum allowed size")

    def _check(self, operation: str, old: Item | None, text: str | None, values: Item, returned: str) -> None:
        if text and not condition(text).holds(old or {}, values):
            raise _refused(operation, old if returned == "ALL_OLD" else None)

    def _store(self, table: Table, key: Key, new: Item | None) -> None:
        rows = table.partitions.setdefault(key[0], {})
        old = table.item(key)
        rows[key] = _Row(new, self._now(), old)
        for observer in self.observers:
            observer(Write(table.name, key, old, new))

    # Requests -------------------------------------------------------------------------------------------------------

    def _table(self, name: str, operation: str) -> Table:
        if name not in self.tables:
            raise aws_error("ResourceNotFoundException", operation, "Cannot do operations on a non-existent table")
        return self.tables[name]

    def _values(self, operation: str, given: Item | None, *texts: str | None, update_text: str | None = None) -> Item:
        """Return the values of placeholders. Refuse a placeholder without a value, or without a use."""
        named = _placeholders(operation, update_text, texts)
        given = given or {}
        if named != given.keys():
            unused, missing = sorted(given.keys() - named), sorted(named - given.keys())
            kind = "unused in expressions" if unused else "not defined"
            raise _invalid(operation, f"Value provided in ExpressionAttributeValues {kind}: keys: {unused or missing}")
        return {name: frozen(value) for name, value in given.items()}

    def _processed(self, requests: list[Any]) -> tuple[list[Any], list[Any]]:
        """Split a batch into what is done now and what is handed back."""
        probability = self._unprocessed_probability()
        if not probability:
            return requests, []
        is_left = [self._rng.random() < probability for _ in requests]
        pairs = list(zip(requests, is_left, strict=True))
        return [request for request, left in pairs if not left], [request for request, left in pairs if left]


class _OneAtATime:
    def __init__(self, database: DynamoDB) -> None:
        self._database = database
        self._lock = threading.Lock()

    def __getattr__(self, operation: str) -> Callable[..., Item]:
        def call(**request: Any) -> Item:
            with self._lock:
                answer: Item = getattr(self._database, operation)(**request)
                return answer

        return call


def worker_tables() -> list[Table]:
    """Return the tables of a worker, empty."""
    return [
        Table("images", "image_id"),
        Table("regions", "image_id", "region_id"),
        Table("features", "hash_key", "range_key"),
        Table("outstanding", "endpoint_id", "job_id"),
        Table("endpoints", "endpoint"),
    ]


def cancelled(codes: list[str], reasons: list[Item] | None = None) -> ClientError:
    """Return the error of a transaction that was not done, with the reason for each of its writes."""
    message = f"Transaction cancelled, please refer cancellation reasons for specific reasons [{', '.join(codes)}]"
    reasons = reasons or [{"Code": code} for code in codes]
    return aws_error("TransactionCanceledException", "TransactWriteItems", message, CancellationReasons=reasons)


@functools.cache
def _placeholders(operation: str, update_text: str | None, texts: tuple[str | None, ...]) -> frozenset[str]:
    named: frozenset[str] = _compiled(operation, update, update_text).placeholders if update_text else frozenset()
    return named.union(*(_compiled(operation, condition, text).placeholders for text in texts if text))


def _compiled(operation: str, compiler: Callable[[str], Any], text: str) -> Any:
    try:
        return compiler(text)
    except SyntaxProblem as err:
        raise _invalid(operation, f"Invalid expression {text!r}: {err}") from err
