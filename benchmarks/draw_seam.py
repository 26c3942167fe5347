"""Draws the pictures of docs/explanation/merging.md: a seam of the demo's harbour before and after the merge.

``.venv/bin/python benchmarks/draw_seam.py`` runs the demo's job twice on this machine, once without merging.
"""

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from aws.osml.model_runner.local.demo.run import ENDPOINT, write_scene
from aws.osml.model_runner.local.demo.scene import Scene, generate_scene
from aws.osml.model_runner.local.image_request import ModelTarget, TileSettings, image_request, merge_step
from aws.osml.model_runner.local.job import JobRun
from aws.osml.model_runner.local.stack import LocalStack, ModelSettings

IMAGES = Path(__file__).resolve().parents[1] / "docs" / "images"
SIDE_PX = 2400
TILES = TileSettings(size_px=512, overlap_px=96)
VIEW_PX = (150, 100)
SCALE = 8
# Outlines of one ship stand around each other, so that all can be seen.
STEP_PX = 7
COLORS = ("#ffb000", "#35c2ff", "#ff5fa2", "#8dff57")


def features_of(stack: LocalStack, image: Path, merge: str) -> list[dict[str, Any]]:
    """Return what a job delivers that merges in this way."""
    url, model = stack.upload_image(image), ModelTarget(ENDPOINT, "SM_ENDPOINT")
    request = image_request(f"seam-{merge}", url, model, TILES, postProcessing=merge_step(merge))
    return list(JobRun(stack.client, stack.data_plane, request, stack.check_alive).run().features)


def tile_of(feature: dict[str, Any]) -> tuple[int, ...]:
    """Return the tile that saw a feature: row, column, width, height."""
    return tuple(np.ravel(feature["properties"]["inferenceMetadata"]["tile"]).tolist())


def ring_of(feature: dict[str, Any]) -> np.ndarray:
    """Return the outline of a feature in pixels."""
    return np.array(feature["properties"]["imageGeometry"]["coordinates"][0])[:, :2]


def busiest_view(features: list[dict[str, Any]], merged: list[dict[str, Any]]) -> tuple[int, int]:
    """Return the corner (x, y) of the view in which the merge takes most away."""
    before, after = (np.array([ring_of(one).mean(axis=0) for one in some]) for some in (features, merged))

    def taken_away(corner: tuple[int, int]) -> int:
        counts = [((p >= corner) & (p < np.add(corner, VIEW_PX))).all(axis=1).sum() for p in (before, after)]
        return int(counts[0] - counts[1])

    corners = [(x, y) for x in range(0, SIDE_PX - VIEW_PX[0], 10) for y in range(0, SIDE_PX - VIEW_PX[1], 10)]
    return max(corners, key=taken_away)


def draw(scene: Scene, features: list[dict[str, Any]], tiles: list[tuple[int, ...]], corner: tuple[int, int]) -> Image:
    """Return the view with the outline of each feature in the colour of its tile, and the edges of the tiles."""
    x, y = corner
    pixels = scene.pixels[y : y + VIEW_PX[1], x : x + VIEW_PX[0], :3]
    picture = Image.fromarray(pixels).resize((VIEW_PX[0] * SCALE, VIEW_PX[1] * SCALE), Image.Resampling.BICUBIC)
    pen = ImageDraw.Draw(picture, "RGBA")
    for number, (row, col, width, height) in enumerate(tiles):
        color = COLORS[number % len(COLORS)]
        corners = [
            ((side_x - x) * SCALE, (side_y - y) * SCALE) for side_x, side_y in ((col, row), (col + width, row + height))
        ]
        pen.rectangle([*corners[0], *corners[1]], outline=f"{color}90", width=3)
    shown = [feature for feature in features if _is_within(feature, corner) and tile_of(feature) in tiles]
    for feature in shown:
        number = tiles.index(tile_of(feature))
        ring = (ring_of(feature) - corner) * SCALE
        outward = np.sign(ring - ring[:-1].mean(axis=0)) * (STEP_PX * number)
        places = [tuple(place) for place in (ring + outward).tolist()]
        pen.line(places, fill=COLORS[number % len(COLORS)], width=4, joint="curve")
    pen.rectangle([0, 0, 250, 44], fill="#101820d0")
    font = ImageFont.load_default(size=26)
    pen.text((12, 6), f"{len(shown)} outlines", fill="white", font=font)
    return picture


def _is_within(feature: dict[str, Any], corner: tuple[int, int]) -> bool:
    middle = ring_of(feature).mean(axis=0) - corner
    return bool(((middle >= 0) & (middle < VIEW_PX)).all())


def main() -> None:
    """Write both pictures."""
    with tempfile.TemporaryDirectory() as directory:
        scene = generate_scene(SIDE_PX)
        image = write_scene(scene, Path(directory))
        with LocalStack(Path(directory) / "logs", {ENDPOINT: ModelSettings("bright-objects")}) as stack:
            before, after = (features_of(stack, image, merge) for merge in ("NONE", "SEAM"))
    corner = busiest_view(before, after)
    x, y = corner
    tiles = sorted(
        tile
        for tile in {tile_of(feature) for feature in before}
        if tile[1] < x + VIEW_PX[0] and tile[1] + tile[2] > x and tile[0] < y + VIEW_PX[1] and tile[0] + tile[3] > y
    )
    for name, features in (("before", before), ("after", after)):
        draw(scene, features, tiles, corner).save(IMAGES / f"seam-{name}.png", optimize=True)
        print(f"{name}: {len(features)} features")


if __name__ == "__main__":
    main()
