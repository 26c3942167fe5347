"""The reference agrees with the code: names, defaults, types and limits are compared, both ways."""

import ast
import dataclasses
import enum
import inspect
import json
import re
import types
import typing
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zstandard
from pydantic import AliasChoices, BaseModel
from pydantic.fields import FieldInfo

from aws.osml.model_runner.api import (
    image_request_schema,
    image_url,
    json_document,
    processor_input,
    region_of_interest,
    rules,
    skip_rules,
)
from aws.osml.model_runner.api.image_request import ImageRequest
from aws.osml.model_runner.common.typing import ImageCompression, ImageFormats, RequestStatus
from aws.osml.model_runner.config import ServiceConfig, documented_settings
from aws.osml.model_runner.database import outstanding_jobs_table as outstanding_jobs_table
from aws.osml.model_runner.database import scheduler_lock as scheduler_lock
from aws.osml.model_runner.database.ddb_helper import DDBItem
from aws.osml.model_runner.database.endpoint_statistics_table import EndpointSlotItem, EndpointStatisticsItem
from aws.osml.model_runner.database.feature_item import FeatureItem
from aws.osml.model_runner.database.job_table import JobItem, JobTable
from aws.osml.model_runner.database.region_request_table import RegionRequestItem
from aws.osml.model_runner.exceptions import TileEncodingError
from aws.osml.model_runner.features.encoding import encode_features
from aws.osml.model_runner.features.tile_blob import MAX_CONTENT_BYTES, pack_tile
from aws.osml.model_runner.jobs.progress import progress_of
from aws.osml.model_runner.local.stack.model_server import MODELS
from aws.osml.model_runner.raster.settings import RasterSettings
from aws.osml.model_runner.raster.tile_formats import plan_tile
from aws.osml.model_runner.status.image_status_monitor import ImageStatusMonitor
from aws.osml.model_runner.status.region_status_monitor import RegionStatusMonitor
from markdown_pages import coded, fences, first_column, own_part, rows, section
from python_scripts import load_script

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
REFERENCE = DOCS / "reference"
PACKAGE = ROOT / "src" / "aws" / "osml" / "model_runner"
REQUIRED = "*required*"


def reference(name: str) -> str:
    return (REFERENCE / name).read_text()


# Code -----------------------------------------------------------------------------------------------------------------


def calls() -> Iterator[tuple[str, ast.Call, list[str]]]:
    """Yield every call of a method in the package: its name, the call, and the dotted name of the object."""
    for path in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                yield node.func.attr, node, ast.unparse(node.func.value).split(".")


def constant(node: ast.expr) -> str | None:
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else None


def keywords(call: ast.Call) -> set[str]:
    return {keyword.arg for keyword in call.keywords if keyword.arg is not None}


@pytest.fixture(scope="module")
def render() -> types.ModuleType:
    return load_script(ROOT / "scripts" / "render_reference.py")


# Environment ----------------------------------------------------------------------------------------------------------


def test_every_setting_is_documented_with_its_default_and_no_other() -> None:
    table = rows(own_part(reference("environment.md"), "Settings"))
    documented = {tuple(coded(row["Variable"])): row["Default"] for row in table}
    assert documented == {
        setting.names: f"`{setting.default}`" if setting.default else REQUIRED for setting in documented_settings()
    }


@pytest.mark.parametrize(("part", "page"), [("environment", "environment.md"), ("commands", "command-line.md")])
def test_generated_parts_are_up_to_date(render: types.ModuleType, part: str, page: str) -> None:
    assert render.rendered(part, reference(page)) == reference(page), "run scripts/render_reference.py"


def test_settings_that_nothing_acts_on_are_named_as_such() -> None:
    read = set()
    for path in PACKAGE.rglob("*.py"):
        attributes = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Attribute)]
        read |= {node.attr for node in attributes if isinstance(node.ctx, ast.Load)}
    # boto3 reads the region by itself, from the same variable.
    unread = {setting.names[0] for setting in documented_settings() if setting.field not in read | {"aws_region"}}
    assert set(coded(section(reference("environment.md"), "Not acted on yet"))) == unread


