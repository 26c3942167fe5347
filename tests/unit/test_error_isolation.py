"""One item's error is that item's: no loop over jobs, rows, regions, messages or leases ends by it."""

import argparse
import json
import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import StringIO
from types import SimpleNamespace
from typing import Any

import pytest
import structlog

from aws.osml.model_runner.api import parse_image_request_message
from aws.osml.model_runner.cli import merge_command
from aws.osml.model_runner.config import ServiceConfig
from aws.osml.model_runner.database import JobTable, OpenJob, OutstandingJobsTable, RegionRequestItem
from aws.osml.model_runner.database.scheduler_lock import SchedulerLock
from aws.osml.model_runner.exceptions import QueueError
from aws.osml.model_runner.jobs.cancel import JobCanceller
from aws.osml.model_runner.jobs.leases import Lease, LeaseKeeper
from aws.osml.model_runner.jobs.redrive import JobRedriver, redrive_dead_letters
from aws.osml.model_runner.local.stack import LocalStack
from aws.osml.model_runner.queue.request_queue import QueueMessage
from aws.osml.model_runner.scheduler import load as load_module
from aws.osml.model_runner.scheduler.image_scheduler import FIFOImageScheduler
from aws.osml.model_runner.telemetry.metrics import MetricsRecorder
from aws.osml.model_runner.worker.consumer import QueueConsumer
from aws.osml.model_runner.worker.messages import ImageMessages
from aws.osml.model_runner.worker.sweeper import JobSweeper
from aws_faults import client_error
from simulation.dynamodb import TABLE_NAMES, DynamoDB, worker_tables

ERRORS = [RuntimeError("a defect"), MemoryError("too much"), client_error("ValidationException"), ValueError("odd")]
NAMES = ["a", "b", "c"]

CONFIG = ServiceConfig.from_environment(
    {
        "AWS_DEFAULT_REGION": "us-west-2",
        **TABLE_NAMES,
        "IMAGE_QUEUE": "https://sqs.us-west-2.amazonaws.com/123456789012/images",
        "REGION_QUEUE": "https://sqs.us-west-2.amazonaws.com/123456789012/regions",
        "WORKERS": "1",
        "WORKERS_PER_CPU": "1",
    }
)


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    with structlog.testing.capture_logs():
        yield


def failing_at_a(error: Exception, call: Callable[..., Any] | None = None) -> Callable[..., Any]:
    """Return ``call``, which raises where any argument is about the first item."""

    def failing(*given: Any, **named: Any) -> Any:
        if any(is_about_a(value) for value in (*given, *named.values())):
            raise error
        return call(*given, **named) if call is not None else None

    return failing


def is_about_a(value: Any) -> bool:
    name = next((getattr(value, field) for field in ("region_id", "image_id", "body") if hasattr(value, field)), value)
    if isinstance(name, dict):
        name = name.get("image_id")
    return isinstance(name, str) and (name == "a" or name.endswith("/a.tif"))


class Tables:
    """The tables of jobs, with an open job for each name, or one job of as many images."""

    def __init__(self, has_one_job: bool = False) -> None:
        dynamodb = DynamoDB(worker_tables(), time.time, random.Random(1)).resource()
        self.jobs = JobTable(TABLE_NAMES["JOB_TABLE"], dynamodb)
        self.outstanding_jobs = OutstandingJobsTable(TABLE_NAMES["OUTSTANDING_JOBS_TABLE"], self.jobs, dynamodb)
        urls = [f"s3://images/{name}.tif" for name in NAMES]
        jobs = {"job": urls} if has_one_job else {name: [url] for name, url in zip(NAMES, urls, strict=True)}
        for job_id, image_urls in jobs.items():
            message = {
                "jobId": job_id,
                "imageUrls": image_urls,
                "imageProcessor": {"name": "ships", "type": "SM_ENDPOINT"},
                "outputs": [{"type": "S3", "bucket": "results", "prefix": "p"}],
            }
            for request in parse_image_request_message(json.dumps(message)):
                self.outstanding_jobs.accept(request)

    def cancel_all(self) -> None:
        for job in list(self.outstanding_jobs.open_jobs()):
            self.jobs.cancel(job.image_id)


def images(*rows: Any) -> list[str]:
    return sorted(name for name in NAMES for row in rows if str(row).endswith(f"/{name}.tif"))


def sweeper_of(tables: Tables, **parts: Any) -> JobSweeper:
    completion = SimpleNamespace(close=lambda item: tables.outstanding_jobs.close(item) or True)
    handler = SimpleNamespace(parts=SimpleNamespace(completion=completion))
    parts = {"region_table": None, "regions": None} | parts
    return JobSweeper(
        tables.outstanding_jobs,
        tables.jobs,
        parts["region_table"],
        region_queue=None,  # type: ignore[arg-type]
        images=handler,  # type: ignore[arg-type]
        regions=parts["regions"],
        config=CONFIG,
        metrics=MetricsRecorder(StringIO()),
    )


