"""Tensors of detection networks: each layout by hand-made numbers, fits, suppression, and tensors that are refused.

The truths are the arithmetic of the layouts, and the definition of torchvision's ``nms`` as a loop over all pairs.
"""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aws.osml.model_runner.common.typing import ImageDimensions
from aws.osml.model_runner.exceptions import BadModelResponseError
from aws.osml.model_runner.features import detection_tensors
from aws.osml.model_runner.features.detection_tensors import (
    MAX_CANDIDATES,
    Activation,
    Fit,
    TensorFormat,
    TensorLayout,
    kept_by_nms,
    read_detections,
)

TILE = ImageDimensions(640, 640)
LOGITS = np.log([0.7, 0.1, 0.2]), np.log([0.05, 0.05, 0.9])  # of two classes and no object: softmax returns the shares


def head(*rows):
    """A tensor (1, N, columns) whose rows are these, in single precision, and 20 boxes without an object."""
    columns = np.zeros((20, len(rows[0])))
    columns[:, :4] = 5, 5, 4, 4
    return np.concatenate([rows, columns])[None].astype(np.float32)


# The same two objects in every layout: class 1 at 100..140 x 200..220 with 0.75, class 0 at 300..310 x 50..90 with 0.5.
OBJECTS = [(100, 200, 140, 220), (300, 50, 310, 90)]
LAYOUTS = {
    TensorLayout.YOLO_V8: {
        "output0": head((120, 210, 40, 20, 0.1, 0.75), (305, 70, 10, 40, 0.5, 0.2)).transpose(0, 2, 1)
    },
    TensorLayout.YOLO_V5: {
        "output": head((120, 210, 40, 20, 0.75, 0.1, 1), (305, 70, 10, 40, 1, 0.5, 0.25)),
    },
    TensorLayout.YOLO_END2END: {"output0": head((100, 200, 140, 220, 0.75, 1), (300, 50, 310, 90, 0.5, 0))},
    TensorLayout.DETR: {
        "logits": np.log([[[0.15, 0.75, 0.1], [0.5, 0.1, 0.4], [0.01, 0.01, 0.98]]]).astype(np.float32),
        "pred_boxes": np.array([[[120, 210, 40, 20], [305, 70, 10, 40], [5, 5, 4, 4]]], np.float32) / 640,
    },
    TensorLayout.BOXES_SCORES_LABELS: {
        "boxes": np.array([(300, 50, 310, 90), (100, 200, 140, 220), (1, 1, 2, 2)], np.float32),
        "labels": np.array([0, 1, 1]),
        "scores": np.array([0.5, 0.75, 0.01], np.float32),
    },
}


def read(tensors, layout, tile=TILE, **options):
    return read_detections(tensors, TensorFormat(TensorLayout(layout), **options), tile)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_same_objects_in_every_layout(layout, dtype):
    tensors = {name: x.astype(dtype) if x.dtype.kind == "f" else x for name, x in LAYOUTS[layout].items()}
    found = read(tensors, layout, input_size=TILE)
    np.testing.assert_allclose(found.boxes, OBJECTS, atol=0.3 if dtype is np.float16 else 1e-4)
    np.testing.assert_allclose(found.scores, [0.75, 0.5], atol=1e-3)
    assert found.labels.tolist() == [1, 0]
    assert found.dropped == 0


def test_scores_for_each_class_stand_in_for_labels():
    tensors = {
        "boxes": np.array([[(100, 200, 140, 220), (300, 50, 310, 90)]], np.float32),
        "confidence": np.array([[(0.1, 0.75), (0.5, 0.2)]], np.float32),
    }
    found = read(tensors, "BOXES_SCORES_LABELS", scores="confidence")
    assert found.boxes.tolist() == [list(box) for box in OBJECTS]
    assert found.labels.tolist() == [1, 0]


def test_logits_of_independent_classes():
    # RT-DETR and RF-DETR have no softmax; a last number that no class has is not read.
    logit = math.log(0.75 / 0.25)
    tensors = {
        "labels": np.array([[(-9, logit, 9), (0, -9, 8)]], np.float32),
        "dets": LAYOUTS[TensorLayout.DETR]["pred_boxes"][:, :2],
    }
    names = {"boxes": "dets", "scores": "labels", "activation": Activation.SIGMOID}
    found = read(tensors, "DETR", class_count=2, **names)
    np.testing.assert_allclose(found.boxes, OBJECTS, atol=1e-4)
    np.testing.assert_allclose(found.scores, [0.75, 0.5], atol=1e-6)
    assert found.labels.tolist() == [1, 0]
    assert read(tensors, "DETR", **names).labels.tolist() == [2, 2]


