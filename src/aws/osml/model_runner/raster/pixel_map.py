"""Maps samples of an image to samples of a tile, each by itself: stretch, type and fill.

Samples of one or two bytes are looked up in a table. Others are computed in float64, a few rows at a time. NumPy's
arithmetic on arrays follows IEEE 754 on every machine, so the same sample gives the same byte everywhere.
"""

from typing import Any

import numpy as np
import numpy.typing as npt

from .preparation import Preparation, Range

Array = npt.NDArray[Any]

# A strip of rows of one band has about so many samples, so that its temporary arrays stay in the cache of a core.
_STRIP_SAMPLES = 32 * 1024
_LARGEST_TABLE_BYTES = 2
_LONG_BYTES = 8


class PixelMap:
    """The map of a band of a tile.

    ``limits`` are the values that become the least and the largest sample; None leaves values as they are. ``nodata``
    is the value of samples that are not valid, None without one. For an alpha band (``is_alpha``) this value is 0,
    which stays 0; all other samples become opaque where the preparation stretches values.
    """

    def __init__(
        self, preparation: Preparation, limits: Range | None, nodata: float | None, is_alpha: bool = False
    ) -> None:
        self._range = None if is_alpha else limits
        self._source = np.dtype(preparation.source_dtype)
        self._target = np.dtype(preparation.dtype)
        self._nodata = representable(0.0 if is_alpha else nodata, self._source)
        self._opaque = _largest(self._target) if is_alpha and preparation.ranges is not None else None
        # Numbers cannot be assigned to complex samples, which are opaque bytes.
        is_zero = is_alpha or self._target.kind == "V"
        self._fill = np.zeros((), self._target)[()] if is_zero else preparation.fill
        self._table: Array | None = None
        if self._source.itemsize <= _LARGEST_TABLE_BYTES:
            codes = np.arange(256**self._source.itemsize, dtype=f"u{self._source.itemsize}")
            self._table = self._computed(codes.view(self._source))

    def apply(self, source: Array, mask: Array | None, out: Array) -> None:
        """Write the samples of ``source`` (rows, columns) to ``out`` of the same shape, which need not be contiguous.

        ``mask`` has the same shape; where it is 0, samples are not valid.
        """
        rows_at_once = max(1, _STRIP_SAMPLES // max(1, source.shape[1]))
        for first in range(0, len(source), rows_at_once):
            rows = slice(first, first + rows_at_once)
            if self._table is not None:
                codes = source[rows].view(f"u{source.itemsize}")
                out[rows] = np.take(self._table, codes, mode="clip")
            else:
                out[rows] = self._computed(source[rows])
            if mask is not None:
                out[rows][mask[rows] == 0] = self._fill

    def apply_computed(self, values: Array, is_valid: Array | None, out: Array) -> None:
        """Stretch or round resampled floats (rows, columns) into ``out``; ``values`` may be overwritten.

        ``is_valid`` has the same shape; None where all of it is true.
        """
        if self._opaque is not None:
            out[...] = self._opaque
        elif self._range is not None:
            out[...] = _stretched_in_place(values, self._range, self._target)
        elif self._target.kind == "f":
            out[...] = values
        else:
            values += 0.5
            np.floor(values, out=values)
            largest = float(_largest(self._target))
            if self._target.itemsize == _LONG_BYTES:
                # float64 rounds the largest sample up, to a value that the type does not hold.
                largest = float(np.nextafter(largest, 0))
            out[...] = np.clip(values, np.iinfo(self._target).min, largest, out=values)
        if is_valid is not None:
            out[~is_valid] = self._fill

    def valid(self, source: Array, mask: Array | None) -> Array | None:
        """Return which samples of ``source`` are valid; None where the image declares none that are not."""
        if self._nodata is None and mask is None and source.dtype.kind != "f":
            return None
        is_valid = np.isfinite(source)
        if self._nodata is not None:
            is_valid &= source != self._nodata
        return is_valid if mask is None else is_valid & (mask != 0)

    def _computed(self, source: Array) -> Array:
        is_invalid = np.zeros(source.shape, np.bool_) if source.dtype.kind == "V" else ~np.isfinite(source)
        if self._nodata is not None:
            is_invalid |= source == self._nodata
        if self._opaque is not None:
            mapped = np.full(source.shape, self._opaque, self._target)
        elif self._range is not None:
            mapped = stretched(source, self._range, self._target)
        else:
            mapped = source.astype(self._target)
        mapped[is_invalid] = self._fill
        return mapped


def stretched(source: Array, limits: Range, target: np.dtype[Any]) -> Array:
    """Return samples of ``target``: the range of an integer type, or 0 to 1, for the values of ``limits``.

    Values outside the limits are clamped. Where both limits are equal, values above them are the largest sample and
    all others the least. Samples that are not finite are undefined.
    """
    low, high = limits
    share = source.astype(source.dtype if source.dtype.kind == "f" else np.float64)
    with np.errstate(invalid="ignore", over="ignore"):
        if high > low:
            share -= low
            share /= high - low
            np.clip(share, 0.0, 1.0, out=share)
        else:
            share = (share > low).astype(np.float64)
        share[np.isnan(share)] = 0.0
        if target.kind == "f":
            return share.astype(target, copy=False)
        limits_of_type = np.iinfo(target)
        least, largest = int(limits_of_type.min), int(limits_of_type.max)
        share *= float(largest - least)
        share += 0.5 + least
        samples: Array = np.floor(share).astype(target)
        return samples


def _stretched_in_place(values: Array, limits: Range, target: np.dtype[Any]) -> Array:
    """Return what ``stretched`` does, to a rounding of floats, in fewer steps; ``values`` are changed."""
    low, high = limits
    least, largest = (0, 1) if target.kind == "f" else (int(np.iinfo(target).min), int(np.iinfo(target).max))
    if not high > low:
        return stretched(values, limits, target)
    values -= low
    values *= (largest - least) / (high - low)
    np.clip(values, 0, largest - least, out=values)
    if target.kind != "f":
        values += 0.5 + least
        if least:
            np.floor(values, out=values)
    return values


def _largest(target: np.dtype[Any]) -> int:
    """Return the sample of an opaque pixel: the largest of an integer type, 1 of a float."""
    return 1 if target.kind == "f" else int(np.iinfo(target).max)


def representable(nodata: float | None, source: np.dtype[Any]) -> Any | None:
    """Return the sample that has the value ``nodata``; None where no finite sample has it."""
    if nodata is None or source.kind == "V" or not np.isfinite(nodata):
        return None
    if source.kind == "f":
        with np.errstate(over="ignore"):
            return source.type(nodata)
    limits = np.iinfo(source)
    return source.type(int(nodata)) if limits.min <= nodata <= limits.max and nodata == int(nodata) else None
