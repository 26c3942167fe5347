"""The oracle of every fault test: what has to hold once jobs have ended, whatever happened on the way."""

import json
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from boto3.dynamodb.types import TypeDeserializer
from botocore.exceptions import ClientError

from aws.osml.model_runner.features.tile_blob import unpack_tile
from worker_process import Site, eventually

Row = dict[str, Any]

TERMINAL = frozenset({"SUCCESS", "PARTIAL", "FAILED"})
ALL_QUEUES = frozenset({"IMAGE_QUEUE", "REGION_QUEUE", "IMAGE_DLQ", "REGION_DLQ"})


@dataclass
class Books:
    """All that the tables, the bucket, the stream and the topic of a site say, read once."""

    images: dict[str, Row]
    regions: dict[str, list[Row]]
    tiles: dict[str, list[Row]]
    records: dict[str, list[Row]]
    site: Site
    violations: list[str] = field(default_factory=list)

    @classmethod
    def read(cls, site: Site) -> "Books":
        images = {row["job_id"]: row for row in _rows(site, "JOB_TABLE") if "image_url" in row}
        by_image = {row["image_id"]: job_id for job_id, row in images.items()}
        regions, tiles = defaultdict(list), defaultdict(list)
        for row in _rows(site, "REGION_REQUEST_TABLE"):
            regions[by_image.get(row["image_id"], row["image_id"])].append(row)
        for row in _whole_tiles(site, _rows(site, "FEATURE_TABLE")):
            image_id = row["hash_key"].rpartition("-")[0]
            tiles[by_image.get(image_id, image_id)].append(row)
        return cls(images, regions, tiles, _records(site), site)

    def check(self, job_id: str, status: str | None, terminal_writes: Counter[str]) -> None:
        """Hold one job against the protocol; what does not fit is added to ``violations``."""
        image = self.images.get(job_id)
        if image is None:
            self._expect(f"{job_id}: a row", True, False)
            return
        told = {told for told in self.site.statuses(job_id) if told in TERMINAL}
        self._expect(f"{job_id}: distinct terminal statuses published", {image.get("image_status")}, told)
        self._expect(f"{job_id}: status", status or image.get("image_status"), image.get("image_status"))
        self._expect(f"{job_id}: an outbox", False, "status_outbox" in image)
        # A worker that is killed between the write and the note of it leaves none.
        self._expect(f"{job_id}: at most one terminal write", True, terminal_writes[image["image_id"]] <= 1)
        if "region_count" in image:
            self._check_counts(job_id, image)
            self._check_outputs(job_id, image)

    def copies(self) -> float:
        """Return how many records there are for each feature in the stream."""
        records = [record for records in self.records.values() for record in records]
        return len(records) / max(1, len({record["properties"]["feature_id"] for record in records}))

    def _check_counts(self, job_id: str, image: Row) -> None:
        regions, tiles = self.regions[job_id], self.tiles[job_id]
        good = [tile for tile in tiles if tile["tile_status"] == "SUCCEEDED"]
        self._expect(f"{job_id}: regions ended", image["region_count"], image["region_success"] + image["region_error"])
        self._expect(f"{job_id}: region rows", image["region_count"], len(regions))
        self._expect(f"{job_id}: tile rows", image["tile_count"], len(tiles))
        self._expect(f"{job_id}: good tiles", len(good), image["tile_success"])
        self._expect(f"{job_id}: failed tiles", len(tiles) - len(good), image["tile_error"])
        for region in regions:
            of_region = [tile for tile in tiles if tile["region_id"] == region["region_id"]]
            name = f"{job_id}: {region['region_id']}"
            self._expect(f"{name}: is over", True, region["region_status"] in TERMINAL)
            self._expect(f"{name}: tiles", region.get("total_tiles"), len(of_region))
            listed = [json.dumps(_plain(tile)) for tile in region.get("succeeded_tiles", [])]
            stored = [json.dumps(_plain(tile["tile_bounds"])) for tile in of_region if tile in good]
            self._expect(f"{name}: good tiles listed", sorted(stored), sorted(listed))

    def _check_outputs(self, job_id: str, image: Row) -> None:
        committed = Counter(
            _identity(json.loads(text))
            for tile in self.tiles[job_id]
            if tile["tile_status"] == "SUCCEEDED"
            for text in tile["features"]
        )
        done = " ".join(image.get("sinks_done", ()))
        if "S3" in done:
            delivered = Counter(_identity(feature) for feature in self._s3_features(job_id))
            self._expect(f"{job_id}: features in S3", committed, delivered)
        if "Kinesis" in done:
            by_id = {record["properties"]["feature_id"]: record for record in self.records[job_id]}
            streamed = Counter(_identity(record) for record in by_id.values())
            self._expect(f"{job_id}: features in the stream", committed, streamed)

    def _s3_features(self, job_id: str) -> list[Row]:
        try:
            return self.site.features(job_id)
        except ClientError as err:
            self.violations.append(f"{job_id}: nothing in S3: {err}")
            return []

    def _expect(self, what: str, expected: Any, found: Any) -> None:
        if expected != found:
            self.violations.append(f"{what}: {_short(found)} instead of {_short(expected)}")


def check_jobs(
    site: Site,
    jobs: Mapping[str, str | None],
    writes: Iterable[Mapping[str, Any]],
    empty: Collection[str] = ALL_QUEUES,
) -> Books:
    """Wait until every job is closed and the queues ``empty`` are, and hold ``jobs`` against the protocol.

    ``jobs`` maps each job to the status that it has to end with, None for any; ``writes`` are the journal's.
    """
    eventually(lambda: not site.open_jobs())
    for queue in empty:
        eventually(lambda queue=queue: site.messages_in(queue) == 0, 90.0)
    books = Books.read(site)
    taken = Counter(write["row"].split()[0] for write in writes if write["status"] == 200)
    for job_id, status in jobs.items():
        books.check(job_id, status, taken)
    return books


def _rows(site: Site, table: str) -> list[Row]:
    as_python = TypeDeserializer().deserialize
    return [{name: as_python(value) for name, value in row.items()} for row in site.rows(table)]


def _whole_tiles(site: Site, rows: list[Row]) -> list[Row]:
    """Return the rows of tiles, each with its features: from its blob, its overflow rows, or the work bucket."""
    rest = {
        (row["hash_key"], row["tile_token"], int(row["chunk"])): bytes(row["feature_blob"])
        for row in rows
        if "chunk" in row
    }
    tiles = []
    for row in rows:
        if "tile_status" not in row:
            continue
        blob = site.work_object(row["blob_key"]) if "blob_key" in row else bytes(row.get("feature_blob", b""))
        for number in range(1, int(row["chunks"])):
            blob += rest[row["hash_key"], row["tile_token"], number]
        tiles.append(row | {"features": list(unpack_tile(blob)[0]) if blob else []})
    return tiles


def _records(site: Site) -> dict[str, list[Row]]:
    """Return the features in the stream by job, each as often as it is there."""
    records: dict[str, list[Row]] = defaultdict(list)
    for feature in site.stream_features():
        records[feature["properties"]["job_id"]].append(feature)
    return records


def _identity(feature: Row) -> str:
    """Return the identity of a feature: its bounding box and the response that it came with."""
    properties = feature["properties"]
    return json.dumps([properties["imageGeometry"], properties.get("tile_number"), properties.get("attempt")])


def _plain(value: Any) -> Any:
    return [_plain(inner) for inner in value] if isinstance(value, list) else int(value)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) < 300 else f"{text[:300]}…"
