"""The keys ``protocol``, ``envelope`` and ``answer`` of ``imageProcessor``: how a tile is sent, and its response read.

A protocol is a row of ``PROTOCOLS``: the envelope of a tile, and the paths by which its response is read. A new kind of
server is a new row.
"""

import copy
import itertools
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import jmespath
from pydantic import AfterValidator, BeforeValidator, ConfigDict, Field, field_validator

from aws.osml.model_runner.common.typing import ImageFormats

from .request_utils import json_text
from .rules import MessageObject, RealNumber, broken_rule

OSML, CUSTOM = "OSML", "CUSTOM"

MAX_PATH_LENGTH = 256
# A list of expressions in a path repeats its input, so nested lists would multiply it. Eight are the coordinates of an
# oriented box.
MAX_REPEATS = 64
MAX_CLASSES = 10_000
MAX_BANDS, MAX_PIXEL_VALUE = 64, 1e9
# Dimensions of a tensor, and the length of each.
MAX_RANK, MAX_SIDE = 8, 2**31 - 1
MAX_LABEL_LENGTH = 256
MAX_FIELD_LENGTH = 128
MAX_TEMPLATE_BYTES = 16 * 1024

# Functions whose result is not larger than their argument.
_FUNCTIONS = ("contains", "ends_with", "keys", "length", "not_null", "starts_with", "to_number", "type", "values")

_PICTURES = frozenset({ImageFormats.PNG, ImageFormats.JPEG})
_READABLE = _PICTURES | {ImageFormats.GTIFF}


@dataclass(frozen=True)
class ProtocolRow:
    """One kind of server: the body of a call, and the reader of its response in the names of ``answer``.

    ``formats`` are the tile formats that such servers decode. ``options`` names the keys of ``envelope`` that a request
    may set. A row without ``answer`` has a reader of its own: GeoJSON for ``OSML``, tensors for ``KSERVE_V2``.
    """

    body: Literal["RAW", "MULTIPART", "BASE64_JSON", "TENSOR", "IMAGE_TENSOR"]
    answer: Mapping[str, Any] | None = None
    formats: frozenset[ImageFormats] = _READABLE
    field: str = ""
    template: Mapping[str, Any] | None = None
    options: frozenset[str] = frozenset()


PROTOCOLS: Mapping[str, ProtocolRow] = {
    OSML: ProtocolRow("RAW", formats=frozenset(ImageFormats)),
    "TORCHSERVE": ProtocolRow(
        "RAW",
        {
            "items": "@",
            "box": "values(@)[?type(@) == 'array'] | [0]",
            "label": "keys(@)[?@ != 'score'] | [0]",
            "score": "score",
        },
    ),
    "HUGGING_FACE": ProtocolRow("RAW", {"items": "@", "box": "box", "label": "label", "score": "score"}),
    "ROBOFLOW": ProtocolRow(
        "BASE64_JSON",
        {
            "items": "predictions",
            "box": "[x, y, width, height]",
            "boxFormat": "CXCYWH",
            "label": "class",
            "score": "confidence",
            "polygon": "points",
        },
        field="image.value",
        template={"image": {"type": "base64"}},
        options=frozenset({"template"}),
    ),
    "ULTRALYTICS": ProtocolRow(
        "MULTIPART",
        {
            "items": "images[0].results",
            "box": "box",
            "label": "name",
            "score": "confidence",
            "polygon": "segments",
            "polygonFormat": "XY_ARRAYS",
        },
        field="file",
        options=frozenset({"template"}),
    ),
    "SAGEMAKER_DETECTION": ProtocolRow(
        "RAW",
        {"items": "prediction", "box": "[2:6]", "units": "NORMALIZED", "label": "[0]", "score": "[1]"},
        _PICTURES,
    ),
    "KSERVE_V2": ProtocolRow("TENSOR", formats=frozenset(ImageFormats), options=frozenset({"tensor"})),
    "KSERVE_V2_IMAGE": ProtocolRow("IMAGE_TENSOR", formats=_PICTURES, options=frozenset({"tensor"})),
    CUSTOM: ProtocolRow("RAW", formats=frozenset(ImageFormats), options=frozenset({"body", "field", "template"})),
}


def _protocol(name: Any) -> str:
    if not isinstance(name, str) or name not in PROTOCOLS:
        raise broken_rule(f"one of {', '.join(map(repr, PROTOCOLS))}")
    return name


class _ProtocolObject(MessageObject):
    """An object in which an unknown key is refused: a misspelt key would silently change the features."""

    model_config = ConfigDict(extra="forbid", frozen=True)


