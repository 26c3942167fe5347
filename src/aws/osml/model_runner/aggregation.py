"""The features of an image brought together: bytes and arrays in, what is delivered out, one feature at a time."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
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
from .common.typing import TileState
from .database.feature_table import FeatureTable, StoredTile, TileKey
from .database.job_table import JobItem
from .exceptions import ConservationError
from .features.encoding import decode_feature, encode_feature
from .features.properties import Feature, FeatureOrigin, FeatureStamp, feature_id
from .features.selection import Selection, select
from .features.tiled_features import TileColumns, TiledFeatures
from .sink.delivery import Delivery

# How many features go by between two signs of life.
_FEATURES_PER_NOTE = 2_000


def ignore() -> None:
    """Take no notice."""


class ImageFeatures:
    """The features of one image as they are stored, in order of region, tile and place in the model's answer.

    Each is kept as its JSON alone. ``columns`` tells as arrays what merging needs to know of it.
    """

    def __init__(self, job_id: str, tiles: Sequence[tuple[StoredTile, TileColumns]]) -> None:
        good = [(tile, columns) for tile, columns in tiles if tile.state is TileState.SUCCEEDED]
        self._job_id = job_id
        self._tiles = [tile for tile, _ in good]
        self._starts = [0, *accumulate(len(tile.features) for tile in self._tiles)]
        self.columns = TiledFeatures.joined([columns for _, columns in good], self.feature_at)

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

        def columns_of(tile: StoredTile) -> TileColumns:
            note()
            return TileColumns.of(tile.bounds, map(decode_feature, tile.features))

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
        tile, ordinal = self.place_of(index)
        return decode_feature(tile.features[ordinal])

    def id_of(self, index: int) -> str:
        """Return the id of a feature, which follows from job, region, tile and place in the answer."""
        return self.id_at(*self.place_of(index))

    def id_at(self, tile: StoredTile, ordinal: int) -> str:
        """Return the id of the feature at this place of a tile."""
        return feature_id(self._job_id, tile.key.region_id, tile.key.index, ordinal)

    def place_of(self, index: int) -> tuple[StoredTile, int]:
        """Return the tile that a feature comes from, and its place in the answer for it."""
        number = self.columns.tiles.item(index)
        return self._tiles[number], index - self._starts[number]


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
            return [self._encoded(index) for index in self._kept[place].tolist()]
        return self._encoded(int(self._kept[place]))

    def __iter__(self) -> Iterator[bytes]:
        for place, index in enumerate(self._kept.tolist()):
            if place % _FEATURES_PER_NOTE == 0:
                self._note()
            yield self._encoded(index)

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

    def _encoded(self, index: int) -> bytes:
        features, selection = self._features, self._selection
        tile, ordinal = features.place_of(index)
        stored = decode_feature(tile.features[ordinal])
        absorbed = selection.absorbed.get(index, ())
        ids = [features.id_of(other) for other in absorbed] if self._are_ids_told else ()
        origin = FeatureOrigin(features.id_at(tile, ordinal), tile.bounds, len(absorbed), ids)
        return encode_feature(self._stamp.finalized(selection.finished(index, stored, features.feature_at), origin))


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
