"""boto3 clients that speak to the embedded stack, whatever AWS profile, proxy or endpoint the user has configured."""

import os
from typing import Any

import boto3
import botocore.session
from botocore.config import Config

from .environment import ACCESS_KEY, REGION, SECRET_KEY

# The last entry of each is a fixed default and no environment variable is named, so none is asked.
_IGNORE_USER_SETTINGS = {
    "profile": (None, None, None, None),
    "config_file": (None, None, os.devnull, None),
    "credentials_file": (None, None, os.devnull, None),
}


def local_client(service: str, endpoint_url: str, max_attempts: int = 5, access_key: str = ACCESS_KEY) -> Any:
    """Return a client of ``service`` that sends requests to ``endpoint_url`` with keys of the embedded stack."""
    config = Config(
        proxies={},
        max_pool_connections=32,
        connect_timeout=5,
        retries={"mode": "standard", "total_max_attempts": max_attempts},
        s3={"addressing_style": "path"},
    )
    session: Any = boto3.Session(
        aws_access_key_id=access_key,
        aws_secret_access_key=SECRET_KEY,
        region_name=REGION,
        botocore_session=botocore.session.Session(session_vars=_IGNORE_USER_SETTINGS),
    )
    return session.client(service, endpoint_url=endpoint_url, config=config)
