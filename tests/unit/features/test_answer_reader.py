"""Responses that are read by the paths of a request: units, formats of boxes and outlines, and broken responses."""

from collections import Counter

import orjson
import pytest
import shapely

from aws.osml.model_runner.api.model_protocol import Answer, ModelProtocol
from aws.osml.model_runner.common.typing import ImageDimensions
from aws.osml.model_runner.exceptions import BadModelResponseError
from aws.osml.model_runner.features import answer_reader
from aws.osml.model_runner.features.answer_reader import MAX_ITEMS, reader_of
from aws.osml.model_runner.features.run_length_masks import MAX_RUNS

TILE = ImageDimensions(200, 100)
MAX_BYTES = 128 * 1024 * 1024


def read(answer, document, protocol="CUSTOM", tile=TILE):
    stored = {"protocol": protocol, "envelope": {"body": "RAW"}, "answer": answer}
    body = document if isinstance(document, bytes) else orjson.dumps(document)
    return reader_of(ModelProtocol.of(stored))(body, tile, MAX_BYTES)


def properties_of(answer, item):
    parsed = read({"items": "@", **answer}, [item])
    assert not parsed.dropped
    (feature,) = parsed.features
    assert (feature["type"], feature["geometry"]) == ("Feature", None)
    return feature["properties"]


@pytest.mark.parametrize(
    ("box_format", "units", "box"),
    [
        ("XYXY", "PIXELS", [20, 10, 60, 40]),
        ("XYXY", "PIXELS", {"x1": 20, "y1": 10, "x2": 60, "y2": 40}),
        ("XYXY", "PIXELS", {"ymax": 40, "xmax": 60, "ymin": 10, "xmin": 20}),
        ("XYXY", "PIXELS", {"left": 20, "top": 10, "right": 60, "bottom": 40}),
        ("XYWH", "PIXELS", [20, 10, 40, 30]),
        ("XYWH", "PIXELS", {"left": 20, "top": 10, "width": 40, "height": 30}),
        ("XYWH", "PIXELS", {"x": 20, "y": 10, "w": 40, "h": 30}),
        ("CXCYWH", "PIXELS", [40, 25, 40, 30]),
        ("CXCYWH", "PIXELS", {"x": 40, "y": 25, "width": 40, "height": 30}),
        ("YXYX", "PIXELS", [10, 20, 40, 60]),
        ("YXYX", "PIXELS", {"ymin": 10, "xmin": 20, "ymax": 40, "xmax": 60}),
        ("XYXY", "NORMALIZED", [0.1, 0.1, 0.3, 0.4]),
        ("XYWH", "NORMALIZED", [0.1, 0.1, 0.2, 0.3]),
        ("CXCYWH", "NORMALIZED", [0.2, 0.25, 0.2, 0.3]),
        ("YXYX", "THOUSANDTHS", [100, 100, 400, 300]),
    ],
)
def test_box_of_each_format_is_in_pixels_of_tile(box_format, units, box):
    found = properties_of({"box": "b", "boxFormat": box_format, "units": units}, {"b": box})
    assert found == {"imageBBox": pytest.approx([20, 10, 60, 40])}


@pytest.mark.parametrize("box_format", ["XYXY", "XYXYXYXY"])
@pytest.mark.parametrize("is_object", [False, True])
def test_eight_numbers_are_outline_of_oriented_box(box_format, is_object):
    numbers = [0.1, 0.1, 0.3, 0.2, 0.2, 0.4, 0.0, 0.3]
    names = ["x1", "y1", "x2", "y2", "x3", "y3", "x4", "y4"]
    box = dict(zip(names, numbers, strict=True)) if is_object else numbers
    found = properties_of({"box": "b", "boxFormat": box_format, "units": "NORMALIZED"}, {"b": box})
    ring = [[20, 10], [60, 20], [40, 40], [0, 30], [20, 10]]
    outline = found["imageGeometry"]
    assert (list(found), outline["type"]) == (["imageGeometry"], "Polygon")
    assert outline["coordinates"][0] == [pytest.approx(position) for position in ring]


