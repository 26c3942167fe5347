"""The bounds that SECURITY.md lists are those of the code, and each names a test that exists."""

import re
from pathlib import Path

import pytest

from aws.osml.model_runner.api import image_request_schema, json_document, model_protocol, skip_rules
from aws.osml.model_runner.api.inference import MAX_ANSWER_BYTES
from aws.osml.model_runner.features import (
    answer_reader,
    detection_tensors,
    model_response,
    run_length_masks,
    tensor_response,
)
from aws.osml.model_runner.local.onnx import file_metadata, network, onnx_model
from aws.osml.model_runner.local.stack import model_server
from aws.osml.model_runner.raster import (
    RasterSettings,
    area_files,
    area_reader,
    invalid_tiles,
    jpeg2000,
    masked_tiles,
    tiff_tags,
    tile_encoder,
    tile_parts,
)
from aws.osml.model_runner.raster import open as opening
from aws.osml.model_runner.raster.resampling import MAX_CACHED_BYTES
from aws.osml.model_runner.scheduler import look_ahead
from security.hostile_images import hostile_files

ROOT = Path(__file__).parents[2]
KIB = 1024


def rows() -> list[list[str]]:
    """Return the cells of each row of the tables whose last column is ``Test``."""
    found, is_inside = [], False
    for line in (ROOT / "SECURITY.md").read_text().splitlines():
        cells = [cell.strip() for cell in line.strip("|").split(" | ")]
        if line.endswith("| Test |"):
            is_inside = True
        elif not line.startswith("|"):
            is_inside = False
        elif is_inside and not line.startswith("|---"):
            found.append(cells)
    return found


ROWS = rows()


def test_each_stage_has_a_bound_and_a_test() -> None:
    assert len(ROWS) >= 28
    assert all(len(row) >= 3 and all(row) for row in ROWS)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: "-".join(row[:2])[:60])
def test_what_a_row_names_exists(row: list[str]) -> None:
    refused = {file.name for file in hostile_files() if file.reason is not None}
    named = re.findall(r"`([^`]+)`", row[-1])
    assert named or "there" in row[-1]
    for name in named:
        if name.startswith("tests/"):
            assert "def test_" in (ROOT / name).read_text()
        elif "." in name:
            assert name in refused
    reference = (ROOT / "docs" / "reference" / "environment.md").read_text()
    assert all(f"`{name}`" in reference for name in re.findall(r"`([A-Z][A-Z_]+)`", " ".join(row[:-1])))


@pytest.mark.parametrize(
    ("part", "numbers"),
    [
        ("bytes of each parsed TIFF tag", [RasterSettings().max_xml_bytes // KIB**2]),
        ("domains of GDAL's metadata", [tiff_tags._MAX_ITEMS, tiff_tags._MAX_DOMAINS, tiff_tags._MAX_TIE_POINTS]),
        ("boxes, markers of a JPEG 2000", [jpeg2000._MAX_BOXES, jpeg2000._MAX_MARKERS]),
        (
            "reads and bytes of all headers",
            [opening._MAX_READS, opening._MAX_METADATA_KINDS * RasterSettings().max_xml_bytes // KIB**2],
        ),
        (
            "bytes of the image that are held at once",
            [tile_parts.MAX_PART_BYTES // KIB**2, tile_encoder._MAX_READ_SHARE],
        ),
        (
            "bytes, vertices, layers of a GeoPackage",
            [area_reader.MAX_AREA_BYTES // KIB**2, area_files.MAX_AREA_VERTICES, area_files.MAX_AREA_LAYERS],
        ),
        (
            "time and memory of a child process that has",
            [int(area_reader.MAX_AREA_S), area_reader.MAX_MEMORY_BYTES // KIB**2],
        ),
        ("weights of a scale", [MAX_CACHED_BYTES // KIB**2]),
        ("Message", [json_document.MAX_MESSAGE_BYTES // KIB, json_document.MAX_DEPTH]),
        ("Rows of a message", [image_request_schema.MAX_REPEATED_BYTES // KIB**2]),
        ("Properties that a job adds", [image_request_schema.MAX_FEATURE_PROPERTIES_BYTES // KIB]),
        ("Response of a model", [MAX_ANSWER_BYTES // KIB**2, model_response.MAX_PARSED_BYTES // KIB**2]),
        ("Boxes in the tensors", [detection_tensors.MAX_CANDIDATES]),
        (
            "Network in an ONNX file",
            [
                network.MAX_FILE_BYTES // KIB**3,
                file_metadata.MAX_VALUE_CHARACTERS // KIB,
                int(network.RUN_LIMIT_S),
                onnx_model.MAX_BATCH,
            ],
        ),
        ("Tile that a model's server takes", [model_server.MAX_TILE_BODY_BYTES // KIB**2]),
        (
            "Response read by",
            [
                model_protocol.MAX_PATH_LENGTH,
                model_protocol.MAX_REPEATS,
                answer_reader.MAX_ITEMS,
                run_length_masks.MAX_RUNS,
            ],
        ),
        ("Tensors of a response", [tensor_response.MAX_TENSORS]),
        ("rules of a request", [skip_rules.MAX_RULES, skip_rules.MAX_MASK_VALUES]),
        (
            "bytes of an image that are decoded",
            [invalid_tiles.MAX_READ_BYTES // KIB**3, invalid_tiles.MAX_REMOTE_READS],
        ),
        ("pixels of a mask", [masked_tiles.MAX_MASK_PX, masked_tiles.SAMPLES_PER_TILE**2]),
        ("Look-ahead", [look_ahead.MAX_WAITING]),
    ],
)
def test_numbers_are_those_of_the_code(part: str, numbers: list[int]) -> None:
    (row,) = [row for row in ROWS if part in " ".join(row[:2])]
    told = [int(number.replace(",", "")) for number in re.findall(r"\b\d[\d,]*\b", " ".join(row[1:-1]))]
    assert [number for number in told if number in numbers] == numbers, (told, numbers)
