"""T19: workers whose clocks are minutes apart."""

import pytest

from faults.books import ALL_QUEUES


@pytest.mark.long
@pytest.mark.timeout(400)
@pytest.mark.parametrize("kills", [0, 2])
def test_clocks_that_are_minutes_apart_only_cost_time(trial, kills):
    model = trial.model(latency_ms=50)
    for _ in range(4):
        trial.submit(trial.request(model, "small"))
    for skew_s in (-120.0, 120.0)[:kills]:
        trial.fleet.start({"on": "T1", "do": "die_after", "nth": 5}, clock_ahead_s=skew_s).wait()
    for skew_s in (-120.0, 0.0, 120.0):
        trial.fleet.start(clock_ahead_s=skew_s)
    # The dead worker's clock was ahead, so its lease ends 240 s later on the clock of the other worker.
    trial.wait(patience_s=300.0)
    # A worker whose clock is behind releases messages until the other worker's leases end on its own clock.
    trial.check(empty=ALL_QUEUES - {"REGION_QUEUE"})
