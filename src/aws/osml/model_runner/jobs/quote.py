"""The quote of an image: what its job would do and use, by the worker's own plan, without a call of the model."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Annotated, Any, overload

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field

from aws.osml.model_runner.api.image_request import ImageRequest
from aws.osml.model_runner.api.image_url import public_url
from aws.osml.model_runner.api.model_protocol import ModelProtocol
from aws.osml.model_runner.api.skip_rules import rules_of
from aws.osml.model_runner.common.typing import EncodedTile, ImageCoord, ImageDimensions, ImageRegion
from aws.osml.model_runner.exceptions import Problem, TileEncodingError
from aws.osml.model_runner.features.geolocation import refine_features
from aws.osml.model_runner.features.geolocation_grid import LocationGrid
from aws.osml.model_runner.features.properties import UNCUT
from aws.osml.model_runner.features.rfc7946 import conformed
from aws.osml.model_runner.inference.tensor_envelope import envelope_of
from aws.osml.model_runner.raster import (
    BlockSizes,
    ImageSource,
    TileEncoder,
    file_bytes,
    image_to_world,
    is_quick,
    known_block_sizes,
    pixel_size_m,
)
from aws.osml.model_runner.raster.preparation import ratio_of
from aws.osml.model_runner.tiling.region_plan import region_id_of

from .planning import ImagePlan, encoded_format

# Tiles of each size that are encoded to measure the length of an encoded tile. Where pixels are not compressed, fewer
# show that the length is always the same.
SAMPLED_TILES = 16
_SAMPLED_OF_FIXED_SIZE = 3

# Write units of DynamoDB for a job whose tiles have few features, as a meter between a worker and its tables counts
# them. A row of a tile above 1 KiB takes one more for each further KiB.
WRITE_UNITS_PER_TILE = 1
WRITE_UNITS_PER_REGION = 11
WRITE_UNITS_PER_IMAGE = 26


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True)


Skipped = Annotated[dict[str, int], Field(description="Tiles that are not sent to the model, by rule.")]


class QuotedImage(_Part):
    """The image, as its file declares it."""

    format: str = Field(description="GDAL's name of the format, in capitals.")
    width: int = Field(description="Columns in pixels.")
    height: int = Field(description="Rows in pixels.")
    bands: int = Field(description="Number of bands.")
    pixel_type: str = Field(description="GDAL's name of the type that holds every band.")
    block_size: tuple[int, int] = Field(description="Width and height in pixels of the blocks of the file.")
    file_bytes: int = Field(description="Size of the file.")
    images: int = Field(description="Images in the file; the first is processed.")
    pixel_size_m: tuple[float, float] | None = Field(description="Width and height of a pixel in metres, if known.")
    georeference: dict[str, Any] | None = Field(description="`method`, `errorPx` and `warning`, as in results.")
    extents: dict[str, float] | None = Field(description="`north`, `south`, `east` and `west` in degrees, if known.")


class QuotedTiles(_Part):
    """The tiles that the model gets."""

    width: int = Field(description="Width of the largest tile in pixels.")
    height: int = Field(description="Height of the largest tile in pixels.")
    overlap: int = Field(description="Least overlap of neighbours in pixels.")
    format: str = Field(description="File format.")
    compression: str = Field(description="Compression of the format.")
    bands: int = Field(description="Number of bands.")
    pixel_type: str = Field(description="GDAL's name of the type of samples.")
    scale: tuple[float, float] = Field(description="Model pixels per image pixel, in x and y.")


class QuotedRegion(_Part):
    """One region: its pixels on the grid of the model, and its tiles."""

    row: int = Field(description="First row in model pixels.")
    col: int = Field(description="First column in model pixels.")
    width: int = Field(description="Width in model pixels.")
    height: int = Field(description="Height in model pixels.")
    tiles: int = Field(description="Tiles that are sent to the model.")
    skipped: Skipped
    storage_bytes: int = Field(description="Bytes of the blocks that its tiles need, each block once.")

    @classmethod
    def of(cls, region: ImageRegion, **amounts: Any) -> "QuotedRegion":
        """Return a region with its amounts."""
        (row, col), (width, height) = region
        return cls(row=row, col=col, width=width, height=height, **amounts)


class Amounts(_Part):
    """Amounts of one image, or of all images of a request together."""

    regions: int = Field(description="Regions that the region of interest touches.")
    tiles: int = Field(description="Tiles that are sent to the model.")
    skipped: Skipped
    calls: int = Field(description="Calls of the model, without repeated calls.")
    model_bytes: int = Field(description="Bytes of all tiles as the model gets them.")
    is_model_bytes_exact: bool = Field(description="False where `model_bytes` follows from a sample of the tiles.")
    storage_bytes: int = Field(description="Bytes of the blocks that are read, each once; headers are not counted.")
    max_storage_bytes: int = Field(description="The same where each region is read by another worker.")
    rows: dict[str, int] = Field(description="Rows in DynamoDB: `requests`, `images`, `regions` and `tiles`.")
    write_units: int = Field(description="Write units of DynamoDB where tiles have few features.")
    endpoint_minutes: float | None = Field(description="Minutes of calls at the rate that was given.")


class QuotedProblem(_Part):
    """A reason why the job would be refused or fail."""

    field: str | None = Field(description="Field of the request; null where the reason belongs to none.")
    value: str | None = Field(description="Value of the field.")
    reason: str = Field(description="Expected value, or the error.")

    @classmethod
    def of(cls, problem: Problem) -> "QuotedProblem":
        """Return a problem of a request."""
        return cls(field=problem.field, value=problem.value, reason=problem.expectation)

    def __str__(self) -> str:
        return self.reason if self.field is None else f"{self.field}={self.value}: {self.reason}"


class Unchecked(_Part):
    """A check that was not possible here; a worker makes it again."""

    field: str = Field(description="Field of the request.")
    reason: str = Field(description="Why the check was not possible.")


class ImageQuote(_Part):
    """The quote of one image. Without a plan, `image`, `tile` and `amounts` are null, and `problems` say why."""

    url: str = Field(description="URL of the image.")
    image: QuotedImage | None = Field(default=None, description="The image, as its file declares it.")
    tile: QuotedTiles | None = Field(default=None, description="The tiles that the model gets.")
    regions: list[QuotedRegion] = Field(default=[], description="Regions in the order of the plan.")
    amounts: Amounts | None = Field(default=None, description="The amounts of this image.")
    block_sizes: BlockSizes | None = Field(
        default=None,
        description="How sizes of blocks are known: `INDEX`, `PIXELS`, `SHARE` or `WHOLE_FILE`.",
    )
    notes: list[str] = Field(default=[], description="Facts that do not stop the job and may surprise.")


class Cost(_Part):
    """Cost by the file of prices."""

    date: str = Field(description="Date of the prices.")
    currency: str = Field(description="Currency of the prices.")
    parts: dict[str, float] = Field(description="Cost by the name of its price.")
    total: float = Field(description="Sum of the parts.")
    left_out: list[str] = Field(description="Prices whose amount is not known: hours need `--calls-per-second`.")


class PlanDocument(_Part):
    """The document that `model-runner plan --json` prints."""

    job_id: str = Field(description="`jobId` of the request; `plan` without a request.")
    images: list[ImageQuote] = Field(default=[], description="One quote for each image.")
    totals: Amounts | None = Field(default=None, description="All images together; null unless each has a plan.")
    cost: Cost | None = Field(default=None, description="Money, with `--prices` only.")
    ignored_keys: list[str] = Field(default=[], description="Keys of the request that are not known: no effect.")
    problems: list[QuotedProblem] = Field(description="Reasons why the job would be refused or fail.")
    unchecked: list[Unchecked] = Field(default=[], description="Checks that were not possible here.")


def quote_image(
    source: ImageSource,
    request: ImageRequest,
    plan: ImagePlan,
    body_bytes: int | None = None,
    calls_per_second: float | None = None,
) -> ImageQuote:
    """Return the quote of an image that is open and planned. Some tiles are read and encoded, and none is sent.

    ``body_bytes`` is the longest tile that the endpoint takes; None where no limit is known.

    Raises ImageError when the image cannot be read.
    """
    protocol = ModelProtocol.of(request.model_protocol)
    tile_format = encoded_format(protocol, request.tile_format)
    encoder = TileEncoder(source, tile_format, request.tile_compression, preparation=plan.preparation)
    envelope = envelope_of(protocol, str(request.tile_format))
    regions, parts, names = list[QuotedRegion](), list[npt.NDArray[np.int32]](), rule_names(request)
    for region in plan.regions:
        skipped = {} if plan.skipped is None else plan.skipped.of(region)
        tiles = [tile.bounds for tile in plan.planner.tiles(region) if tile.index not in skipped]
        by_rule = Counter(names[number] for number in skipped.values())
        stored = encoder.stored_bytes(tiles)
        regions.append(QuotedRegion.of(region, tiles=len(tiles), skipped=dict(by_rule), storage_bytes=stored))
        parts.append(np.array([(*tile.origin, *tile.size) for tile in tiles], np.int32).reshape(-1, 4))
    bounds = _Tiles(np.concatenate(parts))

    def body_of(tile: ImageRegion) -> EncodedTile:
        return envelope.wrap(encoder.encode(tile)).content

    payload = _measured_payload(body_of, encoder.has_fixed_size, bounds, body_bytes)
    band_count, data_type, _ = encoder.pixel_kind
    ratio = ratio_of(plan.preparation)
    return ImageQuote(
        url=public_url(request.image_url),
        image=_image_facts(source, plan),
        tile=QuotedTiles(
            width=int(bounds.numbers[:, 2].max(initial=0)),
            height=int(bounds.numbers[:, 3].max(initial=0)),
            overlap=request.tile_overlap.width,
            format=request.tile_format,
            compression=request.tile_compression,
            bands=band_count,
            pixel_type=data_type,
            scale=(1 / ratio.x, 1 / ratio.y),
        ),
        regions=regions,
        amounts=_amounts(regions, payload, encoder.stored_bytes(bounds), calls_per_second),
        block_sizes=known_block_sizes(source),
        notes=[*_image_notes(plan), *filter(None, [encoder.warning]), *payload.notes],
    )


class _Tiles(Sequence[ImageRegion]):
    """The tiles of an image as (n, 4) numbers: row, column, width and height. An image may have millions of them."""

    def __init__(self, numbers: npt.NDArray[np.int32]) -> None:
        self.numbers = numbers

    def __len__(self) -> int:
        return len(self.numbers)

    @overload
    def __getitem__(self, index: int) -> ImageRegion: ...

    @overload
    def __getitem__(self, index: slice) -> "_Tiles": ...

    def __getitem__(self, index: int | slice) -> "ImageRegion | _Tiles":
        if isinstance(index, slice):
            return _Tiles(self.numbers[index])
        row, col, width, height = self.numbers[index].tolist()
        return ImageRegion(ImageCoord(row, col), ImageDimensions(width, height))

    def by_size(self) -> Iterator["_Tiles"]:
        """Yield the tiles of each size, in the order of the plan."""
        sizes, owners = np.unique(self.numbers[:, 2:], axis=0, return_inverse=True)
        for number in range(len(sizes)):
            yield _Tiles(self.numbers[owners.ravel() == number])


class _Payload(_Part):
    bytes: int
    is_exact: bool
    notes: list[str]


def rule_names(request: ImageRequest) -> list[str]:
    """Return a name for each of a request's rules of skipping: its kind, and its file where it has one."""
    rules = [rule.stored() for rule in rules_of(request.skip)]
    return [" ".join(str(rule[key]) for key in ("where", "asset", "url") if key in rule) for rule in rules]


