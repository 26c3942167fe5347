"""Images and regions through their handlers: real tables, queues, models and files; time is turned by hand."""

import dataclasses
import itertools
import json
import os
import shutil
import threading
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import botocore.endpoint
import numpy as np
import pytest
import shapely
import structlog
from botocore.awsrequest import AWSResponse
from osgeo import gdal
from pydantic import Field

from aws.osml.model_runner import region_request_handler
from aws.osml.model_runner.api.image_request import ImageRequest
from aws.osml.model_runner.api.image_request_message import parse_image_request_message
from aws.osml.model_runner.api.inference import ModelInvokeMode
from aws.osml.model_runner.api.region_request import RegionName, RegionRequest
from aws.osml.model_runner.common.typing import ImageRegion, TileState
from aws.osml.model_runner.database import JobItem, JobTable, TileKey, TileOutcome, feature_table
from aws.osml.model_runner.database.outstanding_jobs_table import OpenJob
from aws.osml.model_runner.exceptions import (
    AggregateFeaturesException,
    AggregateOutputFeaturesException,
    ConservationError,
    InvalidImageRequestException,
    InvalidImageURLException,
    LeaseLostError,
    LoadImageException,
    ProcessImageException,
    UnsupportedModelException,
)
from aws.osml.model_runner.image_request_handler import ImageRequestHandler
from aws.osml.model_runner.jobs.outcome import Deferred, Ended
from aws.osml.model_runner.jobs.redrive import JobRedriver
from aws.osml.model_runner.local.models.centerpoint import Centerpoint
from aws.osml.model_runner.local.models.example_model import ModelReply
from aws.osml.model_runner.local.stack.http_service import HttpRequest, HttpResponse, HttpService
from aws.osml.model_runner.local.stack.sagemaker_gateway import LocalEndpoint
from aws.osml.model_runner.pipeline.region_run import RegionProgress
from aws.osml.model_runner.raster import ImageUnreachableError, RasterSettings, configure_gdal, image_to_world
from aws.osml.model_runner.raster.sensor_model import build_sensor_model
from aws.osml.model_runner.region_request_handler import ABANDONED, region_request_of
from aws.osml.model_runner.scheduler.load import lane_of
from aws.osml.model_runner.worker.messages import DeadLetters, RegionMessages
from aws_faults import Raw, answering, json_error, query_error, xml_error
from range_server import Fault, RangeServer
from raster_files import write_image
from worker_in_process import InProcessWorker, StatusListener, write_scene


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


TILES = 8
TILES_PER_REGION = 4
BAD_REQUEST = "MODEL_4XX: the model answered with status 400"
MODEL = "ships"


@pytest.fixture(autouse=True)
def logs() -> Iterator[list[Any]]:
    """Catch what is logged."""
    with structlog.testing.capture_logs() as caught:
        yield caught


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


@pytest.fixture
def new_worker(data_plane, clients, clock) -> Iterator[Callable[..., InProcessWorker]]:
    """Make workers on one data plane; each is closed when the test ends."""
    made: list[InProcessWorker] = []

    def make(name: str = "worker", **settings: str) -> InProcessWorker:
        worker = InProcessWorker(data_plane.environment, clients, clock, name, **settings)
        worker.outputs = json.dumps([{"type": "S3", "bucket": data_plane.result_bucket, "prefix": "out"}])
        made.append(worker)
        return worker

    yield make
    for worker in made:
        worker.close()


@pytest.fixture
def worker(new_worker) -> InProcessWorker:
    return new_worker()


def planned(worker: InProcessWorker, request: ImageRequest) -> JobItem:
    """Accept and plan an image, and process none of its regions."""
    return worker.plan(request)


def lost_later(worker: InProcessWorker) -> None:
    """Let the preflight of jobs find nothing: what is missing in the test was still there then."""
    worker.image_handler.preflight.check = lambda *_: None  # type: ignore[method-assign]


def region_requests(worker: InProcessWorker, request: ImageRequest) -> list[RegionRequest]:
    job = worker.jobs.get_image_request(request.image_id)
    return [region_request_of(job, item) for item in worker.regions_of(request)]


@contextmanager
def throttling(worker: InProcessWorker, table: str, operation: str, times: int, refused: list[str]) -> Iterator[None]:
    """Answer the first ``times`` sends of an operation on a table as DynamoDB does when it is busy."""
    client = worker.clients.dynamodb_resource().meta.client
    name, lock = getattr(worker.config, table.lower()), threading.Lock()
    status, headers, body = json_error("ProvisionedThroughputExceededException")

    def refuse(request: Any, **_: Any) -> AWSResponse | None:
        with lock:
            if f'"{name}"'.encode() not in request.body or len(refused) >= times:
                return None
            refused.append(operation)
        return AWSResponse(request.url, status, headers, Raw(body))

    event = f"before-send.dynamodb.{operation}"
    client.meta.events.register_first(event, refuse)
    try:
        # botocore's own waits between its sends.
        with patch.object(botocore.endpoint, "time", SimpleNamespace(sleep=lambda _: None)):
            yield
    finally:
        client.meta.events.unregister(event, refuse)


def _center(feature: dict[str, Any]) -> tuple[int, int]:
    """Return the middle of a feature in whole pixels (x, y)."""
    center = shapely.from_geojson(json.dumps(feature["properties"]["imageGeometry"])).centroid
    return round(center.x), round(center.y)


