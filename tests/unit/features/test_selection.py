import copy
import math
from decimal import Decimal

import geojson
import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from aws.osml.model_runner.api.post_processing import (
    FeatureDistillationAlgorithm,
    FeatureDistillationAlgorithmType,
    FeatureDistillationNMS,
    FeatureDistillationNone,
    FeatureDistillationSoftNMS,
)
from aws.osml.model_runner.exceptions import FeatureDistillationException
from aws.osml.model_runner.features.best_class import best_class
from aws.osml.model_runner.features.box_pairs import BoxPairs, candidate_limits
from aws.osml.model_runner.features.detections import Detections, canonical_order, checked_box
from aws.osml.model_runner.features.nms import nms, soft_nms
from aws.osml.model_runner.features.selection import FeatureSelector, with_score
from examples import examples

NMS, SoftNMS = FeatureDistillationNMS, FeatureDistillationSoftNMS
ALGORITHMS = pytest.mark.parametrize("options", [NMS(iou_threshold=0.5), SoftNMS()], ids=["NMS", "SOFT_NMS"])


def feature(name, box, score=0.5, iri="ship", **properties):
    classes = [{"iri": iri, "score": score}]
    return {
        "type": "Feature",
        "id": name,
        "geometry": None,
        "properties": {"imageBBox": box, "featureClasses": classes, **properties},
    }


def ids(features):
    return [item["id"] for item in features]


def select(options, features):
    return FeatureSelector(options).select_features(features)


def selected_ids(options, features):
    return sorted(ids(select(options, features)))


def contract_features():
    return [
        feature("A", [0, 0, 10, 10], 0.9),
        feature("B", [1, 1, 11, 11], 0.8),
        feature("C", [50, 50, 60, 60], 0.3),
        feature("boat A", [0, 0, 10, 10], 0.5, "boat"),
    ]


# --- the contract's vectors, section 6 ---


@pytest.mark.parametrize(
    ("threshold", "kept"), [(0.5, ["A", "C", "boat A"]), (0.75, ["A", "B", "C", "boat A"]), (0.0, ["A", "C", "boat A"])]
)
def test_contract_vectors(threshold, kept):
    assert ids(select(NMS(iou_threshold=threshold), contract_features())) == kept


def test_overlap_equal_to_threshold_is_kept():
    halves = [feature("whole", [0, 0, 10, 10], 0.9), feature("half", [0, 0, 10, 5], 0.8)]
    assert selected_ids(NMS(iou_threshold=0.5), halves) == ["half", "whole"]
    assert selected_ids(NMS(iou_threshold=0.4999), halves) == ["whole"]


def test_suppression_drops_features_below_score_threshold():
    unscored = feature("X", [200, 200, 210, 210], featureClasses=[{"iri": "ship"}])
    features = [*contract_features(), unscored]
    assert ids(select(NMS(iou_threshold=0.75, skip_box_threshold=0.3), features)) == ["A", "B", "boat A", "X"]
    assert ids(select(NMS(iou_threshold=0.75, skip_box_threshold=0.29), features)) == ["A", "B", "C", "boat A", "X"]


def test_soft_suppression_decays_by_square_of_overlap():
    a, b, c, boat = select(SoftNMS(), contract_features())
    iou = 81 / 119
    assert a["properties"]["featureClasses"] == [{"iri": "ship", "score": 0.9, "rawScore": 0.9}]
    assert b["properties"]["featureClasses"][0]["rawScore"] == 0.8
    assert b["properties"]["featureClasses"][0]["score"] == pytest.approx(0.8 * math.exp(-(iou**2) / 0.1))
    assert [item["properties"]["featureClasses"][0]["score"] for item in (c, boat)] == [0.3, 0.5]


def test_soft_suppression_drops_decayed_features():
    decayed = 0.8 * math.exp(-((81 / 119) ** 2) / 0.1)
    assert selected_ids(SoftNMS(skip_box_threshold=decayed * 1.001), contract_features()) == ["A", "C", "boat A"]
    assert selected_ids(SoftNMS(skip_box_threshold=decayed * 0.999), contract_features()) == ["A", "B", "C", "boat A"]
    assert selected_ids(SoftNMS(skip_box_threshold=0.3), contract_features()) == ["A", "boat A"]


