"""The stages that tiles pass: whatever a step does, every tile is counted out and the threads live on."""

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import structlog
from hypothesis import given
from hypothesis import strategies as st

from aws.osml.model_runner.common.typing import ImageRegion, TileState
from aws.osml.model_runner.database.feature_table import TileOutcome
from aws.osml.model_runner.exceptions import (
    BadModelResponseError,
    ImageUnreachableError,
    InvalidAssumedRoleException,
    LoadImageException,
    ModelBackPressureError,
    ModelCallError,
    ModelErrorClass,
    ModelTileError,
    TableError,
    TileEncodingError,
)
from aws.osml.model_runner.inference.call_limit import CallLimit
from aws.osml.model_runner.pipeline.pipeline import BAD_RESPONSE, INTERNAL_ERROR, TILE_ENCODING, TilePipeline
from aws.osml.model_runner.pipeline.region_run import RegionProgress
from aws.osml.model_runner.pipeline.shares import QueueShares, ThreadShares
from aws.osml.model_runner.tiling.strategy import Tile
from worker_process import eventually

WAIT_S = 5.0
REFUSED = ModelCallError("busy", ModelErrorClass.THROTTLE, "THROTTLED")


class Peak:
    """Counts what is under way, and remembers the most."""

    def __init__(self) -> None:
        self.now = self.most = 0
        self._lock = threading.Lock()

    def add(self, amount: int) -> None:
        with self._lock:
            self.now += amount
            self.most = max(self.most, self.now)


class FakeSteps:
    """Steps of a region in memory; a fault is a function of the tile that may raise or wait."""

    def __init__(self, encoded_bytes: int = 10, **faults: Callable[[Tile], object]) -> None:
        self.faults = faults
        self.encoded_bytes = encoded_bytes
        self.stored: dict[int, TileOutcome] = {}
        self.calls: Counter[str] = Counter()
        self.limit: CallLimit | None = None
        self.endpoint = self.image_store = object()
        self.detecting = Peak()
        self.encoded = Peak()
        self._lock = threading.Lock()

    def _step(self, name: str, tile: Tile) -> None:
        with self._lock:
            self.calls[name] += 1
        if name in self.faults:
            self.faults[name](tile)

    def cut(self, tile: Tile) -> bytes:
        self._step("cut", tile)
        self.encoded.add(self.encoded_bytes)
        return b"x" * self.encoded_bytes

    def begin_call(self) -> bool:
        return self.limit is None or self.limit.try_enter()

    def end_call(self) -> None:
        if self.limit is not None:
            self.limit.leave()

    def detect(self, tile: Tile, encoded: bytes) -> bytes:
        self.encoded.add(-len(encoded))
        self.detecting.add(1)
        try:
            self._step("detect", tile)
        finally:
            self.detecting.add(-1)
        return b"answer %d" % tile.index

    def locate(self, tile: Tile, response: bytes) -> TileOutcome:
        self._step("locate", tile)
        return TileOutcome(TileState.SUCCEEDED, (response,))

    def store(self, tile: Tile, result: TileOutcome) -> TileState:
        self._step("store", tile)
        with self._lock:
            self.stored[tile.index] = result
        return result.state


@pytest.fixture(autouse=True)
def logs() -> Iterator[list[Any]]:
    """Catch what is logged: tracebacks are slow to draw."""
    with structlog.testing.capture_logs(processors=[structlog.contextvars.merge_contextvars]) as caught:
        yield caught


@pytest.fixture
def pipeline() -> Iterator[TilePipeline]:
    made = TilePipeline(cutters=2, callers=3, storers=2, max_encoded_bytes=1000)
    made.start()
    yield made
    made.close()
    assert not [thread for thread in made._threads if thread.is_alive()]


def tiles(count: int) -> list[Tile]:
    return [Tile(index, ImageRegion.of(((0, 512 * index), (512, 512)))) for index in range(count)]


def new_run(**options: Any) -> RegionProgress:
    return RegionProgress(time.monotonic, **options)


def in_thread(function: Callable[..., object], *arguments: object) -> Callable[[], None]:
    """Call a function in a thread of its own; what comes back waits for it, and fails the test when it hangs."""
    thread = threading.Thread(target=function, args=arguments, daemon=True)
    thread.start()

    def ended() -> None:
        thread.join(WAIT_S)
        assert not thread.is_alive(), "it hangs"

    return ended


def run_tiles(pipeline: TilePipeline, run: RegionProgress, steps: FakeSteps, count: int) -> None:
    in_thread(pipeline.run, run, steps, tiles(count))()


