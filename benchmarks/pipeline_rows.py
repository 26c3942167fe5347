"""The rows of the benchmark: what is measured, and what it is held against. Each returns its figures by label."""

import threading
import time
import uuid
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from osgeo import gdal
from pyproj import Transformer
from worker_bench import BLOCK_PX, PIXEL_M, UTM_CORNER, UTM_ZONE, AwsProxy, Bench, Figures, Job

from aws.osml.model_runner.api.image_url import parse_image_url
from aws.osml.model_runner.api.processor_input import ProcessorInput
from aws.osml.model_runner.common.machine import usable_cores
from aws.osml.model_runner.common.typing import ImageRegion
from aws.osml.model_runner.raster import ImageSource, RasterSettings, open_image, prepare, write_geotiff
from aws.osml.model_runner.raster.resampled_pixels import pixels_of
from aws.osml.model_runner.raster.tile_pixels import TilePixels
from aws.osml.model_runner.raster.window import read_pixels, tile_view

Row = dict[str, Any]

_CORES = usable_cores()
# How often a tile is cut when its CPU time is measured.
_CUTS = 20
# The worker's own names of what happens to a tile, in order. The rest of ``TileProcessing`` is waiting.
STEPS = {
    "cut": "TileGeneration",
    "model": "ModelInvocation",
    "locate": "FeatureRefinement",
    "store": "FeatureStorage",
}


def summary(figures: Figures) -> Row:
    """Return what a job came to, rounded."""
    return {
        "tiles/s": round(figures.tiles_per_s, 1),
        "CPU ms/tile": round(figures.cpu_ms_per_tile, 1),
        "servers' CPU ms/tile": round(1000 * figures.servers_cpu_s / max(1, figures.tiles), 1),
        "busy %": round(100 * figures.busy_share),
        "MB": round(figures.rss_mb),
        "started s": round(figures.started_s, 2),
        "first call s": round(figures.first_call_s, 2),
        "last call s": round(figures.last_call_s, 2),
        "wall s": round(figures.wall_s, 2),
        "tiles": figures.tiles,
        "most calls": figures.peak_calls,
        "images/min": round(60 * figures.images / figures.wall_s, 1),
        "ends": ",".join(figures.statuses),
    }


def beside_peer(bench: Bench, job: Job) -> Row:
    """Measure a job with both workers, one after the other."""
    ours = bench.run(job)
    row: Row = {"ours": summary(ours)}
    if bench.peer:
        peer = bench.run(job, is_peer=True)
        row["peer"] = summary(peer)
        row["times the tiles/s"] = round(ours.tiles_per_s / peer.tiles_per_s, 1)
        row["CPU per tile, peer's over ours"] = round(peer.cpu_ms_per_tile / ours.cpu_ms_per_tile, 1)
    return row


def throughput(bench: Bench) -> Row:
    """12288 px, 1024 px tiles, 50 ms, 20 features."""
    return beside_peer(bench, Job(bench.image(12288)))


def many_features(bench: Bench) -> Row:
    """The same with 500 features per tile."""
    return beside_peer(bench, Job(bench.image(12288), features=500))


def secured(bench: Bench) -> Row:
    """With an endpoint of SageMaker, signed and by TLS as all of AWS, beside the same by plain HTTP."""
    row: Row = {}
    for features in (20, 500):
        plain = bench.run(Job(bench.image(12288), features=features))
        figures = bench.run(Job(bench.image(12288), features=features, is_secured=True))
        row[f"{features} features"] = summary(figures) | {
            "plain tiles/s": round(plain.tiles_per_s, 1),
            "plain CPU ms/tile": round(plain.cpu_ms_per_tile, 1),
        }
    return row


def slow_endpoint(bench: Bench) -> Row:
    """Four images, 300 ms, and 16 or 64 calls at once: the tiles/s, and their share of what the endpoint allows."""
    row: Row = {}
    for workers in (16, 64):
        allowed = workers / 0.3
        figures = bench.run(Job(bench.image(12288), latency_ms=300, workers=workers, images=4))
        share = {"allowed tiles/s": round(allowed), "share %": round(100 * figures.tiles_per_s / allowed)}
        row[f"{workers} calls"] = summary(figures) | share
    return row


def small_images(bench: Bench) -> Row:
    """20 images of 1024 px in a row."""
    return beside_peer(bench, Job(bench.image(1024), images=20))


