"""Uncompressed GeoTIFF tiles by example: GDAL writes the first tiles, and templates of them give all others.

Tiles of one image and one size differ in two things only: their pixels, and the position of their corner on the ground.
The pixels have the same order in the file as in memory. A template saves most of GDAL's time, which goes into copying
the pixels through its caches.

This module does not know the format. A template is learned from a tile that GDAL wrote, and has to reproduce another
such tile byte for byte before it is used. Where it does not, as with control points or an RPC of the tile's own, GDAL
writes every tile. (GDAL puts the empty strips of a tile behind the others; a template leaves them in place.)
"""

import struct
import threading
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from aws.osml.model_runner.common.typing import ImageCoord, ImageDimensions, ImageRegion

# (rows, columns, bands), contiguous
Pixels = npt.NDArray[Any]
# x and y of the outer corner of a tile's first pixel, in the units of the image's coordinate system.
Corner = tuple[float, float]

# GDAL reads numbers only to addresses that are multiples of their size.
_ALIGNMENT = 16
# Maximum number of tiles of a size from which a template is learned.
_MAX_EXAMPLES = 8


class BlankTiff(NamedTuple):
    """A file without its pixels, and the part of the file for its pixels; both are writable."""

    file: memoryview
    pixels: memoryview


@dataclass(frozen=True)
class TiffTemplate:
    """A file without its pixels; ``pixels_at`` and ``corner_at``, of x and y, are positions in ``frame``."""

    frame: bytes
    pixels_at: int
    pixel_bytes: int
    corner_at: tuple[int, int] | None

    @classmethod
    def of(cls, encoded: bytes, pixels: Pixels, corner: Corner | None) -> "TiffTemplate | None":
        """Return the template of a file that holds ``pixels`` at ``corner``; None where they are not found in it.

        A corner must occur exactly once.
        """
        raw = pixels.tobytes()
        pixels_at = encoded.find(raw)
        if pixels_at < 0:
            return None
        frame = encoded[:pixels_at] + encoded[pixels_at + len(raw) :]
        if corner is None:
            return cls(frame, pixels_at, len(raw), None)
        x, y = (struct.pack("<d", value) for value in corner)
        is_clear = frame.count(x) == frame.count(y) == 1 and x != y
        return cls(frame, pixels_at, len(raw), (frame.index(x), frame.index(y))) if is_clear else None

    def blank(self, corner: Corner | None) -> BlankTiff:
        """Return the file of the tile at ``corner``, into which its pixels are read.

        So the pixels are not copied. A copy would take longer than all else, and all threads would wait for it.
        """
        frame = bytearray(self.frame)
        if self.corner_at is not None and corner is not None:
            for position, value in zip(self.corner_at, corner, strict=True):
                struct.pack_into("<d", frame, position, value)
        first, last = self.pixels_at, self.pixels_at + self.pixel_bytes
        # Unlike ``bytearray``, ``np.empty`` does not zero the memory first.
        memory = np.empty(len(frame) + self.pixel_bytes + _ALIGNMENT, np.uint8)
        skipped = -(memory.ctypes.data + first) % _ALIGNMENT
        file = memory.data[skipped : skipped + len(frame) + self.pixel_bytes]
        file[:first], file[last:] = frame[:first], frame[first:]
        return BlankTiff(file, file[first:last])


def _filled(template: TiffTemplate, pixels: Pixels, corner: Corner | None) -> memoryview:
    blank = template.blank(corner)
    blank.pixels[:] = pixels.tobytes()
    return blank.file


@dataclass
class _Examples:
    count: int = 0
    example: TiffTemplate | None = None
    origin: ImageCoord | None = None
    proven: TiffTemplate | None = None


@dataclass
class TiffTemplates:
    """The templates of one image, by the size of tiles. Thread-safe."""

    _sizes: dict[ImageDimensions, _Examples] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def find(self, size: ImageDimensions) -> TiffTemplate | None:
        """Return the proven template for tiles of a size, if there is one."""
        examples = self._sizes.get(size)
        return examples.proven if examples else None

    def wants(self, size: ImageDimensions) -> bool:
        """Return True while more examples of a size may help."""
        examples = self._sizes.get(size)
        return examples is None or (examples.proven is None and examples.count < _MAX_EXAMPLES)

    def learn(self, tile: ImageRegion, pixels: Pixels, corner: Corner | None, encoded: bytes) -> None:
        """Learn a template from a tile that GDAL wrote, or prove the template that was learned before.

        Two tiles that differ in row and in column show which bytes depend on the tile. A tile of one value is skipped,
        because its pixels are found at many offsets of a file.
        """
        with self._lock:
            examples = self._sizes.setdefault(tile.size, _Examples())
            example, origin = examples.example, examples.origin
        is_elsewhere = origin is None or (origin.row != tile.origin.row and origin.col != tile.origin.col)
        values = pixels.view(np.uint8)
        if not is_elsewhere or values.min() == values.max():
            return
        examples.count += 1
        if example is not None and _filled(example, pixels, corner) == encoded:
            examples.proven = example
        else:
            examples.example, examples.origin = TiffTemplate.of(encoded, pixels, corner), tile.origin
