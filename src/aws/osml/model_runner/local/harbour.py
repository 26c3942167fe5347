"""The ground of the demo scene: a map of what lies where, from coast and quay to the boards of a marina.

The layout grows with the size of the scene; quays, piers and ships keep theirs.
"""

import math
from dataclasses import dataclass
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

PIER_SPACING_PX, PIER_WIDTH_PX = 620, 110
PONTOON_LENGTH_PX, PONTOON_WIDTH_PX, PONTOON_SPACING_PX = 260, 5, 64


class Ground(IntEnum):
    """What a pixel of the map shows; ``PALETTE`` has its colour."""

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
    """Where ships may be moored, in pixels. ``ground`` has the scene's shape (rows, columns), one `Ground` each.

    A pier is (left, top, right, bottom); a pontoon is (x of its middle, top, bottom).
    """

    ground: NDArray[np.uint8]
    quay_y: int
    piers: tuple[tuple[int, int, int, int], ...]
    pontoons: tuple[tuple[int, int, int], ...]


def build_harbour(size: int, rng: np.random.Generator) -> Harbour:
    """Return a harbour of ``size`` x ``size`` pixels: land in the north, the sea in the south."""
    image = Image.new("L", (size, size), Ground.WATER)
    draw = ImageDraw.Draw(image)
    quay_y, port_left = size // 5, int(size * 0.44)
    _draw_coast(draw, size, port_left, quay_y, rng)
    _draw_port(draw, size, port_left, quay_y)
    piers = _draw_piers(draw, size, port_left, quay_y)
    _draw_town(draw, size, port_left, quay_y, rng)
    _draw_yards(draw, size, port_left, quay_y, piers, rng)
    pontoons = _draw_marina(draw, size, port_left, quay_y)
    _draw_island(draw, size, rng)
    _draw_breakwater(draw, size)
    return Harbour(np.asarray(image), quay_y, tuple(piers), tuple(pontoons))


def _draw_coast(
    draw: ImageDraw.ImageDraw, size: int, port_left: int, quay_y: int, rng: np.random.Generator
) -> None:
    x = np.linspace(0, port_left + 20, 160)
    phases = rng.uniform(0, 2 * math.pi, 4)
    swing = sum(np.sin(x / size * 2 * math.pi * k + phases[i]) / k for i, k in enumerate((2, 5, 11, 23)))
    settle = np.clip((port_left - x) / (size * 0.16), 0, 1)  # meets the quay, whose line is straight
    y = quay_y * (0.88 + 0.14 * swing * settle + 0.12 * (1 - settle))
    for inland_share, ground in ((0.0, Ground.BEACH), (0.05, Ground.GRASS), (0.55, Ground.FOREST)):
        edge = [(float(a), float(b)) for a, b in zip(x, y - inland_share * quay_y, strict=True)]
        draw.polygon([(0, 0), *edge, (edge[-1][0], 0)], fill=ground)


def _draw_port(draw: ImageDraw.ImageDraw, size: int, port_left: int, quay_y: int) -> None:
    draw.rectangle((port_left, 0, size, quay_y), fill=Ground.CONCRETE)
    draw.rectangle((port_left, 0, size, int(quay_y * 0.34)), fill=Ground.GRASS)
    for y in (0.36, 0.66):
        draw.rectangle((port_left, int(quay_y * y), size, int(quay_y * y) + 22), fill=Ground.ROAD)


def _draw_piers(
    draw: ImageDraw.ImageDraw, size: int, port_left: int, quay_y: int
) -> list[tuple[int, int, int, int]]:
    length = min(int(size * 0.13), 1040)
    lefts = range(port_left + 190, size - PIER_WIDTH_PX - 190, PIER_SPACING_PX)
    piers = [(left, quay_y, left + PIER_WIDTH_PX, quay_y + length) for left in lefts]
    for left, top, right, bottom in piers:
        draw.rectangle((left, top, right - 1, bottom - 1), fill=Ground.CONCRETE)
        draw.rectangle((left + 46, top - 30, left + 62, bottom - 26), fill=Ground.ROAD)
        for y in range(top + 50, bottom - 130, 170):
            draw.rectangle((left + 14, y, left + 38, y + 110), fill=Ground.ROOF_GREY)
            draw.rectangle((right - 38, y + 30, right - 16, y + 96), fill=Ground.ROOF_WHITE)
    return piers


