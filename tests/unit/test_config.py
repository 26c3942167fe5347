from pathlib import Path

import pytest
import structlog
from pydantic import ValidationError

from aws.osml.model_runner.common.typing import ImageDimensions
from aws.osml.model_runner.config import ServiceConfig, documented_settings
from aws.osml.model_runner.exceptions import ConfigurationError

QUEUE = "https://sqs.us-west-2.amazonaws.com/123456789012/"
REQUIRED = {
    "AWS_DEFAULT_REGION": "us-west-2",
    "JOB_TABLE": "jobs",
    "REGION_REQUEST_TABLE": "regions",
    "FEATURE_TABLE": "features",
    "OUTSTANDING_JOBS_TABLE": "outstanding",
    "IMAGE_QUEUE": QUEUE + "image",
    "REGION_QUEUE": QUEUE + "region",
    "WORKERS": "8",
}


def configured(**environ):
    return ServiceConfig.from_environment(REQUIRED | environ)


def problems_of(environ):
    with pytest.raises(ConfigurationError) as refusal:
        ServiceConfig.from_environment(environ)
    return {problem.field: problem for problem in refusal.value.problems}


def test_required_variables_are_enough():
    config = configured()
    assert (config.aws_region, config.job_table, config.workers) == ("us-west-2", "jobs", 8)
    assert config.image_request_table == "jobs"
    assert config.region_size == (10240, 10240)
    assert config.image_sources == {"s3"}
    assert config.http_endpoint_hosts == ()
    assert config.sm_max_body_bytes == 6_291_456
    optional = ["endpoint_statistics_table", "image_dlq", "region_dlq", "image_status_topic"]
    assert {getattr(config, name) for name in [*optional, "region_status_topic", "elevation_data_location"]} == {None}


def test_command_needs_its_own_settings_only():
    needed = {"AWS_DEFAULT_REGION": "us-west-2", "JOB_TABLE": "jobs"}
    config = ServiceConfig.for_command(needed, ("aws_region", "job_table"))
    assert (config.job_table, config.image_queue, config.region_queue) == ("jobs", None, None)
    assert config.row_life_s == configured().row_life_s
    with pytest.raises(ConfigurationError, match="JOB_TABLE") as refusal:
        ServiceConfig.for_command({"AWS_DEFAULT_REGION": "us-west-2", "WORKERS": "many"}, ("aws_region", "job_table"))
    names = {problem.field for problem in refusal.value.problems}
    assert names == {"JOB_TABLE or IMAGE_REQUEST_TABLE", "WORKERS"}


def test_every_missing_variable_is_named_at_once():
    problems = problems_of({})
    assert set(problems) == {
        "AWS_DEFAULT_REGION or AWS_REGION",
        "JOB_TABLE or IMAGE_REQUEST_TABLE",
        "REGION_REQUEST_TABLE",
        "FEATURE_TABLE",
        "OUTSTANDING_JOBS_TABLE or OUTSTANDING_IMAGE_REQUEST_TABLE",
        "IMAGE_QUEUE",
        "REGION_QUEUE",
    }
    assert {problem.value for problem in problems.values()} == {"unset"}


def test_missing_outstanding_jobs_table_is_refused_with_advice():
    environ = {name: value for name, value in REQUIRED.items() if name != "OUTSTANDING_JOBS_TABLE"}
    (problem,) = problems_of(environ).values()
    assert problem.expectation.startswith("required. DynamoDB table with one row per image that has not ended.")
    assert "`deploy/data-plane.yaml` makes it" in problem.expectation
    output = "OUTSTANDINGJOBSTABLE"
    assert output in problem.expectation
    template = (Path(__file__).parents[2] / "deploy" / "data-plane.yaml").read_text()
    assert f"  {output}:\n    Description: OUTSTANDING_JOBS_TABLE\n" in template


