"""Aggregations share one amount of memory: none takes more, the oldest goes on, and nobody waits for ever."""

from collections.abc import Callable

import pytest

from aws.osml.model_runner.common.memory_budget import MemoryBudget
from aws.osml.model_runner.exceptions import AggregationDeferredError, AggregationTooLargeError


class Times:
    """A clock that moves when somebody pauses; ``meanwhile`` is what another thread does then."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self.meanwhile: Callable[[], None] = lambda: None

    def pause(self, seconds: float) -> None:
        self.now_s += seconds
        self.meanwhile()


@pytest.fixture
def times() -> Times:
    return Times()


@pytest.fixture
def budget(times: Times) -> MemoryBudget:
    return MemoryBudget(100, lambda: times.now_s, times.pause)


def ignore() -> None:
    pass


def test_read_processed_and_kept_bytes_count_together(budget: MemoryBudget) -> None:
    with budget.share(ignore) as share:
        share.read(60)
        share.read_less(10)
        share.work(50)
        share.read(40)
        assert share.held_bytes == 90
        share.keep(20)
        assert share.held_bytes == 60
    with budget.share(ignore) as share:
        share.read(100)


def test_aggregation_is_refused_when_it_alone_exceeds_memory(budget: MemoryBudget, times: Times) -> None:
    with budget.share(ignore) as share:
        share.read(30)
        share.work(30)
        share.keep(30)
        with pytest.raises(AggregationTooLargeError, match="AGGREGATION_MEMORY_BYTES of 100 bytes"):
            share.read(71)
    assert times.now_s == 0


def test_reading_waits_for_thread_that_works(budget: MemoryBudget, times: Times) -> None:
    with budget.share(ignore) as share:
        share.read(80)
        share.work(80)
        # As often as it takes: others have no part in it.
        times.meanwhile = lambda: share.keep(10) if times.now_s > 1_000 else None
        share.read(80)
        assert share.held_bytes == 90


def test_younger_waits_while_and_is_deferred(budget: MemoryBudget, times: Times) -> None:
    with budget.share(ignore) as older, budget.share(ignore) as younger:
        older.read(80)
        with pytest.raises(AggregationDeferredError):
            younger.read(30)
        assert 100 < times.now_s < 200
        younger.read(20)


def test_younger_aggregation_yields_to_waiting_older_one(budget: MemoryBudget, times: Times) -> None:
    gave_way: list[bool] = []
    with budget.share(ignore) as older:
        context = budget.share(ignore)
        younger = context.__enter__()
        older.read(50)
        younger.read(40)

        def read_more() -> None:
            if not gave_way:
                times.meanwhile = ignore
                with pytest.raises(AggregationDeferredError):
                    younger.read(30)
                gave_way.append(True)
                context.__exit__(None, None, None)

        times.meanwhile = read_more
        older.read(30)
        assert gave_way == [True]
        assert older.held_bytes == 80


def test_oldest_is_never_deferred(budget: MemoryBudget, times: Times) -> None:
    with budget.share(ignore) as older:
        context = budget.share(ignore)
        younger = context.__enter__()
        younger.read(60)
        times.meanwhile = lambda: (
            context.__exit__(None, None, None) if times.now_s > 5_000 and budget.shares[1:] else None
        )
        older.read(60)
        assert times.now_s > 5_000


def test_wait_beats_and_ends_when_stopped(budget: MemoryBudget) -> None:
    signs: list[int] = []

    def note() -> None:
        signs.append(1)
        if len(signs) == 3:
            raise AggregationDeferredError("the process stops")

    with budget.share(ignore) as older, budget.share(note) as younger:
        older.read(80)
        with pytest.raises(AggregationDeferredError, match="stops"):
            younger.read(30)
