"""Non-maximum suppression and its soft sibling over arrays, equal to the textbook's loops over all pairs.

Both take boxes in the order in which they are to be considered, strongest first, and compare within a category only.
No more than ``pairs_at_once`` candidate pairs are in memory together, unless a single box has more.
"""

import heapq
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from .box_pairs import PAIRS_AT_ONCE, BoxPairs
from .scored_boxes import Floats, Indices

Flags = NDArray[np.bool_]

# How many pairs a soft suppression keeps: 16 bytes each.
_MOST_KEPT = 4_000_000


def suppress(
    count: int,
    batches: Iterable[tuple[int, int]],
    removals: Callable[[Indices], tuple[Indices, Indices]],
    is_asked: Flags | None = None,
) -> Indices:
    """Return for each of ``count`` items the first that removes it, or itself where none does.

    Items are numbered from the strongest on. ``removals`` returns, for some of them, the pairs (stronger, weaker) of
    what each would remove, rising in the stronger; ``batches`` are the [start, end) for which it is asked at a time.
    One that is removed removes none, nor does one that is not ``is_asked``.
    """
    standing = list(range(count))
    asked = [True] * count if is_asked is None else is_asked.tolist()
    for start, end in batches:
        alive = [item for item in range(start, end) if asked[item] and standing[item] == item]
        stronger, weaker = removals(np.array(alive, dtype=np.intp))
        # Pairs rise in the stronger one, so its fate is settled before it decides on another's.
        for i, j in zip(stronger.tolist(), weaker.tolist(), strict=True):
            if standing[i] == i and standing[j] == j:
                standing[j] = i
    return np.array(standing, dtype=np.intp)


def suppress_linked(count: int, links: NDArray[np.intp]) -> Indices:
    """Return what ``suppress`` does where all pairs are known: (2, k), of the stronger and the weaker."""
    stronger, weaker = links[:, np.argsort(links[0], kind="stable")]
    return suppress(count, [(0, count)], lambda _: (stronger, weaker))


def nms(boxes: Floats, categories: Indices, iou_threshold: float, pairs_at_once: int = PAIRS_AT_ONCE) -> Indices:
    """Return for each box the one that removes it, or itself: each that stays removes the weaker ones that it overlaps.

    That is, those with IoU above the threshold. ``boxes`` (n, 4) and ``categories`` (n,) are in falling order of
    strength; so is the result, (n,).
    """
    return hard_suppression_of(BoxPairs(boxes, categories), iou_threshold, pairs_at_once)


def hard_suppression_of(
    pairs: BoxPairs, iou_threshold: float, pairs_at_once: int = PAIRS_AT_ONCE, is_asked: Flags | None = None
) -> Indices:
    """Return what ``nms`` does, for pairs that are found already; only ``is_asked`` remove others."""

    def removals(queries: Indices) -> tuple[Indices, Indices]:
        stronger, weaker, iou = pairs.overlapping(queries)
        is_removal = (stronger < weaker) & (iou > iou_threshold)
        return stronger[is_removal], weaker[is_removal]

    return suppress(len(pairs), pairs.batches(pairs_at_once), removals, is_asked)


def soft_nms(
    boxes: Floats,
    categories: Indices,
    scores: Floats,
    sigma: float,
    skip_box_threshold: float,
    pairs_at_once: int = PAIRS_AT_ONCE,
    searched: Floats | None = None,
    note: Callable[[], None] = lambda: None,
    most_kept: int = _MOST_KEPT,
) -> tuple[Flags, Floats]:
    """Return which boxes stay, and their scores, when each lowers the weaker ones instead of removing them.

    Again and again the strongest box is set aside and multiplies the score of every other that is left by
    exp(-IoU² / sigma); among equals the first counts as stronger. A box stays if its score is above
    ``skip_box_threshold`` when its turn comes (Bodla et al., Soft-NMS, 2017, equation 4).
    ``boxes`` (n, 4), ``categories`` (n,) and ``scores`` (n,) are in falling order of score; so are the results, (n,).
    ``searched`` and ``note``: see ``BoxPairs``. No more than ``most_kept`` pairs are kept until they count; others are
    found again.
    """
    pairs = BoxPairs(boxes, categories, searched, note)
    run = _SoftRun(pairs, scores.tolist(), sigma, skip_box_threshold, most_kept)
    for start, end in pairs.batches(pairs_at_once):
        run.settle_above(scores[start])
        open_boxes = run.admit(start, end)
        run.link(*pairs.overlapping(np.array(open_boxes, dtype=np.intp)))
    run.settle_above(-np.inf)
    return np.array(run.is_settled, dtype=np.bool_), np.array(run.scores, dtype=np.float64)


@dataclass
class _SoftRun:
    """A soft suppression under way.

    Boxes are admitted in falling order of their first score, so whatever scores above the next to come can be
    settled. A box whose score falls to the threshold can lower only scores that are below it too: it is forgotten.
    """

    pairs: BoxPairs
    scores: list[float]
    sigma: float
    threshold: float
    most_kept: int
    is_settled: list[bool] = field(init=False)
    _admitted: int = 0
    _heap: list[tuple[float, int]] = field(default_factory=list)
    _neighbours: dict[int, tuple[Indices, Floats]] = field(default_factory=dict)
    _kept: int = 0
    _found_again: set[int] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.is_settled = [False] * len(self.scores)

    def admit(self, start: int, end: int) -> list[int]:
        """Queue the boxes [start, end) that still count, and return them."""
        self._admitted = end
        admitted = [box for box in range(start, end) if self.scores[box] > self.threshold]
        for box in admitted:
            heapq.heappush(self._heap, (-self.scores[box], box))
        return admitted

    def link(self, first: Indices, second: Indices, iou: Floats) -> None:
        """Remember what each box of ``first``, which rises, does to its neighbour of ``second``."""
        owners, starts = np.unique(first, return_index=True)
        if self._kept + len(first) > self.most_kept:
            self._found_again.update(owners.tolist())
            return
        self._kept += len(first)
        decay = np.exp(-(iou**2) / self.sigma)
        parts = pairwise([*starts.tolist(), len(first)])
        for owner, (start, end) in zip(owners.tolist(), parts, strict=True):
            self._neighbours[owner] = second[start:end], decay[start:end]

    def settle_above(self, score: float) -> None:
        """Set aside the strongest box, again and again, while it scores at least this much."""
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
