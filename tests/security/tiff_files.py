"""TIFF files with any tags, true or not; GDAL would refuse to write most of them."""

import struct
from collections.abc import Mapping
from pathlib import Path

Value = int | bytes | list[int]

WIDTH, HEIGHT, BITS, COMPRESSION, PHOTOMETRIC, STRIPS, SAMPLES, ROWS, STRIP_BYTES = (
    *(256, 257, 258, 259, 262, 273, 277, 278, 279),
)
TILE_WIDTH, TILE_HEIGHT, TILES, TILE_BYTES, GDAL_METADATA = 322, 323, 324, 325, 42112
_ASCII, _SHORT, SIGNED_BYTE, _DOUBLE, _LONG8 = 2, 3, 6, 12, 16
_SIZES = {_ASCII: 1, _SHORT: 2, SIGNED_BYTE: 1, _DOUBLE: 8, _LONG8: 8}
_HEADER = struct.Struct("<2sHHHQ")
_ENTRY = struct.Struct("<HHQ8s")


def write_tiff(
    path: Path,
    tags: Mapping[int, Value],
    pixels: bytes = b"",
    counts: Mapping[int, int] = {},
    kinds: Mapping[int, int] = {},
) -> Path:
    """Write a BigTIFF: numbers as 64 bits, bytes as text; ``counts`` overrides the number of values of a tag.

    ``kinds`` names another type for a tag's numbers: 3 for 16 bits, 12 for doubles, given by their 64 bits. A text in
    such a type has a number for each character.

    Offsets in ``STRIPS`` and ``TILES`` count from the start of ``pixels``. A file without pixels keeps them as zeros:
    the block is missing and reads as zeros.
    """
    directory_end = _HEADER.size + 8 + _ENTRY.size * len(tags) + 8
    packed = {tag: _packed(value, kinds.get(tag, _LONG8)) for tag, value in tags.items()}
    pixels_at = directory_end + sum(len(raw) for raw in packed.values() if len(raw) > 8)
    entries, extra = [], b""
    for tag, value in sorted(tags.items()):
        if tag in (STRIPS, TILES) and pixels:
            packed[tag] = _packed([pixels_at + offset for offset in ([value] if isinstance(value, int) else value)])
        raw = field = packed[tag]
        kind = _ASCII if isinstance(value, bytes) else kinds.get(tag, _LONG8)
        unit = _SIZES[kind]
        if len(raw) > 8:
            field = struct.pack("<Q", directory_end + len(extra))
            extra += raw
        entries.append(_ENTRY.pack(tag, kind, counts.get(tag, len(raw) // unit), field.ljust(8, b"\0")))
    head = _HEADER.pack(b"II", 43, 8, 0, _HEADER.size) + struct.pack("<Q", len(entries))
    path.write_bytes(head + b"".join(entries) + bytes(8) + extra + pixels)
    return path


def plain_tags(width: int, height: int, **others: Value) -> dict[int, Value]:
    """Return the tags of one band of bytes in a single strip."""
    return {
        WIDTH: width,
        HEIGHT: height,
        BITS: 8,
        COMPRESSION: 1,
        PHOTOMETRIC: 1,
        STRIPS: 0,
        SAMPLES: 1,
        ROWS: height,
        STRIP_BYTES: width * height,
    }


def write_many_offsets_of_one_strip(path: Path) -> Path:
    """Write a file of one strip with 100 offsets of a type that libtiff cannot read.

    libtiff 4 aborts the process that reads it from a web server or S3.
    """
    tags = {**plain_tags(20, 3000), COMPRESSION: 8}
    return write_tiff(path, tags, counts={STRIPS: 100, STRIP_BYTES: 100}, kinds={STRIPS: SIGNED_BYTE})


def tiled_tags(
    width: int, height: int, tile_width: int, tile_height: int, tile_count: int | None = None
) -> dict[int, Value]:
    """Return the tags of one band of bytes in tiles, none of which is there."""
    count = -(-width // tile_width) * -(-height // tile_height) if tile_count is None else tile_count
    return {
        WIDTH: width,
        HEIGHT: height,
        BITS: 8,
        COMPRESSION: 1,
        PHOTOMETRIC: 1,
        SAMPLES: 1,
        TILE_WIDTH: tile_width,
        TILE_HEIGHT: tile_height,
        TILES: [0] * count,
        TILE_BYTES: [0] * count,
    }


def _packed(value: Value, kind: int = _LONG8) -> bytes:
    if isinstance(value, bytes):
        return value + b"\0"
    numbers = [value] if isinstance(value, int) else value
    return struct.pack(f"<{len(numbers)}{'H' if kind == _SHORT else 'Q'}", *numbers)
