"""Results that take long to write: the writing worker shows progress to the heartbeat."""

import pytest

from worker_process import eventually


@pytest.mark.long
@pytest.mark.parametrize("result_format", ["GEOPARQUET", "GEOJSON"])
def test_result_is_delivered_when_it_takes_longer_than_tile_timeout(new_trial, result_format):
    stall_s, features = 10, 12_000
    trial = new_trial(TILE_STALL_S=str(stall_s))
    model = trial.model(features_per_tile=dict.fromkeys(range(16), features))
    request = trial.request(model, "one")
    request["outputs"] = [{**request["outputs"][0], "format": result_format}]
    job_id = trial.submit(request)
    with trial.fleet.worker() as worker:
        eventually(lambda: worker.exit_code is not None or not trial.running() or trial.site.listen(1), 100.0)
        assert worker.exit_code is None
    bucket = trial.site.data_plane.result_bucket
    objects = trial.site.client("s3").list_objects_v2(Bucket=bucket, Prefix=f"{job_id}/")["Contents"]
    assert [entry["Size"] > 1000 for entry in objects] == [True]