def _measured_payload(
    body_of: Callable[[ImageRegion], EncodedTile],
    has_fixed_size: bool,
    tiles: _Tiles,
    body_bytes: int | None,
) -> _Payload:
    """Return the bytes of all bodies, from the bodies of some tiles of each size.

    ``has_fixed_size``: bodies of tiles of one size mostly have one length.
    """
    most = _SAMPLED_OF_FIXED_SIZE if has_fixed_size else SAMPLED_TILES
    total, is_exact, sampled, large, damaged = 0.0, True, 0, 0, 0
    for alike in tiles.by_size():
        chosen = sorted(set(np.linspace(0, len(alike) - 1, min(most, len(alike))).round().astype(int).tolist()))
        lengths = list[int]()
        for index in chosen:
            try:
                lengths.append(len(body_of(alike[index])))
            except TileEncodingError:
                damaged += 1
        large += sum(body_bytes is not None and length > body_bytes for length in lengths)
        sampled += len(chosen)
        total += len(alike) * sum(lengths) / max(1, len(lengths))
        is_whole = len(lengths) == len(alike)
        is_exact &= is_whole or (has_fixed_size and len(set(lengths)) == 1 and len(lengths) == len(chosen))
    notes = []
    if damaged:
        notes.append(f"{damaged} of {sampled} tiles that were read cannot be read or encoded: such tiles fail")
    if large:
        notes.append(f"{large} of {sampled} tiles that were encoded exceed {body_bytes} bytes: such tiles fail")
    return _Payload(bytes=round(total), is_exact=is_exact, notes=notes)


