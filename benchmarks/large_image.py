"""One image with very many features through one worker of little memory, to every kind of output.

    .venv/bin/python benchmarks/large_image.py [--features 1000000] [--memory-gb 2] [--outputs GEOJSON,KINESIS]

Starts an emulator, and ``disk_storage.py`` for S3, Kinesis and the table of features. Commits the tiles of a made-up
image as workers do. One process finishes the image through the product's own classes, under RLIMIT_DATA of the given
memory. Prints seconds, CPU, peak memory, and the number of features in each output.
"""

import argparse
import json
import math
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import Pool
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import numpy as np
from scenes import OVERLAP, REGION, TILE, Floats

from aws.osml.model_runner.common.machine import tune_gc, tune_malloc
from aws.osml.model_runner.common.typing import ImageCoord, ImageDimensions, ImageRegion, TileState
from aws.osml.model_runner.config import ServiceConfig
from aws.osml.model_runner.database import FeatureTable, JobItem, TileKey, TileOutcome
from aws.osml.model_runner.features.encoding import encode_features
from aws.osml.model_runner.features.tile_spans import bounds_of_tiles
from aws.osml.model_runner.local.stack.child_process import clean_environment
from aws.osml.model_runner.local.stack.data_plane import create_data_plane
from aws.osml.model_runner.local.stack.emulator import Emulator
from aws.osml.model_runner.model_runner import ModelRunner
from aws.osml.model_runner.tile_worker import VariableOverlapTilingStrategy
from aws.osml.model_runner.tiling.region_plan import TilePlanner, region_id_of
from aws.osml.model_runner.worker.process import WorkerProcess
from aws.osml.model_runner.worker.wiring import wired

JOB_ID, IMAGE_ID = "large", "large:s3://images/large.tif"
FEATURES_PER_TILE = 500
# Objects of 10 to 30 pixels, one in each cell of a grid of this pitch.
PITCH_PX = TILE.width / math.sqrt(FEATURES_PER_TILE)
LEAST_PX, MOST_PX = 10.0, 30.0
LEAST_VISIBLE_PX = 2.0
BUCKET, STREAM = "results", "results"
OUTPUTS: dict[str, dict[str, Any]] = {
    name: {"type": "S3", "bucket": BUCKET, "prefix": name.lower(), "format": name}
    for name in ("GEOJSON", "GEOJSONSEQ", "GEOPARQUET")
} | {"KINESIS": {"type": "Kinesis", "stream": STREAM}}
STORERS = 4


def objects_near(left: float, top: float, right: float, bottom: float) -> Floats:
    """Return (n, 5) the boxes and the scores of the objects that touch a box: the same for whoever looks there."""
    columns = np.arange(int(left / PITCH_PX) - 1, int(right / PITCH_PX) + 1)
    rows = np.arange(int(top / PITCH_PX) - 1, int(bottom / PITCH_PX) + 1)
    column, row = (axis.ravel() for axis in np.meshgrid(columns[columns >= 0], rows[rows >= 0]))
    draws = [_uniform(column, row, salt) for salt in range(5)]
    sizes = [LEAST_PX + draw * (MOST_PX - LEAST_PX) for draw in draws[:2]]
    x = column * PITCH_PX + draws[2] * (PITCH_PX - sizes[0])
    y = row * PITCH_PX + draws[3] * (PITCH_PX - sizes[1])
    return np.stack([x, y, x + sizes[0], y + sizes[1], 0.5 + draws[4] / 2], axis=1)


def _uniform(column: np.ndarray, row: np.ndarray, salt: int) -> Floats:
    """Return numbers in [0, 1) that follow from a cell alone."""
    mixed = (column.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)) ^ (row.astype(np.uint64) << np.uint64(20))
    mixed = (mixed ^ np.uint64(salt + 1)) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(29))) * np.uint64(0x94D049BB133111EB)
    return (mixed >> np.uint64(11)).astype(np.float64) / 2**53


