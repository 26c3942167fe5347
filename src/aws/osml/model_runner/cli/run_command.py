"""`model-runner run IMAGE --model MODEL`: one image through one model on this machine."""

import argparse
import json
import math
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

from aws.osml.model_runner.common.typing import RequestStatus
from aws.osml.model_runner.exceptions import ConfigurationError, ModelRunnerError

from .deployment_options import EXIT_STATUS
from .local_commands import ended_by_sigterm, files_read, require_local_extra
from .pixel_options import add_tile_options, processor_input_of, skip_of, whole_number
from .protocol_options import add_protocol_options, protocol_of

if TYPE_CHECKING:
    from aws.osml.model_runner.local.image_request import TileSettings
    from aws.osml.model_runner.local.image_run import ImageRun
    from aws.osml.model_runner.local.onnx.onnx_model import OnnxModel
    from aws.osml.model_runner.local.output_file import OutputFile

MERGES = ("SEAM", "NMS", "SOFT_NMS", "NONE")
WAIT_LIMIT_S = 900.0

_EXAMPLES = """\
examples:
  model-runner run harbour.tif --model http://127.0.0.1:8080/invocations
  model-runner run harbour.tif --model best.onnx
  model-runner run harbour.tif --model bright-objects --tile-size 512 --overlap 64 --output ships.geojson
  model-runner run harbour.tif --model http://127.0.0.1:8080/invocations --roi 'POLYGON ((10 50, 11 50, 11 51, 10 50))'
  model-runner run eight-bands.ntf --model http://127.0.0.1:8080/invocations --bands 5,3,2 \\
      --stretch percentile:2:98 --pixel-type uint8 --gsd 0.5 --format PNG
  model-runner run item.json --assets red,green,blue --model bright-objects
"""


def add_parser(commands: Any) -> None:
    """Add this command to the command line."""
    parser = commands.add_parser(
        "run",
        help="run a model over an image of your own, without an AWS account",
        description=(
            "Runs a model over an image on this machine. Exits with 0 on SUCCESS, 3 on PARTIAL and 1 on FAILED. Exits"
            " with 2 when an option, the image, the model or the output cannot be used."
        ),
        epilog=_EXAMPLES,
    )
    parser.add_argument(
        "image",
        metavar="IMAGE",
        help="GeoTIFF, NITF, PNG, JPEG or JPEG 2000 file, or STAC Item (.json); or the http(s) URL of one",
    )
    parser.add_argument(
        "--assets",
        type=lambda text: [name.strip() for name in text.split(",")],
        metavar="LIST",
        help="assets of a STAC Item by key or role, such as red,green,blue; several become the bands of one image",
    )
    parser.add_argument(
        "--model",
        required=True,
        metavar="URL|FILE|NAME",
        help=(
            "URL that takes tiles by POST, ONNX file, or an example model: bright-objects, centerpoint, failure, flood"
        ),
    )
    parser.add_argument(
        "--model-options", type=_json_object, default={}, metavar="JSON", help="settings of an example model"
    )
    parser.add_argument(
        "--output",
        type=Path,
        metavar="FILE",
        help="GeoJSON file to write (default: IMAGE with .geojson as its suffix, in the current directory)",
    )
    parser.add_argument(
        "--resume", action="store_true", help="continue an interrupted run of the same command from its FILE.resume"
    )
    parser.add_argument(
        "--wait-limit",
        type=_seconds,
        default=WAIT_LIMIT_S,
        metavar="SECONDS",
        help="end the run when the model or the image store does not respond for so long",
    )
    add_tile_options(
        parser, "tiles (default: those of an ONNX file, else 1024 pixels, an eighth of them shared, GTIFF)"
    )
    parser.set_defaults(tile_size=None, overlap=None, format=None)
    add_protocol_options(parser)
    parser.add_argument(
        "--merge", choices=MERGES, help="how features of one object in several tiles are merged (default: SEAM)"
    )
    parser.add_argument(
        "--iou",
        "--threshold",
        dest="threshold",
        type=float,
        metavar="SHARE",
        help="overlap in [0, 1] above which two features are one object (default: 0.5 for SEAM, 0.75 for NMS)",
    )
    parser.add_argument(
        "--region-size", type=whole_number, metavar="PIXELS", help="largest side of a region (default: 10240)"
    )
    parser.add_argument("--workers", type=whole_number, default=1, metavar="N", help="worker processes")
    parser.add_argument(
        "--calls", type=whole_number, default=4, metavar="N", help="concurrent model calls of each worker"
    )
    parser.add_argument("--logs", type=Path, metavar="DIR", help="keep the logs of the local stack in this directory")
    parser.add_argument(
        "--coverage",
        action="store_true",
        help="write the tiles that were seen, skipped or failed as FILE with the suffix .coverage.geojson",
    )
    parser.add_argument(
        "--no-view", action="store_true", help="write neither the page nor the picture of the result beside FILE"
    )
    parser.set_defaults(run=run)


