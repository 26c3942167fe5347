"""`model-runner health`: whether the worker in this container gets on."""

import argparse
import os
import sys
import time
from pathlib import Path
from typing import Any

from aws.osml.model_runner.worker.health import is_process_alive, read_health


def add_parser(commands: Any) -> None:
    """Add this command to the command line."""
    parser = commands.add_parser(
        "health",
        help="tell whether a worker gets on",
        description="Exits with 0 when the worker that writes the health file lives and has made progress lately.",
    )
    parser.add_argument(
        "--file", type=Path, default=os.environ.get("HEALTH_FILE"), help="the worker's HEALTH_FILE (default: its value)"
    )
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Return 0 when the worker is healthy; otherwise 1, with the reason on stderr."""
    problem = _problem(arguments.file)
    if problem is not None:
        sys.stderr.write(f"unhealthy: {problem}\n")
    return 0 if problem is None else 1


def _problem(file: Path | None) -> str | None:
    if file is None:
        return "neither --file nor HEALTH_FILE says where the worker reports"
    try:
        report = read_health(file)
    except FileNotFoundError:
        return f"{file} does not exist: no worker has reported yet"
    except (OSError, ValueError, TypeError) as err:
        return f"{file} cannot be read: {err}"
    return report.problem(time.time(), is_process_alive)