def test_the_minimal_worker_is_one() -> None:
    script = fences(section(reference("environment.md"), "A minimal worker"), "shell")[0]
    environment = dict(re.findall(r"([A-Z_]+)=(\S+)", script))
    assert ServiceConfig.from_environment(environment).outstanding_jobs_table


# Image request --------------------------------------------------------------------------------------------------------

MESSAGE_PARTS: dict[str, type[BaseModel]] = {
    "The message": image_request_schema.ImageRequestMessage,
    "imageProcessor": image_request_schema.ImageProcessor,
    "imageProcessorInput": processor_input.ProcessorInput,
    "imageProcessorInput: stretch": processor_input.Stretch,
    "skip: NODATA": skip_rules.NodataRule,
    "skip: MASK": skip_rules.MaskRule,
    "skip: OUTSIDE and INSIDE": skip_rules.AreaRule,
    "outputs: S3": image_request_schema.S3Output,
    "outputs: Kinesis": image_request_schema.KinesisOutput,
    "postProcessing": image_request_schema.PostProcessingStep,
    "postProcessing: algorithm": image_request_schema.Algorithm,
}


def key_of(name: str, field: FieldInfo) -> str:
    alias = field.validation_alias
    return str(alias.choices[0]) if isinstance(alias, AliasChoices) else field.alias or name


def default_of(name: str, field: FieldInfo) -> str:
    """Return how a page writes a default: required, nothing, or the value; the two that are made say what is made."""
    if field.is_required() or name == "outputs":
        return REQUIRED
    default = field.get_default(call_default_factory=True)
    if name == "post_processing":
        return f"`{default[0].algorithm.algorithm_type}`"
    if name == "stretch":
        return f"`{default.type}`"
    return "" if default in (None, "", []) else f"`{default}`"


@pytest.mark.parametrize(("heading", "model"), MESSAGE_PARTS.items(), ids=MESSAGE_PARTS)
def test_every_key_of_an_image_request_is_documented_with_its_default(heading: str, model: type[BaseModel]) -> None:
    table = rows(own_part(reference("image-request.md"), heading))
    documented = {coded(row["Key"])[0]: row["Default"] for row in table}
    expected = {key_of(name, field): default_of(name, field) for name, field in model.model_fields.items()}
    assert documented == expected


def values_of(model: type[BaseModel], name: str) -> set[str]:
    """Return the words that a field may hold, where they can be listed."""
    found: set[str] = set()
    waiting = [model.model_fields[name].annotation]
    while waiting:
        kind = waiting.pop()
        if typing.get_origin(kind) is typing.Literal:
            found |= {str(value) for value in typing.get_args(kind)}
        elif isinstance(kind, type) and issubclass(kind, enum.Enum):
            found |= {str(member.value) for member in kind}
        else:
            waiting.extend(typing.get_args(kind))
    return found


@pytest.mark.parametrize(("heading", "model"), MESSAGE_PARTS.items(), ids=MESSAGE_PARTS)
def test_every_word_that_a_key_may_hold_is_documented(heading: str, model: type[BaseModel]) -> None:
    table = {coded(row["Key"])[0]: row for row in rows(own_part(reference("image-request.md"), heading))}
    for name, field in model.model_fields.items():
        assert values_of(model, name) <= set(coded(table[key_of(name, field)]["Meaning"])), name


