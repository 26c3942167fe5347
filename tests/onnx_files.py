"""ONNX files of networks whose answers follow by arithmetic, in the output layouts of known families.

The network looks at cells of 8 x 8 pixels. The score of class 0 is the mean of the first band in a cell. The score
of class 1 is that of the second band. The box of a cell is the cell. A cell with 204 of 255 in the first band is a
detection of class 0 with 0.8.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

CELL_PX = 8


def cell_network(
    layout: str,
    size: tuple[int, int] = (64, 64),
    batch: str | int = "batch",
    bands_last: bool = False,
    dtype: int = TensorProto.FLOAT,
    metadata: Mapping[str, str] | None = None,
    has_free_sides: bool = False,
) -> onnx.ModelProto:
    """Return the network with an input of ``size`` (width, height) and outputs in the layout of a family."""
    width, height = size
    columns, rows = width // CELL_PX, height // CELL_PX
    xs, ys = np.meshgrid(np.arange(columns) * CELL_PX, np.arange(rows) * CELL_PX)
    corners = np.stack([xs, ys, xs + CELL_PX, ys + CELL_PX], axis=-1).reshape(-1, 4).astype(np.float32)
    centers = np.hstack([(corners[:, :2] + corners[:, 2:]) / 2, corners[:, 2:] - corners[:, :2]])
    cells = len(corners)
    constants = {
        "corners": corners[None],
        "centers": centers[None],
        "shares": centers[None] / np.array([width, height, width, height], np.float32),
        "cells_last": np.array([0, 2, -1], np.int64),
        "zero": np.zeros((1, 1, 1), np.float32),
        "one": np.ones((1, 1, 1), np.float32),
        "tiny": np.full((1, 1, 1), 1e-9, np.float32),
        "half": np.array(0.5, np.float32),
        "to_share": np.array(1 / 255, np.float32),
        "axis_1": np.array([1], np.int64),
        "axis_2": np.array([2], np.int64),
        "first_two": np.array([0, 1], np.int64),
        "one_label": np.array(1, np.int64),
        "no_batch": np.array([0], np.int64),
    }
    nodes = _score_nodes(bands_last, dtype)
    outputs = {"YOLO_V8": _v8, "YOLO_V5": _v5, "YOLO_END2END": _end2end, "DETR": _detr, "TORCHVISION": _torchvision}
    more, described = outputs[layout](cells)
    sides: Sequence[Any] = ("height", "width") if has_free_sides else (height, width)
    shape = [batch, *sides, 3] if bands_last else [batch, 3, *sides]
    return _model([*nodes, *more], ("images", dtype, shape), described(batch), constants, metadata)


def save(model: onnx.ModelProto, path: Path) -> Path:
    """Write a model and return its path."""
    path.write_bytes(model.SerializeToString())
    return path


def tile_of(cells: Mapping[tuple[int, int], tuple[int, int]], size: tuple[int, int] = (64, 64)) -> np.ndarray:
    """Return pixels (3, rows, columns) in which cells (column, row) have these values in the first two bands."""
    width, height = size
    pixels = np.zeros((3, height, width), np.uint8)
    for (column, row), (first, second) in cells.items():
        area = np.s_[row * CELL_PX : (row + 1) * CELL_PX, column * CELL_PX : (column + 1) * CELL_PX]
        pixels[0][area], pixels[1][area] = first, second
    return pixels


def constant_network(
    outputs: Mapping[str, np.ndarray],
    shape: Sequence[int | str] = (1, 3, 64, 64),
    metadata: Mapping[str, str] | None = None,
) -> onnx.ModelProto:
    """Return a network that returns these arrays for every image."""
    nodes = [
        helper.make_node("ReduceMax", ["images"], ["peak"], keepdims=0),
        helper.make_node("Mul", ["peak", "nothing"], ["none"]),
    ]
    constants, described = {"nothing": np.array(0, np.float32)}, []
    for name, value in outputs.items():
        constants[f"{name}_value"] = value
        kind = helper.np_dtype_to_tensor_dtype(value.dtype)
        nodes.append(helper.make_node("Cast", ["none"], [f"{name}_none"], to=kind))
        nodes.append(helper.make_node("Add", [f"{name}_value", f"{name}_none"], [name]))
        described.append((name, kind, value.shape))
    return _model(nodes, ("images", TensorProto.FLOAT, shape), described, constants, metadata)


def _score_nodes(bands_last: bool, dtype: int) -> list[onnx.NodeProto]:
    """Return the nodes that make ``scores`` (batch, 2, cells)."""
    nodes = [helper.make_node("Cast", ["images"], ["floats"], to=TensorProto.FLOAT)]
    if dtype == TensorProto.UINT8:
        nodes += [helper.make_node("Mul", ["floats", "to_share"], ["shared"])]
    else:
        nodes += [helper.make_node("Identity", ["floats"], ["shared"])]
    if bands_last:
        nodes += [helper.make_node("Transpose", ["shared"], ["bands_first"], perm=[0, 3, 1, 2])]
    else:
        nodes += [helper.make_node("Identity", ["shared"], ["bands_first"])]
    return [
        *nodes,
        helper.make_node("Gather", ["bands_first", "first_two"], ["two"], axis=1),
        helper.make_node("AveragePool", ["two"], ["pooled"], kernel_shape=[CELL_PX] * 2, strides=[CELL_PX] * 2),
        helper.make_node("Reshape", ["pooled", "cells_last"], ["scores"]),
        helper.make_node("Transpose", ["scores"], ["by_cell"], perm=[0, 2, 1]),
        helper.make_node("ReduceMax", ["by_cell"], ["best"], axes=[2]),
        helper.make_node("ArgMax", ["by_cell"], ["label"], axis=2),
        helper.make_node("Mul", ["best", "zero"], ["zeros"]),
    ]


def _v8(cells: int):
    nodes = [
        helper.make_node("Add", ["centers", "zeros"], ["boxes_last"]),
        helper.make_node("Transpose", ["boxes_last"], ["boxes_first"], perm=[0, 2, 1]),
        helper.make_node("Concat", ["boxes_first", "scores"], ["output0"], axis=1),
    ]
    return nodes, lambda batch: [("output0", TensorProto.FLOAT, [batch, 6, cells])]


def _v5(cells: int):
    nodes = [
        helper.make_node("Add", ["centers", "zeros"], ["boxes_last"]),
        helper.make_node("Add", ["zeros", "one"], ["objectness"]),
        helper.make_node("Concat", ["boxes_last", "objectness", "by_cell"], ["output"], axis=2),
    ]
    return nodes, lambda batch: [("output", TensorProto.FLOAT, [batch, cells, 7])]


def _end2end(cells: int):
    nodes = [
        helper.make_node("Add", ["corners", "zeros"], ["boxes_last"]),
        helper.make_node("Cast", ["label"], ["label_number"], to=TensorProto.FLOAT),
        helper.make_node("Concat", ["boxes_last", "best", "label_number"], ["output0"], axis=2),
    ]
    return nodes, lambda batch: [("output0", TensorProto.FLOAT, [batch, cells, 6])]


def _detr(cells: int):
    nodes = [
        helper.make_node("Add", ["shares", "zeros"], ["pred_boxes"]),
        helper.make_node("ReduceSum", ["by_cell", "axis_2"], ["any"]),
        helper.make_node("Sub", ["one", "any"], ["rest"]),
        helper.make_node("Concat", ["by_cell", "rest"], ["shares_of_classes"], axis=2),
        helper.make_node("Max", ["shares_of_classes", "tiny"], ["above_zero"]),
        helper.make_node("Log", ["above_zero"], ["logits"]),
    ]
    return nodes, lambda batch: [
        ("logits", TensorProto.FLOAT, [batch, cells, 3]),
        ("pred_boxes", TensorProto.FLOAT, [batch, cells, 4]),
    ]


def _torchvision(_cells: int):
    """The boxes of one image with a score above 0.5; class 0 is the background, so labels begin at 1."""
    nodes = [
        helper.make_node("Squeeze", ["best", "axis_2"], ["rows"]),
        helper.make_node("Squeeze", ["rows", "no_batch"], ["row"]),
        helper.make_node("Greater", ["row", "half"], ["is_found"]),
        helper.make_node("Squeeze", ["corners", "no_batch"], ["all_boxes"]),
        helper.make_node("Compress", ["all_boxes", "is_found"], ["boxes"], axis=0),
        helper.make_node("Compress", ["row", "is_found"], ["scores_found"], axis=0),
        helper.make_node("Squeeze", ["label", "axis_2"], ["label_rows"]),
        helper.make_node("Squeeze", ["label_rows", "no_batch"], ["label_row"]),
        helper.make_node("Add", ["label_row", "one_label"], ["labels_from_1"]),
        helper.make_node("Compress", ["labels_from_1", "is_found"], ["labels"], axis=0),
    ]
    nodes[0] = helper.make_node("Squeeze", ["best", "axis_2"], ["rows"])
    return nodes, lambda _batch: [
        ("boxes", TensorProto.FLOAT, ["found", 4]),
        ("labels", TensorProto.INT64, ["found"]),
        ("scores_found", TensorProto.FLOAT, ["found"]),
    ]


def _model(nodes, image, outputs, constants, metadata) -> onnx.ModelProto:
    used = {name for node in nodes for name in node.input}
    graph = helper.make_graph(
        nodes,
        "cells",
        [helper.make_tensor_value_info(*image)],
        [helper.make_tensor_value_info(*output) for output in outputs],
        [numpy_helper.from_array(value, name) for name, value in constants.items() if name in used],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    helper.set_model_props(model, dict(metadata or {}))
    return model
