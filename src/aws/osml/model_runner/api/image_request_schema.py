"""The schema of the image request: field names, types, defaults and rules of the external message.

``null`` means that a key is absent. Unknown keys are kept for a warning. Fields are checked in the order of their
declaration, so a rule can use the fields above it.
"""

from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import AliasChoices, BaseModel, BeforeValidator, Discriminator, Field, Tag, field_validator
from pydantic import ValidationInfo as Info
from shapely.geometry.base import BaseGeometry

from aws.osml.model_runner.common.typing import ImageCompression, ImageFormats
from aws.osml.model_runner.exceptions import InvalidImageRequestException

from .image_url import public_url
from .inference import ModelInvokeMode
from .model_protocol import OSML, PROTOCOLS, Answer, Envelope, ProtocolName, checked_answer, checked_envelope
from .post_processing import FeatureDistillationAlgorithmType
from .problems import shortened
from .processor_input import ProcessorInput
from .region_of_interest import parse_roi
from .request_utils import json_text
from .rules import (
    MAX_TILE_SIZE,
    MIN_TILE_SIZE,
    AlgorithmType,
    AssetName,
    Bucket,
    ImageUrl,
    JobId,
    MessageObject,
    Prefix,
    RealNumber,
    Role,
    Stream,
    WholeNumber,
    broken_rule,
    default_when_empty,
    model_name_expectation,
)
from .skip_rules import MAX_RULES, MaskRule, SkipRule
from .stac_item import MAX_IMAGE_ASSETS, is_item_url

DEFAULT_TILE_SIZE = 1024
DEFAULT_TILE_OVERLAP = 50
HIGHEST_PRIORITY = 10
MAX_IMAGES = 1_000
# Bytes of outputs and parameters, which are repeated in the row of each image, for all images together.
MAX_REPEATED_BYTES = 16 * 1024 * 1024
# A DynamoDB item holds 400 KiB. An SQS message holds 256 KiB, and escapes can make text three times as long. The row of
# a request contains all of these and up to 64 KiB of its message.
MAX_PARAMETERS_BYTES = 64 * 1024
MAX_OUTPUTS_BYTES = 64 * 1024
MAX_REGION_OF_INTEREST_BYTES = 128 * 1024
MAX_PROTOCOL_BYTES = 32 * 1024
# These are added to each feature of the job.
MAX_FEATURE_PROPERTIES_BYTES = 16 * 1024
# Each item of a list takes bytes, so longer lists exceed the limits above. They are refused before their items are
# validated, because each item that is not valid costs time and becomes a problem.
_MAX_OUTPUTS = MAX_OUTPUTS_BYTES // len('{"type":"S3","bucket":"abc"}')
_MAX_FEATURE_PROPERTIES = MAX_FEATURE_PROPERTIES_BYTES // len("{},")
_MAX_STEPS = 16


class ImageProcessor(MessageObject):
    """The model: the type of its endpoint, its name or URL, the role to assume for calls, and its protocol."""

    type: Annotated[Literal["SM_ENDPOINT", "HTTP_ENDPOINT"], default_when_empty("SM_ENDPOINT")] = "SM_ENDPOINT"
    name: str
    assumed_role: Role = Field("", alias="assumedRole")
    protocol: Annotated[ProtocolName, default_when_empty(OSML)] = OSML
    envelope: Envelope | None = Field(None, validate_default=True)
    answer: Answer | None = Field(None, validate_default=True)

    @field_validator("name")
    @classmethod
    def _fits_type(cls, name: str, info: Info) -> str:
        mode = info.data.get("type")
        expectation = model_name_expectation(ModelInvokeMode(mode), name) if mode else None
        if expectation:
            raise broken_rule(expectation)
        return name

    @field_validator("envelope", "answer")
    @classmethod
    def _fits_protocol(cls, value: Any, info: Info) -> Any:
        protocol = info.data.get("protocol")
        if protocol is None:
            return value
        if info.field_name == "answer":
            return checked_answer(protocol, value)
        is_described = info.data.get("type") == "HTTP_ENDPOINT"
        return checked_envelope(protocol, value, is_described)

    def stored_protocol(self) -> dict[str, Any] | None:
        """Return how tiles are sent and responses read, as rows hold it; None for the default."""
        names = {"protocol", "envelope", "answer"}
        found = self.model_dump(mode="json", by_alias=True, exclude_unset=True, exclude_none=True, include=names)
        return found if found not in ({}, {"protocol": OSML}) else None


