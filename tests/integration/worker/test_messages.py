"""Ends of a message: processed and deleted, released, or dead-lettered with a reason."""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import shapely
from botocore.exceptions import ClientError, EndpointConnectionError

from aws.osml.model_runner.jobs.region import Deferred
from aws.osml.model_runner.queue.request_queue import QueueMessage, RequestQueue
from aws.osml.model_runner.region_request_handler import region_request_of
from aws.osml.model_runner.worker.messages import (
    _RENEWED_AFTER,
    DeadLetters,
    ImageMessages,
    RegionMessages,
)
from aws_faults import answering, json_error
from worker_in_process import InProcessWorker, write_scene


@pytest.fixture(scope="module")
def scene(tmp_path_factory) -> Path:
    return write_scene(tmp_path_factory.mktemp("scene") / "scene.tif", 256, 256)


@pytest.fixture
def queue_of(data_plane, clients) -> Callable[[str], RequestQueue]:
    return lambda name: RequestQueue(data_plane.environment[name], 0, client=clients.client("sqs"))


@pytest.fixture
def dead_letters_of(queue_of) -> Callable[[str], DeadLetters]:
    return lambda name: DeadLetters(queue_of(f"{name}_QUEUE"), queue_of(f"{name}_DLQ").queue_url)


@pytest.fixture
def image_messages(worker, queue_of, dead_letters_of) -> ImageMessages:
    return ImageMessages(queue_of("IMAGE_QUEUE"), dead_letters_of("IMAGE"), worker.image_handler, worker.visibility)


@pytest.fixture
def region_messages(worker, queue_of, dead_letters_of) -> RegionMessages:
    return RegionMessages(queue_of("REGION_QUEUE"), dead_letters_of("REGION"), worker.region_handler, worker.visibility)


def bodies(queue: RequestQueue) -> list[str]:
    return [message.body for message in queue.receive()]


def sent(queue: RequestQueue, body: str) -> QueueMessage:
    """Send a message and receive it."""
    queue.send_body(body)
    (message,) = queue.receive()
    return message


def is_hidden(queue: RequestQueue, message: QueueMessage) -> bool:
    """Return True when a message is on the queue and hidden: neither deleted nor visible."""
    counts = queue.sqs_client.get_queue_attributes(
        QueueUrl=queue.queue_url,
        AttributeNames=["ApproximateNumberOfMessages", "ApproximateNumberOfMessagesNotVisible"],
    )["Attributes"]
    return (counts["ApproximateNumberOfMessages"], counts["ApproximateNumberOfMessagesNotVisible"]) == ("0", "1")


def is_deleted(queue: RequestQueue, message: QueueMessage) -> bool:
    queue.reset_request(message.receipt_handle, 0)
    return queue.receive() == []


def message_of(worker: InProcessWorker, image: Path | str, model: str, **changes: Any) -> str:
    message = {
        "jobId": "job",
        "imageUrls": [image if isinstance(image, str) else f"file://{image}"],
        "imageProcessor": {"name": model, "type": "HTTP_ENDPOINT"},
        "imageProcessorTileSize": 256,
        "imageProcessorTileOverlap": 0,
        "imageProcessorTileFormat": "PNG",
        "outputs": json.loads(worker.outputs),
    }
    return json.dumps(message | changes)


class TestHidden:
    def hidden_for(self, queue: RequestQueue, monkeypatch: pytest.MonkeyPatch) -> list[int]:
        """Return a list that fills with the seconds for which a message is hidden again."""
        waits: list[int] = []
        reset = queue.reset_request

        def noted(handle: str, seconds: int = 0) -> None:
            waits.append(seconds)
            reset(handle, seconds)

        monkeypatch.setattr(queue, "reset_request", noted)
        return waits

    def test_message_is_hidden_again_at_each_heartbeat(self, worker, queue_of, monkeypatch):
        queue = queue_of("REGION_QUEUE")
        message = sent(queue, "{}")
        waits = self.hidden_for(queue, monkeypatch)
        with worker.visibility.extended(queue, message):
            while len(waits) < 2:
                time.sleep(0.01)
        assert set(waits) == {queue.visibility_timeout_s()}
        count = len(waits)
        time.sleep(0.15)
        assert len(waits) <= count + 1, "the beat that was under way may still end"
        assert not is_deleted(queue, message)

    def test_queue_that_hides_for_less_than_heartbeat_is_reported_at_once(self, worker, queue_of, monkeypatch):
        queue = queue_of("REGION_QUEUE")
        message = sent(queue, "{}")
        monkeypatch.setattr(queue, "visibility_timeout_s", lambda: 1)
        waits = self.hidden_for(queue, monkeypatch)
        with worker.visibility.extended(queue, message):
            assert waits[0] == worker.config.region_lease_s


