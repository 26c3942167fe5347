"""A fleet's turns in virtual time: production's scheduler, capacities and tables, a model of what each call takes.

    python tests/scheduling/fleet_turns.py               # the table of docs/explanation/scheduling.md; some minutes

Each call to DynamoDB takes some milliseconds, and a scan takes longer with the bytes that it reads. Each call to
SageMaker's control plane takes a tenth of a second. Read units are counted as DynamoDB counts them.
"""

import math
import random
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import structlog

from aws.osml.model_runner.api.image_request import ImageRequest
from aws.osml.model_runner.config import ServiceConfig
from aws.osml.model_runner.database.endpoint_facts import SharedFacts
from aws.osml.model_runner.database.job_table import JobTable
from aws.osml.model_runner.database.outstanding_jobs_table import OpenJob, OutstandingJobsTable
from aws.osml.model_runner.database.scheduler_lock import SchedulerLock
from aws.osml.model_runner.scheduler.endpoint_capacity import EndpointCapacityEstimator
from aws.osml.model_runner.scheduler.image_scheduler import EndpointLoadImageScheduler, ScheduledImage

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from simulation.dynamodb import TABLE_NAMES, DynamoDB, size_bytes, worker_tables
from simulation.scheduler import Event, Process, Scheduler

CALL_S = 0.005
SCAN_S_PER_MB = 0.1
PAGE_BYTES = 1024 * 1024
READ_UNIT_BYTES = 4096
CONTROL_CALL_S = 0.1
HEADER_S = 0.3
PLANNING_S = 1.0
FIRST_REGION_S = 4.0
REFRESH_EVERY_S = (3.5, 6.5)
DOLLARS_PER_READ_UNIT = 0.125e-6
SECONDS_PER_DAY = 86_400

_URL = "https://sqs.us-west-2.amazonaws.com/123456789012"
CONFIG = ServiceConfig.from_environment(
    {
        "AWS_DEFAULT_REGION": "us-west-2",
        **TABLE_NAMES,
        "IMAGE_QUEUE": f"{_URL}/image",
        "REGION_QUEUE": f"{_URL}/region",
        "WORKERS": "16",
    }
)


class _NoMetrics:
    def record(self, *_: Any, **__: Any) -> None: ...

    def flush(self) -> None: ...


class ControlPlane:
    """SageMaker's control plane: each call takes its time and is counted by the second."""

    def __init__(self, scheduler: Scheduler, instances: int) -> None:
        self._scheduler = scheduler
        self._instances = instances
        self.calls = Counter[int]()

    def client(self, _service: str, _role: object = None) -> "ControlPlane":
        return self

    def describe_endpoint(self, EndpointName: str) -> dict[str, Any]:
        self._take()
        variant = {"VariantName": "all", "CurrentInstanceCount": self._instances, "CurrentWeight": 1.0}
        return {"EndpointArn": f"arn:{EndpointName}", "ProductionVariants": [variant]}

    def list_tags(self, ResourceArn: str, MaxResults: int) -> dict[str, Any]:
        self._take()
        return {"Tags": []}

    def _take(self) -> None:
        self.calls[int(self._scheduler.now)] += 1
        self._scheduler.sleep(CONTROL_CALL_S)


