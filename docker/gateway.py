"""Completes the embedded stack of compose.yaml: its resources, its SageMaker gateway, and the settings of its workers.

The emulator and the model servers must answer already. Runs until it is asked to end.
"""

import argparse
import shlex
import signal
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from threading import Event

from aws.osml.model_runner.local.stack.child_process import aws_environment
from aws.osml.model_runner.local.stack.data_plane import create_data_plane
from aws.osml.model_runner.local.stack.emulator import local_client
from aws.osml.model_runner.local.stack.sagemaker_gateway import LocalEndpoint, SageMakerGateway


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """Return where the parts of the stack are."""
    parser = argparse.ArgumentParser(prog="gateway", description=__doc__.splitlines()[0])
    parser.add_argument("--emulator", required=True, metavar="URL", help="the AWS emulator")
    parser.add_argument("--port", type=int, default=8081, help="where SageMaker calls are answered")
    parser.add_argument("--endpoint", action="append", default=[], metavar="NAME=URL", help="a model and its name")
    parser.add_argument("--settings", required=True, type=Path, metavar="FILE", help="written for the workers")
    return parser.parse_args(argv)


def write_settings(path: Path, environment: Mapping[str, str]) -> None:
    """Write what the entrypoint of a worker reads; the file appears whole."""
    fresh = path.with_suffix(".new")
    fresh.write_text("".join(f"{name}={shlex.quote(value)}\n" for name, value in sorted(environment.items())))
    fresh.replace(path)


def main(argv: Sequence[str] | None = None) -> None:
    """Create the data plane, answer SageMaker calls, and tell the workers where everything is."""
    ended = Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: ended.set())
    arguments = parse_arguments(argv)
    models = (endpoint.split("=", 1) for endpoint in arguments.endpoint)
    data_plane = create_data_plane(partial(local_client, endpoint_url=arguments.emulator))
    with SageMakerGateway({name: LocalEndpoint(url) for name, url in models}, arguments.port) as gateway:
        write_settings(
            arguments.settings, {**aws_environment(arguments.emulator), **gateway.environment, **data_plane.environment}
        )
        ended.wait()
    arguments.settings.unlink()


if __name__ == "__main__":
    main()
