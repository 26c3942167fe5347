"""Returns any mix of status codes, latencies and invalid bodies; the seed makes the mix repeatable."""

import random
import zlib
from typing import Annotated

from pydantic import Field, field_validator

from aws.osml.model_runner.local.models.example_model import (
    ExampleModel,
    ModelReply,
    box_feature,
    feature_collection,
    json_reply,
)

GARBAGE = "garbage"
DEFAULT_OUTCOMES = {"200": 0.7, "429": 0.1, "500": 0.1, "503": 0.05, GARBAGE: 0.05}
_GARBAGE_BODIES = (
    *(b"", b"<html>oops</html>", b'{"type":"FeatureColl', b"[]", b"\xff\xfe\x00"),
    b'{"type":"FeatureCollection"}',
)


class Failure(ExampleModel):
    """Settings: the weight of each outcome, the latency, and the seed.

    ``outcomes`` maps a status code to its weight; ``garbage`` is a 200 whose body is not a feature collection. The
    latency of each call is drawn from the range ``latency_ms``. The first ``failures_first`` calls with a tile do not
    succeed, unless all outcomes are successes. Responses with 429 and 503 contain ``retry_after_s``.
    """

    outcomes: dict[str, Annotated[float, Field(ge=0)]] = Field(default_factory=lambda: dict(DEFAULT_OUTCOMES))
    latency_ms: tuple[float, float] = (0.0, 0.0)
    failures_first: int = Field(default=0, ge=0)
    retry_after_s: int | None = None
    seed: int = 0

    @field_validator("outcomes")
    @classmethod
    def _check_outcomes(cls, outcomes: dict[str, float]) -> dict[str, float]:
        unknown = [name for name in outcomes if name != GARBAGE and not (name.isdigit() and 200 <= int(name) < 600)]
        if unknown or not sum(outcomes.values()):
            raise ValueError(f"outcomes are status codes or {GARBAGE!r} with weights above 0, not {outcomes}")
        return outcomes

    def reply(self, tile: bytes, attempt: int) -> ModelReply:
        """Return a reply that is drawn for this tile and this attempt."""
        rng = random.Random(f"{self.seed}:{zlib.crc32(tile)}:{attempt}")
        outcomes = self.outcomes
        if attempt < self.failures_first:
            outcomes = {name: weight for name, weight in outcomes.items() if not name.startswith("2")} or outcomes
        outcome = rng.choices(list(outcomes), list(outcomes.values()))[0]
        delay_s = rng.uniform(*self.latency_ms) / 1000
        if outcome == GARBAGE:
            return ModelReply(rng.choice(_GARBAGE_BODIES), delay_s=delay_s)
        if 200 <= int(outcome) < 300:
            box = (10.0, 10.0, 30.0, 20.0)
            success = json_reply(feature_collection([box_feature(box, "object", 0.9, "failure")]))
            return ModelReply(success.body, int(outcome), delay_s)
        has_retry_after = self.retry_after_s is not None and outcome in ("429", "503")
        headers = {"Retry-After": str(self.retry_after_s)} if has_retry_after else {}
        return ModelReply(f'{{"error":"configured to fail with {outcome}"}}'.encode(), int(outcome), delay_s, headers)
