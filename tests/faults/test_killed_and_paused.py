"""T1, T3, T9, T11, T18: workers are killed, paused, stopped, crashed by a tile, and stuck in a tile."""

import random
import signal
import time

import pytest

from aws.osml.model_runner.config import ServiceConfig
from faults.books import ALL_QUEUES
from faults.numbered_scene import TILE_PX
from faults.trial import LEASE_S
from worker_process import eventually

_KILLED = -signal.SIGKILL


@pytest.mark.long
@pytest.mark.timeout(300)
@pytest.mark.parametrize("seed", range(20))
def test_workers_are_killed_all_time(new_trial, seed):
    """T1. Workers are killed at random, and each is replaced."""
    trial, rng = new_trial(), random.Random(seed)
    # About as slow as the kills need to find workers at every stage.
    model = trial.model(latency_ms=400)
    trial.submit(trial.request(model, "full"))
    workers = [trial.fleet.start() for _ in range(3)]
    begun = time.monotonic()
    for _ in range(20):
        time.sleep(rng.uniform(1, 4))
        if not trial.site.open_jobs():
            break
        place = rng.randrange(len(workers))
        trial.kill(workers[place])
        workers[place] = trial.fleet.start()
    trial.wait(patience_s=180.0)
    assert time.monotonic() - begun <= 180
    books = trial.check()
    # Only calls that were in flight when a worker died are repeated, and few others.
    assert trial.calls_per_tile(books) <= 2.0


@pytest.mark.parametrize(
    "write",
    ["G3", *(pytest.param(write, marks=pytest.mark.long) for write in ("T1", "R3", "G1", "S3"))],
)
def test_worker_changes_no_row_when_it_was_paused_past_its_lease(new_trial, write):
    """T3."""
    trial = new_trial(REGION_LEASE_S="1", AGGREGATION_LEASE_S="1")
    model = trial.model(latency_ms=50)
    job_id = trial.submit(trial.request(model, "one"))
    sleeper = trial.fleet.start({"on": write, "do": "stop_before", "times": 1})
    eventually(lambda: sleeper.is_stopped)
    fell_asleep = time.monotonic()
    with trial.fleet.worker():
        trial.wait()
        time.sleep(max(0.0, 3 - (time.monotonic() - fell_asleep)))
        before = result(trial, job_id)
        slept_until = time.time()
        sleeper.send(signal.SIGCONT)
        trial.wait_for_fault(2)
        time.sleep(1.0)
        held = trial.fleet.writes("T1", "R2", "R3", "R2-release", "G1", "G2-done", "G3", pid=sleeper.pid)
        late = [write for write in held if write["sent"] > slept_until]
        assert {write["status"] for write in late} <= {400}
        if write != "S3":
            assert late, "what it held back when it was stopped went out late"
        assert result(trial, job_id) == before
        trial.check(empty=ALL_QUEUES - {"REGION_QUEUE"})
    trial.fleet.end_all()


def result(trial, job_id):
    """Return the ETag of a job's result."""
    bucket = trial.site.data_plane.result_bucket
    return trial.site.client("s3").head_object(Bucket=bucket, Key=f"{job_id}/{job_id}.geojson")["ETag"]


@pytest.mark.long
def test_other_tiles_succeed_when_tile_kills_its_worker(trial):
    """T9. The time that a verdict needs passes on the clocks of the workers that follow each other."""
    model = trial.model()
    poisoned = trial.request(model, "small")
    image = str(trial.images["small"])
    trial.submit(poisoned, ends="PARTIAL")
    others = trial.images["small"].with_name("healthy.tif")
    if not others.exists():
        others.write_bytes(trial.images["small"].read_bytes())
    healthy = [trial.submit(trial.request(model, str(others))) for _ in range(3)]
    ahead_s = 0.0
    while poisoned["jobId"] not in ended(trial):
        worker = trial.fleet.start(killer_tile=[image, 64, 128], clock_ahead_s=ahead_s)
        eventually(lambda worker=worker: worker.exit_code is not None or poisoned["jobId"] in ended(trial))
        ahead_s += 150.0
        assert trial.fleet.deaths() <= 8
    trial.wait()
    assert trial.fleet.deaths() >= 6
    assert {worker.exit_code for worker in trial.fleet.workers} == {-signal.SIGSEGV, None}
    books = trial.check()
    failed = [tile for tile in books.tiles[poisoned["jobId"]] if tile["tile_status"] == "FAILED"]
    assert [(tile["error_code"], list(map(int, tile["tile_bounds"][0]))) for tile in failed] == [
        ("ABANDONED", [64, 128])
    ]
    assert all(books.images[job_id]["image_status"] == "SUCCESS" for job_id in healthy)


def ended(trial):
    return {
        job_id for job_id in trial.jobs if {"SUCCESS", "PARTIAL", "FAILED"}.intersection(trial.site.statuses(job_id))
    }


@pytest.mark.parametrize("where", ["T1", *(pytest.param(write, marks=pytest.mark.long) for write in ("A3", "S3"))])
def test_work_is_released_when_worker_stops(trial, where):
    """T11, in a region, in planning and in delivery: the call that it is in takes two seconds more."""
    model = trial.model(latency_ms=200)
    job_id = trial.submit(trial.request(model, "small" if where == "T1" else "one"))
    worker = trial.fleet.start({"on": where, "do": "delay", "seconds": 2, "times": 1})
    trial.wait_for_fault()
    worker.send(signal.SIGTERM)
    assert worker.wait(20.0) == 0
    stopped = time.time()
    open_regions = [row for row in trial.site.rows("REGION_REQUEST_TABLE") if "end_time" not in row]
    assert {row["stalled_attempts"]["N"] for row in open_regions} <= {"0"}
    assert {row["lease_until"]["N"] for row in open_regions} <= {"0"}
    successor = trial.fleet.start()
    trial.wait(job_id)
    if open_regions:
        claims = [write["time"] for write in trial.fleet.writes("R1", pid=successor.pid) if write["status"] == 200]
        # The successor starts within those two seconds as well.
        assert min(claims) - stopped <= 2 + 1
    trial.check()


def test_second_signal_ends_worker_within_second(trial):
    """T11."""
    model = trial.model(latency_ms=3000)
    trial.submit(trial.request(model, "one", imageProcessorTileSize=4 * TILE_PX))
    worker = trial.fleet.start()
    eventually(lambda: model.stats()["in_flight"] > 0)
    worker.send(signal.SIGTERM)
    eventually(lambda: "worker.stopping" in worker.log_text())
    worker.send(signal.SIGTERM)
    assert worker.wait(1.0) == 128 + signal.SIGTERM
    trial.fleet.start()
    trial.wait()
    trial.check()


@pytest.mark.skipif("tile_stall_s" not in ServiceConfig.model_fields, reason="the watchdog is not built yet")
def test_worker_exits_when_tile_hangs(new_trial):
    """T18."""
    trial = new_trial(TILE_STALL_S="3")
    model = trial.model()
    trial.submit(trial.request(model, "one"))
    image = str(trial.images["one"])
    stuck = trial.fleet.start(stuck_tile=[image, 64, 128])
    trial.wait_for_fault(on="tile")
    began = time.time()
    assert stuck.wait(30.0) == 70
    renewals = [write["time"] - began for write in trial.fleet.writes("R2", pid=stuck.pid)]
    assert max(renewals, default=0.0) <= 3 + LEASE_S
    trial.fleet.start()
    trial.wait()
    trial.check()
