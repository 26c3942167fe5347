"""Jobs through a real worker process: from the message on the queue to features in S3 and Kinesis."""

import json
import shutil
import sys

import numpy as np
import pytest
from osgeo import gdal

from aws.osml.model_runner.cli import main
from aws.osml.model_runner.common.typing import ImageDimensions, ImageRegion
from aws.osml.model_runner.local.stack.child_process import ChildProcess
from aws.osml.model_runner.local.stack.data_plane import create_data_plane
from aws.osml.model_runner.local.stack.model_server import ModelServer, create_model
from aws.osml.model_runner.raster.pixels import decode_tile, write_geotiff
from aws.osml.model_runner.tile_worker import VariableOverlapTilingStrategy
from malformed_requests import MALFORMED
from raster_files import UTM_31N, translated, write_image
from worker_process import Site, eventually


@pytest.fixture(scope="module")
def image(tmp_path_factory):
    """A georeferenced image of 1200 x 900 pixels, off the equator in UTM zone 31."""
    path = tmp_path_factory.mktemp("images") / "scene.tif"
    pixels = np.random.default_rng(1).integers(0, 255, (3, 900, 1200), dtype=np.uint8)
    write_geotiff(path, pixels, (500_000.0, 0.5, 0.0, 5_400_000.0, 0.0, -0.5), epsg=32631)
    return path


@pytest.fixture
def site(emulator, data_plane, tmp_path):
    """A data plane without a worker, for tests that need one of their own."""
    return Site(emulator, data_plane, tmp_path)


@pytest.fixture(scope="module")
def busy_site(emulator, tmp_path_factory):
    """A data plane whose one worker takes the jobs of every test here, one after the other."""
    directory = tmp_path_factory.mktemp("worker-tests")
    busy_site = Site(emulator, create_data_plane(emulator.client, directory.name), directory)
    with busy_site.worker():
        yield busy_site


def test_job_delivers_each_feature_once_to_every_output(busy_site, image, model_server):
    model = model_server("flood", count=3)
    request = busy_site.request(str(image), model.invocations_url, postProcessing=_distillation("NONE"))
    job = request["jobId"]
    busy_site.submit(request)
    statuses = busy_site.wait_for_end(job)
    # A status that is published twice is published twice in a row.
    assert list(dict.fromkeys(statuses)) == ["STARTED", "IN_PROGRESS", "SUCCESS"]
    assert statuses[-1] == "SUCCESS"
    features = busy_site.features(job)
    tiles = 6 * 4
    assert len(features) == 3 * tiles
    assert len(set(busy_site.stream_ids(job))) == len(busy_site.stream_ids(job)) == 3 * tiles
    for feature in features:
        (x, y), *_ = feature["properties"]["imageGeometry"]["coordinates"][0]
        lon, lat = feature["geometry"]["coordinates"][0][0]
        assert 0 <= x <= 1200
        assert 0 <= y <= 900
        assert (2.99 < lon < 3.02, 48.74 < lat < 48.76) == (True, True)
        assert feature["properties"]["class"] == feature["properties"]["featureClasses"][0]["iri"]
        assert feature["id"]
        assert feature["properties"]["inferenceMetadata"]["jobId"] == job
        assert "image_id" not in feature["properties"]
    busy_site.check_books(job)
    assert [busy_site.messages_in(queue) for queue in ("IMAGE_QUEUE", "REGION_DLQ")] == [0, 0]
    assert not [body for body in busy_site.drain("IMAGE_DLQ") if job in body]


def test_image_in_s3_and_one_region(busy_site, tmp_path, model_server):
    model, bucket = model_server("centerpoint"), busy_site.data_plane.result_bucket
    image = tmp_path / "small.tif"
    write_geotiff(image, np.zeros((1, 400, 500), np.uint8), (0.0, 1e-5, 0.0, 0.0, 0.0, -1e-5), epsg=4326)
    busy_site.client("s3").upload_file(str(image), bucket, "in/small.tif")
    request = busy_site.request(f"s3://{bucket}/in/small.tif", model.invocations_url)
    busy_site.submit(request)
    assert busy_site.wait_for_end(request["jobId"])[-1] == "SUCCESS"
    assert len(busy_site.features(request["jobId"])) == 3 * 2
    busy_site.check_books(request["jobId"])


