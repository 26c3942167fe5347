"""The published path of the settings."""

from .config import ServiceConfig

__all__ = ["ServiceConfig"]
