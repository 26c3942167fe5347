"""What a job on this machine has done so far, in one file, so that a later run goes on from there.

The emulator forgets everything at its end. A checkpoint holds the rows of the job and the objects of the work bucket.
In another emulator the sweeper finds the job, as it finds one whose workers died, and leads it on.
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

# The open job comes last: until its row is there, no sweeper touches the others.
_TABLES = ("FEATURE_TABLE", "REGION_REQUEST_TABLE", "JOB_TABLE", "OUTSTANDING_JOBS_TABLE")
_ROWS_AT_ONCE = 25
# Rows of endpoints and of the fleet, not of a job.
_NOT_A_JOBS = ("_callers#", "_facts", "_scheduler", "_sweeper")
# Times that count from the day on which the job runs.
_SECONDS = ("expire_time", "first_attempt", "last_attempt", "request_time", "tiles_since")
_MILLISECONDS = ("start_time", "last_updated_time")
# Leases of workers that are gone, and waits.
_ZERO = ("lease_until", "not_before", "agg_lease_until", "agg_not_before", "queued_time")
# Outputs are written again: what they hold was the emulator's.
_GONE = ("sinks_done", "sink_errors", "sink_positions", "swept_time")


@dataclass(frozen=True)
class Checkpoint:
    """``settings`` say what was run on what. ``model_url`` is the model's address at that time."""

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
        """Return what there is of the only job of a stack, whose workers have ended."""
        environment = data_plane.environment
        tables = {name: list(_rows(client("dynamodb"), environment[name])) for name in _TABLES}
        objects = dict(_objects(client("s3"), environment["WORK_BUCKET"]))
        return cls(job_id, settings, model_url, now, tables, objects)

    @property
    def tiles(self) -> int:
        """How many tiles have ended."""
        return sum("tile_status" in row for row in self.tables["FEATURE_TABLE"])

    @property
    def is_worth_keeping(self) -> bool:
        """True for a job that has a plan and a tile, and has not ended."""
        jobs = [row for row in self.tables["JOB_TABLE"] if "region_count" in row]
        return self.tiles > 0 and any(row["image_status"]["S"] == "IN_PROGRESS" for row in jobs)

    def save(self, path: Path) -> None:
        """Write the file, for its owner alone: image URLs may hold keys."""
        part = path.with_name(f"{path.name}.part")
        with open(part, "wb", opener=lambda name, flags: os.open(name, flags, 0o600)) as file:
            file.write(gzip.compress(json.dumps(self.__dict__, default=_base64).encode(), compresslevel=1))
        part.replace(path)

    @classmethod
    def load(cls, path: Path) -> "Checkpoint":
        """Read the file.

        Raises:
            ConfigurationError: it is not there, or is not a checkpoint.
        """
        try:
            return cls(**json.loads(gzip.decompress(path.read_bytes())))
        except FileNotFoundError as err:
            raise ConfigurationError(f"--resume: there is no {path}: no earlier run was interrupted") from err
        except (OSError, EOFError, ValueError, TypeError) as err:
            raise ConfigurationError(f"--resume: {path} is not the file of an interrupted run: {err}") from err

    def check(self, settings: Mapping[str, Any], path: Path) -> None:
        """Raise ConfigurationError where a run with ``settings`` is another one than this."""
        for name, value in json.loads(json.dumps(settings)).items():
            if self.settings.get(name) != value:
                before = json.dumps(self.settings.get(name))
                raise ConfigurationError(f"--resume: {path} is of a run with {name} {before}, not {json.dumps(value)}")

    def restore(self, client: Client, data_plane: DataPlane, model_url: str, now: float) -> None:
        """Put the job into a fresh stack, where the model has another address and it is ``now``, in epoch seconds."""
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
            if not any(key.startswith(_NOT_A_JOBS) for key in keys):
                yield row


def _objects(s3: Any, bucket: str) -> Iterator[tuple[str, str]]:
    for page in s3.get_paginator("list_objects_v2").paginate(Bucket=bucket):
        for item in page.get("Contents", []):
            yield item["Key"], _base64(s3.get_object(Bucket=bucket, Key=item["Key"])["Body"].read())


def _restored(row: Row, later_s: float) -> Row:
    """Return a row as of now: times move, and nobody holds it, so that the sweeper leads it on at once."""
    new = {name: _decoded(value) for name, value in row.items() if name not in _GONE}
    for names, unit in ((_SECONDS, 1), (_MILLISECONDS, 1000)):
        for name in new.keys() & set(names):
            new[name] = {"N": str(int(float(new[name]["N"]) + later_s * unit))}
    new |= {name: {"N": "0"} for name in new.keys() & set(_ZERO)}
    if "planned_time" in new:
        new["planned_time"] = {"N": "1"}
    return new


def _base64(body: bytes) -> str:
    return base64.b64encode(body).decode()


def _decoded(value: dict[str, Any]) -> dict[str, Any]:
    return {"B": base64.b64decode(value["B"])} if "B" in value else value
