"""`model-runner plan` and the job agree on every count, for requests of all kinds."""

import json
import threading
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from osgeo import gdal

from aws.osml.model_runner.cli.main import main
from aws.osml.model_runner.local.stack.data_plane import create_data_plane
from aws.osml.model_runner.local.stack.http_service import HttpRequest, HttpResponse, HttpService
from raster_files import UTM_31N, pattern, sample_path, write_image
from worker_in_process import Clock, InProcessWorker

REGION_SIZE = "(512, 512)"
TILED = ("TILED=YES", "BLOCKXSIZE=128", "BLOCKYSIZE=128", "COMPRESS=DEFLATE")


class CountingModel:
    """A model that finds nothing, and counts its calls and their bytes."""

    def __init__(self) -> None:
        self.lengths: list[int] = []
        self.response = {"type": "FeatureCollection", "features": []}
        self._lock = threading.Lock()

    def __call__(self, request: HttpRequest) -> HttpResponse:
        with self._lock:
            self.lengths.append(len(request.body))
        return HttpResponse.of_json(self.response)


@dataclass(frozen=True)
class Kind:
    """An image, what its request has beside the usual, and the response of its model."""

    write: Callable[[Path], Path]
    members: dict[str, Any] = field(default_factory=dict)
    is_exact: bool = True
    response: dict[str, Any] = field(default_factory=lambda: {"type": "FeatureCollection", "features": []})


def image(
    bands: int, rows: int, columns: int, dtype: Any = np.uint8, has_place: bool = True, **options: Any
) -> Callable[[Path], Path]:
    place = {"geo_transform": UTM_31N, "epsg": 32631} if has_place else {}

    def write(folder: Path) -> Path:
        return write_image(folder / "image.tif", pattern(bands, rows, columns, dtype), **place, **options)

    return write


def _with_nodata(folder: Path, valid: tuple[slice, slice]) -> Path:
    """Write an image of which only some pixels are valid, by its value for "no data"."""
    pixels = np.zeros((1, 1100, 1100), np.uint8)
    pixels[0][valid] = 1 + pattern(1, 1100, 1100)[0][valid]
    path = write_image(folder / "image.tif", pixels, options=TILED, geo_transform=UTM_31N, epsg=32631)
    dataset = gdal.Open(str(path), gdal.GA_Update)
    dataset.GetRasterBand(1).SetNoDataValue(0)
    dataset.FlushCache()
    return path


def half_empty(folder: Path) -> Path:
    return _with_nodata(folder, (slice(None), slice(0, 550)))


def corner_only(folder: Path) -> Path:
    return _with_nodata(folder, (slice(0, 200), slice(0, 200)))


def sample(name: str) -> Callable[[Path], Path]:
    return lambda _folder: sample_path(name)


def box(left: float, top: float, width: float, height: float) -> str:
    """Return WKT of a rectangle in pixels of an image at ``UTM_31N``."""
    from pyproj import Transformer

    to_world = Transformer.from_crs(32631, 4326, always_xy=True)
    corners = [(left, top), (left + width, top), (left + width, top + height), (left, top + height), (left, top)]
    places = [to_world.transform(500000 + 0.5 * x, 5400000 - 0.5 * y) for x, y in corners]
    return ", ".join(f"{longitude} {latitude}" for longitude, latitude in places)


def with_area_beside(folder: Path) -> Path:
    ring = [[float(number) for number in place.split()] for place in box(100, 600, 500, 200).split(", ")]
    (folder / "area.geojson").write_text(json.dumps({"type": "Polygon", "coordinates": [ring]}))
    return image(1, 900, 900)(folder)


KINDS = {
    "tiny": Kind(image(1, 30, 40)),
    "one row": Kind(image(1, 1, 1500), {"imageProcessorTileFormat": "GTIFF"}),
    "several regions": Kind(image(3, 700, 1100), {"imageProcessorTileFormat": "GTIFF"}),
    "overlap": Kind(image(1, 600, 600), {"imageProcessorTileOverlap": 200, "imageProcessorTileFormat": "GTIFF"}),
    "nitf": Kind(image(1, 400, 600), {"imageProcessorTileFormat": "NITF"}),
    "nitf j2k": Kind(image(1, 300, 500), {"imageProcessorTileFormat": "NITF", "imageProcessorTileCompression": "J2K"}),
    "gtiff lzw": Kind(image(2, 400, 700, options=TILED), {"imageProcessorTileFormat": "GTIFF"}),
    "jpeg": Kind(image(3, 300, 600), {"imageProcessorTileFormat": "JPEG"}),
    "no georeference": Kind(image(1, 512, 900, has_place=False), {"imageProcessorTileFormat": "GTIFF"}),
    "many compressed tiles": Kind(image(1, 700, 700), {"imageProcessorTileSize": 128}, is_exact=False),
    "region of interest": Kind(image(1, 900, 900), {"regionOfInterest": f"POLYGON (({box(300, 300, 300, 250)}))"}),
    "regions of interest": Kind(
        image(1, 1500, 1500),
        {"regionOfInterest": f"MULTIPOLYGON ((({box(20, 30, 100, 90)})), (({box(1200, 1200, 200, 200)})))"},
    ),
    "region of interest in a file": Kind(
        with_area_beside, {"regionOfInterest": {"url": "FOLDER/area.geojson"}, "imageProcessorTileFormat": "GTIFF"}
    ),
    "smaller scale": Kind(image(3, 1000, 1400, options=TILED), {"imageProcessorInput": {"scale": 0.5}}),
    "nearest": Kind(image(1, 900, 900), {"imageProcessorInput": {"scale": 0.3, "resampling": "NEAREST"}}),
    "larger scale": Kind(
        image(1, 250, 300), {"imageProcessorInput": {"scale": 2.5}, "imageProcessorTileFormat": "GTIFF"}
    ),
    "gsd": Kind(image(1, 700, 900), {"imageProcessorInput": {"gsd": 0.8}, "imageProcessorTileFormat": "GTIFF"}),
    "eight bands": Kind(
        image(8, 500, 700, np.uint16),
        {
            "imageProcessorInput": {
                "bands": [5, 3, 2],
                "stretch": {"type": "PERCENTILE", "lower": 2, "upper": 98},
                "pixelType": "UINT8",
            }
        },
    ),
    "floats": Kind(image(1, 400, 500, np.float32), {"imageProcessorTileFormat": "GTIFF"}),
    "sar": Kind(
        sample("umbra_mount_yasur.tiff"), {"imageProcessorTileSize": 1024, "imageProcessorTileFormat": "GTIFF"}
    ),
    "nitf image": Kind(sample("i_3301a.ntf"), {"imageProcessorTileFormat": "NITF"}),
    "jpeg 2000 image": Kind(sample("005_007_1024x1024_s_8_1_multi_j2c.ntf"), {"imageProcessorTileFormat": "JPEG"}),
    "half without data": Kind(half_empty, {"imageProcessorTileFormat": "GTIFF"}),
    "without data in all regions but one": Kind(corner_only, {"imageProcessorTileFormat": "GTIFF"}),
    "no rule of skipping": Kind(half_empty, {"skip": [], "imageProcessorTileFormat": "GTIFF"}),
    "roboflow": Kind(image(3, 300, 600), {"imageProcessor": {"protocol": "ROBOFLOW"}}, response={"predictions": []}),
    "ultralytics": Kind(
        image(3, 300, 600), {"imageProcessor": {"protocol": "ULTRALYTICS"}}, response={"images": [{"results": []}]}
    ),
    "png image": Kind(sample("rareplanes_tile.png"), {"imageProcessorTileOverlap": 100}),
}


