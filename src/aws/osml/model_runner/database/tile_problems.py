"""Reasons of failed tiles and dropped features: counts by code, one example, and their text in a status."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from aws.osml.model_runner.features.model_response import UNSELECTED

# Maximum length of one tile's reason, which shares rows and statuses with other text.
MAX_REASON_CHARACTERS = 200
# Maximum number of codes that a status names; the others are summed.
_MAX_CODES = 4


@dataclass(frozen=True)
class TileProblems:
    """Tiles that failed, by error code; features that were dropped, by reason; ``first`` is ``<code>: <reason>``."""

    failed: Mapping[str, int] = field(default_factory=dict)
    dropped: Mapping[str, int] = field(default_factory=dict)
    first: str = ""

    @classmethod
    def of_tiles(cls, rows: Sequence[Mapping[str, Any]]) -> "TileProblems":
        """Count the failures in rows of tiles, by ``error_code`` and ``error_reason``."""
        failed = Counter(row["error_code"] for row in rows if row.get("error_code"))
        firsts = (failure_text(row["error_code"], row["error_reason"]) for row in rows if row.get("error_reason"))
        return cls(failed, first=next(firsts, ""))

    def reasons(self, tiles: int, failed_tiles: int) -> list[str]:
        """Return the sentences for a status; empty when no tile failed and no feature was dropped."""
        reasons = []
        if failed_tiles:
            counts = _counts(self.failed)
            text = f"{failed_tiles} of {tiles} tiles failed{f': {counts}' if counts else ''}"
            reasons.append(f"{text}; for example {self.first}" if self.first else text)
        dropped, unselected = split_dropped(self.dropped)
        if dropped:
            number = sum(dropped.values())
            features = "feature that the model returned was" if number == 1 else "features that the model returned were"
            reasons.append(f"{number} {features} dropped: {_counts(dropped)}")
        for path, number in sorted(unselected.items())[:_MAX_CODES]:
            reasons.append(f"{path} selected nothing in {number} items that the model returned")
        return reasons


def split_dropped(counts: Mapping[str, int]) -> tuple[dict[str, int], dict[str, int]]:
    """Return the counts of dropped features by reason, and of items by a path that selected nothing in them."""
    dropped = {name: number for name, number in counts.items() if not name.startswith(UNSELECTED)}
    unselected = {name.removeprefix(UNSELECTED): counts[name] for name in counts.keys() - dropped.keys()}
    return dropped, unselected


def failure_text(code: str | None, reason: str) -> str:
    """Return the text of one tile's failure in a status."""
    return f"{code}: {reason}"


def _counts(numbers: Mapping[str, int]) -> str:
    """Return numbers by name, largest first, such as ``BAD_RESPONSE 7, MODEL_4XX 2``."""
    ranked = sorted(numbers.items(), key=lambda item: (-item[1], item[0]))
    named = [f"{name} {number}" for name, number in ranked[:_MAX_CODES]]
    others = sum(number for _, number in ranked[_MAX_CODES:])
    return ", ".join([*named, *([f"others {others}"] if others else [])])
