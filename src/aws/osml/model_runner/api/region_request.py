"""The region request: a part of an image with all facts to process it, and the message that names it."""

import contextlib
from collections.abc import Callable, Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from aws.osml.model_runner.common.typing import ImageCompression, ImageDimensions, ImageFormats, ImageRegion
from aws.osml.model_runner.exceptions import InvalidRegionRequestException

from .inference import ModelInvokeMode
from .json_document import load_object
from .problems import problems_of
from .request_utils import shared_properties_are_valid, shared_values

_NOWHERE = ImageRegion.of(((0, 0), (0, 0)))


class RegionRequest:
    """A rectangle of an image with all facts to process it.

    ``region_id`` is ``(<row>, <col>)(<w>, <h>)-<jobId>``; ``image_extension`` is the file type of the image.
    ``image_item`` and ``requester_pays`` are those of the ``ImageRequest``.
    """

    region_id: str = ""
    image_id: str = ""
    image_extension: str = ""
    job_id: str = ""
    image_url: str = ""
    image_read_role: str = ""
    model_name: str = ""
    model_invoke_mode: ModelInvokeMode = ModelInvokeMode.NONE
    model_endpoint_parameters: dict[str, Any] | None = None
    model_invocation_role: str = ""
    tile_size: ImageDimensions = ImageDimensions(1024, 1024)
    tile_overlap: ImageDimensions = ImageDimensions(50, 50)
    tile_format: ImageFormats = ImageFormats.NITF
    tile_compression: ImageCompression = ImageCompression.NONE
    region_bounds: ImageRegion = _NOWHERE
    # Not a part of the message.
    model_protocol: dict[str, Any] | None = None
    image_item: str | None = None
    requester_pays: bool = False

    def __init__(self, *initial_data: Mapping[str, Any], **kwargs: Any) -> None:
        """Set fields from mappings, then from keywords. Later values win; other names are ignored.

        Lists become pairs and text becomes enumerations if possible; otherwise ``is_valid`` returns False.
        """
        for data in (*initial_data, kwargs):
            for name, value in data.items():
                if name not in RegionRequest.__annotations__:
                    continue
                converted = value
                if convert := _CONVERSIONS.get(name):
                    with contextlib.suppress(TypeError, ValueError):
                        converted = convert(value)
                setattr(self, name, converted)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, RegionRequest) and self.to_message() == other.to_message()

    __hash__ = None  # type: ignore[assignment]  # it can change

    def __repr__(self) -> str:
        return f"RegionRequest(region_id={self.region_id!r}, image_id={self.image_id!r})"

    def is_valid(self) -> bool:
        """Return True if the region can be processed."""
        bounds = self.region_bounds
        return (
            shared_properties_are_valid(self)
            and isinstance(bounds, ImageRegion)
            and min(bounds.origin) >= 0
            and min(bounds.size) > 0
        )

    def to_message(self) -> dict[str, Any]:
        """Return the message as a dict for JSON, with its keys in the published order."""
        message = {name: _plain(value) for name, value in shared_values(self).items()}
        bounds = self.region_bounds
        message["region_bounds"] = bounds.to_lists() if isinstance(bounds, ImageRegion) else bounds
        message["region_id"] = self.region_id
        message["image_extension"] = self.image_extension
        return message


class RegionName(BaseModel):
    """The body of a region message. It names a region; all other facts are in the tables.

    Further fields are ignored: earlier versions sent the whole ``RegionRequest``.
    """

    model_config = ConfigDict(strict=True, frozen=True)

    image_id: str = Field(min_length=1)
    region_id: str = Field(min_length=1)
    job_id: str = Field(min_length=1)

    @classmethod
    def of(cls, region: RegionRequest) -> "RegionName":
        """Return the name of a request's region."""
        return cls(image_id=region.image_id, region_id=region.region_id, job_id=region.job_id)

    def to_message(self) -> dict[str, str]:
        """Return the message's dict."""
        return self.model_dump()


def parse_region_message(body: str | bytes) -> RegionName:
    """Return the region that the body of a region message names.

    Raises only InvalidRegionRequestException, with every problem found.
    """
    document, problems = load_object(body)
    if not problems:
        try:
            return RegionName.model_validate(document)
        except ValidationError as err:
            problems = problems_of(err, document, RegionName)
    raise InvalidRegionRequestException("the region message is not valid", problems)


_CONVERSIONS: dict[str, Callable[[Any], Any]] = {
    "model_invoke_mode": ModelInvokeMode,
    "tile_size": lambda size: ImageDimensions(*map(int, size)),
    "tile_overlap": lambda size: ImageDimensions(*map(int, size)),
    "tile_format": ImageFormats,
    "tile_compression": ImageCompression,
    "region_bounds": ImageRegion.of,
}


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
