"""A world: its services, its workers that come and go, its jobs; run from a seed until nothing is left to do."""

import dataclasses
import functools
import itertools
import math
import sys
from collections import Counter
from contextlib import ExitStack
from typing import Any
from unittest.mock import patch

from botocore.exceptions import BotoCoreError, ClientError
from greenlet import getcurrent
from structlog.contextvars import get_contextvars

from aws.osml.model_runner import model_runner
from aws.osml.model_runner.config import ServiceConfig
from aws.osml.model_runner.database import feature_table
from aws.osml.model_runner.database.job_table import CANCELLED, JobTable
from aws.osml.model_runner.database.outstanding_jobs_table import OutstandingJobsTable
from aws.osml.model_runner.exceptions import JobNotFoundError, ModelRunnerError, TableError
from aws.osml.model_runner.jobs.cancel import JobCanceller
from aws.osml.model_runner.scheduler import image_scheduler
from aws.osml.model_runner.worker import consumer as queue_consumer

from .dynamodb import TABLE_NAMES, DynamoDB, Item, Write, worker_tables
from .faults import PROFILES, Faults, InjectedError
from .jobs import ENDPOINT, REGION_PX, Job, Model, random_jobs
from .ports import Clients, Port
from .scheduler import START_S, Process, Scheduler
from .services import EC2, S3, SNS, SQS, Chance, Kinesis, Queue, SageMaker, SageMakerRuntime
from .slots import Slots
from .worker import Worker

WORKERS = 3
TERMINAL = ("SUCCESS", "PARTIAL", "FAILED")

# Counters of an image's row.
_WORK = ("region_count", "region_success", "region_error", "tile_success", "tile_error")

_JANITOR_S = 10.0
# How long a world goes on, at most, when its work is done.
_AFTERMATH_S = 600.0
_PAGE_ITEMS = 5
_SCHEDULER_POLL_S = 60.0
# One feature lies in the row of its tile. Two need overflow rows, or the work bucket.
_INLINE_BYTES, _CHUNK_BYTES = 230, 100
_PARTITIONS = 4


@functools.cache
def worker_config(
    job_deadline_s: float, max_region_attempts: int, is_throttled: bool, has_work_bucket: bool
) -> ServiceConfig:
    url, topic = "https://sqs.us-west-2.amazonaws.com/123456789012", "arn:aws:sns:us-west-2:123456789012"
    return ServiceConfig.from_environment(
        {
            "AWS_DEFAULT_REGION": "us-west-2",
            **TABLE_NAMES,
            "IMAGE_QUEUE": f"{url}/image",
            "REGION_QUEUE": f"{url}/region",
            "REGION_DLQ": f"{url}/region-dlq",
            "IMAGE_STATUS_TOPIC": f"{topic}:image",
            "REGION_STATUS_TOPIC": f"{topic}:region",
            "WORKERS": "3",
            # Two sweeps of three only find that another worker is at it.
            "SWEEP_INTERVAL_S": "45",
            "REGION_SIZE": f"({REGION_PX}, {REGION_PX})",
            "JOB_DEADLINE_S": str(job_deadline_s),
            "JOB_WAIT_LIMIT_S": str(job_deadline_s),
            "MAX_REGION_ATTEMPTS": str(max_region_attempts),
            "SM_SELF_THROTTLING": str(is_throttled),
            # With two variants, a slot for each processor of one.
            "THROTTLING_SCALE_FACTOR": "0.5",
            "THROTTLING_RETRY_TIMEOUT": "30",
            **({"WORK_BUCKET": "work"} if has_work_bucket else {}),
        }
    )


@dataclasses.dataclass(frozen=True)
class StatusWrite:
    """How an image ended, in one of its generations; ``end_time`` distinguishes two writes of one status."""

    image_id: str
    generation: int
    status: str
    end_time: int


def _end_in(row: Item) -> StatusWrite:
    numbers = int(row.get("generation", 0)), int(row.get("end_time", 0))
    return StatusWrite(str(row.get("image_id")), numbers[0], str(row.get("image_status")), numbers[1])


