"""Estimates the memory to decode a JPEG 2000 image from the headers of its file.

When the decoder opens a file, it allocates for every tile that the header announces. When it decodes a tile, it
allocates for every code-block of that tile. Both happen before it reads their bytes. A file of 300 bytes can thus
allocate 5 GB, so this module reads the header first. A codestream (ISO/IEC 15444-1) is a whole file, a box of
a JP2 file, or the pixels of an image segment in a NITF.

A file is read as GDAL and OpenJPEG read it, also where they accept more than the standards do. A header that they may
read in another way than this module raises OddHeaderError.

Headers of single tiles may announce smaller code-blocks than the main header does. They lie anywhere in the file and
are not read here; the memory limit of the process bounds them.
"""

import itertools
import math
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

from .tiff_tags import OddHeaderError

# (offset, count) -> bytes of the file; fewer, or none, where the file ends before.
ReadAt = Callable[[int, int], bytes]

# Memory of OpenJPEG's records, measured with version 2.5. A precinct has two tag trees.
_TILE_BYTES = 10 * 1024
_TILE_COMPONENT_BYTES = 1_100
_CODE_BLOCK_BYTES = 450
_PRECINCT_BYTES = 600

_START = b"\xff\x4f"  # SOC
_SIZ, _COD, _COC, _SOT, _SOD = 0xFF51, 0xFF52, 0xFF53, 0xFF90, 0xFF93
_SIZ_BYTES = 36
# Markers of a main header that OpenJPEG knows, each with a segment. After any other marker, it searches for one of
# these, two bytes at a time.
_SEGMENTS = frozenset(
    {0xFF50, _SIZ, _COD, _COC, 0xFF55, 0xFF57, 0xFF58, 0xFF59, 0xFF5C, 0xFF5D, 0xFF5E, 0xFF5F, 0xFF60, 0xFF63, 0xFF64}
    | {0xFF74, 0xFF75, 0xFF77, 0xFF78}
)
# From so many components on, a COC segment names its component in two bytes.
_WIDE_COMPONENTS = 257
_SIGNATURE = b"\x00\x00\x00\x0cjP  \r\n\x87\n"
_MAX_BOXES = 1_000
_MAX_MARKERS = 1_000
# GDAL recognizes files by these characters alone.
_NITF_SIGNATURES = (b"NITF", b"NSIF")
_JP2_KIND = b"jP  "
_NITF_HEADER_BYTES = 403


@dataclass(frozen=True)
class Codestream:
    """Contents of a codestream's main header. Sizes are in pixels; the last tiles may be smaller."""

    width: int
    height: int
    tile_width: int
    tile_height: int
    component_count: int
    code_block_px: int = 64 * 64
    precincts_per_px: float = 0.0

    @property
    def tile_count(self) -> int:
        """Tiles of the whole image; 0 where the tile size is 0."""
        if not (self.tile_width and self.tile_height):
            return 0
        return math.ceil(self.width / self.tile_width) * math.ceil(self.height / self.tile_height)

    def decoder_bytes(self, file_bytes: int) -> int:
        """Return the approximate memory of the decoder, without pixels, for a file of ``file_bytes``.

        It is the sum of the records of all tiles, and one tile's code-blocks, precincts and share of the file.
        """
        tile_px = min(self.tile_width, self.width) * min(self.tile_height, self.height) * self.component_count
        records = self.tile_count * (_TILE_BYTES + self.component_count * _TILE_COMPONENT_BYTES)
        code_blocks, precincts = tile_px / self.code_block_px, tile_px * self.precincts_per_px
        parts = int(code_blocks * _CODE_BLOCK_BYTES + precincts * _PRECINCT_BYTES)
        return records + parts + file_bytes // max(1, self.tile_count)


class Box(NamedTuple):
    """A box of a JP2 file; ``offset`` and ``size_bytes`` locate its content."""

    kind: bytes
    offset: int
    size_bytes: int


def codestreams(read_at: ReadAt, file_bytes: int) -> Iterator[Codestream]:
    """Yield every codestream of a file that GDAL may open as an image; nothing where the file is of another kind.

    Broken codestreams are skipped, because the decoder refuses them as well.
    """
    for offset in _pictures(read_at):
        bare = [offset] if read_at(offset, 2) == _START else []
        boxed = (box.offset for box in _boxes(read_at, offset, file_bytes) if box.kind == b"jp2c")
        for start in itertools.chain(bare, boxed):
            codestream = _codestream(read_at, start)
            if codestream is not None:
                yield codestream


def boxes(read_at: ReadAt, file_bytes: int) -> Iterator[Box]:
    """Yield the boxes of every JP2 file that a file is or holds; see ISO/IEC 15444-1, annex I."""
    for offset in _pictures(read_at):
        yield from _boxes(read_at, offset, file_bytes)