@pytest.mark.parametrize(
    ("polygon_format", "polygon"),
    [
        ("POINTS", [[0.1, 0.1], [0.3, 0.1], [0.2, 0.4]]),
        ("POINTS", [{"x": 0.1, "y": 0.1}, {"x": 0.3, "y": 0.1}, {"y": 0.4, "x": 0.2}]),
        ("XY_ARRAYS", {"x": [0.1, 0.3, 0.2], "y": [0.1, 0.1, 0.4]}),
        ("FLAT", [0.1, 0.1, 0.3, 0.1, 0.2, 0.4]),
        ("FLAT", [[0.1, 0.1, 0.3, 0.1, 0.2, 0.4]]),
    ],
)
def test_outline_of_each_format_is_in_pixels_of_tile(polygon_format, polygon):
    answer = {"box": "b", "polygon": "p", "polygonFormat": polygon_format, "units": "NORMALIZED"}
    found = properties_of(answer, {"b": [0.1, 0.1, 0.3, 0.4], "p": polygon})
    assert found["imageBBox"] == pytest.approx([20, 10, 60, 40])
    (ring,) = found["imageGeometry"]["coordinates"]
    assert ring == [pytest.approx(position) for position in [[20, 10], [60, 10], [40, 40]]]


def test_parts_of_outline_become_several_polygons():
    rings = [[0, 0, 9, 0, 9, 9], [20, 20, 29, 20, 29, 29]]
    outline = properties_of({"polygon": "p", "polygonFormat": "FLAT"}, {"p": rings})["imageGeometry"]
    assert outline["type"] == "MultiPolygon"
    assert [len(part) for part in outline["coordinates"]] == [1, 1]


# Both made by pycocotools 2.0.11. Rows 3 to 9 of columns 4 to 17 with a hole, and a second part.
RLE_TWO_PARTS = {"size": [20, 30], "counts": "c26>000000LD0<0D0<0D0<0D0<400000000U20kM0000000h2"}
# A disc with the radius 50 around column 70 and row 90: 7,825 pixels in columns 21 to 120, rows 41 to 140.
RLE_DISC = {
    "size": [200, 150],
    "counts": "iU4c0a58H8J4L4L4L4L4M2N2M4M2N2N2N2N2N2N2N2O0O2N2N2O0O2O0O2O0O2O0O2O0O2O00000O2O00000O2O"
    "000000000000000000000000000000000001N1000001N1000001N101N101N101N101N101N2N2N101N2N2N2N2N2N2N2N3L3N2N3L4L4L4L4L6H"
    "8HSi5",
}


def test_mask_of_coco_becomes_its_areas():
    answer = {"items": "@", "polygon": "mask", "polygonFormat": "RLE"}
    (feature,) = read(answer, [{"mask": RLE_TWO_PARTS}], tile=ImageDimensions(30, 20)).features
    shape = shapely.geometry.shape(feature["properties"]["imageGeometry"])
    hole = shapely.box(8, 5, 12, 7)
    assert shape.equals(shapely.box(4, 3, 17, 9).difference(hole).union(shapely.box(20, 12, 25, 18)))
    assert shape.area == 100
    (feature,) = read(answer, [{"mask": RLE_DISC}], tile=ImageDimensions(150, 200)).features
    shape = shapely.geometry.shape(feature["properties"]["imageGeometry"])
    assert (shape.area, shape.bounds) == (7825, (21, 41, 120, 140))


def test_mask_without_compression_and_of_another_size_is_scaled_to_tile():
    # Two rows and four columns; the lower pixels of the second and third column.
    mask = {"size": [2, 4], "counts": [3, 1, 1, 1, 2]}
    found = properties_of({"polygon": "m", "polygonFormat": "RLE"}, {"m": mask})
    assert shapely.geometry.shape(found["imageGeometry"]).equals(shapely.box(50, 50, 150, 100))
    whole = {"size": [2, 4], "counts": [0, 8]}
    found = properties_of({"polygon": "m", "polygonFormat": "RLE"}, {"m": whole})
    assert shapely.geometry.shape(found["imageGeometry"]).equals(shapely.box(0, 0, 200, 100))


def test_labels_become_names_and_scores_are_filtered():
    answer = {"items": "@", "box": "b", "label": "c", "score": "s", "classes": {"0": "ship", "cat": "lion"}}
    items = [{"c": label, "s": score} for label, score in [(0, 0.9), (0.0, 0.25), ("cat", 0.5), (7, 1), ("0", 0.1)]]
    items = [item | {"b": [1, 2, 3, 4]} for item in [*items, {"c": "dog"}, {"s": 0.7}, {}]]
    parsed = read(answer | {"minScore": 0.25}, items)
    classes = [feature["properties"].get("featureClasses") for feature in parsed.features]
    assert not parsed.dropped
    assert classes == [
        [{"iri": "ship", "score": 0.9}],
        [{"iri": "ship", "score": 0.25}],
        [{"iri": "lion", "score": 0.5}],
        [{"iri": "7", "score": 1}],
        [{"iri": "dog"}],
        [{"iri": "object", "score": 0.7}],
        None,
    ]


