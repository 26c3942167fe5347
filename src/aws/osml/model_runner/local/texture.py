"""Cheap structure for large pictures, computed by blocks of rows."""

import math

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

Pixels = NDArray[np.float32]


def stretch_rows(grid: Pixels, height: int, width: int, start: int, stop: int) -> Pixels:
    """Return rows [start, stop) of ``grid`` stretched bilinearly, corner to corner, over ``height`` x ``width`` pixels."""
    upper, row_share = _positions(np.arange(start, stop), height, grid.shape[0])
    left, column_share = _positions(np.arange(width), width, grid.shape[1])
    rows = grid[upper] * (1 - row_share)[:, None] + grid[upper + 1] * row_share[:, None]
    stretched: Pixels = rows[:, left] * (1 - column_share) + rows[:, left + 1] * column_share
    return stretched


def _positions(indices: NDArray[np.int64], length: int, cells: int) -> tuple[NDArray[np.int64], Pixels]:
    place = (indices + 0.5) / length * (cells - 1)
    lower = np.minimum(place.astype(np.int64), cells - 2)
    return lower, (place - lower).astype(np.float32)


def periodic_noise(rng: np.random.Generator, size: int, smoothness_px: float) -> Pixels:
    """Return a square of noise with mean 0 and deviation 1 that continues seamlessly at its edges."""
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


def plane_wave_rows(wavelength_px: float, direction_deg: float, width: int, start: int, stop: int) -> Pixels:
    """Return rows [start, stop) of a sine of amplitude 1 that travels in ``direction_deg`` from the x axis."""
    angle, k = math.radians(direction_deg), 2 * math.pi / wavelength_px
    a, b = k * math.cos(angle) * np.arange(width), k * math.sin(angle) * np.arange(start, stop)
    # sin(a + b) from two outer products: one sine per row and column instead of one per pixel.
    wave = np.outer(np.cos(b), np.sin(a)) + np.outer(np.sin(b), np.cos(a))
    return wave.astype(np.float32)
