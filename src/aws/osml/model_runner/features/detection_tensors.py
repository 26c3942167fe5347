"""Reads the output tensors of detection networks: boxes, scores and labels in pixels of a tile.

Layouts, with N boxes and C classes. The first axis is the batch, which has one entry and may be absent.

``YOLO_V8``: one tensor (1, 4 + C, N) of center x, center y, width, height, and a score for each class.
``YOLO_V5``: one tensor (1, N, 5 + C) of center x, center y, width, height, objectness, and a score for each class.
``YOLO_END2END``: one tensor (1, N, 6) of x1, y1, x2, y2, score, label. YOLOv10, and exports with NMS inside.
``DETR``: boxes (1, N, 4) of normalized center x, center y, width, height; logits (1, N, C + 1), no object last.
``BOXES_SCORES_LABELS``: boxes (N, 4) of x1, y1, x2, y2; scores (N,); labels (N,), as in torchvision. Without labels,
scores are (N, C).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import special

from aws.osml.model_runner.common.typing import ImageDimensions
from aws.osml.model_runner.exceptions import BadModelResponseError

from .detections import Floats, Indices

Tensor = NDArray[Any]

# Boxes with a sufficient score, before suppression; suppression compares pairs of them. The heads of a YOLO with an
# input of 1,024 x 1,024 pixels have 21,504 boxes altogether.
MAX_CANDIDATES = 30_000
# Scores of half precision may exceed 1 by their rounding.
_SCORE_TOLERANCE = 1e-3
# Larger coordinates and labels are as wrong as infinity.
_MAX_COORDINATE, _MAX_LABEL = 1e9, 1e9


class TensorLayout(StrEnum):
    """Which numbers the output tensors of a network contain, see above."""

    YOLO_V8 = "YOLO_V8"
    YOLO_V5 = "YOLO_V5"
    YOLO_END2END = "YOLO_END2END"
    DETR = "DETR"
    BOXES_SCORES_LABELS = "BOXES_SCORES_LABELS"


class Fit(StrEnum):
    """How a tile became the input of the network.

    ``STRETCH`` scales each axis to the size of the input. ``LETTERBOX`` scales both axes by one factor and centers the
    tile in the input. ``NONE`` places the tile, unscaled, in the upper left corner of the input.
    """

    STRETCH = "STRETCH"
    LETTERBOX = "LETTERBOX"
    NONE = "NONE"


class Activation(StrEnum):
    """The function that turns a network's numbers for classes into scores.

    ``SOFTMAX``: the last class means no object, as in DETR. ``SIGMOID``: each class is independent, as in RT-DETR.
    """

    SOFTMAX = "SOFTMAX"
    SIGMOID = "SIGMOID"
    NONE = "NONE"


@dataclass(frozen=True)
class TensorFormat:
    """How to read the tensors of one network.

    ``boxes``, ``scores`` and ``labels`` are names of tensors. Without names, a layout of one tensor takes the only
    tensor; DETR takes ``pred_boxes`` and ``logits``; the last layout takes ``boxes``, ``scores`` and ``labels``.
    ``input_size`` is the input of the network; None means the size of the tile. ``activation`` is by default
    ``SOFTMAX`` for DETR and ``NONE`` otherwise. ``is_normalized``: boxes are shares of the input's size; DETR's always
    are. ``class_count``, if known, is checked where a tensor has an entry for each class. Boxes whose best score is
    below ``min_score`` are ignored. ``iou`` is the threshold of non-maximum suppression; None omits it.
    """

    layout: TensorLayout
    boxes: str | None = None
    scores: str | None = None
    labels: str | None = None
    input_size: ImageDimensions | None = None
    fit: Fit = Fit.STRETCH
    activation: Activation | None = None
    is_normalized: bool = False
    class_count: int | None = None
    min_score: float = 0.25
    iou: float | None = None
    is_per_class: bool = True


class TileDetections(NamedTuple):
    """n detections of a tile by falling score.

    ``boxes``: (n, 4) minx, miny, maxx, maxy in pixels of the tile, inside the tile. ``scores``: (n,).
    ``labels``: (n,) numbers of classes. ``dropped``: boxes with a sufficient score and no area inside the tile.
    """

    boxes: Floats
    scores: Floats
    labels: Indices
    dropped: int


def read_detections(
    tensors: Mapping[str, Tensor], tensor_format: TensorFormat, tile_size: ImageDimensions
) -> TileDetections:
    """Return the detections that the output tensors of a network contain.

    Suppression is as in torchvision's ``batched_nms``: by falling score, a box removes weaker boxes whose IoU with it
    is above the threshold. Boxes are clipped to the tile afterwards.

    Raises BadModelResponseError, which names the tensor and its shape. Reasons are a missing tensor, another shape than
    the layout's, a batch of several, or no class. A number may be not finite, a score outside of 0 to 1, or a label not
    a whole number. More than ``MAX_CANDIDATES`` boxes with a sufficient score are an error too.
    """
    found = _chosen(_READERS[tensor_format.layout](tensors, tensor_format), tensor_format.min_score)
    boxes, scores = found.boxes.astype(np.float64), found.scores.astype(np.float64).clip(0, 1)
    labels = found.labels.astype(np.intp)
    if found.is_centered:
        half = boxes[:, 2:] / 2
        boxes = np.hstack([boxes[:, :2] - half, boxes[:, :2] + half])
    boxes = to_tile(boxes, tensor_format, tile_size)
    has_area = (boxes[:, 2:] > boxes[:, :2]).all(axis=1)
    dropped = len(boxes) - int(np.count_nonzero(has_area))
    boxes, scores, labels = boxes[has_area], scores[has_area], labels[has_area]
    if tensor_format.iou is not None:
        kept = kept_by_nms(boxes, labels if tensor_format.is_per_class else np.zeros_like(labels), tensor_format.iou)
        boxes, scores, labels = boxes[kept], scores[kept], labels[kept]
    boxes = np.clip(boxes, 0, [*tile_size, *tile_size])
    is_inside = (boxes[:, 2:] > boxes[:, :2]).all(axis=1)
    dropped += len(boxes) - int(np.count_nonzero(is_inside))
    return TileDetections(boxes[is_inside], scores[is_inside], labels[is_inside], dropped)


def kept_by_nms(boxes: Floats, categories: Indices, iou: float) -> Indices:
    """Return the indices of (n, 4) boxes, sorted by falling score, that no stronger box of their category suppresses.

    A box that is kept suppresses weaker boxes whose IoU with it is above ``iou``.
    """
    # A loop over kept boxes, each compared with all weaker ones at once: boxes of one tile mostly overlap. BoxPairs is
    # quicker where few of many boxes do, and up to a hundred times slower here.
    sides = np.ascontiguousarray(boxes.T)
    areas = (sides[2] - sides[0]) * (sides[3] - sides[1])
    kept, alive = [], np.arange(len(boxes))
    while alive.size:
        kept.append(alive[0])
        width = np.minimum(sides[2, 0], sides[2, 1:]) - np.maximum(sides[0, 0], sides[0, 1:])
        height = np.minimum(sides[3, 0], sides[3, 1:]) - np.maximum(sides[1, 0], sides[1, 1:])
        shared = width.clip(0) * height.clip(0)
        is_removed = shared / (areas[0] + areas[1:] - shared) > iou
        is_removed &= categories[1:] == categories[0]
        rest = 1 + np.flatnonzero(~is_removed) if is_removed.any() else slice(1, None)
        sides, areas, categories, alive = sides[:, rest], areas[rest], categories[rest], alive[rest]
    return np.array(kept, dtype=np.intp)


class Placement(NamedTuple):
    """Where a tile lies in the input of a network: position in the input = position in the tile x scale + margin.

    ``scale`` and ``margin``: (2,) of x and y.
    """

    scale: Floats
    margin: Floats


def placement(fit: Fit, tile_size: ImageDimensions, input_size: ImageDimensions) -> Placement:
    """Return where a tile lies in the input of a network.

    The letterbox is that of Ultralytics. The scaled tile has whole pixels. The left and upper margins are half of the
    rest, rounded after 0.1 is subtracted.
    """
    tile, size = np.array(tile_size, dtype=np.float64), np.array(input_size, dtype=np.float64)
    if fit is Fit.NONE:
        return Placement(np.ones(2), np.zeros(2))
    if fit is Fit.STRETCH:
        return Placement(size / tile, np.zeros(2))
    scale = np.full(2, (size / tile).min())
    return Placement(scale, np.round((size - np.round(tile * scale)) / 2 - 0.1).clip(0))


def to_tile(boxes: Floats, tensor_format: TensorFormat, tile_size: ImageDimensions) -> Floats:
    """Return (n, 4) boxes of the network's input, x1, y1, x2, y2, in pixels of the tile."""
    input_size = tensor_format.input_size or tile_size
    scale, margin = placement(tensor_format.fit, tile_size, input_size)
    if tensor_format.is_normalized or tensor_format.layout is TensorLayout.DETR:
        boxes = boxes * np.tile(input_size, 2)
    moved: Floats = (boxes - np.tile(margin, 2)) / np.tile(scale, 2)
    return moved


