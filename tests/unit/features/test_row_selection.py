"""Selection row by row equals selection of all rows at once, in an order that depends on rows alone."""

import math
from unittest import mock

import numpy as np
import pytest
import shapely
from hypothesis import given
from hypothesis import strategies as st

from aws.osml.model_runner.api.post_processing import (
    FeatureDistillationNMS,
    FeatureDistillationNone,
    FeatureDistillationSeam,
    FeatureDistillationSoftNMS,
    SeamMerge,
)
from aws.osml.model_runner.features import crowding
from aws.osml.model_runner.features.box_pairs import BoxPairs
from aws.osml.model_runner.features.detections import Detections, Kind
from aws.osml.model_runner.features.nms import soft_nms
from aws.osml.model_runner.features.row_selection import RowSelection
from aws.osml.model_runner.features.selection import compared, select
from aws.osml.model_runner.features.tile_spans import TileSpans
from aws.osml.model_runner.features.tiled_features import TiledFeatures
from examples import examples

TILE, STRIDE, COLUMNS, ROWS = 60, 40, 3, 6
# In reading order, which is the order of the walk.
FRAMES = np.array(
    [(x * STRIDE, y * STRIDE, x * STRIDE + TILE, y * STRIDE + TILE) for y in range(ROWS) for x in range(COLUMNS)],
    dtype=np.float64,
)
ALGORITHMS = [
    FeatureDistillationSeam(),
    FeatureDistillationSeam(merge=SeamMerge.UNION),
    FeatureDistillationSeam(iou_threshold=0.1, is_class_agnostic=True, distance_px=6.0),
    FeatureDistillationNMS(iou_threshold=0.3),
    FeatureDistillationNMS(iou_threshold=0.1, skip_box_threshold=0.25),
    FeatureDistillationSoftNMS(sigma=0.3, skip_box_threshold=0.2),
    FeatureDistillationNone(),
    None,
]


def tiled(tiles, shapes, scores, categories, indices=None):
    """Return the features with these indices, in this order."""
    chosen = np.arange(len(tiles)) if indices is None else np.asarray(indices, dtype=np.intp)
    boxes = np.array([shape.bounds if shape else (math.nan,) * 4 for shape in shapes]).reshape(-1, 4)
    kinds = [
        {"Point": Kind.POINT, "LineString": Kind.LINE}.get(shape.geom_type, Kind.BOX) if shape else Kind.BOX
        for shape in shapes
    ]
    everything = np.array(shapes, dtype=object)
    return TiledFeatures(
        Detections(
            boxes[chosen],
            np.array(scores, float)[chosen],
            np.array(categories, np.intp)[chosen],
            np.array(kinds, np.int8)[chosen],
            np.zeros(len(chosen), np.uint32),
            [str(number) for number in range(1 + max(categories, default=0))],
        ),
        np.array(tiles, np.intp)[chosen],
        FRAMES,
        lambda places: everything[chosen[places]],
        TileSpans.of(FRAMES),
    )


@st.composite
def scenes(draw):
    """Return (tiles, shapes, scores, categories): things, and what other tiles, near or far, report of them."""
    found = []
    for _ in range(draw(st.integers(0, 10))):
        x, y = draw(st.integers(0, 140)), draw(st.integers(0, 260))
        # A few are far larger than a tile.
        width, height = (draw(st.sampled_from([2, 9, 18, 30, 75, 200])) for _ in range(2))
        form = draw(st.sampled_from(["box", "box", "box", "line", "point", "none"]))
        shape = {
            "box": shapely.box(x, y, x + width, y + height),
            "line": shapely.LineString([(x, y), (x + width, y + height)]),
            "point": shapely.Point(x, y),
            "none": None,
        }[form]
        category = draw(st.integers(0, 1))
        for tile in draw(st.lists(st.integers(0, len(FRAMES) - 1), min_size=1, max_size=4)):
            seen = shape
            if form == "box" and draw(st.booleans()):
                cut = shapely.intersection(shape, shapely.box(*FRAMES[tile]))
                seen = cut if cut.area else shape
            found.append((tile, seen, draw(st.sampled_from([0.1, 0.5, 0.7, math.nan])), category))
    found.sort(key=lambda one: one[0])
    return tuple(list(column) for column in zip(*found, strict=True)) if found else ([], [], [], [])


