"""The wait before another try: doubling up to a maximum, spread by chance."""

import math
import random

import pytest

from aws.osml.model_runner.common.backoff import FULL_JITTER, HALF_JITTER, backoff_s


@pytest.mark.parametrize(
    ("attempt", "longest_s", "wait_s"),
    [(0, 100, 0.5), (1, 100, 1.0), (4, 100, 8.0), (20, 100, 100), (10_000, 100, 100), (3, math.inf, 4.0), (0, 0, 0)],
)
def test_wait_doubles_up_to_its_maximum(attempt, longest_s, wait_s):
    assert backoff_s(attempt, 0.5, longest_s) == wait_s


@pytest.mark.parametrize("jitter", [FULL_JITTER, HALF_JITTER, (0.75, 1.25)])
def test_waits_spread_over_whole_range_of_jitter(jitter):
    rng = random.Random(1)
    waits = [backoff_s(3, 1.0, 6.0, rng, jitter) / 6.0 for _ in range(2000)]
    low, high = jitter
    assert low <= min(waits) < low + 0.01
    assert high - 0.01 < max(waits) <= high
    assert sum(waits) / len(waits) == pytest.approx((low + high) / 2, abs=0.02)