def only(index: int, error: Exception) -> Callable[[Tile], None]:
    def fault(tile: Tile) -> None:
        if tile.index == index:
            raise error

    return fault


def always(error: Exception) -> Callable[[Tile], None]:
    def fault(tile: Tile) -> None:
        raise error

    return fault


def test_every_tile_passes_every_stage_once(pipeline):
    run, steps = new_run(), FakeSteps()
    run_tiles(pipeline, run, steps, 100)
    assert run.outcomes == dict.fromkeys(range(100), TileState.SUCCEEDED)
    assert steps.calls == dict.fromkeys(("cut", "detect", "locate", "store"), 100)
    assert steps.stored[7].features == (b"answer 7",)
    assert run.stopped_by is None
    assert not run.is_stopped


def test_region_without_tiles_ends_at_once(pipeline):
    run = new_run()
    run_tiles(pipeline, run, FakeSteps(), 0)
    assert run.outcomes == {}


def test_stored_state_decides_outcome(pipeline):
    class Beaten(FakeSteps):
        def store(self, tile: Tile, result: TileOutcome) -> TileState:
            super().store(tile, result)
            return TileState.FAILED

    run = new_run()
    run_tiles(pipeline, run, Beaten(), 3)
    assert run.outcomes == dict.fromkeys(range(3), TileState.FAILED)


def test_calls_in_flight_equal_number_of_callers():
    together = threading.Barrier(3, timeout=WAIT_S)
    pipeline = TilePipeline(cutters=2, callers=3, storers=2, max_encoded_bytes=1000)
    pipeline.start()
    run, steps = new_run(), FakeSteps(detect=lambda tile: together.wait())
    run_tiles(pipeline, run, steps, 30)
    pipeline.close()
    assert len(run.outcomes) == 30
    assert steps.detecting.most == 3


def test_calls_in_flight_respect_call_limit():
    """The threads are more; a limit that falls while calls are under way lets no other in until it is met."""
    limit = CallLimit(3)
    for _ in range(3):
        assert limit.try_enter()
        limit.record_response(0.005)
        limit.leave()
    steps = FakeSteps(
        detect=lambda tile: time.sleep(0.005) or (limit.record_failure(REFUSED, 0.0) if tile.index == 20 else None)
    )
    steps.limit = limit
    pipeline = TilePipeline(cutters=2, callers=8, storers=2, max_encoded_bytes=1000)
    pipeline.start()
    try:
        run_tiles(pipeline, new_run(), steps, 60)
    finally:
        pipeline.close()
    assert steps.detecting.most == 3
    assert (len(steps.stored), limit.calls, limit.in_flight) == (60, 2, 0)


def test_tiles_of_other_endpoint_pass_waiting_tiles(pipeline):
    closed, free = FakeSteps(), FakeSteps()
    closed.limit = CallLimit(1)
    assert closed.limit.try_enter()
    waiting, passing = new_run(), new_run()
    waiting_ended = in_thread(run_tiles, pipeline, waiting, closed, 4)
    run_tiles(pipeline, passing, free, 20)
    assert len(free.stored) == 20
    assert not closed.stored
    closed.limit.leave()
    waiting_ended()
    assert len(closed.stored) == 4


def test_holder_gets_fewer_threads_than_are_free():
    shares = ThreadShares(max_threads=8)
    taken = {holder: sum(shares.take(holder) for _ in range(20)) for holder in "abcdef"}
    assert taken == {"a": 8, "b": 4, "c": 2, "d": 1, "e": 1, "f": 0}
    for _ in range(8):
        shares.release("a")
    assert sum(shares.take("f") for _ in range(20)) == 4


@given(st.integers(1, 20), st.lists(st.sampled_from("abcd"), max_size=100))
def test_threads_are_left_for_another_holder(most, holders):
    """However many threads others hold, a new holder gets one, unless there are more holders than doublings."""
    shares = ThreadShares(most)
    assert all(shares.take(holder) for holder in ["a"] * most)
    held = Counter(holder for holder in holders if shares.take(holder))
    assert held["a"] == 0
    assert held.total() <= most
    assert shares.take("new") == (held.total() < most)