def sweep_jobs(error: Exception, patch: pytest.MonkeyPatch) -> list[str]:
    tables = Tables()
    tables.cancel_all()
    patch.setattr(tables.jobs, "find", failing_at_a(error, tables.jobs.find))
    sweeper_of(tables).sweep()
    left = images(*(job.image_id for job in tables.outstanding_jobs.open_jobs()))
    return [name for name in NAMES if name not in left]


def sweep_regions(error: Exception, patch: pytest.MonkeyPatch) -> list[str]:
    tables, abandoned = Tables(), []
    regions = [RegionRequestItem(name, "image", region_bounds=[[0, 0], [1, 1]], tile_size=[1, 1]) for name in NAMES]
    abandon = failing_at_a(error, lambda region: abandoned.append(region.region_id))
    sweeper = sweeper_of(
        tables,
        region_table=SimpleNamespace(regions_of=lambda _image: regions),
        regions=SimpleNamespace(fail_region_request=abandon),
    )
    job = next(iter(tables.outstanding_jobs.open_jobs()))
    item = tables.jobs.get_image_request(job.image_id)
    with pytest.raises(type(error)):
        sweeper._sweep_regions(item, 0.0, is_late=True)
    return abandoned


def read_rows(error: Exception, patch: pytest.MonkeyPatch) -> list[str]:
    tables = Tables()
    patch.setattr(OpenJob, "from_row", failing_at_a(error, OpenJob.from_row))
    return images(*(job.image_id for job in tables.outstanding_jobs.open_jobs()))


def sort_open_jobs(error: Exception, patch: pytest.MonkeyPatch) -> list[str]:
    return started(Tables(), lambda: patch.setattr(load_module, "_waiting", failing_at_a(error, WAITING)))


WAITING = load_module._waiting


def start_images(error: Exception, patch: pytest.MonkeyPatch) -> list[str]:
    start = SchedulerLock.start
    return started(Tables(), lambda: patch.setattr(SchedulerLock, "start", failing_at_a(error, start)))


def started(tables: Tables, spoil: Callable[[], None]) -> list[str]:
    """Return what a scheduler starts within a few turns."""
    for job in tables.outstanding_jobs.open_jobs():
        tables.outstanding_jobs.record_region_count(job, 1)
    spoil()
    metrics, turns = MetricsRecorder(StringIO()), SchedulerLock(tables.outstanding_jobs, tables.jobs)
    scheduler = FIFOImageScheduler(turns, CONFIG, "w", metrics, pause=lambda _: None, rng=random.Random(1))
    found = []
    for _ in range(2 * len(NAMES)):
        scheduler.due.set()
        found += [image.job.image_id for image in scheduler.receive()]
    return images(*found)


def cancel_images(error: Exception, patch: pytest.MonkeyPatch) -> list[str]:
    tables = Tables(has_one_job=True)
    patch.setattr(tables.jobs, "cancel", failing_at_a(error, tables.jobs.cancel))
    report = JobCanceller(tables.jobs, tables.outstanding_jobs).cancel("job")
    assert images(*report.failed) == ["a"]
    return images(*report.cancelled)


def redrive_images(error: Exception, patch: pytest.MonkeyPatch) -> list[str]:
    tables = Tables(has_one_job=True)
    tables.cancel_all()
    sweeper_of(tables).sweep()
    for item in tables.jobs.images_of("job"):
        tables.jobs.clear_outbox(item.image_id)
    patch.setattr(tables.outstanding_jobs, "reopen", failing_at_a(error, tables.outstanding_jobs.reopen))
    report = JobRedriver(tables.jobs, tables.outstanding_jobs).redrive("job")
    assert images(*report.left) == ["a"]
    return images(*report.begun)


def move_dead_letters(error: Exception, _patch: pytest.MonkeyPatch) -> list[str]:
    moved: list[str] = []
    letters = [[QueueMessage(name, name, 1)] for name in NAMES]
    source = SimpleNamespace(
        message_count=lambda: len(NAMES),
        receive=lambda: letters.pop(0) if letters else [],
        finish_request=moved.append,
    )
    target = SimpleNamespace(send_body=failing_at_a(error))
    with pytest.raises(QueueError, match="2 messages were moved and 1 were not"):
        redrive_dead_letters(source, target)  # type: ignore[arg-type]
    return moved


