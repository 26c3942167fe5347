"""Table of features: one row per tile, which holds the tile's outcome and holds or names its features.

The row's key follows from image, region and tile, and the first writer wins (T1). So the row is the checkpoint, the
unit of resume, and the guard against two workers that process one tile. The features of a tile are one blob. A small
blob lies in the row. A larger blob is an object of the work bucket, or lies in overflow rows where no bucket is set.
Objects and overflow rows are written before the tile's row. Their keys hold the writer's token, which the row names. So
blobs of a writer that lost are never read, and expire.
"""

import dataclasses
import hashlib
import math
import random
import sys
import time
import zlib
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol, TypeVar

import geojson
from aws_embedded_metrics import MetricsLogger
from botocore.exceptions import BotoCoreError, ClientError

from aws.osml.model_runner.common.job_rules import TILE_MARGIN_S
from aws.osml.model_runner.common.typing import ImageDimensions, ImageRegion, TileState
from aws.osml.model_runner.exceptions import (
    AddFeaturesException,
    ConditionNotMetError,
    ConservationError,
    FeatureBlobError,
    TableError,
)
from aws.osml.model_runner.features.encoding import decode_feature, encode_feature
from aws.osml.model_runner.features.feature_columns import FeatureColumns
from aws.osml.model_runner.features.image_geometry import feature_image_bounds
from aws.osml.model_runner.features.properties import IMAGE_ID, INFERENCE_TIME, TILE
from aws.osml.model_runner.features.tile_blob import pack_tile, unpack_tile

from .blob_store import BlobStore
from .ddb_helper import DDBHelper, DDBItem, DDBKey, Item, attribute_names
from .job_table import JobItem
from .tile_problems import TileProblems

# A blob of this size costs as much to write to the table as to the bucket: nine write units, or one PUT and one unit.
MAX_INLINE_BYTES = 8 * 1024
# An item holds 400 KB; half of it leaves room for names and keys, and 25 of them in one call.
MAX_CHUNK_BYTES = 200_000

# Prefix of the work bucket's keys of blobs.
BLOB_PREFIX = "tiles/"
_READERS = 10
# Number of rows in one read by key: with the largest blobs they take ten megabytes.
_ROWS_PER_READ = 25


T = TypeVar("T")


class ReadAll(Protocol):
    """Calls ``read`` for each number, in any order, and returns the results in the order of the numbers."""

    def __call__(self, read: Callable[[int], T], numbers: Iterable[int], /) -> Iterable[T]:
        """Return what ``read`` returns for each number."""


def read_in_threads(read: Callable[[int], T], numbers: Iterable[int]) -> list[T]:
    """Read many partitions at once."""
    with ThreadPoolExecutor(_READERS, thread_name_prefix="read-features") as pool:
        return list(pool.map(read, numbers))


@dataclasses.dataclass
class FeatureItem(DDBItem):
    """A row of the feature table: the row of a tile, an overflow row of a tile, or a row of loose features.

    A tile's row holds its ``feature_blob``, or the blob's first part, or the ``blob_key`` of the blob in the work
    bucket. ``features`` are loose features, which ``add_features`` stored without a tile, each as GeoJSON text.
    """

    hash_key: str
    range_key: str
    tile_id: str | None = None
    features: list[str] | None = None
    expire_time: int | None = None
    # Attributes of the job protocol. Overflow rows have ``chunk`` and no ``tile_status``.
    region_id: str | None = None
    tile_index: int | None = None
    tile_bounds: list[list[int]] | None = None
    tile_status: str | None = None
    tile_token: str | None = None
    inference_time: str | None = None
    feature_count: int | None = None
    feature_blob: bytes | None = None
    blob_key: str | None = None
    chunks: int | None = None
    chunk: int | None = None
    error_code: str | None = None
    error_reason: str | None = None
    dropped: dict[str, int] | None = None
    generation: int | None = None

    def __post_init__(self) -> None:
        """Set the key under which the table holds the row."""
        self.ddb_key = DDBKey("hash_key", self.hash_key, "range_key", self.range_key)


@dataclasses.dataclass(frozen=True)
class TileKey:
    """Key of a tile: the image, the region, and the tile's index in the region's plan, from 0."""

    image_id: str
    region_id: str
    index: int


