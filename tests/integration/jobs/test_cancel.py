"""A job that is cancelled ends once, its regions stop soon, what it held is free, and it may be begun again."""

import threading
from pathlib import Path
from typing import Any

import pytest

from aws.osml.model_runner.api.image_request import ImageRequest
from aws.osml.model_runner.exceptions import JobNotFoundError
from aws.osml.model_runner.jobs.cancel import JobCanceller
from aws.osml.model_runner.jobs.region import Deferred
from worker_in_process import InProcessWorker
from worker_process import eventually


@pytest.fixture
def worker_settings() -> dict[str, str]:
    return {"REGION_LEASE_S": "60"}


@pytest.fixture
def canceller(worker) -> JobCanceller:
    return JobCanceller(worker.jobs, worker.outstanding_jobs)


def accepted(worker: InProcessWorker, scene: Path, model: str, **changes: Any) -> ImageRequest:
    request = worker.request(scene, model, **changes)
    worker.image_handler.estimate_load(worker.image_handler.accept(request, "first", "{}"))
    return request


def test_waiting_job_never_starts(worker, canceller, scene, model_server, statuses):
    model = model_server("centerpoint")
    request = accepted(worker, scene, model.invocations_url)
    assert canceller.cancel("job").cancelled == (request.image_id,)
    worker.look_after()
    row = worker.jobs.get_image_request(request.image_id)
    assert (row.image_status, row.message) == ("FAILED", "cancelled")
    assert statuses.heard().count("FAILED") == 1
    assert worker.open_jobs() == []
    assert worker.start_waiting() == 0
    assert model.stats()["requests"] == 0


def test_running_region_stops_at_next_heartbeat_and_rest_is_dropped(worker, canceller, scene, model_server, statuses):
    model = model_server("failure", outcomes={"200": 1}, latency_ms=(300, 300))
    request = accepted(worker, scene, model.invocations_url, imageProcessorTileSize=64)
    assert worker.start_waiting(is_first_processed=False) == 1
    (_, first), (_, second) = worker.received_regions()
    deferred: list[Deferred] = []
    thread = threading.Thread(target=lambda: deferred.append(worker.deferred(first, "its job was ended")))
    thread.start()
    eventually(lambda: model.stats()["requests"] > 0)
    canceller.cancel("job")
    thread.join(10)
    assert len(deferred) == 1
    calls = model.stats()["requests"]
    assert calls < 64
    worker.completion.region_ended(worker.process(second))
    worker.look_after()
    row = worker.jobs.get_image_request(request.image_id)
    assert (row.image_status, row.region_success, row.region_error) == ("FAILED", 0, 0)
    assert model.stats()["requests"] == calls, "no tile is begun of what was cancelled"
    assert statuses.heard().count("FAILED") == 1
    assert worker.open_jobs() == []


def test_cancelled_job_counts_in_no_load_before_it_is_closed(worker, canceller, scene, model_server):
    model = model_server("centerpoint")
    accepted(worker, scene, model.invocations_url)
    assert worker.start_waiting(is_first_processed=False) == 1
    other = worker.request(scene, model.invocations_url, job_id="other", imageProcessorTileSize=64)
    worker.image_handler.estimate_load(worker.image_handler.accept(other))
    assert worker.start_waiting() == 0, "10 calls at once are less than 2 regions of each need"
    canceller.cancel("job")
    assert worker.start_waiting() == 1


def test_cancelled_job_that_is_sent_again_is_done_whole(worker, canceller, scene, model_server):
    model = model_server("centerpoint")
    request = accepted(worker, scene, model.invocations_url)
    worker.start_waiting(is_first_processed=False)
    canceller.cancel("job")
    worker.look_after()
    for message, _ in worker.received_regions():
        worker.region_queue.finish_request(message.receipt_handle)
    assert worker.image_handler.accept(request, "second") is not None
    assert worker.start_waiting() == 1
    assert worker.work_off().image_status == "SUCCESS"
    assert len(worker.result("job")) == 8
    assert [region.generation for region in worker.regions_of(request)] == [1, 1]


def test_cancel_raises_when_job_is_not_open(worker, canceller, scene, model_server):
    with pytest.raises(JobNotFoundError, match="no open job unknown"):
        canceller.cancel("unknown")
    request = accepted(worker, scene, model_server("centerpoint").invocations_url)
    worker.jobs.fail_unplanned(request.image_id, "unreadable")
    report = canceller.cancel("job")
    assert (report.cancelled, report.ended) == ((), {request.image_id: "FAILED"})
