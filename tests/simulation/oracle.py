"""Rules that must hold for a world in the end, after any faults."""

import json
from collections import Counter, defaultdict
from collections.abc import Iterator

from aws.osml.model_runner.exceptions import FeatureBlobError
from aws.osml.model_runner.features.tile_blob import unpack_tile
from aws.osml.model_runner.inference.retry import ALONE_POLICY

from .dynamodb import Item
from .jobs import Job
from .world import TERMINAL, World


def violations(world: World) -> list[str]:
    """Return a sentence for everything that is wrong."""
    found = [f"{job.job_id}: {problem}" for job in world.jobs.values() for problem in _JobOracle(world, job).problems()]
    if world.finished_at is None:
        found.append("the world did not come to rest")
    if world.dynamodb.tables["outstanding"].items() and _open_jobs(world):
        found.append("open jobs are left")
    for queue in (world.image_queue, world.region_queue):
        if queue.messages:
            found.append(f"{len(queue.messages)} messages are left on the queue {queue.name}")
    if any(
        "request_payload" not in row and not row["endpoint_id"].startswith("_")
        for row in world.dynamodb.tables["outstanding"].items()
    ):
        found.append("the row of a closed job came back")
    found += sorted(world.broken_rules)
    if problem := world.slots.problem():
        found.append(problem)
    found += [f"the alarm {alarm} was raised" for alarm in sorted(set(world.alarms))]
    return found + [f"unforeseen error {surprise}" for surprise in sorted(set(world.surprises))]


def _open_jobs(world: World) -> list[Item]:
    return [row for row in world.dynamodb.tables["outstanding"].items() if "request_payload" in row]


# How the end of a job begins that nobody could lead on.
_GIVEN_UP = ("this version cannot read the job", "the job could not be ended at its deadline")
# Faults that prevent a job from finishing, and a word of the reason in its status.
_UNFINISHED = {"aggregation": "aggregation crashed", "finish": "InjectedError"}
# The longest that a job takes in a world whose endpoint answers.
_LONGEST_S = 5400.0


