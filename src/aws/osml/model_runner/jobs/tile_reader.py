"""Reads the stored tiles of an image by their keys, a few rows of tiles at a time, within the memory that there is."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from itertools import groupby
from typing import NamedTuple, Protocol

from aws.osml.model_runner.common.memory_budget import MemoryShare
from aws.osml.model_runner.common.typing import ImageDimensions, ImageRegion, TileState
from aws.osml.model_runner.database.feature_table import FeatureTable, StoredTile, TileKey
from aws.osml.model_runner.database.job_table import JobItem
from aws.osml.model_runner.database.tile_problems import failure_text
from aws.osml.model_runner.features.tile_spans import TileSpans, bounds_of_tiles
from aws.osml.model_runner.tiling.region_plan import TilePlanner, region_id_of
from aws.osml.model_runner.tiling.strategy import TilingStrategy

# Memory of a feature beside its JSON: the object that holds the JSON, and its numbers in all arrays.
_BYTES_BESIDE_JSON = 500
# Rows are decided together until they take so much, or this part of what there is.
_STEP_BYTES = 32 * 1024 * 1024
_STEP_PART = 8
# How many tiles are read at first, before it is known how large they are, and at most.
_FIRST_TILES = 25
_MOST_TILES = 1_000

ReadTiles = Callable[[Sequence[TileKey]], list[StoredTile]]
# Makes the table of features of a request, from the size and overlap of its tiles. The function is called before each
# wait for a busy table.
NewFeatureTable = Callable[[ImageDimensions, ImageDimensions, Callable[[], None]], FeatureTable]


class Metrics(Protocol):
    """The part of ``MetricsRecorder`` that records the steps of an aggregation."""

    def timed(self, operation: str) -> AbstractContextManager[None]:
        """Record the duration of a block."""


class Unmeasured:
    """Records nothing."""

    def timed(self, _operation: str) -> AbstractContextManager[None]:
        """Do nothing beside the block."""
        return nullcontext()


def ignore() -> None:
    """Take no notice."""


def size_of(bodies: Sequence[bytes]) -> int:
    """Return how many bytes of memory features take while they are at hand."""
    return sum(map(len, bodies)) + _BYTES_BESIDE_JSON * len(bodies)


@dataclass(frozen=True)
class ImageTiles:
    """The tiles of an image, whether or not they were processed: their keys row by row, and their spans."""

    rows: Callable[[], Iterator[list[TileKey]]]
    spans: TileSpans

    @classmethod
    def of(cls, job: JobItem, strategy: TilingStrategy, table: FeatureTable) -> "ImageTiles":
        """Return the tiles of a job's image; they follow from its row, so the image need not be open.

        A row without a plan is one whose regions were queued without a plan. Then the stored tiles are returned, and
        all partitions of the image are read twice.
        """
        if not job.processing_bounds or not job.region_size:
            return cls.stored(table.tile_bounds(job.image_id))
        planner = TilePlanner(strategy, job.tile_dimensions, job.overlap_dimensions)
        bounds, region_size = ImageRegion.of(job.processing_bounds), ImageDimensions(*job.region_size)

        def rows() -> Iterator[list[TileKey]]:
            for row in planner.rows(bounds, region_size):
                yield [TileKey(job.image_id, region_id_of(region, str(job.job_id)), tile.index) for region, tile in row]

        return cls(rows, planner.spans(bounds, region_size))

    @classmethod
    def stored(cls, places: Iterable[tuple[TileKey, ImageRegion]]) -> "ImageTiles":
        """Return these tiles, which are at these pixels."""
        ordered = sorted(places, key=lambda place: place[1].origin)

        def rows() -> Iterator[list[TileKey]]:
            for _, row in groupby(ordered, key=lambda place: place[1].origin.row):
                yield [key for key, _ in row]

        return cls(rows, TileSpans.of(bounds_of_tiles(tile for _, tile in ordered)))


@dataclass
class TileTally:
    """Counts of the tiles that were read: ``failed`` by error code, ``dropped`` features by reason.

    ``first_failure`` is the error of the first tile that failed for a reason that is known.
    """

    succeeded: int = 0
    failed: Counter[str] = field(default_factory=Counter)
    dropped: Counter[str] = field(default_factory=Counter)
    first_failure: str = ""

    def add(self, tile: StoredTile) -> None:
        """Count a tile."""
        if tile.state is TileState.SUCCEEDED:
            self.succeeded += 1
            self.dropped.update(tile.dropped)
        else:
            self.failed[tile.error_code or tile.state.name] += 1
            if tile.error_reason and not self.first_failure:
                self.first_failure = failure_text(tile.error_code, tile.error_reason)


class TileStep(NamedTuple):
    """Good tiles of whole rows, each with the number of its row; all up to ``last_row`` have been read."""

    tiles: list[tuple[int, StoredTile]]
    last_row: int
    size_bytes: int


@dataclass(eq=False)
class TileReader:
    """Reads tiles; ``note`` is called before each read, and raises where the work has to stop.

    ``on_read`` is called with keys, in the order of the image's tiles, and with those of the tiles that are stored.
    """

    read: ReadTiles
    memory: MemoryShare
    note: Callable[[], None]
    metrics: Metrics
    tally: TileTally = field(default_factory=TileTally)
    on_read: Callable[[Sequence[TileKey], Sequence[StoredTile]], None] = lambda _keys, _found: None
    _largest_bytes: int = 0
    _at_once: int = _FIRST_TILES
    _step_bytes: int = field(init=False)

    def __post_init__(self) -> None:
        """Find out how much is read at once."""
        self._step_bytes = min(_STEP_BYTES, self.memory.limit_bytes // _STEP_PART)

    def steps(self, tiles: ImageTiles) -> Iterator[TileStep]:
        """Yield the good tiles of an image in order of row, region and tile; the last step has the last row.

        Raises:
            AggregationTooLargeError: a row of tiles and what is kept of those before take more memory than there is.
            AggregationDeferredError: other aggregations hold the memory.
        """
        found: list[tuple[int, StoredTile]] = []
        size = 0
        for last_row, keys in self._in_whole_rows(tiles):
            rows, todo = {key: row for row, key in keys}, [key for _, key in keys]
            while todo:
                now, todo = todo[: self._at_once], todo[self._at_once :]
                for tile in self._read_within(now):
                    found.append((rows[tile.key], tile))
                    size += size_of(tile.features)
            if size >= self._step_bytes // 2:
                yield TileStep(found, last_row, size)
                found, size = [], 0
        yield TileStep(found, len(tiles.spans.row_starts) - 1, size)

    def _in_whole_rows(self, tiles: ImageTiles) -> Iterator[tuple[int, list[tuple[int, TileKey]]]]:
        """Yield as many whole rows as may be read at once, but at least one: the last row, and keys with their rows."""
        waiting: list[tuple[int, TileKey]] = []
        row = -1
        for row, keys in enumerate(tiles.rows()):
            if waiting and len(waiting) + len(keys) > self._at_once:
                yield row - 1, waiting
                waiting = []
            waiting += [(row, key) for key in keys]
        if waiting:
            yield row, waiting

    def _read_within(self, keys: list[TileKey]) -> list[StoredTile]:
        """Read tiles within the memory that there is, at most twice as many as before."""
        self.note()
        expected = self._largest_bytes * len(keys)
        self.memory.read(expected)
        with self.metrics.timed("FeatureAggregation"):
            found = self.read(keys)
        for tile in found:
            self.tally.add(tile)
        self.on_read(keys, found)
        tiles = [tile for tile in found if tile.state is TileState.SUCCEEDED]
        sizes = [size_of(tile.features) for tile in tiles]
        self.memory.read_less(max(0, expected - sum(sizes)))
        self.memory.read(max(0, sum(sizes) - expected))
        self._largest_bytes = max([self._largest_bytes, *sizes])
        fitting = self._step_bytes // max(1, self._largest_bytes)
        self._at_once = max(1, min(2 * self._at_once, fitting, _MOST_TILES))
        return tiles
