"""Status of images and regions: what is published on a real topic, and what the counters amount to."""

import json
from collections.abc import Iterator
from decimal import Decimal
from types import SimpleNamespace
from typing import Any

import pytest
import structlog.testing

from aws.osml.model_runner.aws.clients import default_clients
from aws.osml.model_runner.common.typing import RequestStatus
from aws.osml.model_runner.status import (
    ImageStatusMonitor,
    RegionStatusMonitor,
    SNSHelper,
    SNSPublishException,
    StatusMonitorException,
)
from aws_faults import answering, query_error, single_try_client

R = RequestStatus


class Topic:
    """A topic, and a queue that is subscribed to it."""

    def __init__(self, emulator: Any, name: str) -> None:
        self.sqs = emulator.client("sqs")
        self.arn = emulator.client("sns").create_topic(Name=name)["TopicArn"]
        self.queue_url = self.sqs.create_queue(QueueName=f"{name}-listener")["QueueUrl"]
        attributes = self.sqs.get_queue_attributes(QueueUrl=self.queue_url, AttributeNames=["QueueArn"])
        emulator.client("sns").subscribe(
            TopicArn=self.arn, Protocol="sqs", Endpoint=attributes["Attributes"]["QueueArn"]
        )

    def heard(self) -> list[tuple[str, dict[str, str]]]:
        """Return text and attributes of each message that was published since the last time."""
        answer = self.sqs.receive_message(QueueUrl=self.queue_url, MaxNumberOfMessages=10, WaitTimeSeconds=1)
        found = []
        for message in answer.get("Messages", []):
            self.sqs.delete_message(QueueUrl=self.queue_url, ReceiptHandle=message["ReceiptHandle"])
            envelope = json.loads(message["Body"])
            attributes = envelope.get("MessageAttributes", {})
            assert all(value["Type"] == "String" for value in attributes.values())
            found.append((envelope["Message"], {name: value["Value"] for name, value in attributes.items()}))
        return found


@pytest.fixture(scope="module")
def topic(emulator: Any) -> Topic:
    return Topic(emulator, "status-topic")