class World:
    """Everything that is there, and a record of what the oracle asks about."""

    def __init__(self, seed: int, faults: Faults) -> None:
        self.faults = faults
        self.scheduler = Scheduler(seed)
        self.rng = self.scheduler.rng
        self.chance = Chance(self.scheduler, faults)
        is_throttled, has_work_bucket = self.chance.strikes("throttle"), bool(seed % 2)
        self.config = worker_config(faults.job_deadline_s, faults.max_region_attempts, is_throttled, has_work_bucket)
        specs = random_jobs(self.rng, faults.unreadable)
        if faults.poison:
            specs[0] = dataclasses.replace(specs[0], skipped=frozenset())
        self.jobs: dict[str, Job] = {job.url: job for job in specs}
        self.poisoned = specs[0] if faults.poison else None
        self.status_writes: list[StatusWrite] = []
        self.surprises: list[str] = []
        # Rules that observers of the tables found broken.
        self.broken_rules: set[str] = set()
        self.alarms: list[str] = []
        # To which generation an image must come, because its request was sent again after it had not ended well.
        self.generations_due: dict[str, int] = {}
        self.cancelled: set[tuple[str, int]] = set()
        # The jobs of which a row was spoilt.
        self.spoilt: set[str] = set()
        self.deaths = Counter[str]()
        self._make_services()
        self._workers: list[Worker] = []
        self._names = itertools.count()
        self._unsent = 0
        self._cancelling = 0
        self.finished_at: float | None = None

    def _make_services(self) -> None:
        scheduler, chance = self.scheduler, self.chance
        self.dynamodb = DynamoDB(
            worker_tables(),
            lambda: scheduler.now,
            self.rng,
            page_items=_PAGE_ITEMS,
            max_item_bytes=None,
            stale_probability=0.3,
            unprocessed_probability=lambda: self.faults.unprocessed if chance.is_active else 0.0,
        )
        processors = self.rng.randint(1, 3)
        self.slots = Slots(scheduler, most=processors, skew_s=self.faults.skew_s)
        self.dynamodb.observers += [self._note_image, self._note_start, self.slots.note]
        self.image_dlq = Queue("image-dlq", scheduler, chance)
        self.region_dlq = Queue("region-dlq", scheduler, chance)
        self.image_queue = Queue("image", scheduler, chance, 120, 20, self.image_dlq)
        self.region_queue = Queue("region", scheduler, chance, 90, 50, self.region_dlq)
        self.model = Model(self.rng, self.jobs, self.faults.has_bad_tiles)
        self.sns, self.s3, self.kinesis = SNS(scheduler), S3(), Kinesis(chance)
        self.runtime = SageMakerRuntime(chance, self.model.answer)
        self.twins: dict[str, Any] = {
            "dynamodb": self.dynamodb,
            "sqs": SQS([self.image_queue, self.image_dlq, self.region_queue, self.region_dlq]),
            "sns": self.sns,
            "s3": self.s3,
            "kinesis": self.kinesis,
            "sagemaker": SageMaker(),
            "ec2": EC2(processors),
            "sagemaker-runtime": self.runtime,
        }

    def is_poison(self, kind: str, job: Job, column: int = 0) -> bool:
        """Return True when a worker that does this now dies of it."""
        is_it = job is self.poisoned and kind == self.faults.poison and (kind != "tile" or column == job.columns[-1])
        if is_it:
            self.deaths[kind] += 1
        return is_it

    def run(self) -> None:
        """Let the jobs come, and the workers work, until all is done or the time is over."""
        for job in self.jobs.values():
            first_s = self.rng.uniform(0, 200)
            times = [first_s]
            if self.rng.random() < self.faults.is_resubmitted:
                times.append(first_s + self.rng.choice(self.faults.resubmission_s))
            if self.chance.strikes("cancel"):
                self.scheduler.at(first_s + self.rng.uniform(0, 400), functools.partial(self._cancel, job))
            if self.chance.strikes("spoilt_row"):
                self.scheduler.at(first_s + self.rng.uniform(0, 300), functools.partial(self._spoil, job))
            for delay_s in times:
                self._unsent += 1
                self.scheduler.at(delay_s, functools.partial(self._submit, job))
        self._look_after_workers()
        try:
            self.scheduler.run(START_S + self.faults.horizon_s)
        finally:
            self.scheduler.close()

    @property
    def is_dead(self) -> bool:
        """True when the endpoint never answers, so that deadlines end the jobs."""
        return self.faults.busy == 1.0 and self.faults.until_s == math.inf

    @property
    def is_done(self) -> bool:
        """True when no job is open, and no message waits."""
        open_jobs = [row for row in self.dynamodb.tables["outstanding"].items() if "request_payload" in row]
        return not (self._unsent or open_jobs or self.image_queue.messages or self.region_queue.messages)

    def durations(self) -> list[float]:
        """Return how long each job took from its acceptance, or from when it was begun again, to its end."""
        rows = self.dynamodb.tables["images"].items()
        return [float(row["end_time"] - row["start_time"]) / 1000 for row in rows if "end_time" in row]

    def _submit(self, job: Job) -> None:
        self._unsent -= 1
        row = self.dynamodb.tables["images"].item((job.image_id,))
        if row is not None and row.get("image_status") in ("PARTIAL", "FAILED"):
            self.generations_due[job.image_id] = int(row.get("generation", 0)) + 1
        self.image_queue.put(job.message())

    def _cancel(self, job: Job) -> None:
        """Have somebody cancel a job, and try again for as long as services refuse it."""
        person = Process(self.scheduler, "person")
        database = Clients(self.twins, Port(self.scheduler, self.chance, person), self.chance).dynamodb_resource()
        chance = {"sleep": self.scheduler.sleep, "rng": self.rng}
        images = JobTable("images", database, person.now, **chance)
        canceller = JobCanceller(images, OutstandingJobsTable("outstanding", images, database, person.now, **chance))

        def cancel() -> None:
            while True:
                try:
                    if not canceller.cancel(job.job_id).failed:
                        return
                except JobNotFoundError:
                    return
                except (ClientError, BotoCoreError, TableError):
                    pass
                self.scheduler.sleep(5.0)

        def noted() -> None:
            try:
                cancel()
            finally:
                self._cancelling -= 1

        self._cancelling += 1
        person.spawn(noted)

    def _spoil(self, job: Job) -> None:
        """Have a row of an open job hold what this version cannot read, as a newer one may write it."""
        open_job = {"endpoint_id": ENDPOINT, "job_id": job.job_id}
        image = self.dynamodb.tables["images"].item((job.image_id,))
        is_open = self.dynamodb.tables["outstanding"].item((ENDPOINT, job.job_id)) is not None
        if not is_open or image is None or image["image_status"] in TERMINAL:
            return
        self.spoilt.add(job.image_id)
        if self.rng.random() < 0.5:
            self.dynamodb.update_item(
                TableName="outstanding",
                Key=open_job,
                UpdateExpression="SET last_attempt = :never",
                ExpressionAttributeValues={":never": "never"},
            )
            return
        key = {"image_id": job.image_id}
        self.dynamodb.update_item(TableName="images", Key=key, UpdateExpression="REMOVE region_error")

    def _look_after_workers(self) -> None:
        """Do what a container service does: take workers away, and start others in their place."""
        if self.is_done:
            self.finished_at = self.finished_at or self.scheduler.now
            # Whoever still has something in hand slept through the end: what does he do when he wakes up?
            is_quiet = not self._cancelling and all(w.is_idle for w in self._workers if w.process.is_alive)
            if is_quiet or self.scheduler.now > self.finished_at + _AFTERMATH_S:
                self.scheduler.stop()
                return
        else:
            self.finished_at = None
            self._replace_workers()
        self.scheduler.at(_JANITOR_S, self._look_after_workers)

    def _replace_workers(self) -> None:
        for worker in self._workers:
            if not worker.process.is_alive:
                continue
            if not worker.is_stopping and self.chance.strikes("spot"):
                worker.terminate()
                self.scheduler.at(30.0, worker.process.kill)
            if self.chance.strikes("kill"):
                worker.process.kill()
        self._workers = [worker for worker in self._workers if worker.process.is_alive]
        for _ in range(WORKERS - sum(not worker.is_stopping for worker in self._workers)):
            skew_s = self.rng.uniform(-self.faults.skew_s, self.faults.skew_s)
            self._workers.append(Worker(self, f"worker-{next(self._names)}", skew_s))

    def _note_image(self, write: Write) -> None:
        if write.table != "images" or write.new is None:
            return
        self._deny(write.old or {}, write.new)
        old, end = _end_in(write.old or {}), _end_in(write.new)
        if end.status in TERMINAL and end != old:
            self.status_writes.append(end)
            if write.new.get("message") == CANCELLED:
                self.cancelled.add((end.image_id, end.generation))
            job = self._job_of(write.new)
            was_denied = job.result_key in self.s3.denied
            self.s3.denied.discard(job.result_key)
            may_come_again = end.status != "SUCCESS" and end.generation == 0
            if may_come_again and (self.chance.strikes("again") or was_denied):
                self._unsent += 1
                self.scheduler.at(self.rng.uniform(0, 60), functools.partial(self._submit, job))
        has_ended = old.status in TERMINAL and old.generation == end.generation
        if has_ended and any((write.old or {}).get(name) != write.new.get(name) for name in _WORK):
            self.broken_rules.add("an image was worked on after it had ended")

    def _deny(self, old: Item, new: Item) -> None:
        """Have a bucket refuse a result when somebody is about to write it for the first time."""
        is_first = not old.get("agg_fence") and new.get("agg_fence") and not new.get("generation")
        if is_first and self.chance.strikes("denied"):
            self.s3.denied.add(self._job_of(new).result_key)

    def _job_of(self, row: Item) -> Job:
        return next(job for job in self.jobs.values() if job.image_id == row["image_id"])

    def _note_start(self, write: Write) -> None:
        """Look at whether who starts an image has the turn to decide what starts."""
        if write.table != "outstanding" or write.new is None:
            return
        if write.new.get("num_attempts", 0) > (write.old or {}).get("num_attempts", 0):
            turn = self.dynamodb.tables["outstanding"].item(("_scheduler", "_")) or {}
            if str(turn.get("lease_owner")).rpartition("#")[0] != write.new.get("lease_owner"):
                self.broken_rules.add("an image was started by a worker whose scheduler lock was over")

    # Logs -----------------------------------------------------------------------------------------------------------

    def note_exception(self) -> None:
        """Remember an error that production code logged with its stack: only those of services and rules may happen."""
        error = sys.exc_info()[1]
        is_foreseen = isinstance(error, ModelRunnerError | ClientError | BotoCoreError | InjectedError)
        if not is_foreseen or "ValidationException" in str(error):
            self.surprises.append(f"{type(error).__name__}: {error}")


