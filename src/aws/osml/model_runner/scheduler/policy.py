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

# Smaller images may start before one that does not fit if they came at most so long after it. So the room that is left
# is used, and no image waits for ever: the number of images that may start before it is bounded.
BACKFILL_S = 300.0

# An image that fits an endpoint starts at the latest when less than this share of the target is in use. So a region
# that straggles holds back at most so much of the endpoint.
STRAGGLING_SHARE = 0.5


@dataclass(frozen=True, order=True)
class Lane:
    """What has a capacity of its own: an endpoint, or one of its variants or inference components.

    ``account`` is that of the role under which a SageMaker endpoint is called: another one has other endpoints under
    the same names.
    """

    endpoint: str
    part: str = ""
    account: str = ""

    @property
    def name(self) -> str:
        """The name of the lane in keys of rows: that of the endpoint, and what it is told apart by."""
        name = f"{self.endpoint}#{self.part}" if self.part else self.endpoint
        return f"{self.account}@{name}" if self.account else name


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
    LARGE = "its load fits no endpoint of this size, and there is room"
    STRAGGLERS = "its endpoint would idle behind the last regions of another image"
    BACKFILLS = "its load fits, and that of the image before it does not"
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

    The least loaded lane comes first, by the share of its capacity that is in use; between equals, the lane whose first
    image comes first. ``_reason_to_start`` decides on a lane's first image. If that has to wait, later images of the
    lane that fit may start before it for a while. A lane that starts nothing keeps no other lane from starting.
    """
    lanes = _by_lane(image for image in waiting if image.ready_at <= now_s)
    if not lanes:
        return Decision(None, Reason.NOTHING_WAITS)

    def place(lane: Lane) -> tuple[float, tuple[float, str]]:
        return _share(loads.get(lane, _IDLE), capacities.get(lane, _UNLIMITED)), lanes[lane][0].order

    full: list[Lane] = []
    for lane in sorted(lanes, key=place):
        images, load = lanes[lane], loads.get(lane, _IDLE)
        target = capacities.get(lane, _UNLIMITED).target
        reason = _reason_to_start(images[0], load, target)
        if reason is not None:
            return Decision(images[0], reason, tuple(full))
        full.append(lane)
        image = _backfill(images, target - load.calls)
        if image is not None:
            return Decision(image, Reason.BACKFILLS, tuple(full))
    return Decision(None, Reason.ALL_FULL, tuple(full))


def _reason_to_start(image: WaitingImage, load: LaneLoad, target: float) -> Reason | None:
    """Return why the first image of a lane starts now, or None while it has to wait.

    An image that is larger than the target can never fit, so any room starts it: its load is compared as if it were
    one call. An image that fits waits for its room, but not for stragglers.
    """
    if load.calls + image.load <= target:
        return Reason.FITS
    if load.images == 0:
        return Reason.ALONE
    if load.calls < target < image.load:
        return Reason.LARGE
    if load.calls < STRAGGLING_SHARE * target:
        return Reason.STRAGGLERS
    return None


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


def _backfill(images: Sequence[WaitingImage], room: float) -> WaitingImage | None:
    """Return what starts before a first image that does not fit: the largest that does and came soon enough after it.

    The largest, because the smallest fill the gaps that nothing else fits into.
    """
    latest = images[0].order[0] + BACKFILL_S
    fitting = [image for image in images if image.load <= room and image.order[0] <= latest]
    return max(fitting, key=lambda image: image.load, default=None)
