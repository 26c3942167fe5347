"""The schema of ``skip``: rules by which tiles are not sent to the model.

Unlike in the rest of a message, an unknown key is refused: a misspelt key would silently skip other tiles.
"""

from typing import Any, Literal

from pydantic import ConfigDict, TypeAdapter

from .rules import MessageObject

MAX_RULES = 16


class _Rule(MessageObject):
    model_config = ConfigDict(extra="forbid", frozen=True)

    def stored(self) -> dict[str, Any]:
        """Return the rule as rows hold it: the message's names, without absent keys."""
        return self.model_dump(mode="json", exclude_none=True)


class NodataRule(_Rule):
    """Skips tiles without a valid pixel, where the image declares which pixels are valid."""

    where: Literal["NODATA"]


SkipRule = NodataRule

# The rules of a request without ``skip``.
DEFAULT_RULES: tuple[NodataRule, ...] = (NodataRule(where="NODATA"),)

_RULES = TypeAdapter(list[SkipRule])


def rules_of(stored: list[dict[str, Any]] | None) -> list[NodataRule]:
    """Return the rules of a request as rows hold them; None stands for a request without ``skip``."""
    return list(DEFAULT_RULES) if stored is None else _RULES.validate_python(stored)