@pytest.mark.parametrize("stage", ["cut", "detect"])
def test_hanging_endpoint_or_store_leaves_threads_to_others(stage):
    pipeline, answer = TilePipeline(cutters=2, callers=2, storers=1, max_encoded_bytes=1000), threading.Event()
    silent = [FakeSteps(**{stage: lambda tile: answer.wait(WAIT_S)}) for _ in range(2)]
    # Regions of one endpoint have no more threads together than one of them.
    silent[1].endpoint = silent[1].image_store = silent[0].endpoint
    pipeline.start()
    ended = [in_thread(run_tiles, pipeline, new_run(), steps, 8) for steps in silent]
    eventually(lambda: sum(steps.calls[stage] for steps in silent) == 2)
    healthy = FakeSteps()
    run_tiles(pipeline, new_run(), healthy, 20)
    assert len(healthy.stored) == 20
    assert sum(steps.calls[stage] for steps in silent) == 2
    answer.set()
    for end in ended:
        end()
    pipeline.close()
    assert [len(steps.stored) for steps in silent] == [8, 8]


def test_reserve_of_threads_starts_when_second_endpoint_appears(pipeline):
    first, again, second = FakeSteps(), FakeSteps(), FakeSteps()
    again.endpoint, again.image_store = first.endpoint, first.image_store
    threads = threading.active_count()
    for steps in (first, again):
        run_tiles(pipeline, new_run(), steps, 2)
    assert threading.active_count() == threads
    for steps in (second, first):
        run_tiles(pipeline, new_run(), steps, 2)
    assert threading.active_count() > threads


def test_next_region_is_requested_while_tiles_wait_for_endpoint(pipeline, monkeypatch):
    monkeypatch.setattr("aws.osml.model_runner.pipeline.pipeline._WAITS_BEFORE_NEXT", 1)
    steps, run, is_cut = FakeSteps(), new_run(), threading.Event()
    steps.limit = CallLimit(1)
    assert steps.limit.try_enter()
    ended = in_thread(pipeline.run, run, steps, tiles(30), is_cut.set)
    assert is_cut.wait(WAIT_S)
    assert steps.calls["cut"] < 15
    run.stop()
    ended()


@pytest.mark.parametrize("encoded_bytes", [1, 300], ids=["count", "bytes"])
def test_waiting_tiles_leave_room_for_other_endpoint(pipeline, encoded_bytes):
    closed, free = FakeSteps(encoded_bytes), FakeSteps(encoded_bytes)
    closed.limit = CallLimit(1)
    assert closed.limit.try_enter()
    waiting_ended = in_thread(run_tiles, pipeline, new_run(), closed, 30)
    eventually(lambda: len(pipeline._to_detect._items) >= (6 if encoded_bytes == 1 else 2))
    time.sleep(0.05)
    run_tiles(pipeline, new_run(), free, 20)
    assert len(free.stored) == 20
    assert not closed.stored
    closed.limit.leave()
    waiting_ended()
    assert len(closed.stored) == 30


def test_share_of_region_shrinks_when_others_come():
    shares = QueueShares(first_tiles=2, max_tiles=6, max_bytes=1000)
    with shares.of("a"):
        assert [shares.take("a") for _ in range(3)] == [True] * 2 + [False]
        shares.record_bytes("a", 10)
        assert [shares.take("a") for _ in range(5)] == [True] * 4 + [False]
        with shares.of("b"):
            shares.record_bytes("b", 10)
            assert [shares.take("b") for _ in range(4)] == [True] * 3 + [False]
            shares.release("a")
            assert not shares.take("a")
        assert shares.take("a")
        shares.record_bytes("a", 2000)
        assert not shares.take("a")
        for _ in range(6):
            shares.release("a")
        assert shares.take("a"), "one tile, however large"


def test_next_region_is_requested_when_no_tile_is_left_to_cut(pipeline):
    answer, is_cut = threading.Event(), threading.Event()
    run, steps = new_run(), FakeSteps(detect=lambda tile: answer.wait(WAIT_S))
    ended = in_thread(pipeline.run, run, steps, tiles(3), is_cut.set)
    assert is_cut.wait(WAIT_S)
    assert run.outcomes == {}
    answer.set()
    ended()
    assert len(run.outcomes) == 3


def test_next_region_is_requested_between_half_cut_and_all_cut():
    pipeline = TilePipeline(cutters=1, callers=4, storers=1, max_encoded_bytes=1000)
    entered: list[int] = []
    runs = [new_run() for _ in range(2)]
    for run, count in zip(runs, (40, 6), strict=True):
        enter, begun = run.enter, Peak()
        run.enter = lambda enter=enter, begun=begun: begun.add(1) or enter()
        asked = in_thread(pipeline.run, run, FakeSteps(), tiles(count), lambda begun=begun: entered.append(begun.now))
        if run is runs[0]:
            pipeline.start()
        asked()
    pipeline.close()
    assert entered == [32, 40, 3, 6], "8 before the end of many, half of few, and at the end"


