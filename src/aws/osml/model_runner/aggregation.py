"""The features of an image brought together: bytes and arrays in, what is delivered out, one feature at a time."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import lru_cache
from itertools import accumulate
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

from .common.memory import give_memory_back
from .common.mr_post_processing import (
    FeatureDistillationAlgorithm,
    FeatureDistillationDeserializer,
    FeatureDistillationSeam,
    SeamMerge,
)
from .common.typing import ImageRegion, TileState
from .database.feature_table import FeatureTable, StoredTile, TileKey
from .database.job_table import JobItem
from .exceptions import ConservationError
from .features.encoding import decode_feature, encode_feature
from .features.feature_columns import FeatureColumns
from .features.properties import Feature, FeatureOrigin, FeatureStamp, feature_id
from .features.scored_boxes import Indices
from .features.selection import Selection, select
from .features.text_stamp import TextStamp
from .features.tiled_features import TiledFeatures
from .sink.delivery import Delivery

# How many features go by between two signs of life.
_FEATURES_PER_NOTE = 2_000


def ignore() -> None:
    """Take no notice."""


class ImageFeatures:
    """The features of one image as they are stored, in order of region, tile and place in the model's answer.

    Each is kept as its JSON alone. ``columns`` tells as arrays what merging needs to know of it.
    """

    def __init__(self, job_id: str, tiles: Sequence[tuple[StoredTile, FeatureColumns]]) -> None:
        good = [(tile, columns) for tile, columns in tiles if tile.state is TileState.SUCCEEDED]
        self._job_id = job_id
        self._tiles = [tile for tile, _ in good]
        self._starts = [0, *accumulate(len(tile.features) for tile in self._tiles)]
        self.columns = TiledFeatures.joined([(tile.bounds, columns) for tile, columns in good], self.feature_at)
        self.own_ends = np.concatenate([np.zeros(0, np.uint32), *(columns.records["own_end"] for _, columns in good)])

    @classmethod
    def collect(
        cls,
        job: JobItem,
        table: FeatureTable,
        note: Callable[[], None] = ignore,
        planned: Sequence[TileKey] = (),
    ) -> "ImageFeatures":
        """Read the features of a job's image; ``planned`` are its tiles, where they are known.

        ``note`` is called at each tile, from several threads.

        Raises:
            ConservationError: fewer tiles, or more, are stored as good than were counted.
        """

        def columns_of(tile: StoredTile) -> FeatureColumns:
            note()
            # An older version has stored none.
            return tile.columns or FeatureColumns.of(map(decode_feature, tile.features))

        # The pixels of the image's tiles are gone by now, and its features take their place.
        give_memory_back()
        features = cls(str(job.job_id), table.look_at_tiles(job.image_id, columns_of, planned))
        if planned and len(features._tiles) != job.tile_success:
            # Another version may have planned other tiles.
            features = cls(str(job.job_id), table.look_at_tiles(job.image_id, columns_of))
        if len(features._tiles) != job.tile_success:
            raise ConservationError(f"{len(features._tiles)} tiles are stored as good, {job.tile_success} were counted")
        return features

    def __len__(self) -> int:
        return self._starts[-1]

    def feature_at(self, index: int) -> Feature:
        """Return a feature as it is stored."""
        return decode_feature(self.body_at(index))

    def body_at(self, index: int) -> bytes:
        """Return the JSON of a feature as it is stored."""
        number = self.columns.tiles.item(index)
        return self._tiles[number].features[index - self._starts[number]]

    def bounds_of(self, tile: int) -> ImageRegion:
        """Return the pixels of a tile, by its number in ``columns.tiles``."""
        return self._tiles[tile].bounds

    def id_of(self, index: int) -> str:
        """Return the id of a feature, which follows from job, region, tile and place in the answer."""
        number = self.columns.tiles.item(index)
        key = self._tiles[number].key
        return feature_id(self._job_id, key.region_id, key.index, index - self._starts[number])


class MergedFeatures(Sequence[bytes]):
    """What is delivered of an image's features: each is made when it is asked for, and made the same every time."""

    def __init__(
        self,
        features: ImageFeatures,
        options: FeatureDistillationAlgorithm | None,
        stamp: FeatureStamp,
        note: Callable[[], None] = ignore,
    ) -> None:
        self._features = features
        self._selection: Selection = select(features.columns, options)
        self._stamp = stamp
        self._note = note
        self._are_ids_told = isinstance(options, FeatureDistillationSeam) and options.merge is SeamMerge.UNION
        self._kept = self._selection.kept

    def __len__(self) -> int:
        return len(self._kept)

    @overload
    def __getitem__(self, place: int) -> bytes: ...
    @overload
    def __getitem__(self, place: slice) -> Sequence[bytes]: ...
    def __getitem__(self, place: int | slice) -> bytes | Sequence[bytes]:
        if isinstance(place, slice):
            return list(self._encoded(self._kept[place]))
        (encoded,) = self._encoded(self._kept[[place]])
        return encoded

    def __iter__(self) -> Iterator[bytes]:
        for start in range(0, len(self), _FEATURES_PER_NOTE):
            self._note()
            yield from self._encoded(self._kept[start : start + _FEATURES_PER_NOTE])

    @property
    def ids(self) -> "FeatureIds":
        """The ids of the features, in their order."""
        return FeatureIds(self._features, self._kept)

    @property
    def centres(self) -> NDArray[np.float64]:
        """(n, 2) the middle of each feature in pixels; NaN for one without a place."""
        middles: NDArray[np.float64] = self._features.columns.scored.boxes[self._kept].reshape(-1, 2, 2).mean(axis=1)
        return middles

    def delivery(self, job: JobItem, position: int = 0) -> Delivery:
        """Return what a sink is asked to deliver, from this position on."""
        return Delivery(str(job.job_id), job.result_name or "", self, self.ids, position, centres=self.centres)

    def _encoded(self, indices: Indices) -> Iterator[bytes]:
        """Yield features as they are delivered; most need no more than a stamp in their text."""
        features, selection = self._features, self._selection

        @lru_cache(maxsize=1)  # the features of a tile come one after the other
        def stamp_of(tile: int) -> TextStamp:
            return TextStamp(self._stamp, features.bounds_of(tile))

        tiles, own_ends = features.columns.tiles[indices].tolist(), features.own_ends[indices].tolist()
        for index, tile, own_end in zip(indices.tolist(), tiles, own_ends, strict=True):
            absorbed = len(selection.absorbed.get(index, ()))
            encoded = None
            if not selection.changes(index) and not (absorbed and self._are_ids_told):
                encoded = stamp_of(tile).stamped(features.body_at(index), own_end, features.id_of(index), absorbed)
            yield encoded or self._encoded_anew(index)

    def _encoded_anew(self, index: int) -> bytes:
        features, selection = self._features, self._selection
        tile, absorbed = features.columns.tiles.item(index), selection.absorbed.get(index, ())
        ids = [features.id_of(other) for other in absorbed] if self._are_ids_told else ()
        origin = FeatureOrigin(features.id_of(index), features.bounds_of(tile), len(absorbed), ids)
        finished = selection.finished(index, features.feature_at(index), features.feature_at)
        return encode_feature(self._stamp.finalized(finished, origin))


class FeatureIds(Sequence[str]):
    """The ids of some features of an image, each made when it is asked for."""

    def __init__(self, features: ImageFeatures, indices: NDArray[np.intp]) -> None:
        self._features = features
        self._indices = indices

    def __len__(self) -> int:
        return len(self._indices)

    @overload
    def __getitem__(self, place: int) -> str: ...
    @overload
    def __getitem__(self, place: slice) -> Sequence[str]: ...
    def __getitem__(self, place: int | slice) -> str | Sequence[str]:
        if isinstance(place, slice):
            return [self._features.id_of(index) for index in self._indices[place].tolist()]
        return self._features.id_of(int(self._indices[place]))


def distillation_of(job: JobItem) -> FeatureDistillationAlgorithm | None:
    """Return how a job asks for its features to be merged; None where it does not."""
    if not job.feature_distillation_option:
        return None
    options: Mapping[str, Any] = json.loads(job.feature_distillation_option)
    return FeatureDistillationDeserializer.deserialize(dict(options))


def stamp_of(job: JobItem) -> FeatureStamp:
    """Return what a job writes on each of its features."""
    return FeatureStamp.from_request(str(job.job_id), json.loads(job.feature_properties or "[]"))
