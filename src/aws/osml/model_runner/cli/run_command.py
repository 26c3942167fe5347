"""`model-runner run IMAGE --model MODEL`: one image through one model on this machine."""

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aws.osml.model_runner.common.typing import VALID_IMAGE_COMPRESSION, VALID_IMAGE_FORMATS, RequestStatus
from aws.osml.model_runner.exceptions import ConfigurationError

from .local_extra import require_local_extra

if TYPE_CHECKING:
    from aws.osml.model_runner.local.image_run import ImageRun

EXIT_STATUS = {RequestStatus.SUCCESS: 0, RequestStatus.PARTIAL: 3}
FAILED = 1
MERGES = ("SEAM", "NMS", "SOFT_NMS", "NONE")


def add_parser(commands: Any) -> None:
    """Add this command to the command line."""
    parser = commands.add_parser(
        "run",
        help="run a model over an image of your own, without an AWS account",
        description="Runs a model over an image on this machine. Exits with 0 on SUCCESS, 3 on PARTIAL, 1 on FAILED.",
    )
    parser.add_argument("image", help="a file that GDAL reads, or an http(s) URL of one")
    parser.add_argument("--model", required=True, help="URL that takes tiles by POST, or the name of an example model")
    parser.add_argument("--model-options", type=json.loads, default={}, help="settings of an example model, as JSON")
    parser.add_argument("--output", type=Path, help="GeoJSON file to write (default: the image's name)")
    _add_tile_options(parser)
    parser.add_argument("--roi", help="region of interest: a WKT polygon in longitude and latitude")
    parser.add_argument("--merge", choices=MERGES, help="how what several tiles saw is merged")
    parser.add_argument("--iou", type=float, help="overlap, a share in [0, 1], above which two detections are one")
    parser.add_argument("--region-size", type=int, help="largest width and height of a region in pixels")
    parser.add_argument("--workers", type=int, default=1, help="worker processes")
    parser.add_argument("--calls", type=int, default=4, help="model calls in flight per worker")
    parser.add_argument("--logs", type=Path, help="directory in which the logs of the stack stay")
    parser.set_defaults(run=run)


def _add_tile_options(parser: argparse.ArgumentParser) -> None:
    tiles = parser.add_argument_group("tiles")
    tiles.add_argument("--tile-size", type=int, default=1024, help="width and height in pixels")
    tiles.add_argument("--overlap", type=int, default=128, help="pixels that neighbours share at least")
    tiles.add_argument("--format", choices=VALID_IMAGE_FORMATS, default="GTIFF")
    tiles.add_argument("--compression", choices=VALID_IMAGE_COMPRESSION, default="NONE")


def run(arguments: argparse.Namespace) -> int:
    """Run the job, write its result, and return an exit status by the job's own."""
    require_local_extra()
    from rich.console import Console

    from aws.osml.model_runner.local.image_run import run_image

    console = Console()
    outcome = run_image(_image_run(arguments), console)
    say = [f"status    {outcome.status.value}: {outcome.message}"]
    say.append(f"tiles     {outcome.tiles_succeeded} done, {outcome.tiles_failed} failed")
    if outcome.result:
        output = arguments.output or Path(f"{Path(arguments.image).stem}.geojson")
        output.parent.mkdir(parents=True, exist_ok=True)
        output.write_bytes(outcome.result)
        say.append(f"features  {len(outcome.features)}, in {output}")
    console.print("\n".join(say), highlight=False, soft_wrap=True, markup=False)
    return EXIT_STATUS.get(outcome.status, FAILED)


def _image_run(arguments: argparse.Namespace) -> "ImageRun":
    from aws.osml.model_runner.local.image_request import TileSettings
    from aws.osml.model_runner.local.image_run import ImageRun
    from aws.osml.model_runner.local.stack import WorkerSettings

    side = arguments.region_size
    environment = {"REGION_SIZE": f"({side}, {side})"} if side else {}
    return ImageRun(
        image=arguments.image,
        model=_known_model(arguments.model),
        tiles=TileSettings(arguments.tile_size, arguments.overlap, arguments.format, arguments.compression),
        workers=WorkerSettings(arguments.workers, arguments.calls, environment),
        model_options=arguments.model_options,
        members=_request_members(arguments),
        logs=arguments.logs,
    )


def _known_model(model: str) -> str:
    from aws.osml.model_runner.local.model_server import MODELS

    if not model.startswith(("http://", "https://")) and model not in MODELS:
        raise ConfigurationError(f"--model {model}: neither an http(s) URL nor one of {', '.join(sorted(MODELS))}")
    return model


def _request_members(arguments: argparse.Namespace) -> dict[str, Any]:
    from aws.osml.model_runner.local.image_request import merge_step

    members: dict[str, Any] = {}
    if arguments.roi:
        members["regionOfInterest"] = arguments.roi
    if arguments.merge or arguments.iou is not None:
        members["postProcessing"] = merge_step(arguments.merge or "SEAM", arguments.iou)
    return members
