"""Jobs of a world: images with numbers of regions and tiles, and a model whose behaviour changes."""

import copy
import dataclasses
import json
import random
import zlib
from typing import Any

from .services import model_error

REGION_PX = 720
ENDPOINT = "ships"
STREAM = "records"
BUCKET = "results"


@dataclasses.dataclass(frozen=True)
class Job:
    """One job of one image, ``regions * tiles`` tiles in a row from left to right.

    The tiles that begin at the columns of ``skipped`` have no valid pixel.
    """

    job_id: str
    regions: int
    tiles: int
    is_unreadable: bool
    skipped: frozenset[int] = frozenset()

    @property
    def url(self) -> str:
        return f"s3://images/{self.job_id}.tif"

    @property
    def image_id(self) -> str:
        return f"{self.job_id}:{self.url}"

    @property
    def width(self) -> int:
        return REGION_PX * self.regions

    @property
    def columns(self) -> list[int]:
        """Where each tile begins."""
        return list(range(0, self.width, REGION_PX // self.tiles))

    @property
    def processed(self) -> list[int]:
        """Where each tile begins that the model gets."""
        return [column for column in self.columns if column not in self.skipped]

    @property
    def result_key(self) -> str:
        return f"{self.job_id}/{self.job_id}.geojson"

    def is_bad(self, column: int) -> bool:
        """Return True for a tile that the model refuses for good, where a world has such tiles."""
        return zlib.crc32(f"{self.url}{column}".encode()) % 11 == 0

    def message(self) -> str:
        """Return the request as its sender puts it on the queue."""
        request: dict[str, Any] = {
            "jobId": self.job_id,
            "imageUrls": [self.url],
            "imageProcessor": {"name": ENDPOINT, "type": "SM_ENDPOINT"},
            "imageProcessorTileSize": REGION_PX // self.tiles,
            "imageProcessorTileOverlap": 0,
            "imageProcessorTileFormat": "PNG",
            "imageProcessorTileCompression": "NONE",
            "postProcessing": [],
            "outputs": [
                {"type": "S3", "bucket": BUCKET, "prefix": self.job_id},
                {"type": "Kinesis", "stream": STREAM, "batchSize": 4},
            ],
        }
        return json.dumps(request)


# How many jobs a world has, regions a job, and tiles a region: mostly few, which shows nearly as much for less time.
_JOBS = (1, 1, 1, 1, 2, 2, 3)
_PARTS = (1, 1, 2, 2, 3, 3, 4, 5, 6)


def random_jobs(rng: random.Random, unreadable: float) -> list[Job]:
    """Return a world's jobs, ``unreadable`` of them with an image that nobody can read."""
    jobs = [
        Job(f"job-{number}", rng.choice(_PARTS), rng.choice(_PARTS), is_unreadable=rng.random() < unreadable)
        for number in range(rng.choice(_JOBS))
    ]
    # From a copy, so that other choices of a world do not depend on it.
    own = copy.copy(rng)
    return [dataclasses.replace(job, skipped=_skipped(job, own)) if own.random() < _SKIPS else job for job in jobs]


# Share of the jobs that skip tiles; of their regions that have no other tiles; and of the tiles of other regions.
_SKIPS, _SKIPPED_REGIONS, _SKIPPED_TILES = 0.3, 0.4, 0.25


def _skipped(job: Job, rng: random.Random) -> frozenset[int]:
    skipped: set[int] = set()
    for first in range(0, len(job.columns), job.tiles):
        share = 1.0 if rng.random() < _SKIPPED_REGIONS else _SKIPPED_TILES
        skipped |= {column for column in job.columns[first : first + job.tiles] if rng.random() < share}
    return frozenset(skipped)


class Model:
    """Returns other features, and another number of them, for each call. Records its responses."""

    def __init__(self, rng: random.Random, jobs: dict[str, Job], has_bad_tiles: bool) -> None:
        self._rng = rng
        self._jobs = jobs
        self._has_bad_tiles = has_bad_tiles
        self.answers: list[int] = []
        # Tiles that were sent although the plan skips them.
        self.skipped: set[str] = set()

    def answer(self, tile: bytes) -> bytes:
        url, column = tile.decode().split("|")
        if int(column) in self._jobs[url].skipped:
            self.skipped.add(tile.decode())
        if self._has_bad_tiles and self._jobs[url].is_bad(int(column)):
            if self._rng.random() < 0.5:
                raise model_error(400)
            return b'{"error": "no detections"}'
        count = self._rng.choice((0, 1, 2, 3, 5))
        call = len(self.answers)
        self.answers.append(count)
        features = ",".join(_FEATURE % f"{url}|{column}|{call}|{ordinal}" for ordinal in range(count))
        return f'{{"type":"FeatureCollection","features":[{features}]}}'.encode()


_FEATURE = (
    '{"type":"Feature","geometry":{"type":"Point","coordinates":[0,0]},"properties":{"imageBBox":[1,2,7,9],'
    '"featureClasses":[{"iri":"ship","score":0.9}],"token":"%s"}}'
)