HUGGING_FACE = {"score": 0.5, "label": "ship", "box": {"xmin": 1, "ymin": 2, "xmax": 3, "ymax": 4}}
MISSING, BOX, CLASSES = "NO_IMAGE_GEOMETRY", "BAD_IMAGE_BBOX", "BAD_FEATURE_CLASSES"
# Protocol, changed keys of ``answer``, one item, and the reason that it is dropped.
BROKEN_ITEMS = [
    ("HUGGING_FACE", {}, 7, f"{MISSING} at answer.box (box)"),
    ("HUGGING_FACE", {}, None, f"{MISSING} at answer.box (box)"),
    ("HUGGING_FACE", {}, {**HUGGING_FACE, "box": None}, f"{MISSING} at answer.box (box)"),
    ("HUGGING_FACE", {}, {**HUGGING_FACE, "box": []}, f"{BOX} at answer.box (box)"),
    ("HUGGING_FACE", {}, {**HUGGING_FACE, "box": [1, 2, 3]}, f"{BOX} at answer.box (box)"),
    ("HUGGING_FACE", {}, {**HUGGING_FACE, "box": [1, 2, 3, "4"]}, f"{BOX} at answer.box (box)"),
    ("HUGGING_FACE", {}, {**HUGGING_FACE, "box": [1, 2, 3, True]}, f"{BOX} at answer.box (box)"),
    ("HUGGING_FACE", {}, {**HUGGING_FACE, "box": [1, 2, 3, 1e300]}, f"{BOX} at answer.box (box)"),
    ("HUGGING_FACE", {}, {**HUGGING_FACE, "box": [[1, 2], [3, 4]]}, f"{BOX} at answer.box (box)"),
    ("HUGGING_FACE", {}, {**HUGGING_FACE, "box": "1,2,3,4"}, f"{BOX} at answer.box (box)"),
    ("HUGGING_FACE", {}, {**HUGGING_FACE, "box": {"xmin": 1, "ymin": 2}}, f"{BOX} at answer.box (box)"),
    ("HUGGING_FACE", {}, {**HUGGING_FACE, "score": "0.5"}, f"{CLASSES} at answer.score (score)"),
    ("HUGGING_FACE", {}, {**HUGGING_FACE, "score": [0.5]}, f"{CLASSES} at answer.score (score)"),
    ("HUGGING_FACE", {}, {**HUGGING_FACE, "label": {"id": 3}}, f"{CLASSES} at answer.label (label)"),
    ("HUGGING_FACE", {}, {**HUGGING_FACE, "label": True}, f"{CLASSES} at answer.label (label)"),
    ("HUGGING_FACE", {}, {**HUGGING_FACE, "label": "x" * 300_001}, "FEATURE_TOO_LARGE at answer.box (box)"),
    ("HUGGING_FACE", {"boxFormat": "XYWH"}, {"box": [1, 2, -3, 4]}, f"{BOX} at answer.box (box)"),
    ("HUGGING_FACE", {"boxFormat": "XYXYXYXY"}, {"box": [1, 2, 3, 4]}, f"{BOX} at answer.box (box)"),
    ("TORCHSERVE", {}, ["ship"], "UNREADABLE at answer.box (values(@)[?type(@) == 'array'] | [0])"),
    ("TORCHSERVE", {}, {"score": 0.5}, f"{MISSING} at answer.box (values(@)[?type(@) == 'array'] | [0])"),
    ("ROBOFLOW", {"items": "@"}, {"x": 1, "y": 2}, f"{BOX} at answer.box ([x, y, width, height])"),
    ("SAGEMAKER_DETECTION", {"items": "@"}, [0, 0.9, 0.1], f"{BOX} at answer.box ([2:6])"),
]
BROKEN_OUTLINES = [
    ("POINTS", [[1, 2], [3, 4]], "BAD_IMAGE_GEOMETRY"),
    ("POINTS", [[1, 2], [3, 4], [5]], "BAD_IMAGE_GEOMETRY"),
    ("POINTS", [[1, 2], [3, 4], [5, "6"]], "BAD_COORDINATES"),
    ("POINTS", [[1, 2], [3, 4], [5, 1e200]], "BAD_COORDINATES"),
    ("POINTS", [{"x": 1}], "BAD_IMAGE_GEOMETRY"),
    ("POINTS", 7, "BAD_IMAGE_GEOMETRY"),
    ("POINTS", "outline", "BAD_IMAGE_GEOMETRY"),
    ("XY_ARRAYS", {"x": [1, 2, 3], "y": [1, 2]}, "BAD_IMAGE_GEOMETRY"),
    ("XY_ARRAYS", {"x": [1, 2, 3]}, "BAD_IMAGE_GEOMETRY"),
    ("XY_ARRAYS", [[1, 2], [3, 4], [5, 6]], "BAD_IMAGE_GEOMETRY"),
    ("FLAT", [1, 2, 3, 4, 5], "BAD_IMAGE_GEOMETRY"),
    ("FLAT", [[1, 2, 3, 4, 5, 6], 7], "BAD_IMAGE_GEOMETRY"),
    ("FLAT", {"x": 1}, "BAD_IMAGE_GEOMETRY"),
    ("RLE", [1, 2, 3], "BAD_MASK: size is not [rows, columns] of 1 to 16384"),
    ("RLE", {"size": [2, 10**9], "counts": [1]}, "BAD_MASK: size is not [rows, columns] of 1 to 16384"),
    ("RLE", {"size": [2, 2], "counts": [1, 2]}, "BAD_MASK: counts cover 3 of 4 pixels"),
    ("RLE", {"size": [2, 2], "counts": [4]}, "BAD_MASK: the mask has no pixel"),
    ("RLE", {"size": [2, 2], "counts": [-1, 5]}, "BAD_MASK: counts is neither a list of lengths nor a compressed text"),
    ("RLE", {"size": [2, 2], "counts": None}, "BAD_MASK: counts is neither a list of lengths nor a compressed text"),
    ("RLE", {"size": [2, 2], "counts": "ü"}, "BAD_MASK: counts is not a compressed list of lengths"),
    ("RLE", {"size": [2, 2], "counts": "P" * 9}, "BAD_MASK: counts is not a compressed list of lengths"),
    ("RLE", {"size": [2, 2], "counts": "1P"}, "BAD_MASK: counts ends inside a length"),
    (
        "RLE",
        {"size": [9, 9], "counts": [0] * (MAX_RUNS + 1)},
        f"BAD_MASK: the masks of a response have more than {MAX_RUNS}",
    ),
]