def _draw_town(
    draw: ImageDraw.ImageDraw, size: int, port_left: int, quay_y: int, rng: np.random.Generator
) -> None:
    top, bottom = int(quay_y * 0.04), int(quay_y * 0.32)
    for y in range(top, bottom, 92):
        draw.rectangle((port_left, y, size, y + 9), fill=Ground.ROAD)
        for x in range(port_left + 12, size - 60, 54):
            if rng.random() < 0.82:
                width, depth = rng.integers(18, 40, 2)
                left, upper = x + int(rng.integers(0, 8)), y + 18 + int(rng.integers(0, 20))
                roof = ROOFS[int(rng.integers(len(ROOFS)))]
                draw.rectangle((left, upper, left + int(width), upper + int(depth)), fill=roof)


def _draw_yards(
    draw: ImageDraw.ImageDraw,
    size: int,
    port_left: int,
    quay_y: int,
    piers: list[tuple[int, int, int, int]],
    rng: np.random.Generator,
) -> None:
    """Stack containers between the roads and the quay, and put sheds behind them."""
    gaps = [right for _left, _top, right, _bottom in piers] or [port_left + 60]
    for left in gaps:
        right = min(left + PIER_SPACING_PX - PIER_WIDTH_PX - 40, size - 30)
        for y in range(int(quay_y * 0.72), quay_y - 60, 22):
            for x in range(left + 40, right - 26, 30):
                if rng.random() < 0.78:
                    box = BOXES[int(rng.integers(len(BOXES)))]
                    draw.rectangle((x, y, x + 25, y + 9), fill=box)
        for x in range(left + 20, right - 150, 210):
            roof = ROOFS[int(rng.integers(len(ROOFS)))]
            draw.rectangle((x, int(quay_y * 0.44), x + 170, int(quay_y * 0.6)), fill=roof)


def _draw_marina(draw: ImageDraw.ImageDraw, size: int, port_left: int, quay_y: int) -> list[tuple[int, int, int]]:
    """Lay pontoons off a small mole west of the port; boats lie along both sides of each."""
    mole = (port_left - int(size * 0.105) - 60, quay_y - 40, port_left + 30, quay_y + 46)
    draw.rectangle(mole, fill=Ground.CONCRETE)
    bottom = mole[3] + PONTOON_LENGTH_PX
    middles = range(mole[0] + 34, mole[2] - 60, PONTOON_SPACING_PX)
    for x in middles:
        draw.rectangle((x - PONTOON_WIDTH_PX // 2, mole[3], x + PONTOON_WIDTH_PX // 2, bottom), fill=Ground.PONTOON)
    return [(x, mole[3], bottom) for x in middles]


def _draw_island(draw: ImageDraw.ImageDraw, size: int, rng: np.random.Generator) -> None:
    turn = np.linspace(0, 2 * math.pi, 120, endpoint=False)
    phases = rng.uniform(0, 2 * math.pi, 3)
    shore = 1 + sum(0.1 / k * np.sin((k + 1) * turn + phases[k - 1]) for k in (1, 2, 3))
    for share, ground in ((1.0, Ground.BEACH), (0.9, Ground.GRASS), (0.62, Ground.FOREST)):
        x = size * (0.2 + 0.062 * share * shore * np.cos(turn))
        y = size * (0.74 + 0.04 * share * shore * np.sin(turn))
        draw.polygon([(float(a), float(b)) for a, b in zip(x, y, strict=True)], fill=ground)


def _draw_breakwater(draw: ImageDraw.ImageDraw, size: int) -> None:
    bend = [(0.985, 0.47), (0.93, 0.5), (0.85, 0.525), (0.75, 0.535)]
    places = [(x * size, y * size) for x, y in bend]
    draw.line(places, fill=Ground.ROCK, width=34, joint="curve")
    draw.line(places, fill=Ground.ROAD, width=9, joint="curve")
    x, y = places[-1]
    draw.ellipse((x - 24, y - 24, x + 24, y + 24), fill=Ground.CONCRETE)
