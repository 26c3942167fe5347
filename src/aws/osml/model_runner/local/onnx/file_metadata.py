"""Reads the metadata that exporters write into ONNX files, as a model card.

Ultralytics writes Python literals (``names``, ``imgsz``, ``stride``, ``task``, ``end2end``). Deepness, a plugin of
QGIS, writes JSON: ``class_names``, ``tiles_size``, ``tiles_overlap`` in percent, ``resolution`` in cm, ``det_…``.
"""

import ast
import math
from collections.abc import Mapping
from typing import Any

from aws.osml.model_runner.exceptions import ConfigurationError

# Names of 10,000 classes fit. A literal takes a hundred times its length while Python parses it.
MAX_VALUE_CHARACTERS = 512 * 1024
# Pixels of the input are a multiple of it where the file does not limit them.
DEFAULT_STRIDE = 32
_DEEPNESS_LAYOUTS = {"YOLO_v5_or_v7_default": "YOLO_V5", "YOLO_Ultralytics": "YOLO_V8"}
_MAX_SHOWN = 60


def card_of_metadata(metadata: Mapping[str, str]) -> dict[str, Any]:
    """Return the card, as JSON holds it, that the metadata of a file describes.

    Raises ConfigurationError for a value that cannot be read, and for a task other than detection.
    """
    task = metadata.get("task", "detect")
    if task != "detect":
        raise ConfigurationError(f"task {task[:_MAX_SHOWN]!r}: only networks for detection can be served")
    size_px = _number(metadata, "tiles_size", 1, 1e6)
    overlap_percent, resolution_cm = (
        _number(metadata, "tiles_overlap", 0, 99),
        _number(metadata, "resolution", 1e-3, 1e7),
    )
    threshold = _number(metadata, "det_iou_thresh", 0, 1)
    answer = {
        "tensors": _present({"layout": _layout(metadata)}),
        "classes": next(
            (_class_names(key, metadata[key]) for key in ("names", "class_names") if key in metadata), None
        ),
        "minScore": _number(metadata, "det_conf", 0, 1),
        "nms": None if threshold is None else {"iou": threshold},
    }
    pixels = {
        "mean": _value(metadata, "standardization_mean", None),
        "std": _value(metadata, "standardization_std", None),
        "gsd": None if resolution_cm is None else resolution_cm / 100,
    }
    card = {
        "answer": _present(answer),
        "input": _present(pixels),
        "tileSize": None if size_px is None else int(size_px),
        "overlap": None if not size_px or overlap_percent is None else math.ceil(size_px * overlap_percent / 100),
    }
    return _present(card)


def _layout(metadata: Mapping[str, str]) -> str | None:
    if _value(metadata, "end2end", False) is True:
        return "YOLO_END2END"
    kind = metadata.get("det_type")
    if kind is None:
        return None
    layout = _DEEPNESS_LAYOUTS.get(kind.strip("\"' "))
    if layout is None:
        known = ", ".join(_DEEPNESS_LAYOUTS)
        raise ConfigurationError(f"det_type {kind[:_MAX_SHOWN]!r}: {known} can be read")
    return layout


def _present(document: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in document.items() if value is not None}


def input_sides(metadata: Mapping[str, str]) -> tuple[int, int] | None:
    """Return (width, height) of ``imgsz``, which is [height, width] or one side; None without it."""
    sides = _value(metadata, "imgsz", None)
    sides = [sides, sides] if isinstance(sides, int) else sides
    if sides is None:
        return None
    if not isinstance(sides, list | tuple) or len(sides) != 2 or not all(type(side) is int for side in sides):
        raise ConfigurationError(f"imgsz {metadata['imgsz'][:_MAX_SHOWN]!r}: expected [height, width]")
    height, width = sides
    return width, height


def stride_of(metadata: Mapping[str, str]) -> int:
    """Return the number of which the sides of the input are multiples."""
    return int(_number(metadata, "stride", 1, 1024) or DEFAULT_STRIDE)


def _class_names(key: str, text: str) -> dict[str, Any]:
    names = _value({key: text}, key, None)
    if isinstance(names, list | tuple):
        names = dict(enumerate(names))
    if not isinstance(names, dict) or not names:
        raise ConfigurationError(f"{key} {text[:_MAX_SHOWN]!r}: expected names by number, such as {{0: 'ship'}}")
    return {str(number): name for number, name in names.items()}


def _number(metadata: Mapping[str, str], key: str, low: float, high: float) -> float | None:
    value = _value(metadata, key, None)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        raise ConfigurationError(f"{key} {metadata[key][:_MAX_SHOWN]!r}: expected a number from {low:g} to {high:g}")
    return float(value)


def _value(metadata: Mapping[str, str], key: str, default: Any) -> Any:
    """Return the value of a Python literal, to which all values of JSON but true, false and null belong."""
    if key not in metadata:
        return default
    text = metadata[key]
    if len(text) > MAX_VALUE_CHARACTERS:
        raise ConfigurationError(f"{key} has {len(text)} characters, at most {MAX_VALUE_CHARACTERS} are allowed")
    try:
        words = {"true": True, "false": False, "null": None}
        return words[text] if text in words else ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError) as err:
        raise ConfigurationError(f"{key} {text[:_MAX_SHOWN]!r}: expected a Python literal or JSON") from err
