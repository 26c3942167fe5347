"""Parses the command line, runs one command, and turns its errors into a message and an exit status."""

import argparse
import sys
from collections.abc import Sequence

from aws.osml.model_runner.exceptions import ConfigurationError, ModelRunnerError

from . import (
    cancel_command,
    demo_command,
    health_command,
    merge_command,
    redrive_command,
    run_command,
    serve_command,
)

COMMANDS = (
    serve_command,
    health_command,
    redrive_command,
    cancel_command,
    merge_command,
    demo_command,
    run_command,
)
FAILED, MISUSED, INTERRUPTED = 1, 2, 130


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the whole command line; each command adds its own part."""
    parser = argparse.ArgumentParser(
        prog="model-runner", description="Runs detection models over very large images and delivers what they find."
    )
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    for command in COMMANDS:
        command.add_parser(commands)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command that ``argv`` names and return the exit status: 0 success, 1 failure, 2 misuse."""
    arguments = build_parser().parse_args(argv)
    try:
        status: int = arguments.run(arguments)
    except ConfigurationError as err:
        return _complain([str(err)] if not err.problems else ["the environment:", *map(str, err.problems)], MISUSED)
    except ModelRunnerError as err:
        return _complain([str(err)], FAILED)
    except KeyboardInterrupt:
        return _complain(["interrupted"], INTERRUPTED)
    return status


def _complain(lines: Sequence[str], status: int) -> int:
    first, *others = lines
    sys.stderr.write("\n  ".join([f"model-runner: {first}", *others]) + "\n")
    return status
