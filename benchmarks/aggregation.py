"""From the feature table to a result in S3: read, merge, stamp, write. Both runners in the same run.

    .venv/bin/python benchmarks/aggregation.py [--features 85000] [--runs 3] [--peer /tmp/peer-venv/bin/python]

Starts an emulator and stores the features of a scene as a job's tiles store them. Each runner aggregates them in a
process of its own, several times in turns, because the first process gets untouched memory. Both read the same
features, each in rows of its own form. Prints seconds and peak memory, the seconds that the emulator alone needs to
return the rows and to take the result, and the medians.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import geojson
import numpy as np
import orjson
import urllib3
from scenes import OVERLAP, REGION, TILE, Detections, scene

from aws.osml.model_runner.aws.clients import default_clients
from aws.osml.model_runner.common.channel import Threads, spread
from aws.osml.model_runner.common.machine import tune_gc, tune_malloc
from aws.osml.model_runner.common.memory_budget import MemoryBudget
from aws.osml.model_runner.common.typing import ImageCoord, ImageDimensions, ImageRegion, TileState
from aws.osml.model_runner.database import FeatureTable, JobItem, JobTable, TileKey, TileOutcome
from aws.osml.model_runner.features.encoding import encode_features
from aws.osml.model_runner.jobs.merging import MergedImage, distillation_of
from aws.osml.model_runner.jobs.tile_reader import ImageTiles, ignore
from aws.osml.model_runner.local.stack.child_process import clean_environment
from aws.osml.model_runner.local.stack.emulator import Emulator
from aws.osml.model_runner.sink import Delivery, SinkFactory
from aws.osml.model_runner.sink.s3_sink import PART_BYTES
from aws.osml.model_runner.tile_worker import VariableOverlapTilingStrategy
from aws.osml.model_runner.tiling.region_plan import region_id_of

SEED = 20_261_121
JOB_ID, IMAGE_ID = "bench", "bench:s3://images/bench.tif"
BUCKET = "bench-results"
INFERENCE_TIME = "2026-11-21T08:00:00Z"
# osml-model-runner 2.3.0 cannot read our rows: it gets the same features in rows of its own form.
TABLES = {
    "FEATURE_TABLE": ("hash_key", "range_key"),
    "JOB_TABLE": ("image_id",),
    "PEER_FEATURE_TABLE": ("hash_key", "range_key"),
    "PEER_JOB_TABLE": ("image_id",),
}
# As many detections as tiles report of so many objects of this kind.
DETECTIONS_PER_OBJECT = 1.45
WRITERS = 8
MEMORY_BYTES = 1 << 30


def tile_keys(side_px: int) -> list[TileKey]:
    """Return the keys of the tiles of ``scenes.tile_frames``."""
    strategy = VariableOverlapTilingStrategy()
    bounds = ImageRegion(ImageCoord(0, 0), ImageDimensions(side_px, side_px))
    return [
        TileKey(IMAGE_ID, region_id_of(region, JOB_ID), index)
        for region in strategy.compute_regions(bounds, REGION, TILE, OVERLAP)
        for index in range(len(strategy.compute_tiles(region, TILE, OVERLAP)))
    ]


def feature_of(box: list[float], score: float) -> dict[str, Any]:
    """Return a detection as a georeferenced tile has it: a rectangle, in pixels and in degrees."""
    left, top, right, bottom = (round(side, 6) for side in box)
    ring = [[left, top], [left, bottom], [right, bottom], [right, top], [left, top]]
    ground = [[round(10 + x * 1e-6, 6), round(50 - y * 1e-6, 6), 12.5] for x, y in ring]
    properties = {
        "imageGeometry": {"type": "Polygon", "coordinates": [ring]},
        "imageBBox": [left, top, right, bottom],
        "featureClasses": [{"iri": "ship", "score": round(score, 6)}],
        "modelMetadata": {"modelName": "bench", "ontologyName": "ships"},
        "center_longitude": ground[0][0],
        "center_latitude": ground[0][1],
    }
    return {"type": "Feature", "geometry": {"type": "Polygon", "coordinates": [ground]}, "properties": properties}


def fill(emulator: Emulator, detections: Detections, has_peer: bool) -> int:
    """Make the tables and store the scene in them; return how many bytes of JSON that is."""
    for name, keys in TABLES.items():
        emulator.client("dynamodb").create_table(
            TableName=name,
            KeySchema=[
                {"AttributeName": key, "KeyType": kind} for key, kind in zip(keys, ("HASH", "RANGE"), strict=False)
            ],
            AttributeDefinitions=[{"AttributeName": key, "AttributeType": "S"} for key in keys],
            BillingMode="PAY_PER_REQUEST",
        )
    emulator.client("s3").create_bucket(Bucket=BUCKET, CreateBucketConfiguration={"LocationConstraint": "us-west-2"})
    dynamodb = default_clients().dynamodb_resource()
    table = FeatureTable("FEATURE_TABLE", TILE, OVERLAP, client=dynamodb)
    keys = tile_keys(detections.side_px)
    order = np.argsort(detections.tiles, kind="stable")
    parts = np.split(order, np.searchsorted(detections.tiles[order], np.arange(1, len(detections.frames))))

    def store(number: int) -> int:
        left, top, right, bottom = detections.frames[number].astype(int).tolist()
        boxes, scores = detections.boxes[parts[number]].tolist(), detections.scores[parts[number]].tolist()
        encoded = encode_features(feature_of(box, score) for box, score in zip(boxes, scores, strict=True))
        bounds = ImageRegion.of([[top, left], [right - left, bottom - top]])
        outcome = TileOutcome(TileState.SUCCEEDED, encoded.bodies, encoded.detections, inference_time=INFERENCE_TIME)
        table.commit_tile(keys[number], bounds, outcome)
        return sum(map(len, encoded.bodies))

    peer_table = FeatureTable("PEER_FEATURE_TABLE", TILE, OVERLAP, client=dynamodb)

    def store_for_peer(number: int) -> None:
        boxes, scores = detections.boxes[parts[number]].tolist(), detections.scores[parts[number]].tolist()
        features = [geojson.Feature(**feature_of(box, score)) for box, score in zip(boxes, scores, strict=True)]
        for feature in features:
            feature["properties"] |= {"image_id": IMAGE_ID, "inferenceTime": INFERENCE_TIME}
        peer_table.add_features(features)

    with ThreadPoolExecutor(WRITERS) as pool:
        stored_bytes = sum(pool.map(store, range(len(parts))))
        if has_peer:
            list(pool.map(store_for_peer, range(len(parts))))
    _put_jobs(dynamodb, len(parts), detections.side_px)
    return stored_bytes


def _put_jobs(dynamodb, tiles: int, side_px: int) -> None:
    def row(prefix: str, option: dict) -> JobItem:
        return JobItem(
            IMAGE_ID,
            job_id=JOB_ID,
            tile_size=str(tuple(TILE)),
            tile_overlap=str(tuple(OVERLAP)),
            width=side_px,
            height=side_px,
            outputs=json.dumps([{"type": "S3", "bucket": BUCKET, "prefix": prefix}]),
            feature_properties="[]",
            feature_distillation_option=json.dumps(option),
            region_size=list(REGION),
            processing_bounds=[[0, 0], [side_px, side_px]],
        )

    ours = row("ours", {"algorithm_type": "SEAM"})
    ours.tile_success = tiles
    JobTable("JOB_TABLE", dynamodb).put(ours.to_put())
    JobTable("PEER_JOB_TABLE", dynamodb).put(row("peer", {"algorithm_type": "NMS", "iou_threshold": 0.75}).to_put())


def run_ours() -> None:
    """Bring the features together, in a process that is set up as a worker's is, and print what it took."""
    tune_malloc()
    tune_gc()
    started = time.perf_counter()
    cpu_started = time.process_time()
    dynamodb = default_clients().dynamodb_resource()
    job = JobTable("JOB_TABLE", dynamodb).get_image_request(IMAGE_ID)
    table = FeatureTable("FEATURE_TABLE", job.tile_dimensions, job.overlap_dimensions, client=dynamodb)
    threads, steps = Threads.of_process(), Steps()
    with MemoryBudget(MEMORY_BYTES, time.monotonic, time.sleep).share(ignore) as memory:
        tiles = ImageTiles.of(job, VariableOverlapTilingStrategy(), table)
        image = MergedImage(job, tiles, distillation_of(job), table.read_tiles, memory, threads, metrics=steps)
        writers = [
            lambda batches, sink=sink: sink.deliver(Delivery(str(job.job_id), "", batches))
            for sink in SinkFactory.outputs_to_sinks(json.loads(job.outputs or "[]"))
        ]
        for error in spread(image, writers, threads, capacity=4):
            if error is not None:
                raise error
    ended, cpu_seconds = time.perf_counter(), time.process_time() - cpu_started
    peak_bytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(
        json.dumps(
            {
                "seconds": ended - started,
                "cpu_seconds": cpu_seconds,
                "peak_bytes": peak_bytes,
                "stored": image.stored,
                "kept": image.kept,
                "read": steps.seconds["FeatureAggregation"],
                "merge": steps.seconds["FeatureSelection"],
            }
        )
    )


