"""Bodies of calls: what they hold, by other parsers, and how long they may be."""

import base64
import json

import pytest

from aws.osml.model_runner.api.model_protocol import ModelProtocol
from aws.osml.model_runner.inference.tensor_envelope import envelope_of
from detection_servers import parts_of_form


def envelope(protocol="CUSTOM", tile_format="PNG", **keys):
    answer = {"items": "@", "box": "b"} if protocol == "CUSTOM" else {}
    return envelope_of(ModelProtocol.of({"protocol": protocol, "envelope": keys, "answer": answer}), tile_format)


TILES = [b"", b"tile", bytes(range(256)) * 5, b"\r\n--boundary--\r\n", memoryview(b"_tile_")[1:-1]]


@pytest.mark.parametrize("tile", TILES)
def test_raw_body_is_tile(tile):
    assert envelope(body="RAW").wrap(tile)[:2] == (tile, "image/png")
    assert envelope("OSML", "NITF").wrap(tile)[:2] == (tile, "image/nitf")


@pytest.mark.parametrize("tile", TILES)
def test_form_holds_file_and_fields(tile):
    template = {"size": 640, "conf": 0.25, "name": 'quo"te\r\nX: y', "is_fast": True}
    body, media_type, _ = envelope(body="MULTIPART", field="image", template=template, tile_format="JPEG").wrap(tile)
    parts = parts_of_form(body, {"content-type": media_type})
    assert parts["image"].get_payload(decode=True) == bytes(tile)
    assert parts["image"].get_filename() == "tile.jpeg"
    assert parts["image"].get_content_type() == "image/jpeg"
    fields = {name: part.get_payload(decode=True).decode() for name, part in parts.items() if name != "image"}
    assert fields == {"size": "640", "conf": "0.25", "name": 'quo"te\r\nX: y', "is_fast": "true"}


def test_tile_cannot_end_its_part_of_form():
    wrap = envelope(body="MULTIPART").wrap
    boundary = wrap(b"tile")[1].rpartition("=")[2]
    hostile = f"\r\n--{boundary}\r\nContent-Disposition: form-data; name=model\r\n\r\nother\r\n--{boundary}--".encode()
    body, media_type, _ = wrap(hostile)
    parts = parts_of_form(body, {"content-type": media_type})
    assert list(parts) == ["file"]
    assert parts["file"].get_payload(decode=True) == hostile


@pytest.mark.parametrize("tile", TILES)
def test_json_body_holds_tile_and_template(tile):
    template = {"tile": "tiletile", "image": "data:image/png;base64,"}
    body, media_type, _ = envelope(body="BASE64_JSON", field="image", template=template).wrap(tile)
    document = json.loads(body)
    assert media_type == "application/json"
    assert base64.b64decode(document.pop("image").removeprefix("data:image/png;base64,"), validate=True) == tile
    assert document == {"tile": "tiletile"}


@pytest.mark.parametrize(
    "keys",
    [
        {"body": "RAW"},
        {"body": "MULTIPART"},
        {"body": "MULTIPART", "field": "ü" * 40, "template": {"a": "b" * 500, "ö" * 30: 4}},
        {"body": "BASE64_JSON", "field": "a[0].b", "template": {"c": "d" * 100}},
    ],
)
@pytest.mark.parametrize("limit", [4_000, 4_001, 4_002, 4_003, 50_000])
def test_largest_tile_with_room_in_body_fits(keys, limit):
    wrap, room_in = envelope(**keys)
    room = room_in(limit, 1)
    assert room > 0
    assert len(wrap(b"x" * room).content) <= limit
    assert len(wrap(b"x" * (room + 4_100)).content) > limit
    assert room_in(10, 1) in (0, 10)
