"""How fast tiles pass, and what each costs: a real worker, on the embedded emulator, with a model that does nothing.

    .venv/bin/python benchmarks/pipeline.py                                    every row, our worker alone
    .venv/bin/python benchmarks/pipeline.py --peer PYTHON throughput small     two rows, beside the peer
    .venv/bin/python benchmarks/pipeline.py --runs 3 --json results.json       medians of three runs

Worker, model and emulator share the machine, as they do in every run, so compare ratios of one run. CPU and memory are
the worker's own, from the submission to the end of the job.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from osgeo import gdal

from aws.osml.model_runner.api.image_url import parse_image_url
from aws.osml.model_runner.common.typing import ImageRegion
from aws.osml.model_runner.local.child_process import ChildProcess
from aws.osml.model_runner.local.data_plane import DataPlane, create_data_plane
from aws.osml.model_runner.local.emulator import Emulator
from aws.osml.model_runner.local.environment import clean_environment
from aws.osml.model_runner.local.job import parse_status
from aws.osml.model_runner.raster import RasterSettings, configure_gdal, open_image
from aws.osml.model_runner.raster.tile_view import read_pixels, tile_view

HERE = Path(__file__).resolve().parent
OURS = [sys.executable, "-m", "aws.osml.model_runner", "serve"]
# Until the worker has started and polls; not measured.
START_S = 8.0
UTM = (500000.0, 0.5, 0.0, 5400000.0, 0.0, -0.5)


@dataclass(frozen=True)
class Job:
    """One request and its surroundings, in the words of the request; sizes in pixels."""

    image: Path
    tile: int = 1024
    overlap: int = 50
    region: int = 4096
    tile_format: str = "GTIFF"
    compression: str = "NONE"
    latency_ms: int = 50
    features: int = 20
    workers: int = 8
    images: int = 1
    roi: str | None = None
    settings: dict[str, str] = field(default_factory=dict)


@dataclass
class Figures:
    """What a job came to. Times in seconds from its submission; ``cpu_s`` and ``rss_mb`` are the worker's."""

    started_s: float
    wall_s: float
    tiles: int
    cpu_s: float
    rss_mb: float
    peak_calls: int
    statuses: list[str]

    @property
    def tiles_per_s(self) -> float:
        """Tiles for each second from the submission to the job's end."""
        return self.tiles / self.wall_s

    @property
    def cpu_ms_per_tile(self) -> float:
        """CPU milliseconds of the worker for each tile."""
        return 1000 * self.cpu_s / max(1, self.tiles)


