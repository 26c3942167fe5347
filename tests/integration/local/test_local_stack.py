"""The whole tree of processes: it carries a job, reports the death of a part, and leaves nothing behind."""

import io
import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import psutil
import pytest
from rich.console import Console

from aws.osml.model_runner.common.typing import RequestStatus
from aws.osml.model_runner.exceptions import ConfigurationError, LoadImageException, LocalStackError
from aws.osml.model_runner.local.demo.run import run_demo
from aws.osml.model_runner.local.image_request import TileSettings
from aws.osml.model_runner.local.image_run import ImageRun, _only_sources, run_image
from aws.osml.model_runner.local.stack import LocalStack, ModelSettings, WorkerSettings
from aws.osml.model_runner.local.stack.child_process import clean_environment
from aws.osml.model_runner.raster.open_images import OpenImages
from aws.osml.model_runner.raster.pixels import write_geotiff
from aws.osml.model_runner.raster.settings import RasterSettings

TILES = TileSettings(size_px=128, overlap_px=16)


@pytest.fixture(scope="module")
def image(tmp_path_factory):
    path = tmp_path_factory.mktemp("image") / "image.tif"
    write_geotiff(path, np.random.default_rng(1).integers(0, 255, (3, 300, 400), np.uint8))
    return path


@pytest.fixture(autouse=True)
def _processes_are_not_measured(monkeypatch):
    """Start workers and models without coverage; tests/integration/worker/test_worker.py measures what they run."""
    monkeypatch.delenv("COVERAGE_PROCESS_CONFIG", raising=False)


@pytest.fixture
def console():
    return Console(file=io.StringIO(), width=200)


def wait_until(is_so, timeout_s=15.0):
    deadline = time.monotonic() + timeout_s
    while not is_so() and time.monotonic() < deadline:
        time.sleep(0.05)
    return is_so()


@pytest.mark.long  # as the command line does in the short form, see test_command_line.py
def test_image_runs_through_example_model(image, console):
    outcome = run_image(ImageRun(str(image), "centerpoint", TILES), console)
    assert (outcome.status, outcome.tiles_failed) == (RequestStatus.SUCCESS, 0)
    assert outcome.tiles_succeeded == 12
    assert len(outcome.features) == 12


@pytest.mark.long
def test_image_runs_through_model_at_url(image, console, model_server):
    server = model_server("flood", count=3)
    no_merge = {"postProcessing": [{"step": "FEATURE_DISTILLATION", "algorithm": {"algorithmType": "NONE"}}]}
    outcome = run_image(ImageRun(str(image), server.invocations_url, TILES, members=no_merge), console)
    assert outcome.status is RequestStatus.SUCCESS
    assert server.stats()["requests"] == 12
    assert len(outcome.features) == 36


@pytest.mark.long
def test_demo_finds_every_ship_of_small_harbour_once(tmp_path, console):
    result = run_demo(tmp_path / "demo", console, size=2400)
    assert result.is_good
    assert (result.score.doubles, result.score.false_alarms) == (0, 0)
    assert result.score.largest_error_px < 2
    assert (tmp_path / "demo" / "result.png").stat().st_size > 50_000
    features = json.loads((tmp_path / "demo" / "result.geojson").read_bytes())["features"]
    assert len(features) == result.score.known


@pytest.mark.parametrize("image_name", ["nowhere.tif", "s3://bucket/image.tif"])
def test_image_that_is_not_here_is_refused_before_anything_starts(image_name, console):
    with pytest.raises(ConfigurationError, match=image_name):
        run_image(ImageRun(image_name, "centerpoint"), console)


def test_worker_that_cannot_start_is_reported_with_its_last_words(tmp_path):
    broken = WorkerSettings(environment={"WORKERS": "many"})
    with LocalStack(tmp_path, {}, broken) as stack:
        assert wait_until(lambda: stack._children[0].exit_code is not None)
        with pytest.raises(LocalStackError, match=r"worker-0 ended with exit code 2(.|\n)*WORKERS"):
            stack.check_alive()


