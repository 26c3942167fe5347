"""Compare what `model-runner plan` quotes with what a real worker then uses: bytes, write units, minutes.

    .venv/bin/python benchmarks/quotes.py
    .venv/bin/python benchmarks/quotes.py --side 4096 --latency-ms 500

The image is in the emulator's S3, behind a proxy that counts bytes and capacity units. A first job on a small image
measures the rate of calls; the second job is quoted with this rate.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from worker_bench import AwsProxy, Bench, Figures, Job, UnitMeter, WorkerRun

from aws.osml.model_runner.local.stack.emulator import Emulator
from aws.osml.model_runner.raster import RasterSettings, configure_gdal


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--side", type=int, default=8192, help="width and height of the image")
    parser.add_argument("--compression", default="DEFLATE", help="compression of the image")
    parser.add_argument("--latency-ms", type=int, default=1000, help="time that the model takes for a tile")
    parser.add_argument("--region", type=int, default=2048, help="largest side of a region")
    parser.add_argument("--features", type=int, default=1, help="features of each tile")
    arguments = parser.parse_args()
    configure_gdal(RasterSettings(), {})
    with tempfile.TemporaryDirectory(prefix="bench-") as name, Emulator(Path(name)) as emulator:
        bench, meter = Bench(Path(name), emulator, None), UnitMeter()
        with AwsProxy(emulator.url, steps=[meter]) as proxy:
            job = Job(
                bench.image(arguments.side // 2, arguments.compression),
                tile=512,
                region=arguments.region,
                latency_ms=arguments.latency_ms,
                features=arguments.features,
                settings=proxy.environment,
            )
            with bench.worker(job) as worker:
                first = worker.measured(replace(job, image=_stored(worker, job)))
                calls_per_second = first.tiles / _busy_s(first, job)
            large = replace(job, image=bench.image(arguments.side, arguments.compression))
            with bench.worker(large) as worker:
                url = _stored(worker, large)
                quote = _quote(worker, large, url, calls_per_second, Path(name))
                fetched, units = proxy.received_bytes["s3"], sum(meter.writes.values())
                run = worker.measured(replace(large, image=url))
                used = {
                    "calls": run.tiles,
                    "storage_bytes": proxy.received_bytes["s3"] - fetched,
                    "write_units": sum(meter.writes.values()) - units,
                    "endpoint_minutes": _busy_s(run, large) / 60,
                }
    print(f"{calls_per_second:.3g} calls/s, {run.tiles} tiles, statuses {', '.join(run.statuses)}")
    for what, amount in used.items():
        print(f"{what:20} quoted {quote[what]:14,.4g}   used {amount:14,.4g}   ratio {quote[what] / amount:.3f}")


def _stored(worker: WorkerRun, job: Job) -> str:
    """Put the image of a job into the bucket of results and return its URL."""
    bucket, key = worker.plane.result_bucket, Path(job.image).name
    worker.emulator.client("s3").upload_file(str(job.image), bucket, key)
    return f"s3://{bucket}/{key}"


def _busy_s(run: Figures, job: Job) -> float:
    """Return the seconds from the first call of the model to the last response."""
    return run.last_call_s - run.first_call_s + job.latency_ms / 1000


def _quote(worker: WorkerRun, job: Job, url: str, calls_per_second: float, folder: Path) -> dict[str, Any]:
    """Return the totals that `model-runner plan` prints for a job."""
    request = {
        "jobId": "quoted",
        "imageUrls": [url],
        "outputs": [{"type": "S3", "bucket": worker.plane.result_bucket, "prefix": "quoted"}],
        "imageProcessor": {"name": f"{worker.model_url}/invocations", "type": "HTTP_ENDPOINT"},
        "imageProcessorTileSize": job.tile,
        "imageProcessorTileOverlap": job.overlap,
        "imageProcessorTileFormat": job.tile_format,
        "imageProcessorTileCompression": job.compression,
    }
    path = folder / "request.json"
    path.write_text(json.dumps(request))
    environment = os.environ | worker.emulator.environment | {"REGION_SIZE": f"({job.region}, {job.region})"}
    environment |= {
        "AWS_S3_ENDPOINT": worker.emulator.url.removeprefix("http://"),
        "AWS_HTTPS": "NO",
        "AWS_VIRTUAL_HOSTING": "FALSE",
    }
    command = [sys.executable, "-m", "aws.osml.model_runner", "plan", str(path), "--json"]
    command += ["--calls-per-second", str(calls_per_second)]
    printed = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
    totals: dict[str, Any] = json.loads(printed)["totals"]
    return totals


if __name__ == "__main__":
    main()