def formats(bench: Bench) -> Row:
    """Tiles/s by format, and what all cores encode with GDAL when nothing else is done."""
    row: Row = {}
    for name, compression in (("PNG", "NONE"), ("JPEG", "NONE"), ("NITF", "NONE"), ("NITF", "J2K")):
        job = Job(bench.image(12288), tile_format=name, compression=compression, latency_ms=5)
        alone = _encoded_per_s(job)
        figures = bench.run(job)
        share = {"GDAL alone": round(alone, 1), "share %": round(100 * figures.tiles_per_s / alone)}
        row[f"{name}/{compression}"] = summary(figures) | share
    return row


def _encoded_per_s(job: Job) -> float:
    """Encode tiles with GDAL alone, a thread per core, and return how many come out in a second."""
    options = {"PNG": [], "JPEG": [], "NITF": ["IC=C8"] if job.compression == "J2K" else ["IC=NC"]}[job.tile_format]
    starts = [(row, col) for row in range(0, 5000, 974) for col in range(0, 5000, 974)]

    def encode(mine: Sequence[tuple[int, int]]) -> None:
        source = open_image(parse_image_url(str(job.image), {"file"}), RasterSettings())
        with source.handle() as handle:
            for origin in mine:
                tile = ImageRegion.of((origin, (job.tile, job.tile)))
                pixels = read_pixels(handle.dataset, tile, source.data_type)
                view = tile_view(handle.dataset, tile, source.data_type, pixels)
                path = f"/vsimem/{uuid.uuid4().hex}"
                gdal.GetDriverByName(job.tile_format).CreateCopy(path, view, strict=0, options=options).FlushCache()
                gdal.Unlink(path)

    threads = [threading.Thread(target=encode, args=(starts[number::_CORES],)) for number in range(_CORES)]
    begun = time.monotonic()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return len(starts) / (time.monotonic() - begun)


def memory(bench: Bench) -> Row:
    """12288 px whole; 1000 tiles of 100000 px."""
    whole = bench.run(Job(bench.image(12288)))
    huge = bench.image(100_000, is_sparse=True)
    part = bench.run(Job(huge, latency_ms=5, roi=_roi((0, 0), 31 * 974 + 50)))
    return {"12288 px": summary(whole), "100000 px": summary(part), "ratio": round(part.rss_mb / whole.rss_mb, 2)}


def growth(bench: Bench) -> Row:
    """The cost of a tile in images of 100 tiles and in one of 10,000."""
    few = bench.run(Job(bench.image(1280), tile=128, overlap=0, latency_ms=1, images=10))
    many = bench.run(Job(bench.image(12800), tile=128, overlap=0, latency_ms=1))
    ratio = round(many.cpu_ms_per_tile / few.cpu_ms_per_tile, 2)
    return {"100 tiles": summary(few), "10,000 tiles": summary(many), "CPU per tile, ratio": ratio}


