"""The words in which a status names why tiles failed and features were dropped."""

import json

from aws.osml.model_runner.common.typing import RequestStatus
from aws.osml.model_runner.database.job_table import JobItem
from aws.osml.model_runner.database.tile_problems import TileProblems
from aws.osml.model_runner.jobs.completion import end_message
from aws.osml.model_runner.telemetry.redaction import MAX_CHARACTERS


def job(**counts: object) -> JobItem:
    return JobItem(image_id="job:s3://images/a.tif", **counts)


def test_image_that_ended_well_has_one_plain_text():
    assert end_message(job(tile_success=9, tile_error=0), RequestStatus.SUCCESS) == "Completed image processing"


def test_failed_tiles_are_named_by_code_with_one_example():
    item = job(tile_success=2, tile_error=7, tile_errors={"MODEL_4XX": 2, "BAD_RESPONSE": 5})
    item.first_failure = "MODEL_4XX: the model returned status 400"
    text = end_message(item, RequestStatus.PARTIAL)
    expected = "7 of 9 tiles failed: BAD_RESPONSE 5, MODEL_4XX 2; for example MODEL_4XX: the model returned status 400"
    assert text == expected


def test_features_that_were_dropped_are_named_although_image_is_success():
    item = job(tile_success=9, tile_error=0, features_dropped={"NO_IMAGE_GEOMETRY": 35})
    text = end_message(item, RequestStatus.SUCCESS)
    expected = "35 features that the model returned were dropped: NO_IMAGE_GEOMETRY 35"
    assert text == f"Completed image processing; {expected}"


def test_status_names_image_within_file():
    text = end_message(job(tile_success=1, tile_error=0, image_count=2), RequestStatus.SUCCESS)
    expected = "the file holds 2 images (segments or pages), the first was processed"
    assert text == f"Completed image processing; {expected}"


def test_output_that_failed_is_named_beside_tiles():
    item = job(tile_success=8, tile_error=1, tile_errors={"TILE_ENCODING": 1})
    text = end_message(item, RequestStatus.PARTIAL, ["the bucket is gone", "the bucket is gone"])
    assert text == "1 of 9 tiles failed: TILE_ENCODING 1; the bucket is gone"


def test_bad_georeference_is_named_in_status_of_success():
    warning = "places may be off by 3.2 pixels (control points: affine)"
    item = job(tile_success=9, georeference=json.dumps({"method": "x", "errorPx": 3.2, "warning": warning}))
    assert end_message(item, RequestStatus.SUCCESS) == f"Completed image processing; {warning}"
    item.georeference = json.dumps({"method": "geotransform", "errorPx": 0.0})
    assert end_message(item, RequestStatus.SUCCESS) == "Completed image processing"


def test_missing_counts_are_left_out():
    assert end_message(job(tile_success=0, tile_error=4), RequestStatus.FAILED) == "4 of 4 tiles failed"


def test_text_is_short_and_holds_no_secret():
    codes = {f"CODE_{number}": 1 for number in range(1000)}
    item = job(
        tile_success=0, tile_error=1000, tile_errors=codes, first_failure="X: https://h/i?token=verysecret " * 50
    )
    text = end_message(item, RequestStatus.FAILED)
    assert "CODE_0 1, CODE_1 1, CODE_10 1, CODE_100 1, others 996" in text
    assert len(text) <= MAX_CHARACTERS
    assert "verysecret" not in text


def test_regions_failures_are_counted_from_its_tiles_rows():
    rows = [{"tile_index": 0}, {"error_code": "ABANDONED"}, {"error_code": "ABANDONED", "error_reason": "too late"}]
    problems = TileProblems.of_tiles(rows)
    assert problems.reasons(3, 2) == ["2 of 3 tiles failed: ABANDONED 2; for example ABANDONED: too late"]
