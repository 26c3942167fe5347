"""The environment of the embedded stack's processes, without the settings of the user's AWS account."""

import os
from collections.abc import Mapping

LOOPBACK = "127.0.0.1"
REGION = "us-west-2"
ACCESS_KEY = "local"
SECRET_KEY = "local"  # noqa: S105 - the emulator checks no signature


def clean_environment(environ: Mapping[str, str]) -> dict[str, str]:
    """Return ``environ`` without AWS and GDAL settings, and with loopback addresses that bypass proxies."""
    kept = {name: value for name, value in environ.items() if not name.startswith(("AWS_", "GDAL_", "VSI_", "CPL_"))}
    for name in ("NO_PROXY", "no_proxy"):
        kept[name] = ",".join(filter(None, [environ.get(name), LOOPBACK, "localhost"]))
    return kept


def aws_environment(endpoint_url: str, access_key: str = ACCESS_KEY) -> dict[str, str]:
    """Return the variables that direct boto3 and GDAL to the emulator, with keys that only the emulator accepts."""
    return {
        "AWS_ACCESS_KEY_ID": access_key,
        "AWS_SECRET_ACCESS_KEY": SECRET_KEY,
        "AWS_DEFAULT_REGION": REGION,
        "AWS_REGION": REGION,
        "AWS_CONFIG_FILE": os.devnull,
        "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_ENDPOINT_URL": endpoint_url,
        "AWS_S3_ENDPOINT": endpoint_url.removeprefix("http://"),
        "AWS_HTTPS": "NO",
        "AWS_VIRTUAL_HOSTING": "FALSE",
    }
