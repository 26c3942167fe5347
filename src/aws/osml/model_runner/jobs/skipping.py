"""Decides in the plan of an image which of its tiles are skipped, by the rules of the request."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from aws.osml.model_runner.api.image_request import ImageRequest
from aws.osml.model_runner.api.skip_rules import rules_of
from aws.osml.model_runner.common.pixel_ratio import PixelRatio
from aws.osml.model_runner.common.typing import ImageRegion
from aws.osml.model_runner.raster import ImageSource, Preparation
from aws.osml.model_runner.raster.invalid_tiles import ReadBudget
from aws.osml.model_runner.raster.preparation import ratio_of
from aws.osml.model_runner.tiling.region_plan import TilePlanner
from aws.osml.model_runner.tiling.strategy import Tile

from .image_roi import LendImage

BoolArray = npt.NDArray[np.bool_]

# Part of the reads that an estimate of the load may spend.
_PART_OF_ESTIMATE = 16


class FindsWindows(Protocol):
    """Finds windows, in image pixels, for a rule."""

    def find(self, windows: Sequence[ImageRegion]) -> Iterator[BoolArray]:
        """Yield which windows the rule skips, a part of them at a time, in order."""
        ...


# Takes an open image, the bands that the model gets, and what may be read.
NewInvalidTiles = Callable[[ImageSource, Sequence[int] | None, ReadBudget], FindsWindows]


@dataclass(frozen=True)
class SkippedTiles:
    """Tiles of an image that are skipped: by region and index, the number of the first rule that skips the tile.

    ``versions`` are those of the files that the rules name, in the order of the rules; None where one has none.
    """

    by_region: Mapping[ImageRegion, Mapping[int, int]] = field(default_factory=dict)
    versions: Sequence[str | None] = ()

    @property
    def count(self) -> int:
        """Number of skipped tiles."""
        return sum(map(len, self.by_region.values()))

    def of(self, region: ImageRegion) -> Mapping[int, int]:
        """Return the rules of a region's skipped tiles, by index."""
        return self.by_region.get(region, {})

    def are_of_versions(self, stored: Sequence[str | None]) -> bool:
        """Return True unless a file had another version when the plan was stored."""
        return all(None in pair or pair[0] == pair[1] for pair in zip(self.versions, stored, strict=False))


@dataclass(frozen=True)
class TileSkipping:
    """Applies the rules of requests; ``lend_image`` opens the files that rules name, as it opens images."""

    lend_image: LendImage
    new_invalid_tiles: NewInvalidTiles

    def skipped(
        self,
        source: ImageSource,
        request: ImageRequest,
        planner: TilePlanner,
        regions: Iterable[ImageRegion],
        preparation: Preparation | None,
        note: Callable[[], object],
        is_estimate: bool = False,
    ) -> SkippedTiles:
        """Return the tiles of ``regions`` that the request's rules skip; ``note`` is called now and then.

        The same image, request and files give the same tiles on every worker. An estimate may find fewer.

        Raises:
            ImageError: a file that a rule names cannot be read, or has no georeference.
        """
        budget = ReadBudget()
        if is_estimate:
            budget = ReadBudget(budget.bytes_left // _PART_OF_ESTIMATE, budget.reads_left // _PART_OF_ESTIMATE)
        ratio, bands = ratio_of(preparation), None if preparation is None else preparation.bands
        versions: list[str | None] = []
        with ExitStack() as _lent:
            rules: list[FindsWindows] = [
                self.new_invalid_tiles(source, bands, budget) for _rule in rules_of(request.skip)
            ]
            by_region: dict[ImageRegion, Mapping[int, int]] = {}
            for region in regions if rules else ():
                if skipped := _skipped_in(region, planner, rules, source, ratio, note):
                    by_region[region] = skipped
        return SkippedTiles(by_region, versions)


def _skipped_in(
    region: ImageRegion,
    planner: TilePlanner,
    rules: Sequence[FindsWindows],
    source: Any,
    ratio: PixelRatio,
    note: Callable[[], object],
) -> dict[int, int]:
    """Return the number of the first rule that skips a tile, by the tile's index."""
    skipped: dict[int, int] = {}
    tiles = planner.tiles(region)
    for number, rule in enumerate(rules):
        is_found: list[bool] = []
        for part in rule.find([_window(tile, source, ratio) for tile in tiles]):
            is_found += part.tolist()
            note()
        skipped |= {tile.index: number for tile, is_in in zip(tiles, is_found, strict=True) if is_in}
        tiles = [tile for tile in tiles if tile.index not in skipped]
    return skipped


def _window(tile: Tile, source: Any, ratio: PixelRatio) -> ImageRegion:
    """Return the image pixels that a tile is made from."""
    (row, col), (width, height) = ratio.in_image(tile.bounds)
    return ImageRegion.of(((row, col), (min(width, source.width - col), min(height, source.height - row))))
