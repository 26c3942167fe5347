"""Bodies of model calls: the tile as it is, as a file in a form, or as base64 in a JSON document."""

import base64
import hashlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import orjson
from urllib3.filepost import encode_multipart_formdata

from aws.osml.model_runner.api.model_protocol import with_tile
from aws.osml.model_runner.common.typing import EncodedTile, ImageFormats

from .detector import content_type_of

# Bytes of a form beside its file and the fields of its template: boundaries and headers of parts.
_FORM_BYTES = 1_024
_MARK = "tile"


class CallBody(NamedTuple):
    """The body of a call and its media type; None sends none, as for tiles of an unknown format.

    ``json_bytes`` is the length of the JSON before the bytes of tensors, for protocols that send tensors.
    """

    content: EncodedTile
    media_type: str | None
    json_bytes: int | None = None


class Envelope(NamedTuple):
    """``wrap`` returns the body for a tile; raises ModelCallError where the model does not take it.

    ``room_in`` returns the maximum size of a tile for that of a body, where a sample of a pixel has so many bytes.
    """

    wrap: Callable[[EncodedTile], CallBody]
    room_in: Callable[[int, int], int]


def raw_envelope(tile_format: str | None) -> Envelope:
    """Return the envelope that sends a tile as it is."""
    media_type = content_type_of(tile_format)
    return Envelope(lambda tile: CallBody(tile, media_type), lambda body_bytes, _sample_bytes: body_bytes)


def multipart_envelope(field: str, template: Mapping[str, Any], tile_format: str | None) -> Envelope:
    """Return the envelope that sends a form with the tile as the file ``field``, and the fields of ``template``."""
    media_type = content_type_of(tile_format) or "application/octet-stream"
    fields = {
        name: value if isinstance(value, str) else orjson.dumps(value).decode() for name, value in template.items()
    }
    file_name = f"tile.{ImageFormats(tile_format).lower()}" if tile_format else "tile"
    fields_bytes = sum(len(f"{name}{value}".encode()) + _FORM_BYTES for name, value in fields.items())

    def wrap(tile: EncodedTile) -> CallBody:
        # No tile contains its own digest, so pixels cannot end the file and begin another field.
        boundary = hashlib.sha256(tile).hexdigest()
        body, content_type = encode_multipart_formdata(
            {**fields, field: (file_name, bytes(tile), media_type)}, boundary
        )
        return CallBody(body, content_type)

    return Envelope(wrap, lambda body_bytes, _sample_bytes: max(0, body_bytes - fields_bytes - _FORM_BYTES))


def base64_envelope(field: str, template: Mapping[str, Any]) -> Envelope:
    """Return the envelope that sends ``template`` with the tile in base64 at the path ``field``."""
    mark = _MARK
    while mark in orjson.dumps(template).decode():
        mark += _MARK
    before, after = orjson.dumps(with_tile(template, field, mark)).split(mark.encode())

    def wrap(tile: EncodedTile) -> CallBody:
        return CallBody(b"".join((before, base64.b64encode(tile), after)), "application/json")

    return Envelope(wrap, lambda body_bytes, _: max(0, (body_bytes - len(before) - len(after)) // 4 * 3))
