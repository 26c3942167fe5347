"""Jobs with ``imageProcessorInput``, from the request to the features: where they are, and what was planned."""

import math
from collections import Counter

import numpy as np
import pytest
import shapely
from osgeo import osr

from aws.osml.model_runner.common.typing import ImageDimensions, ImageFormats, ImageRegion
from aws.osml.model_runner.database.job_table import JobItem
from aws.osml.model_runner.pipeline.region_run import RegionProgress
from aws.osml.model_runner.raster import tile_parts, write_geotiff
from aws.osml.model_runner.tile_worker import VariableOverlapTilingStrategy
from worker_in_process import UTM_31N

# Half a metre, turned by 30 degrees.
TURNED = (500_000.0, 0.433, 0.25, 5_400_000.0, 0.25, -0.433)
WIDTH, HEIGHT = 1203, 907
TILE_PX, OVERLAP_PX = 128, 20


@pytest.fixture(scope="module")
def turned_image(tmp_path_factory):
    path = tmp_path_factory.mktemp("turned") / "image.tif"
    pixels = np.random.default_rng(3).integers(200, 1800, (4, HEIGHT, WIDTH), dtype=np.uint16)
    write_geotiff(path, pixels, TURNED, epsg=32631)
    return path


def to_lonlat(pixels):
    """Return longitude and latitude of pixels by GDAL's own transformation."""
    utm, wgs84 = osr.SpatialReference(), osr.SpatialReference()
    utm.ImportFromEPSG(32631)
    wgs84.ImportFromEPSG(4326)
    for system in (utm, wgs84):
        system.SetAxisMappingStrategy(osr.OAMS_TRADITIONAL_GIS_ORDER)
    x, y = np.transpose(pixels)
    east = TURNED[0] + TURNED[1] * x + TURNED[2] * y
    north = TURNED[3] + TURNED[4] * x + TURNED[5] * y
    places = osr.CoordinateTransformation(utm, wgs84).TransformPoints(list(zip(east, north, strict=True)))
    return np.array(places)[:, :2]


def planned_middles(scale, roi=None):
    """Return the middles, in image pixels, of all tiles that touch ``roi``; the plan is made here."""
    size = ImageDimensions(math.floor(WIDTH * scale + 0.5), math.floor(HEIGHT * scale + 0.5))
    strategy, overlap = VariableOverlapTilingStrategy(), ImageDimensions(OVERLAP_PX, OVERLAP_PX)
    tile_size = ImageDimensions(TILE_PX, TILE_PX)
    bounds = ImageRegion.of(((0, 0), size))
    if roi is not None:
        left, top, right, bottom = (side * scale for side in roi.bounds)
        bounds = ImageRegion.of(
            (
                (math.floor(top), math.floor(left)),
                (math.ceil(right) - math.floor(left), math.ceil(bottom) - math.floor(top)),
            )
        )
    regions = strategy.compute_regions(bounds, ImageDimensions(512, 512), tile_size, overlap)
    tiles = [tile for region in regions for tile in strategy.compute_tiles(region, tile_size, overlap)]
    boxes = [
        shapely.box(tile.origin.col / scale, tile.origin.row / scale, tile.right / scale, tile.bottom / scale)
        for tile in tiles
    ]
    return [box.centroid.coords[0] for box in boxes if roi is None or box.intersection(roi).area > 1e-6]


def run(worker, image, model, **changes):
    request = worker.request(
        image,
        model.invocations_url,
        imageProcessorTileSize=TILE_PX,
        imageProcessorTileOverlap=OVERLAP_PX,
        imageProcessorTileFormat="GTIFF",
        **changes,
    )
    worker.image_handler.process_image_request(request)
    worker.work_off()
    return worker.jobs.get_image_request(request.image_id), worker.result("job")


def middles_of(features):
    boxes = np.array([feature["properties"]["imageBBox"] for feature in features])
    return (boxes[:, :2] + boxes[:, 2:]) / 2


@pytest.mark.parametrize("scale", [0.13, 0.37, 1.0])
def test_features_are_in_pixels_of_image_and_on_their_place(worker, turned_image, model_server, scale):
    asked = {"bands": [3], "scale": scale, "stretch": {"type": "PERCENTILE"}, "pixelType": "UINT8"}
    job, features = run(worker, turned_image, model_server("centerpoint"), imageProcessorInput=asked)
    expected, found = np.array(planned_middles(scale)), middles_of(features)
    assert job.image_status == "SUCCESS"
    assert (job.width, job.height) == (WIDTH, HEIGHT)
    assert len(features) == len(expected) == job.tile_count
    distances = np.linalg.norm(found[:, None] - expected, axis=2)
    assert distances.min(axis=0).max() < 0.01
    properties = [feature["properties"] for feature in features]
    places = np.array([[item["center_longitude"], item["center_latitude"]] for item in properties])
    off_m = (places - to_lonlat(found)) * (111_320 * math.cos(math.radians(48.7)), 111_132)
    assert np.linalg.norm(off_m, axis=1).max() < 0.05 * 0.5
    for item, middle in zip(properties, found, strict=True):
        (row, col), (width, height) = item["inferenceMetadata"]["tile"]
        assert (col + width / 2, row + height / 2) == pytest.approx(middle, abs=1.01)