class TestImage:
    def test_an_image_goes_all_the_way(self, worker, scene, model_server, statuses):
        model = model_server("centerpoint")
        request = worker.request(scene, model.invocations_url)
        worker.image_handler.process_image_request(request)
        (region,) = [item for item in worker.regions_of(request) if item.is_terminal]
        assert region.region_id == "(0, 0)(512, 512)-job", "the first region is done by the worker that planned"
        assert len(worker.regions_of(request)) == 2
        job = worker.work_off()
        assert (job.image_status, job.region_success, job.tile_success, job.tile_error) == ("SUCCESS", 2, TILES, 0)
        assert (job.width, job.height, job.tile_count, job.region_count) == (1024, 512, TILES, 2)
        assert json.loads(job.extents)["west"] == pytest.approx(3.0, abs=0.01)
        assert job.status_outbox is None
        assert worker.open_jobs() == []
        assert model.stats()["requests"] == TILES
        features = worker.result("job")
        centers = {_center(one) for one in features}
        assert centers == {(x, y) for x in (128, 384, 640, 896) for y in (128, 384)}
        heard = statuses.heard()
        assert sorted(set(heard)) == ["IN_PROGRESS", "STARTED", "SUCCESS"]
        assert heard.count("SUCCESS") == heard.count("STARTED") == 1

    def test_rows_of_regions_are_written_side_by_side(self, worker, scene, gateway):
        gateway.add_endpoint(MODEL, LocalEndpoint("http://127.0.0.1:1/invocations"))
        request = worker.request(scene, MODEL)
        # Holds the first row's write back until the second one is under way.
        both = threading.Barrier(2)
        client = worker.clients.dynamodb_resource().meta.client

        def meet(request: Any, **_: Any) -> None:
            if b"region_retry_count" in request.body:
                both.wait(20.0)

        client.meta.events.register_first("before-send.dynamodb.PutItem", meet, unique_id="meet")
        try:
            planned(worker, request)
        finally:
            client.meta.events.unregister("before-send.dynamodb.PutItem", unique_id="meet")
        assert len(worker.regions_of(request)) == len(worker.received_regions()) == 2

    def test_every_region_has_a_message_the_first_one_too(self, worker, scene, model_server):
        request = worker.request(scene, model_server("centerpoint").invocations_url)
        worker.image_handler.process_image_request(request)
        sent = [region for _, region in worker.received_regions()]
        assert [region.region_id for region in sent] == ["(0, 0)(512, 512)-job", "(0, 512)(512, 512)-job"]
        assert sent == [RegionName.of(region) for region in region_requests(worker, request)]

    def test_a_job_of_one_region_is_finished_at_once(self, new_worker, scene, model_server):
        worker = new_worker(REGION_SIZE="(4096, 4096)")
        request = worker.request(scene, model_server("centerpoint").invocations_url)
        worker.image_handler.process_image_request(request)
        assert worker.jobs.get_image_request(request.image_id).image_status == "SUCCESS"
        assert len(worker.result("job")) == TILES

    def test_the_same_request_again_changes_nothing_and_tells_its_status(self, worker, scene, model_server, statuses):
        model = model_server("centerpoint")
        request = worker.request(scene, model.invocations_url)
        worker.image_handler.process_image_request(request)
        worker.image_handler.process_image_request(request)
        assert model.stats()["requests"] == TILES_PER_REGION
        worker.work_off()
        statuses.heard()
        before = worker.jobs.get_image_request(request.image_id)
        worker.image_handler.process_image_request(request)
        assert worker.jobs.get_image_request(request.image_id) == before
        assert statuses.heard() == ["SUCCESS"]
        assert model.stats()["requests"] == TILES

    def test_another_request_under_its_job_id_is_refused(self, worker, scene, model_server):
        url = model_server("centerpoint").invocations_url
        worker.image_handler.accept(worker.request(scene, url))
        with pytest.raises(InvalidImageRequestException, match="JOB_ID_REUSED"):
            worker.image_handler.accept(worker.request(scene, url, imageProcessorTileSize=128))

    def test_a_plan_is_made_by_one_worker(self, new_worker, scene, model_server):
        first, second = new_worker("first"), new_worker("second")
        model = model_server("centerpoint")
        job = first.image_handler.accept(first.request(scene, model.invocations_url))
        assert second.outstanding_jobs.start_planning(job, "second", 60)
        first.image_handler.plan(job)
        assert first.jobs.get_image_request(job.image_id).region_count is None
        assert model.stats()["requests"] == 0

    def test_an_image_that_ended_while_it_was_planned_stays_ended(self, worker, scene, model_server, monkeypatch):
        job = worker.image_handler.accept(worker.request(scene, model_server("centerpoint").invocations_url))
        plan_of = worker.image_handler._plan_of

        def end_meanwhile(request, item):
            worker.jobs.fail_unplanned(request.image_id, "given up")
            return plan_of(request, item)

        monkeypatch.setattr(worker.image_handler, "_plan_of", end_meanwhile)
        worker.image_handler.plan(job)
        row = worker.jobs.get_image_request(job.image_id)
        assert (row.image_status, row.region_count) == ("FAILED", None)
        assert worker.regions_of(job.request) == []

    def test_a_job_id_with_several_images_is_several_jobs(self, worker, scene, tmp_path, model_server):
        model = model_server("centerpoint")
        other = write_scene(tmp_path / "other.tif", 256, 256, seed=2)
        message_urls = [f"file://{scene}", f"file://{other}"]
        single = worker.request(scene, model.invocations_url)
        body = {
            "jobId": "many",
            "imageUrls": message_urls,
            "outputs": json.loads(worker.outputs),
            "imageProcessor": {"name": single.model_name, "type": "HTTP_ENDPOINT"},
            "imageProcessorTileSize": 256,
            "imageProcessorTileOverlap": 0,
            "imageProcessorTileFormat": "PNG",
        }
        requests = parse_image_request_message(json.dumps(body))
        for request in requests:
            worker.image_handler.process_image_request(request)
        worker.work_off()
        rows = [worker.jobs.get_image_request(request.image_id) for request in requests]
        assert [(row.image_status, row.tile_success) for row in rows] == [("SUCCESS", TILES), ("SUCCESS", 1)]
        assert worker.open_jobs() == []
        assert [len(worker.result(f"{request.job_id}/{request.result_name}")) for request in requests] == [TILES, 1]

    @pytest.mark.parametrize(
        ("changes", "reason"),
        [
            ({"imageUrls": ["file:///none/at/all.tif"]}, "does not exist"),
            ({"imageUrls": ["http://127.0.0.1:1/a.tif"]}, "IMAGE_SOURCES"),
            ({"regionOfInterest": "POLYGON ((0 0, 1 0, 1 1, 0 1, 0 0))"}, "regionOfInterest"),
        ],
        ids=["missing", "source not allowed", "interest elsewhere"],
    )
    def test_an_image_that_cannot_be_planned_fails_and_says_why(self, worker, scene, statuses, changes, reason):
        request = worker.request(scene, "http://127.0.0.1:9/invocations", **changes)
        with pytest.raises(ProcessImageException, match=reason):
            worker.image_handler.process_image_request(request)
        row = worker.jobs.get_image_request(request.image_id)
        assert row.image_status == "FAILED"
        assert reason in row.message
        assert statuses.heard().count("FAILED") == 1
        assert worker.open_jobs() == []
        assert worker.received_regions() == []

    @pytest.mark.parametrize("limit", ["MAX_REGIONS", "MAX_TILES_PER_REGION"])
    def test_a_plan_of_too_many_parts_is_refused(self, new_worker, scene, limit):
        worker = new_worker(**{limit: "1"})
        with pytest.raises(ProcessImageException, match="2 regions with up to 4 tiles each are too many"):
            worker.image_handler.process_image_request(worker.request(scene, "http://127.0.0.1:9/invocations"))

    def test_an_image_without_georeference_has_no_region_of_interest(self, worker, tmp_path):
        plain = write_scene(tmp_path / "plain.tif", is_georeferenced=False)
        roi = "POLYGON ((3 48.7, 3.01 48.7, 3.01 48.8, 3 48.8, 3 48.7))"
        request = worker.request(plain, "http://127.0.0.1:9/invocations", regionOfInterest=roi)
        with pytest.raises(ProcessImageException, match="georeferenced"):
            worker.image_handler.process_image_request(request)

    def test_an_image_without_georeference_is_processed_in_pixels(self, new_worker, tmp_path, model_server):
        worker = new_worker(REGION_SIZE="(4096, 4096)")
        plain = write_scene(tmp_path / "plain.tif", is_georeferenced=False)
        request = worker.request(plain, model_server("centerpoint").invocations_url)
        worker.image_handler.process_image_request(request)
        row = worker.jobs.get_image_request(request.image_id)
        assert (row.image_status, row.extents, row.georeference) == ("SUCCESS", None, None)
        result = worker.result_file("job")
        assert len(result["features"]) == TILES
        assert "georeference" not in result["modelRunner"]

    @pytest.mark.parametrize(("wrong_deg", "is_bad"), [(0.0, False), (0.5, True)])
    def test_a_result_says_how_well_its_image_is_placed(
        self, new_worker, tmp_path, model_server, statuses, wrong_deg, is_bad
    ):
        worker = new_worker(REGION_SIZE="(4096, 4096)")
        pixels = [(x, y) for x in (0.0, 512.0, 1024.0) for y in (0.0, 256.0, 512.0)]
        points = [gdal.GCP(3.0 + x / 1e4, 48.0 - y / 1e4, 0.0, x, y) for x, y in pixels]
        points[4].GCPX += wrong_deg
        scene = write_image(tmp_path / "points.tif", np.ones((1, 512, 1024), np.uint8), gcps=(points, 4326))
        request = worker.request(scene, model_server("centerpoint").invocations_url)
        worker.image_handler.process_image_request(request)

        row = worker.jobs.get_image_request(request.image_id)
        placed = worker.result_file("job")["modelRunner"]["georeference"]
        assert placed == json.loads(row.georeference)
        assert placed["method"].startswith("control points: ")
        assert (placed["errorPx"] > 1.0, "warning" in placed) == (is_bad, is_bad)
        end = next(text for text, attributes in statuses.events() if attributes["image_status"] == "SUCCESS")
        assert ("places may be off by" in end) == is_bad

    def test_what_cannot_be_planned_now_is_left_to_the_sweeper(
        self, worker, scene, model_server, monkeypatch, statuses
    ):
        model = model_server("centerpoint")
        request = worker.request(scene, model.invocations_url)
        with monkeypatch.context() as patch:
            patch.setattr(
                worker.image_handler, "_plan_of", lambda *_: (_ for _ in ()).throw(ImageUnreachableError("S3 is away"))
            )
            worker.image_handler.process_image_request(request)
        assert worker.jobs.get_image_request(request.image_id).image_status == "ACCEPTED"
        assert worker.open_jobs() == [request.image_id]
        assert "FAILED" not in statuses.heard()

    def test_the_next_job_sees_an_object_that_was_uploaded_since(
        self, worker, scene, tmp_path, model_server, clients, data_plane
    ):
        model, s3, bucket = model_server("centerpoint"), clients.client("s3"), data_plane.result_bucket
        widths = []
        for job_id, width in (("one", 512), ("same", 512), ("two", 1024)):
            s3.upload_file(str(write_scene(tmp_path / f"{width}.tif", width)), bucket, "in.tif")
            request = worker.request(f"s3://{bucket}/in.tif", model.invocations_url, job_id=job_id)
            worker.image_handler.process_image_request(request)
            worker.work_off()
            row = worker.jobs.get_image_request(request.image_id)
            assert row.image_status == "SUCCESS"
            widths.append(row.width)
        assert widths == [512, 512, 1024]

    def test_a_status_topic_that_is_away_ends_no_job(self, worker, scene, model_server, clients):
        request = worker.request(scene, model_server("centerpoint").invocations_url)
        with answering(clients.client("sns"), "Publish", query_error("InternalError", 400)):
            worker.image_handler.process_image_request(request)
            worker.work_off()
        row = worker.jobs.get_image_request(request.image_id)
        assert (row.image_status, row.status_outbox["status"]) == ("SUCCESS", "SUCCESS")
        assert worker.open_jobs() == [request.image_id], "somebody has to publish it yet"

    def test_a_handler_needs_no_table_of_open_jobs(self, worker):
        handler = worker.image_handler
        other = ImageRequestHandler(
            *(handler.job_table, handler.image_status_monitor, None, handler.tiling_strategy),
            *(handler.region_request_queue, handler.region_request_table, handler.endpoint_utils, handler.config),
            handler.region_request_handler,
        )
        assert list(other.outstanding_jobs.open_jobs()) == []


def degrees_of(scene: Path, pixels: shapely.Geometry) -> str:
    """Return a shape in pixels (x, y) as WKT in degrees."""
    dataset = gdal.Open(str(scene))
    to_world = image_to_world(build_sensor_model(dataset, RasterSettings()))
    return shapely.transform(pixels, lambda xy: to_world(xy)[:, :2]).wkt


class TestInterest:
    def test_only_tiles_in_the_region_of_interest_are_sent(self, worker, scene, model_server):
        model = model_server("centerpoint")
        roi = degrees_of(scene, shapely.box(10, 10, 1014, 250))
        request = worker.request(scene, model.invocations_url, regionOfInterest=roi)
        worker.image_handler.process_image_request(request)
        job = worker.work_off()
        assert (job.image_status, job.tile_count, job.tile_success) == ("SUCCESS", 4, 4)
        assert model.stats()["requests"] == 4
        assert np.array(job.processing_bounds) == pytest.approx(np.array([[10, 10], [1004, 240]]), abs=2)

    def test_a_hole_in_it_is_left_out(self, worker, scene, model_server):
        model = model_server("centerpoint")
        hole = [(250, 5), (774, 5), (774, 507), (250, 507)]
        roi = degrees_of(scene, shapely.Polygon([(0, 0), (1024, 0), (1024, 512), (0, 512)], holes=[hole]))
        request = worker.request(scene, model.invocations_url, regionOfInterest=roi, imageProcessorTileSize=128)
        worker.image_handler.process_image_request(request)
        job = worker.work_off()
        assert job.image_status == "SUCCESS"
        assert model.stats()["requests"] == job.tile_count == job.tile_success < 32

    def test_an_image_that_is_gone_is_given_up_with_its_interest_unknown(self, new_worker, tmp_path, clock):
        planner = new_worker("planner")
        image = write_scene(tmp_path / "image.tif")
        roi = degrees_of(image, shapely.box(10, 10, 1014, 250))
        request = planner.request(image, "http://127.0.0.1:9/invocations", regionOfInterest=roi)
        planned(planner, request)
        image.unlink()
        worker = new_worker("late")
        first, _ = region_requests(worker, request)
        for _ in range(5):
            deferred = worker.deferred(first)
            clock.ahead_s += deferred.retry_after_s + 1
        job = worker.process(first)
        region = worker.regions.get_region_request(first.region_id, request.image_id)
        assert (region.region_status, job.region_error, job.tile_success) == ("FAILED", 1, 0)


