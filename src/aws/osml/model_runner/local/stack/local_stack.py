"""All services of a job on this machine: emulator, data plane, SageMaker gateway, model servers, workers."""

import json
import os
import secrets
import sys
import urllib.request
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from .child_process import ChildProcess, clean_environment
from .data_plane import LOCAL_PARAMETERS, DataPlane, create_data_plane
from .emulator import Emulator
from .model_server import READY_LINE
from .sagemaker_gateway import LocalEndpoint, SageMakerGateway

IMAGE_BUCKET = "model-runner-images"
RESULT_BUCKET = "model-runner-results"
WORKER_GRACE_S = 10.0


@dataclass(frozen=True)
class ModelSettings:
    """Name and settings of an example model, see `model_server`."""

    model: str
    options: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True)
class WorkerSettings:
    """Number of worker processes, model calls in flight per process, and further environment variables."""

    processes: int = 1
    calls_in_flight: int = 4
    environment: Mapping[str, str] = field(default_factory=dict)


class LocalStack:
    """Runs while its ``with`` block does. Each model is a SageMaker endpoint under its key in ``models``.

    ``directory`` holds the logs and the emulator's temporary files. ``check_alive`` raises if a process of the
    stack has ended.
    """

    def __init__(
        self, directory: Path, models: Mapping[str, ModelSettings], workers: WorkerSettings | None = None
    ) -> None:
        self.directory = directory
        self.models = models
        self.workers = workers or WorkerSettings()
        self.emulator = Emulator(directory, access_key=secrets.token_hex(16))
        self.gateway = SageMakerGateway({})
        self.data_plane = DataPlane("", {})
        self.model_urls: dict[str, str] = {}
        self._running = ExitStack()
        self._children: list[ChildProcess] = []

    def client(self, service: str) -> Any:
        """Return this process's client of ``service`` on the emulator."""
        return self.emulator.client(service)

    def upload_image(self, path: Path) -> str:
        """Upload an image to the stack's S3 and return its URL."""
        self.client("s3").upload_file(str(path), IMAGE_BUCKET, path.name)
        return f"s3://{IMAGE_BUCKET}/{path.name}"

    def check_alive(self) -> None:
        """Raise LocalStackError, with the end of its log, if a process of the stack has ended."""
        self.emulator.check_alive()
        for child in self._children:
            child.check_alive()

    def stop_workers(self) -> None:
        """End the workers, so that the tables do not change. They store finished tiles and release their messages.

        ``check_alive`` raises from now on.
        """
        workers = [child for child in self._children if child.name.startswith("worker-")]
        for child in workers:
            child.terminate()
        for child in workers:
            child.stop()

    def __enter__(self) -> Self:
        self.directory.mkdir(parents=True, exist_ok=True)
        with ExitStack() as starting:
            servers = {}
            for name, settings in self.models.items():
                module = "aws.osml.model_runner.local.stack.model_server"
                options = ["--model", settings.model, "--port", "0", "--options", json.dumps(dict(settings.options))]
                command = [sys.executable, "-m", module, *options]
                log = self.directory / f"model-{name}.log"
                server = ChildProcess.start(f"the model server {name}", command, clean_environment(os.environ), log)
                servers[name] = starting.enter_context(server)
            starting.enter_context(self.emulator)
            starting.enter_context(self.gateway)
            parameters = {**LOCAL_PARAMETERS, "ResultBucketName": RESULT_BUCKET}
            self.data_plane = create_data_plane(self.client, parameters=parameters)
            location = {"LocationConstraint": self.client("s3").meta.region_name}
            self.client("s3").create_bucket(Bucket=IMAGE_BUCKET, CreateBucketConfiguration=location)
            for number in range(self.workers.processes):
                name = f"worker-{number}"
                environment = self.worker_environment() | {"HEALTH_FILE": str(self.directory / f"{name}.health")}
                command = [sys.executable, "-m", "aws.osml.model_runner", "serve"]
                log = self.directory / f"{name}.log"
                worker = ChildProcess.start(name, command, environment, log, grace_s=WORKER_GRACE_S)
                self._children.append(starting.enter_context(worker))
            for name, server in servers.items():
                self._publish_model(name, server)
            self._running = starting.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            for child in reversed(self._children):
                child.terminate()  # all at once, so that they end in parallel
        finally:
            self._running.close()

    def worker_environment(self) -> dict[str, str]:
        """Return the environment of a worker of this stack."""
        settings = {
            # Only this process and its children can send requests, and they can read these images anyway.
            "IMAGE_SOURCES": "s3,file,http",
            "WORKERS": str(self.workers.calls_in_flight),
            "WORKERS_PER_CPU": "1",
            # A worker that stops waits for its receive call.
            "QUEUE_WAIT_S": "1",
            # A job on this machine may take days. The first sweep continues a job that was interrupted.
            "JOB_DEADLINE_S": str(30 * 24 * 3600),
            "SWEEP_INTERVAL_S": "5",
            "PYTHONUNBUFFERED": "1",
            "AWS_EMF_ENVIRONMENT": "local",
        }
        parts = [self.emulator.environment, self.gateway.environment, self.data_plane.environment]
        environment = clean_environment(os.environ) | settings
        for part in (*parts, self.workers.environment):
            environment.update(part)
        return environment

    def _publish_model(self, name: str, server: ChildProcess) -> None:
        def announced_url() -> str | None:
            for line in server.log_text().splitlines(keepends=True):
                if line.startswith(READY_LINE) and line.endswith("\n"):
                    return line.removeprefix(READY_LINE).strip()
            return None

        url = server.wait_until(announced_url)
        without_proxy = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with without_proxy.open(f"{url}/ping", timeout=10):
            self.model_urls[name] = f"{url}/invocations"
        self.gateway.add_endpoint(name, LocalEndpoint(self.model_urls[name]))
        self._children.append(server)
