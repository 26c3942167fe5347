"""The production protocol in worlds that go wrong: whatever happens in them, the oracle finds nothing."""

import math

import pytest

from simulation import run
from simulation.faults import PROFILES
from simulation.oracle import violations
from simulation.world import Laboratory, run_world

# So many worlds of each profile, the first fifth of them in the short form; `run.py --seeds 10000` runs more.
WORLDS = {
    "calm": 10,
    "hard": 50,
    "zombie": 50,
    "lossy": 40,
    "sqs": 40,
    "outage": 4,
    "poison-tile": 8,
    "poison-plan": 6,
    "poison-aggregation": 6,
    "poison-finish": 6,
    "spoilt": 10,
    "dead": 3,
}


@pytest.mark.parametrize("profile", WORLDS)
def test_every_job_ends_once_in_profile(profile, is_long):
    with Laboratory() as laboratory:
        for seed in range(WORLDS[profile] if is_long else math.ceil(WORLDS[profile] / 5)):
            found = violations(laboratory.run(seed, PROFILES[profile]))
            assert not found, f"{found}\nsee it again: {run.replay_command(seed, profile)}"


def test_no_work_is_repeated_without_faults():
    tally = run.Tally()
    with Laboratory() as laboratory:
        for seed in range(10):
            tally.add(seed, laboratory.run(seed, PROFILES["calm"]))
    assert (tally.calls, tally.records) == (tally.tiles, tally.distinct_records)


def test_refusing_endpoint_is_probed_once_per_backoff():
    tally, regions = run.Tally(), 0
    with Laboratory() as laboratory:
        for seed in range(4):
            world = laboratory.run(seed, PROFILES["outage"])
            tally.add(seed, world)
            regions += len(world.dynamodb.tables["regions"].items())
    refused = tally.faults["busy"] + tally.faults["stumble"]
    # One call finds out whether it still refuses, however many tiles a region has; and no tile is answered in vain.
    assert refused <= 30 * regions
    assert tally.calls - refused <= 1.1 * tally.tiles
    assert tally.slowest_s <= 3600 + 400


@pytest.mark.parametrize("profile", ["hard", "sqs"])
def test_seed_is_always_same_world(profile):
    first, second = run_world(7, profile), run_world(7, profile)
    assert first.scheduler.now == second.scheduler.now
    assert first.rng.random() == second.rng.random()


def test_faults_happen():
    probabilities = {name for name in vars(PROFILES["hard"]) if isinstance(getattr(PROFILES["hard"], name), float)}
    expected = probabilities - {
        "until_s",
        "late",
        "skew_s",
        "is_resubmitted",
        "unreadable",
        "spoilt_row",
        "job_deadline_s",
        "horizon_s",
    }
    tally = run.Tally()
    with Laboratory() as laboratory:
        for seed in range(60):
            tally.add(seed, laboratory.run(seed, PROFILES["hard"]))
            if set(tally.faults) >= expected:
                break
    assert set(tally.faults) == expected


def test_shares_of_long_run_are_whole():
    counts: dict[str, int] = {}
    for profile, seeds in run.tasks(10_000, list(run.SHARES)):
        counts[profile] = counts.get(profile, 0) + len(seeds)
    assert sum(counts.values()) == 10_000
    assert set(counts) == set(run.SHARES)