class _QuietLogger:
    """A logger without output that records unexpected errors in the world."""

    def __init__(self, is_loud: bool) -> None:
        self._is_loud = is_loud
        self.world: World | None = None

    def debug(self, event: str, **fields: Any) -> None: ...

    def info(self, event: str, **fields: Any) -> None:
        if self._is_loud:
            self._print(event, fields)

    warning = error = info

    def critical(self, event: str, **fields: Any) -> None:
        if self.world is not None:
            self.world.alarms.append(event)
        self.info(event, **fields)

    def exception(self, event: str, **fields: Any) -> None:
        if self.world is not None:
            self.world.note_exception()
        self.info(event, **fields, problem=repr(sys.exc_info()[1]))

    def _print(self, event: str, fields: dict[str, Any]) -> None:
        process = getattr(getcurrent(), "process", None)
        at_s = self.world.scheduler.now - START_S if self.world is not None else 0.0
        texts = (f"{name}={value}" for name, value in (get_contextvars() | fields).items())
        print(f"{at_s:9.2f} {process.name if process else '-':10} {event}", *texts)


class Laboratory:
    """Where worlds are run: production's loggers are hushed there, and tiles are stored in small pieces."""

    def __init__(self, is_loud: bool = False) -> None:
        self._logger = _QuietLogger(is_loud)
        self._patches = ExitStack()

    def __enter__(self) -> "Laboratory":
        for name, module in list(sys.modules.items()):
            if name.startswith("aws.osml.model_runner") and hasattr(module, "logger"):
                self._patches.enter_context(patch.object(module, "logger", self._logger))
        for thing, name, value in (
            (feature_table, "MAX_INLINE_BYTES", _INLINE_BYTES),
            (feature_table, "MAX_CHUNK_BYTES", _CHUNK_BYTES),
            (feature_table.FeatureTable, "hash_salt", _PARTITIONS),
            (queue_consumer, "ThreadPoolExecutor", lambda *_, **__: None),
            # Most of what a world does would else be to ask whether an image waits.
            (image_scheduler, "_POLL_S", _SCHEDULER_POLL_S),
            (image_scheduler, "_IDLE_POLL_S", _SCHEDULER_POLL_S),
            (model_runner, "_REFRESH_EVERY_S", _SCHEDULER_POLL_S),
        ):
            self._patches.enter_context(patch.object(thing, name, value))
        return self

    def __exit__(self, *_: object) -> None:
        self._patches.close()

    def run(self, seed: int, faults: Faults) -> World:
        """Run a world from its seed, and return it as it then stands."""
        world = self._logger.world = World(seed, faults)
        world.run()
        return world


def run_world(seed: int, profile: str, is_loud: bool = False) -> World:
    """Run one world of a profile by itself."""
    with Laboratory(is_loud) as laboratory:
        return laboratory.run(seed, PROFILES[profile])
