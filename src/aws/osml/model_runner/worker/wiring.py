"""The composition root: constructs the tables, queues and handlers of a worker."""

import dataclasses
import os
from collections.abc import Callable
from functools import partial

from aws.osml.model_runner.aws.secret_values import SecretValues
from aws.osml.model_runner.common.endpoint_utils import EndpointUtils
from aws.osml.model_runner.common.job_rules import TILE_MARGIN_S
from aws.osml.model_runner.common.typing import ImageDimensions
from aws.osml.model_runner.config import ServiceConfig
from aws.osml.model_runner.database.blob_store import WorkBucket
from aws.osml.model_runner.database.endpoint_facts import EndpointCallers, SharedFacts
from aws.osml.model_runner.database.endpoint_statistics_table import EndpointStatisticsTable
from aws.osml.model_runner.database.feature_table import FeatureTable
from aws.osml.model_runner.database.job_table import JobTable
from aws.osml.model_runner.database.outstanding_jobs_table import OutstandingJobsTable
from aws.osml.model_runner.database.region_request_table import RegionRequestTable
from aws.osml.model_runner.image_request_handler import ImageParts, ImageRequestHandler
from aws.osml.model_runner.inference.model_credentials import ModelCredentials
from aws.osml.model_runner.jobs.completion import ImageCompletion
from aws.osml.model_runner.jobs.coverage import ImageCoverage
from aws.osml.model_runner.jobs.image_roi import lend_image, read_area
from aws.osml.model_runner.jobs.isolation import Isolation
from aws.osml.model_runner.jobs.merging import aggregation_memory
from aws.osml.model_runner.jobs.model_endpoints import ModelEndpoints
from aws.osml.model_runner.jobs.preflight import Preflight
from aws.osml.model_runner.jobs.region import RegionProcessor
from aws.osml.model_runner.jobs.skipping import TileSkipping
from aws.osml.model_runner.jobs.tile_reader import NewFeatureTable
from aws.osml.model_runner.pipeline.call_shares import CallShares
from aws.osml.model_runner.queue.request_queue import RequestQueue
from aws.osml.model_runner.region_request_handler import RegionRequestHandler
from aws.osml.model_runner.scheduler.endpoint_capacity import EndpointCapacityEstimator
from aws.osml.model_runner.status.image_status_monitor import ImageStatusMonitor
from aws.osml.model_runner.status.region_status_monitor import RegionStatusMonitor
from aws.osml.model_runner.tiling.strategy import TilingStrategy

from .messages import DeadLetters, Visibility
from .process import WorkerProcess
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
    model_endpoints: ModelEndpoints
    new_feature_table: NewFeatureTable
    image_dead_letters: DeadLetters
    region_request_handler: RegionRequestHandler
    image_parts: ImageParts
    image_request_handler: ImageRequestHandler
    sweeper: JobSweeper
    visibility: Visibility


