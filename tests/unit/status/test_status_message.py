"""A status message: its attributes, its limits, and values that it must never show."""

import json
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aws.osml.model_runner.common.typing import RequestStatus
from aws.osml.model_runner.status import StatusMessage
from aws.osml.model_runner.status.sns_helper import fitting_attributes
from aws.osml.model_runner.status.status_message import MAX_FAILED_TILES_BYTES, status_name, tiles_json
from aws.osml.model_runner.telemetry.redaction import printable, safe_text, shortened

TILE = [[0, 512], [512, 512]]


def test_attributes_are_text_and_empty_ones_are_left_out() -> None:
    message = StatusMessage(
        status=RequestStatus.SUCCESS,
        job_id="job-1",
        image_status=RequestStatus.SUCCESS,
        image_id="job-1:s3://b/i.tif",
        processing_duration=0,
        failed_tiles=[],
    )
    assert message.asdict_str_values() == {
        "status": "SUCCESS",
        "job_id": "job-1",
        "image_status": "SUCCESS",
        "image_id": "job-1:s3://b/i.tif",
    }


def test_regions_attributes() -> None:
    message = StatusMessage(
        RequestStatus.PARTIAL, "job-1", image_id="i", region_id="(0, 0)(5, 5)-job-1", processing_duration=17,
        failed_tiles=[TILE],
    )  # fmt: skip
    assert message.asdict_str_values() == {
        "status": "PARTIAL",
        "job_id": "job-1",
        "image_id": "i",
        "region_id": "(0, 0)(5, 5)-job-1",
        "processing_duration": "17",
        "failed_tiles": "[[[0,512],[512,512]]]",
    }


def test_asdict_is_every_field() -> None:
    assert StatusMessage(RequestStatus.STARTED, "job-1").asdict() == {
        "status": RequestStatus.STARTED,
        "job_id": "job-1",
        "image_status": None,
        "image_id": None,
        "region_id": None,
        "processing_duration": None,
        "failed_tiles": None,
        "tiles_skipped": None,
    }


@pytest.mark.parametrize("status", list(RequestStatus))
def test_status_is_its_bare_name(status: RequestStatus) -> None:
    assert status_name(status) == status_name(status.value) == status.name


@pytest.mark.parametrize(
    ("tiles", "text"),
    [
        ([TILE, ((1, 2), (3, 4))], "[[[0,512],[512,512]],[[1,2],[3,4]]]"),
        ([[[Decimal("1"), Decimal("2")], [Decimal(3), 4]]], "[[[1,2],[3,4]]]"),
        ([{"1": TILE}], '[{"1":[[0,512],[512,512]]}]'),
        ([], "[]"),
    ],
)
def test_failed_tiles_are_json(tiles: Any, text: str) -> None:
    assert tiles_json(tiles) == (text, True)


def test_long_list_of_failed_tiles_is_cut() -> None:
    values = StatusMessage(RequestStatus.FAILED, "job-1", failed_tiles=[TILE] * 50_000).asdict_str_values()
    assert values["failed_tiles_truncated"] == "true"
    assert MAX_FAILED_TILES_BYTES - 30 < len(values["failed_tiles"]) <= MAX_FAILED_TILES_BYTES
    assert json.loads(values["failed_tiles"])[-1] == TILE


@given(count=st.integers(0, 40), max_bytes=st.integers(2, 500))
def test_cut_tiles_are_prefix_within_limit(count: int, max_bytes: int) -> None:
    tiles = [[[n, n], [n, n]] for n in range(count)]
    text, is_whole = tiles_json(tiles, max_bytes)
    assert len(text) <= max_bytes
    assert json.loads(text) == tiles[: len(json.loads(text))]
    assert is_whole == (len(json.loads(text)) == count)