@pytest.mark.parametrize(("protocol", "answer", "item", "reason"), BROKEN_ITEMS)
def test_broken_item_is_dropped_and_its_path_is_named(protocol, answer, item, reason):
    good = {"TORCHSERVE": {"ship": [1, 2, 3, 4], "score": 0.5}, "SAGEMAKER_DETECTION": [1, 0.5, 0.1, 0.2, 0.3, 0.4]}
    good |= {"ROBOFLOW": {"x": 9, "y": 9, "width": 2, "height": 4, "confidence": 0.5, "class": "ship"}}
    other = good.get(
        protocol,
        {**HUGGING_FACE, "box": [1, 2, 3, 4, 5, 6, 7, 8]}
        if "XYXYXYXY" in answer.values()
        else {**HUGGING_FACE, "box": [1, 2, 3, 4]},
    )
    parsed = read(answer, [other, item, other], protocol)
    assert parsed.dropped == Counter([reason])
    assert len(parsed.features) == 2


@pytest.mark.parametrize(("polygon_format", "polygon", "reason"), BROKEN_OUTLINES)
def test_broken_outline_is_dropped_and_its_path_is_named(polygon_format, polygon, reason):
    answer = {"items": "@", "box": "b", "polygon": "p", "polygonFormat": polygon_format}
    box = {"b": [1, 2, 3, 4]}
    parsed = read(answer, [box, {**box, "p": polygon}])
    (found,) = parsed.dropped
    assert found.startswith(reason)
    assert found.endswith("at answer.polygon (p)")
    assert len(parsed.features) == 1


