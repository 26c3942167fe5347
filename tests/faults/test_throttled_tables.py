"""A feature table that admits a part of the calls."""

import pytest

from aws_proxy.meter import UnitMeter
from aws_proxy.throttling import Chance, ThrottledReads, ThrottledWrites


@pytest.mark.long
@pytest.mark.timeout(300)
def test_responses_are_kept_when_feature_table_is_throttled(new_trial, new_proxy):
    """As when the rest of a fleet takes what the table admits."""
    proxy = new_proxy()
    trial = new_trial(**proxy.environment)
    throttle = ThrottledWrites(Chance(0.2, seed=1), trial.site.data_plane.environment["FEATURE_TABLE"])
    proxy.steps += [throttle, UnitMeter()]
    model = trial.model()
    trial.submit(trial.request(model, "small"))
    with trial.fleet.worker():
        trial.wait(patience_s=180.0)
        books = trial.check()
    assert throttle.refused.total() > 64
    assert trial.calls_per_tile(books) <= 1.05


@pytest.mark.long
def test_image_is_put_together_while_reads_are_throttled(new_trial, new_proxy):
    proxy = new_proxy()
    trial = new_trial(**proxy.environment)
    throttle = ThrottledReads(Chance(0.2, seed=1), trial.site.data_plane.environment["FEATURE_TABLE"])
    proxy.steps += [throttle, UnitMeter()]
    trial.submit(trial.request(trial.model(), "small"))
    with trial.fleet.worker():
        trial.wait(patience_s=120.0)
        trial.check()
    assert throttle.refused.total() > 0
    taken = [write for write in trial.fleet.writes("G1") if write["status"] == 200]
    assert len(taken) == 1, "one aggregation did it"
