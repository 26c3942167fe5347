"""Runs worlds from many seeds and prints a table; or one of them, loudly.

    python tests/simulation/run.py --seeds 10000 --jobs 2
    python tests/simulation/run.py --profile hard --seed 207 --loud

A row counts the worlds of a profile, the broken worlds, the model calls per tile row, and the copies of each record in
Kinesis. It prints the longest time from a job's acceptance to its last end.
"""

import argparse
import dataclasses
import gc
import multiprocessing
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from simulation.faults import PROFILES
from simulation.oracle import violations
from simulation.world import Laboratory, World, run_world

# Percentage of the worlds for each profile; profiles with long worlds get fewer.
SHARES = {
    "hard": 24,
    "zombie": 23,
    "lossy": 22,
    "sqs": 24,
    "outage": 1,
    "poison-tile": 2,
    "poison-plan": 1,
    "poison-aggregation": 1,
    "poison-finish": 1,
    "spoilt": 1,
}
_CHUNK = 50


@dataclasses.dataclass
class Tally:
    """Results of the worlds of one profile."""

    runs: int = 0
    bad: list[tuple[int, list[str]]] = dataclasses.field(default_factory=list)
    calls: int = 0
    tiles: int = 0
    records: int = 0
    distinct_records: int = 0
    slowest_s: float = 0.0
    faults: Counter[str] = dataclasses.field(default_factory=Counter)

    def add(self, seed: int, world: World) -> None:
        """Count one world."""
        self.runs += 1
        if found := violations(world):
            self.bad.append((seed, found))
        self.calls += world.runtime.calls
        self.tiles += sum("tile_status" in row for row in world.dynamodb.tables["features"].items())
        self.records += len(world.kinesis.records)
        self.distinct_records += len(set(world.kinesis.records))
        self.slowest_s = max([self.slowest_s, *world.durations()])
        self.faults.update(world.chance.injected)

    def merge(self, other: "Tally") -> None:
        """Count the worlds of another tally as well."""
        self.runs += other.runs
        self.bad += other.bad
        self.calls += other.calls
        self.tiles += other.tiles
        self.records += other.records
        self.distinct_records += other.distinct_records
        self.slowest_s = max(self.slowest_s, other.slowest_s)
        self.faults.update(other.faults)


def run_seeds(task: tuple[str, range]) -> tuple[str, Tally]:
    """Run worlds of one profile from a range of seeds."""
    profile, seeds = task
    tally = Tally()
    with Laboratory() as laboratory:
        for seed in seeds:
            tally.add(seed, laboratory.run(seed, PROFILES[profile]))
    gc.collect()
    return profile, tally


def tasks(seeds: int, profiles: list[str]) -> Iterator[tuple[str, range]]:
    """Share out so many seeds among profiles, in pieces of a few."""
    total = sum(SHARES.get(profile, 10) for profile in profiles)
    for profile in profiles:
        count = round(seeds * SHARES.get(profile, 10) / total)
        for start in range(0, count, _CHUNK):
            yield profile, range(start, min(start + _CHUNK, count))


def table(tallies: dict[str, Tally]) -> str:
    """Return the figures as text."""
    lines = [
        f"{'profile':20} {'runs':>6} {'violations':>10} {'calls/tile':>10} {'copies/record':>13} {'slowest job':>11}"
    ]
    for profile, tally in tallies.items():
        lines.append(
            f"{profile:20} {tally.runs:13} {len(tally.bad):13} {tally.calls / max(1, tally.tiles):13.2f}"
            f" {tally.records / max(1, tally.distinct_records):13.3f} {tally.slowest_s:11.0f} s"
        )
    return "\n".join(lines)


def replay_command(seed: int, profile: str) -> str:
    """Return what a person types to see a world again."""
    return f"python tests/simulation/run.py --profile {profile} --seed {seed} --loud"


def _prepare() -> None:
    # A world makes many objects and few cycles, so looking for them after some worlds saves a tenth of the time.
    gc.freeze()
    gc.disable()


def _run_one(seed: int, profile: str, is_loud: bool) -> int:
    found = violations(run_world(seed, profile, is_loud))
    print(*(found or ["no violation"]), sep="\n")
    return 1 if found else 0


def main() -> int:
    """Run what the command line asks for; 1 when a rule was broken."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=1000, help="how many worlds, over all profiles")
    parser.add_argument("--jobs", type=int, default=2, help="how many processes")
    parser.add_argument("--profile", action="append", choices=sorted(PROFILES), help="only this one; may be repeated")
    parser.add_argument("--seed", type=int, help="only this world, of the one profile that is named")
    parser.add_argument("--loud", action="store_true", help="print what its workers log")
    arguments = parser.parse_args()
    profiles = arguments.profile or list(SHARES)
    if arguments.seed is not None:
        return _run_one(arguments.seed, profiles[0], arguments.loud)
    started = time.monotonic()
    tallies = {profile: Tally() for profile in profiles}
    with multiprocessing.get_context("fork").Pool(arguments.jobs, _prepare) as pool:
        for profile, tally in pool.imap_unordered(run_seeds, list(tasks(arguments.seeds, profiles))):
            tallies[profile].merge(tally)
    print(table(tallies))
    injected = sum((tally.faults for tally in tallies.values()), Counter())
    print(f"\n{time.monotonic() - started:.0f} s; faults:", *(f"{n} {kind}," for kind, n in injected.most_common()))
    for profile, tally in tallies.items():
        for seed, found in sorted(tally.bad)[:10]:
            print(f"\n{replay_command(seed, profile)}", *found[:5], sep="\n  ")
    return 1 if any(tally.bad for tally in tallies.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
