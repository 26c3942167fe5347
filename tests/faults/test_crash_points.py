"""T2: a worker dies before and after each write of the protocol, and at each output."""

import signal

import pytest

from faults.books import ALL_QUEUES
from worker_process import eventually

_PLANNING = ("F0", "A0", "A1", "A2", "A3", "A4", "A4-send", "A4-planned")
_REGION = ("R1", "R2", "T1-blob", "T1", "R2-progress", "R2-release", "R3")
_DELIVERY = ("G1", "S3", "G2-done", "Kinesis", "G2-position", "G3", "G4-publish", "G4", "G5")
# The features of some tiles lie in the work bucket.
_LARGE = dict.fromkeys(range(0, 16, 3), 40_000)
_DEATHS = ("die_before", "die_after")
_KILLED = -signal.SIGKILL
_QUICK = {"REGION_LEASE_S": "1", "AGGREGATION_LEASE_S": "1"}


def die_at(trial, write, death):
    """Run a worker until it dies at a write; it has to come there."""
    # Calls of the worker that died last; from here on, what is in flight is this worker's.
    eventually(lambda: trial.models[0].stats()["in_flight"] == 0)
    worker = trial.fleet.start({"on": write, "do": death})
    if write == "R2-release":
        eventually(lambda: trial.models[0].stats()["in_flight"] > 0)
        worker.send(signal.SIGTERM)
    assert worker.wait() == _KILLED, (write, death, worker.log_text())
    assert trial.fleet.faults(write)[-1]["fault"] == death


def check(trial, *writes):
    """Hold the jobs against the protocol; what cannot be planned is in the dead-letter queue."""
    trial.check(empty=ALL_QUEUES - ({"IMAGE_DLQ"} if "F0" in writes else set()))


def submit_for(trial, model, write):
    """Submit a job that leads to a write: an image that cannot be planned, or a good one."""
    if write == "F0":
        trial.submit(trial.request(model, "/no/such/image.tif"), ends="FAILED")
    else:
        # Regions that are released are not at their end, however late the signal comes.
        trial.submit(trial.request(model, "small" if write == "R2-release" else "one"))


@pytest.mark.long
@pytest.mark.parametrize(
    "writes",
    [_PLANNING, _REGION, _DELIVERY],
    ids=["planning", "region", "delivery"],
)
def test_job_ends_when_worker_dies_at_each_write_in_sequence(new_trial, writes):
    """Each worker takes over what those before it have left, and dies right after its own write."""
    trial = new_trial(**_QUICK)
    model = trial.model(latency_ms=100, bytes_per_feature=_LARGE)
    for write in writes:
        submit_for(trial, model, write)
        if write == "R2-progress":
            die_at(trial, "T1", "die_after")
        die_at(trial, write, "die_after")
    trial.fleet.start()
    trial.wait()
    check(trial, *writes)


@pytest.mark.long
@pytest.mark.parametrize("death", _DEATHS)
@pytest.mark.parametrize("write", _PLANNING + _REGION + _DELIVERY)
def test_job_ends_when_worker_dies_at_one_write(new_trial, write, death):
    trial = new_trial(**_QUICK)
    model = trial.model(latency_ms=100, bytes_per_feature=_LARGE)
    submit_for(trial, model, write)
    if write == "R2-progress":
        # Progress is noted where somebody died before.
        die_at(trial, "R1", "die_after")
    die_at(trial, write, death)
    trial.fleet.start()
    trial.wait()
    check(trial, write)
