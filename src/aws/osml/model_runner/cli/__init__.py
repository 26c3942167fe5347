"""The command line: `model-runner serve | health | redrive | demo | run`."""

from .main import main

__all__ = ["main"]
