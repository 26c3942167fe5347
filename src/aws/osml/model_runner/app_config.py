"""The settings under their published path."""

from .config import ServiceConfig

__all__ = ["ServiceConfig"]
