"""The decisions of a redrive: what is done again, and where its features go."""

import pytest

from aws.osml.model_runner.common.job_rules import TILE_MARGIN_S, needs_outputs_only
from aws.osml.model_runner.exceptions import InvalidImageRequestException
from aws.osml.model_runner.jobs.redrive import redirected, s3_place

STREAM = {"type": "Kinesis", "stream": "s"}
MISSING = {"type": "S3", "bucket": "missing", "prefix": "p", "format": "GEOPARQUET", "role": "arn:aws:iam::1:role/w"}
KEPT = {"type": "S3", "bucket": "kept", "prefix": "p"}


@pytest.mark.parametrize(
    ("regions", "count", "failed", "age_s", "outputs_only", "expected"),
    [
        (2, 2, 0, 60.0, False, True),
        (2, 2, 3, 60.0, False, False),
        (2, 2, 3, 60.0, True, True),
        (1, 2, 0, 60.0, True, False),
        (0, None, 0, None, False, False),
        (2, 2, 0, TILE_MARGIN_S - 1, False, True),
        (2, 2, 0, TILE_MARGIN_S, False, False),
        (2, 2, 0, None, False, False),
    ],
)
def test_job_is_delivered_again_where_no_tile_has_to_be_done_again(
    regions: int, count: int | None, failed: int, age_s: float | None, outputs_only: bool, expected: bool
) -> None:
    assert needs_outputs_only(regions, count, failed, age_s, outputs_only) is expected


def test_output_that_failed_is_replaced_and_keeps_its_format_and_role() -> None:
    outputs, done = redirected([MISSING, STREAM], ["1:Kinesis"], [("new", "q/")])
    assert outputs == [STREAM, MISSING | {"bucket": "new", "prefix": "q/"}]
    assert done == {"0:Kinesis"}


def test_one_output_may_be_replaced_by_several() -> None:
    outputs, done = redirected([KEPT, MISSING, STREAM], ["0:S3"], [("a", ""), ("b", "")])
    assert outputs == [KEPT, MISSING | {"bucket": "a", "prefix": ""}, MISSING | {"bucket": "b", "prefix": ""}]
    assert done == {"0:S3"}


def test_new_output_is_added_when_only_stream_failed() -> None:
    outputs, done = redirected([STREAM], (), [("a", "p")])
    assert (outputs, done) == ([{"type": "S3", "bucket": "a", "prefix": "p"}], frozenset())


def test_outputs_are_buckets_and_prefixes() -> None:
    assert s3_place("s3://results/run-2/") == ("results", "run-2/")
    assert s3_place("s3://results") == ("results", "")


@pytest.mark.parametrize("text", ["results/run-2", "s3://", "s3://A_B/p", "s3://results/../up", "https://results/p"])
def test_other_outputs_are_refused(text: str) -> None:
    with pytest.raises(InvalidImageRequestException, match="--output"):
        s3_place(text)