@dataclasses.dataclass(frozen=True)
class TileOutcome:
    """Outcome of a tile: its features, each as GeoJSON text, and as columns; or its error code and the reason.

    Columns that are None are computed from the features. ``inference_time`` is ISO 8601 in UTC.
    """

    state: TileState
    features: Sequence[bytes] = ()
    columns: FeatureColumns | None = None
    error_code: str | None = None
    dropped: Mapping[str, int] = dataclasses.field(default_factory=dict)
    inference_time: str | None = None
    error_reason: str = ""


_NO_COLUMNS = FeatureColumns.of(())


@dataclasses.dataclass(frozen=True)
class StoredTile:
    """A tile as it was committed."""

    key: TileKey
    bounds: ImageRegion
    state: TileState
    features: Sequence[bytes]
    columns: FeatureColumns = dataclasses.field(default=_NO_COLUMNS, compare=False)
    error_code: str | None = None
    inference_time: str | None = None
    dropped: Mapping[str, int] = dataclasses.field(default_factory=dict)
    error_reason: str | None = None

    def without_features(self) -> "StoredTile":
        """Return the tile without its features and columns."""
        return dataclasses.replace(self, features=(), columns=_NO_COLUMNS)


class FeatureTable(DDBHelper):
    """The table of features. ``tile_size`` and ``overlap`` are the request's, (width, height) in pixels.

    ``on_wait`` is called before each wait for a busy table, from the thread that waits; an error that it raises ends
    the call. ``blobs`` stores blobs that are too large for a row; without it they lie in overflow rows.
    """

    patience_s = 300.0
    hash_salt = 50
    # For a plan with more tiles, reading all partitions takes fewer calls.
    most_tiles_by_key = hash_salt * _ROWS_PER_READ

    def __init__(
        self,
        table_name: str,
        tile_size: ImageDimensions | tuple[int, int],
        overlap: ImageDimensions | tuple[int, int],
        client: Any = None,
        now: Callable[[], float] = time.time,
        life_s: float = 72 * 3600.0,
        rng: random.Random | None = None,
        read_all: ReadAll = read_in_threads,
        sleep: Callable[[float], None] = time.sleep,
        on_wait: Callable[[], None] = lambda: None,
        blobs: BlobStore | None = None,
    ) -> None:
        def wait(seconds: float) -> None:
            on_wait()
            sleep(seconds)

        super().__init__(table_name, client, wait, rng, now)
        self._read_all = read_all
        self.tile_size = tile_size
        self.overlap = overlap
        self._life_s = life_s
        self._blobs = blobs

    def add_features(self, features: list[geojson.Feature], metrics: MetricsLogger | None = None) -> None:
        """Store features without a tile, grouped by the range of tiles that could have detected them.

        The keys follow from the content, so adding the same features again changes nothing. The worker itself stores
        features with their tile, by ``commit_tile``.

        Raises:
            AddFeaturesException: a feature has no location in the image, or DynamoDB did not take the rows.
        """
        try:
            rows: list[DDBItem] = []
            for key, group in self.group_features_by_key(features).items():
                bodies = [encode_feature(feature) for feature in group]
                rows += [self._loose_row(key, [body.decode() for body in part]) for part in _parts(bodies)]
            self.batch_write_items(rows)
        except (ValueError, TableError, ClientError, BotoCoreError) as err:
            raise AddFeaturesException(f"cannot store {len(features)} features: {err}") from err
        if metrics is not None:
            metrics.put_metric("Invocations", 1, "Count")

    def get_features(self, image_id: str, metrics: MetricsLogger | None = None) -> list[geojson.Feature]:
        """Return every feature stored for an image, in an order that does not depend on when it was stored.

        Features that were stored with their tile have its bounds in the property ``_modelRunnerTile``.
        """
        rows = self._rows_of(image_id)
        loose = sorted(text.encode() for row in rows if not _is_protocol_row(row) for text in row.get("features", []))
        found = [_decode(body) for body in loose]
        for tile in self._tiles_in(image_id, rows):
            found += [_decode(body, tile) for body in tile.features]
        if metrics is not None:
            metrics.put_metric("Invocations", 1, "Count")
        return found

    def group_features_by_key(self, features: list[geojson.Feature]) -> dict[str, list[geojson.Feature]]:
        """Group features by ``generate_tile_key``."""
        groups: dict[str, list[geojson.Feature]] = defaultdict(list)
        for feature in features:
            groups[self.generate_tile_key(feature)].append(feature)
        return dict(groups)

    def generate_tile_key(self, feature: geojson.Feature) -> str:
        """Return ``<image id>-region-<minx>:<maxx>:<miny>:<maxy>``, the range of tiles that could detect a feature.

        Raises:
            ValueError: the feature has no location in the image.
        """
        bounds = feature_image_bounds(feature)
        if bounds is None:
            raise ValueError("the feature has neither imageGeometry nor imageBBox")
        return f"{feature['properties']['image_id']}-region-{self._grid_key(*bounds)}"

    def aggregate_features(
        self, image_request_item: JobItem, metrics: MetricsLogger | None = None
    ) -> list[geojson.Feature]:
        """Return every feature of an image."""
        return self.get_features(image_request_item.image_id, metrics)

    def _grid_key(self, min_x: float, min_y: float, max_x: float, max_y: float) -> str:
        """Return the range of tiles along x and y that a bounding box may touch, on the grid of the request."""
        (width, height), (overlap_x, overlap_y) = self.tile_size, self.overlap
        spans = []
        for low, high, stride, overlap in (
            (min_x, max_x, width - overlap_x, overlap_x),
            (min_y, max_y, height - overlap_y, overlap_y),
        ):
            first = int(low / stride)
            if first > 0 and int(low) % stride < overlap:
                first -= 1
            spans.append(f"{first}:{int(high / stride)}")
        return ":".join(spans)

    def _loose_row(self, key: str, texts: list[str]) -> FeatureItem:
        image_id, _, tile_id = key.rpartition("-region-")
        digest = hashlib.sha256("\n".join(texts).encode()).hexdigest()
        return FeatureItem(
            hash_key=f"{image_id}-{int(digest[:8], 16) % self.hash_salt + 1}",
            range_key=digest[:32],
            tile_id=tile_id,
            features=texts,
            expire_time=self._expire_time(),
        )

    def _expire_time(self) -> int:
        return int(self._now() + self._life_s)

    # The protocol's writes ------------------------------------------------------------------------------------------

    def commit_tile(
        self,
        key: TileKey,
        bounds: ImageRegion,
        outcome: TileOutcome,
        generation: int = 0,
        keep_trying: Callable[[], bool] | None = None,
    ) -> TileState:
        """T1: commit a tile's features and its outcome in one write, and return the outcome that is stored.

        When another worker, or an earlier send of this call, wrote first, its outcome stays and is returned. Only a row
        of an earlier generation is replaced, if its tile failed or the row expires before a whole job could end. A job
        is started again to process such tiles again.

        While the table or the work bucket is busy, writes are repeated under one token. ``keep_trying`` is called
        before each wait and returns whether to continue; without it, ``patience_s`` limits the time.

        Raises:
            FeaturesTooLargeError: the features are too large to be stored; nothing was written.
            TableBusyError: the table or the work bucket stays busy.
        """
        token = f"{self._rng.getrandbits(64):016x}"
        tile = self._tile_row_key(key)
        row = FeatureItem(
            hash_key=tile["hash_key"],
            range_key=tile["range_key"],
            expire_time=self._expire_time(),
            region_id=key.region_id,
            tile_index=key.index,
            tile_bounds=bounds.to_lists(),
            tile_status=outcome.state.name,
            tile_token=token,
            inference_time=outcome.inference_time,
            feature_count=len(outcome.features),
            chunks=1,
            error_code=outcome.error_code,
            error_reason=outcome.error_reason or None,
            dropped=dict(outcome.dropped) or None,
            generation=generation,
        )
        if outcome.features:
            self._store_blob(row, _packed(outcome), keep_trying)
        condition = (
            "attribute_not_exists(range_key) OR expire_time < :now"
            " OR (generation < :generation AND (tile_status = :failed OR expire_time < :needed))"
        )
        values = {
            ":failed": TileState.FAILED.name,
            ":generation": generation,
            ":needed": self._needed_until(),
            ":now": self._now(),
        }
        try:
            self.patiently(lambda: self.put(row.to_put(), condition, values), keep_trying)
        except ConditionNotMetError as err:
            return TileState[(err.old or {})["tile_status"]]
        return outcome.state

    def _store_blob(self, row: FeatureItem, blob: bytes, keep_trying: Callable[[], bool] | None) -> None:
        """Put a small blob into the tile's row. Store a larger blob elsewhere first, and name it in the row."""
        blobs = self._blobs
        if len(blob) <= MAX_INLINE_BYTES:
            row.feature_blob = blob
        elif blobs is not None:
            blob_key = row.blob_key = _blob_key(row)
            self.patiently(lambda: blobs.put(blob_key, blob), keep_trying)
        else:
            row.feature_blob, *rest = (
                blob[start : start + MAX_CHUNK_BYTES] for start in range(0, len(blob), MAX_CHUNK_BYTES)
            )
            row.chunks = 1 + len(rest)
            overflow: list[DDBItem] = [_overflow_row(row, number, part) for number, part in enumerate(rest, start=1)]
            if keep_trying is None:
                self.batch_write_items(overflow)
            else:
                self.batch_write_items(overflow, max_retries=sys.maxsize, keep_trying=keep_trying)

    def committed_tiles(
        self, image_id: str, region_id: str, indexes: Sequence[int], generation: int = 0
    ) -> dict[int, TileState]:
        """Return the outcomes of committed tiles of a region, by the tiles' indexes.

        Tiles of earlier generations are omitted if they failed, or if their row expires before a whole job could end.
        They have to be processed again.
        """
        keys = [self._tile_row_key(TileKey(image_id, region_id, index)) for index in indexes]
        rows = self.batch_get(keys, ["tile_index", "tile_status", "expire_time", "generation"])
        return {
            row["tile_index"]: TileState[row["tile_status"]]
            for row in rows
            if not self._is_expired(row) and (row["generation"] >= generation or self._stays(row))
        }

    def failures_of(self, image_id: str, region_id: str, indexes: Sequence[int]) -> TileProblems:
        """Return the errors of a region's failed tiles, from the rows of the tiles."""
        keys = [self._tile_row_key(TileKey(image_id, region_id, index)) for index in indexes]
        rows = self.batch_get(keys, ["tile_index", "error_code", "error_reason"])
        return TileProblems.of_tiles(sorted(rows, key=lambda row: int(row["tile_index"])))

    def stored_tiles(self, image_id: str, planned: Sequence[TileKey] = ()) -> list[StoredTile]:
        """Return every committed tile of an image, in order of region and tile.

        ``planned`` are all tiles that the image may have, if the caller has them. Few tiles are read by their keys,
        because that takes fewer calls than there are partitions.

        Raises:
            ConservationError: a part of a tile's features is missing.
        """
        return [tile for tile, _ in self.look_at_tiles(image_id, lambda _: None, planned)]

    def read_tiles(self, keys: Sequence[TileKey]) -> list[StoredTile]:
        """Return the tiles of ``keys`` that have a row, in the order of the keys. Several threads read them by key.

        Raises:
            ConservationError: a part of a tile's features is missing.
        """
        batches = [keys[start : start + _ROWS_PER_READ] for start in range(0, len(keys), _ROWS_PER_READ)]
        found = self._read_all(lambda number: self._tiles_at(batches[number]), range(len(batches)))
        tiles = {tile.key: tile for part in found for tile in part}
        return [tiles[key] for key in keys if key in tiles]

    def tile_places(self, image_id: str) -> list[tuple[TileKey, ImageRegion]]:
        """Return the keys and bounds of an image's stored tiles, in no order. This reads all partitions."""
        names = ", ".join(("region_id", "tile_index", "tile_bounds", "expire_time"))

        def places(salt: int) -> list[tuple[TileKey, ImageRegion]]:
            rows = self.query_partition("hash_key", f"{image_id}-{salt}", ProjectionExpression=names)
            return [
                (TileKey(image_id, row["region_id"], row["tile_index"]), ImageRegion.of(row["tile_bounds"]))
                for row in rows
                if "tile_bounds" in row and not self._is_expired(row)
            ]

        return [place for found in self._read_all(places, range(1, self.hash_salt + 1)) for place in found]

    def look_at_tiles(
        self, image_id: str, look: Callable[[StoredTile], T], planned: Sequence[TileKey] = ()
    ) -> list[tuple[StoredTile, T]]:
        """Return every tile that ``stored_tiles`` returns, with the value of ``look(tile)``.

        The reading threads call ``look``, so it overlaps with the reads of other tiles. It may be called twice for a
        tile.

        Raises:
            ConservationError: a part of a tile's features is missing.
        """

        def look_at(rows: Iterable[Item]) -> list[tuple[StoredTile, T]]:
            return [(tile, look(tile)) for tile in self._tiles_in(image_id, rows)]

        def batch(number: int) -> list[tuple[StoredTile, T]] | None:
            rows = self._rows_at(planned[number * _ROWS_PER_READ : (number + 1) * _ROWS_PER_READ])
            # The keys of overflow rows follow from the tile's row only, so the partitions are read instead.
            return None if any(row["chunks"] > 1 for row in rows) else look_at(rows)

        def partition(salt: int) -> list[tuple[StoredTile, T]]:
            # All rows of a tile are in one partition.
            return look_at(self._rows_of_partition(image_id, salt))

        found: list[list[tuple[StoredTile, T]] | None] = [None]
        if 0 < len(planned) <= self.most_tiles_by_key:
            found = list(self._read_all(batch, range(-(-len(planned) // _ROWS_PER_READ))))
        if None in found:
            found = list(self._read_all(partition, range(1, self.hash_salt + 1)))
        tiles = [pair for pairs in found for pair in pairs or ()]
        return sorted(tiles, key=lambda pair: (pair[0].key.region_id, pair[0].key.index))

    def _tiles_in(self, image_id: str, rows: Iterable[Item]) -> list[StoredTile]:
        """Return the tiles in ``rows``, which hold their overflow rows too, in order of region and tile."""
        parts: dict[tuple[str, str], bytes] = {}
        tile_rows = []
        for row in rows:
            if "tile_status" in row:
                tile_rows.append(row)
            elif "chunk" in row:
                parts[row["hash_key"], row["range_key"]] = bytes(row["feature_blob"])
        tile_rows.sort(key=lambda row: (row["region_id"], row["tile_index"]))
        return [self._tile_of(image_id, row, parts) for row in tile_rows]

    def _tile_of(self, image_id: str, row: Item, parts: Mapping[tuple[str, str], bytes]) -> StoredTile:
        try:
            if "feature_count" not in row:
                raise FeatureBlobError("another version has stored it")
            features, columns = unpack_tile(self._blob_of(row, parts)) if row["feature_count"] else _NO_FEATURES
            if len(features) != row["feature_count"]:
                raise FeatureBlobError(f"{len(features)} features instead of {row['feature_count']}")
        except FeatureBlobError as err:
            raise ConservationError(f"the tile {row['range_key']}: {err}") from err
        return StoredTile(
            key=TileKey(image_id, row["region_id"], row["tile_index"]),
            bounds=ImageRegion.of(row["tile_bounds"]),
            state=TileState[row["tile_status"]],
            features=features,
            columns=columns,
            error_code=row.get("error_code"),
            inference_time=row.get("inference_time"),
            dropped=row.get("dropped") or {},
            error_reason=row.get("error_reason"),
        )

    def _blob_of(self, row: Item, parts: Mapping[tuple[str, str], bytes]) -> bytes:
        blob_key = row.get("blob_key")
        if blob_key is None:
            try:
                return bytes(row["feature_blob"]) + b"".join(
                    parts[key["hash_key"], key["range_key"]] for key in _rest_of(row)
                )
            except KeyError as err:
                raise FeatureBlobError(f"some of its {row['chunks']} rows are missing") from err
        blobs = self._blobs
        if blobs is None:
            raise FeatureBlobError(f"its features are {blob_key} of a work bucket, and WORK_BUCKET is not set")
        blob = self.patiently(lambda: blobs.get(blob_key))
        if blob is None:
            raise FeatureBlobError(f"its features, {blob_key}, are not in the work bucket")
        return blob

    def _tiles_at(self, keys: Sequence[TileKey]) -> list[StoredTile]:
        """Read tiles by their keys. The keys of overflow rows follow from the token in the tile's row."""
        tiles = []
        for image_id in dict.fromkeys(key.image_id for key in keys):
            rows = self._rows_at([key for key in dict.fromkeys(keys) if key.image_id == image_id])
            rest = self.batch_get([key for row in rows for key in _rest_of(row)], attribute_names(FeatureItem))
            tiles += self._tiles_in(image_id, [*rows, *rest])
        return tiles

    def _rows_at(self, keys: Sequence[TileKey]) -> list[Item]:
        """Read the rows of tiles by their keys."""
        rows = self.batch_get([self._tile_row_key(key) for key in keys], attribute_names(FeatureItem))
        return [row for row in rows if not self._is_expired(row)]

    def _rows_of(self, image_id: str) -> list[Item]:
        """Read every partition of an image at once."""
        salts = range(1, self.hash_salt + 1)
        read = self._read_all(lambda salt: self._rows_of_partition(image_id, salt), salts)
        return [row for rows in read for row in rows]

    def _rows_of_partition(self, image_id: str, salt: int) -> list[Item]:
        """Read one partition of an image, without rows that have expired but are not deleted yet."""
        rows = self.query_partition("hash_key", f"{image_id}-{salt}")
        return [row for row in rows if not self._is_expired(row)]

    def _is_expired(self, row: Mapping[str, Any]) -> bool:
        return float(row.get("expire_time", math.inf)) < self._now()

    def _stays(self, row: Mapping[str, Any]) -> bool:
        """Return True for a tile of an earlier generation that need not be processed again."""
        is_good = row["tile_status"] == TileState.SUCCEEDED.name
        return is_good and float(row.get("expire_time", math.inf)) >= self._needed_until()

    def _needed_until(self) -> float:
        """Return the latest time at which a job that starts now may need its tiles."""
        return self._now() + self._life_s - TILE_MARGIN_S

    def _tile_row_key(self, key: TileKey) -> dict[str, str]:
        """Return the key of a tile's row. A hash that is the same in every process spreads tiles over partitions."""
        salt = zlib.crc32(f"{key.region_id}#{key.index}".encode()) % self.hash_salt + 1
        return {"hash_key": f"{key.image_id}-{salt}", "range_key": f"{key.region_id}#{key.index:06d}"}


_NO_FEATURES: tuple[Sequence[bytes], FeatureColumns] = ((), _NO_COLUMNS)


def _packed(outcome: TileOutcome) -> bytes:
    return pack_tile(outcome.features, outcome.columns or FeatureColumns.of(map(decode_feature, outcome.features)))


def _blob_key(row: FeatureItem) -> str:
    """Return the object key of a tile's blob. Keys begin with a hash, because S3 scales by the prefixes of keys."""
    digest = hashlib.sha256(f"{row.hash_key} {row.range_key}".encode()).hexdigest()
    return f"{BLOB_PREFIX}{digest[:32]}-{row.tile_token}"


def _rest_of(row: Item) -> list[dict[str, str]]:
    """Return the keys of a tile's overflow rows, in order."""
    return [
        {"hash_key": row["hash_key"], "range_key": _overflow_range_key(row["range_key"], row["tile_token"], number)}
        for number in range(1, row["chunks"])
    ]


def _overflow_row(tile: FeatureItem, number: int, part: bytes) -> FeatureItem:
    return FeatureItem(
        hash_key=tile.hash_key,
        range_key=_overflow_range_key(tile.range_key, str(tile.tile_token), number),
        expire_time=tile.expire_time,
        region_id=tile.region_id,
        tile_index=tile.tile_index,
        tile_token=tile.tile_token,
        chunk=number,
        feature_blob=part,
    )


def _overflow_range_key(tile_range_key: str, token: str, number: int) -> str:
    return f"{tile_range_key}#{token}#{number:04d}"


def _is_protocol_row(row: Mapping[str, Any]) -> bool:
    return "tile_token" in row


def _decode(body: bytes, tile: StoredTile | None = None) -> geojson.Feature:
    # The feature is filled after its construction, because the constructor rounds coordinates.
    feature = geojson.Feature()
    feature.update(decode_feature(body))
    if tile is not None:
        whole_tile = {IMAGE_ID: tile.key.image_id, INFERENCE_TIME: tile.inference_time, TILE: tile.bounds.to_lists()}
        feature["properties"] |= whole_tile
    return feature


def _parts(bodies: Sequence[bytes]) -> Iterator[Sequence[bytes]]:
    """Yield features in parts of at most MAX_CHUNK_BYTES; a longer feature forms a part of its own."""
    start = size = 0
    for end, body in enumerate(bodies):
        if end > start and size + len(body) > MAX_CHUNK_BYTES:
            yield bodies[start:end]
            start, size = end, 0
        size += len(body)
    if bodies:
        yield bodies[start:]