def s3_input(bench: Bench) -> Row:
    """An image in S3: bytes fetched over bytes needed, of all of it and of an ROI of 1 %."""
    side_px, row = 12288, {}
    for compression in ("NONE", "DEFLATE", "JPEG"):
        path = bench.image(side_px, compression)
        for name, roi_px in (("whole", side_px), ("1 % of it", side_px // 10)):
            # Not on the edge of a block: the outline of a region of interest is rounded outwards.
            corner = ((side_px - roi_px) // 2 - 3,) * 2 if roi_px < side_px else (0, 0)
            fetched = _fetched_bytes(bench, Job(path, latency_ms=5, roi=_roi(corner, roi_px)))
            needed = _stored_bytes(str(path), corner, roi_px)
            found = {"fetched MB": round(fetched / 1e6, 1), "needed MB": round(needed / 1e6, 1)}
            row[f"{compression}, {name}"] = found | {"ratio": round(fetched / needed, 2)}
    return row


def _fetched_bytes(bench: Bench, job: Job) -> int:
    """Have a worker read an image through a proxy in front of S3, and return the bytes that came back."""
    with AwsProxy(bench.emulator.url) as proxy:
        through_proxy = {"AWS_S3_ENDPOINT": proxy.environment["AWS_S3_ENDPOINT"]}
        with bench.worker(Job(job.image, settings=through_proxy)) as worker:
            bucket = worker.plane.result_bucket
            bench.emulator.client("s3").upload_file(str(job.image), bucket, "image.tif")
            worker.measured(Job(f"s3://{bucket}/image.tif", latency_ms=job.latency_ms, roi=job.roi))
        return proxy.received_bytes["s3"]


def _stored_bytes(path: str, corner: tuple[int, int], side_px: int) -> int:
    """Return the bytes of the blocks of a file that hold a square's pixels: no reader can do with less."""
    # A band does not keep its dataset alive.
    dataset = gdal.OpenEx(path, allowed_drivers=["GTiff"])
    band = dataset.GetRasterBand(1)
    rows, cols = (range(first // BLOCK_PX, -(-(first + side_px) // BLOCK_PX)) for first in corner)
    sizes = (band.GetMetadataItem(f"BLOCK_SIZE_{x}_{y}", "TIFF") for y in rows for x in cols)
    return sum(int(size) for size in sizes)


def _roi(corner: tuple[int, int], side_px: int) -> str:
    """Return a region of interest, in degrees, for a square of pixels (row, column of its corner) of our images."""
    row, col = corner
    west, north = UTM_CORNER[0] + col * PIXEL_M, UTM_CORNER[1] - row * PIXEL_M
    east, south = west + side_px * PIXEL_M, north - side_px * PIXEL_M
    to_degrees = Transformer.from_crs(UTM_ZONE, 4326, always_xy=True).transform
    corners = [(west, north), (east, north), (east, south), (west, south), (west, north)]
    return "POLYGON ((" + ", ".join("{} {}".format(*to_degrees(*place)) for place in corners) + "))"


def prepared_pixels(bench: Bench) -> Row:
    """CPU of a tile of 1024 px whose eight bands of 16 bits become three of 8, beside the plain read of its pixels."""
    side_px, tile_px = 4096, 1024
    path = bench.directory / "eight-bands.tif"
    rng = np.random.default_rng(1)
    write_geotiff(path, rng.integers(0, 2048, (8, side_px, side_px), np.uint16), compression="NONE")
    source = open_image(parse_image_url(str(path), {"file"}), RasterSettings())
    plain, row = TilePixels(source), Row()
    for scale in (1.0, 0.5):
        stretch = {"type": "MINMAX", "min": 0, "max": 2047}
        asked = {"bands": [5, 3, 2], "stretch": stretch, "pixelType": "UINT8", "scale": scale}
        prepared = pixels_of(source, prepare(source, ProcessorInput.model_validate(asked)))
        read_px = round(tile_px / scale)
        plain_ms = _cut_ms(source, plain, ImageRegion.of(((0, 0), (read_px, read_px))))
        ours_ms = _cut_ms(source, prepared, ImageRegion.of(((0, 0), (tile_px, tile_px))))
        figures = {"CPU ms": ours_ms, "plain read CPU ms": plain_ms, "above CPU ms": ours_ms - plain_ms}
        row[f"scale {scale:g}"] = {name: round(value, 1) for name, value in figures.items()}
    source.close()
    return row


def _cut_ms(source: ImageSource, pixels: TilePixels, tile: ImageRegion) -> float:
    """Return the least CPU time of reading a tile whose blocks are decoded, in milliseconds."""
    with source.handle() as handle:
        times = []
        for _ in range(_CUTS):
            begun = time.process_time()
            pixels.read(handle, tile)
            times.append(1000 * (time.process_time() - begun))
    return min(times)


def profile(bench: Bench) -> Row:
    """Where a tile's time goes, in milliseconds: the means of what the worker measures; the rest is waiting."""
    row: Row = {}
    for features in (20, 500):
        job = Job(bench.image(12288), features=features)
        with bench.worker(job) as worker:
            worker.measured(job)
            durations = worker.durations_ms()
        steps = {name: durations[operation] for name, operation in STEPS.items()}
        waiting = {"wait": durations["TileProcessing"] - sum(steps.values())}
        row[f"{features} features"] = {name: round(ms, 1) for name, ms in (steps | waiting).items()}
    return row


ROWS: dict[str, Callable[[Bench], Row]] = {
    function.__name__: function
    for function in (
        throughput,
        many_features,
        secured,
        slow_endpoint,
        small_images,
        formats,
        memory,
        growth,
        s3_input,
        prepared_pixels,
        profile,
    )
}
