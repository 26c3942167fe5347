"""Non-maximum suppression and Soft-NMS over arrays, with the results of the textbook's loops over all pairs.

Both take boxes by falling score and compare only boxes of one category. At most ``pairs_at_once`` candidate pairs are
in memory at a time, unless a single box has more.
"""

import heapq
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from .box_pairs import PAIRS_AT_ONCE, BoxPairs
from .detections import Floats, Indices

Flags = NDArray[np.bool_]

# Maximum number of pairs that Soft-NMS keeps, 16 bytes each.
_MAX_KEPT = 4_000_000


def suppress(
    count: int,
    batches: Iterable[tuple[int, int]],
    removals: Callable[[Indices], tuple[Indices, Indices]],
    is_query: Flags | None = None,
) -> Indices:
    """Return for each of ``count`` items the first item that suppresses it, or itself.

    Items are numbered by falling score. For some items, ``removals`` returns the pairs (stronger, weaker) in which the
    first would suppress the second, sorted by the first. It is called once for each of the [start, end) in
    ``batches``. Suppressed items do not suppress others, nor do items without the flag ``is_query``.
    """
    suppressed_by = list(range(count))
    may_suppress = [True] * count if is_query is None else is_query.tolist()
    for start, end in batches:
        alive = [item for item in range(start, end) if may_suppress[item] and suppressed_by[item] == item]
        stronger, weaker = removals(np.array(alive, dtype=np.intp))
        # Pairs are sorted by the stronger item, so it is decided before it suppresses others.
        for i, j in zip(stronger.tolist(), weaker.tolist(), strict=True):
            if suppressed_by[i] == i and suppressed_by[j] == j:
                suppressed_by[j] = i
    return np.array(suppressed_by, dtype=np.intp)


def suppress_linked(count: int, links: NDArray[np.intp]) -> Indices:
    """Return the result of ``suppress`` for known pairs: (2, k), stronger and weaker items."""
    stronger, weaker = links[:, np.argsort(links[0], kind="stable")]
    return suppress(count, [(0, count)], lambda _: (stronger, weaker))


def nms(
    pairs: BoxPairs, iou_threshold: float, pairs_at_once: int = PAIRS_AT_ONCE, is_query: Flags | None = None
) -> Indices:
    """Return for each box the index of the box that suppresses it, or its own index: (n,).

    A box that is kept suppresses weaker boxes of its category whose IoU with it is above the threshold. The boxes of
    ``pairs`` are sorted by falling score. Only boxes with ``is_query`` suppress others.
    """

    def removals(queries: Indices) -> tuple[Indices, Indices]:
        stronger, weaker, iou = pairs.overlapping(queries)
        is_removal = (stronger < weaker) & (iou > iou_threshold)
        return stronger[is_removal], weaker[is_removal]

    return suppress(len(pairs), pairs.batches(pairs_at_once), removals, is_query)


def soft_nms(
    boxes: Floats,
    categories: Indices,
    scores: Floats,
    sigma: float,
    skip_box_threshold: float,
    pairs_at_once: int = PAIRS_AT_ONCE,
    searched: Floats | None = None,
    record_life: Callable[[], None] = lambda: None,
    max_kept: int = _MAX_KEPT,
) -> tuple[Flags, Floats]:
    """Return which boxes are kept, and their scores, when each box lowers the scores of weaker boxes: Soft-NMS.

    In a loop, the box with the highest score is settled; of equals the first. It multiplies the score of every box that
    is not settled by exp(-IoU² / sigma). A box is kept if its score is above
    ``skip_box_threshold`` when it is settled (Bodla et al., Soft-NMS, 2017, equation 4).
    ``boxes`` (n, 4), ``categories`` (n,) and ``scores`` (n,) are sorted by falling score; so are the results, (n,).
    ``searched`` and ``record_life``: see ``BoxPairs``. At most ``max_kept`` pairs are kept until they are used; other
    pairs are searched a second time.
    """
    pairs = BoxPairs(boxes, categories, searched, record_life)
    run = _SoftRun(pairs, scores.tolist(), sigma, skip_box_threshold, max_kept)
    for start, end in pairs.batches(pairs_at_once):
        run.settle_above(scores[start])
        open_boxes = run.admit(start, end)
        run.link(*pairs.overlapping(np.array(open_boxes, dtype=np.intp)))
    run.settle_above(-np.inf)
    return np.array(run.is_settled, dtype=np.bool_), np.array(run.scores, dtype=np.float64)


@dataclass
class _SoftRun:
    """State of a Soft-NMS.

    Boxes are admitted by falling initial score, so each box with a score above that of the next can be settled. A box
    whose score falls to the threshold is dropped, because it can only lower scores that are below the threshold too.
    """

    pairs: BoxPairs
    scores: list[float]
    sigma: float
    threshold: float
    max_kept: int
    is_settled: list[bool] = field(init=False)
    _admitted: int = 0
    _heap: list[tuple[float, int]] = field(default_factory=list)
    _neighbours: dict[int, tuple[Indices, Floats]] = field(default_factory=dict)
    _kept: int = 0
    _found_again: set[int] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.is_settled = [False] * len(self.scores)

    def admit(self, start: int, end: int) -> list[int]:
        """Queue the boxes of [start, end) that score above the threshold, and return them."""
        self._admitted = end
        admitted = [box for box in range(start, end) if self.scores[box] > self.threshold]
        for box in admitted:
            heapq.heappush(self._heap, (-self.scores[box], box))
        return admitted

    def link(self, first: Indices, second: Indices, iou: Floats) -> None:
        """Store the factor by which each box of ``first``, which is sorted, multiplies its neighbour's score."""
        owners, starts = np.unique(first, return_index=True)
        if self._kept + len(first) > self.max_kept:
            self._found_again.update(owners.tolist())
            return
        self._kept += len(first)
        decay = np.exp(-(iou**2) / self.sigma)
        parts = pairwise([*starts.tolist(), len(first)])
        for owner, (start, end) in zip(owners.tolist(), parts, strict=True):
            self._neighbours[owner] = second[start:end], decay[start:end]

    def settle_above(self, score: float) -> None:
        """Settle the box with the highest score, again and again, while it is at least this score."""
        while self._heap and -self._heap[0][0] >= score:
            negative, box = heapq.heappop(self._heap)
            is_outdated = -negative != self.scores[box]
            if not is_outdated and not self.is_settled[box]:
                self.is_settled[box] = True
                self._weaken_neighbours(box)

    def _weaken_neighbours(self, box: int) -> None:
        if box in self._found_again:
            self._found_again.remove(box)
            _, others, iou = self.pairs.overlapping(np.array([box], dtype=np.intp))
            decays = np.exp(-(iou**2) / self.sigma)
        elif box in self._neighbours:
            others, decays = self._neighbours.pop(box)
            self._kept -= len(others)
        else:
            return
        for other, decay in zip(others.tolist(), decays.tolist(), strict=True):
            if self.is_settled[other]:
                continue
            self.scores[other] *= decay
            if other < self._admitted and self.scores[other] > self.threshold:
                heapq.heappush(self._heap, (-self.scores[other], other))
