"""The errors of model calls under their published path, and ``ModelJobError``."""

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
    """No call of this job can succeed for now: the endpoint is missing, or denies access.

    The operator can correct that by deploying the endpoint or granting access. So the region is released and retried
    for a while; if it still fails, the job's status names ``code``.
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
