"""Very many images, sound and damaged, through one worker: ``python tests/sweep/run.py [--damaged 2000] [--also DIR]``.

Each image is a job of its own, several at once. After every few jobs, a control image must give the right result. The
run fails when the worker ends, a job does not end, the worker takes more than a GiB, or a control job is wrong. Images
that ended a worker, or had no end, are kept in ``--keep``.
"""

import argparse
import json
import os
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests"))

from aws.osml.model_runner.local.models.centerpoint import Centerpoint  # noqa: E402
from aws.osml.model_runner.local.stack.data_plane import create_data_plane  # noqa: E402
from aws.osml.model_runner.local.stack.emulator import Emulator  # noqa: E402
from aws.osml.model_runner.local.stack.model_server import ModelServer  # noqa: E402
from aws.osml.model_runner.raster import RasterSettings, configure_gdal  # noqa: E402
from sweep.images import damaged, sound_images  # noqa: E402
from worker_process import Site  # noqa: E402

AT_ONCE = 12
CONTROL_EVERY = 50
JOB_PATIENCE_S = 300.0
# Larger plans are refused: they would hold up the jobs behind them for minutes.
MOST_TILES = 1_500
MAX_BYTES = 2**30
FORMATS = ("GTIFF", "NITF", "PNG", "JPEG")
TERMINAL = {"SUCCESS", "PARTIAL", "FAILED"}


@dataclass
class Report:
    """Ends of the images, and the failures of the run."""

    statuses: Counter[str] = field(default_factory=Counter)
    endless: list[str] = field(default_factory=list)
    wrong_controls: list[str] = field(default_factory=list)
    exit_code: int | None = None
    peak_bytes: int = 0
    reasons: Counter[str] = field(default_factory=Counter)

    @property
    def problems(self) -> list[str]:
        """Failures of the run."""
        found = [f"{name} had no end" for name in self.endless]
        found += [f"the control image after {name} was wrong" for name in self.wrong_controls]
        if self.exit_code is not None:
            found.append(f"the worker ended with {self.exit_code}")
        if self.peak_bytes > MAX_BYTES:
            found.append(f"the worker took {self.peak_bytes / 2**20:.0f} MiB")
        return found


class Sweep:
    """One worker, and the jobs that are under way."""

    def __init__(self, site: Site, worker: Any, model_url: str, kept: Path) -> None:
        self._site = site
        self._worker = worker
        self._model_url = model_url
        self._kept = kept
        self._under_way: dict[str, tuple[Path, float]] = {}
        self._number = 0
        self.report = Report()

    def run(self, images: Iterable[Path], control: Path) -> Report:
        """Send every image, and the control image between them; return what became of them."""
        for batch in _batches(images, CONTROL_EVERY):
            for image in batch:
                self._send(image, FORMATS[self._number % len(FORMATS)])
                while len(self._under_way) >= AT_ONCE and self._is_alive():
                    self._look()
            self._wait_for_all()
            if not self._is_alive():
                break
            self._check(control, batch[-1].name)
        return self.report

    def _send(self, image: Path, tile_format: str, job: str = "") -> str:
        self._number += 1
        job = job or f"sweep-{self._number:05d}"
        bucket = self._site.data_plane.result_bucket
        key = f"images/{job}{image.suffix}"
        self._site.client("s3").upload_file(str(image), bucket, key)
        request = self._site.request(
            f"s3://{bucket}/{key}",
            self._model_url,
            jobId=job,
            imageProcessorTileSize=128,
            imageProcessorTileOverlap=16,
            imageProcessorTileFormat=tile_format,
            outputs=[{"type": "S3", "bucket": bucket, "prefix": f"{job}/"}],
        )
        self._site.submit(request)
        self._under_way[job] = image, time.monotonic()
        return job

    def _look(self) -> None:
        """Record the jobs that have ended, and give up jobs that have taken too long."""
        self._site.listen(wait_s=1)
        for event in self._site.events:
            job = str(event.attributes.get("job_id"))
            if str(event.status) in TERMINAL and job in self._under_way:
                self.report.statuses[str(event.status)] += 1
                del self._under_way[job]
        self._site.events.clear()
        for job, (image, sent_s) in list(self._under_way.items()):
            if time.monotonic() - sent_s > JOB_PATIENCE_S:
                self._keep(image)
                self.report.endless.append(image.name)
                del self._under_way[job]
        with suppress(psutil.Error):
            process = psutil.Process(self._worker.pid)
            taken = sum(one.memory_info().rss for one in (process, *process.children(recursive=True)))
            self.report.peak_bytes = max(self.report.peak_bytes, taken)

    def _wait_for_all(self) -> None:
        while self._under_way and self._is_alive():
            self._look()

    def _check(self, control: Path, after: str) -> None:
        job = self._send(control, "GTIFF")
        self._wait_for_all()
        try:
            found = len(self._site.features(job))
        except Exception:  # noqa: BLE001 - whatever the reason is, the result is not there
            found = -1
        # One feature in the centre of each of four tiles.
        if found != 4:
            self.report.wrong_controls.append(after)

    def _is_alive(self) -> bool:
        if self._worker.exit_code is None:
            return True
        self.report.exit_code = self._worker.exit_code
        for image, _ in self._under_way.values():
            self._keep(image)
        return False

    def _keep(self, image: Path) -> None:
        self._kept.mkdir(parents=True, exist_ok=True)
        shutil.copy(image, self._kept / image.name)


