"""Responses with tensors: what tritonclient reads from the same bytes, and twenty that are broken."""

import importlib
import sys
import types
from collections import Counter

import numpy as np
import orjson
import pytest

from aws.osml.model_runner.api.model_protocol import Answer
from aws.osml.model_runner.common.typing import ImageDimensions
from aws.osml.model_runner.exceptions import BadModelResponseError
from aws.osml.model_runner.features.detection_tensors import Fit
from aws.osml.model_runner.features.tensor_response import MAX_TENSORS, TensorReader, framed, read_tensors
from detection_servers import JSON_LENGTH, kserve_reply

MAX_BYTES = 128 * 1024 * 1024
TILE = ImageDimensions(200, 100)
HEADERS = {"content-type": "application/octet-stream"}


def triton(module):
    """Return a module of tritonclient's HTTP client, whose package imports a client of gevent that is not needed."""
    package = importlib.import_module("tritonclient")
    if "tritonclient.http" not in sys.modules:
        stub = types.ModuleType("tritonclient.http")
        stub.__path__ = [f"{next(iter(package.__path__))}/http"]
        sys.modules["tritonclient.http"] = stub
    return importlib.import_module(f"tritonclient.http.{module}")


def response(*outputs, content=b"", length=None):
    head = orjson.dumps({"model_name": "m", "outputs": list(outputs)})
    return framed(head + content, len(head) if length is None else length)


def output(name="dets", datatype="FP32", shape=(1, 4), **more):
    return {"name": name, "datatype": datatype, "shape": list(shape), **more}


def binary(size_bytes):
    return {"parameters": {"binary_data_size": size_bytes}}


@pytest.mark.parametrize("dtype", ["float32", "float16", "float64", "int64", "int32"])
@pytest.mark.parametrize("is_binary", [True, False])
def test_tensors_are_those_that_tritonclient_reads(dtype, is_binary):
    numbers = np.random.default_rng(3).uniform(-500, 500, (2, 3, 5)).astype(dtype)
    outputs = {"a": numbers, "empty": np.zeros((0, 4), dtype), "b": numbers[:, ::-1].copy()}
    reply = kserve_reply(outputs, HEADERS, is_binary=is_binary)
    length = reply.headers.get(JSON_LENGTH)
    known = triton("_infer_result").InferResult.from_response_body(reply.body, False, length and int(length))
    found = read_tensors(framed(reply.body, int(length or len(reply.body))), MAX_BYTES)
    assert list(found) == list(outputs)
    for name, tensor in outputs.items():
        np.testing.assert_array_equal(found[name], tensor)
        np.testing.assert_array_equal(found[name], known.as_numpy(name))
        assert found[name].shape == tensor.shape


def test_detections_become_features_in_pixels_of_tile():
    answer = {"tensors": {"layout": "BOXES_SCORES_LABELS", "boxes": "dets"}, "classes": {"1": "ship"}, "minScore": 0.3}
    outputs = {
        "dets": np.array([[10, 20, 30, 40], [50, 60, 70, 80], [190, 90, 250, 150], [300, 300, 310, 310], [1, 2, 3, 4]]),
        "scores": np.array([0.5, 0.9, 0.8, 0.7, 0.2]),
        "labels": np.array([1, 3, 1, 1, 1]),
    }
    reply = kserve_reply(outputs, HEADERS, is_binary=False)
    reader = TensorReader(Answer.model_validate(answer), Fit.NONE)
    parsed = reader.read(framed(reply.body, len(reply.body)), TILE, MAX_BYTES)
    assert parsed.dropped == Counter({"NO_AREA_IN_TILE": 1})
    assert [feature["properties"] for feature in parsed.features] == [
        {"imageBBox": [50, 60, 70, 80], "featureClasses": [{"iri": "3", "score": 0.9}]},
        {"imageBBox": [190, 90, 200, 100], "featureClasses": [{"iri": "ship", "score": 0.8}]},
        {"imageBBox": [10, 20, 30, 40], "featureClasses": [{"iri": "ship", "score": 0.5}]},
    ]


