"""A region whose workers crashed."""

import pytest

from worker_process import eventually


@pytest.mark.long
def test_after_two_crashes_region_is_soon_worked_on_in_parallel_again(new_trial, new_queueing_model):
    """The first tiles come one at a time, in case one of them kills the worker."""
    trial = new_trial()
    model = new_queueing_model(servers=16, call_ms=300)
    trial.models.append(model)
    trial.submit(trial.request(model, "one"))
    for _ in range(3):
        doomed = trial.fleet.start()
        eventually(lambda: model.stats()["in_flight"] > 0)
        trial.kill(doomed)
        eventually(lambda: model.stats()["in_flight"] == 0)
    assert trial.tiles_done() <= 4
    model.model.forget()
    with trial.fleet.worker():
        trial.wait()
        trial.check()
    assert model.model.most_at_once > 1