def test_run_that_is_stopped_does_not_wait_for_its_endpoint(pipeline):
    steps, run = FakeSteps(), new_run()
    steps.limit = CallLimit(1)
    assert steps.limit.try_enter()
    ended = in_thread(run_tiles, pipeline, run, steps, 4)
    run.stop()
    ended()
    assert (steps.calls["detect"], run.outcomes, steps.limit.in_flight) == (0, {}, 1)


def test_never_more_encoded_bytes_queued_than_allowed():
    release = threading.Event()
    pipeline = TilePipeline(cutters=2, callers=8, storers=1, max_encoded_bytes=100)
    pipeline.start()
    run, steps = new_run(), FakeSteps(encoded_bytes=40, detect=lambda tile: release.wait(WAIT_S))
    ended = in_thread(pipeline.run, run, steps, tiles(60))
    deadline = time.monotonic() + WAIT_S
    while steps.calls["cut"] < 9 and time.monotonic() < deadline:
        time.sleep(0.005)
    time.sleep(0.05)
    # 8 are with the model, at most 2 of 40 bytes wait in the queue, and each of 2 cutters may hold one more.
    assert 9 <= steps.calls["cut"] <= 12
    assert 40 <= pipeline._to_detect._bytes <= 80
    release.set()
    ended()
    pipeline.close()
    assert steps.encoded.most <= 100 + (2 + 8) * 40
    assert len(run.outcomes) == 60


def test_slow_end_holds_back_beginning():
    release = threading.Event()
    pipeline = TilePipeline(cutters=1, callers=1, storers=1, max_encoded_bytes=1000)
    pipeline.start()
    run, steps = new_run(), FakeSteps(store=lambda tile: release.wait(WAIT_S))
    ended = in_thread(pipeline.run, run, steps, tiles(200))
    time.sleep(0.1)
    assert steps.calls["cut"] <= 10
    release.set()
    ended()
    pipeline.close()
    assert len(run.outcomes) == 200


def test_back_pressure_stops_run_and_fails_no_tile(pipeline):
    refusal = ModelBackPressureError("busy", 30.0)
    run, steps = new_run(), FakeSteps(detect=only(20, refusal))
    run_tiles(pipeline, run, steps, 1000)
    assert run.stopped_by is refusal
    assert len(run.outcomes) < 1000
    assert 20 not in run.outcomes
    assert set(run.outcomes.values()) == {TileState.SUCCEEDED}
    assert set(steps.stored) == set(run.outcomes), "what the model has answered is stored"
    assert not run.enter()


@pytest.mark.parametrize(
    "error",
    [ImageUnreachableError("S3 is away"), LoadImageException("forbidden"), InvalidAssumedRoleException("no STS")],
)
def test_image_that_cannot_be_read_stops_run_and_fails_no_tile(pipeline, error):
    run, steps = new_run(), FakeSteps(cut=only(20, error))
    run_tiles(pipeline, run, steps, 1000)
    assert run.stopped_by is error
    assert 20 not in run.outcomes
    assert set(run.outcomes.values()) == {TileState.SUCCEEDED}
    assert set(steps.stored) == set(run.outcomes)


@pytest.mark.parametrize(
    ("step", "error", "code"),
    [
        ("cut", TileEncodingError("cannot hold 7 bands"), TILE_ENCODING),
        ("detect", ModelTileError("refused", "MODEL_4XX"), "MODEL_4XX"),
        ("locate", BadModelResponseError("no collection"), BAD_RESPONSE),
        ("cut", KeyError("unforeseen"), INTERNAL_ERROR),
        ("detect", KeyError("unforeseen"), INTERNAL_ERROR),
        ("locate", KeyError("unforeseen"), INTERNAL_ERROR),
    ],
)
def test_error_of_one_tile_fails_only_that_tile(pipeline, step, error, code):
    run, steps = new_run(), FakeSteps(**{step: only(3, error)})
    run_tiles(pipeline, run, steps, 20)
    assert run.outcomes == {**dict.fromkeys(range(20), TileState.SUCCEEDED), 3: TileState.FAILED}
    result = steps.stored[3]
    assert (result.state, result.error_code) == (TileState.FAILED, code)
    assert result.error_reason.startswith("KeyError" if isinstance(error, KeyError) else str(error))
    assert run.stopped_by is None


