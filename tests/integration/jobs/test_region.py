"""Regions through their handler: real tables, queues, models and files; tests advance the clock."""

import dataclasses
import itertools
import json
import os
import shutil
import threading
import zlib
from collections.abc import Iterator

import pytest
from pydantic import Field

from aws.osml.model_runner import region_request_handler
from aws.osml.model_runner.common.typing import ImageRegion, TileState
from aws.osml.model_runner.database import TileKey, TileOutcome, feature_table
from aws.osml.model_runner.database.endpoint_facts import EndpointCallers
from aws.osml.model_runner.jobs.region import Deferred, Ended, RegionProcessor
from aws.osml.model_runner.local.models.centerpoint import Centerpoint
from aws.osml.model_runner.local.models.example_model import ModelReply
from aws.osml.model_runner.local.stack.http_service import HttpRequest, HttpResponse, HttpService
from aws.osml.model_runner.local.stack.sagemaker_gateway import LocalEndpoint
from aws.osml.model_runner.pipeline.region_run import RegionProgress
from aws.osml.model_runner.raster import RasterSettings, configure_gdal
from aws.osml.model_runner.region_request_handler import ABANDONED
from aws.osml.model_runner.scheduler.load import lane_of
from aws.osml.model_runner.worker.messages import DeadLetters, RegionMessages
from aws_faults import answering, query_error
from range_server import Fault, RangeServer
from worker_in_process import TILES, TILES_PER_REGION, InProcessWorker, StatusListener, throttling, write_scene


class CrashingOnOne(Centerpoint):
    """A model that crashes on the tile that it meets first, each time, and on no other."""

    victims: list[int] = Field(default_factory=list)

    def reply(self, tile: bytes, attempt: int) -> ModelReply:
        if not self.victims:
            self.victims.append(zlib.crc32(tile))
        # Two that come at the same time may both be noted: the first one counts.
        return ModelReply(b"", 500) if self.victims[0] == zlib.crc32(tile) else super().reply(tile, attempt)


class SlowOnOne(CrashingOnOne):
    """A model that takes too long for one tile, and with ``is_hung`` for each."""

    is_hung: bool = False

    def reply(self, tile: bytes, attempt: int) -> ModelReply:
        reply = super().reply(tile, attempt)
        is_slow = self.is_hung or reply.status == 500
        return dataclasses.replace(super(CrashingOnOne, self).reply(tile, attempt), delay_s=1.0 if is_slow else 0.0)


BAD_REQUEST = "MODEL_4XX: the model returned status 400"
MODEL = "ships"


@pytest.fixture
def impatient_gateway(gateway, monkeypatch) -> None:
    """Give a model so little time that tests can wait for its end."""
    monkeypatch.setitem(gateway._models.connection_pool_kw, "timeout", 0.15)
    gateway._models.clear()


@pytest.fixture
def stored_scene(scene) -> Iterator[tuple[RangeServer, str]]:
    """The scene behind HTTP, and its URL. GDAL repeats no request by itself."""
    configure_gdal(RasterSettings(http_max_retries=0), {})
    with RangeServer({"/scene.tif": scene.read_bytes()}) as store:
        yield store, f"{store.url}/scene.tif"


