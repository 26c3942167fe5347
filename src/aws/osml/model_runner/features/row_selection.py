"""Selects the features of an image while its rows of tiles come in, without holding more than what is undecided.

Features that may have an influence on one another are linked, and those that hang together through links are decided
together, by the algorithm itself: they are closed when no row that is still to come can add to them. A feature reaches
no farther than one tile's size beyond its own tile, see ``TileSpans.within_reach``, so most close within two rows of
tiles; what hangs together over many rows stays open for as many. The result is what ``select`` finds for all features
at once.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from aws.osml.model_runner.api.post_processing import FeatureDistillationAlgorithm

from .box_pairs import PAIRS_AT_ONCE
from .crowding import crowded_tiles
from .scored_boxes import Indices
from .seam_merge import MOST_LINKS, connected
from .selection import Comparison, Links, Selection, compared
from .tiled_features import TiledFeatures

# Noise of floating point, when a feature's end is compared with a row's beginning.
_SLACK_PX = 1.0


@dataclass(frozen=True, eq=False)
class Decided:
    """What is decided of the features of one step, by their indices.

    ``unmerged``: how many of them more than one tile may have seen, and were not compared: see ``crowding``.
    ``kept``: those that are delivered, in the order in which they are: by the row at which they closed, then in the
    order of the list. ``open``: those that have to be given again at the next step, rising. ``selection`` holds for
    all but these.
    """

    kept: Indices
    open: Indices
    selection: Selection
    unmerged: int = 0


class RowSelection:
    """Selects features step by step; the order of ``Decided.kept`` does not depend on how rows make up steps."""

    def __init__(
        self,
        options: FeatureDistillationAlgorithm | None,
        note: Callable[[], None] = lambda: None,
        most_links: int = MOST_LINKS,
    ) -> None:
        """``note`` is called now and then, while a step goes on."""
        self._options = options
        self._most_links = most_links
        self._note = note
        # Of the features that were left open, in their order: of all that hang together the least index; and the links
        # between them, (2, k) indices of the stronger and the weaker, or None where they are too many.
        self._open_labels = np.zeros(0, dtype=np.intp)
        self._open_links: Links | None = np.zeros((2, 0), dtype=np.intp)

    def step(self, features: TiledFeatures, rows: Indices, last_row: int) -> Decided:
        """Return what can be decided when all rows of tiles up to ``last_row`` have been given.

        ``features`` are those that the step before has left open, and then those of new rows; ``rows``: (n,) the row
        of each. Rows are counted as ``features.spans.row_starts`` has them, and are given in this order.
        """
        count = len(rows)
        comparison = compared(features, self._options, note=self._note)
        if comparison is None:
            return Decided(np.arange(count), np.zeros(0, np.intp), Selection(np.arange(count)))
        comparison, unmerged = self._not_crowded(comparison, features)
        labels, links = self._linked(comparison, count)
        closing = _closing_rows(comparison, features, rows, labels)
        is_closed = closing <= last_row
        ranking = comparison.ranking
        closed_links = None if links is None else _places_in(ranking, count)[links[:, is_closed[links[0]]]]
        selection = comparison.selection(is_closed[ranking], closed_links)
        kept = selection.kept[is_closed[selection.kept]]
        still_open = np.flatnonzero(~is_closed)
        # What hangs together is open together, so every label is among those that stay.
        self._open_labels = np.searchsorted(still_open, labels[still_open])
        self._open_links = None if links is None else np.searchsorted(still_open, links[:, ~is_closed[links[0]]])
        return Decided(kept[np.argsort(closing[kept], kind="stable")], still_open, selection, unmerged)

    def _not_crowded(self, comparison: Comparison, features: TiledFeatures) -> tuple[Comparison, int]:
        """Return the comparison without the features of crowded tiles, and how many these are."""
        ranking = comparison.ranking
        tiles = features.tiles[ranking]
        crowded = crowded_tiles(comparison.pairs, tiles, comparison.weights, ranking >= len(self._open_labels))
        if not len(crowded):
            return comparison, 0
        left = compared(features, self._options, np.isin(features.tiles, crowded), self._note)
        return left or comparison, int(np.isin(tiles, crowded).sum())

    def _linked(self, comparison: Comparison, count: int) -> tuple[Indices, Links | None]:
        """Return for each feature the least index of those that it hangs together with, and all links of these."""
        links = self._open_links
        carried, ranking = len(self._open_labels), comparison.ranking
        labels: Indices = np.concatenate([self._open_labels, np.arange(carried, count)])
        is_new = ranking >= carried
        for start, end in comparison.pairs.batches(PAIRS_AT_ONCE):
            queries = start + np.flatnonzero(is_new[start:end])
            first, second = comparison.pairs.touching_new(queries, is_new)
            if links is None:
                is_news = labels[ranking[first]] != labels[ranking[second]]
                first, second = first[is_news], second[is_news]
            is_linked = comparison.linked(first, second)
            found = ranking[np.stack([first[is_linked], second[is_linked]])]
            labels = connected(labels, *found)
            if links is not None:
                is_few = links.shape[1] + found.shape[1] <= self._most_links
                links = np.concatenate([links, found], axis=1) if is_few else None
        return labels, links


def _places_in(ranking: Indices, count: int) -> Indices:
    """Return for each of all features its place in the ranking; -1 for those that are not in it."""
    places = np.full(count, -1, dtype=np.intp)
    places[ranking] = np.arange(len(ranking))
    return places


def _closing_rows(comparison: Comparison, features: TiledFeatures, rows: Indices, labels: Indices) -> Indices:
    """Return for each feature the last row that may concern it, or any that it hangs together with."""
    own, ranking = rows.astype(np.intp), comparison.ranking
    bottoms, margin_px = comparison.pairs.searched[:, 3], comparison.margin_px + _SLACK_PX
    own[ranking] = np.maximum(own[ranking], features.spans.last_rows_within(bottoms, margin_px))
    latest = own.copy()
    np.maximum.at(latest, labels, own)
    found: Indices = latest[labels]
    return found
