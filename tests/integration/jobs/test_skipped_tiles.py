"""Jobs that skip tiles: which tiles the model gets, and what rows, statuses and results count."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from pyproj import Transformer
from shapely.geometry import Polygon

from aws.osml.model_runner.common.typing import ImageDimensions, ImageFormats, ImageRegion
from aws.osml.model_runner.database import JobItem
from aws.osml.model_runner.exceptions import ProcessImageException
from aws.osml.model_runner.tile_worker import VariableOverlapTilingStrategy
from raster_files import write_image
from stac_items import grid, sentinel2, write_assets, write_item
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


def test_half_empty_image_costs_half_of_calls(worker, tmp_path, model_server, statuses, logs, capsys):
    model = model_server("centerpoint")
    job = run(worker, half_empty(tmp_path / "image.tif"), model)
    assert model.stats()["requests"] == 7
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["TilesSkipped"] for line in lines if "TilesSkipped" in line and "ModelName" in line] == [9]
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


# Longitude and latitude of pixels of an image at ``UTM_31N``.
TO_DEGREES = Transformer.from_crs("EPSG:32631", "EPSG:4326", always_xy=True)


def place(x: float, y: float) -> tuple[float, float]:
    lon, lat = TO_DEGREES.transform(UTM_31N[0] + UTM_31N[1] * x, UTM_31N[3] + UTM_31N[5] * y)
    return float(lon), float(lat)


def area_file(path: Path, corners: list[tuple[float, float]]) -> str:
    """Write a polygon with corners in pixels."""
    ring = [place(x, y) for x, y in [*corners, corners[0]]]
    path.write_text(json.dumps({"type": "Polygon", "coordinates": [ring]}))
    return str(path)


def plain(path: Path) -> Path:
    pixels = np.random.default_rng(2).integers(1, 255, (1, SIDE_PX, SIDE_PX), dtype=np.uint8)
    return write_image(path, pixels, geo_transform=UTM_31N, epsg=32631)


def test_mask_on_other_grid_and_areas_skip_tiles(worker, tmp_path, model_server):
    # The left half of the image is cloudy, except for its top row of tiles.
    west, north = Transformer.from_crs("EPSG:4326", "EPSG:3857", always_xy=True).transform(*place(-40, -40))
    mask = np.zeros((1, 60, 60), np.uint8)
    step = 15.0
    for row in range(60):
        for col in range(60):
            lon, lat = Transformer.from_crs("EPSG:3857", "EPSG:4326", always_xy=True).transform(
                west + (col + 0.5) * step, north - (row + 0.5) * step
            )
            east, up = TO_DEGREES.transform(lon, lat, direction="INVERSE")
            x, y = (east - UTM_31N[0]) / UTM_31N[1], (up - UTM_31N[3]) / UTM_31N[5]
            mask[0, row, col] = 9 if x < 530 and y > 230 else 4
    clouds = write_image(tmp_path / "clouds.tif", mask, geo_transform=(west, step, 0, north, 0, -step), epsg=3857)
    model = model_server("centerpoint")
    rules = [
        {"where": "MASK", "url": str(clouds), "values": [9], "above": 0.95},
        {"where": "OUTSIDE", "url": area_file(tmp_path / "land.json", [(-9, -9), (1100, -9), (1100, 700), (-9, 700)])},
        {
            "where": "INSIDE",
            "url": area_file(tmp_path / "sea.json", [(500, 240), (1100, 240), (1100, 520), (500, 520)]),
        },
    ]
    job = run(worker, plain(tmp_path / "image.tif"), model, skip=rules)
    by_mask = {(x, y) for x in (0, 1) for y in (1, 2, 3)}
    outside, inside = {(2, 3), (3, 3)}, {(2, 1), (3, 1)}
    every = {(x, y) for x in range(4) for y in range(4)}
    assert columns_of(worker) == every - by_mask - outside - inside
    assert model.stats()["requests"] == job.tile_count == 16 - 10
    assert (job.image_status, job.tiles_skipped, len(job.skip_versions or [])) == ("SUCCESS", 10, 3)
    found: dict[int, set[tuple[int, int]]] = {0: set(), 1: set(), 2: set()}
    for row in worker.regions.regions_of(job.image_id):
        (top, left), _ = row.region_bounds
        for index, rule in row.rules_by_tile.items():
            found[rule].add((left // TILE_PX + index % 2, top // TILE_PX + index // 2))
    assert found == {0: by_mask, 1: outside, 2: inside}


def test_region_of_interest_and_scale_go_with_skipped_tiles(worker, tmp_path, model_server):
    image, model = half_empty(tmp_path / "image.tif"), model_server("centerpoint")
    roi = Polygon([place(x, y) for x, y in [(300, 100), (900, 100), (900, 900), (300, 900)]])
    changes = {
        "imageProcessorInput": {"scale": 0.37},
        "imageProcessorTileSize": 64,
        "imageProcessorTileFormat": "GTIFF",
    }
    job = run(worker, image, model, regionOfInterest=roi.wkt, **changes)
    # Tiles of the plan by its own rule, in model pixels of 1/0.37 image pixels.
    left, top, right, bottom = (int(np.floor(300 * 0.37)), int(np.floor(100 * 0.37)), 333, 333)
    pixels = np.random.default_rng(2).integers(1, 255, (SIDE_PX, SIDE_PX), dtype=np.uint8)
    pixels[:, : SIDE_PX // 2] = pixels[-TILE_PX:, -TILE_PX:] = 0
    counts = {"processed": 0, "skipped": 0}
    bounds = ImageRegion.of(((top, left), (right - left, bottom - top)))
    size, none = ImageDimensions(64, 64), ImageDimensions(0, 0)
    for tile in VariableOverlapTilingStrategy().compute_tiles(bounds, size, none):
        x, y = np.array([tile.origin.col, tile.right]) / 0.37, np.array([tile.origin.row, tile.bottom]) / 0.37
        part = pixels[int(y[0]) : int(np.ceil(y[1])), int(x[0]) : int(np.ceil(x[1]))]
        counts["processed" if part.any() else "skipped"] += 1
    assert (job.tile_count, job.tiles_skipped) == (counts["processed"], counts["skipped"])
    assert model.stats()["requests"] == counts["processed"]
    assert min(counts.values()) > 2


def test_files_that_cannot_be_used_end_image_before_any_call(worker, tmp_path, model_server):
    model = model_server("centerpoint")
    flat = write_image(tmp_path / "flat.tif", np.ones((1, 9, 9), np.uint8))
    rules = [
        {"where": "MASK", "url": str(tmp_path / "missing.tif"), "values": [1]},
        {"where": "MASK", "url": str(flat), "values": [1]},
        {"where": "OUTSIDE", "url": str(tmp_path / "missing.json")},
    ]
    request = worker.request(plain(tmp_path / "image.tif"), model.invocations_url, skip=rules)
    with pytest.raises(ProcessImageException):
        worker.image_handler.process_image_request(request)
    job = worker.jobs.get_image_request(request.image_id)
    assert job.image_status == "FAILED"
    for text in ("skip[0].url", "missing.tif does not exist", "skip[1].url", "no georeference", "skip[2].url"):
        assert text in job.message
    assert model.stats()["requests"] == 0


def test_redriven_job_keeps_skipped_tiles_though_mask_is_gone(worker, tmp_path, model_server):
    model = model_server("failure", outcomes={"400": 1})
    mask = np.zeros((1, 64, 64), np.uint8)
    mask[0, :, :32] = 1
    clouds = write_image(tmp_path / "clouds.tif", mask, geo_transform=(500_000.0, 8, 0, 5_400_000.0, 0, -8), epsg=32631)
    rules = [{"where": "MASK", "url": str(clouds), "values": [1]}]
    image = plain(tmp_path / "image.tif")
    job = run(worker, image, model, skip=rules)
    assert (job.image_status, job.tile_error, job.tiles_skipped) == ("FAILED", 8, 8)
    clouds.unlink()
    request = worker.request(image, model.invocations_url, skip=rules)
    good = model_server("centerpoint")
    model.model = good.model
    worker.image_handler.accept(request, "again")
    worker.start_waiting()
    worker.work_off()
    job = worker.jobs.get_image_request(request.image_id)
    assert (job.image_status, job.generation, job.region_success) == ("SUCCESS", 1, 4)
    assert (job.tile_success, job.tile_count, job.tiles_skipped) == (8, 8, 8)
    assert columns_of(worker) == {(x, y) for x in (2, 3) for y in range(4)}


def test_plan_of_earlier_version_skips_nothing(worker, new_worker, tmp_path, model_server, monkeypatch):
    image, model = half_empty(tmp_path / "image.tif"), model_server("centerpoint")
    request = worker.request(image, model.invocations_url)
    job = worker.image_handler.accept(request)
    fix_plan = worker.jobs.fix_plan

    def fixed_by_earlier_version(item):
        # It stores its own plan first, without the attributes that it does not define.
        fix_plan(replace(item, tile_count=16, tiles_skipped=None, tile_format="PNG"))
        return fix_plan(item)

    monkeypatch.setattr(worker.jobs, "fix_plan", fixed_by_earlier_version)
    worker.image_handler.process_first(worker.image_handler.plan(job))
    worker.work_off()
    ended = worker.jobs.get_image_request(request.image_id)
    assert (ended.image_status, ended.tile_success, ended.tiles_skipped) == ("SUCCESS", 16, None)


def test_job_that_skips_tiles_is_not_readable_for_earlier_versions(worker, tmp_path, model_server):
    request = worker.request(half_empty(tmp_path / "image.tif"), model_server("centerpoint").invocations_url)
    key = {"endpoint_id": request.model_name, "job_id": request.job_id}
    worker.image_handler.accept(request)
    assert "tile_format" not in worker.outstanding_jobs.read(key)["request_payload"]
    worker.image_handler.plan(worker.outstanding_jobs.find(request))
    row, payload = (
        worker.jobs.read({"image_id": request.image_id}),
        worker.outstanding_jobs.read(key)["request_payload"],
    )
    for text in (row["tile_format"], payload["tile_format"]):
        # Earlier versions remove no mark, or this one.
        with pytest.raises(ValueError, match="SKIPPING:"):
            ImageFormats(text.removeprefix("PREPARED:"))
    (opened,) = worker.outstanding_jobs.open_rows()
    assert opened.request.tile_format == request.tile_format


def test_scheduler_counts_regions_with_tiles_to_process(worker, tmp_path, model_server):
    request = worker.request(half_empty(tmp_path / "image.tif"), model_server("centerpoint").invocations_url)
    job = worker.image_handler.accept(request)
    worker.image_handler.estimate_load(job)
    assert worker.outstanding_jobs.find(request).region_count == 2


def test_asset_of_stac_item_masks_tiles(worker, tmp_path, model_server):
    item = sentinel2(".", SIDE_PX)
    write_assets(item, tmp_path, SIDE_PX)
    # Scene classification of 20 m: clouds over the lower half, over the image of 10 m.
    classes = np.full((1, SIDE_PX // 2, SIDE_PX // 2), 4, np.uint8)
    classes[:, SIDE_PX // 4 :] = 9
    write_image(tmp_path / "SCL.tif", classes, geo_transform=grid(20), epsg=32631)
    rules = [{"where": "MASK", "asset": "scl", "values": [8, 9, 10]}]
    changes = {"imageAssets": ["red", "nir"], "imageProcessorTileFormat": "GTIFF", "skip": rules}
    model = model_server("centerpoint")
    job = run(worker, write_item(item, tmp_path), model, **changes)
    assert (job.image_status, job.tiles_skipped, model.stats()["requests"]) == ("SUCCESS", 8, 8)
    assert columns_of(worker) == {(x, y) for x in range(4) for y in (0, 1)}
