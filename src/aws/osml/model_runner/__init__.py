"""OSML Model Runner: runs detection models over very large images."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .model_runner import ModelRunner

__all__ = ["ModelRunner"]


def __getattr__(name: str) -> Any:
    # Loaded when it is asked for, so that the pure rooms can be used without boto3 and GDAL.
    if name != "ModelRunner":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from .model_runner import ModelRunner

    return ModelRunner
