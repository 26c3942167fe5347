"""The text of a plan, for a terminal of any width and for a pipe."""

import textwrap
from collections.abc import Iterable, Iterator

from aws.osml.model_runner.jobs.quote import Amounts, Cost, ImageQuote, PlanDocument, QuotedRegion
from aws.osml.model_runner.raster import BlockSizes

# Regions that are listed; the document lists all of them.
_LISTED_REGIONS = 12
_LABEL_WIDTH = 10
_BLOCK_SIZES = {
    BlockSizes.INDEX: "sizes of blocks are from the file's index",
    BlockSizes.PIXELS: "the file is not compressed",
    BlockSizes.SHARE: "each block takes its share of the file",
    BlockSizes.WHOLE_FILE: "the format is read from its first byte on",
}


def text_of(document: PlanDocument, width: int | None) -> str:
    """Return the text of a plan in lines of at most ``width`` columns, or in lines of any length without it."""
    parts: list[Iterable[tuple[str, str]]] = [_image_lines(image) for image in document.images]
    if len(document.images) > 1 and document.totals is not None:
        parts.append([("in all", f"{len(document.images)} images"), *_amount_lines(document.totals)])
    parts.append(_ending_lines(document))
    return "\n".join("\n".join(_labelled(lines, width)) + "\n" for lines in parts)


def _ending_lines(document: PlanDocument) -> Iterator[tuple[str, str]]:
    if document.cost is not None:
        yield from _cost_lines(document.cost)
    for index, key in enumerate(document.ignored_keys):
        yield "ignored" if not index else "", f"{key}: not a key of a request"
    for index, each in enumerate(document.unchecked):
        yield "unchecked" if not index else "", f"{each.field}: {each.reason}"
    for index, problem in enumerate(document.problems):
        yield "problems" if not index else "", str(problem)
    if not document.problems:
        yield "problems", "none"


def _image_lines(quote: ImageQuote) -> Iterator[tuple[str, str]]:
    yield "image", quote.url
    if quote.image is None or quote.tile is None or quote.amounts is None:
        yield "", "cannot be planned: see the problems"
        return
    image, tile = quote.image, quote.tile
    size = f"{image.width} x {image.height} pixels, {_counted(image.bands, 'band')} of {image.pixel_type}"
    blocks = f"{_bytes(image.file_bytes)} in blocks of {image.block_size[0]} x {image.block_size[1]}"
    yield "", f"{image.format}, {size}, {blocks}"
    if image.pixel_size_m is not None:
        yield "", f"a pixel has {image.pixel_size_m[0]:.3g} x {image.pixel_size_m[1]:.3g} m"
    scale = "" if tile.scale == (1.0, 1.0) else f" at scale {tile.scale[0]:.4g}"
    yield "tile", f"{tile.width} x {tile.height} pixels{scale}, overlap {tile.overlap}"
    compression = "" if tile.compression == "NONE" else f"/{tile.compression}"
    yield "", f"{tile.format}{compression}, {_counted(tile.bands, 'band')} of {tile.pixel_type}"
    yield from _amount_lines(quote.amounts, _BLOCK_SIZES.get(quote.block_sizes) if quote.block_sizes else None)
    if len(quote.regions) > 1:
        yield from _region_lines(quote)
    for index, note in enumerate(quote.notes):
        yield "note" if not index else "", note


def _amount_lines(amounts: Amounts, storage: str | None = None) -> Iterator[tuple[str, str]]:
    yield "tiles", f"{amounts.tiles:,} in {_counted(amounts.regions, 'region')}"
    for rule, count in amounts.skipped.items():
        yield "", f"{count:,} skipped by {rule}"
    yield "calls", f"{amounts.calls:,}"
    about = "" if amounts.is_model_bytes_exact else "about "
    each = f", {_bytes(amounts.model_bytes / amounts.tiles)} a tile" if amounts.tiles else ""
    yield "to model", f"{about}{_bytes(amounts.model_bytes)}{each}"
    most = f", {_bytes(amounts.max_storage_bytes)} by several workers" if amounts.regions > 1 else ""
    yield "storage", f"{_bytes(amounts.storage_bytes)} are read{most}" + (f": {storage}" if storage else "")
    names = ("request", "image", "region", "tile")
    rows = ", ".join(_counted(amounts.rows[f"{name}s"], name) for name in names if f"{name}s" in amounts.rows)
    yield "rows", f"{sum(amounts.rows.values()):,}: {rows}; about {amounts.write_units:,} write units"
    if amounts.endpoint_minutes is not None:
        minutes = amounts.endpoint_minutes
        yield "endpoint", f"{minutes:,.1f} minutes of calls" if minutes >= 1 else f"{60 * minutes:.1f} s of calls"


def _region_lines(quote: ImageQuote) -> Iterator[tuple[str, str]]:
    for index, region in enumerate(quote.regions[:_LISTED_REGIONS]):
        yield "regions" if not index else "", _region_line(region)
    if (more := len(quote.regions) - _LISTED_REGIONS) > 0:
        yield "", f"and {more:,} more: --json lists all"


def _region_line(region: QuotedRegion) -> str:
    skipped = sum(region.skipped.values())
    left_out = f", {skipped:,} skipped" if skipped else ""
    place = f"row {region.row}, column {region.col}: {region.width} x {region.height}"
    return f"{place}, {_counted(region.tiles, 'tile')}{left_out}"


def _cost_lines(cost: Cost) -> Iterator[tuple[str, str]]:
    yield "cost", f"{cost.total:,.4g} {cost.currency} by the prices of {cost.date}"
    for name, price in cost.parts.items():
        yield "", f"{name}: {price:,.4g}"
    for name in cost.left_out:
        yield "", f"{name}: not included, --calls-per-second gives its hours"


def _labelled(lines: Iterable[tuple[str, str]], width: int | None) -> list[str]:
    made = list[str]()
    for label, text in lines:
        first, later = f"{label:<{_LABEL_WIDTH}}", " " * _LABEL_WIDTH
        if width is None:
            made.append(f"{first}{text}")
        else:
            made += textwrap.wrap(text, width, initial_indent=first, subsequent_indent=later, break_on_hyphens=False)
    return made


def _counted(count: int, name: str) -> str:
    return f"{count:,} {name}{'' if count == 1 else 's'}"


def _bytes(size: float) -> str:
    if size < 1000:
        return f"{size:.0f} bytes"
    unit, factor = next((each for each in (("KB", 1e3), ("MB", 1e6)) if size < 1000 * each[1]), ("GB", 1e9))
    return f"{size / factor:,.1f} {unit}"