class _RawBoxes(NamedTuple):
    """Boxes, scores and labels as the tensors have them; ``source`` names the tensor of scores and its shape.

    ``boxes``: (n, 4) x1, y1, x2, y2 of the input, or center x, center y, width, height if ``is_centered``.
    ``scores``: (n,). ``labels``: (n,).
    """

    boxes: Tensor
    scores: Tensor
    labels: Tensor
    source: str
    is_centered: bool = False


def _chosen(raw: _RawBoxes, min_score: float) -> _RawBoxes:
    """Return the boxes whose score is at least ``min_score``, by falling score; all their numbers are valid."""
    scores = raw.scores
    if not np.isfinite(scores).all():
        raise BadModelResponseError(f"{raw.source} has a score that is not finite")
    low, high = (scores.min(), scores.max()) if scores.size else (0, 0)
    if low < -_SCORE_TOLERANCE or high > 1 + _SCORE_TOLERANCE:
        reason = f"has scores from {low:.4g} to {high:.4g}, and 0 to 1 is allowed"
        raise BadModelResponseError(f"{raw.source} {reason}: check layout and activation")
    chosen = np.flatnonzero(scores >= min_score)
    if len(chosen) > MAX_CANDIDATES:
        reason = f"has {len(chosen)} boxes with a score of at least {min_score}"
        raise BadModelResponseError(f"{raw.source} {reason}, at most {MAX_CANDIDATES} are allowed: raise minScore")
    chosen = chosen[np.argsort(-scores[chosen], kind="stable")]
    found = raw._replace(boxes=raw.boxes[chosen], scores=scores[chosen], labels=raw.labels[chosen])
    largest = np.abs(found.boxes).max(initial=0)
    if not largest <= _MAX_COORDINATE:  # also false for NaN
        raise BadModelResponseError(f"{raw.source} has a box with a coordinate that is not finite, or above 1e9")
    is_label = (found.labels >= 0) & (found.labels <= _MAX_LABEL) & (found.labels == np.round(found.labels))
    if not is_label.all():
        wrong = found.labels[~is_label][0]
        raise BadModelResponseError(f"{raw.source} has the label {wrong}, and whole numbers from 0 are allowed")
    return found


