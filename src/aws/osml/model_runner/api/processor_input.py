"""The schema of ``imageProcessorInput``: the pixels that a model was trained on.

Unlike in the rest of a message, an unknown key is refused: a misspelt key would silently change the pixels.
"""

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, ConfigDict, Field, field_validator
from pydantic import ValidationInfo as Info

from .rules import MessageObject, RealNumber, broken_rule

MAX_BANDS = 64
MAX_BAND_NAME_LENGTH = 128
MAX_VALUE = 1e300
# Model pixels per image pixel, and metres per model pixel.
MIN_SCALE, MAX_SCALE = 0.05, 8.0
MAX_GSD_M = 100_000.0
# Largest and smallest value of each integer type that a model can get.
INTEGER_RANGES = {"UINT8": (0, 2**8 - 1), "UINT16": (0, 2**16 - 1)}

# Keys of ``stretch`` that only some types have.
_KEYS_OF_TYPE = {"NONE": (), "MINMAX": ("min", "max"), "PERCENTILE": ("lower", "upper"), "SIGMA": ("n",)}
_BAND = f"a band number from 1, or a band name of 1 to {MAX_BAND_NAME_LENGTH} characters"


def _band(value: Any) -> int | str:
    is_number = isinstance(value, int) and not isinstance(value, bool) and 1 <= value < 2**31
    is_name = isinstance(value, str) and len(value.strip()) > 0 and len(value) <= MAX_BAND_NAME_LENGTH
    if not (is_number or is_name):
        raise broken_rule(_BAND)
    return value.strip() if isinstance(value, str) else value


def _limit(value: Any) -> float | tuple[float, ...]:
    """Return one limit for all bands, or one for each."""
    values = value if isinstance(value, (list, tuple)) else [value]
    are_numbers = all(isinstance(item, (int, float)) and not isinstance(item, bool) for item in values)
    if not (values and are_numbers and all(abs(item) <= MAX_VALUE for item in values)):
        raise broken_rule("a number, or a list with one number for each band")
    return float(value) if values[0] is value else tuple(map(float, values))


def _finite(value: float) -> float:
    if not abs(value) <= MAX_VALUE:
        raise broken_rule("a finite number")
    return value


Band = Annotated[int | str, BeforeValidator(_band)]
Limit = Annotated[float | tuple[float, ...], BeforeValidator(_limit)]
Number = Annotated[RealNumber, AfterValidator(_finite)]


class _InputObject(MessageObject):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Stretch(_InputObject):
    """How values of a band are stretched to the range of the pixel type."""

    type: Literal["NONE", "MINMAX", "PERCENTILE", "SIGMA"] = "NONE"
    per: Literal["BAND", "ALL"] = "BAND"
    min: Limit | None = None
    max: Limit | None = None
    lower: Annotated[RealNumber, Field(ge=0, lt=100)] = 2.0
    upper: Annotated[RealNumber, Field(gt=0, le=100)] = 98.0
    n: Annotated[RealNumber, Field(gt=0, le=1_000)] = 2.0

    @field_validator("min", "max", "lower", "upper", "n")
    @classmethod
    def _belongs_to_type(cls, value: Any, info: Info) -> Any:
        kind = info.data.get("type")
        if kind is not None and info.field_name not in _KEYS_OF_TYPE[kind]:
            owner = next(name for name, keys in _KEYS_OF_TYPE.items() if info.field_name in keys)
            raise broken_rule(f"absent: only a stretch of type {owner} has it (type is {kind})")
        return value

    @field_validator("min", "max")
    @classmethod
    def _fits_per(cls, limit: Any, info: Info) -> Any:
        if info.data.get("per") == "ALL" and isinstance(limit, tuple):
            raise broken_rule("one number: per is ALL")
        return limit

    @field_validator("max")
    @classmethod
    def _above_min(cls, high: Any, info: Info) -> Any:
        low = info.data.get("min")
        if low is None or high is None:
            return high
        lows, highs = (limit if isinstance(limit, tuple) else (limit,) for limit in (low, high))
        count = max(len(lows), len(highs))
        if {len(lows), len(highs)} - {1, count}:
            raise broken_rule("as many numbers as min has")
        if any(a >= b for a, b in zip(_repeated(lows, count), _repeated(highs, count), strict=True)):
            raise broken_rule("above min, in each band")
        return high

    @field_validator("upper")
    @classmethod
    def _above_lower(cls, upper: float, info: Info) -> float:
        if upper <= info.data.get("lower", 0.0):
            raise broken_rule("above lower")
        return upper

    def limits(self, name: Literal["min", "max"], bands: int) -> Sequence[float] | None:
        """Return the explicit limit of each of ``bands`` bands; None where the image's is used."""
        limit = self.min if name == "min" else self.max
        if limit is None:
            return None
        return _repeated(limit if isinstance(limit, tuple) else (limit,), bands)


def _repeated(values: tuple[float, ...], count: int) -> tuple[float, ...]:
    return values * count if len(values) == 1 else values


class ProcessorInput(_InputObject):
    """Bands, range of values, type and size on the ground of the pixels that the model gets."""

    bands: Annotated[list[Band], Field(min_length=1, max_length=MAX_BANDS)] | None = None
    stretch: Stretch = Stretch()
    pixel_type: Literal["UINT8", "UINT16", "FLOAT32"] | None = Field(None, alias="pixelType")
    gsd: Annotated[RealNumber, Field(gt=0, le=MAX_GSD_M)] | None = None
    scale: Annotated[RealNumber, Field(ge=MIN_SCALE, le=MAX_SCALE)] | None = None
    resampling: Literal["NEAREST", "BILINEAR", "CUBIC", "AVERAGE"] = "BILINEAR"
    nodata_fill: Number = Field(0.0, alias="nodataFill")

    @field_validator("scale")
    @classmethod
    def _without_gsd(cls, scale: float | None, info: Info) -> float | None:
        if info.data.get("gsd") is not None:
            raise broken_rule("absent: gsd is given, and only one of them may be")
        return scale

    @field_validator("stretch")
    @classmethod
    def _is_consistent(cls, stretch: Stretch, info: Info) -> Stretch:
        if stretch.lower >= stretch.upper:
            raise broken_rule(f"lower below upper (lower is {stretch.lower:g}, upper is {stretch.upper:g})")
        bands = info.data.get("bands")
        for name in ("min", "max"):
            limit = getattr(stretch, name)
            if bands and isinstance(limit, tuple) and len(limit) != len(bands):
                raise broken_rule(f"{name} with one number, or with one for each of the {len(bands)} bands")
        return stretch

    @field_validator("nodata_fill")
    @classmethod
    def _fits_type(cls, fill: float, info: Info) -> float:
        low, high = INTEGER_RANGES.get(info.data.get("pixel_type") or "", (None, None))
        if low is not None and high is not None and not (low <= fill <= high and fill == int(fill)):
            raise broken_rule(f"a whole number from {low} to {high}, as pixelType holds")
        return fill

    @property
    def is_stretched(self) -> bool:
        """True when values are stretched."""
        return self.stretch.type != "NONE"

    def stored(self) -> dict[str, Any]:
        """Return the object as rows hold it: the message's names, without defaults."""
        return self.model_dump(mode="json", by_alias=True, exclude_defaults=True)