class TestLoad:
    def test_load_image_request_opens_the_image_and_plans_it(self, worker, scene, model_server):
        item = JobItem.from_image_request(worker.request(scene, "http://127.0.0.1:9/invocations"))
        extension, dataset, sensor_model, regions = worker.image_handler.load_image_request(item, None)
        assert extension == "TIFF"
        assert (dataset.RasterXSize, dataset.RasterYSize) == (1024, 512)
        assert sensor_model is not None
        assert regions == [((0, 0), (512, 512)), ((0, 512), (512, 512))]

    def test_load_image_request_keeps_to_the_interest_and_the_jobs_region_size(self, worker, scene):
        item = JobItem.from_image_request(worker.request(scene, "http://127.0.0.1:9/invocations"))
        item.region_size = [256, 256]
        roi = shapely.from_wkt(degrees_of(scene, shapely.box(10, 10, 400, 200)))
        *_, regions = worker.image_handler.load_image_request(item, roi)
        assert [region.size for region in regions] == [(256, pytest.approx(190, abs=2))] * 2
        assert (regions[0].origin.col, regions[1].right) == pytest.approx((10, 400), abs=2)

    def test_load_image_request_of_what_cannot_be_opened(self, worker):
        item = JobItem.from_image_request(worker.request("file:///none.tif", "http://127.0.0.1:9/invocations"))
        with pytest.raises(LoadImageException):
            worker.image_handler.load_image_request(item, None)
        item = JobItem.from_image_request(worker.request("http://127.0.0.1/a.tif", "http://127.0.0.1:9/invocations"))
        with pytest.raises(InvalidImageURLException):
            worker.image_handler.load_image_request(item, None)

    def test_queue_region_request_shares_out_regions_of_an_open_image(self, worker, scene, model_server):
        model = model_server("centerpoint")
        request = worker.request(scene, model.invocations_url)
        worker.image_handler.accept(request)
        item = worker.jobs.get_image_request(request.image_id)
        extension, dataset, sensor_model, regions = worker.image_handler.load_image_request(item, None)
        item.region_count, item.width, item.height = len(regions), 1024, 512
        worker.jobs.fix_plan(item)
        worker.image_handler.queue_region_request(regions, request, dataset, sensor_model, extension)
        assert model.stats()["requests"] == TILES_PER_REGION
        assert worker.work_off().image_status == "SUCCESS"

    def test_calculate_processing_bounds(self, scene):
        dataset = gdal.Open(str(scene))
        sensor_model = build_sensor_model(dataset, RasterSettings())
        bounds = ImageRequestHandler.calculate_processing_bounds
        assert bounds(dataset, sensor_model) == ((0, 0), (1024, 512))
        assert bounds(dataset, None) == ((0, 0), (1024, 512))
        (row, col), (width, height) = bounds(dataset, sensor_model, degrees_of(scene, shapely.box(100, 200, 300, 260)))
        assert (row, col, width, height) == pytest.approx((200, 100, 200, 60), abs=2)
        with pytest.raises(LoadImageException, match="does not touch"):
            bounds(dataset, sensor_model, "POLYGON ((0 0, 1 0, 1 1, 0 0))")
        with pytest.raises(LoadImageException, match="georeferenced"):
            bounds(dataset, None, "POLYGON ((0 0, 1 0, 1 1, 0 0))")

    @pytest.mark.parametrize(("mode", "is_known"), [("SM_ENDPOINT", True), ("HTTP_ENDPOINT", True), ("NONE", False)])
    def test_validate_model_hosting(self, worker, mode, is_known):
        item = JobItem("i", model_invoke_mode=mode)
        if is_known:
            worker.image_handler.validate_model_hosting(item)
        else:
            with pytest.raises(UnsupportedModelException):
                worker.image_handler.validate_model_hosting(item)

    def test_a_model_that_nobody_can_call_has_no_detector(self, worker):
        with pytest.raises(UnsupportedModelException):
            worker.context.detector_for(RegionRequest(model_name="x", model_invoke_mode=ModelInvokeMode.NONE))

    def test_requests_for_one_endpoint_share_a_detector(self, worker, model_server):
        url = model_server("centerpoint").invocations_url
        detectors = {
            id(
                worker.context.detector_for(
                    RegionRequest(model_name=url, model_invoke_mode="HTTP_ENDPOINT", tile_format=tile_format)
                )
            )
            for tile_format in ("PNG", "PNG", "JPEG")
        }
        assert len(detectors) == 2

    def test_endpoints_of_one_name_in_two_accounts_share_nothing(self, worker):
        roles = ("", "arn:aws:iam::111111111111:role/call", "arn:aws:iam::222222222222:role/call")
        lanes = [
            lane_of(RegionRequest(model_name="ships", model_invoke_mode="SM_ENDPOINT", model_invocation_role=role))
            for role in roles
        ]
        assert len({lane.name for lane in lanes}) == 3
        assert len({id(worker.context.retry_budget_for(lane)) for lane in lanes}) == 3
        assert len({id(worker.context.call_limit_for(lane)) for lane in lanes}) == 3
        assert worker.context.retry_budget_for(lanes[0]) is worker.context.retry_budget_for(lanes[0])