def _yolo_head(tensors: Mapping[str, Tensor], tensor_format: TensorFormat) -> _RawBoxes:
    """Read a tensor with a score for each class; version 5 multiplies it by the objectness of the box."""
    is_v5 = tensor_format.layout is TensorLayout.YOLO_V5
    name, tensor = _tensor(tensors, tensor_format.boxes)
    source, known, first = f"tensor {name} {tensor.shape}", tensor_format.class_count, 5 if is_v5 else 4
    classes = "classes" if known is None else known
    expected = f"(1, boxes, 5 + {classes})" if is_v5 else f"(1, 4 + {classes}, boxes)"
    rows = _without_batch(name, tensor, 2, expected)
    rows = rows if is_v5 else rows.T
    count = rows.shape[1] - first
    if count < 1 or known not in (None, count):
        is_transposed = known is not None and rows.shape[0] == first + known
        raise BadModelResponseError(f"{source} is not {expected}{': it is transposed' if is_transposed else ''}")
    labels = rows[:, first:].argmax(axis=1)
    scores = _best(rows[:, first:], labels, tensor_format.activation)
    if is_v5:
        objectness = rows[:, 4].astype(np.float64)
        if not (np.abs(objectness - 0.5) <= 0.5 + _SCORE_TOLERANCE).all():  # also false for NaN
            raise BadModelResponseError(f"{source} has an objectness outside of 0 to 1: check the layout")
        scores = scores * objectness
    return _RawBoxes(rows[:, :4], scores, labels, source, is_centered=True)


def _yolo_end2end(tensors: Mapping[str, Tensor], tensor_format: TensorFormat) -> _RawBoxes:
    name, tensor = _tensor(tensors, tensor_format.boxes)
    rows = _without_batch(name, tensor, 2, "(1, boxes, 6)")
    if rows.shape[1] != 6:
        raise BadModelResponseError(f"tensor {name} {tensor.shape} is not (1, boxes, 6)")
    return _RawBoxes(rows[:, :4], rows[:, 4], rows[:, 5], f"tensor {name} {tensor.shape}")