def test_soft_suppression_changes_only_winning_class():
    classes = [{"iri": "boat", "score": 0.2}, {"iri": "ship", "score": 0.9, "why": "hull"}, {"iri": "car"}]
    given_feature = feature("A", [0, 0, 10, 10], featureClasses=classes, imageGeometry=None)
    before = copy.deepcopy(given_feature)
    [kept] = select(SoftNMS(), [given_feature])
    assert kept["properties"]["featureClasses"] == [
        classes[0],
        {"iri": "ship", "score": 0.9, "why": "hull", "rawScore": 0.9},
        classes[2],
    ]
    assert given_feature == before
    assert {**kept, "properties": None} == {**before, "properties": None}


def test_feature_without_classes_has_no_score():
    bare = feature("A", [0, 0, 10, 10], featureClasses=None)
    assert with_score(bare, 0.5) is bare


# --- which features take part ---


@pytest.mark.parametrize("options", [None, FeatureDistillationNone()])
def test_no_algorithm_passes_everything_through(options):
    features = [*contract_features(), *contract_features(), {"type": "Feature"}]
    assert select(options, features) is features


@ALGORITHMS
def test_no_features_give_no_features(options):
    assert select(options, []) == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            FeatureDistillationAlgorithm(FeatureDistillationAlgorithmType.NMS),
            "expected the options of SEAM, NMS, SOFT_NMS or NONE",
        ),
        (SoftNMS(sigma=0), "sigma 0: expected more than 0"),
        (SoftNMS(sigma=-0.1), "sigma -0.1: expected more than 0"),
    ],
)
def test_options_that_do_not_exist_are_error(options, message):
    with pytest.raises(FeatureDistillationException, match=message):
        select(options, contract_features())


UNSCORED = {
    "no classes": None,
    "empty classes": [],
    "classes that are a name": "ship",
    "class without score": [{"iri": "ship"}],
    "score null": [{"iri": "ship", "score": None}],
    "score that is text": [{"iri": "ship", "score": "0.9"}],
    "score true": [{"iri": "ship", "score": True}],
    "score not finite": [{"iri": "ship", "score": math.inf}],
    "class that is a name": ["ship"],
}


@ALGORITHMS
@pytest.mark.parametrize("classes", UNSCORED.values(), ids=UNSCORED)
def test_feature_without_score_survives_unchanged(options, classes):
    unscored = feature("X", [200, 200, 210, 210], featureClasses=classes)
    kept = select(options, [*contract_features(), unscored])
    assert kept[-1] is unscored


@pytest.mark.parametrize("classes", UNSCORED.values(), ids=UNSCORED)
def test_soft_suppression_keeps_features_without_score(classes):
    features = [feature("A", [0, 0, 10, 10], 0.9), feature("X", [0, 0, 10, 10], featureClasses=classes)]
    assert ids(select(SoftNMS(), features)) == ["A", "X"]


def test_suppression_ranks_features_without_score_last():
    scored = feature("scored", [0, 0, 10, 10], 0.01)
    unscored = feature("unscored", [0, 0, 10, 10], featureClasses=[{"iri": "ship"}])
    nameless = [feature(name, [0, 0, 10, 10], featureClasses=None) for name in "ab"]
    assert ids(select(NMS(), [unscored, scored, *nameless])) == ["scored", "a"]


@ALGORITHMS
@pytest.mark.parametrize("properties", [None, {}, {"imageBBox": [1, 2, 3]}, {"imageGeometry": {"type": "Blob"}}])
def test_feature_without_image_geometry_is_kept(options, properties):
    lost = {"type": "Feature", "geometry": None, "properties": properties}
    assert select(options, [lost, *contract_features(), lost]).count(lost) == 2


def test_properties_that_are_missing_are_no_error():
    assert select(NMS(), [{"type": "Feature"}]) == [{"type": "Feature"}]


@ALGORITHMS
def test_points_and_lines_are_compared_by_boxes_of_tenth_of_pixel(options):
    def point(name, x, score):
        return feature(name, None, score, imageGeometry={"type": "Point", "coordinates": [x, 7]})

    features = [point("A", 5, 0.9), point("same", 5, 0.8), point("near", 5.09, 0.7), point("beside", 5.25, 0.6)]
    kept = select(options, features)
    assert "A" in ids(kept)
    assert "same" not in ids(kept)
    assert ids(kept)[-2:] == ["near", "beside"]
    assert kept[-1]["properties"]["featureClasses"][0]["score"] == 0.6


