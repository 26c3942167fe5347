"""`model-runner` as a user types it: exit statuses, messages, and what it writes."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest

from aws.osml.model_runner.cli import main
from aws.osml.model_runner.cli.run_command import default_output
from aws.osml.model_runner.local.stack import LocalStack
from aws.osml.model_runner.local.stack.http_service import HttpRequest, HttpResponse, HttpService
from aws.osml.model_runner.raster.pixels import decode_tile, write_geotiff
from stac_items import sentinel2, write_assets, write_item


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


@pytest.mark.parametrize("command", ["serve", "health", "redrive", "cancel", "merge", "demo", "run"])
def test_help_of_command_has_example(capsys, command):
    with pytest.raises(SystemExit):
        main([command, "--help"])
    assert re.search(rf"\nexamples?:\n  .*model-runner {command}\b", capsys.readouterr().out)


def test_misuse_has_its_own_status(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["fly"])
    assert ended.value.code == 2
    assert "invalid choice" in capsys.readouterr().err


def test_serve_lists_every_problem_of_environment(monkeypatch, capsys):
    for name in list(os.environ):
        if name.endswith(("_TABLE", "_QUEUE")) or name.startswith("AWS_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("WORKERS", "many")
    assert main(["serve"]) == 2
    complaint = capsys.readouterr().err
    assert all(name in complaint for name in ("IMAGE_QUEUE", "FEATURE_TABLE", 'WORKERS="many"'))


def test_health_is_good_while_worker_gets_on(tmp_path):
    assert main(["health", "--file", health_file(tmp_path)]) == 0


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"last_progress": time.time() - 500}, "no progress"),
        ({"pid": ended_pid()}, "is gone"),
        ({"surprise": 1}, "cannot be read"),
    ],
)
def test_health_reports_reason_when_worker_is_stuck(tmp_path, capsys, changes, reason):
    assert main(["health", "--file", health_file(tmp_path, **changes)]) == 1
    assert reason in capsys.readouterr().err


def test_health_needs_report(tmp_path, monkeypatch, capsys):
    monkeypatch.delenv("HEALTH_FILE", raising=False)
    assert main(["health"]) == 1
    assert main(["health", "--file", str(tmp_path / "none")]) == 1
    complaints = capsys.readouterr().err
    assert "HEALTH_FILE" in complaints
    assert "does not exist" in complaints


def test_run_refuses_model_that_does_not_exist(capsys):
    assert main(["run", "image.tif", "--model", "no-such-model"]) == 2
    assert "bright-objects, centerpoint, failure, flood" in capsys.readouterr().err


def test_version_names_program_and_python(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["--version"])
    assert ended.value.code == 0
    assert re.fullmatch(r"model-runner \d+\.\S+, Python 3\.\S+\n", capsys.readouterr().out)


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["nowhere.tif"], "nowhere.tif does not exist, or is not a file"),
        (["."], "is a directory: name one image file"),
        (["image.tif", "--tile-size", "5"], "--tile-size 5: expected a number of at least 16"),
        (["image.tif", "--overlap", "1024"], "--overlap 1024: expected less than --tile-size"),
        (["image.tif", "--overlap", "-3"], "--overlap -3: "),
        (["image.tif", "--roi", "POINT (1 2)"], r"--roi .?POINT \(1 2\).?: expected a POLYGON or MULTIPOLYGON in WKT"),
        (["image.tif", "--roi", "roi.geojson"], r"--roi: \S*roi\.geojson does not exist"),
        (["image.tif", "--iou", "7"], "--threshold 7"),
        (["image.tif", "--threshold", "7"], "--threshold 7"),
        (["image.tif", "--model-options", '{"shape": 1}'], r"--model-options: shape: .*; settings of centerpoint: "),
        (["image.tif", "--output", "."], "--output .: it is a directory"),
        (["image.tif", "--output", "./image.tif"], "--output image.tif: it would replace an input of this command"),
        (["image.tif", "--scale", "9"], "--scale 9"),
        (["image.tif", "--gsd", "0"], "--gsd 0"),
        (["image.tif", "--bands", "5,,2"], r"--bands .*expected a band number from 1, or a band name"),
        (["image.tif", "--stretch", "percentile:60:40"], "--stretch 40"),
        (
            ["image.tif", "--pixel-type", "uint8", "--nodata-fill", "300"],
            "--nodata-fill 300.*expected a whole",
        ),
        (["image.tif", "--assets", "red"], r"--assets .*: expected absent: .* is not a STAC Item"),
        (["image.tif", "--resume"], r"--resume: .*image\.geojson\.resume does not exist"),
    ],
)
def test_run_refuses_invalid_argument_before_it_starts_processes(tmp_path, monkeypatch, capsys, arguments, complaint):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "image.tif").write_bytes(b"never opened")
    with patch.object(LocalStack, "__enter__", side_effect=AssertionError("the stack was started")):
        assert main(["run", *arguments, "--model", "centerpoint"]) == 2
    assert re.search(complaint, capsys.readouterr().err)
    assert os.listdir(tmp_path) == ["image.tif"]


@pytest.mark.parametrize(
    "option",
    [
        ("--workers", "0"),
        ("--wait-limit", "soon"),
        ("--model-options", "{bad"),
        ("--stretch", "linear"),
        ("--stretch", "sigma:1:2"),
        ("--stretch", "minmax:a:b"),
        ("--pixel-type", "int8"),
    ],
)
def test_run_refuses_options_of_another_type(capsys, option):
    with pytest.raises(SystemExit) as ended:
        main(["run", "image.tif", "--model", "centerpoint", *option])
    assert ended.value.code == 2
    assert option[1] in capsys.readouterr().err


def test_run_finds_model_without_tls(tmp_path, capsys, model_server):
    image = tmp_path / "image.tif"
    image.write_bytes(b"never opened")
    url = model_server("centerpoint").invocations_url.replace("http:", "https:")
    assert main(["run", str(image), "--model", url]) == 2
    assert "does the model take http:// instead?" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("image", "name"),
    [("a/harbour.tif", "harbour"), ("http://host/d/a%20b.tif?x=1/2.png", "a b"), ("https://host/", "result")],
)
def test_result_is_named_after_its_image(image, name):
    assert default_output(image) == Path(f"{name}.geojson")


def run_as_process(*arguments):
    with started(*arguments) as process:
        out, err = process.communicate(timeout=200)
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def started(*arguments, **environment):
    command = [sys.executable, "-m", "aws.osml.model_runner", "run", *map(str, arguments)]
    inherited = {name: os.environ[name] for name in ("PATH", "PYTHONPATH", "HOME") if name in os.environ}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, env=inherited | {name: str(value) for name, value in environment.items()}, **pipes)


@pytest.fixture(scope="module")
def image(tmp_path_factory):
    path = tmp_path_factory.mktemp("image") / "image.tif"
    write_geotiff(path, np.random.default_rng(1).integers(0, 255, (3, 200, 200), np.uint8))
    return path


def test_run_needs_no_environment_and_writes_geojson(tmp_path, image):
    output = tmp_path / "out" / "found.geojson"
    pixels = ("--bands", "3,2,1", "--stretch", "minmax:0:300:all", "--pixel-type", "uint8", "--scale", 2)
    options = ("--tile-size", 256, "--overlap", 32, "--format", "PNG", "--output", output, "--coverage", *pixels)
    ended = run_as_process(image, "--model", "centerpoint", *options)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "SUCCESS" in ended.stdout
    assert "4 done, 0 failed" in ended.stdout
    assert len(json.loads(output.read_text())["features"]) == 4
    assert sorted(os.listdir(output.parent)) == [
        "found.coverage.geojson",
        "found.geojson",
        "found.html",
        "found.preview.png",
    ]
    tiles = json.loads((output.parent / "found.coverage.geojson").read_text())["features"]
    assert [tile["properties"]["state"] for tile in tiles] == ["seen"] * 4
    assert f"view      {output.with_suffix('.html')}, " in ended.stdout


def test_run_takes_stac_item_and_its_assets(tmp_path):
    write_assets(sentinel2(size=256), tmp_path, 256)
    item = write_item(sentinel2(size=256), tmp_path)
    output = tmp_path / "found.geojson"
    options = (
        "--assets",
        "red, green,blue",
        "--bands",
        "blue,red",
        "--tile-size",
        128,
        "--overlap",
        0,
        "--output",
        output,
    )
    ended = run_as_process(item, "--model", "centerpoint", *options)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    features = json.loads(output.read_text())["features"]
    assert len(features) == 4
    assert features[0]["properties"]["sourceMetadata"][0]["assets"] == ["red", "green", "blue"]
    assert "note" not in ended.stdout
    assert decode_tile(output.with_suffix(".preview.png").read_bytes()).shape == (3, 256, 256)


@pytest.mark.parametrize("output", ["found.geojson", "image.html"])
def test_view_replaces_no_file_that_it_reads(tmp_path, capsys, output):
    """A page beside an image or a result must not take its place."""
    (tmp_path / "found.geojson").write_text('{"features": []}')
    write_geotiff(tmp_path / "image.html", np.zeros((1, 20, 20), np.uint8))
    before = (tmp_path / output).read_bytes()
    options = ["--image", str(tmp_path / "image.html"), "--output", str(tmp_path / output), "--no-open"]
    assert main(["view", str(tmp_path / "found.geojson"), *options]) == 2
    assert "it would replace an input of this command" in capsys.readouterr().err
    assert (tmp_path / output).read_bytes() == before


@pytest.mark.parametrize(
    ("command", "reads"),
    [
        (["run", "image.tif", "--model", "centerpoint", "--roi", "image.geojson"], "image.geojson"),
        (["run", "image.tif", "--model", "centerpoint", "--skip", "mask:m.tif:9", "--output", "m.tif"], "m.tif"),
        (["plan", "image.tif", "--map", "image.tif"], "image.tif"),
        (["plan", "image.tif", "--roi", "image.geojson", "--map", "image.geojson"], "image.geojson"),
        (["view", "image.geojson", "--no-open", "--output", "image.coverage.geojson"], "image.coverage.geojson"),
    ],
)
def test_commands_replace_no_file_that_they_read(tmp_path, monkeypatch, capsys, command, reads):
    monkeypatch.chdir(tmp_path)
    for name in ("image.tif", "m.tif"):
        write_geotiff(tmp_path / name, np.zeros((1, 100, 100), np.uint8))
    for name in ("image.geojson", "image.coverage.geojson"):
        (tmp_path / name).write_text('{"type": "FeatureCollection", "features": []}')
    before = (tmp_path / reads).read_bytes()
    with patch.object(LocalStack, "__enter__", side_effect=AssertionError("the stack was started")):
        assert main(command) == 2
    assert "it would replace an input of this command" in capsys.readouterr().err
    assert (tmp_path / reads).read_bytes() == before


@pytest.mark.parametrize(("option", "command"), [("--map", ["plan"]), ("--output", ["view", "--no-open"])])
def test_commands_replace_no_device_and_no_pipe(tmp_path, capsys, option, command):
    """As root, a file would take the place of /dev/null, for every program of the machine."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    write_geotiff(tmp_path / "image.tif", np.zeros((1, 100, 100), np.uint8))
    (tmp_path / "found.geojson").write_text('{"features": []}')
    name = "image.tif" if command == ["plan"] else "found.geojson"
    assert main([*command, str(tmp_path / name), option, str(pipe)]) == 2
    assert f"{option} {pipe}: it is not a regular file" in capsys.readouterr().err
    assert pipe.is_fifo()