@pytest.fixture(scope="module")
def model() -> Iterator[tuple[CountingModel, str]]:
    counting = CountingModel()
    with HttpService(counting) as service:
        yield counting, f"{service.url}/invocations"


@pytest.fixture(scope="module")
def fleet(emulator, clients) -> Iterator[InProcessWorker]:
    """One worker on one data plane, for all requests of the module."""
    plane = create_data_plane(emulator.client, f"plan-{uuid.uuid4().hex[:8]}")
    worker = InProcessWorker(plane.environment, clients, Clock(), REGION_SIZE=REGION_SIZE, IMAGE_SOURCES="file")
    worker.outputs = json.dumps([{"type": "S3", "bucket": plane.result_bucket, "prefix": "out"}])
    worker.environment = plane.environment  # type: ignore[attr-defined]
    yield worker
    worker.close()


def planned(message: dict[str, Any], folder: Path, capsys: Any) -> dict[str, Any]:
    """Return what `model-runner plan --json` prints for a request."""
    (folder / "request.json").write_text(json.dumps(message))
    capsys.readouterr()
    status = main(["plan", str(folder / "request.json"), "--json"])
    document: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert (status, document["problems"], document["unchecked"]) == (0, [], [])
    return document


@pytest.mark.parametrize("name", KINDS)
def test_plan_and_job_agree(name, model, fleet, tmp_path, capsys, monkeypatch):
    kind, (counting, url) = KINDS[name], model
    counting.response = kind.response
    # A child process that opens the image first takes a second for each request.
    settings = {"REGION_SIZE": REGION_SIZE, "IMAGE_SOURCES": "file", "IMAGE_OPEN_TIMEOUT_S": "0"}
    for variable, value in (fleet.environment | settings).items():
        monkeypatch.setenv(variable, value)
    path, job_id = kind.write(tmp_path), name.replace(" ", "-")
    message = fleet.message(path, url, job_id)
    members = json.loads(json.dumps(kind.members).replace("FOLDER", str(tmp_path)))
    members |= {"imageProcessor": message["imageProcessor"] | kind.members.get("imageProcessor", {})}
    message |= members
    document = planned(message, tmp_path, capsys)
    assert counting.lengths == [], "the plan called the model"

    request = fleet.request(path, url, job_id, **members)
    fleet.image_handler.process_image_request(request)
    fleet.work_off()
    lengths, counting.lengths = counting.lengths, []

    job = fleet.jobs.get_image_request(request.image_id)
    assert job.image_status == "SUCCESS", job.message
    totals = document["totals"]
    assert (totals["tiles"], totals["regions"]) == (job.tile_success, job.region_count)
    assert totals["calls"] == len(lengths)
    if kind.is_exact:
        assert totals["is_model_bytes_exact"]
        assert totals["model_bytes"] == sum(lengths)
    else:
        assert totals["model_bytes"] == pytest.approx(sum(lengths), rel=0.1)
    # Every region, by its bounds, with the tiles that its row counts.
    rows = {str(row.region_id).rpartition(")-")[0] + ")": row for row in fleet.regions_of(request)}
    regions = {
        f"({each['row']}, {each['col']})({each['width']}, {each['height']})": each["tiles"]
        for each in document["images"][0]["regions"]
    }
    assert regions == {bounds: row.succeeded_tile_count for bounds, row in rows.items()}
    stored = fleet.jobs.scan(
        FilterExpression="begins_with(image_id, :image) AND job_id = :job",
        ExpressionAttributeValues={":image": job_id, ":job": job_id},
    )
    assert totals["rows"] == {
        "requests": 1,
        "images": len(list(stored)),
        "regions": len(rows),
        "tiles": len(list(fleet.rows_of_tiles(request.image_id))),
    }
    assert sum(totals["skipped"].values()) == (job.tiles_skipped or 0)
    assert bool(totals["skipped"]) is ("without data" in name)