@pytest.mark.parametrize("step", ["cut", "detect", "locate"])
def test_threads_live_on_when_every_tile_breaks(step):
    pipeline = TilePipeline(cutters=1, callers=1, storers=1, max_encoded_bytes=1000)
    pipeline.start()
    broken = new_run()
    run_tiles(pipeline, broken, FakeSteps(**{step: always(KeyError("unforeseen"))}), 50)
    assert broken.outcomes == dict.fromkeys(range(50), TileState.FAILED)
    healthy = new_run()
    run_tiles(pipeline, healthy, FakeSteps(), 50)
    assert healthy.outcomes == dict.fromkeys(range(50), TileState.SUCCEEDED)
    pipeline.close()


def test_tile_that_breaks_in_last_stage_needs_no_room_in_full_queue():
    pipeline = TilePipeline(cutters=1, callers=2, storers=1, max_encoded_bytes=1000)
    pipeline.start()

    def break_when_full(tile: Tile) -> None:
        deadline = time.monotonic() + 1.0
        while tile.index == 0 and len(pipeline._to_store._items) < 4 and time.monotonic() < deadline:
            time.sleep(0.005)
        if tile.index == 0:
            raise KeyError("unforeseen")

    run = new_run()
    run_tiles(pipeline, run, FakeSteps(locate=break_when_full), 30)
    assert run.outcomes == {**dict.fromkeys(range(30), TileState.SUCCEEDED), 0: TileState.FAILED}
    pipeline.close()


def test_run_stops_when_table_refuses_tiles(pipeline):
    error = TableError("no table")
    run, steps = new_run(), FakeSteps(store=always(error))
    run_tiles(pipeline, run, steps, 500)
    assert run.stopped_by is error
    assert run.outcomes == {}
    assert steps.calls["store"] < 500
    again = new_run()
    run_tiles(pipeline, again, FakeSteps(), 10)
    assert len(again.outcomes) == 10


@pytest.mark.parametrize("step", ["cut", "detect", "locate", "store"])
def test_lack_of_memory_stops_run_and_fails_no_tile(pipeline, step):
    error = MemoryError()
    run, steps = new_run(), FakeSteps(**{step: only(20, error)})
    run_tiles(pipeline, run, steps, 1000)
    assert run.stopped_by is error
    assert 20 not in run.outcomes
    assert set(run.outcomes.values()) == {TileState.SUCCEEDED}
    again = new_run()
    run_tiles(pipeline, again, FakeSteps(), 10)
    assert len(again.outcomes) == 10


class Clock:
    now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


def test_tile_that_waits_for_its_endpoint_does_not_count_as_hang(pipeline):
    clock, began = Clock(), threading.Event()
    run, steps = RegionProgress(clock), FakeSteps(detect=lambda tile: began.set())
    steps.limit = CallLimit(1)
    assert steps.limit.try_enter()
    with run.waiting():
        ended = in_thread(pipeline.run, run, steps, tiles(40))
        deadline = time.monotonic() + WAIT_S
        while (steps.calls["cut"] < 6 or run._life) and time.monotonic() < deadline:
            time.sleep(0.005)
        clock.now_s += 7000.0
        assert run.last_life == clock.now_s, "six tiles wait in the queue"
        steps.limit.leave()
        assert began.wait(WAIT_S)
        ended()
    assert len(run.outcomes) == 40


@pytest.mark.parametrize("step", ["cut", "detect", "store"])
def test_hanging_step_is_reported_and_beating_step_is_not(pipeline, step):
    clock, release = Clock(), threading.Event()
    in_step = threading.Event()

    def hang(tile: Tile) -> None:
        if tile.index == 3:
            in_step.set()
            release.wait(WAIT_S)

    run, steps = RegionProgress(clock), FakeSteps(**{step: hang})
    with run.waiting():
        ended = in_thread(pipeline.run, run, steps, tiles(4))
        assert in_step.wait(WAIT_S)
        clock.now_s += 500.0
        assert run.last_life == 1000.0
        run.record_life(tiles(4)[3])
        assert run.last_life == 1500.0
        release.set()
        ended()
    assert len(run.outcomes) == 4


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_tile_counts_as_hang_when_its_thread_ended():
    clock = Clock()
    pipeline = TilePipeline(cutters=1, callers=1, storers=1, max_encoded_bytes=1000)
    pipeline.start()
    run, steps = RegionProgress(clock), FakeSteps(cut=only(0, SystemExit()))  # type: ignore[arg-type]
    with run.waiting():
        ended = in_thread(pipeline.run, run, steps, tiles(1))
        pipeline._threads[0].join(WAIT_S)
        assert not pipeline._threads[0].is_alive()
        clock.now_s += 700.0
        assert run.last_life == 1000.0
        run.leave(tiles(1)[0], None)
        ended()
    pipeline.close()


