"""The tags of the first image of a TIFF (TIFF 6.0, BigTIFF), read before GDAL opens the file.

GDAL parses some tags when it opens a file, in a time that grows with the square or the cube of their size.
"""

import re
import struct
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

# (offset, count) -> bytes of the file; fewer, or none, where the file ends before.
ReadAt = Callable[[int, int], bytes]

GDAL_METADATA, CITATIONS, TIE_POINTS = 42112, 34737, 33922
# Tags that GDAL parses: descriptions, XMP, ICC, the coordinate system, its own metadata, RPC.
_PARSED_TAGS = frozenset({270, 700, 33550, TIE_POINTS, 34264, 34675, 34735, 34736, CITATIONS, GDAL_METADATA, 50844})
_KIND_BYTES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}
# Tags whose text is searched here. libtiff also reads text that is stored as wider numbers.
_SEARCHED_TAGS = frozenset({CITATIONS, GDAL_METADATA})
_NUMBERS_OF_TIE_POINT = 6
_HEIGHT, _STRIP_OFFSETS, _SAMPLES, _ROWS_PER_STRIP, _STRIP_BYTES, _PLANAR = 257, 273, 277, 278, 279, 284
_SEPARATE = 2
# libtiff refuses a directory with more tags.
_MAX_TAGS = 4096
# GDAL ignores the case of names in XML, and reads values without quotes.
_ITEM = re.compile(rb"<(?:Item|MDI)", re.IGNORECASE)
_DOMAIN = re.compile(rb"""domain\s*=\s*(?:"([^"]*)|'([^']*)|([^\s>]*))""", re.IGNORECASE)


class OddHeaderError(ValueError):
    """GDAL may read a header in another way than the checks before it do; the message has the reason."""


class TiffTag(NamedTuple):
    """A tag whose value lies at ``offset``, ``values`` numbers or characters in ``size_bytes``."""

    number: int
    values: int
    size_bytes: int
    offset: int


class _Layout(NamedTuple):
    order: str
    tag_count: str
    entry: str
    word_bytes: int


_LAYOUTS = {
    b"II*\0": _Layout("<", "H", "HHI", 4),
    b"MM\0*": _Layout(">", "H", "HHI", 4),
    b"II+\0": _Layout("<", "Q", "HHQ", 8),
    b"MM\0+": _Layout(">", "Q", "HHQ", 8),
}


def tiff_tags(read_at: ReadAt) -> Iterator[TiffTag]:
    """Yield the tags of the first directory of a TIFF; nothing where the file is not a TIFF or is truncated.

    Raises OddHeaderError for a citation or metadata in numbers of more than one byte.
    """
    head = read_at(0, 16)
    layout = _LAYOUTS.get(head[:4])
    if layout is None or len(head) < 16:
        return
    order, word = layout.order, {4: "I", 8: "Q"}[layout.word_bytes]
    (start,) = struct.unpack_from(order + word, head, layout.word_bytes)
    count_bytes = struct.calcsize(order + layout.tag_count)
    raw = read_at(start, count_bytes)
    if len(raw) < count_bytes:
        return
    count = min(struct.unpack(order + layout.tag_count, raw)[0], _MAX_TAGS)
    first, entry = start + count_bytes, struct.Struct(order + layout.entry)
    entry_bytes = entry.size + layout.word_bytes
    entries = read_at(first, count * entry_bytes)
    for at in range(0, len(entries) - entry_bytes + 1, entry_bytes):
        number, kind, values = entry.unpack_from(entries, at)
        size_bytes = values * _KIND_BYTES.get(kind, 1)
        if number in _SEARCHED_TAGS and size_bytes != values:
            raise OddHeaderError(f"its TIFF tag {number} is not text")
        value_at = first + at + entry.size
        if size_bytes > layout.word_bytes:
            (value_at,) = struct.unpack_from(order + word, entries, at + entry.size)
        yield TiffTag(number, values, size_bytes, value_at)


def check_strips(read_at: ReadAt, tags: Iterable[TiffTag]) -> None:
    """Raise OddHeaderError for an image in one strip with the offsets of several.

    GDAL reads such a strip line by line. On a remote file it looks up the offset of each line, and libtiff 4 aborts the
    process for an offset that has no strip.
    """
    first: dict[int, TiffTag] = {}
    for one in tags:
        first.setdefault(one.number, one)

    def number(tag_number: int, default: int) -> int:
        tag = first.get(tag_number)
        if tag is None or not tag.values:
            return default
        raw = read_at(tag.offset, min(8, tag.size_bytes // tag.values))
        return int.from_bytes(raw, "little" if read_at(0, 2) == b"II" else "big")

    is_one_strip = number(_ROWS_PER_STRIP, 2**32 - 1) >= number(_HEIGHT, 0)
    planes = number(_SAMPLES, 1) if number(_PLANAR, 1) == _SEPARATE else 1
    for tag in (first.get(_STRIP_OFFSETS), first.get(_STRIP_BYTES)):
        if is_one_strip and tag is not None and tag.values > planes:
            raise OddHeaderError(f"its TIFF tag {tag.number} has {tag.values} values for an image in one strip")


class Excess(NamedTuple):
    """A property of a header that may be too large: its name in messages, its value and its limit."""

    name: str
    value: int
    limit: int


# Measured: 1,000 domains and 50,000 items open in a second, 10,000 domains in five.
_MAX_DOMAINS = 1_000
_MAX_ITEMS = 50_000
_MAX_TIE_POINTS = 10_000


def tiff_sizes(read_at: ReadAt, tag: TiffTag, max_bytes: int) -> Iterator[Excess]:
    """Yield the sizes of a tag that determine how long GDAL takes to open its file; nothing for ignored tags."""
    if tag.number not in _PARSED_TAGS:
        return
    yield Excess(f"metadata in bytes (TIFF tag {tag.number})", tag.size_bytes, max_bytes)
    if tag.size_bytes > max_bytes:
        return
    if tag.number == TIE_POINTS:
        yield Excess("number of control points", tag.values // _NUMBERS_OF_TIE_POINT, _MAX_TIE_POINTS)
    if tag.number == GDAL_METADATA:
        yield from metadata_sizes(read_at(tag.offset, tag.size_bytes))


def metadata_sizes(text: bytes) -> Iterator[Excess]:
    """Yield the sizes of GDAL's metadata in XML that determine how long GDAL takes to read them."""
    yield Excess("number of items of metadata", sum(1 for _ in _ITEM.finditer(text)), _MAX_ITEMS)
    domains = {match[match.lastindex or 0] for match in _DOMAIN.finditer(text)}
    yield Excess("number of domains of metadata", len(domains), _MAX_DOMAINS)
