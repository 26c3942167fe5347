"""One job that can never be finished, or one row that cannot be read, keeps no other job waiting."""

import json
import uuid

import pytest

from faults.trial import Trial
from worker_process import eventually


def spoil_features(trial: Trial, job_id: str) -> None:
    """Overwrite what tiles of a job have stored: however often it is read, nothing can be made of it."""
    dynamodb, table = trial.site.client("dynamodb"), trial.site.data_plane.environment["FEATURE_TABLE"]
    for row in trial.site.rows("FEATURE_TABLE"):
        if row["hash_key"]["S"].startswith(job_id):
            for name, value in row.items():
                if "B" in value:
                    row[name] = {"B": b"spoiled"}
                elif name == "features":
                    row[name] = {"L": [{"S": "spoiled"}] * len(value["L"])}
                elif name == "feature_columns":
                    row[name] = {"S": "spoiled"}
            dynamodb.put_item(TableName=table, Item=row)


@pytest.mark.long
def test_job_ends_when_it_can_never_be_finished(new_trial):
    trial = new_trial()
    model = trial.model()
    # The list of open jobs is walked in the order of their ids.
    hopeless, lost = (trial.request(model, "one", jobId=f"{letter}-{uuid.uuid4().hex[:8]}") for letter in "ab")
    trial.submit(hopeless, ends="FAILED")
    first = trial.fleet.start({"on": "G1", "do": "stop_before"})
    eventually(lambda: first.is_stopped)
    spoil_features(trial, hopeless["jobId"])
    trial.submit(lost)
    planner = trial.fleet.start({"on": "A4-send", "do": "die_after"})
    planner.wait()
    trial.kill(first)
    eventually(lambda: any(lost["jobId"] in body for body in trial.site.drain("REGION_QUEUE")))
    with trial.fleet.worker() as worker:
        trial.wait(lost["jobId"])
        assert worker.exit_code is None
    # The verdict needs several tries and an hour, which passes on the clocks of the workers.
    for hour in range(1, 12):
        with trial.fleet.worker(clock_ahead_s=3600.0 * hour):
            for _ in range(3):
                trial.site.listen(wait_s=1)
            if not trial.running(hopeless["jobId"]):
                break
    ends = {name: (trial.site.told(name) or [None])[-1] for name in trial.jobs}
    assert ends == trial.jobs
    assert not trial.site.open_jobs()


@pytest.mark.long
def test_sweeper_and_scheduler_continue_when_row_is_unreadable(new_trial):
    """As after a deployment that was rolled back: a job with an algorithm of a newer version."""
    trial = new_trial(JOB_DEADLINE_S="25", JOB_WAIT_LIMIT_S="25")
    model = trial.model(latency_ms=300)
    soft = [{"step": "FEATURE_DISTILLATION", "algorithm": {"algorithmType": "SOFT_NMS"}}]
    first = trial.request(model, "one", jobId=f"b-{uuid.uuid4().hex[:8]}", postProcessing=soft)
    trial.site.submit(first)
    worker = trial.fleet.start()
    (row,) = eventually(lambda: trial.site.open_jobs(first["jobId"]))
    trial.kill(worker)
    newer = json.loads(json.dumps(row).replace("SOFT_NMS", "SOFTER_NMS").replace(first["jobId"], "a-newer"))
    table = trial.site.data_plane.environment["OUTSTANDING_JOBS_TABLE"]
    trial.site.client("dynamodb").put_item(TableName=table, Item=newer)
    second = trial.submit(trial.request(model, "one"))
    with trial.fleet.worker():
        trial.wait(second)
        eventually(lambda: trial.site.statuses(first["jobId"])[-1:] == ["SUCCESS"])
        eventually(lambda: not trial.site.open_jobs("a-newer"))
        trial.check()