class S3Output(MessageObject):
    """Output to an object in a bucket."""

    type: Literal["S3"]
    bucket: Bucket
    prefix: Prefix = ""
    role: Role = ""
    acl: Literal["private", "bucket-owner-read", "bucket-owner-full-control"] | None = None
    format: Literal["GEOJSON", "GEOJSONSEQ", "GEOPARQUET"] | None = None
    compression: Literal["NONE", "GZIP"] | None = None
    extras: Annotated[list[Literal["COVERAGE"]], Field(max_length=16)] | None = None

    @field_validator("compression")
    @classmethod
    def _fits_format(cls, compression: str | None, info: Info) -> str | None:
        if compression == "GZIP" and info.data.get("format") == "GEOPARQUET":
            raise broken_rule("NONE: GEOPARQUET is compressed in itself")
        return compression

    def destination(self) -> dict[str, Any]:
        """Return the output as sinks read it, with the message's names."""
        named = {"type": self.type, "bucket": self.bucket, "prefix": self.prefix}
        return named | _present(
            role=self.role,
            acl=self.acl,
            format=self.format,
            compression=self.compression,
            extras=list(dict.fromkeys(self.extras or ())),
        )


class KinesisOutput(MessageObject):
    """Output to a stream, one record per feature. A call has at most 500 records, whatever ``batchSize`` is."""

    type: Literal["Kinesis"]
    stream: Stream
    batch_size: Annotated[WholeNumber, Field(ge=1)] | None = Field(None, alias="batchSize")
    assumed_role: Role = Field("", alias="assumedRole")
    partition_key: Literal["JOB", "FEATURE"] | None = Field(None, alias="partitionKey")

    def destination(self) -> dict[str, Any]:
        """Return the output as sinks read it, with the message's names."""
        return {"type": self.type, "stream": self.stream} | _present(
            batchSize=self.batch_size, assumedRole=self.assumed_role, partitionKey=self.partition_key
        )


Output = Annotated[S3Output | KinesisOutput, Field(discriminator="type")]


class Algorithm(MessageObject):
    """The algorithm that removes duplicates. Options that it does not have are accepted and ignored."""

    algorithm_type: AlgorithmType = Field(validation_alias=AliasChoices("algorithmType", "algorithm_type"))
    iou_threshold: Annotated[RealNumber, Field(ge=0, le=1)] | None = Field(
        None, validation_alias=AliasChoices("iouThreshold", "threshold", "iou_threshold")
    )
    metric: Literal["IOS", "IOU"] | None = None
    is_class_agnostic: Annotated[bool, Field(strict=True)] | None = Field(
        None, validation_alias=AliasChoices("classAgnostic", "is_class_agnostic")
    )
    merge: Literal["STRONGEST", "UNION"] | None = None
    distance_px: Annotated[RealNumber, Field(ge=0, le=1_000)] | None = Field(
        None, validation_alias=AliasChoices("distance", "distance_px")
    )
    skip_box_threshold: Annotated[RealNumber, Field(ge=0, le=1)] | None = Field(
        None, validation_alias=AliasChoices("skipBoxThreshold", "skip_box_threshold")
    )
    sigma: Annotated[RealNumber, Field(gt=0, le=1_000)] | None = None

    def options(self) -> dict[str, Any]:
        """Return the algorithm in the snake_case form of ``post_processing``."""
        return self.model_dump(mode="json", exclude=set(self.model_extra or ()))


class PostProcessingStep(MessageObject):
    """One step of processing all features of an image."""

    step: Literal["FEATURE_DISTILLATION"]
    algorithm: Algorithm


def _default_post_processing() -> list[PostProcessingStep]:
    algorithm = Algorithm.model_validate({"algorithmType": FeatureDistillationAlgorithmType.SEAM})
    return [PostProcessingStep(step="FEATURE_DISTILLATION", algorithm=algorithm)]


def _check_size(text: str, limit: int) -> None:
    size = len(text.encode(errors="surrogatepass"))  # lone surrogates are reported separately
    if size > limit:
        raise broken_rule(f"at most {limit} bytes as stored (it has {size})")


class AreaReference(MessageObject):
    """A file of polygons."""

    url: ImageUrl