BANDS = [5, 3, 2]


@pytest.fixture(scope="module")
def eight_bands(tmp_path_factory):
    """A scene of eight bands of 16 bits with 14 ships, as GeoTIFF and as NITF, and its values."""
    scene = np.random.default_rng(4).normal(400, 6, (8, 500, 700))
    scene[1] += 200  # water is blue
    # At even places, so that half as large pixels have no mixed edges.
    for row, col in (2 * np.random.default_rng(5).integers(10, 230, (14, 2))).tolist():
        scene[:, row : row + 8, col : col + 26] = np.arange(1500, 2300, 100)[:, None, None]
    values, folder = scene.astype(np.uint16), tmp_path_factory.mktemp("eight")
    place = {"geo_transform": UTM_31N, "epsg": 32631}
    tiff = write_image(folder / "raw.tif", values, options=("TILED=YES",), **place)
    nitf = write_image(folder / "raw.ntf", values, "NITF", ("ICORDS=N",), **place)
    return {"tif": tiff, "ntf": nitf}, values


class RecordingModel(ModelServer):
    """A model that keeps the tiles that it gets."""

    def __init__(self):
        super().__init__(create_model("bright-objects"))
        self.tiles = []

    def _invoke(self, request):
        self.tiles.append(decode_tile(request.body))
        return super()._invoke(request)


def ended_job(site, image, **changes):
    """Return the features of a job for the image, the tiles of its model, and the row of the job."""
    with RecordingModel() as model:
        request = site.request(str(image), model.invocations_url, imageProcessorTileFormat="PNG", **changes)
        site.submit(request)
        assert site.wait_for_end(request["jobId"])[-1] == "SUCCESS"
    site.check_books(request["jobId"])
    row = next(row for row in site.rows("JOB_TABLE") if row["image_id"]["S"].startswith(request["jobId"]))
    return site.features(request["jobId"]), model.tiles, row


def outlines(features, scale=1.0):
    """Return the corners of each feature in pixels of the image, in a fixed order."""
    rings = [feature["properties"]["imageGeometry"]["coordinates"][0] for feature in features]
    return np.array(sorted((np.array(rings) / scale).round(6).tolist()))


def planned_tiles(width, height):
    """Return the slices of each tile of the site's plan."""
    strategy, size, overlap = VariableOverlapTilingStrategy(), ImageDimensions(256, 256), ImageDimensions(32, 32)
    bounds = ImageRegion.of(((0, 0), (width, height)))
    regions = strategy.compute_regions(bounds, ImageDimensions(512, 512), size, overlap)
    tiles = {tile for region in regions for tile in strategy.compute_tiles(region, size, overlap)}
    return [(slice(row, row + high), slice(col, col + wide)) for (row, col), (wide, high) in tiles]


