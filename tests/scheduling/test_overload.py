"""Endpoints that are sent more than they can serve: no healthy tile fails, and few calls are made in vain."""

import dataclasses
from pathlib import Path

import pytest

from python_scripts import load_script

overload = load_script(Path(__file__).parents[2] / "benchmarks" / "overload.py")

_MOST_CALLS_PER_TILE = 1.3
# Enough for each worker to get into the state in which it stays; the whole rows take a minute.
_TILES_PER_WORKER = 20
_FEWEST_TILES = 300


@pytest.mark.parametrize("is_known", [True, False], ids=["known", "unknown"])
@pytest.mark.parametrize("scenario", overload.SCENARIOS, ids=str)
def test_time_outs_are_congestion_and_not_fault_of_tiles(scenario, is_known):
    tiles = min(scenario.tiles, max(_FEWEST_TILES, _TILES_PER_WORKER * scenario.workers))
    outcome = overload.play(dataclasses.replace(scenario, tiles=tiles, is_known=is_known))
    assert outcome.failed_tiles == 0
    assert outcome.calls_per_tile <= _MOST_CALLS_PER_TILE
    assert outcome.took_s <= 1.3 * scenario.ideal_s * tiles / scenario.tiles + 60


def test_fleet_calls_endpoint_seldom_when_it_is_too_large():
    """One call of each worker is too much: 100 of 5 s at 4 servers wait for two minutes, and SageMaker for one."""
    outcome = overload.play(overload.Scenario(100, 4, 5, 1000, is_known=False))
    assert outcome.failed_tiles == 0
    assert outcome.calls_per_tile <= 2


def test_workers_that_call_endpoint_do_not_exceed_its_capacity():
    outcome = overload.play(overload.Scenario(100, 4, 5, 1000))
    assert outcome.failed_tiles == 0
    assert outcome.calls_per_tile == 1
