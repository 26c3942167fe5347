"""The sweeper leads on whatever a dead worker left undone: each of its steps, acted on for real."""

import itertools
from pathlib import Path
from typing import Any

import pytest

from aws.osml.model_runner.api.image_request import ImageRequest
from aws.osml.model_runner.common.typing import ImageRegion, TileState
from aws.osml.model_runner.database import JobItem, TileKey, TileOutcome
from aws.osml.model_runner.exceptions import (
    FeatureDistillationException,
    ProcessImageException,
    RetryableJobException,
)
from aws.osml.model_runner.jobs.cancel import JobCanceller
from aws.osml.model_runner.jobs.completion import ImageCompletion
from aws.osml.model_runner.region_request_handler import RegionRequestHandler, region_request_of
from aws_faults import answering, client_error, query_error, xml_error
from worker_in_process import InProcessWorker, write_scene

LEASE_S = 60.0
SILENT_S = 3 * LEASE_S + 1
DEADLINE_S = 86_400.0


@pytest.fixture
def worker_settings() -> dict[str, str]:
    return {"REGION_LEASE_S": str(LEASE_S), "JOB_DEADLINE_S": str(DEADLINE_S)}


def lose_messages(worker: InProcessWorker) -> int:
    """Take every region message off the queue, as if it had never been."""
    messages = worker.received_regions()
    for message, _ in messages:
        worker.region_queue.finish_request(message.receipt_handle)
    return len(messages)


def do_region(worker: InProcessWorker, request: ImageRequest, number: int) -> JobItem:
    job = worker.jobs.get_image_request(request.image_id)
    region = worker.regions_of(request)[number]
    return worker.process(region_request_of(job, region))


def status_of(worker: InProcessWorker, request: ImageRequest) -> str | None:
    return worker.jobs.get_image_request(request.image_id).image_status


def test_image_is_planned_when_worker_died_after_acceptance(worker, scene, model_server, statuses, clock):
    request = worker.request(scene, model_server("centerpoint").invocations_url)
    worker.image_handler.accept(request)
    clock.ahead_s += LEASE_S + 2
    worker.look_after()
    assert len(worker.regions_of(request)) == 2
    worker.work_off()
    assert status_of(worker, request) == "SUCCESS"
    assert statuses.heard().count("SUCCESS") == 1
    assert worker.open_jobs() == []


def test_plan_in_progress_is_left_to_its_worker_until_stale(worker, scene, model_server, clock):
    request = worker.request(scene, model_server("centerpoint").invocations_url)
    job = worker.image_handler.accept(request)
    assert worker.outstanding_jobs.start_planning(job, "dead", LEASE_S)
    worker.look_after()
    assert worker.regions_of(request) == []
    clock.ahead_s += LEASE_S + 2
    worker.look_after()
    assert len(worker.regions_of(request)) == 2


def test_plan_is_sent_whole_when_worker_died_between_messages(worker, scene, model_server, clock):
    model = model_server("centerpoint")
    request = worker.request(scene, model.invocations_url)
    worker.plan(request)
    lose_messages(worker)
    key = {"endpoint_id": request.model_name, "job_id": request.job_id}
    table = worker.outstanding_jobs
    table.update(key, "REMOVE planned_time", {})
    second = worker.regions_of(request)[1]
    worker.regions.delete({"image_id": request.image_id, "region_id": second.region_id})
    clock.ahead_s += LEASE_S + 2
    worker.look_after()
    assert [item.region_id for item in worker.regions_of(request)][1] == second.region_id
    worker.work_off()
    assert status_of(worker, request) == "SUCCESS"
    assert model.stats()["requests"] == 8


def test_repeated_plan_does_not_restart_ended_regions(worker, scene, model_server, clock):
    model = model_server("centerpoint")
    request = worker.request(scene, model.invocations_url)
    worker.plan(request)
    lose_messages(worker)
    do_region(worker, request, 0)
    key = {"endpoint_id": request.model_name, "job_id": request.job_id}
    worker.outstanding_jobs.update(key, "REMOVE planned_time", {})
    clock.ahead_s += LEASE_S + 2
    worker.look_after()
    assert [region.region_id for _, region in worker.received_regions()] == ["(0, 512)(512, 512)-job"]
    assert status_of(worker, request) == "SUCCESS", "its worker did the region that was left, and finished the image"
    assert model.stats()["requests"] == 8