class TestRegion:
    def test_a_region_is_claimed_done_counted_and_told(self, worker, scene, model_server, emulator, data_plane):
        topic = data_plane.environment["REGION_STATUS_TOPIC"]
        heard = StatusListener(emulator.client, topic, f"{data_plane.name}-regions")
        request = worker.request(scene, model_server("centerpoint").invocations_url)
        planned(worker, request)
        first, _ = region_requests(worker, request)
        job = worker.process(first)
        assert (job.region_success, job.tile_success) == (1, TILES_PER_REGION)
        row = worker.regions.get_region_request(first.region_id, request.image_id)
        assert (row.region_status, row.succeeded_tile_count, row.failed_tile_count) == ("SUCCESS", 4, 0)
        assert sorted(row.succeeded_tiles) == [[[r, c], [256, 256]] for r in (0, 256) for c in (0, 256)]
        ((_, attributes),) = heard.events()
        assert (attributes["status"], attributes["region_id"]) == ("SUCCESS", first.region_id)

    def test_an_image_with_one_region_tells_its_progress_by_tiles(self, new_worker, scene, statuses, monkeypatch):
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

    def test_features_that_a_model_answers_badly_are_left_out_and_counted(self, worker, scene, logs):
        good = {"type": "Feature", "geometry": None, "properties": {"imageBBox": [1, 1, 5, 5]}}
        answer = {"type": "FeatureCollection", "features": [good, {"type": "Feature", "properties": {}}, 7]}
        good_body, bad_body = json.dumps(answer).encode(), b"Welcome"
        bodies = iter([bad_body])
        with HttpService(lambda _: HttpResponse(body=next(bodies, good_body))) as model:
            request = worker.request(scene, f"{model.url}/invocations")
            planned(worker, request)
            for region in region_requests(worker, request):
                worker.process(region)
        worker.image_handler.completion.finish(request.image_id)
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

    def test_a_region_waits_for_a_store_that_does_not_answer(self, stored_scene, new_worker, model_server, clock):
        store, url = stored_scene
        worker = new_worker(IMAGE_SOURCES="http")
        request = worker.request(url, model_server("centerpoint").invocations_url)
        planned(worker, request)
        first, _ = region_requests(worker, request)
        for backoffs in (1, 2):
            with store.failing(lambda _request: Fault(status=503)):
                deferred = worker.deferred(first)
            assert deferred.is_backoff
            row = worker.regions.get_region_request(first.region_id, request.image_id)
            assert (row.backoffs, row.not_before > clock()) == (backoffs, True)
            clock.ahead_s += 60.0
        job = worker.process(first)
        assert (job.tile_success, job.tile_error) == (TILES_PER_REGION, 0)

    def test_a_tile_fails_when_its_store_has_broken_off_for_long(self, stored_scene, new_worker, model_server, clock):
        store, url = stored_scene
        worker = new_worker(IMAGE_SOURCES="http")
        request = worker.request(url, model_server("centerpoint").invocations_url)
        planned(worker, request)
        first, _ = region_requests(worker, request)

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

    def test_past_its_jobs_deadline_a_region_is_sealed(self, worker, scene, model_server, clock):
        model = model_server("centerpoint")
        request = worker.request(scene, model.invocations_url)
        planned(worker, request)
        first, _ = region_requests(worker, request)
        clock.ahead_s += worker.config.job_deadline_s + 1
        job = worker.process(first)
        assert (job.region_error, job.tile_error, model.stats()["requests"]) == (1, TILES_PER_REGION, 0)
        failures = worker.features.failures_of(request.image_id, first.region_id, range(TILES_PER_REGION))
        assert failures.failed == {"ABANDONED": TILES_PER_REGION}
        assert failures.first.startswith("ABANDONED: the job's deadline")

    def test_a_region_whose_job_ends_meanwhile_keeps_the_tiles_that_were_done(
        self, worker, scene, model_server, clock, monkeypatch
    ):
        request = worker.request(scene, model_server("centerpoint").invocations_url)
        planned(worker, request)
        first, _ = region_requests(worker, request)
        run = worker.context.pipeline.run

        def run_one(region_run, steps, tiles, on_cut):
            run(region_run, steps, tiles[:1])
            clock.ahead_s += worker.config.job_deadline_s + 1

        monkeypatch.setattr(worker.context.pipeline, "run", run_one)
        job = worker.process(first)
        assert (job.region_error, job.tile_success, job.tile_error) == (1, 1, 3)

    def test_a_region_twice_is_counted_once(self, worker, scene, model_server):
        model = model_server("centerpoint")
        request = worker.request(scene, model.invocations_url)
        planned(worker, request)
        first, _ = region_requests(worker, request)
        once, again = worker.process(first), worker.process(first)
        assert (once.region_success, once.tile_success) == (again.region_success, again.tile_success) == (1, 4)
        assert model.stats()["requests"] == TILES_PER_REGION

    def test_a_region_whose_row_is_gone_is_not_brought_back(self, worker, scene, model_server):
        request = worker.request(scene, model_server("centerpoint").invocations_url)
        planned(worker, request)
        first, _ = region_requests(worker, request)
        worker.regions.delete({"image_id": request.image_id, "region_id": first.region_id})
        assert worker.process(first).region_success == 0

    def test_a_region_that_another_worker_holds_has_to_wait(self, new_worker, scene, model_server, clock):
        worker, other = new_worker("worker"), new_worker("other")
        request = worker.request(scene, model_server("centerpoint").invocations_url)
        planned(worker, request)
        first, _ = region_requests(worker, request)
        other.regions.claim(request.image_id, first.region_id, "other", 60)
        deferred = worker.deferred(first)
        assert 50 < deferred.retry_after_s < 63
        clock.ahead_s += 61
        assert worker.process(first).region_success == 1

    def test_a_region_goes_on_where_a_dead_worker_left_it(self, new_worker, scene, model_server, clock):
        model = model_server("centerpoint")
        dead, worker = new_worker("dead"), new_worker("worker")
        request = worker.request(scene, model.invocations_url)
        planned(worker, request)
        first, _ = region_requests(worker, request)
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
    def test_a_throttled_feature_table_throws_no_answer_away(
        self, worker, scene, model_server, monkeypatch, inline_bytes
    ):
        monkeypatch.setattr(feature_table, "MAX_INLINE_BYTES", inline_bytes)
        model, refused = model_server("centerpoint"), []
        monkeypatch.setattr(worker.context, "sleep", lambda _: None)
        with throttling(worker, "FEATURE_TABLE", "PutItem", 30, refused):
            worker.image_handler.process_image_request(worker.request(scene, model.invocations_url))
            job = worker.work_off()
        assert len(refused) == 30
        assert job.image_status == "SUCCESS"
        assert model.stats()["requests"] == TILES

    def test_a_region_whose_feature_table_stays_busy_is_released_and_waits(
        self, worker, scene, model_server, monkeypatch
    ):
        """The process stops, and does not wait for the table beyond its grace."""
        monkeypatch.setattr(worker.context, "sleep", lambda _: None)
        monkeypatch.setattr(RegionProgress, "may_store", property(lambda run: False))
        request = worker.request(scene, model_server("centerpoint").invocations_url)
        planned(worker, request)
        first, _ = region_requests(worker, request)
        with throttling(worker, "FEATURE_TABLE", "PutItem", 1000, []):
            deferred = worker.deferred(first)
        assert deferred.is_backoff
        assert deferred.retry_after_s > 1
        item = worker.regions.get_region_request(first.region_id, first.image_id)
        assert (item.backoffs, item.stalled_attempts) == (1, 0)
        assert item.not_before > worker.clock()

    @pytest.mark.parametrize("operation", ["UpdateItem", "TransactWriteItems"], ids=["R1", "R3"])
    def test_a_region_whose_own_table_is_busy_waits(self, worker, scene, model_server, monkeypatch, operation):
        monkeypatch.setattr(worker.regions, "_sleep", lambda _: None)
        request = worker.request(scene, model_server("centerpoint").invocations_url)
        planned(worker, request)
        first, _ = region_requests(worker, request)
        messages = RegionMessages(worker.region_queue, DeadLetters(worker.region_queue, None), worker.region_handler)
        ((message, _),) = list(worker.received_regions())[:1]
        with throttling(worker, "REGION_REQUEST_TABLE", operation, 1000, []):
            messages.handle(message)
        assert worker.regions.get_region_request(first.region_id, first.image_id).region_status != "SUCCESS"

    def test_failed_tiles_make_a_region_partial_or_failed(self, worker, scene, model_server):
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

    def test_a_refusing_endpoint_defers_the_region_and_fails_no_tile(self, worker, scene, model_server, clock):
        busy = model_server("failure", outcomes={"503": 1})
        request = worker.request(scene, busy.invocations_url)
        planned(worker, request)
        first, _ = region_requests(worker, request)
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

    def test_a_model_that_crashes_on_most_tiles_is_taken_to_be_down_but_not_for_ever(
        self, worker, scene, model_server, clock
    ):
        model = model_server("failure", outcomes={"500": 1})
        request = worker.request(scene, model.invocations_url)
        planned(worker, request)
        first, _ = region_requests(worker, request)
        for _ in range(5):
            deferred = worker.deferred(first, "4 of 4 tiles crash the model")
            assert deferred.is_backoff
            assert worker.features.committed_tiles(request.image_id, first.region_id, range(4)) == {}
            clock.ahead_s += deferred.retry_after_s + 1
        job = worker.process(first)
        assert (job.region_error, job.tile_error) == (1, 4)

    def test_a_tile_that_crashes_the_model_alone_fails_alone(self, worker, scene, model_server):
        model = model_server("centerpoint")
        model.model = CrashingOnOne()
        request = worker.request(scene, model.invocations_url)
        planned(worker, request)
        first, _ = region_requests(worker, request)
        job = worker.process(first)
        assert (job.region_error, job.tile_success, job.tile_error) == (1, 3, 1)
        rows = [row for row in worker.features.scan() if row.get("tile_status") == "FAILED"]
        assert [row["error_code"] for row in rows] == ["MODEL_5XX"]

    def test_a_region_whose_tiles_time_out_waits_and_fails_none(
        self, worker, scene, model_server, gateway, clock, impatient_gateway
    ):
        model = model_server("centerpoint")
        model.model = SlowOnOne(is_hung=True)
        gateway.add_endpoint(MODEL, LocalEndpoint(model.invocations_url))
        request = worker.request(scene, MODEL)
        planned(worker, request)
        first, _ = region_requests(worker, request)
        for _ in range(3):
            deferred = worker.deferred(first)
            assert deferred.is_backoff
            clock.ahead_s += deferred.retry_after_s + 1
        assert worker.features.committed_tiles(request.image_id, first.region_id, range(4)) == {}
        assert worker.context.call_limit_for(lane_of(first)).calls == 1
        model.model = SlowOnOne(victims=[0])
        worker.context.call_limit_for(lane_of(first))._rests_until = 0.0
        job = worker.process(first)
        assert (job.region_success, job.tile_success) == (1, 4)

    def test_a_tile_that_is_too_slow_for_its_model_fails_alone_and_late(
        self, worker, scene, model_server, gateway, clock, impatient_gateway
    ):
        """Only when the endpoint responds to a tile that it could do before, and to this one not, three times."""
        model = model_server("centerpoint")
        model.model = SlowOnOne()
        gateway.add_endpoint(MODEL, LocalEndpoint(model.invocations_url))
        request = worker.request(scene, MODEL)
        planned(worker, request)
        first, _ = region_requests(worker, request)
        waits = []
        while isinstance(outcome := worker.outcome_of(first), Deferred):
            waits.append(outcome.is_backoff)
            clock.ahead_s += outcome.retry_after_s + 1
            worker.context.call_limit_for(lane_of(first))._rests_until = 0.0
            assert len(waits) < 40, "on a loaded machine, healthy tiles are late as well"
        job = outcome.job
        assert waits[-2:] == [True, True], "it was back-pressure at first"
        assert (job.region_error, job.tile_success, job.tile_error) == (1, 3, 1)
        rows = [row for row in worker.features.scan() if row.get("tile_status") == "FAILED"]
        assert [row["error_code"] for row in rows] == ["TIMEOUT"]

    def test_a_region_is_left_to_others_while_tiles_of_its_endpoint_wait_here(
        self, worker, scene, model_server, monkeypatch
    ):
        monkeypatch.setattr(region_request_handler, "_ROOM_PAUSE_S", 0.0)
        request = worker.request(scene, model_server("centerpoint").invocations_url)
        planned(worker, request)
        first, _ = region_requests(worker, request)
        with worker.context.call_limit_for(lane_of(first)).expecting(1000):
            deferred = worker.deferred(first)
            assert deferred.retry_after_s >= 20
            row = worker.regions.get_region_request(first.region_id, request.image_id)
            assert (row.fence, row.region_retry_count, row.not_before) == (0, 0, 0)
        assert worker.process(first).region_success == 1

    def test_workers_share_an_endpoint_whose_capacity_is_known(self, new_worker, scene, model_server):
        """Where other workers use an endpoint fully, a further one claims nothing; else it takes its share."""
        worker, request_url = new_worker("worker"), model_server("centerpoint").invocations_url
        request = worker.request(scene, request_url)
        planned(worker, request)
        first, second = region_requests(worker, request)
        for name in ("a", "b"):
            worker.context._endpoint_callers().note(request_url, name, 60)
        worker.endpoint_calls = lambda _request: 2
        worker.deferred(first)
        worker.endpoint_calls = lambda _request: 9
        assert worker.process(first).region_success == 1
        assert worker.context.call_limit_for(lane_of(first))._ceiling == 3
        worker.endpoint_calls = lambda _request: None
        assert worker.process(second).region_success == 2
        assert worker.context.call_limit_for(lane_of(first))._ceiling == worker.config.workers

    def test_an_endpoint_that_recovers_finishes_the_region(self, worker, scene, model_server, clock):
        model = model_server("failure", outcomes={"200": 1, "503": 1}, failures_first=6)
        request = worker.request(scene, model.invocations_url)
        planned(worker, request)
        first, _ = region_requests(worker, request)
        waits = 0
        while isinstance(outcome := worker.outcome_of(first), Deferred):
            clock.ahead_s += outcome.retry_after_s + 1
            waits += 1
            assert waits < 40
        job = outcome.job
        assert (job.region_success, job.tile_success, job.tile_error) == (1, 4, 0)

    def test_an_endpoint_says_how_long_it_wants_to_rest(self, worker, scene, model_server):
        busy = model_server("failure", outcomes={"503": 1}, retry_after_s=120)
        request = worker.request(scene, busy.invocations_url)
        planned(worker, request)
        deferred = worker.deferred(region_requests(worker, request)[0])
        assert deferred.retry_after_s >= 120
        assert deferred.is_backoff

    def test_a_missing_endpoint_is_waited_for_and_then_the_region_is_sealed(self, worker, scene, clock):
        lost_later(worker)
        request = worker.request(scene, "no-such-endpoint")
        planned(worker, request)
        first, _ = region_requests(worker, request)
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

    def test_a_sagemaker_endpoint_that_answers(self, worker, scene, gateway, model_server):
        gateway.add_endpoint("answers", LocalEndpoint(model_server("centerpoint").invocations_url))
        request = worker.request(scene, "answers")
        worker.image_handler.process_image_request(request)
        assert worker.work_off().image_status == "SUCCESS"

    def test_a_region_that_kills_its_workers_is_done_one_tile_at_a_time(self, worker, scene, model_server, clock):
        model = model_server("failure", outcomes={"200": 1}, latency_ms=(5, 10))
        request = worker.request(scene, model.invocations_url)
        planned(worker, request)
        first, _ = region_requests(worker, request)
        worker.regions.claim(request.image_id, first.region_id, "dead", 60)
        clock.ahead_s += 61
        job = worker.process(first)
        assert job.tile_success == 4
        assert model.stats()["peak"] == 1
        row = worker.regions.get_region_request(first.region_id, request.image_id)
        assert (row.stalled_attempts, row.stall_first_time) == (1, None), "a tile that ends is progress"

    def test_a_region_that_killed_too_many_workers_is_sealed(self, worker, scene, model_server, clock):
        model = model_server("centerpoint")
        request = worker.request(scene, model.invocations_url)
        planned(worker, request)
        first, _ = region_requests(worker, request)
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
        rows = worker.features._rows_of(request.image_id)
        assert sorted(stored.get("error_code", "") for stored in rows) == ["", ABANDONED, ABANDONED, ABANDONED]

    def test_fail_region_request_seals_what_has_no_outcome(self, worker, scene, model_server):
        request = worker.request(scene, model_server("centerpoint").invocations_url)
        planned(worker, request)
        item, _ = worker.regions_of(request)
        item.message = "nobody wants it"
        ended = worker.region_handler.fail_region_request(item)
        job = ended.job
        assert (job.region_error, job.tile_error) == (1, 4)
        row = worker.regions.get_region_request(item.region_id, request.image_id)
        assert (row.region_status, row.message) == ("FAILED", "nobody wants it")
        assert worker.region_handler.fail_region_request(item) == ended, "it has ended, so nothing changes"
        other = worker.regions_of(request)[1]
        worker.regions.claim(request.image_id, other.region_id, "busy", 60)
        assert isinstance(worker.region_handler.fail_region_request(other), Deferred)

    def test_a_region_of_an_image_that_has_ended_is_left_alone(self, worker, scene, model_server):
        model = model_server("centerpoint")
        request = worker.request(scene, model.invocations_url)
        planned(worker, request)
        first, _ = region_requests(worker, request)
        worker.jobs.update({"image_id": request.image_id}, "SET image_status = :s", {":s": "FAILED"})
        job = worker.process(first)
        assert (job.image_status, job.region_success) == ("FAILED", 0)
        assert model.stats()["requests"] == 0

    def test_a_region_that_another_worker_took_over_is_not_ended_here(self, new_worker, scene, model_server):
        worker = new_worker()
        request = worker.request(scene, model_server("centerpoint").invocations_url)
        planned(worker, request)
        first, _ = region_requests(worker, request)
        run = worker.context.pipeline.run

        def lose_the_lease(region_run, steps, tiles, on_cut):
            run(region_run, steps, tiles, on_cut)
            worker.regions.update(
                {"image_id": request.image_id, "region_id": first.region_id}, "ADD fence :one", {":one": 1}
            )
            (lease,) = worker.context.leases._leases or {None}
            assert lease is None or lease.lost.wait(5)

        worker.context.pipeline.run = lose_the_lease
        worker.deferred(first)
        row = worker.regions.get_region_request(first.region_id, request.image_id)
        assert (row.region_status, row.fence) == ("IN_PROGRESS", 2)

    def test_stopping_gives_a_region_back_at_once_and_as_no_attempt(self, worker, scene, model_server):
        request = worker.request(scene, model_server("centerpoint").invocations_url)
        planned(worker, request)
        first, _ = region_requests(worker, request)
        worker.context.stopping.set()
        deferred = worker.deferred(first)
        assert deferred.retry_after_s == 0
        row = worker.regions.get_region_request(first.region_id, request.image_id)
        assert (row.stalled_attempts, row.lease_until, row.not_before, row.backoffs) == (0, 0, 0, 0)

    def test_an_unforeseen_error_gives_the_region_back(self, worker, scene, model_server, monkeypatch):
        request = worker.request(scene, model_server("centerpoint").invocations_url)
        planned(worker, request)
        first, _ = region_requests(worker, request)
        monkeypatch.setattr(worker.context, "detector_for", lambda _: (_ for _ in ()).throw(KeyError("unforeseen")))
        with pytest.raises(KeyError):
            worker.process(first)
        row = worker.regions.get_region_request(first.region_id, request.image_id)
        assert (row.stalled_attempts, row.lease_until) == (0, 0)

    def test_a_region_status_that_cannot_be_published_changes_no_count(self, worker, scene, model_server, clients):
        request = worker.request(scene, model_server("centerpoint").invocations_url)
        planned(worker, request)
        first, _ = region_requests(worker, request)
        with answering(clients.client("sns"), "Publish", query_error("InternalError", 400)):
            assert worker.process(first).region_success == 1

    def test_an_image_that_was_replaced_is_not_mixed(self, new_worker, tmp_path, model_server, clock):
        image = write_scene(tmp_path / "image.tif")
        model = model_server("centerpoint")
        planner, worker = new_worker("planner"), new_worker("worker")
        request = planner.request(image, model.invocations_url)
        planned(planner, request)
        shutil.copy(write_scene(tmp_path / "other.tif", seed=9), image)
        os.utime(image, (1, 1))
        first, _ = region_requests(worker, request)
        for _ in range(5):
            deferred = worker.deferred(first, "replaced")
            clock.ahead_s += deferred.retry_after_s + 1
        job = worker.process(first)
        assert (job.region_error, job.tile_error) == (1, 4)
        assert model.stats()["requests"] == 0
        row = worker.regions.get_region_request(first.region_id, request.image_id)
        assert "replaced" in row.message


