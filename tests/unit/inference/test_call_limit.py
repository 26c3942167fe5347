"""How many calls an endpoint gets: more while it keeps up, fewer when it refuses, none during its Retry-After."""

import random
from itertools import pairwise

import pytest

from aws.osml.model_runner.exceptions import ModelCallError, ModelErrorClass
from aws.osml.model_runner.inference.call_limit import CallLimit


class Clock:
    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


def refusal(retry_after_s: float | None = None) -> ModelCallError:
    return ModelCallError("busy", ModelErrorClass.THROTTLE, "THROTTLED", retry_after_s)


TIMED_OUT = ModelCallError("too late", ModelErrorClass.TRANSIENT, "TIMEOUT")
CRASHED = ModelCallError("crashed", ModelErrorClass.SUSPICIOUS, "MODEL_5XX")


@pytest.fixture
def clock() -> Clock:
    return Clock()


def fill(limit: CallLimit) -> int:
    """Begin calls until no more are let in."""
    begun = 0
    while limit.try_enter():
        begun += 1
    return begun


def round_of(limit: CallLimit, clock: Clock, latency_s: float = 0.3) -> int:
    """Have as many calls answered as are let in; return how many."""
    begun = fill(limit)
    clock.now_s += latency_s
    for _ in range(begun):
        limit.record_response(latency_s)
        limit.leave()
    return begun


def test_limit_doubles_each_round_up_to_maximum(clock):
    limit = CallLimit(50, clock)
    assert [round_of(limit, clock) for _ in range(6)] == [1, 8, 16, 32, 50, 50]
    assert limit.in_flight == 0


@pytest.mark.parametrize(("latency_s", "calls"), [(0.02, 8), (1.0, 8), (2.0, 4), (7.0, 1), (40.0, 1)])
def test_limit_follows_first_latency(clock, latency_s, calls):
    limit = CallLimit(50, clock)
    round_of(limit, clock, latency_s)
    assert limit.calls == calls


def test_most_may_be_one(clock):
    limit = CallLimit(1, clock)
    assert [round_of(limit, clock) for _ in range(3)] == [1, 1, 1]


def test_limit_that_is_not_used_does_not_grow(clock):
    limit = CallLimit(50, clock)
    round_of(limit, clock)
    clock.now_s += 10
    for _ in range(100):
        assert limit.try_enter()
        limit.record_response(0.3)
        limit.leave()
    assert limit.calls == 8


def test_limit_falls_at_refusal_and_grows_back_slowly(clock):
    limit = CallLimit(64, clock)
    for _ in range(5):
        round_of(limit, clock)
    before = limit.calls
    limit.record_failure(refusal(), 0.0)
    assert limit.calls == int(before * 0.7)
    clock.now_s += 10
    after = [round_of(limit, clock) for _ in range(30)]
    assert all(0 <= later - earlier <= 1 for earlier, later in pairwise(after))
    assert after[10] >= after[0] + 8
    assert after[-1] == before - 1


def test_limit_counts_refusals_of_one_round_once(clock):
    limit = CallLimit(64, clock)
    for _ in range(5):
        round_of(limit, clock)
    before = limit.calls
    for _ in range(30):
        limit.record_failure(refusal(), 0.0)
        clock.now_s += 0.005
    assert limit.calls == int(before * 0.7)
    clock.now_s += 1
    limit.record_failure(refusal(), 0.0)
    assert limit.calls == int(before * 0.49)


def test_one_call_is_always_allowed(clock):
    limit = CallLimit(64, clock)
    for _ in range(50):
        limit.record_failure(refusal(), 0.0)
        clock.now_s += 1
    assert fill(limit) == 1


def test_no_call_is_allowed_before_retry_after(clock):
    limit = CallLimit(8, clock)
    limit.record_failure(refusal(30.0), 0.0)
    limit.record_failure(refusal(5.0), 0.0)
    assert fill(limit) == 0
    clock.now_s += 29
    assert fill(limit) == 0
    clock.now_s += 2
    assert fill(limit) > 0


def test_limit_stops_growing_when_calls_queue_at_endpoint(clock):
    """An endpoint that does 10 calls at once and lets the others wait: latency grows with what it is sent."""
    limit = CallLimit(500, clock)
    for _ in range(200):
        round_of(limit, clock, latency_s=0.1 * max(1.0, limit.calls / 10))
    assert 10 <= limit.calls <= 40


@pytest.mark.parametrize("capacity", [3, 17, 40])
def test_limit_settles_near_capacity(clock, capacity):
    """An endpoint that refuses what is beyond its capacity is used well and refuses little."""
    limit, answered, refused = CallLimit(64, clock), 0, 0
    for _ in range(400):
        begun = fill(limit)
        clock.now_s += 0.1
        for number in range(begun):
            if number < capacity:
                limit.record_response(0.1)
                answered += 1
            else:
                limit.record_failure(refusal(), 0.0)
                refused += 1
            limit.leave()
    assert answered >= 0.8 * 400 * capacity
    assert refused <= 0.02 * answered