class TestRegion:
    def test_region_is_claimed_processed_counted_and_published(self, worker, scene, model_server, emulator, data_plane):
        topic = data_plane.environment["REGION_STATUS_TOPIC"]
        heard = StatusListener(emulator.client, topic, f"{data_plane.name}-regions")
        request = worker.request(scene, model_server("centerpoint").invocations_url)
        worker.plan(request)
        first, _ = worker.region_requests(request)
        job = worker.process(first)
        assert (job.region_success, job.tile_success) == (1, TILES_PER_REGION)
        row = worker.regions.get_region_request(first.region_id, request.image_id)
        assert (row.region_status, row.succeeded_tile_count, row.failed_tile_count) == ("SUCCESS", 4, 0)
        assert sorted(row.succeeded_tiles) == [[[r, c], [256, 256]] for r in (0, 256) for c in (0, 256)]
        ((_, attributes),) = heard.events()
        assert (attributes["status"], attributes["region_id"]) == ("SUCCESS", first.region_id)

    def test_image_of_one_region_publishes_progress_by_tiles(self, new_worker, scene, statuses, monkeypatch):
        monkeypatch.setattr("aws.osml.model_runner.region_request_handler._PROGRESS_EVERY_S", 0.0)
        worker, told, numbers = new_worker(REGION_SIZE="(4096, 4096)"), threading.Event(), itertools.count()
        publish = worker.image_status_monitor.process_event

        def publish_and_note(item, status, *rest):
            publish(item, status, *rest)
            if status == "IN_PROGRESS" and item.tile_success:
                told.set()

        monkeypatch.setattr(worker.image_status_monitor, "process_event", publish_and_note)

        def answer(_request: HttpRequest) -> HttpResponse:
            if next(numbers) > 0:
                told.wait(30)
            return HttpResponse(body=b'{"features": []}')

        with HttpService(answer) as model:
            request = worker.request(scene, f"{model.url}/invocations")
            worker.image_handler.process_image_request(request)
            worker.work_off()
        events = [attributes for _, attributes in statuses.events() if attributes["status"] == "IN_PROGRESS"]
        counts = [int(attributes["tiles_done"]) for attributes in events]
        assert counts[:2] == [0, 1]
        assert counts == sorted(set(counts))
        assert len({attributes["status_id"] for attributes in events}) == len(events)

    def test_invalid_features_of_response_are_dropped_and_counted(self, worker, scene, logs):
        good = {"type": "Feature", "geometry": None, "properties": {"imageBBox": [1, 1, 5, 5]}}
        answer = {"type": "FeatureCollection", "features": [good, {"type": "Feature", "properties": {}}, 7]}
        good_body, bad_body = json.dumps(answer).encode(), b"Welcome"
        bodies = iter([bad_body])
        with HttpService(lambda _: HttpResponse(body=next(bodies, good_body))) as model:
            request = worker.request(scene, f"{model.url}/invocations")
            worker.plan(request)
            for region in worker.region_requests(request):
                worker.process(region)
        worker.image_handler.parts.completion.finish(request.image_id)
        tiles = worker.features.stored_tiles(request.image_id)
        assert sorted(len(tile.features) for tile in tiles) == [0] + [1] * (2 * TILES_PER_REGION - 1)
        dropped = [log for log in logs if log["event"] == "features.dropped"]
        assert len(dropped) == 2 * TILES_PER_REGION - 1
        row = worker.jobs.get_image_request(request.image_id)
        assert row.tile_errors == {"BAD_RESPONSE": 1}
        assert row.message.startswith(
            "1 of 8 tiles failed: BAD_RESPONSE 1; for example BAD_RESPONSE: the response is not valid JSON"
        )
        assert f"{2 * len(dropped)} features that the model returned were dropped: NOT_A_FEATURE" in row.message
        assert row.features_dropped == dict.fromkeys(("NO_IMAGE_GEOMETRY", "NOT_A_FEATURE"), len(dropped))
        assert (row.features_stored, row.features_delivered) == (len(dropped), len(dropped))

    def test_region_is_deferred_when_store_does_not_respond(self, stored_scene, new_worker, model_server, clock):
        store, url = stored_scene
        worker = new_worker(IMAGE_SOURCES="http")
        request = worker.request(url, model_server("centerpoint").invocations_url)
        worker.plan(request)
        first, _ = worker.region_requests(request)
        for backoffs in (1, 2):
            with store.failing(lambda _request: Fault(status=503)):
                deferred = worker.deferred(first)
            assert deferred.is_backoff
            row = worker.regions.get_region_request(first.region_id, request.image_id)
            assert (row.backoffs, row.not_before > clock()) == (backoffs, True)
            clock.ahead_s += 60.0
        job = worker.process(first)
        assert (job.tile_success, job.tile_error) == (TILES_PER_REGION, 0)

    def test_tile_fails_when_store_breaks_off_too_often(self, stored_scene, new_worker, model_server, clock):
        store, url = stored_scene
        worker = new_worker(IMAGE_SOURCES="http")
        request = worker.request(url, model_server("centerpoint").invocations_url)
        worker.plan(request)
        first, _ = worker.region_requests(request)

        def cut(request):
            return Fault(sent=100) if request.method == "GET" and request.stop > 64 * 1024 else None

        waits = 0
        with store.failing(cut):
            while True:
                outcome = worker.outcome_of(first)
                if isinstance(outcome, Ended):
                    break
                waits += 1
                clock.ahead_s += 600.0
        assert waits == 10
        job = outcome.job
        assert (job.tile_success, job.tile_error) == (0, TILES_PER_REGION)

    def test_region_is_abandoned_past_job_deadline(self, worker, scene, model_server, clock):
        model = model_server("centerpoint")
        request = worker.request(scene, model.invocations_url)
        worker.plan(request)
        first, _ = worker.region_requests(request)
        clock.ahead_s += worker.config.job_deadline_s + 1
        job = worker.process(first)
        assert (job.region_error, job.tile_error, model.stats()["requests"]) == (1, TILES_PER_REGION, 0)
        failures = worker.features.failures_of(request.image_id, first.region_id, range(TILES_PER_REGION))
        assert failures.failed == {"ABANDONED": TILES_PER_REGION}
        assert failures.first.startswith("ABANDONED: the job's deadline")

    def test_region_keeps_committed_tiles_when_job_ends_meanwhile(
        self, worker, scene, model_server, clock, monkeypatch
    ):
        request = worker.request(scene, model_server("centerpoint").invocations_url)
        worker.plan(request)
        first, _ = worker.region_requests(request)
        run = worker.worker_process.pipeline.run

        def run_one(region_run, steps, tiles, on_cut):
            run(region_run, steps, tiles[:1])
            clock.ahead_s += worker.config.job_deadline_s + 1

        monkeypatch.setattr(worker.worker_process.pipeline, "run", run_one)
        job = worker.process(first)
        assert (job.region_error, job.tile_success, job.tile_error) == (1, 1, 3)

    def test_region_is_counted_once_when_processed_twice(self, worker, scene, model_server):
        model = model_server("centerpoint")
        request = worker.request(scene, model.invocations_url)
        worker.plan(request)
        first, _ = worker.region_requests(request)
        once, again = worker.process(first), worker.process(first)
        assert (once.region_success, once.tile_success) == (again.region_success, again.tile_success) == (1, 4)
        assert model.stats()["requests"] == TILES_PER_REGION

    def test_region_without_row_is_not_restored(self, worker, scene, model_server):
        request = worker.request(scene, model_server("centerpoint").invocations_url)
        worker.plan(request)
        first, _ = worker.region_requests(request)
        worker.regions.delete({"image_id": request.image_id, "region_id": first.region_id})
        assert worker.process(first).region_success == 0

    def test_region_is_deferred_when_another_worker_holds_it(self, new_worker, scene, model_server, clock):
        worker, other = new_worker("worker"), new_worker("other")
        request = worker.request(scene, model_server("centerpoint").invocations_url)
        worker.plan(request)
        first, _ = worker.region_requests(request)
        other.regions.claim(request.image_id, first.region_id, "other", 60)
        deferred = worker.deferred(first)
        assert 50 < deferred.retry_after_s < 63
        clock.ahead_s += 61
        assert worker.process(first).region_success == 1

    def test_region_resumes_after_committed_tiles_when_worker_died(self, new_worker, scene, model_server, clock):
        model = model_server("centerpoint")
        dead, worker = new_worker("dead"), new_worker("worker")
        request = worker.request(scene, model.invocations_url)
        worker.plan(request)
        first, _ = worker.region_requests(request)
        claim = dead.regions.claim(request.image_id, first.region_id, "dead", 60)
        for index in (0, 2):
            key = TileKey(request.image_id, first.region_id, index)
            bounds = ImageRegion.of(((0, 0), (256, 256)))
            dead.features.commit_tile(key, bounds, TileOutcome(TileState.SUCCEEDED, [b'{"type":"Feature"}']))
        clock.ahead_s += 61
        job = worker.process(first)
        assert model.stats()["requests"] == 2, "only what is missing is sent to the model"
        assert (job.region_success, job.tile_success) == (1, 4)
        assert not dead.regions.renew(claim, 60)

    @pytest.mark.parametrize("inline_bytes", [8192, 0], ids=["in rows", "in the bucket"])
    def test_response_is_kept_when_feature_table_is_throttled(
        self, worker, scene, model_server, monkeypatch, inline_bytes
    ):
        monkeypatch.setattr(feature_table, "MAX_INLINE_BYTES", inline_bytes)
        model, refused = model_server("centerpoint"), []
        with throttling(worker, "FEATURE_TABLE", "PutItem", 30, refused):
            worker.image_handler.process_image_request(worker.request(scene, model.invocations_url))
            job = worker.work_off()
        assert len(refused) == 30
        assert job.image_status == "SUCCESS"
        assert model.stats()["requests"] == TILES

    def test_region_is_released_when_feature_table_stays_busy(self, worker, scene, model_server, monkeypatch):
        """The process stops, and does not wait for the table beyond its grace."""
        monkeypatch.setattr(RegionProgress, "may_store", property(lambda run: False))
        request = worker.request(scene, model_server("centerpoint").invocations_url)
        worker.plan(request)
        first, _ = worker.region_requests(request)
        with throttling(worker, "FEATURE_TABLE", "PutItem", 1000, []):
            deferred = worker.deferred(first)
        assert deferred.is_backoff
        assert deferred.retry_after_s > 1
        item = worker.regions.get_region_request(first.region_id, first.image_id)
        assert (item.backoffs, item.stalled_attempts) == (1, 0)
        assert item.not_before > worker.clock()

    @pytest.mark.parametrize("operation", ["UpdateItem", "TransactWriteItems"], ids=["R1", "R3"])
    def test_region_waits_when_region_table_is_busy(self, worker, scene, model_server, monkeypatch, operation):
        monkeypatch.setattr(worker.regions, "_sleep", lambda _: None)
        request = worker.request(scene, model_server("centerpoint").invocations_url)
        worker.plan(request)
        first, _ = worker.region_requests(request)
        messages = RegionMessages(
            worker.region_queue, DeadLetters(worker.region_queue, None), worker.region_handler, worker.visibility
        )
        ((message, _),) = list(worker.received_regions())[:1]
        with throttling(worker, "REGION_REQUEST_TABLE", operation, 1000, []):
            messages.handle(message)
        assert worker.regions.get_region_request(first.region_id, first.image_id).region_status != "SUCCESS"

    def test_failed_tiles_make_region_partial_or_failed(self, worker, scene, model_server):
        mixed = model_server("failure", outcomes={"200": 1, "400": 1}, seed=5)
        request = worker.request(scene, mixed.invocations_url)
        worker.image_handler.process_image_request(request)
        job = worker.work_off()
        assert 0 < job.tile_error < TILES
        assert (job.image_status, job.tile_success + job.tile_error) == ("PARTIAL", TILES)
        assert {item.region_status for item in worker.regions_of(request)} <= {"SUCCESS", "PARTIAL", "FAILED"}
        assert len(worker.result("job")) == job.tile_success
        bad = model_server("failure", outcomes={"400": 1})
        request = worker.request(scene, bad.invocations_url, job_id="bad")
        worker.image_handler.process_image_request(request)
        job = worker.work_off()
        assert (job.image_status, job.region_error, job.tile_error) == ("FAILED", 2, TILES)
        assert job.message == f"{TILES} of {TILES} tiles failed: MODEL_4XX {TILES}; for example {BAD_REQUEST}"
        (reason,) = {item.message for item in worker.regions_of(request)}
        assert reason == f"4 of 4 tiles failed: MODEL_4XX 4; for example {BAD_REQUEST}"

    def test_refusing_endpoint_defers_region_and_fails_no_tile(self, worker, scene, model_server, clock):
        busy = model_server("failure", outcomes={"503": 1})
        request = worker.request(scene, busy.invocations_url)
        worker.plan(request)
        first, _ = worker.region_requests(request)
        waits = []
        for _ in range(5):
            deferred = worker.deferred(first)
            waits.append(deferred.retry_after_s)
            row = worker.regions.get_region_request(first.region_id, request.image_id)
            assert row.not_before == pytest.approx(clock() + waits[-1], abs=2)
            assert (row.stalled_attempts, row.lease_until) == (0, 0)
            clock.ahead_s += waits[-1] + 1
        assert [row.backoffs, row.region_retry_count] == [5, 5]
        assert waits[4] > 40 > waits[0], "it waits longer each time"
        assert worker.features.committed_tiles(request.image_id, first.region_id, range(4)) == {}
        probes = busy.stats()["requests"]
        worker.deferred(first)
        assert busy.stats()["requests"] - probes <= 4, "one tile finds out whether it still refuses"

    def test_region_backs_off_and_then_fails_when_model_crashes_on_most_tiles(self, worker, scene, model_server, clock):
        model = model_server("failure", outcomes={"500": 1})
        request = worker.request(scene, model.invocations_url)
        worker.plan(request)
        first, _ = worker.region_requests(request)
        for _ in range(5):
            deferred = worker.deferred(first, "4 of 4 tiles crash the model")
            assert deferred.is_backoff
            assert worker.features.committed_tiles(request.image_id, first.region_id, range(4)) == {}
            clock.ahead_s += deferred.retry_after_s + 1
        job = worker.process(first)
        assert (job.region_error, job.tile_error) == (1, 4)

    def test_one_tile_fails_when_it_alone_crashes_model(self, worker, scene, model_server):
        model = model_server("centerpoint")
        model.model = CrashingOnOne()
        request = worker.request(scene, model.invocations_url)
        worker.plan(request)
        first, _ = worker.region_requests(request)
        job = worker.process(first)
        assert (job.region_error, job.tile_success, job.tile_error) == (1, 3, 1)
        rows = [row for row in worker.features.scan() if row.get("tile_status") == "FAILED"]
        assert [row["error_code"] for row in rows] == ["MODEL_5XX"]

    def test_region_is_deferred_when_all_tiles_time_out(
        self, worker, scene, model_server, gateway, clock, impatient_gateway
    ):
        model = model_server("centerpoint")
        model.model = SlowOnOne(is_hung=True)
        gateway.add_endpoint(MODEL, LocalEndpoint(model.invocations_url))
        request = worker.request(scene, MODEL)
        worker.plan(request)
        first, _ = worker.region_requests(request)
        for _ in range(3):
            deferred = worker.deferred(first)
            assert deferred.is_backoff
            clock.ahead_s += deferred.retry_after_s + 1
        assert worker.features.committed_tiles(request.image_id, first.region_id, range(4)) == {}
        assert worker.model_endpoints.call_limit_for(lane_of(first)).calls == 1
        model.model = SlowOnOne(victims=[0])
        worker.model_endpoints.call_limit_for(lane_of(first))._rests_until = 0.0
        job = worker.process(first)
        assert (job.region_success, job.tile_success) == (1, 4)

    def test_one_tile_fails_after_three_tries_when_it_alone_is_slow(
        self, worker, scene, model_server, gateway, clock, impatient_gateway
    ):
        """Only when the endpoint responds to a tile that it could do before, and to this one not, three times."""
        model = model_server("centerpoint")
        model.model = SlowOnOne()
        gateway.add_endpoint(MODEL, LocalEndpoint(model.invocations_url))
        request = worker.request(scene, MODEL)
        worker.plan(request)
        first, _ = worker.region_requests(request)
        waits = []
        while isinstance(outcome := worker.outcome_of(first), Deferred):
            waits.append(outcome.is_backoff)
            clock.ahead_s += outcome.retry_after_s + 1
            worker.model_endpoints.call_limit_for(lane_of(first))._rests_until = 0.0
            assert len(waits) < 40, "on a loaded machine, healthy tiles are late as well"
        job = outcome.job
        assert waits[-2:] == [True, True], "it was back-pressure at first"
        assert (job.region_error, job.tile_success, job.tile_error) == (1, 3, 1)
        rows = [row for row in worker.features.scan() if row.get("tile_status") == "FAILED"]
        assert [row["error_code"] for row in rows] == ["TIMEOUT"]

    def test_region_is_deferred_while_tiles_of_its_endpoint_wait_here(self, worker, scene, model_server, monkeypatch):
        monkeypatch.setattr(region_request_handler, "_ROOM_PAUSE_S", 0.0)
        request = worker.request(scene, model_server("centerpoint").invocations_url)
        worker.plan(request)
        first, _ = worker.region_requests(request)
        with worker.model_endpoints.call_limit_for(lane_of(first)).expecting(1000):
            deferred = worker.deferred(first)
            assert deferred.retry_after_s >= 20
            row = worker.regions.get_region_request(first.region_id, request.image_id)
            assert (row.fence, row.region_retry_count, row.not_before) == (0, 0, 0)
        assert worker.process(first).region_success == 1

    def test_workers_share_endpoint_of_known_capacity(self, new_worker, scene, model_server):
        """Where other workers use an endpoint fully, a further one claims nothing; else it takes its share."""
        worker, request_url = new_worker("worker"), model_server("centerpoint").invocations_url
        request = worker.request(scene, request_url)
        worker.plan(request)
        first, second = worker.region_requests(request)
        callers = EndpointCallers(
            worker.config.region_request_table, worker.clients.dynamodb_resource(), now=worker.clock
        )
        for name in ("a", "b"):
            callers.record(request_url, name, 60)
        worker.endpoint_calls = lambda _request: 2
        worker.deferred(first)
        worker.endpoint_calls = lambda _request: 9
        assert worker.process(first).region_success == 1
        assert worker.model_endpoints.call_limit_for(lane_of(first)).ceiling == 3
        worker.endpoint_calls = lambda _request: None
        assert worker.process(second).region_success == 2
        assert worker.model_endpoints.call_limit_for(lane_of(first)).ceiling == worker.config.workers

    def test_region_ends_when_endpoint_recovers(self, worker, scene, model_server, clock):
        model = model_server("failure", outcomes={"200": 1, "503": 1}, failures_first=6)
        request = worker.request(scene, model.invocations_url)
        worker.plan(request)
        first, _ = worker.region_requests(request)
        waits = 0
        while isinstance(outcome := worker.outcome_of(first), Deferred):
            clock.ahead_s += outcome.retry_after_s + 1
            waits += 1
            assert waits < 40
        job = outcome.job
        assert (job.region_success, job.tile_success, job.tile_error) == (1, 4, 0)

    def test_region_is_deferred_for_retry_after(self, worker, scene, model_server):
        busy = model_server("failure", outcomes={"503": 1}, retry_after_s=120)
        request = worker.request(scene, busy.invocations_url)
        worker.plan(request)
        deferred = worker.deferred(worker.region_requests(request)[0])
        assert deferred.retry_after_s >= 120
        assert deferred.is_backoff

    def test_region_waits_and_is_then_abandoned_when_endpoint_is_missing(self, worker, scene, clock):
        worker.skip_preflight()
        request = worker.request(scene, "no-such-endpoint")
        worker.plan(request)
        first, _ = worker.region_requests(request)
        clock.ahead_s += 36_000
        waits_s = []
        for _ in range(9):
            deferred = worker.deferred(first, "ENDPOINT_NOT_FOUND: the endpoint no-such-endpoint: ")
            assert deferred.is_backoff
            waits_s.append(deferred.retry_after_s)
            clock.ahead_s += waits_s[-1] + 1
        assert 607 <= sum(waits_s) <= 1215, "it begins when a worker finds that the endpoint is missing"
        job = worker.process(first)
        assert (job.region_error, job.tile_error) == (1, TILES_PER_REGION)
        row = worker.regions.get_region_request(first.region_id, request.image_id)
        assert row.region_status == "FAILED"
        assert "ENDPOINT_NOT_FOUND" in row.message

    def test_image_succeeds_with_sagemaker_endpoint(self, worker, scene, gateway, model_server):
        gateway.add_endpoint("answers", LocalEndpoint(model_server("centerpoint").invocations_url))
        request = worker.request(scene, "answers")
        worker.image_handler.process_image_request(request)
        assert worker.work_off().image_status == "SUCCESS"

    def test_region_is_processed_tile_by_tile_when_it_kills_workers(self, worker, scene, model_server, clock):
        model = model_server("failure", outcomes={"200": 1}, latency_ms=(5, 10))
        request = worker.request(scene, model.invocations_url)
        worker.plan(request)
        first, _ = worker.region_requests(request)
        worker.regions.claim(request.image_id, first.region_id, "dead", 60)
        clock.ahead_s += 61
        job = worker.process(first)
        assert job.tile_success == 4
        assert model.stats()["peak"] == 1
        row = worker.regions.get_region_request(first.region_id, request.image_id)
        assert (row.stalled_attempts, row.stall_first_time) == (1, None), "a tile that ends is progress"

    def test_region_is_abandoned_when_it_killed_too_many_workers(self, worker, scene, model_server, clock):
        model = model_server("centerpoint")
        request = worker.request(scene, model.invocations_url)
        worker.plan(request)
        first, _ = worker.region_requests(request)
        bounds = ImageRegion.of(((0, 0), (256, 256)))
        key = TileKey(request.image_id, first.region_id, 0)
        worker.features.commit_tile(key, bounds, TileOutcome(TileState.SUCCEEDED))
        for _ in range(6):
            worker.regions.claim(request.image_id, first.region_id, "dead", 60)
            clock.ahead_s += 120
        job = worker.process(first)
        assert (job.region_error, job.tile_success, job.tile_error) == (1, 1, 3)
        assert model.stats()["requests"] == 0
        row = worker.regions.get_region_request(first.region_id, request.image_id)
        assert (row.region_status, row.message) == ("PARTIAL", "no progress in 7 attempts")
        rows = worker.rows_of_tiles(request.image_id)
        assert sorted(stored.get("error_code", "") for stored in rows) == ["", ABANDONED, ABANDONED, ABANDONED]

    def test_fail_region_request_abandons_tiles_without_outcome(self, worker, scene, model_server):
        request = worker.request(scene, model_server("centerpoint").invocations_url)
        worker.plan(request)
        item, _ = worker.regions_of(request)
        item.message = "nobody wants it"
        ended = worker.region_handler.fail_region_request(item)
        job = ended.job
        assert (job.region_error, job.tile_error) == (1, 4)
        row = worker.regions.get_region_request(item.region_id, request.image_id)
        assert (row.region_status, row.message) == ("FAILED", "nobody wants it")
        again = worker.region_handler.fail_region_request(item).job
        assert (again.region_error, again.tile_error) == (1, 4), "it has ended, so nothing changes"
        other = worker.regions_of(request)[1]
        worker.regions.claim(request.image_id, other.region_id, "busy", 60)
        assert isinstance(worker.region_handler.fail_region_request(other), Deferred)

    def test_region_of_ended_image_is_not_processed(self, worker, scene, model_server):
        model = model_server("centerpoint")
        request = worker.request(scene, model.invocations_url)
        worker.plan(request)
        first, _ = worker.region_requests(request)
        worker.jobs.update({"image_id": request.image_id}, "SET image_status = :s", {":s": "FAILED"})
        job = worker.process(first)
        assert (job.image_status, job.region_success) == ("FAILED", 0)
        assert model.stats()["requests"] == 0

    def test_rows_of_image_and_region_are_read_once_before_claim(self, worker, scene, model_server):
        request = worker.request(scene, model_server("centerpoint").invocations_url)
        worker.plan(request)
        first, _ = worker.region_requests(request)
        dynamodb = worker.clients.dynamodb_resource().meta.client
        with answering(dynamodb, "GetItem", None) as reads:
            assert worker.process(first).region_success == 1
        assert len(reads) == 3, "the image's row, its request's, and its counters after the region ended"

    def test_job_that_began_again_before_claim_has_its_new_deadline(
        self, worker, scene, model_server, clock, monkeypatch
    ):
        request = worker.request(scene, model_server("centerpoint").invocations_url)
        worker.plan(request)
        first, _ = worker.region_requests(request)
        rows, find = [worker.jobs.find(request.image_id)], worker.jobs.find
        clock.ahead_s += worker.config.job_deadline_s + 1
        values = {":one": 1, ":now": clock()}
        worker.jobs.update({"image_id": request.image_id}, "SET generation = :one, first_attempt = :now", values)
        keys = {"image_id": request.image_id, "region_id": first.region_id}
        worker.regions.update(keys, "SET generation = :one", {":one": 1})
        monkeypatch.setattr(worker.jobs, "find", lambda image_id: rows.pop() if rows else find(image_id))
        job = worker.process(first)
        assert (job.region_success, job.tile_error) == (1, 0)

    def test_region_is_not_ended_when_another_worker_took_it_over(self, new_worker, scene, model_server):
        worker = new_worker()
        request = worker.request(scene, model_server("centerpoint").invocations_url)
        worker.plan(request)
        first, _ = worker.region_requests(request)
        run = worker.worker_process.pipeline.run

        def lose_the_lease(region_run, steps, tiles, on_cut):
            run(region_run, steps, tiles, on_cut)
            worker.regions.update(
                {"image_id": request.image_id, "region_id": first.region_id}, "ADD fence :one", {":one": 1}
            )
            (lease,) = worker.worker_process.leases._leases or {None}
            assert lease is None or lease.lost.wait(5)

        worker.worker_process.pipeline.run = lose_the_lease
        worker.deferred(first)
        row = worker.regions.get_region_request(first.region_id, request.image_id)
        assert (row.region_status, row.fence) == ("IN_PROGRESS", 2)

    def test_stopping_worker_releases_region_without_attempt(self, worker, scene, model_server):
        request = worker.request(scene, model_server("centerpoint").invocations_url)
        worker.plan(request)
        first, _ = worker.region_requests(request)
        worker.worker_process.stopping.set()
        deferred = worker.deferred(first)
        assert deferred.retry_after_s == 0
        row = worker.regions.get_region_request(first.region_id, request.image_id)
        assert (row.stalled_attempts, row.lease_until, row.not_before, row.backoffs) == (0, 0, 0, 0)

    def test_region_is_released_when_unforeseen_error_is_raised(self, worker, scene, model_server, monkeypatch):
        request = worker.request(scene, model_server("centerpoint").invocations_url)
        worker.plan(request)
        first, _ = worker.region_requests(request)
        monkeypatch.setattr(
            worker.model_endpoints, "detector_for", lambda _: (_ for _ in ()).throw(KeyError("unforeseen"))
        )
        worker.deferred(first, "unforeseen")
        row = worker.regions.get_region_request(first.region_id, request.image_id)
        assert (row.stalled_attempts, row.lease_until, row.backoffs) == (0, 0, 1)

    def test_counts_are_right_when_region_status_is_not_published(self, worker, scene, model_server, clients):
        request = worker.request(scene, model_server("centerpoint").invocations_url)
        worker.plan(request)
        first, _ = worker.region_requests(request)
        with answering(clients.client("sns"), "Publish", query_error("InternalError", 400)):
            assert worker.process(first).region_success == 1

    def test_region_fails_when_image_was_replaced(self, new_worker, tmp_path, model_server, clock):
        image = write_scene(tmp_path / "image.tif")
        model = model_server("centerpoint")
        planner, worker = new_worker("planner"), new_worker("worker")
        request = planner.request(image, model.invocations_url)
        planner.plan(request)
        shutil.copy(write_scene(tmp_path / "other.tif", seed=9), image)
        os.utime(image, (1, 1))
        first, _ = worker.region_requests(request)
        for _ in range(5):
            deferred = worker.deferred(first, "replaced")
            clock.ahead_s += deferred.retry_after_s + 1
        job = worker.process(first)
        assert (job.region_error, job.tile_error) == (1, 4)
        assert model.stats()["requests"] == 0
        row = worker.regions.get_region_request(first.region_id, request.image_id)
        assert "replaced" in row.message

    @pytest.mark.parametrize("error", [ZeroDivisionError("by zero"), RuntimeError("odd"), KeyError("k")])
    def test_region_ends_when_an_error_is_unforeseen(self, worker, scene, model_server, clock, error, monkeypatch):
        request = worker.request(scene, model_server("centerpoint").invocations_url)
        worker.plan(request)
        first, second = worker.region_requests(request)
        assert worker.process(second).region_success == 1

        def raising(*_args):
            raise error

        monkeypatch.setattr(RegionProcessor, "run", raising)
        for _ in range(9):
            deferred = worker.deferred(first, type(error).__name__)
            clock.ahead_s += deferred.retry_after_s + 1
        job = worker.process(first)
        assert (job.region_success, job.region_error, job.tile_error) == (1, 1, 4)
        assert type(error).__name__ in worker.regions.get_region_request(first.region_id, request.image_id).message

    def test_region_is_released_without_outcome_when_worker_stops(self, worker, scene, model_server, monkeypatch):
        request = worker.request(scene, model_server("centerpoint").invocations_url)
        worker.plan(request)
        first, _ = worker.region_requests(request)

        def raising(*_args):
            worker.region_handler._stopping.set()
            raise RuntimeError("interrupted")

        monkeypatch.setattr(RegionProcessor, "run", raising)
        worker.deferred(first, "the worker stops")
        row = worker.regions.get_region_request(first.region_id, request.image_id)
        assert (row.backoffs, row.lease_until) == (0, 0)


