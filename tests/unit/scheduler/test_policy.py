"""Which image starts next, as tables and as properties of any queue, any load and any capacity."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aws.osml.model_runner.scheduler.policy import (
    BACKFILL_S,
    PRIORITY_STEP_S,
    Lane,
    LaneCapacity,
    LaneLoad,
    Reason,
    WaitingImage,
    decide,
    work_waiting,
)
from examples import examples

A, B, C = Lane("a"), Lane("b"), Lane("c")
NOW = 10_000.0


def image(key: str, lane: Lane = A, load: int = 4, at: float = 0.0, **more: float) -> WaitingImage:
    return WaitingImage(key, lane, load, at, **more)


def room(*calls: float) -> dict[Lane, LaneCapacity]:
    return {lane: LaneCapacity(count, count) for lane, count in zip((A, B, C), calls, strict=False)}


TABLE = [
    ("nothing", [], {}, room(8), None, Reason.NOTHING_WAITS, ()),
    ("it fits", [image("x")], {}, room(8), "x", Reason.FITS, ()),
    ("the oldest first", [image("y", at=2), image("x", at=1)], {}, room(8), "x", Reason.FITS, ()),
    ("of one second, by key", [image("y"), image("x")], {}, room(8), "x", Reason.FITS, ()),
    ("the rest of the room", [image("x")], {A: LaneLoad(1, 4)}, room(8), "x", Reason.FITS, ()),
    ("no room", [image("x", load=5)], {A: LaneLoad(1, 4)}, room(8), None, Reason.ALL_FULL, (A,)),
    ("room for all but one call", [image("x", load=40)], {A: LaneLoad(1, 20)}, room(40), None, Reason.ALL_FULL, (A,)),
    ("a straggler", [image("x", load=40)], {A: LaneLoad(1, 4)}, room(40), "x", Reason.STRAGGLERS, ()),
    ("too large, but alone", [image("x", load=99)], {}, room(8), "x", Reason.ALONE, ()),
    ("too large, and not alone", [image("x", load=99)], {A: LaneLoad(1, 4)}, room(8), "x", Reason.LARGE, ()),
    ("too large, and no room", [image("x", load=99)], {A: LaneLoad(1, 8)}, room(8), None, Reason.ALL_FULL, (A,)),
    ("too large for the room beside it", [image("x", load=99)], {A: LaneLoad(1, 7)}, room(8), "x", Reason.LARGE, ()),
    ("alone where nothing may run", [image("x")], {}, room(0), "x", Reason.ALONE, ()),
    (
        "the least loaded first",
        [image("x", A, at=1), image("y", B, at=2)],
        {A: LaneLoad(1, 8), B: LaneLoad(1, 8)},
        room(16, 32),
        "y",
        Reason.FITS,
        (),
    ),
    (
        "of equal loads, the oldest",
        [image("y", B, at=2), image("x", A, at=1)],
        {A: LaneLoad(1, 8), B: LaneLoad(2, 16)},
        room(16, 32),
        "x",
        Reason.FITS,
        (),
    ),
    (
        "the next lane where the first is full",
        [image("x", A, load=16), image("y", B, load=4)],
        {A: LaneLoad(1, 8), B: LaneLoad(1, 12)},
        room(16, 16),
        "y",
        Reason.FITS,
        (A,),
    ),
    (
        "a variant has a capacity of its own",
        [image("x", Lane("a", "blue")), image("y", Lane("a", "green"), at=1)],
        {Lane("a", "blue"): LaneLoad(1, 8)},
        {Lane("a", "blue"): LaneCapacity(8, 8), Lane("a", "green"): LaneCapacity(8, 8)},
        "y",
        Reason.FITS,
        (),
    ),
    (
        "what fits goes before what does not, the largest first",
        [image("x", load=12), image("y", load=4, at=5), image("z", load=8, at=6)],
        {A: LaneLoad(1, 8)},
        room(16),
        "z",
        Reason.BACKFILLS,
        (A,),
    ),
    (
        "but not what came too long after it",
        [image("x", load=12), image("y", load=4, at=BACKFILL_S + 1)],
        {A: LaneLoad(1, 8)},
        room(16),
        None,
        Reason.ALL_FULL,
        (A,),
    ),
    (
        "the more important first",
        [image("x", at=5), image("y", at=6, priority=1)],
        {},
        room(8),
        "y",
        Reason.FITS,
        (),
    ),
    (
        "but not before what has waited long enough",
        [image("x", at=5), image("y", at=5 + PRIORITY_STEP_S + 1, priority=1)],
        {},
        room(8),
        "x",
        Reason.FITS,
        (),
    ),
    ("not yet ready", [image("x", ready_at=NOW + 1)], {}, room(8), None, Reason.NOTHING_WAITS, ()),
    ("no limit", [image("x", load=999)], {A: LaneLoad(9, 999)}, {}, "x", Reason.FITS, ()),
    (
        "overcommitted",
        [image("x", load=8)],
        {A: LaneLoad(1, 8)},
        {A: LaneCapacity(8, 16)},
        "x",
        Reason.FITS,
        (),
    ),
]


@pytest.mark.parametrize(
    ("waiting", "loads", "capacities", "key", "reason", "full"),
    [row[1:] for row in TABLE],
    ids=[row[0] for row in TABLE],
)
def test_decisions(waiting, loads, capacities, key, reason, full):
    decision = decide(waiting, loads, capacities, NOW)
    assert (decision.image and decision.image.key, decision.reason, decision.full) == (key, reason, full)


LANES = st.sampled_from([A, B, C])
IMAGES = st.lists(
    st.builds(
        WaitingImage,
        key=st.uuids().map(str),
        lane=LANES,
        load=st.integers(1, 40),
        request_time=st.floats(0, NOW),
        priority=st.integers(-10, 10),
        ready_at=st.sampled_from([0.0, NOW, NOW + 1]),
    ),
    max_size=12,
    unique_by=lambda image: image.key,
)
LOADS = st.dictionaries(LANES, st.builds(LaneLoad, images=st.integers(1, 5), calls=st.integers(1, 60)))
CAPACITIES = st.fixed_dictionaries(
    {lane: st.integers(0, 48).map(lambda calls: LaneCapacity(calls, calls)) for lane in (A, B, C)}
)


def ready(images: list[WaitingImage]) -> list[WaitingImage]:
    return [image for image in images if image.ready_at <= NOW]


@given(IMAGES, LOADS, CAPACITIES)
def test_lane_exceeds_target_only_when_it_would_idle(waiting, loads, capacities):
    decision = decide(waiting, loads, capacities, NOW)
    if decision.image is None:
        return
    load, target = loads.get(decision.image.lane, LaneLoad()), capacities[decision.image.lane].target
    fits = load.calls + decision.image.load <= target
    would_idle = load.calls < target and (decision.image.load > target or load.calls < target / 2)
    assert fits or load.images == 0 or would_idle
    assert decision.image in waiting
    assert decision.image.ready_at <= NOW


@given(IMAGES, LOADS, CAPACITIES)
def test_lane_with_room_does_not_wait_for_large_image(waiting, loads, capacities):
    decision = decide(waiting, loads, capacities, NOW)
    for lane in decision.full:
        first = min((image for image in ready(waiting) if image.lane == lane), key=lambda image: image.order)
        load, target = loads[lane], capacities[lane].target
        assert load.calls >= target or (first.load <= target and load.calls >= target / 2)


@given(IMAGES, LOADS, CAPACITIES)
def test_no_endpoint_idles_while_images_wait(waiting, loads, capacities):
    started, busy = [], dict(loads)
    while (decision := decide(waiting, busy, capacities, NOW)).image is not None:
        started.append(decision.image)
        waiting = [image for image in waiting if image is not decision.image]
        load = busy.get(decision.image.lane, LaneLoad())
        busy[decision.image.lane] = LaneLoad(load.images + 1, load.calls + decision.image.load)
    assert all(image.lane in busy for image in ready(waiting))
    for lane, load in busy.items():
        here = [image for image in ready(waiting) if image.lane == lane]
        first = min(here, key=lambda image: image.order, default=None)
        assert first is None or first.load + load.calls > capacities[lane].target, "what fits does not wait"


@given(IMAGES, LOADS, CAPACITIES, st.randoms())
def test_decision_is_invariant_to_order_of_rows(waiting, loads, capacities, rng):
    shuffled = list(waiting)
    rng.shuffle(shuffled)
    assert decide(shuffled, loads, capacities, NOW) == decide(waiting, loads, capacities, NOW)


@examples(25)
@given(st.integers(1, 40), st.integers(-10, 10), st.integers(1, 2))
def test_backfill_does_not_starve_request(load, priority, per_minute):
    """A stream of small, most important images comes to the endpoint; whatever waits there starts all the same."""
    capacities = {A: LaneCapacity(16, 16)}
    patient = image("patient", load=load, at=0.0, priority=priority)
    waiting, running, now_s = [patient], [], 0.0
    while patient in waiting:
        waiting += [image(f"{now_s:08.0f}-{n}", load=4, at=now_s, priority=10) for n in range(per_minute)]
        running = [ends_s for ends_s in running if ends_s > now_s]
        while True:
            loads = {A: LaneLoad(len(running), 4 * len(running))} if running else {}
            decision = decide(waiting, loads, capacities, now_s)
            if decision.image is None or decision.image is patient:
                break
            waiting.remove(decision.image)
            running.append(now_s + 100.0)
        if decision.image is patient:
            break
        now_s += 60.0
        assert now_s <= 20 * PRIORITY_STEP_S + BACKFILL_S + 600, "twenty steps are the most that lie between two"


def test_endpoint_without_known_capacity_is_ordered_by_its_load():
    loads = {A: LaneLoad(1, 8), B: LaneLoad(1, 4)}
    decision = decide([image("x", A), image("y", B, at=9)], loads, {A: LaneCapacity(), B: LaneCapacity()}, NOW)
    assert decision.image.key == "y"
    assert math.isinf(LaneCapacity().target)


NAMES = st.from_regex(r"[a-z0-9](-?[a-z0-9]){0,3}", fullmatch=True)
LANES = st.builds(Lane, NAMES, st.just("") | NAMES, st.just("") | st.from_regex(r"[0-9]{1,2}", fullmatch=True))


@examples(200)
@given(one=LANES, other=LANES)
def test_lane_names_are_distinct(one, other):
    assert (one.name == other.name) == (one == other)


def test_account_is_not_taken_for_endpoint():
    assert Lane("12", "e").name != Lane("e", account="12").name


WORK = [
    ("nothing", [], {}, room(), 0),
    ("running regions", [], {A: LaneLoad(2, 12)}, room(100), 3),
    ("an image that may start", [image("x", load=8)], {}, room(100), 2),
    ("both", [image("x", load=8)], {A: LaneLoad(2, 12)}, room(100), 5),
    ("no more than the endpoint takes", [image("x", load=800)], {A: LaneLoad(2, 12)}, room(16), 4),
    ("half a region is one", [image("x", load=800)], {}, room(6), 2),
    ("an endpoint without an instance", [image("x", load=8)], {A: LaneLoad(2, 12)}, room(0), 0),
    ("each endpoint by itself", [image("x", B, load=8)], {A: LaneLoad(9, 400)}, room(16, 100), 6),
    ("an image that is not ready", [image("x", ready_at=NOW + 1)], {}, room(100), 0),
    ("no known capacity", [image("x", load=8)], {A: LaneLoad(9, 400)}, {}, 102),
]


@pytest.mark.parametrize(
    ("waiting", "loads", "capacities", "regions"), [row[1:] for row in WORK], ids=[r[0] for r in WORK]
)
def test_work_waiting_is_what_workers_could_process_now(waiting, loads, capacities, regions):
    assert work_waiting(waiting, loads, capacities, 4, NOW) == regions
