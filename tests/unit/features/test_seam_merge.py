import math
from unittest import mock

import numpy as np
import pytest
import shapely
from hypothesis import given
from hypothesis import strategies as st

from aws.osml.model_runner.api.post_processing import FeatureDistillationSeam as Seam
from aws.osml.model_runner.api.post_processing import OverlapMetric, SeamMerge
from aws.osml.model_runner.features import seam_merge, seam_overlap
from aws.osml.model_runner.features.detections import Detections, Kind
from aws.osml.model_runner.features.seam_merge import default_distance_px, suppressors
from aws.osml.model_runner.features.tile_spans import TileSpans
from aws.osml.model_runner.features.tiled_features import TiledFeatures, comparable
from examples import examples
from unit.features import plain_seam_merge as plain
from unit.features.plain_seam_merge import Seen

# Four tiles of 60 pixels that share 20, then a tile that shares nothing with them.
TILES = [(0, 0, 60, 60), (40, 0, 100, 60), (0, 40, 60, 100), (40, 40, 100, 100), (100, 0, 160, 60)]
LEFT, RIGHT, BELOW, CORNER, APART = TILES
SEAM = Seam()
RULES = [
    SEAM,
    Seam(metric=OverlapMetric.IOU),
    Seam(iou_threshold=0.2, is_class_agnostic=True),
    Seam(merge=SeamMerge.UNION),
    Seam(merge=SeamMerge.UNION, distance_px=5.0),
]


def kind_of(shape):
    if shape.geom_type in ("Point", "LineString"):
        return Kind.POINT if shape.geom_type == "Point" else Kind.LINE
    return Kind.BOX if shape.equals(shapely.box(*shape.bounds)) else Kind.AREA


def merged(everything, options=SEAM, tiles=TILES, **arguments):
    """Return the index of the detection that suppresses each detection."""
    shapes = np.array([seen.shape for seen in everything], dtype=object)
    boxes = np.array([seen.bounds for seen in everything], dtype=np.float64).reshape(-1, 4)
    features = TiledFeatures(
        Detections(
            boxes,
            np.array([seen.score for seen in everything], dtype=np.float64),
            np.array([seen.category for seen in everything], dtype=np.intp),
            np.array([kind_of(seen.shape) for seen in everything], dtype=np.int8),
            np.zeros(len(everything), np.uint32),
            [str(number) for number in range(1 + max((seen.category for seen in everything), default=0))],
        ),
        np.array([tiles.index(seen.tile) for seen in everything], dtype=np.intp),
        np.array(tiles, dtype=np.float64),
        lambda indices: shapes[indices],
    )
    return suppressors(features, options, **arguments).tolist()


def box(tile, *bounds, score=0.5, category=0):
    return Seen(shapely.box(*bounds), tile, score, category)


def line(tile, *coordinates, score=0.5):
    return Seen(shapely.LineString(coordinates), tile, score)


def point(tile, x, y, score=0.5):
    return Seen(shapely.Point(x, y), tile, score)


# --- what is one object ---


def test_object_seen_whole_twice_keeps_better_score():
    assert merged([box(LEFT, 44, 10, 54, 20, score=0.8), box(RIGHT, 45, 10, 55, 20, score=0.9)]) == [1, 1]


def test_cut_detection_loses_against_whole_one():
    assert merged([box(LEFT, 50, 10, 60, 20, score=0.9), box(RIGHT, 50, 10, 75, 20, score=0.1)]) == [1, 1]


def test_part_off_edge_loses_against_whole_detection():
    whole, part = box(LEFT, 20, 10, 58, 20, score=0.5), box(RIGHT, 50, 10, 58, 20, score=0.9)
    assert merged([whole, part]) == [0, 0]
    assert merged([part, whole]) == [1, 1]
    assert merged([part, whole], Seam(merge=SeamMerge.UNION)) == [1, 1]


def test_part_is_weaker_even_where_edge_cuts_rest():
    most, part = box(RIGHT, 40, 10, 75, 20, score=0.5), box(LEFT, 40, 10, 52, 20, score=0.9)
    assert merged([most, part]) == [0, 0]


