"""Regions of interest in files: checked before the job, fixed with the plan, whatever becomes of the file later."""

import json
from pathlib import Path
from typing import Any

import geopandas
import numpy as np
import pytest
import shapely

from aws.osml.model_runner.api.image_request import ImageRequest
from aws.osml.model_runner.exceptions import InvalidImageRequestException, ProcessImageException
from aws.osml.model_runner.raster import area_files
from worker_in_process import UTM_31N

# Shapes in pixels around the scene, and the tiles of 256 pixels that they touch, two in each region.
SHAPES = (shapely.box(-5, -5, 200, 200), shapely.box(500, 300, 524, 310), shapely.box(900, 400, 1030, 520))
TOUCHED = {(0, 0), (1, 1), (2, 1), (3, 1)}
UNUSED = "http://127.0.0.1:9/invocations"


def metres_of(pixels: shapely.Geometry) -> shapely.Geometry:
    """Return a shape in pixels (x, y) of the usual scene in metres of UTM zone 31."""
    west, width, _, north, _, height = UTM_31N
    return shapely.transform(pixels, lambda xy: np.column_stack([west + xy[:, 0] * width, north + xy[:, 1] * height]))


def write_area(path: Path, *pixels: shapely.Geometry, crs: int = 32631) -> Path:
    frame = geopandas.GeoDataFrame(geometry=[metres_of(shape) for shape in pixels], crs=32631).to_crs(crs)
    path.unlink(missing_ok=True)
    if path.suffix == ".parquet":
        frame.to_parquet(path)
    else:
        frame.to_file(path, driver="GPKG" if path.suffix == ".gpkg" else "GeoJSON")
    return path


