"""The ground of the demo scene: a map of the kinds of ground, from coast and quay to the boards of a marina.

The layout scales with the size of the scene; quays, piers and ships have fixed sizes.
"""

import math
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

PIER_SPACING_PX, PIER_WIDTH_PX = 620, 110
PONTOON_LENGTH_PX, PONTOON_WIDTH_PX, PONTOON_SPACING_PX = 260, 5, 64


class Ground(IntEnum):
    """Kind of ground of a pixel of the map; ``PALETTE`` has its colour."""

    WATER = 0
    BEACH = 1
    GRASS = 2
    FOREST = 3
    CONCRETE = 4
    ROAD = 5
    PONTOON = 6
    ROOF_RED = 7
    ROOF_GREY = 8
    ROOF_WHITE = 9
    BOX_BLUE = 10
    BOX_ORANGE = 11
    BOX_GREEN = 12
    ROCK = 13


PALETTE = {
    Ground.WATER: (14, 44, 64),
    Ground.BEACH: (196, 182, 146),
    Ground.GRASS: (92, 108, 66),
    Ground.FOREST: (48, 68, 42),
    Ground.CONCRETE: (142, 139, 132),
    Ground.ROAD: (92, 90, 88),
    Ground.PONTOON: (168, 158, 142),
    Ground.ROOF_RED: (158, 92, 76),
    Ground.ROOF_GREY: (116, 118, 120),
    Ground.ROOF_WHITE: (226, 226, 222),
    Ground.BOX_BLUE: (70, 100, 142),
    Ground.BOX_ORANGE: (190, 112, 62),
    Ground.BOX_GREEN: (86, 128, 98),
    Ground.ROCK: (112, 104, 94),
}
ROOFS = (Ground.ROOF_RED, Ground.ROOF_RED, Ground.ROOF_GREY, Ground.ROOF_WHITE)
BOXES = (Ground.BOX_BLUE, Ground.BOX_ORANGE, Ground.BOX_GREEN, Ground.ROOF_GREY)


@dataclass(frozen=True)
class Harbour:
    """A map and its berths, in pixels. ``ground`` has the scene's shape (rows, columns), one `Ground` each.

    A pier is (left, top, right, bottom); a pontoon is (x of its middle, top, bottom).
    """

    ground: NDArray[np.uint8]
    piers: tuple[tuple[int, int, int, int], ...]
    pontoons: tuple[tuple[int, int, int], ...]


def build_harbour(size: int, rng: np.random.Generator) -> Harbour:
    """Return a harbour of ``size`` x ``size`` pixels: land in the north, the sea in the south."""
    image = Image.new("L", (size, size), Ground.WATER)
    plan = _Plan(ImageDraw.Draw(image), size, rng)
    plan.draw_coast()
    plan.draw_port()
    piers = plan.draw_piers()
    plan.draw_town()
    plan.draw_yards(piers)
    pontoons = plan.draw_marina()
    plan.draw_island()
    plan.draw_breakwater()
    return Harbour(np.asarray(image), tuple(piers), tuple(pontoons))