def features_of(tile: ImageRegion) -> Iterator[dict[str, Any]]:
    """Yield what a tile reports: each object that shows in it, cut where the tile ends."""
    left, top, right, bottom = bounds_of_tiles([tile])[0].tolist()
    found = objects_near(left, top, right, bottom)
    boxes = np.clip(found[:, :4], [left, top, left, top], [right, bottom, right, bottom]).round(2)
    is_visible = ((boxes[:, 2:] - boxes[:, :2]) >= LEAST_VISIBLE_PX).all(axis=1)
    scores = found[is_visible, 4].round(6).tolist()
    pixels = boxes[is_visible]
    degrees = (np.array([10, 50, 10, 50]) + pixels * [1e-6, -1e-6, 1e-6, -1e-6]).round(8)
    for (x0, y0, x1, y1), (west, north, east, south), score in zip(
        pixels.tolist(), degrees.tolist(), scores, strict=True
    ):
        ring = [[x0, y0], [x0, y1], [x1, y1], [x1, y0], [x0, y0]]
        ground = [[west, north], [west, south], [east, south], [east, north], [west, north]]
        properties = {
            "imageGeometry": {"type": "Polygon", "coordinates": [ring]},
            "imageBBox": [x0, y0, x1, y1],
            "featureClasses": [{"iri": "ship", "score": score}],
            "modelMetadata": {"modelName": "bench", "ontologyName": "ships"},
            "center_longitude": west,
            "center_latitude": north,
            "image_id": IMAGE_ID,
            "inferenceTime": "2026-11-28T08:00:00Z",
        }
        yield {
            "type": "Feature",
            "geometry": {"type": "Polygon", "coordinates": [ground]},
            "properties": properties,
        }


def planner() -> TilePlanner:
    return TilePlanner(VariableOverlapTilingStrategy(), TILE, OVERLAP)


def bounds_of(side_px: int) -> ImageRegion:
    return ImageRegion(ImageCoord(0, 0), ImageDimensions(side_px, side_px))


def feature_table() -> FeatureTable:
    """Return a worker's table of features."""
    config = ServiceConfig.from_environment(os.environ)
    parts = wired(config, VariableOverlapTilingStrategy(), WorkerProcess.from_config(config))
    return parts.new_feature_table(TILE, OVERLAP, lambda: None)


def store(region: ImageRegion) -> tuple[int, int]:
    """Commit the tiles of a region as a worker does; return how many tiles, and how many features."""
    table = feature_table()
    tiles = planner().tiles(region)
    features = 0
    for tile in tiles:
        encoded = encode_features(features_of(tile.bounds))
        key = TileKey(IMAGE_ID, region_id_of(region, JOB_ID), tile.index)
        table.commit_tile(key, tile.bounds, TileOutcome(TileState.SUCCEEDED, encoded.bodies, encoded.detections))
        features += len(encoded.bodies)
    return len(tiles), features


def put_job(side_px: int, tiles: int, outputs: list[str]) -> None:
    """Write the row of an image whose regions are all counted."""
    runner = ModelRunner(config=ServiceConfig.from_environment(os.environ))
    row = JobItem(
        IMAGE_ID,
        job_id=JOB_ID,
        image_url="s3://images/large.tif",
        model_name="bench",
        model_invoke_mode="SM_ENDPOINT",
        tile_size=str(tuple(TILE)),
        tile_overlap=str(tuple(OVERLAP)),
        region_size=list(REGION),
        processing_bounds=bounds_of(side_px).to_lists(),
        image_status="IN_PROGRESS",
        start_time=int(time.time() * 1000),
        region_count=1,
        region_success=1,
        region_error=0,
        tile_count=tiles,
        tile_success=tiles,
        tile_error=0,
        generation=0,
        agg_fence=0,
        agg_lease_until=0,
        agg_not_before=0,
        agg_stalled=0,
        outputs=json.dumps([OUTPUTS[name] for name in outputs]),
        feature_properties="[]",
        feature_distillation_option=json.dumps({"algorithm_type": "SEAM"}),
    )
    runner.job_table.put(row.to_put())


def finish() -> None:
    """Finish the image in this process, set up as a worker's, and print what that took."""
    tune_malloc()
    tune_gc()
    config = ServiceConfig.from_environment(os.environ)
    resource.setrlimit(resource.RLIMIT_DATA, (config.memory_limit_bytes, config.memory_limit_bytes))
    runner = ModelRunner(config=config)
    runner.process.leases.start()
    started, cpu_started = time.perf_counter(), time.process_time()
    runner.image_request_handler.parts.completion.finish(IMAGE_ID)
    seconds, cpu_s = time.perf_counter() - started, time.process_time() - cpu_started
    job = runner.job_table.get_image_request(IMAGE_ID)
    peak_bytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(
        json.dumps(
            {"status": job.image_status, "message": job.message, "s": seconds, "cpu_s": cpu_s, "peak_bytes": peak_bytes}
        )
    )


