"""Count capacity units, requests and dollars per tile on AWS, and the tiles per second that AWS admits.

    .venv/bin/python benchmarks/costs.py                            tiles of 20 and of 500 features
    .venv/bin/python benchmarks/costs.py --label now --json results.json

A real worker does a job through a proxy that counts what it calls. Counts do not depend on the machine. Prices and
limits come from a dated file, ``prices-us-east-1.json``. ``performance_page.py`` puts the table into the documentation.
"""

import argparse
import json
import tempfile
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

from worker_bench import HERE, AwsProxy, Bench, Job, UnitMeter, WorkerRun, item_bytes

from aws.osml.model_runner.database.feature_table import FeatureTable
from aws.osml.model_runner.local.stack.emulator import Emulator
from aws.osml.model_runner.raster import RasterSettings, configure_gdal

Row = dict[str, Any]

PRICES = HERE / "prices-us-east-1.json"
SIDE_PX = 8192
FEATURES = (20, 500)
# A job's rows live 72 hours, and DynamoDB deletes what has expired within two days, most of it within hours.
KEPT_MONTHS = 3.5 / 30
# Beside its attributes, DynamoDB stores and charges so much for each item.
ITEM_OVERHEAD_BYTES = 100
_S3_READS = frozenset({"GetObject", "HeadObject"})
_TABLES = ("FEATURE_TABLE", "REGION_REQUEST_TABLE", "JOB_TABLE", "OUTSTANDING_JOBS_TABLE", "ENDPOINT_TABLE")
_GB = 1e9


def estimate_load(bench: Bench, features: int, prices: Row) -> Row:
    """Have a worker do a job of tiles with so many features each, and return what it used and cost."""
    meter = UnitMeter()
    with AwsProxy(bench.emulator.url, steps=[meter]) as proxy:
        job = Job(bench.image(SIDE_PX), features=features, settings=proxy.environment)
        with bench.worker(job) as worker:
            bucket = worker.plane.result_bucket
            bench.emulator.client("s3").upload_file(str(job.image), bucket, "image.tif")
            logged = len(worker.process.log_text())
            before = _snapshot(meter, proxy)
            figures = worker.measured(replace(job, image=f"s3://{bucket}/image.tif"))
            used = {name: counter - before[name] for name, counter in _snapshot(meter, proxy).items()}
            logged = len(worker.process.log_text()) - logged
            row = {"tiles": figures.tiles, "ends": ",".join(figures.statuses)}
            row |= _per_tile(used, worker, figures.tiles)
            row |= _dollars(used, _stored_bytes(worker), logged, figures.tiles, prices["dollars"])
            return row | _most_tiles_per_s(row, prices["per second"])


def _snapshot(meter: UnitMeter, proxy: AwsProxy) -> dict[str, Counter[tuple[str, str]]]:
    counters = {"writes": meter.writes, "reads": meter.reads, "requests": proxy.requests}
    return {name: Counter(counter) for name, counter in counters.items()}


def _per_tile(used: dict[str, Counter[tuple[str, str]]], worker: WorkerRun, tiles: int) -> Row:
    names = {worker.plane.environment[role]: role for role in _TABLES if role in worker.plane.environment}
    row: Row = {}
    for kind, label in (("writes", "write units"), ("reads", "read units")):
        by_table = Counter[str]()
        for (table, operation), units in used[kind].items():
            if units:
                role = names.get(table, table)
                by_table[role] += units
                row[f"{label}, {role}, {operation}"] = _rounded(units / tiles)
        row |= {f"{label}, {role}": _rounded(units / tiles) for role, units in by_table.items()}
        row[label] = _rounded(sum(by_table.values()) / tiles)
    requests = used["requests"]
    row["S3 GET, HEAD"] = _rounded(_calls(requests, "s3", _S3_READS) / tiles)
    row["S3 PUT, POST, LIST"] = _rounded((_calls(requests, "s3") - _calls(requests, "s3", _S3_READS)) / tiles)
    row["SQS calls"] = _rounded(_calls(requests, "sqs") / tiles)
    row["SNS calls"] = _rounded(_calls(requests, "sns") / tiles)
    return row


def _calls(requests: Counter[tuple[str, str]], service: str, operations: frozenset[str] = frozenset()) -> int:
    return sum(n for (name, call), n in requests.items() if name == service and (not operations or call in operations))


