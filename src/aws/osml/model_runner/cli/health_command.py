"""`model-runner health`: check that the worker in this container makes progress."""

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
        help="check that a worker makes progress",
        description=(
            "Exits with 0 when the process that writes the health file runs and made progress within 120 s, else with 1"
            " and the reason. It reads the file only and makes no call."
        ),
        epilog="example:\n  model-runner health --file /tmp/model-runner-health.json\n",
    )
    parser.add_argument(
        "--file",
        type=Path,
        metavar="PATH",
        default=os.environ.get("HEALTH_FILE"),
        help="file that the worker writes (default: the value of HEALTH_FILE)",
    )
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Return 0 if the worker is healthy; otherwise write the reason to the standard error and return 1."""
    problem = _problem(arguments.file)
    if problem is not None:
        sys.stderr.write(f"unhealthy: {problem}\n")
    return 0 if problem is None else 1


def _problem(file: Path | None) -> str | None:
    if file is None:
        return "the health file is not known: give --file PATH, or set HEALTH_FILE"
    try:
        report = read_health(file)
    except FileNotFoundError:
        return f"{file} does not exist: no worker has reported yet"
    except (OSError, ValueError, TypeError) as err:
        return f"{file} cannot be read: {err}"
    return report.problem(time.time(), is_process_alive)