class TestDeadLetters:
    @pytest.mark.parametrize("is_named", [True, False], ids=["named", "the queue's own"])
    def test_message_is_dead_lettered_unchanged_and_reason_is_logged(self, queue_of, logs, is_named):
        aside = queue_of("IMAGE_DLQ")
        letters = DeadLetters(queue_of("IMAGE_QUEUE"), aside.queue_url if is_named else None)
        letters.put('{"odd":  1}', "it is odd")
        assert bodies(aside) == ['{"odd":  1}']
        (event,) = [log for log in logs if log["event"] == "message.rejected"]
        assert (event["reason"], event["has_dead_letter_queue"]) == ("it is odd", True)

    def test_without_any_queue_log_is_all_that_is_left(self, queue_of, logs):
        queue = queue_of("IMAGE_DLQ")
        DeadLetters(queue, None).put("{}", "it is odd")
        (event,) = logs
        assert (event["reason"], event["has_dead_letter_queue"]) == ("it is odd", False)
        assert bodies(queue) == []


class TestImageMessages:
    def test_request_is_done_and_its_message_deleted(self, worker, image_messages, queue_of, scene, model_server):
        queue = queue_of("IMAGE_QUEUE")
        message = sent(queue, message_of(worker, scene, model_server("centerpoint").invocations_url))
        image_messages.handle(message)
        assert is_deleted(queue, message)
        assert len(worker.result("job")) == 1
        assert bodies(queue_of("IMAGE_DLQ")) == []

    @pytest.mark.parametrize(
        ("body", "reason", "job_id"),
        [
            ("no json", "", "unknown"),
            ('{"jobId": "broken"}', "imageUrls", "broken"),
            (
                '{"jobId": "far", "imageUrls": ["http://example.com/a.tif"], '
                '"outputs": [{"type": "S3", "bucket": "results"}], '
                '"imageProcessor": {"name": "m", "type": "SM_ENDPOINT"}}',
                "IMAGE_SOURCES",
                "far",
            ),
        ],
    )
    def test_hopeless_request_is_dead_lettered_published_and_deleted(
        self, image_messages, queue_of, statuses, body, reason, job_id
    ):
        queue = queue_of("IMAGE_QUEUE")
        message = sent(queue, body)
        image_messages.handle(message)
        assert is_deleted(queue, message)
        assert bodies(queue_of("IMAGE_DLQ")) == [body]
        ((text, attributes),) = statuses.events()
        assert (attributes["image_status"], attributes["job_id"]) == ("FAILED", job_id)
        assert reason in text

    def test_request_is_accepted_whole_or_not_at_all(
        self, worker, image_messages, queue_of, statuses, scene, model_server, clients
    ):
        queue, names = queue_of("IMAGE_QUEUE"), [str(scene), "/none/odd.tif"]
        body = message_of(worker, scene, model_server("centerpoint").invocations_url, imageUrls=names)
        message = sent(queue, body)
        dynamodb = clients.dynamodb_resource().meta.client
        with answering(dynamodb, "TransactWriteItems", None, json_error("ValidationException")):
            image_messages.handle(message)
        assert is_deleted(queue, message)
        assert bodies(queue_of("IMAGE_DLQ")) == [body]
        told = {attributes.get("image_id"): text for text, attributes in statuses.events()}
        assert sorted(map(str, told)) == ["None", f"job:{scene}"]
        assert 'imageUrls="/none/odd.tif": what the tables can hold' in told[None]
        assert worker.open_jobs() == []
        assert worker.jobs.find(f"job:{scene}").image_status == "FAILED"
        assert worker.jobs.find("job:/none/odd.tif") is None

    def test_longest_ids_that_request_may_have_are_stored(self, worker, image_messages, queue_of, statuses):
        urls = [f"s3://images/{number}{'é' * 511}" for number in (1, 2)]
        body = message_of(worker, "", "http://127.0.0.1:1/invocations", jobId="\U0001f6a2" * 128, imageUrls=urls)
        queue = queue_of("IMAGE_QUEUE")
        message = sent(queue, body)
        image_messages._handler.check = lambda *_: None
        image_messages._handler.plan = lambda _job: None
        image_messages.handle(message)
        assert is_deleted(queue, message)
        assert bodies(queue_of("IMAGE_DLQ")) == []
        assert len(worker.open_jobs()) == 2

    def test_image_that_cannot_be_planned_hides_no_other_of_its_request(
        self, worker, image_messages, queue_of, scene, model_server, logs
    ):
        queue = queue_of("IMAGE_QUEUE")
        urls = ["file:///none/at/all.tif", f"file://{scene}"]
        body = message_of(worker, scene, model_server("centerpoint").invocations_url, imageUrls=urls)
        message = sent(queue, body)
        image_messages.handle(message)
        assert is_deleted(queue, message)
        assert bodies(queue_of("IMAGE_DLQ")) == [body], "for the image that has failed"
        statuses = {url: worker.jobs.get_image_request(f"job:{url}").image_status for url in urls}
        assert list(statuses.values()) == ["FAILED", "SUCCESS"]
        assert [log["event"] for log in logs].count("image.not_planned") == 1

    @pytest.mark.parametrize(
        ("error", "most_tries"),
        [
            (RuntimeError("odd"), 3),
            (MemoryError(), 10),
            (ClientError({"Error": {"Code": "ValidationException"}}, "PutItem"), 3),
        ],
        ids=lambda value: type(value).__name__,
    )
    def test_request_ends_with_status_when_acceptance_raises(
        self, image_messages, queue_of, statuses, scene, worker, error, most_tries
    ):
        queue = queue_of("IMAGE_QUEUE")
        image_messages._handler.check = raising(error)
        body = message_of(worker, scene, "http://127.0.0.1/", jobId="odd")
        message = sent(queue, body)
        for count in range(1, most_tries):
            with pytest.raises(type(error)):
                image_messages.handle(message._replace(receive_count=count))
        assert not bodies(queue_of("IMAGE_DLQ"))
        image_messages.handle(message._replace(receive_count=most_tries))
        assert is_deleted(queue, message)
        assert bodies(queue_of("IMAGE_DLQ")) == [body]
        ((text, attributes),) = statuses.events()
        assert (attributes["image_status"], attributes["job_id"]) == ("FAILED", "odd")
        assert type(error).__name__ in text

    @pytest.mark.parametrize("is_scheduled", [True, False])
    def test_image_ends_with_status_when_planning_raises(
        self, worker, queue_of, dead_letters_of, statuses, scene, monkeypatch, is_scheduled
    ):
        """GDAL, PROJ and GEOS raise errors of their own classes; only what a service or the machine lacks may pass."""
        on_waiting = (lambda: None) if is_scheduled else None
        messages = ImageMessages(
            queue_of("IMAGE_QUEUE"), dead_letters_of("IMAGE"), worker.image_handler, worker.visibility, on_waiting
        )
        worker.image_handler.check = lambda *_: None
        errors = {
            "runtime": RuntimeError("Not a TIFF file"),
            "geometry": shapely.errors.GEOSException("infinite"),
            "type": TypeError("bytes"),
            "write": ClientError({"Error": {"Code": "ValidationException"}}, "UpdateItem"),
            "memory": MemoryError(),
            "service": EndpointConnectionError(endpoint_url="http://sts"),
        }
        for job, error in errors.items():
            with monkeypatch.context() as patch:
                patch.setattr("aws.osml.model_runner.image_request_handler.plan_image", raising(error))
                patch.setattr(worker.image_handler.parts.preflight, "check", lambda *_: None)
                body = message_of(worker, scene, "http://127.0.0.1/", jobId=job)
                messages.handle(sent(queue_of("IMAGE_QUEUE"), body))
        ended = {attributes["job_id"]: text for text, attributes in statuses.events() if "FAILED" in str(attributes)}
        assert set(ended) == {"runtime", "geometry", "type", "write"}
        assert "the image cannot be planned: RuntimeError: Not a TIFF file" in ended["runtime"]
        assert sorted(worker.open_jobs()) == [f"{job}:file://{scene}" for job in ("memory", "service")]

    def test_repeated_message_is_deleted_and_changes_no_row(
        self, worker, image_messages, queue_of, scene, model_server
    ):
        queue, model = queue_of("IMAGE_QUEUE"), model_server("centerpoint")
        for _ in range(2):
            message = sent(queue, message_of(worker, scene, model.invocations_url))
            image_messages.handle(message)
            assert is_deleted(queue, message)
        assert model.stats()["requests"] == 1
        assert bodies(queue_of("IMAGE_DLQ")) == []