LIMITS = [
    json_document.MAX_MESSAGE_BYTES,
    json_document.MAX_DEPTH,
    rules.MAX_JOB_ID_LENGTH,
    rules.MAX_NAME_LENGTH,
    rules.MAX_PREFIX_BYTES,
    rules.MIN_TILE_SIZE,
    rules.MAX_TILE_SIZE,
    image_request_schema.MAX_IMAGES,
    image_url.MAX_URL_BYTES,
    image_url.MAX_KEY_BYTES,
    region_of_interest.MAX_WKT_BYTES,
    region_of_interest.MAX_VERTICES,
    region_of_interest.MAX_DEPTH,
    region_of_interest.MAX_REPAIRED_VERTICES,
    ServiceConfig.model_fields["max_regions"].default,
    ServiceConfig.model_fields["max_tiles_per_region"].default,
]


@pytest.mark.parametrize("limit", LIMITS)
def test_limits_of_a_request_are_documented(limit: int) -> None:
    assert re.search(rf"(?<![\d,]){limit:,}(?![\d,])", reference("image-request.md"))


def test_sources_of_images_are_documented() -> None:
    table = list(rows(own_part(reference("image-request.md"), "Image URLs")))
    assert {coded(row["`IMAGE_SOURCES`"])[0] for row in table} == image_url.ALL_SOURCES


def test_limits_of_an_image_are_documented() -> None:
    settings = RasterSettings()
    assert (settings.max_side_px, settings.max_pixels, settings.max_block_bytes) == (2**20, 10**12, 256 * 2**20)
    text = " ".join(own_part(reference("image-request.md"), "Image URLs").split())
    assert f"2^20 pixels on a side, 10^12 pixels, {settings.max_bands} bands and stored blocks of 256 MiB" in text


WRITTEN_AS = {
    "IC=NC": "uncompressed",
    "IC=C3": "JPEG, lossy",
    "IC=C8": "JPEG 2000",
    "COMPRESS=NONE": "uncompressed",
    "COMPRESS=LZW": "LZW",
    "COMPRESS=JPEG": "JPEG, lossy",
    "ZLEVEL=1": "PNG",
    "": "",
}
BAND_COUNTS = {(1, 3): "1 or 3", (1, 2, 3, 4): "1 to 4", (1, 2, 3, 4, 5): "any"}


def planned(tile_format: ImageFormats, compression: ImageCompression, bands: int) -> str | None:
    """Return GDAL's option for tiles of bytes, empty where the format needs none, or None where it cannot hold them."""
    try:
        return next(iter(plan_tile(tile_format, compression, bands, "Byte").options), "")
    except TileEncodingError:
        return None


@pytest.mark.parametrize("compression", ImageCompression)
@pytest.mark.parametrize("tile_format", ImageFormats)
def test_every_tile_format_is_documented(tile_format: ImageFormats, compression: ImageCompression) -> None:
    table = rows(own_part(reference("image-request.md"), "Tile formats"))
    row = next(
        row
        for row in table
        if coded(row["Format"]) == [tile_format] and row["Compression"] in ("any", f"`{compression}`")
    )
    options = {bands: planned(tile_format, compression, bands) for bands in range(1, 6)}
    assert row["Bands"] == BAND_COUNTS[tuple(bands for bands, option in options.items() if option is not None)]
    assert row["Written as"].startswith(WRITTEN_AS[options[1] or ""])


# Tables ---------------------------------------------------------------------------------------------------------------

DYNAMODB_TYPES = {
    "str": "S",
    "int": "N",
    "float": "N",
    "list": "L",
    "dict": "M",
    "set": "SS",
    "bool": "BOOL",
    "bytes": "B",
}
TABLE_ROWS: dict[str, type[DDBItem]] = {
    "Images": JobItem,
    "Regions": RegionRequestItem,
    "Features": FeatureItem,
    "Endpoint statistics": EndpointStatisticsItem,
    "Slots of endpoints": EndpointSlotItem,
}


def dynamodb_type(annotation: Any) -> str:
    kinds = [kind for kind in typing.get_args(annotation) or (annotation,) if kind is not types.NoneType]
    is_union = isinstance(annotation, types.UnionType)
    kind = kinds[0] if is_union else annotation
    return DYNAMODB_TYPES[(typing.get_origin(kind) or kind).__name__]


