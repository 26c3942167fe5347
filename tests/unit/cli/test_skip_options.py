"""The option ``--skip``: each rule as a request holds it."""

import argparse
from pathlib import Path

import pytest

from aws.osml.model_runner.cli.pixel_options import add_tile_options, request_members


def parsed(*options: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser(exit_on_error=False)
    add_tile_options(parser)
    return parser.parse_args(options)


HERE = str(Path("a.tif").resolve())


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("nodata", {"where": "NODATA"}),
        ("mask:a.tif:3,8.5", {"where": "MASK", "url": HERE, "values": [3, 8.5]}),
        ("mask:a.tif:3:0.95", {"where": "MASK", "url": HERE, "values": [3], "above": 0.95}),
        ("mask:a.tif:bits=3,4", {"where": "MASK", "url": HERE, "bits": [3, 4]}),
        ("mask:https://h:80/a.tif:-1:.5", {"where": "MASK", "url": "https://h:80/a.tif", "values": [-1], "above": 0.5}),
        ("mask:asset=scl:9", {"where": "MASK", "asset": "scl", "values": [9]}),
        ("outside:a.tif", {"where": "OUTSIDE", "url": HERE}),
        ("inside:s3://b/sea.parquet", {"where": "INSIDE", "url": "s3://b/sea.parquet"}),
    ],
)
def test_rule_is_that_of_request(text, rule):
    assert request_members(parsed("--skip", text))["skip"] == [rule]


def test_rules_are_in_order_and_none_is_none():
    assert "skip" not in request_members(parsed())
    assert request_members(parsed("--skip", "none"))["skip"] == []
    found = request_members(parsed("--skip", "outside:a.tif", "--skip", "nodata"))["skip"]
    assert [rule["where"] for rule in found] == ["OUTSIDE", "NODATA"]


@pytest.mark.parametrize("text", ["", "clouds", "mask:a.tif", "mask:a.tif:x", "mask:a.tif:1..2", "outside", "inside:"])
def test_other_text_is_refused(text):
    with pytest.raises(argparse.ArgumentError, match="--skip"):
        parsed("--skip", text)
