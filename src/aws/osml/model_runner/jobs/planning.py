"""The plan of an image: what it is, which of its pixels are wanted, and how they are shared out."""

import dataclasses
import json
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import structlog

from aws.osml.model_runner.api.image_request import ImageRequest, skipping_format
from aws.osml.model_runner.api.image_url import public_url
from aws.osml.model_runner.api.model_protocol import ModelProtocol
from aws.osml.model_runner.api.processor_input import ProcessorInput
from aws.osml.model_runner.api.request_utils import json_text
from aws.osml.model_runner.api.stac_item import ItemImage
from aws.osml.model_runner.common.typing import ImageDimensions, ImageRegion
from aws.osml.model_runner.database.job_table import JobItem
from aws.osml.model_runner.exceptions import (
    InvalidImageRequestException,
    LoadImageException,
    Problem,
    TileEncodingError,
)
from aws.osml.model_runner.inference.tensor_envelope import envelope_of
from aws.osml.model_runner.raster import (
    ImageSource,
    Preparation,
    TileEncoder,
    extents,
    georeference_of,
    prepare,
    source_metadata,
)
from aws.osml.model_runner.raster.preparation import ratio_of
from aws.osml.model_runner.raster.source_metadata import difference_from_item
from aws.osml.model_runner.raster.tile_formats import NUMPY, formats_that_hold
from aws.osml.model_runner.tiling.region_plan import TilePlanner, processing_bounds
from aws.osml.model_runner.tiling.strategy import TilingStrategy

from .image_roi import interest_in
from .skipping import SkippedTiles

logger = structlog.get_logger(__name__)

# Left for a tile's header where a size is proposed; those of plain formats take a few bytes per row of pixels.
_HEADER_BYTES = 128 * 1024
_SIDE_STEP_PX = 16


class PlanLimits(NamedTuple):
    """More parts than these are a mistake in the request, such as a tile of a few pixels on a huge image.

    ``tiles`` is the most that an image may have. ``body_bytes`` is the longest tile that the endpoint takes; None where
    that is not known.
    """

    regions: int
    tiles_per_region: int
    tiles: int
    body_bytes: int | None = None


class FixedRegions(NamedTuple):
    """Regions of a plan whose rows are all stored, in model pixels."""

    bounds: ImageRegion
    regions: list[ImageRegion]
    tile_count: int


@dataclasses.dataclass(frozen=True)
class ImagePlan:
    """The plan of an image: the attributes that its row stores, and the regions that follow from it.

    ``width`` and ``height`` are those of the image; ``bounds`` and ``regions`` are in model pixels. ``tile_count``
    counts all tiles that touch the region of interest. ``skipped`` is None where no rule was applied. ``roi_sha256`` is
    set if a file holds the region of interest.
    """

    bounds: ImageRegion
    regions: list[ImageRegion]
    tile_count: int
    region_size: ImageDimensions
    width: int
    height: int
    extents: dict[str, float] | None
    georeference: dict[str, Any] | None
    etag: str | None
    extension: str
    image_format: str
    image_count: int
    source_metadata: dict[str, Any] | None
    planner: TilePlanner
    preparation: Preparation | None = None
    skipped: SkippedTiles | None = None
    item: ItemImage | None = None
    roi_sha256: str | None = None

    def applied_to(self, item: JobItem) -> JobItem:
        """Return the row with this plan in it; the image's metadata joins the properties that the request stamps."""
        properties = json.loads(item.feature_properties or "[]")
        if self.source_metadata:
            properties.append(self.source_metadata)
        skipped = self.skipped or SkippedTiles()
        is_marked = bool(skipped.count and item.tile_format)
        return dataclasses.replace(
            item,
            region_count=len(self.regions),
            tile_count=self.tile_count - skipped.count,
            region_size=list(self.region_size),
            processing_bounds=self.bounds.to_lists(),
            width=self.width,
            height=self.height,
            extents=json_text(self.extents) if self.extents else None,
            georeference=json_text(self.georeference) if self.georeference else None,
            image_etag=self.etag,
            image_extension=self.extension,
            image_format=self.image_format,
            image_count=self.image_count if self.image_count > 1 else None,
            feature_properties=json_text(properties),
            source_properties=json_text([self.source_metadata]) if self.source_metadata else None,
            pixel_preparation=self.preparation.to_text() if self.preparation else None,
            tiles_skipped=None if self.skipped is None else skipped.count,
            skip_versions=list(skipped.versions) or None,
            tile_format=skipping_format(item.tile_format or "") if is_marked else item.tile_format,
            image_item=self.item.to_text() if self.item else None,
            roi_sha256=self.roi_sha256 or item.roi_sha256,
        )

    def is_of_files(self, stored: JobItem) -> bool:
        """Return True unless a file that the request names had another version when the stored plan was made."""
        skipped = self.skipped or SkippedTiles()
        return self.roi_sha256 == stored.roi_sha256 and skipped.are_of_versions(stored.skip_versions or ())

    @property
    def work(self) -> list[ImageRegion]:
        """The regions with a tile that is processed."""
        skipped = self.skipped
        if skipped is None:
            return self.regions
        return [region for region in self.regions if not self.is_skipped(region, skipped.of(region))]

    def is_skipped(self, region: ImageRegion, rules_by_tile: Mapping[int, int]) -> bool:
        """Return True when all tiles of a region are skipped, those of ``rules_by_tile``."""
        return bool(rules_by_tile) and len(rules_by_tile) == len(self.planner.tiles(region))