@pytest.mark.parametrize("name", ["found", "found.v1"])
def test_view_writes_page_beside_result(tmp_path, capsys, name):
    (tmp_path / f"{name}.geojson").write_text('{"features": []}')
    (tmp_path / f"{name}.coverage.geojson").write_text(
        '{"features": [{"properties": {"imageBBox": [0, 0, 1, 1], "state": "seen"}}]}'
    )
    assert main(["view", str(tmp_path / f"{name}.geojson"), "--no-open"]) == 0
    assert capsys.readouterr().out == f"{tmp_path / name}.html\n"
    page = (tmp_path / f"{name}.html").read_text()
    assert page.startswith("<!doctype html>")
    assert '"state":"seen"' in page


@pytest.mark.long
def test_run_keeps_earlier_result_when_model_refuses_each_tile(tmp_path, image):
    output = tmp_path / "good.geojson"
    output.write_text("precious")
    options = ("--model-options", '{"outcomes": {"400": 1}}', "--output", output)
    ended = run_as_process(image, "--model", "failure", *options)
    assert ended.returncode == 1, ended.stdout + ended.stderr
    assert "FAILED: 1 of 1 tiles failed: MODEL_4XX 1; for example MODEL_4XX: the model returned" in ended.stdout
    assert output.read_text() == "precious"


