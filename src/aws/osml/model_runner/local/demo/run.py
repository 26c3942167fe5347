"""Runs the demo: a job on this machine, from request to picture, on a scene whose ships are known."""

import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich.console import Console

from aws.osml.model_runner.common.typing import RequestStatus
from aws.osml.model_runner.local.image_request import ModelTarget, TileSettings, image_request
from aws.osml.model_runner.local.job import JobOutcome, JobRun
from aws.osml.model_runner.local.progress import ProgressDisplay
from aws.osml.model_runner.local.result_view import write_view
from aws.osml.model_runner.local.stack import LocalStack, ModelSettings, WorkerSettings
from aws.osml.model_runner.raster import RasterSettings, configure_gdal, write_geotiff

from .picture import draw_picture
from .scene import EPSG, GEOTRANSFORM, Scene, generate_scene
from .score import TOLERANCE_PX, Score, score_features

JOB_ID = "harbour-demo"
ENDPOINT = "bright-objects"


@dataclass(frozen=True)
class DemoResult:
    """Outcome and score of the demo."""

    outcome: JobOutcome
    score: Score

    @property
    def is_good(self) -> bool:
        """True if the job succeeded, found the ships and found none twice."""
        return self.outcome.status is RequestStatus.SUCCESS and self.score.is_good


def run_demo(output: Path, console: Console, size: int = 8000, workers: WorkerSettings | None = None) -> DemoResult:
    """Run the job on a scene of ``size`` pixels and write ``result.geojson``, ``.png`` and ``.html`` into ``output``.

    Logs of the stack's processes go to ``output/logs``.
    """
    output.mkdir(parents=True, exist_ok=True)
    logs = output / "logs"
    for old in logs.glob("*.log"):
        old.unlink()

    def say(topic: str, text: str) -> None:
        console.print(f"{topic:>8}  {text}", highlight=False, soft_wrap=True)

    with tempfile.TemporaryDirectory(prefix="model-runner-demo-") as directory:
        with console.status("drawing a harbour") if console.is_terminal else tempfile.TemporaryFile():
            scene = generate_scene(size)
            image = write_scene(scene, Path(directory))
        say("scene", f"{size} x {size} pixels with {len(scene.ships)} ships whose positions are known")
        stack = LocalStack(logs, {ENDPOINT: ModelSettings("bright-objects")}, workers)
        with stack, ProgressDisplay(console) as display:
            request = image_request(
                JOB_ID, stack.upload_image(image), ModelTarget(ENDPOINT, "SM_ENDPOINT"), TileSettings()
            )
            outcome = JobRun(stack.client, stack.data_plane, request, stack.check_alive).run(display)
        result = DemoResult(outcome, score_features(outcome.features, scene.ships))
        _report(result, scene, image, output, say)
    return result


def write_scene(scene: Scene, directory: Path) -> Path:
    """Write a scene's image into a directory, and return its path."""
    configure_gdal(RasterSettings(), os.environ)
    path = directory / "harbour.tif"
    write_geotiff(path, np.moveaxis(scene.pixels, 2, 0), GEOTRANSFORM, EPSG, "LZW")
    return path


def _report(result: DemoResult, scene: Scene, image: Path, output: Path, say: Callable[[str, str], None]) -> None:
    """Print the result, and write it with its picture and its page if the job delivered features."""
    outcome, score = result.outcome, result.score
    say("status", f"{outcome.status.value}: {outcome.message}")
    rate = f"{outcome.tiles_per_second:.1f} per second"
    say("tiles", f"{outcome.tiles_succeeded} done, {outcome.tiles_failed} failed, {rate}")
    if not outcome.result:
        return
    say("ships", f"{score.found} of {score.known} found, {score.doubles} twice, {score.false_alarms} false alarms")
    say("error", f"at most {score.largest_error_px:.2f} pixels from the true position (allowed: {TOLERANCE_PX:.0f})")
    say("result", str(outcome.location))
    (output / "result.geojson").write_bytes(outcome.result)
    title = f"{score.found} of {score.known} ships found, {score.doubles or 'none'} twice"
    caption = "   ·   ".join(
        [
            f"{scene.pixels.shape[1]} x {scene.pixels.shape[0]} pixels",
            f"{outcome.tiles_succeeded} tiles",
            f"{outcome.tiles_per_second:.0f} tiles per second",
            f"position error at most {score.largest_error_px:.1f} px",
        ]
    )
    draw_picture(scene.pixels, outcome.features, title, caption, output / "result.png")
    write_view(output / "result.geojson", output / "result.html", str(image))
    say("files", ", ".join(str(output / name) for name in ("result.geojson", "result.png", "result.html")))