def raising(error: Exception) -> Callable[..., None]:
    def fail(*_: Any) -> None:
        raise error

    return fail


REGION = {
    "image_id": "job:file:///a.tif",
    "job_id": "job",
    "image_url": "file:///a.tif",
    "model_name": "ships",
    "model_invoke_mode": "SM_ENDPOINT",
    "tile_format": "PNG",
    "tile_compression": "NONE",
    "tile_size": [256, 256],
    "tile_overlap": [0, 0],
    "region_bounds": [[0, 0], [256, 256]],
    "region_id": "(0, 0)(256, 256)-job",
}


class TestRegionMessages:
    def test_last_region_finishes_image(self, worker, region_messages, queue_of, scene, model_server):
        request = worker.request(scene, model_server("centerpoint").invocations_url)
        worker.plan(request)
        queue = queue_of("REGION_QUEUE")
        (message,) = queue.receive()
        region_messages.handle(message)
        assert is_deleted(queue, message)
        assert worker.jobs.get_image_request(request.image_id).image_status == "SUCCESS"

    def test_invalid_message_is_dead_lettered_and_deleted(self, region_messages, queue_of):
        queue = queue_of("REGION_QUEUE")
        message = sent(queue, '{"region_id": 7}')
        region_messages.handle(message)
        assert is_deleted(queue, message)
        assert bodies(queue_of("REGION_DLQ")) == ['{"region_id": 7}']

    @pytest.mark.parametrize(
        ("name", "value"),
        [
            ("image_url", "s3://images/other.tif"),
            ("image_read_role", "arn:aws:iam::123456789012:role/other"),
            ("model_name", "http://127.0.0.1:9/other"),
            ("model_invocation_role", "arn:aws:iam::123456789012:role/other"),
            ("model_endpoint_parameters", {"Accept": "other"}),
            ("region_bounds", [[0, 0], [99, 99]]),
            ("tile_size", [64, 64]),
            ("tile_format", "BMP"),
            ("job_id", "other"),
        ],
    )
    def test_other_fields_of_region_message_are_ignored(
        self, worker, region_messages, queue_of, scene, model_server, name, value
    ):
        request = worker.request(scene, model_server("centerpoint").invocations_url)
        worker.plan(request)
        queue = queue_of("REGION_QUEUE")
        (true_message,) = queue.receive()
        job = worker.jobs.get_image_request(request.image_id)
        (row,) = worker.regions_of(request)
        published = region_request_of(job, row).to_message()
        forged = sent(queue, json.dumps(published | {name: value}))
        region_messages.handle(forged)
        assert is_deleted(queue, forged)
        assert worker.jobs.get_image_request(request.image_id).image_status == "SUCCESS"
        assert worker.regions_of(request)[0].region_bounds == row.region_bounds
        region_messages.handle(true_message)
        assert is_deleted(queue, true_message)
        assert bodies(queue_of("REGION_DLQ")) == []

    def test_message_that_outlived_its_job_is_deleted(self, region_messages, queue_of, logs):
        queue = queue_of("REGION_QUEUE")
        message = sent(queue, json.dumps(REGION))
        region_messages.handle(message)
        assert is_deleted(queue, message)
        assert bodies(queue_of("REGION_DLQ")) == []
        assert "message.outlived_its_job" in [log["event"] for log in logs]

    @pytest.mark.parametrize(
        ("outcome", "seconds"),
        [
            (Deferred("held", 41.2), 42),
            (Deferred("interrupted", 0.0), 0),
        ],
        ids=["deferred", "interrupted"],
    )
    def test_region_is_released_when_it_cannot_be_processed_now(
        self, worker, region_messages, queue_of, monkeypatch, logs, outcome, seconds
    ):
        waits: list[int] = []
        monkeypatch.setattr(worker.region_handler, "process_region_request", lambda *_: outcome)
        monkeypatch.setattr(region_messages._queue, "reset_request", lambda handle, wait_s: waits.append(wait_s))
        message = sent(queue_of("REGION_QUEUE"), json.dumps(REGION))
        region_messages.handle(message)
        assert waits == [seconds]
        assert is_hidden(queue_of("REGION_QUEUE"), message)
        (event,) = (log for log in logs if log["event"] == "region.given_back")
        assert {name: event[name] for name in ("job_id", "image_id", "region_id")} == {
            name: REGION[name] for name in ("job_id", "image_id", "region_id")
        }
        assert event["reason"] == outcome.reason

    def test_region_that_waits_for_long_gets_new_message(self, worker, region_messages, queue_of, monkeypatch):
        deferred = Deferred("held", 0.5)
        monkeypatch.setattr(worker.region_handler, "process_region_request", lambda *_: deferred)
        queue = queue_of("REGION_QUEUE")
        queue.wait_seconds = 2
        queue.send_body(json.dumps(REGION))
        counts = []
        for _ in range(_RENEWED_AFTER + 1):
            (message,) = queue.receive()
            counts.append(message.receive_count)
            region_messages.handle(message)
        assert counts == [*range(1, _RENEWED_AFTER + 1), 1]
        assert message.body == json.dumps(REGION)

    def test_unforeseen_error_leaves_message_to_come_again(self, worker, region_messages, queue_of, monkeypatch):
        monkeypatch.setattr(worker.region_handler, "process_region_request", lambda *_: 1 / 0)
        queue = queue_of("REGION_QUEUE")
        message = sent(queue, json.dumps(REGION))
        with pytest.raises(ZeroDivisionError):
            region_messages.handle(message)
        assert is_hidden(queue, message)