class TestThrottle:
    def throttled(self, new_worker, most: int) -> InProcessWorker:
        worker = new_worker(SM_SELF_THROTTLING="true")
        worker.endpoint_utils.max_region_cache[MODEL] = most
        return worker

    def test_region_is_deferred_when_all_slots_are_taken(self, new_worker, scene, gateway, model_server):
        gateway.add_endpoint(MODEL, LocalEndpoint(model_server("centerpoint").invocations_url))
        worker = self.throttled(new_worker, most=2)
        request = worker.request(scene, MODEL)
        worker.plan(request)
        first, _ = worker.region_requests(request)
        slots = [worker.endpoints.take_slot(MODEL, name, 2, 60) for name in ("one", "two")]
        assert None not in slots
        worker.deferred(first)
        row = worker.regions.get_region_request(first.region_id, request.image_id)
        assert (row.fence, row.stalled_attempts, row.backoffs) == (0, 0, 0), "it was not even claimed"
        worker.endpoints.leave_slot(slots[0])
        assert worker.process(first).region_success == 1
        assert [row["endpoint"] for row in worker.endpoints.scan() if "#" in row["endpoint"]] == [
            f"{MODEL}#{slots[1].number}"
        ]

    def test_endpoint_that_was_full_moment_ago_costs_one_read(self, new_worker, scene, gateway, model_server):
        gateway.add_endpoint(MODEL, LocalEndpoint(model_server("centerpoint").invocations_url))
        worker = self.throttled(new_worker, most=1)
        request = worker.request(scene, MODEL)
        worker.plan(request)
        first, second = worker.region_requests(request)
        assert worker.endpoints.take_slot(MODEL, "other", 1, 60)
        worker.deferred(first)
        calls: list[str] = []
        client = worker.clients.dynamodb_resource().meta.client
        client.meta.events.register_first(
            "before-send.dynamodb",
            lambda request, **_: calls.append(request.headers["X-Amz-Target"].decode().split(".")[-1]),
            unique_id="counted",
        )
        try:
            worker.deferred(second)
        finally:
            client.meta.events.unregister("before-send.dynamodb", unique_id="counted")
        assert calls == ["GetItem"], "the row of the image"

    def test_slot_is_free_when_lease_of_dead_worker_ends(self, new_worker, scene, gateway, model_server):
        gateway.add_endpoint(MODEL, LocalEndpoint(model_server("centerpoint").invocations_url))
        worker = self.throttled(new_worker, most=1)
        request = worker.request(scene, MODEL)
        assert worker.endpoints.take_slot(MODEL, "dead", 1, worker.config.region_lease_s)
        worker.image_handler.process_image_request(request)
        assert worker.jobs.get_image_request(request.image_id).region_success == 0, "it is left to the queue"
        worker.clock.ahead_s += worker.config.region_lease_s + 1
        assert worker.work_off().image_status == "SUCCESS"
        assert [row["endpoint"] for row in worker.endpoints.scan()] == [MODEL], "no slot is left"

    def test_slot_is_freed_when_region_fails(self, new_worker, scene):
        worker = self.throttled(new_worker, most=5)
        worker.skip_preflight()
        request = worker.request(scene, MODEL + "-missing")
        worker.endpoint_utils.max_region_cache[MODEL + "-missing"] = 5
        worker.plan(request)
        worker.deferred(worker.region_requests(request)[0])
        assert [row["endpoint"] for row in worker.endpoints.scan()] == [MODEL + "-missing"]

    def test_endpoint_of_unknown_size_gets_one_region_at_a_time(self, new_worker, scene, gateway, model_server):
        gateway.add_endpoint(MODEL, LocalEndpoint(model_server("centerpoint").invocations_url))
        worker = self.throttled(new_worker, most=0)
        request = worker.request(scene, MODEL)
        worker.image_handler.process_image_request(request)
        assert worker.work_off().image_status == "SUCCESS"

    def test_regions_are_not_limited_when_endpoint_cannot_be_described(self, new_worker, scene, model_server):
        worker = new_worker(SM_SELF_THROTTLING="true")
        worker.skip_preflight()
        missing = worker.request(scene, "not-there")
        worker.plan(missing)
        worker.deferred(worker.region_requests(missing)[0], "the endpoint not-there: ")
        http = worker.request(scene, model_server("centerpoint").invocations_url, job_id="http")
        worker.plan(http)
        assert worker.process(worker.region_requests(http)[0]).region_success == 1
