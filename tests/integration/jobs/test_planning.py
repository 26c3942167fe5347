"""Plans of images, from the request to rows and messages of regions: real tables, queues, models and files."""

import json
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import shapely
from osgeo import gdal

from aws.osml.model_runner.api.image_request_message import parse_image_request_message
from aws.osml.model_runner.api.inference import ModelInvokeMode
from aws.osml.model_runner.api.region_request import RegionName, RegionRequest
from aws.osml.model_runner.database import JobItem
from aws.osml.model_runner.exceptions import (
    InvalidImageRequestException,
    InvalidImageURLException,
    LoadImageException,
    ProcessImageException,
    UnsupportedModelException,
)
from aws.osml.model_runner.image_request_handler import ImageRequestHandler
from aws.osml.model_runner.local.stack.sagemaker_gateway import LocalEndpoint
from aws.osml.model_runner.raster import ImageUnreachableError, RasterSettings, image_to_world
from aws.osml.model_runner.raster.sensor_model import build_sensor_model
from aws.osml.model_runner.scheduler.load import lane_of
from aws_faults import answering, query_error
from raster_files import write_image
from worker_in_process import TILES, TILES_PER_REGION, write_scene

MODEL = "ships"


def _center(feature: dict[str, Any]) -> tuple[int, int]:
    """Return the middle of a feature in whole pixels (x, y)."""
    center = shapely.from_geojson(json.dumps(feature["properties"]["imageGeometry"])).centroid
    return round(center.x), round(center.y)


