"""Shares of the look-ahead: an endpoint that never responds keeps no other's messages on the queue."""

from dataclasses import dataclass, field

from hypothesis import given
from hypothesis import strategies as st

from aws.osml.model_runner.database.scheduler_lock import SchedulerState
from aws.osml.model_runner.scheduler.look_ahead import (
    MAX_WAITING,
    LookAhead,
    endpoint_key,
    room_of_an_endpoint,
    waiting_by_endpoint,
)
from aws.osml.model_runner.scheduler.policy import Lane

DEAD, IDLE = Lane("dead"), Lane("idle")


@dataclass
class Turns:
    """Result of the scheduler's last pass."""

    left: SchedulerState = field(default_factory=SchedulerState)

    def state(self) -> SchedulerState:
        return self.left


def look_ahead(turns: Turns, images: int = 500, at: float = 0.0) -> LookAhead:
    return LookAhead(turns, images, lambda: at)  # type: ignore[arg-type]


@given(st.integers(1, 10_000), st.dictionaries(st.text(max_size=3), st.integers(1, 20_000), max_size=50))
def test_each_endpoint_has_own_share_of_look_ahead(images, waiting):
    room = room_of_an_endpoint(images, waiting)
    assert 1 <= room <= images
    assert room >= images // (len(waiting) + 1)
    greedy = {name: 10 * count + images for name, count in waiting.items()}
    assert room_of_an_endpoint(images, greedy) >= max(1, images // (len(waiting) + 1))


def test_message_of_600_images_shuts_its_own_endpoint_only():
    ahead = look_ahead(Turns())
    assert ahead.take(DEAD, 600)
    assert not ahead.take(DEAD, 1)
    assert not ahead.is_full()
    assert [ahead.take(IDLE, 1) for _ in range(100)] == [True] * 100


def test_look_ahead_counts_variant_to_its_endpoint():
    waiting = waiting_by_endpoint([Lane("dead", "blue")] * 400 + [Lane("dead", account="1")])
    assert waiting == {endpoint_key(DEAD): 400, endpoint_key(Lane("dead", account="1")): 1}
    ahead = look_ahead(Turns(SchedulerState(waiting=401, waiting_for=waiting)))
    assert not ahead.take(Lane("dead", "green"), 1)
    assert ahead.take(Lane("dead", account="1"), 1)


def test_no_message_is_received_beyond_snapshot_limit():
    assert look_ahead(Turns(SchedulerState(waiting=MAX_WAITING))).is_full()
    assert not look_ahead(Turns(SchedulerState(waiting=MAX_WAITING - 1))).is_full()
