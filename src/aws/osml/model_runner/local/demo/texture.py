"""Textures for large pictures, computed by blocks of rows."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

Pixels = NDArray[np.float32]


class Wave(NamedTuple):
    """A plane wave; its direction is the angle from the x axis towards the y axis."""

    wavelength_px: float
    direction_deg: float
    amplitude: float


def stretch_rows(grid: Pixels, height: int, width: int, start: int, stop: int) -> Pixels:
    """Return rows [start, stop) of ``grid`` stretched bilinearly over ``height`` x ``width`` pixels."""
    upper, row_share = _positions(np.arange(start, stop), height, grid.shape[0])
    left, column_share = _positions(np.arange(width), width, grid.shape[1])
    rows = grid[upper] * (1 - row_share)[:, None] + grid[upper + 1] * row_share[:, None]
    stretched: Pixels = rows[:, left] * (1 - column_share) + rows[:, left + 1] * column_share
    return stretched


def _positions(indices: NDArray[np.int64], length: int, cells: int) -> tuple[NDArray[np.int64], Pixels]:
    """Return for each index the lower of two neighbouring cells, and the share of the upper cell in [0, 1]."""
    position = (indices + 0.5) / length * (cells - 1)
    lower = np.minimum(position.astype(np.int64), cells - 2)
    return lower, (position - lower).astype(np.float32)


def periodic_noise(rng: np.random.Generator, size: int, smoothness_px: float) -> Pixels:
    """Return a square of noise with mean 0 and standard deviation 1 that is periodic at its edges."""
    noise = rng.standard_normal((size, size), dtype=np.float32)
    if smoothness_px:
        noise = ndimage.gaussian_filter(noise, smoothness_px, mode="wrap")
    noise -= noise.mean()
    normalised: Pixels = noise / noise.std()
    return normalised


def tile_rows(pattern: Pixels, width: int, start: int, stop: int) -> Pixels:
    """Return rows [start, stop) of a plane that repeats the square ``pattern``."""
    size = pattern.shape[0]
    repeated = np.tile(pattern[np.arange(start, stop) % size], (1, math.ceil(width / size)))
    return repeated[:, :width]


def wave_rows(waves: Sequence[Wave], width: int, start: int, stop: int) -> Pixels:
    """Return rows [start, stop) of the sum of plane waves."""
    columns, rows = np.arange(width), np.arange(start, stop)
    across, down = [], []
    for wave in waves:
        angle, k = math.radians(wave.direction_deg), 2 * math.pi / wave.wavelength_px
        a, b = k * math.cos(angle) * columns, k * math.sin(angle) * rows
        # sin(a + b) = sin a cos b + cos a sin b: sines by row and by column, and one matrix product for all pixels.
        across += [np.sin(a), np.cos(a)]
        down += [wave.amplitude * np.cos(b), wave.amplitude * np.sin(b)]
    summed: Pixels = np.column_stack(down).astype(np.float32) @ np.vstack(across).astype(np.float32)
    return summed
