"""The base of all objects of a message."""

from typing import Any

from pydantic import BaseModel, ConfigDict, model_validator


class MessageObject(BaseModel):
    """An object of a message. ``null`` means that a key is absent. Unknown keys are kept for a warning."""

    model_config = ConfigDict(extra="allow", frozen=True, arbitrary_types_allowed=True)

    @model_validator(mode="before")
    @classmethod
    def _null_is_absent(cls, data: Any) -> Any:
        return {key: value for key, value in data.items() if value is not None} if isinstance(data, dict) else data