class MeteredTables:
    """A client of DynamoDB's twin: each call takes time, and its read units are counted."""

    def __init__(self, scheduler: Scheduler, database: DynamoDB) -> None:
        self._scheduler = scheduler
        self._database = database
        self.read_units = Counter[str]()
        self.calls = Counter[str]()
        # Sizes of rows, by identity; the rows are kept so that no other takes the identity.
        self._sizes: dict[int, tuple[dict[str, Any], int]] = {}

    def resource(self) -> SimpleNamespace:
        return SimpleNamespace(meta=SimpleNamespace(client=self))

    def __getattr__(self, operation: str) -> Callable[..., Any]:
        effect = getattr(self._database, operation)

        def send(**request: Any) -> Any:
            self._scheduler.sleep(CALL_S)
            answer = effect(**request)
            self._count(operation, request, answer)
            return answer

        return send

    def _count(self, operation: str, request: dict[str, Any], answer: dict[str, Any]) -> None:
        kind = "poll" if request.get("Key", {}).get("endpoint_id") == "_scheduler" else operation
        self.calls[kind] += 1
        if operation == "get_item":
            self.read_units[kind] += max(1, math.ceil(size_bytes(answer.get("Item", {})) / READ_UNIT_BYTES))
        elif operation == "batch_get_item":
            names = [key["image_id"] for wanted in request["RequestItems"].values() for key in wanted["Keys"]]
            rows = [self._database.tables["images"].item((name,)) or {} for name in names]
            self.read_units[kind] += sum(max(1, math.ceil(self._size(row) / READ_UNIT_BYTES)) for row in rows)
        elif operation in ("scan", "query"):
            self._count_pages(operation, request)

    def _count_pages(self, operation: str, request: dict[str, Any]) -> None:
        """Count what a scan reads: each row of the table, whether the filter lets it through or not."""
        table = self._database.tables[request["TableName"]]
        rows = table.items()
        if operation == "query":
            partition = request["ExpressionAttributeValues"][":hash_value"]
            rows = [row for row in rows if row[table.keys[0]] == partition]
        size = sum(self._size(row) for row in rows)
        self.read_units[operation] += max(1, math.ceil(size / READ_UNIT_BYTES))
        self._scheduler.sleep(size / 1e6 * SCAN_S_PER_MB + size // PAGE_BYTES * CALL_S)

    def _size(self, row: dict[str, Any]) -> int:
        known = self._sizes.get(id(row))
        if known is None:
            known = self._sizes[id(row)] = (row, size_bytes(row))
        return known[1]


@dataclass
class Tally:
    """A run in numbers per second."""

    seconds: float
    started: int
    control_calls: int
    most_control_calls: int
    scans: int
    polls: int
    read_units: float

    def per_s(self, count: float) -> float:
        return count / self.seconds

    @property
    def dollars_a_day(self) -> float:
        return self.read_units / self.seconds * SECONDS_PER_DAY * DOLLARS_PER_READ_UNIT


class FleetTurns:
    """A fleet whose workers accept and start images of 20 endpoints."""

    def __init__(
        self,
        workers: int = 100,
        endpoints: int = 20,
        instances: int = 100_000,
        look_ahead: int = 500,
        property_bytes: int = 0,
        seed: int = 1,
    ) -> None:
        self.scheduler = Scheduler(seed)
        self._rng = random.Random(seed)
        database = DynamoDB(worker_tables(), lambda: self.scheduler.now, self._rng, page_items=10**9)
        self.control_plane = ControlPlane(self.scheduler, instances)
        self.tables = MeteredTables(self.scheduler, database)
        self._endpoints = [f"endpoint-{number:02}" for number in range(endpoints)]
        self._properties = [{"note": "x" * property_bytes}] if property_bytes else []
        self._look_ahead = look_ahead
        self._serial = 0
        self.started = 0
        self._workers = [_Worker(self, f"worker-{number}") for number in range(workers)]

    def request(self) -> ImageRequest:
        """Return the next request of an endless queue."""
        self._serial += 1
        message = {
            "jobId": f"job-{self._serial:08}",
            "imageUrls": [f"s3://images/2026/11/28/strip-{self._serial:08}/scene.ntf"],
            "imageProcessor": {"name": self._endpoints[self._serial % len(self._endpoints)], "type": "SM_ENDPOINT"},
            "outputs": [{"type": "S3", "bucket": "results", "prefix": "features"}],
            "featureProperties": self._properties,
        }
        return ImageRequest.from_external_message(message)

    def run(self, seconds: float, region_ends_per_s: float = 0.0, is_supplied: bool = True) -> Tally:
        """Let the fleet work, and count from then on."""
        for worker in self._workers:
            worker.start(self._look_ahead if is_supplied else 0)
        if region_ends_per_s:
            self.scheduler.at(0.0, lambda: self._end_region(region_ends_per_s))
        self.scheduler.run(self.scheduler.now + seconds)
        calls, units = self.tables.calls, self.tables.read_units
        return Tally(
            seconds,
            self.started,
            self.control_plane.calls.total(),
            max(self.control_plane.calls.values(), default=0),
            calls["scan"],
            calls["poll"],
            units["scan"] + units["poll"] + units["batch_get_item"] + units["query"],
        )

    def fill(self, waiting: int, running: int) -> None:
        """Put images into the tables that wait, or run, before anything is counted."""
        someone = self._workers[0]

        def put() -> None:
            for _ in range(running):
                job = someone.accept(self.request(), regions=1000)
                someone.plan(job, regions=1000)
            for _ in range(waiting):
                someone.accept(self.request(), regions=4)
            self.scheduler.stop()

        someone.process.spawn(put)
        self.scheduler.run(math.inf)
        self.tables.calls.clear()
        self.tables.read_units.clear()
        self.control_plane.calls.clear()

    def _end_region(self, per_s: float) -> None:
        worker = self._rng.choice(self._workers)
        worker.process.spawn(worker.images.record_room)
        self.scheduler.at(self._rng.expovariate(per_s), lambda: self._end_region(per_s))

    def close(self) -> None:
        self.scheduler.close()


class _Worker:
    def __init__(self, fleet: FleetTurns, name: str) -> None:
        self._fleet = fleet
        scheduler = fleet.scheduler
        self.process = Process(scheduler, name)
        dynamodb = fleet.tables.resource()
        now, sleep, rng = self.process.now, scheduler.sleep, scheduler.rng
        self.jobs = JobTable("images", dynamodb, now, sleep=sleep, rng=rng)
        self.outstanding_jobs = OutstandingJobsTable("outstanding", self.jobs, dynamodb, now, sleep, rng)
        self.lock = SchedulerLock(self.outstanding_jobs, self.jobs, now)
        clients: Any = fleet.control_plane
        metrics: Any = _NoMetrics()
        facts = SharedFacts("outstanding", dynamodb, now=now)
        self.capacities = EndpointCapacityEstimator(CONFIG, clients, metrics, facts, now, rng, sleep)
        due: Any = Event(scheduler)
        self.images = EndpointLoadImageScheduler(
            self.capacities, self.lock, CONFIG, name, metrics, now, sleep, rng, due
        )

    def start(self, look_ahead: int) -> None:
        for work in (self._start_images, self._refresh):
            self.process.spawn(work)
        if look_ahead:
            self.process.spawn(lambda: self._take_requests(look_ahead))

    def accept(self, request: ImageRequest, regions: int) -> OpenJob:
        """Accept a request as the worker does, without the header of its image."""
        self.capacities.choose_variant(request)
        self.outstanding_jobs.accept(request)
        job = self.outstanding_jobs.find(request)
        assert job is not None
        self.outstanding_jobs.record_region_count(job, regions)
        return job

    def plan(self, job: OpenJob, regions: int) -> None:
        item = self.jobs.get_image_request(job.image_id)
        item.region_count = regions
        self.jobs.fix_plan(item)
        self.outstanding_jobs.finish_planning(job)

    def _take_requests(self, look_ahead: int) -> None:
        while True:
            if self.lock.state().waiting < look_ahead:
                self._fleet.scheduler.sleep(HEADER_S)
                self.accept(self._fleet.request(), regions=4)
                self.images.due.set()
            else:
                self._fleet.scheduler.sleep(2.0)

    def _start_images(self) -> None:
        while True:
            for image in self.images.receive():
                self._fleet.started += 1
                self.process.spawn(lambda image=image: self._do(image))

    def _do(self, image: ScheduledImage) -> None:
        self._fleet.scheduler.sleep(PLANNING_S)
        self.plan(image.job, regions=4)
        self._fleet.scheduler.sleep(FIRST_REGION_S)
        self.images.record_ended(image)
        # Ended at once: its endpoint has room for all, so only the table's size depends on it.
        item = self.jobs.cancel(image.job.image_id)
        if item is not None:
            self.outstanding_jobs.close(item)

    def _refresh(self) -> None:
        while True:
            self._fleet.scheduler.sleep(self._fleet.scheduler.rng.uniform(*REFRESH_EVERY_S))
            self.capacities.refresh()


def starts(seconds: float, workers: int = 100, endpoints: int = 20) -> Tally:
    """Return how many images a fleet starts that begins cold, with an endless queue and room for everything."""
    fleet = FleetTurns(workers, endpoints)
    try:
        return fleet.run(seconds)
    finally:
        fleet.close()


def waiting(
    seconds: float, region_ends_per_s: float, property_bytes: int = 0, workers: int = 100, images: int = 500
) -> Tally:
    """Return what a fleet reads while images wait for full endpoints, and 20 run."""
    fleet = FleetTurns(workers, instances=20, property_bytes=property_bytes)
    try:
        fleet.fill(images, 20)
        return fleet.run(seconds, region_ends_per_s, is_supplied=False)
    finally:
        fleet.close()


def main() -> None:
    """Print how fast images start, and what it costs that they wait."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(50))
    cold = starts(60.0)
    print("100 workers, 20 endpoints that nobody has described, 0.1 s for each call of the control plane, 60 s:")
    print(f"  images started per second       {cold.per_s(cold.started):6.1f}")
    print(f"  control-plane calls per second  {cold.per_s(cold.control_calls):6.1f}, {cold.most_control_calls} at most")
    print("500 images wait for full endpoints, 20 run, 60 s:")
    print("  property bytes  region ends/s  scans/s  reads of the row/s  read units/s  dollars a day")
    for property_bytes in (0, 16_000):
        for region_ends_per_s in (0, 5, 40):
            tally = waiting(60.0, region_ends_per_s, property_bytes)
            rates = (tally.per_s(tally.scans), tally.per_s(tally.polls), tally.per_s(tally.read_units))
            print(
                f"  {property_bytes:14,}  {region_ends_per_s:13}  {rates[0]:7.1f}  {rates[1]:18.0f}"
                f"  {rates[2]:12.0f}  {tally.dollars_a_day:13.2f}"
            )


if __name__ == "__main__":
    main()
