"""The command `model-runner`; docs/reference/command-line.md has its subcommands."""

from .main import main

__all__ = ["main"]