@pytest.mark.parametrize(
    ("newer", "older", "field"),
    [
        ("IMAGE_REQUEST_TABLE", "JOB_TABLE", "job_table"),
        ("OUTSTANDING_IMAGE_REQUEST_TABLE", "OUTSTANDING_JOBS_TABLE", "outstanding_jobs_table"),
        ("AWS_REGION", "AWS_DEFAULT_REGION", "aws_region"),
    ],
)
def test_old_and_new_names_are_read(newer, older, field):
    environ = {name: value for name, value in REQUIRED.items() if name not in (newer, older)}
    assert getattr(ServiceConfig.from_environment(environ | {newer: "abc"}), field) == "abc"
    assert getattr(ServiceConfig.from_environment(environ | {older: "abc"}), field) == "abc"
    assert getattr(ServiceConfig.from_environment(environ | {older: "  ", newer: "abc"}), field) == "abc"


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("(8192, 8192)", (8192, 8192)),
        ("(10240,512)", (10240, 512)),
        (" ( 1 , 2 ) ", (1, 2)),
        ("(4096,  4096)", (4096,) * 2),
    ],
)
def test_region_size_is_text_of_pair(text, size):
    assert configured(REGION_SIZE=text).region_size == ImageDimensions(*size)


@pytest.mark.parametrize(
    ("text", "is_on"),
    [("True", True), ("true", True), ("TRUE", False), ("1", False), ("yes", False), ("False", False), ("on", False)],
)
def test_only_true_switches_on(text, is_on):
    assert configured(SM_SELF_THROTTLING=text).self_throttling is is_on
    assert configured(SCHEDULER_THROTTLING_ENABLED=text).scheduler_throttling_enabled is is_on


WRONG = [
    ("AWS_DEFAULT_REGION", "us west"),
    ("IMAGE_QUEUE", "image-queue"),
    ("IMAGE_QUEUE", "arn:aws:sqs:us-west-2:123456789012:image"),
    ("REGION_QUEUE", "https://sqs"),
    ("REGION_QUEUE", "http://[::1/queue"),
    ("IMAGE_DLQ", "ftp://host/dlq"),
    ("REGION_DLQ", "x"),
    ("IMAGE_STATUS_TOPIC", "image-status"),
    ("REGION_STATUS_TOPIC", "https://sns"),
    ("WORKERS", "many"),
    ("WORKERS", "0"),
    ("WORKERS", "2.5"),
    ("WORKERS_PER_CPU", "0"),
    ("REGION_SIZE", "8192"),
    ("REGION_SIZE", "(8192)"),
    ("REGION_SIZE", "[8192, 8192]"),
    ("REGION_SIZE", "(0, 8192)"),
    ("REGION_SIZE", "(-1, 8192)"),
    ("REGION_SIZE", "(8192, 8192); import os"),
    ("REGIONS_IN_PROGRESS", "0"),
    ("IMAGE_SOURCES", "s3,ftp"),
    ("IMAGE_SOURCES", ","),
    ("HTTP_ENDPOINT_HOSTS", "http://model/"),
    ("JOB_DEADLINE_S", "nan"),
    ("JOB_DEADLINE_S", "-1"),
    ("SHUTDOWN_BUDGET_S", "inf"),
    ("TILE_QUEUE_BYTES", "1 GiB"),
    ("GDAL_CACHE_BYTES", "75"),
    ("QUEUE_WAIT_S", "21"),
    ("LOG_LEVEL", "loud"),
    ("DDB_TTL_IN_DAYS", "0"),
    ("THROTTLING_RETRY_TIMEOUT", "-1"),
    ("CAPACITY_TARGET_PERCENTAGE", "nan"),
    ("DEFAULT_INSTANCE_CONCURRENCY", "two"),
]


@pytest.mark.parametrize(("name", "text"), WRONG)
def test_wrong_value_is_named_with_allowed_values(name, text):
    (problem,) = problems_of(REQUIRED | {name: text}).values()
    assert problem.field == name
    assert problem.value == f'"{text}"'
    assert problem.expectation != "required"


def test_all_problems_are_reported_together():
    wrong = dict(WRONG)
    assert set(problems_of(REQUIRED | wrong)) == set(wrong)


def test_error_names_variable_that_was_set():
    assert "AWS_REGION" in problems_of({name: REQUIRED[name] for name in list(REQUIRED)[1:]} | {"AWS_REGION": "?"})