def _json_object(text: str) -> dict[str, Any]:
    try:
        document = json.loads(text)
    except ValueError as err:
        raise argparse.ArgumentTypeError(f"{text!r} is not valid JSON: {err}") from err
    if not isinstance(document, dict):
        raise argparse.ArgumentTypeError(f"{text!r} is not a JSON object")
    return document


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not seconds > 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds above 0")
    return seconds


def run(arguments: argparse.Namespace) -> int:
    """Run the job, write its result unless the job failed, print a summary, and return an exit status."""
    require_local_extra()
    from rich.console import Console

    from aws.osml.model_runner.local.image_run import run_image
    from aws.osml.model_runner.local.job import hints
    from aws.osml.model_runner.local.output_file import COVERAGE_SUFFIX, OutputFile, beside

    given = arguments.output or default_output(arguments.image)
    inputs = files_read(arguments, "output", "logs")
    output = OutputFile.prepared(given, inputs)
    coverage = OutputFile.prepared(beside(output.path, COVERAGE_SUFFIX), inputs) if arguments.coverage else None
    began = time.monotonic()
    with ended_by_sigterm():
        outcome = run_image(_image_run(arguments, output), Console(stderr=True))
    duration = f"in {time.monotonic() - began:.0f} s"
    lines = [f"status    {outcome.status.value}: {outcome.message}"]
    skipped = f", {outcome.tiles_skipped} skipped" if outcome.tiles_skipped else ""
    lines.append(f"tiles     {outcome.tiles_succeeded} done, {outcome.tiles_failed} failed{skipped}, {duration}")
    existed = output.path.exists()
    if outcome.status is RequestStatus.FAILED or not outcome.result:
        unchanged = f"; {given} is unchanged" if existed else ""
        lines.append(f"features  none: no file was written{unchanged}")
    else:
        output.write(outcome.result)
        replaced = ", which replaces an earlier file" if existed else ""
        missing = "; features of failed tiles are missing" if outcome.tiles_failed else ""
        lines.append(f"features  {len(outcome.features)}, in {given}{replaced}{missing}")
        if coverage is not None and outcome.coverage:
            coverage.write(outcome.coverage)
            lines.append(f"coverage  {coverage.path}")
        if not arguments.no_view:
            lines += _view_lines(
                output.path, arguments.image, arguments.assets, coverage.path if coverage else None, inputs
            )
    lines += [f"note      {hint}" for hint in hints(outcome.features)]
    if outcome.status is not RequestStatus.SUCCESS and not arguments.logs:
        lines.append("logs      not kept: --logs DIR keeps the logs of the workers")
    Console().print("\n".join(lines), highlight=False, soft_wrap=True, markup=False)
    return EXIT_STATUS[outcome.status]


def _view_lines(
    result: Path, image: str, assets: Sequence[str] | None, coverage: Path | None, inputs: Sequence[str]
) -> list[str]:
    """Write the page and the picture beside a result; return lines that name them, or why they are missing."""
    from aws.osml.model_runner.local.output_file import OutputFile, beside
    from aws.osml.model_runner.local.result_view import write_view

    page, picture = beside(result, ".html"), beside(result, ".preview.png")
    try:
        for path in (page, picture):
            OutputFile.prepared(path, [*inputs, str(result)])
        notes = write_view(result, page, image, coverage=coverage, assets=assets, preview=picture)
    except (ModelRunnerError, OSError, MemoryError) as err:
        return [f"view      no page was written: {err}"]
    written = ", ".join(str(path) for path in (page, picture) if path.exists())
    return [f"view      {written}", *(f"note      {note}" for note in notes)]


