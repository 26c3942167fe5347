"""ONNX files behind the real server: families of networks, inputs, batches, metadata, cards, and broken files."""

import contextlib
import json
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import onnx
import pytest
import urllib3
from onnx import TensorProto, helper, numpy_helper

from aws.osml.model_runner.exceptions import ConfigurationError
from aws.osml.model_runner.local.onnx.onnx_model import OnnxModel
from aws.osml.model_runner.local.stack.model_server import ModelServer
from aws.osml.model_runner.raster.pixels import write_geotiff
from onnx_files import cell_network, constant_network, save, tile_of

NAMES = {"names": "{0: 'ship', 1: 'plane'}"}
CELLS = {(1, 2): (204, 0), (6, 0): (0, 153), (3, 7): (40, 0)}
# 204 / 255 and 153 / 255; a cell with 40 / 255 is below 0.25
FOUND = [("ship", 0.8, [8, 16, 16, 24]), ("plane", 0.6, [48, 0, 56, 8])]


@pytest.fixture
def http():
    with urllib3.PoolManager(maxsize=32, retries=False, timeout=20) as pool:
        yield pool


@pytest.fixture
def encoded(tmp_path):
    def encode(pixels):
        path = tmp_path / "tile.tif"
        write_geotiff(path, pixels)
        return path.read_bytes()

    return encode


@pytest.fixture
def opened(tmp_path):
    def write(model, card=None, name="best.onnx"):
        path = save(model, tmp_path / name)
        if card is not None:
            path.with_suffix(".json").write_text(card if isinstance(card, str) else json.dumps(card))
        return OnnxModel.open(path)

    return write


def found_by(http, model, body):
    with ModelServer(model) as server:
        response = http.request("POST", server.invocations_url, body=body)
    answer = json.loads(response.data)
    assert response.status == 200, answer
    described = []
    for feature in answer["features"]:
        [known] = feature["properties"]["featureClasses"]
        described.append((known["iri"], known["score"], feature["properties"]["imageBBox"]))
    return described


def assert_found(described, expected=FOUND, atol=1e-3):
    assert [label for label, _, _ in described] == [label for label, _, _ in expected]
    np.testing.assert_allclose([score for _, score, _ in described], [score for _, score, _ in expected], atol=1e-4)
    np.testing.assert_allclose([box for _, _, box in described], [box for _, _, box in expected], atol=atol)


TORCHVISION = {
    "answer": {
        "tensors": {"layout": "BOXES_SCORES_LABELS", "scores": "scores_found"},
        "classes": {"1": "ship", "2": "plane"},
    }
}


@pytest.mark.parametrize(
    ("layout", "card"),
    [
        ("YOLO_V8", None),
        ("YOLO_V5", None),
        ("YOLO_END2END", {"answer": {"tensors": {"layout": "YOLO_END2END"}}}),
        ("DETR", None),
        ("TORCHVISION", TORCHVISION),
    ],
)
def test_same_features_from_each_family(http, encoded, opened, layout, card):
    batch = 1 if layout == "TORCHVISION" else "batch"
    model = opened(cell_network(layout, batch=batch, metadata=NAMES), card)
    assert_found(found_by(http, model, encoded(tile_of(CELLS))))


@pytest.mark.parametrize("bands_last", [False, True])
@pytest.mark.parametrize("dtype", [TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.UINT8, TensorProto.DOUBLE])
def test_layout_and_type_of_the_input_are_those_of_the_graph(http, encoded, opened, bands_last, dtype):
    model = opened(cell_network("YOLO_V8", bands_last=bands_last, dtype=dtype, metadata=NAMES))
    found = found_by(http, model, encoded(tile_of(CELLS)))
    assert [label for label, _, _ in found] == ["ship", "plane"]
    np.testing.assert_allclose([score for _, score, _ in found], [0.8, 0.6], atol=1e-3)


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        # smaller than the input: unscaled in its upper left corner, so that objects keep their size
        ((32, 40), [8, 16, 16, 24]),
        # twice the input's height and as wide: half the scale, centered, and the cell (1, 2) is a cell of 16 pixels
        ((64, 128), None),
        ((128, 128), [16, 32, 32, 48]),
    ],
)
def test_tile_of_another_size_than_the_input(http, encoded, opened, size, expected):
    pixels = np.zeros((3, size[1], size[0]), np.uint8)
    x1, y1, x2, y2 = expected or (0, 32, 16, 48)
    pixels[0, y1:y2, x1:x2] = 204
    model = opened(cell_network("YOLO_V8", metadata=NAMES))
    found = found_by(http, model, encoded(pixels))
    boxes = [box for label, score, box in found if score > 0.7]
    np.testing.assert_allclose(boxes, [[x1, y1, x2, y2]])


