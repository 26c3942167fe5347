"""Fixtures of tests of handlers in this process: clients, a gateway, a scene, a clock, and published statuses."""

import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import structlog

from aws.osml.model_runner.aws.clients import AwsClients, default_clients
from aws.osml.model_runner.local.stack.data_plane import DataPlane
from aws.osml.model_runner.local.stack.emulator import Emulator
from aws.osml.model_runner.local.stack.sagemaker_gateway import SageMakerGateway
from worker_in_process import Clock, InProcessWorker, StatusListener, write_scene


@pytest.fixture(scope="module")
def gateway() -> Iterator[SageMakerGateway]:
    """A SageMaker without endpoints; tests add their own."""
    with SageMakerGateway({}) as running:
        yield running


@pytest.fixture(scope="module")
def clients(emulator: Emulator, gateway: SageMakerGateway) -> Iterator[AwsClients]:
    """The process's own clients, of the emulator and the gateway, as constructors use them that get none."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in (emulator.environment | gateway.environment | {"AWS_EMF_ENVIRONMENT": "local"}).items():
            patch.setenv(name, value)
        default_clients.cache_clear()
        yield default_clients()
        default_clients.cache_clear()


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An image of two regions of four tiles."""
    return write_scene(tmp_path_factory.mktemp("scene") / "scene.tif")


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def statuses(emulator: Emulator, data_plane: DataPlane) -> StatusListener:
    """The statuses of images that are published on the data plane's topic."""
    return StatusListener(emulator.client, data_plane.image_status_topic, f"{data_plane.name}-heard")


@pytest.fixture
def logs() -> Iterator[list[Any]]:
    """The events that are logged, with the context that is bound to them."""
    with structlog.testing.capture_logs([structlog.contextvars.merge_contextvars]) as caught:
        yield caught


@pytest.fixture
def worker_settings() -> dict[str, str]:
    """Variables of the environment of each worker; modules override them."""
    return {}


@pytest.fixture
def new_worker(
    data_plane: DataPlane, clients: AwsClients, clock: Clock, logs: list[Any], worker_settings: dict[str, str]
) -> Iterator[Callable[..., InProcessWorker]]:
    """Make workers that share a data plane and a clock, and that write results to the data plane's bucket."""
    with ExitStack() as running:

        def make(name: str = "worker", **settings: str) -> InProcessWorker:
            worker = InProcessWorker(data_plane.environment, clients, clock, name, **(worker_settings | settings))
            worker.outputs = json.dumps([{"type": "S3", "bucket": data_plane.result_bucket, "prefix": "out"}])
            running.callback(worker.close)
            return worker

        yield make


@pytest.fixture
def worker(new_worker: Callable[..., InProcessWorker]) -> InProcessWorker:
    """A worker that writes results to the data plane's bucket."""
    return new_worker()