def test_no_process_runs_after_block_ends(tmp_path):
    before = set(psutil.Process().children(recursive=True))  # the tests' own emulator may run already
    with LocalStack(tmp_path, {"a": ModelSettings("centerpoint")}, WorkerSettings(processes=1)) as stack:
        running = set(psutil.Process().children(recursive=True)) - before
        assert len(running) == 3
        stack.check_alive()
    assert wait_until(lambda: not any(is_running(process) for process in running))


# Killed, it can do nothing about its children any more; interrupted, it leaves the block as in the test above.
@pytest.mark.parametrize(
    "number",
    [signal.SIGKILL, *(pytest.param(number, marks=pytest.mark.long) for number in (signal.SIGTERM, signal.SIGINT))],
)
def test_no_process_runs_after_parent_is_killed(tmp_path, number):
    # A shell that starts tests in the background has them ignore SIGINT, and so would this child.
    script = f"""
import signal, time
from pathlib import Path
from aws.osml.model_runner.local.stack import LocalStack, ModelSettings
signal.signal(signal.SIGINT, signal.default_int_handler)
with LocalStack(Path({str(tmp_path)!r}), {{"a": ModelSettings("centerpoint")}}):
    print("up", flush=True)
    time.sleep(60)
"""
    command = [sys.executable, "-c", script]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as parent:
        assert parent.stdout.readline() == "up\n"
        children = psutil.Process(parent.pid).children(recursive=True)
        assert len(children) == 3
        parent.send_signal(number)
        parent.wait(30)
    assert wait_until(lambda: not any(is_running(child) for child in children))


def is_running(process):
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_worker_environment_has_no_user_credentials(tmp_path, monkeypatch):
    monkeypatch.setenv("AWS_PROFILE", "production")
    monkeypatch.setenv("AWS_SESSION_TOKEN", "token")
    monkeypatch.setenv("HTTP_PROXY", "http://proxy.example:3128")
    with LocalStack(tmp_path, {}, WorkerSettings(processes=0)) as stack:
        environment = stack.worker_environment()
        stack.client("sqs").list_queues()
    assert not {"AWS_PROFILE", "AWS_SESSION_TOKEN"} & set(environment)
    assert environment["AWS_ENDPOINT_URL_SAGEMAKER_RUNTIME"] != environment["AWS_ENDPOINT_URL"]
    assert "127.0.0.1" in environment["NO_PROXY"]


def test_clean_environment_keeps_other_variables():
    cleaned = clean_environment({"PATH": "/bin", "AWS_REGION": "x", "GDAL_CACHEMAX": "1", "NO_PROXY": "intranet"})
    assert cleaned == {"PATH": "/bin", "NO_PROXY": "intranet,127.0.0.1,localhost", "no_proxy": "127.0.0.1,localhost"}
    assert "AWS_PROFILE" not in clean_environment(os.environ)


def test_no_two_stacks_have_access_key_in_common(tmp_path):
    """Another user of the machine reaches the emulator, but sends it no request that it serves."""
    keys = {LocalStack(tmp_path, {}).worker_environment()["AWS_ACCESS_KEY_ID"] for _ in range(3)}
    assert len(keys) == 3
    assert all(len(key) == 32 for key in keys)


def test_worker_of_run_reads_its_image_and_no_other_file(tmp_path):
    assert _only_sources(["/home/me/a.tif"]) == {"IMAGE_SOURCES": "file", "IMAGE_DIRECTORIES": "/home/me/a.tif"}
    assert _only_sources(["https://host/a.tif"]) == {"IMAGE_SOURCES": "http"}
    both = {"IMAGE_SOURCES": "file,http", "IMAGE_DIRECTORIES": "/home/me/a.geojson"}
    assert _only_sources(["https://host/a.tif", "/home/me/a.geojson"]) == both
    (tmp_path / "mine.tif").write_bytes(b"no image")
    (tmp_path / "private.tif").write_bytes(b"no image")
    mine = RasterSettings(directories=(str(tmp_path / "mine.tif"),))
    images = OpenImages(mine, {"file"}, lambda _role: None)
    with pytest.raises(LoadImageException, match="supported format"), images.lend(str(tmp_path / "mine.tif")):
        pass
    with pytest.raises(LoadImageException, match="IMAGE_DIRECTORIES"), images.lend(str(tmp_path / "private.tif")):
        pass