def encoded_format(protocol: ModelProtocol, tile_format: str) -> str:
    """Return the format into which the encoder writes a tile: that of the request, or an array for tensors."""
    return NUMPY if protocol.sends_pixels else tile_format


def plan_image(
    source: ImageSource,
    request: ImageRequest,
    strategy: TilingStrategy,
    region_size: ImageDimensions,
    limits: PlanLimits,
    preparation: Preparation | None = None,
    fixed: FixedRegions | None = None,
) -> ImagePlan:
    """Return the plan of an open image. The same image and request give the same plan on every worker.

    ``preparation`` is what is done to the pixels of tiles; None leaves them as they are. ``fixed`` are the regions of a
    plan that was made before, from a region of interest that may have changed since.

    Raises:
        ImageError: the tile format cannot hold the image, or a tile would be too large. The region of interest is not
            in the image. The plan would have too many parts.
        InvalidImageRequestException: no tile of the asked size fits into a call of the endpoint.
    """
    protocol = ModelProtocol.of(request.model_protocol)
    tile_format = encoded_format(protocol, request.tile_format)
    encoder = TileEncoder(source, tile_format, request.tile_compression, preparation=preparation)
    encoder.check(request.tile_size)
    ratio = ratio_of(preparation)
    size = ratio.size_of(source.width, source.height)
    roi = None
    if request.roi is not None:
        if source.sensor_model is None:
            raise LoadImageException("regionOfInterest needs an image that is georeferenced, and this one is not")
        roi = interest_in(source.sensor_model, source.width, source.height, request.roi, ratio)
    planner = TilePlanner(strategy, request.tile_size, request.tile_overlap, roi)
    if fixed is None:
        try:
            bounds = processing_bounds(size.width, size.height, roi)
        except LoadImageException as err:
            raise LoadImageException(f"{err}{_covered(source)}") from err
        _refuse_excess(planner, bounds, region_size, limits)
        counts = planner.tile_counts(bounds, region_size)
        if not counts:
            raise LoadImageException(f"regionOfInterest does not touch the image{_covered(source)}")
        fixed = FixedRegions(bounds, [region for region, _ in counts], sum(count for _, count in counts))
    bounds, regions, tile_count = fixed
    if limits.body_bytes is not None:
        largest = max((tile.bounds for tile in planner.tiles(regions[0])), key=lambda bounds: math.prod(bounds.size))
        room = envelope_of(protocol, str(request.tile_format)).room_in(limits.body_bytes, encoder.sample_bytes)
        _refuse_unsendable(encoder, largest, room, limits.body_bytes, protocol.sends_pixels)
    return ImagePlan(
        bounds=bounds,
        regions=regions,
        tile_count=tile_count,
        region_size=region_size,
        width=source.width,
        height=source.height,
        extents=_extents(source),
        georeference=_georeference(source),
        etag=source.etag,
        extension=source.extension,
        image_format=source.driver_name,
        image_count=source.header.image_count,
        source_metadata=source_metadata(source, public_url(request.image_url)),
        planner=planner,
        preparation=preparation,
        item=source.item,
    )


def preparation_of(
    source: ImageSource, request: ImageRequest, planned: str | None, measures: bool
) -> Preparation | None:
    """Return what is done to the pixels of an open image; None where the request leaves them as they are.

    ``planned`` is the text of the image's row, once it has a plan: the image's values are measured once. Without
    ``measures`` ranges that follow from them are not known.

    Raises InvalidImageRequestException with every problem of ``imageProcessorInput`` with this image.
    """
    if planned is not None:
        return Preparation.from_text(planned)
    if request.processor_input is None:
        return None
    return prepare(source, ProcessorInput.model_validate(request.processor_input), measures)


