"""The protocol of a request: what is accepted, what is refused by name, and where the tile is in a JSON body."""

import json
import re
from pathlib import Path

import jmespath
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aws.osml.model_runner.api.image_request import ImageRequest
from aws.osml.model_runner.api.image_request_message import parse_image_request_message
from aws.osml.model_runner.api.model_protocol import (
    MAX_REPEATS,
    PROTOCOLS,
    Answer,
    ModelProtocol,
    checked_answer,
    with_tile,
)
from aws.osml.model_runner.exceptions import InvalidImageRequestException
from malformed_requests import GOOD

YOLO = {"tensors": {"layout": "YOLO_V8"}}
KSERVE = {"envelope": {"tensor": {"name": "images", "datatype": "UINT8"}}, "answer": YOLO}
CUSTOM = {"protocol": "CUSTOM", "envelope": {"body": "RAW"}, "answer": {"items": "@", "box": "box"}}


def parse(processor, **changes):
    message = {**GOOD, "imageProcessorTileFormat": "PNG", **changes}
    message["imageProcessor"] = message["imageProcessor"] | processor
    (request,) = parse_image_request_message(json.dumps(message))
    return request


def problems_of(processor, **changes):
    with pytest.raises(InvalidImageRequestException) as refusal:
        parse(processor, **changes)
    return {problem.field.removeprefix("imageProcessor."): problem for problem in refusal.value.problems}


@pytest.mark.parametrize("name", PROTOCOLS)
def test_each_protocol_is_kept_in_rows(name):
    processor = {"CUSTOM": CUSTOM}.get(name, {"protocol": name, **(KSERVE if name.startswith("KSERVE") else {})})
    request = parse(processor)
    assert request.model_protocol == (None if name == "OSML" else processor)
    assert ImageRequest.from_item(json.loads(json.dumps(request.to_item()))) == request
    protocol = ModelProtocol.of(request.model_protocol)
    assert (protocol.name, protocol.answer is None) == (name, name == "OSML")


def test_default_leaves_rows_as_they_are():
    for processor in ({}, {"protocol": "OSML"}, {"protocol": ""}, {"protocol": None, "answer": None, "envelope": None}):
        item = parse(processor).to_item()
        assert "model_protocol" not in item
        assert item["tile_format"] == "PNG"


def test_examples_of_guide_are_accepted():
    page = Path(__file__).parents[3] / "docs" / "how-to" / "call-a-model-server.md"
    examples = [json.loads(text) for text in re.findall(r"```json\n(.*?)```", page.read_text(), re.DOTALL)]
    assert {example["protocol"] for example in examples} == PROTOCOLS.keys() - {"OSML", "KSERVE_V2_IMAGE"}
    for example in examples:
        assert parse({"type": "SM_ENDPOINT", **example}).model_protocol is not None


@pytest.mark.parametrize("name", [name for name in PROTOCOLS if PROTOCOLS[name].answer])
def test_paths_of_each_protocol_are_valid(name):
    assert checked_answer(name, Answer.model_validate(PROTOCOLS[name].answer)) is not None


