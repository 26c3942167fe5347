"""Uncompressed GeoTIFF tiles by example: GDAL writes the first ones, and the others are put together like those.

Tiles of one image and one size differ in two things: their pixels, which lie in the file as they lie in memory, and the
place of their corner on the ground. Most of GDAL's time goes into passing the pixels through its caches once more.

Nothing of the format is written down here: a template is learned from a tile that GDAL wrote, and has to reproduce
another such tile byte for byte before it is used. Where it does not, as with control points or an RPC of the tile's
own, GDAL writes every tile. (GDAL puts the empty strips of a tile behind the others; a template leaves them in place.)
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
# Where a tile's first pixel lies, x and y, in the units of the image's coordinate system.
Corner = tuple[float, float]

# GDAL reads numbers only into places that are multiples of their size.
_ALIGNMENT = 16
# A size that was not learned from so many tiles is not learned any more.
_MAX_LESSONS = 8


class BlankTiff(NamedTuple):
    """A file that lacks its pixels, and the part of it that they belong in; both writable."""

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
        """Return the template of a file that holds ``pixels`` at ``corner``; None where the file does not show it."""
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

        So they are never copied. That takes longer than anything else would, and all threads would wait for it.
        """
        frame = bytearray(self.frame)
        if self.corner_at is not None and corner is not None:
            for position, value in zip(self.corner_at, corner, strict=True):
                struct.pack_into("<d", frame, position, value)
        first, last = self.pixels_at, self.pixels_at + self.pixel_bytes
        # Unlike a bytearray, this is not written once before it is filled.
        memory = np.empty(len(frame) + self.pixel_bytes + _ALIGNMENT, np.uint8)
        skipped = -(memory.ctypes.data + first) % _ALIGNMENT
        file = memory.data[skipped : skipped + len(frame) + self.pixel_bytes]
        file[:first], file[last:] = frame[:first], frame[first:]
        return BlankTiff(file, file[first:last])


def _filled(template: TiffTemplate, pixels: Pixels, corner: Corner | None) -> memoryview:
    blank = template.blank(corner)
    blank.pixels[:] = pixels.tobytes()
    return blank.file


def _is_uniform(pixels: Pixels) -> bool:
    values = pixels.view(np.uint8)
    return bool(values.min() == values.max())


@dataclass
class _Lessons:
    count: int = 0
    example: TiffTemplate | None = None
    origin: ImageCoord | None = None
    proven: TiffTemplate | None = None


@dataclass
class TiffTemplates:
    """The templates of one image, by the size of tiles; any number of threads may ask and teach."""

    _sizes: dict[ImageDimensions, _Lessons] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def find(self, size: ImageDimensions) -> TiffTemplate | None:
        """Return the proven template for tiles of a size, if there is one."""
        lessons = self._sizes.get(size)
        return lessons.proven if lessons else None

    def wants(self, size: ImageDimensions) -> bool:
        """Return True while more examples of a size may help."""
        lessons = self._sizes.get(size)
        return lessons is None or (lessons.proven is None and lessons.count < _MAX_LESSONS)

    def learn(self, tile: ImageRegion, pixels: Pixels, corner: Corner | None, encoded: bytes) -> None:
        """Look at a tile that GDAL wrote: an example to learn from, or the proof of one that was learned before.

        What is the tile's own shows only between tiles that differ in row and in column. One value everywhere fits in
        many places of a file, and teaches nothing.
        """
        with self._lock:
            lessons = self._sizes.setdefault(tile.size, _Lessons())
            example, origin = lessons.example, lessons.origin
        is_elsewhere = origin is None or (origin.row != tile.origin.row and origin.col != tile.origin.col)
        if not is_elsewhere or _is_uniform(pixels):
            return
        lessons.count += 1
        if example is not None and _filled(example, pixels, corner) == encoded:
            lessons.proven = example
        else:
            lessons.example, lessons.origin = TiffTemplate.of(encoded, pixels, corner), tile.origin
