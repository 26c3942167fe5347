"""`model-runner serve`: the daemon."""

import argparse
import os
import signal
import sys
from typing import Any


def add_parser(commands: Any) -> None:
    """Add this command to the command line."""
    parser = commands.add_parser(
        "serve",
        help="run a worker on the queues that the environment names",
        description=(
            "Runs a worker until SIGTERM or Ctrl-C. Its settings are environment variables; it starts with all that are"
            " required, or lists every variable that is missing or wrong and exits with 2."
        ),
        epilog="example:\n  env $(cat worker.env) model-runner serve\n",
    )
    parser.set_defaults(run=run)


def run(_arguments: argparse.Namespace) -> int:
    """Run a worker until SIGTERM, and return its exit status.

    Raises ConfigurationError with every problem of the environment.
    """
    # Imports take more than a second. As process 1 of a container, Python would ignore SIGTERM for as long.
    signal.signal(signal.SIGTERM, lambda number, _frame: os._exit(128 + number))

    from aws.osml.model_runner.config import ServiceConfig
    from aws.osml.model_runner.model_runner import ModelRunner
    from aws.osml.model_runner.telemetry.logs import configure_logging
    from aws.osml.model_runner.telemetry.metrics import configure_metrics

    config = ServiceConfig.from_environment(os.environ)
    configure_logging(config.log_level)
    configure_metrics()
    status = ModelRunner(config=config).run()
    if status != 0:
        # A thread hangs in a call. An ordinary exit would wait for it, longer than the container's stop timeout.
        sys.stdout.flush()
        os._exit(status)
    return status
