"""The card of a model: a JSON object that describes the input that a network takes and the response that it returns.

The keys of ``input``, except the three of its tensor, and ``postProcessing`` are those of an image request.
"""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, ConfigDict, Field, ValidationError

from aws.osml.model_runner.common.typing import ImageDimensions, ImageFormats
from aws.osml.model_runner.exceptions import ConfigurationError
from aws.osml.model_runner.features.detection_tensors import Activation, Fit, TensorFormat, TensorLayout

from .json_document import load_object
from .problems import problems_of
from .processor_input import MAX_BANDS, ProcessorInput
from .rules import MAX_TILE_SIZE, MIN_TILE_SIZE, MessageObject, RealNumber, WholeNumber, broken_rule

MAX_CLASSES = 10_000
MAX_NAME_LENGTH = 256
DEFAULT_MIN_SCORE, DEFAULT_IOU = 0.25, 0.5
# Layouts whose boxes no network has suppressed yet.
_RAW_LAYOUTS = (TensorLayout.YOLO_V8, TensorLayout.YOLO_V5)


def _classes(value: Any) -> dict[int, str]:
    """Return names by number; a list numbers its names from 0."""
    items = dict(enumerate(value)) if isinstance(value, list) else value
    if not isinstance(items, Mapping) or not 0 < len(items) <= MAX_CLASSES:
        raise broken_rule(f"1 to {MAX_CLASSES} names: a list, or an object of numbers and names")
    classes = {}
    for key, name in items.items():
        is_number = isinstance(key, int) or (isinstance(key, str) and key.isascii() and key.isdecimal())
        if not is_number or not 0 <= (number := int(key)) <= MAX_CLASSES:
            raise broken_rule(f"numbers of classes from 0 to {MAX_CLASSES} as keys")
        if not isinstance(name, str) or not 0 < len(name) <= MAX_NAME_LENGTH:
            raise broken_rule(f"names of 1 to {MAX_NAME_LENGTH} characters")
        classes[number] = name
    return classes


def _sides(value: Any) -> ImageDimensions:
    sides = value if isinstance(value, list) else [value, value]
    is_valid = len(sides) == 2 and all(type(side) is int and MIN_TILE_SIZE <= side <= MAX_TILE_SIZE for side in sides)
    if not is_valid:
        raise broken_rule(f"[width, height], each from {MIN_TILE_SIZE} to {MAX_TILE_SIZE} pixels")
    return ImageDimensions(*sides)


def _per_band(value: Any) -> tuple[float, ...]:
    """Return a number for all bands, or one for each."""
    numbers = value if isinstance(value, list) else [value]
    are_numbers = all(isinstance(item, int | float) and not isinstance(item, bool) for item in numbers)
    if not (0 < len(numbers) <= MAX_BANDS and are_numbers and all(abs(item) <= 1e9 for item in numbers)):
        raise broken_rule("a number, or a list with one number for each band")
    return tuple(map(float, numbers))


def _above_zero(numbers: tuple[float, ...]) -> tuple[float, ...]:
    if min(numbers) <= 0:
        raise broken_rule("numbers above 0")
    return numbers


Classes = Annotated[dict[int, str], BeforeValidator(_classes)]
Sides = Annotated[ImageDimensions, BeforeValidator(_sides)]
PerBand = Annotated[tuple[float, ...], BeforeValidator(_per_band)]
Name = Annotated[str, Field(min_length=1, max_length=MAX_NAME_LENGTH)]
Share = Annotated[RealNumber, Field(ge=0, le=1)]


class _CardObject(MessageObject):
    """An object in which an unknown key is refused: a misspelt key would silently change the detections."""

    model_config = ConfigDict(extra="forbid", frozen=True, arbitrary_types_allowed=True)


class Tensors(_CardObject):
    """The output tensors of a network, see ``features.detection_tensors``."""

    layout: TensorLayout | None = None
    boxes: Name | None = None
    scores: Name | None = None
    labels: Name | None = None
    input_size: Sides | None = Field(None, alias="inputSize")
    fit: Fit | None = None
    activation: Activation | None = None
    units: Literal["PIXELS", "NORMALIZED"] | None = None


