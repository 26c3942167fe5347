"""T4, T15: replies are lost after the write, and DynamoDB refuses under load."""

from collections import Counter

import pytest

from faults.books import ALL_QUEUES

_WRITES = (
    *("A0", "A1", "A2", "A3", "A4", "A4-send", "A4-planned", "R1", "R2", "T1", "R3"),
    *("G1", "G2-position", "G2-done", "S3", "Kinesis", "G3", "G4-publish", "G4", "G5", "delete", "hide"),
)
# botocore sends a call this often, so that losing as many replies makes it an error of the worker's.
_SENDS = 5


def test_job_ends_when_first_reply_of_each_write_is_lost(trial):
    model = trial.model(latency_ms=100)
    trial.submit(trial.request(model, "small"))
    with trial.fleet.worker(*[{"on": write, "do": "lose", "times": 1} for write in _WRITES]):
        trial.wait()
        books = trial.check()
    lost = {event["on"] for event in trial.fleet.faults()}
    assert lost >= set(_WRITES) - {"hide"}
    assert trial.calls_per_tile(books) <= 2.0


@pytest.mark.long
@pytest.mark.parametrize(
    "writes",
    [
        ("R3",),
        ("A1", "A3", "A4-send", "R1", "G1", "G3"),
        ("A2", "A4", "A4-planned", "T1", "G2-done", "G4"),
        # An output that fails is tried again after 20 seconds.
        ("R2", "G2-position", "S3", "G4-publish", "G5"),
        ("Kinesis",),
    ],
    ids=lambda writes: writes[0],
)
def test_job_ends_when_every_reply_of_one_call_is_lost(trial, writes):
    """The server did it, botocore has given up, and the worker has to find out."""
    model = trial.model(latency_ms=100)
    trial.submit(trial.request(model, "one"))
    with trial.fleet.worker(*[{"on": write, "do": "lose", "times": _SENDS} for write in writes]):
        trial.wait(patience_s=90.0)
        trial.check()


@pytest.mark.long
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_job_ends_when_fifth_of_replies_is_lost(trial, seed):
    model = trial.model(latency_ms=50)
    for _ in range(2):
        trial.submit(trial.request(model, "full"))
    rule = {"on": "*", "do": "lose", "chance": 0.2}
    with trial.fleet.worker(rule, seed=seed), trial.fleet.worker(rule, seed=seed + 100):
        trial.wait(patience_s=180.0)
        books = trial.check(empty=ALL_QUEUES)
    assert len(trial.fleet.faults()) > 20
    assert trial.calls_per_tile(books) <= 2.0


@pytest.mark.long
def test_busy_dynamodb_costs_no_count(trial):
    """T15: a fifth of all calls is throttled, and half of the transactions that end a region meet another."""
    model = trial.model(latency_ms=20)
    trial.submit(trial.request(model, "small"))
    throttled = ("A1", "A2", "A3", "A4", "A4-planned", "R1", "R2", "T1", "G1", "G2-position", "G2-done", "G3")
    rules = (
        # every worker's first, so that some are refused however few there are
        {**refusing("R3", "TransactionCanceledException", 1.0), "times": 1},
        refusing("R3", "TransactionCanceledException", 0.5),
        *(refusing(write, "ProvisionedThroughputExceededException", 0.2) for write in throttled),
    )
    with trial.fleet.worker(*rules), trial.fleet.worker(*rules):
        trial.wait(patience_s=90.0)
        trial.check()
    refused = Counter(event["row"] for event in trial.fleet.faults("R3"))
    assert refused
    assert max(refused.values()) <= 2 * 6, "each of two attempts tries six times at most"


def refusing(write, code, chance):
    return {"on": write, "do": "refuse", "code": code, "status": 400, "chance": chance}


@pytest.mark.long
def test_entries_that_batch_leaves_out_are_sent_again(new_trial):
    """T15: overflow rows of tiles with more features than an item holds, without a work bucket."""
    trial = new_trial(WORK_BUCKET="")
    model = trial.model(bytes_per_feature={3: 150_000, 5: 150_000}, features_per_tile={3: 5, 5: 5})
    trial.submit(trial.request(model, "one"))
    with trial.fleet.worker({"on": "T1-overflow", "do": "partly", "share": 0.5}):
        trial.wait()
        trial.check()
    assert len(trial.fleet.faults("T1-overflow")) >= 2