def test_image_fails_when_planning_fails_for_an_hour(worker, scene, model_server, clock, statuses):
    request = worker.request(scene, model_server("centerpoint").invocations_url)
    worker.image_handler.accept(request)
    for _ in range(6):
        job = worker.outstanding_jobs.find(request)
        assert worker.outstanding_jobs.start_planning(job, "dead", LEASE_S)
        clock.ahead_s += 90
    clock.ahead_s += 3600
    worker.sweeper.sweep()
    row = worker.jobs.get_image_request(request.image_id)
    assert (row.image_status, row.message) == ("FAILED", "planning failed 6 times")
    assert statuses.heard().count("FAILED") == 1
    assert worker.open_jobs() == []


def test_region_is_sent_again_when_its_message_was_lost(worker, scene, model_server, clock):
    request = worker.request(scene, model_server("centerpoint").invocations_url)
    worker.plan(request)
    assert lose_messages(worker) == 2
    worker.sweeper.sweep()
    assert worker.received_regions() == [], "it may still be on its way"
    clock.ahead_s += SILENT_S
    worker.sweeper.sweep()
    assert worker.work_off().image_status == "SUCCESS"
    assert worker.received_regions() == []


def test_only_unclaimed_regions_are_sent_again(worker, scene, model_server, clock):
    request = worker.request(scene, model_server("centerpoint").invocations_url)
    worker.plan(request)
    lose_messages(worker)
    held, waiting = worker.regions_of(request)
    clock.ahead_s += SILENT_S
    worker.regions.claim(request.image_id, held.region_id, "busy", LEASE_S)
    claim = worker.regions.claim(request.image_id, waiting.region_id, "refused", LEASE_S)
    worker.regions.release(claim, clock() + 50, is_backoff=True)
    worker.sweeper.sweep()
    assert worker.received_regions() == []
    clock.ahead_s += SILENT_S
    worker.sweeper.sweep()
    assert [region.region_id for _, region in worker.received_regions()] == [held.region_id, waiting.region_id]


def test_region_that_was_just_sent_is_not_sent_once_more(worker, scene, model_server, clock):
    request = worker.request(scene, model_server("centerpoint").invocations_url)
    worker.plan(request)
    do_region(worker, request, 0)
    lose_messages(worker)
    clock.ahead_s += SILENT_S
    worker.sweeper.sweep()
    worker.sweeper.sweep()
    clock.ahead_s += 30
    worker.sweeper.sweep()
    assert [region.region_id for _, region in worker.received_regions()] == ["(0, 512)(512, 512)-job"]


def test_region_that_waits_in_long_queue_is_sent_less_and_less_often(new_worker, scene, model_server, clock, logs):
    worker = new_worker()
    request = worker.request(scene, model_server("centerpoint").invocations_url)
    worker.plan(request)
    do_region(worker, request, 0)
    sent_after = []
    for leases in range(1, 30):
        logs.clear()
        clock.ahead_s += LEASE_S
        worker.sweeper.sweep()
        if [entry for entry in logs if entry["event"] == "region.sent_again"]:
            sent_after.append(leases)
    gaps = [after - before for before, after in itertools.pairwise([0, *sent_after])]
    assert gaps == sorted(gaps)
    assert len(gaps) >= 3
    assert gaps[-1] >= 2 * gaps[0]


def test_image_is_finished_when_worker_died_after_last_region(worker, scene, model_server):
    request = worker.request(scene, model_server("centerpoint").invocations_url)
    worker.plan(request)
    for number in (0, 1):
        do_region(worker, request, number)
    assert status_of(worker, request) == "IN_PROGRESS"
    worker.sweeper.sweep()
    assert status_of(worker, request) == "SUCCESS"
    assert len(worker.result("job")) == 8