@pytest.mark.parametrize(
    ("fit", "tile", "expected"),
    [
        # an input of 640 x 480 pixels and the box 100, 120, 140, 160 in it
        (Fit.STRETCH, (1280, 480), (200, 120, 280, 160)),
        (Fit.STRETCH, (320, 960), (50, 240, 70, 320)),
        # scale 0.5: the tile covers 640 x 240, with 120 above and below
        (Fit.LETTERBOX, (1280, 480), (200, 0, 280, 80)),
        # scale 0.5: the tile covers 161 x 480 (160.5 rounds to 160, to even), with (640 - 160) / 2 to the left
        (Fit.LETTERBOX, (321, 960), (0, 240, 0, 320)),
        # scale 2: the tile covers 640 x 400, with 40 above
        (Fit.LETTERBOX, (320, 200), (50, 40, 70, 60)),
        (Fit.NONE, (640, 480), (100, 120, 140, 160)),
        (Fit.NONE, (130, 150), (100, 120, 130, 150)),
    ],
)
@pytest.mark.parametrize("is_normalized", [False, True])
def test_pixels_of_the_input_become_pixels_of_the_tile(fit, tile, expected, is_normalized):
    rows = head((100, 120, 140, 160, 0.9, 0))
    if is_normalized:
        rows[..., :4] /= 640, 480, 640, 480
    options = {"fit": fit, "input_size": ImageDimensions(640, 480), "is_normalized": is_normalized}
    found = read({"a": rows}, "YOLO_END2END", ImageDimensions(*tile), **options)
    if expected[0] == expected[2]:
        assert (len(found.boxes), found.dropped) == (0, 1)
    else:
        np.testing.assert_allclose(found.boxes, [expected], atol=1e-4)


def test_margins_of_a_letterbox_are_rounded_as_ultralytics_does():
    # 99 x 73 pixels cover 64 x 47 of the input, with margins of 8 above and 9 below.
    found = read(
        {"a": head((0, 8, 64, 55, 0.9, 0))},
        "YOLO_END2END",
        ImageDimensions(99, 73),
        fit=Fit.LETTERBOX,
        input_size=ImageDimensions(64, 64),
    )
    np.testing.assert_allclose(found.boxes, [(0, 0, 99, 47 * 99 / 64)], atol=1e-4)


def test_boxes_without_area_inside_the_tile_are_counted():
    rows = head(
        (10, 10, 10, 20, 0.9, 0), (30, 30, 20, 40, 0.9, 0), (700, 10, 720, 30, 0.9, 0), (630, 10, 650, 30, 0.9, 0)
    )
    found = read({"a": rows}, "YOLO_END2END", iou=0.5)
    assert found.boxes.tolist() == [[630, 10, 640, 30]]
    assert found.dropped == 3


def plain_nms(boxes, scores, categories, threshold):
    """The definition: by falling score, keep a box unless a kept box of its category overlaps it by more."""
    kept = []
    for i in sorted(range(len(boxes)), key=lambda i: -scores[i]):
        for j in kept:
            (a, b, c, d), (e, f, g, h) = boxes[i], boxes[j]
            shared = max(0, min(c, g) - max(a, e)) * max(0, min(d, h) - max(b, f))
            union = (c - a) * (d - b) + (g - e) * (h - f) - shared
            if categories[i] == categories[j] and shared / union > threshold:
                break
        else:
            kept.append(i)
    return kept


