import math
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from aws.osml.model_runner.api.post_processing import FeatureDistillationNMS, FeatureDistillationSoftNMS
from aws.osml.model_runner.features.overlap_groups import tiles_covering
from aws.osml.model_runner.features.selection import FeatureSelector
from aws.osml.model_runner.tile_worker import VariableOverlapTilingStrategy, VariableTileTilingStrategy
from examples import examples

STRATEGIES = {"variable-overlap": VariableOverlapTilingStrategy(), "variable-tile": VariableTileTilingStrategy()}
BOTH = pytest.mark.parametrize("strategy", STRATEGIES.values(), ids=STRATEGIES)


class Plan(NamedTuple):
    """Division of a job: bounds ((row, col), (width, height)) and sizes (width, height)."""

    bounds: tuple
    region_size: tuple
    tile_size: tuple
    overlap: tuple

    def tiles(self, strategy):
        regions = strategy.compute_regions(*self)
        return [tile for region in regions for tile in strategy.compute_tiles(region, self.tile_size, self.overlap)]

    def cleanup(self, strategy, features, selector):
        return strategy.cleanup_duplicate_features(*self, features, selector)

    def moved(self, rows, columns):
        (row, col), size = self.bounds
        return self._replace(bounds=((row + rows, col + columns), size))


class Recorder:
    """A selector that keeps what it was asked about."""

    def __init__(self):
        self.calls = []

    def select_features(self, feature_list):
        self.calls.append(feature_list)
        return feature_list


class Shredder:
    """A selector that keeps nothing."""

    def select_features(self, feature_list):
        return []


def feature(name, box, score=0.5):
    properties = {"imageBBox": [float(value) for value in box], "featureClasses": [{"iri": "ship", "score": score}]}
    return {"type": "Feature", "id": name, "geometry": None, "properties": properties}


def ids(features):
    return [item["id"] for item in features]


def offered(plan, strategy, features):
    recorder = Recorder()
    kept = plan.cleanup(strategy, features, recorder)
    assert sorted(ids(kept)) == sorted(ids(features))
    assert len(recorder.calls) <= 1
    return {item["id"] for call in recorder.calls for item in call}


def sees(tile, box):
    """Whether a tile has a pixel of a box: pixel p is [p, p + 1), and a box without a width is in one pixel."""
    (row, col), (width, height) = tile
    minx, miny, maxx, maxy = box
    columns = range(math.floor(minx), max(math.floor(minx) + 1, math.ceil(maxx)))
    rows = range(math.floor(miny), max(math.floor(miny) + 1, math.ceil(maxy)))
    return overlap_length(columns, (col, col + width)) > 0 and overlap_length(rows, (row, row + height)) > 0


def overlap_length(pixels, span):
    return min(pixels.stop, span[1]) - max(pixels.start, span[0])


@st.composite
def plans(draw):
    tile = draw(st.integers(4, 60)), draw(st.integers(4, 60))
    overlap = tuple(draw(st.integers(0, side - 2)) for side in tile)
    size = tuple(draw(st.integers(1, side + 6 * (side - shared))) for side, shared in zip(tile, overlap, strict=True))
    origin = draw(st.integers(0, 5000)), draw(st.integers(0, 5000))
    region = draw(st.integers(1, 200)), draw(st.integers(1, 200))
    return Plan((origin, size), region, tile, overlap)


@st.composite
def boxes_in(draw, bounds):
    """A box of whole, half or quarter pixels with its corner inside the bounds; it may have no width or height."""
    (row, col), (width, height) = bounds
    quarters = draw(st.integers(0, 4 * width - 1)), draw(st.integers(0, 4 * height - 1))
    sides = draw(st.integers(0, 200)), draw(st.integers(0, 200))
    minx, miny = col + quarters[0] / 4, row + quarters[1] / 4
    return minx, miny, min(minx + sides[0] / 4, col + width), min(miny + sides[1] / 4, row + height)


@BOTH
@examples(120)
@given(data=st.data(), plan=plans())
def test_only_features_of_several_tiles_are_merged(strategy, data, plan):
    boxes = data.draw(st.lists(boxes_in(plan.bounds), min_size=1, max_size=8))
    tiles = plan.tiles(strategy)
    seen = [sum(sees(tile, box) for tile in tiles) for box in boxes]
    assert min(seen) >= 1
    columns = {(col, col + width) for (_, col), (width, _) in tiles}
    rows = {(row, row + height) for (row, _), (_, height) in tiles}
    assert tiles_covering(np.array(boxes), sorted(columns), sorted(rows)).tolist() == seen
    features = [feature(f"f{index}", box) for index, box in enumerate(boxes)]
    shared = {f"f{index}" for index, count in enumerate(seen) if count > 1}
    assert offered(plan, strategy, features) == shared
    assert set(ids(plan.cleanup(strategy, features, Shredder()))) == set(ids(features)) - shared


@BOTH
@examples(120)
@given(data=st.data(), plan=plans())
def test_object_in_two_tiles_is_merged_from_both(strategy, data, plan):
    assume(min(plan.overlap) > 0)
    minx, miny, maxx, maxy = data.draw(boxes_in(plan.bounds))
    assume(maxx > minx and maxy > miny)
    tiles = [tile for tile in plan.tiles(strategy) if sees(tile, (minx, miny, maxx, maxy))]
    reports = [
        feature(
            f"cut by {col}, {row}",
            (max(minx, col), max(miny, row), min(maxx, col + width), min(maxy, row + height)),
        )
        for (row, col), (width, height) in tiles
    ]
    assert offered(plan, strategy, reports) == (set(ids(reports)) if len(tiles) > 1 else set())


