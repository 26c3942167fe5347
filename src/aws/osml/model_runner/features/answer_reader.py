"""Reads the response of a model that does not return GeoJSON, by the paths of ``imageProcessor.answer``.

The result is the same as of ``model_response``: features in pixels of the tile, held to the same rules.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jmespath
from jmespath.exceptions import JMESPathError
from jmespath.visitor import TreeInterpreter

from aws.osml.model_runner.api.model_protocol import Answer, ModelProtocol
from aws.osml.model_runner.common.typing import ImageDimensions
from aws.osml.model_runner.exceptions import BadModelResponseError

from .detection_tensors import Fit
from .image_geometry import IMAGE_BBOX, IMAGE_GEOMETRY, Box, GeometryProblem
from .model_response import UNSELECTED, FeatureProblem, ParsedResponse, feature_problem, parse_response, parsed_json
from .properties import FEATURE_CLASSES, Feature
from .run_length_masks import MaskError, MaskReader
from .tensor_response import TensorReader

# A feature takes more memory than a small item, so items are counted before features are made.
MAX_ITEMS = 50_000
# The class of an item with a score and without a label.
UNLABELLED = "object"
_MAX_SHOWN_PATH = 48

# Names under which servers send the four numbers of a box, by format.
_CORNERS = (
    ("x1", "y1", "x2", "y2"),
    ("xmin", "ymin", "xmax", "ymax"),
    ("x_min", "y_min", "x_max", "y_max"),
    ("left", "top", "right", "bottom"),
)
_NAMES_OF_BOX = {
    "XYXY": _CORNERS,
    "YXYX": tuple((b, a, d, c) for a, b, c, d in _CORNERS),
    "XYWH": (("x", "y", "width", "height"), ("x", "y", "w", "h"), ("left", "top", "width", "height")),
    "CXCYWH": (("x", "y", "width", "height"), ("x", "y", "w", "h"), ("cx", "cy", "w", "h")),
    "XYXYXYXY": (),
}
_NAMES_OF_QUADRILATERAL = ("x1", "y1", "x2", "y2", "x3", "y3", "x4", "y4")

ReadResponse = Callable[[bytes, ImageDimensions, int], ParsedResponse]


def reader_of(protocol: ModelProtocol) -> ReadResponse:
    """Return the function that reads a response: its body, the size of its tile, and the most memory that it may take.

    The function raises BadModelResponseError, which names the path that a response does not have.
    """
    if protocol.answer is None:
        return lambda body, _tile_size, max_parsed_bytes: parse_response(body, max_parsed_bytes)
    if protocol.answer.tensors is not None:
        return TensorReader(protocol.answer, Fit.NONE if protocol.body == "TENSOR" else Fit.STRETCH).read
    return MappedReader(protocol.answer, protocol.asked).read


class _ItemError(Exception):
    """An item of a response that cannot become a feature, with the code and the path of the reason."""

    def __init__(self, code: str, path: "_Path") -> None:
        super().__init__(f"{code} at {path}")


class _Path:
    """A compiled path of ``answer``, and its key there. An absent key selects nothing."""

    def __init__(self, key: str, text: str | None) -> None:
        self.key, self.text = key, text
        self._compiled = jmespath.compile(text or "@")

    def __str__(self) -> str:
        text = self.text or "absent"
        shown = text if len(text) <= _MAX_SHOWN_PATH else f"{text[: _MAX_SHOWN_PATH - 1]}…"
        return f"answer.{self.key} ({shown})"

    def of(self, document: Any) -> Any:
        """Return the value that the path selects. Raises ``_ItemError`` where it calls a function with a wrong type."""
        if self.text is None:
            return None
        try:
            return self._compiled.search(document)
        except JMESPathError as err:
            raise _ItemError("UNREADABLE", self) from err

    def misses(self, document: Any) -> bool:
        """Return True when the path selects nothing because a list of ``document`` has other members than it names."""
        node = self._compiled.parsed
        while node["children"]:
            left = node["children"][0]
            if node["type"] in ("projection", "value_projection"):
                interpreter = TreeInterpreter()
                if interpreter.visit(left, document) and not interpreter.visit(node, document):
                    return True
            node = left
        return False


class MappedReader:
    """Reads JSON responses by the paths of one ``answer``, of which a request asked for some. Any thread may use it."""

    def __init__(self, answer: Answer, asked: frozenset[str] = frozenset()) -> None:
        self._answer = answer
        self._items, self._box, self._label, self._score, self._polygon = (
            _Path(key, getattr(answer, key)) for key in ("items", "box", "label", "score", "polygon")
        )
        # Servers of one protocol may have models with outlines and models without.
        has_to_select = [self._label, self._score, *([self._polygon] if answer.box and "polygon" in asked else [])]
        self._has_to_select = [path for path in has_to_select if path.text is not None]

    def read(self, body: bytes, tile_size: ImageDimensions, max_parsed_bytes: int) -> ParsedResponse:
        """Return the features of a response.

        An item that is not valid is dropped, and counted by its code and path. Items below ``minScore`` are left out.
        Optional paths that select nothing in any item of the response are counted as unselected.

        Raises BadModelResponseError for a body that is not valid JSON, and one in which ``items`` is not a list.
        """
        document = parsed_json(body, max_parsed_bytes)
        items = self._listed(document)
        features, dropped = list[Feature](), Counter[str]()
        masks, selected = MaskReader(tile_size), set[_Path]()
        for item in items:
            try:
                features.extend(self._feature(item, tile_size, masks, selected))
            except _ItemError as err:
                dropped[str(err)] += 1
        missed = [path for path in self._has_to_select if items and path not in selected]
        dropped.update({f"{UNSELECTED}{path}": len(items) for path in missed})
        return ParsedResponse(features, dropped)

    def _listed(self, document: Any) -> list[Any]:
        path = self._items
        try:
            items = path.of(document)
        except _ItemError as err:
            raise BadModelResponseError(f"{path} cannot be applied to the response") from err
        if items is None or (items == [] and path.misses(document)):
            raise BadModelResponseError(f"{path} selects nothing in the response")
        if not isinstance(items, list):
            raise BadModelResponseError(f"{path} selects {_kind(items)} in the response, and a list is required")
        if len(items) > MAX_ITEMS:
            raise BadModelResponseError(f"{path} selects {len(items)} items, at most {MAX_ITEMS} are allowed")
        return items

    def _feature(
        self, item: Any, tile_size: ImageDimensions, masks: MaskReader, selected: set[_Path]
    ) -> Sequence[Feature]:
        """Return the feature of an item; nothing for an item below ``minScore``. Raises ``_ItemError``."""
        answer, found = self._answer, {}
        for path in (self._box, self._label, self._score, self._polygon):
            found[path.key] = value = path.of(item)
            if value is not None:
                selected.add(path)
        score = found["score"]
        if answer.min_score is not None and type(score) in (int, float) and score < answer.min_score:
            return ()
        properties: dict[str, Any] = {}
        scale = _scale(answer.units, tile_size)
        if found["polygon"]:
            properties[IMAGE_GEOMETRY] = self._outline(found["polygon"], scale, masks)
        if found["box"] is not None:
            properties |= self._box_properties(found["box"], scale)
        label = _label_text(found["label"])
        if label is not None or score is not None:
            iri = UNLABELLED if label is None else (answer.classes or {}).get(str(label), label)
            properties[FEATURE_CLASSES] = [{"iri": iri} if score is None else {"iri": iri, "score": score}]
        feature = {"type": "Feature", "geometry": None, "properties": properties}
        if problem := feature_problem(feature):
            raise _ItemError(problem, self._path_of(problem, properties))
        return (feature,)

    def _path_of(self, problem: str, properties: Mapping[str, Any]) -> _Path:
        """Return the path of the value that breaks a rule of features."""
        if problem == FeatureProblem.BAD_FEATURE_CLASSES:
            return self._score if isinstance(properties[FEATURE_CLASSES][0]["iri"], str) else self._label
        is_box = problem == GeometryProblem.BAD_IMAGE_BBOX or self._polygon.text is None
        if problem == GeometryProblem.NO_IMAGE_GEOMETRY:
            is_box = self._box.text is not None
        return self._box if is_box else self._polygon

    def _box_properties(self, value: Any, scale: tuple[float, float]) -> dict[str, Any]:
        """Return the properties for a box: its bounds, or its four corners as the outline of an oriented box."""
        box_format = self._answer.box_format
        numbers = _numbers_of_box(value, box_format)
        has_corners = len(numbers) == 8 and box_format in ("XYXY", "XYXYXYXY")
        if not _are_numbers(numbers) or (len(numbers) != 4 and not has_corners):
            raise _ItemError(GeometryProblem.BAD_IMAGE_BBOX, self._box)
        if has_corners:
            ring = [[numbers[i] * scale[0], numbers[i + 1] * scale[1]] for i in range(0, 8, 2)]
            return {IMAGE_GEOMETRY: {"type": "Polygon", "coordinates": [[*ring, ring[0]]]}}
        bounds = _bounds(numbers, box_format)
        if box_format == "XYXYXYXY" or bounds is None:
            raise _ItemError(GeometryProblem.BAD_IMAGE_BBOX, self._box)
        return {IMAGE_BBOX: [side * scale[index % 2] for index, side in enumerate(bounds)]}

    def _outline(self, value: Any, scale: tuple[float, float], masks: MaskReader) -> dict[str, Any]:
        """Return the geometry of an outline, or of the areas of a mask."""
        if self._answer.polygon_format == "RLE":
            try:
                return masks.geometry(value)
            except MaskError as err:
                raise _ItemError(f"BAD_MASK: {err}", self._polygon) from err
        try:
            rings = list(_RINGS[self._answer.polygon_format](value))
        except (AttributeError, KeyError, TypeError, ValueError) as err:
            raise _ItemError(GeometryProblem.BAD_IMAGE_GEOMETRY, self._polygon) from err
        if not all(_are_numbers(position) for ring in rings for position in ring):
            raise _ItemError(GeometryProblem.BAD_COORDINATES, self._polygon)
        scaled = [[[x * scale[0], y * scale[1]] for x, y in ring] for ring in rings]
        if len(scaled) == 1:
            return {"type": "Polygon", "coordinates": scaled}
        return {"type": "MultiPolygon", "coordinates": [[ring] for ring in scaled]}


def _scale(units: str, tile_size: ImageDimensions) -> tuple[float, float]:
    """Return the pixels of one unit, along x and along y."""
    if units == "PIXELS":
        return 1.0, 1.0
    parts = 1.0 if units == "NORMALIZED" else 1_000.0
    return tile_size.width / parts, tile_size.height / parts


def _numbers_of_box(value: Any, box_format: str) -> Sequence[Any]:
    """Return the numbers of a box that is a list or an object; empty where it is neither, or has other names."""
    if isinstance(value, list):
        return value
    if not isinstance(value, dict):
        return ()
    is_quadrilateral = box_format in ("XYXY", "XYXYXYXY") and "x3" in value
    choices = (_NAMES_OF_QUADRILATERAL,) if is_quadrilateral else _NAMES_OF_BOX[box_format]
    return next(([value[name] for name in names] for names in choices if value.keys() >= set(names)), ())


def _bounds(numbers: Sequence[float], box_format: str) -> Box | None:
    """Return x1, y1, x2, y2 of a box; None for a negative width or height."""
    a, b, c, d = map(float, numbers)
    if box_format in ("XYXY", "YXYX"):
        return (a, b, c, d) if box_format == "XYXY" else (b, a, d, c)
    if c < 0 or d < 0:
        return None
    return (a, b, a + c, b + d) if box_format == "XYWH" else (a - c / 2, b - d / 2, a + c / 2, b + d / 2)


def _points(value: Any) -> Iterator[list[Sequence[Any]]]:
    """Yield the ring of ``[[x, y], …]`` or ``[{"x": …, "y": …}, …]``."""
    yield [_pair(point["x"], point["y"]) if isinstance(point, dict) else _pair(*point) for point in value]


def _xy_arrays(value: Any) -> Iterator[list[Sequence[Any]]]:
    """Yield the ring of ``{"x": […], "y": […]}``."""
    yield list(zip(value["x"], value["y"], strict=True))


def _flat(value: Any) -> Iterator[list[Sequence[Any]]]:
    """Yield the ring of ``[x, y, x, y, …]``, or each ring of a list of such lists, as COCO has them."""
    for ring in value if isinstance(value[0], list) else [value]:
        yield list(zip(ring[::2], ring[1::2], strict=True))


_RINGS: Mapping[str, Callable[[Any], Iterator[list[Sequence[Any]]]]] = {
    "POINTS": _points,
    "XY_ARRAYS": _xy_arrays,
    "FLAT": _flat,
}


def _pair(x: Any, y: Any, *_: Any) -> tuple[Any, Any]:
    return x, y


def _are_numbers(values: Sequence[Any]) -> bool:
    return set(map(type, values)) <= {int, float}


def _label_text(label: Any) -> Any:
    """Return a label as text, where it is text or a number: 4.0 is ``4``."""
    if type(label) in (int, float):
        return str(int(label)) if label == int(label) else str(label)
    return label


def _kind(value: Any) -> str:
    """Return how a value of JSON is described in an error, without the value."""
    return {dict: "an object", str: "a text", bool: "true or false"}.get(type(value), "a number")