def test_status_that_was_not_published_is_published(worker, scene, model_server, clients, statuses):
    request = worker.request(scene, model_server("centerpoint").invocations_url)
    worker.image_handler.process_image_request(request)
    with answering(clients.client("sns"), "Publish", query_error("InternalError", 400)):
        worker.work_off()
        worker.sweeper.sweep()
    assert "SUCCESS" not in statuses.heard()
    assert worker.open_jobs() == [request.image_id]
    worker.sweeper.sweep()
    assert statuses.heard() == ["SUCCESS"]
    assert worker.open_jobs() == []
    worker.sweeper.sweep()
    assert statuses.heard() == []


def test_repeated_request_waits_until_end_is_published(worker, tmp_path, clients, statuses):
    request = worker.request(tmp_path / "gone.tif", "ships")
    with answering(clients.client("sns"), "Publish", query_error("InternalError", 400)):
        job = worker.image_handler.accept(request, "first")
        with pytest.raises(ProcessImageException):
            worker.image_handler.plan(job)
        with pytest.raises(RetryableJobException):
            worker.image_handler.accept(request, "second")
    worker.sweeper.sweep()
    assert worker.image_handler.accept(request, "second") is not None
    assert worker.jobs.get_image_request(request.image_id).generation == 1
    assert statuses.heard() == ["FAILED", "STARTED"]


def test_each_start_and_each_end_of_job_has_own_status_id(worker, tmp_path, statuses):
    request = worker.request(tmp_path / "gone.tif", "ships")
    for message_id in ("first", "second"):
        job = worker.image_handler.accept(request, message_id)
        with pytest.raises(ProcessImageException):
            worker.image_handler.plan(job)
    # A second delivery of the same message: the same end is published again.
    worker.image_handler.accept(request, "second")
    events = [(attributes["status"], attributes["status_id"]) for _, attributes in statuses.events()]
    assert sorted(status for status, _ in events) == ["FAILED"] * 3 + ["STARTED"] * 2
    assert len(set(events)) == 4


@pytest.mark.parametrize(("good_tiles", "status"), [(1, "PARTIAL"), (0, "FAILED")])
def test_past_its_deadline_job_is_abandoned_and_ends(new_worker, scene, clock, statuses, good_tiles, status):
    worker = new_worker()
    request = worker.request(scene, "http://127.0.0.1:9/invocations")
    worker.plan(request)
    lose_messages(worker)
    first, second = worker.regions_of(request)
    for index in range(good_tiles):
        key = TileKey(request.image_id, first.region_id, index)
        worker.features.commit_tile(key, ImageRegion.of(((0, 0), (256, 256))), TileOutcome(TileState.SUCCEEDED))
    clock.ahead_s += DEADLINE_S + 2
    worker.regions.claim(request.image_id, second.region_id, "busy", LEASE_S)
    worker.sweeper.sweep()
    assert status_of(worker, request) == "IN_PROGRESS", "a worker is still at one of the regions"
    clock.ahead_s += LEASE_S + 1
    worker.sweeper.sweep()
    row = worker.jobs.get_image_request(request.image_id)
    assert (row.image_status, row.tile_success, row.tile_error) == (status, good_tiles, 8 - good_tiles)
    assert "deadline of 86400 s" in worker.regions_of(request)[0].message
    assert statuses.heard().count(status) == 1
    assert worker.open_jobs() == []


DAY_S = 86_400.0


def test_deadline_begins_when_image_starts(new_worker, scene, model_server, clock):
    worker = new_worker()
    request = worker.request(scene, model_server("centerpoint").invocations_url)
    worker.image_handler.accept(request)
    clock.ahead_s += 6 * DAY_S
    worker.sweeper.sweep()
    assert status_of(worker, request) == "ACCEPTED"
    worker.start_waiting(is_first_processed=False)
    clock.ahead_s += DEADLINE_S - 60
    worker.sweeper.sweep()
    assert status_of(worker, request) == "IN_PROGRESS"
    worker.work_off()
    row = worker.jobs.get_image_request(request.image_id)
    assert (row.image_status, row.tile_success) == ("SUCCESS", 8)
    assert worker.open_jobs() == []


def test_image_fails_with_advice_when_it_waits_too_long(new_worker, scene, clock, statuses):
    worker = new_worker(JOB_WAIT_LIMIT_S=str(2 * DAY_S))
    request = worker.request(scene, "http://127.0.0.1:9/invocations")
    worker.image_handler.accept(request)
    clock.ahead_s += 2 * DAY_S + 2
    worker.sweeper.sweep()
    row = worker.jobs.get_image_request(request.image_id)
    assert row.image_status == "FAILED"
    assert row.message.startswith("its endpoint had no room for it within 172800 s (JOB_WAIT_LIMIT_S): send the job")
    assert statuses.heard().count("FAILED") == 1


