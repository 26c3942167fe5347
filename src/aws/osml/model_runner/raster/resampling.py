"""Resampling on the grid of the whole image, so a pixel is the same in every tile that has it.

A model pixel ``j`` of an axis covers ``[j * ratio, (j + 1) * ratio)`` image pixels. Its weights are computed from ``j``
alone, never from a tile's own corner. Sums are taken in a fixed order, rows first.

Down-sampling widens the kernel by ``ratio``, so it low-passes. Weights outside the image are left out, and the others
are scaled up to a sum of 1: no pixel is invented.
"""

import threading
from collections import OrderedDict
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.sparse import csr_matrix

from .settings import MIB

Array = npt.NDArray[Any]

# Samples of which less than this share of the weight is valid are not valid.
_MIN_VALID_SHARE = 0.5
# A centre on the edge of two pixels belongs to the second, also where rounding puts it just before.
_EDGE_PX = 1e-10
# Weights of axes that a process keeps for the next tile.
MAX_CACHED_BYTES = 16 * MIB
_RADIUS = {"BILINEAR": 1.0, "CUBIC": 2.0}


class AxisWeights(NamedTuple):
    """Weights of image pixels from ``first``, for each model pixel of a span: ``matrix`` is (model, image)."""

    first: int
    matrix: Any

    @property
    def width(self) -> int:
        """The number of image pixels."""
        width: int = self.matrix.shape[1]
        return width

    @property
    def height(self) -> int:
        """The number of model pixels."""
        height: int = self.matrix.shape[0]
        return height

    @property
    def size_bytes(self) -> int:
        """The bytes of the weights and their indices."""
        return int(sum(part.nbytes for part in (self.matrix.data, self.matrix.indices, self.matrix.indptr)))

    def part(self, start: int, end: int) -> "AxisWeights":
        """Return the weights of model pixels [start, end) of the span, with no more image pixels than they need."""
        if (start, end) == (0, self.height):
            return self
        indptr = self.matrix.indptr[start : end + 1]
        entries = slice(indptr[0], indptr[-1])
        indices = self.matrix.indices[entries]
        first, last = int(indices.min()), int(indices.max())
        shape = (end - start, last - first + 1)
        matrix = csr_matrix((self.matrix.data[entries], indices - first, indptr - indptr[0]), shape=shape)
        return AxisWeights(self.first + first, matrix)


def kernel_width(method: str, ratio: float) -> float:
    """Return the image pixels of an axis from which a model pixel is made; ``method`` as in ``axis_weights``."""
    return ratio if method == "AVERAGE" else 2 * _RADIUS[method] * max(1.0, ratio)


def axis_weights(method: str, ratio: float, start: int, count: int, length: int, dtype: str) -> AxisWeights:
    """Return the weights of model pixels [start, start + count) on an axis of ``length`` image pixels.

    ``method`` is ``BILINEAR``, ``CUBIC`` or ``AVERAGE``; ``dtype`` is the type of the weights.
    """
    model = np.arange(start, start + count, dtype=np.float64)[:, None]
    centres, stretch = (model + 0.5) * ratio, max(1.0, ratio)
    reach = kernel_width(method, ratio) / 2
    pixels = np.floor(centres - reach) + np.arange(int(np.ceil(2 * reach)) + 1)
    if method == "AVERAGE":
        weights = np.minimum(pixels + 1, (model + 1) * ratio) - np.maximum(pixels, model * ratio)
        weights = np.maximum(weights, 0.0)
    else:
        distances = np.abs(pixels + 0.5 - centres) / stretch
        if method == "BILINEAR":
            weights = np.maximum(0.0, 1 - distances)
        else:
            # Cubic convolution with a = -0.5 (R. Keys, 1981).
            near = (1.5 * distances - 2.5) * distances**2 + 1
            far = ((-0.5 * distances + 2.5) * distances - 4) * distances + 2
            weights = np.where(distances <= 1, near, np.where(distances < 2, far, 0.0))
    weights[(pixels < 0) | (pixels >= length)] = 0.0
    weights /= weights.sum(axis=1, keepdims=True)
    is_used = weights != 0.0
    indices = pixels[is_used].astype(np.int32)
    first, last = int(indices.min()), int(indices.max())
    indptr = np.concatenate([[0], np.cumsum(is_used.sum(axis=1))]).astype(np.int32)
    values, shape = weights[is_used].astype(dtype), (count, last - first + 1)
    return AxisWeights(first, csr_matrix((values, indices - first, indptr), shape=shape))


class AxisCache:
    """The weights of the axes that were used last, of at most ``max_bytes`` altogether. Thread-safe."""

    def __init__(self, max_bytes: int = MAX_CACHED_BYTES) -> None:
        self._max_bytes = max_bytes
        self._axes: OrderedDict[tuple[str, float, int, int, int, str], AxisWeights] = OrderedDict()
        self._bytes = 0
        self._lock = threading.Lock()

    @property
    def size_bytes(self) -> int:
        """The bytes of all weights in the cache."""
        return self._bytes

    def weights(self, method: str, ratio: float, start: int, count: int, length: int, dtype: str) -> AxisWeights:
        """Return what ``axis_weights`` returns."""
        key = (method, ratio, start, count, length, dtype)
        with self._lock:
            if (found := self._axes.get(key)) is not None:
                self._axes.move_to_end(key)
                return found
        axis = axis_weights(*key)
        with self._lock:
            if key not in self._axes:
                self._axes[key] = axis
                self._bytes += axis.size_bytes
            while self._bytes > self._max_bytes:
                self._bytes -= self._axes.popitem(last=False)[1].size_bytes
        return axis


def nearest_pixels(ratio: float, start: int, count: int, length: int) -> npt.NDArray[np.intp]:
    """Return the image pixel at the centre of each of the model pixels [start, start + count)."""
    centres = (np.arange(start, start + count, dtype=np.float64) + 0.5) * ratio
    pixels: npt.NDArray[np.intp] = np.minimum(np.floor(centres + _EDGE_PX), length - 1).astype(np.intp)
    return pixels


def resampled(
    source: Array, is_valid: Array | None, down: AxisWeights, across: AxisWeights
) -> tuple[Array, Array | None]:
    """Return model samples (rows, columns) of ``source`` (image rows, image columns), and which of them are valid.

    ``source`` has the type of the weights. Samples that are not valid have no weight. A model sample is valid if at
    least half of its weight is. Without ``is_valid``, or where all of it is true, every sample is valid: None.
    """
    if is_valid is None or is_valid.all():
        return _applied(source, down, across), None
    shares = _applied(is_valid.astype(source.dtype), down, across)
    # As exact as for a neighbour in which all samples are valid.
    whole = _applied(np.ones_like(source), down, across)
    values = _applied(np.where(is_valid, source, 0), down, across)
    is_partial = shares != whole
    with np.errstate(divide="ignore", invalid="ignore"):
        values[is_partial] *= whole[is_partial] / shares[is_partial]
    is_sound = shares >= _MIN_VALID_SHARE * whole
    values[~is_sound] = 0.0
    return values, is_sound


def _applied(source: Array, down: AxisWeights, across: AxisWeights) -> Array:
    rows = down.matrix @ source
    columns: Array = across.matrix @ np.ascontiguousarray(rows.T)
    return columns.T