SEAM = Plan(((300, 1000), (944, 512)), (2048, 2048), (512, 512), (80, 80))  # tiles at columns 1000 and 1432


@BOTH
@pytest.mark.parametrize(
    ("box", "is_offered"),
    [
        ((1400, 400, 1432, 420), False),  # ends where the second tile begins
        ((1400, 400, 1432.01, 420), True),
        ((1432, 400, 1440, 420), True),
        ((1511.99, 400, 1530, 420), True),
        ((1512, 400, 1530, 420), False),  # begins where the first tile ends
        ((1431.9, 400, 1431.9, 400), False),
        ((1432, 400, 1432, 400), True),
        ((1100, 400, 1800, 420), True),
        ((1450, 0, 1460, 10), False),  # above the bounds: no tile sees it
    ],
)
def test_seam_shares_pixels_of_overlap(strategy, box, is_offered):
    assert offered(SEAM, strategy, [feature("A", box)]) == ({"A"} if is_offered else set())


@BOTH
def test_neighbouring_regions_share_overlap_of_tiles(strategy):
    plan = Plan(((0, 0), (944, 512)), (512, 512), (512, 512), (80, 80))  # one tile in each of two regions
    assert offered(plan, strategy, [feature("A", (440, 5, 450, 9)), feature("B", (400, 5, 431, 9))]) == {"A"}


@BOTH
def test_features_without_image_geometry_pass(strategy):
    lost = {"type": "Feature", "id": "lost", "geometry": None, "properties": None}
    assert offered(SEAM, strategy, [lost, feature("A", (1440, 400, 1450, 420))]) == {"A"}


@BOTH
def test_no_feature_is_merged_without_overlap(strategy):
    recorder = Recorder()
    assert SEAM.cleanup(strategy, [], recorder) == []
    assert SEAM.cleanup(strategy, [feature("A", (1100, 400, 1110, 420))], recorder) != []
    assert recorder.calls == []


@BOTH
def test_object_seen_twice_is_delivered_once(strategy):
    features = [
        feature("left tile", (1440, 400, 1470, 420), 0.8),
        feature("right tile", (1441, 400, 1470, 420), 0.9),
        feature("two of a model", (1100, 400, 1130, 420), 0.9),
        feature("that reports doubles", (1100, 400, 1130, 420), 0.8),
    ]
    kept = SEAM.cleanup(strategy, features, FeatureSelector(FeatureDistillationNMS()))
    assert ids(kept) == ["two of a model", "that reports doubles", "right tile"]
    assert kept[0] is features[2]


SELECTORS = [FeatureSelector(FeatureDistillationNMS(iou_threshold=0.3)), FeatureSelector(FeatureDistillationSoftNMS())]


@st.composite
def scenes(draw):
    """A plan, and features of a few sizes and scores that crowd it, so that many overlap or are equal."""
    plan = draw(plans())
    (row, col), (width, height) = plan.bounds
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    corners = rng.integers((col, row), (col + width, row + height), (draw(st.integers(0, 40)), 2))
    sizes, scores = rng.integers(0, 12, corners.shape), rng.integers(1, 4, len(corners)) / 4
    boxes = np.hstack([corners, corners + sizes])
    return plan, [feature(f"f{index}", box, scores[index]) for index, box in enumerate(boxes)]


@BOTH
@examples(60)
@given(scene=scenes(), selector=st.sampled_from(SELECTORS), random=st.randoms(use_true_random=False))
def test_result_does_not_depend_on_order_of_features(strategy, scene, selector, random):
    plan, features = scene
    shuffled = random.sample(features, len(features))
    assert plan.cleanup(strategy, shuffled, selector) == plan.cleanup(strategy, features, selector)


@BOTH
@examples(60)
@given(
    scene=scenes(),
    selector=st.sampled_from(SELECTORS),
    rows=st.integers(-5000, 100_000),
    columns=st.integers(-5000, 100_000),
)
def test_merge_is_invariant_to_translation_of_bounds(strategy, scene, selector, rows, columns):
    plan, features = scene
    moved = [
        feature(item["id"], np.add(item["properties"]["imageBBox"], (columns, rows) * 2), best_score(item))
        for item in features
    ]
    kept = plan.cleanup(strategy, features, selector)
    kept_moved = plan.moved(rows, columns).cleanup(strategy, moved, selector)
    assert ids(kept_moved) == ids(kept)
    assert [*map(best_score, kept_moved)] == pytest.approx([*map(best_score, kept)], rel=1e-9)


def best_score(item):
    return item["properties"]["featureClasses"][0]["score"]


@BOTH
@examples(60)
@given(scene=scenes(), selector=st.sampled_from(SELECTORS))
def test_feature_of_one_tile_is_delivered_unchanged(strategy, scene, selector):
    plan, features = scene
    tiles = plan.tiles(strategy)
    kept = plan.cleanup(strategy, features, selector)
    for item in features:
        if sum(sees(tile, item["properties"]["imageBBox"]) for tile in tiles) == 1:
            assert any(item is other for other in kept)