class Bench:
    """The emulator that every run shares, and the images."""

    def __init__(self, directory: Path, emulator: Emulator, peer: str | None) -> None:
        self.directory = directory
        self.emulator = emulator
        self.peer = peer

    def image(self, side_px: int, is_sparse: bool = False) -> Path:
        """Return an RGB GeoTIFF in blocks of 512: noise, or a file of a few kilobytes that is as large."""
        path = self.directory / f"{'sparse' if is_sparse else 'noise'}-{side_px}.tif"
        if path.exists():
            return path
        options = ["TILED=YES", "BLOCKXSIZE=512", "BLOCKYSIZE=512", "INTERLEAVE=PIXEL", "BIGTIFF=YES"]
        options += ["SPARSE_OK=TRUE"] if is_sparse else []
        dataset = gdal.GetDriverByName("GTiff").Create(str(path), side_px, side_px, 3, gdal.GDT_Byte, options)
        dataset.SetGeoTransform(UTM)
        rng = np.random.default_rng(7)
        for row in range(0, 0 if is_sparse else side_px, 512):
            rows = min(512, side_px - row)
            dataset.WriteArray(rng.integers(0, 200, (3, rows, side_px), np.uint8), 0, row)
        dataset.FlushCache()
        return path

    def run(self, job: Job, is_peer: bool = False) -> Figures:
        """Have a new worker do a job on tables and queues of its own."""
        plane = create_data_plane(self.emulator.client, f"bench-{uuid.uuid4().hex[:8]}")
        with self._model(job) as model_url, self._worker(job, plane, is_peer) as worker:
            return self._measured(job, plane, model_url, psutil.Process(worker.pid))

    @contextmanager
    def _model(self, job: Job) -> Iterator[str]:
        command = [sys.executable, str(HERE / "fixed_model.py"), str(job.latency_ms / 1000), str(job.features)]
        with subprocess.Popen([*command, str(job.tile)], stdout=subprocess.PIPE, text=True) as server:
            try:
                assert server.stdout is not None
                yield f"http://127.0.0.1:{server.stdout.readline().strip()}"
            finally:
                server.kill()

    @contextmanager
    def _worker(self, job: Job, plane: DataPlane, is_peer: bool) -> Iterator[ChildProcess]:
        names = plane.environment
        environment = {
            **clean_environment(os.environ),
            **self.emulator.environment,
            **names,
            # Names that the peer has for the same things.
            "IMAGE_REQUEST_TABLE": names["JOB_TABLE"],
            "ENDPOINT_TABLE": names["ENDPOINT_TABLE"],
            "OUTSTANDING_IMAGE_REQUEST_TABLE": names["OUTSTANDING_JOBS_TABLE"],
            "ARTIFACT_BUCKET": plane.result_bucket,
            "AWS_S3_ENDPOINT": self.emulator.url.removeprefix("http://"),
            "AWS_HTTPS": "NO",
            "AWS_VIRTUAL_HOSTING": "FALSE",
            "WORKERS": str(job.workers),
            "WORKERS_PER_CPU": "1",
            "TILE_WORKERS_PER_INSTANCE": str(job.workers),
            "REGION_SIZE": f"({job.region}, {job.region})",
            "SM_SELF_THROTTLING": "False",
            "SCHEDULER_THROTTLING_ENABLED": "False",
            "IMAGE_SOURCES": "s3,file",
            **job.settings,
        }
        command = [str(self.peer), str(HERE / "peer_worker.py")] if is_peer else OURS
        log = self.directory / f"worker-{uuid.uuid4().hex[:6]}.log"
        with ChildProcess.start("worker", command, environment, log) as process:
            time.sleep(START_S)
            process.check_alive()
            yield process

    def _measured(self, job: Job, plane: DataPlane, model_url: str, worker: psutil.Process) -> Figures:
        watch_url = self._subscribed_queue(plane)
        peak = _PeakMemory(worker)
        cpu_s, begun, first_s, ended = _cpu_s(worker), time.monotonic(), None, {}
        for _ in range(job.images):
            self._submit(job, plane, f"{model_url}/invocations")
        while len(ended) < job.images and time.monotonic() - begun < 1800:
            for job_id, status in self._statuses(watch_url):
                first_s = first_s or time.monotonic() - begun
                if status in ("SUCCESS", "PARTIAL", "FAILED"):
                    ended[job_id] = status
        wall_s, cpu_s = time.monotonic() - begun, _cpu_s(worker) - cpu_s
        stats = json.loads(_get(f"{model_url}/stats"))
        rss_mb = peak.stop()
        return Figures(first_s or 0.0, wall_s, stats["calls"], cpu_s, rss_mb, stats["peak"], list(ended.values()))

    def _submit(self, job: Job, plane: DataPlane, model_url: str) -> None:
        job_id = uuid.uuid4().hex
        request = {
            "jobId": job_id,
            "jobName": job_id,
            "imageUrls": [str(job.image)],
            "outputs": [{"type": "S3", "bucket": plane.result_bucket, "prefix": job_id}],
            "imageProcessor": {"name": model_url, "type": "HTTP_ENDPOINT"},
            "imageProcessorTileSize": job.tile,
            "imageProcessorTileOverlap": job.overlap,
            "imageProcessorTileFormat": job.tile_format,
            "imageProcessorTileCompression": job.compression,
        }
        if job.roi:
            request["regionOfInterest"] = job.roi
        self.emulator.client("sqs").send_message(QueueUrl=plane.image_queue, MessageBody=json.dumps(request))

    def _subscribed_queue(self, plane: DataPlane) -> str:
        sqs, sns = self.emulator.client("sqs"), self.emulator.client("sns")
        url = sqs.create_queue(QueueName=f"watch-{uuid.uuid4().hex}")["QueueUrl"]
        arn = sqs.get_queue_attributes(QueueUrl=url, AttributeNames=["QueueArn"])["Attributes"]["QueueArn"]
        sns.subscribe(TopicArn=plane.environment["IMAGE_STATUS_TOPIC"], Protocol="sqs", Endpoint=arn)
        return str(url)

    def _statuses(self, url: str) -> Iterator[tuple[str, str]]:
        sqs = self.emulator.client("sqs")
        answer = sqs.receive_message(QueueUrl=url, WaitTimeSeconds=1, MaxNumberOfMessages=10)
        for message in answer.get("Messages", []):
            sqs.delete_message(QueueUrl=url, ReceiptHandle=message["ReceiptHandle"])
            event = parse_status(message["Body"])
            yield event.job_id, event.status


