"""Reads tensors from a response of the Open Inference Protocol v2, with the binary tensor extension.

A response is a JSON object, and then the bytes of its binary tensors, one after the other: little-endian, row by row,
without padding. The length of the JSON is a header of the response. ``framed`` puts both into one body.
"""

import math
import struct
from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from aws.osml.model_runner.api.model_protocol import MAX_RANK, MAX_SIDE, Answer
from aws.osml.model_runner.common.typing import ImageDimensions
from aws.osml.model_runner.exceptions import BadModelResponseError

from .detection_tensors import Activation, Fit, TensorFormat, TensorLayout, read_detections
from .image_geometry import IMAGE_BBOX
from .model_response import ParsedResponse, parsed_json
from .properties import FEATURE_CLASSES, Feature

MAX_TENSORS = 64
# Layouts whose boxes no network has suppressed.
_RAW_LAYOUTS = ("YOLO_V8", "YOLO_V5")
_DEFAULT_IOU, _DEFAULT_MIN_SCORE = 0.5, 0.25
_MAX_SHOWN_NAME = 64
_FRAME = struct.Struct("<Q")
_TYPES = {
    "BOOL": "?",
    "UINT8": "u1",
    "UINT16": "<u2",
    "UINT32": "<u4",
    "UINT64": "<u8",
    "INT8": "i1",
    "INT16": "<i2",
    "INT32": "<i4",
    "INT64": "<i8",
    "FP16": "<f2",
    "FP32": "<f4",
    "FP64": "<f8",
}


def framed(body: bytes, json_bytes: int) -> bytes:
    """Return a body that begins with the length of its JSON."""
    return _FRAME.pack(json_bytes) + body


class TensorReader:
    """Reads the detections of tensors by one ``answer``. Any thread may use it."""

    def __init__(self, answer: Answer, default_fit: Fit) -> None:
        tensors, nms = answer.tensors, answer.nms
        if tensors is None:
            raise ValueError("an answer without tensors has no reader of tensors")
        iou = _DEFAULT_IOU if tensors.layout in _RAW_LAYOUTS else None
        self._classes = answer.classes or {}
        self._format = TensorFormat(
            layout=TensorLayout(tensors.layout),
            boxes=tensors.boxes,
            scores=tensors.scores,
            labels=tensors.labels,
            input_size=None if tensors.input_size is None else ImageDimensions(*tensors.input_size),
            fit=default_fit if tensors.fit is None else Fit(tensors.fit),
            activation=None if tensors.activation is None else Activation(tensors.activation),
            is_normalized=answer.units == "NORMALIZED",
            min_score=_DEFAULT_MIN_SCORE if answer.min_score is None else answer.min_score,
            iou=iou if nms is None else nms.iou,
            is_per_class=nms is None or nms.is_per_class,
        )

    def read(self, body: bytes, tile_size: ImageDimensions, max_parsed_bytes: int) -> ParsedResponse:
        """Return the features of a framed response. Boxes without an area inside the tile are counted as dropped.

        Raises BadModelResponseError, which names the tensor where the error is that of one.
        """
        found = read_detections(read_tensors(body, max_parsed_bytes), self._format, tile_size)
        dropped = Counter({"NO_AREA_IN_TILE": found.dropped} if found.dropped else {})
        features: list[Feature] = []
        for box, score, label in zip(found.boxes.tolist(), found.scores.tolist(), found.labels.tolist(), strict=True):
            iri = self._classes.get(str(label), str(label))
            properties = {IMAGE_BBOX: box, FEATURE_CLASSES: [{"iri": iri, "score": score}]}
            features.append({"type": "Feature", "geometry": None, "properties": properties})
        return ParsedResponse(features, dropped)