def test_limit_grows_when_endpoint_scales_out(clock):
    limit = CallLimit(64, clock)
    round_of(limit, clock)
    limit.record_failure(refusal(), 0.0)
    clock.now_s += 10
    for _ in range(300):
        round_of(limit, clock, 0.1)
    assert limit.calls == 64


@pytest.mark.parametrize("failure", [TIMED_OUT, CRASHED])
def test_limit_falls_at_time_outs_and_at_crashes_under_load(clock, failure):
    limit = CallLimit(64, clock)
    for _ in range(3):
        round_of(limit, clock)
    assert fill(limit) == 32
    clock.now_s += 60
    for _ in range(32):
        limit.record_failure(failure, 60.0)
        limit.leave()
    assert limit.calls == 22, "they began before the limit fell, so they count once"


def test_limit_ignores_crash_of_single_call_and_bad_tile(clock):
    limit = CallLimit(64, clock)
    round_of(limit, clock)
    assert limit.try_enter()
    limit.record_failure(CRASHED, 0.3)
    limit.leave()
    assert fill(limit) == 8
    limit.record_failure(ModelCallError("bad", ModelErrorClass.PERMANENT, "MODEL_4XX"), 0.3)
    assert limit.calls == 8


def test_limit_below_one_call_pauses_and_recovers(clock):
    limit = CallLimit(64, clock, random.Random(1))
    pauses = []
    for _ in range(4):
        while not limit.try_enter():
            clock.now_s += 1
        clock.now_s += 60
        limit.record_failure(TIMED_OUT, 60.0)
        limit.leave()
        began = clock.now_s
        while not limit.try_enter():
            clock.now_s += 1
        pauses.append(clock.now_s - began)
        limit.record_response(1.0)
        limit.leave()
    assert 0 < pauses[0] < pauses[-1] <= 300
    for _ in range(20):
        while not limit.try_enter():
            clock.now_s += 1
        clock.now_s += 1
        limit.record_response(1.0)
        limit.leave()
    began = clock.now_s
    assert limit.try_enter(), "it needs no pause any more"


def test_limit_stays_below_ceiling_of_shared_endpoint(clock):
    limit = CallLimit(64, clock)
    limit.set_ceiling(5)
    assert [round_of(limit, clock) for _ in range(3)] == [1, 5, 5]
    limit.set_ceiling(0)
    assert round_of(limit, clock) == 1
    limit.set_ceiling(None)
    for _ in range(100):
        round_of(limit, clock)
    assert limit.calls == 64


def test_exclusive_call_runs_alone(clock):
    limit = CallLimit(64, clock)
    round_of(limit, clock)
    assert limit.try_enter()
    assert not limit.try_enter(is_alone=True)
    assert not limit.try_enter(), "none begins before it"
    limit.leave()
    assert limit.try_enter(is_alone=True)
    clock.now_s += 60
    assert not limit.try_enter()
    limit.leave()
    assert fill(limit) == 8


def test_withdrawn_exclusive_call_delays_no_other(clock):
    limit = CallLimit(64, clock)
    assert limit.try_enter()
    assert not limit.try_enter(is_alone=True)
    limit.leave()
    clock.now_s += 2
    assert limit.try_enter()


def test_limit_is_full_while_many_tiles_wait(clock):
    limit = CallLimit(16, clock)
    with limit.expecting(40) as begun:
        assert limit.is_full, "no latency is known: two rounds of the most calls are enough"
        round_of(limit, clock, latency_s=0.3)
        assert not limit.is_full, "they are done in a few seconds"
        for _ in range(20):
            round_of(limit, clock, latency_s=12.0)
        calls = limit.calls
        for _ in range(40 - 2 * calls):
            begun()
        assert not limit.is_full
    with limit.expecting(12 * calls):
        assert limit.is_full
    assert not limit.is_full


def test_limit_is_full_when_endpoint_no_longer_responds(clock):
    limit = CallLimit(16, clock)
    for _ in range(20):
        round_of(limit, clock, latency_s=0.1)
    clock.now_s += 100
    assert limit.try_enter()
    with limit.expecting(1) as begun:
        assert not limit.is_full, "the time without calls does not count"
        clock.now_s += 31
        assert limit.is_full
        begun()
        assert not limit.is_full, "nothing waits, and the endpoint may take more calls"
    limit.record_failure(TIMED_OUT, 70.0)
    limit.leave()
    with limit.expecting(2 * limit.calls):
        assert limit.is_full, "the next calls may take as long"
        limit.record_response(0.1)
        assert not limit.is_full
