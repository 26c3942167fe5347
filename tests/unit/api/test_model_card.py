"""Cards of models: what they mean, and one problem for each value that is wrong."""

import json

import pytest

from aws.osml.model_runner.api.model_card import Tensors, merged_objects, parse_card
from aws.osml.model_runner.common.typing import ImageDimensions, ImageFormats
from aws.osml.model_runner.exceptions import ConfigurationError
from aws.osml.model_runner.features.detection_tensors import Fit, TensorLayout


def card_of(document, defaults=None):
    return parse_card(json.dumps(document).encode(), "best.json", defaults)


def test_card_is_read():
    card = card_of(
        {
            "name": "ships",
            "version": "2",
            "answer": {"tensors": {"layout": "DETR", "inputSize": 640, "fit": "LETTERBOX"}, "minScore": 0.4},
            "input": {"bands": [3, 2, 1], "pixelType": "UINT8", "pixelScale": 0.5, "std": [1, 2, 3]},
            "tileSize": 512,
            "overlap": 64,
            "tileFormat": "PNG",
            "classes": ["boat", "ship"],
        }
    )
    assert (card.tile_size, card.overlap, card.tile_format) == (512, 64, ImageFormats.PNG)
    assert card.class_names == {0: "boat", 1: "ship"}
    assert card.input.pixels() == {"bands": [3, 2, 1], "pixelType": "UINT8"}
    assert (card.input.pixel_scale, card.input.mean, card.input.std) == ((0.5,), (0.0,), (1.0, 2.0, 3.0))
    found = card.answer.tensor_format(Tensors(), card.class_names)
    assert (found.layout, found.input_size, found.fit) == (TensorLayout.DETR, ImageDimensions(640, 640), Fit.LETTERBOX)
    assert (found.min_score, found.iou, found.class_count) == (0.4, None, 2)


@pytest.mark.parametrize(("layout", "iou"), [("YOLO_V8", 0.5), ("YOLO_V5", 0.5), ("YOLO_END2END", None)])
def test_raw_heads_are_suppressed_by_default(layout, iou):
    assert card_of({"answer": {"tensors": {"layout": layout}}}).answer.tensor_format(Tensors(), None).iou == iou


def test_layout_comes_from_card_before_guess():
    guess = Tensors(layout=TensorLayout.YOLO_V5, boxes="output0")
    found = card_of({"answer": {"tensors": {"layout": "YOLO_V8"}}}).answer.tensor_format(guess, None)
    assert (found.layout, found.boxes) == (TensorLayout.YOLO_V8, "output0")
    with pytest.raises(ValueError, match=r"answer\.tensors\.layout is missing"):
        card_of({}).answer.tensor_format(Tensors(), None)


def test_names_of_answer_come_first():
    card = card_of({"classes": ["a"], "answer": {"classes": {"7": "b"}}})
    assert card.class_names == {7: "b"}
    assert card_of({"classes": {"0": "a"}}).class_names == {0: "a"}


def test_card_lies_over_defaults():
    defaults = {"answer": {"tensors": {"layout": "DETR", "boxes": "b"}}, "tileSize": 640}
    card = card_of({"answer": {"tensors": {"boxes": "dets"}}}, defaults)
    assert (card.answer.tensors.layout, card.answer.tensors.boxes, card.tile_size) == (TensorLayout.DETR, "dets", 640)
    assert merged_objects({"a": {"b": 1}, "c": 2}, {"a": 3}) == {"a": 3, "c": 2}


@pytest.mark.parametrize(
    ("document", "complaint"),
    [
        ({"classes": []}, r"classes .*1 to 10000 names"),
        ({"classes": "ship"}, r"classes .*1 to 10000 names"),
        ({"classes": {"a": "ship"}}, r"numbers of classes from 0 to 10000"),
        ({"classes": {"10001": "ship"}}, r"numbers of classes from 0 to 10000"),
        ({"classes": {"-1": "ship"}}, r"numbers of classes from 0 to 10000"),
        ({"classes": [""]}, r"names of 1 to 256 characters"),
        ({"classes": [7]}, r"names of 1 to 256 characters"),
        ({"classes": ["x" * 257]}, r"names of 1 to 256 characters"),
        ({"answer": {"tensors": {"inputSize": [640]}}}, r"answer\.tensors\.inputSize .*\[width, height\]"),
        ({"answer": {"tensors": {"inputSize": 4}}}, r"\[width, height\]"),
        ({"answer": {"tensors": {"inputSize": True}}}, r"\[width, height\]"),
        ({"answer": {"tensors": {"layout": "YOLO_V9"}}}, r"answer\.tensors\.layout"),
        ({"answer": {"minScore": 1.5}}, r"answer\.minScore"),
        ({"answer": {"nms": {"iou": -1}}}, r"answer\.nms\.iou"),
        ({"answer": {"nmss": {}}}, r"answer\.nmss"),
        ({"input": {"mean": []}}, r"input\.mean .*one number for each band"),
        ({"input": {"mean": [True]}}, r"one number for each band"),
        ({"input": {"mean": 1e10}}, r"one number for each band"),
        ({"input": {"std": 0}}, r"input\.std .*numbers above 0"),
        ({"input": {"pixelScale": [1, -1]}}, r"input\.pixelScale .*numbers above 0"),
        ({"tileSize": 3}, r"tileSize"),
        ({"overlap": -1}, r"overlap"),
        ({"tileFormat": "BMP"}, r"tileFormat"),
        ({"tileSise": 512}, r"tileSise"),
    ],
)
def test_wrong_value_is_named(document, complaint):
    with pytest.raises(ConfigurationError, match=f"^best.json: .*{complaint}"):
        card_of(document)


@pytest.mark.parametrize("body", [b"", b"[]", b"{", b"\xff"])
def test_other_documents_are_refused(body):
    with pytest.raises(ConfigurationError, match=r"^best\.json: "):
        parse_card(body, "best.json")
