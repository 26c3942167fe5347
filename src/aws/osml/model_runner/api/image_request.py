"""The image request in the worker, and its conversion from messages and to and from rows."""

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import shapely
from pydantic import ValidationError
from shapely.geometry.base import BaseGeometry

from aws.osml.model_runner.common.typing import ImageCompression, ImageDimensions, ImageFormats
from aws.osml.model_runner.exceptions import FeatureError, InvalidImageRequestException

from .image_request_schema import (
    DEFAULT_TILE_OVERLAP,
    DEFAULT_TILE_SIZE,
    Algorithm,
    AreaReference,
    ImageRequestMessage,
)
from .image_url import public_url
from .inference import ModelInvokeMode
from .job_keys import image_id_of
from .json_document import value_problems
from .model_protocol import OSML, PROTOCOLS
from .post_processing import (
    FeatureDistillationAlgorithm,
    FeatureDistillationDeserializer,
    FeatureDistillationSeam,
    MRPostProcessing,
    MRPostprocessingStep,
    deserialize_post_processing_list,
)
from .problems import problems_of
from .request_utils import json_text, outputs_are_valid, shared_properties_are_valid, shared_values
from .skip_rules import rules_of
from .stac_item import AssetChoice, is_item_url

_DEFAULT_SIZE = ImageDimensions(DEFAULT_TILE_SIZE, DEFAULT_TILE_SIZE)
_DEFAULT_OVERLAP = ImageDimensions(DEFAULT_TILE_OVERLAP, DEFAULT_TILE_OVERLAP)


@dataclass
class ImageRequest:
    """A request to process one image: the image, the model, the tiles and the outputs.

    ``image_id`` is ``<jobId>:<image URL>``, with a hash instead of a web address's query. ``outputs`` keep the
    message's names (``batchSize``, ``assumedRole``). ``result_name`` is empty unless the message has several images;
    then it is the image's file name, unique within the job. ``request_sha256`` does not depend on the layout of the
    message. For one endpoint, waiting requests with a higher ``priority`` start first. ``processor_input`` is the
    checked ``imageProcessorInput``, with the message's names; None leaves the image's pixels as they are. ``skip`` are
    the checked rules by which tiles are skipped; None stands for the default rules, see ``skip_rules``.
    ``model_protocol`` holds the checked ``protocol``, ``envelope`` and ``answer`` of ``imageProcessor``; None is OSML.

    ``image_url`` may be that of a STAC Item. ``image_assets`` are keys or roles of its assets, None for the default.
    ``image_item`` is the text of the ``ItemImage`` with which the job was planned. ``requester_pays``: the requester
    pays for reads of buckets whose owner does not.
    ``roi_url`` names the file of the region of interest, whose polygons become ``roi`` when the image is planned.
    """

    job_id: str = ""
    image_id: str = ""
    image_url: str = ""
    image_read_role: str = ""
    outputs: list[dict[str, Any]] = field(default_factory=list)
    model_name: str = ""
    model_invoke_mode: ModelInvokeMode = ModelInvokeMode.NONE
    tile_size: ImageDimensions = _DEFAULT_SIZE
    tile_overlap: ImageDimensions = _DEFAULT_OVERLAP
    tile_format: ImageFormats = ImageFormats.NITF
    tile_compression: ImageCompression = ImageCompression.NONE
    model_invocation_role: str = ""
    feature_properties: list[dict[str, Any]] = field(default_factory=list)
    roi: BaseGeometry | None = None
    post_processing: list[MRPostProcessing] = field(
        default_factory=lambda: [MRPostProcessing(algorithm=FeatureDistillationSeam())]
    )
    model_endpoint_parameters: dict[str, Any] | None = None
    result_name: str = ""
    request_sha256: str = ""
    priority: int = 0
    processor_input: dict[str, Any] | None = None
    skip: list[dict[str, Any]] | None = None
    model_protocol: dict[str, Any] | None = None
    image_assets: list[str] | None = None
    requester_pays: bool = False
    image_item: str | None = None
    roi_url: str | None = None

    @staticmethod
    def from_external_message(image_request: dict[str, Any]) -> "ImageRequest":
        """Return the request for the first image of a message that is parsed from JSON.

        Raises InvalidImageRequestException with every problem of the message.
        """
        return requests_of(validated(image_request), fingerprint(image_request))[0]

    @staticmethod
    def from_item(item: Mapping[str, Any]) -> "ImageRequest":
        """Return the request of an item that ``to_item`` made. Numbers may be Decimals, as boto3 reads them.

        Raises InvalidImageRequestException if the item is not a request.
        """
        try:
            values: dict[str, Any] = {name: item[name] for name in _TEXT_FIELDS if name in item}
            values |= {name: kind(item[name]) for name, kind in _ENUM_FIELDS.items() if name in item}
            for name in _SIZE_FIELDS:
                if name in item:
                    width, height = item[name]
                    values[name] = ImageDimensions(int(width), int(height))
            for name in _JSON_FIELDS:
                if (value := item.get(name)) is not None:
                    # JSON text; older rows hold the value itself.
                    values[name] = json.loads(value) if isinstance(value, str) else value
            values["outputs"] = [
                {
                    name: value if isinstance(value, str) else list(value) if name == "extras" else int(value)
                    for name, value in output.items()
                }
                for output in item.get("outputs", ())
            ]
            if "post_processing" in item:
                values["post_processing"] = deserialize_post_processing_list(item["post_processing"])
            values["priority"] = int(item.get("priority", 0))
            values["requester_pays"] = bool(item.get("requester_pays", False))
            if item.get("roi"):
                values["roi"] = shapely.from_wkt(item["roi"])
            rules_of(values.get("skip"))  # raises ValueError for a rule that this version does not define
            return ImageRequest(**values)
        except (KeyError, TypeError, ValueError, FeatureError, shapely.errors.GEOSException) as err:
            raise InvalidImageRequestException(f"the stored request cannot be read: {err}") from err

    def to_item(self) -> dict[str, Any]:
        """Return the request as a map of snake_case names that JSON and DynamoDB store without loss.

        Properties and parameters, whose nesting is free, are JSON text. Numbers with a fraction are text. Unset fields
        are omitted.
        """
        item = {name: getattr(self, name) for name in _TEXT_FIELDS}
        item |= {name: str(getattr(self, name)) for name in _ENUM_FIELDS}
        item["tile_format"] = stored_tile_format(self)
        item |= {name: list(getattr(self, name)) for name in _SIZE_FIELDS}
        item |= {name: json_text(getattr(self, name)) for name in _JSON_FIELDS if getattr(self, name) is not None}
        item["priority"] = self.priority
        if self.requester_pays:
            item["requester_pays"] = True
        item["outputs"] = [dict(output) for output in self.outputs]
        item["post_processing"] = []
        for step in self.post_processing:
            options = step.algorithm.to_dict()
            texts = {name: repr(value) if isinstance(value, float) else value for name, value in options.items()}
            item["post_processing"].append({"step": str(step.step), "algorithm": texts})
        if self.roi is not None:
            item["roi"] = self.roi.wkt
        return item

    def is_valid(self) -> bool:
        """Return True if the request can be processed."""
        return (
            shared_properties_are_valid(self)
            and outputs_are_valid(self.outputs)
            and len(self.get_feature_distillation_option()) <= 1
        )

    def get_shared_values(self) -> dict[str, Any]:
        """Return the fields that regions share with the image, in the order of the region message."""
        return shared_values(self)

    def get_feature_distillation_option(self) -> list[FeatureDistillationAlgorithm]:
        """Return the algorithms that remove duplicates; a valid request has at most one."""
        return [
            step.algorithm
            for step in self.post_processing
            if step.step == MRPostprocessingStep.FEATURE_DISTILLATION
            and isinstance(step.algorithm, FeatureDistillationAlgorithm)
        ]