def test_deadline_begins_again_when_job_is_redriven(worker, scene, model_server, clock, monkeypatch):
    request = worker.request(scene, model_server("centerpoint").invocations_url)
    worker.plan(request)
    lose_messages(worker)
    clock.ahead_s += DEADLINE_S + 2
    worker.sweeper.sweep()
    row = worker.jobs.get_image_request(request.image_id)
    assert row.image_status == "FAILED"
    assert row.message.endswith("(JOB_DEADLINE_S) is over: send the job again to process the missing tiles")
    worker.image_handler.accept(request, "again")
    clock.ahead_s += 2 * DAY_S
    worker.look_after()
    clock.ahead_s += DEADLINE_S - 60
    worker.work_off()
    row = worker.jobs.get_image_request(request.image_id)
    assert (row.image_status, row.generation) == ("SUCCESS", 1)
    assert all(region.expire_time > clock() + DEADLINE_S for region in worker.regions_of(request))


def test_missing_image_is_abandoned_past_deadline(new_worker, tmp_path, clock):
    image = write_scene(tmp_path / "image.tif")
    planner, worker = new_worker("planner"), new_worker("worker")
    roi = "POLYGON ((2.9 48.6, 3.1 48.6, 3.1 48.9, 2.9 48.9, 2.9 48.6))"
    request = planner.request(image, "http://127.0.0.1:9/invocations", regionOfInterest=roi)
    planner.plan(request)
    image.unlink()
    clock.ahead_s += DEADLINE_S + 2
    worker.sweeper.sweep()
    row = worker.jobs.get_image_request(request.image_id)
    assert (row.image_status, row.tile_error) == ("FAILED", 8)


def test_open_job_is_closed_when_its_row_has_expired(new_worker, scene, clock):
    worker = new_worker()
    request = worker.request(scene, "http://127.0.0.1:9/invocations")
    worker.image_handler.accept(request)
    clock.ahead_s += worker.jobs.life_s + 10
    worker.sweeper.sweep()
    assert worker.open_jobs() == []
    assert worker.jobs.find(request.image_id) is None


def test_job_that_cannot_be_helped_now_keeps_no_other_waiting(worker, scene, model_server, clients, clock, logs):
    stuck = worker.request(scene, model_server("centerpoint").invocations_url, job_id="a-stuck")
    worker.plan(stuck)
    for number in (0, 1):
        do_region(worker, stuck, number)
    other = worker.request(scene, model_server("centerpoint").invocations_url, job_id="b-other")
    worker.plan(other)
    lose_messages(worker)
    clock.ahead_s += SILENT_S
    with answering(clients.client("s3"), "PutObject", xml_error("OperationAborted", 409)):
        worker.sweeper.sweep()
    assert status_of(worker, stuck) == "IN_PROGRESS"
    assert {region.image_id for _, region in worker.received_regions()} == {other.image_id}
    (event,) = [log for log in logs if log["event"] == "job.not_advanced"]
    assert event["error"] == "AggregateFeaturesException"


def finish_failing_with(monkeypatch: pytest.MonkeyPatch, image_id: str, error: Exception) -> list[str]:
    """Have each try to finish an image fail, for as long as the test runs; return the tries."""
    aggregate, tries = ImageCompletion._aggregate, []

    def failing(self: ImageCompletion, claim: Any) -> None:
        if claim.job.image_id == image_id:
            tries.append(image_id)
            raise error
        aggregate(self, claim)

    monkeypatch.setattr(ImageCompletion, "_aggregate", failing)
    return tries


def with_all_regions_done(worker: InProcessWorker, scene: Path, model: str, job_id: str) -> ImageRequest:
    request = worker.request(scene, model, job_id=job_id)
    worker.plan(request)
    for number in (0, 1):
        do_region(worker, request, number)
    return request