class Steps:
    """How long each step of an aggregation took, in seconds; reading goes on beside the others."""

    def __init__(self) -> None:
        self.seconds: Counter[str] = Counter()

    @contextmanager
    def timed(self, operation: str) -> Iterator[None]:
        """Add the time of the block to that of the operation."""
        started = time.perf_counter()
        yield
        self.seconds[operation] += time.perf_counter() - started


def emulator_alone(emulator: Emulator) -> None:
    """Print how long the emulator takes for the same rows and the same result."""
    http = urllib3.PoolManager(maxsize=WRITERS)
    headers = {
        "X-Amz-Target": "DynamoDB_20120810.Query",
        "Content-Type": "application/x-amz-json-1.0",
        # The emulator does not check the signature; it reads the service's name from it.
        "Authorization": "AWS4-HMAC-SHA256 Credential=any/20261121/us-west-2/dynamodb/aws4_request",
    }

    def read(salt: int) -> int:
        query = {
            "TableName": "FEATURE_TABLE",
            "KeyConditionExpression": "hash_key = :key",
            "ExpressionAttributeValues": {":key": {"S": f"{IMAGE_ID}-{salt}"}},
        }
        size = 0
        while True:
            page = http.request("POST", emulator.url, body=json.dumps(query), headers=headers).data
            size += len(page)
            if b'"LastEvaluatedKey"' not in page:
                return size
            query["ExclusiveStartKey"] = orjson.loads(page)["LastEvaluatedKey"]

    started = time.perf_counter()
    with ThreadPoolExecutor(WRITERS) as pool:
        read_bytes = sum(pool.map(read, range(1, FeatureTable.hash_salt + 1)))
    read_s = time.perf_counter() - started
    s3 = emulator.client("s3")
    result = s3.get_object(Bucket=BUCKET, Key="ours/bench.geojson")["Body"].read()
    started = time.perf_counter()
    for first in range(0, len(result), PART_BYTES):
        s3.put_object(Bucket=BUCKET, Key=f"part-{first}", Body=result[first : first + PART_BYTES])
    write_s = time.perf_counter() - started
    print(
        f"emulator alone: {read_s:.1f} s for {read_bytes / 1e6:.0f} MB of rows,"
        f" {write_s:.1f} s to take {len(result) / 1e6:.0f} MB"
    )


