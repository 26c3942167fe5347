"""The coverage of an image: the outcome of each tile of its plan, as features for outputs.

Tiles overlap, so each tile is drawn as its cell. The edge between two cells lies halfway between the edges of their
tiles. Cells do not overlap and leave no gap, so the areas of all states add up to the area of the plan.
"""

import json
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import structlog
from numpy.typing import NDArray

from aws.osml.model_runner.api.skip_rules import rules_of
from aws.osml.model_runner.common.pixel_ratio import PixelRatio
from aws.osml.model_runner.common.typing import ImageCoord, ImageDimensions, ImageRegion, TileState
from aws.osml.model_runner.database.feature_table import StoredTile, TileKey
from aws.osml.model_runner.database.job_table import JobItem
from aws.osml.model_runner.database.region_item import RegionRequestItem
from aws.osml.model_runner.exceptions import ImageError
from aws.osml.model_runner.features.encoding import encode_feature
from aws.osml.model_runner.features.geolocation import BOX_DECIMALS, POSITION_DECIMALS, rounded
from aws.osml.model_runner.features.geolocation_grid import ImageToWorld, LocationGrid
from aws.osml.model_runner.features.rfc7946 import crosses_antimeridian, cut
from aws.osml.model_runner.raster import image_to_world, is_quick
from aws.osml.model_runner.raster.preparation import Preparation, ratio_of
from aws.osml.model_runner.sink.delivery import FeatureBatch
from aws.osml.model_runner.tiling.region_plan import TilePlanner, region_id_of
from aws.osml.model_runner.tiling.strategy import Tile, TilingStrategy

from .image_roi import LendImage

logger = structlog.get_logger(__name__)

FloatArray = NDArray[np.float64]

# Reason of a tile of the plan without an outcome.
NO_OUTCOME = "NO_OUTCOME"
_SEEN, _FAILED = 1, 2
_RECORD = np.dtype([("state", "u1"), ("reason", "<u2"), ("detections", "<u4")])
_MAX_REASONS = 2**16 - 1
_BATCH_TILES = 2_000


class TileStates:
    """Outcomes of tiles in the order in which a merge reads them: seven bytes of a temporary file for each tile."""

    def __init__(self) -> None:
        self._file = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115 - ``close`` closes it
        self._reasons: dict[str, int] = {}

    def close(self) -> None:
        """Delete the file."""
        self._file.close()

    def add(self, keys: Sequence[TileKey], found: Iterable[StoredTile]) -> None:
        """Add tiles, of which those of ``found`` have a row."""
        stored = {tile.key: tile for tile in found}
        records = np.zeros(len(keys), _RECORD)
        for place, key in enumerate(keys):
            tile = stored.get(key)
            if tile is not None and tile.state is TileState.SUCCEEDED:
                records[place] = (_SEEN, 0, len(tile.features))
            elif tile is not None:
                code = tile.error_code or tile.state.name
                records[place] = (_FAILED, self._reasons.setdefault(code, min(len(self._reasons), _MAX_REASONS)), 0)
        self._file.write(records.tobytes())

    def read(self, first: int, count: int) -> Iterator[tuple[int, str, int]]:
        """Yield state, reason and number of detections of tiles, by the order in which they were added."""
        body = os.pread(self._file.fileno(), count * _RECORD.itemsize, first * _RECORD.itemsize)
        names = list(self._reasons)
        for state, reason, detections in np.frombuffer(body, _RECORD).tolist():
            yield state, names[reason] if state == _FAILED else "", detections


@dataclass(frozen=True)
class Cells:
    """Edges of the cells of a plan in image pixels: (k + 1,) of its columns, (l + 1,) of its rows."""

    columns: FloatArray
    rows: FloatArray
    column_of: Mapping[tuple[int, int], int]
    row_of: Mapping[tuple[int, int], int]

    @classmethod
    def of(cls, planner: TilePlanner, bounds: ImageRegion, job: JobItem, ratio: PixelRatio) -> "Cells":
        """Return the cells of a job's tiles."""
        spans = planner.spans(bounds, ImageDimensions(*(job.region_size or ())))
        width, height = job.width or 0, job.height or 0
        size = ratio.size_of(width, height)
        column_of, row_of = (
            {(int(start), int(end)): number for number, (start, end) in enumerate(axis.tolist())}
            for axis in (spans.columns, spans.rows)
        )
        return cls(
            _edges(spans.columns, ratio.x, size.width, width),
            _edges(spans.rows, ratio.y, size.height, height),
            column_of,
            row_of,
        )

    def place_of(self, tile: ImageRegion) -> tuple[int, int]:
        """Return the column and the row of a tile's cell."""
        return self.column_of[tile.origin.col, tile.right], self.row_of[tile.origin.row, tile.bottom]