@pytest.mark.parametrize(("heading", "item"), TABLE_ROWS.items(), ids=TABLE_ROWS)
def test_every_attribute_of_a_row_is_documented_with_its_type(heading: str, item: type[DDBItem]) -> None:
    documented = {coded(row["Attribute"])[0]: row["Type"] for row in rows(section(reference("tables.md"), heading))}
    hints = typing.get_type_hints(item)
    names = [field.name for field in dataclasses.fields(item) if field.name != "ddb_key"]
    assert documented == {name: dynamodb_type(hints[name]) for name in names}


def test_columns_of_features_are_documented_with_their_type() -> None:
    documented = [row["Type"] for row in rows(section(reference("tables.md"), "Blob of features"))]
    numbers = [re.fullmatch(r"(?:(\d) × )?(\w+)", text) for text in documented]
    bytes_each = sum(int(found[1] or 1) * np.dtype(found[2]).itemsize for found in numbers if found)
    encoded = encode_features({"type": "Feature", "properties": {"imageBBox": [0, 0, n, n]}} for n in range(7))
    content = zstandard.ZstdDecompressor().decompress(pack_tile(encoded.bodies, encoded.detections))
    iris = json.dumps([""]).encode()
    assert content[8:].startswith(iris)
    assert len(content) == 8 + len(iris) + 7 * bytes_each + sum(map(len, encoded.bodies))
    assert f"{MAX_CONTENT_BYTES // 1024**2} MiB" in section(reference("tables.md"), "Blob of features")


def test_every_attribute_of_an_open_job_is_documented() -> None:
    source = inspect.getsource(outstanding_jobs_table) + inspect.getsource(scheduler_lock)
    written = set(re.findall(r"(\w+) = (?::\w|if_not_exists)", source)) | set(re.findall(r"ADD (\w+) :", source))
    table = outstanding_jobs_table.OutstandingJobsTable("", JobTable(""))
    new = table._new_row(ImageRequest(), 0.0)
    documented = first_column(rows(section(reference("tables.md"), "Open jobs")))
    assert sorted(documented) == sorted({*new, *written})


# Status ---------------------------------------------------------------------------------------------------------------


class Recorder:
    """Stands where SNS would, and keeps the names of the attributes that would be sent."""

    def __init__(self) -> None:
        self.sent: dict[str, Any] = {}

    def publish_message(self, message: str, attributes: Mapping[str, Any]) -> None:
        self.sent |= attributes


def test_every_attribute_of_a_status_message_is_documented() -> None:
    recorder = Recorder()
    images, regions = ImageStatusMonitor(None), RegionStatusMonitor(None)
    images.sns_helper = regions.sns_helper = recorder  # type: ignore[assignment]
    image = JobItem(image_id="j:u", job_id="j", processing_duration=1, tile_count=2, tile_success=1, tiles_skipped=3)
    images.process_event(image, RequestStatus.IN_PROGRESS, "", progress_of(image))
    region = RegionRequestItem(image_id="j:u", region_id="r", job_id="j", processing_duration=1)
    region.failed_tiles = [[[0, 0], [1024, 1024]]] * 10_000
    regions.process_event(region, RequestStatus.PARTIAL, "")
    documented = first_column(rows(section(reference("status-messages.md"), "Attributes")))
    assert sorted(documented) == sorted(recorder.sent)


def test_every_status_is_documented() -> None:
    documented = first_column(rows(section(reference("status-messages.md"), "Statuses")))
    assert sorted(documented) == sorted(RequestStatus)


# Metrics --------------------------------------------------------------------------------------------------------------

TIMED = {"Duration", "Invocations", "Errors"}


