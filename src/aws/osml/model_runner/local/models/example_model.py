"""What an example model is: settings with a name, and a reply to a tile."""

import json
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self

from pydantic import BaseModel, ConfigDict


@dataclass(frozen=True)
class ModelReply:
    """What the model's container answers to one call, after waiting ``delay_s``."""

    body: bytes
    status: int = 200
    delay_s: float = 0.0
    headers: Mapping[str, str] = field(default_factory=dict)


class ExampleModel(BaseModel, ABC):
    """A model with its settings. The same tile gets the same answer from every process, whatever came before."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    @abstractmethod
    def reply(self, tile: bytes, attempt: int) -> ModelReply:
        """Answer for an encoded tile; ``attempt`` counts from 0 the calls with these very bytes."""

    def with_query(self, query: Mapping[str, str]) -> Self:
        """Return the model with the settings that one request's URL overrides; structured values are JSON."""
        if not query:
            return self
        overrides = {name: _parse_value(text) for name, text in query.items()}
        return type(self).model_validate(self.model_dump() | overrides)


def json_reply(answer: Mapping[str, Any]) -> ModelReply:
    """Return a successful reply that carries ``answer``."""
    return ModelReply(json.dumps(answer, separators=(",", ":")).encode())


def _parse_value(text: str) -> Any:
    return json.loads(text) if text[:1] in ("{", "[") else text
