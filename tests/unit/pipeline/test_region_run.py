"""A region's tiles, counted in and out."""

import threading

import pytest

from aws.osml.model_runner.common.typing import ImageRegion, TileState
from aws.osml.model_runner.pipeline import region_run
from aws.osml.model_runner.pipeline.region_run import RegionProgress
from aws.osml.model_runner.tiling.strategy import Tile

WAIT_S = 5.0


class Clock:
    now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def tile(index: int) -> Tile:
    return Tile(index, ImageRegion.of(((0, 512 * index), (512, 512))))


def test_outcomes_are_kept_by_tile_index():
    run = RegionProgress(Clock())
    for index, state in ((3, TileState.SUCCEEDED), (1, TileState.FAILED)):
        assert run.enter()
        run.leave(tile(index), state)
    assert run.outcomes == {3: TileState.SUCCEEDED, 1: TileState.FAILED}
    run.wait()


def test_tile_that_came_to_no_end_has_no_outcome():
    run = RegionProgress(Clock())
    run.enter()
    run.leave(tile(0), None)
    assert run.outcomes == {}
    run.wait()


def test_wait_returns_when_last_tile_is_out():
    run = RegionProgress(Clock())
    run.enter()
    run.enter()
    waiting = threading.Thread(target=run.wait, daemon=True)
    waiting.start()
    run.leave(tile(0), TileState.SUCCEEDED)
    waiting.join(0.03)
    assert waiting.is_alive()
    run.leave(tile(1), None)
    waiting.join(WAIT_S)
    assert not waiting.is_alive()


def test_life_is_that_of_thread_that_gave_no_sign_for_longest():
    clock = Clock()
    run = RegionProgress(clock)
    for seconds, index in ((5.0, 0), (7.0, 1)):
        clock.now_s = 100.0 + seconds
        run.begin_step(tile(index))
    assert run.last_life == 100.0, "the region's own thread opens the image since then"
    clock.now_s = 109.0
    run.record_life()
    assert run.last_life == 105.0
    run.record_life(tile(0))
    assert run.last_life == 107.0
    run.end_step(tile(1))
    assert run.last_life == 109.0


def test_tiles_that_wait_in_queue_count_as_no_hang():
    clock = Clock()
    run = RegionProgress(clock)
    with run.waiting():
        for _ in range(3):
            run.enter()
        run.begin_step(tile(0))
        clock.now_s = 900.0
        assert run.last_life == 100.0
        run.leave(tile(0), TileState.SUCCEEDED)
        clock.now_s = 5000.0
        assert run.last_life == 5000.0, "no thread works on the other two"
        run.record_life(tile(1))
        assert run.last_life == 5000.0
    clock.now_s = 5001.0
    assert run.last_life == 5000.0, "the region's own thread goes on"
    run.record_life(tile(7))
    assert run.last_life == 5001.0, "a tile that is in no stage is worked on by the region's own thread"


def test_progress_is_reported_once_by_ended_tile():
    told: list[int] = []
    run = RegionProgress(Clock(), on_progress=lambda: told.append(len(run.outcomes)))
    run.enter()
    run.leave(tile(0), None)
    assert told == []
    for index in (1, 2):
        run.enter()
        run.leave(tile(index), TileState.SUCCEEDED)
    assert told == [0]


def test_stopped_run_lets_no_tile_in_and_keeps_first_reason():
    run = RegionProgress(Clock())
    assert run.stopped_by is None
    assert not run.is_stopped
    first, second = ValueError("first"), ValueError("second")
    run.stop()
    assert run.stopped_by is None
    run.stop(first)
    run.stop(second)
    assert run.is_stopped
    assert run.stopped_by is first
    assert not run.enter()
    run.wait()


def test_stopping_process_stops_every_run():
    stopping = threading.Event()
    runs = [RegionProgress(Clock(), stopping=stopping) for _ in range(2)]
    assert all(run.enter() for run in runs)
    stopping.set()
    assert [run.enter() for run in runs] == [False, False]
    assert [run.stopped_by for run in runs] == [None, None]


def test_past_deadline_no_tile_is_begun():
    clock = Clock()
    run = RegionProgress(clock, deadline=160.0)
    clock.now_s = 160.0
    assert (run.is_late(), run.is_stopped, run.enter()) == (False, False, True)
    clock.now_s = 160.1
    assert (run.is_late(), run.is_stopped, run.enter()) == (True, True, False)
    run.leave(tile(0), TileState.SUCCEEDED)
    assert run.outcomes == {0: TileState.SUCCEEDED}
    run.wait()


def test_stopping_process_waits_for_tile_no_longer_than_grace(monkeypatch):
    monkeypatch.setattr(region_run, "_STOP_POLL_S", 0.005)
    stopping = threading.Event()
    run = RegionProgress(Clock(), stopping=stopping, stop_grace_s=0.02)
    run.enter()
    waiting = threading.Thread(target=run.wait, daemon=True)
    waiting.start()
    waiting.join(0.1)
    assert waiting.is_alive(), "as long as the process does not stop, it waits"
    stopping.set()
    waiting.join(WAIT_S)
    assert not waiting.is_alive()


def test_process_that_stops_waits_while_for_tiles_in_flight(monkeypatch):
    monkeypatch.setattr(region_run, "_STOP_POLL_S", 0.005)
    stopping = threading.Event()
    run = RegionProgress(Clock(), stopping=stopping, stop_grace_s=WAIT_S)
    run.enter()
    stopping.set()
    waiting = threading.Thread(target=run.wait, daemon=True)
    waiting.start()
    waiting.join(0.05)
    assert waiting.is_alive()
    run.leave(tile(0), TileState.SUCCEEDED)
    waiting.join(1.0)
    assert not waiting.is_alive()


def test_results_are_needed_until_region_is_lost():
    run = RegionProgress(Clock())
    run.stop(ValueError("the endpoint refuses"))
    assert run.may_store, "what the model answered before is stored"
    run.lose()
    assert not run.may_store


def test_results_are_needed_until_process_waits_no_longer(monkeypatch):
    monkeypatch.setattr(region_run, "_STOP_POLL_S", 0.005)
    stopping = threading.Event()
    late, in_time = (RegionProgress(Clock(), stopping=stopping, stop_grace_s=0.02) for _ in range(2))
    late.enter()
    stopping.set()
    assert late.may_store
    for run in (late, in_time):
        run.wait()
    assert (late.may_store, in_time.may_store) == (False, True)


def test_log_fields_are_runs_own():
    fields = {"job_id": "j"}
    run = RegionProgress(Clock(), fields)
    fields["job_id"] = "other"
    assert run.log_fields == {"job_id": "j"}
    assert RegionProgress(Clock()).log_fields == {}


def test_tile_is_counted_when_progress_callback_raises():
    def refuse() -> None:
        raise RuntimeError("no table")

    run = RegionProgress(Clock(), on_progress=refuse)
    run.enter()
    with pytest.raises(RuntimeError):
        run.leave(tile(0), TileState.SUCCEEDED)
    run.leave(tile(0), None)
    run.wait()
    assert run.outcomes == {}
