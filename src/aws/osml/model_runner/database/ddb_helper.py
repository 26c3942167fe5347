"""Base of all tables: keys, items, and calls that return plain Python values."""

import copy
import dataclasses
import itertools
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from decimal import Decimal
from typing import Any, Self, TypeVar

from boto3.dynamodb.types import TypeDeserializer
from botocore.exceptions import BotoCoreError, ClientError

from aws.osml.model_runner.aws.clients import default_clients
from aws.osml.model_runner.aws.errors import cancellation_codes, error_code, is_invalid_write, may_pass
from aws.osml.model_runner.common.backoff import backoff_s
from aws.osml.model_runner.exceptions import (
    ConditionNotMetError,
    DDBBatchWriteException,
    DDBUpdateException,
    TableBusyError,
    TransactionConflictError,
)

Item = dict[str, Any]
T = TypeVar("T")

_BATCH_ITEMS = 25  # limit of BatchWriteItem
_BATCH_GET_ITEMS = 100  # limit of BatchGetItem
_FIRST_DELAY_S = 0.125
_LONGEST_DELAY_S = 8.0
# DynamoDB refuses a write while a transaction holds its item, which takes milliseconds.
_CONFLICT = "TransactionConflictException"
_CONFLICT_TRIES = 8
FIRST_CONFLICT_WAIT_S = 0.05
_LONGEST_CONFLICT_WAIT_S = 2.0


@dataclasses.dataclass
class DDBKey:
    """Key of an item: its partition key, and the sort key when the table has one."""

    hash_key: str
    hash_value: str
    range_key: str | None = None
    range_value: str | None = None


@dataclasses.dataclass
class DDBItem:
    """A row of a table. A subclass defines attributes as dataclass fields and sets ``ddb_key`` in ``__post_init__``."""

    ddb_key: DDBKey = dataclasses.field(init=False, repr=False, compare=False)

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> Self:
        """Return the item that a row describes, without attributes that this version does not define."""
        return cls(**{name: row[name] for name in attribute_names(cls) if name in row})

    def to_put(self) -> Item:
        """Return every attribute that has a value, with the keys."""
        return {name: to_dynamodb(getattr(self, name)) for name in self.__get_fields()}

    def to_update(self) -> Item:
        """Return every attribute that has a value, without the keys, which an update may not change."""
        keys = {self.ddb_key.hash_key, self.ddb_key.range_key}
        return {name: value for name, value in self.to_put().items() if name not in keys}

    def __get_fields(self) -> list[str]:
        return [name for name in attribute_names(type(self)) if getattr(self, name) is not None]


def attribute_names(item_class: type[DDBItem]) -> list[str]:
    """Return the names of the attributes that rows of a class may have, in order."""
    return [name for name in item_class.__dataclass_fields__ if name != "ddb_key"]


