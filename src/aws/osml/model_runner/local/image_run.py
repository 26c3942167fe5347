"""A job on the user's own image, with the user's own model or an example, on this machine."""

import socket
import ssl
import tempfile
import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from rich.console import Console

from aws.osml.model_runner.api.image_request import ImageRequest
from aws.osml.model_runner.common.typing import RequestStatus
from aws.osml.model_runner.exceptions import ConfigurationError, InvalidRequestError, Problem
from aws.osml.model_runner.local.checkpoint import Checkpoint
from aws.osml.model_runner.local.exceptions import InterruptedRunError
from aws.osml.model_runner.local.image_request import ModelTarget, TileSettings, image_request
from aws.osml.model_runner.local.job import JobOutcome, JobRun
from aws.osml.model_runner.local.patience import JobStuckError, Patience
from aws.osml.model_runner.local.progress import ProgressDisplay
from aws.osml.model_runner.local.stack import LocalStack, ModelSettings, WorkerSettings
from aws.osml.model_runner.local.worker_logs import WorkerLogs

_CONNECT_TIMEOUT_S = 5.0


@dataclass(frozen=True)
class ImageRun:
    """What to run on what. ``model`` is a URL, or an example model's name with ``model_options`` as its settings.

    ``members`` are further members of the image request. ``logs`` is where the stack's logs stay; without it they
    are gone at the end. ``checkpoint`` is the file that an interrupted run leaves; with ``resume`` the run goes on from
    there. ``wait_limit_s`` is how long the job may be in trouble without getting on.
    """

    image: str
    model: str
    tiles: TileSettings = field(default_factory=TileSettings)
    workers: WorkerSettings = field(default_factory=WorkerSettings)
    model_options: Mapping[str, object] = field(default_factory=dict)
    members: Mapping[str, Any] = field(default_factory=dict)
    logs: Path | None = None
    job_id: str = ""
    checkpoint: Path | None = None
    resume: bool = False
    wait_limit_s: float = 900.0

    @property
    def has_own_model(self) -> bool:
        """True when ``model`` is the URL of a model that is served already."""
        return self.model.startswith(("http://", "https://"))


def run_image(run: ImageRun, console: Console) -> JobOutcome:
    """Run the job and return how it ended.

    A run that is interrupted leaves a checkpoint; one that ends with a result removes it.

    Raises:
        ConfigurationError: something is wrong with what is to be run on what; nothing was started.
        InterruptedRunError: the run was interrupted, or its job did not get on for ``wait_limit_s``.
        LocalStackError: the stack fails.
    """
    image_url = _image_url(run.image)
    if run.has_own_model:
        _check_served(run.model)
    _check_request(run, image_url)
    settings = _settings(run, image_url)
    checkpoint = _earlier(run, settings)
    models = {} if run.has_own_model else {run.model: ModelSettings(run.model, run.model_options)}
    with tempfile.TemporaryDirectory(prefix="model-runner-") as directory:
        logs = run.logs or Path(directory)
        workers = replace(run.workers, environment={**_only_source(image_url), **run.workers.environment})
        stack = LocalStack(logs, models, workers)
        with ProgressDisplay(console) as display, stack:
            # Over plain HTTP, because SageMaker refuses tiles of more than 6 MiB.
            model = ModelTarget(run.model if run.has_own_model else stack.model_urls[run.model], "HTTP_ENDPOINT")
            job_id = checkpoint.job_id if checkpoint else run.job_id or f"run-{uuid.uuid4().hex[:12]}"
            request = image_request(job_id, image_url, model, run.tiles, **run.members)
            patience = Patience(display, WorkerLogs(logs), run.wait_limit_s)
            try:
                job = JobRun(stack.client, stack.data_plane, request, stack.check_alive)
                outcome = job.run(patience, resume=_resumption(checkpoint, stack, model.name))
            except (KeyboardInterrupt, JobStuckError) as err:
                display.say("interrupted: keeping what is done")
                raise InterruptedRunError(_kept(run, stack, job_id, settings, model.name, err), err) from err
    if outcome.status is not RequestStatus.FAILED and run.checkpoint is not None:
        run.checkpoint.unlink(missing_ok=True)
    return outcome


def _settings(run: ImageRun, image_url: str) -> dict[str, Any]:
    """Return what has to be the same in a run that goes on with another one's tiles."""
    return {
        "image": image_url,
        "model": run.model,
        "model options": dict(run.model_options),
        "tiles": [run.tiles.size_px, run.tiles.overlap_px, run.tiles.tile_format, run.tiles.compression],
        "region": run.workers.environment.get("REGION_SIZE", ""),
        **dict(run.members),
    }


