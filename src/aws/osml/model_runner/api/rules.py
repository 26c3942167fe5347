"""Rules for single values of a message, as pydantic types; each has its expectation in words."""

import re
from collections.abc import Callable
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, model_validator
from pydantic_core import PydanticCustomError

from aws.osml.model_runner.exceptions import FeatureDistillationException, InvalidImageURLException

from .image_url import is_bucket_name, parse_image_url, web_host
from .inference import ModelInvokeMode
from .post_processing import FeatureDistillationAlgorithmType

MAX_JOB_ID_LENGTH = 128
MAX_NAME_LENGTH = 1_024
MAX_PREFIX_BYTES = 512
MIN_TILE_SIZE, MAX_TILE_SIZE = 16, 8_192

_ENDPOINT = re.compile(r"[a-zA-Z0-9](-*[a-zA-Z0-9]){0,62}")
_STREAM = re.compile(r"[a-zA-Z0-9_.-]{1,128}")
_DIGITS = re.compile(r"\s*[+-]?[0-9]{1,18}\s*", re.ASCII)


class MessageObject(BaseModel):
    """An object of a message. ``null`` means that a key is absent. Unknown keys are kept for a warning."""

    model_config = ConfigDict(extra="allow", frozen=True, arbitrary_types_allowed=True)

    @model_validator(mode="before")
    @classmethod
    def _null_is_absent(cls, data: Any) -> Any:
        return {key: value for key, value in data.items() if value is not None} if isinstance(data, dict) else data


def broken_rule(expectation: str) -> PydanticCustomError:
    """Return the error of a rule that a value breaks."""
    return PydanticCustomError("rule", "{expectation}", {"expectation": expectation})


def must(expectation: str, holds: Callable[[Any], bool]) -> AfterValidator:
    """Refuse values for which ``holds`` returns False, with ``expectation`` as the reason."""

    def check(value: Any) -> Any:
        if not holds(value):
            raise broken_rule(expectation)
        return value

    return AfterValidator(check)


def is_job_id(text: str) -> bool:
    """Return True for a valid job id: printable, and its last segment can be a file name."""
    return (
        0 < len(text) <= MAX_JOB_ID_LENGTH
        and text.isprintable()
        and text.rpartition("/")[2].strip() not in ("", ".", "..")
    )


def is_role(text: str) -> bool:
    """Return True if ``text`` is empty or an ARN."""
    return text == "" or (text.startswith("arn:") and text.isprintable() and " " not in text and len(text) <= 2_048)


def is_prefix(text: str) -> bool:
    """Return True for a valid prefix of a key: no leading slash, no dot segments, no control characters."""
    is_inside = not text.startswith("/") and {".", ".."}.isdisjoint(text.split("/"))
    return is_inside and text.isprintable() and len(text.encode()) <= MAX_PREFIX_BYTES


def model_name_expectation(mode: ModelInvokeMode, name: str) -> str | None:
    """Return the expectation for the model's name, or None if the name fits the type of endpoint."""
    if mode == ModelInvokeMode.HTTP_ENDPOINT:
        fits = len(name) <= MAX_NAME_LENGTH and web_host(name) is not None
        return None if fits else "an http:// or https:// URL with a host that may be called, without user information"
    fits = _ENDPOINT.fullmatch(name) is not None
    return None if fits else "a SageMaker endpoint name: 1 to 63 letters, digits and inner hyphens"


def _whole_number(value: Any) -> int:
    """Return ``value`` as an int: a number without its fraction, or digits as text."""
    if isinstance(value, str) and _DIGITS.fullmatch(value):
        return int(value)
    if isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 10**18:
        return int(value)
    raise broken_rule("a whole number")


def _real_number(value: Any) -> Any:
    if isinstance(value, bool):
        raise broken_rule("a number")
    return value


def _algorithm_type(value: Any) -> FeatureDistillationAlgorithmType:
    try:
        return FeatureDistillationAlgorithmType.of(value)
    except (FeatureDistillationException, TypeError) as err:
        choices = ", ".join(repr(str(item)) for item in FeatureDistillationAlgorithmType)
        raise broken_rule(f"one of {choices}") from err


def default_when_empty(default: Any) -> BeforeValidator:
    """Return a rule that replaces an empty string by ``default``, for older messages."""
    return BeforeValidator(lambda value: default if value == "" else value)


def _image_url(url: str) -> str:
    try:
        parse_image_url(url)
    except InvalidImageURLException as err:
        raise broken_rule(err.problems[0].expectation) from err
    return url


WholeNumber = Annotated[int, BeforeValidator(_whole_number)]
RealNumber = Annotated[float, BeforeValidator(_real_number)]
Role = Annotated[str, must("an ARN that starts with arn:", is_role)]
JobId = Annotated[
    str, must(f"1 to {MAX_JOB_ID_LENGTH} printable characters that do not end in /, /. or /..", is_job_id)
]
MAX_ASSET_NAME_LENGTH = 256
AssetName = Annotated[
    str,
    must(
        f"the key or role of an asset, 1 to {MAX_ASSET_NAME_LENGTH} printable characters",
        lambda text: 0 < len(text) <= MAX_ASSET_NAME_LENGTH and text.isprintable(),
    ),
]
ImageUrl = Annotated[str, AfterValidator(_image_url)]
Bucket = Annotated[str, must("a bucket name: 3 to 63 lower-case letters, digits, dots and hyphens", is_bucket_name)]
Prefix = Annotated[
    str,
    must(f"a key prefix of at most {MAX_PREFIX_BYTES} bytes without a leading / and the segments . and ..", is_prefix),
]
Stream = Annotated[
    str, must("a stream name: 1 to 128 letters, digits, _, . and -", lambda text: bool(_STREAM.fullmatch(text)))
]
AlgorithmType = Annotated[FeatureDistillationAlgorithmType, BeforeValidator(_algorithm_type)]
