"""The pages on models, features and the protocol say what the code does, both ways."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np

from aws.osml.model_runner.common.typing import ImageRegion
from aws.osml.model_runner.exceptions import ModelErrorClass
from aws.osml.model_runner.features.encoding import MAX_FEATURE_BYTES
from aws.osml.model_runner.features.geolocation import refine_features
from aws.osml.model_runner.features.geolocation_grid import LocationGrid
from aws.osml.model_runner.features.image_geometry import IMAGE_BBOX, IMAGE_GEOMETRY, GeometryProblem
from aws.osml.model_runner.features.model_response import FeatureProblem, parse_response
from aws.osml.model_runner.features.properties import (
    FEATURE_CLASSES,
    INTERNAL_PREFIX,
    INTERNAL_PROPERTIES,
    finalize_feature,
)
from aws.osml.model_runner.inference import sagemaker_parameters
from aws.osml.model_runner.inference.call_errors import ModelErrorCode
from aws.osml.model_runner.inference.detector import CONTENT_TYPES
from aws.osml.model_runner.inference.retry import DEFAULT_POLICY
from aws.osml.model_runner.pipeline import pipeline
from aws.osml.model_runner.region_request_handler import ABANDONED
from aws.osml.model_runner.sink.kinesis_records import PARTITION_BY_JOB, record_of
from markdown_pages import coded, fences, first_column, own_part, rows, section

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
REFERENCE = DOCS / "reference"
PACKAGE = ROOT / "src" / "aws" / "osml" / "model_runner"


def reference(name: str) -> str:
    return (REFERENCE / name).read_text()


def test_every_error_code_is_documented_with_its_class() -> None:
    pair = re.compile(r"ModelErrorClass\.(\w+),\s*ModelErrorCode\.(\w+)")
    in_code = {found for path in (PACKAGE / "inference").glob("*.py") for found in pair.findall(path.read_text())}
    errors = section(reference("model-contract.md"), "Errors")
    signals = [row for row in rows(errors) if "Signal" in row]
    assert {(row["Class"].upper(), coded(row["Code"])[0]) for row in signals} == in_code
    assert {code for _, code in in_code} == set(ModelErrorCode)
    assert {pipeline.TILE_ENCODING, pipeline.INTERNAL_ERROR, ABANDONED} <= set(coded(errors))


def test_every_class_of_errors_is_documented_with_its_tries() -> None:
    table = [row for row in rows(section(reference("model-contract.md"), "Errors")) if "Tries" in row]
    assert [row["Class"].upper() for row in table] == list(ModelErrorClass)
    tries = {row["Class"]: int(row["Tries"]) for row in table}
    assert tries["throttle"] == tries["transient"] == DEFAULT_POLICY.max_tries
    assert tries["suspicious"] == DEFAULT_POLICY.max_suspicious_tries


def test_every_reason_to_drop_a_feature_is_documented() -> None:
    table = rows(section(reference("model-contract.md"), "Features that are dropped"))
    assert sorted(first_column(table)) == sorted([*FeatureProblem, *GeometryProblem])


def test_every_member_of_an_answer_is_documented() -> None:
    documented = set(
        coded(" ".join(row["Member"] for row in rows(own_part(reference("model-contract.md"), "The response"))))
    )
    places = {f"properties.{name}" for name in (IMAGE_GEOMETRY, IMAGE_BBOX, FEATURE_CLASSES)}
    assert documented == {"type", "geometry", "id", *places}


def test_media_types_are_documented() -> None:
    table = rows(own_part(reference("model-contract.md"), "The call"))
    documented = {coded(row["Tile format"])[0]: coded(row["`Content-Type`"])[0] for row in table}
    assert documented == {str(name): media_type for name, media_type in CONTENT_TYPES.items()}


def test_parameters_and_headers_are_documented() -> None:
    words = coded(section(reference("model-contract.md"), "Parameters"))
    assert set(words) >= sagemaker_parameters.INVOKE_PARAMETERS
    headers = {word.lower() for word in words}
    assert headers >= sagemaker_parameters._RESERVED_HEADERS
    assert headers >= set(sagemaker_parameters._RESERVED_PREFIXES)


def test_the_size_of_a_feature_is_documented() -> None:
    assert f"{MAX_FEATURE_BYTES:,} bytes" in reference("model-contract.md")


def delivered_feature() -> dict[str, Any]:
    """Return a feature of a NITF image as it is delivered, from an answer that has everything a model may say."""
    place = {"imageGeometry": {"type": "Point", "coordinates": [10, 20]}, "imageBBox": [8, 18, 12, 22]}
    properties = {**place, "featureClasses": [{"iri": "ship", "score": 0.9}]}
    answer = {"features": [{"type": "Feature", "id": "a", "geometry": None, "properties": properties}]}
    tile = ImageRegion.of(((0, 0), (100, 100)))
    grid = LocationGrid.from_sensor_model(lambda xy: np.column_stack([xy / 1000, np.zeros(len(xy))]), tile)
    features = parse_response(json.dumps(answer).encode()).features
    (feature,) = refine_features(features, tile, grid)
    return finalize_feature(feature, "j", [], {"sourceMetadata": []})


def test_every_member_and_property_of_a_feature_is_documented() -> None:
    feature = delivered_feature()
    page = reference("features.md")
    assert {*first_column(rows(section(page, "Members"))), "type", "properties"} == feature.keys()
    kinds = {"featureProperties"}
    assert set(first_column(rows(own_part(page, "Properties")))) == feature["properties"].keys() | kinds
    example = json.loads(fences(page, "json")[0])
    assert example.keys() == feature.keys()
    assert feature["properties"].keys() - example["properties"].keys() == {"sourceMetadata"}


def test_what_a_record_adds_to_a_feature_is_documented() -> None:
    body = b'{"type": "Feature", "properties": {}}'
    record = record_of("j", 0, "id-1", body, PARTITION_BY_JOB)
    (feature,) = json.loads(record.data)["features"]
    assert set(first_column(rows(section(reference("features.md"), "On Kinesis")))) == feature["properties"].keys()


def test_properties_that_are_removed_are_documented() -> None:
    words = coded(section(reference("features.md"), "Removed properties"))
    assert sorted(words) == sorted([*INTERNAL_PROPERTIES, INTERNAL_PREFIX])


LETTERED = re.compile(r"\b[ACDEFGLQRT][0-5]\b")


def test_every_lettered_write_is_explained() -> None:
    page = (DOCS / "explanation" / "what-happens-when-a-worker-dies.md").read_text()
    explained = [row["Write"] for row in rows(section(page, "The writes"))]
    in_code = {letter for path in (PACKAGE / "database").glob("*.py") for letter in LETTERED.findall(path.read_text())}
    assert in_code - {"S3"} <= set(explained)
    assert set(LETTERED.findall(section(page, "The states"))) == set(explained)