@pytest.mark.parametrize("scale", [1.0, 0.5])
@pytest.mark.parametrize("kind", ["tif", "ntf"])
def test_rgb_model_finds_same_objects_in_16_bit_image(busy_site, eight_bands, tmp_path, kind, scale):
    images, values = eight_bands
    chosen = values[[band - 1 for band in BANDS]].astype(float)
    limits = np.percentile(chosen, [2, 99.9]).tolist()
    # By hand: GDAL makes the pixels smaller, then stretches them.
    small = translated(
        images["tif"],
        tmp_path / "small.tif",
        bandList=BANDS,
        outputType=gdal.GDT_Float64,
        widthPct=100 * scale,
        heightPct=100 * scale,
        resampleAlg="average",
    )
    levels = [[*limits, 0, 255]] * 3
    made = translated(small, tmp_path / "made.tif", format="COG", outputType=gdal.GDT_Byte, scaleParams=levels)
    by_hand, *_ = ended_job(busy_site, made)
    stretch = {"type": "PERCENTILE", "lower": 2, "upper": 99.9, "per": "ALL"}
    asked = {"bands": BANDS, "stretch": stretch, "pixelType": "UINT8", "scale": scale, "resampling": "AVERAGE"}
    found, tiles, row = ended_job(busy_site, images[kind], imageProcessorInput=asked)
    assert len(by_hand) >= 10
    assert outlines(found) == pytest.approx(outlines(by_hand, scale), abs=0.01)
    assert json.loads(row["pixel_preparation"]["S"])["ranges"] == [limits] * 3
    # Each tile is that of NumPy, to one grey level, and neighbours share the bytes of their overlap.
    step = round(1 / scale)
    averaged = chosen.reshape(3, 500 // step, step, 700 // step, step).mean(axis=(2, 4))
    expected = np.clip((averaged - limits[0]) / (limits[1] - limits[0]), 0, 1) * 255
    mosaic, count = np.full(expected.shape, -1), 0
    places = planned_tiles(*expected.shape[:0:-1])
    assert len(tiles) == len(places)
    for place in places:
        near = [
            np.abs(tile - expected[:, *place]).max() if tile.shape == expected[:, *place].shape else np.inf
            for tile in tiles
        ]
        tile = tiles.pop(int(np.argmin(near)))
        assert min(near) <= 1
        seen = mosaic[:, *place]
        count += int((seen >= 0).sum())
        assert np.array_equal(seen[seen >= 0], tile[seen >= 0])
        seen[:] = tile
    assert mosaic.min() >= 0
    assert count > 3 * 32 * 200


def test_image_fails_before_model_call_when_input_does_not_fit(busy_site, image, model_server):
    model = model_server("centerpoint")
    request = busy_site.request(str(image), model.invocations_url, imageProcessorInput={"bands": ["NIR", 4]})
    busy_site.submit(request)
    assert busy_site.wait_for_end(request["jobId"])[-1] == "FAILED"
    message = busy_site.last_event(request["jobId"]).message
    assert 'imageProcessorInput.bands[0]="NIR": a band of the image: 1 (Red), 2 (Green), 3 (Blue)' in message
    assert "imageProcessorInput.bands[1]=4" in message
    assert model.stats()["requests"] == 0


def test_malformed_requests_are_dead_lettered_and_next_job_runs(site, image, model_server):
    model = model_server("centerpoint")
    # A message of over 256 KiB is refused by the queue itself.
    bad = [(name, body, fields) for name, body, fields in MALFORMED if body and len(body.encode()) < 250_000]
    bad = [case for case in bad if _is_utf8(case[1])]
    assert len(bad) >= 40
    request = site.request(str(image), model.invocations_url)
    with site.worker():
        for _, body, _ in bad:
            site.submit(body)
        site.submit(request)
        assert site.wait_for_end(request["jobId"])[-1] == "SUCCESS"
        eventually(lambda: len(_failures(site)) >= len(bad))
        eventually(lambda: site.messages_in("IMAGE_QUEUE") == 0)
    assert sorted(site.drain("IMAGE_DLQ")) == sorted(body for _, body, _ in bad)
    told = _failures(site)
    assert len(told) == len(bad)
    for name, _, fields in bad:
        assert any(all(field in event.message for field in fields) for event in told), name


def test_repeated_request_is_one_job_and_reused_id_is_refused(busy_site, image, model_server):
    model = model_server("centerpoint")
    request = busy_site.request(str(image), model.invocations_url)
    other = request | {"imageProcessorTileSize": 128}
    for _ in range(3):
        busy_site.submit(request)
    busy_site.wait_for_end(request["jobId"])
    busy_site.submit(other)
    eventually(lambda: "FAILED" in busy_site.statuses(request["jobId"]))
    # Other tests' jobs fail on this site too.
    aside: list[str] = []
    eventually(lambda: aside.extend(busy_site.drain("IMAGE_DLQ")) or json.dumps(other) in aside)
    assert [body for body in aside if request["jobId"] in body] == [json.dumps(other)]
    failures = [event for event in _failures(busy_site) if event.attributes["job_id"] == request["jobId"]]
    assert ["JOB_ID_REUSED" in event.message for event in failures] == [True]
    assert len(busy_site.features(request["jobId"])) == 24
    assert model.stats()["requests"] == 24


def test_each_image_of_request_has_own_result(busy_site, image, tmp_path, model_server):
    model = model_server("centerpoint")
    second = tmp_path / "other" / image.name
    second.parent.mkdir()
    second.write_bytes(image.read_bytes())
    request = busy_site.request(str(image), model.invocations_url, imageUrls=[str(image), str(second)])
    busy_site.submit(request)
    eventually(lambda: len(_ended_images(busy_site, request["jobId"])) == 2)
    bucket, prefix = busy_site.data_plane.result_bucket, f"{request['jobId']}/{request['jobId']}/"
    keys = [item["Key"] for item in busy_site.client("s3").list_objects_v2(Bucket=bucket, Prefix=prefix)["Contents"]]
    assert keys == [f"{prefix}scene.tif-2.geojson", f"{prefix}scene.tif.geojson"]
    eventually(lambda: not busy_site.open_jobs(request["jobId"]))


def test_region_of_interest_limits_tiles(busy_site, image, model_server):
    model = model_server("centerpoint")
    # The upper left quarter, in degrees.
    roi = "POLYGON ((2.99 48.76, 3.00367 48.76, 3.00367 48.75165, 2.99 48.75165, 2.99 48.76))"
    request = busy_site.request(str(image), model.invocations_url, regionOfInterest=roi)
    busy_site.submit(request)
    assert busy_site.wait_for_end(request["jobId"])[-1] == "SUCCESS"
    assert 0 < model.stats()["requests"] < 24
    busy_site.check_books(request["jobId"])


@pytest.mark.parametrize(("algorithm", "expected"), [("NMS", 1), ("SOFT_NMS", 1), ("NONE", 2)])
def test_post_processing_follows_request(busy_site, image, model_server, algorithm, expected):
    """Two tiles of an image as wide as one and a bit see almost the same pixels, and report the same middle twice."""
    model = model_server("centerpoint")
    narrow = image.with_name(f"{algorithm}.tif")
    write_geotiff(narrow, np.zeros((1, 256, 258), np.uint8), (0.0, 0.1, 0.0, 0.0, 0.0, -0.1), epsg=4326)
    options = {"iouThreshold": 0.5} | ({"skipBoxThreshold": 0.9, "sigma": 0.1} if algorithm == "SOFT_NMS" else {})
    request = busy_site.request(str(narrow), model.invocations_url, postProcessing=_distillation(algorithm, **options))
    busy_site.submit(request)
    busy_site.wait_for_end(request["jobId"])
    assert len(busy_site.features(request["jobId"])) == expected


def test_job_is_partial_when_model_refuses_tiles(busy_site, image, model_server):
    model = model_server("failure", outcomes={"200": 0.6, "400": 0.4}, seed=3)
    request = busy_site.request(str(image), model.invocations_url)
    busy_site.submit(request)
    assert busy_site.wait_for_end(request["jobId"])[-1] == "PARTIAL"
    rows = [row for row in busy_site.rows("FEATURE_TABLE") if row["hash_key"]["S"].startswith(request["jobId"])]
    failed = [row for row in rows if row["tile_status"]["S"] == "FAILED"]
    assert {row["error_code"]["S"] for row in failed} == {"MODEL_4XX"}
    assert len(busy_site.features(request["jobId"])) == 24 - len(failed)
    busy_site.check_books(request["jobId"])


@pytest.mark.long
def test_partial_job_repeats_only_failed_tiles(busy_site, image, model_server):
    model = model_server("failure", outcomes={"200": 0.6, "400": 0.4}, seed=3)
    request = busy_site.request(str(image), model.invocations_url)
    expected_calls, missing, generations = 0, 24, 0
    while missing:
        generations += 1
        assert generations < 30
        busy_site.submit(request)
        expected_calls += missing
        eventually(lambda: model.stats()["requests"] >= expected_calls)  # noqa: B023 - asked before it changes
        eventually(lambda: not busy_site.open_jobs(request["jobId"]))
        ended = _ended_images(busy_site, request["jobId"])[0]
        missing = 24 - len(busy_site.features(request["jobId"]))
        assert model.stats()["requests"] == expected_calls
        assert ended == ("PARTIAL" if missing else "SUCCESS")
    assert generations > 2
    ids = busy_site.stream_ids(request["jobId"])
    assert len(set(ids)) == 24
    # A job that has succeeded stays as it is.
    told = busy_site.statuses(request["jobId"]).count("SUCCESS")
    busy_site.submit(request)
    eventually(lambda: busy_site.statuses(request["jobId"]).count("SUCCESS") > told)
    assert model.stats()["requests"] == expected_calls


def test_redrive_restarts_jobs_and_moves_dead_letters(busy_site, image, model_server, monkeypatch, capsys):
    model = model_server("failure", outcomes={"400": 1})
    request = busy_site.request(str(image), model.invocations_url)
    for name, value in busy_site.environment().items():
        monkeypatch.setenv(name, value)
    busy_site.submit(request)
    busy_site.wait_for_end(request["jobId"])
    eventually(lambda: not busy_site.open_jobs(request["jobId"]))
    model.model = create_model("centerpoint")
    assert main(["redrive", request["jobId"]]) == 0
    eventually(lambda: "SUCCESS" in busy_site.statuses(request["jobId"]))
    assert len(busy_site.features(request["jobId"])) == 24
    busy_site.drain("IMAGE_DLQ")
    before = len(_refusals(busy_site))
    busy_site.submit("{}")
    eventually(lambda: len(_refusals(busy_site)) == before + 1)
    # A message is dead-lettered before its refusal is published.
    assert busy_site.messages_in("IMAGE_DLQ") == 1
    assert main(["redrive", "--dead-letters"]) == 0
    eventually(lambda: len(_refusals(busy_site)) == before + 2)
    eventually(lambda: [busy_site.messages_in(queue) for queue in ("IMAGE_QUEUE", "IMAGE_DLQ")] == [0, 1])
    assert main(["redrive", request["jobId"], "no-such-job"]) == 1
    said = capsys.readouterr()
    assert "IMAGE_DLQ: 1 messages moved back" in said.out
    assert "its status is SUCCESS" in said.out
    assert "there is no job no-such-job" in said.err


@pytest.mark.long
def test_redrive_delivers_elsewhere_when_bucket_went_missing(site, image, model_server, monkeypatch, capsys, tmp_path):
    model = model_server("failure", outcomes={"200": 1}, latency_ms=(200, 300))
    s3, bucket = site.client("s3"), "went-missing-under-way"
    s3.create_bucket(Bucket=bucket, CreateBucketConfiguration={"LocationConstraint": "us-west-2"})
    scene = shutil.copy(image, tmp_path / "scene.tif")
    request = site.request(str(scene), model.invocations_url)
    request["outputs"][0]["bucket"] = bucket
    job_id = request["jobId"]
    for name, value in site.environment().items():
        monkeypatch.setenv(name, value)
    with site.worker():
        site.submit(request)
        eventually(lambda: model.stats()["requests"])
        s3.delete_bucket(Bucket=bucket)
        assert site.wait_for_end(job_id)[-1] == "PARTIAL"
        eventually(lambda: not site.open_jobs())
        scene.unlink()
        assert main(["redrive", job_id, "--output", "my-bucket/p"]) == 1
        assert main(["redrive", job_id, "--output", f"s3://{site.data_plane.result_bucket}/{job_id}/"]) == 0
        eventually(lambda: "SUCCESS" in site.statuses(job_id))
    said = capsys.readouterr()
    assert "--output=my-bucket/p: s3://BUCKET/PREFIX" in said.err
    assert "outputs are written, no tile is done again" in said.out
    assert len(site.features(job_id)) == 24
    assert len(site.stream_ids(job_id)) == 24
    assert model.stats()["requests"] == 24


def test_job_fails_when_model_returns_garbage(busy_site, image, model_server):
    model = model_server("failure", outcomes={"garbage": 1})
    request = busy_site.request(str(image), model.invocations_url)
    busy_site.submit(request)
    assert busy_site.wait_for_end(request["jobId"])[-1] == "FAILED"
    assert busy_site.features(request["jobId"]) == []
    busy_site.check_books(request["jobId"])


@pytest.mark.long
def test_job_succeeds_when_model_is_busy(busy_site, image, model_server):
    model = model_server("failure", outcomes={"200": 0.7, "503": 0.2, "429": 0.1}, seed=1)
    request = busy_site.request(str(image), model.invocations_url)
    busy_site.submit(request)
    assert busy_site.wait_for_end(request["jobId"])[-1] == "SUCCESS"
    assert model.stats()["requests"] > 24
    busy_site.check_books(request["jobId"])


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("s3://no-such-bucket/scene.tif", "no-such-bucket"),
        ("/no/such/file.tif", "/no/such/file.tif"),
    ],
)
def test_image_fails_with_reason_when_it_cannot_be_read(busy_site, model_server, url, reason):
    request = busy_site.request(url, model_server("centerpoint").invocations_url)
    busy_site.submit(request)
    assert list(dict.fromkeys(busy_site.wait_for_end(request["jobId"]))) == ["STARTED", "FAILED"]
    assert reason in busy_site.last_event(request["jobId"]).message
    eventually(lambda: not busy_site.open_jobs(request["jobId"]))