def _stored_bytes(worker: WorkerRun) -> dict[str, int]:
    """Return the bytes that a job leaves until they expire: items of features, and objects of features."""
    dynamodb, s3 = worker.emulator.client("dynamodb"), worker.emulator.client("s3")
    pages = dynamodb.get_paginator("scan").paginate(TableName=worker.plane.environment["FEATURE_TABLE"])
    items = sum(item_bytes(_as_sent(item)) + ITEM_OVERHEAD_BYTES for page in pages for item in page["Items"])
    objects = 0
    if bucket := worker.plane.environment.get("WORK_BUCKET"):
        for page in s3.get_paginator("list_objects_v2").paginate(Bucket=bucket):
            objects += sum(entry["Size"] for entry in page.get("Contents", []))
    return {"DynamoDB": items, "S3": objects}


def _as_sent(item: Row) -> Row:
    """Return an item with binaries in base64, as they are on the wire; boto3 has decoded those at the top."""
    sized = {name: value for name, value in item.items() if "B" not in value}
    return sized | {name: {"S": "x" * len(value["B"])} for name, value in item.items() if "B" in value}


def _dollars(
    used: dict[str, Counter[tuple[str, str]]], stored: dict[str, int], logged: int, tiles: int, prices: Row
) -> Row:
    requests = used["requests"]
    reads = _calls(requests, "s3", _S3_READS)
    amounts = {
        "DynamoDB write unit": sum(used["writes"].values()),
        "DynamoDB read unit": sum(used["reads"].values()),
        "DynamoDB GB-month": stored["DynamoDB"] / _GB * KEPT_MONTHS,
        "S3 GET, HEAD": reads,
        "S3 PUT, POST, LIST": _calls(requests, "s3") - reads,
        "S3 GB-month": stored["S3"] / _GB * KEPT_MONTHS,
        "SQS call of 64 KB": _calls(requests, "sqs"),
        "SNS publication of 64 KB": _calls(requests, "sns"),
        "CloudWatch Logs GB": logged / _GB,
    }
    dollars = {name: 1000 / tiles * amount * prices[name] for name, amount in amounts.items()}
    return {f"$ per 1,000 tiles, {name}": _rounded(value) for name, value in dollars.items()} | {
        "$ per 1,000 tiles": _rounded(sum(dollars.values()))
    }


def _most_tiles_per_s(row: Row, limits: Row) -> Row:
    """Return the tiles/s at which each limit of AWS is reached, if nothing else is slower."""
    partition = limits["partition of a table, write units"]
    units = row["write units, FEATURE_TABLE"]
    found = {
        "one partition key of an image": partition / units,
        f"an image, on {FeatureTable.hash_salt} partitions": FeatureTable.hash_salt * partition / units,
        "a new on-demand table": limits["new on-demand table, write units"] / units,
        "a table at the default quota": limits["table at the default quota, write units"] / units,
        "rows of an image's regions, one partition": partition / row["write units, REGION_REQUEST_TABLE"],
        "the row of an image": partition / row["write units, JOB_TABLE"],
    }
    return {f"most tiles/s, {name}": _rounded(value) for name, value in found.items()}


def _rounded(value: float) -> float:
    return float(f"{value:.3g}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prices", type=Path, default=PRICES, help="prices and limits, as in the default file")
    parser.add_argument("--label", default="now", help="name of the columns in the file and in the documentation")
    parser.add_argument("--json", type=Path, help="write the figures here, beside others in the file")
    arguments = parser.parse_args()
    prices = json.loads(arguments.prices.read_text())
    configure_gdal(RasterSettings(), {})
    with tempfile.TemporaryDirectory(prefix="bench-") as name, Emulator(Path(name)) as emulator:
        bench = Bench(Path(name), emulator, None)
        found = {f"{features} features": estimate_load(bench, features, prices) for features in FEATURES}
    names = list(dict.fromkeys(name for row in found.values() for name in row))
    print(f"{'per tile':52}" + "".join(f"{label:>16}" for label in found))
    for name in sorted(names, key=lambda name: name.split(",")[0]):
        print(f"{name:52}" + "".join(f"{row.get(name, ''):>16}" for row in found.values()))
    print(f"prices of {prices['region']}, {prices['as_of']}")
    if arguments.json:
        known = json.loads(arguments.json.read_text()) if arguments.json.exists() else {}
        costs = known.get("costs", {}) | {arguments.label: found, "prices": f"{prices['region']}, {prices['as_of']}"}
        arguments.json.write_text(json.dumps(known | {"costs": costs}, indent=1) + "\n")


if __name__ == "__main__":
    main()