def _image_facts(source: ImageSource, plan: ImagePlan) -> QuotedImage:
    return QuotedImage(
        format=source.driver_name,
        width=source.width,
        height=source.height,
        bands=source.band_count,
        pixel_type=source.data_type,
        block_size=source.block_size,
        file_bytes=file_bytes(source),
        images=plan.image_count,
        pixel_size_m=pixel_size_m(source),
        georeference=plan.georeference,
        extents=plan.extents,
    )


def _image_notes(plan: ImagePlan) -> Iterator[str]:
    if plan.georeference and "warning" in plan.georeference:
        yield str(plan.georeference["warning"])
    if plan.georeference is None:
        yield "the image has no georeference: results have pixels only"
    if plan.image_count > 1:
        yield f"the file holds {plan.image_count} images, the first is processed"


def _amounts(
    regions: Sequence[QuotedRegion], payload: _Payload, storage_bytes: int, calls_per_second: float | None
) -> Amounts:
    tiles, skipped = sum(region.tiles for region in regions), Counter[str]()
    for region in regions:
        skipped.update(region.skipped)
    units = WRITE_UNITS_PER_IMAGE + WRITE_UNITS_PER_REGION * len(regions) + WRITE_UNITS_PER_TILE * tiles
    return Amounts(
        regions=len(regions),
        tiles=tiles,
        skipped=dict(skipped),
        calls=tiles,
        model_bytes=payload.bytes,
        is_model_bytes_exact=payload.is_exact,
        storage_bytes=storage_bytes,
        max_storage_bytes=sum(region.storage_bytes for region in regions),
        rows={"requests": 1, "images": 1, "regions": len(regions), "tiles": tiles},
        write_units=units,
        endpoint_minutes=None if calls_per_second is None else tiles / calls_per_second / 60,
    )


