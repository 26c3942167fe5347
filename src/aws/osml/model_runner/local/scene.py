"""A georeferenced harbour with ships whose places are known, to try a detector on."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyproj
from numpy.typing import NDArray
from scipy import ndimage

from aws.osml.model_runner.local.fleet import place_fleet
from aws.osml.model_runner.local.harbour import PALETTE, Ground, build_harbour
from aws.osml.model_runner.local.ships import Ship, draw_ship
from aws.osml.model_runner.local.texture import periodic_noise, plane_wave_rows, stretch_rows, tile_rows

EPSG = 32631
UPPER_LEFT = (288_000.0, 5_492_000.0)  # easting and northing in metres, off the Channel coast
METRES_PER_PIXEL = 1.0
GEOTRANSFORM = (UPPER_LEFT[0], METRES_PER_PIXEL, 0.0, UPPER_LEFT[1], 0.0, -METRES_PER_PIXEL)

SHALLOW_WATER = (38, 92, 98)
SHALLOW_REACH_PX = 150.0
WAVES = ((61.0, 22.0, 1.5), (37.0, 41.0, 1.1), (173.0, 8.0, 1.4))  # wavelength px, direction, amplitude
BLOCK_ROWS = 500
COARSE = 16


@dataclass(frozen=True)
class Scene:
    """A picture (rows, columns, RGB) and the ships in it, each with its place on the map."""

    pixels: NDArray[np.uint8]
    ships: tuple[Ship, ...]


def generate_scene(size: int = 8000, seed: int = 2026) -> Scene:
    """Return a scene of ``size`` x ``size`` pixels; the same size and seed give the same bytes."""
    rng = np.random.default_rng(seed)
    harbour = build_harbour(size, rng)
    pixels = _paint_ground(harbour.ground, rng)
    ships = place_fleet(harbour, rng)
    for ship in ships:
        draw_ship(pixels, ship)
    return Scene(pixels, tuple(_locate(ships)))


def _locate(ships: list[Ship]) -> list[Ship]:
    to_degrees = pyproj.Transformer.from_crs(EPSG, 4326, always_xy=True)
    east = [UPPER_LEFT[0] + ship.x * METRES_PER_PIXEL for ship in ships]
    north = [UPPER_LEFT[1] - ship.y * METRES_PER_PIXEL for ship in ships]
    places = zip(ships, *to_degrees.transform(east, north), strict=True)
    return [dataclasses.replace(ship, longitude=lon, latitude=lat) for ship, lon, lat in places]


def _paint_ground(ground: NDArray[np.uint8], rng: np.random.Generator) -> NDArray[np.uint8]:
    height, width = ground.shape
    shallows = np.exp(-ndimage.distance_transform_edt(ground[::COARSE, ::COARSE] == Ground.WATER) * COARSE / SHALLOW_REACH_PX)
    currents = rng.standard_normal((max(4, height // 500), max(4, width // 700)), dtype=np.float32) * 3
    ripples, grain = periodic_noise(rng, 512, 1.6), periodic_noise(rng, 509, 0)
    palette = np.array([PALETTE[item] for item in Ground], np.float32)
    shallow, deep = np.array(SHALLOW_WATER, np.float32), palette[Ground.WATER]
    pixels = np.empty((height, width, 3), np.uint8)
    for start in range(0, height, BLOCK_ROWS):
        stop = min(height, start + BLOCK_ROWS)
        rows = (width, start, stop)
        is_water = ground[start:stop] == Ground.WATER
        waves = sum(size * plane_wave_rows(length, angle, *rows) for length, angle, size in WAVES)
        fine = tile_rows(grain, *rows)
        relief = 1.3 * tile_rows(ripples, *rows) + stretch_rows(currents, height, width, start, stop) + waves + fine
        depth = stretch_rows(shallows.astype(np.float32), height, width, start, stop)[..., None]
        colours = palette[ground[start:stop]]
        colours[is_water] = (deep + (shallow - deep) * depth)[is_water]
        colours += np.where(is_water, relief, 4 * tile_rows(ripples, *rows) + 3 * fine)[..., None]
        pixels[start:stop] = np.clip(colours + 0.5, 0, 255).astype(np.uint8)
    return pixels