# Words before the tile format in each row of a request. A version that does not define a word refuses the row.
# Otherwise it would send other pixels or other tiles to the model, or call it by another protocol. Or it would fail to
# open a STAC Item, or an image whose requester pays.
_PREPARED = "PREPARED"
_SKIPPING = "SKIPPING"
_SOURCED = "SOURCED"
_AREA = "AREA"
_KNOWN_NEEDS = frozenset({*PROTOCOLS, _PREPARED, _SKIPPING, _SOURCED, _AREA})


def stored_tile_format(request: ImageRequest) -> str:
    """Return the tile format of a request as rows hold it, such as ``HUGGING_FACE:PREPARED:PNG``.

    The oldest word is the last one, because the first version with words removes only that.
    """
    protocol = [] if request.model_protocol is None else [request.model_protocol.get("protocol", OSML)]
    sourced = [_SOURCED] if request.requester_pays or is_item_url(request.image_url) else []
    prepared = [] if request.processor_input is None else [_PREPARED]
    area = [_AREA] if request.roi_url else []
    stored = ":".join([*protocol, *area, *sourced, *prepared, str(request.tile_format)])
    return skipping_format(stored) if request.skip else stored


def skipping_format(stored: str) -> str:
    """Return the tile format of a row whose job skips tiles, see above; ``stored`` is the format without that word."""
    return stored if _SKIPPING in stored.split(":") else f"{_SKIPPING}:{stored}"


def tile_format_of(stored: object) -> ImageFormats:
    """Return the tile format of a row; raises ValueError when this version does not define it or what it needs."""
    *needs, name = str(stored).split(":")
    if unknown := sorted(set(needs) - _KNOWN_NEEDS):
        raise ValueError(f"{stored!r} needs {', '.join(unknown)}, which this version does not define")
    return ImageFormats(name)


# Bands of an image that is RGB as it is.
_RGB = ([1, 2, 3], ["red", "green", "blue"])


