"""`model-runner cancel`, as a person types it."""

import pytest

from aws.osml.model_runner.api.image_request import ImageRequest
from aws.osml.model_runner.aws.clients import default_clients
from aws.osml.model_runner.cli.main import main
from aws.osml.model_runner.database import JobTable, OutstandingJobsTable


@pytest.fixture
def outstanding_jobs(emulator, data_plane, monkeypatch) -> OutstandingJobsTable:
    variables = data_plane.environment
    needed = {name: variables[name] for name in ("JOB_TABLE", "OUTSTANDING_JOBS_TABLE")}
    for name, value in (emulator.environment | needed).items():
        monkeypatch.setenv(name, value)
    default_clients.cache_clear()
    jobs = JobTable(variables["JOB_TABLE"])
    yield OutstandingJobsTable(variables["OUTSTANDING_JOBS_TABLE"], jobs)
    default_clients.cache_clear()


def request(job_id: str) -> ImageRequest:
    message = {
        "jobId": job_id,
        "imageUrls": [f"s3://images/{job_id}.tif"],
        "imageProcessor": {"name": "ships"},
        "outputs": [{"type": "S3", "bucket": "results"}],
    }
    return ImageRequest.from_external_message(message)


def test_cancel_reports_cancelled_and_ended_jobs(outstanding_jobs, capsys):
    first, second = request("a"), request("b")
    for waiting in (first, second):
        outstanding_jobs.accept(waiting)
    outstanding_jobs._job_table.fail_unplanned(second.image_id, "unreadable")
    assert main(["cancel", "a"]) == 0
    assert main(["cancel", "b"]) == 1
    assert capsys.readouterr().out.splitlines() == [
        "cancelled: a:s3://images/a.tif",
        "skipped:   b:s3://images/b.tif: its status is FAILED",
    ]
    assert outstanding_jobs._job_table.get_image_request(first.image_id).message == "cancelled"


def test_job_that_is_not_open_is_error(outstanding_jobs, capsys):
    assert main(["cancel", "unknown"]) == 1
    assert "there is no open job unknown" in capsys.readouterr().err
