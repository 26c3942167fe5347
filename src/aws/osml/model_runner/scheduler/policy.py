"""Choice of the next image: a pure function of waiting images, running images, capacities of endpoints, and the time.

Load and capacity are counted in concurrent calls. An image's load is the number of calls that all its regions together
may make at once. So it is an upper bound that falls as its regions end.
"""

import enum
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

# One step of priority is worth this many seconds of waiting. So an image starts before images of the next lower
# priority that came up to ten minutes earlier, and no image waits for ever.
PRIORITY_STEP_S = 600.0

# Smaller images may backfill an image that does not fit if they came at most so long after it. So free capacity is
# used, and no image waits for ever, because a bounded number of images may start before it.
BACKFILL_S = 300.0

# An image smaller than the target starts at the latest when less than this share of the target is in use. So straggling
# regions keep at most this share of the endpoint from other images.
STRAGGLING_SHARE = 0.5


@dataclass(frozen=True, order=True)
class Lane:
    """Unit of capacity: an endpoint, or one of its variants or inference components.

    ``account`` is the account of the role under which a SageMaker endpoint is called. Another account has other
    endpoints under the same names.
    """

    endpoint: str
    part: str = ""
    account: str = ""

    @property
    def name(self) -> str:
        """The name of the lane in keys of rows: ``account@endpoint#part``, without the parts that are empty."""
        name = f"{self.endpoint}#{self.part}" if self.part else self.endpoint
        return f"{self.account}@{name}" if self.account else name


@dataclass(frozen=True)
class WaitingImage:
    """An image that may start from ``ready_at`` on.

    ``load`` is in concurrent calls; a higher ``priority`` is more urgent; times are in epoch seconds.
    """

    key: str
    lane: Lane
    load: int
    request_time: float
    priority: int = 0
    ready_at: float = 0.0

    @property
    def order(self) -> tuple[float, str]:
        """Sort key among the images of a lane; the lowest comes first."""
        return (self.request_time - self.priority * PRIORITY_STEP_S, self.key)


@dataclass(frozen=True)
class LaneLoad:
    """Number of running images in a lane, and of concurrent calls that they may make together."""

    images: int = 0
    calls: int = 0


@dataclass(frozen=True)
class LaneCapacity:
    """Concurrent calls that a lane takes, and the target up to which the scheduler fills it; it may overcommit."""

    calls: float = math.inf
    target: float = math.inf


class Reason(enum.StrEnum):
    """Reason why an image starts, or why images wait."""

    FITS = "its load fits"
    LARGE = "its load fits no endpoint of this size, and there is room"
    STRAGGLERS = "its endpoint would idle behind the last regions of another image"
    BACKFILLS = "its load fits, and that of the image before it does not"
    ALONE = "nothing else runs at its endpoint"
    NOTHING_WAITS = "nothing waits"
    ALL_FULL = "no endpoint has room for what waits"


@dataclass(frozen=True)
class Decision:
    """The image that starts, or None, and the reason; and the lanes whose first image has to wait for room."""

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
    """Return the image of ``waiting`` that starts now.

    The lane with the smallest share of its capacity in use comes first; between equals, the lane whose first image
    comes first. ``_reason_to_start`` decides on a lane's first image. If that image has to wait, later images of the
    lane may backfill. A lane in which no image can start does not affect other lanes.
    """
    lanes: dict[Lane, list[WaitingImage]] = {}
    for image in waiting:
        if image.ready_at <= now_s:
            lanes.setdefault(image.lane, []).append(image)
    if not lanes:
        return Decision(None, Reason.NOTHING_WAITS)
    for images in lanes.values():
        images.sort(key=lambda image: image.order)

    def order(lane: Lane) -> tuple[float, tuple[float, str]]:
        return _share(loads.get(lane, _IDLE), capacities.get(lane, _UNLIMITED)), lanes[lane][0].order

    full: list[Lane] = []
    for lane in sorted(lanes, key=order):
        images, load = lanes[lane], loads.get(lane, _IDLE)
        target = capacities.get(lane, _UNLIMITED).target
        reason = _reason_to_start(images[0], load, target)
        if reason is not None:
            return Decision(images[0], reason, tuple(full))
        full.append(lane)
        backfill = _backfill(images, target - load.calls)
        if backfill is not None:
            return Decision(backfill, Reason.BACKFILLS, tuple(full))
    return Decision(None, Reason.ALL_FULL, tuple(full))


def work_waiting(
    waiting: Iterable[WaitingImage],
    loads: Mapping[Lane, LaneLoad],
    capacities: Mapping[Lane, LaneCapacity],
    calls_per_region: int,
    now_s: float,
) -> int:
    """Return the number of regions that workers could process now: of running images, and of images that may start.

    A lane counts as many regions as its capacity has calls for. So work that waits for a full endpoint, or for an
    endpoint without an instance, requires no further worker. A lane without a known capacity counts all its regions.
    """
    calls = {lane: load.calls for lane, load in loads.items()}
    for image in waiting:
        if image.ready_at <= now_s:
            calls[image.lane] = calls.get(image.lane, 0) + image.load
    usable = (min(count, capacities.get(lane, _UNLIMITED).calls) for lane, count in calls.items())
    return sum(math.ceil(count / calls_per_region) for count in usable)


def _reason_to_start(image: WaitingImage, load: LaneLoad, target: float) -> Reason | None:
    """Return the reason why the first image of a lane starts now, or None while it has to wait.

    An image that is larger than the target can never fit, so it starts when one call is free. An image that fits waits
    for its room, but not for stragglers.
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


def _share(load: LaneLoad, capacity: LaneCapacity) -> float:
    """Return the share of a lane that is in use, where 1 is all; an unknown capacity counts as one call."""
    calls = capacity.calls if math.isfinite(capacity.calls) else 1.0
    return load.calls / max(1.0, calls)


def _backfill(images: Sequence[WaitingImage], room: float) -> WaitingImage | None:
    """Return the image that starts before a first image that does not fit; None when none fits.

    It is the largest that fits and came at most ``BACKFILL_S`` later. Smaller images still fit into smaller gaps.
    """
    latest = images[0].order[0] + BACKFILL_S
    fitting = [image for image in images if image.load <= room and image.order[0] <= latest]
    return max(fitting, key=lambda image: image.load, default=None)
