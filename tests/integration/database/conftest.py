"""Fixtures of tests of tables: DynamoDB of the emulator, without botocore's own retries."""

from typing import Any

import boto3
import pytest
from botocore.config import Config

from aws.osml.model_runner.local.stack.emulator import Emulator


@pytest.fixture
def dynamodb(emulator: Emulator) -> Any:
    keys = {"aws_access_key_id": "test", "aws_secret_access_key": "test", "region_name": "us-west-2"}
    config = Config(retries={"total_max_attempts": 1, "mode": "standard"})
    return boto3.resource("dynamodb", endpoint_url=emulator.url, config=config, **keys)
