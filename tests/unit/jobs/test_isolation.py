"""A region that crashed workers is alone in its process."""

import threading
from contextlib import ExitStack

import pytest

from aws.osml.model_runner.jobs.isolation import Isolation
from aws.osml.model_runner.jobs.region import Deferred


@pytest.fixture
def pauses() -> list[float]:
    return []


@pytest.fixture
def isolation(pauses) -> Isolation:
    return Isolation(pauses.append, threading.Lock())


def test_regions_without_crash_are_claimed_together(isolation, pauses):
    with ExitStack() as inside:
        names = [inside.enter_context(isolation.entered(lambda name=name: name, lambda _: False)) for name in "abc"]
        assert names == ["a", "b", "c"]
    assert pauses == []


def test_suspect_region_is_claimed_alone(isolation, pauses):
    claimed = []
    with isolation.entered(lambda: "suspect", lambda name: name == "suspect"):
        for _ in range(2):
            with isolation.entered(lambda: claimed.append("other"), lambda _: False) as deferred:
                assert isinstance(deferred, Deferred)
            assert deferred.retry_after_s > 0
            assert not deferred.is_backoff
    assert claimed == []
    assert len(pauses) == 2
    with isolation.entered(lambda: "other", lambda name: name == "suspect") as name:
        assert name == "other"


def test_isolation_ends_when_suspect_fails(isolation):
    with pytest.raises(LookupError), isolation.entered(lambda: "suspect", lambda _: True):
        raise LookupError
    with isolation.entered(lambda: "other", lambda _: False) as name:
        assert name == "other"


def test_earlier_region_continues_and_does_not_end_isolation(isolation):
    with ExitStack() as before:
        before.enter_context(isolation.entered(lambda: "other", lambda _: False))
        with isolation.entered(lambda: "suspect", lambda _: True):
            before.close()
            with isolation.entered(lambda: "third", lambda _: False) as outcome:
                assert isinstance(outcome, Deferred)


def test_claim_that_fails_leaves_no_suspect(isolation):
    def refuse():
        raise LookupError

    with pytest.raises(LookupError), isolation.entered(refuse, lambda _: True):
        pass
    with isolation.entered(lambda: "other", lambda _: False) as name:
        assert name == "other"


def test_two_threads_do_not_claim_at_once(isolation):
    """Or a region could be claimed while another is found to be a suspect."""
    is_claiming, may_end, second = threading.Event(), threading.Event(), []

    def slow_claim():
        is_claiming.set()
        may_end.wait(10)
        return "suspect"

    def first():
        with isolation.entered(slow_claim, lambda _: True):
            is_over.wait(10)

    def other():
        with isolation.entered(lambda: "claimed", lambda _: False) as outcome:
            second.append(outcome)

    is_over = threading.Event()
    threads = [threading.Thread(target=target) for target in (first, other)]
    threads[0].start()
    assert is_claiming.wait(10)
    threads[1].start()
    may_end.set()
    threads[1].join(10)
    is_over.set()
    threads[0].join(10)
    assert [type(outcome) for outcome in second] == [Deferred]
