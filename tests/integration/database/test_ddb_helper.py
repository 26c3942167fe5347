"""Items and calls that every table shares, against a real emulator."""

import dataclasses
import json
import random
from decimal import Decimal
from typing import Any

import pytest
from botocore.awsrequest import AWSResponse
from botocore.exceptions import ClientError

from aws.osml.model_runner.aws.clients import default_clients
from aws.osml.model_runner.aws.errors import error_code, is_invalid_write
from aws.osml.model_runner.database import DDBHelper, DDBItem, DDBKey, FeatureTable, TileKey
from aws.osml.model_runner.database.ddb_helper import deserialize, to_dynamodb
from aws.osml.model_runner.exceptions import (
    ConditionNotMetError,
    DDBBatchWriteException,
    DDBUpdateException,
    TableBusyError,
    TransactionConflictError,
)
from aws_faults import Raw, answering, json_error, never_sending


@dataclasses.dataclass
class Row(DDBItem):
    hash_key: str
    range_key: str | None = None
    score: float | None = None
    names: list[str] | None = None
    size: tuple[int, int] | None = None
    extra: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        self.ddb_key = DDBKey("hash_key", self.hash_key, "range_key", self.range_key)


@pytest.fixture
def waits() -> list[float]:
    return []


@pytest.fixture
def helper(data_plane, dynamodb, waits) -> DDBHelper:
    return DDBHelper(data_plane.environment["FEATURE_TABLE"], dynamodb, waits.append, random.Random(1))


@pytest.fixture
def api(dynamodb):
    return dynamodb.meta.client


def row(number: int, partition: str = "a", **values: Any) -> Row:
    return Row(partition, f"{number:06d}", **values)


class TestItem:
    def test_put_has_every_attribute_with_value_and_update_leaves_out_keys(self):
        item = row(1, score=0.25, names=[], extra={"n": 0})
        assert item.to_put() == {
            "hash_key": "a",
            "range_key": "000001",
            "score": Decimal("0.25"),
            "names": [],
            "extra": {"n": 0},
        }
        assert item.to_update() == {"score": Decimal("0.25"), "names": [], "extra": {"n": 0}}

    @pytest.mark.parametrize(
        ("value", "converted"),
        [
            (0.1, Decimal("0.1")),
            ((1, 2.5), [1, Decimal("2.5")]),
            ({"a": [{"b": 1e-7}]}, {"a": [{"b": Decimal("1e-07")}]}),
            ("text", "text"),
            (7, 7),
            (None, None),
            ({"x"}, {"x"}),
        ],
    )
    def test_to_dynamodb(self, value, converted):
        assert to_dynamodb(value) == converted

    @pytest.mark.parametrize(
        ("value", "converted", "kind"),
        [
            (Decimal("7"), 7, int),
            (Decimal("7.0"), 7, int),
            (Decimal("-3"), -3, int),
            (Decimal("1E+2"), 100, int),
            (Decimal("0.5"), 0.5, float),
            ("text", "text", str),
            (True, True, bool),
            (None, None, type(None)),
        ],
    )
    def test_convert_decimal(self, value, converted, kind):
        result = DDBHelper.convert_decimal(value)
        assert result == converted
        assert type(result) is kind

    def test_convert_decimal_converts_nested_values(self):
        deep = {"a": [Decimal(1), {"b": [Decimal("1.5")]}], "c": {"d": Decimal(2)}}
        assert DDBHelper.convert_decimal(deep) == {"a": [1, {"b": [1.5]}], "c": {"d": 2}}

    def test_get_keys_and_update_params(self):
        assert DDBHelper.get_keys(row(1)) == {"hash_key": "a", "range_key": "000001"}
        assert DDBHelper.get_keys(Row("a")) == {"hash_key": "a"}
        expression, values = DDBHelper.get_update_params({"hash_key": "a", "x": 1, "range_key": "1", "y": [2]}, row(1))
        assert expression == "SET x = :x, y = :y"
        assert values == {":x": 1, ":y": [2]}

    def test_deserialize_reads_wire_form(self):
        assert deserialize({"n": {"N": "1"}, "m": {"M": {"f": {"N": "0.5"}}}, "s": {"S": "x"}}) == {
            "n": 1,
            "m": {"f": 0.5},
            "s": "x",
        }


