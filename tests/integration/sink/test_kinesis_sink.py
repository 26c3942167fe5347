"""The Kinesis sink against a real server: every feature arrives, and what was refused is sent again."""

import itertools
import json
import random
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

from aws.osml.model_runner.sink import (
    Delivery,
    InvalidKinesisStreamException,
    KinesisSink,
    SinkError,
    SinkPermanentError,
)
from aws_faults import answering, json_error, losing_first_reply, single_try_client

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
    return Delivery.of("job-1", "", [json.dumps(feature).encode() for feature in features], ids, position=position)


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


def test_each_feature_is_collection_of_its_own(kinesis: Any, stream: str, make: Any) -> None:
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


def test_job_may_be_partition_key(kinesis: Any, stream: str, make: Any) -> None:
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


def test_delivery_resumes_at_stored_position(kinesis: Any, stream: str, make: Any) -> None:
    positions: list[int] = []
    make(batch_size=2).deliver(delivery(5, position=3), positions.append)
    assert positions == [5]
    assert ids_of(kinesis, stream) == Counter(["feature-3", "feature-4"])


def test_no_record_is_sent_when_none_is_left(kinesis: Any, stream: str, make: Any) -> None:
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


class FlakyStream:
    """A client whose server takes each record with a chance of 70 %, and names the records that it did not take."""

    def __init__(self, client: Any, seed: int) -> None:
        self.client = client
        self.rng = random.Random(seed)

    def describe_stream_summary(self, **arguments: Any) -> Any:
        return self.client.describe_stream_summary(**arguments)

    def put_records(self, StreamName: str, Records: list[dict[str, Any]]) -> Any:
        is_taken = [self.rng.random() < 0.7 for _ in Records]
        taken = [record for record, is_in in zip(Records, is_taken, strict=True) if is_in]
        if taken:
            self.client.put_records(StreamName=StreamName, Records=taken)
        return json.loads(refuse([not is_in for is_in in is_taken])[2])


def test_with_partial_failures_at_random_every_feature_arrives_once(kinesis: Any, stream: str) -> None:
    waits: list[float] = []
    sink = KinesisSink(stream, client=FlakyStream(kinesis, 4), sleep=waits.append, rng=random.Random(1))
    sink.deliver(delivery(1200))
    assert ids_of(kinesis, stream) == Counter({f"feature-{n}": 1 for n in range(1200)})
    assert len(waits) > 3
    assert max(waits) <= 5.0


def test_delivery_fails_when_stream_refuses_all_records(kinesis: Any, stream: str, make: Any) -> None:
    with answering(kinesis, "PutRecords", refuse([True] * 5)) as calls, pytest.raises(SinkError) as caught:
        make(max_idle_tries=3).deliver(delivery(5))
    assert len(calls) == 3
    assert caught.value.can_retry
    assert stream in str(caught.value)


def test_lost_reply_repeats_at_most_one_batch(kinesis: Any, stream: str, make: Any) -> None:
    with losing_first_reply(kinesis, "PutRecords"):
        make(batch_size=2).deliver(delivery(6))
    copies = ids_of(kinesis, stream)
    assert set(copies) == {f"feature-{n}" for n in range(6)}
    assert sum(copies.values()) <= 8


def test_feature_that_is_too_long_is_named_and_hides_no_other(kinesis: Any, stream: str, make: Any) -> None:
    too_long = delivery(6, pad={1: 2**20, 4: 2**20 - 100})
    positions: list[int] = []
    with pytest.raises(SinkPermanentError, match="feature-1, feature-4") as caught:
        make().deliver(too_long, positions.append)
    assert stream in str(caught.value)
    assert set(ids_of(kinesis, stream)) == {"feature-0", "feature-2", "feature-3", "feature-5"}
    assert positions == [6]


def test_resumed_delivery_reports_skipped_features(make: Any) -> None:
    with pytest.raises(SinkPermanentError, match="feature-1"):
        make().deliver(delivery(3, position=3, pad={1: 2**20}))


def test_only_some_of_many_ids_are_named(make: Any) -> None:
    with pytest.raises(SinkPermanentError, match="feature-4 and 2 more"):
        make().deliver(delivery(7, pad=dict.fromkeys(range(7), 2**20)))


def test_large_features_fill_call_by_bytes(kinesis: Any, stream: str, make: Any) -> None:
    positions: list[int] = []
    make().deliver(delivery(12, pad=dict.fromkeys(range(12), 900_000)), positions.append)
    assert positions == [5, 10, 12]
    assert sum(ids_of(kinesis, stream).values()) == 12


def test_larger_features_fit_stream_with_larger_limit(kinesis: Any, stream: str, make: Any) -> None:
    summary = {"StreamStatus": "ACTIVE", "StreamName": stream, "MaxRecordSizeInKiB": 2048}
    body = json.dumps({"StreamDescriptionSummary": summary}).encode()
    answer = (200, {"Content-Type": "application/x-amz-json-1.1"}, body)
    with (
        answering(kinesis, "DescribeStreamSummary", answer),
        answering(kinesis, "PutRecords", refuse([False])) as calls,
    ):
        make().deliver(delivery(1, pad={0: 2**20}))
    assert len(calls) == 1