def recorded_metrics() -> dict[str, tuple[set[str], set[frozenset[str]], bool]]:
    """Return for each operation its metrics, its sets of dimensions, and whether the code spells all of them out."""
    found: dict[str, tuple[set[str], set[frozenset[str]], bool]] = {}
    for name, call, owner in calls():
        if name not in ("record", "timed") or owner[-1].lstrip("_") != "metrics":
            continue
        operation = constant(call.args[0])
        assert operation, ast.unparse(call)
        metrics, dimensions, is_whole = found.get(operation, (set(), set(), True))
        metric = constant(call.args[1]) if name == "record" else None
        metrics |= TIMED if name == "timed" else {metric} - {None}
        is_whole &= name == "timed" or metric is not None
        if all(keyword.arg for keyword in call.keywords):
            dimensions.add(frozenset({"Operation"} | keywords(call)))
        found[operation] = (metrics, dimensions, is_whole)
    return found


def test_every_operation_is_documented_with_its_metrics_and_dimensions() -> None:
    documented: dict[str, tuple[set[str], set[frozenset[str]]]] = defaultdict(lambda: (set(), set()))
    for row in rows(section(reference("metrics.md"), "Operations")):
        metrics, dimensions = documented[coded(row["Operation"])[0]]
        metrics.update(coded(row["Metrics"]))
        dimensions.add(frozenset(coded(row["Dimensions"])))
    recorded = recorded_metrics()
    assert documented.keys() == recorded.keys()
    for operation, (metrics, dimensions, is_whole) in recorded.items():
        assert metrics <= documented[operation][0], operation
        assert dimensions <= documented[operation][1], operation
        if is_whole:
            assert documented[operation][0] == metrics, operation


def test_every_metric_is_explained() -> None:
    explained = first_column(rows(section(reference("metrics.md"), "Metrics and units")))
    recorded = set().union(*(metrics for metrics, _, _ in recorded_metrics().values()))
    assert sorted(explained) == sorted(recorded)


# Command line ---------------------------------------------------------------------------------------------------------


def test_every_command_and_option_is_documented(render: types.ModuleType) -> None:
    page = reference("command-line.md")
    for name, parser in render.subcommands().items():
        options = [
            action.option_strings[-1] if action.option_strings else action.dest.upper()
            for action in render.options_of(parser)
        ]
        assert first_column(rows(own_part(page, name))) == options
    assert re.findall(r"^## (.+)$", page, re.MULTILINE) == [*render.subcommands(), "Notes"]


def test_every_setting_of_an_example_model_is_documented_with_its_default() -> None:
    table = rows(section(reference("command-line.md"), "Example models"))
    documented = [(coded(row["Model"])[0], *coded(row["Setting"]), *coded(row["Default"])) for row in table]
    expected = [(name,) for name in MODELS]
    for name, model in MODELS.items():
        defaults = model().model_dump(mode="json")
        expected += [(name, setting, json.dumps(default)) for setting, default in defaults.items()]
    assert sorted(documented) == sorted(expected)


# Logs -----------------------------------------------------------------------------------------------------------------

LEVELS = ("debug", "info", "warning", "error", "exception", "critical")


def logged_events() -> dict[str, tuple[set[str], set[str]]]:
    """Return the levels and the fields of every event that the package logs."""
    found: dict[str, tuple[set[str], set[str]]] = defaultdict(lambda: (set(), set()))
    for level, call, owner in calls():
        if owner == ["logger"] and level in LEVELS:
            event = constant(call.args[0])
            assert event, f"an event without a name: {ast.unparse(call)}"
            found[event][0].add(level)
            found[event][1].update(keywords(call))
    return dict(found)


def test_every_event_is_documented_with_its_level_and_fields() -> None:
    table = rows(section(reference("logs.md"), "Events"))
    documented = {
        coded(row["Event"])[0]: (set(re.findall(r"\w+", row["Level"])), set(coded(row["Fields"]))) for row in table
    }
    assert documented == logged_events()