def test_stopping_commits_responses_and_starts_no_tile(pipeline):
    stopping = threading.Event()

    def stop_at_ten(tile: Tile) -> None:
        if tile.index == 10:
            stopping.set()

    run, steps = new_run(stopping=stopping), FakeSteps(detect=stop_at_ten)
    run_tiles(pipeline, run, steps, 1000)
    assert 10 in run.outcomes
    assert len(run.outcomes) < 1000
    assert set(steps.stored) == set(run.outcomes)
    assert run.stopped_by is None


def test_two_regions_share_stages(pipeline):
    first_is_held = threading.Event()
    second_is_done = threading.Event()

    def hold_one(tile: Tile) -> None:
        if tile.index == 0:
            first_is_held.set()
            assert second_is_done.wait(WAIT_S)

    held, free = new_run(), new_run()
    ended = in_thread(pipeline.run, held, FakeSteps(detect=hold_one), tiles(5))
    assert first_is_held.wait(WAIT_S)
    run_tiles(pipeline, free, FakeSteps(), 40)
    second_is_done.set()
    ended()
    assert len(free.outcomes) == 40
    assert len(held.outcomes) == 5


def test_region_that_is_stopped_does_not_stop_its_neighbour(pipeline):
    stopped, free = new_run(), new_run()
    busy = FakeSteps(detect=always(ModelBackPressureError("busy")))
    one = in_thread(pipeline.run, stopped, busy, tiles(50))
    other = in_thread(pipeline.run, free, FakeSteps(), tiles(50))
    one()
    other()
    assert stopped.outcomes == {}
    assert len(free.outcomes) == 50


@pytest.mark.parametrize("slow_step", ["cut", "detect", "store"])
def test_closing_while_tiles_are_queued_leaves_no_run_hanging(slow_step):
    began, release = threading.Event(), threading.Event()

    def hold(tile: Tile) -> None:
        began.set()
        release.wait(WAIT_S)

    pipeline = TilePipeline(cutters=1, callers=1, storers=1, max_encoded_bytes=20)
    pipeline.start()
    run, steps = new_run(), FakeSteps(**{slow_step: hold})
    ended = in_thread(pipeline.run, run, steps, tiles(50))
    assert began.wait(WAIT_S)
    time.sleep(0.05)
    closed = in_thread(pipeline.close)
    time.sleep(0.05)
    release.set()
    ended()
    closed()
    assert len(run.outcomes) < 50
    assert set(steps.stored) == set(run.outcomes)
    assert run.is_stopped


@pytest.mark.parametrize("step", ["cut", "detect"])
def test_tile_that_breaks_while_pipeline_closes_is_still_counted_out(step):
    began, release = threading.Event(), threading.Event()

    def break_late(tile: Tile) -> None:
        began.set()
        release.wait(WAIT_S)
        raise KeyError("unforeseen")

    pipeline = TilePipeline(cutters=1, callers=1, storers=1, max_encoded_bytes=1000)
    pipeline.start()
    run, steps = new_run(), FakeSteps(**{step: break_late})
    ended = in_thread(pipeline.run, run, steps, tiles(5))
    assert began.wait(WAIT_S)
    closed = in_thread(pipeline.close)
    time.sleep(0.03)
    release.set()
    ended()
    closed()
    assert set(run.outcomes.values()) <= {TileState.FAILED}


def test_closed_pipeline_refuses_run(pipeline):
    pipeline.close()
    run, steps = new_run(), FakeSteps()
    run_tiles(pipeline, run, steps, 5)
    assert run.outcomes == {}
    assert run.is_stopped
    assert steps.calls == {}


def test_events_of_tile_carry_its_regions_fields(pipeline, logs):
    run = new_run(log_fields={"region_id": "r-7"})
    run_tiles(pipeline, run, FakeSteps(detect=only(1, ModelTileError("refused", "MODEL_4XX"))), 3)
    [event] = [log for log in logs if log["event"] == "tile.failed"]
    assert (event["region_id"], event["tile_index"], event["code"]) == ("r-7", 1, "MODEL_4XX")
