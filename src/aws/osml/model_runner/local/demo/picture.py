"""The demo's picture: the scene with the outlines of the features, a caption, and the densest part enlarged."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

PICTURE_PX = 1600
INSET_PX = 600  # on the picture
INSET_SOURCE_PX = 400  # of the scene
MARGIN_PX = 28
BAND_PX = 84
OUTLINE = (255, 196, 61)
INK, PAPER, FAINT = (240, 244, 247), (11, 24, 36), (150, 172, 188)

Ring = NDArray[np.float64]


def draw_picture(
    pixels: NDArray[np.uint8], features: Sequence[Mapping[str, Any]], title: str, caption: str, path: Path
) -> None:
    """Write a PNG of ``pixels`` (rows, columns, RGB) with the outline of each feature, in pixels of the image."""
    coordinates = [feature["properties"]["imageGeometry"]["coordinates"][0] for feature in features]
    rings = [np.array([point[:2] for point in ring[:-1]], np.float64) for ring in coordinates]
    scale = PICTURE_PX / max(pixels.shape[:2])
    whole = _outlined(pixels, rings, scale, width_px=1.4, pad_px=2.5)
    picture = Image.new("RGB", (whole.width, whole.height + BAND_PX), PAPER)
    picture.paste(whole, (0, 0))
    _draw_inset(picture, pixels, rings, scale)
    draw = ImageDraw.Draw(picture)
    draw.rectangle((0, whole.height, picture.width, whole.height + 2), fill=OUTLINE)
    draw.text((MARGIN_PX, whole.height + 16), title, fill=INK, font=ImageFont.load_default(28))
    draw.text((MARGIN_PX, whole.height + 51), caption, fill=FAINT, font=ImageFont.load_default(19))
    picture.save(path, optimize=True)


def _outlined(
    pixels: NDArray[np.uint8], rings: Sequence[Ring], scale: float, width_px: float, pad_px: float
) -> Image.Image:
    """Return the pixels scaled, with a smooth outline ``pad_px`` of the picture outside of each rectangle."""
    size = (round(pixels.shape[1] * scale), round(pixels.shape[0] * scale))
    picture = Image.fromarray(pixels).resize(size, Image.Resampling.BOX if scale < 1 else Image.Resampling.BICUBIC)
    smooth = 3  # lines are drawn larger and reduced, because Pillow does not smooth their edges
    lines = Image.new("L", (size[0] * smooth, size[1] * smooth), 0)
    draw = ImageDraw.Draw(lines)
    for ring in rings:
        scaled = ring * scale
        along, across = scaled[1] - scaled[0], scaled[3] - scaled[0]
        along, across = (side / max(float(np.hypot(*side)), 1e-6) * pad_px for side in (along, across))
        padded = scaled + np.array([-along - across, along - across, along + across, across - along])
        points = [tuple(point) for point in padded * smooth]
        draw.line([*points, points[0], points[1]], fill=255, width=round(width_px * smooth), joint="curve")
    picture.paste(OUTLINE, mask=lines.reduce(smooth))
    return picture


def _draw_inset(picture: Image.Image, pixels: NDArray[np.uint8], rings: Sequence[Ring], scale: float) -> None:
    """Draw the window with the most features, enlarged, and lines to its position; nothing on a small image."""
    if not rings or min(pixels.shape[:2]) < 2 * INSET_SOURCE_PX:
        return
    middles = np.array([ring.mean(axis=0) for ring in rings])
    half = INSET_SOURCE_PX / 2
    near = (np.abs(middles[:, None] - middles[None]) < half - 10).all(axis=2).sum(axis=1)
    x, y = middles[int(np.argmax(near))] - half
    left = int(np.clip(x, 0, pixels.shape[1] - INSET_SOURCE_PX))
    top = int(np.clip(y, 0, pixels.shape[0] - INSET_SOURCE_PX))
    part = pixels[top : top + INSET_SOURCE_PX, left : left + INSET_SOURCE_PX]
    moved = [ring - (left, top) for ring in rings]
    inside = [ring for ring in moved if (ring.max(axis=0) > 0).all() and (ring.min(axis=0) < INSET_SOURCE_PX).all()]
    inset = _outlined(part, inside, INSET_PX / INSET_SOURCE_PX, width_px=1.8, pad_px=2.5)
    corner = (MARGIN_PX, picture.height - BAND_PX - INSET_PX - MARGIN_PX)
    draw = ImageDraw.Draw(picture)
    source = tuple(round(side * scale) for side in (left, top, left + INSET_SOURCE_PX, top + INSET_SOURCE_PX))
    frame = (corner[0] - 3, corner[1] - 3, corner[0] + INSET_PX + 2, corner[1] + INSET_PX + 2)
    draw.line((source[0], source[3], frame[0], frame[1]), fill=INK, width=1)
    draw.line((source[2], source[3], frame[2], frame[1]), fill=INK, width=1)
    draw.rectangle(source, outline=INK, width=2)
    draw.rectangle(frame, fill=INK)
    picture.paste(inset, corner)