def comb(teeth, is_turned=False):
    """Return a comb between 41 and 59, its teeth upright, or turned."""
    xs = np.linspace(41, 59, 2 * teeth + 1)
    upper = [(x, y) for i in range(teeth) for x, y in ((xs[2 * i], 59), (xs[2 * i + 1], 59), (xs[2 * i + 1], 42))]
    corners = np.array([(41, 41), *upper, (59, 42), (59, 41)])
    return shapely.Polygon(corners[:, ::-1] if is_turned else corners)


@pytest.mark.parametrize("options", [SEAM, Seam(merge=SeamMerge.UNION)])
def test_complex_polygons_are_not_intersected(options, monkeypatch):
    corners = []

    def counted(first, second, **arguments):
        corners.extend((shapely.get_num_coordinates(first) * shapely.get_num_coordinates(second)).tolist())
        return plainly(first, second, **arguments)

    plainly = shapely.intersection
    monkeypatch.setattr(shapely, "intersection", counted)
    assert merged([Seen(comb(300), LEFT), Seen(comb(300, is_turned=True), RIGHT)], options) == [0, 1]
    assert max(corners) == 0
    # Two views of one coast line do not tangle.
    coast = shapely.Point(50, 50).buffer(8, quad_segs=1500)
    assert merged([Seen(coast, LEFT), Seen(coast, RIGHT)], options) == [0, 0]


def test_shapes_that_cross_themselves_too_often_are_coarse():
    turns = np.linspace(0, 2 * math.pi, 700, endpoint=False) * 349
    star = [(50 + 5 * math.cos(turn), 50 + 5 * math.sin(turn)) for turn in turns]
    area, line = comparable(np.array([shapely.Polygon(star), shapely.LineString(star)], dtype=object))
    assert area.equals(shapely.box(*shapely.Polygon(star).bounds))
    assert shapely.get_num_coordinates(line) == 100


def test_halves_are_merged_when_no_tile_saw_object_whole():
    halves = [box(LEFT, 10, 10, 60, 20, score=0.8), box(RIGHT, 40, 10, 90, 20, score=0.9)]
    assert merged(halves) == [1, 1]


def test_neighbours_that_end_where_other_tile_ends_are_two():
    # Each reaches beyond the other's tile, which saw no more than a thin part of it, and reports none.
    assert merged([box(LEFT, 10, 10, 45, 30), box(RIGHT, 44, 10, 90, 30)]) == [0, 1]


def test_long_object_and_its_neighbour_at_edge_stay_two():
    first = box(LEFT, 10, 10, 42, 30, score=0.9)
    assert merged([first, box(RIGHT, 40, 10, 58, 30, score=0.8)]) == [0, 1]


def test_detections_of_one_tile_are_never_compared():
    twice = [box(LEFT, 44, 10, 54, 20), box(LEFT, 44, 10, 54, 20)]
    assert merged(twice) == [0, 1]


def test_classes_are_kept_apart_unless_configured():
    seen = [box(LEFT, 44, 10, 54, 20, score=0.9), box(RIGHT, 44, 10, 54, 20, category=1)]
    assert merged(seen) == [0, 1]
    assert merged(seen, Seam(is_class_agnostic=True)) == [0, 0]


@pytest.mark.parametrize(("metric", "threshold", "is_same"), [("IOS", 0.5, 1), ("IOU", 0.5, 0), ("IOU", 0.2, 1)])
def test_overlap_is_measured_over_smaller_or_over_both(metric, threshold, is_same):
    seen = [box(LEFT, 45, 10, 55, 20, score=0.9), box(RIGHT, 45, 10, 55, 13)]
    options = Seam(metric=OverlapMetric(metric), iou_threshold=threshold)
    assert merged(seen, options) == [0, 0 if is_same else 1]


def test_polygons_are_compared_by_their_area_not_by_their_bounds():
    lower = shapely.Polygon([(44, 10), (56, 22), (44, 22)])
    upper = shapely.Polygon([(46, 10), (57, 10), (57, 21)])
    assert merged([Seen(lower, LEFT), Seen(upper, RIGHT)]) == [0, 1]
    assert merged([Seen(lower, LEFT), Seen(lower, RIGHT)]) == [0, 0]


def test_polygon_and_box_of_one_object_are_one():
    assert merged([Seen(shapely.Point(50, 20).buffer(5), LEFT, 0.9), box(RIGHT, 45, 15, 55, 25)]) == [0, 0]