class _JobOracle:
    def __init__(self, world: World, job: Job) -> None:
        self.world = world
        self.job = job
        self.image = world.dynamodb.tables["images"].item((job.image_id,)) or {}
        self.regions = [row for row in world.dynamodb.tables["regions"].items() if row["image_id"] == job.image_id]
        rows = [row for row in world.dynamodb.tables["features"].items() if _image_of(row) == job.image_id]
        self.tiles = [row for row in rows if "tile_status" in row]
        self.overflow = {(row["hash_key"], row["range_key"]): row for row in rows if "chunk" in row}

    @property
    def status(self) -> str:
        return str(self.image.get("image_status"))

    @property
    def _duration_s(self) -> float:
        """How long the last generation took."""
        return float(self.image["end_time"] - self.image["start_time"]) / 1000

    def problems(self) -> Iterator[str]:
        if not self.image:
            yield "was never accepted"
            return
        if self.status not in TERMINAL:
            yield f"is stuck as {self.status}"
            return
        yield from self._status_problems()
        if self._is_cut_short():
            return
        if self.world.spoilt and not self._is_spoilt and self._duration_s > _LONGEST_S:
            yield f"took {self._duration_s:.0f} s beside a job whose row was spoilt"
        is_poisoned = self.world.poisoned is self.job
        if self.job.is_unreadable or (is_poisoned and self.world.faults.poison == "plan"):
            if self.status != "FAILED":
                yield f"cannot be planned, and ended as {self.status}"
            return
        yield from self._count_problems()
        if is_poisoned and self.world.faults.poison in _UNFINISHED:
            yield from self._unfinished_problems()
            return
        yield from self._tile_problems()
        yield from self._output_problems()

    @property
    def _is_spoilt(self) -> bool:
        return self.job.image_id in self.world.spoilt

    def _is_cut_short(self) -> bool:
        """Return True when a job ended before its work did, so that nothing counts what was done before.

        That nothing was done after, the world has watched.
        """
        message = str(self.image.get("message"))
        if (self.job.image_id, int(self.image.get("generation", 0))) in self.world.cancelled:
            return True
        if self._is_spoilt and message.startswith(_GIVEN_UP):
            return True
        # A slot of the endpoint is held until both the lease and the region have ended.
        was_planned = self.image.get("region_count") is not None
        return bool(self.world.is_dead or self.world.spoilt) and not was_planned and "no room" in message

    def _unfinished_problems(self) -> Iterator[str]:
        if self.status != "FAILED" or self.job.result_key in self.world.s3.objects:
            yield f"cannot be aggregated, and ended as {self.status}"
        if _UNFINISHED[self.world.faults.poison] not in str(self.image.get("message")):
            yield f"cannot be aggregated, and its status has another reason: {self.image['message']}"

    def _status_problems(self) -> Iterator[str]:
        writes = [write for write in self.world.status_writes if write.image_id == self.job.image_id]
        generations = range(int(self.image.get("generation", 0)) + 1)
        if [write.generation for write in writes] != list(generations):
            ends = [(write.generation, write.status) for write in writes]
            yield f"its terminal status was written as {ends} in {len(generations)} generations"
        if len(generations) - 1 < self.world.generations_due.get(self.job.image_id, 0):
            yield "its request was sent again after it had not ended well, and it was not begun again"
        told = [
            message.attributes.get("status")
            for message in self.world.sns.published
            if message.topic.endswith(":image") and message.attributes.get("image_id") == self.job.image_id
        ]
        final = [status for status in told if status in TERMINAL]
        if not final:
            yield "its end was not published"
        elif set(final) != {write.status for write in writes}:
            yield f"{sorted(set(map(str, final)))} were published, and it ended as {[write.status for write in writes]}"
        if self.image.get("status_outbox"):
            yield "its status is still in the outbox"

    def _count_problems(self) -> Iterator[str]:
        image, job = self.image, self.job
        ended = [row for row in self.regions if row["region_status"] in TERMINAL]
        if not len(self.regions) == len(ended) == image.get("region_count") == job.regions:
            yield f"{len(ended)} of {len(self.regions)} regions ended, {image.get('region_count')} were planned"
        if not self._is_spoilt and image["region_success"] + image["region_error"] != job.regions:
            yield f"{image['region_success']} and {image['region_error']} regions were counted of {job.regions}"
        columns = Counter(int(row["tile_bounds"][0][1]) for row in self.tiles)
        if columns != Counter(job.processed):
            yield f"{len(self.tiles)} tile rows for {len(job.processed)} tiles"
        counts = image.get("tile_count"), image.get("tiles_skipped")
        if counts != (len(job.processed), len(job.skipped)):
            yield f"{counts} tiles were planned and skipped, of {len(job.columns)} with {len(job.skipped)} to skip"
        if (in_regions := sum(row.get("tiles_skipped", 0) for row in self.regions)) != len(job.skipped):
            yield f"its regions skip {in_regions} tiles of {len(job.skipped)}"
        if sent := [tile for tile in self.world.model.skipped if tile.startswith(f"{job.url}|")]:
            yield f"the model got {len(sent)} tiles that are skipped"
        good = sum(row["tile_status"] == "SUCCEEDED" for row in self.tiles)
        if (image["tile_success"], image["tile_error"]) != (good, len(self.tiles) - good):
            yield f"{image['tile_success']} and {image['tile_error']} tiles were counted, {good} rows succeeded"
        by_region = sum(row.get("succeeded_tile_count", 0) for row in ended)
        if by_region != image["tile_success"]:
            yield f"its regions count {by_region} good tiles, it counts {image['tile_success']}"

    def _tile_problems(self) -> Iterator[str]:
        for row in self.tiles:
            column = int(row["tile_bounds"][0][1])
            is_bad = self.world.faults.has_bad_tiles and self.job.is_bad(column)
            is_poison = (
                self.world.poisoned is self.job
                and self.world.faults.poison == "tile"
                and column == self.job.columns[-1]
            )
            is_good = row["tile_status"] == "SUCCEEDED"
            if not is_good and row["generation"] < self.image["generation"]:
                yield f"the tile at {column} failed in an earlier generation, and was not done again"
            may_fail = is_bad or is_poison or self.world.is_dead or self._has_timed_out(row, column)
            if not is_good and not may_fail:
                yield f"the healthy tile at {column} failed with {row.get('error_code')}"
            if is_good and (is_bad or is_poison):
                yield f"the tile at {column} cannot succeed, and did"

    def _has_timed_out(self, row: Item, column: int) -> bool:
        """Return whether a tile may fail for its time-outs: chance alone can lose every response to its calls."""
        timeouts = self.world.runtime.timeouts[f"{self.job.url}|{column}".encode()]
        return row.get("error_code") == "TIMEOUT" and timeouts >= (ALONE_POLICY.max_timeouts or 0)

    def _output_problems(self) -> Iterator[str]:
        expected, problems = self._committed()
        yield from problems
        bodies = self.world.s3.bodies.get(self.job.result_key, set())
        if not 1 <= len(bodies) <= int(self.image.get("generation", 0)) + 1:
            yield f"{len(bodies)} different results were written to S3"
        result = self.world.s3.objects.get(self.job.result_key, b'{"features":[]}')
        delivered = Counter(feature["properties"]["token"] for feature in json.loads(result)["features"])
        missing, extra = Counter(expected) - delivered, delivered - Counter(expected)
        if missing or extra:
            yield f"S3 lacks {missing.total()} features and has {extra.total()} too many"
        yield from self._record_problems(expected)
        wanted = "SUCCESS" if not self.image["tile_error"] else "PARTIAL" if self.image["tile_success"] else "FAILED"
        if self.status != wanted:
            yield f"it ended as {self.status}, and should have as {wanted}"

    def _committed(self) -> tuple[list[str], list[str]]:
        """Return what the features of the committed tiles are called, and what is wrong with them."""
        tokens: list[str] = []
        problems = []
        for row in self.tiles:
            if row["tile_status"] != "SUCCEEDED":
                continue
            try:
                texts, _ = unpack_tile(self._blob(row)) if row["feature_count"] else ((), None)
            except FeatureBlobError as err:
                problems.append(f"the tile {row['range_key']}: {err}")
                continue
            mine = [json.loads(text)["properties"]["token"] for text in texts]
            calls = {int(token.split("|")[2]) for token in mine}
            if len(calls) > 1 or any(self.world.model.answers[call] != len(mine) for call in calls):
                problems.append(f"the tile {row['range_key']} mixes or lacks what calls {sorted(calls)} found")
            tokens += mine
        return tokens, problems

    def _blob(self, row: Item) -> bytes:
        if "blob_key" in row:
            return self.world.s3.objects.get(row["blob_key"], b"")
        blob: bytes = row["feature_blob"]
        for number in range(1, int(row["chunks"])):
            key = (row["hash_key"], f"{row['range_key']}#{row['tile_token']}#{number:04d}")
            blob += self.overflow.get(key, {}).get("feature_blob", b"")
        return blob

    def _record_problems(self, expected: list[str]) -> Iterator[str]:
        ids: dict[str, set[str]] = defaultdict(set)
        for data in self.world.kinesis.records:
            (feature,) = json.loads(data)["features"]
            if feature["properties"]["job_id"] == self.job.job_id:
                ids[feature["properties"]["token"]].add(feature["properties"]["feature_id"])
        missing, extra = len(set(expected) - set(ids)), len(set(ids) - set(expected))
        if missing or extra:
            yield f"Kinesis lacks {missing} features and has {extra} too many"
        if any(len(names) > 1 for names in ids.values()) or len(set().union(*ids.values())) != len(ids):
            yield "a feature has two ids in Kinesis, or two have one"


def _image_of(row: Item) -> str:
    return str(row["hash_key"]).rpartition("-")[0]