FOUR = np.arange(4, dtype="<f4").tobytes()
BROKEN = [
    (b"", "no frame"),
    (framed(b"", 0), "not valid JSON"),
    (framed(b"{}", 2), "no list of outputs"),
    (framed(b"[]", 2), "no list of outputs"),
    (framed(b'{"outputs": [7]}', 16), "no list of outputs"),
    (framed(b'{"error": "secret"}', 19), "no list of outputs"),
    (framed(b'{"outputs": []}', 2**63), "the JSON of the response has 9223372036854775808 bytes by its header"),
    (framed(b'{"outputs": []}', 4), "not valid JSON"),
    (response(*[output(str(n)) for n in range(MAX_TENSORS + 1)]), f"has {MAX_TENSORS + 1} outputs"),
    (response(output(name=7)), "an output of the response has no name"),
    (response(output(datatype="BYTES")), "tensor dets has a datatype that is not one of BOOL"),
    (response(output(datatype=["FP32"])), "tensor dets has a datatype"),
    (response(output(shape=[-1, 4])), "tensor dets has a shape that is not a list"),
    (response(output(shape=[1.5])), "tensor dets has a shape"),
    (response(output(shape=[1] * 9)), "tensor dets has a shape"),
    (response(output(shape=[2**31 - 1] * 8, **binary(2**60))), "and its binary_data_size differs"),
    (response(output(**binary("16")), content=FOUR), "tensor dets (1, 4) of float32 needs 16 bytes"),
    (response(output(**binary(12)), content=FOUR), "tensor dets (1, 4) of float32 needs 16 bytes"),
    (response(output(**binary(16)), content=FOUR[:-1]), "tensor dets (1, 4) has 15 of 16 bytes"),
    (response(output(**binary(16)), content=FOUR + b"x"), "has 1 bytes that belong to no tensor"),
    (response(output(**binary(16)), output(**binary(16)), content=2 * FOUR), "tensor dets is in the response twice"),
    (response(output()), "tensor dets (1, 4) has neither data nor binary_data_size"),
    (response(output(data="AAAA")), "tensor dets (1, 4) has neither data nor"),
    (response(output(data=[1, 2, 3])), "tensor dets (1, 4) has 3 numbers instead of 4"),
    (response(output(data=[[1, 2], [3]])), "tensor dets (1, 4) has nested data of different lengths"),
    (response(output(data=[1, 2, 3, "4"])), "tensor dets (1, 4) has data that are not numbers"),
    (response(output(data=[1, 2, 3, None])), "tensor dets (1, 4) has data that are not numbers"),
    (response(output(data=[1, 2, 3, 4])), "tensor scores is missing: the tensors are dets (1, 4)"),
]


@pytest.mark.parametrize(("body", "reason"), BROKEN, ids=range(len(BROKEN)))
def test_broken_response_fails_its_tile_and_tensor_is_named(body, reason):
    answer = Answer.model_validate({"tensors": {"layout": "BOXES_SCORES_LABELS", "boxes": "dets"}})
    with pytest.raises(BadModelResponseError) as caught:
        TensorReader(answer, Fit.NONE).read(body, TILE, MAX_BYTES)
    assert reason in str(caught.value)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("layout", ["YOLO_V8", "YOLO_V5"])
def test_raw_heads_are_suppressed_unless_request_says_otherwise(layout):
    boxes = [[50, 50, 20, 20], [51, 50, 20, 20], [50, 52, 20, 20]]
    rows = np.array(
        [
            [*box, *([1.0] if layout == "YOLO_V5" else []), score]
            for box, score in zip(boxes, [0.9, 0.8, 0.7], strict=True)
        ]
    )
    tensor = (rows if layout == "YOLO_V5" else rows.T)[np.newaxis].astype(np.float32)
    reply = kserve_reply({"output0": tensor}, HEADERS)
    body = framed(reply.body, int(reply.headers[JSON_LENGTH]))
    for nms, count in ((None, 1), ({"iou": 0.99}, 3), ({}, 1)):
        answer = Answer.model_validate({"tensors": {"layout": layout}, "nms": nms})
        assert len(TensorReader(answer, Fit.NONE).read(body, TILE, MAX_BYTES).features) == count
