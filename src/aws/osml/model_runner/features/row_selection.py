"""Selects the features of an image row of tiles by row of tiles, holding only undecided features.

Features that may affect one another are linked. A connected group of linked features is decided together, when no later
row can add to it. A feature's reach is limited to one tile's size around its tile (``TileSpans.within_reach``), so most
groups close within two rows. A group that spans many rows stays open for as many. The result equals that of ``select``
for all features at once.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from aws.osml.model_runner.api.post_processing import FeatureDistillationAlgorithm

from .box_pairs import PAIRS_AT_ONCE
from .crowding import crowded_tiles
from .detections import Indices
from .seam_merge import MAX_LINKS, connected
from .selection import Comparison, Links, Selection, compared
from .tiled_features import TiledFeatures

# Tolerance for floating point when a feature's lower edge is compared with the start of a row.
_SLACK_PX = 1.0


@dataclass(frozen=True, eq=False)
class Decided:
    """The outcome of one step, as indices of its features.

    ``kept``: features that are delivered, in the order of delivery: by the row that closed their group, then in list
    order. ``open``: undecided features that the next step needs again, sorted. ``selection`` is valid for all but
    ``open``. ``unmerged``: number of features that several tiles cover and that were not compared; see ``crowding``.
    """

    kept: Indices
    open: Indices
    selection: Selection
    unmerged: int = 0


class RowSelection:
    """Selects features in steps. The order of ``Decided.kept`` does not depend on the number of rows per step."""

    def __init__(
        self,
        options: FeatureDistillationAlgorithm | None,
        record_life: Callable[[], None] = lambda: None,
        max_links: int = MAX_LINKS,
    ) -> None:
        """``record_life`` is called repeatedly during a step and raises an error to stop it."""
        self._options = options
        self._max_links = max_links
        self._record_life = record_life
        # For each open feature, in order, the smallest index of its group. Then the links between open features: (2, k)
        # indices of the stronger and the weaker, or None if they are too many.
        self._open_labels = np.zeros(0, dtype=np.intp)
        self._open_links: Links | None = np.zeros((2, 0), dtype=np.intp)

    def step(self, features: TiledFeatures, rows: Indices, last_row: int) -> Decided:
        """Return the outcome for all groups that are closed by the rows of tiles up to ``last_row``.

        ``features``: the open features of the previous step, then those of new rows. ``rows``: (n,) the row of each, an
        index in ``features.spans.row_starts``. Rows must come in this order.
        """
        count = len(rows)
        comparison = compared(features, self._options, record_life=self._record_life)
        if comparison is None:
            return Decided(np.arange(count), np.zeros(0, np.intp), Selection(np.arange(count)))
        comparison, unmerged = self._without_crowded(comparison, features)
        labels, links = self._linked(comparison, count)
        ranking, own = comparison.ranking, rows.astype(np.intp)
        bottoms, margin_px = comparison.pairs.searched[:, 3], comparison.margin_px + _SLACK_PX
        own[ranking] = np.maximum(own[ranking], features.spans.last_rows_within(bottoms, margin_px))
        latest = own.copy()
        np.maximum.at(latest, labels, own)
        # For each feature, the last row that may affect its group.
        closing = latest[labels]
        is_closed = closing <= last_row
        ranks = np.full(count, -1, dtype=np.intp)
        ranks[ranking] = np.arange(len(ranking))
        closed_links = None if links is None else ranks[links[:, is_closed[links[0]]]]
        selection = comparison.selection(is_closed[ranking], closed_links)
        kept = selection.kept[is_closed[selection.kept]]
        still_open = np.flatnonzero(~is_closed)
        # A group is open as a whole, so the feature that its label names is open too.
        self._open_labels = np.searchsorted(still_open, labels[still_open])
        self._open_links = None if links is None else np.searchsorted(still_open, links[:, ~is_closed[links[0]]])
        return Decided(kept[np.argsort(closing[kept], kind="stable")], still_open, selection, unmerged)

    def _without_crowded(self, comparison: Comparison, features: TiledFeatures) -> tuple[Comparison, int]:
        """Return the comparison without the features of crowded tiles, and the number of these."""
        ranking = comparison.ranking
        tiles = features.tiles[ranking]
        crowded = crowded_tiles(comparison.pairs, tiles, comparison.weights, ranking >= len(self._open_labels))
        if not len(crowded):
            return comparison, 0
        left = compared(features, self._options, np.isin(features.tiles, crowded), self._record_life)
        return left or comparison, int(np.isin(tiles, crowded).sum())

    def _linked(self, comparison: Comparison, count: int) -> tuple[Indices, Links | None]:
        """Return for each feature the smallest index of its group, and all links or None if they are too many."""
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
                is_few = links.shape[1] + found.shape[1] <= self._max_links
                links = np.concatenate([links, found], axis=1) if is_few else None
        return labels, links
