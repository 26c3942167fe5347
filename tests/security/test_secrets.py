"""Secrets in a request, and secrets of the worker: none shows in logs, statuses or reasons.

Each field of a request carries a secret of its own where people really put secrets: in query strings, user names,
tokens and keys. The rows have to hold the request; logs, statuses and reasons do not.
"""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import zstandard

from aws.osml.model_runner.local.stack.data_plane import create_data_plane
from aws.osml.model_runner.local.stack.emulator import Emulator
from raster_files import pattern, write_image
from security.hostile_model import HostileModel
from worker_process import Site, eventually

# Columns that a job needs; all other columns are for people to read.
WORKING_COLUMNS = {
    "image_url",
    "image_id",
    "model_name",
    "model_endpoint_parameters",
    "endpoint_parameters",
    "feature_properties",
    "request_payload",
    "full_request",
    "message_body",
    "outputs",
    "hash_key",
    "endpoint_id",
    "features",
}


def canary(name: str) -> str:
    return f"CaNaRy{name}0123456789"


@pytest.fixture(scope="session")
def site(emulator: Emulator, tmp_path_factory: pytest.TempPathFactory) -> Site:
    return Site(emulator, create_data_plane(emulator.client, "secrets"), tmp_path_factory.mktemp("secrets"))


def requests(site: Site, image: Path, model: str) -> list[dict[str, Any]]:
    """Return requests with secrets in every field, good ones and bad ones."""
    secret_url = (
        f"https://user:{canary('password')}@host/a.tif?X-Amz-Signature={canary('signature')}&token={canary('q')}"
    )
    good = site.request(
        str(image),
        f"{model}?X-Amz-Signature={canary('modelquery')}&key={canary('modelkey')}",
        jobId="careless",
        imageProcessorParameters={
            "Authorization": f"Bearer {canary('bearer')}",
            "X-Api-Key": canary("apikey"),
            "Cookie": canary("cookie"),
            "CustomAttributes": f"password={canary('attribute')}",
        },
        featureProperties=[{"password": canary("property"), "note": canary("note")}],
        jobName=f"token={canary('jobname')}",
        unknownKey={"secret": canary("unknown")},
    )
    fields: dict[str, Any] = {
        "imageUrls": [secret_url],
        "imageReadRole": f"arn:aws:iam::x:role/r?token={canary('role')}",
        "imageProcessor": {"name": secret_url, "type": "HTTP_ENDPOINT", "password": canary("extra")},
        "imageProcessorTileSize": f"password={canary('size')}",
        "imageProcessorTileFormat": f"AWS_SECRET_ACCESS_KEY={canary('format')}",
        "regionOfInterest": f"POLYGON secret_access_key={canary('roi')}",
        "outputs": [{"type": "S3", "bucket": f"session_token={canary('bucket')}", "prefix": "p"}],
        "postProcessing": [{"step": f"Authorization: {canary('step')}"}],
        "featureProperties": f"password={canary('text')}",
    }
    bad = [good | {"jobId": f"bad-{name}", name: value} for name, value in fields.items()]
    missing = f"https://127.0.0.1:9/a.tif?X-Amz-Credential={canary('missing')}&sig={canary('sig')}"
    return [good, *bad, good | {"jobId": "missing", "imageUrls": [missing]}]


def test_no_secret_shows_where_people_look(site: Site, tmp_path: Path) -> None:
    image = write_image(tmp_path / "image.tif", pattern(1, 64, 64))
    with HostileModel("http://127.0.0.1:9").running() as model:
        asked = requests(site, image, model.url("good"))
        settings = {"AWS_SESSION_TOKEN": canary("session"), "LOG_LEVEL": "DEBUG", "IMAGE_SOURCES": "file,s3,http"}
        with site.worker(**settings) as worker:
            for request in asked:
                site.submit(request)
            site.submit(json.dumps(asked[0] | {"jobId": "broken"})[:-5] + canary("broken"))
            ends = {request["jobId"]: site.wait_for_end(request["jobId"])[-1] for request in asked[:-1]}
            eventually(lambda: site.messages_in("IMAGE_QUEUE") == 0)
    assert ends.pop("careless") == "SUCCESS"
    assert set(ends.values()) == {"FAILED"}
    shown = {
        "log": worker.log_text(),
        "statuses": "\n".join(f"{event.message} {event.attributes}" for event in site.events),
        "rows": json.dumps(readable_rows(site), default=blob_text),
    }
    for place, text in shown.items():
        assert "careless" in text, place
        assert sorted(set(re.findall(r"CaNaRy[a-z]+", text))) == [], place


def blob_text(blob: bytes) -> str:
    """Return what a compressed blob of features holds."""
    return zstandard.ZstdDecompressor().decompress(blob).decode(errors="replace")


def readable_rows(site: Site) -> list[dict[str, Any]]:
    """Return every row without what the job itself is made of."""
    tables = ("JOB_TABLE", "REGION_REQUEST_TABLE", "FEATURE_TABLE", "OUTSTANDING_JOBS_TABLE")
    rows = [row for table in tables for row in site.rows(table)]
    return [{name: value for name, value in row.items() if name not in WORKING_COLUMNS} for row in rows]
