"""The composition root: constructs the tables, queues and handlers of a worker."""

import dataclasses

from aws.osml.model_runner.common.endpoint_utils import EndpointUtils
from aws.osml.model_runner.config import ServiceConfig
from aws.osml.model_runner.database.endpoint_facts import SharedFacts
from aws.osml.model_runner.database.endpoint_statistics_table import EndpointStatisticsTable
from aws.osml.model_runner.database.job_table import JobTable
from aws.osml.model_runner.database.outstanding_jobs_table import OutstandingJobsTable
from aws.osml.model_runner.database.region_request_table import RegionRequestTable
from aws.osml.model_runner.image_request_handler import ImageRequestHandler
from aws.osml.model_runner.jobs.completion import ImageCompletion
from aws.osml.model_runner.jobs.worker_context import WorkerContext
from aws.osml.model_runner.queue.request_queue import RequestQueue
from aws.osml.model_runner.region_request_handler import RegionRequestHandler
from aws.osml.model_runner.scheduler.endpoint_capacity import EndpointCapacityEstimator
from aws.osml.model_runner.status.image_status_monitor import ImageStatusMonitor
from aws.osml.model_runner.status.region_status_monitor import RegionStatusMonitor
from aws.osml.model_runner.tiling.strategy import TilingStrategy

from .messages import DeadLetters
from .sweeper import JobSweeper


@dataclasses.dataclass(frozen=True)
class WorkerParts:
    """The parts that the daemon runs. No part receives this object: each has its own arguments."""

    job_table: JobTable
    region_request_table: RegionRequestTable
    endpoint_statistics_table: EndpointStatisticsTable | None
    outstanding_jobs: OutstandingJobsTable
    image_request_queue: RequestQueue
    region_request_queue: RequestQueue
    image_status_monitor: ImageStatusMonitor
    region_status_monitor: RegionStatusMonitor
    endpoint_utils: EndpointUtils
    endpoint_capacities: EndpointCapacityEstimator
    image_dead_letters: DeadLetters
    region_request_handler: RegionRequestHandler
    image_request_handler: ImageRequestHandler
    sweeper: JobSweeper


def wired(config: ServiceConfig, strategy: TilingStrategy, context: WorkerContext) -> WorkerParts:
    """Return the parts of one worker process."""
    clients, now, sleep, rng = context.clients, context.now, context.sleep, context.rng
    dynamodb, sqs = clients.dynamodb_resource(), clients.client("sqs")

    job_table = JobTable(config.job_table, dynamodb, now, config.row_life_s, sleep, rng)
    region_table = RegionRequestTable(config.region_request_table, dynamodb, now, sleep, rng, config.row_life_s)
    statistics = None
    if config.endpoint_statistics_table:
        statistics = EndpointStatisticsTable(config.endpoint_statistics_table, dynamodb, now, sleep, rng)
    outstanding_jobs = OutstandingJobsTable(config.outstanding_jobs_table, job_table, dynamodb, now, sleep, rng)

    image_queue = RequestQueue(config.image_queue, config.queue_wait_s, client=sqs, sleep=sleep)
    region_queue = RequestQueue(config.region_queue, config.queue_wait_s, client=sqs, sleep=sleep)
    image_monitor = ImageStatusMonitor(config.image_status_topic)
    region_monitor = RegionStatusMonitor(config.region_status_topic)

    facts = SharedFacts(config.outstanding_jobs_table, dynamodb, now)
    capacities = EndpointCapacityEstimator(config, clients, context.metrics, facts, now, rng, sleep)
    context.endpoint_body_bytes = capacities.max_body_bytes
    endpoint_utils = EndpointUtils(
        config.throttling_scale_factor,
        config.workers_per_cpu,
        clients,
        describe=lambda name, role: capacities.describe("endpoint", name, role or ""),
    )

    dead_letters = DeadLetters(image_queue, config.image_dlq)
    completion = ImageCompletion(
        job_table, outstanding_jobs.close, image_monitor, strategy, context, dead_letters.put_image
    )
    regions = RegionRequestHandler(
        region_table,
        job_table,
        region_monitor,
        statistics,
        strategy,
        endpoint_utils,
        config,
        context,
        publish_progress=completion.publish_progress,
        on_ended=completion.region_ended,
        endpoint_calls=capacities.certain_calls,
    )
    images = ImageRequestHandler(
        job_table,
        image_monitor,
        statistics,
        strategy,
        region_queue,
        region_table,
        endpoint_utils,
        config,
        regions,
        outstanding_jobs,
        capacities,
        completion,
    )
    sweeper = JobSweeper(
        outstanding_jobs, job_table, region_table, region_queue, images, regions, config, context.metrics, now
    )
    return WorkerParts(
        job_table=job_table,
        region_request_table=region_table,
        endpoint_statistics_table=statistics,
        outstanding_jobs=outstanding_jobs,
        image_request_queue=image_queue,
        region_request_queue=region_queue,
        image_status_monitor=image_monitor,
        region_status_monitor=region_monitor,
        endpoint_utils=endpoint_utils,
        endpoint_capacities=capacities,
        image_dead_letters=dead_letters,
        region_request_handler=regions,
        image_request_handler=images,
        sweeper=sweeper,
    )