@pytest.mark.parametrize(
    ("processor", "field", "expectation"),
    [
        ({"protocol": "KSERVE_V2", "answer": YOLO}, "envelope", "an object with tensor that has datatype and name"),
        ({"protocol": "KSERVE_V2_IMAGE", "answer": YOLO}, "envelope", "an object with tensor that has name"),
        ({"protocol": "KSERVE_V2", **KSERVE, "answer": {}}, "answer", "an object with tensors, for protocol KSERVE_V2"),
        (
            {"protocol": "KSERVE_V2", **KSERVE, "answer": YOLO | {"items": "@", "box": "b"}},
            "answer",
            "an object without box, items: tensors have no paths",
        ),
        (
            {"protocol": "KSERVE_V2", **KSERVE, "answer": {"tensors": {"layout": "YOLO_V8", "fit": "LETTERBOX"}}},
            "answer",
            "tensors with fit NONE: KSERVE_V2 sends pixels as they are",
        ),
        (CUSTOM | {"answer": YOLO}, "answer", "only KSERVE_V2, KSERVE_V2_IMAGE return tensors"),
        ({"protocol": "ROBOFLOW", "answer": {"nms": {"iou": 0.5}}}, "answer", "an object without nms; only KSERVE_V2"),
        (
            {"protocol": "KSERVE_V2", **KSERVE, "answer": {"tensors": {"layout": "YOLO_V9"}}},
            "answer.tensors.layout",
            "one of 'YOLO_V8', 'YOLO_V5'",
        ),
        (
            {"protocol": "KSERVE_V2", **KSERVE, "answer": {"tensors": {"layout": "DETR", "inputSize": [640]}}},
            "answer.tensors.inputSize",
            "[width, height] in pixels",
        ),
        (
            {"protocol": "KSERVE_V2", **KSERVE, "answer": YOLO | {"nms": {"iou": 2}}},
            "answer.nms.iou",
            "a number of at most 1",
        ),
        (
            {"protocol": "KSERVE_V2", "answer": YOLO, "envelope": {"tensor": {"name": "x", "datatype": "INT64"}}},
            "envelope.tensor.datatype",
            "one of 'UINT8'",
        ),
        (
            {
                "protocol": "KSERVE_V2",
                "answer": YOLO,
                "envelope": {"tensor": KSERVE["envelope"]["tensor"] | {"std": 0}},
            },
            "envelope.tensor.std",
            "numbers other than 0",
        ),
        (
            {
                "protocol": "KSERVE_V2",
                "answer": YOLO,
                "envelope": {"tensor": KSERVE["envelope"]["tensor"] | {"shape": [0]}},
            },
            "envelope.tensor.shape",
            "a list of at most 8 numbers from 1",
        ),
        (KSERVE | {"protocol": "ROBOFLOW", "answer": {}}, "envelope", "only template with protocol ROBOFLOW"),
        ({"protocol": "KSERVE"}, "protocol", "one of 'OSML', 'TORCHSERVE', 'HUGGING_FACE'"),
        ({"protocol": 7}, "protocol", "one of 'OSML'"),
        ({"protocol": "CUSTOM", "answer": CUSTOM["answer"]}, "envelope", "an object with body RAW, MULTIPART or"),
        ({"protocol": "CUSTOM", "envelope": {"body": "RAW"}}, "answer", "an object with items and box or polygon"),
        (CUSTOM | {"envelope": {}}, "envelope", "an object with body"),
        (CUSTOM | {"envelope": {"body": "XML"}}, "envelope.body", "one of 'RAW', 'MULTIPART'"),
        (CUSTOM | {"envelope": {"body": "RAW", "field": "f"}}, "envelope", "only body: a RAW body has neither"),
        (CUSTOM | {"envelope": {"body": "RAW", "colour": 1}}, "envelope.colour", "absent: this key is unknown"),
        (CUSTOM | {"envelope": {"body": "BASE64_JSON"}}, "envelope", "an object with field, the path"),
        (CUSTOM | {"envelope": {"body": "BASE64_JSON", "field": "a..b"}}, "envelope", "a path of names and indices"),
        (CUSTOM | {"envelope": {"body": "BASE64_JSON", "field": "[0].b"}}, "envelope", "a path of names and indices"),
        (CUSTOM | {"envelope": {"body": "BASE64_JSON", "field": "a[5]"}}, "envelope", "room for the tile at a[5]"),
        (
            CUSTOM | {"envelope": {"body": "BASE64_JSON", "field": "a.b", "template": {"a": 1}}},
            "envelope",
            "room for the tile at a.b",
        ),
        (
            CUSTOM | {"envelope": {"body": "BASE64_JSON", "field": "a", "template": {"a": {}}}},
            "envelope",
            "no value, or a text, at a",
        ),
        (CUSTOM | {"envelope": {"body": "MULTIPART", "template": {"a": {}}}}, "envelope", "fields of the form"),
        (CUSTOM | {"envelope": {"body": "MULTIPART", "template": []}}, "envelope.template", "an object"),
        (CUSTOM | {"envelope": {"body": "MULTIPART", "template": {"a": "x" * 20_000}}}, "envelope", "at most 16384"),
        ({"envelope": {"body": "RAW"}}, "envelope", "absent with protocol OSML"),
        ({"protocol": "ROBOFLOW", "envelope": {"field": "image"}}, "envelope", "only template with protocol ROBOFLOW"),
        ({"answer": {"box": "b"}}, "answer", "an object with items and box or polygon, which OSML does not define"),
        (CUSTOM | {"answer": {"items": "@", "label": "n"}}, "answer", "an object with items and box or polygon"),
        (CUSTOM | {"answer": {"items": "@", "bbox": "b"}}, "answer.bbox", "absent: this key is unknown"),
        (CUSTOM | {"answer": {"items": "a[", "box": "b"}}, "answer.items", "a JMESPath: "),
        (CUSTOM | {"answer": {"items": "", "box": "b"}}, "answer.items", "a JMESPath of 1 to 256 characters"),
        (CUSTOM | {"answer": {"items": "a" * 257, "box": "b"}}, "answer.items", "a JMESPath of 1 to 256 characters"),
        (CUSTOM | {"answer": {"items": 5, "box": "b"}}, "answer.items", "a string"),
        (CUSTOM | {"answer": {"items": "sort_by(a, &b)", "box": "b"}}, "answer.items", "without sort_by()"),
        (CUSTOM | {"answer": {"items": "nothing(a)", "box": "b"}}, "answer.items", "a JMESPath without nothing()"),
        (CUSTOM | {"answer": {"items": "[@,@][]|" * 7 + "@", "box": "b"}}, "answer.items", "at most 64 times"),
        (CUSTOM | {"answer": {"items": "@", "box": "b", "boxFormat": "LTRB"}}, "answer.boxFormat", "one of 'XYXY'"),
        (CUSTOM | {"answer": {"items": "@", "box": "b", "units": "METRES"}}, "answer.units", "one of 'PIXELS'"),
        (CUSTOM | {"answer": {"items": "@", "polygon": "p", "polygonFormat": "WKT"}}, "answer.polygonFormat", "one of"),
        (CUSTOM | {"answer": {"items": "@", "box": "b", "classes": ["a"]}}, "answer.classes", "an object of 1 to"),
        (CUSTOM | {"answer": {"items": "@", "box": "b", "classes": {"0": 1}}}, "answer.classes", "names of 1 to 256"),
        (CUSTOM | {"answer": {"items": "@", "box": "b", "minScore": "x"}}, "answer.minScore", "a number"),
        (
            CUSTOM | {"answer": {"items": "@", "box": "b", "classes": {str(n): "n" * 99 for n in range(999)}}},
            "imageProcessor",
            "at most 32768 bytes",
        ),
    ],
)
def test_malformed_protocol_is_refused_by_key_and_expectation(processor, field, expectation):
    found = problems_of(processor)
    assert list(found) == [field]
    assert expectation in found[field].expectation


