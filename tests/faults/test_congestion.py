"""Endpoints that are slower than the calls in flight: no tile is at fault, and no worker hangs."""

from worker_process import eventually


def test_a_worker_whose_queue_is_long_at_a_slow_endpoint_is_not_stuck(new_trial, new_queueing_model):
    """Tiles wait for their turn for longer than a tile may take, and each call is far below that."""
    trial = new_trial(WORKERS="16", TILE_STALL_S="9")
    model = new_queueing_model(call_ms=300)
    trial.models.append(model)
    trial.submit(trial.request(model, "small"))
    with trial.fleet.worker() as worker:
        eventually(lambda: worker.exit_code is not None or not trial.running(*trial.jobs) or trial.site.listen(1))
        assert worker.exit_code is None
        books = trial.check()
    assert trial.calls_per_tile(books) <= 1.2