def _detr(tensors: Mapping[str, Tensor], tensor_format: TensorFormat) -> _RawBoxes:
    name, tensor = _tensor(tensors, tensor_format.scores or "logits")
    source, known = f"tensor {name} {tensor.shape}", tensor_format.class_count
    activation = tensor_format.activation or Activation.SOFTMAX
    expected = "(1, boxes, classes + 1)" if activation is Activation.SOFTMAX else "(1, boxes, classes)"
    logits = _without_batch(name, tensor, 2, expected).astype(np.float64)
    count = logits.shape[1] - (activation is Activation.SOFTMAX)
    if count < (known or 1) or (activation is Activation.SOFTMAX and known not in (None, count)):
        raise BadModelResponseError(f"{source} is not {expected}{'' if known is None else f' with {known} classes'}")
    if not np.isfinite(logits).all():
        raise BadModelResponseError(f"{source} has a number that is not finite")
    scores = special.softmax(logits, axis=1) if activation is Activation.SOFTMAX else logits
    labels = scores[:, : known or count].argmax(axis=1)
    sigmoid = activation if activation is Activation.SIGMOID else None
    boxes = _boxes(tensors, tensor_format.boxes or "pred_boxes", len(logits))
    return _RawBoxes(boxes, _best(scores, labels, sigmoid), labels, source, is_centered=True)


def _boxes_scores_labels(tensors: Mapping[str, Tensor], tensor_format: TensorFormat) -> _RawBoxes:
    name, tensor = _tensor(tensors, tensor_format.scores or "scores")
    source, known = f"tensor {name} {tensor.shape}", tensor_format.class_count
    labels_name = tensor_format.labels or ("labels" if "labels" in tensors else None)
    if labels_name is None:
        scores = _without_batch(name, tensor, 2, "(boxes, classes), or (boxes,) beside a tensor of labels")
        if scores.shape[1] < 1 or known not in (None, scores.shape[1]):
            raise BadModelResponseError(f"{source} is not (boxes, {'classes' if known is None else known})")
        labels = scores.argmax(axis=1)
    else:
        _, tensor = _tensor(tensors, labels_name)
        scores = _without_batch(name, tensors[name], 1, "(boxes,)")
        labels = _without_batch(labels_name, tensor, 1, "(boxes,)")
        if len(labels) != len(scores):
            raise BadModelResponseError(f"tensor {labels_name} {tensor.shape} is not ({len(scores)},), as {name} is")
    boxes = _boxes(tensors, tensor_format.boxes or "boxes", len(scores))
    return _RawBoxes(boxes, _best(scores, labels, tensor_format.activation), labels, source)


def _tensor(tensors: Mapping[str, Tensor], name: str | None) -> tuple[str, Tensor]:
    """Return the tensor of this name, or the only tensor, with its name."""
    if name is None and len(tensors) == 1:
        (name,) = tensors
    if name is None or name not in tensors:
        missing = "the response does not have one tensor" if name is None else f"tensor {name} is missing"
        described = ", ".join(f"{known} {tensor.shape}" for known, tensor in tensors.items())
        raise BadModelResponseError(f"{missing}: the tensors are {described or 'none'}; name the one to read")
    if tensors[name].dtype.kind not in "fiu":
        raise BadModelResponseError(f"tensor {name} {tensors[name].shape} has the type {tensors[name].dtype}")
    return name, tensors[name]


def _without_batch(name: str, tensor: Tensor, rank: int, expected: str) -> Tensor:
    """Return a tensor without its batch axis: ``rank`` axes are left. An absent batch axis is allowed."""
    if tensor.ndim == rank:
        return tensor
    if tensor.ndim != rank + 1:
        raise BadModelResponseError(f"tensor {name} {tensor.shape} is not {expected}")
    if tensor.shape[0] != 1:
        raise BadModelResponseError(f"tensor {name} {tensor.shape} has a batch of {tensor.shape[0]}, 1 is allowed")
    only: Tensor = tensor[0]
    return only


def _boxes(tensors: Mapping[str, Tensor], name: str, count: int) -> Tensor:
    _, tensor = _tensor(tensors, name)
    boxes = _without_batch(name, tensor, 2, "(boxes, 4)")
    if boxes.shape != (count, 4):
        raise BadModelResponseError(f"tensor {name} {tensor.shape} is not ({count}, 4), as there are {count} scores")
    return boxes


def _best(scores: Tensor, labels: Tensor, activation: Activation | None) -> Tensor:
    """Return (n,) scores: those of each box, or of its label if ``scores`` is (n, classes)."""
    best = scores if scores.ndim == 1 else np.take_along_axis(scores, labels[:, None], axis=1)[:, 0]
    sigmoid: Tensor = special.expit(best.astype(np.float64)) if activation is Activation.SIGMOID else best
    return sigmoid


_READERS = {
    TensorLayout.YOLO_V8: _yolo_head,
    TensorLayout.YOLO_V5: _yolo_head,
    TensorLayout.YOLO_END2END: _yolo_end2end,
    TensorLayout.DETR: _detr,
    TensorLayout.BOXES_SCORES_LABELS: _boxes_scores_labels,
}