@pytest.mark.parametrize(
    "error",
    [
        MemoryError("too many features"),
        RuntimeError("a defect"),
        FeatureDistillationException("no such union"),
        client_error("ValidationException"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_image_that_cannot_be_finished_fails_and_delays_no_other(
    new_worker, scene, model_server, clock, statuses, monkeypatch, error
):
    worker = new_worker()
    bad = with_all_regions_done(worker, scene, model_server("centerpoint").invocations_url, "a-bad")
    tries = finish_failing_with(monkeypatch, bad.image_id, error)
    worker.sweeper.sweep()
    other = worker.request(scene, "http://127.0.0.1:9/invocations", job_id="b-other")
    worker.plan(other)
    lose_messages(worker)
    clock.ahead_s += 700
    worker.sweeper.sweep()
    assert {region.image_id for _, region in worker.received_regions()} == {other.image_id}
    row = worker.jobs.get_image_request(bad.image_id)
    assert (row.image_status, row.agg_stalled, len(tries)) == ("IN_PROGRESS", 2, 2)
    assert row.agg_first_time is not None
    for _ in range(8):
        clock.ahead_s += 700
        worker.sweeper.sweep()
    row = worker.jobs.get_image_request(bad.image_id)
    assert row.image_status == "FAILED"
    assert f"the image could not be finished in 6 tries: {type(error).__name__}: {error}" == row.message
    assert len(tries) == 6
    assert statuses.heard().count("FAILED") == 1
    assert worker.open_jobs() == [other.image_id]


def test_transient_error_counts_only_past_deadline(new_worker, scene, model_server, clock, monkeypatch, statuses):
    worker = new_worker()
    request = with_all_regions_done(worker, scene, model_server("centerpoint").invocations_url, "job")
    finish_failing_with(monkeypatch, request.image_id, client_error("ProvisionedThroughputExceededException"))
    for _ in range(20):
        clock.ahead_s += 700
        worker.sweeper.sweep()
    row = worker.jobs.get_image_request(request.image_id)
    assert (row.image_status, row.agg_stalled, row.agg_first_time) == ("IN_PROGRESS", 0, None)
    clock.ahead_s += DEADLINE_S
    for _ in range(8):
        clock.ahead_s += 700
        worker.sweeper.sweep()
    row = worker.jobs.get_image_request(request.image_id)
    assert row.image_status == "FAILED"
    assert "ProvisionedThroughputExceededException" in row.message
    assert worker.open_jobs() == []


def test_stopping_worker_releases_image_at_once(new_worker, scene, model_server, monkeypatch):
    worker = new_worker()
    request = with_all_regions_done(worker, scene, model_server("centerpoint").invocations_url, "job")
    finish_failing_with(monkeypatch, request.image_id, RuntimeError("interrupted"))
    worker.worker_process.stopping.set()
    with pytest.raises(RuntimeError, match="interrupted"):
        worker.image_handler.parts.completion.finish(request.image_id)
    row = worker.jobs.get_image_request(request.image_id)
    assert (row.agg_stalled, row.agg_not_before, row.agg_lease_until, row.agg_error) == (0, 0, 0, None)


UNREADABLE = {
    "an attribute is gone": ("REMOVE num_attempts", {}),
    "an attribute is of another type": ("SET num_attempts = :x", {":x": "many"}),
}


def spoil(worker: InProcessWorker, request: ImageRequest, expression: str, values: dict[str, Any]) -> None:
    """Change an open job's row so that this version cannot read it."""
    key = {"endpoint_id": request.model_name, "job_id": request.job_id}
    worker.outstanding_jobs.update(key, expression, values)


@pytest.mark.parametrize("change", UNREADABLE.values(), ids=UNREADABLE)
def test_unreadable_row_delays_no_job_and_ends_at_its_deadline(
    worker, scene, model_server, clock, statuses, logs, change
):
    bad = worker.request(scene, "http://127.0.0.1:9/invocations", job_id="a-bad")
    worker.image_handler.accept(bad)
    spoil(worker, bad, *change)
    good = worker.request(scene, model_server("centerpoint").invocations_url, job_id="b-good")
    worker.image_handler.accept(good)
    clock.ahead_s += LEASE_S + 2
    worker.look_after()
    worker.work_off()
    assert status_of(worker, good) == "SUCCESS"
    assert status_of(worker, bad) == "ACCEPTED"
    (event,) = [entry for entry in logs if entry["event"] == "job.unreadable" and entry["log_level"] == "error"]
    assert event["job_key"] == "a-bad"
    assert worker.open_jobs() == []
    assert [job.image_id for job in worker.outstanding_jobs.open_rows()] == [bad.image_id]
    clock.ahead_s += worker.jobs.life_s - 2 * LEASE_S
    worker.look_after()
    row = worker.jobs.get_image_request(bad.image_id)
    assert row.image_status == "FAILED"
    assert "cannot read the job" in row.message
    assert statuses.heard().count("FAILED") == 1
    assert list(worker.outstanding_jobs.open_rows()) == []


def test_row_that_cannot_be_read_is_cancelled_by_its_keys(worker, scene, statuses):
    request = worker.request(scene, "http://127.0.0.1:9/invocations")
    worker.image_handler.accept(request)
    spoil(worker, request, *UNREADABLE["an attribute is gone"])
    report = JobCanceller(worker.jobs, worker.outstanding_jobs).cancel("job")
    assert report.cancelled == (request.image_id,)
    worker.sweeper.sweep()
    assert statuses.heard().count("FAILED") == 1
    assert list(worker.outstanding_jobs.open_rows()) == []


def test_status_is_published_as_far_as_row_allows(new_worker, scene, statuses):
    worker = new_worker()
    request = worker.request(scene, "http://127.0.0.1:9/invocations")
    worker.image_handler.accept(request)
    worker.jobs.cancel(request.image_id)
    expression = "SET status_outbox = :nothing REMOVE job_id, processing_duration"
    worker.jobs.update({"image_id": request.image_id}, expression, {":nothing": {"x": 1}})
    worker.sweeper.sweep()
    (attributes,) = [attributes for _, attributes in statuses.events() if attributes["image_status"] == "FAILED"]
    assert attributes["job_id"] == "job"
    assert worker.open_jobs() == []


def test_regions_are_abandoned_when_one_cannot_be(new_worker, scene, clock, monkeypatch, statuses):
    worker = new_worker()
    request = worker.request(scene, "http://127.0.0.1:9/invocations")
    worker.plan(request)
    lose_messages(worker)
    broken = worker.regions_of(request)[0]
    seal = RegionRequestHandler.fail_region_request

    def failing(self: RegionRequestHandler, region: Any, metrics: Any = None) -> JobItem:
        if region.region_id == broken.region_id:
            raise ValueError("no such tile")
        return seal(self, region, metrics)

    monkeypatch.setattr(RegionRequestHandler, "fail_region_request", failing)
    clock.ahead_s += DEADLINE_S + 2
    worker.sweeper.sweep()
    row = worker.jobs.get_image_request(request.image_id)
    assert (row.image_status, row.region_error) == ("IN_PROGRESS", 1)
    clock.ahead_s += 3600
    worker.sweeper.sweep()
    row = worker.jobs.get_image_request(request.image_id)
    assert (row.image_status, row.message) == (
        "FAILED",
        "the job could not be ended at its deadline: ValueError: no such tile",
    )
    assert statuses.heard().count("FAILED") == 1
    assert worker.open_jobs() == []


def test_sweep_ends_between_two_jobs_when_worker_stops(worker, scene, clock):
    for name in ("a", "b", "c"):
        worker.plan(worker.request(scene, "http://127.0.0.1:9/invocations", job_id=name))
    lose_messages(worker)
    clock.ahead_s += SILENT_S
    answers = iter([False, True])
    worker.sweeper.sweep(lambda: next(answers))
    assert len({region.image_id for _, region in worker.received_regions()}) == 1


def test_of_two_sweepers_one_looks_after_job(new_worker, scene, clock):
    one, other = new_worker("one"), new_worker("other")
    request = one.request(scene, "http://127.0.0.1:9/invocations")
    one.plan(request)
    lose_messages(one)
    clock.ahead_s += SILENT_S
    jobs = [list(worker.outstanding_jobs.open_jobs()) for worker in (one, other)]
    for worker, seen in zip((one, other), jobs, strict=True):
        worker.sweeper._advance(seen[0])
    assert len(one.received_regions()) == 2