def in_steps(scene, options, last_rows, **arguments):
    """Return the delivered features in order: score, suppressed features, and whether they are joined."""
    tiles = np.array(scene[0], np.intp)
    rows = tiles // COLUMNS
    selection, carried, delivered, most = RowSelection(options, **arguments), [], [], 0
    first = 0
    for last in last_rows:
        at_hand = [*carried, *np.flatnonzero((rows >= first) & (rows <= last)).tolist()]
        decided = selection.step(tiled(*scene, at_hand), rows[at_hand], last)
        for index in decided.kept.tolist():
            absorbed = [at_hand[other] for other in decided.selection.absorbed.get(index, ())]
            score = decided.selection.scores.get(index)
            delivered.append((at_hand[index], score, absorbed, index in decided.selection.joined))
        carried, first = [at_hand[index] for index in decided.open.tolist()], last + 1
        most = max(most, len(carried))
    assert carried == []
    return delivered, most


def plainly(scene, options):
    """Return what ``in_steps`` does: all at once, and put in order by walking from one to whatever is linked to it."""
    features = tiled(*scene)
    selection = select(features, options)
    comparison = compared(features, options)
    closing = [tile // COLUMNS for tile in scene[0]]
    neighbours = {index: [index] for index in range(len(closing))}
    if comparison is not None:
        ranking = comparison.ranking.tolist()
        searched = comparison.pairs.searched
        for place, index in enumerate(ranking):
            for row in range(closing[index], ROWS):
                # A tile of this row may report what reaches a tile's height above it.
                if row * STRIDE - TILE - comparison.margin_px - 1 <= searched[place][3]:
                    closing[index] = row
            for other in range(place + 1, len(ranking)):
                is_near = shapely.box(*searched[place]).intersects(shapely.box(*searched[other]))
                is_same_class = options_class(comparison, place, other)
                if is_near and is_same_class and comparison.linked(np.array([place]), np.array([other]))[0]:
                    neighbours[index].append(ranking[other])
                    neighbours[ranking[other]].append(index)

    def closes(index):
        reached, to_visit = set(), [index]
        while to_visit:
            found = to_visit.pop()
            if found not in reached:
                reached.add(found)
                to_visit += neighbours[found]
        return max(closing[other] for other in reached)

    return [
        (index, selection.scores.get(index), selection.absorbed.get(index, []), index in selection.joined)
        for index in sorted(selection.kept.tolist(), key=lambda index: (closes(index), index))
    ]


def options_class(comparison, place, other):
    categories = comparison.pairs.categories
    return categories[place] == categories[other]


@examples(150)
@given(
    scene=scenes(),
    options=st.sampled_from(ALGORITHMS),
    ends=st.sets(st.integers(0, ROWS - 2)),
)
def test_selection_row_by_row_equals_selection_at_once(scene, options, ends):
    expected = plainly(scene, options)
    assert in_steps(scene, options, [*sorted(ends), ROWS - 1])[0] == expected
    assert in_steps(scene, options, range(ROWS))[0] == expected
    assert in_steps(scene, options, [ROWS - 1])[0] == expected
    assert in_steps(scene, options, range(ROWS), max_links=1)[0] == expected


@examples(60)
@given(scene=scenes(), options=st.sampled_from(ALGORITHMS[:6]), ends=st.sets(st.integers(0, ROWS - 2)))
def test_which_tiles_are_crowded_does_not_depend_on_steps(scene, options, ends):
    with mock.patch.multiple(crowding, FREE_WORK=2, WORK_PER_WEIGHT=0):
        expected = in_steps(scene, options, [ROWS - 1])[0]
        assert in_steps(scene, options, range(ROWS))[0] == expected
        assert in_steps(scene, options, [*sorted(ends), ROWS - 1])[0] == expected


def crowd(count, slivers=0):
    """Return a scene of the first column: one tile with much on one spot, and ships that two tiles saw each."""
    spot = [shapely.box(5, 42, 30, 55)] * count
    spot += [shapely.box(5 + i * 45 / slivers, 41, 6 + i * 45 / slivers, 58) for i in range(slivers)]
    spot += [shapely.box(1, 42 + i * 16 / slivers, 58, 42.5 + i * 16 / slivers) for i in range(slivers)]
    found = [(0, shape, 0.4, 0) for shape in spot]
    for row in range(ROWS - 1):
        ship = shapely.box(45, row * STRIDE + 44, 55, row * STRIDE + 54)
        found += [(tile, ship, 0.9, 1) for tile in (row * COLUMNS, (row + 1) * COLUMNS)]
    found.sort(key=lambda one: one[0])
    return tuple(list(column) for column in zip(*found, strict=True))


@pytest.mark.parametrize("scene", [crowd(400), crowd(0, 250)], ids=["identical", "crossing"])
@pytest.mark.parametrize("options", [*ALGORITHMS[:2], *ALGORITHMS[3:6:2]], ids=["seam", "union", "nms", "soft"])
def test_crowded_tile_is_delivered_unmerged_and_every_other_is_merged(scene, options, monkeypatch):
    monkeypatch.setattr(crowding, "FREE_WORK", 20_000)
    looked_at, notes = [], []
    touching = BoxPairs.touching

    def counted(self, queries):
        found = touching(self, queries)
        looked_at.append(len(found[0]))
        return found

    monkeypatch.setattr(BoxPairs, "touching", counted)
    delivered, _ = in_steps(scene, options, range(ROWS), record_life=lambda: notes.append(1))
    # Each ship once, and one more that the crowded tile saw too.
    assert len(delivered) == scene[0].count(0) + ROWS - 1
    assert sum(looked_at) < 100
    assert len(notes) >= ROWS


def test_pairs_that_soft_suppression_does_not_keep_are_found_again():
    rng = np.random.default_rng(1)
    low = rng.uniform(0, 50, (300, 2))
    boxes = np.hstack([low, low + rng.uniform(5, 30, (300, 2))])
    scores = np.sort(rng.uniform(0, 1, 300))[::-1]
    arguments = boxes, np.zeros(300, np.intp), scores, 0.5, 0.05, 500
    expected = soft_nms(*arguments)
    for max_kept in (0, 1000):
        np.testing.assert_array_equal(soft_nms(*arguments, max_kept=max_kept), expected)


def column_of(boxes):
    """Return a scene of one column of tiles, each of which reports these boxes relative to its own top."""
    tiles = [row * COLUMNS for row in range(ROWS) for _ in boxes]
    shapes = [
        shapely.box(x0, row * STRIDE + y0, x1, row * STRIDE + y1) for row in range(ROWS) for x0, y0, x1, y1 in boxes
    ]
    return tiles, shapes, [0.5] * len(tiles), [0] * len(tiles)


@pytest.mark.parametrize("options", ALGORITHMS[:6])
def test_only_features_near_later_rows_are_carried(options):
    # Two of each tile lie where the next one begins, and three where it does not.
    alone, shared = [(5, 25, 9, 30), (5, 31, 9, 36), (15, 25, 18, 30)], [(5, 44, 9, 50), (25, 44, 29, 50)]
    _, most = in_steps(column_of(alone + shared), options, range(ROWS))
    assert most <= 4 * len(shared)


def test_group_across_all_rows_is_carried_to_end():
    road, ship = (2, 0, 12, 60), (30, 25, 34, 30)
    scene = column_of([road, ship])
    delivered, most = in_steps(scene, FeatureDistillationSeam(merge=SeamMerge.UNION), range(ROWS))
    assert [index for index, *_ in delivered] == [1, 3, 5, 7, 9, 0, 11]
    assert delivered[-2][2] == list(range(2, 2 * ROWS, 2))
    assert most == ROWS - 1


def test_box_is_compared_no_farther_than_tile_beyond_its_own():
    first, far = shapely.box(0, 0, 55, 55), shapely.box(0, 0, 55, 4 * STRIDE + 50)
    options = FeatureDistillationNMS(iou_threshold=0.0)
    for row, kept in ((1, 1), (4, 2)):
        delivered, _ = in_steps(([0, row * COLUMNS], [first, far], [0.9, 0.8], [0, 0]), options, range(ROWS))
        assert len(delivered) == kept
