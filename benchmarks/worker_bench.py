"""Has a real worker do jobs on the embedded emulator, with a model that does nothing, and measures what they cost."""

import json
import os
import statistics
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from urllib.request import urlopen

import numpy as np
import psutil
from osgeo import gdal, osr
from secured import ENDPOINT, secured

from aws.osml.model_runner.common.machine import usable_cores
from aws.osml.model_runner.local.job import StatusEvent, parse_status
from aws.osml.model_runner.local.stack.child_process import ChildProcess, clean_environment
from aws.osml.model_runner.local.stack.data_plane import DataPlane, create_data_plane
from aws.osml.model_runner.local.stack.emulator import Emulator

HERE = Path(__file__).resolve().parent
# The proxy that counts calls and units is a tool of the tests.
sys.path.insert(0, str(HERE.parent / "tests"))
from aws_proxy.meter import UnitMeter  # noqa: E402, F401 - for costs.py
from aws_proxy.proxy import AwsProxy  # noqa: E402, F401 - for the rows
from aws_proxy.units import item_bytes  # noqa: E402, F401 - for costs.py

OURS = [sys.executable, "-m", "aws.osml.model_runner", "serve"]
# Until a worker has started and polls its queues; not measured.
_START_S = 8.0
_TIMEOUT_S = 1800.0
UTM_ZONE = 32631
UTM_CORNER = (500000.0, 5400000.0)
PIXEL_M = 0.5
BLOCK_PX = 512


@dataclass(frozen=True)
class Job:
    """One request and its surroundings, in the words of the request; sizes in pixels.

    ``is_secured`` puts a SageMaker endpoint before the model, and TLS before it and all of AWS.
    """

    image: str | Path
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
    is_secured: bool = False
    settings: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Figures:
    """Times, CPU and memory of a job, or of several that were sent together.

    Times are seconds from the submission: to the first status, the model's first and last call, and the last end.
    ``cpu_s`` and ``rss_mb`` are the worker's own; ``servers_cpu_s`` is what emulator and model took of the same cores.
    """

    started_s: float
    first_call_s: float
    last_call_s: float
    wall_s: float
    images: int
    tiles: int
    cpu_s: float
    servers_cpu_s: float
    rss_mb: float
    peak_calls: int
    statuses: tuple[str, ...]

    @property
    def tiles_per_s(self) -> float:
        """Tiles for each second from the submission to the last end."""
        return self.tiles / self.wall_s

    @property
    def cpu_ms_per_tile(self) -> float:
        """CPU milliseconds of the worker for each tile."""
        return 1000 * self.cpu_s / max(1, self.tiles)

    @property
    def busy_share(self) -> float:
        """How much of all cores worker, emulator and model took together, 0 to 1."""
        return (self.cpu_s + self.servers_cpu_s) / (self.wall_s * usable_cores())


