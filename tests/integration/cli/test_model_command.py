"""`model-runner model`: serves an ONNX file until SIGTERM, and refuses files of no use before anything starts."""

import json
import os
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
import urllib3

from aws.osml.model_runner.cli import main
from aws.osml.model_runner.local.onnx.onnx_model import OnnxModel
from aws.osml.model_runner.local.stack import LocalStack
from aws.osml.model_runner.local.stack.model_server import ModelServer
from aws.osml.model_runner.raster.pixels import write_geotiff
from onnx_files import cell_network, save, tile_of

NAMES = {"names": "{0: 'ship', 1: 'plane'}"}


@pytest.fixture
def folder(tmp_path):
    save(cell_network("YOLO_V8", metadata=NAMES), tmp_path / "best.onnx")
    write_geotiff(tmp_path / "tile.tif", tile_of({(1, 2): (204, 0)}))
    return tmp_path


@contextmanager
def served(*command, **environment):
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen([str(part) for part in command], env=os.environ | environment, **pipes) as process:
        try:
            summary = process.stdout.readline()
            yield process, process.stdout.readline().removeprefix("listening on ").strip(), summary
        finally:
            process.kill()


@pytest.mark.parametrize("is_container", [False, True])
def test_directory_of_one_file_is_served_until_sigterm(folder, is_container):
    command = [sys.executable, "-m", "aws.osml.model_runner", "model", folder, "--port", "0"]
    settings = {}
    if is_container:
        # SageMaker passes the argument serve, and may choose the port.
        command = [Path(__file__).parents[3] / "docker" / "onnx-entrypoint.sh", "serve"]
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        settings = {"PATH": path, "MODEL": str(folder), "SAGEMAKER_BIND_TO_PORT": "0"}
    with served(*command, **settings) as (process, url, summary):
        assert url.startswith("http://0.0.0.0:" if is_container else "http://127.0.0.1:")
        answer = urllib3.request("POST", url, body=(folder / "tile.tif").read_bytes(), timeout=20)
        [feature] = json.loads(answer.data)["features"]
        assert feature["properties"]["imageBBox"] == [8, 16, 16, 24]
        assert "3 bands of float32, 64 x 64, up to 16 at once; YOLO_V8, 2 classes" in summary
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0


def test_server_of_a_model_needs_no_package_of_the_embedded_stack(folder):
    # The container of a model has the packages of a worker, and ONNX Runtime.
    blocked = "import sys; sys.modules.update(dict.fromkeys(['ministack', 'PIL', 'rich', 'yaml', 'onnx']))"
    with served(
        sys.executable,
        "-c",
        f"{blocked}; from aws.osml.model_runner.cli import main; sys.exit(main())",
        *("model", folder, "--port", "0"),
    ) as (process, url, _):
        assert urllib3.request("GET", url.replace("/invocations", "/ping"), timeout=20).status == 200
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0


def test_calls_in_flight_get_their_response_when_the_server_stops(folder):
    model = OnnxModel.open(folder / "best.onnx")
    gate, entered, run = threading.Event(), threading.Event(), model.batches._run
    model.batches._run = lambda arrays: (entered.set(), gate.wait(20), run(arrays))[2]
    body = (folder / "tile.tif").read_bytes()
    with ThreadPoolExecutor(2) as callers, ModelServer(model) as server:
        call = callers.submit(urllib3.request, "POST", server.invocations_url, body=body, retries=False)
        assert entered.wait(20)
        assert not server.drain(0.01)  # the call is in flight
        refused = urllib3.request("POST", server.invocations_url, body=body, retries=False)
        ping = urllib3.request("GET", f"{server.url}/ping", retries=False)
        draining = callers.submit(server.drain, 20)
        gate.set()
        assert draining.result()
    assert (refused.status, ping.status) == (503, 503)
    assert len(json.loads(call.result().data)["features"]) == 1