class TestThrottle:
    def throttled(self, new_worker, most: int) -> InProcessWorker:
        worker = new_worker(SM_SELF_THROTTLING="true")
        worker.endpoint_utils.max_region_cache[MODEL] = most
        return worker

    def test_no_more_regions_than_the_endpoint_may_have(self, new_worker, scene, gateway, model_server):
        gateway.add_endpoint(MODEL, LocalEndpoint(model_server("centerpoint").invocations_url))
        worker = self.throttled(new_worker, most=2)
        request = worker.request(scene, MODEL)
        planned(worker, request)
        first, _ = region_requests(worker, request)
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

    def test_an_endpoint_that_was_full_a_moment_ago_costs_two_reads(self, new_worker, scene, gateway, model_server):
        gateway.add_endpoint(MODEL, LocalEndpoint(model_server("centerpoint").invocations_url))
        worker = self.throttled(new_worker, most=1)
        request = worker.request(scene, MODEL)
        planned(worker, request)
        first, second = region_requests(worker, request)
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
        assert calls == ["GetItem", "GetItem"], "the rows of the image and of the region"

    def test_the_slot_of_a_worker_that_died_is_free_when_its_lease_is_over(
        self, new_worker, scene, gateway, model_server
    ):
        gateway.add_endpoint(MODEL, LocalEndpoint(model_server("centerpoint").invocations_url))
        worker = self.throttled(new_worker, most=1)
        request = worker.request(scene, MODEL)
        assert worker.endpoints.take_slot(MODEL, "dead", 1, worker.config.region_lease_s)
        worker.image_handler.process_image_request(request)
        assert worker.jobs.get_image_request(request.image_id).region_success == 0, "it is left to the queue"
        worker.clock.ahead_s += worker.config.region_lease_s + 1
        assert worker.work_off().image_status == "SUCCESS"
        assert [row["endpoint"] for row in worker.endpoints.scan()] == [MODEL], "no slot is left"

    def test_a_slot_is_given_back_when_the_region_fails(self, new_worker, scene):
        worker = self.throttled(new_worker, most=5)
        lost_later(worker)
        request = worker.request(scene, MODEL + "-missing")
        worker.endpoint_utils.max_region_cache[MODEL + "-missing"] = 5
        planned(worker, request)
        worker.deferred(region_requests(worker, request)[0])
        assert [row["endpoint"] for row in worker.endpoints.scan()] == [MODEL + "-missing"]

    def test_an_endpoint_without_machines_to_count_gets_one_region_at_a_time(
        self, new_worker, scene, gateway, model_server
    ):
        gateway.add_endpoint(MODEL, LocalEndpoint(model_server("centerpoint").invocations_url))
        worker = self.throttled(new_worker, most=0)
        request = worker.request(scene, MODEL)
        worker.image_handler.process_image_request(request)
        assert worker.work_off().image_status == "SUCCESS"

    def test_an_endpoint_that_cannot_be_described_is_not_limited(self, new_worker, scene, model_server):
        worker = new_worker(SM_SELF_THROTTLING="true")
        lost_later(worker)
        missing = worker.request(scene, "not-there")
        planned(worker, missing)
        worker.deferred(region_requests(worker, missing)[0], "the endpoint not-there: ")
        http = worker.request(scene, model_server("centerpoint").invocations_url, job_id="http")
        planned(worker, http)
        assert worker.process(region_requests(worker, http)[0]).region_success == 1