class Bench:
    """The emulator that every run shares, and the images. ``peer`` is the Python of the environment of 2.3.0."""

    def __init__(self, directory: Path, emulator: Emulator, peer: str | None) -> None:
        self.directory = directory
        self.emulator = emulator
        self.peer = peer

    def image(self, side_px: int, compression: str = "NONE", is_sparse: bool = False) -> Path:
        """Return an RGB GeoTIFF in blocks: texture, or a file of a few kilobytes that counts as large."""
        path = self.directory / f"{'sparse' if is_sparse else compression.lower()}-{side_px}.tif"
        if not path.exists():
            write_image(path, side_px, compression, is_sparse)
        return path

    def run(self, job: Job, is_peer: bool = False) -> Figures:
        """Have a new worker do a job on tables and queues of its own."""
        with self.worker(job, is_peer) as run:
            return run.measured(job)

    @contextmanager
    def worker(self, job: Job, is_peer: bool = False) -> Iterator["WorkerRun"]:
        """Start a worker that is fit for a job, and a model, on tables and queues of their own."""
        plane = create_data_plane(self.emulator.client, f"bench-{uuid.uuid4().hex[:8]}")
        command = [str(self.peer), str(HERE / "peer_worker.py")] if is_peer else OURS
        log = self.directory / f"worker-{uuid.uuid4().hex[:6]}.log"
        environment = self._environment(job, plane)
        with ExitStack() as running:
            model_url = running.enter_context(_model(job))
            if job.is_secured:
                environment |= running.enter_context(secured(self.directory, self.emulator.url, model_url))
            process = running.enter_context(ChildProcess.start("worker", command, environment, log))
            time.sleep(_START_S)
            process.check_alive()
            yield WorkerRun(self.emulator, plane, model_url, process)

    def _environment(self, job: Job, plane: DataPlane) -> dict[str, str]:
        names = plane.environment
        return {
            **clean_environment(os.environ),
            **self.emulator.environment,
            **names,
            # The names that osml-model-runner 2.3.0 uses for the same things.
            "IMAGE_REQUEST_TABLE": names["JOB_TABLE"],
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


@contextmanager
def _model(job: Job) -> Iterator[str]:
    command = [sys.executable, str(HERE / "fixed_model.py"), str(job.latency_ms / 1000), str(job.features)]
    with subprocess.Popen([*command, str(job.tile)], stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            yield f"http://127.0.0.1:{server.stdout.readline().strip()}"
        finally:
            server.kill()


@dataclass(frozen=True)
class WorkerRun:
    """A worker that waits for jobs, and what surrounds it."""

    emulator: Emulator
    plane: DataPlane
    model_url: str
    process: ChildProcess

    def measured(self, job: Job) -> Figures:
        """Submit a job as many times as it has images, and return what they cost together."""
        watch_url, ends = self._subscribed_queue(), dict[str, str]()
        worker = psutil.Process(self.process.pid)
        peak = _PeakMemory(worker)
        cpu_s, servers_cpu_s, first_s = _cpu_s([worker]), _cpu_s(self._servers()), None
        begun = time.monotonic()
        for _ in range(job.images):
            self._submit(job)
        while len(ends) < job.images:
            for event in self._statuses(watch_url):
                first_s = first_s or time.monotonic() - begun
                if event.status.is_terminal:
                    ends[event.attributes["job_id"]] = str(event.status)
            self.process.check_alive()
            if time.monotonic() - begun > _TIMEOUT_S:
                raise TimeoutError(f"{len(ends)} of {job.images} images ended; see {self.process.log_file}")
        wall_s = time.monotonic() - begun
        stats = json.load(urlopen(f"{self.model_url}/stats"))
        return Figures(
            started_s=first_s or 0.0,
            first_call_s=stats["first_s"] - begun,
            last_call_s=stats["last_s"] - begun,
            wall_s=wall_s,
            images=job.images,
            tiles=stats["calls"],
            cpu_s=_cpu_s([worker]) - cpu_s,
            servers_cpu_s=_cpu_s(self._servers()) - servers_cpu_s,
            rss_mb=peak.stop(),
            peak_calls=stats["peak"],
            statuses=tuple(sorted(set(ends.values()))),
        )

    def durations_ms(self) -> dict[str, float]:
        """Return the mean of every ``Duration`` among the metrics that our worker has written, by operation."""
        durations: dict[str, list[float]] = {}
        for line in self.process.log_text().splitlines():
            if line.startswith("{") and '"Operation"' in line:
                entry = json.loads(line)
                values = entry.get("Duration", [])
                durations.setdefault(entry["Operation"], []).extend(values if isinstance(values, list) else [values])
        return {operation: 1000 * statistics.mean(values) for operation, values in durations.items() if values}

    def _servers(self) -> list[psutil.Process]:
        """Return the emulator, the model and what is before them: this process's children but the worker."""
        return [child for child in psutil.Process().children() if child.pid != self.process.pid]

    def _submit(self, job: Job) -> None:
        job_id = uuid.uuid4().hex
        request = {
            "jobId": job_id,
            "jobName": job_id,
            "imageUrls": [str(job.image)],
            "outputs": [{"type": "S3", "bucket": self.plane.result_bucket, "prefix": job_id}],
            "imageProcessor": self._processor(job),
            "imageProcessorTileSize": job.tile,
            "imageProcessorTileOverlap": job.overlap,
            "imageProcessorTileFormat": job.tile_format,
            "imageProcessorTileCompression": job.compression,
        }
        if job.roi:
            request["regionOfInterest"] = job.roi
        sqs = self.emulator.client("sqs")
        sqs.send_message(QueueUrl=self.plane.image_queue, MessageBody=json.dumps(request))

    def _processor(self, job: Job) -> dict[str, str]:
        if job.is_secured:
            return {"name": ENDPOINT, "type": "SM_ENDPOINT"}
        return {"name": f"{self.model_url}/invocations", "type": "HTTP_ENDPOINT"}

    def _subscribed_queue(self) -> str:
        sqs, sns = self.emulator.client("sqs"), self.emulator.client("sns")
        url = sqs.create_queue(QueueName=f"watch-{uuid.uuid4().hex}")["QueueUrl"]
        arn = sqs.get_queue_attributes(QueueUrl=url, AttributeNames=["QueueArn"])["Attributes"]["QueueArn"]
        sns.subscribe(TopicArn=self.plane.image_status_topic, Protocol="sqs", Endpoint=arn)
        return str(url)

    def _statuses(self, url: str) -> Iterator[StatusEvent]:
        sqs = self.emulator.client("sqs")
        answer = sqs.receive_message(QueueUrl=url, WaitTimeSeconds=1, MaxNumberOfMessages=10)
        for message in answer.get("Messages", []):
            sqs.delete_message(QueueUrl=url, ReceiptHandle=message["ReceiptHandle"])
            yield parse_status(message["Body"])


class _PeakMemory:
    """Looks at a process and its children ten times a second, for the most memory that they have at once."""

    def __init__(self, process: psutil.Process) -> None:
        self._process = process
        self._peak_bytes = 0
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def stop(self) -> float:
        """Return the peak in megabytes."""
        self._stopped.set()
        self._thread.join()
        return self._peak_bytes / 1e6

    def _watch(self) -> None:
        while not self._stopped.wait(0.1):
            self._peak_bytes = max(self._peak_bytes, sum(one.memory_info().rss for one in _tree(self._process)))


def _tree(process: psutil.Process) -> list[psutil.Process]:
    return [process, *process.children(recursive=True)]


def _cpu_s(processes: list[psutil.Process]) -> float:
    """Return the CPU seconds of processes and of their children, both alive and ended."""
    times = [(one, one.cpu_times()) for process in processes for one in _tree(process)]
    return sum(sum(spent[:4]) for _, spent in times)


def write_image(path: Path, side_px: int, compression: str, is_sparse: bool) -> None:
    """Write an RGB GeoTIFF in UTM, in blocks: texture at two scales that no codec finds easy; or all of it absent."""
    options = ["TILED=YES", f"BLOCKXSIZE={BLOCK_PX}", f"BLOCKYSIZE={BLOCK_PX}", "INTERLEAVE=PIXEL", "BIGTIFF=YES"]
    options += [f"COMPRESS={compression}", *(["SPARSE_OK=TRUE"] if is_sparse else [])]
    options += ["PHOTOMETRIC=YCBCR"] if compression == "JPEG" else []
    dataset = gdal.GetDriverByName("GTiff").Create(str(path), side_px, side_px, 3, gdal.GDT_Byte, options)
    system = osr.SpatialReference()
    system.ImportFromEPSG(UTM_ZONE)
    dataset.SetProjection(system.ExportToWkt())
    dataset.SetGeoTransform((UTM_CORNER[0], PIXEL_M, 0.0, UTM_CORNER[1], 0.0, -PIXEL_M))
    rng = np.random.default_rng(7)
    grain = rng.normal(0, 12, (3, 2 * BLOCK_PX, 2 * BLOCK_PX))
    for row in range(0, 0 if is_sparse else side_px, BLOCK_PX):
        for col in range(0, side_px, BLOCK_PX):
            height, width = min(BLOCK_PX, side_px - row), min(BLOCK_PX, side_px - col)
            y, x = rng.integers(0, BLOCK_PX, 2)
            shade = np.linspace(*rng.uniform(60, 180, 2), width)
            block = grain[:, y : y + height, x : x + width] + shade
            dataset.WriteArray(block.clip(0, 255).astype(np.uint8), col, row)
    dataset.FlushCache()
