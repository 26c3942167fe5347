"""Leases: renewed while the work moves, let go when it is another's or stands still; an error ends nothing."""

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest
from botocore.exceptions import ClientError, EndpointConnectionError

from aws.osml.model_runner.exceptions import QueueError
from aws.osml.model_runner.jobs.leases import Lease, LeaseKeeper, LeaseKind

WAIT_S = 5.0
STALL_S = 600.0


class Clock:
    now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


class Renewals:
    """Answers one renewal after the other by a script; the last answer stays."""

    def __init__(self, *script: bool | Exception) -> None:
        self.script = list(script)
        self.count = 0
        self._counted = threading.Condition()

    def __call__(self) -> bool:
        answer = self.script.pop(0) if len(self.script) > 1 else self.script[0]
        with self._counted:
            self.count += 1
            self._counted.notify_all()
        if isinstance(answer, Exception):
            raise answer
        return answer

    def reach(self, count: int) -> bool:
        with self._counted:
            return self._counted.wait_for(lambda: self.count >= count, WAIT_S)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def keeper(clock) -> Iterator[LeaseKeeper]:
    made = LeaseKeeper(interval_s=0.002, stall_s=STALL_S, now=clock)
    made.start()
    yield made
    made.close()
    for thread in made._threads:
        thread.join(WAIT_S)
        assert not thread.is_alive()


def lease_of(
    renew: Callable[[], bool],
    on_lost: Callable[[], None] = lambda: None,
    progress_s: float = 1000.0,
    kind: LeaseKind = LeaseKind.TABLE,
) -> Lease:
    return Lease("region", renew, on_lost, last_progress=lambda: progress_s, kind=kind)


def test_lease_is_renewed_until_holder_leaves(keeper):
    renew = Renewals(True)
    with keeper.keep(lease_of(renew)) as lease:
        assert renew.reach(5)
        assert not lease.lost.is_set()
    other = Renewals(True)
    with keeper.keep(lease_of(other)):
        assert other.reach(1)
        count = renew.count
        assert other.reach(6)
    assert renew.count == count


def test_holder_that_leaves_by_exception_is_no_longer_kept(keeper):
    lease = lease_of(Renewals(True))
    with pytest.raises(RuntimeError), keeper.keep(lease):
        raise RuntimeError("the work failed")
    assert keeper._leases == set()


def test_no_renewal_runs_after_holder_has_left(keeper):
    began, release, ended = threading.Event(), threading.Event(), threading.Event()

    def slow_renewal() -> bool:
        began.set()
        release.wait(WAIT_S)
        ended.set()
        return True

    def hold() -> None:
        with keeper.keep(lease_of(slow_renewal)):
            assert began.wait(WAIT_S)

    holder = threading.Thread(target=hold, daemon=True)
    holder.start()
    assert began.wait(WAIT_S)
    holder.join(0.03)
    assert holder.is_alive(), "what is given back now would be taken again by the renewal"
    release.set()
    holder.join(WAIT_S)
    assert ended.is_set()
    assert not holder.is_alive()


def test_renewal_skips_holder_that_has_left(keeper):
    began, release = threading.Event(), threading.Event()
    renewed: list[str] = []

    def slow_renewal() -> bool:
        began.set()
        release.wait(WAIT_S)
        return True

    def note() -> bool:
        renewed.append("late")
        return True

    # In any order: a lease that waits must not be renewed after its holder has left.
    with keeper.keep(lease_of(slow_renewal)):
        assert began.wait(WAIT_S)
        with keeper.keep(lease_of(note)):
            pass
        before = len(renewed)
        release.set()
    assert len(renewed) == before


def test_lost_lease_is_reported_once_and_not_renewed(keeper):
    told: list[str] = []
    renew, other = Renewals(True, False), Renewals(True)
    with keeper.keep(lease_of(renew, lambda: told.append("lost"))) as lease, keeper.keep(lease_of(other)):
        assert lease.lost.wait(WAIT_S)
        assert other.reach(other.count + 5)
        assert renew.count == 2
    assert told == ["lost"]


def test_work_that_stands_still_loses_its_lease_without_renewal(keeper, clock):
    told: list[str] = []
    renew = Renewals(True)
    with keeper.keep(lease_of(renew, lambda: told.append("lost"), progress_s=1000.0)) as lease:
        clock.now_s = 1000.0 + STALL_S
        assert renew.reach(renew.count + 3), "it may stand still for just that long"
        clock.now_s += 1.0
        assert lease.lost.wait(WAIT_S)
    assert told == ["lost"]


@pytest.mark.parametrize(
    "error",
    [
        ClientError({"Error": {"Code": "ProvisionedThroughputExceededException"}}, "UpdateItem"),
        EndpointConnectionError(endpoint_url="http://127.0.0.1:1"),
        KeyError("a defect"),
        QueueError("SQS change_message_visibility failed"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_renewal_that_fails_is_tried_at_next_beat(keeper, error):
    renew = Renewals(True, error, error, True)
    with keeper.keep(lease_of(renew)) as lease:
        assert renew.reach(8)
        assert not lease.lost.is_set()


def test_no_lease_is_renewed_after_close(clock):
    keeper = LeaseKeeper(interval_s=0.002, stall_s=STALL_S, now=clock)
    keeper.start()
    renew = Renewals(True)
    with keeper.keep(lease_of(renew)) as lease:
        assert renew.reach(2)
        keeper.close()
        for thread in keeper._threads:
            thread.join(WAIT_S)
        count = renew.count
        assert not renew.script[1:]
        assert not lease.lost.is_set()
    assert renew.count == count


def test_messages_that_cannot_be_renewed_hold_up_no_lease_in_table(keeper):
    release = threading.Event()

    def hang() -> bool:
        return release.wait(WAIT_S)

    renew = Renewals(True)
    with ExitStack() as kept:
        for _ in range(20):
            kept.enter_context(keeper.keep(lease_of(hang, kind=LeaseKind.MESSAGE)))
        with keeper.keep(lease_of(renew)) as lease:
            assert renew.reach(5)
            assert not lease.lost.is_set()
        release.set()


def test_renewal_that_hangs_holds_up_no_other_and_is_not_begun_twice(keeper):
    release, begun = threading.Event(), []

    def hang() -> bool:
        begun.append(1)
        return release.wait(WAIT_S)

    renew = Renewals(True)
    with keeper.keep(lease_of(hang)), keeper.keep(lease_of(renew)):
        assert renew.reach(8)
        assert begun == [1]
        release.set()
