"""Parts that commands share: options for a deployment, outputs, exit status, JSON and tables of text."""

import argparse
import dataclasses
import json
import shutil
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TextIO

from aws.osml.model_runner.exceptions import ConfigurationError

if TYPE_CHECKING:
    from aws.osml.model_runner.client import Client, JobReport

# The exit status of a command for a job that has ended.
EXIT_STATUS = {"SUCCESS": 0, "PARTIAL": 3, "FAILED": 1}
_MIN_CELL = 12
# Narrower lines are not readable.
_MIN_WIDTH = 40


def add_deployment_options(parser: argparse.ArgumentParser) -> None:
    """Add ``--stack`` and ``--json``."""
    parser.add_argument(
        "--stack",
        metavar="NAME",
        help="stack of deploy/data-plane.yaml, which names queues and tables (default: the variables of a worker)",
    )
    parser.add_argument("--json", action="store_true", help="print JSON")


def client_of(arguments: argparse.Namespace) -> "Client":
    """Return the client of the deployment that the options name."""
    from aws.osml.model_runner.client import Client

    return Client.of_stack(arguments.stack) if arguments.stack else Client()


def s3_output(url: str) -> dict[str, str]:
    """Return the output of a request for ``s3://BUCKET/PREFIX``; raise ConfigurationError for another text."""
    bucket, _, prefix = url.removeprefix("s3://").partition("/")
    if not url.startswith("s3://") or not bucket:
        raise ConfigurationError(f"--output {url}: expected s3://BUCKET/PREFIX")
    return {"type": "S3", "bucket": bucket, "prefix": prefix}


def width_of(stream: TextIO) -> int | None:
    """Return the columns of a terminal; None for another stream, whose lines are neither cut nor wrapped."""
    return max(_MIN_WIDTH, shutil.get_terminal_size().columns) if stream.isatty() else None


def print_json(document: Any) -> None:
    """Print a document, indented."""
    sys.stdout.write(f"{json.dumps(document, indent=2)}\n")


def job_document(report: "JobReport") -> dict[str, Any]:
    """Return a job as JSON: ``jobId``, ``status``, ``percent``, and an object for each image, in camel case."""
    return {
        "jobId": report.job_id,
        "status": report.status,
        "percent": report.percent,
        "images": [camel(dataclasses.asdict(image)) for image in report.images],
    }


def camel(names: dict[str, Any]) -> dict[str, Any]:
    """Return the members with their names in camel case."""
    return {
        name.split("_")[0] + "".join(part.capitalize() for part in name.split("_")[1:]): value
        for name, value in names.items()
    }


def print_table(head: Sequence[str], rows: Sequence[Sequence[str]], empty: str) -> None:
    """Print rows under a head; the last column is cut at the width of the terminal. Without rows, print ``empty``.

    Cells are complete where the output is not a terminal.
    """
    if not rows:
        sys.stdout.write(f"{empty}\n")
        return
    widths = [max(len(row[column]) for row in [head, *rows]) for column in range(len(head) - 1)]
    width = width_of(sys.stdout)
    room = None if width is None else max(_MIN_CELL, width - sum(widths) - 2 * len(widths))
    for row in [head, *rows]:
        cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=False)]
        last = row[-1] if room is None or len(row[-1]) <= room else f"{row[-1][: room - 1]}…"
        sys.stdout.write("  ".join([*cells, last]).rstrip() + "\n")
