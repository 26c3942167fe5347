"""From the outputs of a request to results in buckets and streams."""

import json
from collections.abc import Iterator
from typing import Any

import geojson
import pytest

from aws.osml.model_runner.api.sink import SinkMode
from aws.osml.model_runner.aws.clients import default_clients
from aws.osml.model_runner.exceptions import InvalidImageRequestException
from aws.osml.model_runner.sink import Delivery, KinesisSink, S3Sink, Sink, SinkError, SinkFactory

FEATURES = [geojson.Feature(id="a", geometry=None, properties={"n": 1})]


@pytest.fixture
def outputs(data_plane: Any, emulator: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[dict[str, Any]]]:
    for name, value in emulator.environment.items():
        monkeypatch.setenv(name, value)
    default_clients.cache_clear()
    yield [
        {"type": "S3", "bucket": data_plane.result_bucket, "prefix": "out"},
        {"type": "Kinesis", "stream": data_plane.result_stream, "batchSize": 100},
    ]
    default_clients.cache_clear()


def test_outputs_become_sinks_with_their_options() -> None:
    s3, kinesis, other = SinkFactory.outputs_to_sinks(
        [
            {"type": "S3", "bucket": "b", "prefix": "p", "role": "arn:aws:iam::1:role/a", "acl": "private"},
            {"type": "Kinesis", "stream": "s", "batchSize": 7, "assumedRole": "arn:b", "partitionKey": "JOB"},
            {"type": "Kinesis", "stream": "t"},
        ]
    )
    assert isinstance(s3, S3Sink)
    assert (s3.bucket, s3.prefix, s3.assumed_role, s3.acl) == ("b", "p", "arn:aws:iam::1:role/a", "private")
    assert isinstance(kinesis, KinesisSink)
    assert (kinesis.stream, kinesis.batch_size, kinesis.assumed_role, kinesis.partition_key) == ("s", 7, "arn:b", "JOB")
    assert isinstance(other, KinesisSink)
    assert (other.batch_size, other.assumed_role, other.partition_key) == (None, None, "FEATURE")


@pytest.mark.parametrize(
    ("output", "field"),
    [
        ({"type": "s3", "bucket": "b"}, "outputs[0].type"),
        ({"type": "KINESIS", "stream": "s"}, "outputs[0].type"),
        ({}, "outputs[0].type"),
        ({"type": "S3", "prefix": "p"}, "outputs[0].bucket"),
        ({"type": "S3", "bucket": ""}, "outputs[0].bucket"),
        ({"type": "Kinesis", "stream": None}, "outputs[0].stream"),
    ],
)
def test_outputs_that_are_none(output: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidImageRequestException) as caught:
        SinkFactory.outputs_to_sinks([output])
    assert caught.value.problems[0].field == field


@pytest.mark.parametrize("text", ["", None, "not json", "{}", '"S3"'])
def test_outputs_that_are_no_list(text: Any) -> None:
    with pytest.raises(InvalidImageRequestException):
        SinkFactory.sink_features("job", text, FEATURES)


def test_features_reach_every_output(outputs: list[dict[str, Any]], emulator: Any) -> None:
    assert SinkFactory.sink_features("job-1", json.dumps(outputs), FEATURES) is True
    body = emulator.client("s3").get_object(Bucket=outputs[0]["bucket"], Key="out/job-1.geojson")["Body"].read()
    assert json.loads(body)["features"] == [dict(FEATURES[0])]


@pytest.mark.parametrize("broken", [0, 1])
def test_output_that_fails_hides_no_other(outputs: list[dict[str, Any]], broken: int) -> None:
    outputs[broken]["bucket" if broken == 0 else "stream"] = "there-is-no-such-thing"
    for order in (outputs, outputs[::-1]):
        assert SinkFactory.sink_features("job-1", json.dumps(order), FEATURES) is True


def test_delivery_raises_when_every_output_fails(outputs: list[dict[str, Any]]) -> None:
    outputs[0]["bucket"] = "there-is-no-such-thing"
    assert SinkFactory.sink_features("job-1", json.dumps(outputs[:1]), FEATURES) is False
    assert SinkFactory.sink_features("job-1", "[]", FEATURES) is False


class OldSink(Sink):
    """A sink as users of version 2 wrote them: it only knows ``write``."""

    def __init__(self, is_good: bool) -> None:
        self.is_good = is_good
        self.written: list[Any] = []

    @staticmethod
    def name() -> str:
        return "Old"

    @property
    def mode(self) -> SinkMode:
        return SinkMode.STREAMING

    def write(self, image_id: str, features: list[geojson.Feature]) -> bool:
        self.written.append((image_id, features))
        return self.is_good


def test_delivery_works_with_sink_that_only_writes() -> None:
    sink = OldSink(is_good=True)
    heard: list[int] = []
    sink.deliver(Delivery.from_features("job-1", FEATURES), heard.append)
    assert sink.written == [("job-1", [dict(FEATURES[0])])]
    assert heard == []
    assert str(sink) == "Old STREAMING"
    with pytest.raises(SinkError):
        OldSink(is_good=False).deliver(Delivery.from_features("job-1", FEATURES))