class TestImage:
    def test_image_is_processed_from_request_to_result(self, worker, scene, model_server, statuses):
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
            worker.plan(request)
        finally:
            client.meta.events.unregister("before-send.dynamodb.PutItem", unique_id="meet")
        assert len(worker.regions_of(request)) == len(worker.received_regions()) == 2

    def test_every_region_has_message_first_one_too(self, worker, scene, model_server):
        request = worker.request(scene, model_server("centerpoint").invocations_url)
        worker.image_handler.process_image_request(request)
        sent = [region for _, region in worker.received_regions()]
        assert [region.region_id for region in sent] == ["(0, 0)(512, 512)-job", "(0, 512)(512, 512)-job"]
        assert sent == [RegionName.of(region) for region in worker.region_requests(request)]

    def test_job_of_one_region_is_finished_at_once(self, new_worker, scene, model_server):
        worker = new_worker(REGION_SIZE="(4096, 4096)")
        request = worker.request(scene, model_server("centerpoint").invocations_url)
        worker.image_handler.process_image_request(request)
        assert worker.jobs.get_image_request(request.image_id).image_status == "SUCCESS"
        assert len(worker.result("job")) == TILES

    def test_same_request_again_only_publishes_status(self, worker, scene, model_server, statuses):
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

    def test_plan_is_made_by_one_worker(self, new_worker, scene, model_server):
        first, second = new_worker("first"), new_worker("second")
        model = model_server("centerpoint")
        job = first.image_handler.accept(first.request(scene, model.invocations_url))
        assert second.outstanding_jobs.start_planning(job, "second", 60)
        first.image_handler.plan(job)
        assert first.jobs.get_image_request(job.image_id).region_count is None
        assert model.stats()["requests"] == 0

    def test_image_stays_ended_when_it_ends_during_planning(self, worker, scene, model_server, monkeypatch):
        job = worker.image_handler.accept(worker.request(scene, model_server("centerpoint").invocations_url))
        plan_of = worker.image_handler._plan_of

        def end_meanwhile(request, item, **options):
            worker.jobs.fail_unplanned(request.image_id, "given up")
            return plan_of(request, item, **options)

        monkeypatch.setattr(worker.image_handler, "_plan_of", end_meanwhile)
        worker.image_handler.plan(job)
        row = worker.jobs.get_image_request(job.image_id)
        assert (row.image_status, row.region_count) == ("FAILED", None)
        assert worker.regions_of(job.request) == []

    def test_job_id_with_several_images_is_several_jobs(self, worker, scene, tmp_path, model_server):
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
            (
                {"regionOfInterest": "POLYGON ((0 0, 1 0, 1 1, 0 1, 0 0))"},
                "regionOfInterest does not touch the image, which covers longitudes 3.0",
            ),
        ],
        ids=["missing", "source not allowed", "interest elsewhere"],
    )
    def test_image_fails_with_reason_when_it_cannot_be_planned(self, worker, scene, statuses, changes, reason):
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
    def test_plan_of_too_many_parts_is_refused(self, new_worker, scene, limit):
        worker = new_worker(**{limit: "1"})
        with pytest.raises(ProcessImageException, match="2 regions with up to 4 tiles each are too many"):
            worker.image_handler.process_image_request(worker.request(scene, "http://127.0.0.1:9/invocations"))

    def test_image_without_georeference_has_no_region_of_interest(self, worker, tmp_path):
        plain = write_scene(tmp_path / "plain.tif", is_georeferenced=False)
        roi = "POLYGON ((3 48.7, 3.01 48.7, 3.01 48.8, 3 48.8, 3 48.7))"
        request = worker.request(plain, "http://127.0.0.1:9/invocations", regionOfInterest=roi)
        with pytest.raises(ProcessImageException, match="georeferenced"):
            worker.image_handler.process_image_request(request)

    def test_image_without_georeference_is_processed_in_pixels(self, new_worker, tmp_path, model_server):
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
    def test_result_states_accuracy_of_georeference(
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

    def test_image_is_left_to_sweeper_when_store_is_unavailable(
        self, worker, scene, model_server, monkeypatch, statuses
    ):
        model = model_server("centerpoint")
        request = worker.request(scene, model.invocations_url)
        with monkeypatch.context() as patch:
            patch.setattr(
                worker.image_handler,
                "_plan_of",
                lambda *_, **__: (_ for _ in ()).throw(ImageUnreachableError("S3 is away")),
            )
            worker.image_handler.process_image_request(request)
        assert worker.jobs.get_image_request(request.image_id).image_status == "ACCEPTED"
        assert worker.open_jobs() == [request.image_id]
        assert "FAILED" not in statuses.heard()

    def test_next_job_sees_object_that_was_uploaded_since(
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

    def test_status_topic_that_is_away_ends_no_job(self, worker, scene, model_server, clients):
        request = worker.request(scene, model_server("centerpoint").invocations_url)
        with answering(clients.client("sns"), "Publish", query_error("InternalError", 400)):
            worker.image_handler.process_image_request(request)
            worker.work_off()
        row = worker.jobs.get_image_request(request.image_id)
        assert (row.image_status, row.status_outbox["status"]) == ("SUCCESS", "SUCCESS")
        assert worker.open_jobs() == [request.image_id], "somebody has to publish it yet"

    def test_handler_needs_no_table_of_open_jobs(self, worker):
        handler = worker.image_handler
        other = ImageRequestHandler(
            *(handler.job_table, handler.image_status_monitor, None, handler.tiling_strategy),
            *(handler.region_request_queue, handler.region_request_table, handler.endpoint_utils, handler.config),
            handler.region_request_handler,
        )
        assert list(other.parts.outstanding_jobs.open_jobs()) == []


def degrees_of(scene: Path, pixels: shapely.Geometry) -> str:
    """Return a shape in pixels (x, y) as WKT in degrees."""
    dataset = gdal.Open(str(scene))
    to_world = image_to_world(build_sensor_model(dataset, RasterSettings()))
    return shapely.transform(pixels, lambda xy: to_world(xy)[:, :2]).wkt


class TestInterest:
    def test_only_tiles_in_region_of_interest_are_sent(self, worker, scene, model_server):
        model = model_server("centerpoint")
        roi = degrees_of(scene, shapely.box(10, 10, 1014, 250))
        request = worker.request(scene, model.invocations_url, regionOfInterest=roi)
        worker.image_handler.process_image_request(request)
        job = worker.work_off()
        assert (job.image_status, job.tile_count, job.tile_success) == ("SUCCESS", 4, 4)
        assert model.stats()["requests"] == 4
        assert np.array(job.processing_bounds) == pytest.approx(np.array([[10, 10], [1004, 240]]), abs=2)

    def test_hole_of_region_of_interest_is_left_out(self, worker, scene, model_server):
        model = model_server("centerpoint")
        hole = [(250, 5), (774, 5), (774, 507), (250, 507)]
        roi = degrees_of(scene, shapely.Polygon([(0, 0), (1024, 0), (1024, 512), (0, 512)], holes=[hole]))
        request = worker.request(scene, model.invocations_url, regionOfInterest=roi, imageProcessorTileSize=128)
        worker.image_handler.process_image_request(request)
        job = worker.work_off()
        assert job.image_status == "SUCCESS"
        assert model.stats()["requests"] == job.tile_count == job.tile_success < 32

    def test_region_is_abandoned_when_image_is_missing(self, new_worker, tmp_path, clock):
        planner = new_worker("planner")
        image = write_scene(tmp_path / "image.tif")
        roi = degrees_of(image, shapely.box(10, 10, 1014, 250))
        request = planner.request(image, "http://127.0.0.1:9/invocations", regionOfInterest=roi)
        planner.plan(request)
        image.unlink()
        worker = new_worker("late")
        first, _ = worker.region_requests(request)
        for _ in range(5):
            deferred = worker.deferred(first)
            clock.ahead_s += deferred.retry_after_s + 1
        job = worker.process(first)
        region = worker.regions.get_region_request(first.region_id, request.image_id)
        assert (region.region_status, job.region_error, job.tile_success) == ("FAILED", 1, 0)


class TestLoad:
    def test_load_image_request_opens_and_plans_image(self, worker, scene, model_server):
        item = JobItem.from_image_request(worker.request(scene, "http://127.0.0.1:9/invocations"))
        extension, dataset, sensor_model, regions = worker.image_handler.load_image_request(item, None)
        assert extension == "TIFF"
        assert (dataset.RasterXSize, dataset.RasterYSize) == (1024, 512)
        assert sensor_model is not None
        assert regions == [((0, 0), (512, 512)), ((0, 512), (512, 512))]

    def test_load_image_request_follows_region_of_interest_and_region_size(self, worker, scene):
        item = JobItem.from_image_request(worker.request(scene, "http://127.0.0.1:9/invocations"))
        item.region_size = [256, 256]
        roi = shapely.from_wkt(degrees_of(scene, shapely.box(10, 10, 400, 200)))
        *_, regions = worker.image_handler.load_image_request(item, roi)
        assert [region.size for region in regions] == [(256, pytest.approx(190, abs=2))] * 2
        assert (regions[0].origin.col, regions[1].right) == pytest.approx((10, 400), abs=2)

    def test_load_image_request_raises_when_image_cannot_be_opened(self, worker):
        item = JobItem.from_image_request(worker.request("file:///none.tif", "http://127.0.0.1:9/invocations"))
        with pytest.raises(LoadImageException):
            worker.image_handler.load_image_request(item, None)
        item = JobItem.from_image_request(worker.request("http://127.0.0.1/a.tif", "http://127.0.0.1:9/invocations"))
        with pytest.raises(InvalidImageURLException):
            worker.image_handler.load_image_request(item, None)

    def test_queue_region_request_sends_regions_of_open_image(self, worker, scene, model_server):
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

    def test_detector_is_refused_for_invoke_mode_none(self, worker):
        with pytest.raises(UnsupportedModelException):
            worker.model_endpoints.detector_for(RegionRequest(model_name="x", model_invoke_mode=ModelInvokeMode.NONE))

    def test_requests_for_one_endpoint_share_detector(self, worker, model_server):
        url = model_server("centerpoint").invocations_url
        detectors = {
            id(
                worker.model_endpoints.detector_for(
                    RegionRequest(model_name=url, model_invoke_mode="HTTP_ENDPOINT", tile_format=tile_format)
                )
            )
            for tile_format in ("PNG", "PNG", "JPEG")
        }
        assert len(detectors) == 2

    def test_endpoints_of_same_name_in_two_accounts_share_no_limits(self, worker):
        roles = ("", "arn:aws:iam::111111111111:role/call", "arn:aws:iam::222222222222:role/call")
        lanes = [
            lane_of(RegionRequest(model_name="ships", model_invoke_mode="SM_ENDPOINT", model_invocation_role=role))
            for role in roles
        ]
        assert len({lane.name for lane in lanes}) == 3
        assert len({id(worker.model_endpoints.retry_budget_for(lane)) for lane in lanes}) == 3
        assert len({id(worker.model_endpoints.call_limit_for(lane)) for lane in lanes}) == 3
        assert worker.model_endpoints.retry_budget_for(lanes[0]) is worker.model_endpoints.retry_budget_for(lanes[0])
