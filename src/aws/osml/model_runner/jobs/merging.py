"""The features of an image brought together: tiles are read row by row, and features come out as they are decided.

Memory holds the rows at hand and what is undecided of those before, however many features an image has.
"""

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any

import numpy as np
import shapely

from aws.osml.model_runner.api.post_processing import (
    FeatureDistillationAlgorithm,
    FeatureDistillationDeserializer,
    FeatureDistillationSeam,
    SeamMerge,
)
from aws.osml.model_runner.common.channel import Threads, read_ahead
from aws.osml.model_runner.common.machine import share_of_memory, trim_heap
from aws.osml.model_runner.common.memory_budget import MemoryBudget, MemoryShare
from aws.osml.model_runner.common.pixel_ratio import PixelRatio
from aws.osml.model_runner.config import ServiceConfig
from aws.osml.model_runner.database.feature_table import StoredTile
from aws.osml.model_runner.database.job_table import JobItem
from aws.osml.model_runner.exceptions import ConservationError
from aws.osml.model_runner.features.detections import Detections, Indices
from aws.osml.model_runner.features.encoding import decode_feature, encode_feature
from aws.osml.model_runner.features.geometry_arrays import ObjectArray
from aws.osml.model_runner.features.properties import Feature, FeatureOrigin, FeatureStamp, feature_id
from aws.osml.model_runner.features.row_selection import Decided, RowSelection
from aws.osml.model_runner.features.text_stamp import TextStamp
from aws.osml.model_runner.features.tile_spans import TileSpans, bounds_of_tiles
from aws.osml.model_runner.features.tiled_features import TiledFeatures, shapes_of
from aws.osml.model_runner.raster.preparation import Preparation, ratio_of
from aws.osml.model_runner.sink.delivery import FeatureBatch

from .coverage import TileStates
from .result_members import result_members
from .tile_reader import ImageTiles, Metrics, ReadTiles, TileReader, TileTally, Unmeasured, ignore, size_of

# A batch for the outputs: at most so many features, and about so many bytes.
_BATCH_FEATURES = 2_000
_BATCH_BYTES = 4 * 1024 * 1024
# Memory of features that an output has not written: parts of a file that are being sent, a row group, records.
_OUTPUT_BYTES = 64 * 1024 * 1024
# All of them together count for no more than this part of what there is.
_OUTPUTS_PART = 4


@dataclass(frozen=True, eq=False)
class _AtHand:
    """n features that are at hand: those of some tiles.

    ``numbers``: (n,) the place of each one's tile in ``tiles``; ``ordinals``: (n,) its place in the model's answer.
    """

    tiles: Sequence[tuple[int, StoredTile]]
    numbers: Indices
    ordinals: Indices
    detections: Detections
    bodies: Sequence[bytes]

    @classmethod
    def of(cls, tiles: Sequence[tuple[int, StoredTile]]) -> "_AtHand":
        """Return the features of these tiles, in order."""
        counts = [len(tile.features) for _, tile in tiles]
        return cls(
            # The tile itself is let go, with the features that are not carried on.
            [(row, tile.without_features()) for row, tile in tiles],
            np.repeat(np.arange(len(tiles)), counts),
            np.concatenate([np.zeros(0, np.intp), *(np.arange(count) for count in counts)]),
            Detections.joined([tile.detections for _, tile in tiles]),
            [body for _, tile in tiles for body in tile.features],
        )

    def followed_by(self, other: "_AtHand") -> "_AtHand":
        """Return these features and then the others."""
        if not len(self):
            return other
        return _AtHand(
            [*self.tiles, *other.tiles],
            np.concatenate([self.numbers, other.numbers + len(self.tiles)]),
            np.concatenate([self.ordinals, other.ordinals]),
            Detections.joined([self.detections, other.detections]),
            [*self.bodies, *other.bodies],
        )

    def take(self, indices: Indices) -> "_AtHand":
        """Return these features alone, with none but their tiles."""
        used, numbers = np.unique(self.numbers[indices], return_inverse=True)
        return _AtHand(
            [self.tiles[number] for number in used.tolist()],
            numbers,
            self.ordinals[indices],
            self.detections.take(indices),
            [self.bodies[index] for index in indices.tolist()],
        )

    def __len__(self) -> int:
        return len(self.bodies)

    @property
    def rows(self) -> Indices:
        """(n,) the number of each feature's row of tiles."""
        rows: Indices = np.array([row for row, _ in self.tiles], dtype=np.intp)[self.numbers]
        return rows

    @property
    def size_bytes(self) -> int:
        """How much memory they take."""
        return size_of(self.bodies)

    def tiled(self, spans: TileSpans, ratio: PixelRatio) -> TiledFeatures:
        """Return the arrays by which they are merged, in model pixels of ``ratio`` image pixels, as tiles are."""
        return TiledFeatures(
            replace(self.detections, boxes=self.detections.boxes / (*ratio, *ratio)),
            self.numbers,
            bounds_of_tiles(tile.bounds for _, tile in self.tiles),
            lambda indices: self._shapes(indices, ratio),
            spans,
            np.fromiter(map(len, self.bodies), np.intp, len(self.bodies)),
        )

    def _shapes(self, indices: Indices, ratio: PixelRatio) -> ObjectArray:
        in_image = shapes_of([self.feature_at(index) for index in indices.tolist()])
        if ratio.is_one:
            return in_image
        in_model: ObjectArray = shapely.transform(in_image, lambda pixels: pixels / ratio)
        return in_model

    def feature_at(self, index: int) -> Feature:
        """Return a feature as it is stored."""
        return decode_feature(self.bodies[index])

    def tile_of(self, index: int) -> StoredTile:
        """Return a feature's tile, without its features."""
        return self.tiles[self.numbers.item(index)][1]

    def id_of(self, job_id: str, index: int) -> str:
        """Return the id of a feature, which follows from job, region, tile and index in the response."""
        key = self.tile_of(index).key
        return feature_id(job_id, key.region_id, key.index, self.ordinals.item(index))