@pytest.mark.long
def test_files_are_refused_unless_configured(site, image, model_server):
    request = site.request(str(image), model_server("centerpoint").invocations_url)
    with site.worker(IMAGE_SOURCES=""):
        site.submit(request)
        assert site.wait_for_end(request["jobId"]) == ["FAILED"]
    assert "imageUrls" in site.last_event(request["jobId"]).message
    assert site.drain("IMAGE_DLQ") == [json.dumps(request)]


@pytest.mark.long
def test_request_is_refused_before_model_call_when_output_is_missing(site, image, model_server):
    model = model_server("centerpoint")
    request = site.request(str(image), model.invocations_url)
    request["outputs"][0]["bucket"] = "nobody-has-this-bucket"
    with site.worker():
        site.submit(request)
        assert site.wait_for_end(request["jobId"]) == ["FAILED"]
        eventually(lambda: site.messages_in("IMAGE_DLQ") == 1)
    assert 'outputs[0].bucket="nobody-has-this-bucket"' in site.last_event(request["jobId"]).message
    assert site.drain("IMAGE_DLQ") == [json.dumps(request)]
    assert model.stats()["requests"] == 0
    assert site.rows("JOB_TABLE") == []


@pytest.mark.long
def test_worker_reports_all_problems_of_environment(site):
    environment = site.environment(WORKERS="many", IMAGE_QUEUE="not a url", REGION_SIZE="large")
    del environment["FEATURE_TABLE"]
    with pytest.raises(Exception, match="exit code 2") as failure, _serve(site, environment) as process:
        process.wait_until(lambda: None, timeout_s=30)
    for name in ("WORKERS", "IMAGE_QUEUE", "REGION_SIZE", "FEATURE_TABLE"):
        assert name in str(failure.value)


def _serve(site, environment):
    command = [sys.executable, "-m", "aws.osml.model_runner", "serve"]
    return ChildProcess.start("worker", command, environment, site.directory / "bad.log")


def _distillation(algorithm, **options):
    return [{"step": "FEATURE_DISTILLATION", "algorithm": {"algorithmType": algorithm, **options}}]


def _failures(site):
    site.statuses("")
    return [event for event in site.events if str(event.status) == "FAILED"]


def _refusals(site):
    """Return the failures that belong to no job. The failure of a job may be published twice, see ``wait_for_end``."""
    return [event for event in _failures(site) if event.attributes["job_id"] == "unknown"]


def _ended_images(site, job_id):
    """Return the status of each image of a job that has ended."""
    images = [row for row in site.rows("JOB_TABLE") if row.get("job_id", {}).get("S") == job_id]
    return [row["image_status"]["S"] for row in images if row["image_status"]["S"] in {"SUCCESS", "PARTIAL", "FAILED"}]


def _is_utf8(body):
    try:
        body.encode()
    except UnicodeEncodeError:
        return False
    return True
