"""Rows of the feature table, and the tiles that they describe."""

import dataclasses
from collections.abc import Mapping, Sequence

from aws.osml.model_runner.common.typing import ImageRegion, TileState
from aws.osml.model_runner.features.detections import Detections

from .ddb_helper import DDBItem, DDBKey

# An item holds 400 KB; half of it leaves room for names and keys, and 25 of them in one call.
MAX_CHUNK_BYTES = 200_000


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
    """Outcome of a tile: its features, each as GeoJSON text, and as arrays; or its error code and the reason.

    Columns that are None are computed from the features. ``inference_time`` is ISO 8601 in UTC.
    """

    state: TileState
    features: Sequence[bytes] = ()
    detections: Detections | None = None
    error_code: str | None = None
    dropped: Mapping[str, int] = dataclasses.field(default_factory=dict)
    inference_time: str | None = None
    error_reason: str = ""


NO_DETECTIONS = Detections.of(())


@dataclasses.dataclass(frozen=True)
class StoredTile:
    """A tile as it was committed."""

    key: TileKey
    bounds: ImageRegion
    state: TileState
    features: Sequence[bytes]
    detections: Detections = dataclasses.field(default=NO_DETECTIONS, compare=False)
    error_code: str | None = None
    inference_time: str | None = None
    dropped: Mapping[str, int] = dataclasses.field(default_factory=dict)
    error_reason: str | None = None

    def without_features(self) -> "StoredTile":
        """Return the tile without its features and arrays."""
        return dataclasses.replace(self, features=(), detections=NO_DETECTIONS)