def test_points_are_merged_within_distance_of_overlap():
    assert default_distance_px(TileSpans.of(np.array(TILES, float))) == 20 / 16
    assert merged([point(LEFT, 50, 10, 0.9), point(RIGHT, 51.2, 10)]) == [0, 0]
    assert merged([point(LEFT, 50, 10, 0.9), point(RIGHT, 51.3, 10)]) == [0, 1]
    assert merged([point(LEFT, 50, 10, 0.9), point(RIGHT, 51.3, 10)], Seam(distance_px=2)) == [0, 0]


def test_tiles_without_overlap_allow_one_pixel_of_noise():
    assert default_distance_px(TileSpans.of(np.array([LEFT, (60, 0, 120, 60)], float))) == 1
    assert default_distance_px(TileSpans.of(np.array([LEFT], float))) == 1


def test_lines_are_merged_where_they_coincide():
    road = line(LEFT, (5, 30), (60, 31), score=0.9)
    assert merged([road, line(RIGHT, (40, 30.5), (95, 33))]) == [0, 0]
    assert merged([road, line(RIGHT, (50, 5), (50, 58))]) == [0, 1]


def test_different_geometry_types_are_not_compared():
    seen = [point(LEFT, 50, 10), box(RIGHT, 45, 5, 55, 15), line(LEFT, (45, 10), (55, 10))]
    assert merged(seen, Seam(distance_px=20)) == [0, 1, 2]


def test_thing_at_corner_is_seen_by_four_and_delivered_once():
    seen = [box(tile, 45, 45, 55, 55, score=score) for tile, score in zip(TILES[:4], (0.3, 0.9, 0.5, 0.7), strict=True)]
    assert merged(seen) == [1, 1, 1, 1]


def test_parts_hang_together_through_others():
    tiles = [(0, 0, 60, 60), (40, 0, 100, 60), (80, 0, 140, 60)]
    field = [box(tile, max(5, tile[0]), 10, min(130, tile[2]), 50, score=0.5) for tile in tiles]
    assert merged(field, Seam(merge=SeamMerge.UNION), tiles) == [0, 0, 0]
    assert merged(field, Seam(), tiles) == [0, 0, 2]


def test_score_none_is_weaker_than_any():
    assert merged([box(LEFT, 45, 10, 54, 20, score=math.nan), box(RIGHT, 45, 10, 54, 20, score=0.01)]) == [1, 1]


def test_no_features_give_no_features():
    assert merged([]) == []
    assert merged([], Seam(merge=SeamMerge.UNION)) == []


def test_feature_without_geometry_is_kept():
    features = TiledFeatures(
        Detections(
            np.full((2, 4), np.nan),
            np.array([0.5, 0.5]),
            np.zeros(2, np.intp),
            np.zeros(2, np.int8),
            np.zeros(2, np.uint32),
            [""],
        ),
        np.array([0, 1]),
        np.array(TILES, float),
        lambda indices: np.empty(len(indices), object),
    )
    assert suppressors(features, Seam()).tolist() == [0, 1]


def test_detection_of_one_tile_is_not_compared():
    """Even with a detection that reaches far beyond its own tile, over most of it."""
    alone = box(BELOW, 0, 64, 25, 64.5, score=0.25)
    astray = Seen(shapely.box(10, 25, 70, 85), CORNER, 0.25)
    assert merged([alone, astray]) == plain.suppressors([alone, astray], TILES, SEAM, 20 / 16) == [0, 1]


# --- equal to the plain version, whatever is seen ---

QUARTERS = st.integers(0, 4 * 59)


@st.composite
def things(draw, tiles=TILES):
    """Detections of a tile: near its edges, half outside, or copies of another tile's detections."""
    tile = draw(st.sampled_from(tiles))
    x, y = tile[0] + draw(QUARTERS) / 4, tile[1] + draw(QUARTERS) / 4
    width, height = (draw(st.sampled_from([0.5, 3, 7.25, 12, 25, 60])) for _ in range(2))
    form = draw(st.sampled_from(["box", "box", "box", "ellipse", "triangle", "line", "point"]))
    shape = {
        "box": lambda: shapely.box(x, y, min(x + width, tile[2] + 1), min(y + height, tile[3] + 1)),
        "ellipse": lambda: shapely.affinity.scale(shapely.Point(x, y).buffer(0.5, quad_segs=3), width, height),
        "triangle": lambda: shapely.Polygon([(x, y), (x + width, y), (x, y + height)]),
        "line": lambda: shapely.LineString([(x, y), (x + width, y + height)]),
        "point": lambda: shapely.Point(x, y),
    }[form]()
    score = draw(st.sampled_from([0.25, 0.5, 0.75, math.nan]))
    return Seen(shape, tile, score, draw(st.integers(0, 1)))


