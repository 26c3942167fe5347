"""Workers that share an endpoint's capacity: the ceilings of their call limits, from rows of a real table."""

from collections.abc import Callable
from typing import Any

import pytest
from botocore.exceptions import EndpointConnectionError

from aws.osml.model_runner.aws.clients import AwsClients
from aws.osml.model_runner.database.endpoint_facts import EndpointCallers
from aws.osml.model_runner.inference.call_limit import CallLimit
from aws.osml.model_runner.pipeline.call_shares import CallShares

ENDPOINT = "ships#AllTraffic"


class Clock:
    now_s = 1_700_000_000.0

    def __call__(self) -> float:
        return self.now_s


class Caller:
    """One worker's share, and how many calls it comes to."""

    def __init__(self, table: str, dynamodb: Any, clock: Clock, owner: str) -> None:
        self.callers = EndpointCallers(table, dynamodb, now=clock)
        self.shares = CallShares(lambda: self.callers, owner, clock)
        self.limit = CallLimit(16)
        self.capacity: int | None = 20

    def holding(self):
        return self.shares.holding(ENDPOINT, lambda: self.capacity, self.limit)

    @property
    def ceiling(self) -> float:
        return self.limit.ceiling


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def new_caller(emulator, data_plane, clock, monkeypatch) -> Callable[[str], Caller]:
    for name, value in emulator.environment.items():
        monkeypatch.setenv(name, value)
    dynamodb = AwsClients().dynamodb_resource(is_hurried=True)
    return lambda owner: Caller(data_plane.environment["REGION_REQUEST_TABLE"], dynamodb, clock, owner)


def test_capacity_is_divided_by_workers_that_hold_regions(new_caller, clock):
    first, second = new_caller("first"), new_caller("second")
    with first.holding() as refresh:
        assert first.ceiling == 16, "as many as it has threads"
        with second.holding():
            assert second.ceiling == 10
            refresh()
            assert first.ceiling == 16, "counted a moment ago"
            clock.now_s += 21
            refresh()
            assert first.ceiling == 10
        clock.now_s += 21
        refresh()
        assert first.ceiling == 16, "the other one has left"


def test_worker_that_died_counts_for_while_only(new_caller, clock):
    dead, worker = new_caller("dead"), new_caller("worker")
    with dead.holding(), worker.holding() as refresh:
        assert worker.ceiling == 10
        clock.now_s += 71
        refresh()
        assert worker.ceiling == 16


def test_worker_with_two_regions_counts_once_and_until_last_has_ended(new_caller, clock):
    worker, other = new_caller("worker"), new_caller("other")
    with worker.holding():
        with worker.holding():
            pass
        with other.holding():
            assert other.ceiling == 10


def test_workers_with_regions_do_not_exceed_capacity(new_caller):
    workers = [new_caller(f"worker-{n}") for n in range(3)]
    assert workers[0].shares.has_room(ENDPOINT, 2)
    with workers[0].holding(), workers[1].holding():
        assert not workers[2].shares.has_room(ENDPOINT, 2)
        assert workers[2].shares.has_room(ENDPOINT, 3)
        assert workers[2].shares.has_room(ENDPOINT, None)
        assert workers[0].shares.has_room(ENDPOINT, 2), "it holds one already"
    assert workers[2].shares.has_room(ENDPOINT, 0), "an endpoint without instances gets one worker, who finds that out"


def test_endpoint_of_unknown_capacity_has_no_ceiling_and_no_row(new_caller, clock):
    worker = new_caller("worker")
    worker.capacity = None
    with worker.holding():
        assert worker.ceiling == 16
        assert list(worker.callers.query_partition("image_id", f"_callers#{ENDPOINT}")) == []


def test_table_that_is_away_changes_no_ceiling(new_caller, clock, monkeypatch):
    worker, other = new_caller("worker"), new_caller("other")

    def fail(*_: object) -> None:
        raise EndpointConnectionError(endpoint_url="https://dynamodb")

    with other.holding(), worker.holding() as refresh:
        monkeypatch.setattr(worker.callers, "record", fail)
        monkeypatch.setattr(worker.callers, "others", fail)
        clock.now_s += 30
        refresh()
        assert worker.ceiling == 10
        assert worker.shares.has_room(ENDPOINT, 1)
