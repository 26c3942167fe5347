"""Recognizes the layout of a network's output tensors by their names and shapes, where only one layout fits."""

from collections.abc import Mapping, Sequence

from aws.osml.model_runner.api.model_card import Tensors
from aws.osml.model_runner.common.typing import ImageDimensions
from aws.osml.model_runner.exceptions import ConfigurationError
from aws.osml.model_runner.features.detection_tensors import Activation, TensorLayout

# The length of an axis, or None if it is free.
Shape = Sequence[int | None]

# Heads of a YOLO have a cell for each 8, 16, 32 and, in large versions, 64 pixels; small objects add 4.
_STRIDES = ((8, 16, 32), (8, 16, 32, 64), (4, 8, 16, 32))
_ANCHORS = 3
# Networks that suppress boxes inside return at most so many.
_MAX_SUPPRESSED = 1_000
_ADVICE = "the card must have answer.tensors.layout"


def recognized(outputs: Mapping[str, Shape], input_size: ImageDimensions | None, class_count: int | None) -> Tensors:
    """Return the layout and the names of its tensors.

    Raises ConfigurationError, which names the key of the card that decides, if none or several layouts fit.
    """
    names = set(outputs)
    described = ", ".join(f"{name} ({', '.join(str(n or '?') for n in shape)})" for name, shape in outputs.items())
    if {"boxes", "scores"} <= names:
        return Tensors(layout=TensorLayout.BOXES_SCORES_LABELS)
    if names == {"dets", "labels"} and len(outputs["labels"]) == 3:
        # RF-DETR: labels are numbers for each class, to which its documentation applies a sigmoid.
        activation = Activation.SIGMOID
        return Tensors(layout=TensorLayout.DETR, boxes="dets", scores="labels", activation=activation)
    logits = next((name for name in ("logits", "pred_logits") if name in names), None)
    if logits is not None and "pred_boxes" in names:
        entries = outputs[logits][-1] if outputs[logits] else None
        if class_count is None or entries not in (class_count, class_count + 1):
            reason = "the card must have answer.tensors.activation: SOFTMAX for DETR, SIGMOID for RT-DETR"
            raise ConfigurationError(f"the outputs {described} may be those of DETR or of RT-DETR: {reason}")
        activation = Activation.SIGMOID if entries == class_count else Activation.SOFTMAX
        return Tensors(layout=TensorLayout.DETR, scores=logits, activation=activation)
    heads = [name for name, shape in outputs.items() if len(shape) == 3]
    if len(heads) != 1:
        raise ConfigurationError(f"the outputs {described} are of no known network: {_ADVICE}")
    fitting = _fitting_heads(outputs[heads[0]], input_size, class_count)
    if len(fitting) != 1:
        known = f"of {' or '.join(fitting)}" if fitting else "of no known network"
        raise ConfigurationError(f"the output {described} is {known}: {_ADVICE}")
    return Tensors(layout=fitting[0], boxes=heads[0])


def _fitting_heads(shape: Shape, input_size: ImageDimensions | None, class_count: int | None) -> list[TensorLayout]:
    """Return the layouts of one tensor that fit its shape; a number of boxes that is known rules out most."""
    _, rows, columns = shape
    by_columns = class_count is not None and columns == 5 + class_count
    by_rows = class_count is not None and rows == 4 + class_count
    cells = set[int]()
    if input_size is not None:
        cells = {sum(-(-input_size.width // n) * -(-input_size.height // n) for n in strides) for strides in _STRIDES}
    fitting = []
    if by_rows or (class_count is None and columns in cells and (rows or 0) > 4):
        fitting.append(TensorLayout.YOLO_V8)
    if by_columns or (class_count is None and rows in {_ANCHORS * n for n in cells} and (columns or 0) > 5):
        fitting.append(TensorLayout.YOLO_V5)
    if columns == 6 and rows not in cells and rows not in {_ANCHORS * n for n in cells}:
        may_be_suppressed = rows is not None and rows <= _MAX_SUPPRESSED
        if may_be_suppressed or not by_columns:
            fitting = [TensorLayout.YOLO_END2END] if may_be_suppressed else [*fitting, TensorLayout.YOLO_END2END]
    return fitting