def test_id_of_event_is_same_in_every_copy_and_in_no_other_event() -> None:
    events = [
        StatusMessage(RequestStatus.SUCCESS, "job-1", image_id="a"),
        StatusMessage(RequestStatus.SUCCESS, "job-1", image_id="b"),
        StatusMessage(RequestStatus.FAILED, "job-1", image_id="a"),
        StatusMessage(RequestStatus.SUCCESS, "job-2", image_id="a"),
        StatusMessage(RequestStatus.SUCCESS, "job-1", image_id="a", region_id="r"),
    ]
    assert len({event.status_id for event in events}) == len(events)
    copy = StatusMessage(RequestStatus.SUCCESS, "job-1", image_id="a", processing_duration=3)
    assert copy.status_id == events[0].status_id
    assert len(copy.status_id) == 64


SECRETS = [
    ("access denied for AKIAIOSFODNN7EXAMPLE today", "AKIAIOSFODNN7EXAMPLE"),
    ("key ASIAQWERTYUIOPASDFGH expired", "ASIAQWERTYUIOPASDFGH"),
    ("aws_secret_access_key=wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY", "wJalrXUtnFEMI"),
    ("signed with wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY ok", "wJalrXUtnFEMI"),
    ("GET https://b.s3.amazonaws.com/k?X-Amz-Signature=abc123&X-Amz-Credential=me failed", "abc123"),
    ("GET https://h/p?sig=zzz9 failed", "zzz9"),
    ("http://user:pa55@model.example.com/ refused", "pa55"),
    ("Authorization: Bearer abcdef.ghijkl-mnopq", "abcdef.ghijkl"),
    ('{"password": "hunter2"}', "hunter2"),
    ("SessionToken=FwoGZXIvYXdzEJr", "FwoGZXIvYXdzEJr"),
    ("token: abc-def-ghi", "abc-def-ghi"),
]


@pytest.mark.parametrize(("text", "secret"), SECRETS)
def test_secrets_are_hidden(text: str, secret: str) -> None:
    safe = safe_text(text)
    assert secret not in safe
    assert "[redacted]" in safe


@pytest.mark.parametrize(
    "text",
    [
        "Completed image processing",
        "LoadImageException: s3://bucket/path/to/image.tif: no such key",
        "imageProcessor.type=SM_ENDPIONT: expected SM_ENDPOINT or HTTP_ENDPOINT",
        "S3: the bucket results cannot be written: AccessDenied",
        "region (0, 344)(512, 512)-job-1 of 3f2a9c1e4b5d6f708192a3b4c5d6e7f8a9b0c1d2",
        "http://model.example.com:8080/invocations answered 503",
    ],
)
def test_reasons_without_secrets_are_unchanged(text: str) -> None:
    assert safe_text(text) == text


@given(text=st.text(max_size=2000), limit=st.integers(10, 600))
def test_safe_text_is_short_and_printable(text: str, limit: int) -> None:
    safe = safe_text(text, limit)
    assert len(safe) <= limit
    assert not any(ord(character) < 32 for character in safe)
    safe.encode()


def test_control_characters_are_escaped() -> None:
    assert printable("a\r\nb\x00\ud800é") == "a\\u000d\\u000ab\\u0000\\ud800é"
    assert shortened("abcdef", 4) == "abc…"


def test_long_reason_is_cut_in_linear_time() -> None:
    assert len(safe_text("secret=" * 200_000 + "http://" * 100_000)) <= 512


def test_attributes_that_do_not_fit_are_left_out_longest_first() -> None:
    entries = fitting_attributes({"a": "x" * 100, "b": "y" * 50, "c": b"bytes", "d": "", "e": 7}, 120)
    assert entries == {
        "b": {"DataType": "String", "StringValue": "y" * 50},
        "c": {"DataType": "Binary", "BinaryValue": b"bytes"},
        "e": {"DataType": "String", "StringValue": "7"},
    }


@given(st.lists(st.tuples(st.text(max_size=4), st.text("|#:01", max_size=3), st.integers(0, 2)), unique=True))
def test_two_events_never_share_id(events: list[tuple[str, str, int]]) -> None:
    ids = {
        StatusMessage(RequestStatus.PARTIAL, job, image_id=image).event_id(generation)
        for job, image, generation in events
    }
    assert len(ids) == len(events)
