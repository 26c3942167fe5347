"""Jobs that skip tiles: which tiles the model gets, and what rows, statuses and results count."""

from pathlib import Path

import numpy as np
import pytest

from aws.osml.model_runner.database import JobItem
from raster_files import write_image
from worker_in_process import UTM_31N

TILE_PX = 256
# Four regions of four tiles: the left half of the image has no data, and so has the lower right tile.
SIDE_PX = 1024


def half_empty(path: Path, nodata: float | None = 0) -> Path:
    pixels = np.random.default_rng(2).integers(1, 255, (1, SIDE_PX, SIDE_PX), dtype=np.uint8)
    pixels[:, :, : SIDE_PX // 2] = 0
    pixels[:, -TILE_PX:, -TILE_PX:] = 0
    return write_image(path, pixels, geo_transform=UTM_31N, epsg=32631, nodata=nodata)


def run(worker, image, model, **changes) -> JobItem:
    request = worker.request(image, model.invocations_url, **changes)
    worker.image_handler.process_image_request(request)
    worker.work_off()
    return worker.jobs.get_image_request(request.image_id)


def columns_of(worker) -> set[tuple[int, int]]:
    boxes = [feature["properties"]["imageBBox"] for feature in worker.result("job")]
    return {(int(box[0]) // TILE_PX, int(box[1]) // TILE_PX) for box in boxes}


def test_half_empty_image_costs_half_of_calls(worker, tmp_path, model_server, statuses, logs):
    model = model_server("centerpoint")
    job = run(worker, half_empty(tmp_path / "image.tif"), model)
    assert model.stats()["requests"] == 7
    assert columns_of(worker) == {(2, 0), (3, 0), (2, 1), (3, 1), (2, 2), (3, 2), (2, 3)}
    assert (job.image_status, job.region_count, job.region_success, job.region_error) == ("SUCCESS", 4, 4, 0)
    assert (job.tile_count, job.tiles_skipped, job.tile_success, job.tile_error) == (7, 9, 7, 0)
    assert job.message == "Completed image processing; 9 tiles were skipped"
    rows = {tuple(row.region_bounds[0]): row for row in worker.regions.regions_of(job.image_id)}
    assert {origin: row.tiles_skipped for origin, row in rows.items()} == {
        (0, 0): 4,
        (512, 0): 4,
        (0, 512): None,
        (512, 512): 1,
    }
    assert rows[512, 512].rules_by_tile == {3: 0}
    assert {row.region_status for row in rows.values()} == {"SUCCESS"}
    assert worker.result_file("job")["modelRunner"]["tiles"] == {
        "planned": 7,
        "succeeded": 7,
        "failed": 0,
        "skipped": 9,
    }
    events = [attributes for _, attributes in statuses.events()]
    assert {event.get("tiles_skipped") for event in events if event["status"] != "STARTED"} == {"9"}
    assert {(event["tiles_total"], event["percent"]) for event in events if "percent" in event} >= {("7", "0")}
    (planned,) = [entry for entry in logs if entry["event"] == "image.planned"]
    assert (planned["tiles"], planned["tiles_skipped"]) == (7, 9)


def test_region_without_tiles_to_process_has_no_message(worker, tmp_path, model_server):
    request = worker.request(half_empty(tmp_path / "image.tif"), model_server("centerpoint").invocations_url)
    job = worker.plan(request)
    assert (job.region_success, job.tiles_skipped, job.image_status) == (2, 9, "IN_PROGRESS")
    messages = worker.received_regions()
    assert {name.region_id for _, name in messages} == {"(0, 512)(512, 512)-job", "(512, 512)(512, 512)-job"}


def test_image_whose_tiles_are_all_skipped_succeeds_without_features(worker, tmp_path, model_server, statuses):
    image = write_image(tmp_path / "empty.tif", np.zeros((1, 600, 600), np.uint8), nodata=0)
    model = model_server("centerpoint")
    job = run(worker, image, model)
    assert (job.image_status, job.tile_count, job.tiles_skipped, job.tile_success) == ("SUCCESS", 0, 9, 0)
    assert model.stats()["requests"] == 0
    assert worker.result("job") == []
    assert worker.open_jobs() == []
    events = [attributes for _, attributes in statuses.events()]
    assert {event["percent"] for event in events if "percent" in event} == {"100"}
    assert [event["status"] for event in events].count("SUCCESS") == 1


@pytest.mark.parametrize(("nodata", "changes"), [(None, {}), (0, {"skip": []}), (254, {"skip": [{"where": "NODATA"}]})])
def test_no_tile_is_skipped(worker, tmp_path, model_server, nodata, changes):
    model = model_server("centerpoint")
    job = run(worker, half_empty(tmp_path / "image.tif", nodata), model, **changes)
    assert model.stats()["requests"] == job.tile_count == job.tile_success == 16
    assert job.tiles_skipped == 0
