"""The rule of ``features.seam_merge``, in the plainest words: every pair, one after another."""

import math
from dataclasses import dataclass

import shapely

EDGE_PX = 4.0


@dataclass(frozen=True)
class Seen:
    """A tile's detection: a shape in pixels; ``tile`` is (minx, miny, maxx, maxy)."""

    shape: shapely.Geometry
    tile: tuple
    score: float = math.nan
    category: int = 0

    @property
    def bounds(self):
        return self.shape.bounds

    @property
    def kind(self):
        return self.shape.geom_type


def touches(seen, tiles):
    """Return at which of the sides minx, miny, maxx, maxy an inner edge of the tile cuts what was seen."""
    lowest = [min(tile[side] for tile in tiles) for side in (0, 1)]
    highest = [max(tile[side] for tile in tiles) for side in (2, 3)]
    return [
        *(seen.tile[s] > lowest[s] and seen.bounds[s] <= seen.tile[s] + EDGE_PX for s in (0, 1)),
        *(seen.tile[s] < highest[s - 2] and seen.bounds[s] >= seen.tile[s] - EDGE_PX for s in (2, 3)),
    ]


def saw(tile, seen):
    """Return whether a tile has a pixel of another tile's detection."""
    minx, miny, maxx, maxy = seen.bounds
    columns = math.floor(minx), max(math.floor(minx), math.ceil(maxx) - 1)
    rows = math.floor(miny), max(math.floor(miny), math.ceil(maxy) - 1)
    return columns[0] < tile[2] and columns[1] >= tile[0] and rows[0] < tile[3] and rows[1] >= tile[1]


def may_be_seen_twice(seen, tiles, distance_px):
    """Return whether several tiles have a pixel of a detection, whose ends are uncertain; no other is compared."""
    noise_px = EDGE_PX + (distance_px / 2 if seen.kind in ("Point", "LineString") else 0)
    minx, miny, maxx, maxy = seen.bounds
    around = Seen(shapely.box(minx - noise_px, miny - noise_px, maxx + noise_px, maxy + noise_px), seen.tile)
    return sum(saw(tile, around) for tile in tiles) > 1


def reaches_beyond(seen, tile, noise_px=EDGE_PX):
    return [
        *(seen.bounds[s] < tile[s] - noise_px for s in (0, 1)),
        *(seen.bounds[s] > tile[s] + noise_px for s in (2, 3)),
    ]


def truncation_agrees(a, b, tiles):
    return not any(
        reach and not touch
        for one, other in ((a, b), (b, a))
        for reach, touch in zip(reaches_beyond(one, other.tile), touches(other, tiles), strict=True)
    )


def agree(kind, a, b, metric, threshold, distance_px):
    """Compare two shapes of one kind, as they are."""
    if kind == "LineString":
        return agree_in_length(a, b, metric, threshold, distance_px)
    shared = a.intersection(b).area
    whole = min(a.area, b.area) if metric == "IOS" else a.area + b.area - shared
    return whole > 0 and shared / whole > threshold


def agree_in_length(a, b, metric, threshold, distance_px):
    shares = [
        x.intersection(y.buffer(distance_px, quad_segs=4)).length / x.length if x.length else 0
        for x, y in ((a, b), (b, a))
    ]
    share = min(shares) if metric == "IOU" else shares[0] if a.length <= b.length else shares[1]
    return share > threshold


def are_same(a, b, tiles, options, distance_px):
    if a.tile == b.tile or a.kind != b.kind or not (options.is_class_agnostic or a.category == b.category):
        return False
    if not all(may_be_seen_twice(seen, tiles, distance_px) for seen in (a, b)):
        return False
    if a.kind == "Point":
        return a.shape.distance(b.shape) <= distance_px
    if agree(a.kind, a.shape, b.shape, options.metric, options.iou_threshold, distance_px):
        return True
    both_saw = shapely.box(*a.tile).intersection(shapely.box(*b.tile))
    parts = a.shape.intersection(both_saw), b.shape.intersection(both_saw)
    return truncation_agrees(a, b, tiles) and agree(a.kind, *parts, "IOU", options.iou_threshold, distance_px)


def strength(index, seen, tiles):
    return any(touches(seen, tiles)), math.inf if math.isnan(seen.score) else -seen.score, index


def is_fragment(index, everything, tiles, options, distance_px):
    """Return whether another tile saw more of the object than the detection."""
    seen = everything[index]
    for other in everything:
        sees = saw(seen.tile, other), saw(other.tile, seen)
        if not (all(sees) if options.merge == "UNION" else any(sees)):
            continue
        if not are_same(seen, other, tiles, options, distance_px) or any(reaches_beyond(seen, other.tile)):
            continue
        is_smaller = area_of(seen) < 0.9 * area_of(other)
        if any(reaches_beyond(other, seen.tile)) or (is_smaller and any(reaches_beyond(other, seen.tile, 0.0))):
            return True
    return False


def area_of(seen):
    minx, miny, maxx, maxy = seen.bounds
    return (maxx - minx) * (maxy - miny)


def suppressors(everything, tiles, options, distance_px):
    """Return for each detection the index of the detection that represents its object."""
    order = sorted(range(len(everything)), key=lambda i: strength(i, everything[i], tiles))
    order.sort(key=lambda i: is_fragment(i, everything, tiles, options, distance_px))
    if options.merge == "UNION":
        return joined(everything, tiles, options, distance_px, order)
    standing = list(range(len(everything)))
    for place, i in enumerate(order):
        if standing[i] != i:
            continue
        for j in order[place + 1 :]:
            a, b = everything[i], everything[j]
            if standing[j] == j and saw(a.tile, b) and are_same(a, b, tiles, options, distance_px):
                standing[j] = i
    return standing


def joined(everything, tiles, options, distance_px, order):
    group = list(range(len(everything)))
    for place, i in enumerate(order):
        for j in order[place + 1 :]:
            a, b = everything[i], everything[j]
            if saw(a.tile, b) and saw(b.tile, a) and are_same(a, b, tiles, options, distance_px):
                group = [group[i] if number == group[j] else number for number in group]
    return [next(i for i in order if group[i] == number) for number in group]
