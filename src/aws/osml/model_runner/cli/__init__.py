"""The command line: `model-runner serve | health | demo | run`."""

from .main import main

__all__ = ["main"]
