"""Positions of the ships of the demo scene: at the piers, in the marina, at anchor, and under way."""

import math
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from .harbour import PONTOON_WIDTH_PX, Ground, Harbour
from .ships import BOAT, FERRY, FREIGHTER, TRAWLER, Ship, ShipClass

SHIPS_AT_SEA_PER_PIXEL = 200 / 8000**2
CHANCE_AT_SEA = ((BOAT, 0.34), (TRAWLER, 0.3), (FERRY, 0.18), (FREIGHTER, 0.18))
BERTHS_TAKEN, MARINA_TAKEN = 0.62, 0.27
MOORING_GAP_PX, MARINA_GAP_PX, BERTH_SPACING_PX, MARINA_SPACING_PX = 8.0, 4.0, 26.0, 12.0
CLEARANCE_PX = 16.0
BORDER_PX = 150.0
COARSE = 8  # spacing in pixels of the grid of distances to land
TRIES_PER_SHIP = 200


def place_fleet(harbour: Harbour, rng: np.random.Generator) -> list[Ship]:
    """Return ships that do not touch each other, the land or the image's border."""
    ships = [*_moor_at_piers(harbour, rng), *_moor_in_marina(harbour, rng)]
    size = harbour.ground.shape[0]
    # The distance to the nearest land, for every ``COARSE``-th pixel.
    land_px: NDArray[np.float64] = COARSE * ndimage.distance_transform_edt(
        harbour.ground[::COARSE, ::COARSE] == Ground.WATER
    )
    wanted = len(ships) + max(8, round(SHIPS_AT_SEA_PER_PIXEL * size * size))
    classes, chances = [item for item, _ in CHANCE_AT_SEA], [chance for _, chance in CHANCE_AT_SEA]
    for _ in range(TRIES_PER_SHIP * wanted):
        if len(ships) == wanted:
            break
        x, y = rng.uniform(BORDER_PX, size - BORDER_PX, 2)
        ship_class = classes[int(rng.choice(len(classes), p=chances))]
        ship = _launch(ship_class, float(x), float(y), rng.uniform(0, 360), rng, bool(rng.random() < 0.45))
        # A ship under way needs room for its wake.
        clear_px = CLEARANCE_PX + (3.5 * ship.length_px if ship.is_under_way else ship.reach_px)
        is_at_land = land_px[int(y) // COARSE, int(x) // COARSE] < clear_px + COARSE
        if not is_at_land and all(math.hypot(x - each.x, y - each.y) > clear_px + each.reach_px for each in ships):
            ships.append(ship)
    return ships


def _launch(
    ship_class: ShipClass, x: float, y: float, heading_deg: float, rng: np.random.Generator, is_under_way: bool = False
) -> Ship:
    length = rng.uniform(*ship_class.length_px)
    deck = ship_class.decks[int(rng.integers(len(ship_class.decks)))]
    width = length / rng.uniform(*ship_class.slenderness)
    return Ship(x, y, length, width, heading_deg % 360, ship_class, deck, is_under_way)


def _moor_at_piers(harbour: Harbour, rng: np.random.Generator) -> Iterator[Ship]:
    """Yield ships alongside both walls of each pier, bow in or bow out."""
    for left, top, right, bottom in harbour.piers:
        for wall_x, side in ((left, -1), (right, 1)):
            y = top + 70.0
            while y < bottom - 70:
                ship = _launch((FREIGHTER, FERRY)[int(rng.integers(2))], 0, 0, float(rng.choice([0, 180])), rng)
                x = wall_x + side * (MOORING_GAP_PX + ship.width_px / 2)
                y += ship.length_px / 2
                if rng.random() < BERTHS_TAKEN:
                    yield _moved(ship, x + rng.uniform(0, 1) * side, y)
                y += ship.length_px / 2 + BERTH_SPACING_PX


def _moor_in_marina(harbour: Harbour, rng: np.random.Generator) -> Iterator[Ship]:
    """Yield boats with their stern to a pontoon, side by side."""
    for middle, top, bottom in harbour.pontoons:
        for side, heading in ((-1, 270), (1, 90)):
            for y in np.arange(top + 14, bottom - 8, MARINA_SPACING_PX):
                if rng.random() < MARINA_TAKEN:
                    boat = _launch(BOAT, 0, 0, heading + rng.uniform(-2, 2), rng)
                    from_middle = PONTOON_WIDTH_PX / 2 + MARINA_GAP_PX + boat.length_px / 2
                    yield _moved(boat, middle + 0.5 + side * from_middle, float(y + rng.uniform(-0.5, 0.5)))


def _moved(ship: Ship, x: float, y: float) -> Ship:
    return Ship(x, y, ship.length_px, ship.width_px, ship.heading_deg, ship.ship_class, ship.deck, ship.is_under_way)
