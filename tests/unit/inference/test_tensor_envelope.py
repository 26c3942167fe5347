"""Bodies with tensors: those of tritonclient's own encoder, the order of axes and the types, and refusals by name."""

import io
import json

import numpy as np
import orjson
import pytest

from aws.osml.model_runner.api.model_protocol import ModelProtocol
from aws.osml.model_runner.exceptions import ModelCallError
from aws.osml.model_runner.inference.tensor_envelope import envelope_of, framed_response
from unit.features.test_tensor_response import triton

TENSORS = {"tensors": {"layout": "YOLO_V8"}}
PIXELS = np.random.default_rng(2).integers(0, 255, (6, 8, 3), dtype=np.uint8)


def numpy_file(pixels):
    file = io.BytesIO()
    np.save(file, pixels)
    return file.getbuffer()


def envelope(protocol="KSERVE_V2", inputs=None, metadata=None, **tensor):
    stored = {"protocol": protocol, "envelope": {"tensor": tensor}, "answer": TENSORS}
    described = metadata if metadata is not None else orjson.dumps({"name": "m", "inputs": inputs or []})
    return envelope_of(ModelProtocol.of(stored), "PNG", lambda: described)


def sent(tile, **options):
    """Return the JSON and the bytes of the body for a tile."""
    body, _, length = envelope(**options).wrap(tile)
    return json.loads(body[:length]), body[length:]


@pytest.mark.parametrize(
    ("datatype", "shape"),
    [("UINT8", [1, 3, -1, -1]), ("UINT16", [-1, 3, 6, 8]), ("FP32", [3, -1, -1]), ("FP16", [1, 6, 8, 3])],
)
def test_body_is_that_of_tritonclient(datatype, shape):
    described = {"name": "images", "datatype": datatype, "shape": shape}
    body, media_type, length = envelope(inputs=[described]).wrap(numpy_file(PIXELS))
    types = {"UINT8": np.uint8, "UINT16": np.uint16, "FP32": np.float32, "FP16": np.float16}
    ordered = (PIXELS if shape[-1] == 3 else PIXELS.transpose(2, 0, 1)).astype(types[datatype])
    ordered = ordered[np.newaxis] if len(shape) == 4 else ordered
    tensor = triton("_infer_input").InferInput("images", list(ordered.shape), datatype)
    tensor.set_data_from_numpy(np.ascontiguousarray(ordered), binary_data=True)
    options = {"request_id": "", "outputs": None, "sequence_id": 0, "sequence_start": False, "sequence_end": False}
    options |= {"priority": 0, "timeout": None, "custom_parameters": None}
    theirs, their_length = triton("_utils")._get_inference_request([tensor], **options)
    assert json.loads(body[:length]) == json.loads(theirs[:their_length])
    assert body[length:] == theirs[their_length:]
    assert media_type == "application/octet-stream"


def test_picture_is_one_element_of_bytes():
    tile = b"\x89PNG picture"
    described = {"name": "raw", "datatype": "BYTES", "shape": [-1, 1]}
    head, content = sent(tile, protocol="KSERVE_V2_IMAGE", inputs=[described])
    tensor = triton("_infer_input").InferInput("raw", [1, 1], "BYTES")
    tensor.set_data_from_numpy(np.array([[tile]], dtype=np.object_), binary_data=True)
    assert head["inputs"] == [tensor._get_tensor()]
    assert content == tensor._get_binary_data()
    assert sent(tile, protocol="KSERVE_V2_IMAGE", name="raw")[0]["inputs"][0]["shape"] == [1]


def test_floats_are_scaled_and_normalised():
    options = {"name": "x", "datatype": "FP32", "layout": "NHWC"}
    options |= {"pixelScale": 0.5, "mean": [1, 2, 3], "std": [2, 4, 8]}
    _, content = sent(numpy_file(PIXELS), **options)
    found = np.frombuffer(content, "<f4").reshape(PIXELS.shape)
    np.testing.assert_allclose(found, (PIXELS * 0.5 - [1, 2, 3]) / [2, 4, 8], rtol=1e-6)