class _PeakMemory:
    """Looks at a process and its children ten times a second, for the most memory that they have at once."""

    def __init__(self, process: psutil.Process) -> None:
        self._process = process
        self._peak = 0.0
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def stop(self) -> float:
        """Return the peak in megabytes."""
        self._stopped.set()
        self._thread.join()
        return self._peak / 1e6

    def _watch(self) -> None:
        while not self._stopped.wait(0.1):
            self._peak = max(self._peak, sum(one.memory_info().rss for one in _tree(self._process)))


def _tree(process: psutil.Process) -> list[psutil.Process]:
    return [process, *process.children(recursive=True)]


def _cpu_s(process: psutil.Process) -> float:
    return sum(sum(one.cpu_times()[:2]) for one in _tree(process))


def _get(url: str) -> bytes:
    return subprocess.run(["curl", "-sf", url], capture_output=True, check=True).stdout


# Rows ---------------------------------------------------------------------------------------------------------------

Row = dict[str, Any]


def beside_peer(bench: Bench, job: Job) -> Row:
    """Measure a job with both workers, one after the other."""
    ours = bench.run(job)
    row: Row = {"ours": _summary(ours)}
    if bench.peer:
        peer = bench.run(job, is_peer=True)
        row["peer"] = _summary(peer)
        row["times as many tiles/s"] = round(ours.tiles_per_s / peer.tiles_per_s, 1)
        row["CPU per tile, of the peer's"] = f"1/{peer.cpu_ms_per_tile / ours.cpu_ms_per_tile:.1f}"
    return row


def _summary(figures: Figures) -> Row:
    return {
        "tiles/s": round(figures.tiles_per_s, 1),
        "CPU ms/tile": round(figures.cpu_ms_per_tile, 1),
        "MB": round(figures.rss_mb),
        "started s": round(figures.started_s, 2),
        "wall s": round(figures.wall_s, 1),
        "tiles": figures.tiles,
        "most calls": figures.peak_calls,
        "ends": ",".join(sorted(set(figures.statuses))),
    }


def throughput(bench: Bench) -> Row:
    """12288 px, 1024 px tiles, 50 ms, 20 features."""
    return beside_peer(bench, Job(bench.image(12288)))


def many_features(bench: Bench) -> Row:
    """The same with 500 features per tile."""
    return beside_peer(bench, Job(bench.image(12288), features=500))


def slow_endpoint(bench: Bench) -> Row:
    """300 ms and 64 calls at once; the endpoint allows 213 tiles/s."""
    job = Job(bench.image(12288), latency_ms=300, workers=64, images=4)
    return {"ours": _summary(bench.run(job)), "endpoint allows tiles/s": round(64 / 0.3)}


def small_images(bench: Bench) -> Row:
    """20 images of 1024 px in a row."""
    return beside_peer(bench, Job(bench.image(1024), images=20))


def formats(bench: Bench) -> Row:
    """Tiles/s by format, and what two cores encode with GDAL when nothing else is done."""
    row: Row = {}
    for name, compression in (("PNG", "NONE"), ("JPEG", "NONE"), ("NITF", "NONE"), ("NITF", "J2K")):
        job = Job(bench.image(6144), tile_format=name, compression=compression, latency_ms=5)
        figures = bench.run(job)
        floor = _encoded_per_s(job)
        row[f"{name}/{compression}"] = {
            "tiles/s": round(figures.tiles_per_s, 1),
            "GDAL alone": round(floor, 1),
            "share": f"{100 * figures.tiles_per_s / floor:.0f} %",
        }
    return row