@pytest.mark.parametrize(
    ("items", "body", "reason"),
    [
        ("images[0].results", b"", "not valid JSON"),
        ("images[0].results", b"<html>", "not valid JSON"),
        ("images[0].results", b'{"images": [', "not valid JSON"),
        ("images[0].results", b'{"images": NaN}', "not valid JSON"),
        ("images[0].results", b"\xff\xfe", "not valid JSON"),
        ("images[0].results", b"null", "answer.items (images[0].results) selects nothing"),
        ("images[0].results", b"[]", "answer.items (images[0].results) selects nothing"),
        ("images[0].results", b'{"detail": "secret"}', "answer.items (images[0].results) selects nothing"),
        ("images[0].results", b'{"images": []}', "answer.items (images[0].results) selects nothing"),
        ("images[0].results", b'{"images": [{"results": null}]}', "answer.items (images[0].results) selects nothing"),
        ("images[0].results", b'{"images": [{"results": {}}]}', "selects an object"),
        ("images[0].results", b'{"images": [{"results": "secret"}]}', "selects a text"),
        ("images[0].results", b'{"images": [{"results": 0}]}', "selects a number"),
        ("images[0].results", b'{"images": [{"results": true}]}', "selects true or false"),
        ("images[].result[]", b'{"images": [{"results": [{}]}]}', "answer.items (images[].result[]) selects nothing"),
        ("images[*].result", b'{"images": [{"results": []}]}', "answer.items (images[*].result) selects nothing"),
        ("*.found[]", b'{"a": {"results": []}}', "answer.items (*.found[]) selects nothing"),
        ("values(@)", b"[]", "answer.items (values(@)) cannot be applied to the response"),
        ("@", b"[" + b"{}," * 600_000 + b"{}]", "the parsed response needs"),
        ("@", b"[" + b"0," * MAX_ITEMS + b"0]", f"selects {MAX_ITEMS + 1} items, at most {MAX_ITEMS} are allowed"),
    ],
)
def test_broken_response_fails_its_tile_and_path_is_named(items, body, reason):
    with pytest.raises(BadModelResponseError) as caught:
        read({"items": items, "box": "b"}, body)
    assert reason in str(caught.value)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("items", "body"),
    [
        ("images[0].results", b'{"images": [{"results": []}]}'),
        ("images[].results[]", b'{"images": [{"results": []}]}'),
        ("images[].results[]", b'{"images": []}'),
        ("predictions || `[]`", b"{}"),
        ("not_null(predictions, `[]`)", b"{}"),
        ("predictions[?score > `0.5`]", b'{"predictions": [{"score": 0.1}]}'),
    ],
)
def test_empty_list_is_tile_without_detections(items, body):
    assert read({"items": items, "box": "b"}, body) == ([], Counter())


def test_path_that_selects_nothing_in_any_item_is_counted():
    answer = {"items": "@", "box": "b", "label": "name", "score": "s", "polygon": "p"}
    items = [{"b": [1, 2, 3, 4], "s": 0.5}] * 3
    reasons = {"UNSELECTED answer.label (name)": 3, "UNSELECTED answer.polygon (p)": 3}
    assert read(answer, items).dropped == reasons
    assert not read(answer, []).dropped
    assert not read(answer, [*items, {"b": [1, 2, 3, 4], "name": "a", "p": [[1, 2], [3, 4], [5, 6]]}]).dropped


def test_outlines_of_protocol_are_optional_and_empty_outline_is_box():
    item = {"name": "a", "confidence": 0.5, "box": {"x1": 1, "y1": 2, "x2": 3, "y2": 4}}
    for extra in ({}, {"segments": {}}, {"segments": None}):
        parsed = read({}, {"images": [{"results": [item | extra]}]}, "ULTRALYTICS")
        assert not parsed.dropped
        assert parsed.features[0]["properties"]["imageBBox"] == [1, 2, 3, 4]


def test_no_path_is_compiled_for_a_response(monkeypatch):
    compiled = []
    real = answer_reader.jmespath.compile
    monkeypatch.setattr(answer_reader.jmespath, "compile", lambda text: compiled.append(text) or real(text))
    read_response = reader_of(ModelProtocol.of({"protocol": "HUGGING_FACE"}))
    assert {"box", "label", "score"} <= set(compiled)
    compiled.clear()
    read_response(orjson.dumps([HUGGING_FACE] * 5), TILE, MAX_BYTES)
    assert compiled == []


def test_answer_keeps_paths_of_protocol_that_request_does_not_set():
    answer = Answer.model_validate({"classes": {"4": "ship"}}).over({"items": "prediction", "units": "NORMALIZED"})
    assert (answer.items, answer.units, answer.classes) == ("prediction", "NORMALIZED", {"4": "ship"})
