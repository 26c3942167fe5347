"""The sweeper's next step for an open job, as a table."""

from typing import Any

import pytest

from aws.osml.model_runner.api.image_request import ImageRequest
from aws.osml.model_runner.config import ServiceConfig
from aws.osml.model_runner.database.job_table import JobItem
from aws.osml.model_runner.database.outstanding_jobs_table import OpenJob
from aws.osml.model_runner.worker.sweeper import NextStep, next_step

LEASE_S = 60.0
DEADLINE_S = 86_400.0
WAIT_LIMIT_S = 7 * DEADLINE_S
START_S = 1_700_000_000.0

CONFIG = ServiceConfig.from_environment(
    {
        "AWS_DEFAULT_REGION": "us-west-2",
        "JOB_TABLE": "jobs",
        "REGION_REQUEST_TABLE": "regions",
        "FEATURE_TABLE": "features",
        "OUTSTANDING_JOBS_TABLE": "outstanding",
        "IMAGE_QUEUE": "https://sqs.us-west-2.amazonaws.com/123456789012/images",
        "REGION_QUEUE": "https://sqs.us-west-2.amazonaws.com/123456789012/regions",
        "WORKERS": "1",
        "WORKERS_PER_CPU": "1",
        "REGION_LEASE_S": str(LEASE_S),
        "JOB_DEADLINE_S": str(DEADLINE_S),
        "JOB_WAIT_LIMIT_S": str(WAIT_LIMIT_S),
    }
)


def job(**changes: Any) -> OpenJob:
    values = {
        "endpoint_id": "ships",
        "job_key": "job",
        "image_id": "job:s3://b/k",
        "request_time": START_S,
        "num_attempts": 1,
        "last_attempt": START_S,
        "planned_time": None,
        "swept_time": None,
        "request": ImageRequest(job_id="job", image_id="job:s3://b/k"),
    }
    return OpenJob(**(values | changes))


def item(**changes: Any) -> JobItem:
    values = {"image_status": "IN_PROGRESS", "region_success": 0, "region_error": 0, "region_count": 4}
    return JobItem(image_id="job:s3://b/k", **(values | changes))


UNPLANNED = {"image_status": "ACCEPTED", "region_count": None}
PLANNED = {"planned_time": START_S}
WAITING = {"num_attempts": 0, "last_attempt": 0}
AFTER_A_WAIT = {"first_attempt": START_S + 6 * DEADLINE_S}


@pytest.mark.parametrize(
    ("job_changes", "item_changes", "after_s", "step"),
    [
        # An end that was not published.
        ({}, {"image_status": "SUCCESS"}, 0, NextStep.CLOSE),
        ({}, {"image_status": "PARTIAL"}, 0, NextStep.CLOSE),
        (PLANNED, {"image_status": "FAILED"}, 2 * DEADLINE_S, NextStep.CLOSE),
        # A plan that nobody made, or that was not made to its end: the scheduler starts it.
        ({"num_attempts": 0, "last_attempt": 0}, UNPLANNED, 0, NextStep.NOTHING),
        ({"num_attempts": 1}, UNPLANNED, LEASE_S, NextStep.NOTHING),
        ({"num_attempts": 1}, UNPLANNED, LEASE_S + 1, NextStep.NOTHING),
        ({"num_attempts": 1}, {}, LEASE_S + 1, NextStep.NOTHING),
        ({"num_attempts": 1}, {"region_success": 4}, LEASE_S, NextStep.NOTHING),
        # A plan that kills its workers.
        ({"num_attempts": 5}, UNPLANNED, 3600, NextStep.NOTHING),
        ({"num_attempts": 6}, UNPLANNED, 3599, NextStep.NOTHING),
        ({"num_attempts": 6}, UNPLANNED, 3600, NextStep.GIVE_UP_PLANNING),
        ({"num_attempts": 6, "last_attempt": START_S + 3600}, UNPLANNED, 3650, NextStep.NOTHING),
        ({"num_attempts": 6}, {}, 3600, NextStep.GIVE_UP_PLANNING),
        # Until its first plan, an image may wait for its endpoint; only then its deadline counts.
        (WAITING, UNPLANNED, WAIT_LIMIT_S, NextStep.NOTHING),
        (WAITING, UNPLANNED, WAIT_LIMIT_S + 1, NextStep.GIVE_UP_PLANNING),
        (AFTER_A_WAIT, UNPLANNED, 6 * DEADLINE_S + DEADLINE_S, NextStep.NOTHING),
        (AFTER_A_WAIT, UNPLANNED, 6 * DEADLINE_S + DEADLINE_S + 1, NextStep.GIVE_UP_PLANNING),
        (AFTER_A_WAIT | {"planned_time": START_S + 6 * DEADLINE_S}, {}, 7 * DEADLINE_S, NextStep.LOOK_AT_REGIONS),
        (AFTER_A_WAIT | {"planned_time": START_S + 6 * DEADLINE_S}, {}, 7 * DEADLINE_S + 1, NextStep.SEAL_REGIONS),
        ({"num_attempts": 1}, UNPLANNED, DEADLINE_S, NextStep.NOTHING),
        ({"num_attempts": 1}, UNPLANNED, DEADLINE_S + 1, NextStep.GIVE_UP_PLANNING),
        # Regions at work.
        (PLANNED, {}, 3 * LEASE_S - 1, NextStep.NOTHING),
        (PLANNED, {}, 3 * LEASE_S, NextStep.LOOK_AT_REGIONS),
        (PLANNED | {"swept_time": START_S + 100}, {}, 3 * LEASE_S + 99, NextStep.NOTHING),
        (PLANNED | {"swept_time": START_S + 100}, {}, 3 * LEASE_S + 100, NextStep.LOOK_AT_REGIONS),
        # Every region counted.
        (PLANNED, {"region_success": 3, "region_error": 1}, 0, NextStep.FINISH),
        (PLANNED, {"region_success": 4}, 2 * DEADLINE_S, NextStep.FINISH),
        # Past the deadline.
        (PLANNED, {}, DEADLINE_S, NextStep.LOOK_AT_REGIONS),
        (PLANNED, {}, DEADLINE_S + 1, NextStep.SEAL_REGIONS),
        (PLANNED | {"swept_time": START_S + DEADLINE_S}, {}, DEADLINE_S + 1, NextStep.SEAL_REGIONS),
    ],
)
def test_next_step(job_changes, item_changes, after_s, step):
    assert next_step(job(**job_changes), item(**item_changes), START_S + after_s, CONFIG) is step


def test_open_job_is_closed_when_its_row_has_expired():
    assert next_step(job(), None, START_S, CONFIG) is NextStep.FORGET