@contextmanager
def disk_storage(directory: Path, table: str, emulator: str) -> Iterator[str]:
    """Run the stand-in for AWS and lend its URL."""
    command = [sys.executable, str(Path(__file__).with_name("disk_storage.py")), str(directory), table, emulator]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield f"http://127.0.0.1:{process.stdout.readline().strip()}"
        finally:
            process.terminate()


def counts_in(url: str, outputs: list[str], directory: Path) -> dict[str, int]:
    """Return how many features each output holds, by reading it."""
    from disk_storage import Storage

    storage, found = Storage(directory), {}
    for name in outputs:
        if name == "KINESIS":
            found[name] = int(json.loads(urlopen(f"{url}/records").read()))
            continue
        extension = {"GEOJSON": "geojson", "GEOJSONSEQ": "geojsonl", "GEOPARQUET": "parquet"}[name]
        path = storage.joined(f"/{BUCKET}/{name.lower()}/{JOB_ID}.{extension}")
        if name == "GEOPARQUET":
            from pyarrow import parquet

            found[name] = parquet.ParquetFile(path).metadata.num_rows
        else:
            found[name] = _occurrences(path, b'{"type":"Feature",')
    return found


def _occurrences(path: Path, text: bytes) -> int:
    count, rest = 0, b""
    with path.open("rb") as file:
        while block := file.read(1 << 24):
            joined = rest + block
            count += joined.count(text)
            rest = joined[-len(text) + 1 :]
    return count


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--features", type=int, default=1_000_000, help="about so many features are stored")
    parser.add_argument("--memory-gb", type=float, default=2.0, help="memory of the worker that finishes the image")
    parser.add_argument("--outputs", default=",".join(OUTPUTS), help="which outputs, all from one walk")
    parser.add_argument("--directory", help="where objects lie; a temporary directory by default")
    arguments = parser.parse_args()
    outputs = arguments.outputs.split(",")
    stride = TILE.width - OVERLAP.width
    side_px = OVERLAP.width + stride * max(1, round(math.sqrt(arguments.features / FEATURES_PER_TILE)))
    with tempfile.TemporaryDirectory(dir=arguments.directory) as name, Emulator(Path(name)) as emulator:
        objects = Path(name) / "objects"
        objects.mkdir()
        plane = create_data_plane(emulator.client)
        with disk_storage(objects, plane.environment["FEATURE_TABLE"], emulator.url) as url:
            own = {f"AWS_ENDPOINT_URL_{service}": url for service in ("S3", "KINESIS", "DYNAMODB")}
            limits = {"MEMORY_LIMIT_BYTES": str(int(arguments.memory_gb * 2**30)), "WORKERS": "4"}
            os.environ |= clean_environment(os.environ) | emulator.environment | dict(plane.environment) | own | limits
            started = time.perf_counter()
            regions = planner().regions(bounds_of(side_px), REGION)
            with Pool(STORERS, tune_gc) as pool:
                stored = np.array(pool.map(store, regions, chunksize=1)).sum(axis=0).tolist()
            put_job(side_px, stored[0], outputs)
            print(f"{stored[1]:,} features in {stored[0]:,} tiles, stored in {time.perf_counter() - started:.0f} s")
            command = [sys.executable, __file__, "--finish"]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                raise SystemExit(done.stdout[-2000:] + done.stderr[-4000:])
            found = json.loads(done.stdout.splitlines()[-1])
            print(
                f"{found['status']}, {found['message']}: {found['s']:.0f} s, {found['cpu_s']:.0f} s of CPU,"
                f" {found['peak_bytes'] / 2**30:.2f} GiB of memory at most"
            )
            for output, count in counts_in(url, outputs, objects).items():
                print(f"  {output:12} {count:>12,} features")


if __name__ == "__main__":
    finish() if "--finish" in sys.argv else main()
