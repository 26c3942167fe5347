"""T5, T6, T10, T20: messages come twice, late, early, not at all, or mean nothing."""

import json
import random
import signal
import statistics
import time

import pytest

from faults.test_killed_and_paused import result
from faults.trial import LEASE_S
from worker_process import eventually


@pytest.mark.long
def test_every_message_comes_three_times_and_too_early(trial):
    """T5. Half of the calls that extend visibility fail, so a message comes again while a worker processes it."""
    model = trial.model(latency_ms=50)
    request = trial.request(model, "small")
    for _ in range(3):
        trial.submit(request)
    url = trial.site.data_plane.environment["REGION_QUEUE"]
    trial.site.client("sqs").set_queue_attributes(QueueUrl=url, Attributes={"VisibilityTimeout": "1"})
    rules = (
        {"on": "A4-send", "do": "repeat"},
        {"on": "hide", "do": "refuse", "code": "InternalError", "status": 500, "chance": 0.5},
    )
    with trial.fleet.worker(*rules), trial.fleet.worker(*rules):
        trial.wait()
        before = result(trial, request["jobId"])
        time.sleep(1.0)
        trial.site.submit(request)
        trial.site.wait_for_end(request["jobId"], count=2)
    # An hour later, by the clock of the worker that gets it.
    with trial.fleet.worker(clock_ahead_s=3600.0):
        trial.site.submit(request)
        trial.site.wait_for_end(request["jobId"], count=3)
        books = trial.check()
    assert result(trial, request["jobId"]) == before
    assert trial.calls_per_tile(books) <= 2.0


@pytest.mark.long
def test_region_message_is_sent_again_when_it_was_lost(trial):
    """T6."""
    model = trial.model(latency_ms=50)
    trial.submit(trial.request(model, "small"))
    # The planner dies when all is sent, and nothing claimed: other threads of it would not wait for that.
    planner = trial.fleet.start({"on": "R1", "do": "delay", "seconds": 60}, {"on": "A4-planned", "do": "die_after"})
    planner.wait()
    url = trial.site.data_plane.environment["REGION_QUEUE"]
    trial.site.client("sqs").purge_queue(QueueUrl=url)
    purged = time.monotonic()
    with trial.fleet.worker() as worker:
        trial.wait()
        assert time.monotonic() - purged <= 30
        assert worker.log_text().count("region.sent_again") >= 4
        trial.check()


@pytest.mark.long
def test_invalid_message_is_dead_lettered_and_delays_no_job(trial):
    """T10."""
    rng = random.Random(1)
    model = trial.model()
    good = [trial.request(model, "one") for _ in range(10)]
    bad = [fuzzed(rng, good[0], number) for number in range(1000)]
    with trial.fleet.worker() as first, trial.fleet.worker() as second:
        alone = [trial.submit(trial.request(model, "one")) for _ in good]
        trial.wait()
        for number, body in enumerate(bad):
            trial.site.submit(body)
            if number % (len(bad) // len(good)) == 0:
                trial.submit(good[number * len(good) // len(bad)])
        trial.wait(patience_s=180.0)
        eventually(lambda: trial.site.messages_in("IMAGE_QUEUE") == 0, 180.0)
        aside = trial.site.drain("IMAGE_DLQ")
        books = trial.check()
        assert first.exit_code is second.exit_code is None
    assert sorted(aside) == sorted(bad)
    assert median_s(books, [request["jobId"] for request in good]) <= 1.2 * median_s(books, alone) + 0.5


def median_s(books, job_ids):
    """Return how long jobs took from their acceptance to their end."""
    images = [books.images[job_id] for job_id in job_ids]
    return statistics.median(float(image["end_time"] - image["start_time"]) / 1000 for image in images)


def fuzzed(rng, good, number):
    """Return a message that is not a valid request: cut off, not JSON, or with one wrong field."""
    text = json.dumps(good | {"jobId": f"fuzz-{number}"})
    match rng.randrange(4):
        case 0:
            return text[: rng.randrange(1, len(text) - 1)]
        case 1:
            return "".join(rng.choices('{}[]":,abc0189 \n', k=rng.randrange(1, 200)))
        case 2:
            field = rng.choice(["imageUrls", "outputs", "imageProcessor", "imageProcessorTileSize"])
            # A size that is null is the default one.
            nothing = -2 if field == "imageProcessorTileSize" else None
            wrong = rng.choice([nothing, -1, [], {}, "ftp://nowhere/a.tif", 10**30, True])
            return json.dumps(json.loads(text) | {field: wrong})
        case _:
            document = json.loads(text)
            del document[rng.choice(["jobId", "imageUrls", "imageProcessor", "outputs"])]
            return json.dumps(document)


@pytest.mark.parametrize("is_row_gone", [False, pytest.param(True, marks=pytest.mark.long)], ids=["ended", "expired"])
def test_late_message_of_job_that_is_over_is_deleted(trial, is_row_gone):
    """T20."""
    model = trial.model()
    request = trial.request(model, "one")
    trial.submit(request)
    sqs, queue = trial.site.client("sqs"), trial.site.data_plane.environment["REGION_QUEUE"]
    planner = trial.fleet.start({"on": "R1", "do": "die_before"})
    planner.wait()
    (message,) = eventually(lambda: sqs.receive_message(QueueUrl=queue, WaitTimeSeconds=1).get("Messages"))
    with trial.fleet.worker():
        trial.wait()
        trial.check()
        rows = protocol_rows(trial)
        if is_row_gone:
            expire(trial)
            rows = protocol_rows(trial)
        sqs.send_message(QueueUrl=queue, MessageBody=message["Body"])
        eventually(lambda: trial.site.messages_in("REGION_QUEUE") == 0)
        assert protocol_rows(trial) == rows
        assert trial.site.messages_in("REGION_DLQ") == 0


@pytest.mark.parametrize(
    "write", ["G3", *(pytest.param(write, marks=pytest.mark.long) for write in ("R2", "R3", "G1", "G4"))]
)
def test_rows_that_expire_under_worker_are_not_brought_back(new_trial, write):
    """T20: the worker is asleep in a write while time to live deletes its rows."""
    trial = new_trial(REGION_LEASE_S="1", AGGREGATION_LEASE_S="1")
    model = trial.model(latency_ms=200)
    trial.site.submit(trial.request(model, "one"))
    sleeper = trial.fleet.start({"on": write, "do": "stop_before", "times": 1})
    eventually(lambda: sleeper.is_stopped)
    expire(trial)
    sleeper.send(signal.SIGCONT)
    trial.wait_for_fault(2)
    time.sleep(LEASE_S)
    images, regions = protocol_rows(trial)[:2]
    assert (images, regions) == ([], [])
    eventually(lambda: not trial.site.open_jobs())
    trial.fleet.end_all()


def protocol_rows(trial):
    return [
        sorted(trial.site.rows(table), key=repr) for table in ("JOB_TABLE", "REGION_REQUEST_TABLE", "FEATURE_TABLE")
    ]


def expire(trial):
    """Delete every row of images, regions and features, as time to live does."""
    keys = {
        "JOB_TABLE": ("image_id",),
        "REGION_REQUEST_TABLE": ("image_id", "region_id"),
        "FEATURE_TABLE": ("hash_key", "range_key"),
    }
    for table, names in keys.items():
        for row in trial.site.rows(table):
            name = trial.site.data_plane.environment[table]
            trial.site.client("dynamodb").delete_item(TableName=name, Key={key: row[key] for key in names})