BOX = st.tuples(*[st.integers(0, 12)] * 2, *[st.integers(1, 8)] * 2)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(BOX, st.integers(0, 2)), max_size=30),
    st.sampled_from([0.0, 0.25, 1 / 3, 0.5, 0.9]),
    st.booleans(),
    st.randoms(use_true_random=False),
)
def test_suppression_is_that_of_the_definition(objects, threshold, is_per_class, rng):
    scores = [0.3 + 0.02 * rank for rank in range(len(objects))]  # distinct: ties have no defined winner
    rng.shuffle(scores)
    rows = np.array(
        [(x, y, x + w, y + h, score, label) for ((x, y, w, h), label), score in zip(objects, scores, strict=True)]
    ).reshape(1, -1, 6)
    found = read({"a": rows}, "YOLO_END2END", iou=threshold, is_per_class=is_per_class)
    categories = rows[0, :, 5] if is_per_class else np.zeros(len(objects))
    kept = plain_nms(rows[0, :, :4].tolist(), scores, categories, threshold)
    assert found.boxes.tolist() == rows[0, kept, :4].tolist()
    assert found.scores.tolist() == rows[0, kept, 4].tolist()


def test_an_overlap_equal_to_the_threshold_is_kept():
    # torchvision: "discards all overlapping boxes with IoU > iou_threshold"; 1 of 2 is 0.5
    boxes = np.array([(0, 0, 2, 1), (0, 0, 1, 1)], float)
    assert kept_by_nms(boxes, np.zeros(2, int), 0.5).tolist() == [0, 1]
    assert kept_by_nms(boxes, np.zeros(2, int), 0.499).tolist() == [0]


def broken():
    v8, v5 = LAYOUTS[TensorLayout.YOLO_V8]["output0"], LAYOUTS[TensorLayout.YOLO_V5]["output"]
    end2end, detr = LAYOUTS[TensorLayout.YOLO_END2END]["output0"], LAYOUTS[TensorLayout.DETR]
    torchvision = LAYOUTS[TensorLayout.BOXES_SCORES_LABELS]

    def changed(tensor, index, value):
        copy = tensor.copy()
        copy[index] = value
        return copy

    yield "v8-nan-score", "YOLO_V8", {"o": changed(v8, (0, 5, 3), np.nan)}, "score that is not finite"
    yield "v8-inf-score", "YOLO_V8", {"o": changed(v8, (0, 5, 3), np.inf)}, "score that is not finite"
    yield "v8-nan-box", "YOLO_V8", {"o": changed(v8, (0, 2, 0), np.nan)}, "not finite"
    yield "v8-inf-box", "YOLO_V8", {"o": changed(v8, (0, 0, 1), -np.inf)}, "not finite"
    yield "v8-huge-box", "YOLO_V8", {"o": changed(v8, (0, 0, 1), 1e30)}, "above 1e9"
    yield "v8-transposed", "YOLO_V8", {"o": v8.transpose(0, 2, 1)}, "check layout"
    yield "v8-batch", "YOLO_V8", {"o": np.concatenate([v8, v8])}, "a batch of 2"
    yield "v8-no-batch-entry", "YOLO_V8", {"o": v8[:0]}, "a batch of 0"
    yield "v8-rank-1", "YOLO_V8", {"o": v8[0, 0]}, "is not (1, 4 + classes, boxes)"
    yield "v8-rank-4", "YOLO_V8", {"o": v8[None]}, "is not (1, 4 + classes, boxes)"
    yield "v8-scalar", "YOLO_V8", {"o": np.float32(0.5)[...]}, "is not (1, 4 + classes, boxes)"
    yield "v8-no-class", "YOLO_V8", {"o": v8[:, :4]}, "is not (1, 4 + classes, boxes)"
    yield "v8-text", "YOLO_V8", {"o": v8.astype(str)}, "has the type"
    yield "v8-bool", "YOLO_V8", {"o": v8 > 0}, "has the type bool"
    yield "v8-complex", "YOLO_V8", {"o": v8.astype(np.complex64)}, "has the type complex64"
    yield "v8-logits", "YOLO_V8", {"o": changed(v8, (0, 4, 0), 4.5)}, "scores from 0 to 4.5"
    yield "v8-negative", "YOLO_V8", {"o": changed(v8, (0, slice(4, 6), 0), -2)}, "scores from -2"
    yield "v8-two-tensors", "YOLO_V8", {"o": v8, "p": v8}, "o (1, 6, 22), p (1, 6, 22)"
    yield "v8-none", "YOLO_V8", {}, "the tensors are none"
    yield "v5-as-v8", "YOLO_V8", {"o": v5}, "check layout"
    yield "v8-as-v5", "YOLO_V5", {"o": v8}, "objectness outside"
    yield "v5-nan-objectness", "YOLO_V5", {"o": changed(v5, (0, 9, 4), np.nan)}, "objectness outside"
    yield "v5-no-class", "YOLO_V5", {"o": v5[..., :5]}, "is not (1, boxes, 5 + classes)"
    yield "end2end-columns", "YOLO_END2END", {"o": v5}, "is not (1, boxes, 6)"
    yield "end2end-label", "YOLO_END2END", {"o": changed(end2end, (0, 0, 5), 0.5)}, "the label 0.5"
    yield "end2end-negative-label", "YOLO_END2END", {"o": changed(end2end, (0, 0, 5), -1)}, "the label -1"
    yield "end2end-nan-label", "YOLO_END2END", {"o": changed(end2end, (0, 0, 5), np.nan)}, "the label nan"
    yield "end2end-huge-label", "YOLO_END2END", {"o": changed(end2end, (0, 0, 5), 1e30)}, "the label 1"
    yield "detr-no-boxes", "DETR", {"logits": detr["logits"]}, "tensor pred_boxes is missing"
    yield "detr-no-class", "DETR", {**detr, "logits": detr["logits"][..., :1]}, "logits (1, 3, 1)"
    yield "detr-fewer-boxes", "DETR", {**detr, "pred_boxes": detr["pred_boxes"][:, :2]}, "pred_boxes (1, 2, 4)"
    yield "detr-nan", "DETR", {**detr, "logits": changed(detr["logits"], (0, 0, 0), np.nan)}, "not finite"
    yield "boxes-columns", "BOXES_SCORES_LABELS", {**torchvision, "boxes": torchvision["boxes"][:, :3]}, "boxes (3, 3)"
    yield "boxes-count", "BOXES_SCORES_LABELS", {**torchvision, "boxes": torchvision["boxes"][:2]}, "boxes (2, 4)"
    yield "labels-count", "BOXES_SCORES_LABELS", {**torchvision, "labels": torchvision["labels"][:2]}, "labels (2,)"
    yield "no-scores", "BOXES_SCORES_LABELS", {"boxes": torchvision["boxes"]}, "tensor scores is missing"