def test_category_is_best_class_and_first_of_equals():
    boat_then_ship = [{"iri": "boat", "score": 0.7}, {"iri": "ship", "score": 0.7}]
    assert best_class(feature("A", [0, 0, 1, 1], featureClasses=boat_then_ship)).iri == "boat"
    ship_scored = [{"iri": "boat"}, {"iri": "ship", "score": -3}]
    assert best_class(feature("A", [0, 0, 1, 1], featureClasses=ship_scored)).iri == "ship"


@ALGORITHMS
def test_geojson_features_stay_geojson_features(options):
    features = [geojson.Feature(**{**item, "type": None}) for item in contract_features()]
    assert all(type(item) is geojson.Feature for item in select(options, features))


# --- equal to the textbook ---


def reference_iou(a, b):
    a, b = ([x, y, z if z > x else x + 0.1, w if w > y else y + 0.1] for x, y, z, w in (a, b))
    width = max(0.0, min(a[2], b[2]) - max(a[0], b[0]))
    height = max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    shared = width * height
    areas = [(x2 - x1) * (y2 - y1) for x1, y1, x2, y2 in (a, b)]
    return shared / (areas[0] + areas[1] - shared)


def reference_hard(boxes, categories, threshold):
    """Neubeck and Van Gool, 2006, over all pairs; strongest first."""
    kept = []
    for i in range(len(boxes)):
        rivals = [j for j in kept if categories[j] == categories[i]]
        if all(reference_iou(boxes[j], boxes[i]) <= threshold for j in rivals):
            kept.append(i)
    return kept


def reference_soft(boxes, categories, scores, sigma, skip_box_threshold):
    """Bodla et al., 2017, over all pairs; returns {index: score} of what is kept."""
    left, scores, kept = list(range(len(boxes))), list(scores), {}
    while left:
        best = max(left, key=lambda i: (scores[i], -i))
        left.remove(best)
        if scores[best] > skip_box_threshold:
            kept[best] = scores[best]
        for i in left:
            if categories[i] == categories[best]:
                iou = np.array([reference_iou(boxes[best], boxes[i])])
                scores[i] *= float(np.exp(-(iou**2) / sigma)[0])
    return kept


@st.composite
def scenes(draw):
    """Boxes, strongest first, crowded enough for chains and ties: (n, 4) boxes, (n,) categories, (n,) scores."""
    count = draw(st.integers(0, 40))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    spread, largest = draw(st.sampled_from([5, 20, 100])), draw(st.sampled_from([1, 8, 40]))
    corners = rng.integers(0, spread, (count, 2)).astype(float)
    boxes = np.hstack([corners, corners + rng.integers(0, largest + 1, (count, 2))])
    scores = np.sort(rng.integers(0, draw(st.sampled_from([3, 1000])), count) / 1000)[::-1]
    return boxes, rng.integers(0, 2, count), scores


@examples(150)
@given(scene=scenes(), threshold=st.sampled_from([0.0, 0.1, 0.3, 0.5, 0.75, 1.0]), at_once=st.integers(1, 200))
def test_suppression_equals_textbook(scene, threshold, at_once):
    boxes, categories, _ = scene
    kept = np.flatnonzero(nms(BoxPairs(boxes, categories), threshold, at_once) == np.arange(len(boxes)))
    assert kept.tolist() == reference_hard(boxes.tolist(), categories, threshold)


@examples(150)
@given(
    scene=scenes(),
    sigma=st.sampled_from([0.01, 0.1, 0.5, 5.0]),
    skip=st.sampled_from([0.0, 0.0001, 0.1, 0.5]),
    at_once=st.integers(1, 200),
)
def test_soft_suppression_equals_textbook(scene, sigma, skip, at_once):
    boxes, categories, scores = scene
    is_kept, decayed = soft_nms(boxes, categories, scores, sigma, skip, at_once)
    expected = reference_soft(boxes.tolist(), categories, scores.tolist(), sigma, skip)
    assert set(np.flatnonzero(is_kept).tolist()) == set(expected)
    for index, score in expected.items():
        assert decayed[index] == pytest.approx(score, rel=1e-12)