def tiles_of(worker, model_requests: Any = None) -> set[tuple[int, int]]:
    boxes = [feature["properties"]["imageBBox"] for feature in worker.result("job")]
    return {(int(box[0]) // 256, int(box[1]) // 256) for box in boxes}


def run(worker, request: ImageRequest):
    worker.image_handler.process_image_request(request)
    return worker.work_off()


@pytest.mark.parametrize(("name", "crs"), [("aoi.geojson", 4326), ("aoi.parquet", 32631), ("aoi.gpkg", 3857)])
def test_only_tiles_in_the_area_of_a_file_are_sent(worker, scene, tmp_path, model_server, name, crs):
    model = model_server("centerpoint")
    area = write_area(tmp_path / name, *SHAPES, crs=crs)
    job = run(worker, worker.request(scene, model.invocations_url, regionOfInterest={"url": str(area)}))
    assert tiles_of(worker) == TOUCHED
    assert (job.image_status, job.tile_count, job.tile_success, job.tile_error) == ("SUCCESS", 4, 4, 0)
    assert model.stats()["requests"] == 4


def test_area_in_a_bucket_is_read_as_images_are(worker, scene, tmp_path, model_server, clients, data_plane, new_worker):
    area = write_area(tmp_path / "aoi.geojson", shapely.box(10, 10, 200, 200))
    clients.client("s3").upload_file(str(area), data_plane.result_bucket, "areas/aoi.geojson")
    model = model_server("centerpoint")
    url = f"s3://{data_plane.result_bucket}/areas/aoi.geojson"
    job = run(worker, worker.request(scene, model.invocations_url, regionOfInterest={"url": url}))
    assert (job.image_status, job.tile_count) == ("SUCCESS", 1)


def test_file_that_is_no_area_refuses_the_request_by_its_field(worker, scene, tmp_path, model_server, monkeypatch):
    url = model_server("centerpoint").invocations_url

    def expectation(content: bytes | None) -> str:
        area = tmp_path / "aoi.geojson"
        area.unlink(missing_ok=True)
        if content is not None:
            area.write_bytes(content)
        with pytest.raises(InvalidImageRequestException) as caught:
            worker.image_handler.check(worker.request(scene, url, regionOfInterest={"url": str(area)}))
        (problem,) = caught.value.problems
        assert problem.field == "regionOfInterest.url"
        assert problem.value.startswith('"/')
        assert str(area) not in problem.expectation
        return problem.expectation

    assert "does not exist" in expectation(None)
    assert "must be polygons only; the file also has LineString" in expectation(
        b'{"type": "LineString", "coordinates": [[1, 2], [3, 4]]}'
    )
    assert "must be GeoJSON, GeoParquet or GeoPackage" in expectation(b"POLYGON((0 0, 1 0, 1 1, 0 0))")
    crowd = b'{"type": "Polygon", "coordinates": [[' + b"[1,2]," * 2_000_001 + b"[1,2]]]}"
    assert f"at most {area_files.MAX_AREA_VERTICES} vertices" in expectation(crowd)


def test_area_must_come_from_where_images_may_come(new_worker, scene, tmp_path):
    worker = new_worker("narrow", IMAGE_SOURCES="s3")
    area = write_area(tmp_path / "aoi.geojson", shapely.box(10, 10, 200, 200))
    with pytest.raises(InvalidImageRequestException) as caught:
        worker.image_handler.check(worker.request("s3://images/a.tif", UNUSED, regionOfInterest={"url": str(area)}))
    assert "regionOfInterest.url" in {problem.field for problem in caught.value.problems}
    assert "IMAGE_SOURCES" in str(caught.value)


def test_area_beside_the_image_fails_the_image(worker, scene, tmp_path, model_server):
    area = write_area(tmp_path / "aoi.geojson", shapely.box(5_000, 10, 6_000, 200))
    request = worker.request(scene, model_server("centerpoint").invocations_url, regionOfInterest={"url": str(area)})
    worker.image_handler.accept(request)
    with pytest.raises(ProcessImageException, match="regionOfInterest does not touch the image"):
        worker.plan(request)
    job = worker.jobs.get_image_request(request.image_id)
    assert job.image_status == "FAILED"
    assert "regionOfInterest does not touch the image, which covers longitudes 3.0" in job.message


def test_file_that_changes_after_the_plan_changes_nothing(worker, new_worker, scene, tmp_path, model_server):
    model = model_server("centerpoint")
    area = write_area(tmp_path / "aoi.geojson", *SHAPES)
    request = worker.request(scene, model.invocations_url, regionOfInterest={"url": str(area)})
    planned = worker.plan(request)
    assert (planned.region_count, planned.tile_count) == (2, 4)
    write_area(area, shapely.box(0, 0, 1024, 512))
    other = new_worker("other")
    job = other.work_off()
    assert tiles_of(other) == TOUCHED
    assert (job.image_status, job.tile_count, job.tile_success) == ("SUCCESS", 4, 4)
    area.unlink()
    assert model.stats()["requests"] == 4


def test_redriven_job_keeps_its_area_when_the_file_is_gone(worker, scene, tmp_path, model_server):
    area = write_area(tmp_path / "aoi.geojson", *SHAPES)
    failing = model_server("failure", outcomes={"400": 1})
    request = worker.request(scene, failing.invocations_url, regionOfInterest={"url": str(area)})
    job = run(worker, request)
    assert (job.image_status, job.tile_error) == ("FAILED", 4)
    area.unlink()
    assert worker.image_handler.redrive(worker.jobs.find_whole(request.image_id), request, "again")
    worker.start_waiting()
    job = worker.work_off()
    assert (job.generation, job.tile_count, job.tile_error) == (1, 4, 4)


def test_planner_that_finds_another_file_leaves_the_plan_alone(worker, scene, tmp_path, model_server):
    area = write_area(tmp_path / "aoi.geojson", *SHAPES)
    request = worker.request(scene, model_server("centerpoint").invocations_url, regionOfInterest={"url": str(area)})
    job = worker.image_handler.accept(request)
    started = worker.outstanding_jobs.start_planning(job, "worker", 60)
    item = worker.jobs.get_image_request(request.image_id)
    plan = worker.image_handler._plan_of(request, item, True, lambda: None)
    # The first planner dies between A3 and A4.
    worker.jobs.fix_plan(plan.applied_to(item))
    write_area(area, shapely.box(0, 0, 1024, 512))
    with pytest.raises(Exception, match="was replaced while its image was planned"):
        worker.image_handler.plan_started(started)
    assert worker.jobs.get_image_request(request.image_id).image_status == "FAILED"
    assert worker.regions_of(request) == []


def test_earlier_versions_refuse_rows_of_an_area(worker, scene, tmp_path):
    area = write_area(tmp_path / "aoi.geojson", shapely.box(10, 10, 200, 200))
    request = worker.request(scene, UNUSED, regionOfInterest={"url": str(area)})
    item = request.to_item()
    assert item["tile_format"] == "AREA:PNG"
    assert ImageRequest.from_item(json.loads(json.dumps(item))) == request
    worker.image_handler.accept(request)
    row = worker.jobs.get_image_request(request.image_id)
    assert row.tile_format == "AREA:PNG"
    assert row.roi_url == str(area)
    assert row.image_request() == request
    (open_job,) = worker.outstanding_jobs.scan()
    assert open_job["request_payload"]["tile_format"] == "AREA:PNG"