def total_of(amounts: Sequence[Amounts]) -> Amounts:
    """Return the amounts of all images of a request together."""
    skipped, rows = Counter[str](), Counter[str]()
    for each in amounts:
        skipped.update(each.skipped)
        rows.update(each.rows)
    minutes = [each.endpoint_minutes for each in amounts if each.endpoint_minutes is not None]

    def summed(name: str) -> int:
        return sum(getattr(each, name) for each in amounts)

    return Amounts(
        regions=summed("regions"),
        tiles=summed("tiles"),
        skipped=dict(skipped),
        calls=summed("calls"),
        model_bytes=summed("model_bytes"),
        is_model_bytes_exact=all(each.is_model_bytes_exact for each in amounts),
        storage_bytes=summed("storage_bytes"),
        max_storage_bytes=summed("max_storage_bytes"),
        rows={**rows, "requests": 1},
        write_units=summed("write_units"),
        endpoint_minutes=sum(minutes) if minutes else None,
    )


def tile_features(source: ImageSource, request: ImageRequest, plan: ImagePlan) -> Iterator[dict[str, Any]]:
    """Yield each tile of a plan as a GeoJSON feature; its geometry is null where the image has no georeference.

    ``imageBBox`` is in image pixels, as in results.
    """
    ratio = ratio_of(plan.preparation)
    names = rule_names(request)
    for region in plan.regions:
        skipped = {} if plan.skipped is None else plan.skipped.of(region)
        grid = None
        if source.sensor_model is not None:
            to_world = image_to_world(source.sensor_model)
            in_image = ratio.in_image(region)
            grid = LocationGrid.from_sensor_model(to_world, in_image, is_quick=is_quick(source.sensor_model))
        for tile in plan.planner.tiles(region):
            width, height = tile.bounds.size
            properties: Mapping[str, Any] = {
                "image": public_url(request.image_url),
                "region_id": region_id_of(region, request.job_id),
                "tile": tile.index,
                "state": "skipped" if tile.index in skipped else "planned",
                "reason": names[skipped[tile.index]] if tile.index in skipped else None,
                "imageBBox": [0, 0, width, height],
            }
            drawn: dict[str, Any] = {"type": "Feature", "geometry": None, "properties": dict(properties)}
            (feature,) = refine_features([drawn], tile.bounds, grid, ratio)
            for name in ("center_longitude", "center_latitude", "bbox"):
                feature["properties"].pop(name, None)
                feature.pop(name, None)
            is_cut = feature["properties"].pop(UNCUT, False)
            yield conformed(feature) if is_cut else feature