class _Plan:
    """Draws the parts of a harbour on its map. All parts align with the port's west end and the quay's edge."""

    def __init__(self, draw: ImageDraw.ImageDraw, size: int, rng: np.random.Generator) -> None:
        self.draw = draw
        self.size = size
        self.rng = rng
        self.quay_y = size // 5
        self.port_x = int(size * 0.44)

    def fill(self, box: tuple[float, float, float, float], ground: Ground) -> None:
        """Fill the pixels in [left, right) x [top, bottom)."""
        left, top, right, bottom = (int(side) for side in box)
        if right > left and bottom > top:
            self.draw.rectangle((left, top, right - 1, bottom - 1), fill=ground)

    def one_of(self, choices: tuple[Ground, ...]) -> Ground:
        """Return any of ``choices``."""
        return choices[int(self.rng.integers(len(choices)))]

    def draw_coast(self) -> None:
        """Draw beach, meadows and woods west of the port, and a village by the coast road."""
        x = np.linspace(0, self.port_x + 20, 160)
        phases = self.rng.uniform(0, 2 * math.pi, 4)
        swing = sum(np.sin(x / self.size * 2 * math.pi * k + phases[i]) / k for i, k in enumerate((2, 5, 11, 23)))
        wild = np.clip((self.port_x - x) / (self.size * 0.16), 0, 1)  # 0 at the quay, whose line is straight
        shore = self.quay_y * (0.88 + 0.14 * swing * wild + 0.12 * (1 - wild))
        woods = shore - self.quay_y * (0.5 + 0.6 * (1 - wild) ** 2)
        for edge, ground in ((shore, Ground.BEACH), (shore - 0.05 * self.quay_y, Ground.GRASS), (woods, Ground.FOREST)):
            self.draw.polygon([(0.0, -1.0), *_points(x, edge), (float(x[-1]), -1.0)], fill=ground)
        road = np.minimum(shore - 0.2 * self.quay_y, self.quay_y * (0.37 + 0.6 * wild))
        self.draw.line(_points(x, road), fill=Ground.ROAD, width=13, joint="curve")
        for road_x, road_y in _points(x, road)[20:120]:
            for side in (-54, 26):
                if self.rng.random() < 0.62:
                    width, depth = self.rng.integers(15, 30, 2)
                    top = road_y + side + self.rng.integers(-6, 6)
                    self.fill((road_x, top, road_x + width, top + depth), self.one_of(ROOFS))

    def draw_port(self) -> None:
        """Draw the concrete of the port, meadows behind it, and its two roads."""
        self.fill((self.port_x, 0, self.size, self.quay_y), Ground.GRASS)
        self.fill((self.port_x, self.quay_y * 0.34, self.size, self.quay_y), Ground.CONCRETE)
        for share in (0.36, 0.66):
            self.fill((self.port_x, self.quay_y * share, self.size, self.quay_y * share + 22), Ground.ROAD)

    def draw_piers(self) -> list[tuple[int, int, int, int]]:
        """Draw the piers with their sheds and return them."""
        length = min(int(self.size * 0.13), 1040)
        lefts = range(self.port_x + 190, self.size - PIER_WIDTH_PX - 190, PIER_SPACING_PX)
        piers = [(left, self.quay_y, left + PIER_WIDTH_PX, self.quay_y + length) for left in lefts]
        for left, top, right, bottom in piers:
            self.fill((left, top, right, bottom), Ground.CONCRETE)
            self.fill((left + 46, top - 30, left + 62, bottom - 26), Ground.ROAD)
            for y in range(top + 50, bottom - 130, 170):
                self.fill((left + 14, y, left + 38, y + 110), Ground.ROOF_GREY)
                self.fill((right - 38, y + 30, right - 16, y + 96), Ground.ROOF_WHITE)
        return piers

    def draw_town(self) -> None:
        """Draw streets of houses behind the port."""
        for y in range(int(self.quay_y * 0.04), int(self.quay_y * 0.32), 92):
            self.fill((self.port_x, y, self.size, y + 9), Ground.ROAD)
            for x in range(self.port_x + 12, self.size - 60, 54):
                if self.rng.random() < 0.82:
                    width, depth, right, down = self.rng.integers([18, 18, 0, 18], [40, 40, 8, 38])
                    box = (x + right, y + down, x + right + width, y + down + depth)
                    self.fill(box, self.one_of(ROOFS))

    def draw_yards(self, piers: list[tuple[int, int, int, int]]) -> None:
        """Stack containers between the roads and the quay, and put warehouses behind them."""
        for left in [right for _left, _top, right, _bottom in piers] or [self.port_x + 60]:
            right = min(left + PIER_SPACING_PX - PIER_WIDTH_PX - 40, self.size - 30)
            for y in range(int(self.quay_y * 0.72), self.quay_y - 60, 22):
                for x in range(left + 40, right - 26, 30):
                    if self.rng.random() < 0.78:
                        self.fill((x, y, x + 26, y + 10), self.one_of(BOXES))
            for x in range(left + 20, right - 150, 210):
                self.fill((x, self.quay_y * 0.44, x + 170, self.quay_y * 0.6), self.one_of(ROOFS))

    def draw_marina(self) -> list[tuple[int, int, int]]:
        """Draw a mole west of the port with pontoons off it, and return the pontoons."""
        left, right = self.port_x - int(self.size * 0.105) - 60, self.port_x + 30
        top, bottom = self.quay_y - 40, self.quay_y + 46
        self.fill((left, top, right, bottom), Ground.CONCRETE)
        middles = range(left + 34, right - 60, PONTOON_SPACING_PX)
        half = PONTOON_WIDTH_PX // 2
        for x in middles:
            self.fill((x - half, bottom, x + half + 1, bottom + PONTOON_LENGTH_PX), Ground.PONTOON)
        return [(x, bottom, bottom + PONTOON_LENGTH_PX) for x in middles]

    def draw_island(self) -> None:
        """Draw a wooded island with a beach all around."""
        angle = np.linspace(0, 2 * math.pi, 120, endpoint=False)
        phases = self.rng.uniform(0, 2 * math.pi, 3)
        bumps = 1 + sum(0.1 / k * np.sin((k + 1) * angle + phases[k - 1]) for k in (1, 2, 3))
        for share, ground in ((1.0, Ground.BEACH), (0.9, Ground.GRASS), (0.62, Ground.FOREST)):
            x = self.size * (0.62 + 0.062 * share * bumps * np.cos(angle))
            y = self.size * (0.8 + 0.04 * share * bumps * np.sin(angle))
            self.draw.polygon(_points(x, y), fill=ground)

    def draw_breakwater(self) -> None:
        """Draw a breakwater of rock with a path on it and a light at its end."""
        bend = np.array([(0.985, 0.47), (0.93, 0.5), (0.85, 0.525), (0.75, 0.535)]) * self.size
        points = _points(bend[:, 0], bend[:, 1])
        self.draw.line(points, fill=Ground.ROCK, width=34, joint="curve")
        self.draw.line(points, fill=Ground.ROAD, width=9, joint="curve")
        x, y = points[-1]
        self.draw.ellipse((x - 24, y - 24, x + 24, y + 24), fill=Ground.CONCRETE)


def _points(x: NDArray[Any], y: NDArray[Any]) -> list[tuple[float, float]]:
    return [(float(a), float(b)) for a, b in zip(x, y, strict=True)]
