"""Paints the map of the harbour: the colour of each kind of ground, waves on the water and grain on the land."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from .harbour import PALETTE, Ground
from .texture import Pixels, Wave, periodic_noise, stretch_rows, tile_rows, wave_rows

SHALLOW_WATER = (38, 92, 98)
SHALLOW_REACH_PX = 150.0
WAVES = (Wave(61, 22, 1.5), Wave(37, 41, 1.1), Wave(173, 8, 1.4))
BLOCK_ROWS = 500
COARSE = 16  # spacing in pixels of the grid of depths


@dataclass(frozen=True)
class _Textures:
    """Variation between pixels: two periodic patterns, and two coarse grids over the whole picture."""

    ripples: Pixels
    grain: Pixels
    currents: Pixels
    shallows: Pixels

    @classmethod
    def create(cls, ground: NDArray[np.uint8], rng: np.random.Generator) -> "_Textures":
        height, width = ground.shape
        currents = 3 * rng.standard_normal((max(4, height // 500), max(4, width // 700)), dtype=np.float32)
        from_land = ndimage.distance_transform_edt(ground[::COARSE, ::COARSE] == Ground.WATER) * COARSE
        shallows = np.exp(-from_land / SHALLOW_REACH_PX).astype(np.float32)
        # Sizes without a common divisor, so that the sum repeats after a far larger distance.
        return cls(periodic_noise(rng, 512, 1.6), periodic_noise(rng, 509, 0), currents, shallows)


def paint_ground(ground: NDArray[np.uint8], rng: np.random.Generator) -> NDArray[np.uint8]:
    """Return the picture (rows, columns, RGB) of a map of `Ground`."""
    textures = _Textures.create(ground, rng)
    height, width = ground.shape
    pixels = np.empty((height, width, 3), np.uint8)
    for start in range(0, height, BLOCK_ROWS):
        stop = min(height, start + BLOCK_ROWS)
        block = ground[start:stop]
        is_land = block != Ground.WATER
        has_land = bool(is_land.any())
        ripples, grain = (tile_rows(pattern, width, start, stop) for pattern in (textures.ripples, textures.grain))
        relief = 1.3 * ripples + grain + wave_rows(WAVES, width, start, stop)
        relief += stretch_rows(textures.currents, height, width, start, stop)
        if has_land:
            np.copyto(relief, 4 * ripples + 3 * grain, where=is_land)
        depth = stretch_rows(textures.shallows, height, width, start, stop)
        # One band at a time needs a third of the memory and half of the time of one array with all bands.
        for band, (deep, shallow) in enumerate(zip(PALETTE[Ground.WATER], SHALLOW_WATER, strict=True)):
            colour = depth * np.float32(shallow - deep)
            colour += np.float32(deep)
            if has_land:
                palette = np.array([PALETTE[item][band] for item in Ground], np.float32)
                np.copyto(colour, palette[block], where=is_land)
            colour += relief
            pixels[start:stop, :, band] = np.clip(colour, 0, 255, out=colour)
    return pixels
