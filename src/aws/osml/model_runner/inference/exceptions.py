"""The names under which this room's errors are imported, and the one that only this room raises."""

from aws.osml.model_runner.exceptions import (
    BadModelResponseError,
    FeatureDistillationException,
    InvalidFeaturePropertiesException,
    ModelBackPressureError,
    ModelCallError,
    ModelError,
    ModelErrorClass,
    ModelTileError,
    UnsupportedModelException,
)


class ModelJobError(ModelError):
    """No tile of this job can be answered for now: the endpoint is missing, or refuses us.

    A person may mend that (deploy the endpoint, grant the right), so the work is given back and tried again for a
    while; ``code`` is what the job's status names when that did not help.
    """

    can_retry = True

    def __init__(self, message: str, code: str) -> None:
        super().__init__(message)
        self.code = code


__all__ = [
    "BadModelResponseError",
    "FeatureDistillationException",
    "InvalidFeaturePropertiesException",
    "ModelBackPressureError",
    "ModelCallError",
    "ModelError",
    "ModelErrorClass",
    "ModelJobError",
    "ModelTileError",
    "UnsupportedModelException",
]
