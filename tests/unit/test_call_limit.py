"""How many calls an endpoint gets: more while it keeps up, fewer when it refuses, none while it wants to rest."""

from itertools import pairwise

import pytest

from aws.osml.model_runner.inference.call_limit import CallLimit


class Clock:
    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


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
        limit.note_answer(latency_s)
        limit.leave()
    return begun


def test_it_doubles_with_every_round_up_to_the_most(clock):
    limit = CallLimit(50, clock)
    assert [round_of(limit, clock) for _ in range(5)] == [8, 16, 32, 50, 50]
    assert limit.in_flight == 0


def test_fewer_than_the_first_limit_may_be_the_most(clock):
    assert fill(CallLimit(2, clock)) == 2


def test_a_limit_that_is_not_used_does_not_grow(clock):
    limit = CallLimit(50, clock)
    for _ in range(100):
        assert limit.try_enter()
        limit.note_answer(0.3)
        limit.leave()
    assert limit.calls == 8


def test_a_refusal_lowers_it_and_it_grows_back_by_one_a_round_to_below_what_was_refused(clock):
    limit = CallLimit(64, clock)
    for _ in range(4):
        round_of(limit, clock)
    before = limit.calls
    limit.note_refusal()
    assert limit.calls == int(before * 0.7)
    clock.now_s += 10
    after = [round_of(limit, clock) for _ in range(30)]
    assert all(0 <= later - earlier <= 1 for earlier, later in pairwise(after))
    assert after[10] >= after[0] + 8
    assert after[-1] == before - 1


def test_the_refusals_of_one_round_count_once(clock):
    limit = CallLimit(64, clock)
    for _ in range(4):
        round_of(limit, clock)
    before = limit.calls
    for _ in range(30):
        limit.note_refusal()
        clock.now_s += 0.005
    assert limit.calls == int(before * 0.7)
    clock.now_s += 1
    limit.note_refusal()
    assert limit.calls == int(before * 0.49)


def test_one_call_is_always_allowed(clock):
    limit = CallLimit(64, clock)
    for _ in range(50):
        limit.note_refusal()
        clock.now_s += 1
    assert fill(limit) == 1


def test_an_endpoint_that_wants_to_rest_is_called_by_nobody_until_then(clock):
    limit = CallLimit(8, clock)
    limit.note_refusal(retry_after_s=30.0)
    limit.note_refusal(retry_after_s=5.0)
    assert fill(limit) == 0
    clock.now_s += 29
    assert fill(limit) == 0
    clock.now_s += 2
    assert fill(limit) > 0


def test_it_stops_growing_where_more_calls_only_queue_at_the_endpoint(clock):
    """An endpoint that does 10 calls at once and lets the others wait: latency grows with what it is sent."""
    limit = CallLimit(500, clock)
    for _ in range(200):
        round_of(limit, clock, latency_s=0.1 * max(1.0, limit.calls / 10))
    assert 10 <= limit.calls <= 40


@pytest.mark.parametrize("capacity", [3, 17, 40])
def test_it_settles_about_what_the_endpoint_takes(clock, capacity):
    """An endpoint that refuses what is beyond its capacity is used well and refuses little."""
    limit, answered, refused = CallLimit(64, clock), 0, 0
    for _ in range(400):
        begun = fill(limit)
        clock.now_s += 0.1
        for number in range(begun):
            if number < capacity:
                limit.note_answer(0.1)
                answered += 1
            else:
                limit.note_refusal()
                refused += 1
            limit.leave()
    assert answered >= 0.8 * 400 * capacity
    assert refused <= 0.02 * answered


def test_an_endpoint_that_was_given_more_machines_gets_more_calls(clock):
    limit = CallLimit(64, clock)
    round_of(limit, clock)
    limit.note_refusal()
    clock.now_s += 10
    for _ in range(300):
        round_of(limit, clock, 0.1)
    assert limit.calls == 64
