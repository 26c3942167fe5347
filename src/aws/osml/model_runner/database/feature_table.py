"""Table of features: one row per tile, which holds the tile's outcome and holds or names its features.

The row's key follows from image, region and tile, and the first writer wins (T1). So the row is the checkpoint, the
unit of resume, and the guard against two workers that process one tile. The features of a tile are one blob. A small
blob lies in the row. A larger blob is an object of the work bucket, or lies in overflow rows where no bucket is set.
Objects and overflow rows are written before the tile's row. Their keys hold the writer's token, which the row names. So
blobs of a writer that lost are never read, and expire.
"""

import hashlib
import math
import random
import sys
import time
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol, TypeVar

from aws.osml.model_runner.common.job_rules import TILE_MARGIN_S
from aws.osml.model_runner.common.typing import ImageDimensions, ImageRegion, TileState
from aws.osml.model_runner.exceptions import (
    ConditionNotMetError,
    ConservationError,
    FeatureBlobError,
)
from aws.osml.model_runner.features.detections import Detections
from aws.osml.model_runner.features.encoding import decode_feature
from aws.osml.model_runner.features.tile_blob import pack_tile, unpack_tile

from ._published import PublishedFeatureTable
from .blob_store import WorkBucket
from .ddb_helper import DDBItem, Item, attribute_names
from .feature_item import (
    MAX_CHUNK_BYTES,
    NO_DETECTIONS,
    FeatureItem,
)
from .feature_item import StoredTile as StoredTile
from .feature_item import TileKey as TileKey
from .feature_item import TileOutcome as TileOutcome
from .tile_problems import TileProblems

# A blob of this size costs as much in the table as in the bucket: nine write units, or one PUT and one write unit.
MAX_INLINE_BYTES = 8 * 1024
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


class FeatureTable(PublishedFeatureTable):
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
        blobs: WorkBucket | None = None,
    ) -> None:
        def wait(seconds: float) -> None:
            on_wait()
            sleep(seconds)

        super().__init__(table_name, client, wait, rng, now)
        self._read_all: ReadAll = read_all
        self.tile_size = tile_size
        self.overlap = overlap
        self._life_s = life_s
        self._blobs = blobs

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
            # Keys begin with a hash, because S3 scales by the prefixes of keys.
            digest = hashlib.sha256(f"{row.hash_key} {row.range_key}".encode()).hexdigest()
            blob_key = row.blob_key = f"{BLOB_PREFIX}{digest[:32]}-{row.tile_token}"
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
        needed_until = self._needed_until()
        states = {}
        for row in rows:
            if self._is_expired(row):
                continue
            is_good = row["tile_status"] == TileState.SUCCEEDED.name
            stays = is_good and float(row.get("expire_time", math.inf)) >= needed_until
            if row["generation"] >= generation or stays:
                states[row["tile_index"]] = TileState[row["tile_status"]]
        return states

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

    def tile_bounds(self, image_id: str) -> list[tuple[TileKey, ImageRegion]]:
        """Return the keys and bounds of an image's stored tiles, in no order. This reads all partitions."""
        names = ", ".join(("region_id", "tile_index", "tile_bounds", "expire_time"))

        def bounds(salt: int) -> list[tuple[TileKey, ImageRegion]]:
            rows = self.query_partition("hash_key", f"{image_id}-{salt}", ProjectionExpression=names)
            return [
                (TileKey(image_id, row["region_id"], row["tile_index"]), ImageRegion.of(row["tile_bounds"]))
                for row in rows
                if "tile_bounds" in row and not self._is_expired(row)
            ]

        return [tile for found in self._read_all(bounds, range(1, self.hash_salt + 1)) for tile in found]

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
            features, detections = unpack_tile(self._blob_of(row, parts)) if row["feature_count"] else _NO_FEATURES
            if len(features) != row["feature_count"]:
                raise FeatureBlobError(f"{len(features)} features instead of {row['feature_count']}")
        except FeatureBlobError as err:
            raise ConservationError(f"the tile {row['range_key']}: {err}") from err
        return StoredTile(
            key=TileKey(image_id, row["region_id"], row["tile_index"]),
            bounds=ImageRegion.of(row["tile_bounds"]),
            state=TileState[row["tile_status"]],
            features=features,
            detections=detections,
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

    def _rows_of_partition(self, image_id: str, salt: int) -> list[Item]:
        """Read one partition of an image, without rows that have expired but are not deleted yet."""
        rows = self.query_partition("hash_key", f"{image_id}-{salt}")
        return [row for row in rows if not self._is_expired(row)]

    def _is_expired(self, row: Mapping[str, Any]) -> bool:
        return float(row.get("expire_time", math.inf)) < self._now()

    def _needed_until(self) -> float:
        """Return the latest time at which a job that starts now may need its tiles."""
        return self._now() + self._life_s - TILE_MARGIN_S

    def _tile_row_key(self, key: TileKey) -> dict[str, str]:
        """Return the key of a tile's row. A hash that is the same in every process spreads tiles over partitions."""
        salt = zlib.crc32(f"{key.region_id}#{key.index}".encode()) % self.hash_salt + 1
        return {"hash_key": f"{key.image_id}-{salt}", "range_key": f"{key.region_id}#{key.index:06d}"}


_NO_FEATURES: tuple[Sequence[bytes], Detections] = ((), NO_DETECTIONS)


def _packed(outcome: TileOutcome) -> bytes:
    return pack_tile(outcome.features, outcome.detections or Detections.of(map(decode_feature, outcome.features)))


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
