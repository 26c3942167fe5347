"""Which image starts next: one pure function of what waits, what runs, what endpoints take, and the time.

Load and capacity are counted in calls at once. An image's load is what its regions may call at once, all together, so
it is an upper bound that falls as its regions end.
"""

import enum
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

# One step of priority is worth this many seconds of waiting. So a step up overtakes what came a little before, and
# nothing waits for ever behind what is more important.
PRIORITY_STEP_S = 600.0

# Smaller images may go before one that does not fit if they came at most so long after it. So the room beside a large
# image is used, and its lane is kept free for the next large one before that has waited for ever: those that may
# overtake it are so many and no more.
OVERTAKING_S = 300.0


@dataclass(frozen=True, order=True)
class Lane:
    """What has a capacity of its own: an endpoint, or one of its variants or inference components."""

    endpoint: str
    part: str = ""


@dataclass(frozen=True)
class WaitingImage:
    """An image that may start from ``ready_at`` on.

    ``load`` is in calls at once; ``priority`` is higher for what is more urgent; times are in epoch seconds.
    """

    key: str
    lane: Lane
    load: int
    request_time: float
    priority: int = 0
    ready_at: float = 0.0

    @property
    def order(self) -> tuple[float, str]:
        """What comes first among the images of a lane: the lowest."""
        return (self.request_time - self.priority * PRIORITY_STEP_S, self.key)


@dataclass(frozen=True)
class LaneLoad:
    """What runs in a lane: so many images, that may make so many calls at once."""

    images: int = 0
    calls: int = 0


@dataclass(frozen=True)
class LaneCapacity:
    """How many calls at once a lane takes, and how many of them the scheduler may fill: more where it overcommits."""

    calls: float = math.inf
    target: float = math.inf


class Reason(enum.StrEnum):
    """Why an image starts, or why none does."""

    FITS = "its load fits"
    OVERTAKES = "its load fits, and that of the one before it does not"
    ALONE = "nothing else runs at its endpoint"
    NOTHING_WAITS = "nothing waits"
    ALL_FULL = "no endpoint has room for what waits"


@dataclass(frozen=True)
class Decision:
    """What starts, if anything, and why; and the lanes whose first image had to wait for want of room."""

    image: WaitingImage | None
    reason: Reason
    full: tuple[Lane, ...] = ()


_IDLE = LaneLoad()
_UNLIMITED = LaneCapacity()


def decide(
    waiting: Iterable[WaitingImage],
    loads: Mapping[Lane, LaneLoad],
    capacities: Mapping[Lane, LaneCapacity],
    now_s: float,
) -> Decision:
    """Return which of ``waiting`` starts now.

    The least loaded lane comes first, by the share of its capacity that is in use; between equals, the one whose first
    image comes first. A lane starts its first image if that fits below the target, or if nothing runs there, however
    large it is. If it does not fit, later images of the lane that do may go before it for a while; then the lane is
    kept for it. A lane that starts nothing keeps no other from starting.
    """
    lanes = _by_lane(image for image in waiting if image.ready_at <= now_s)
    if not lanes:
        return Decision(None, Reason.NOTHING_WAITS)

    def place(lane: Lane) -> tuple[float, tuple[float, str]]:
        return _share(loads.get(lane, _IDLE), capacities.get(lane, _UNLIMITED)), lanes[lane][0].order

    full: list[Lane] = []
    for lane in sorted(lanes, key=place):
        images, load = lanes[lane], loads.get(lane, _IDLE)
        room = capacities.get(lane, _UNLIMITED).target - load.calls
        if images[0].load <= room:
            return Decision(images[0], Reason.FITS, tuple(full))
        if load.images == 0:
            return Decision(images[0], Reason.ALONE, tuple(full))
        full.append(lane)
        image = _overtaker(images, room)
        if image is not None:
            return Decision(image, Reason.OVERTAKES, tuple(full))
    return Decision(None, Reason.ALL_FULL, tuple(full))


def _by_lane(waiting: Iterable[WaitingImage]) -> dict[Lane, list[WaitingImage]]:
    lanes: dict[Lane, list[WaitingImage]] = {}
    for image in waiting:
        lanes.setdefault(image.lane, []).append(image)
    for images in lanes.values():
        images.sort(key=lambda image: image.order)
    return lanes


def _share(load: LaneLoad, capacity: LaneCapacity) -> float:
    """Return how much of a lane is in use, where 1 is all; a lane without a known capacity counts as one call."""
    calls = capacity.calls if math.isfinite(capacity.calls) else 1.0
    return load.calls / max(1.0, calls)


def _overtaker(images: Sequence[WaitingImage], room: float) -> WaitingImage | None:
    """Return what goes before a first image that does not fit: the largest that does and came soon enough after it.

    The largest, because the smallest fill the gaps that nothing else fits into.
    """
    latest = images[0].order[0] + OVERTAKING_S
    fitting = [image for image in images if image.load <= room and image.order[0] <= latest]
    return max(fitting, key=lambda image: image.load, default=None)