def test_smaller_tile_lies_in_upper_left_corner():
    head, content = sent(numpy_file(PIXELS), name="x", datatype="UINT8", shape=[1, 3, 10, 12])
    found = np.frombuffer(content, "u1").reshape(3, 10, 12)
    assert head["inputs"][0]["shape"] == [1, 3, 10, 12]
    np.testing.assert_array_equal(found[:, :6, :8], PIXELS.transpose(2, 0, 1))
    assert not found[:, 6:].any()
    assert not found[:, :, 8:].any()


def test_request_wins_over_metadata_and_metadata_are_read_once():
    reads = []
    stored = {"protocol": "KSERVE_V2", "answer": TENSORS, "envelope": {"tensor": {"layout": "NHWC"}}}
    described = orjson.dumps({"inputs": [{"name": "a", "datatype": "UINT8", "shape": [1, -1, -1, 3]}]})
    wrap = envelope_of(ModelProtocol.of(stored), "PNG", lambda: reads.append(1) or described).wrap
    for _ in range(3):
        body, _, length = wrap(numpy_file(PIXELS[:3, :3]))
        assert json.loads(body[:length])["inputs"][0]["shape"] == [1, 3, 3, 3]
        assert body[length:] == PIXELS[:3, :3].tobytes()
    assert len(reads) == 1


GOOD = {"name": "images", "datatype": "UINT8", "shape": [1, 3, -1, -1]}


@pytest.mark.parametrize(
    ("options", "pixels", "reason"),
    [
        ({"metadata": b"<html>"}, PIXELS, "metadata of the model are not valid JSON"),
        ({"metadata": b"[]"}, PIXELS, "have no list of inputs"),
        ({"metadata": b'{"inputs": [1]}'}, PIXELS, "have no list of inputs"),
        ({"inputs": []}, PIXELS, "the model has the inputs none"),
        ({"inputs": [GOOD, GOOD | {"name": "size"}]}, PIXELS, "the inputs images, size: envelope.tensor.name has to"),
        ({"inputs": [GOOD], "name": "pixels"}, PIXELS, "the inputs images: none of them is pixels"),
        ({"inputs": [GOOD | {"datatype": "INT64"}]}, PIXELS, "the input images has a type or a shape that no tile has"),
        ({"inputs": [GOOD | {"shape": "large"}]}, PIXELS, "the input images has a type or a shape"),
        ({"inputs": [GOOD | {"shape": [3]}]}, PIXELS, "the input images has 1 dimensions instead of 3 or 4"),
        (
            {"inputs": [GOOD | {"shape": [1, 4, -1, -1]}]},
            PIXELS,
            "takes 4 bands, and tiles have 3: use imageProcessorInput",
        ),
        ({"inputs": [GOOD | {"shape": [1, 3, 4, 4]}]}, PIXELS, "takes 4 x 4 pixels, and the tile has 8 x 6"),
        ({"inputs": [GOOD | {"shape": [1, 3, 90_000, 90_000]}]}, PIXELS, "has more than 268435456 bytes"),
        ({"inputs": [GOOD]}, PIXELS.astype(np.uint16), "takes UINT8, and tiles are uint16"),
        ({"inputs": [GOOD | {"datatype": "FP32"}], "mean": [1, 2]}, PIXELS, "envelope.tensor.mean has 2 numbers"),
    ],
)
def test_tile_that_input_does_not_take_is_refused_by_name(options, pixels, reason):
    with pytest.raises(ModelCallError) as caught:
        envelope(**options).wrap(numpy_file(pixels))
    assert reason in str(caught.value)
    assert caught.value.code == "BAD_REQUEST"


@pytest.mark.parametrize("length", ["", "x", "-1", "1.5", "9" * 13, "٣"])
def test_length_of_response_that_is_no_number_is_refused(length):
    with pytest.raises(ModelCallError, match="not a whole number"):
        framed_response(b"{}", length)


def test_room_counts_bytes_of_samples_as_they_are_sent():
    _, room_in = envelope(name="x", datatype="FP32", shape=[1, 3, -1, -1])
    room = room_in(1_000_000, 2)
    assert 995_000 // 4 * 2 - 4 <= room < 1_000_000 // 2
    assert envelope("KSERVE_V2_IMAGE", name="x").room_in(1_000_000, 2) < 1_000_000
