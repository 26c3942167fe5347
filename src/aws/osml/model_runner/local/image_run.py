"""Runs a job on this machine, on an image of the user, with a model of the user or an example model."""

import socket
import ssl
import tempfile
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from rich.console import Console

from aws.osml.model_runner.api.image_request import ImageRequest
from aws.osml.model_runner.api.stac_item import is_item_url
from aws.osml.model_runner.common.typing import RequestStatus
from aws.osml.model_runner.exceptions import ConfigurationError, ImageError, InterruptedRunError, InvalidRequestError
from aws.osml.model_runner.local.checkpoint import Checkpoint
from aws.osml.model_runner.local.image_request import ModelTarget, TileSettings, image_request
from aws.osml.model_runner.local.job import JobOutcome, JobRun
from aws.osml.model_runner.local.patience import JobStuckError, Patience
from aws.osml.model_runner.local.progress import ProgressDisplay
from aws.osml.model_runner.local.stack import LocalStack, ModelSettings, WorkerSettings
from aws.osml.model_runner.local.worker_logs import WorkerLogs
from aws.osml.model_runner.raster import RasterSettings
from aws.osml.model_runner.raster.area_reader import AreaReader

_CONNECT_TIMEOUT_S = 5.0


@dataclass(frozen=True)
class ImageRun:
    """An image, a model, and the settings of a run.

    ``model`` is a URL, or the name of an example model, whose settings are ``model_options``. ``members`` are further
    members of the image request. ``logs`` is the directory of the stack's logs; without it, they are deleted at the
    end. An interrupted run writes the file ``checkpoint``, and a run with ``resume`` continues from it.
    ``wait_limit_s`` limits the time that a job has trouble and no progress.
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
        """True if ``model`` is a URL, so that the stack does not start a model."""
        return self.model.startswith(("http://", "https://"))


def run_image(run: ImageRun, console: Console) -> JobOutcome:
    """Run the job and return its outcome.

    An interrupted run writes a checkpoint, and a run that does not fail deletes the checkpoint.

    Raises:
        ConfigurationError: the image, the model or an option is not valid; the stack was not started.
        InterruptedRunError: the run was interrupted, or its job had trouble and no progress for ``wait_limit_s``.
        LocalStackError: the stack fails.
    """
    image_url = _image_url(run.image)
    if run.has_own_model:
        _check_served(run.model)
    run = _with_area(run)
    _check_request(run, image_url)
    settings = _settings(run, image_url)
    checkpoint = None
    if run.resume and run.checkpoint is not None:
        checkpoint = Checkpoint.load(run.checkpoint)
        checkpoint.check(settings, run.checkpoint)
    models = {} if run.has_own_model else {run.model: ModelSettings(run.model, run.model_options)}
    with tempfile.TemporaryDirectory(prefix="model-runner-") as directory:
        logs = run.logs or Path(directory)
        workers = replace(run.workers, environment={**_only_sources(_urls(run, image_url)), **run.workers.environment})
        stack = LocalStack(logs, models, workers)
        with ProgressDisplay(console) as display, stack:
            # By HTTP instead of the gateway, because SageMaker refuses tiles of more than 6 MiB.
            model = ModelTarget(run.model if run.has_own_model else stack.model_urls[run.model], "HTTP_ENDPOINT")
            job_id = checkpoint.job_id if checkpoint else run.job_id or f"run-{uuid.uuid4().hex[:12]}"
            request = image_request(job_id, image_url, model, run.tiles, **run.members)
            patience = Patience(display, WorkerLogs(logs), run.wait_limit_s)
            resume: Callable[[], None] | None = None
            if checkpoint is not None:
                resume = partial(checkpoint.restore, stack.client, stack.data_plane, model.name, time.time())
            try:
                job = JobRun(stack.client, stack.data_plane, request, stack.check_alive)
                outcome = job.run(patience, resume=resume)
            except (KeyboardInterrupt, JobStuckError) as err:
                display.say("interrupted: saving the tiles that are done")
                raise InterruptedRunError(_saved(run, stack, job_id, settings, model.name, err), err) from err
    if outcome.status is not RequestStatus.FAILED and run.checkpoint is not None:
        run.checkpoint.unlink(missing_ok=True)
    return outcome


def _settings(run: ImageRun, image_url: str) -> dict[str, Any]:
    """Return the settings that must be equal in a run that continues from a checkpoint."""
    return {
        "image": image_url,
        "model": run.model,
        "model options": dict(run.model_options),
        "tiles": [run.tiles.size_px, run.tiles.overlap_px, run.tiles.tile_format, run.tiles.compression],
        "region": run.workers.environment.get("REGION_SIZE", ""),
        **dict(run.members),
    }


def _saved(
    run: ImageRun, stack: LocalStack, job_id: str, settings: Mapping[str, Any], model_url: str, err: BaseException
) -> str:
    """Stop the workers and write the checkpoint, if the run has a path for it; return a message for the user."""
    reason = str(err) or "interrupted"
    if run.checkpoint is None:
        return reason
    stack.stop_workers()
    taken = Checkpoint.taken(stack.client, stack.data_plane, job_id, settings, model_url, time.time())
    if not taken.is_worth_keeping:
        return f"{reason}; no tile was done"
    try:
        taken.save(run.checkpoint)
    except OSError as failure:
        return f"{reason}; {taken.tiles} tiles are lost, since {run.checkpoint} cannot be written: {failure.strerror}"
    return f"{reason}; {taken.tiles} tiles are kept in {run.checkpoint}: repeat the command with --resume to continue"


# Option of `run` that sets each member of a request.
_OPTIONS = {
    "imageProcessorTileSize": "--tile-size",
    "imageProcessorTileOverlap": "--overlap",
    "imageProcessorTileFormat": "--format",
    "imageProcessorTileCompression": "--compression",
    "imageProcessorInput.bands": "--bands",
    "imageProcessorInput.stretch": "--stretch",
    "imageProcessorInput.pixelType": "--pixel-type",
    "imageProcessorInput.gsd": "--gsd",
    "imageProcessorInput.scale": "--scale",
    "imageProcessorInput.resampling": "--resampling",
    "imageProcessorInput.nodataFill": "--nodata-fill",
    "imageProcessor.protocol": "--protocol",
    "imageProcessor.envelope": "--envelope",
    "imageProcessor.answer": "--answer",
    "imageProcessor": "--model",
    "imageUrls": "IMAGE",
    "imageAssets": "--assets",
    "regionOfInterest": "--roi",
    "skip": "--skip",
    "postProcessing": "--threshold",
}


def _check_request(run: ImageRun, image_url: str) -> None:
    """Raise ConfigurationError, in terms of the command's options, if a worker would reject the request."""
    model = run.model if run.has_own_model else "http://127.0.0.1:1/invocations"
    target = ModelTarget(model, "HTTP_ENDPOINT")
    try:
        ImageRequest.from_external_message(image_request("run", image_url, target, run.tiles, **run.members))
    except InvalidRequestError as err:
        texts = []
        for problem in err.problems:
            options = [option for name, option in _OPTIONS.items() if problem.field.startswith(name)]
            expectation = problem.expectation
            for name, option in _OPTIONS.items():
                expectation = expectation.replace(name, option)
            texts.append(f"{options[0] if options else problem.field} {problem.value}: expected {expectation}")
        raise ConfigurationError("; ".join(texts) or str(err)) from err


