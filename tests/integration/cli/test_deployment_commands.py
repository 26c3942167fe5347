"""The commands that submit jobs to a deployment and show them, against a worker on the emulator."""

import json
from pathlib import Path

import pytest

from aws.osml.model_runner.cli import main
from aws.osml.model_runner.worker.messages import DeadLetters
from worker_in_process import TILES, Fleet


@pytest.fixture
def fleet(worker) -> Fleet:
    return Fleet(worker)


@pytest.fixture
def run(data_plane, clients, capsys):
    """Run a command on the deployment; return its exit status and its output."""

    def run_command(*arguments: object) -> tuple[int, str]:
        capsys.readouterr()  # metrics of the worker
        status = main([*map(str, arguments), "--stack", data_plane.name])
        return status, capsys.readouterr().out

    return run_command


@pytest.fixture
def request_file(worker, scene, model_server, tmp_path) -> Path:
    path = tmp_path / "request.json"
    path.write_text(json.dumps(worker.message(scene, model_server("centerpoint").invocations_url, "harbour-7")))
    return path


def test_job_is_submitted_listed_and_described(run, fleet, request_file, data_plane):
    assert run("submit", request_file) == (0, "harbour-7\n")
    assert run("list") == (0, "no job waits or runs\n")
    (message,) = fleet.worker.image_queue.receive()
    fleet.messages.handle(message)
    status, text = run("list")
    assert text.splitlines()[0].split() == ["JOB", "STATUS", "DONE", "AGE", "ENDPOINT"]
    assert text.splitlines()[1].split()[:2] == ["harbour-7", "ACCEPTED"]
    assert run("status", "harbour-7") == (0, "harbour-7  ACCEPTED\n")
    fleet.work(0)
    assert run("status", "harbour-7")[1].startswith(f"harbour-7  SUCCESS  100 %  {TILES} of {TILES} tiles")
    assert run("status", "harbour-7", "--follow") == run("status", "harbour-7")
    status, text = run("describe", "harbour-7")
    assert status == 0
    assert f"  tiles     {TILES} of {TILES} done, 0 failed" in text.splitlines()
    assert f"  output    s3://{data_plane.result_bucket}/out/harbour-7.geojson" in text.splitlines()
    document = json.loads(run("describe", "harbour-7", "--json")[1])
    assert (document["status"], document["percent"]) == ("SUCCESS", 100.0)
    assert document["images"][0]["tilesSucceeded"] == TILES
    assert document["results"] == [f"s3://{data_plane.result_bucket}/out/harbour-7.geojson"]


def test_result_of_job_is_viewed(run, fleet, request_file, scene, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run("submit", request_file)
    fleet.work(0)
    fleet.work(0)
    assert run("view", "harbour-7", "--image", scene, "--no-open") == (0, "harbour-7.html\n")
    assert (tmp_path / "harbour-7.html").read_text().startswith("<!doctype html>")
    assert json.loads((tmp_path / "harbour-7.geojson").read_text())["modelRunner"]["jobId"] == "harbour-7"


def test_list_selects_by_state_and_endpoint(run, fleet, request_file):
    for number in range(2):
        run("submit", request_file, "--job", f"job-{number}")
        (message,) = fleet.worker.image_queue.receive()
        fleet.messages.handle(message)
    assert [job["jobId"] for job in json.loads(run("list", "--json")[1])] == ["job-0", "job-1"]
    assert run("list", "--state", "IN_PROGRESS") == (0, "no job waits or runs\n")
    assert run("list", "--endpoint", "another") == (0, "no job waits or runs\n")
    (endpoint,) = {image["endpoint"] for job in json.loads(run("list", "--json")[1]) for image in job["images"]}
    assert len(json.loads(run("list", "--json", "--endpoint", endpoint, "--state", "ACCEPTED")[1])) == 2


def test_failed_job_is_explained(run, fleet, worker, scene, model_server, tmp_path):
    path = tmp_path / "request.json"
    path.write_text(json.dumps(worker.message(scene, model_server("failure").invocations_url, "broken")))
    run("submit", path)
    fleet.work(0)
    fleet.work(0)
    status, text = run("status", "broken")
    assert (status, text.split()[:2]) == (3, ["broken", "PARTIAL"])
    (image,) = json.loads(run("describe", "broken", "--json")[1])["images"]
    lines = run("describe", "broken")[1].splitlines()
    assert sum(image["failures"].values()) == image["tilesFailed"] > 0
    assert {f"  failed    {count} tiles: {code}" for code, count in image["failures"].items()} <= set(lines)
    assert f"  example   {image['firstFailure']}" in lines


def test_image_is_submitted_without_request(run, worker, data_plane):
    output = f"s3://{data_plane.result_bucket}/made"
    status, text = run("submit", "s3://images/harbour.tif", "--endpoint", "ships", "--output", output)
    assert status == 0
    (message,) = worker.image_queue.receive()
    request = json.loads(message.body)
    assert request["jobId"] == text.strip()
    assert request["imageProcessor"] == {"name": "ships", "type": "SM_ENDPOINT"}
    assert request["outputs"] == [{"type": "S3", "bucket": data_plane.result_bucket, "prefix": "made"}]


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["nowhere.json"], "nowhere.json cannot be read: No such file or directory"),
        (["s3://images/a.tif"], "an image needs --endpoint and --output"),
        (["s3://images/a.tif", "--endpoint", "ships", "--output", "results"], "--output results: expected s3://"),
        (["REQUEST", "--endpoint", "ships"], "--endpoint and --output are for an image"),
        (["REQUEST", "--job", "x" * 2000], "jobId"),
    ],
)
def test_submit_refuses(run, request_file, worker, data_plane, capsys, arguments, complaint):
    given = [request_file if argument == "REQUEST" else argument for argument in arguments]
    assert main(["submit", *map(str, given), "--stack", data_plane.name]) in (1, 2)
    assert complaint in capsys.readouterr().err
    assert worker.image_queue.receive() == []


def test_queues_show_depths_and_refusals(run, worker, data_plane):
    assert run("queues")[0] == 0
    DeadLetters(worker.image_queue, data_plane.environment["IMAGE_DLQ"]).put('{"jobId": "odd"}', "outputs: absent")
    worker.image_queue.send_body("waits")
    status, text = run("queues")
    lines = [line.split() for line in text.splitlines()]
    assert status == 1
    assert ["IMAGE_QUEUE", "1", "0", "0"] in lines
    assert ["odd", "outputs:", "absent"] in lines


def test_unknown_job_and_stack_are_errors(data_plane, clients, capsys):
    assert main(["status", "nothing", "--stack", data_plane.name]) == 1
    assert "no worker has accepted a job nothing" in capsys.readouterr().err
    assert main(["list", "--stack", "nowhere"]) == 2
    assert "the stack nowhere cannot be read" in capsys.readouterr().err
