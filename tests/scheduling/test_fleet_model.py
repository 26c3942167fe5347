"""Production's decision in a fleet of virtual time; `run.py` plays 10,000 images."""

import pytest

from scheduling.run import play


@pytest.fixture(scope="module")
def ours():
    return play("ours", 300, endpoints=5, workers=8, seed=4)


def test_every_image_is_done_though_workers_die(ours):
    assert (ours.unfinished, ours.started_twice) == (0, 0)
    assert ours.deaths > 0


def test_no_image_starts_at_endpoint_without_room(ours):
    assert ours.overloads == 0
    assert ours.exceptions > 0, "there are images larger than endpoints"


def test_no_endpoint_idles_while_image_for_it_waits(ours):
    assert ours.idle_s == 0


def test_time_is_near_least_possible(ours):
    assert ours.share_of_bound > 0.75, "so few images leave much of the time to the last of them"


def test_rule_that_looks_at_one_candidate_leaves_endpoints_idle():
    ours, peer = (play(rule, 120, endpoints=5, workers=8, seed=3) for rule in ("ours", "peer"))
    assert (ours.idle_s, ours.unfinished, peer.unfinished) == (0, 0, 0)
    assert peer.idle_s > 0
    assert peer.makespan_s > 2 * ours.makespan_s
