"""Resampling on the grid of the whole image, so a pixel is the same in every tile that has it.

A model pixel ``j`` of an axis covers ``[j * ratio, (j + 1) * ratio)`` image pixels. Its weights are computed from ``j``
alone, never from a tile's own corner. Sums are taken in a fixed order, rows first.

Down-sampling widens the kernel by ``ratio``, so it low-passes. Weights outside the image are left out, and the others
are scaled up to a sum of 1: no pixel is invented.
"""

import functools
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.sparse import csr_matrix

Array = npt.NDArray[Any]

# Samples of which less than this share of the weight is valid are not valid.
_MIN_VALID_SHARE = 0.5
# A centre on the edge of two pixels belongs to the second, also where rounding puts it just before.
_EDGE_PX = 1e-10
_CACHED_AXES = 256
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

    def part(self, start: int, end: int) -> "AxisWeights":
        """Return the weights of model pixels [start, end) of the span, with no more image pixels than they need."""
        indptr = self.matrix.indptr[start : end + 1]
        entries = slice(indptr[0], indptr[-1])
        indices = self.matrix.indices[entries]
        first, last = int(indices.min()), int(indices.max())
        shape = (end - start, last - first + 1)
        matrix = csr_matrix((self.matrix.data[entries], indices - first, indptr - indptr[0]), shape=shape)
        return AxisWeights(self.first + first, matrix)


@functools.lru_cache(maxsize=_CACHED_AXES)
def axis_weights(method: str, ratio: float, start: int, count: int, length: int, dtype: str) -> AxisWeights:
    """Return the weights of model pixels [start, start + count) on an axis of ``length`` image pixels.

    ``method`` is ``BILINEAR``, ``CUBIC`` or ``AVERAGE``; ``dtype`` is the type of the weights.
    """
    model = np.arange(start, start + count, dtype=np.float64)[:, None]
    centres, stretch = (model + 0.5) * ratio, max(1.0, ratio)
    reach = ratio / 2 if method == "AVERAGE" else _RADIUS[method] * stretch
    pixels = np.floor(centres - reach) + np.arange(int(np.ceil(2 * reach)) + 1)
    if method == "AVERAGE":
        weights = np.minimum(pixels + 1, (model + 1) * ratio) - np.maximum(pixels, model * ratio)
        weights = np.maximum(weights, 0.0)
    else:
        distances = np.abs(pixels + 0.5 - centres) / stretch
        weights = np.maximum(0.0, 1 - distances) if method == "BILINEAR" else _cubic(distances)
    weights[(pixels < 0) | (pixels >= length)] = 0.0
    weights /= weights.sum(axis=1, keepdims=True)
    is_used = weights != 0.0
    indices = pixels[is_used].astype(np.int32)
    first, last = int(indices.min()), int(indices.max())
    indptr = np.concatenate([[0], np.cumsum(is_used.sum(axis=1))]).astype(np.int32)
    values, shape = weights[is_used].astype(dtype), (count, last - first + 1)
    return AxisWeights(first, csr_matrix((values, indices - first, indptr), shape=shape))


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


def _cubic(distances: Array) -> Array:
    """Return the weights of cubic convolution with a = -0.5 (R. Keys, 1981)."""
    near = (1.5 * distances - 2.5) * distances**2 + 1
    far = ((-0.5 * distances + 2.5) * distances - 4) * distances + 2
    return np.where(distances <= 1, near, np.where(distances < 2, far, 0.0))