@st.composite
def scenes(draw):
    """Things, and copies of them as other tiles that saw them report them: shifted a little, cut or whole."""
    seen = draw(st.lists(things(), max_size=8))
    for original in list(seen):
        for tile in draw(st.lists(st.sampled_from(TILES), max_size=2)):
            shift = draw(st.sampled_from([0, 0.25, 1, 3]))
            shape = shapely.affinity.translate(original.shape, shift, shift)
            if draw(st.booleans()) and shape.geom_type == "Polygon":
                shape = shapely.intersection(shape, shapely.box(*tile))
            if (
                not shape.is_empty
                and (shape.area or shape.geom_type != "Polygon")
                and plain.saw(tile, Seen(shape, tile))
            ):
                score = draw(st.sampled_from([0.25, 0.5, 0.9]))
                seen.append(Seen(shape, tile, score, original.category))
    return seen


def is_plain(seen):
    """Shapes of more than one part are for other tests."""
    return all(one.shape.geom_type in ("Polygon", "LineString", "Point") for one in seen)


@examples(120)
@given(
    seen=scenes().filter(is_plain),
    options=st.sampled_from(RULES),
    at_once=st.sampled_from([1, 7, 1000]),
    max_links=st.sampled_from([0, seam_merge.MAX_LINKS]),
)
def test_arrays_agree_with_plain_version(seen, options, at_once, max_links):
    distance_px = options.distance_px or 20 / 16
    with mock.patch.object(seam_merge, "MAX_LINKS", max_links):
        found = merged(seen, options, pairs_at_once=at_once)
    assert found == plain.suppressors(seen, TILES, options, distance_px)


def test_both_versions_mean_same_edge():
    assert plain.EDGE_PX == seam_overlap.EDGE_PX


@st.composite
def ranked_scenes(draw):
    """Scenes in which no two have the same score, so that the place in the list decides nothing."""
    seen = draw(scenes().filter(is_plain))
    ranks = draw(st.permutations(range(len(seen))))
    return [Seen(one.shape, one.tile, (rank + 1) / 64, one.category) for one, rank in zip(seen, ranks, strict=True)]


def groups(seen, options, **arguments):
    standing = merged(seen, options, **arguments)
    return {(seen[i].score, seen[j].score) for i, j in enumerate(standing)}


@examples(40)
@given(seen=ranked_scenes(), options=st.sampled_from(RULES), random=st.randoms(use_true_random=False))
def test_merge_is_invariant_to_order(seen, options, random):
    assert groups(random.sample(seen, len(seen)), options) == groups(seen, options)


@examples(40)
@given(seen=ranked_scenes(), options=st.sampled_from(RULES), x=st.integers(0, 2**16), y=st.integers(0, 2**16))
def test_merge_is_invariant_to_translation(seen, options, x, y):
    def moved_tile(tile):
        return tile[0] + x, tile[1] + y, tile[2] + x, tile[3] + y

    moved = [
        Seen(shapely.affinity.translate(one.shape, x, y), moved_tile(one.tile), one.score, one.category) for one in seen
    ]
    assert groups(moved, options, tiles=[moved_tile(tile) for tile in TILES]) == groups(seen, options)


@examples(50)
@given(seen=scenes().filter(is_plain), options=st.sampled_from(RULES))
def test_detection_outside_overlap_is_kept(seen, options):
    standing = merged(seen, options)
    for index, one in enumerate(seen):
        if not any(plain.saw(tile, one) for tile in TILES if tile != one.tile):
            assert standing[index] == index


@examples(50)
@given(seen=scenes().filter(is_plain), options=st.sampled_from(RULES))
def test_representative_is_kept(seen, options):
    standing, distance_px = merged(seen, options), options.distance_px or 20 / 16

    def strength(index):
        return plain.is_fragment(index, seen, TILES, options, distance_px), plain.strength(index, seen[index], TILES)

    for index, strongest in enumerate(standing):
        assert standing[strongest] == strongest
        assert strength(strongest) <= strength(index)