def _check_served(model_url: str) -> None:
    """Raise ConfigurationError if a model's address does not accept connections, because a worker would retry."""
    try:
        parts = urlsplit(model_url)
        port = parts.port or (443 if parts.scheme == "https" else 80)
    except ValueError as err:
        raise ConfigurationError(f"--model {model_url}: {err}") from err
    try:
        with socket.create_connection((parts.hostname or "", port), timeout=_CONNECT_TIMEOUT_S) as connection:
            if parts.scheme == "https":
                # Any certificate is accepted here: workers check it, by their own settings.
                context = ssl.create_default_context()
                context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
                context.wrap_socket(connection, server_hostname=parts.hostname).close()
    except ssl.SSLError as err:
        reason = f"{err.reason or err}: does the model take http:// instead?"
        raise ConfigurationError(f"--model {model_url}: the server does not use TLS: {reason}") from err
    except OSError as err:
        raise ConfigurationError(f"--model: no model is served at {model_url}: {err}") from err


def _urls(run: ImageRun, image_url: str) -> list[str]:
    """Return the URLs that the workers of a run have to read."""
    area = run.members.get("regionOfInterest")
    in_rules = [rule["url"] for rule in run.members.get("skip", ()) if "url" in rule]
    return [image_url, *([area["url"]] if isinstance(area, dict) else []), *in_rules]


def _only_sources(urls: Sequence[str]) -> dict[str, str]:
    """Return the settings with which workers read only these files, the image first, or only http(s) URLs.

    Other users of the machine could send requests for other files. The files of a STAC Item are beside it or below, or
    on web servers.
    """
    image_url = urls[0]
    has_item = is_item_url(image_url)
    readable = [str(Path(image_url).parent) if has_item and not image_url.startswith("http") else image_url, *urls[1:]]
    files = [url for url in readable if not url.startswith("http")]
    sources = [name for name, is_used in (("file", files), ("http", has_item or len(files) < len(urls))) if is_used]
    # The setting is a list with commas.
    directories = {"IMAGE_DIRECTORIES": ",".join(files)} if files and "," not in "".join(files) else {}
    return {"IMAGE_SOURCES": ",".join(sources)} | directories


def _with_area(run: ImageRun) -> ImageRun:
    """Return the run with the absolute path of its region of interest, if a file of this machine holds it.

    Raises ConfigurationError if workers would refuse the file.
    """
    area = run.members.get("regionOfInterest")
    if not isinstance(area, dict) or str(area["url"]).startswith(("http://", "https://")):
        return run
    path = str(Path(str(area["url"])).expanduser().resolve())
    try:
        AreaReader(RasterSettings()).read(path, path, None)
    except ImageError as err:
        raise ConfigurationError(f"--roi: {err}") from err
    return replace(run, members={**run.members, "regionOfInterest": {"url": path}})


def _image_url(image: str) -> str:
    if image.startswith(("http://", "https://")):
        return image
    if "://" in image:
        raise ConfigurationError(f"{image}: only files of this machine and http(s) URLs can be run on this machine")
    path = Path(image).expanduser().resolve()
    if path.is_dir():
        raise ConfigurationError(f"{path} is a directory: name one image file")
    if not path.is_file():
        raise ConfigurationError(f"{path} does not exist, or is not a file")
    return str(path)