def test_body_above_the_limit_is_refused_unread(folder, monkeypatch):
    monkeypatch.setattr("aws.osml.model_runner.local.stack.model_server.MAX_TILE_BODY_BYTES", 1000)
    with ModelServer(OnnxModel.open(folder / "best.onnx")) as server:
        whole = urllib3.request("POST", server.invocations_url, body=b"x" * 1001, retries=False)
        chunked = urllib3.request("POST", server.invocations_url, body=iter([b"x" * 600] * 2), retries=False)
        fits = urllib3.request("POST", server.invocations_url, body=b"x" * 1000, retries=False)
    assert (whole.status, chunked.status, fits.status) == (413, 413, 415)


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["model", "none"], "none must have one file whose name ends in .onnx; it has none"),
        (["model", "two"], "it has a.onnx, b.onnx"),
        (["model", "missing.onnx"], "missing.onnx cannot be read"),
        (["model", "broken.onnx"], "broken.onnx is not an ONNX file that can be used"),
        (["run", "tile.tif", "--model", "missing.onnx"], "missing.onnx cannot be read"),
        (["run", "tile.tif", "--model", "broken.onnx"], "broken.onnx is not an ONNX file that can be used"),
        (["run", "tile.tif", "--model", "best.onnx", "--model-options", '{"a": 1}'], "are in its card"),
        (["run", "tile.tif", "--model", "bad-card.onnx"], "bad-card.json: overlap -1: expected a number of at least 0"),
    ],
)
def test_file_of_no_use_is_refused_before_anything_starts(folder, monkeypatch, capsys, arguments, reason):
    for name in ("none", "two"):
        (folder / name).mkdir()
    for name in ("broken.onnx", "two/a.onnx", "two/b.onnx"):
        (folder / name).write_bytes(b"\x08\x01broken")
    save(cell_network("YOLO_V8", metadata=NAMES), folder / "bad-card.onnx")
    (folder / "bad-card.json").write_text('{"overlap": -1}')
    monkeypatch.chdir(folder)
    with patch.object(LocalStack, "__enter__", side_effect=AssertionError("the stack was started")):
        assert main(arguments) == 2
    assert reason in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "tiles", "pixels"),
    [
        ([], (96, 24, "PNG"), {"bands": [3, 2, 1], "gsd": 0.3}),
        (["--tile-size", "64"], (64, 8, "PNG"), {"bands": [3, 2, 1], "gsd": 0.3}),
        (["--overlap", "5", "--format", "GTIFF"], (96, 5, "GTIFF"), {"bands": [3, 2, 1], "gsd": 0.3}),
        (["--scale", "2"], (96, 24, "PNG"), {"bands": [3, 2, 1], "scale": 2}),
        (["--bands", "1,1,1", "--gsd", "1"], (96, 24, "PNG"), {"bands": [1, 1, 1], "gsd": 1}),
    ],
)
def test_run_takes_tiles_and_pixels_from_the_file_and_its_card(folder, monkeypatch, options, tiles, pixels):
    deepness = {"tiles_size": "96", "tiles_overlap": "25", "resolution": "30"}
    path = save(cell_network("YOLO_V8", metadata=NAMES | deepness), folder / "best.onnx")
    steps = [{"step": "FEATURE_DISTILLATION", "algorithm": {"algorithmType": "NMS"}}]
    card = {"input": {"bands": [3, 2, 1], "pixelScale": 0.01}, "tileFormat": "PNG", "postProcessing": steps}
    path.with_suffix(".json").write_text(json.dumps(card))
    monkeypatch.chdir(folder)
    with patch("aws.osml.model_runner.local.image_run.run_image", side_effect=KeyboardInterrupt) as started:
        main(["run", "tile.tif", "--model", "best.onnx", *options])
    [run] = started.call_args.args[:1]
    assert (run.tiles.size_px, run.tiles.overlap_px, run.tiles.tile_format) == tiles
    assert run.members["imageProcessorInput"] == pixels
    assert run.members["postProcessing"] == steps
    assert (run.model, run.model_options["path"]) == ("onnx", os.path.realpath(path))


@pytest.mark.parametrize(
    ("shape", "dtype", "options", "reason"),
    [
        (
            (4, 64, 64),
            np.uint8,
            [],
            "has 4 bands, and the network takes 3: choose 3 with --bands, such as --bands 1,2,3",
        ),
        ((1, 64, 64), np.uint8, [], "has 1 bands, and the network takes 3"),
        ((3, 64, 64), np.uint8, ["--bands", "1,2"], "has 3 bands, and the network takes 3: choose 3"),
        ((3, 64, 64), np.uint16, [], "has samples of uint16, and the network takes uint8: add --pixel-type uint8"),
        ((4, 64, 64), np.uint8, ["--bands", "1,2,3"], None),
        ((3, 64, 64), np.uint16, ["--pixel-type", "uint8", "--stretch", "percentile"], None),
    ],
)
def test_image_that_the_network_does_not_take_is_refused(folder, monkeypatch, capsys, shape, dtype, options, reason):
    write_geotiff(folder / "image.tif", np.zeros(shape, dtype))
    monkeypatch.chdir(folder)
    with patch("aws.osml.model_runner.local.image_run.run_image", side_effect=KeyboardInterrupt):
        status = main(["run", "image.tif", "--model", "best.onnx", *options])
    assert status == (130 if reason is None else 2)
    assert reason is None or reason in capsys.readouterr().err


@pytest.mark.long
def test_run_of_an_onnx_file_finds_each_object_once(tmp_path):
    # Objects of 8 pixels on the grid of cells; tiles of 64 with an overlap of 16 begin at multiples of 48.
    rng = np.random.default_rng(3)
    pixels = np.zeros((3, 208, 256), np.uint8)
    places = {(int(x), int(y)) for x, y in rng.integers(0, [32, 26], (25, 2))}
    for column, row in places:
        pixels[column % 2, row * 8 : row * 8 + 8, column * 8 : column * 8 + 8] = 204
    write_geotiff(tmp_path / "scene.tif", pixels)
    save(cell_network("YOLO_V8", metadata=NAMES), tmp_path / "best.onnx")
    command = ["run", "scene.tif", "--model", "best.onnx", "--overlap", "16", "--no-view"]
    done = subprocess.run(
        [sys.executable, "-m", "aws.osml.model_runner", *command], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    features = json.loads((tmp_path / "scene.geojson").read_text())["features"]
    found = sorted((each["properties"]["class"], *each["properties"]["imageBBox"]) for each in features)
    names = ("ship", "plane")
    assert found == sorted((names[x % 2], x * 8, y * 8, x * 8 + 8, y * 8 + 8) for x, y in places)