def _pictures(read_at: ReadAt) -> Iterator[int]:
    """Yield the offsets at which an image may begin: 0, or in a NITF the pixels of each image segment.

    See MIL-STD-2500C, table A-1. The header of a NITF before 2.1 may be 40 bytes longer. GDAL applies this rule to all
    versions.
    """
    if read_at(0, 4).upper() not in _NITF_SIGNATURES:
        yield 0
        return
    header = read_at(0, _NITF_HEADER_BYTES)
    start = 394 if header[280:286] == b"999998" else 354
    offset, count = _number(header[start : start + 6]), _number(header[start + 6 : start + 9])
    lengths = read_at(start + 9, 16 * count)
    for number in range(len(lengths) // 16):
        entry = lengths[16 * number : 16 * number + 16]
        offset += _number(entry[:6])
        yield offset
        offset += _number(entry[6:])


def _boxes(read_at: ReadAt, offset: int, file_bytes: int) -> Iterator[Box]:
    signature = read_at(offset, 12)
    if signature[4:8] != _JP2_KIND:
        return
    if signature != _SIGNATURE:
        raise OddHeaderError("the signature box of its JPEG 2000 is not the one of ISO/IEC 15444-1")
    for _ in range(_MAX_BOXES):
        head = read_at(offset, 16)
        if len(head) < 8:
            return
        length, kind, head_bytes = *struct.unpack(">I4s", head[:8]), 8
        if length == 1 and len(head) == 16:
            length, head_bytes = struct.unpack(">Q", head[8:])[0], 16
        is_last = length < head_bytes or offset + length >= file_bytes  # 0: the box goes on to the end
        end = file_bytes if is_last else offset + length
        yield Box(kind, offset + head_bytes, max(0, end - offset - head_bytes))
        if is_last:
            return
        offset += length
    raise OddHeaderError(f"its JPEG 2000 has more than {_MAX_BOXES} boxes")


def _number(digits: bytes) -> int:
    """Return the value of a field of a NITF. GDAL ignores characters around the digits, so they are refused."""
    if digits and not digits.isdigit():
        raise OddHeaderError("a length or a number in the header of its NITF has other characters than digits")
    return int(digits or b"0")


def _codestream(read_at: ReadAt, offset: int) -> Codestream | None:
    if read_at(offset, 2) != _START:
        return None
    segments = _segments(read_at, offset + len(_START))
    size = next((content for marker, content in segments if marker == _SIZ), b"")
    if len(size) < _SIZ_BYTES:
        return None
    _, right, bottom, left, top, tile_width, tile_height, _, _, count = struct.unpack_from(">HIIIIIIIIH", size)
    code_block_px, precincts_per_px = _coding(segments, count)
    return Codestream(
        width=max(0, right - left),
        height=max(0, bottom - top),
        tile_width=tile_width,
        tile_height=tile_height,
        component_count=count,
        code_block_px=code_block_px,
        precincts_per_px=precincts_per_px,
    )


def _segments(read_at: ReadAt, offset: int) -> Iterator[tuple[int, bytes]]:
    """Yield the marker and the content of the SIZ, COD and COC segments of a main header."""
    for _ in range(_MAX_MARKERS):
        head = read_at(offset, 4)
        marker, length = struct.unpack(">HH", head) if len(head) == 4 else (_SOD, 0)
        if marker in (_SOT, _SOD):
            return
        if marker not in _SEGMENTS:
            offset += 2
        elif length < 2:
            return
        else:
            if marker in (_SIZ, _COD, _COC):
                yield marker, read_at(offset + 4, length - 2)
            offset += 2 + length
    raise OddHeaderError(f"the main header of its JPEG 2000 has more than {_MAX_MARKERS} markers")


def _coding(segments: Iterator[tuple[int, bytes]], component_count: int) -> tuple[int, float]:
    """Return the least pixels of a code-block and the most precincts per pixel that the main header announces.

    COD holds for all components, and each COC for one; a decoder takes the last of several.
    """
    styles = []
    for marker, content in segments:
        if marker == _COD:
            styles.append(_coding_style(content))
        elif marker == _COC:
            # In the layout of COD: without the component, with an unused progression.
            style_at = 2 if component_count >= _WIDE_COMPONENTS else 1
            styles.append(_coding_style(content[style_at : style_at + 1] + bytes(4) + content[style_at + 1 :]))
    if not styles:
        return Codestream.code_block_px, Codestream.precincts_per_px
    return min(px for px, _ in styles), max(per_px for _, per_px in styles)


def _coding_style(segment: bytes) -> tuple[int, float]:
    """Read a COD segment: style, progression, layers, transform, levels, code-block width and height, style, wavelet.

    If the first bit of the style is set, the precincts of each resolution follow, the coarsest first.
    """
    if len(segment) < 10:
        return Codestream.code_block_px, Codestream.precincts_per_px
    code_block_px = 1 << min(12, (segment[6] & 0xF) + (segment[7] & 0xF) + 4)
    sizes = segment[10:] if segment[0] & 1 else b""
    per_px = [
        0.25 ** (len(sizes) - 1 - level) / (1 << ((size & 0xF) + (size >> 4))) for level, size in enumerate(sizes)
    ]
    return code_block_px, sum(per_px)
