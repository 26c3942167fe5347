"""Decides in the plan of an image which of its tiles are skipped, by the rules of the request."""

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import numpy.typing as npt

from aws.osml.model_runner.api.image_request import ImageRequest
from aws.osml.model_runner.api.problems import shortened
from aws.osml.model_runner.api.skip_rules import AreaRule, MaskRule, NodataRule, Rule, rules_of
from aws.osml.model_runner.common.pixel_ratio import PixelRatio
from aws.osml.model_runner.common.typing import ImageRegion
from aws.osml.model_runner.exceptions import (
    InvalidImageRequestException,
    InvalidImageURLException,
    LoadImageException,
    Problem,
)
from aws.osml.model_runner.features.tile_spans import bounds_of_tiles
from aws.osml.model_runner.raster import ImageSource, ImageUnreachableError, Preparation
from aws.osml.model_runner.raster import masked_tiles as masks
from aws.osml.model_runner.raster.area_reader import AreaFile
from aws.osml.model_runner.raster.invalid_tiles import ReadBudget
from aws.osml.model_runner.raster.preparation import ratio_of
from aws.osml.model_runner.tiling.region_plan import PixelArea, TilePlanner
from aws.osml.model_runner.tiling.strategy import Tile

from .image_roi import LendImage, interest_in

BoolArray = npt.NDArray[np.bool_]

# Part of the reads that an estimate of the load may spend.
_PART_OF_ESTIMATE = 16


class FindsWindows(Protocol):
    """Finds windows in image pixels."""

    def find(self, windows: Sequence[ImageRegion]) -> Iterator[BoolArray]:
        """Yield which windows a rule skips, a part of them at a time, in order."""
        ...


# Takes an open image, the bands that the model gets, and what may be read.
NewInvalidTiles = Callable[[ImageSource, Sequence[int] | None, ReadBudget], FindsWindows]
# Takes a request, the URL of a file of polygons, and the field that names it.
ReadArea = Callable[[ImageRequest, str, str], AreaFile]


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
class _Image:
    """An image whose tiles are planned; tiles are in model pixels of ``ratio`` image pixels."""

    source: ImageSource
    request: ImageRequest
    ratio: PixelRatio
    bands: Sequence[int] | None
    budget: ReadBudget

    def window(self, tile: Tile) -> ImageRegion:
        """Return the image pixels that a tile is made from."""
        (row, col), (width, height) = self.ratio.in_image(tile.bounds)
        size = min(width, self.source.width - col), min(height, self.source.height - row)
        return ImageRegion.of(((row, col), size))


# Yields which tiles a rule skips, a part of them at a time, in order.
_Find = Callable[[Sequence[Tile]], Iterator[BoolArray]]


@dataclass(frozen=True)
class TileSkipping:
    """Applies the rules of requests; files that rules name are opened as images are."""

    lend_image: LendImage
    read_area: ReadArea
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
            InvalidImageRequestException: with every file that cannot be used.
            ImageError: a mask cannot be read on the way.
        """
        part = _PART_OF_ESTIMATE if is_estimate else 1
        budget = ReadBudget()
        budget = ReadBudget(budget.bytes_left // part, budget.reads_left // part)
        bands = None if preparation is None else preparation.bands
        image = _Image(source, request, ratio_of(preparation), bands, budget)
        waiting = list(regions)
        with ExitStack() as lent:
            rules, versions = self._opened(image, lent, note) if waiting else ([], [])
            found = {region: _skipped_in(planner.tiles(region), rules, note) for region in waiting if rules}
        return SkippedTiles({region: tiles for region, tiles in found.items() if tiles}, versions)

    def _opened(
        self, image: _Image, lent: ExitStack, note: Callable[[], object]
    ) -> tuple[list[_Find], list[str | None]]:
        """Return the functions of all rules, and the versions of their files, which stay open in ``lent``."""
        finds: list[_Find] = []
        versions: list[str | None] = []
        problems: list[Problem] = []
        for index, rule in enumerate(rules_of(image.request.skip)):
            name = f"skip[{index}]"
            try:
                find, version = self._rule(image, rule, name, lent)
            except ImageUnreachableError:
                raise
            except InvalidImageURLException as err:
                problems += [Problem(f"{name}.url", found.value, found.expectation) for found in err.problems]
            except InvalidImageRequestException as err:
                problems += err.problems
            except LoadImageException as err:
                key = "asset" if isinstance(rule, MaskRule) and rule.asset else "url"
                value = shortened(getattr(rule, key, None))
                problems.append(Problem(f"{name}.{key}", value, f"a file that can be used: {err}"))
            else:
                finds.append(find)
                versions += [] if isinstance(rule, NodataRule) else [version]
            note()
        if problems:
            raise InvalidImageRequestException("tiles cannot be skipped as skip asks", problems)
        return finds, versions

    def _rule(self, image: _Image, rule: Rule, name: str, lent: ExitStack) -> tuple[_Find, str | None]:
        if isinstance(rule, NodataRule):
            return _by_windows(image, self.new_invalid_tiles(image.source, image.bands, image.budget)), None
        if isinstance(rule, MaskRule):
            item = image.source.item
            url = item.mask(rule.asset).url if item is not None and rule.asset else rule.url or ""
            # The mask is read as the image is, but is an image of its own.
            request = dataclasses.replace(image.request, image_url=url, image_item=None, image_assets=None, skip=None)
            mask = lent.enter_context(self.lend_image(request))
            masked = masks.MaskRule(rule.values or (), rule.bits or (), rule.above)
            return _by_windows(image, masks.MaskedTiles(image.source, mask, masked)), mask.etag
        file = self.read_area(image.request, rule.url, f"{name}.url")
        return _by_area(image, rule, file), file.sha256


def _by_windows(image: _Image, found: FindsWindows) -> _Find:
    return lambda tiles: found.find([image.window(tile) for tile in tiles])


def _by_area(image: _Image, rule: AreaRule, file: AreaFile) -> _Find:
    source = image.source
    if source.sensor_model is None:
        raise LoadImageException("the image has no georeference, so an area cannot be placed on it")
    area = PixelArea(interest_in(source.sensor_model, source.width, source.height, file.area, image.ratio))

    def find(tiles: Sequence[Tile]) -> Iterator[BoolArray]:
        bounds = bounds_of_tiles(tile.bounds for tile in tiles)
        yield area.holds(bounds) if rule.where == "INSIDE" else ~area.touches(bounds)

    return find


def _skipped_in(tiles: Sequence[Tile], rules: Sequence[_Find], note: Callable[[], object]) -> dict[int, int]:
    """Return the number of the first rule that skips a tile, by the tile's index."""
    skipped: dict[int, int] = {}
    for number, find in enumerate(rules):
        is_found: list[bool] = []
        for part in find(tiles) if tiles else ():
            is_found += part.tolist()
            note()
        skipped |= {tile.index: number for tile, is_in in zip(tiles, is_found, strict=True) if is_in}
        tiles = [tile for tile in tiles if tile.index not in skipped]
    return skipped