def read_tensors(body: bytes, max_parsed_bytes: int) -> Mapping[str, NDArray[Any]]:
    """Return the output tensors of a framed response by name; tensors in binary are views of ``body``.

    Raises BadModelResponseError. Sizes are compared with the bytes that have arrived before anything is allocated.
    """
    if len(body) < _FRAME.size:
        raise BadModelResponseError("the response has no frame")
    (json_bytes,) = _FRAME.unpack_from(body)
    start = _FRAME.size + json_bytes
    if start > len(body):
        raise BadModelResponseError(
            f"the JSON of the response has {json_bytes} bytes by its header, and the response has"
            f" {len(body) - _FRAME.size}"
        )
    tensors: dict[str, NDArray[Any]] = {}
    for output in _outputs(parsed_json(body[_FRAME.size : start], max_parsed_bytes)):
        name, dtype, shape = _described(output)
        if name in tensors:
            raise BadModelResponseError(f"tensor {name} is in the response twice")
        parameters = output.get("parameters")
        size_bytes = parameters.get("binary_data_size") if isinstance(parameters, dict) else None
        if size_bytes is None:
            tensors[name] = _from_json(name, output.get("data"), dtype, shape)
            continue
        expected = math.prod(shape) * dtype.itemsize
        if type(size_bytes) is not int or size_bytes != expected:
            raise BadModelResponseError(
                f"tensor {name} {shape} of {dtype.name} needs {expected} bytes, and its binary_data_size differs"
            )
        if start + size_bytes > len(body):
            raise BadModelResponseError(f"tensor {name} {shape} has {len(body) - start} of {size_bytes} bytes")
        tensors[name] = np.frombuffer(body, dtype, math.prod(shape), start).reshape(shape)
        start += size_bytes
    if start != len(body):
        raise BadModelResponseError(f"the response has {len(body) - start} bytes that belong to no tensor")
    return tensors


def _outputs(document: Any) -> list[dict[str, Any]]:
    outputs = document.get("outputs") if isinstance(document, dict) else None
    if not isinstance(outputs, list) or not all(isinstance(output, dict) for output in outputs):
        raise BadModelResponseError("the response has no list of outputs")
    if len(outputs) > MAX_TENSORS:
        raise BadModelResponseError(f"the response has {len(outputs)} outputs, at most {MAX_TENSORS} are allowed")
    return outputs


def _described(output: Mapping[str, Any]) -> tuple[str, np.dtype[Any], tuple[int, ...]]:
    """Return name, type and shape of an output."""
    name, datatype, shape = output.get("name"), output.get("datatype"), output.get("shape")
    if not isinstance(name, str):
        raise BadModelResponseError("an output of the response has no name")
    name = name[:_MAX_SHOWN_NAME]
    if not isinstance(datatype, str) or datatype not in _TYPES:
        raise BadModelResponseError(f"tensor {name} has a datatype that is not one of {', '.join(_TYPES)}")
    is_shape = isinstance(shape, list) and len(shape) <= MAX_RANK
    if not isinstance(shape, list) or not is_shape or not all(type(n) is int and 0 <= n <= MAX_SIDE for n in shape):
        raise BadModelResponseError(f"tensor {name} has a shape that is not a list of at most {MAX_RANK} lengths")
    return name, np.dtype(_TYPES[datatype]), tuple(shape)


def _from_json(name: str, data: Any, dtype: np.dtype[Any], shape: tuple[int, ...]) -> NDArray[Any]:
    """Return a tensor whose numbers are a flat or nested list."""
    if not isinstance(data, list):
        raise BadModelResponseError(f"tensor {name} {shape} has neither data nor binary_data_size")
    try:
        numbers = np.array(data)
    except ValueError as err:
        raise BadModelResponseError(f"tensor {name} {shape} has nested data of different lengths") from err
    if numbers.size and numbers.dtype.kind not in "biuf":
        raise BadModelResponseError(f"tensor {name} {shape} has data that are not numbers")
    if numbers.size != math.prod(shape):
        raise BadModelResponseError(f"tensor {name} {shape} has {numbers.size} numbers instead of {math.prod(shape)}")
    with np.errstate(over="ignore", invalid="ignore"):
        return numbers.astype(dtype).reshape(shape)
