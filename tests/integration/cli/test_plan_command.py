"""`model-runner plan`, as a person types it."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from osgeo import gdal, osr

from aws.osml.model_runner.cli.main import main
from aws.osml.model_runner.cli.plan_text import text_of
from aws.osml.model_runner.jobs.quote import PlanDocument
from aws.osml.model_runner.local.stack.sagemaker_gateway import LocalEndpoint
from raster_files import UTM_31N, pattern, sample_path, write_image

# A user without an AWS account: no keys, no region, and no instance that has a role.
NO_ACCOUNT = {"AWS_EC2_METADATA_DISABLED": "true", "AWS_CONFIG_FILE": "/dev/null", "IMAGE_OPEN_TIMEOUT_S": "0"}


@pytest.fixture
def scene_in_utm(tmp_path) -> Path:
    """An image of 700 x 500 pixels, of which the right half is not valid."""
    pixels = 1 + pattern(3, 500, 700)
    pixels[:, :, 350:] = 0
    path = write_image(tmp_path / "scene.tif", pixels.astype(np.uint8), geo_transform=UTM_31N, epsg=32631)
    dataset = gdal.Open(str(path), gdal.GA_Update)
    for band in (1, 2, 3):
        dataset.GetRasterBand(band).SetNoDataValue(0)
    dataset = None
    return path


@pytest.fixture
def plan(monkeypatch, capsys):
    """Run the command; return its exit status and its document."""
    for name, value in NO_ACCOUNT.items():
        monkeypatch.setenv(name, value)

    def run(*arguments: Any) -> tuple[int, dict[str, Any]]:
        capsys.readouterr()
        status = main(["plan", *map(str, arguments), "--json"])
        return status, json.loads(capsys.readouterr().out)

    return run


def reasons(document: dict[str, Any]) -> list[str]:
    return [str(problem["field"]) for problem in document["problems"]]


def test_image_alone_needs_no_account(plan, scene_in_utm):
    status, document = plan(scene_in_utm, "--tile-size", 200, "--overlap", 0)
    assert status == 0
    (image,) = document["images"]
    assert (image["image"]["width"], image["image"]["pixel_size_m"]) == (700, [0.5, 0.5])
    # Four columns and three rows of 200 pixels; the columns that begin at 166 and 333 have pixels of both halves.
    assert document["totals"]["tiles"] + document["totals"]["skipped"]["NODATA"] == 4 * 3
    assert [each["field"] for each in document["unchecked"]] == ["imageProcessor", "outputs"]


def test_options_of_pixels_change_tile(plan, scene_in_utm):
    _, document = plan(scene_in_utm, "--gsd", 1, "--bands", 1, "--tile-size", 128, "--overlap", 0, "--format", "PNG")
    tile = document["images"][0]["tile"]
    assert (tile["bands"], tile["scale"], tile["format"]) == (1, [0.5, 0.5], "PNG")


def test_compression_that_format_lacks_is_noted(plan, scene_in_utm):
    _, document = plan(scene_in_utm, "--compression", "J2K")
    assert "GTIFF has no J2K compression: tiles are compressed by LZW" in document["images"][0]["notes"]


def test_prices_give_cost(plan, scene_in_utm, tmp_path):
    prices = {"endpoint_hour": 7.2, "call": 0.01, "write_unit": 0.001}
    file = tmp_path / "prices.json"
    file.write_text(json.dumps({"date": "2026-11-01", "currency": "EUR", "prices": prices}))
    _, document = plan(scene_in_utm, "--prices", file, "--calls-per-second", 2)
    totals, cost = document["totals"], document["cost"]
    assert totals["endpoint_minutes"] == pytest.approx(totals["calls"] / 2 / 60)
    assert cost["parts"] == pytest.approx(
        {
            "endpoint_hour": 7.2 * totals["calls"] / 2 / 3600,
            "call": 0.01 * totals["calls"],
            "write_unit": 0.001 * totals["write_units"],
        }
    )
    assert cost["total"] == pytest.approx(sum(cost["parts"].values()))
    _, without_rate = plan(scene_in_utm, "--prices", file)
    assert without_rate["cost"]["left_out"] == ["endpoint_hour"]


@pytest.mark.parametrize(
    ("document", "complaint"),
    [
        ({"currency": "USD", "prices": {}}, "date: expected required"),
        ({"date": "soon", "currency": "USD", "prices": {}}, "date"),
        ({"date": "2026-11-01", "currency": "USD", "prices": {"endpoint_hours": 1}}, "prices.endpoint_hours"),
        ({"date": "2026-11-01", "currency": "USD", "prices": {"call": -1}}, "prices.call"),
    ],
)
def test_file_of_prices_is_checked(scene_in_utm, tmp_path, capsys, document, complaint):
    file = tmp_path / "prices.json"
    file.write_text(json.dumps(document))
    assert main(["plan", str(scene_in_utm), "--prices", str(file)]) == 2
    assert complaint in capsys.readouterr().err


def test_map_has_each_tile_where_gdal_puts_it(plan, scene_in_utm, tmp_path):
    file = tmp_path / "tiles.geojson"
    _, document = plan(scene_in_utm, "--tile-size", 200, "--overlap", 0, "--map", file, "--scale", 0.5)
    features = json.loads(file.read_text())["features"]
    states = [feature["properties"]["state"] for feature in features]
    assert states.count("planned") == document["totals"]["tiles"]
    assert states.count("skipped") == sum(document["totals"]["skipped"].values())
    utm, wgs84 = osr.SpatialReference(), osr.SpatialReference()
    utm.ImportFromEPSG(32631)
    wgs84.ImportFromEPSG(4326)
    wgs84.SetAxisMappingStrategy(osr.OAMS_TRADITIONAL_GIS_ORDER)
    to_world = osr.CoordinateTransformation(utm, wgs84)
    for feature in features:
        left, top, right, bottom = feature["properties"]["imageBBox"]
        ring = feature["geometry"]["coordinates"][0]
        for x, y in ((left, top), (right, top), (right, bottom), (left, bottom)):
            place = to_world.TransformPoint(*gdal.ApplyGeoTransform(UTM_31N, x, y))[:2]
            assert min(np.hypot(*np.subtract(corner[:2], place)) for corner in ring) < 1e-6


def test_image_without_georeference_has_tiles_without_geometry(plan, tmp_path):
    file = tmp_path / "tiles.geojson"
    plan(sample_path("rareplanes_tile.png"), "--tile-size", 256, "--overlap", 0, "--map", file)
    features = json.loads(file.read_text())["features"]
    assert [feature["geometry"] for feature in features] == [None] * 4
    assert [feature["properties"]["imageBBox"] for feature in features][-1] == [256, 256, 512, 512]


def test_request_lists_every_problem_by_its_field(plan, scene_in_utm, clients, gateway, tmp_path, monkeypatch):
    monkeypatch.setenv("IMAGE_SOURCES", "file")
    request = {
        "jobId": "a",
        "imageUrls": [str(scene_in_utm)],
        "imageProcessor": {"name": "no-such-endpoint"},
        "imageProcessorTileFormat": "GTIFF",
        "imageProcessorTileSise": 256,
        "outputs": [
            {"type": "S3", "bucket": "no-such-bucket-at-all", "prefix": "p"},
            {"type": "Kinesis", "stream": "no-such-stream"},
        ],
    }
    file = tmp_path / "request.json"
    file.write_text(json.dumps(request))
    status, document = plan(file)
    assert (status, reasons(document)) == (1, ["imageProcessor.name", "outputs[0].bucket", "outputs[1].stream"])
    assert document["ignored_keys"] == ["imageProcessorTileSise"]
    assert document["totals"]["tiles"] == 1, "amounts are of use beside the problems"


def test_tile_that_no_call_takes_still_has_amounts(plan, clients, gateway, tmp_path):
    gateway.add_endpoint("ships", LocalEndpoint("http://127.0.0.1:1/"))
    path = write_image(tmp_path / "wide.tif", np.zeros((8, 1100, 1100), np.uint16))
    status, document = plan(path, "--endpoint", "ships", "--tile-size", 1024)
    assert (status, reasons(document)) == (1, ["imageProcessorTileSize"])
    assert "imageProcessorTileSize 608" in document["problems"][0]["reason"]
    assert document["totals"]["tiles"] == 4


@pytest.mark.parametrize(
    ("changes", "fields"),
    [
        ({"imageProcessorTileSize": 5, "outputs": []}, ["imageProcessorTileSize", "outputs"]),
        ({"imageUrls": ["file:///etc/passwd"]}, ["imageUrls"]),
        ({"imageProcessorInput": {"bands": [9]}}, ["imageProcessorInput.bands[0]"]),
        ({"regionOfInterest": "POLYGON ((40 0, 41 0, 41 1, 40 0))"}, ["None"]),
    ],
)
def test_request_that_worker_would_refuse(plan, scene_in_utm, clients, tmp_path, monkeypatch, changes, fields):
    monkeypatch.setenv("IMAGE_SOURCES", "file" if "imageUrls" not in changes else "s3")
    request = {
        "jobId": "a",
        "imageUrls": [str(scene_in_utm)],
        "imageProcessor": {"name": "http://127.0.0.1:9/", "type": "HTTP_ENDPOINT"},
        "outputs": [{"type": "S3", "bucket": "bucket", "prefix": "p"}],
    } | changes
    file = tmp_path / "request.json"
    file.write_text(json.dumps(request))
    status, document = plan(file)
    others = {"imageProcessor.name", "outputs[0].bucket"}
    assert (status, [field for field in reasons(document) if field not in others]) == (1, fields)
    assert document["totals"] is None


def test_request_has_its_own_options(tmp_path, capsys):
    file = tmp_path / "request.json"
    file.write_text("{}")
    assert main(["plan", str(file), "--tile-size", "512"]) == 2
    assert "its own endpoint, outputs and tiles" in capsys.readouterr().err


@pytest.mark.parametrize("width", [40, 80, 160])
def test_text_fits_terminal(plan, scene_in_utm, width):
    status, document = plan(
        scene_in_utm, "--tile-size", 64, "--overlap", 0, "--region-size", 200, "--calls-per-second", 1000
    )
    lines = text_of(PlanDocument.model_validate(document), width).splitlines()
    words = {word for line in lines for word in line.split()}
    assert all(len(line) <= width for line in lines if len(line.split()) > 1)
    assert {"tiles", "calls", "storage", "rows", "regions", "problems", "none"} <= words
    assert status == 0


def test_lines_of_pipe_are_not_wrapped(scene_in_utm, capsys):
    assert main(["plan", str(scene_in_utm)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert sum(line.startswith("storage ") for line in lines) == 1
    assert any(line.startswith("image ") and line.endswith(str(scene_in_utm)) for line in lines)