def _batches(images: Iterable[Path], count: int) -> Iterator[list[Path]]:
    left = iter(images)
    while batch := list(islice(left, count)):
        yield batch


def images_in(
    directory: Path, names: Sequence[str], count: int, seed: int, also: Sequence[Path] = ()
) -> Iterator[Path]:
    """Write sound images and yield them, then those of ``also``, then ``count`` damaged ones."""
    sound = {}
    for name in names:
        path = directory / name
        sound_images()[name](path)
        sound[name] = path.read_bytes()
        yield path
    yield from also
    sound |= {path.name: path.read_bytes() for path in also if path.stat().st_size < 200_000}
    rng = random.Random(seed)
    for number in range(count):
        name = list(sound)[number % len(sound)]
        path = directory / f"damaged-{number:05d}-{name}"
        path.write_bytes(damaged(rng, sound[name]))
        yield path


def sweep(
    damaged_count: int, seed: int, kept: Path, also: Sequence[Path] = (), names: Sequence[str] | None = None
) -> Report:
    """Run a worker and send it all images; ``names`` are the sound ones, all by default."""
    configure_gdal(RasterSettings(), os.environ)
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        emulator = stack.enter_context(Emulator(directory))
        site = Site(emulator, create_data_plane(emulator.client, "sweep"), directory)
        model = stack.enter_context(ModelServer(Centerpoint()))
        worker = stack.enter_context(site.worker(LOG_LEVEL="INFO", MAX_TILES_PER_IMAGE=str(MOST_TILES)))
        images = directory / "images"
        images.mkdir()
        control = images / "control.tif"
        sound_images()["utm.tif"](control)
        running = Sweep(site, worker, model.invocations_url, kept)
        sound = list(names or sound_images())
        report = running.run(images_in(images, sound, damaged_count, seed, also), control)
        if report.problems:
            kept.mkdir(parents=True, exist_ok=True)
            shutil.copy(worker.log_file, kept / "worker.log")
    return report


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--damaged", type=int, default=2000, help="how many damaged files")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--also", type=Path, nargs="*", default=[], help="directories of further images")
    parser.add_argument("--keep", type=Path, default=ROOT / ".cache" / "sweep", help="where troublesome files go")
    options = parser.parse_args()
    also = [
        path for directory in options.also for path in sorted(directory.rglob("*")) if path.suffix not in {"", ".md"}
    ]
    started_s = time.monotonic()
    report = sweep(options.damaged, options.seed, options.keep, [path for path in also if path.is_file()])
    print(
        json.dumps(
            {
                "statuses": report.statuses,
                "peak_mib": report.peak_bytes >> 20,
                "seconds": round(time.monotonic() - started_s),
                "problems": report.problems,
            },
            indent=2,
        )
    )
    return 1 if report.problems else 0


if __name__ == "__main__":
    sys.exit(main())