def measured(name: str, command: list[str], environment: dict[str, str], stored_bytes: int) -> tuple[float, float]:
    """Run one side, print its row, and return its seconds, by the clock and of CPU."""
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{name}: {done.stderr[-2000:]}")
    found = json.loads(done.stdout.splitlines()[-1])
    beyond = (found["peak_bytes"] - stored_bytes) / found["stored"]
    steps = ", ".join(f"{step} {found[step]:.1f} s" for step in ("read", "merge") if step in found)
    print(
        f"{name:6} {found['stored']:>10,} stored {found['kept']:>10,} kept"
        f" {found['seconds']:8.1f} s ({found['cpu_seconds']:.1f} s CPU)"
        f" {found['peak_bytes'] / 1e9:7.2f} GB at most, {beyond:6.0f} bytes per feature beside its JSON  {steps}",
        flush=True,
    )
    return found["seconds"], found["cpu_seconds"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--features", type=int, default=85_000, help="about so many features are stored")
    parser.add_argument("--runs", type=int, default=3, help="so often each side runs, in turns")
    parser.add_argument("--peer", help="Python of an environment with osml-model-runner==2.3.0")
    arguments = parser.parse_args()
    detections = scene(SEED, int(arguments.features / DETECTIONS_PER_OBJECT), 84.0, (12.0, 60.0))
    with tempfile.TemporaryDirectory() as directory, Emulator(Path(directory)) as emulator:
        environment = clean_environment(os.environ) | dict(emulator.environment)
        os.environ |= environment
        stored_bytes = fill(emulator, detections, bool(arguments.peer))
        print(
            f"{len(detections.boxes):,} features in {len(detections.frames)} tiles, {stored_bytes / 1e6:.0f} MB of JSON"
        )
        ours, peer = [], []
        for _ in range(arguments.runs):
            ours.append(measured("ours", [sys.executable, __file__, "--ours"], environment, stored_bytes))
            if arguments.peer:
                script = str(Path(__file__).with_name("peer.py"))
                sizes = [str(detections.side_px), str(TILE.width), str(OVERLAP.width)]
                command = [arguments.peer, script, "aggregate", IMAGE_ID, *sizes]
                tables = {"FEATURE_TABLE": "PEER_FEATURE_TABLE", "JOB_TABLE": "PEER_JOB_TABLE"}
                peer.append(measured("peer", command, environment | tables, stored_bytes))
        emulator_alone(emulator)
        print_medians(ours, peer)


def print_medians(ours: list[tuple[float, float]], peer: list[tuple[float, float]]) -> None:
    """Print the medians of (seconds, CPU seconds), and how they compare."""
    seconds, cpu_seconds = np.median(ours, axis=0)
    print(f"ours: median {seconds:.2f} s ({cpu_seconds:.2f} s CPU)")
    if peer:
        peer_seconds, peer_cpu_seconds = np.median(peer, axis=0)
        print(f"peer: median {peer_seconds:.2f} s ({peer_cpu_seconds:.2f} s CPU)")
        by_clock, by_cpu = peer_seconds / seconds, peer_cpu_seconds / cpu_seconds
        print(f"{by_clock:.1f} times faster by the clock, {by_cpu:.1f} times less CPU")


if __name__ == "__main__":
    run_ours() if "--ours" in sys.argv else main()
