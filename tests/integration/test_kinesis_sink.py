"""The Kinesis sink against a real server: every feature arrives, and what was refused is sent again."""

import base64
import itertools
import json
import random
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
from aws_faults import answering, json_error, losing_first_reply
from hypothesis import given
from hypothesis import strategies as st

from aws.osml.model_runner.sink import (
    Delivery,
    InvalidKinesisStreamException,
    KinesisSink,
    SinkError,
    SinkPermanentError,
)
from aws.osml.model_runner.sink.kinesis_records import Record, batches, oversize_indexes, record_of

stream_numbers = itertools.count()


@pytest.fixture(scope="module")
def kinesis(emulator: Any) -> Any:
    return emulator.client("kinesis")


@pytest.fixture
def stream(kinesis: Any) -> str:
    name = f"kinesis-sink-{next(stream_numbers)}"
    kinesis.create_stream(StreamName=name, ShardCount=4)
    while kinesis.describe_stream_summary(StreamName=name)["StreamDescriptionSummary"]["StreamStatus"] != "ACTIVE":
        time.sleep(0.05)
    return name


@pytest.fixture
def make(kinesis: Any, stream: str) -> Callable[..., KinesisSink]:
    def make_sink(**options: Any) -> KinesisSink:
        return KinesisSink(stream, client=kinesis, sleep=lambda _s: None, rng=random.Random(1), **options)

    return make_sink


def delivery(count: int = 5, position: int = 0, pad: dict[int, int] | None = None) -> Delivery:
    features = [
        {"type": "Feature", "geometry": None, "properties": {"n": n, "pad": "x" * (pad or {}).get(n, 0)}}
        for n in range(count)
    ]
    ids = [f"feature-{n}" for n in range(count)]
    return Delivery("job-1", "", [json.dumps(feature).encode() for feature in features], ids, position)


def records_of(kinesis: Any, stream: str) -> list[dict[str, Any]]:
    records = []
    for shard in kinesis.list_shards(StreamName=stream)["Shards"]:
        where = {"StreamName": stream, "ShardId": shard["ShardId"], "ShardIteratorType": "TRIM_HORIZON"}
        iterator = kinesis.get_shard_iterator(**where)["ShardIterator"]
        while True:
            answer = kinesis.get_records(ShardIterator=iterator, Limit=10_000)
            records += answer["Records"]
            iterator = answer.get("NextShardIterator")
            if not answer["Records"] or not iterator:
                break
    return records


def ids_of(kinesis: Any, stream: str) -> Counter[str]:
    return Counter(json.loads(record["Data"])["features"][0]["properties"]["feature_id"]
                   for record in records_of(kinesis, stream))  # fmt: skip


def test_each_feature_is_a_collection_of_its_own(kinesis: Any, stream: str, make: Any) -> None:
    heard: list[int] = []
    make().deliver(delivery(3), heard.append)
    records = records_of(kinesis, stream)
    assert {record["PartitionKey"] for record in records} == {"feature-0", "feature-1", "feature-2"}
    for record in records:
        collection = json.loads(record["Data"])
        assert collection["type"] == "FeatureCollection"
        (feature,) = collection["features"]
        assert feature["properties"]["job_id"] == "job-1"
        assert feature["properties"]["feature_id"] == record["PartitionKey"]
    assert heard == [3]


def test_the_job_may_be_the_partition_key(kinesis: Any, stream: str, make: Any) -> None:
    make(partition_key="JOB").deliver(delivery(3))
    assert [record["PartitionKey"] for record in records_of(kinesis, stream)] == ["job-1"] * 3


@pytest.mark.parametrize(
    ("batch_size", "heard"), [(None, [500, 1000, 1100]), (400, [400, 800, 1100]), (9999, [500, 1000, 1100])]
)
def test_batches_are_confirmed_one_by_one(
    kinesis: Any, stream: str, make: Any, batch_size: int | None, heard: list[int]
) -> None:
    positions: list[int] = []
    make(batch_size=batch_size).deliver(delivery(1100), positions.append)
    assert positions == heard
    assert ids_of(kinesis, stream) == Counter({f"feature-{n}": 1 for n in range(1100)})


def test_a_delivery_goes_on_where_it_was_left(kinesis: Any, stream: str, make: Any) -> None:
    positions: list[int] = []
    make(batch_size=2).deliver(delivery(5, position=3), positions.append)
    assert positions == [5]
    assert ids_of(kinesis, stream) == Counter(["feature-3", "feature-4"])


def test_nothing_left_is_nothing_sent(kinesis: Any, stream: str, make: Any) -> None:
    make().deliver(delivery(5, position=5))
    make().deliver(delivery(0))
    assert ids_of(kinesis, stream) == Counter()


def refuse(entries: list[bool]) -> tuple[int, dict[str, str], bytes]:
    """Return an answer in which the entries marked true were refused."""
    results = [
        {"ErrorCode": "ProvisionedThroughputExceededException", "ErrorMessage": "slow down"}
        if is_refused
        else {"SequenceNumber": "1", "ShardId": "shardId-000000000000"}
        for is_refused in entries
    ]
    body = json.dumps({"FailedRecordCount": sum(entries), "Records": results}).encode()
    return 200, {"Content-Type": "application/x-amz-json-1.1"}, body


def test_only_refused_records_are_sent_again(kinesis: Any, stream: str, make: Any) -> None:
    with answering(kinesis, "PutRecords", refuse([False, True, False, True, True]), None) as calls:
        make().deliver(delivery(5))
    assert len(calls) == 2
    assert ids_of(kinesis, stream) == Counter(["feature-1", "feature-3", "feature-4"])


def test_with_partial_failures_at_random_every_feature_arrives(kinesis: Any, stream: str, make: Any) -> None:
    rng = random.Random(4)

    def fail_some(params: dict[str, Any], **_: Any) -> None:
        """Send only a part of the entries to the server, and mark the others as refused in its answer."""
        entries = json.loads(params["body"])["Records"]
        kept = [rng.random() > 0.3 for _ in entries]
        sent = [entry for entry, is_kept in zip(entries, kept, strict=True) if is_kept]
        if sent:
            kinesis_plain.put_records(
                StreamName=stream,
                Records=[{"Data": base64.b64decode(e["Data"]), "PartitionKey": e["PartitionKey"]} for e in sent],
            )
        pending.append(refuse([not is_kept for is_kept in kept]))

    pending: list[tuple[int, dict[str, str], bytes]] = []
    kinesis_plain = kinesis
    # Calls of the sink are recognised by the marker in their job's name.
    make_sink = make()

    class Client:
        def put_records(self, **arguments: Any) -> Any:
            entries = arguments["Records"]
            body = [
                {"Data": base64.b64encode(entry["Data"]).decode(), "PartitionKey": entry["PartitionKey"]}
                for entry in entries
            ]
            fail_some({"body": json.dumps({"Records": body})})
            return json.loads(pending.pop()[2])

        def describe_stream_summary(self, **arguments: Any) -> Any:
            return kinesis.describe_stream_summary(**arguments)

    make_sink._client = Client()
    make_sink.deliver(delivery(1200))
    assert ids_of(kinesis, stream) == Counter({f"feature-{n}": 1 for n in range(1200)})
