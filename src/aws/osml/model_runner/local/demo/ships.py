"""Ships of the demo scene: their classes, and their looks from above.

Pixels are (x, y) from the upper left corner of the image, so the middle of the first pixel is (0.5, 0.5). A heading is
in degrees clockwise from the top of the image. Ship coordinates are (u, v): u along the keel towards the bow, v to
starboard, both in pixels from the middle of the ship.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Pixels = NDArray[np.float32]

SAMPLES = 4  # per pixel and axis, for smooth edges
SHADOW_OFFSET_PX = (1.5, 2.0)
SHADOW_STRENGTH = 0.45
WAKE_BRIGHTNESS = 13.0
WAKE_LENGTHS = 3.0  # of the ship


class ShipClass(NamedTuple):
    """A class of ships: ranges of the length and of length over width, colours, and the bow's share of the length."""

    name: str
    length_px: tuple[float, float]
    slenderness: tuple[float, float]
    decks: tuple[tuple[int, int, int], ...]
    bow_share: float


BOAT = ShipClass("boat", (12, 18), (2.6, 3.2), ((236, 238, 238), (214, 220, 226), (238, 226, 196)), 0.45)
TRAWLER = ShipClass("trawler", (24, 36), (3.2, 3.9), ((206, 146, 118), (150, 190, 202), (218, 218, 208)), 0.35)
FERRY = ShipClass("ferry", (54, 78), (4.2, 5.0), ((234, 236, 240), (222, 228, 216)), 0.3)
FREIGHTER = ShipClass("freighter", (90, 112), (5.2, 6.2), ((178, 130, 108), (146, 158, 168), (172, 158, 128)), 0.16)


@dataclass(frozen=True)
class Ship:
    """A ship. ``x`` and ``y``, and ``longitude`` and ``latitude`` in degrees, are the position of its middle."""

    x: float
    y: float
    length_px: float
    width_px: float
    heading_deg: float
    ship_class: ShipClass
    deck: tuple[int, int, int]
    is_under_way: bool = False
    longitude: float = math.nan
    latitude: float = math.nan

    @property
    def reach_px(self) -> float:
        """Distance from the ship's middle to its farthest point."""
        return math.hypot(self.length_px, self.width_px) / 2

    def corners(self) -> list[tuple[float, float]]:
        """Return the four corners of the smallest rectangle along the keel that holds the ship."""
        ux, uy, vx, vy = self._axes()
        a, b = self.length_px / 2, self.width_px / 2
        signs = ((1, -1), (1, 1), (-1, 1), (-1, -1))
        return [(self.x + i * a * ux + j * b * vx, self.y + i * a * uy + j * b * vy) for i, j in signs]

    def to_ship_axes(self, x: Pixels, y: Pixels) -> tuple[Pixels, Pixels]:
        """Return (u, v) of the positions (x, y)."""
        ux, uy, vx, vy = self._axes()
        dx, dy = x - self.x, y - self.y
        return dx * ux + dy * uy, dx * vx + dy * vy

    def _axes(self) -> tuple[float, float, float, float]:
        heading = math.radians(self.heading_deg)
        ux, uy = math.sin(heading), -math.cos(heading)
        return ux, uy, -uy, ux


def draw_ship(image: NDArray[np.uint8], ship: Ship) -> None:
    """Draw a ship with its shadow into an image (rows, columns, 3) in place; also its wake if it is under way."""
    if ship.is_under_way:
        window, x, y = _window(image, ship, ship.reach_px + WAKE_LENGTHS * ship.length_px)
        # The water behind the stern is brighter: two faint arms and the foam between them.
        u, v = ship.to_ship_axes(x, y)
        behind = -(u + ship.length_px / 2) / (WAKE_LENGTHS * ship.length_px)  # 0 at the stern, 1 at the end of the wake
        fade = np.where((behind > 0) & (behind < 1), 1 - behind, 0)
        arms = np.exp(-(((np.abs(v) - ship.width_px * (0.5 + 2.2 * behind)) / (0.18 * ship.width_px + 0.8)) ** 2))
        foam = 0.7 * np.exp(-((v / (0.45 * ship.width_px)) ** 2))
        wake: Pixels = (WAKE_BRIGHTNESS * fade * np.maximum(arms, foam)).astype(np.float32)
        image[window] = _to_bytes(image[window] + wake[..., None])
    window, x, y = _window(image, ship, ship.reach_px + 4)
    shadow = _coverage(ship, x - SHADOW_OFFSET_PX[0], y - SHADOW_OFFSET_PX[1])[..., None]
    hull = _coverage(ship, x, y)[..., None]
    image[window] = _to_bytes(
        image[window] * (1 - SHADOW_STRENGTH * shadow) * (1 - hull) + _deck_colours(ship, x, y) * hull
    )


def _to_bytes(colours: Pixels) -> NDArray[np.uint8]:
    return np.clip(colours + 0.5, 0, 255).astype(np.uint8)


def _window(image: NDArray[np.uint8], ship: Ship, reach_px: float) -> tuple[tuple[slice, slice], Pixels, Pixels]:
    """Return the part of the image within ``reach_px`` of the ship and the middles (x, y) of its pixels."""
    top, left = max(0, math.floor(ship.y - reach_px)), max(0, math.floor(ship.x - reach_px))
    bottom, right = min(image.shape[0], math.ceil(ship.y + reach_px)), min(image.shape[1], math.ceil(ship.x + reach_px))
    rows, columns = np.arange(top, max(top, bottom)) + 0.5, np.arange(left, max(left, right)) + 0.5
    x, y = np.meshgrid(columns.astype(np.float32), rows.astype(np.float32))
    return (slice(top, max(top, bottom)), slice(left, max(left, right))), x, y


def _coverage(ship: Ship, x: Pixels, y: Pixels) -> Pixels:
    """Return the share of each pixel that the hull covers: parallel sides, and a bow that is half an ellipse."""
    steps = (np.arange(SAMPLES, dtype=np.float32) + 0.5) / SAMPLES - 0.5
    half = ship.length_px / 2
    bow_px = ship.length_px * ship.ship_class.bow_share
    covered = np.zeros(x.shape, np.float32)
    for dy in steps:
        for dx in steps:
            u, v = ship.to_ship_axes(x + dx, y + dy)
            into_bow = np.clip((u - (half - bow_px)) / bow_px, 0, 1)
            beam = ship.width_px / 2 * np.sqrt(1 - into_bow**2)
            covered += (np.abs(u) <= half) & (np.abs(v) <= beam)
    return covered / SAMPLES**2


def _deck_colours(ship: Ship, x: Pixels, y: Pixels) -> Pixels:
    """Return the colours (rows, columns, RGB) of the deck with its hatches, bridge or cockpit."""
    u, v = ship.to_ship_axes(x, y)
    along, across = u / ship.length_px, v / ship.width_px
    colours = np.broadcast_to(np.asarray(ship.deck, np.float32), (*x.shape, 3)).copy()
    if ship.ship_class is FREIGHTER:
        is_hatch = (along > -0.26) & (along < 0.32) & (np.abs(across) < 0.32) & ((along * 11) % 1 < 0.72)
        colours[is_hatch] = colours[is_hatch] * 0.55 + 105
    if ship.ship_class is not BOAT:
        is_bridge = (along > -0.43) & (along < -0.27) & (np.abs(across) < 0.42)
        colours[is_bridge] = (242, 244, 246)
    else:
        colours[(along < -0.1) & (along > -0.36) & (np.abs(across) < 0.25)] -= 34
    return colours