BROKEN = list(broken())


@pytest.mark.parametrize(
    ("layout", "tensors", "reason"), [case[1:] for case in BROKEN], ids=[case[0] for case in BROKEN]
)
def test_broken_tensors_are_refused_by_name_and_shape(layout, tensors, reason):
    with pytest.raises(BadModelResponseError) as refused:
        read(tensors, layout)
    assert reason in str(refused.value)
    shapes = [str(tensor.shape) for tensor in tensors.values()]
    assert not tensors or any(shape in str(refused.value) for shape in shapes)


def test_a_known_number_of_classes_shows_a_transposed_tensor():
    v8 = LAYOUTS[TensorLayout.YOLO_V8]["output0"]
    assert len(read({"o": v8}, "YOLO_V8", class_count=2).boxes) == 2
    with pytest.raises(BadModelResponseError, match=r"o \(1, 22, 6\) is not \(1, 4 \+ 2, boxes\): it is transposed"):
        read({"o": v8.transpose(0, 2, 1)}, "YOLO_V8", class_count=2)
    with pytest.raises(BadModelResponseError, match=r"o \(1, 6, 22\) is not \(1, 4 \+ 80, boxes\)$"):
        read({"o": v8}, "YOLO_V8", class_count=80)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_no_boxes_are_no_detections(layout):
    axis = {TensorLayout.YOLO_V8: 2, TensorLayout.BOXES_SCORES_LABELS: 0}.get(layout, 1)
    found = read({name: np.take(x, [], axis=axis) for name, x in LAYOUTS[layout].items()}, layout, iou=0.5)
    assert (found.boxes.shape, found.scores.shape, found.labels.shape, found.dropped) == ((0, 4), (0,), (0,), 0)


def test_candidates_are_bounded_before_they_are_compared(monkeypatch):
    rows = np.zeros((1, MAX_CANDIDATES + 1, 6), np.float32)
    rows[..., 2:5] = 9, 9, 0.9
    monkeypatch.setattr(detection_tensors, "kept_by_nms", lambda *_: pytest.fail("compared"))
    with pytest.raises(BadModelResponseError, match=f"{MAX_CANDIDATES + 1} boxes with a score of at least 0.25"):
        read({"a": rows}, "YOLO_END2END", iou=0.5)