def _earlier(run: ImageRun, settings: Mapping[str, Any]) -> Checkpoint | None:
    """Return the checkpoint to go on from, if that was asked for."""
    if not run.resume or run.checkpoint is None:
        return None
    checkpoint = Checkpoint.load(run.checkpoint)
    checkpoint.check(settings, run.checkpoint)
    return checkpoint


def _resumption(checkpoint: Checkpoint | None, stack: LocalStack, model_url: str) -> Callable[[], None] | None:
    if checkpoint is None:
        return None
    return lambda: checkpoint.restore(stack.client, stack.data_plane, model_url, time.time())


def _kept(
    run: ImageRun, stack: LocalStack, job_id: str, settings: Mapping[str, Any], model_url: str, err: BaseException
) -> str:
    """Keep what is done, where a place for it is known, and return what the user should know."""
    reason = str(err) or "interrupted"
    if run.checkpoint is None:
        return reason
    stack.stop_workers()
    made = Checkpoint.taken(stack.client, stack.data_plane, job_id, settings, model_url, time.time())
    if not made.is_worth_keeping:
        return f"{reason}; no tile was done"
    try:
        made.save(run.checkpoint)
    except OSError as failure:
        return f"{reason}; {made.tiles} tiles are lost, since {run.checkpoint} cannot be written: {failure.strerror}"
    return f"{reason}; {made.tiles} tiles are kept in {run.checkpoint}: the same command with --resume goes on"


# An option of `run` for each member of a request that one sets.
_OPTIONS = {
    "imageProcessorTileSize": "--tile-size",
    "imageProcessorTileOverlap": "--overlap",
    "imageProcessorTileFormat": "--format",
    "imageProcessorTileCompression": "--compression",
    "imageProcessor": "--model",
    "imageUrls": "IMAGE",
    "regionOfInterest": "--roi",
    "postProcessing": "--threshold",
}


def _check_request(run: ImageRun, image_url: str) -> None:
    """Raise ConfigurationError, which names the options, where the service would refuse the request."""
    model = run.model if run.has_own_model else "http://127.0.0.1:1/invocations"
    target = ModelTarget(model, "HTTP_ENDPOINT")
    try:
        ImageRequest.from_external_message(image_request("run", image_url, target, run.tiles, **run.members))
    except InvalidRequestError as err:
        raise ConfigurationError("; ".join(map(_in_options, err.problems)) or str(err)) from err


def _in_options(problem: Problem) -> str:
    """Return a problem in the words of the command line."""
    option = next((option for name, option in _OPTIONS.items() if problem.field.startswith(name)), problem.field)
    expectation = problem.expectation
    for name, other in _OPTIONS.items():
        expectation = expectation.replace(name, other)
    return f"{option} {problem.value}: expected {expectation}"


def _check_served(model_url: str) -> None:
    """Raise ConfigurationError when nobody listens at a model's address: a worker would wait for it, in hope."""
    try:
        parts = urlsplit(model_url)
        port = parts.port or (443 if parts.scheme == "https" else 80)
    except ValueError as err:
        raise ConfigurationError(f"--model {model_url}: {err}") from err
    try:
        with socket.create_connection((parts.hostname or "", port), timeout=_CONNECT_TIMEOUT_S) as connection:
            if parts.scheme == "https":
                _any_certificate().wrap_socket(connection, server_hostname=parts.hostname).close()
    except ssl.SSLError as err:
        reason = f"{err.reason or err}: does the model take http:// instead?"
        raise ConfigurationError(f"--model {model_url}: the server does not answer to TLS: {reason}") from err
    except OSError as err:
        raise ConfigurationError(f"--model: no model is served at {model_url}: {err}") from err


def _any_certificate() -> ssl.SSLContext:
    """Return a context that takes any certificate: workers check it, by their own settings."""
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return context


def _only_source(image_url: str) -> dict[str, str]:
    """Return the settings by which workers read this image and, of files, no other: others may send requests too."""
    if image_url.startswith("http"):
        return {"IMAGE_SOURCES": "http"}
    # The setting is a list with commas.
    directories = {} if "," in image_url else {"IMAGE_DIRECTORIES": image_url}
    return {"IMAGE_SOURCES": "file"} | directories


def _image_url(image: str) -> str:
    if image.startswith(("http://", "https://")):
        return image
    if "://" in image:
        raise ConfigurationError(f"{image}: only files of this machine and http(s) URLs can be run on this machine")
    path = Path(image).expanduser().resolve()
    if path.is_dir():
        raise ConfigurationError(f"{path} is a directory: name one image file")
    if not path.is_file():
        raise ConfigurationError(f"there is no file {path}")
    return str(path)
