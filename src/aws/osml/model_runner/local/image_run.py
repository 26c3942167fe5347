"""A job on the user's own image, with the user's own model or an example, on this machine."""

import socket
import tempfile
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from rich.console import Console

from aws.osml.model_runner.local.exceptions import LocalStackError
from aws.osml.model_runner.local.image_request import ModelTarget, TileSettings, image_request
from aws.osml.model_runner.local.job import JobOutcome, JobRun
from aws.osml.model_runner.local.progress import ProgressDisplay
from aws.osml.model_runner.local.stack import LocalStack, ModelSettings, WorkerSettings

_CONNECT_TIMEOUT_S = 5.0


@dataclass(frozen=True)
class ImageRun:
    """What to run on what. ``model`` is a URL, or an example model's name with ``model_options`` as its settings.

    ``members`` are further members of the image request. ``logs`` is where the stack's logs stay; without it they
    are gone at the end.
    """

    image: str
    model: str
    tiles: TileSettings = field(default_factory=TileSettings)
    workers: WorkerSettings = field(default_factory=WorkerSettings)
    model_options: Mapping[str, object] = field(default_factory=dict)
    members: Mapping[str, Any] = field(default_factory=dict)
    logs: Path | None = None
    job_id: str = ""


def run_image(run: ImageRun, console: Console) -> JobOutcome:
    """Run the job and return how it ended; LocalStackError when the image is no file here, or the stack fails."""
    image_url = _image_url(run.image)
    is_url = run.model.startswith(("http://", "https://"))
    if is_url:
        _check_served(run.model)
    models = {} if is_url else {run.model: ModelSettings(run.model, run.model_options)}
    with tempfile.TemporaryDirectory(prefix="model-runner-") as directory:
        stack = LocalStack(run.logs or Path(directory), models, run.workers)
        with stack, ProgressDisplay(console) as display:
            # Over plain HTTP, because SageMaker refuses tiles of more than 6 MiB.
            model = ModelTarget(run.model if is_url else stack.model_urls[run.model], "HTTP_ENDPOINT")
            job_id = run.job_id or f"run-{uuid.uuid4().hex[:12]}"
            request = image_request(job_id, image_url, model, run.tiles, **run.members)
            return JobRun(stack.client, stack.data_plane, request, stack.check_alive).run(display)


def _check_served(model_url: str) -> None:
    """Raise LocalStackError when nobody listens at a model's address: a worker would wait for it, in hope."""
    parts = urlsplit(model_url)
    port = parts.port or (443 if parts.scheme == "https" else 80)
    try:
        socket.create_connection((parts.hostname or "", port), timeout=_CONNECT_TIMEOUT_S).close()
    except OSError as err:
        raise LocalStackError(f"no model is served at {model_url}: {err}") from err


def _image_url(image: str) -> str:
    if image.startswith(("http://", "https://")):
        return image
    if "://" in image:
        raise LocalStackError(f"{image}: only files of this machine and http(s) URLs can be run on this machine")
    path = Path(image).expanduser().resolve()
    if not path.is_file():
        raise LocalStackError(f"there is no file {path}")
    return str(path)