def wired(config: ServiceConfig, strategy: TilingStrategy, process: WorkerProcess) -> WorkerParts:
    """Return the parts of one worker process."""
    clients, now, sleep, rng = process.clients, process.now, process.sleep, process.rng
    dynamodb, sqs = clients.dynamodb_resource(), clients.client("sqs")
    hurried_dynamodb = clients.dynamodb_resource(is_hurried=True)

    job_table = JobTable(config.job_table, dynamodb, now, config.row_life_s, sleep, rng)
    region_table = RegionRequestTable(config.region_request_table, dynamodb, now, sleep, rng, config.row_life_s)
    statistics = None
    if config.endpoint_statistics_table:
        statistics = EndpointStatisticsTable(config.endpoint_statistics_table, dynamodb, now, sleep, rng)
    outstanding_jobs = OutstandingJobsTable(config.outstanding_jobs_table, job_table, dynamodb, now, sleep, rng)
    blobs = WorkBucket(config.work_bucket, clients.client("s3")) if config.work_bucket else None

    def new_feature_table(
        tile_size: ImageDimensions, overlap: ImageDimensions, on_wait: Callable[[], None]
    ) -> FeatureTable:
        return FeatureTable(
            config.feature_table,
            tile_size,
            overlap,
            client=dynamodb,
            now=now,
            life_s=config.job_deadline_s + TILE_MARGIN_S,
            rng=rng,
            read_all=process.read_all,
            sleep=sleep,
            on_wait=on_wait,
            blobs=blobs,
        )

    image_queue = RequestQueue(config.image_queue, config.queue_wait_s, client=sqs, sleep=sleep)
    region_queue = RequestQueue(config.region_queue, config.queue_wait_s, client=sqs, sleep=sleep)
    dead_letters = DeadLetters(image_queue, config.image_dlq)
    image_monitor = ImageStatusMonitor(config.image_status_topic)
    region_monitor = RegionStatusMonitor(config.region_status_topic)

    facts = SharedFacts(config.outstanding_jobs_table, dynamodb, now=now)
    capacities = EndpointCapacityEstimator(config, clients, process.metrics, facts, now, rng, sleep)
    endpoint_utils = EndpointUtils(
        config.throttling_scale_factor,
        config.workers_per_cpu,
        clients,
        describe=lambda name, role: capacities.describe("endpoint", name, role or ""),
    )
    secrets = SecretValues(clients.client, os.environ, now)
    credentials = ModelCredentials(config.model_credentials, secrets)
    endpoints = ModelEndpoints(config, capacities.max_body_bytes, rng, process.new_detector, credentials)
    images_to_lend, areas_to_read = partial(lend_image, process.images), partial(read_area, process.images)

    completion = ImageCompletion(
        job_table,
        outstanding_jobs.close,
        image_monitor,
        strategy,
        dead_letters.put_image,
        config=config,
        owner=process.owner,
        leases=process.leases,
        metrics=process.metrics,
        memory=aggregation_memory(config, now, process.pause),
        threads=process.threads,
        make_sinks=process.make_sinks,
        coverage=ImageCoverage(images_to_lend, region_table.regions_of, strategy, process.elevation_model),
        new_feature_table=new_feature_table,
        hurried_dynamodb=hurried_dynamodb,
        stopping=process.stopping,
        now=now,
        rng=rng,
        note_progress=process.note_progress,
    )
    regions = RegionRequestHandler(
        region_table,
        job_table,
        region_monitor,
        statistics,
        strategy,
        endpoint_utils,
        config,
        completion=completion,
        new_processor=partial(
            RegionProcessor,
            strategy=strategy,
            lend_image=images_to_lend,
            pipeline=process.pipeline,
            endpoints=endpoints,
            new_feature_table=new_feature_table,
            metrics=process.metrics,
            make_encoder=process.make_encoder,
            elevation_model=process.elevation_model,
            max_parsed_bytes=config.max_parsed_answer_bytes,
            now=now,
            rng=rng,
            pause=process.pause,
            note_progress=process.note_progress,
        ),
        endpoints=endpoints,
        endpoint_calls=capacities.certain_calls,
        shares=CallShares(
            lambda: EndpointCallers(config.region_request_table, hurried_dynamodb, sleep, rng, now), process.owner, now
        ),
        isolation=Isolation(process.pause, process.claiming),
        leases=process.leases,
        metrics=process.metrics,
        hurried_dynamodb=hurried_dynamodb,
        owner=process.owner,
        stopping=process.stopping,
        now=now,
        rng=rng,
    )
    image_parts = ImageParts(
        outstanding_jobs=outstanding_jobs,
        endpoints=capacities,
        completion=completion,
        preflight=Preflight(
            config,
            endpoints,
            capacities.describe,
            clients.credentials,
            partial(clients.client, "sagemaker-runtime"),
            process.make_sinks,
            areas_to_read,
        ),
        lend_image=images_to_lend,
        skipping=TileSkipping(images_to_lend, areas_to_read, process.new_invalid_tiles),
        read_area=areas_to_read,
        leases=process.leases,
        metrics=process.metrics,
        make_writers=process.make_writers,
        owner=process.owner,
        now=now,
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
        image_parts,
    )
    sweeper = JobSweeper(
        outstanding_jobs, job_table, region_table, region_queue, images, regions, config, process.metrics, now
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
        model_endpoints=endpoints,
        new_feature_table=new_feature_table,
        image_dead_letters=dead_letters,
        region_request_handler=regions,
        image_parts=image_parts,
        image_request_handler=images,
        sweeper=sweeper,
        visibility=Visibility(process.leases, clients.hurried_sqs(), config.region_lease_s, now),
    )