@pytest.mark.long
@pytest.mark.timeout(400)  # it starts two stacks, one after the other
def test_run_resumes_when_first_run_was_ended(tmp_path, image):
    calls, ended, is_slow = Counter[bytes](), threading.Event(), threading.Event()
    body = json.dumps({"type": "FeatureCollection", "features": []}).encode()
    is_slow.set()

    def answer(request: HttpRequest) -> HttpResponse:
        calls[request.body] += 1
        if is_slow.is_set() and len(calls) > 4:
            ended.wait(60)  # so that some tiles are not done when the run is ended
        return HttpResponse(body=body)

    temporary, output = tmp_path / "tmp", tmp_path / "found.geojson"
    temporary.mkdir()
    with HttpService(answer) as model:
        options = ("--tile-size", 64, "--overlap", 0, "--format", "PNG", "--calls", 1, "--output", output)
        command = [image, "--model", f"{model.url}/invocations", *options]
        with started(*command, TMPDIR=temporary) as first:
            lines = iter(first.stderr.readline, "")
            assert any("finding objects: 4 of 16" in line for line in lines)
            first.send_signal(signal.SIGTERM)
            ended.set()
            is_slow.clear()
            shown = first.communicate(timeout=100)[1]
        assert first.returncode == 143, shown
        assert "tiles are kept in" in shown
        assert list(temporary.iterdir()) == []
        assert not output.exists()
        second = run_as_process(*command, "--resume")
    assert second.returncode == 0, second.stdout + second.stderr
    assert "16 done, 0 failed" in second.stdout
    assert set(calls.values()) == {1}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["found.geojson", "tmp"]


def test_run_fails_at_once_when_no_server_listens(tmp_path, capsys):
    image = tmp_path / "image.tif"
    image.write_bytes(b"never opened")
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
    assert main(["run", str(image), "--model", f"http://127.0.0.1:{port}/invocations"]) == 2
    assert f"no model is served at http://127.0.0.1:{port}/invocations" in capsys.readouterr().err