def test_region_of_interest_chooses_tiles_of_scaled_plan(worker, turned_image, model_server):
    scale, roi = 0.37, shapely.Polygon([(300, 200), (900, 260), (700, 700)])
    # Straight lines in degrees are straight in pixels here, to a hundredth of a pixel.
    wkt = shapely.Polygon(to_lonlat(np.array(roi.exterior.coords))).wkt
    asked = {"bands": [1, 2, 3], "scale": scale}
    model = model_server("centerpoint")
    job, features = run(worker, turned_image, model, imageProcessorInput=asked, regionOfInterest=wkt)
    expected = np.array(planned_middles(scale, roi))
    assert job.image_status == "SUCCESS"
    assert len(features) == len(expected) == job.tile_count
    assert np.linalg.norm(middles_of(features)[:, None] - expected, axis=2).min(axis=0).max() < 0.01


@pytest.mark.parametrize("merge", ["STRONGEST", "UNION"])
def test_objects_on_seams_of_scaled_plan_are_delivered_once(worker, tmp_path, model_server, merge):
    rng = np.random.default_rng(7)
    scene = rng.normal(400, 5, (5, 800, 1000))
    scene[1] += 300  # water is blue
    ships = [(row, col) for row in range(30, 760, 90) for col in range(25, 940, 110)]
    for row, col in ships:
        scene[:, row : row + 12, col : col + 36] = 1800
    image = tmp_path / "ships.tif"
    write_geotiff(image, scene.astype(np.uint16), UTM_31N, epsg=32631)
    stretch = {"type": "MINMAX", "min": 300, "max": 1800, "per": "ALL"}
    asked = {"bands": [3, 5, 2], "stretch": stretch, "pixelType": "UINT8", "gsd": 1.0, "resampling": "AVERAGE"}
    step = {"step": "FEATURE_DISTILLATION", "algorithm": {"algorithmType": "SEAM", "merge": merge}}
    model = model_server("bright-objects")
    job, features = run(worker, image, model, imageProcessorInput=asked, postProcessing=[step])
    rings = np.array([feature["properties"]["imageGeometry"]["coordinates"][0][:4] for feature in features])
    middles = [(col + 18, row + 6) for row, col in ships]
    assert job.image_status == "SUCCESS"
    assert (job.features_stored or 0) > len(features) == len(ships)
    assert np.linalg.norm(rings.mean(axis=1)[:, None] - middles, axis=2).min(axis=0).max() < 1.1
    assert np.abs(np.ptp(rings[:, :, 0], axis=1) - 36).max() < 3


def test_rows_of_prepared_job_keep_its_input_and_are_not_readable_for_earlier_versions(worker, turned_image, clock):
    asked = {"bands": [1], "scale": 0.5}
    request = worker.request(turned_image, "http://127.0.0.1:9/invocations", imageProcessorInput=asked)
    worker.image_handler.accept(request)
    stored = worker.jobs.get_image_request(request.image_id)
    (opened,) = worker.outstanding_jobs.open_rows()
    put = JobItem.from_row(JobItem.from_image_request(request).to_put())
    assert opened.request.tile_format == request.tile_format
    for found in (stored.image_request(), put.image_request(), worker.jobs.request_of(stored)):
        assert (found.processor_input, found.tile_format) == (asked, request.tile_format)
    *_, regions = worker.image_handler.load_image_request(put, None)
    assert max(region.right for region in regions) == math.floor(WIDTH / 2 + 0.5)
    # Earlier versions read these fields as ``ImageFormats(text)``.
    row = worker.jobs.read({"image_id": request.image_id})
    key = {"endpoint_id": request.model_name, "job_id": request.job_id}
    payload = worker.outstanding_jobs.read(key)["request_payload"]
    for text in (row["tile_format"], payload["tile_format"], request.to_item()["tile_format"]):
        with pytest.raises(ValueError, match="PREPARED:"):
            ImageFormats(text)


def test_each_part_of_image_that_tile_is_made_from_is_sign_of_life(worker, turned_image, model_server, monkeypatch):
    lives, record_life = Counter(), RegionProgress.record_life

    def counted(run, tile=None):
        lives[None if tile is None else tile.index] += 1
        record_life(run, tile)

    monkeypatch.setattr(RegionProgress, "record_life", counted)
    monkeypatch.setattr(tile_parts, "MAX_PART_BYTES", 40_000)
    job, _ = run(worker, turned_image, model_server("centerpoint"), imageProcessorInput={"bands": [3], "scale": 0.1})
    assert job.image_status == "SUCCESS"
    # The only tile is made from 2 MB; one sign comes from its call.
    assert job.tile_count == 1
    assert lives[0] > 30
