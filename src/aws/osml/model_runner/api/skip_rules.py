"""The schema of ``skip``: rules by which tiles are not sent to the model.

Unlike in the rest of a message, an unknown key is refused: a misspelt key would silently skip other tiles.
"""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, ConfigDict, Field, TypeAdapter, field_validator
from pydantic import ValidationInfo as Info

from .rules import AssetName, ImageUrl, MessageObject, RealNumber, broken_rule

MAX_RULES = 16
MAX_MASK_VALUES = 256
_MAX_BIT = 31
_MAX_VALUE = 1e300


def _mask_value(value: Any) -> float:
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not is_number or not abs(value) <= _MAX_VALUE:
        raise broken_rule("a number")
    return float(value)


def _bit(value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= _MAX_BIT:
        raise broken_rule(f"the number of a bit, from 0 to {_MAX_BIT}")
    return value


_Value = Annotated[float, BeforeValidator(_mask_value)]
_Values = Annotated[list[_Value], Field(min_length=1, max_length=MAX_MASK_VALUES)]
_Bits = Annotated[list[Annotated[int, BeforeValidator(_bit)]], Field(min_length=1, max_length=_MAX_BIT + 1)]


class _Rule(MessageObject):
    model_config = ConfigDict(extra="forbid", frozen=True)

    def stored(self) -> dict[str, Any]:
        """Return the rule as rows hold it: the message's names, without absent keys."""
        return self.model_dump(mode="json", exclude_none=True)


class NodataRule(_Rule):
    """Skips tiles without a valid pixel, where the image declares which pixels are valid."""

    where: Literal["NODATA"]


class MaskRule(_Rule):
    """Skips tiles of which a share of at least ``above`` is masked by a raster: a file, or an asset of a STAC Item.

    A sample of the raster is masked if it has one of ``values``, or if it has one of ``bits`` set.
    """

    where: Literal["MASK"]
    url: ImageUrl | None = None
    asset: AssetName | None = Field(None, validate_default=True)
    values: _Values | None = None
    bits: _Bits | None = Field(None, validate_default=True)
    above: Annotated[RealNumber, Field(gt=0, le=1)] = 1.0

    @field_validator("asset")
    @classmethod
    def _without_url(cls, asset: str | None, info: Info) -> str | None:
        if "url" in info.data and (info.data["url"] is None) == (asset is None):
            raise broken_rule("either url or asset")
        return asset

    @field_validator("bits")
    @classmethod
    def _without_values(cls, bits: list[int] | None, info: Info) -> list[int] | None:
        if "values" in info.data and (info.data["values"] is None) == (bits is None):
            raise broken_rule("either values or bits")
        return bits


class AreaRule(_Rule):
    """Skips tiles that share no area with the polygons of a file, or tiles that lie wholly in them."""

    where: Literal["OUTSIDE", "INSIDE"]
    url: ImageUrl


Rule = NodataRule | MaskRule | AreaRule
SkipRule = Annotated[Rule, Field(discriminator="where")]

# The rules of a request without ``skip``.
DEFAULT_RULES: tuple[Rule, ...] = (NodataRule(where="NODATA"),)

_RULES: TypeAdapter[list[Rule]] = TypeAdapter(list[SkipRule])


def rules_of(stored: list[dict[str, Any]] | None) -> list[Rule]:
    """Return the rules of a request as rows hold them; None stands for a request without ``skip``."""
    return list(DEFAULT_RULES) if stored is None else _RULES.validate_python(stored)