@pytest.mark.parametrize(
    ("name", "text", "field", "value"),
    [
        ("DEFAULT_INSTANCE_CONCURRENCY", "0", "default_instance_concurrency", 2),
        ("TILE_WORKERS_PER_INSTANCE", "-3", "tile_workers_per_instance", 4),
        ("CAPACITY_TARGET_PERCENTAGE", "0", "capacity_target_percentage", 1.0),
        ("CAPACITY_TARGET_PERCENTAGE", "1.5", "capacity_target_percentage", 1.5),
    ],
)
def test_numbers_that_known_deployments_may_hold_are_replaced_with_warning(name, text, field, value):
    with structlog.testing.capture_logs() as logs:
        assert getattr(configured(**{name: text}), field) == value
    assert [event["event"] for event in logs] == ([] if text == "1.5" else ["configuration.value_replaced"])


def test_lists_are_separated_by_commas():
    config = configured(IMAGE_SOURCES="s3, file,http", HTTP_ENDPOINT_HOSTS="Model-1.local, 10.0.0.7:8080")
    assert config.image_sources == {"s3", "file", "http"}
    assert config.http_endpoint_hosts == ("model-1.local", "10.0.0.7:8080")
    assert configured(LOG_LEVEL="debug").log_level == "DEBUG"


def test_rows_outlive_deadline():
    assert configured().row_life_s == 16 * 86_400
    # A job may wait for a week and run for a day; its tiles stay for another one, and for two more.
    assert configured(DDB_TTL_IN_DAYS="1").row_life_s == 11 * 86_400
    assert configured(DDB_TTL_IN_DAYS="12").row_life_s == 12 * 86_400
    assert configured(DDB_TTL_IN_DAYS="1", JOB_WAIT_LIMIT_S="3600", JOB_DEADLINE_S="3600").row_life_s == 183_600


def test_configuration_does_not_change():
    with pytest.raises(ValidationError):
        configured().workers = 3


def test_other_variables_are_ignored():
    assert configured(PATH="/bin", workers="5").workers == 8


@pytest.mark.parametrize("setting", documented_settings(), ids=lambda setting: setting.field)
def test_every_setting_describes_itself(setting):
    assert setting.names
    assert all(name == name.upper() for name in setting.names)
    assert setting.description.endswith(".")
    assert len(setting.description) > 25
    config = configured()
    if ServiceConfig.model_fields[setting.field].is_required():
        assert setting.default == ""
    elif setting.default == "unset":
        assert not getattr(config, setting.field)
    else:
        assert getattr(configured(**{setting.names[0]: setting.default}), setting.field) == getattr(
            config, setting.field
        )


def test_every_variable_of_known_deployments_is_setting():
    known = {
        "AWS_DEFAULT_REGION", "JOB_TABLE", "IMAGE_REQUEST_TABLE", "OUTSTANDING_JOBS_TABLE",
        "OUTSTANDING_IMAGE_REQUEST_TABLE", "REGION_REQUEST_TABLE", "ENDPOINT_TABLE", "FEATURE_TABLE",
        "IMAGE_QUEUE", "IMAGE_DLQ", "REGION_QUEUE", "WORKERS_PER_CPU", "WORKERS", "ELEVATION_DATA_LOCATION",
        "ELEVATION_DATA_EXTENSION", "ELEVATION_DATA_VERSION", "IMAGE_STATUS_TOPIC", "REGION_STATUS_TOPIC",
        "API_ENDPOINT", "SM_SELF_THROTTLING", "REGION_SIZE", "THROTTLING_SCALE_FACTOR",
        "THROTTLING_RETRY_TIMEOUT", "DDB_TTL_IN_DAYS", "SCHEDULER_THROTTLING_ENABLED",
        "DEFAULT_INSTANCE_CONCURRENCY", "DEFAULT_HTTP_ENDPOINT_CONCURRENCY", "TILE_WORKERS_PER_INSTANCE",
        "CAPACITY_TARGET_PERCENTAGE", "CODEGURU_PROFILING_GROUP",
    }  # fmt: skip
    names = [name for setting in documented_settings() for name in setting.names]
    assert known <= set(names)
    assert len(names) == len(set(names))
