"""`model-runner demo`: the main job on this machine, from request to picture."""

import argparse
from pathlib import Path
from typing import Any

from .local_commands import ended_by_sigterm, require_local_extra


def add_parser(commands: Any) -> None:
    """Add this command to the command line."""
    parser = commands.add_parser(
        "demo",
        help="find ships in a generated harbour, without an AWS account",
        description=(
            "Starts the embedded stack, runs a job on a generated harbour, and compares the features with the ships"
            " that were drawn. Exits with 0 when at least 99 % of the ships were found and none twice."
        ),
        epilog="example:\n  model-runner demo --size 4000 --output /tmp/demo\n",
    )
    parser.add_argument(
        "--output",
        type=Path,
        default=Path("demo"),
        metavar="DIR",
        help="directory for result.geojson, result.png, result.html and logs",
    )
    parser.add_argument("--size", type=int, default=8000, metavar="PIXELS", help="width and height of the scene")
    parser.add_argument("--workers", type=int, default=1, metavar="N", help="worker processes")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Return 0 when at least 99 % of the ships were found and none twice, else 1."""
    require_local_extra()
    from rich.console import Console

    from aws.osml.model_runner.local.demo.run import run_demo
    from aws.osml.model_runner.local.stack import WorkerSettings

    workers = WorkerSettings(processes=arguments.workers, environment={"IMAGE_SOURCES": "s3"})
    with ended_by_sigterm():
        return 0 if run_demo(arguments.output, Console(), arguments.size, workers).is_good else 1
