"""OSML Model Runner: runs detection models over very large images."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .client import Client
    from .model_runner import ModelRunner

__all__ = ["Client", "ModelRunner"]


def __getattr__(name: str) -> Any:
    # Loaded on first use, so that pure packages can be used without boto3 and GDAL.
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = importlib.import_module(f".{'client' if name == 'Client' else 'model_runner'}", __name__)
    return getattr(module, name)
