"""Plays a large queue of images through the fleet in virtual time, by production's rule and by that of 2.3.0.

    python tests/scheduling/run.py                       # 10,000 images, our rule; some minutes
    python tests/scheduling/run.py --rule both --images 2000

Prints the time until the last image ended beside the least possible time, which is the work of the slowest endpoint
over its capacity. Prints the used share of the endpoints' capacity and the waits of images. Prints two faults: starts
at an endpoint without room, and seconds in which an endpoint idled before a waiting image.
"""

import argparse
import random
import sys
import time
from pathlib import Path

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from scheduling.fleet_model import Endpoint, FleetModel, Image, Outcome, Rule, lower_bound_s, our_rule, peer_rule

RULES: dict[str, Rule] = {"ours": our_rule, "peer": peer_rule}
# How many regions images have, and of a thousand how many have so many.
REGIONS = {1: 400, 2: 280, 3: 130, 4: 100, 6: 60, 8: 20, 16: 7, 32: 3}
# A full region has 100 tiles; those at the border of an image have fewer.
TILES = (80, 100)
CALLS = (32, 48, 64, 96, 128)
CALL_S = (0.8, 1.2, 1.8, 2.5, 3.5)


def fleet_and_images(images: int, endpoints: int, spread: float, seed: int) -> tuple[list[Endpoint], list[Image]]:
    """Return endpoints of different speed, and images for them in proportion to it.

    They arrive within ``spread`` of the least time in which they can be done.
    """
    rng = random.Random(seed)
    fleet = [Endpoint(f"endpoint-{n:02}", rng.choice(CALLS), rng.choice(CALL_S)) for n in range(endpoints)]
    queue = []
    for number in range(images):
        endpoint = rng.choices(fleet, [item.tiles_per_s for item in fleet])[0]
        count = rng.choices(list(REGIONS), list(REGIONS.values()))[0]
        queue.append(Image(number, endpoint, tuple(rng.randint(*TILES) for _ in range(count)), 0.0))
    times = sorted(rng.uniform(0, spread * lower_bound_s(fleet, queue)) for _ in queue)
    for image, arrives_at in zip(queue, times, strict=True):
        image.arrives_at = arrives_at
    return fleet, queue


def play(rule: str, images: int, spread: float = 0.0, seed: int = 1, deaths: bool = True, **settings: int) -> Outcome:
    """Play one queue to its end."""
    fleet, queue = fleet_and_images(images, settings.pop("endpoints", 20), spread, seed)
    return FleetModel(fleet, queue, RULES[rule], death_every_s=300.0 if deaths else None, seed=seed, **settings).run()


def report(rule: str, outcome: Outcome) -> str:
    """Return an outcome as text."""
    return "\n".join(
        (
            f"rule: {rule}",
            f"  images                 {outcome.images:10,}   unfinished {outcome.unfinished}",
            f"  makespan               {outcome.makespan_s:10,.0f} s of at least {outcome.bound_s:,.0f} s:"
            f" {100 * outcome.share_of_bound:.1f} % of the bound",
            f"  capacity used          {100 * outcome.utilisation:10.1f} %",
            f"  wait, mean and longest {outcome.mean_wait_s:10,.0f} s, {outcome.longest_wait_s:,.0f} s",
            f"  starts without room    {outcome.overloads:10,}   above the target, into room {outcome.exceptions}",
            f"  endpoint idle          {outcome.idle_s:10,.1f} s before a waiting image"
            f" ({outcome.blocked_s:,.1f} s with those outside the look-ahead)",
            f"  worker deaths          {outcome.deaths:10,}   decisions {outcome.decisions:,}",
        )
    )


def main() -> int:
    """Run what the command line asks for; 1 when an endpoint was overloaded, or idled before an image."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--rule", choices=[*RULES, "both"], default="ours")
    parser.add_argument("--look-ahead", type=int, default=500)
    parser.add_argument("--spread", type=float, default=0.0, help="they arrive within this share of the least time")
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    is_good = True
    for rule in RULES if arguments.rule == "both" else [arguments.rule]:
        began = time.monotonic()
        outcome = play(rule, arguments.images, arguments.spread, arguments.seed, look_ahead=arguments.look_ahead)
        print(report(rule, outcome), f"  played in              {time.monotonic() - began:10.0f} s", sep="\n")
        is_good &= rule == "peer" or not (outcome.overloads or outcome.idle_s or outcome.unfinished)
    return 0 if is_good else 1


if __name__ == "__main__":
    sys.exit(main())
