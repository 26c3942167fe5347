"""A georeferenced harbour with ships whose positions are known, to test a detector."""

import dataclasses
from dataclasses import dataclass

import numpy as np
import pyproj
from numpy.typing import NDArray

from .fleet import place_fleet
from .ground import paint_ground
from .harbour import build_harbour
from .ships import Ship, draw_ship

EPSG = 32631
UPPER_LEFT = (288_000.0, 5_492_000.0)  # easting and northing in metres, off the Channel coast
METRES_PER_PIXEL = 1.0
GEOTRANSFORM = (UPPER_LEFT[0], METRES_PER_PIXEL, 0.0, UPPER_LEFT[1], 0.0, -METRES_PER_PIXEL)


@dataclass(frozen=True)
class Scene:
    """A picture (rows, columns, RGB) and the ships in it, each with its longitude and latitude."""

    pixels: NDArray[np.uint8]
    ships: tuple[Ship, ...]


def generate_scene(size: int = 8000, seed: int = 2026) -> Scene:
    """Return a scene of ``size`` x ``size`` pixels; the same size and seed give the same bytes."""
    rng = np.random.default_rng(seed)
    harbour = build_harbour(size, rng)
    pixels = paint_ground(harbour.ground, rng)
    ships = place_fleet(harbour, rng)
    for ship in ships:
        draw_ship(pixels, ship)
    to_degrees = pyproj.Transformer.from_crs(EPSG, 4326, always_xy=True)
    east = [UPPER_LEFT[0] + ship.x * METRES_PER_PIXEL for ship in ships]
    north = [UPPER_LEFT[1] - ship.y * METRES_PER_PIXEL for ship in ships]
    located = zip(ships, *to_degrees.transform(east, north), strict=True)
    return Scene(pixels, tuple(dataclasses.replace(ship, longitude=lon, latitude=lat) for ship, lon, lat in located))
