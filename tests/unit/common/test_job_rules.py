"""The decisions of the job protocol, as tables and properties."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aws.osml.model_runner.common.job_rules import (
    aggregation_wait_s,
    image_status,
    is_poison,
    region_status,
    region_wait_s,
    silence_s,
)
from aws.osml.model_runner.common.typing import RequestStatus

SUCCESS, PARTIAL, FAILED = RequestStatus.SUCCESS, RequestStatus.PARTIAL, RequestStatus.FAILED
COUNTS = st.integers(0, 10_000)


@pytest.mark.parametrize(
    ("succeeded", "failed", "status"),
    [(0, 0, SUCCESS), (4, 0, SUCCESS), (3, 1, PARTIAL), (1, 3, PARTIAL), (0, 4, FAILED)],
)
def test_region_status(succeeded, failed, status):
    assert region_status(succeeded, failed) is status


@pytest.mark.parametrize(
    ("tiles", "sinks", "status"),
    [
        # tiles: succeeded, failed; sinks: all, failed
        ((10, 0), (1, 0), SUCCESS),
        ((10, 0), (2, 0), SUCCESS),
        ((0, 0), (1, 0), SUCCESS),
        ((10, 0), (2, 1), PARTIAL),
        ((10, 0), (2, 2), FAILED),
        ((10, 0), (1, 1), FAILED),
        ((9, 1), (1, 0), PARTIAL),
        ((9, 1), (2, 1), PARTIAL),
        ((9, 1), (2, 2), FAILED),
        ((0, 10), (1, 0), FAILED),
        ((0, 10), (2, 1), FAILED),
        ((0, 0), (1, 1), FAILED),
    ],
)
def test_image_status(tiles, sinks, status):
    assert image_status(*tiles, *sinks) is status


@given(succeeded=COUNTS, failed=COUNTS, sinks=st.integers(1, 5), data=st.data())
def test_image_status_never_hides_failure(succeeded, failed, sinks, data):
    failed_sinks = data.draw(st.integers(0, sinks))
    status = image_status(succeeded, failed, sinks, failed_sinks)
    assert (status is SUCCESS) == (failed == 0 and failed_sinks == 0)
    if status is PARTIAL:
        assert failed_sinks < sinks, "somebody got something"
        assert succeeded > 0 or failed == 0


@pytest.mark.parametrize(
    ("attempts", "first_s", "now_s", "verdict"),
    [
        (7, 0.0, 600.0, True),
        (7, 0.0, 599.9, False),
        (6, 0.0, 10_000.0, False),
        (1000, 0.0, 1.0, False),
        (7, None, 10_000.0, False),
    ],
    ids=["many and long", "not long enough", "not too many", "many within a second", "never stalled"],
)
def test_is_poison(attempts, first_s, now_s, verdict):
    assert is_poison(attempts, first_s, now_s, max_attempts=6, min_age_s=600.0) is verdict


@given(backoffs=st.integers(0, 10_000), seed=st.integers())
def test_backoff_doubles_with_jitter_up_to_five_minutes(backoffs, seed):
    longest = min(300.0, 5.0 * 2 ** min(backoffs, 20))
    wait_s = region_wait_s(backoffs, random.Random(seed))
    assert longest / 2 <= wait_s <= longest


@given(backoffs=st.integers(0, 20), at_least_s=st.floats(0, 1000))
def test_backoff_is_no_shorter_than_endpoint_requested(backoffs, at_least_s):
    plain, asked = (region_wait_s(backoffs, random.Random(3), floor) for floor in (0.0, at_least_s))
    assert asked == max(plain, at_least_s)


@pytest.mark.parametrize(("stalled", "wait_s"), [(0, 0.0), (1, 10.0), (2, 20.0), (6, 320.0), (7, 600.0), (5000, 600.0)])
def test_aggregation_wait(stalled, wait_s):
    assert aggregation_wait_s(stalled) == wait_s


@pytest.mark.parametrize(
    ("waited_s", "silent_s"),
    [(0.0, 180.0), (180.0, 180.0), (361.0, 361.0), (90_000.0, 1800.0), (-5.0, 180.0)],
    ids=["just planned", "sent once more", "then as long again", "half an hour at most", "another clock"],
)
def test_silence(waited_s, silent_s):
    assert silence_s(waited_s, lease_s=60.0) == silent_s


def test_silence_is_never_shorter_than_leases_take_to_end():
    assert silence_s(0.0, lease_s=1000.0) == 3000.0
