"""Finds shapes that cross themselves or one another too often for exact operations.

The intersection of two combs has as many corners as the product of their numbers of teeth. For two polygons of 3,000
teeth, which fit in features, it takes hours and tens of gigabytes.
"""

import numpy as np
import shapely

from .geometry_arrays import ObjectArray

# Allowed pairs of segments that meet, also within one outline: a constant, and a number for each segment.
ALLOWED_MEETINGS = 50_000
MEETINGS_PER_SEGMENT = 10
# Shapes with fewer corners are never entangled.
FEW_CORNERS = 200
_PAIRS_AT_ONCE = 1_000_000
_COARSE_CORNERS = 100


def is_entangled(shapes: ObjectArray) -> bool:
    """Return True if the segments of all these shapes meet more often than allowed."""
    corners, owners = shapely.get_coordinates(shapes, return_index=True)
    is_segment = owners[1:] == owners[:-1]
    segments = shapely.linestrings(np.stack([corners[:-1], corners[1:]], axis=1)[is_segment])
    if len(segments) <= FEW_CORNERS:
        return False
    allowed = ALLOWED_MEETINGS + MEETINGS_PER_SEGMENT * len(segments)
    tree, at_once = shapely.STRtree(segments), max(1, _PAIRS_AT_ONCE // len(segments))
    met = 0
    for start in range(0, len(segments), at_once):
        met += tree.query(segments[start : start + at_once], predicate="intersects").shape[1]
        if met > allowed:
            return True
    return False


def coarse(shape: shapely.Geometry) -> shapely.Geometry:
    """Return a replacement for a shape that is entangled with itself: an area's box, a line's with few corners."""
    if shapely.get_dimensions(shape) == 2:
        return shapely.box(*shapely.bounds(shape))
    corners = shapely.get_coordinates(shape)
    return shapely.LineString(corners[np.linspace(0, len(corners) - 1, _COARSE_CORNERS).astype(np.intp)])