class TestOneItem:
    def test_put_get_and_delete(self, helper):
        item = row(1, score=0.1, size=(512, 256), extra={"deep": [1.5, None, True]})
        helper.put_ddb_item(item)
        assert helper.get_ddb_item(item) == {
            "hash_key": "a",
            "range_key": "000001",
            "score": 0.1,
            "size": [512, 256],
            "extra": {"deep": [1.5, None, True]},
        }
        helper.delete_ddb_item(item)
        helper.delete_ddb_item(item)
        assert helper.get_ddb_item(item) == {}
        assert helper.read({"hash_key": "a", "range_key": "000001"}) is None

    def test_put_under_condition(self, helper):
        helper.put_ddb_item(row(1, score=1.0), "attribute_not_exists(range_key)")
        with pytest.raises(ClientError) as caught:
            helper.put_ddb_item(row(1, score=2.0), "attribute_not_exists(range_key)")
        assert error_code(caught.value) == "ConditionalCheckFailedException"
        assert helper.get_ddb_item(row(1))["score"] == 1

    def test_update_sets_given_attributes_and_keeps_others(self, helper):
        helper.put_ddb_item(row(1, score=1.0, names=["a"]))
        assert helper.update_ddb_item(row(1, score=2.5)) == {
            "hash_key": "a",
            "range_key": "000001",
            "score": 2.5,
            "names": ["a"],
        }

    def test_update_by_expression(self, helper):
        helper.put_ddb_item(row(1, score=1.0))
        assert helper.update_ddb_item(row(1), "ADD score :more", {":more": 2})["score"] == 3

    @pytest.mark.parametrize(("expression", "values"), [("SET x = :x", None), (None, {":x": 1}), ("SET x = :x", {})])
    def test_update_needs_expression_and_values_or_neither(self, helper, expression, values):
        with pytest.raises(DDBUpdateException):
            helper.update_ddb_item(row(1), expression, values)

    def test_failed_condition_returns_current_item(self, helper):
        key = {"hash_key": "a", "range_key": "000001"}
        with pytest.raises(ConditionNotMetError) as caught:
            helper.update(key, "SET x = :x", {":x": 1}, "attribute_exists(range_key)")
        assert caught.value.old is None
        helper.put(key | {"x": 0.5})
        with pytest.raises(ConditionNotMetError) as caught:
            helper.update(key, "SET x = :x", {":x": 1, ":seen": 7}, "x = :seen")
        assert caught.value.old == key | {"x": 0.5}
        with pytest.raises(ConditionNotMetError):
            helper.put(key, "x = :seen", {":seen": 7})

    def test_other_errors_pass(self, helper, api):
        key = {"hash_key": "a", "range_key": "000001"}
        with answering(api, "UpdateItem", json_error("AccessDeniedException")), pytest.raises(ClientError) as caught:
            helper.update(key, "SET x = :x", {":x": 1}, "attribute_exists(range_key)")
        assert error_code(caught.value) == "AccessDeniedException"

    def test_table_is_there_for_boto3_itself(self, helper):
        helper.table.put_item(Item={"hash_key": "b", "range_key": "1"})
        assert helper.read({"hash_key": "b", "range_key": "1"}) == {"hash_key": "b", "range_key": "1"}

    def test_without_client_processs_own_is_used(self, emulator, data_plane, monkeypatch):
        for name, value in emulator.environment.items():
            monkeypatch.setenv(name, value)
        default_clients.cache_clear()
        helper = DDBHelper(data_plane.environment["FEATURE_TABLE"])
        helper.put({"hash_key": "c", "range_key": "1"})
        assert helper.read({"hash_key": "c", "range_key": "1"}) is not None
        default_clients.cache_clear()