def _region(value: Any) -> BaseGeometry | None:
    if value == "":
        return None
    if not isinstance(value, str):
        raise broken_rule("a POLYGON or MULTIPOLYGON in WKT, or an object with the url of a file of polygons")
    try:
        return parse_roi(value)
    except InvalidImageRequestException as err:
        raise broken_rule(err.problems[0].expectation) from err


RegionOfInterest = Annotated[
    Annotated[BaseGeometry | None, BeforeValidator(_region), Tag("WKT")] | Annotated[AreaReference, Tag("FILE")],
    Discriminator(lambda value: "FILE" if isinstance(value, dict | AreaReference) else "WKT"),
]


class ImageRequestMessage(MessageObject):
    """The whole message."""

    job_id: JobId = Field(alias="jobId")
    job_name: Any = Field(None, alias="jobName")
    image_urls: Annotated[list[ImageUrl], Field(min_length=1, max_length=MAX_IMAGES)] = Field(alias="imageUrls")
    image_assets: Annotated[list[AssetName], Field(min_length=1, max_length=MAX_IMAGE_ASSETS)] | None = Field(
        None, alias="imageAssets"
    )
    requester_pays: Annotated[bool, Field(strict=True)] = Field(False, alias="requesterPays")
    image_read_role: Role = Field("", alias="imageReadRole")
    image_processor: ImageProcessor = Field(alias="imageProcessor")
    parameters: dict[str, Any] | None = Field(None, alias="imageProcessorParameters")
    tile_size: Annotated[WholeNumber, Field(ge=MIN_TILE_SIZE, le=MAX_TILE_SIZE)] = Field(
        DEFAULT_TILE_SIZE, alias="imageProcessorTileSize"
    )
    tile_overlap: Annotated[WholeNumber, Field(ge=0)] = Field(
        DEFAULT_TILE_OVERLAP, alias="imageProcessorTileOverlap", validate_default=True
    )
    tile_format: Annotated[ImageFormats, default_when_empty(ImageFormats.NITF)] = Field(
        ImageFormats.NITF, alias="imageProcessorTileFormat", validate_default=True
    )
    tile_compression: Annotated[ImageCompression, default_when_empty(ImageCompression.NONE)] = Field(
        ImageCompression.NONE, alias="imageProcessorTileCompression"
    )
    processor_input: ProcessorInput | None = Field(None, alias="imageProcessorInput")
    output_bucket: Bucket | None = Field(None, alias="outputBucket")
    output_prefix: Prefix | None = Field(None, alias="outputPrefix")
    outputs: Annotated[list[Output], Field(max_length=_MAX_OUTPUTS)] = Field(
        default_factory=list, validate_default=True
    )
    roi: RegionOfInterest | None = Field(None, alias="regionOfInterest")
    skip: Annotated[list[SkipRule], Field(max_length=MAX_RULES)] | None = None
    feature_properties: Annotated[list[dict[str, Any]], Field(max_length=_MAX_FEATURE_PROPERTIES)] = Field(
        default_factory=list, alias="featureProperties"
    )
    post_processing: Annotated[list[PostProcessingStep], Field(max_length=_MAX_STEPS)] = Field(
        default_factory=_default_post_processing, alias="postProcessing"
    )
    priority: Annotated[WholeNumber, Field(ge=-HIGHEST_PRIORITY, le=HIGHEST_PRIORITY)] = 0

    @field_validator("image_urls")
    @classmethod
    def _each_once(cls, urls: list[str]) -> list[str]:
        if len(set(urls)) < len(urls):
            raise broken_rule("each URL once")
        return urls

    @field_validator("image_assets")
    @classmethod
    def _belong_to_items(cls, names: list[str] | None, info: Info) -> list[str] | None:
        if names and len(set(names)) < len(names):
            raise broken_rule("each asset once")
        others = [url for url in info.data.get("image_urls", ()) if not is_item_url(url)]
        if names and others:
            raise broken_rule(f"absent: {shortened(public_url(others[0]))} is not a STAC Item (….json)")
        return names

    @field_validator("tile_overlap")
    @classmethod
    def _below_tile_size(cls, overlap: int, info: Info) -> int:
        if overlap >= info.data.get("tile_size", overlap + 1):
            raise broken_rule("less than imageProcessorTileSize")
        return overlap

    @field_validator("tile_format")
    @classmethod
    def _fits_protocol(cls, tile_format: ImageFormats, info: Info) -> ImageFormats:
        processor = info.data.get("image_processor")
        if processor is not None and tile_format not in (formats := PROTOCOLS[processor.protocol].formats):
            names = " or ".join(sorted(formats))
            raise broken_rule(f"{names}, which servers of protocol {processor.protocol} read")
        return tile_format

    @field_validator("output_bucket", "output_prefix", mode="before")
    @classmethod
    def _empty_is_absent(cls, value: Any) -> Any:
        return None if value == "" else value

    @field_validator("outputs")
    @classmethod
    def _at_least_one(cls, outputs: list[Output], info: Info) -> list[Output]:
        if outputs or not {"output_bucket", "output_prefix"} <= info.data.keys():
            return outputs  # a problem of the older form is reported under its own field names
        bucket, prefix = info.data["output_bucket"], info.data["output_prefix"]
        if not (bucket and prefix):
            raise broken_rule("at least one S3 or Kinesis output, or both outputBucket and outputPrefix")
        return [S3Output(type="S3", bucket=bucket, prefix=prefix)]

    @field_validator("parameters", "feature_properties")
    @classmethod
    def _fits_rows(cls, value: Any, info: Info) -> Any:
        is_parameters = info.field_name == "parameters"
        try:
            text = json_text(value)
        except RecursionError:
            return value  # too many levels are reported separately
        _check_size(text, MAX_PARAMETERS_BYTES if is_parameters else MAX_FEATURE_PROPERTIES_BYTES)
        return value

    @field_validator("image_processor")
    @classmethod
    def _protocol_fits_rows(cls, processor: ImageProcessor) -> ImageProcessor:
        _check_size(json_text(processor.stored_protocol()), MAX_PROTOCOL_BYTES)
        return processor

    @field_validator("outputs")
    @classmethod
    def _outputs_fit_rows(cls, outputs: list[Output], info: Info) -> list[Output]:
        text = json_text([output.destination() for output in outputs])
        _check_size(text, MAX_OUTPUTS_BYTES)
        images = len(info.data.get("image_urls", ()))
        size = images * len((text + json_text(info.data.get("parameters") or {})).encode(errors="surrogatepass"))
        if size > MAX_REPEATED_BYTES:
            raise broken_rule(
                f"at most {MAX_REPEATED_BYTES} bytes of outputs and imageProcessorParameters for all images together"
                f" (they have {size} for {images} images)"
            )
        return outputs

    @field_validator("roi")
    @classmethod
    def _roi_fits_rows(cls, roi: BaseGeometry | AreaReference | None) -> BaseGeometry | AreaReference | None:
        if isinstance(roi, BaseGeometry):
            _check_size(roi.wkt, MAX_REGION_OF_INTEREST_BYTES)
        return roi

    @field_validator("skip")
    @classmethod
    def _assets_belong_to_items(cls, skip: list[SkipRule] | None, info: Info) -> list[SkipRule] | None:
        others = [url for url in info.data.get("image_urls", ()) if not is_item_url(url)]
        if others and any(isinstance(rule, MaskRule) and rule.asset for rule in skip or ()):
            raise broken_rule(f"rules without asset: {shortened(public_url(others[0]))} is not a STAC Item (….json)")
        return skip

    @field_validator("post_processing", mode="before")
    @classmethod
    def _empty_is_default(cls, steps: Any) -> Any:
        return _default_post_processing() if steps in ("", [], {}) else steps

    @field_validator("post_processing")
    @classmethod
    def _one_distillation(cls, steps: list[PostProcessingStep]) -> list[PostProcessingStep]:
        if len(steps) > 1:
            raise broken_rule("one FEATURE_DISTILLATION step at most")
        return steps


def unknown_keys(message: BaseModel, path: str = "") -> Iterator[str]:
    """Yield the path of every unknown key in a message."""
    yield from (f"{path}{key}" for key in message.model_extra or ())
    for name in type(message).model_fields:
        value = getattr(message, name)
        items = value if isinstance(value, list) else [value]
        for item in items:
            if isinstance(item, BaseModel):
                yield from unknown_keys(item, f"{path}{name}.")


def _present(**values: Any) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value not in (None, "", [])}