def test_fit_of_the_card_stretches_the_tile(http, encoded, opened):
    card = {"answer": {"tensors": {"fit": "STRETCH"}}}
    pixels = tile_of({}, (128, 32))
    pixels[0, 8:12, 32:48] = 204  # the cell 16..24 x 16..24 of the input
    found = found_by(http, opened(cell_network("YOLO_V8", metadata=NAMES), card), encoded(pixels))
    assert_found(found, [("ship", 0.8, [32, 8, 48, 12])])


def test_input_of_any_size_takes_the_tile_rounded_up_to_the_stride(http, encoded, opened):
    # the boxes of this network are those of 96 x 64 pixels, to which 90 x 50 is rounded up by 32
    network = cell_network("YOLO_V8", size=(96, 64), has_free_sides=True, metadata=NAMES | {"imgsz": "[64, 96]"})
    # and the grey margin of 114 of 255 is below the least score
    model = opened(network, {"answer": {"minScore": 0.5}})
    assert_found(found_by(http, model, encoded(tile_of({(1, 2): (204, 0)}, (90, 50)))), FOUND[:1])


def test_samples_are_scaled_and_standardized_as_the_card_says(http, encoded, opened):
    # (s / 100 - 0.2) / 2 of 120 is 0.5, and (s / 200 - 0) / 1 of 60 is 0.3
    card = {
        "input": {"pixelScale": [0.01, 0.005, 1], "mean": [0.2, 0, 0], "std": [2, 1, 1]},
        "answer": {"minScore": 0.29},
    }
    model = opened(cell_network("YOLO_V8", metadata=NAMES), card | {"input": card["input"]})
    pixels = tile_of({(1, 2): (120, 0), (6, 0): (20, 60)}).astype(np.uint16)
    pixels[0][pixels[0] == 0] = 20
    assert_found(found_by(http, model, encoded(pixels)), [("ship", 0.5, FOUND[0][2]), ("plane", 0.3, FOUND[1][2])])


def test_metadata_of_deepness_is_read(http, encoded, opened):
    deepness = {
        "class_names": json.dumps({0: "ship", 1: "plane"}),
        "det_type": json.dumps("YOLO_Ultralytics"),
        "det_conf": "0.7",
        "det_iou_thresh": "0.4",
        "tiles_size": "64",
        "tiles_overlap": "25",
        "resolution": "30",
        "standardization_mean": json.dumps([0, 0, 0]),
        "standardization_std": json.dumps([1.0, 1.0, 1.0]),
    }
    model = opened(cell_network("YOLO_V8", metadata=deepness))
    assert_found(found_by(http, model, encoded(tile_of(CELLS))), FOUND[:1])
    assert (model.card.tile_size, model.card.overlap, model.card.input.gsd) == (64, 16, 0.3)
    assert (model.tensor_format.min_score, model.tensor_format.iou) == (0.7, 0.4)


def test_card_comes_before_metadata(http, encoded, opened):
    card = {
        "name": "harbour",
        "version": "7",
        "classes": ["a", "b"],
        "answer": {"minScore": 0.7, "classes": ["boat", "jet"]},
    }
    model = opened(cell_network("YOLO_V8", metadata=NAMES | {"det_conf": "0.1"}), card)
    assert_found(found_by(http, model, encoded(tile_of(CELLS))), [("boat", *FOUND[0][1:])])
    assert model.name == "harbour"