@dataclass(eq=False)
class MergedImage:
    """The features of an image, merged and stamped as they are delivered: a stream that is read once.

    Features come with the row of tiles at which they are decided, then by row, region, tile and index in the response.
    That order, and every byte, is the same whenever and wherever an image is merged.

    ``states`` gets the outcome of each tile.
    ``read`` returns the tiles of some keys. ``outputs``: how many outputs hold a part of the features meanwhile.
    ``stored`` counts features that were read so far, ``kept`` features that are delivered, and ``unmerged`` features of
    crowded tiles, see ``features.crowding``. ``tally`` counts tiles; it is complete when the stream has ended.
    """

    job: JobItem
    tiles: ImageTiles
    options: FeatureDistillationAlgorithm | None
    read: ReadTiles
    memory: MemoryShare
    threads: Threads
    note: Callable[[], None] = ignore
    metrics: Metrics = field(default_factory=Unmeasured)
    outputs: int = 1
    states: TileStates | None = None
    stored: int = 0
    kept: int = 0
    unmerged: int = 0
    tally: TileTally = field(default_factory=TileTally)
    _read_bytes: int = 0
    _stamp: FeatureStamp = field(init=False)
    _ratio: PixelRatio = field(init=False)

    def __post_init__(self) -> None:
        """Make the stamp, once for all features."""
        self._stamp = FeatureStamp.from_request(str(self.job.job_id), json.loads(self.job.feature_properties or "[]"))
        self._ratio = ratio_of(Preparation.from_text(self.job.pixel_preparation))

    def __iter__(self) -> Iterator[FeatureBatch]:
        """Yield the features that are delivered.

        Raises:
            ConservationError: fewer tiles, or more, are stored as good than were counted; known at the end.
            AggregationTooLargeError: what has to be held together takes more memory than there is.
            AggregationDeferredError: other aggregations hold the memory.
        """
        # The pixels of the image's tiles are gone by now, and its features take their place.
        trim_heap()
        reader = TileReader(self.read, self.memory, self.note, self.metrics, self.tally)
        if self.states is not None:
            reader.on_read = self.states.add
        selection = RowSelection(self.options, self.note)
        at_hand = _AtHand.of([])
        with closing(read_ahead(reader.steps(self.tiles), self.threads)) as steps:
            for step in steps:
                self.memory.work(step.size_bytes)
                self.note()
                self.stored += sum(len(tile.features) for _, tile in step.tiles)
                self._read_bytes += step.size_bytes
                at_hand = at_hand.followed_by(_AtHand.of(step.tiles))
                last_row = step.last_row
                del step
                with self.metrics.timed("FeatureSelection"):
                    decided = selection.step(at_hand.tiled(self.tiles.spans, self._ratio), at_hand.rows, last_row)
                yield from self._batches(at_hand, decided)
                at_hand = at_hand.take(decided.open)
                in_outputs = self.outputs * min(self._read_bytes, _OUTPUT_BYTES)
                self.memory.keep(at_hand.size_bytes + min(in_outputs, self.memory.limit_bytes // _OUTPUTS_PART))
        if self.tally.succeeded != self.job.tile_success:
            raise ConservationError(
                f"{self.tally.succeeded} tiles are stored as good, {self.job.tile_success} were counted"
            )

    def members(self) -> dict[str, Any]:
        """Return the members of a result beside its features; complete when the stream has ended."""
        return result_members(self.job, self.tally, self.stored, self.kept, self.unmerged)

    def _batches(self, at_hand: _AtHand, decided: Decided) -> Iterator[FeatureBatch]:
        self.kept += len(decided.kept)
        self.unmerged += decided.unmerged
        middles = at_hand.detections.boxes.reshape(-1, 2, 2).mean(axis=1)
        for part in _parts([len(at_hand.bodies[index]) for index in decided.kept.tolist()]):
            self.note()
            indices = decided.kept[part]
            ids = [at_hand.id_of(str(self.job.job_id), index) for index in indices.tolist()]
            yield FeatureBatch(list(self._encoded(at_hand, decided, indices, ids)), ids, middles[indices])

    def _encoded(self, at_hand: _AtHand, decided: Decided, indices: Indices, ids: Sequence[str]) -> Iterator[bytes]:
        """Yield features as they are delivered; most need no more than a stamp in their text."""
        selection, job_id = decided.selection, str(self.job.job_id)
        # Features are joined in image pixels.
        distance_px = selection.distance_px * math.sqrt(self._ratio.x * self._ratio.y)
        in_image_px = replace(selection, distance_px=distance_px)
        has_member_ids = isinstance(self.options, FeatureDistillationSeam) and self.options.merge is SeamMerge.UNION

        @lru_cache(maxsize=1)  # the features of a tile come one after the other
        def stamp_of_tile(number: int) -> TextStamp:
            tile = at_hand.tiles[number][1]
            return TextStamp(self._stamp, self._ratio.in_image(tile.bounds), tile.inference_time)

        numbers = at_hand.numbers[indices].tolist()
        own_ends = at_hand.detections.own_ends[indices].tolist()
        for index, own_id, number, own_end in zip(indices.tolist(), ids, numbers, own_ends, strict=True):
            absorbed = selection.absorbed.get(index, ())
            encoded = None
            if not selection.changes(index) and not (absorbed and has_member_ids):
                encoded = stamp_of_tile(number).stamped(at_hand.bodies[index], own_end, own_id, len(absorbed))
            if not encoded:
                tile = at_hand.tile_of(index)
                ids_of_members = [at_hand.id_of(job_id, other) for other in absorbed] if has_member_ids else ()
                origin = FeatureOrigin(
                    own_id, self._ratio.in_image(tile.bounds), len(absorbed), ids_of_members, tile.inference_time
                )
                finished = in_image_px.finished(index, at_hand.feature_at(index), at_hand.feature_at)
                encoded = encode_feature(self._stamp.finalized(finished, origin))
            yield encoded


def _parts(sizes: Sequence[int]) -> Iterator[slice]:
    """Yield where to cut features of these sizes into batches."""
    start = in_batch = 0
    for end, size in enumerate(sizes):
        if end > start and (end - start == _BATCH_FEATURES or in_batch + size > _BATCH_BYTES):
            yield slice(start, end)
            start, in_batch = end, 0
        in_batch += size
    if start < len(sizes):
        yield slice(start, len(sizes))


def distillation_of(job: JobItem) -> FeatureDistillationAlgorithm | None:
    """Return how a job asks for its features to be merged; None where it does not."""
    if not job.feature_distillation_option:
        return None
    options: Mapping[str, Any] = json.loads(job.feature_distillation_option)
    return FeatureDistillationDeserializer.deserialize(dict(options))


def aggregation_memory(
    config: ServiceConfig, now: Callable[[], float], pause: Callable[[float], object]
) -> MemoryBudget:
    """Return the memory that all aggregations of a process share: at most half of what the process may use."""
    most_bytes = share_of_memory(config.aggregation_memory_bytes, part=2)
    if config.memory_limit_bytes:
        most_bytes = min(most_bytes, config.memory_limit_bytes // 2)
    return MemoryBudget(most_bytes, now, pause)