def _path(text: str) -> str:
    if not 0 < len(text) <= MAX_PATH_LENGTH:
        raise broken_rule(f"a JMESPath of 1 to {MAX_PATH_LENGTH} characters")
    try:
        tree = jmespath.compile(text).parsed
    except (jmespath.exceptions.JMESPathError, RecursionError, ValueError) as err:
        reason = str(err).partition("\n")[0][:120]
        raise broken_rule(f"a JMESPath: {reason}") from err
    repeats = 1
    for node in _nodes(tree):
        if node["type"] == "function_expression" and node["value"] not in _FUNCTIONS:
            raise broken_rule(f"a JMESPath without {node['value'][:40]}(); functions are {', '.join(_FUNCTIONS)}")
        if node["type"].startswith("multi_select"):
            repeats *= max(1, len(node["children"]))
    if repeats > MAX_REPEATS:
        raise broken_rule(f"a JMESPath that repeats its input at most {MAX_REPEATS} times (it does {repeats} times)")
    return text


def _nodes(tree: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    waiting = [tree]
    while waiting:
        node = waiting.pop()
        yield node
        waiting.extend(child for child in node["children"] if isinstance(child, Mapping))


def _classes(value: Any) -> Any:
    if not isinstance(value, dict) or not 0 < len(value) <= MAX_CLASSES:
        raise broken_rule(f"an object of 1 to {MAX_CLASSES} names by label")
    for name in value.values():
        if not isinstance(name, str) or not 0 < len(name) <= MAX_LABEL_LENGTH:
            raise broken_rule(f"names of 1 to {MAX_LABEL_LENGTH} characters")
    return value


def _template(value: Any) -> Any:
    if not isinstance(value, dict):
        raise broken_rule("an object")
    return value


ProtocolName = Annotated[str, BeforeValidator(_protocol)]


def _per_band(value: Any) -> tuple[float, ...]:
    """Return a number for all bands, or one for each."""
    numbers = value if isinstance(value, list | tuple) else [value]
    are_numbers = all(isinstance(item, int | float) and not isinstance(item, bool) for item in numbers)
    if not (0 < len(numbers) <= MAX_BANDS and are_numbers and all(abs(item) <= MAX_PIXEL_VALUE for item in numbers)):
        raise broken_rule("a number, or a list with one number for each band")
    return tuple(map(float, numbers))


def _shape(value: Any) -> tuple[int, ...]:
    is_list = isinstance(value, list | tuple) and len(value) <= MAX_RANK
    if not is_list or not all(type(side) is int and -1 <= side <= MAX_SIDE and side for side in value):
        raise broken_rule(f"a list of at most {MAX_RANK} numbers from 1 to {MAX_SIDE}, or -1 for any")
    return tuple(value)


def _size(value: Any) -> tuple[int, ...]:
    if not isinstance(value, list | tuple) or len(value) != 2 or not all(type(v) is int and v > 0 for v in value):
        raise broken_rule("[width, height] in pixels")
    return _shape(value)


Path = Annotated[str, AfterValidator(_path)]
Classes = Annotated[dict[str, str], BeforeValidator(_classes)]
TensorName = Annotated[str, Field(min_length=1, max_length=MAX_LABEL_LENGTH)]
PerBand = Annotated[tuple[float, ...], BeforeValidator(_per_band)]
Shape = Annotated[tuple[int, ...], BeforeValidator(_shape)]
Size = Annotated[tuple[int, ...], BeforeValidator(_size)]
Template = Annotated[dict[str, Any], BeforeValidator(_template)]


class InputTensor(_ProtocolObject):
    """The input tensor of a model; an HTTP endpoint describes what is absent here.

    A float sample is (pixel x ``pixelScale`` - ``mean``) / ``std``.
    """

    name: TensorName | None = None
    datatype: Literal["UINT8", "UINT16", "INT16", "FP16", "FP32"] | None = None
    shape: Shape | None = None
    layout: Literal["NCHW", "NHWC"] | None = None
    pixel_scale: RealNumber = Field(1.0, alias="pixelScale")
    mean: PerBand = (0.0,)
    std: PerBand = (1.0,)

    @field_validator("std")
    @classmethod
    def _is_divisor(cls, std: tuple[float, ...]) -> tuple[float, ...]:
        if not all(std):
            raise broken_rule("numbers other than 0")
        return std


class Envelope(_ProtocolObject):
    """The body of a call: the tile as it is, in a form, as base64 in a JSON document, or as a tensor."""

    body: Literal["RAW", "MULTIPART", "BASE64_JSON"] | None = None
    field: Annotated[str, Field(min_length=1, max_length=MAX_FIELD_LENGTH)] | None = None
    template: Template | None = None
    tensor: InputTensor | None = None


class Tensors(_ProtocolObject):
    """The output tensors of a detector; see ``features.detection_tensors``."""

    layout: Literal["YOLO_V8", "YOLO_V5", "YOLO_END2END", "DETR", "BOXES_SCORES_LABELS"]
    boxes: TensorName | None = None
    scores: TensorName | None = None
    labels: TensorName | None = None
    input_size: Size | None = Field(None, alias="inputSize")
    fit: Literal["STRETCH", "LETTERBOX", "NONE"] | None = None
    activation: Literal["SOFTMAX", "SIGMOID", "NONE"] | None = None


class Nms(_ProtocolObject):
    """Suppression of boxes of one tile."""

    iou: Annotated[RealNumber, Field(ge=0, le=1)] = 0.5
    is_per_class: Annotated[bool, Field(strict=True)] = Field(True, alias="perClass")


class Answer(_ProtocolObject):
    """Where the detections of a response are, and what their numbers mean: paths in JSON, or tensors.

    Paths are JMESPath.
    """

    items: Path | None = None
    box: Path | None = None
    box_format: Literal["XYXY", "XYWH", "CXCYWH", "YXYX", "XYXYXYXY"] = Field("XYXY", alias="boxFormat")
    units: Literal["PIXELS", "NORMALIZED", "THOUSANDTHS"] = "PIXELS"
    label: Path | None = None
    score: Path | None = None
    polygon: Path | None = None
    polygon_format: Literal["POINTS", "XY_ARRAYS", "FLAT", "RLE"] = Field("POINTS", alias="polygonFormat")
    classes: Classes | None = None
    min_score: RealNumber | None = Field(None, alias="minScore")
    tensors: Tensors | None = None
    nms: Nms | None = None

    def over(self, defaults: Mapping[str, Any]) -> "Answer":
        """Return this answer with ``defaults``, in the names of a message, for each key that it does not set."""
        return Answer.model_validate({**defaults, **self.model_dump(by_alias=True, exclude_unset=True)})


def checked_envelope(protocol: str, envelope: Envelope | None, is_described: bool) -> Envelope | None:
    """Return the envelope of a request if it fits the protocol; raise a broken rule otherwise.

    ``is_described``: the endpoint describes its input, as HTTP endpoints of ``KSERVE_V2`` do.
    """
    row = PROTOCOLS[protocol]
    given = set() if envelope is None else envelope.model_fields_set
    if excess := sorted(given - row.options):
        may = f"only {', '.join(sorted(row.options))}" if row.options else "absent"
        raise broken_rule(f"{may} with protocol {protocol}; it sets {', '.join(excess)}")
    if protocol == CUSTOM and (envelope is None or envelope.body is None):
        raise broken_rule("an object with body RAW, MULTIPART or BASE64_JSON, for protocol CUSTOM")
    if row.body in ("TENSOR", "IMAGE_TENSOR"):
        needed = {"name", "datatype"} if row.body == "TENSOR" else {"name"}
        tensor = None if envelope is None else envelope.tensor
        if not is_described and (tensor is None or not needed <= tensor.model_fields_set):
            keys = " and ".join(sorted(needed))
            raise broken_rule(
                f"an object with tensor that has {keys}: a SageMaker endpoint does not describe its input"
            )
        return envelope
    return None if envelope is None else _checked_body(envelope, row)


def _checked_body(envelope: Envelope, row: ProtocolRow) -> Envelope:
    """Return the envelope if its template has a place for the tiles data; raise a broken rule otherwise."""
    given = envelope.model_fields_set
    body, template = envelope.body or row.body, envelope.template or {}
    if body == "RAW" and given - {"body"}:
        raise broken_rule("only body: a RAW body has neither field nor template")
    if len(json_text(template).encode(errors="surrogatepass")) > MAX_TEMPLATE_BYTES:
        raise broken_rule(f"a template of at most {MAX_TEMPLATE_BYTES} bytes")
    if body == "MULTIPART" and not all(isinstance(value, str | int | float) for value in template.values()):
        raise broken_rule("a template of texts, numbers, true and false, which become the fields of the form")
    if body == "BASE64_JSON":
        if not (envelope.field or row.field):
            raise broken_rule("an object with field, the path at which the JSON body holds the tile")
        with_tile({**(row.template or {}), **template}, envelope.field or row.field, "")
    return envelope


def checked_answer(protocol: str, answer: Answer | None) -> Answer | None:
    """Return the answer of a request if it and the protocol's own define a reader; raise a broken rule otherwise."""
    row = PROTOCOLS[protocol]
    defaults = row.answer
    given = frozenset() if answer is None else answer.model_fields_set
    if row.body in ("TENSOR", "IMAGE_TENSOR"):
        if answer is None or answer.tensors is None:
            raise broken_rule(f"an object with tensors, for protocol {protocol}")
        if excess := given & _PATH_KEYS:
            raise broken_rule(f"an object without {', '.join(sorted(excess))}: tensors have no paths")
        if row.body == "TENSOR" and answer.tensors.fit not in (None, "NONE"):
            raise broken_rule(f"tensors with fit NONE: {protocol} sends pixels as they are; set imageProcessorTileSize")
        if answer.units == "THOUSANDTHS":
            raise broken_rule("units PIXELS or NORMALIZED, for tensors")
        return answer
    if excess := given & {"tensors", "nms"}:
        tensors = ", ".join(name for name, other in PROTOCOLS.items() if other.body in ("TENSOR", "IMAGE_TENSOR"))
        raise broken_rule(f"an object without {', '.join(sorted(excess))}; only {tensors} return tensors")
    if answer is None:
        if protocol == CUSTOM:
            raise broken_rule("an object with items and box or polygon, for protocol CUSTOM")
        return None
    whole = answer.over(defaults or {})
    if whole.items is None or (whole.box is None and whole.polygon is None):
        raise broken_rule(f"an object with items and box or polygon, which {protocol} does not define")
    return answer


_PATH_KEYS = frozenset({"items", "box", "box_format", "label", "score", "polygon", "polygon_format"})
_STEP = re.compile(r"\[(\d{1,2})\]|\.?([^.\[\]]+)")
_MAX_INDEX = 15


def with_tile(template: Mapping[str, Any], path: str, tile: str) -> dict[str, Any]:
    """Return ``template`` with the text ``tile`` at ``path``, such as ``instances[0].image``.

    Text that the template has there, such as ``data:image/png;base64,``, stands before the tile. Missing objects and
    lists are created. Raises a broken rule for a path that the template does not have room for.
    """
    matches = list(_STEP.finditer(path))
    if "".join(match[0] for match in matches) != path or not matches or matches[0][1] is not None:
        raise broken_rule("an object whose field is a path of names and indices, such as instances[0].image")
    steps: list[int | str] = [int(match[1]) if match[1] is not None else match[2] for match in matches]
    document: dict[str, Any] = copy.deepcopy(dict(template))
    place: Any = document
    for step, following in itertools.pairwise([*steps, None]):
        is_index = isinstance(step, int)
        if is_index != isinstance(place, list) or (isinstance(step, int) and step > min(len(place), _MAX_INDEX)):
            raise broken_rule(f"an object whose template has room for the tile at {path}")
        if isinstance(step, int) and step == len(place):
            place.append(None)
        found = place[step] if is_index else place.get(step)
        if following is None:
            if not isinstance(found, str | None):
                raise broken_rule(f"an object whose template has no value, or a text, at {path}")
            place[step] = f"{found or ''}{tile}"
            break
        if found is None:
            found = place[step] = [] if isinstance(following, int) else {}
        if not isinstance(found, dict | list):
            raise broken_rule(f"an object whose template has room for the tile at {path}")
        place = found
    return document


@dataclass(frozen=True)
class ModelProtocol:
    """The protocol of a job's model. ``answer`` is None where the response is GeoJSON in pixels of the tile.

    ``asked`` holds the keys of ``answer`` that the request sets; the others are those of the protocol.
    """

    name: str
    body: str
    field: str
    template: Mapping[str, Any]
    tensor: InputTensor
    answer: Answer | None
    asked: frozenset[str]

    @property
    def sends_pixels(self) -> bool:
        """True where tiles are sent as pixels, whatever ``imageProcessorTileFormat`` is."""
        return self.body == "TENSOR"

    @classmethod
    def of(cls, stored: Mapping[str, Any] | None) -> "ModelProtocol":
        """Return the protocol of a row: the keys ``protocol``, ``envelope`` and ``answer`` of a checked message.

        Raises ValueError for a protocol that this version does not define, or keys that it does not read.
        """
        stored = stored or {}
        name = stored.get("protocol", OSML)
        if name not in PROTOCOLS:
            raise ValueError(f"protocol {name!r} is unknown; allowed are {', '.join(PROTOCOLS)}")
        row = PROTOCOLS[name]
        envelope = Envelope.model_validate(stored.get("envelope") or {})
        given = Answer.model_validate(stored.get("answer") or {})
        return cls(
            name=name,
            body=envelope.body or row.body,
            field=envelope.field or row.field or "file",
            template={**(row.template or {}), **(envelope.template or {})},
            tensor=envelope.tensor or InputTensor(),
            answer=given.over(row.answer or {}) if row.answer or given.model_fields_set else None,
            asked=frozenset(given.model_fields_set),
        )
