"""Endpoints that are slower than the calls in flight: no tile is at fault, and no worker hangs."""

import pytest

from aws.osml.model_runner.local.stack import sagemaker_gateway
from aws.osml.model_runner.scheduler.endpoint_capacity import CONCURRENCY_TAG
from worker_process import eventually


@pytest.mark.long
def test_container_that_is_slower_than_calls_in_flight_fails_no_tile(
    new_trial, new_proxy, new_queueing_model, monkeypatch
):
    """One server, and calls that time out while they wait for it: SageMaker answers ModelError with status 0."""
    # A tenth of what SageMaker gives a container.
    timeout_s, call_ms, image = 6.0, 800, "small"
    monkeypatch.setattr(sagemaker_gateway, "MODEL_TIMEOUT_S", timeout_s)
    model = new_queueing_model(call_ms=call_ms)
    # The endpoint claims to take all calls that the worker can make.
    proxy = new_proxy(endpoints={"numbered": model}, tags={CONCURRENCY_TAG: "16"})
    trial = new_trial(**proxy.environment, WORKERS="16")
    trial.models.append(model)
    trial.submit(trial.sagemaker_request("numbered", image), ends=None)
    with trial.fleet.worker():
        trial.wait(patience_s=200.0)
        books = trial.check()
    (tiles,) = books.tiles.values()
    assert [tile["error_code"] for tile in tiles if tile["tile_status"] == "FAILED"] == []
    assert len(tiles) <= proxy.requests["sagemaker", "InvokeEndpoint"] <= 1.5 * len(tiles)


@pytest.mark.long
def test_worker_is_not_stuck_when_its_queue_waits_for_slow_endpoint(new_trial, new_queueing_model):
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
