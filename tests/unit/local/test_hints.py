"""Hints of `run` about features that look odd."""

from aws.osml.model_runner.local.job import hints


def feature(box, score=0.5, geometry="somewhere"):
    classes = [{"iri": "ship", "score": score}]
    return {"geometry": geometry, "properties": {"imageBBox": box, "featureClasses": classes}}


def test_good_features_give_no_hint():
    assert hints([feature([0, 0, 1, 1]), feature([100, 200, 120, 210])]) == []
    assert hints([]) == []


def test_boxes_outside_their_tile_are_counted():
    inside, outside = feature([1100, 10, 1120, 30]), feature([6024, 10, 6044, 30])
    for found in (inside, outside):
        found["properties"]["inferenceMetadata"] = {"tile": [[0, 1024], [512, 256]]}
    assert hints([inside, outside, outside]) == [
        "2 boxes lie outside their tile: a box is [x1, y1, x2, y2] in pixels of the tile"
    ]


def test_hints_name_relative_boxes_percent_scores_and_no_georeference():
    odd = [feature([0.1, 0.2, 0.3, 0.4], 97.3, None), feature([1024.5, 0, 1024.9, 0.2], 12, None)]
    assert [hint.partition(":")[0] for hint in hints(odd)] == [
        "the image has no georeference that can be used",
        "every box is smaller than 2 pixels",
        "there are scores above 1",
    ]
