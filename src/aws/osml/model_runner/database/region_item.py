"""Row of a region in the table of regions."""

import dataclasses
import zlib
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from aws.osml.model_runner.api.region_request import RegionRequest
from aws.osml.model_runner.common.typing import TERMINAL_STATUSES, ImageRegion

from .ddb_helper import DDBItem, DDBKey


@dataclasses.dataclass
class RegionRequestItem(DDBItem):
    """One region's row. Times and durations are milliseconds; ``expire_time``, leases and waits are epoch seconds."""

    region_id: str
    image_id: str
    job_id: str | None = None
    start_time: int | None = None
    last_updated_time: int | None = None
    end_time: int | None = None
    expire_time: int | None = None
    image_read_role: str | None = None
    processing_duration: int | None = None
    message: str | None = None
    region_status: str | None = None
    total_tiles: int | None = None
    failed_tiles: list[list[list[int]]] | None = None
    failed_tile_count: int | None = None
    succeeded_tiles: list[list[list[int]]] | None = None
    succeeded_tile_count: int | None = None
    region_bounds: list[list[int]] | None = None
    region_retry_count: int | None = None
    tile_compression: str | None = None
    tile_format: str | None = None
    tile_overlap: list[int] | None = None
    tile_size: list[int] | None = None
    # Attributes of the job protocol.
    tiles_truncated: bool | None = None
    lease_owner: str | None = None
    lease_until: float | None = None
    fence: int | None = None
    stalled_attempts: int | None = None
    stall_first_time: float | None = None
    backoffs: int | None = None
    not_before: float | None = None
    queued_time: float | None = None
    generation: int | None = None
    # Tiles that the plan skips: their number, and the rule of each, see ``packed_rules``.
    tiles_skipped: int | None = None
    skipped_tiles: bytes | None = None
    # Bits of the tiles that the region of interest leaves out, see ``packed_tiles``.
    outside_tiles: bytes | None = None

    def __post_init__(self) -> None:
        """Set the key under which the table holds the row."""
        self.ddb_key = DDBKey("image_id", self.image_id, "region_id", self.region_id)

    @classmethod
    def from_region_request(cls, region_request: RegionRequest) -> "RegionRequestItem":
        """Return the row of a new region, without times and counters."""
        return cls(
            region_id=region_request.region_id,
            image_id=region_request.image_id,
            job_id=region_request.job_id,
            image_read_role=region_request.image_read_role,
            region_bounds=ImageRegion.of(region_request.region_bounds).to_lists(),
            region_retry_count=0,
            tile_compression=str(region_request.tile_compression),
            tile_format=str(region_request.tile_format),
            tile_overlap=list(region_request.tile_overlap),
            tile_size=list(region_request.tile_size),
        )

    @property
    def rules_by_tile(self) -> dict[int, int]:
        """Number of the rule of the request's ``skip``, from 0, that skips each skipped tile, by the tile's index."""
        if not self.skipped_tiles:
            return {}
        rules = zlib.decompress(bytes(self.skipped_tiles))
        return {index: rule - 1 for index, rule in enumerate(rules) if rule}

    @property
    def outside(self) -> frozenset[int]:
        """Indices of the tiles that the region of interest leaves out; the plan decided once."""
        if not self.outside_tiles:
            return frozenset()
        bits = np.unpackbits(np.frombuffer(zlib.decompress(bytes(self.outside_tiles)), dtype=np.uint8))
        return frozenset(np.flatnonzero(bits).tolist())

    @property
    def is_terminal(self) -> bool:
        """True when the region has a terminal status."""
        return self.region_status in TERMINAL_STATUSES


def packed_rules(rules_by_tile: Mapping[int, int]) -> bytes:
    """Return rules in the form of a row: a byte for each tile of the region's grid, 0 or the rule's number + 1."""
    rules = bytearray(max(rules_by_tile, default=-1) + 1)
    for index, rule in rules_by_tile.items():
        rules[index] = rule + 1
    return zlib.compress(bytes(rules), 9)


def packed_tiles(is_in: NDArray[np.bool_]) -> bytes | None:
    """Return a set of tiles in the form of a row: a bit for each tile of the region's grid; None without any."""
    return zlib.compress(np.packbits(is_in).tobytes(), 9) if is_in.any() else None