def _edges(spans: FloatArray, step: float, model_px: int, image_px: int) -> FloatArray:
    """Return (k + 1,) edges in image pixels between (k, 2) spans in model pixels: halfway where spans overlap."""
    last = spans[:, 1].max()
    halfway = np.maximum.accumulate((spans[1:, 0] + spans[:-1, 1]) / 2)
    edges: FloatArray = np.concatenate([spans[:1, 0], halfway, [last]]) * step
    if last == model_px:
        # The last model pixel may end some way before or after the image.
        edges[-1] = image_px
    return np.clip(edges, 0.0, image_px)


@dataclass(frozen=True)
class ImageCoverage:
    """Makes the coverage of images. ``regions_of`` returns the rows of an image's regions."""

    lend_image: LendImage
    regions_of: Callable[[str], Iterable[RegionRequestItem]]
    strategy: TilingStrategy
    elevation_model: Any = None

    def batches(
        self, job: JobItem, states: TileStates, note: Callable[[], None], may_wait: bool = True
    ) -> Iterator[FeatureBatch]:
        """Yield a feature for each tile of a job's plan that the region of interest touches.

        ``states`` has the outcomes of all tiles. ``geometry`` is the cell on the ground. It is null without a
        georeference, and if the image is gone. While the image's store does not respond, the error is raised if the job
        ``may_wait``.
        """
        if not job.processing_bounds or not job.region_size:
            return
        bounds, region_size = ImageRegion.of(job.processing_bounds), ImageDimensions(*job.region_size)
        planner = TilePlanner(self.strategy, job.tile_dimensions, job.overlap_dimensions)
        cells = Cells.of(planner, bounds, job, ratio_of(Preparation.from_text(job.pixel_preparation)))
        regions = {row.region_id: _Region.of(row, job) for row in self.regions_of(job.image_id)}
        rules = [str(rule.where) for rule in rules_of(json.loads(job.skip) if job.skip else None)]
        first = 0
        with self._located(job, may_wait) as locate:
            for row in planner.rows(bounds, region_size):
                for start in range(0, len(row), _BATCH_TILES):
                    note()
                    tiles = row[start : start + _BATCH_TILES]
                    found = list(_counted(tiles, states.read(first, len(tiles)), regions, rules, str(job.job_id)))
                    first += len(tiles)
                    if found:
                        yield _drawn(found, cells, locate)

    @contextmanager
    def _located(self, job: JobItem, may_wait: bool) -> Iterator[ImageToWorld | None]:
        """Open the image, and yield the function that maps its pixels to the ground; None where that is not known."""
        lent = self.lend_image(job.image_request())
        try:
            source = lent.__enter__()
        except ImageError as err:
            if err.can_retry and may_wait:
                raise
            logger.warning("coverage.not_located", reason=str(err))
            yield None
            return
        try:
            yield _location_of(source, job, self.elevation_model)
        finally:
            lent.__exit__(None, None, None)


def _location_of(source: Any, job: JobItem, elevation_model: Any) -> ImageToWorld | None:
    if source.sensor_model is None:
        return None
    if None not in (job.image_etag, source.etag) and job.image_etag != source.etag:
        logger.warning("coverage.not_located", reason="the image was replaced after its job began")
        return None
    locate = image_to_world(source.sensor_model, elevation_model)
    if is_quick(source.sensor_model, elevation_model):
        return locate
    whole = ImageRegion(ImageCoord(0, 0), ImageDimensions(source.width, source.height))
    return LocationGrid.from_sensor_model(locate, whole).locate