def test_concurrent_calls_run_in_batches_and_get_their_own_result(http, encoded, opened):
    network = cell_network("YOLO_V8", metadata=NAMES)
    model = opened(network)
    bodies = [encoded(tile_of({(number % 8, number // 8): (200, 0)})) for number in range(40)]
    # Hold the first batch until all calls wait, so that batches do not depend on speed.
    gate, run = threading.Event(), model.batches._run
    model.batches._run = lambda arrays: (gate.wait(20), run(arrays))[1]
    with ModelServer(model) as server, ThreadPoolExecutor(40) as callers:
        calls = [callers.submit(http.request, "POST", server.invocations_url, body=body) for body in bodies]
        while len(model.batches._waiting) < 24:
            pass
        gate.set()
        answers = [json.loads(call.result().data) for call in calls]
    boxes = [[feature["properties"]["imageBBox"] for feature in answer["features"]] for answer in answers]
    expected = [[[n % 8 * 8, n // 8 * 8, n % 8 * 8 + 8, n // 8 * 8 + 8]] for n in range(40)]
    assert boxes == expected
    assert 1 < model.batches.largest_batch <= 16


def test_error_of_one_call_of_a_batch_is_not_that_of_others(opened):
    model = opened(cell_network("YOLO_V8", metadata=NAMES))
    run = model.batches._run

    def broken(arrays):
        if any(array.max() > 0.9 for array in arrays):
            raise ValueError("one")
        return run(arrays)

    model.batches._run = broken
    model.batches._running.acquire()
    with ThreadPoolExecutor(4) as callers:
        arrays = [np.full((3, 64, 64), value, np.float32) for value in (0.1, 1, 0.5, 0.2)]
        calls = [callers.submit(model.batches.call, array) for array in arrays]
        while len(model.batches._waiting) < 4:
            pass
        model.batches._running.release()
        for call, array in zip(calls, arrays, strict=True):
            if array.max() > 0.9:
                with pytest.raises(ValueError, match="one"):
                    call.result()
            else:
                assert call.result()["output0"][0, 4, 0] == pytest.approx(array.max())


def test_fixed_batch_of_one_is_not_batched(opened):
    assert opened(cell_network("YOLO_V8", batch=1, metadata=NAMES)).batches.max_batch == 1
    # the number of boxes is a free axis too
    assert opened(cell_network("TORCHVISION"), TORCHVISION, "boxes.onnx").batches.max_batch == 1
    assert opened(cell_network("YOLO_V8", metadata=NAMES)).batches.max_batch == 16


@pytest.mark.parametrize(
    ("body", "status", "reason"),
    [
        (b"no image", 415, "cannot be decoded"),
        (np.zeros((4, 64, 64), np.uint8), 400, "has 4 bands, and the network takes 3"),
        (np.zeros((3, 64, 64), np.uint16), 400, "samples of the type uint16"),
    ],
)
def test_tile_that_the_network_does_not_take_is_refused(http, encoded, opened, body, status, reason):
    model = opened(cell_network("YOLO_V8", metadata=NAMES))
    with ModelServer(model) as server:
        sent = body if isinstance(body, bytes) else encoded(body)
        response = http.request("POST", server.invocations_url, body=sent)
        assert (response.status, reason in json.loads(response.data)["error"]) == (status, True)
        query = http.request("POST", f"{server.invocations_url}?minScore=1", body=encoded(tile_of({})))
        assert (query.status, "minScore" in json.loads(query.data)["error"]) == (400, True)


V8 = np.zeros((1, 6, 84), np.float32)


LAYOUT = {"answer": {"tensors": {"layout": "YOLO_V8"}}}
DETR = {"logits": np.zeros((1, 9, 3), np.float32), "pred_boxes": np.zeros((1, 9, 4), np.float32)}
TWO = {"o": np.zeros((1, 20, 6), np.float32), "p": V8}


def of_v8(**metadata):
    return constant_network({"o": V8}, metadata=metadata)


def refused():
    yield "two heads", constant_network(TWO), None, "answer.tensors.layout"
    yield "map", constant_network({"o": np.zeros((1, 1, 64, 64), np.float32)}), None, "answer.tensors.layout"
    yield "DETR or RT-DETR", constant_network(DETR), None, "answer.tensors.activation"
    yield "task", of_v8(task="segment"), None, "only networks for detection"
    yield "logits", constant_network({"o": V8 + 7}, metadata=NAMES), None, "scores from 7 to 7"
    yield "not a number", constant_network({"o": V8 * np.nan}, metadata=NAMES), None, "not finite"
    yield "two images", _two_inputs(), None, "only networks with one input"
    yield "batch of 4", constant_network({"o": V8}, (4, 3, 64, 64), NAMES), None, "a batch of 4"
    yield "no bands", constant_network({"o": V8}, (1, "c", 64, "w"), NAMES), None, "neither the first nor the last"
    yield "names", of_v8(names="__import__('os').abort()"), None, "names"
    yield "names nested", of_v8(names="[" * 90_000), None, "names"
    yield "names long", of_v8(names=" " * 600_000), None, "600000 characters"
    yield "imgsz", of_v8(imgsz="[1, 2, 3]"), None, "imgsz"
    yield "card key", of_v8(**NAMES), {"answer": {"tensor": {}}}, "answer.tensor"
    yield "card value", of_v8(**NAMES), {"answer": {"minScore": 2}}, "answer.minScore 2"
    yield "card text", of_v8(**NAMES), "{not json", "valid JSON"
    yield "classes", of_v8(names="{0: 'a'}"), LAYOUT, "4 + 1"


def _two_inputs():
    model = constant_network({"o": V8})
    model.graph.input.append(helper.make_tensor_value_info("other", TensorProto.FLOAT, [1]))
    model.graph.node.append(helper.make_node("Identity", ["other"], ["unused"]))
    return model


REFUSED = list(refused())


@pytest.mark.parametrize(
    ("network", "card", "reason"), [case[1:] for case in REFUSED], ids=[case[0] for case in REFUSED]
)
def test_file_that_cannot_be_served_is_refused_with_its_reason(opened, network, card, reason):
    with pytest.raises(ConfigurationError) as error:
        opened(network, card)
    assert reason in str(error.value)
    assert "best." in str(error.value)


@pytest.mark.parametrize("length", [0, 1, 17, 500, -1])
def test_truncated_file_is_refused(tmp_path, length):
    path = tmp_path / "cut.onnx"
    path.write_bytes(cell_network("YOLO_V8").SerializeToString()[:length])
    with pytest.raises(ConfigurationError, match=r"cut\.onnx is not"):
        OnnxModel.open(path)


def test_other_bytes_are_refused(tmp_path):
    rng = np.random.default_rng(5)
    whole = bytearray(cell_network("YOLO_V8", metadata=NAMES).SerializeToString())
    for number in range(60):
        changed = whole.copy()
        for place in rng.integers(0, len(whole), 8):
            changed[place] = rng.integers(256)
        path = tmp_path / f"{number}.onnx"
        path.write_bytes(changed)
        with contextlib.suppress(ConfigurationError):  # a changed number of the graph may leave it valid
            OnnxModel.open(path)


def test_directory_missing_and_empty_files_are_refused(tmp_path):
    (tmp_path / "empty.onnx").touch()
    for name, reason in (
        ("", "is not a file"),
        ("missing.onnx", "cannot be read"),
        ("empty.onnx", "is not a file of 1 byte"),
    ):
        with pytest.raises(ConfigurationError, match=reason):
            OnnxModel.open(tmp_path / name)


def test_file_above_2_gib_is_refused_unread(tmp_path):
    path = tmp_path / "huge.onnx"
    with path.open("wb") as file:
        file.truncate(2 * 1024**3 + 1)  # sparse
    with pytest.raises(ConfigurationError, match="2 GiB"):
        OnnxModel.open(path)


def with_weights_in(location, length=16):
    model = constant_network({"o": V8}, metadata=NAMES)
    weight = helper.make_tensor("elsewhere", TensorProto.FLOAT, [4], np.zeros(4, np.float32).tobytes(), raw=True)
    weight.ClearField("raw_data")
    weight.data_location = TensorProto.EXTERNAL
    for key, value in (("location", location), ("length", str(length))):
        entry = weight.external_data.add()
        entry.key, entry.value = key, value
    model.graph.initializer.append(weight)
    model.graph.node.append(helper.make_node("ReduceMax", ["elsewhere"], ["most"], keepdims=0))
    model.graph.node.append(helper.make_node("Add", ["o", "most"], ["p"]))
    model.graph.output[0].name = "p"
    return model


def test_weights_beside_the_file_are_read(tmp_path, opened):
    (tmp_path / "best.onnx.data").write_bytes(np.zeros(4, np.float32).tobytes())
    opened(with_weights_in("best.onnx.data"))


@pytest.mark.parametrize(
    "location", ["../secret", "/etc/hostname", "link", "a/../../secret", "missing", "/dev/zero", "."]
)
def test_weights_elsewhere_are_not_read(tmp_path, location):
    folder = tmp_path / "model"
    folder.mkdir()
    (tmp_path / "secret").write_bytes(np.zeros(4, np.float32).tobytes())
    (folder / "link").symlink_to("../secret")
    path = save(with_weights_in(location), folder / "best.onnx")
    with pytest.raises(ConfigurationError, match="is not an ONNX file that can be used"):
        OnnxModel.open(path)


def test_network_that_does_not_end_is_stopped(tmp_path, monkeypatch):
    monkeypatch.setattr("aws.osml.model_runner.local.onnx.network.RUN_LIMIT_S", 1.0)
    body = helper.make_graph(
        [helper.make_node("Identity", ["go"], ["again"]), helper.make_node("Add", ["o_in", "step"], ["o_out"])],
        "body",
        [
            helper.make_tensor_value_info("number", TensorProto.INT64, []),
            helper.make_tensor_value_info("go", TensorProto.BOOL, []),
            helper.make_tensor_value_info("o_in", TensorProto.FLOAT, V8.shape),
        ],
        [
            helper.make_tensor_value_info("again", TensorProto.BOOL, []),
            helper.make_tensor_value_info("o_out", TensorProto.FLOAT, V8.shape),
        ],
        [numpy_helper.from_array(np.zeros((), np.float32), "step")],
    )
    model = constant_network({"o": V8}, metadata=NAMES)
    model.graph.initializer.append(numpy_helper.from_array(np.array(True), "always"))
    model.graph.node.append(helper.make_node("Loop", ["", "always", "o"], ["p"], body=body))
    model.graph.output[0].name = "p"
    with pytest.raises(ConfigurationError, match="did not end within 1 s"):
        OnnxModel.open(save(model, tmp_path / "endless.onnx"))


def test_graph_of_tests_is_valid():
    for layout in ("YOLO_V8", "YOLO_V5", "YOLO_END2END", "DETR", "TORCHVISION"):
        onnx.checker.check_model(cell_network(layout), full_check=True)