@pytest.mark.parametrize(
    ("operation", "code", "status", "raised"),
    [
        ("DescribeStreamSummary", "ResourceNotFoundException", 400, InvalidKinesisStreamException),
        ("DescribeStreamSummary", "AccessDeniedException", 400, InvalidKinesisStreamException),
        ("PutRecords", "AccessDeniedException", 400, InvalidKinesisStreamException),
        ("PutRecords", "KMSDisabledException", 400, InvalidKinesisStreamException),
        ("PutRecords", "ProvisionedThroughputExceededException", 400, SinkError),
        ("PutRecords", "InternalFailure", 500, SinkError),
        ("PutRecords", "ExpiredTokenException", 400, SinkError),
    ],
)
def test_classes_of_errors(
    emulator: Any, stream: str, operation: str, code: str, status: int, raised: type[SinkError]
) -> None:
    client = single_try_client(emulator, "kinesis")
    with answering(client, operation, json_error(code, status)), pytest.raises(SinkError) as caught:
        KinesisSink(stream, client=client).deliver(delivery(1))
    client.close()
    assert type(caught.value) is raised
    assert stream in str(caught.value)
    assert code in str(caught.value)


def test_stream_that_is_being_made_may_come(kinesis: Any, stream: str, make: Any) -> None:
    body = json.dumps({"StreamDescriptionSummary": {"StreamStatus": "CREATING"}}).encode()
    answer = (200, {"Content-Type": "application/x-amz-json-1.1"}, body)
    with answering(kinesis, "DescribeStreamSummary", answer):
        assert make().validate_kinesis_stream() is False
        with pytest.raises(SinkError) as caught:
            make().deliver(delivery(1))
    assert caught.value.can_retry
    assert make().validate_kinesis_stream() is True


def test_stream_that_is_missing(kinesis: Any) -> None:
    sink = KinesisSink("no-such-stream", client=kinesis)
    assert sink.validate_kinesis_stream() is False
    assert sink.write("job", []) is False
    with pytest.raises(InvalidKinesisStreamException, match="no-such-stream"):
        sink.deliver(delivery(1))


def test_write_sends_features(kinesis: Any, stream: str, make: Any) -> None:
    features = [{"type": "Feature", "geometry": None, "properties": {"feature_id": "own"}},
                {"type": "Feature", "geometry": None, "properties": None}]  # fmt: skip
    assert make().write("job-9", features) is True
    assert make().write("job-9", features) is True
    copies = ids_of(kinesis, stream)
    assert copies["own"] == 2
    assert sorted(copies.values()) == [2, 2], "the same feature has the same id every time"


def test_write_returns_false_when_it_fails(kinesis: Any, make: Any) -> None:
    with answering(kinesis, "PutRecords", json_error("AccessDeniedException")):
        assert make().write("job", [{"type": "Feature", "geometry": None, "properties": {}}]) is False


def test_flush_sends_entries_unchanged(kinesis: Any, stream: str, make: Any) -> None:
    make()._flush_stream([{"Data": b"anything", "PartitionKey": "k"}])
    make()._flush_stream([])
    assert [record["Data"] for record in records_of(kinesis, stream)] == [b"anything"]


def test_sink_has_name_and_mode(stream: str, make: Any) -> None:
    sink = make(batch_size=7)
    assert (KinesisSink.name(), str(sink), sink.stream, sink.batch_size) == (
        "Kinesis",
        "Kinesis AGGREGATE",
        stream,
        7,
    )


def test_stream_that_can_be_written_has_no_problem(kinesis: Any, stream: str, make: Any) -> None:
    assert make().check("job-1") == []
    assert records_of(kinesis, stream) == []


def test_stream_that_is_missing_is_problem(kinesis: Any) -> None:
    (problem,) = KinesisSink("no-such-stream", client=kinesis).check("job-1")
    assert str(problem) == 'stream="no-such-stream": a stream that exists (ResourceNotFoundException)'


def test_stream_that_may_not_be_described_is_problem(kinesis: Any, make: Any) -> None:
    """A delivery begins with the same call."""
    with answering(kinesis, "DescribeStreamSummary", json_error("AccessDeniedException")):
        (problem,) = make().check("job-1")
    assert (problem.field, "AccessDeniedException" in problem.expectation) == ("stream", True)


@pytest.mark.parametrize(("state", "problems"), [("CREATING", 0), ("UPDATING", 0), ("DELETING", 1)])
def test_stream_is_problem_only_when_it_does_not_exist(kinesis: Any, make: Any, state: str, problems: int) -> None:
    body = json.dumps({"StreamDescriptionSummary": {"StreamStatus": state}}).encode()
    with answering(kinesis, "DescribeStreamSummary", (200, {"Content-Type": "application/x-amz-json-1.1"}, body)):
        assert len(make().check("job-1")) == problems


def test_stream_that_cannot_be_described_now_is_no_problem(emulator: Any, stream: str) -> None:
    once = single_try_client(emulator, "kinesis")
    refusal = answering(once, "DescribeStreamSummary", json_error("LimitExceededException"))
    with refusal, pytest.raises(SinkError) as caught:
        KinesisSink(stream, client=once).check("job-1")
    assert caught.value.can_retry
    once.close()