class Nms(_CardObject):
    """Non-maximum suppression of the boxes of one tile."""

    iou: Share = DEFAULT_IOU
    per_class: bool = Field(True, alias="perClass")


class TensorAnswer(_CardObject):
    """A response of tensors. ``nms`` is by default used for layouts without suppression inside the network."""

    tensors: Tensors = Tensors()
    nms: Nms | None = None
    classes: Classes | None = None
    min_score: Share | None = Field(None, alias="minScore")

    def tensor_format(self, guess: Tensors, classes: Mapping[int, str] | None) -> TensorFormat:
        """Return how to read the tensors; ``guess`` applies where the card does not have a key.

        Raises ValueError if neither has a layout.
        """
        tensors = guess.model_copy(update=self.tensors.model_dump(exclude_unset=True))
        if tensors.layout is None:
            raise ValueError("answer.tensors.layout is missing")
        nms = self.nms or (Nms() if tensors.layout in _RAW_LAYOUTS else None)
        return TensorFormat(
            layout=tensors.layout,
            boxes=tensors.boxes,
            scores=tensors.scores,
            labels=tensors.labels,
            input_size=tensors.input_size,
            fit=tensors.fit or Fit.STRETCH,
            activation=tensors.activation,
            is_normalized=tensors.units == "NORMALIZED",
            class_count=max(classes) + 1 if classes else None,
            min_score=DEFAULT_MIN_SCORE if self.min_score is None else self.min_score,
            iou=None if nms is None else nms.iou,
            is_per_class=nms is None or nms.per_class,
        )


class CardInput(ProcessorInput):
    """The pixels that a network takes. A float tensor holds (sample x ``pixelScale`` - ``mean``) / ``std``."""

    pixel_scale: Annotated[PerBand, AfterValidator(_above_zero)] | None = Field(None, alias="pixelScale")
    mean: PerBand = (0.0,)
    std: Annotated[PerBand, AfterValidator(_above_zero)] = (1.0,)

    def pixels(self) -> dict[str, Any]:
        """Return the part that is ``imageProcessorInput`` of a request."""
        names = set(ProcessorInput.model_fields)
        return self.model_dump(mode="json", by_alias=True, exclude_unset=True, include=names)


class ModelCard(_CardObject):
    """A model card; each key is optional."""

    name: Name | None = None
    version: Name | None = None
    answer: TensorAnswer = TensorAnswer()
    input: CardInput = CardInput()
    tile_size: Annotated[WholeNumber, Field(ge=MIN_TILE_SIZE, le=MAX_TILE_SIZE)] | None = Field(None, alias="tileSize")
    overlap: Annotated[WholeNumber, Field(ge=0, lt=MAX_TILE_SIZE)] | None = None
    tile_format: ImageFormats | None = Field(None, alias="tileFormat")
    post_processing: list[dict[str, Any]] | None = Field(None, alias="postProcessing")
    classes: Classes | None = None

    @property
    def class_names(self) -> Mapping[int, str] | None:
        """Names by number; those of ``answer`` come first."""
        return self.answer.classes or self.classes


def parse_card(body: bytes, what: str, defaults: Mapping[str, Any] | None = None) -> ModelCard:
    """Return the card in ``body``, over ``defaults``, which have the form of a card.

    Raises ConfigurationError with every problem; ``what`` names the card in its text.
    """
    document, problems = load_object(body)
    merged = merged_objects(defaults or {}, document)
    if not problems:
        try:
            return ModelCard.model_validate(merged)
        except ValidationError as err:
            problems = problems_of(err, merged, ModelCard)
    listed = "; ".join(f"{each.field} {each.value}: expected {each.expectation}" for each in problems)
    raise ConfigurationError(f"{what}: {listed}")


def merged_objects(defaults: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """Return ``given`` with the keys of ``defaults`` that it does not have, also inside objects."""
    merged = dict(defaults)
    for key, value in given.items():
        other = merged.get(key)
        both = isinstance(value, Mapping) and isinstance(other, Mapping)
        merged[key] = merged_objects(dict(other or {}), value) if both else value
    return merged