@dataclass(frozen=True)
class _Region:
    """Tiles of a region without a row; ``has_all`` is False where its row does not hold all that were left out."""

    skipped_tiles: bytes | None
    outside_tiles: bytes | None
    has_all: bool

    @classmethod
    def of(cls, row: RegionRequestItem, job: JobItem) -> "_Region":
        # Earlier versions do not store the tiles that a region of interest in WKT leaves out.
        return cls(row.skipped_tiles, row.outside_tiles, not job.roi_wkt or row.outside_tiles is not None)

    def unpacked(self) -> tuple[frozenset[int], Mapping[int, int]]:
        """Return the tiles outside the region of interest, and the rules of skipped tiles."""
        row = RegionRequestItem("", "", skipped_tiles=self.skipped_tiles, outside_tiles=self.outside_tiles)
        return row.outside, row.rules_by_tile


# A tile that counts, the id of its feature, and the feature's properties.
_Counted = tuple[Tile, str, dict[str, Any]]


def _counted(
    tiles: Sequence[tuple[ImageRegion, Tile]],
    states: Iterable[tuple[int, str, int]],
    regions: Mapping[str, _Region],
    rules: Sequence[str],
    job_id: str,
) -> Iterator[_Counted]:
    """Yield the tiles that the region of interest touches."""
    left_out: dict[str, tuple[frozenset[int], Mapping[int, int]]] = {}
    for (bounds, tile), (state, code, detections) in zip(tiles, states, strict=True):
        region_id = region_id_of(bounds, job_id)
        region = regions.get(region_id)
        if state == _SEEN:
            outcome: dict[str, Any] = {"state": "seen", "reason": None}
        elif state == _FAILED:
            outcome = {"state": "failed", "reason": code}
        elif region is None:
            continue
        else:
            if region_id not in left_out:
                left_out[region_id] = region.unpacked()
            outside, rules_by_tile = left_out[region_id]
            rule = rules_by_tile.get(tile.index)
            if tile.index in outside or (rule is None and not region.has_all):
                continue
            outcome = {"state": "failed", "reason": NO_OUTCOME}
            if rule is not None:
                outcome = {"state": "skipped", "reason": rules[rule], "rule": rule}
        yield tile, f"{region_id}/{tile.index}", {**outcome, "region_id": region_id, "detections": detections}


def _drawn(tiles: Sequence[_Counted], cells: Cells, locate: ImageToWorld | None) -> FeatureBatch:
    """Return the features of tiles, with their cells in pixels and on the ground."""
    columns, rows = np.array([cells.place_of(tile.bounds) for tile, _, _ in tiles]).T
    sides = (cells.columns[columns], cells.rows[rows], cells.columns[columns + 1], cells.rows[rows + 1])
    boxes = rounded(np.column_stack(sides), POSITION_DECIMALS)
    geometries: list[Any] = [None] * len(tiles)
    if locate is not None:
        # Counterclockwise on the ground if north is up; the last corner is the first.
        corners = boxes[:, [0, 1, 0, 3, 2, 3, 2, 1, 0, 1]].reshape(-1, 2)
        geometries = _polygons(np.asarray(locate(corners), dtype=np.float64)[:, :2].reshape(-1, 5, 2))
    bodies = [
        encode_feature(
            {"type": "Feature", "id": own_id, "geometry": geometry, "properties": {**properties, "imageBBox": box}}
        )
        for (_, own_id, properties), geometry, box in zip(tiles, geometries, boxes.tolist(), strict=True)
    ]
    return FeatureBatch(bodies, [own_id for _, own_id, _ in tiles], boxes.reshape(-1, 2, 2).mean(axis=1))


def _polygons(located: FloatArray) -> list[dict[str, Any] | None]:
    """Return the polygons of (n, 5, 2) rings in degrees by RFC 7946; None for a ring that is not on the Earth."""
    rings = rounded(located, BOX_DECIMALS)
    is_known = np.isfinite(rings).all(axis=(1, 2))
    is_cut = crosses_antimeridian(rings[:, :, 0]).any(axis=1)
    x, y = np.moveaxis(rings - rings[:, :1], 2, 0)
    is_clockwise = (x[:, :-1] * y[:, 1:] - x[:, 1:] * y[:, :-1]).sum(axis=1) < 0
    turned = np.where((is_clockwise & ~is_cut)[:, None, None], rings[:, ::-1], rings)
    polygons: list[dict[str, Any] | None] = []
    for ring, is_on_earth, crosses in zip(turned.tolist(), is_known.tolist(), is_cut.tolist(), strict=True):
        polygon: dict[str, Any] = {"type": "Polygon", "coordinates": [ring]}
        polygons.append((dict(cut(polygon)) if crosses else polygon) if is_on_earth else None)
    return polygons