def to_dynamodb(value: Any) -> Any:
    """Return ``value`` in types that boto3 accepts: it accepts neither float nor tuple."""
    kind = type(value)
    if kind is str or kind is int:  # fast path: most values have these types
        return value
    if kind is dict:
        return {key: to_dynamodb(inner) for key, inner in value.items()}
    if isinstance(value, float):
        return Decimal(repr(value))
    if isinstance(value, Mapping):
        return {key: to_dynamodb(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [to_dynamodb(inner) for inner in value]
    return value


class DDBHelper:
    """One DynamoDB table.

    Attributes:
        table_name: the table's name.
        client: the DynamoDB service resource that the process shares.
        table: boto3's resource of the table.
        patience_s: how long ``patiently`` repeats calls while the table is busy, beyond botocore's own retries.

    Every method raises ``TableBusyError`` when DynamoDB throttles or does not respond, and botocore's error when
    another try cannot help.
    """

    patience_s = 0.0

    def __init__(
        self,
        table_name: str,
        client: Any = None,
        sleep: Callable[[float], None] = time.sleep,
        rng: random.Random | None = None,
        now: Callable[[], float] = time.time,
    ) -> None:
        self.table_name = table_name
        self._given_client = client
        self._sleep = sleep
        self._rng = rng or random.Random()
        self._now = now

    def through(self, client: Any) -> Self:
        """Return a copy of this table that calls through another service resource."""
        other = copy.copy(self)
        other._given_client = client
        return other

    @property
    def client(self) -> Any:
        """The DynamoDB service resource."""
        if self._given_client is None:
            self._given_client = default_clients().dynamodb_resource()
        return self._given_client

    @property
    def table(self) -> Any:
        """The table, for callers that need boto3's own interface."""
        return self.client.Table(self.table_name)

    @property
    def _api(self) -> Any:
        """The resource's low-level client. It is thread-safe, unlike resources, and converts types as they do."""
        return self.client.meta.client

    def get_ddb_item(self, ddb_item: DDBItem) -> Item:
        """Return the current item under ``ddb_item``'s key (a consistent read), or an empty dict."""
        return dict(self.read(self.get_keys(ddb_item)) or {})

    def put_ddb_item(self, ddb_item: DDBItem, condition_expression: str | None = None) -> Item:
        """Put ``ddb_item``, if ``condition_expression`` holds, and return DynamoDB's response."""
        request: Item = {"TableName": self.table_name, "Item": ddb_item.to_put()}
        if condition_expression:
            request["ConditionExpression"] = condition_expression
        return dict(self._without_conflict(self._api.put_item, request))

    def batch_write_items(
        self,
        ddb_items: list[DDBItem],
        max_retries: int = 500,
        max_delay: float = 8,
        keep_trying: Callable[[], bool] = lambda: True,
    ) -> None:
        """Write many items, 25 per call; unprocessed items are sent again after a jittered wait.

        ``keep_trying`` is called before each wait; False ends the tries.

        Raises:
            DDBBatchWriteException: DynamoDB refuses the items, or some were still unprocessed after ``max_retries``
                further tries.
            TableBusyError: ``keep_trying`` ended the tries.
        """
        puts = [{"PutRequest": {"Item": item.to_put()}} for item in ddb_items]
        for start in range(0, len(puts), _BATCH_ITEMS):
            self._write_batch(puts[start : start + _BATCH_ITEMS], max_retries, max_delay, keep_trying)

    def _write_batch(
        self, requests: list[Item], max_retries: int, max_delay: float, keep_trying: Callable[[], bool]
    ) -> None:
        pending: dict[str, Any] = {self.table_name: requests}
        for attempt in range(max_retries + 1):
            try:
                response = self._call(self._api.batch_write_item, {"RequestItems": pending})
                pending = response.get("UnprocessedItems", {})
            except TableBusyError as err:
                if attempt == max_retries:
                    raise DDBBatchWriteException(str(err)) from err
            except (ClientError, BotoCoreError) as err:
                raise DDBBatchWriteException(f"{self.table_name}: {error_code(err)}") from err
            if not pending:
                return
            if not keep_trying():
                raise TableBusyError(f"{self.table_name}: items were not processed")
            self._sleep(self._delay_s(attempt, max_delay))
        raise DDBBatchWriteException(f"{self.table_name}: items still unprocessed after {max_retries} tries")

    def delete_ddb_item(self, ddb_item: DDBItem) -> Item:
        """Delete the item under ``ddb_item``'s key; a missing item is not an error."""
        request: Item = {"TableName": self.table_name, "Key": self.get_keys(ddb_item)}
        return dict(self._without_conflict(self._api.delete_item, request))

    def update_ddb_item(
        self, ddb_item: DDBItem, update_exp: str | None = None, update_attr: dict[str, Any] | None = None
    ) -> Item:
        """Update one item and return the updated item.

        Without an expression, every attribute of ``ddb_item`` that has a value is set.

        Raises:
            DDBUpdateException: only one of the expression and its values was given.
        """
        if bool(update_exp) != bool(update_attr):
            raise DDBUpdateException("an update needs both an expression and its values, or neither")
        if not update_exp:
            update_exp, update_attr = self.get_update_params(ddb_item.to_update(), ddb_item)
        return self.update(self.get_keys(ddb_item), update_exp, update_attr or {})

    def query_items(self, ddb_item: DDBItem) -> list[Item]:
        """Return every item in ``ddb_item``'s partition, read consistently, in order of the sort key."""
        key = ddb_item.ddb_key
        return list(self.query_partition(key.hash_key, key.hash_value))

    @staticmethod
    def get_update_params(body: dict[str, Any], ddb_item: DDBItem) -> tuple[str, dict[str, Any]]:
        """Return ``SET a = :a, b = :b`` and its values for every entry of ``body`` that is not a key."""
        keys = {ddb_item.ddb_key.hash_key, ddb_item.ddb_key.range_key}
        names = [name for name in body if name not in keys]
        return "SET " + ", ".join(f"{name} = :{name}" for name in names), {f":{name}": body[name] for name in names}

    @staticmethod
    def get_keys(ddb_item: DDBItem) -> dict[str, Any]:
        """Return the hash key, and the range key when the item has one, in the form of DynamoDB's ``Key``."""
        key = ddb_item.ddb_key
        keys = {key.hash_key: key.hash_value}
        if key.range_key is not None and key.range_value is not None:
            keys[key.range_key] = key.range_value
        return keys

    @staticmethod
    def convert_decimal(data: Any) -> Any:
        """Return ``data`` with each Decimal, at any depth, as an int when it is integral, else as a float."""
        kind = type(data)  # comparing exact types is much faster, and a large image has millions of values
        if kind is str:
            return data
        if kind is Decimal:
            whole = int(data)
            return whole if whole == data else float(data)
        convert = DDBHelper.convert_decimal
        if kind is list:
            # Most lists hold strings: this avoids a call for each.
            return [inner if type(inner) is str else convert(inner) for inner in data]
        if kind is dict:
            return {key: convert(inner) for key, inner in data.items()}
        return data

    # Calls for the protocol's writes --------------------------------------------------------------------------------

    def read(self, key: Mapping[str, str]) -> Item | None:
        """Return the current item under ``key`` (a consistent read), or None."""
        request = {"TableName": self.table_name, "Key": dict(key), "ConsistentRead": True}
        response = self._call(self._api.get_item, request)
        return self.convert_decimal(response["Item"]) if "Item" in response else None

    def put(
        self, item: Mapping[str, Any], condition: str | None = None, values: Mapping[str, Any] | None = None
    ) -> None:
        """Put ``item`` if ``condition`` holds; else raise ``ConditionNotMetError`` with the stored item."""
        request: Item = {"TableName": self.table_name, "Item": to_dynamodb(item)}
        if condition:
            request |= {"ConditionExpression": condition, "ReturnValuesOnConditionCheckFailure": "ALL_OLD"}
        if values:
            request["ExpressionAttributeValues"] = to_dynamodb(values)
        self._conditional(self._api.put_item, request)

    def update(
        self, key: Mapping[str, Any], expression: str, values: Mapping[str, Any], condition: str | None = None
    ) -> Item:
        """Update one item if ``condition`` holds and return the updated item; else raise ``ConditionNotMetError``.

        DynamoDB refuses a call with values that neither expression uses.
        """
        request: Item = {
            "TableName": self.table_name,
            "Key": dict(key),
            "UpdateExpression": expression,
            "ReturnValues": "ALL_NEW",
        }
        if condition:
            request |= {"ConditionExpression": condition, "ReturnValuesOnConditionCheckFailure": "ALL_OLD"}
        if values:
            request["ExpressionAttributeValues"] = to_dynamodb(values)
        return dict(self.convert_decimal(self._conditional(self._api.update_item, request).get("Attributes", {})))

    def delete(
        self, key: Mapping[str, Any], condition: str | None = None, values: Mapping[str, Any] | None = None
    ) -> None:
        """Delete one item if ``condition`` holds, else raise ``ConditionNotMetError``.

        Without a condition, a missing item is not an error.
        """
        request: Item = {"TableName": self.table_name, "Key": dict(key)}
        if condition:
            request |= {"ConditionExpression": condition, "ReturnValuesOnConditionCheckFailure": "ALL_OLD"}
        if values:
            request["ExpressionAttributeValues"] = to_dynamodb(values)
        self._conditional(self._api.delete_item, request)

    def query_partition(self, hash_key: str, hash_value: str, **request: Any) -> Iterator[Item]:
        """Yield every item of one partition, read consistently, page by page, in order of the sort key."""
        request = {
            "TableName": self.table_name,
            "ConsistentRead": True,
            "KeyConditionExpression": f"{hash_key} = :hash_value",
            "ExpressionAttributeValues": {":hash_value": hash_value},
        } | request
        yield from self._pages(self._api.query, request)

    def scan(self, **request: Any) -> Iterator[Item]:
        """Yield every item of the table, read consistently, page by page."""
        yield from self._pages(self._api.scan, {"TableName": self.table_name, "ConsistentRead": True} | request)

    def batch_get(self, keys: Sequence[Mapping[str, str]], attributes: Sequence[str]) -> Iterator[Item]:
        """Yield the named attributes of the items that exist under ``keys``, read consistently, in no order."""
        projection = {"ProjectionExpression": ", ".join(attributes), "ConsistentRead": True}
        for start in range(0, len(keys), _BATCH_GET_ITEMS):
            wanted = [dict(key) for key in keys[start : start + _BATCH_GET_ITEMS]]
            pending: Item = {self.table_name: {"Keys": wanted, **projection}}
            attempt = 0
            while pending:
                response = self._read_patiently(self._api.batch_get_item, {"RequestItems": pending})
                yield from self.convert_decimal(response["Responses"].get(self.table_name, []))
                pending = response.get("UnprocessedKeys", {})
                if pending:
                    self._sleep(self._delay_s(attempt))
                    attempt += 1

    def _pages(self, operation: Callable[..., Item], request: Item) -> Iterator[Item]:
        while True:
            response = self._read_patiently(operation, request)
            yield from self.convert_decimal(response.get("Items", []))
            if "LastEvaluatedKey" not in response:
                return
            request = {**request, "ExclusiveStartKey": response["LastEvaluatedKey"]}

    def _read_patiently(self, operation: Callable[..., Item], request: Item) -> Item:
        return self.patiently(lambda: self._call(operation, request))

    def patiently(self, call: Callable[[], T], keep_trying: Callable[[], bool] | None = None) -> T:
        """Return the result of ``call``; while it raises TableBusyError, repeat it after a jittered wait.

        ``keep_trying`` is called before each wait and returns whether to continue; without it, ``patience_s`` is the
        limit.
        """
        give_up_at, waited_s = self._now() + self.patience_s, 0.0
        for attempt in itertools.count():
            try:
                return call()
            except TableBusyError:
                is_patient = self._now() < give_up_at and waited_s < self.patience_s
                if not (keep_trying() if keep_trying else is_patient):
                    raise
            delay_s = self._delay_s(attempt)
            self._sleep(delay_s)
            waited_s += delay_s
        raise AssertionError("the loop above has no end")

    def _call(self, operation: Callable[..., Item], request: Item) -> Item:
        try:
            return operation(**request)
        except (ClientError, BotoCoreError) as err:
            if error_code(err) == _CONFLICT:
                raise TransactionConflictError(f"{self.table_name}: {_CONFLICT}") from err
            if may_pass(err):
                raise TableBusyError(f"{self.table_name}: {error_code(err)}") from err
            raise

    def _delay_s(self, attempt: int, longest_s: float = _LONGEST_DELAY_S) -> float:
        """Return the wait after a failed try; ``attempt`` counts from 0."""
        return backoff_s(attempt, _FIRST_DELAY_S, longest_s, self._rng)

    def name_of_claim(self, owner: str) -> str:
        """Return a unique name for one claim of a worker, so that a repeated call can recognise its own write."""
        return f"{owner}#{self._rng.getrandbits(32):08x}"

    def _conditional(self, operation: Callable[..., Item], request: Item) -> Item:
        try:
            return self._without_conflict(operation, request)
        except ClientError as err:
            if error_code(err) != "ConditionalCheckFailedException":
                raise
            # boto3 converts the types of responses, but not of items in errors.
            old: Any = err.response.get("Item")
            raise ConditionNotMetError(deserialize(old) if old else None) from err

    def _without_conflict(self, operation: Callable[..., Item], request: Item) -> Item:
        """Repeat a write while a transaction holds its item; botocore does not repeat it."""
        for attempt in range(_CONFLICT_TRIES - 1):
            with suppress(TransactionConflictError):
                return self._call(operation, request)
            self._sleep(backoff_s(attempt, FIRST_CONFLICT_WAIT_S, _LONGEST_CONFLICT_WAIT_S, self._rng))
        return self._call(operation, request)

    def _transact(self, *writes: Item) -> None:
        """Do all of ``writes`` or none.

        Raises:
            ClientError: one of the writes is invalid, or the call was refused.
            ConditionNotMetError: a condition did not hold; ``old`` is None, since any of the items may have failed.
            TransactionConflictError: another transaction touched one of the items at the same time.
        """
        try:
            self._call(self._api.transact_write_items, {"TransactItems": list(writes)})
        except ClientError as err:
            if error_code(err) != "TransactionCanceledException":
                raise
            codes = cancellation_codes(err)
            if "ConditionalCheckFailed" in codes:
                raise ConditionNotMetError(None) from err
            if is_invalid_write(err):
                raise
            raise TransactionConflictError(f"transaction cancelled: {', '.join(sorted(codes))}") from err


def deserialize(raw: Mapping[str, Any]) -> Item:
    """Return an item in DynamoDB's wire form, ``{"n": {"N": "1"}}``, as plain Python values."""
    as_python = TypeDeserializer()
    return {name: DDBHelper.convert_decimal(as_python.deserialize(value)) for name, value in raw.items()}