def test_all_problems_are_reported_at_once():
    processor = {"protocol": "CUSTOM", "envelope": {"body": "XML"}, "answer": {"items": "[", "units": "MM", "label": 1}}
    found = problems_of(processor, imageProcessorTileSize="none")
    assert set(found) == {
        *("envelope.body", "answer.items", "answer.units", "answer.label", "imageProcessorTileSize"),
    }


@pytest.mark.parametrize(
    ("name", "tile_format"),
    [("HUGGING_FACE", "NITF"), ("TORCHSERVE", None), ("SAGEMAKER_DETECTION", "GTIFF"), ("ROBOFLOW", "NITF")],
)
def test_format_that_servers_do_not_read_is_refused(name, tile_format):
    found = problems_of({"protocol": name}, imageProcessorTileFormat=tile_format)
    assert list(found) == ["imageProcessorTileFormat"]
    assert f"which servers of protocol {name} read" in found["imageProcessorTileFormat"].expectation


def test_unknown_protocol_of_row_is_refused():
    with pytest.raises(ValueError, match="protocol 'LATER' is unknown"):
        ModelProtocol.of({"protocol": "LATER"})
    item = parse({"protocol": "ROBOFLOW"}).to_item()
    with pytest.raises(InvalidImageRequestException, match="needs LATER, which this version does not define"):
        ImageRequest.from_item(item | {"tile_format": "LATER:PNG"})


@pytest.mark.parametrize(
    ("template", "path", "expected"),
    [
        ({}, "image", {"image": "T"}),
        ({"a": 1}, "b.c", {"a": 1, "b": {"c": "T"}}),
        ({"image": {"type": "base64"}}, "image.value", {"image": {"type": "base64", "value": "T"}}),
        ({"url": "data:image/png;base64,"}, "url", {"url": "data:image/png;base64,T"}),
        ({}, "instances[0].b64", {"instances": [{"b64": "T"}]}),
        ({"m": [1, {"c": []}]}, "m[1].c[0]", {"m": [1, {"c": ["T"]}]}),
    ],
)
def test_tile_is_put_at_path_of_template(template, path, expected):
    before = json.dumps(template)
    assert with_tile(template, path, "T") == expected
    assert json.dumps(template) == before


@given(
    st.recursive(
        st.sampled_from(["@", "a", "a[*].b", "a[]", "a[?b > `1`]", "*.c", "values(@)", "a[0:2]"]),
        lambda inner: st.builds("[{}, {}]".format, inner, inner) | st.builds("{} | {}".format, inner, inner),
        max_leaves=12,
    )
)
def test_accepted_path_does_not_multiply_its_input_beyond_limit(path):
    document = {"a": [{"b": n, "c": [n]} for n in range(4)]}
    try:
        Answer.model_validate({"items": path})
    except ValueError:
        return

    def count(value):
        if isinstance(value, dict | list):
            return 1 + sum(map(count, value.values() if isinstance(value, dict) else value))
        return 1

    try:
        found = jmespath.search(path, document)
    except jmespath.exceptions.JMESPathError:
        return
    assert count(found) <= MAX_REPEATS * (count(document) + 1)
