"""Saves an interrupted job on this machine in one file, so that a later run can continue it.

The emulator loses its data when it ends. A checkpoint holds the rows of the job and the objects of the work bucket. In
another emulator the sweeper continues the job, as it continues a job whose workers have died.
"""

import base64
import gzip
import json
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aws.osml.model_runner.exceptions import ConfigurationError
from aws.osml.model_runner.local.stack.data_plane import DataPlane

Client = Callable[[str], Any]
Row = dict[str, dict[str, Any]]

# The open job comes last: until its row exists, the sweeper does not read the other rows.
_TABLES = ("FEATURE_TABLE", "REGION_REQUEST_TABLE", "JOB_TABLE", "OUTSTANDING_JOBS_TABLE")
_ROWS_AT_ONCE = 25
# Beginnings of the ids of rows that belong to endpoints and workers, not to a job.
_SHARED_ROWS = ("_callers#", "_facts", "_scheduler", "_sweeper")
# Times that are moved by the time between the two runs.
_SECONDS = ("expire_time", "first_attempt", "last_attempt", "request_time", "tiles_since")
_MILLISECONDS = ("start_time", "last_updated_time")
# Leases of workers that have ended, and waits.
_ZERO = ("lease_until", "not_before", "agg_lease_until", "agg_not_before", "queued_time")
# Attributes that are removed. Outputs are written again, because the emulator has lost them.
_REMOVED = ("sinks_done", "sink_errors", "sink_positions", "swept_time")


@dataclass(frozen=True)
class Checkpoint:
    """An interrupted job. ``settings`` are those of its run; ``model_url`` is the address of the model in that run.

    ``saved_at`` is in epoch seconds. ``objects`` maps object keys of the work bucket to bytes in base64.
    """

    job_id: str
    settings: Mapping[str, Any]
    model_url: str
    saved_at: float
    tables: Mapping[str, list[Row]]
    objects: Mapping[str, str]

    @classmethod
    def taken(
        cls, client: Client, data_plane: DataPlane, job_id: str, settings: Mapping[str, Any], model_url: str, now: float
    ) -> "Checkpoint":
        """Return the checkpoint of the only job of a stack. The stack's workers have to be stopped."""
        environment = data_plane.environment
        tables = {name: list(_rows(client("dynamodb"), environment[name])) for name in _TABLES}
        s3, bucket = client("s3"), environment["WORK_BUCKET"]
        objects = {
            item["Key"]: _base64(s3.get_object(Bucket=bucket, Key=item["Key"])["Body"].read())
            for page in s3.get_paginator("list_objects_v2").paginate(Bucket=bucket)
            for item in page.get("Contents", [])
        }
        return cls(job_id, settings, model_url, now, tables, objects)

    @property
    def tiles(self) -> int:
        """Number of tiles that have ended."""
        return sum("tile_status" in row for row in self.tables["FEATURE_TABLE"])

    @property
    def is_worth_keeping(self) -> bool:
        """True if the job has a plan, at least one tile has ended, and the job has not."""
        jobs = [row for row in self.tables["JOB_TABLE"] if "region_count" in row]
        return self.tiles > 0 and any(row["image_status"]["S"] == "IN_PROGRESS" for row in jobs)

    def save(self, path: Path) -> None:
        """Write the file so that only its owner can read it, because image URLs may contain credentials."""
        part = path.with_name(f"{path.name}.part")
        with open(part, "wb", opener=lambda name, flags: os.open(name, flags, 0o600)) as file:
            file.write(gzip.compress(json.dumps(self.__dict__, default=_base64).encode(), compresslevel=1))
        part.replace(path)

    @classmethod
    def load(cls, path: Path) -> "Checkpoint":
        """Read the file.

        Raises:
            ConfigurationError: the file does not exist, or is not a checkpoint.
        """
        try:
            return cls(**json.loads(gzip.decompress(path.read_bytes())))
        except FileNotFoundError as err:
            raise ConfigurationError(f"--resume: {path} does not exist: no earlier run was interrupted") from err
        except (OSError, EOFError, ValueError, TypeError) as err:
            raise ConfigurationError(f"--resume: {path} is not the file of an interrupted run: {err}") from err

    def check(self, settings: Mapping[str, Any], path: Path) -> None:
        """Raise ConfigurationError if ``settings`` differ from those of the checkpoint."""
        for name, value in json.loads(json.dumps(settings)).items():
            if self.settings.get(name) != value:
                before = json.dumps(self.settings.get(name))
                raise ConfigurationError(f"--resume: {path} is of a run with {name} {before}, not {json.dumps(value)}")

    def restore(self, client: Client, data_plane: DataPlane, model_url: str, now: float) -> None:
        """Write the job to a new stack, in which the model has another address; ``now`` is in epoch seconds."""
        text = json.dumps(self.tables).replace(json.dumps(self.model_url)[1:-1], json.dumps(model_url)[1:-1])
        tables: dict[str, list[Row]] = json.loads(text)
        for key, body in self.objects.items():
            bucket = data_plane.environment["WORK_BUCKET"]
            client("s3").put_object(Bucket=bucket, Key=key, Body=base64.b64decode(body))
        for name in _TABLES:
            rows = [_restored(row, now - self.saved_at) for row in tables[name]]
            for start in range(0, len(rows), _ROWS_AT_ONCE):
                puts = [{"PutRequest": {"Item": row}} for row in rows[start : start + _ROWS_AT_ONCE]]
                client("dynamodb").batch_write_item(RequestItems={data_plane.environment[name]: puts})


def _rows(dynamodb: Any, table: str) -> Iterator[Row]:
    for page in dynamodb.get_paginator("scan").paginate(TableName=table, ConsistentRead=True):
        for row in page["Items"]:
            keys = (row.get(name, {}).get("S", "") for name in ("image_id", "endpoint_id"))
            if not any(key.startswith(_SHARED_ROWS) for key in keys):
                yield row


def _restored(row: Row, later_s: float) -> Row:
    """Return a row whose times are moved by ``later_s``, without leases, so that the sweeper continues it at once."""
    new = {
        name: {"B": base64.b64decode(value["B"])} if "B" in value else value
        for name, value in row.items()
        if name not in _REMOVED
    }
    for names, unit in ((_SECONDS, 1), (_MILLISECONDS, 1000)):
        for name in new.keys() & set(names):
            new[name] = {"N": str(int(float(new[name]["N"]) + later_s * unit))}
    new |= {name: {"N": "0"} for name in new.keys() & set(_ZERO)}
    if "planned_time" in new:
        new["planned_time"] = {"N": "1"}
    return new


def _base64(body: bytes) -> str:
    return base64.b64encode(body).decode()
