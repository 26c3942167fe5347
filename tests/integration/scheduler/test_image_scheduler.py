"""Images that wait in the table of open jobs and are started in turns, on real tables, queues, images and models."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from botocore.exceptions import ClientError

from aws.osml.model_runner.database.scheduler_lock import SchedulerLock
from aws.osml.model_runner.local.stack.sagemaker_gateway import LocalEndpoint, Variant
from aws.osml.model_runner.queue.request_queue import QueueMessage, RequestQueue
from aws.osml.model_runner.scheduler import BufferedImageRequestQueue, FIFOImageScheduler, LookAhead
from aws.osml.model_runner.scheduler.load import lane_of
from aws.osml.model_runner.scheduler.look_ahead import MAX_WAITING, waiting_by_endpoint
from aws.osml.model_runner.worker.messages import DeadLetters, ImageMessages
from worker_in_process import InProcessWorker

LEASE_S = 60.0


@pytest.fixture
def messages(worker, data_plane) -> ImageMessages:
    queue = RequestQueue(data_plane.image_queue, 0, client=worker.clients.client("sqs"))
    letters = DeadLetters(queue, worker.config.image_dlq)
    return ImageMessages(queue, letters, worker.image_handler, worker.visibility, lambda: None)


def message(worker: InProcessWorker, image: Path | str, model: str, job_id: str = "job", **changes: Any) -> str:
    document = {
        "jobId": job_id,
        "imageUrls": [image if isinstance(image, str) else f"file://{image}"],
        "imageProcessor": {"name": model, "type": "HTTP_ENDPOINT" if model.startswith("http") else "SM_ENDPOINT"},
        "imageProcessorTileSize": 256,
        "imageProcessorTileOverlap": 0,
        "imageProcessorTileFormat": "PNG",
        "outputs": json.loads(worker.outputs),
    }
    return json.dumps(document | changes, indent=1)


def send(worker: InProcessWorker, messages: ImageMessages, *bodies: str) -> None:
    """Have messages come off the queue, and be handled."""
    for body in bodies:
        worker.image_queue.send_body(body)
    received = []
    while found := worker.image_queue.receive():
        received += found
    for one in received:
        messages.handle(one)


def dead_letters(worker: InProcessWorker, data_plane) -> list[str]:
    queue = RequestQueue(data_plane.environment["IMAGE_DLQ"], 0, 10, client=worker.clients.client("sqs"))
    return [found.body for found in queue.receive()]


def running(worker: InProcessWorker) -> list[str]:
    return sorted(job.request.job_id for job in worker.outstanding_jobs.open_jobs() if job.planned_time is not None)


def _raising(error: Exception) -> Callable[..., Any]:
    def fail(*_: Any) -> Any:
        raise error

    return fail


class TestBuffer:
    def test_request_waits_with_its_regions_counted(self, worker, messages, scene, model_server):
        send(worker, messages, message(worker, scene, model_server("centerpoint").invocations_url, priority=3))
        (job,) = worker.outstanding_jobs.open_jobs()
        assert (job.region_count, job.num_attempts, job.request.priority) == (2, 0, 3)
        assert worker.received_regions() == []

    def test_unreadable_image_fails_and_its_message_is_dead_lettered(
        self, worker, messages, tmp_path, data_plane, statuses, model_server
    ):
        body = message(worker, tmp_path / "gone.tif", model_server("centerpoint").invocations_url)
        send(worker, messages, body)
        assert dead_letters(worker, data_plane) == [body]
        assert sorted(statuses.heard()) == ["FAILED", "STARTED"]
        assert worker.open_jobs() == []

    def test_bad_request_holds_up_no_other(self, worker, messages, scene, model_server, data_plane):
        url = model_server("centerpoint").invocations_url
        send(
            worker,
            messages,
            "no json",
            message(worker, scene, url),
            '{"jobId": "broken"}',
            message(worker, scene, url, "two"),
        )
        assert len(worker.open_jobs()) == 2
        assert len(dead_letters(worker, data_plane)) == 2

    def test_header_that_cannot_be_read_now_is_read_when_image_starts(
        self, worker, messages, scene, model_server, clients, data_plane, clock, monkeypatch
    ):
        bucket = data_plane.result_bucket
        clients.client("s3").put_object(Bucket=bucket, Key="in/scene.tif", Body=scene.read_bytes())
        busy = ClientError({"Error": {"Code": "Throttling"}}, "AssumeRole")
        with monkeypatch.context() as patch:
            patch.setattr(worker.worker_process.images, "_credentials_for", _raising(busy))
            send(
                worker,
                messages,
                message(worker, f"s3://{bucket}/in/scene.tif", model_server("centerpoint").invocations_url),
            )
        assert dead_letters(worker, data_plane) == []
        assert worker.start_waiting() == 0
        clock.ahead_s += LEASE_S + 2
        assert worker.start_waiting() == 1
        assert worker.work_off().image_status == "SUCCESS"

    def test_endpoint_with_many_images_waiting_keeps_no_other_message_on_queue(
        self, worker, messages, scene, model_server, clock
    ):
        busy, idle = (model_server("centerpoint").invocations_url for _ in range(2))
        turns = SchedulerLock(worker.outstanding_jobs, worker.jobs, clock)
        messages._look_ahead = LookAhead(turns, 4, clock)
        images = [f"file://{shutil.copy(scene, scene.parent / f'{number}.tif')}" for number in range(6)]
        many = message(worker, scene, busy, "many", imageUrls=images)
        send(worker, messages, many, message(worker, scene, busy, "later"), message(worker, scene, idle, "other"))
        assert sorted({job.job_id for job in worker.outstanding_jobs.open_jobs()}) == ["many", "other"]
        # An accepted message is never requeued. A worker with only the last load snapshot requeues the same messages.
        messages._look_ahead = LookAhead(turns, 4, clock)
        turn = turns.claim("w", 15)
        turns.end(
            turn, 0.0, 7, 0.0, waiting_by_endpoint(lane_of(job.request) for job in worker.outstanding_jobs.open_jobs())
        )
        late = QueueMessage("gone", message(worker, scene, busy, "late"), 10)
        send(worker, messages, many)
        messages.handle(late)
        assert {job.job_id for job in worker.outstanding_jobs.open_jobs()} == {"many", "other"}
        # SQS would set a message aside that comes again too often: a copy replaces it.
        name = "ApproximateNumberOfMessagesDelayed"
        sqs = worker.clients.client("sqs")
        found = sqs.get_queue_attributes(QueueUrl=worker.config.image_queue, AttributeNames=[name])
        assert found["Attributes"] == {name: "1"}

    def test_requests_stay_on_queue_while_buffer_is_full(self, worker, data_plane, scene, clock):
        turns = SchedulerLock(worker.outstanding_jobs, worker.jobs, clock)
        queue = RequestQueue(data_plane.image_queue, 0, client=worker.clients.client("sqs"))
        pauses: list[float] = []
        buffered = BufferedImageRequestQueue(queue, LookAhead(turns, 500, clock), pauses.append)
        queue.send_body(message(worker, scene, "ships", "a"))
        for waiting, taken in ((MAX_WAITING, 0), (1, 1)):
            turns.end(turns.claim("w", 15), 0.0, waiting, 0.0)
            clock.ahead_s += 3
            assert len(buffered.receive()) == taken
        assert len(pauses) == 1


class TestTurns:
    def test_least_loaded_endpoint_is_next_and_none_is_filled_above_its_target(
        self, new_worker, scene, model_server, logs
    ):
        worker = new_worker(DEFAULT_HTTP_ENDPOINT_CONCURRENCY="8")
        one, other = (model_server("centerpoint").invocations_url for _ in range(2))
        for name, model in (("a1", one), ("a2", one), ("b1", other)):
            request = worker.request(scene, model, name)
            worker.image_handler.estimate_load(worker.image_handler.accept(request))
        assert worker.start_waiting() == 2
        assert running(worker) == ["a1", "b1"]
        events = [log for log in logs if log["event"] == "image.scheduled"]
        assert [(log["job_id"], log["load"], log["target"], log["reason"]) for log in events] == [
            ("a1", 8, 8, "its load fits"),
            ("b1", 8, 8, "its load fits"),
        ]
        (held,) = [log for log in logs if log["event"] == "image.held_back" and log["log_level"] == "info"]
        assert (held["endpoints"], held["reason"]) == ([one], "no endpoint has room for what waits")
        worker.work_off()
        assert worker.start_waiting() == 1

    def test_scheduler_records_metrics(self, new_worker, scene, model_server, capsys):
        worker = new_worker(DEFAULT_HTTP_ENDPOINT_CONCURRENCY="16")
        for name in ("a", "b", "c"):
            request = worker.request(scene, model_server("centerpoint").invocations_url, name)
            worker.image_handler.estimate_load(worker.image_handler.accept(request))
        worker.start_waiting()
        worker.worker_process.metrics.flush()
        lines = [json.loads(line) for line in capsys.readouterr().out.splitlines() if '"Scheduling"' in line]
        names = {name for line in lines for name in line if name not in ("Operation", "ModelName", "_aws")}
        assert {
            *("Invocations", "Duration", "Utilization"),
            *("ApproximateNumberOfRequestsBuffered", "ApproximateNumberOfRequestsVisible"),
        } <= names
        # Three endpoints of 16 calls, and two regions of four calls each per image.
        assert [line["WorkWaiting"] for line in lines if "WorkWaiting" in line] == [6]

    def test_fifo_scheduler_describes_no_endpoint(self, new_worker, scene, model_server, clock):
        worker = new_worker(DEFAULT_HTTP_ENDPOINT_CONCURRENCY="1")
        process = worker.worker_process
        turns = SchedulerLock(worker.outstanding_jobs, worker.jobs, clock)
        worker.scheduler = FIFOImageScheduler(turns, worker.config, process.owner, process.metrics, clock)
        url = model_server("centerpoint").invocations_url
        for name in ("a", "b", "c"):
            worker.image_handler.estimate_load(worker.image_handler.accept(worker.request(scene, url, name)))
        assert worker.start_waiting() == 3

    def test_lease_ends_when_worker_died_as_scheduler_or_planner(self, new_worker, scene, model_server, clock):
        worker = new_worker(DEFAULT_HTTP_ENDPOINT_CONCURRENCY="8")
        url = model_server("centerpoint").invocations_url
        worker.image_handler.estimate_load(worker.image_handler.accept(worker.request(scene, url, "a")))
        turns = SchedulerLock(worker.outstanding_jobs, worker.jobs, clock)
        turn = turns.claim("dead", 15)
        assert worker.start_waiting() == 0
        clock.ahead_s += 16
        (job,) = worker.outstanding_jobs.open_jobs()
        turn = turns.claim("dead", 15)
        assert turns.start(turn, job, LEASE_S)
        turns.end(turn, 0.0, 0, 0.0)
        worker.image_handler.estimate_load(worker.image_handler.accept(worker.request(scene, url, "b")))
        assert worker.start_waiting() == 0, "the room is taken by a plan that may still be made"
        clock.ahead_s += LEASE_S + 1
        assert worker.start_waiting() == 1
        assert running(worker) == ["a"]

    def test_image_that_is_not_begun_is_released_at_once_when_worker_stops(self, worker, scene, model_server):
        url = model_server("centerpoint").invocations_url
        worker.image_handler.estimate_load(worker.image_handler.accept(worker.request(scene, url)))
        worker.scheduler.due.set()
        (image,) = worker.scheduler.receive()
        worker.scheduler.reset_request(image.receipt_handle, 0)
        (job,) = worker.outstanding_jobs.open_jobs()
        assert (job.num_attempts, job.last_attempt) == (0, 0)
        assert worker.start_waiting() == 1


class TestVariants:
    def test_one_is_drawn_for_all_tiles_of_image(self, worker, scene, gateway, model_server):
        model = model_server("centerpoint").invocations_url
        gateway.add_endpoint("ships", LocalEndpoint(model, (Variant("blue", weight=1.0), Variant("off", weight=0.0))))
        request = worker.request(scene, "ships")
        worker.image_handler.estimate_load(worker.image_handler.accept(request))
        worker.start_waiting()
        stored = worker.jobs.get_image_request(request.image_id)
        assert stored.endpoint_parameters == {"TargetVariant": "blue"}


def test_result_is_same_when_image_waited_an_hour(new_worker, scene, model_server, clock):
    """All fields of a request come through the tables: region of interest, thresholds, parameters, properties."""
    model = model_server("flood", count=40)
    changes = {
        "regionOfInterest": "POLYGON ((3.0005 48.7525, 3.005 48.7525, 3.005 48.754, 3.0005 48.754, 3.0005 48.7525))",
        "postProcessing": [
            {
                "step": "FEATURE_DISTILLATION",
                "algorithm": {
                    "algorithmType": "SOFT_NMS", "iouThreshold": 0.123, "skipBoxThreshold": 0.31, "sigma": 0.237,
                },
            }
        ],
        "imageProcessorParameters": {"CustomAttributes": '{"minimum": 0.1}'},
        "featureProperties": [{"mission": {"passes": 3, "ratio": 0.1, "tags": ["a", None]}}],
        "imageProcessorTileOverlap": 64,
    }  # fmt: skip
    results = []
    for name, waits_s in (("at-once", 0.0), ("later", 3600.0)):
        worker = new_worker(name)
        request = worker.request(scene, model.invocations_url, "job", **changes)
        worker.image_handler.estimate_load(worker.image_handler.accept(request, name))
        clock.ahead_s += waits_s
        assert worker.start_waiting() == 1
        assert worker.work_off().image_status == "SUCCESS"
        results.append(worker.result("job"))
        worker.jobs.delete({"image_id": request.image_id})
        for region in worker.regions_of(request):
            worker.regions.delete({"image_id": request.image_id, "region_id": region.region_id})
        for row in worker.features.scan():
            worker.features.delete({key: row[key] for key in ("hash_key", "range_key")})
    for feature in (feature for result in results for feature in result):
        feature["properties"].pop("inferenceMetadata")
    assert len(results[0]) > 10
    assert results[0] == results[1]
    assert results[0][0]["properties"]["mission"] == {"passes": 3, "ratio": 0.1, "tags": ["a", None]}