def test_overlap_too_small_to_lower_score_does_not_change_order():
    boxes = np.array([[0, 0, 1e6, 1e6], [1e6 - 1e-4, 1e6 - 1e-4, 1e6 + 10, 1e6 + 10], [1e6 + 1, 1e6, 1e6 + 9, 1e6 + 9]])
    categories, scores = np.zeros(3, dtype=int), np.array([0.5, 0.5, 0.4])
    is_kept, decayed = soft_nms(boxes, categories, scores, 0.5, 0.0001, 1)
    expected = reference_soft(boxes.tolist(), categories, scores.tolist(), 0.5, 0.0001)
    assert is_kept.all()
    assert decayed.tolist() == pytest.approx([0.5, 0.5, expected[2]])
    assert expected[2] < 0.3


@examples(200)
@given(scene=scenes(), at_once=st.integers(1, 200))
@example(scene=(np.zeros((0, 4)), np.zeros(0, dtype=int), np.zeros(0)), at_once=1)
def test_batches_cover_all_boxes_and_candidates(scene, at_once):
    boxes, categories, _ = scene
    pairs, limits = BoxPairs(boxes, categories), candidate_limits(boxes)
    batches = list(pairs.batches(at_once))
    assert [index for start, end in batches for index in range(start, end)] == list(range(len(boxes)))
    for start, end in batches:
        assert end - start == 1 or limits[start:end].sum() <= at_once
        first, _, _ = pairs.overlapping(np.arange(start, end))
        assert np.all(np.bincount(first, minlength=len(boxes))[start:end] < limits[start:end])


def test_many_boxes_on_one_spot_take_no_more_pairs_than_fit():
    boxes = np.tile([10.0, 10.0, 20.0, 20.0], (20_000, 1))
    one_class, scores = np.zeros(len(boxes), dtype=int), np.linspace(1, 0.5, len(boxes))
    assert np.flatnonzero(nms(BoxPairs(boxes, one_class), 0.75) == np.arange(len(boxes))).tolist() == [0]
    assert np.flatnonzero(soft_nms(boxes, one_class, scores, 0.1, 0.0001)[0]).tolist() == [0]


# --- order ---


@st.composite
def crowds(draw):
    """Features on few places with few scores, so that many are equal in all but their name."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    count = draw(st.integers(0, 30))
    corners = rng.integers(0, 12, (count, 2)).tolist()
    return [
        feature(f"f{name}", [x, y, x + 8, y + 8], [0.2, 0.4, None][kind], ["ship", "boat"][name % 2])
        for name, ((x, y), kind) in enumerate(zip(corners, rng.integers(0, 3, count), strict=True))
    ]


@ALGORITHMS
@examples(100)
@given(features=crowds(), random=st.randoms(use_true_random=False))
def test_selection_does_not_depend_on_order_of_features(options, features, random):
    shuffled = random.sample(features, len(features))
    by_id = {item["id"]: item for item in select(options, features)}
    kept = select(options, shuffled)
    assert {item["id"]: item for item in kept} == by_id
    assert ids(kept) == [item["id"] for item in shuffled if item["id"] in by_id]


@examples(100)
@given(features=crowds(), random=st.randoms(use_true_random=False))
def test_canonical_order_is_one_order(features, random):
    features = [*features, *({**item, "properties": {}} for item in features[:5])]
    shuffled = random.sample(features, len(features))
    order = [features[index] for index in canonical_order(features, Detections.of(features, locate=checked_box))]
    other = canonical_order(shuffled, Detections.of(shuffled, locate=checked_box))
    assert [shuffled[index] for index in other] == order
    scores = Detections.of(order, locate=checked_box).scores
    scored = scores[~np.isnan(scores)]
    assert np.all(np.diff(scored) <= 0)
    assert np.isnan(scores[len(scored) :]).all()


def test_values_that_json_does_not_know_are_no_error():
    odd = {"confidence": np.float64(0.5), 7: Decimal("0.1")}
    features = [feature(name, [0, 0, 10, 10], extra=odd) for name in "ba"]
    assert ids(select(NMS(), features)) == ["a"]