def _encoded_per_s(job: Job) -> float:
    """Encode tiles with GDAL alone, on two threads, and return how many come out in a second."""
    settings = RasterSettings()
    driver, options = {"PNG": ("PNG", []), "JPEG": ("JPEG", [])}.get(
        job.tile_format, ("NITF", ["IC=C8"] if job.compression == "J2K" else ["IC=NC"])
    )
    starts = [(row, col) for row in range(0, 5000, 974) for col in range(0, 5000, 974)]

    def encode(mine: Sequence[tuple[int, int]]) -> None:
        source = open_image(parse_image_url(str(job.image), {"file"}), settings)
        with source.handle() as handle:
            for origin in mine:
                tile = ImageRegion.of((origin, (job.tile, job.tile)))
                pixels = read_pixels(handle.dataset, tile, source.data_type)
                path = f"/vsimem/{uuid.uuid4().hex}"
                view = tile_view(handle.dataset, tile, source.data_type, pixels)
                gdal.GetDriverByName(driver).CreateCopy(path, view, strict=0, options=options).FlushCache()
                gdal.Unlink(path)

    threads = [threading.Thread(target=encode, args=(starts[number::2],)) for number in range(2)]
    begun = time.monotonic()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return len(starts) / (time.monotonic() - begun)


def memory(bench: Bench) -> Row:
    """12288 px whole; 1000 tiles of 100000 px."""
    whole = bench.run(Job(bench.image(12288)))
    west, north, px = UTM[0], UTM[3], UTM[1]
    side = 31 * 974 * px
    huge = Job(bench.image(100_000, is_sparse=True), latency_ms=5, roi=_lonlat_box(west, north, side))
    part = bench.run(huge)
    return {"12288 px": _summary(whole), "100000 px": _summary(part), "ratio": round(part.rss_mb / whole.rss_mb, 2)}


def _lonlat_box(west: float, north: float, side: float) -> str:
    """Return a region of interest, in degrees, for a square of metres from the image's corner; UTM zone 31 N."""
    from pyproj import Transformer

    to_degrees = Transformer.from_crs(32631, 4326, always_xy=True).transform
    corners = [(west, north), (west + side, north), (west + side, north - side), (west, north - side), (west, north)]
    return "POLYGON ((" + ", ".join("{} {}".format(*to_degrees(*corner)) for corner in corners) + "))"


def growth(bench: Bench) -> Row:
    """The cost of a tile in an image of 100 tiles and in one of 10,000."""
    few = bench.run(Job(bench.image(1280), tile=128, overlap=0, latency_ms=1, images=10))
    many = bench.run(Job(bench.image(12800), tile=128, overlap=0, latency_ms=1))
    ratio = round(many.cpu_ms_per_tile / few.cpu_ms_per_tile, 2)
    return {"100 tiles": _summary(few), "10,000 tiles": _summary(many), "CPU per tile, ratio": ratio}


ROWS: dict[str, Callable[[Bench], Row]] = {
    function.__name__: function
    for function in (throughput, many_features, slow_endpoint, small_images, formats, memory, growth)
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", nargs="*", metavar="ROW", help=f"of {', '.join(ROWS)}; all by default")
    parser.add_argument("--peer", help="the Python of an environment with osml-model-runner==2.3.0")
    parser.add_argument("--runs", type=int, default=1, help="how often each; the run of the median wall time counts")
    parser.add_argument("--json", type=Path, help="write the figures of every run here")
    arguments = parser.parse_args()
    if unknown := set(arguments.rows) - set(ROWS):
        parser.error(f"{', '.join(sorted(unknown))}: the rows are {', '.join(ROWS)}")
    configure_gdal(RasterSettings(), {})
    found: dict[str, list[Row]] = {}
    with tempfile.TemporaryDirectory(prefix="bench-") as name, Emulator(Path(name) / "aws") as emulator:
        bench = Bench(Path(name), emulator, arguments.peer)
        for row in arguments.rows or ROWS:
            found[row] = [ROWS[row](bench) for _ in range(arguments.runs)]
            _print(row, found[row])
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=1))


def _print(name: str, runs: list[Row]) -> None:
    print(f"\n{name}: {ROWS[name].__doc__}")
    for label, first in runs[0].items():
        if isinstance(first, dict):
            values = {key: _median([run[label][key] for run in runs]) for key in first}
            print(f"  {label:28}", *(f"{key} {value}," for key, value in values.items()))
        else:
            print(f"  {label:28} {_median([run[label] for run in runs])}")
    sys.stdout.flush()


def _median(values: list[Any]) -> Any:
    return statistics.median(values) if all(isinstance(value, int | float) for value in values) else values[0]


if __name__ == "__main__":
    main()
