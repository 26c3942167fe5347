"""Finds compact bright objects on water, such as ships, in a tile.

An object is brighter than the dark background around it. Size, shape and surroundings of a candidate are checked. The
result is the smallest rectangle along the axis of each object. An object that touches the tile's edge is omitted. If
the overlap is as large as the largest object, a neighbouring tile contains the whole object.
"""

import math
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import Field
from scipy import ndimage

from aws.osml.model_runner.local.models.example_model import (
    ExampleModel,
    ModelReply,
    feature_collection,
    json_reply,
    polygon_feature,
)
from aws.osml.model_runner.raster.pixels import decode_tile

Pixels = NDArray[np.float32]
Mask = NDArray[np.bool_]

BLOCK_PX, STRIDE_PX = 64, 4  # the background is the quartile of every 4th pixel in blocks of 64 x 64
DARK_QUARTILE = 0.25
RING_PX = (2, 5)  # the surroundings of an object are between these distances from it
MIN_WATER_SHARE = 0.8
MIN_RING_SHARE = 0.25  # the minimum share of the ring that is free of other objects
BLUE_OVER_RED = 8.0


class BrightObjects(ExampleModel):
    """Settings: minimum contrast on a scale to 255, limits of size in pixels, of fill and of the score."""

    least_contrast: float = Field(default=30.0, gt=0)
    least_area_px: int = Field(default=20, ge=1)
    largest_px: float = Field(default=140.0, gt=1)
    least_width_px: float = Field(default=3.0, gt=0)
    least_fill: float = Field(default=0.62, gt=0, le=1)
    least_score: float = Field(default=0.0, ge=0, le=1)

    def reply(self, tile: bytes, attempt: int) -> ModelReply:  # noqa: ARG002 - every attempt gets the same reply
        """Return the objects in the tile."""
        return json_reply(find_objects(decode_tile(tile), self))


class OrientedBox(NamedTuple):
    """A rectangle along an object's axis; ``corners`` are (x, y) in pixels.

    ``fill`` is the share of the rectangle that the object covers.
    """

    corners: NDArray[np.float64]
    length_px: float
    width_px: float
    fill: float


def find_objects(tile: NDArray[Any], model: BrightObjects) -> dict[str, Any]:
    """Return the objects in ``tile`` (bands, rows, columns) as a feature collection."""
    bands = tile[:3] if tile.shape[0] >= 3 else tile[:1]
    if bands.dtype != np.uint8:
        # A scale from 0 to 255 for any data type, and the magnitude of complex pixels.
        values = np.abs(bands).astype(np.float32)
        brightest = float(np.percentile(values[:, ::STRIDE_PX, ::STRIDE_PX], 99.9))
        bands = np.clip(np.nan_to_num(values) * (255 / brightest if brightest > 0 else 1.0), 0, 255)
    brightness = bands.mean(axis=0, dtype=np.float32)
    contrast = brightness - _background(brightness)
    candidates = contrast > model.least_contrast
    labels, count = ndimage.label(candidates, np.ones((3, 3), int))
    if not count:
        return feature_collection([])
    areas = np.bincount(labels.ravel(), minlength=count + 1)
    height, width = candidates.shape
    features = []
    # Connected parts, from top to bottom. A part that touches the edge, or whose size does not fit, is skipped.
    for label, window in enumerate(ndimage.find_objects(labels), start=1):
        rows, columns = window
        is_inside = rows.start > 0 and columns.start > 0 and rows.stop < height and columns.stop < width
        length_px = max(rows.stop - rows.start, columns.stop - columns.start)
        if not is_inside or areas[label] < model.least_area_px or length_px > model.largest_px:
            continue
        feature = _describe(bands, contrast, candidates, labels, window, label, model)
        if feature is not None:
            features.append(feature)
    return feature_collection(features)