def _refuse_excess(planner: TilePlanner, bounds: ImageRegion, region_size: ImageDimensions, limits: PlanLimits) -> None:
    """Raise LoadImageException when a plan has too many parts, before any of them is made."""
    advice = "ask for larger tiles, or for less overlap"
    min_tiles, max_tiles = planner.min_tiles(bounds), limits.regions * limits.tiles_per_region
    if min_tiles > max_tiles:
        raise LoadImageException(f"{min_tiles} tiles are too many: at most {max_tiles}; {advice}")
    size = planner.size(bounds, region_size)
    if size.regions > limits.regions or size.largest_region_tiles > limits.tiles_per_region:
        raise LoadImageException(
            f"{size.regions} regions with up to {size.largest_region_tiles} tiles each are too many:"
            f" at most {limits.regions} and {limits.tiles_per_region}; {advice}"
        )
    if size.tiles <= limits.tiles:
        return
    tiles = sum(planner.max_tiles(region) for region in planner.touched(bounds, region_size))
    if tiles > limits.tiles:
        raise LoadImageException(f"{tiles} tiles are too many for an image: at most {limits.tiles}; {advice}")


def _georeference(source: ImageSource) -> dict[str, Any] | None:
    """Return the method and the error of the image's georeference for results; log it, as a warning if it is bad."""
    georeference = georeference_of(source)
    if georeference is None:
        return None
    method = georeference.method
    error_px = round(georeference.error_px, 3) if math.isfinite(georeference.error_px) else None
    if georeference.warning:
        logger.warning("image.georeference_rough", method=method, error_px=error_px)
    if difference := difference_from_item(source):
        logger.warning("image.item_differs", reason=difference)
    if warning := "; ".join(text for text in (georeference.warning, difference) if text):
        return {"method": method, "errorPx": error_px, "warning": warning}
    logger.info("image.georeferenced", method=method, error_px=error_px)
    return {"method": method, "errorPx": error_px}


def _extents(source: ImageSource) -> dict[str, float] | None:
    try:
        return None if source.sensor_model is None else extents(source)
    except LoadImageException as err:
        # Some of its pixels may have a place all the same.
        logger.warning("image.extents_unknown", reason=str(err))
        return None


def _covered(source: ImageSource) -> str:
    """Return a clause for an error: the longitudes and latitudes of the image, where they are known."""
    found = _extents(source)
    if found is None:
        return ""
    west, east, south, north = (f"{found[side]:.5f}" for side in ("west", "east", "south", "north"))
    return f", which covers longitudes {west} to {east} and latitudes {south} to {north}"


def _refuse_unsendable(
    encoder: TileEncoder, tile: ImageRegion, limit: int, body_bytes: int, sends_pixels: bool
) -> None:
    """Raise InvalidImageRequestException when every full tile would be longer than a call of the endpoint may be.

    ``limit`` is the longest tile that a body of ``body_bytes`` has room for. ``sends_pixels``: no format compresses.
    """
    try:
        size = encoder.largest_payload(tile, limit)
    except TileEncodingError:
        # Tiles that cannot be read fail one by one.
        return
    if size <= limit:
        return
    band_count, data_type, samples = encoder.pixel_kind
    pixels = f"{band_count} band(s) of {data_type}"
    # The side of the largest square tile that fits beside its header, a multiple of 16; 0 where none does.
    side = math.isqrt(max(0, limit - _HEADER_BYTES) // encoder.pixel_bytes) // _SIDE_STEP_PX * _SIDE_STEP_PX
    changes = [f"imageProcessorTileSize {side}"] if side else []
    compressed = formats_that_hold(band_count, data_type, samples, must_compress=True)
    if compressed and not sends_pixels:
        changes.append(f"a format that compresses ({compressed})")
    room = "" if limit == body_bytes else f" in a body of {body_bytes} bytes"
    expected = (
        f"a tile of at most {limit} bytes{room}, which the endpoint takes;"
        f" {tile.size.width} x {tile.size.height} pixels with {pixels} have {size}:"
        f" use {', or '.join(changes) or 'an image with fewer bands'}"
    )
    problem = Problem("imageProcessorTileSize", str(max(tile.size)), expected)
    raise InvalidImageRequestException("no tile fits into a call of the endpoint", [problem])
