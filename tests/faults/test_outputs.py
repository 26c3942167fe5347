"""T13, T14, T16: Kinesis, S3 and SNS refuse in part, for a while, and for good."""

import json
import re
import signal
import time

import pytest

from worker_process import eventually


@pytest.fixture
def outage(tmp_path):
    """A file: rules that hold ``while`` it exists end when it is deleted."""
    path = tmp_path / "outage"
    path.touch()
    return path


def test_stream_that_refuses_records_and_worker_that_dies_lose_none(trial, is_long):
    """T13: a third of the records is refused at each call, and two workers die right after a batch."""
    model = trial.model()
    image, batch = ("full", 50) if is_long else ("small", 20)
    request = trial.request(model, image)
    request["outputs"][1]["batchSize"] = batch
    trial.submit(request)
    refusing = {"on": "Kinesis", "do": "partly", "share": 0.3}
    for death in ("die_after", "die_before"):
        trial.fleet.start({"on": "Kinesis", "do": death, "nth": 2, "times": 1}, refusing).wait()
    with trial.fleet.worker(refusing):
        trial.wait(patience_s=90.0)
        books = trial.check()
    features = len({record["properties"]["feature_id"] for record in books.records[request["jobId"]]})
    assert 1 <= books.copies() <= 1 + 2 * batch / features


@pytest.mark.long
def test_feature_that_no_record_holds_makes_job_partial_and_is_named(trial):
    """T13. S3 has it all the same."""
    model = trial.model(bytes_per_feature={5: 250_000}, features_per_tile={5: 1})
    request = trial.request(model, "one")
    trial.submit(request, ends="PARTIAL")
    # A stream's limit is 1 MiB at least, and no feature that the table holds is as long.
    with trial.fleet.worker({"on": "DescribeStreamSummary", "do": "limit", "kib": 100}):
        trial.wait()
        books = trial.check()
    (failed,) = books.images[request["jobId"]]["sink_errors"].values()
    image = books.images[request["jobId"]]
    missing = [json.loads(text) for tile in books.tiles[request["jobId"]] for text in tile["features"]]
    assert "S3" in " ".join(image["sinks_done"])
    streamed = {record["properties"]["feature_id"] for record in books.records[request["jobId"]]}
    assert len(streamed) == len(missing) - 1
    named = re.findall(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}", failed)
    assert len(named) == 1
    assert not streamed.intersection(named)


@pytest.mark.long
def test_bucket_that_is_away_for_while_is_waited_for(trial, outage):
    """T14."""
    model = trial.model()
    trial.submit(trial.request(model, "one"))
    rule = {"on": "S3", "do": "refuse", "code": "ServiceUnavailable", "status": 503, "while": str(outage)}
    with trial.fleet.worker(rule):
        # Longer than the tries of one call: then the output is tried again after 20 seconds.
        trial.wait_for_fault(6, on="S3")
        time.sleep(30)
        outage.unlink()
        trial.wait()
        trial.check()


@pytest.mark.parametrize(("outputs", "status"), [(2, "PARTIAL"), pytest.param(1, "FAILED", marks=pytest.mark.long)])
def test_bucket_that_refuses_for_good_ends_job_with_reason(trial, outputs, status):
    """T14: with the stream complete it is PARTIAL; where the bucket is the only output, FAILED."""
    model = trial.model()
    request = trial.request(model, "one")
    request["outputs"] = request["outputs"][:outputs]
    job_id = trial.submit(request, ends=status)
    begun = time.monotonic()
    with trial.fleet.worker({"on": "S3", "do": "refuse", "code": "AccessDenied", "status": 403}):
        trial.wait()
        assert time.monotonic() - begun <= 60
        trial.check()
    assert trial.site.data_plane.result_bucket in trial.site.last_event(job_id).message


@pytest.mark.long
def test_job_succeeds_when_status_topic_is_unavailable(trial, outage):
    """T16."""
    model = trial.model()
    job_id = trial.submit(trial.request(model, "small"))
    error = {"code": "InternalError", "status": 500}
    away = {"do": "refuse", "while": str(outage), **error}
    with trial.fleet.worker({"on": ["publish", "G4-publish"], **away}) as worker:
        (image,) = eventually(lambda: ended_images(trial))
        assert image["image_status"]["S"] == "SUCCESS"
        assert "status_outbox" in image
        assert trial.site.statuses(job_id) == []
        assert len(trial.site.open_jobs()) == 1
        outage.unlink()
        restored = time.monotonic()
        trial.wait()
        # Two sweeps of half a second, and the publishing that was under way when the topic came back.
        assert time.monotonic() - restored <= 30
        trial.check()
        assert worker.exit_code is None


def ended_images(trial):
    return [row for row in trial.site.rows("JOB_TABLE") if "end_time" in row]


@pytest.mark.parametrize("death", ["die_after", pytest.param("die_before", marks=pytest.mark.long)])
def test_job_ends_when_worker_dies_at_second_delivery(new_trial, outage, death):
    """D3: the bucket refuses until the job has ended, then its request is sent again."""
    trial = new_trial(REGION_LEASE_S="1", AGGREGATION_LEASE_S="1")
    model = trial.model()
    request = trial.request(model, "one")
    job_id = trial.submit(request, ends="PARTIAL")
    denied = {"on": "S3", "do": "refuse", "code": "AccessDenied", "status": 403, "while": str(outage)}
    with trial.fleet.worker(denied):
        trial.wait()
        eventually(lambda: not trial.site.open_jobs())
    outage.unlink()
    calls = model.stats()["requests"]
    trial.site.submit(request)
    assert trial.fleet.start({"on": "D3", "do": death}).wait() == -signal.SIGKILL
    with trial.fleet.worker():
        # The end before may be published twice.
        eventually(lambda: "SUCCESS" in trial.site.statuses(job_id))
        eventually(lambda: not trial.site.open_jobs())
    (image,) = ended_images(trial)
    assert (image["image_status"]["S"], image["generation"]["N"]) == ("SUCCESS", "1")
    assert sorted(image["sinks_done"]["SS"]) == ["0:S3", "1:Kinesis"]
    assert model.stats()["requests"] == calls
    ids = trial.site.stream_ids(job_id)
    assert len(trial.site.features(job_id)) == len(ids) == len(set(ids)), "the stream's records were not put again"
