"""`model-runner` as a user types it: exit statuses, messages, and what it writes."""

import json
import os
import socket
import subprocess
import sys
import time

import numpy as np
import pytest

from aws.osml.model_runner.cli import main
from aws.osml.model_runner.raster.pixels import write_geotiff


def health_file(tmp_path, **changes):
    path = tmp_path / "health"
    path.write_text(json.dumps({"pid": os.getpid(), "state": "running", "last_progress": time.time()} | changes))
    return str(path)


def ended_pid():
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        process.wait()
    return process.pid


def test_help_names_every_command(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["--help"])
    assert ended.value.code == 0
    shown = capsys.readouterr().out
    assert all(command in shown for command in ("serve", "health", "demo", "run"))


def test_misuse_has_its_own_status(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["fly"])
    assert ended.value.code == 2
    assert "invalid choice" in capsys.readouterr().err


def test_serve_lists_every_problem_of_the_environment(monkeypatch, capsys):
    for name in list(os.environ):
        if name.endswith(("_TABLE", "_QUEUE")) or name.startswith("AWS_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("WORKERS", "many")
    assert main(["serve"]) == 2
    complaint = capsys.readouterr().err
    assert all(name in complaint for name in ("IMAGE_QUEUE", "FEATURE_TABLE", 'WORKERS="many"'))


def test_health_is_good_while_the_worker_gets_on(tmp_path):
    assert main(["health", "--file", health_file(tmp_path)]) == 0


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"last_progress": time.time() - 500}, "no progress"),
        ({"pid": ended_pid()}, "is gone"),
        ({"surprise": 1}, "cannot be read"),
    ],
)
def test_health_says_what_is_wrong(tmp_path, capsys, changes, reason):
    assert main(["health", "--file", health_file(tmp_path, **changes)]) == 1
    assert reason in capsys.readouterr().err


def test_health_needs_a_report(tmp_path, monkeypatch, capsys):
    monkeypatch.delenv("HEALTH_FILE", raising=False)
    assert main(["health"]) == 1
    assert main(["health", "--file", str(tmp_path / "none")]) == 1
    complaints = capsys.readouterr().err
    assert "HEALTH_FILE" in complaints
    assert "does not exist" in complaints


def test_run_refuses_a_model_that_does_not_exist(capsys):
    assert main(["run", "image.tif", "--model", "no-such-model"]) == 2
    assert "bright-objects, centerpoint, failure, flood" in capsys.readouterr().err


def test_run_refuses_an_image_that_does_not_exist(capsys):
    assert main(["run", "nowhere.tif", "--model", "centerpoint"]) == 1
    assert "nowhere.tif" in capsys.readouterr().err


def run_as_process(*arguments):
    command = [sys.executable, "-m", "aws.osml.model_runner", "run", *map(str, arguments)]
    environment = {name: os.environ[name] for name in ("PATH", "PYTHONPATH", "HOME") if name in os.environ}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=100, check=False)


@pytest.fixture(scope="module")
def image(tmp_path_factory):
    path = tmp_path_factory.mktemp("image") / "image.tif"
    write_geotiff(path, np.random.default_rng(1).integers(0, 255, (3, 200, 200), np.uint8))
    return path


def test_run_needs_no_environment_and_writes_geojson(tmp_path, image):
    output = tmp_path / "out" / "found.geojson"
    options = ("--tile-size", 128, "--overlap", 16, "--format", "PNG", "--output", output)
    ended = run_as_process(image, "--model", "centerpoint", *options)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "SUCCESS" in ended.stdout
    assert "4 done, 0 failed" in ended.stdout
    assert len(json.loads(output.read_text())["features"]) == 4


def test_run_of_a_model_that_always_refuses_fails(tmp_path, image):
    options = ("--model-options", '{"outcomes": {"400": 1}}', "--output", tmp_path / "none.geojson")
    ended = run_as_process(image, "--model", "failure", *options)
    assert ended.returncode == 1, ended.stdout + ended.stderr
    assert "FAILED" in ended.stdout


def test_run_with_a_model_that_nobody_serves_says_so_at_once(tmp_path, capsys):
    image = tmp_path / "image.tif"
    image.write_bytes(b"never opened")
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
    assert main(["run", str(image), "--model", f"http://127.0.0.1:{port}/invocations"]) == 1
    assert f"no model is served at http://127.0.0.1:{port}/invocations" in capsys.readouterr().err
