"""Parses the command line, runs one command, and turns its errors into a message and an exit status."""

import argparse
import platform
import sys
import textwrap
from collections.abc import Sequence
from importlib import metadata

from aws.osml.model_runner.exceptions import ConfigurationError, InterruptedRunError, ModelRunnerError

from . import (
    cancel_command,
    demo_command,
    health_command,
    merge_command,
    model_command,
    plan_command,
    queues_command,
    redrive_command,
    run_command,
    serve_command,
    status_command,
    submit_command,
    view_command,
)
from .local_commands import TerminatedError

COMMANDS = (
    serve_command,
    health_command,
    plan_command,
    submit_command,
    status_command,
    queues_command,
    redrive_command,
    cancel_command,
    merge_command,
    demo_command,
    run_command,
    model_command,
    view_command,
)
FAILED, MISUSED, INTERRUPTED, TERMINATED = 1, 2, 130, 143

_EXAMPLES = """\
examples:
  model-runner demo
  model-runner run harbour.tif --model http://127.0.0.1:8080/invocations
  model-runner plan harbour.tif --calls-per-second 20
  model-runner COMMAND --help
"""


class _Help(argparse.RawDescriptionHelpFormatter, argparse.ArgumentDefaultsHelpFormatter):
    """Shows the default of an option that has one, and keeps the lines of examples."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        has_default = action.default not in (None, False, [], {})
        return super()._get_help_string(action) if has_default else action.help

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        is_example = "\n" in text
        return super()._fill_text(text, width, indent) if is_example else textwrap.fill(text, width)


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the whole command line; each command adds its own part."""
    parser = argparse.ArgumentParser(
        prog="model-runner",
        description="Runs detection models over very large images and delivers what they find.",
        epilog=_EXAMPLES,
        formatter_class=_Help,
    )
    version = f"model-runner {metadata.version('tile-model-runner')}, Python {platform.python_version()}"
    parser.add_argument("--version", action="version", version=version)
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    for command in COMMANDS:
        command.add_parser(commands)
    for command_parser in commands.choices.values():
        command_parser.formatter_class = _Help
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command that ``argv`` names and return the exit status: 0 success, 1 failure, 2 misuse."""
    arguments = build_parser().parse_args(argv)
    try:
        status: int = arguments.run(arguments)
    except InterruptedRunError as err:
        return _fail([str(err)], _status_of(err.cause))
    except ConfigurationError as err:
        if not err.problems:
            return _fail([str(err)], MISUSED)
        return _fail(["these environment variables are missing or wrong:", *map(str, err.problems)], MISUSED)
    except ModelRunnerError as err:
        return _fail([str(err)], FAILED)
    except KeyboardInterrupt as err:
        return _fail([str(err) or "interrupted"], _status_of(err))
    return status


def _status_of(cause: BaseException) -> int:
    if isinstance(cause, KeyboardInterrupt):
        return TERMINATED if isinstance(cause, TerminatedError) else INTERRUPTED
    return FAILED


def _fail(lines: Sequence[str], status: int) -> int:
    """Write an error to the standard error and return ``status``."""
    first, *others = lines
    sys.stderr.write("\n  ".join([f"model-runner: {first}", *others]) + "\n")
    return status
