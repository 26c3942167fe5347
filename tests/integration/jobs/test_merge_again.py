"""A job's features in every format, and merged again from its table: real workers, tables, buckets and files."""

import gzip
import io
import json

import geopandas
import pytest

from aws.osml.model_runner.api.post_processing import FeatureDistillationAlgorithmType
from aws.osml.model_runner.api.sink import OutputFormat
from aws.osml.model_runner.cli import main
from aws.osml.model_runner.cli.merge_command import ALGORITHMS, FORMATS
from aws.osml.model_runner.database import feature_table
from worker_in_process import write_scene

OVERLAP_PX = 64


def ended_job(worker, tmp_path, model_server, job_id, **changes):
    """Run a job whose model reports each bright thing of a scene once a tile; return its row."""
    scene = write_scene(tmp_path / "scene.tif")
    request = worker.request(
        scene, model_server("centerpoint").invocations_url, job_id, imageProcessorTileOverlap=OVERLAP_PX, **changes
    )
    worker.image_handler.process_image_request(request)
    worker.work_off()
    job = worker.jobs.find(request.image_id)
    assert job.image_status == "SUCCESS"
    return job


def body_of(worker, key):
    bucket = json.loads(worker.outputs)[0]["bucket"]
    answer = worker.clients.client("s3").get_object(Bucket=bucket, Key=key)
    return answer["ContentType"], answer["Body"].read()


def test_job_delivers_every_format(worker, tmp_path, model_server):
    (output,) = json.loads(worker.outputs)
    outputs = [
        output,
        output | {"format": "GEOJSONSEQ", "compression": "GZIP"},
        output | {"format": "GEOPARQUET"},
    ]
    ended_job(worker, tmp_path, model_server, "formats", outputs=outputs)
    kind, collection = body_of(worker, "out/formats.geojson")
    assert kind == "application/geo+json"
    features = json.loads(collection)["features"]
    kind, lines = body_of(worker, "out/formats.geojsonl.gz")
    assert kind == "application/gzip"
    assert [json.loads(line) for line in gzip.decompress(lines).splitlines()] == features
    kind, table = body_of(worker, "out/formats.parquet")
    assert kind == "application/vnd.apache.parquet"
    frame = geopandas.read_parquet(io.BytesIO(table))
    by_id = {one["properties"]["inferenceMetadata"]["featureId"]: one for one in features}
    assert set(frame["feature_id"]) == by_id.keys()
    for row in frame.itertuples():
        assert json.loads(row.properties) == by_id[row.feature_id]["properties"]
        assert row.geometry.__geo_interface__["type"] == by_id[row.feature_id]["geometry"]["type"]


def test_feature_names_its_tile_and_no_internal_property(worker, tmp_path, model_server):
    ended_job(worker, tmp_path, model_server, "origins")
    for one in worker.result("origins"):
        told = one["properties"]["inferenceMetadata"]
        (row, col), (width, height) = told["tile"]
        minx, miny, maxx, maxy = one["properties"]["imageBBox"]
        assert col <= minx <= maxx <= col + width
        assert row <= miny <= maxy <= row + height
        assert not any(name.startswith("_modelRunner") for name in one["properties"])


@pytest.fixture
def command(worker, monkeypatch, data_plane):
    """Run ``model-runner merge`` in the deployment of the test."""
    for name in ("JOB_TABLE", "FEATURE_TABLE", "WORK_BUCKET"):
        monkeypatch.setenv(name, data_plane.environment[name])

    def run(*arguments):
        return main(["merge", *map(str, arguments)])

    return run


def test_job_is_merged_again_without_its_model(worker, tmp_path, model_server, command, capsys):
    job = ended_job(worker, tmp_path, model_server, "again")
    delivered = worker.result("again")
    stored = sum(len(tile.features) for tile in worker.features.stored_tiles(job.image_id))
    assert command("again", "--output", tmp_path / "same") == 0
    assert json.loads((tmp_path / "same" / "again.geojson").read_bytes())["features"] == delivered
    assert command("again", "--algorithm", "NONE", "--format", "GEOJSONSEQ", "--gzip", "--output", tmp_path) == 0
    assert len(gzip.decompress((tmp_path / "again.geojsonl.gz").read_bytes()).splitlines()) == stored
    assert f"{len(delivered)} of {stored} features: {tmp_path / 'same' / 'again.geojson'}" in capsys.readouterr().out
    assert worker.jobs.find(job.image_id) == job


def test_merge_reads_tiles_from_work_bucket(worker, tmp_path, model_server, command, monkeypatch):
    monkeypatch.setattr(feature_table, "MAX_INLINE_BYTES", 0)
    job = ended_job(worker, tmp_path, model_server, "large")
    rows = [row for row in worker.features.scan() if row["hash_key"].startswith(f"{job.image_id}-")]
    assert any("blob_key" in row for row in rows)
    assert command("large", "--output", tmp_path) == 0
    assert (tmp_path / "large.geojson").read_bytes() == body_of(worker, "out/large.geojson")[1]


def test_merge_writes_to_bucket_but_never_over_first_result(worker, tmp_path, model_server, command, capsys):
    ended_job(worker, tmp_path, model_server, "beside")
    bucket = json.loads(worker.outputs)[0]["bucket"]
    assert command("beside", "--output", f"s3://{bucket}/merged") == 0
    assert body_of(worker, "merged/beside.geojson") == body_of(worker, "out/beside.geojson")
    assert command("beside", "--algorithm", "NONE", "--output", f"s3://{bucket}/out") == 2
    assert "has delivered its result there" in capsys.readouterr().err


def test_merge_reports_reason_when_job_cannot_be_merged(worker, tmp_path, model_server, command, capsys):
    assert command("no-such-job") == 1
    assert "there is no job no-such-job" in capsys.readouterr().err
    job = ended_job(worker, tmp_path, model_server, "expired")
    worker.jobs.update({"image_id": job.image_id}, "SET tile_success = :n", {":n": job.tile_success + 1})
    assert command("expired") == 1
    assert "features expire" in capsys.readouterr().err
    request = worker.request(write_scene(tmp_path / "open.tif"), "http://127.0.0.1:9/invocations", "open")
    worker.plan(request)
    assert command("open") == 1
    assert "the job open has not ended" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (("--threshold", 2), "threshold=2.0: a number of at most 1"),
        (("--format", "GEOPARQUET", "--gzip"), "GEOPARQUET is compressed in itself"),
    ],
)
def test_options_are_checked(command, capsys, arguments, complaint):
    assert command("job", *arguments) in (1, 2)
    assert complaint in capsys.readouterr().err


def test_command_offers_every_algorithm_and_format():
    assert set(ALGORITHMS) == set(FeatureDistillationAlgorithmType)
    assert set(FORMATS) == set(OutputFormat)