def feature(name: str, x: float, y: float, score: float) -> dict[str, Any]:
    box = [x, y, x + 20, y + 20]
    ring = [[x, y], [x + 20, y], [x + 20, y + 20], [x, y + 20], [x, y]]
    return {
        "type": "Feature",
        "id": name,
        "geometry": {"type": "Polygon", "coordinates": [ring]},
        "properties": {
            "imageGeometry": {"type": "Polygon", "coordinates": [ring]},
            "imageBBox": box,
            "image_id": "internal",
            "featureClasses": [{"iri": "ship", "score": score}],
        },
    }


def s3_body(clients: Any, bucket: str, key: str) -> bytes:
    body: bytes = clients.client("s3").get_object(Bucket=bucket, Key=key)["Body"].read()
    return body


DISTILLATION = [
    {"step": "FEATURE_DISTILLATION", "algorithm": {"algorithmType": "NMS", "iouThreshold": 0.5}},
]


class TestEnd:
    def counted(self, worker: InProcessWorker, scene: Path, model: str, **changes: Any) -> ImageRequest:
        """Do every region and leave the end to the caller."""
        request = worker.request(scene, model, **changes)
        planned(worker, request)
        for region in region_requests(worker, request):
            worker.process(region)
        return request

    def test_complete_image_request_finishes_once_every_region_is_counted(self, worker, scene, model_server):
        request = worker.request(scene, model_server("centerpoint").invocations_url)
        planned(worker, request)
        first, second = region_requests(worker, request)
        worker.process(first)
        worker.image_handler.complete_image_request(first, "GTIFF")
        assert worker.jobs.get_image_request(request.image_id).image_status == "IN_PROGRESS"
        worker.process(second)
        worker.image_handler.complete_image_request(second, "GTIFF")
        row = worker.jobs.get_image_request(request.image_id)
        assert (row.image_status, row.message) == ("SUCCESS", "Completed image processing")
        assert row.processing_duration is not None
        worker.image_handler.complete_image_request(second, "GTIFF")
        assert len(worker.result("job")) == TILES

    def test_an_image_that_is_not_there_is_not_finished(self, worker):
        worker.image_handler.completion.finish("none")
        worker.image_handler.complete_image_request(RegionRequest(image_id="none", job_id="none"), "")

    def test_duplicates_of_overlapping_tiles_are_merged_and_properties_stamped(self, worker, scene, model_server):
        request = self.counted(
            worker,
            scene,
            model_server("flood", count=40, largest_px=30).invocations_url,
            imageProcessorTileOverlap=64,
            postProcessing=DISTILLATION,
            featureProperties=[{"mission": "m-1"}],
        )
        worker.image_handler.completion.finish(request.image_id)
        features = worker.result("job")
        stored = sum(len(tile.features) for tile in worker.features.stored_tiles(request.image_id))
        assert 0 < len(features) < stored
        assert {one["properties"]["mission"] for one in features} == {"m-1"}

    def test_a_sink_that_is_missing_for_good_fails_the_image_and_names_it(self, worker, scene, model_server):
        lost_later(worker)
        outputs = [{"type": "S3", "bucket": "no-such-bucket-at-all", "prefix": "p"}]
        request = self.counted(worker, scene, model_server("centerpoint").invocations_url, outputs=outputs)
        worker.image_handler.completion.finish(request.image_id)
        row = worker.jobs.get_image_request(request.image_id)
        assert row.image_status == "FAILED"
        assert "no-such-bucket-at-all" in row.message

    def test_one_sink_of_two_makes_an_image_partial(self, worker, scene, model_server, data_plane):
        lost_later(worker)
        outputs = [
            {"type": "S3", "bucket": "no-such-bucket-at-all", "prefix": "p"},
            {"type": "Kinesis", "stream": data_plane.result_stream},
            {"type": "S3", "bucket": data_plane.result_bucket, "prefix": "out"},
        ]
        request = self.counted(worker, scene, model_server("centerpoint").invocations_url, outputs=outputs)
        worker.image_handler.completion.finish(request.image_id)
        row = worker.jobs.get_image_request(request.image_id)
        assert (row.image_status, row.sinks_done) == ("PARTIAL", {"1:Kinesis", "2:S3"})
        assert len(worker.result("job")) == TILES

    def test_a_sink_that_is_away_for_now_is_written_later_and_the_others_are_not_repeated(
        self, worker, scene, model_server, data_plane, clients, clock
    ):
        outputs = [
            {"type": "Kinesis", "stream": data_plane.result_stream},
            {"type": "S3", "bucket": data_plane.result_bucket, "prefix": "out"},
        ]
        request = self.counted(worker, scene, model_server("centerpoint").invocations_url, outputs=outputs)
        away = answering(clients.client("s3"), "PutObject", xml_error("OperationAborted", 409))
        with away, pytest.raises(AggregateFeaturesException):
            worker.image_handler.completion.finish(request.image_id)
        row = worker.jobs.get_image_request(request.image_id)
        assert (row.image_status, row.sinks_done, row.agg_stalled) == ("IN_PROGRESS", {"0:Kinesis"}, 0)
        worker.image_handler.completion.finish(request.image_id)
        assert not worker.jobs.get_image_request(request.image_id).is_terminal, "it waits a while first"
        clock.ahead_s += 30
        with answering(clients.client("kinesis"), "PutRecords", None) as calls:
            worker.image_handler.completion.finish(request.image_id)
        assert worker.jobs.get_image_request(request.image_id).image_status == "SUCCESS"
        assert calls == []

    def test_past_the_deadline_a_sink_that_is_away_has_failed(self, worker, scene, model_server, clients, clock):
        request = self.counted(worker, scene, model_server("centerpoint").invocations_url)
        clock.ahead_s += 25 * 3600
        with answering(clients.client("s3"), "PutObject", xml_error("OperationAborted", 409)):
            worker.image_handler.completion.finish(request.image_id)
        assert worker.jobs.get_image_request(request.image_id).image_status == "FAILED"

    def test_features_that_are_lost_are_not_delivered_as_if_whole(self, worker, scene, model_server):
        request = self.counted(worker, scene, model_server("centerpoint").invocations_url)
        row = worker.features._rows_of(request.image_id)[0]
        worker.features.delete({"hash_key": row["hash_key"], "range_key": row["range_key"]})
        with pytest.raises(ConservationError, match="7 tiles are stored as good, 8 were counted"):
            worker.image_handler.completion.finish(request.image_id)
        row = worker.jobs.get_image_request(request.image_id)
        assert (row.image_status, row.agg_stalled) == ("IN_PROGRESS", 1)

    def test_a_large_result_whose_features_are_lost_is_aborted(
        self, worker, scene, model_server, clients, data_plane, monkeypatch
    ):
        outputs = [{"type": "S3", "bucket": data_plane.result_bucket, "prefix": "out"}]
        request = self.counted(worker, scene, model_server("centerpoint").invocations_url, outputs=outputs)
        worker.jobs.update({"image_id": request.image_id}, "SET tile_success = :n", {":n": TILES + 1})
        make_sinks = worker.context.make_sinks

        def in_small_parts(outputs):
            sinks = make_sinks(outputs)
            for sink in sinks:
                sink.part_bytes = 500
            return sinks

        monkeypatch.setattr(worker.context, "make_sinks", in_small_parts)
        with answering(clients.client("s3"), "UploadPart", None) as parts, pytest.raises(ConservationError):
            worker.image_handler.completion.finish(request.image_id)
        s3 = clients.client("s3")
        assert len(parts) > 1
        assert s3.list_multipart_uploads(Bucket=data_plane.result_bucket).get("Uploads", []) == []
        assert "Contents" not in s3.list_objects_v2(Bucket=data_plane.result_bucket, Prefix="out/job.geojson")

    def test_all_outputs_are_written_from_one_walk_over_the_tiles(
        self, worker, scene, model_server, clients, data_plane
    ):
        s3 = {"type": "S3", "bucket": data_plane.result_bucket, "prefix": "out"}
        outputs = [s3, s3 | {"format": "GEOJSONSEQ"}, {"type": "Kinesis", "stream": data_plane.result_stream}]
        request = self.counted(worker, scene, model_server("centerpoint").invocations_url, outputs=outputs)
        dynamodb = worker.clients.dynamodb_resource().meta.client
        with answering(dynamodb, "BatchGetItem", None) as reads:
            worker.image_handler.completion.finish(request.image_id)
        row = worker.jobs.get_image_request(request.image_id)
        assert (row.image_status, row.sinks_done) == ("SUCCESS", {"0:S3", "1:S3", "2:Kinesis"})
        assert len(reads) == 1, "eight tiles are one read"
        lines = s3_body(clients, data_plane.result_bucket, "out/job.geojsonl").splitlines()
        assert [json.loads(line) for line in lines] == worker.result("job")

    def test_a_worker_that_stops_releases_its_claim_at_once_and_no_try_is_counted(self, worker, scene, model_server):
        request = self.counted(worker, scene, model_server("centerpoint").invocations_url)
        worker.context.stopping.set()
        worker.image_handler.completion.finish(request.image_id)
        row = worker.jobs.get_image_request(request.image_id)
        assert (row.image_status, row.agg_stalled, row.agg_lease_until) == ("IN_PROGRESS", 0, 0)
        worker.context.stopping.clear()
        worker.image_handler.completion.finish(request.image_id)
        assert worker.jobs.get_image_request(request.image_id).image_status == "SUCCESS"

    def test_an_output_that_stays_away_is_tried_later_each_time(self, worker, scene, model_server, clients, clock):
        request = self.counted(worker, scene, model_server("centerpoint").invocations_url)
        waits = []
        with answering(clients.client("s3"), "PutObject", xml_error("OperationAborted", 409)):
            for _ in range(7):
                with pytest.raises(AggregateFeaturesException):
                    worker.image_handler.completion.finish(request.image_id)
                waits.append(worker.jobs.get_image_request(request.image_id).agg_not_before - clock())
                clock.ahead_s += 800
        assert waits == pytest.approx([20, 40, 80, 160, 320, 600, 600], rel=0.4)
        worker.image_handler.completion.finish(request.image_id)
        row = worker.jobs.get_image_request(request.image_id)
        assert (row.image_status, row.agg_backoffs) == ("SUCCESS", 0)

    def test_a_region_has_ended_though_its_image_cannot_be_delivered_yet(self, worker, scene, model_server, clients):
        request = self.counted(worker, scene, model_server("centerpoint").invocations_url)
        job = worker.jobs.get_image_request(request.image_id)
        with answering(clients.client("s3"), "PutObject", xml_error("OperationAborted", 409)) as puts:
            worker.completion.region_ended(job)
        assert puts
        assert worker.jobs.get_image_request(request.image_id).image_status == "IN_PROGRESS"

    def test_an_image_that_no_worker_can_hold_fails_with_the_name_of_the_setting(self, worker, scene, model_server):
        request = self.counted(worker, scene, model_server("centerpoint").invocations_url)
        worker.context.aggregation_memory.total_bytes = 100
        worker.image_handler.completion.finish(request.image_id)
        row = worker.jobs.get_image_request(request.image_id)
        assert row.image_status == "FAILED"
        assert "AGGREGATION_MEMORY_BYTES of 100 bytes is too little" in row.message
        assert "0:S3" in row.sink_errors

    def test_an_image_waits_for_memory_and_then_goes_back(self, worker, scene, model_server, clock):
        request = self.counted(worker, scene, model_server("centerpoint").invocations_url)
        memory = worker.context.aggregation_memory
        memory.now = clock
        memory.pause = lambda seconds: setattr(clock, "ahead_s", clock.ahead_s + 100 * seconds)
        with memory.share(lambda: None) as other:
            other.read(memory.total_bytes)
            worker.image_handler.completion.finish(request.image_id)
        row = worker.jobs.get_image_request(request.image_id)
        assert (row.image_status, row.agg_stalled) == ("IN_PROGRESS", 0)
        assert 5 <= row.agg_not_before - clock() + 1 <= 16
        clock.ahead_s += 20
        worker.image_handler.completion.finish(request.image_id)
        assert worker.jobs.get_image_request(request.image_id).image_status == "SUCCESS"

    def test_an_aggregation_that_kills_its_workers_is_given_up(self, worker, scene, model_server, clock, statuses):
        request = self.counted(worker, scene, model_server("centerpoint").invocations_url)
        for _ in range(6):
            job = worker.jobs.get_image_request(request.image_id)
            assert worker.jobs.claim_aggregation(job, "dead", 120, 0)
            clock.ahead_s += 700
        worker.image_handler.completion.finish(request.image_id)
        row = worker.jobs.get_image_request(request.image_id)
        assert (row.image_status, row.message) == ("FAILED", "aggregation crashed 7 workers")
        assert statuses.heard().count("FAILED") == 1

    def test_an_aggregation_that_another_worker_took_over_writes_nothing_more(self, worker, scene, model_server, clock):
        request = self.counted(worker, scene, model_server("centerpoint").invocations_url)
        completion = worker.image_handler.completion
        deliver = completion._deliver
        # A clock of its own: the claim's holder renews it all the time, and must not see it end.
        others_jobs = JobTable(worker.jobs.table_name, worker.jobs.client, lambda: clock() + 500)

        def lose_the_claim(*arguments):
            job = worker.jobs.get_image_request(request.image_id)
            assert others_jobs.claim_aggregation(job, "other", 120, 0)
            return deliver(*arguments)

        completion._deliver = lose_the_claim
        with pytest.raises(LeaseLostError):
            completion.finish(request.image_id)
        row = worker.jobs.get_image_request(request.image_id)
        assert (row.image_status, row.agg_owner.partition("#")[0], row.sinks_done) == ("IN_PROGRESS", "other", None)

    def test_progress_of_a_stream_is_kept_and_goes_on(self, worker, scene, model_server, data_plane, clients, clock):
        outputs = [{"type": "Kinesis", "stream": data_plane.result_stream, "batchSize": 3}]
        request = self.counted(worker, scene, model_server("centerpoint").invocations_url, outputs=outputs)
        worker.jobs.update({"image_id": request.image_id}, "SET sink_positions = :p", {":p": {"0:Kinesis": 6}})
        with answering(clients.client("kinesis"), "PutRecords", None) as calls:
            worker.image_handler.completion.finish(request.image_id)
        assert len(calls) == 1, "six of eight features are there already"
        assert worker.jobs.get_image_request(request.image_id).image_status == "SUCCESS"

    def test_a_position_is_that_of_one_output_and_of_no_other(
        self, worker, scene, model_server, data_plane, clients, clock
    ):
        lost_later(worker)
        stream = {"type": "Kinesis", "stream": data_plane.result_stream, "batchSize": 3}
        outputs = [stream | {"stream": "no-such-stream"}, stream]
        request = self.counted(worker, scene, model_server("centerpoint").invocations_url, outputs=outputs)
        away = answering(clients.client("kinesis"), "PutRecords", None, json_error("Unavailable"))
        with away, pytest.raises(AggregateFeaturesException):
            worker.image_handler.completion.finish(request.image_id)
        row = worker.jobs.get_image_request(request.image_id)
        assert (list(row.sink_errors), row.sinks_done, row.sink_positions) == (["0:Kinesis"], None, {"1:Kinesis": 3})
        clock.ahead_s += 30
        with (
            answering(clients.client("kinesis"), "DescribeStreamSummary", None) as streams,
            answering(clients.client("kinesis"), "PutRecords", None) as batches,
        ):
            worker.image_handler.completion.finish(request.image_id)
        assert (len(streams), len(batches)) == (1, 2), (
            "the other five of eight features, and nothing of the first output"
        )
        row = worker.jobs.get_image_request(request.image_id)
        assert (row.image_status, row.sinks_done, list(row.sink_errors)) == ("PARTIAL", {"1:Kinesis"}, ["0:Kinesis"])
        assert "no-such-stream" in row.message

    def test_end_image_request_needs_the_claim_that_is_in_force(self, worker, scene, model_server):
        request = self.counted(worker, scene, model_server("centerpoint").invocations_url)
        claimed = worker.jobs.claim_aggregation(worker.jobs.get_image_request(request.image_id), "w", 120, 0)
        worker.image_handler.end_image_request(dataclasses.replace(claimed, agg_fence=0), "GTIFF")
        assert not worker.jobs.get_image_request(request.image_id).is_terminal
        worker.image_handler.end_image_request(claimed, "GTIFF")
        assert worker.jobs.get_image_request(request.image_id).image_status == "SUCCESS"
        assert worker.open_jobs() == []

    def test_fail_image_request_before_and_after_the_plan(self, worker, scene, model_server, statuses):
        request = worker.request(scene, model_server("centerpoint").invocations_url)
        worker.image_handler.accept(request)
        item = worker.jobs.get_image_request(request.image_id)
        worker.image_handler.fail_image_request(item, ValueError("unreadable"))
        worker.image_handler.fail_image_request(item, ValueError("again"))
        row = worker.jobs.get_image_request(request.image_id)
        assert (row.image_status, row.message) == ("FAILED", "unreadable")
        assert statuses.heard().count("FAILED") == 1
        other = worker.request(scene, model_server("centerpoint").invocations_url, job_id="planned")
        as_planned = planned(worker, other)
        before = dataclasses.replace(as_planned, region_count=None)
        worker.image_handler.fail_image_request(before, ValueError("somebody has planned it meanwhile"))
        assert worker.jobs.get_image_request(other.image_id).image_status == "IN_PROGRESS"
        worker.image_handler.fail_image_request(as_planned, ValueError("the image is gone"))
        assert worker.jobs.get_image_request(other.image_id).message == "the image is gone"

    @pytest.mark.parametrize("has_bounds", [True, False])
    def test_deduplicate_merges_stamps_and_cleans(self, worker, scene, has_bounds):
        request = worker.request(
            scene,
            "http://127.0.0.1:9/invocations",
            imageProcessorTileOverlap=64,
            postProcessing=DISTILLATION,
            featureProperties=[{"mission": "m-1"}],
        )
        item = JobItem.from_image_request(request)
        item.processing_bounds = [[0, 0], [1024, 512]] if has_bounds else None
        # Both lie where two tiles overlap, and are the same ship.
        seen = [feature("a", 200, 10, 0.9), feature("b", 201, 10, 0.8), feature("c", 600, 300, 0.7)]
        kept = worker.image_handler.deduplicate(item, seen, gdal.Open(str(scene)))
        assert sorted(one["properties"]["featureClasses"][0]["score"] for one in kept) == [0.7, 0.9]
        for one in kept:
            assert one["properties"]["mission"] == "m-1"
            assert "image_id" not in one["properties"]

    def test_without_distillation_nothing_is_merged(self, worker, scene):
        item = JobItem.from_image_request(worker.request(scene, "http://127.0.0.1:9/invocations"))
        item.feature_distillation_option = None
        seen = [feature("a", 200, 10, 0.9), feature("b", 201, 10, 0.8)]
        assert len(worker.image_handler.deduplicate(item, seen)) == 2

    def test_sink_features_writes_every_output(self, worker, scene):
        item = JobItem.from_image_request(worker.request(scene, "http://127.0.0.1:9/invocations"))
        ImageRequestHandler.sink_features(item, [feature("a", 0, 0, 0.5)])
        assert [one["id"] for one in worker.result("job")] == ["a"]
        item.outputs = json.dumps([{"type": "S3", "bucket": "no-such-bucket-at-all"}])
        with pytest.raises(AggregateOutputFeaturesException):
            ImageRequestHandler.sink_features(item, [feature("a", 0, 0, 0.5)])

    def test_progress_is_told_in_tiles(self, worker, scene, model_server, statuses):
        request = worker.request(scene, model_server("centerpoint").invocations_url)
        planned(worker, request)
        statuses.events()
        first, _ = region_requests(worker, request)
        worker.completion.region_ended(worker.process(first))
        ((_, attributes),) = statuses.events()
        assert {name: attributes.get(name) for name in ("tiles_done", "tiles_total", "percent")} == {
            "tiles_done": "4",
            "tiles_total": "8",
            "percent": "50",
        }