def asset_choice_of(request: ImageRequest) -> AssetChoice:
    """Return the conditions of a request for the assets of its STAC Item.

    A model takes 8-bit RGB if ``imageProcessorInput`` states it, or, without one, if tiles are PNG or JPEG.
    """
    asked = request.processor_input
    if asked is None:
        takes_rgb = request.tile_format in (ImageFormats.PNG, ImageFormats.JPEG)
    else:
        bands = [band.lower() if isinstance(band, str) else band for band in asked.get("bands", _RGB[0])]
        takes_rgb = asked.get("pixelType") == "UINT8" and bands in _RGB
    masks = {
        str(rule["asset"]): f"skip[{index}].asset" for index, rule in enumerate(request.skip or ()) if rule.get("asset")
    }
    return AssetChoice(request.image_assets, takes_rgb, request.requester_pays, masks)


_TEXT_FIELDS = (
    "job_id",
    "image_id",
    "image_url",
    "image_read_role",
    "model_name",
    "model_invocation_role",
    "result_name",
    "request_sha256",
)
_ENUM_FIELDS: dict[str, Callable[[Any], Any]] = {
    "model_invoke_mode": ModelInvokeMode,
    "tile_format": tile_format_of,
    "tile_compression": ImageCompression,
}
_SIZE_FIELDS = ("tile_size", "tile_overlap")
_JSON_FIELDS = (
    *("feature_properties", "model_endpoint_parameters", "processor_input"),
    *("skip", "model_protocol", "image_assets", "roi_url"),
)


def validated(message: dict[str, Any]) -> ImageRequestMessage:
    """Return the checked message, or raise InvalidImageRequestException with every problem."""
    problems = value_problems(message)
    try:
        checked = ImageRequestMessage.model_validate(message)
    except ValidationError as err:
        named = {problem.field for problem in problems}
        problems += [
            problem for problem in problems_of(err, message, ImageRequestMessage) if problem.field not in named
        ]
        raise InvalidImageRequestException("the image request is not valid", problems) from err
    if problems:
        raise InvalidImageRequestException("the image request is not valid", problems)
    return checked


def distillation_from(message: dict[str, Any]) -> FeatureDistillationAlgorithm:
    """Return the algorithm of a message's ``postProcessing[].algorithm``.

    Raises InvalidImageRequestException with every problem.
    """
    try:
        checked = Algorithm.model_validate(message)
    except ValidationError as err:
        raise InvalidImageRequestException("the algorithm is not valid", problems_of(err, message, Algorithm)) from err
    return FeatureDistillationDeserializer.deserialize(checked.options())


def fingerprint(message: dict[str, Any]) -> str:
    """Return the hexadecimal SHA-256 of a message as JSON with sorted keys and without blanks."""
    canonical = json.dumps(message, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()


def requests_of(message: ImageRequestMessage, sha256: str) -> list[ImageRequest]:
    """Return one request for each image of a message, in its order."""
    names = result_names(message.image_urls)
    return [_request(message, url, name, sha256) for url, name in zip(message.image_urls, names, strict=True)]


def result_names(urls: list[str]) -> list[str]:
    """Return the name of each image's result; empty if there is only one image.

    The name is the image's file name; the second of equal names gets ``-2``, and so on. The sinks turn these names,
    which may contain any characters, into object keys.
    """
    if len(urls) == 1:
        return [""]
    taken: set[str] = set()
    names = []
    for url in urls:
        # A web address can have a query; in an object key ``?`` is a character.
        path = url.partition("?")[0] if url.startswith("http") else url
        base = path.rpartition("/")[2]
        name, count = base, 1
        while name in taken:
            count += 1
            name = f"{base}-{count}"
        taken.add(name)
        names.append(name)
    return names


def _request(message: ImageRequestMessage, url: str, result_name: str, sha256: str) -> ImageRequest:
    steps = [{"step": step.step, "algorithm": step.algorithm.options()} for step in message.post_processing]
    return ImageRequest(
        job_id=message.job_id,
        image_id=image_id_of(message.job_id, public_url(url)),
        image_url=url,
        image_read_role=message.image_read_role,
        outputs=[output.destination() for output in message.outputs],
        model_name=message.image_processor.name,
        model_invoke_mode=ModelInvokeMode(message.image_processor.type),
        tile_size=ImageDimensions(message.tile_size, message.tile_size),
        tile_overlap=ImageDimensions(message.tile_overlap, message.tile_overlap),
        tile_format=message.tile_format,
        tile_compression=message.tile_compression,
        model_invocation_role=message.image_processor.assumed_role,
        feature_properties=message.feature_properties,
        roi=message.roi if isinstance(message.roi, BaseGeometry) else None,
        post_processing=deserialize_post_processing_list(steps),
        model_endpoint_parameters=message.parameters,
        result_name=result_name,
        request_sha256=sha256,
        priority=message.priority,
        processor_input=message.processor_input.stored() if message.processor_input is not None else None,
        skip=None if message.skip is None else [rule.stored() for rule in message.skip],
        model_protocol=message.image_processor.stored_protocol(),
        image_assets=message.image_assets if is_item_url(url) else None,
        requester_pays=message.requester_pays,
        roi_url=message.roi.url if isinstance(message.roi, AreaReference) else None,
    )