@pytest.fixture(autouse=True)
def own_clients(emulator: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name, value in emulator.environment.items():
        monkeypatch.setenv(name, value)
    default_clients.cache_clear()
    yield
    default_clients.cache_clear()


def image(**attributes: Any) -> Any:
    return SimpleNamespace(**{"job_id": "job-1", "image_id": "job-1:s3://b/i", "processing_duration": 5, **attributes})


def region(**attributes: Any) -> Any:
    return image(region_id="(0, 0)(5, 5)-job-1", failed_tiles=None, **attributes)


def test_image_event(topic: Topic) -> None:
    ImageStatusMonitor(topic.arn).process_event(image(), R.SUCCESS, "Completed image processing")
    ((text, attributes),) = topic.heard()
    assert text == "StatusMonitor update: SUCCESS job-1: Completed image processing"
    assert attributes.pop("status_id")
    assert attributes == {
        "status": "SUCCESS",
        "image_status": "SUCCESS",
        "job_id": "job-1",
        "image_id": "job-1:s3://b/i",
        "processing_duration": "5",
    }


def test_progress_comes_as_extra_attributes(topic: Topic) -> None:
    progress = {"tiles_done": "3", "tiles_total": "12", "percent": "25"}
    item = image(processing_duration=Decimal(0))
    ImageStatusMonitor(topic.arn).process_event(item, R.IN_PROGRESS, "Processing regions", progress)
    ((_, attributes),) = topic.heard()
    assert progress.items() <= attributes.items()
    assert "processing_duration" not in attributes


def test_extra_attributes_replace_no_fact(topic: Topic) -> None:
    ImageStatusMonitor(topic.arn).process_event(image(), R.FAILED, "m", {"status": "SUCCESS", "job_id": "other"})
    ((_, attributes),) = topic.heard()
    assert (attributes["status"], attributes["job_id"]) == ("FAILED", "job-1")


def test_region_event(topic: Topic) -> None:
    item = region(processing_duration=1700)
    item.failed_tiles = [[[0, 0], [5, 5]]]
    RegionStatusMonitor(topic.arn).process_event(item, R.PARTIAL, "Completed region processing")
    ((text, attributes),) = topic.heard()
    assert text == "StatusMonitor update: PARTIAL job-1: Completed region processing"
    assert attributes.pop("status_id")
    assert attributes == {
        "status": "PARTIAL",
        "job_id": "job-1",
        "image_id": "job-1:s3://b/i",
        "region_id": "(0, 0)(5, 5)-job-1",
        "processing_duration": "1700",
        "failed_tiles": "[[[0,0],[5,5]]]",
    }


def test_region_with_very_many_failed_tiles_still_has_its_event(topic: Topic) -> None:
    item = region()
    item.failed_tiles = [[[n, n], [512, 512]] for n in range(40_000)]
    RegionStatusMonitor(topic.arn).process_event(item, R.FAILED, "m")
    ((_, attributes),) = topic.heard()
    assert attributes["failed_tiles_truncated"] == "true"


def test_reasons_are_redacted_in_messages_and_logs(topic: Topic) -> None:
    secret = "AKIAIOSFODNN7EXAMPLE"
    with structlog.testing.capture_logs() as logs:
        ImageStatusMonitor(topic.arn).process_event(image(), R.FAILED, f"denied for {secret}\n" + "x" * 5000)
        RegionStatusMonitor(topic.arn).process_event(region(), R.FAILED, f"denied for {secret}")
    heard = topic.heard() + topic.heard()
    assert len(heard) == 2
    assert secret not in str(heard) + str(logs)
    assert max(len(text) for text, _ in heard) < 600
    assert [(entry["event"], entry["log_level"]) for entry in logs] == [
        ("ImageStatusMonitorUpdate", "info"),
        ("RegionStatusMonitorUpdate", "debug"),
    ]
    assert logs[0]["request"] == {"job_id": "job-1", "image_id": "job-1:s3://b/i"}


@pytest.mark.parametrize("field", ["job_id", "image_id", "processing_duration"])
def test_item_without_field(topic: Topic, field: str) -> None:
    for monitor, item in ((ImageStatusMonitor(topic.arn), image()), (RegionStatusMonitor(topic.arn), region())):
        setattr(item, field, None)
        with pytest.raises(StatusMonitorException, match=field):
            monitor.process_event(item, R.FAILED, "m")
        delattr(item, field)
        with pytest.raises(StatusMonitorException, match=field):
            monitor.process_event(item, R.FAILED, "m")


def test_region_without_its_id(topic: Topic) -> None:
    item = region()
    item.region_id = None
    with pytest.raises(StatusMonitorException, match="region_id"):
        RegionStatusMonitor(topic.arn).process_event(item, R.FAILED, "m")


def test_topic_that_is_missing_is_error_of_monitor(topic: Topic, emulator: Any) -> None:
    monitor = ImageStatusMonitor(topic.arn)
    monitor.sns_helper.sns_client = single_try_client(emulator, "sns")
    with (
        answering(monitor.sns_helper.sns_client, "Publish", query_error("NotFound", 404)),
        pytest.raises(StatusMonitorException) as caught,
    ):
        monitor.process_event(image(), R.FAILED, "m")
    assert isinstance(caught.value.__cause__, SNSPublishException)
    assert caught.value.can_retry
    monitor.sns_helper.sns_client.close()


@pytest.mark.parametrize("topic_arn", [None, ""])
def test_no_status_is_sent_without_topic(topic_arn: str | None) -> None:
    helper = SNSHelper(topic_arn)
    assert helper.publish_message("m", {}) is None
    assert helper.sns_client is None
    ImageStatusMonitor(topic_arn).process_event(image(), R.FAILED, "m")


def test_publishing_returns_messages_id(topic: Topic, emulator: Any) -> None:
    helper = SNSHelper(topic.arn, client=emulator.client("sns"))
    assert helper.publish_message("hello", {"a": "b"})
    assert topic.heard() == [("hello", {"a": "b"})]


def ids_of(topic: Topic, *events: tuple[Any, R]) -> list[str]:
    """Publish each event in order and return the ids that subscribers see."""
    found = []
    for item, status in events:
        monitor = RegionStatusMonitor(topic.arn) if hasattr(item, "region_id") else ImageStatusMonitor(topic.arn)
        monitor.process_event(item, status, "m")
        ((_, attributes),) = topic.heard()
        found.append(attributes["status_id"])
    return found


def with_values(item: Any, **values: Any) -> Any:
    for name, value in values.items():
        setattr(item, name, value)
    return item


def test_id_names_event_and_not_status(topic: Topic) -> None:
    events = [
        (with_values(image(), tile_success=1, tile_error=0), R.IN_PROGRESS),
        (with_values(image(), tile_success=98, tile_error=1), R.IN_PROGRESS),
        (image(), R.PARTIAL),
        (with_values(image(), generation=1), R.PARTIAL),
        (with_values(image(), generation=1, tile_success=1, tile_error=0), R.IN_PROGRESS),
        (region(), R.PARTIAL),
        (with_values(region(), generation=1), R.PARTIAL),
        (with_values(image(), image_id="", message_id="first"), R.FAILED),
        (with_values(image(), image_id="", message_id="second"), R.FAILED),
    ]
    assert len(set(ids_of(topic, *events))) == len(events)


def test_event_that_is_published_again_keeps_its_id(topic: Topic) -> None:
    first = with_values(image(), tile_success=98, tile_error=1, generation=Decimal(1), processing_duration=10)
    again = with_values(image(), tile_success=98, tile_error=1, generation=1, processing_duration=90)
    for status in (R.PARTIAL, R.IN_PROGRESS):
        one, other = ids_of(topic, (first, status), (again, status))
        assert one == other


def test_fifo_topic_gets_jobs_in_order(emulator: Any) -> None:
    sent: list[dict[str, Any]] = []
    client = emulator.client("sns")

    def watch(params: dict[str, Any], **_: Any) -> None:
        sent.append(dict(params))

    arn = client.create_topic(Name="status.fifo", Attributes={"FifoTopic": "true"})["TopicArn"]
    client.meta.events.register("provide-client-params.sns.Publish", watch)
    monitor = ImageStatusMonitor(arn)
    monitor.sns_helper.sns_client = client
    monitor.process_event(image(), R.SUCCESS, "m")
    client.meta.events.unregister("provide-client-params.sns.Publish", watch)
    assert sent[0]["MessageGroupId"] == "job-1"
    assert sent[0]["MessageDeduplicationId"] == sent[0]["MessageAttributes"]["status_id"]["StringValue"]


@pytest.mark.parametrize(
    ("counters", "status"),
    [
        ({}, R.IN_PROGRESS),
        ({"region_count": None}, R.IN_PROGRESS),
        ({"region_count": 4}, R.IN_PROGRESS),
        ({"region_count": 4, "region_success": 3, "region_error": 0}, R.IN_PROGRESS),
        ({"region_count": 4, "region_success": 1, "region_error": 2}, R.IN_PROGRESS),
        ({"region_count": 4, "region_success": 4, "region_error": 0}, R.SUCCESS),
        ({"region_count": 4, "region_success": 3, "region_error": 1}, R.PARTIAL),
        ({"region_count": 4, "region_success": 0, "region_error": 4}, R.FAILED),
        ({"region_count": 0, "region_success": 0, "region_error": 0}, R.SUCCESS),
        ({"region_count": Decimal(1), "region_success": Decimal(1)}, R.SUCCESS),
        ({"region_count": 2, "region_error": 2, "tile_success": 6, "tile_error": 2}, R.PARTIAL),
        ({"region_count": 2, "region_error": 2, "tile_success": 0, "tile_error": 8}, R.FAILED),
        ({"region_count": 2, "region_success": 2, "tile_success": 8, "tile_error": 0}, R.SUCCESS),
        ({"region_count": 2, "region_success": 1, "tile_success": 8, "tile_error": 0}, R.IN_PROGRESS),
        ({"region_count": 2, "region_success": 2, "tile_success": 0, "tile_error": 0}, R.SUCCESS),
        ({"region_count": 2, "region_error": 2, "tile_success": 0, "tile_error": 0}, R.FAILED),
    ],
)
def test_status_of_image(counters: dict[str, Any], status: RequestStatus) -> None:
    assert ImageStatusMonitor(None).get_status(SimpleNamespace(**counters)) is status


@pytest.mark.parametrize(
    ("counters", "status"),
    [
        ({"total_tiles": 4, "failed_tile_count": 0}, R.SUCCESS),
        ({"total_tiles": 4, "failed_tile_count": None}, R.SUCCESS),
        ({"total_tiles": 4, "failed_tile_count": 1}, R.PARTIAL),
        ({"total_tiles": Decimal(4), "failed_tile_count": Decimal(4)}, R.FAILED),
        ({"total_tiles": 0, "failed_tile_count": 0}, R.SUCCESS),
        ({"succeeded_tile_count": 3, "failed_tile_count": 1}, R.PARTIAL),
        ({"succeeded_tile_count": 0, "failed_tile_count": 1}, R.FAILED),
        ({"succeeded_tile_count": 2}, R.SUCCESS),
        ({}, R.IN_PROGRESS),
    ],
)
def test_status_of_region(counters: dict[str, Any], status: RequestStatus) -> None:
    assert RegionStatusMonitor(None).get_status(SimpleNamespace(**counters)) is status