READS = {
    "Query": lambda helper: [item["score"] for item in helper.query_partition("hash_key", "a")],
    "BatchGetItem": lambda helper: [
        item["score"] for item in helper.batch_get([{"hash_key": "a", "range_key": "000001"}], ["score"])
    ],
}


class Patient(DDBHelper):
    patience_s = 300.0


class TestBusyReads:
    """Reads of many items are repeated while the table is busy, for as long as the table's class is patient."""

    @pytest.fixture
    def patient(self, data_plane, dynamodb, waits) -> Patient:
        helper = Patient(
            data_plane.environment["FEATURE_TABLE"], dynamodb, waits.append, random.Random(1), lambda: sum(waits)
        )
        helper.put_ddb_item(row(1, score=2.0))
        return helper

    @pytest.mark.parametrize("operation", READS)
    @pytest.mark.parametrize(
        "error",
        [json_error("ProvisionedThroughputExceededException"), json_error("InternalServerError", 500)],
        ids=["throttled", "broken"],
    )
    def test_busy_table_is_read_again(self, patient, api, waits, operation, error):
        with answering(api, operation, error, error, error, None):
            assert READS[operation](patient) == [2.0]
        assert len(waits) == 3

    @pytest.mark.parametrize("operation", READS)
    def test_busy_read_raises_after_last_try(self, patient, api, waits, operation):
        busy = json_error("ProvisionedThroughputExceededException")
        with answering(api, operation, busy), pytest.raises(TableBusyError, match="Throughput"):
            READS[operation](patient)
        assert 300 <= sum(waits) <= 308

    @pytest.mark.parametrize("operation", READS)
    def test_refused_read_is_not_retried(self, patient, api, waits, operation):
        with answering(api, operation, json_error("AccessDeniedException")), pytest.raises(ClientError):
            READS[operation](patient)
        assert waits == []

    def test_read_ends_when_wait_callback_raises(self, data_plane, dynamodb, api):
        class StoppingError(Exception):
            pass

        def stop() -> None:
            raise StoppingError

        table = FeatureTable(data_plane.environment["FEATURE_TABLE"], (1, 1), (0, 0), dynamodb, on_wait=stop)
        with (
            answering(api, "BatchGetItem", json_error("ThrottlingException")),
            pytest.raises(StoppingError),
        ):
            table.read_tiles([TileKey("image", "region", 0)])