class TestRedrive:
    def undelivered(
        self, worker: InProcessWorker, scene: Path, model: str, data_plane: Any, **changes: Any
    ) -> ImageRequest:
        """Return a job that ended PARTIAL: the stream has its features, a bucket that went missing has not."""
        outputs = [
            {"type": "S3", "bucket": "went-missing", "prefix": "p"},
            {"type": "Kinesis", "stream": data_plane.result_stream},
        ]
        request = worker.request(scene, model, outputs=outputs, **changes)
        check = worker.image_handler.preflight.check
        lost_later(worker)
        worker.image_handler.process_image_request(request)
        worker.image_handler.preflight.check = check  # type: ignore[method-assign]
        assert worker.work_off().image_status in ("PARTIAL", "FAILED")
        assert worker.open_jobs() == []
        return request

    def redriver(self, worker: InProcessWorker) -> JobRedriver:
        return JobRedriver(worker.jobs, worker.outstanding_jobs, worker.config.policy.check, worker.clock)

    def test_an_output_that_failed_is_written_elsewhere_without_a_model_call(
        self, worker, scene, model_server, data_plane, clients, statuses, tmp_path
    ):
        """Nor is the image read: it may be gone."""
        image = Path(shutil.copy(scene, tmp_path / "scene.tif"))
        model = model_server("centerpoint")
        request = self.undelivered(worker, image, model.invocations_url, data_plane)
        image.unlink()
        ends = [attributes["status_id"] for text, attributes in statuses.events() if attributes["status"] == "PARTIAL"]
        report = self.redriver(worker).redrive("job", [f"s3://{data_plane.result_bucket}/out"])
        assert report.begun == {request.image_id: "outputs are written, no tile is done again"}
        with answering(clients.client("kinesis"), "PutRecords", None) as batches:
            worker.look_after()
        row = worker.jobs.get_image_request(request.image_id)
        assert (row.image_status, row.generation, row.sinks_done) == ("SUCCESS", 1, {"0:Kinesis", "1:S3"})
        assert len(worker.result("job")) == TILES
        assert (model.stats()["requests"], batches, worker.open_jobs()) == (TILES, [], [])
        heard = [attributes for _, attributes in statuses.events() if attributes["status"] == "SUCCESS"]
        assert len(heard) == 1
        assert heard[0]["status_id"] not in ends

    def test_a_planner_that_slept_through_the_end_begins_no_region_again(
        self, worker, scene, model_server, data_plane, monkeypatch
    ):
        """It would count each region a second time, and the image would never be complete."""
        model = model_server("centerpoint")
        slept: list[OpenJob] = []
        start = worker.outstanding_jobs.start_planning

        def started_twice(job: OpenJob, *given: Any) -> OpenJob | None:
            slept.append(start(job, *given))
            return slept[0]

        monkeypatch.setattr(worker.outstanding_jobs, "start_planning", started_twice)
        request = self.undelivered(worker, scene, model.invocations_url, data_plane)
        report = self.redriver(worker).redrive("job", [f"s3://{data_plane.result_bucket}/out"])
        assert report.begun == {request.image_id: "outputs are written, no tile is done again"}
        worker.image_handler.plan_started(slept[0])
        worker.look_after()
        row = worker.jobs.get_image_request(request.image_id)
        assert (row.image_status, row.generation, row.region_success) == ("SUCCESS", 1, row.region_count)

    def test_an_output_that_is_there_again_is_written_when_the_request_is_sent_again(
        self, worker, scene, model_server, data_plane, clients
    ):
        model = model_server("centerpoint")
        request = self.undelivered(worker, scene, model.invocations_url, data_plane)
        where = {"LocationConstraint": "us-west-2"}
        clients.client("s3").create_bucket(Bucket="went-missing", CreateBucketConfiguration=where)
        worker.image_handler.accept(request, "another message")
        worker.look_after()
        row = worker.jobs.get_image_request(request.image_id)
        assert (row.image_status, row.sinks_done) == ("SUCCESS", {"0:S3", "1:Kinesis"})
        assert model.stats()["requests"] == TILES
        clients.client("s3").delete_object(Bucket="went-missing", Key="p/job.geojson")
        clients.client("s3").delete_bucket(Bucket="went-missing")

    def test_an_output_that_is_still_missing_ends_the_job_as_before(self, worker, scene, model_server, data_plane):
        request = self.undelivered(worker, scene, model_server("centerpoint").invocations_url, data_plane)
        assert self.redriver(worker).redrive("job").begun
        worker.look_after()
        row = worker.jobs.get_image_request(request.image_id)
        assert (row.image_status, row.generation, list(row.sink_errors)) == ("PARTIAL", 1, ["0:S3"])

    def test_a_job_whose_tiles_and_output_failed_has_both_done_again_or_its_outputs_only(
        self, worker, scene, model_server, data_plane
    ):
        model = model_server("failure", outcomes={"200": 0.5, "400": 0.5}, seed=3)
        place = f"s3://{data_plane.result_bucket}/out"
        request = self.undelivered(worker, scene, model.invocations_url, data_plane)
        calls, before = model.stats()["requests"], worker.jobs.get_image_request(request.image_id)
        assert before.tile_success
        assert before.tile_error
        self.redriver(worker).redrive("job", [place], outputs_only=True)
        worker.look_after()
        row = worker.jobs.get_image_request(request.image_id)
        assert (row.image_status, row.sinks_done, row.tile_error) == (
            "PARTIAL",
            {"0:Kinesis", "1:S3"},
            before.tile_error,
        )
        assert (len(worker.result("job")), model.stats()["requests"]) == (before.tile_success, calls)
        report = self.redriver(worker).redrive("job")
        assert list(report.begun.values()) == [
            "tiles that failed, or whose features are no longer kept, are done again"
        ]
        worker.look_after()
        worker.work_off()
        row = worker.jobs.get_image_request(request.image_id)
        assert (row.generation, row.sinks_done) == (2, {"0:Kinesis", "1:S3"})
        assert model.stats()["requests"] == calls + before.tile_error

    def test_features_that_may_expire_under_way_are_made_anew_and_not_missed_at_the_end(
        self, worker, scene, model_server, data_plane, clock
    ):
        model = model_server("centerpoint")
        request = self.undelivered(worker, scene, model.invocations_url, data_plane)
        place = f"s3://{data_plane.result_bucket}/out"
        clock.ahead_s += 49 * 3600
        left = self.redriver(worker).redrive("job", [place], outputs_only=True).left
        assert left == {
            request.image_id: "not all of its regions have ended, or its features are more than 48 hours old"
        }
        assert self.redriver(worker).redrive("job", [place]).begun
        worker.look_after()
        worker.work_off()
        row = worker.jobs.get_image_request(request.image_id)
        assert (row.image_status, row.sinks_done) == ("SUCCESS", {"0:Kinesis", "1:S3"})
        assert model.stats()["requests"] == 2 * TILES
        clock.ahead_s += 47 * 3600
        assert len(worker.features.stored_tiles(request.image_id)) == TILES, "the new rows live on"

    def test_a_place_that_the_operator_does_not_allow(self, new_worker, scene, model_server, data_plane):
        worker = new_worker(OUTPUT_BUCKETS="went-missing")
        request = self.undelivered(worker, scene, model_server("centerpoint").invocations_url, data_plane)
        with pytest.raises(InvalidImageRequestException, match="OUTPUT_BUCKETS"):
            self.redriver(worker).redrive("job", ["s3://elsewhere/p"])
        assert worker.jobs.get_image_request(request.image_id).generation == 0

    def test_a_redrive_with_tiles_to_do_is_checked_before_its_first_tile(
        self, worker, scene, model_server, data_plane, clients
    ):
        model = model_server("failure", outcomes={"200": 0.5, "400": 0.5}, seed=3)
        request = self.undelivered(worker, scene, model.invocations_url, data_plane)
        calls = model.stats()["requests"]
        assert self.redriver(worker).redrive("job").begun
        worker.look_after()
        row = worker.jobs.get_image_request(request.image_id)
        assert row.image_status == "FAILED"
        assert 'outputs[0].bucket="went-missing": a bucket that exists (NoSuchBucket)' in row.message
        assert model.stats()["requests"] == calls
