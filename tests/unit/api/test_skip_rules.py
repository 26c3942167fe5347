"""Rules of ``skip``: which are accepted and kept, and what refusals name."""

from typing import Any

import pytest

from aws.osml.model_runner.api.image_request import ImageRequest, tile_format_of
from aws.osml.model_runner.api.policy import RequestPolicy
from aws.osml.model_runner.api.skip_rules import MAX_MASK_VALUES, MAX_RULES, rules_of
from aws.osml.model_runner.common.typing import ImageFormats
from aws.osml.model_runner.exceptions import InvalidImageRequestException

MESSAGE: dict[str, Any] = {
    "jobId": "j",
    "imageUrls": ["s3://images/a.tif"],
    "imageProcessor": {"name": "ships"},
    "outputs": [{"type": "S3", "bucket": "results"}],
}
MASK = {"where": "MASK", "url": "s3://masks/clouds.tif", "values": [3, 8.5], "above": 0.95}
RULES: list[dict[str, Any]] = [
    {"where": "NODATA"},
    MASK,
    {"where": "MASK", "url": "/data/qa.tif", "bits": [3, 4]},
    {"where": "OUTSIDE", "url": "https://example.com/land.geojson"},
    {"where": "INSIDE", "url": "s3://areas/sea.parquet"},
]


def request(skip: Any) -> ImageRequest:
    return ImageRequest.from_external_message(MESSAGE | {"skip": skip})


def problems(skip: Any) -> list[tuple[str, str]]:
    with pytest.raises(InvalidImageRequestException) as refused:
        request(skip)
    return [(problem.field, problem.expectation) for problem in refused.value.problems]


def test_rules_are_kept_with_their_defaults():
    made = request(RULES)
    assert made.skip == [*RULES[:2], RULES[2] | {"above": 1.0}, *RULES[3:]]
    assert [rule.stored() for rule in rules_of(made.skip)] == made.skip
    assert ImageRequest.from_item(made.to_item()) == made


@pytest.mark.parametrize(
    ("skip", "stored", "rules"), [(None, None, [{"where": "NODATA"}]), ([], [], []), (RULES[:1], RULES[:1], RULES[:1])]
)
def test_absent_rules_differ_from_no_rules(skip, stored, rules):
    made = request(skip)
    assert made.skip == stored
    assert [rule.stored() for rule in rules_of(made.skip)] == rules
    assert ImageRequest.from_item(made.to_item()).skip == stored


@pytest.mark.parametrize(("skip", "is_marked"), [(None, False), ([], False), (RULES, True)])
def test_rows_of_rules_are_not_readable_for_earlier_versions(skip, is_marked):
    stored = request(skip).to_item()["tile_format"]
    assert tile_format_of(stored) is ImageFormats.NITF
    for mark in ("", "PREPARED:"):
        assert (stored.removeprefix(mark) not in list(ImageFormats)) == is_marked


@pytest.mark.parametrize(
    ("rule", "field", "expectation"),
    [
        ({}, "skip[0].where", "required"),
        ({"where": "CLOUDS"}, "skip[0].where", "one of 'NODATA', 'MASK', 'OUTSIDE', 'INSIDE'"),
        ({"where": "NODATA", "url": "s3://bucket/a"}, "skip[0].url", "absent: this key is unknown"),
        ({"where": "OUTSIDE"}, "skip[0].url", "required"),
        ({"where": "INSIDE", "url": "gs://bucket/a"}, "skip[0].url", "s3://bucket/key"),
        (MASK | {"url": "/vsizip/a.tif"}, "skip[0].url", "not of a virtual file system"),
        (MASK | {"url": None}, "skip[0].asset", "either url or asset"),
        (MASK | {"asset": "qa"}, "skip[0].asset", "either url or asset"),
        (MASK | {"bits": [1]}, "skip[0].bits", "either values or bits"),
        (MASK | {"values": None}, "skip[0].bits", "either values or bits"),
        (MASK | {"values": []}, "skip[0].values", "at least 1 items"),
        (MASK | {"values": [0] * (MAX_MASK_VALUES + 1)}, "skip[0].values", f"at most {MAX_MASK_VALUES} items"),
        (MASK | {"values": ["3"]}, "skip[0].values[0]", "a number"),
        (MASK | {"values": None, "bits": [32]}, "skip[0].bits[0]", "the number of a bit, from 0 to 31"),
        (MASK | {"above": 0}, "skip[0].above", "a number above 0"),
        (MASK | {"above": 1.01}, "skip[0].above", "a number of at most 1"),
    ],
)
def test_rule_that_is_not_valid_is_refused_by_name(rule, field, expectation):
    ((found, text),) = problems([rule])
    assert found == field
    assert expectation in text


def test_asset_needs_item_as_image():
    rule = {"where": "MASK", "asset": "scl", "values": [9]}
    ((field, text),) = problems([rule])
    assert field == "skip"
    assert "s3://images/a.tif" in text
    made = ImageRequest.from_external_message(MESSAGE | {"imageUrls": ["s3://images/a.json"], "skip": [rule]})
    assert made.skip == [rule | {"above": 1.0}]


def test_too_many_rules_are_refused():
    assert problems(RULES[:1] * (MAX_RULES + 1)) == [("skip", f"at most {MAX_RULES} items")]


def test_stored_rule_of_later_version_is_not_readable():
    item = request(RULES).to_item() | {"skip": '[{"where": "CLOUDS"}]'}
    with pytest.raises(InvalidImageRequestException, match="the stored request cannot be read"):
        ImageRequest.from_item(item)


def test_files_of_rules_are_held_to_limits_of_images():
    policy = RequestPolicy(image_sources=("s3",), image_buckets=("images", "masks"))
    with pytest.raises(InvalidImageRequestException) as refused:
        policy.check(request(RULES))
    found = {problem.field: problem.expectation for problem in refused.value.problems}
    assert set(found) == {"skip[2].url", "skip[3].url", "skip[4].url"}
    assert "IMAGE_SOURCES" in found["skip[2].url"]
    assert "IMAGE_BUCKETS" in found["skip[4].url"]