class TestManyItems:
    def test_batch_of_any_length_is_written(self, helper, api):
        with answering(api, "BatchWriteItem", None) as calls:
            helper.batch_write_items([row(number) for number in range(60)])
        assert len(calls) == 3
        assert len(helper.query_items(Row("a"))) == 60

    def test_no_items_need_no_call(self, helper, api):
        with answering(api, "BatchWriteItem", None) as calls:
            helper.batch_write_items([])
        assert calls == []

    def test_unprocessed_items_are_sent_again(self, helper, api, waits):
        sent: list[int] = []

        def keep_half(request, **_):
            """Answer as a table that is busy: the second half of what was sent comes back."""
            wanted = json.loads(request.body)["RequestItems"]
            ((table, puts),) = wanted.items()
            sent.append(len(puts))
            taken, left = puts[: (len(puts) + 1) // 2], puts[(len(puts) + 1) // 2 :]
            for put in taken:
                helper.put(deserialize(put["PutRequest"]["Item"]))
            body = json.dumps({"UnprocessedItems": {table: left} if left else {}}).encode()
            return AWSResponse(request.url, 200, {"Content-Type": "application/x-amz-json-1.0"}, Raw(body))

        event = "before-send.dynamodb.BatchWriteItem"
        api.meta.events.register_first(event, keep_half)
        helper.batch_write_items([row(number) for number in range(25)])
        assert sent == [25, 12, 6, 3, 1]
        assert len(helper.query_items(Row("a"))) == 25
        assert len(waits) == 4
        assert all(0 <= wait <= 8 for wait in waits)

    def test_waits_grow_up_to_limit(self, helper, api, waits):
        with never_sending(api, "BatchWriteItem"), pytest.raises(DDBBatchWriteException):
            helper.batch_write_items([row(1)], max_retries=20, max_delay=0.5)
        assert len(waits) == 20
        assert max(waits) <= 0.5
        assert waits[0] <= 0.125

    def test_items_that_stay_unprocessed_are_error(self, helper, api, waits):
        put = {"PutRequest": {"Item": {"hash_key": {"S": "a"}, "range_key": {"S": "1"}}}}
        body = json.dumps({"UnprocessedItems": {helper.table_name: [put]}}).encode()
        busy = (200, {"Content-Type": "application/x-amz-json-1.0"}, body)
        with answering(api, "BatchWriteItem", busy) as calls, pytest.raises(DDBBatchWriteException, match="3 tries"):
            helper.batch_write_items([row(1)], max_retries=3)
        assert len(calls) == 4

    def test_batch_read_retries_and_then_raises_when_call_fails(self, helper, api):
        throttled = json_error("ProvisionedThroughputExceededException")
        with answering(api, "BatchWriteItem", throttled, throttled, None):
            helper.batch_write_items([row(1)])
        assert len(helper.query_items(Row("a"))) == 1
        with answering(api, "BatchWriteItem", throttled), pytest.raises(DDBBatchWriteException, match="Throughput"):
            helper.batch_write_items([row(2)], max_retries=2)

    @pytest.mark.parametrize(
        ("answer", "tries"),
        [
            (json_error("AccessDeniedException"), 1),
            (json_error("ValidationException"), 1),
            (json_error("ThrottlingException"), 4),
            (json_error("InternalServerError", 500), 4),
        ],
    )
    def test_only_transient_errors_are_retried(self, helper, api, answer, tries):
        with answering(api, "BatchWriteItem", answer) as calls, pytest.raises(DDBBatchWriteException):
            helper.batch_write_items([row(1)], max_retries=3)
        assert len(calls) == tries

    def test_query_reads_every_page_in_order(self, helper, api):
        numbers = list(range(40))
        random.Random(3).shuffle(numbers)
        helper.batch_write_items([row(number, names=["x" * 1000]) for number in numbers])
        helper.batch_write_items([row(1, partition="other")])
        with answering(api, "Query", None) as calls:
            found = list(helper.query_partition("hash_key", "a", Limit=7))
        assert [item["range_key"] for item in found] == [f"{number:06d}" for number in range(40)]
        assert len(calls) >= 6
        assert [item["range_key"] for item in helper.query_items(Row("a"))] == [f"{n:06d}" for n in range(40)]
        assert list(helper.query_partition("hash_key", "none")) == []

    def test_scan_reads_every_page(self, helper, api):
        helper.batch_write_items([row(number, partition=f"p{number % 7}") for number in range(30)])
        with answering(api, "Scan", None) as calls:
            assert len(list(helper.scan(Limit=8))) == 30
        assert len(calls) >= 4

    def test_batch_get_returns_existing_items_and_retries_unprocessed_keys(self, helper, api, waits):
        helper.batch_write_items([row(number, score=float(number)) for number in range(0, 250, 2)])
        keys = [DDBHelper.get_keys(row(number)) for number in range(250)]
        with answering(api, "BatchGetItem", None) as calls:
            found = list(helper.batch_get(keys, ["range_key", "score"]))
        assert len(calls) == 3
        assert sorted(item["score"] for item in found) == list(range(0, 250, 2))
        assert set(found[0]) == {"range_key", "score"}
        pending = {"Keys": [{"hash_key": {"S": "a"}, "range_key": {"S": "000002"}}], "ConsistentRead": True}
        body = json.dumps({"Responses": {}, "UnprocessedKeys": {helper.table_name: pending}}).encode()
        busy = (200, {"Content-Type": "application/x-amz-json-1.0"}, body)
        with answering(api, "BatchGetItem", busy, None):
            (item,) = helper.batch_get([keys[2]], ["range_key", "score"])
        assert item["score"] == 2
        assert len(waits) == 1


CONFLICT = json_error("TransactionConflictException")


class TestConflict:
    """A write by itself meets a transaction on its item."""

    @pytest.mark.parametrize(
        ("operation", "write"),
        [
            ("PutItem", lambda helper: helper.put(row(1).to_put(), "attribute_not_exists(range_key)")),
            ("PutItem", lambda helper: helper.put_ddb_item(row(1))),
            ("UpdateItem", lambda helper: helper.update(DDBHelper.get_keys(row(1)), "SET score = :s", {":s": 1})),
            ("DeleteItem", lambda helper: helper.delete(DDBHelper.get_keys(row(1)))),
            ("DeleteItem", lambda helper: helper.delete_ddb_item(row(1))),
        ],
    )
    def test_conflicted_write_is_sent_again_after_wait(self, helper, api, waits, operation, write):
        with answering(api, operation, CONFLICT, CONFLICT, None) as calls:
            write(helper)
        assert len(calls) == 3
        assert len(waits) == 2

    def test_conflicted_write_raises_after_last_try(self, helper, api, waits):
        with answering(api, "PutItem", CONFLICT) as calls, pytest.raises(TransactionConflictError):
            helper.put(row(1).to_put())
        assert len(calls) == 8
        assert sum(waits) < 8


class TestInvalidWrite:
    def test_too_long_key_is_not_transient(self, helper):
        with pytest.raises(ClientError) as caught:
            helper.put({"hash_key": "a", "range_key": "x" * 1025})
        assert is_invalid_write(caught.value)

    def test_too_long_key_in_transaction_is_not_transient(self, helper, api):
        body = {
            "__type": "com.amazonaws.dynamodb.v20120810#TransactionCanceledException",
            "Message": "Transaction cancelled",
            "CancellationReasons": [{"Code": "ValidationError"}, {"Code": "None"}],
        }
        answer = (400, {"Content-Type": "application/x-amz-json-1.0"}, json.dumps(body).encode())
        with answering(api, "TransactWriteItems", answer), pytest.raises(ClientError) as caught:
            helper._transact({"Put": {"TableName": helper.table_name, "Item": row(1).to_put()}})
        assert is_invalid_write(caught.value)

    @pytest.mark.parametrize("code", ["AccessDeniedException", "ResourceNotFoundException"])
    def test_validation_error_of_other_value_is_not_key_error(self, helper, api, code):
        with answering(api, "PutItem", json_error(code)), pytest.raises(ClientError) as caught:
            helper.put(row(1).to_put())
        assert not is_invalid_write(caught.value)


class TestTransaction:
    def put(self, helper: DDBHelper, number: int, condition: str = "attribute_not_exists(range_key)") -> dict[str, Any]:
        return {"Put": {"TableName": helper.table_name, "Item": row(number).to_put(), "ConditionExpression": condition}}

    def test_both_or_neither(self, helper):
        helper._transact(self.put(helper, 1), self.put(helper, 2))
        with pytest.raises(ConditionNotMetError):
            helper._transact(self.put(helper, 3), self.put(helper, 2))
        assert len(helper.query_items(Row("a"))) == 2

    def test_conflict_differs_from_failed_condition(self, helper, api):
        body = {
            "__type": "com.amazonaws.dynamodb.v20120810#TransactionCanceledException",
            "Message": "Transaction cancelled",
            "CancellationReasons": [{"Code": "None"}, {"Code": "TransactionConflict"}],
        }
        conflict = (400, {"Content-Type": "application/x-amz-json-1.0"}, json.dumps(body).encode())
        with answering(api, "TransactWriteItems", conflict), pytest.raises(TransactionConflictError, match="Conflict"):
            helper._transact(self.put(helper, 1))

    def test_other_errors_pass(self, helper, api):
        denied = json_error("AccessDeniedException")
        with answering(api, "TransactWriteItems", denied), pytest.raises(ClientError):
            helper._transact(self.put(helper, 1))