def merge_images(error: Exception, patch: pytest.MonkeyPatch) -> list[str]:
    merged: list[str] = []

    @contextmanager
    def merge(job: str, _options: object) -> Iterator[SimpleNamespace]:
        if job == "a":
            raise error
        merged.append(job)
        yield SimpleNamespace(kept=1, stored=1)

    merger = SimpleNamespace(images_of=lambda _job: NAMES, merged=merge)
    patch.setattr(merge_command, "_merger", lambda _config: merger)
    patch.setattr(merge_command, "_write", lambda *_: "there")
    for name in ("AWS_REGION", "JOB_TABLE", "FEATURE_TABLE"):
        patch.setenv(name, "any")
    parser = argparse.ArgumentParser()
    merge_command.add_parser(parser.add_subparsers())
    assert merge_command.run(parser.parse_args(["merge", "job"])) == 1
    return merged


def begin_images_of_a_request(error: Exception, patch: pytest.MonkeyPatch) -> list[str]:
    begun: list[str] = []
    plan = failing_at_a(error, lambda job: begun.append(job.image_id))
    handler = SimpleNamespace(plan=plan, process_first=lambda _region: None)
    queue = SimpleNamespace(finish_request=lambda _handle: None)
    visibility = SimpleNamespace(extended=contextmanager(lambda *_: iter([None])))
    messages = ImageMessages(queue, None, handler, visibility)  # type: ignore[arg-type]
    jobs = [SimpleNamespace(image_id=name) for name in NAMES]
    patch.setattr(messages, "_accept", lambda _message: jobs)
    messages.handle(QueueMessage("handle", "{}", 1))
    return begun


class Source:
    """A queue with a message for each name."""

    def __init__(self, on_reset: Callable[..., None] = lambda *_: None) -> None:
        self.letters = [QueueMessage(name, name, 1) for name in NAMES]
        self.reset_request = on_reset
        self.is_empty = threading.Event()

    def receive(self) -> list[QueueMessage]:
        if self.letters:
            return [self.letters.pop(0)]
        self.is_empty.set()
        return []


def consumed(
    source: Source, handle: Callable[[Any], None], on_poll: Callable[[str], None] = lambda _state: None
) -> list[str]:
    done: list[str] = []

    def work(message: QueueMessage, _make_room: Callable[[], None]) -> None:
        handle(message)
        done.append(message.body)

    stopping = threading.Event()
    consumer: QueueConsumer[Any] = QueueConsumer("test", source, work, 1, stopping, on_poll)
    consumer.start()
    assert source.is_empty.wait(20)
    stopping.set()
    assert consumer.join(20)
    return done


def handle_messages(error: Exception, _patch: pytest.MonkeyPatch) -> list[str]:
    return consumed(Source(), failing_at_a(error))


def give_messages_back(error: Exception, _patch: pytest.MonkeyPatch) -> list[str]:
    return consumed(Source(on_reset=failing_at_a(error)), failing_at_a(error))


def poll(error: Exception, patch: pytest.MonkeyPatch) -> list[str]:
    patch.setattr("aws.osml.model_runner.worker.consumer._ERROR_PAUSE_S", 0.0)
    polls = iter("abcdef")
    return consumed(Source(), lambda _message: None, on_poll=lambda _state: failing_at_a(error)(next(polls, "")))


def renew_leases(error: Exception, _patch: pytest.MonkeyPatch) -> list[str]:
    renewed: set[str] = set()
    is_renewed = threading.Event()

    def lease_of(name: str) -> Lease:
        def renew() -> bool:
            if name == "a":
                raise error
            renewed.add(name)
            if len(renewed) == 2:
                is_renewed.set()
            return True

        return Lease(name, renew, on_lost=lambda: None, last_progress=time.time)

    keeper = LeaseKeeper(0.005, 600.0)
    keeper.start()
    a, b, c = map(lease_of, NAMES)
    with keeper.keep(a), keeper.keep(b), keeper.keep(c):
        assert is_renewed.wait(20)
    keeper.close()
    return sorted(renewed)


def stop_a_local_stack(error: Exception, tmp_path: Any) -> list[str]:
    stack, stopped = LocalStack(tmp_path, {}), []
    for name in reversed(NAMES):
        stack._running.callback(stopped.append, name)
    stack._children = [SimpleNamespace(terminate=failing_at_a(error).__get__("a"))]  # type: ignore[list-item]
    with pytest.raises(type(error)):
        stack.__exit__(None, None, None)
    return stopped[1:]


LOOPS = [
    sweep_jobs,
    sweep_regions,
    read_rows,
    sort_open_jobs,
    start_images,
    cancel_images,
    redrive_images,
    move_dead_letters,
    merge_images,
    begin_images_of_a_request,
    handle_messages,
    give_messages_back,
    poll,
    renew_leases,
    stop_a_local_stack,
]


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("loop", LOOPS, ids=lambda loop: loop.__name__)
def test_loop_continues_after_failed_item(loop, error, monkeypatch, tmp_path):
    assert loop(error, tmp_path if loop is stop_a_local_stack else monkeypatch) == ["b", "c"]