def _background(brightness: Pixels) -> Pixels:
    """Return the dark level around each pixel, interpolated.

    The level of a block is the minimum over the neighbouring blocks' lower quartiles.
    """
    height, width = brightness.shape
    rows, columns = -(-height // BLOCK_PX), -(-width // BLOCK_PX)
    sample = brightness[::STRIDE_PX, ::STRIDE_PX]
    cells = BLOCK_PX // STRIDE_PX
    padding = ((0, rows * cells - sample.shape[0]), (0, columns * cells - sample.shape[1]))
    blocks = np.pad(sample, padding, mode="edge").reshape(rows, cells, columns, cells).swapaxes(1, 2)
    levels = np.quantile(blocks.reshape(rows, columns, -1), DARK_QUARTILE, axis=2, method="lower")
    levels = ndimage.minimum_filter(levels, 3, mode="nearest").astype(np.float32)
    background: Pixels = _weights(height, rows) @ levels @ _weights(width, columns).T
    return background


def _weights(length: int, blocks: int) -> Pixels:
    """Return the matrix (length, blocks) that interpolates linearly between the middles of the blocks."""
    position = np.clip((np.arange(length) + 0.5) / BLOCK_PX - 0.5, 0, blocks - 1)
    distance = np.abs(position[:, None] - np.arange(blocks))
    weights: Pixels = np.maximum(0, 1 - distance).astype(np.float32)
    return weights


def _describe(
    bands: NDArray[Any],
    contrast: Pixels,
    candidates: Mask,
    labels: NDArray[np.int32],
    window: tuple[slice, slice],
    label: int,
    model: BrightObjects,
) -> dict[str, Any] | None:
    """Return the feature of one part, or None if the part is not on water or its shape does not fit."""
    around = tuple(slice(max(0, side.start - RING_PX[1] - 1), side.stop + RING_PX[1] + 1) for side in window)
    part = labels[around] == label
    # The ring around an object on water is blue. Without colour, it is enough that the ring is free of other objects.
    near = ndimage.distance_transform_cdt(~part, metric="chessboard")
    ring = (near > RING_PX[0]) & (near <= RING_PX[1])
    free = ring & ~candidates[around]
    if np.count_nonzero(free) < MIN_RING_SHARE * np.count_nonzero(ring):
        return None
    if len(bands) >= 3:
        red, blue = (bands[band][around][free].astype(np.float32) for band in (0, 2))
        if np.mean(blue - red > BLUE_OVER_RED) < MIN_WATER_SHARE:
            return None
    level = float(np.median(contrast[around][part]))
    # The border of an object is at half of its own contrast.
    rows, columns = np.nonzero(part & (contrast[around] > level / 2))
    box = oriented_box(columns + around[1].start + 0.5, rows + around[0].start + 0.5)
    score = round(1 - math.exp(-level / 45), 4)
    is_thin = min(box.width_px, box.length_px) < model.least_width_px
    if is_thin or box.fill < model.least_fill or score < model.least_score:
        return None
    corners = [(round(float(x), 2), round(float(y), 2)) for x, y in box.corners]
    return polygon_feature(corners, "ship", score, "bright-objects", lengthPx=round(box.length_px, 1))


def oriented_box(x: NDArray[np.floating[Any]], y: NDArray[np.floating[Any]]) -> OrientedBox:
    """Return the rectangle along the principal axis of pixels whose middles are (x, y)."""
    points = np.column_stack([x, y]).astype(np.float64)
    middle = points.mean(axis=0)
    spread = (points - middle).T @ (points - middle)
    angle = 0.5 * math.atan2(2 * spread[0, 1], spread[0, 0] - spread[1, 1])
    axes = np.array([[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]])
    along = (points - middle) @ axes.T
    low, high = along.min(axis=0), along.max(axis=0)
    # A pixel belongs to a part if half of it is covered, so the border is half a pixel outside of the outer middles.
    low, high = low - 0.5, high + 0.5
    extent = high - low
    signs = np.array([[low[0], low[1]], [high[0], low[1]], [high[0], high[1]], [low[0], high[1]]])
    area = float(extent[0] * extent[1])
    return OrientedBox(signs @ axes + middle, float(extent[0]), float(extent[1]), len(points) / area)