def default_output(image: str) -> Path:
    """Return the default path of a result: the image's name with its suffix replaced by .geojson."""
    name = unquote(urlsplit(image).path) if image.startswith(("http://", "https://")) else image
    return Path(f"{Path(name).stem or 'result'}.geojson")


def _image_run(arguments: argparse.Namespace, output: "OutputFile") -> "ImageRun":
    from aws.osml.model_runner.local.image_request import TileSettings, merge_step
    from aws.osml.model_runner.local.image_run import ImageRun
    from aws.osml.model_runner.local.stack import WorkerSettings
    from aws.osml.model_runner.local.stack.model_server import ONNX

    side = arguments.region_size
    environment = {"REGION_SIZE": f"({side}, {side})"} if side else {}
    members: dict[str, Any] = {}
    model, options, tiles, network = arguments.model, arguments.model_options, TileSettings(), None
    if model.endswith(".onnx"):
        network = _onnx_file(Path(model), options)
        model, options, tiles, members = ONNX, network.settings(), network.tile_settings(), network.members()
    else:
        model = _known_model(model, options)
    if arguments.assets:
        members["imageAssets"] = arguments.assets
    if asked := processor_input_of(arguments):
        usual = members.get("imageProcessorInput", {})
        # A request may have only one of the two.
        other = {"scale": "gsd", "gsd": "scale"}
        excluded = {other[name] for name in asked if name in other}
        members["imageProcessorInput"] = {name: usual[name] for name in usual if name not in excluded} | asked
    if network is not None and not arguments.assets:
        network.check_image(arguments.image, members.get("imageProcessorInput", {}))
    if (rules := skip_of(arguments)) is not None:
        members["skip"] = rules
    if arguments.coverage:
        members["extras"] = ["COVERAGE"]
    if spoken := protocol_of(arguments):
        members["imageProcessor"] = spoken
    if arguments.roi:
        members["regionOfInterest"] = arguments.roi
    if arguments.merge or arguments.threshold is not None:
        members["postProcessing"] = merge_step(arguments.merge or "SEAM", arguments.threshold)
    return ImageRun(
        image=arguments.image,
        model=model,
        tiles=_tiles(arguments, tiles),
        workers=WorkerSettings(arguments.workers, arguments.calls, environment),
        model_options=options,
        members=members,
        logs=arguments.logs,
        checkpoint=output.path.with_name(f"{output.path.name}.resume"),
        resume=arguments.resume,
        wait_limit_s=arguments.wait_limit,
    )


def _tiles(arguments: argparse.Namespace, usual: "TileSettings") -> "TileSettings":
    """Return the settings of tiles: those of the options, else those of ``usual``."""
    size_px = usual.size_px if arguments.tile_size is None else arguments.tile_size
    overlap_px = usual.overlap_px if size_px == usual.size_px else size_px // 8
    if arguments.overlap is not None:
        overlap_px = arguments.overlap
    return replace(
        usual,
        size_px=size_px,
        overlap_px=overlap_px,
        tile_format=arguments.format or usual.tile_format,
        compression=arguments.compression,
    )


def _onnx_file(path: Path, options: dict[str, Any]) -> "OnnxModel":
    from aws.osml.model_runner.local.onnx.onnx_model import OnnxModel

    if options:
        raise ConfigurationError("--model-options: the settings of an ONNX file are in its card")
    return OnnxModel.open(path.expanduser().resolve())


def _known_model(model: str, options: dict[str, Any]) -> str:
    from pydantic import ValidationError

    from aws.osml.model_runner.local.stack.model_server import MODELS, create_model

    if model.startswith(("http://", "https://")):
        if options:
            raise ConfigurationError("--model-options: only example models have settings")
        return model
    if model not in MODELS:
        known = ", ".join(sorted(MODELS))
        raise ConfigurationError(f"--model {model}: neither an http(s) URL, nor an .onnx file, nor one of {known}")
    try:
        create_model(model, **options)
    except ValidationError as err:
        known = ", ".join(MODELS[model].model_fields) or "none"
        wrong = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in err.errors(include_url=False))
        raise ConfigurationError(f"--model-options: {wrong}; settings of {model}: {known}") from err
    return model
