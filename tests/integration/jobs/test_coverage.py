"""The coverage of a job: one cell for each tile of the plan, whose areas add up, read back by other programs."""

import dataclasses
import io
import json
import os
from contextlib import closing
from pathlib import Path
from typing import Any

import geopandas
import numpy as np
import pyogrio
import pytest
import shapely
from pyproj import Transformer

from aws.osml.model_runner.api.image_request import ImageRequest
from aws.osml.model_runner.common.typing import ImageRegion, TileState
from aws.osml.model_runner.database import JobItem
from aws.osml.model_runner.database.feature_table import StoredTile, TileKey
from aws.osml.model_runner.jobs.coverage import TileStates
from aws.osml.model_runner.sink.sink_factory import SinkFactory
from raster_files import write_image
from worker_in_process import UTM_31N, write_scene

WIDTH, HEIGHT, TILE_PX = 1000, 700, 256


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """An image whose left third has no data."""
    pixels = np.random.default_rng(2).integers(1, 255, (1, HEIGHT, WIDTH), dtype=np.uint8)
    pixels[:, :, : WIDTH // 3] = 0
    return write_image(tmp_path / "image.tif", pixels, geo_transform=UTM_31N, epsg=32631, nodata=0)


def run(worker, image, model, data_plane, format_name="GEOJSON", **changes) -> JobItem:
    output = {"type": "S3", "bucket": data_plane.result_bucket, "prefix": "out", "format": format_name}
    outputs = [output | {"extras": ["COVERAGE"]}]
    request = worker.request(image, model.invocations_url, **{"outputs": outputs, **changes})
    worker.image_handler.process_image_request(request)
    worker.work_off()
    return worker.jobs.get_image_request(request.image_id)


def body_of(clients, data_plane, name: str) -> bytes:
    return clients.client("s3").get_object(Bucket=data_plane.result_bucket, Key=f"out/{name}")["Body"].read()


def cells_of(clients, data_plane, name: str = "job.coverage.geojson") -> list[dict[str, Any]]:
    return json.loads(body_of(clients, data_plane, name))["features"]


def boxes_of(cells: list[dict[str, Any]], *states: str) -> np.ndarray:
    kept = [cell["properties"] for cell in cells if not states or cell["properties"]["state"] in states]
    return np.array([shapely.box(*properties["imageBBox"]) for properties in kept], dtype=object)


def assert_is_partition(cells: list[dict[str, Any]], area: float) -> None:
    """Check that the areas of the states add up, and that no two cells share one."""
    boxes = boxes_of(cells)
    by_state = [shapely.area(boxes_of(cells, state)).sum() for state in ("seen", "skipped", "failed")]
    assert sum(by_state) == pytest.approx(area, rel=1e-9)
    assert shapely.union_all(boxes).area == pytest.approx(area, rel=1e-9)


@pytest.mark.parametrize("overlap", [0, 60])
def test_areas_of_seen_skipped_and_failed_tiles_add_up_to_the_image(
    worker, image, model_server, data_plane, clients, overlap, tmp_path
):
    model = model_server("failure", outcomes={"200": 0.5, "400": 0.5}, seed=3)
    job = run(worker, image, model, data_plane, imageProcessorTileOverlap=overlap)
    cells = cells_of(clients, data_plane)
    assert_is_partition(cells, WIDTH * HEIGHT)
    states = [cell["properties"]["state"] for cell in cells]
    assert job.image_status == "PARTIAL"
    counted = (job.tile_success, job.tiles_skipped, job.tile_error)
    assert tuple(map(states.count, ("seen", "skipped", "failed"))) == counted
    assert min(counted) > 0
    reasons = {(cell["properties"]["state"], cell["properties"]["reason"]) for cell in cells}
    assert reasons == {("seen", None), ("skipped", "NODATA"), *(("failed", code) for code in job.tile_errors)}
    assert {cell["properties"].get("rule") for cell in cells if cell["properties"]["state"] == "skipped"} == {0}
    assert sum(cell["properties"]["detections"] for cell in cells) == job.features_stored
    regions = {row.region_id for row in worker.regions.regions_of(job.image_id)}
    assert {cell["properties"]["region_id"] for cell in cells} == regions
    # A skipped tile has no data, so its cell lies in the empty third.
    assert all(box.bounds[2] <= WIDTH / 3 + TILE_PX for box in boxes_of(cells, "skipped"))


def test_cells_lie_on_the_ground_where_gdal_and_geopandas_find_them(
    worker, image, model_server, data_plane, clients, tmp_path
):
    run(worker, image, model_server("centerpoint"), data_plane)
    path = tmp_path / "job.coverage.geojson"
    path.write_bytes(body_of(clients, data_plane, path.name))
    west, step_x, _, north, _, step_y = UTM_31N
    to_degrees = Transformer.from_crs(32631, 4326, always_xy=True)
    for cell in json.loads(path.read_text())["features"]:
        left, top, right, bottom = cell["properties"]["imageBBox"]
        corners = [(left, top), (left, bottom), (right, bottom), (right, top), (left, top)]
        expected = [to_degrees.transform(west + x * step_x, north + y * step_y) for x, y in corners]
        assert np.array(cell["geometry"]["coordinates"][0]) == pytest.approx(np.array(expected), abs=1e-8)
        assert shapely.geometry.shape(cell["geometry"]).exterior.is_ccw
    frame = geopandas.read_file(path)
    metres = frame.to_crs(32631).area.groupby(frame["state"]).sum()
    assert metres.sum() == pytest.approx(WIDTH * HEIGHT * step_x**2, rel=1e-6)
    # GDAL as pyogrio brings it has all its formats.
    assert pyogrio.read_info(path)["geometry_type"] == "Polygon"
    skipped = pyogrio.read_dataframe(path, where="state = 'skipped' AND reason = 'NODATA'")
    assert len(skipped) == (frame["state"] == "skipped").sum() > 0


def test_coverage_beside_geoparquet_is_a_table(worker, image, model_server, data_plane, clients):
    job = run(worker, image, model_server("centerpoint"), data_plane, "GEOPARQUET")
    frame = geopandas.read_parquet(io.BytesIO(body_of(clients, data_plane, "job.coverage.parquet")))
    assert frame.crs.equals("OGC:CRS84")
    assert frame["state"].value_counts().to_dict() == {"seen": job.tile_success, "skipped": job.tiles_skipped}
    assert frame["detections"].sum() == job.features_stored
    boxes = [shapely.box(*json.loads(properties)["imageBBox"]) for properties in frame["properties"]]
    assert sum(box.area for box in boxes) == pytest.approx(WIDTH * HEIGHT)
    assert set(geopandas.read_parquet(io.BytesIO(body_of(clients, data_plane, "job.parquet"))).columns) < set(
        frame.columns
    )


@pytest.mark.parametrize("in_file", [True, False])
def test_tiles_that_the_region_of_interest_does_not_touch_are_absent(
    worker, scene, model_server, data_plane, clients, tmp_path, in_file
):
    model = model_server("centerpoint")
    interest = shapely.Polygon([(20, 20), (1000, 30), (1000, 60), (60, 60), (60, 480), (20, 480)])
    west, step_x, _, north, _, step_y = UTM_31N
    to_degrees = Transformer.from_crs(32631, 4326, always_xy=True)
    on_ground = shapely.transform(
        interest, lambda x, y: to_degrees.transform(west + x * step_x, north + y * step_y), interleaved=False
    )
    given: Any = on_ground.wkt
    if in_file:
        path = tmp_path / "aoi.geojson"
        path.write_text(shapely.to_geojson(on_ground))
        given = {"url": str(path)}
    job = run(worker, scene, model, data_plane, regionOfInterest=given, imageProcessorTileOverlap=40)
    cells = cells_of(clients, data_plane)
    boxes = boxes_of(cells, "seen")
    assert len(boxes) == len(cells) == job.tile_count < 15
    assert shapely.union_all(boxes).buffer(0.01).contains(interest)
    assert shapely.area(boxes).sum() == pytest.approx(shapely.union_all(boxes).area)


@pytest.mark.parametrize("scale", [0.37, 2.5])
def test_cells_of_a_scaled_plan_are_in_pixels_of_the_image(worker, image, model_server, data_plane, clients, scale):
    run(worker, image, model_server("centerpoint"), data_plane, imageProcessorInput={"scale": scale})
    assert_is_partition(cells_of(clients, data_plane), WIDTH * HEIGHT)


def test_image_without_georeference_has_cells_in_pixels_alone(worker, model_server, data_plane, clients, tmp_path):
    plain = write_scene(tmp_path / "plain.tif", is_georeferenced=False)
    run(worker, plain, model_server("centerpoint"), data_plane)
    cells = cells_of(clients, data_plane)
    assert {cell["geometry"] for cell in cells} == {None}
    assert_is_partition(cells, 1024 * 512)


def test_coverage_is_written_when_the_image_is_gone(worker, image, model_server, data_plane, clients, logs):
    coverage = worker.completion._coverage

    def lend_deleted(request):
        image.unlink()
        return coverage.lend_image(request)

    worker.completion._coverage = dataclasses.replace(coverage, lend_image=lend_deleted)
    assert run(worker, image, model_server("centerpoint"), data_plane).image_status == "SUCCESS"
    cells = cells_of(clients, data_plane)
    assert {cell["geometry"] for cell in cells} == {None}
    assert_is_partition(cells, WIDTH * HEIGHT)
    assert "coverage.not_located" in {entry["event"] for entry in logs}


def test_outcomes_take_seven_bytes_of_disk_for_each_tile():
    bounds, count = ImageRegion.of(((0, 0), (1, 1))), 100_000
    with closing(TileStates()) as states:
        for region in range(10):
            keys = [TileKey("image", str(region), index) for index in range(count // 10)]
            failed = [
                StoredTile(key, bounds, TileState.FAILED, (), error_code=f"E{key.index % 3}") for key in keys[::2]
            ]
            states.add(keys, failed)
        assert os.fstat(states._file.fileno()).st_size == 7 * count
        assert list(states.read(count - 4, 4)) == [(2, "E0", 0), (0, "", 0), (2, "E2", 0), (0, "", 0)]


def test_request_with_extras_survives_its_rows():
    output = {"type": "S3", "bucket": "results", "prefix": "p", "extras": ["COVERAGE", "COVERAGE"]}
    message = {
        "jobId": "job",
        "imageUrls": ["s3://images/a.tif"],
        "imageProcessor": {"name": "ships"},
        "outputs": [output],
    }
    request = ImageRequest.from_external_message(message)
    assert request.outputs[0]["extras"] == ["COVERAGE"]
    assert ImageRequest.from_item(json.loads(json.dumps(request.to_item()))) == request
    (sink,) = SinkFactory.outputs_to_sinks(json.loads(JobItem.from_image_request(request).outputs))
    assert sink.has_coverage


def test_redriven_job_writes_its_coverage_again_and_the_same_from_any_worker(
    worker, new_worker, image, model_server, data_plane, clients
):
    flaky = model_server("failure", outcomes={"400": 1})
    job = run(worker, image, flaky, data_plane)
    assert job.image_status == "FAILED"
    before = body_of(clients, data_plane, "job.coverage.geojson")
    assert {cell["properties"]["state"] for cell in json.loads(before)["features"]} == {"failed", "skipped"}
    whole = worker.jobs.find_whole(job.image_id)
    assert worker.image_handler.redrive(whole, worker.jobs.request_of(whole), "again")
    other = new_worker("other")
    other.start_waiting()
    other.work_off()
    after = body_of(clients, data_plane, "job.coverage.geojson")
    assert json.loads(after)["features"] == json.loads(before)["features"]
