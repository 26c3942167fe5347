"""Converts a region of interest from degrees to polygons in pixels of an image. Pure.

Only the mapping from pixels to the ground is used. It is exact in every projection; the inverse mapping fails or folds
where the projection does not reach. The image is divided into cells. In most cells the mapping is affine, to a tenth of
a pixel. The outline of such a cell in degrees is intersected with the region of interest, and the intersection is
mapped back to pixels. Other cells are divided further: near a pole, at the edge of the Earth, along a cut of the
projection.
"""

from collections.abc import Callable

import numpy as np
import shapely
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]
BoolArray = NDArray[np.bool_]
ObjectArray = NDArray[np.object_]

# (n, 2) pixels x, y -> (n, 2) or (n, 3) degrees of longitude and latitude; NaN off the Earth
Locate = Callable[[FloatArray], FloatArray]

# Cells on each side of the image before any is divided.
_FIRST_CELLS = 32
_MAX_AFFINE_ERROR_PX = 0.1
_MIN_CELL_PX = 1.0
# More cells than this are not divided further: along the edge of a large disk every pixel would be a cell.
_MAX_DIVIDED = 4_096
# The mapping bends too much in a wider cell, so its outline in degrees is not reliable.
_MAX_CELL_DEG = 60.0
# Thousandths of a pixel are below the precision of any georeference, and rounding to them removes numerical noise.
_DECIMALS = 3

# Nine nodes of a cell, in units of half its sides, from its centre: corners and middles of sides, the centre last.
_NODES = np.array([[-1, -1], [0, -1], [1, -1], [1, 0], [1, 1], [0, 1], [-1, 1], [-1, 0], [0, 0]], dtype=np.float64)
_CORNERS, _TOP, _RIGHT, _BOTTOM, _LEFT, _CENTRE = [0, 2, 4, 6], 1, 3, 5, 7, 8


def roi_in_pixels(roi: shapely.Geometry, locate: Locate, width: int, height: int) -> shapely.Geometry:
    """Return the part of an image of ``width`` x ``height`` pixels in ``roi``, as polygons in pixels (x, y).

    ``roi`` is in degrees (lon, lat), straight between its vertices; its longitudes may differ from the longitudes of
    the image by 360 degrees. The result has many polygons, each valid by itself; they may share edges.
    """
    flat = shapely.force_2d(roi)
    shifts = [np.array([degrees, 0.0]) for degrees in (-360.0, 0.0, 360.0)]
    copies = shapely.disjoint_subset_union_all([shapely.transform(flat, shift.__add__) for shift in shifts])
    shapely.prepare(copies)
    parts = shapely.STRtree(shapely.get_parts(copies))
    # Cells are (n, 4): centre x, centre y, half the width, half the height.
    half_x, half_y = width / _FIRST_CELLS / 2, height / _FIRST_CELLS / 2
    xs, ys = np.meshgrid((2 * np.arange(_FIRST_CELLS) + 1) * half_x, (2 * np.arange(_FIRST_CELLS) + 1) * half_y)
    cells = np.column_stack([xs.ravel(), ys.ravel(), np.full(xs.size, half_x), np.full(xs.size, half_y)])
    pieces = []
    while len(cells):
        nodes = _located(locate, cells)
        affine, error_px = _affine_map(nodes, cells)
        is_affine = error_px <= _MAX_AFFINE_ERROR_PX
        pieces.append(_shared(copies, parts, cells[is_affine], nodes[is_affine, _CENTRE], affine[is_affine]))
        bent, bent_nodes = cells[~is_affine], nodes[~is_affine]
        is_open, is_inside = _compared(copies, bent_nodes)
        pieces.append(_boxes(bent[is_inside]))
        bent, bent_nodes = bent[is_open], bent_nodes[is_open]
        is_small = (bent[:, 2:] <= _MIN_CELL_PX / 2).all(axis=1)
        if len(bent) > _MAX_DIVIDED:
            is_small[:] = True
        small_nodes = bent_nodes[is_small]
        has_node_inside = shapely.intersects_xy(copies, small_nodes[..., 0], small_nodes[..., 1]).any(axis=1)
        pieces.append(_boxes(bent[is_small][has_node_inside]))
        large = bent[~is_small]
        halves = large[:, 2:] / 2
        cells = np.concatenate([np.hstack([large[:, :2] + halves * _NODES[corner], halves]) for corner in _CORNERS])
    return shapely.MultiPolygon(_in_image(np.concatenate(pieces), width, height).tolist())


def _located(locate: Locate, cells: FloatArray) -> FloatArray:
    """Return (n, 9, 2) degrees of the nodes; longitudes of a cell lie within 180 degrees of one of its nodes."""
    pixels = cells[:, None, :2] + cells[:, None, 2:] * _NODES
    nodes = np.asarray(locate(pixels.reshape(-1, 2)), dtype=np.float64)[:, :2].reshape(len(cells), len(_NODES), 2)
    nodes = np.where(np.isfinite(nodes).all(axis=2, keepdims=True), nodes, np.nan)
    first = np.argmax(np.isfinite(nodes[:, ::-1, 0]), axis=1)  # the centre, where it is on the Earth
    reference = np.take_along_axis(nodes[:, ::-1, 0], first[:, None], axis=1)
    away = nodes[:, :, 0] - reference
    reference = reference - 360.0 * np.round(reference / 360.0)
    nodes[:, :, 0] = reference + away - 360.0 * np.round(away / 360.0)
    return nodes


def _affine_map(nodes: FloatArray, cells: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Return the affine map of each cell, and its largest error at a node.

    The maps are (n, 2, 2) degrees per half cell; the errors are in pixels, infinite where a node is off the Earth.
    """
    across, down = (nodes[:, _RIGHT] - nodes[:, _LEFT]) / 2, (nodes[:, _BOTTOM] - nodes[:, _TOP]) / 2
    affine = np.stack([across, down], axis=2)
    bent = nodes - nodes[:, _CENTRE, None] - np.einsum("nij,kj->nki", affine, _NODES)
    with np.errstate(all="ignore"):
        off_px = np.abs(_undone(affine[:, None], bent)) * cells[:, None, 2:]
        worst_px = np.hypot(off_px[..., 0], off_px[..., 1]).max(axis=1, initial=0.0)
    return affine, np.where(np.isfinite(worst_px), worst_px, np.inf)


def _undone(affine: FloatArray, degrees: FloatArray) -> FloatArray:
    """Return the vectors that ``affine`` (…, 2, 2) maps to ``degrees`` (…, 2); LAPACK is slow here."""
    (a, b), (c, d) = np.moveaxis(affine, (-2, -1), (0, 1))
    east, north = degrees[..., 0], degrees[..., 1]
    vectors: FloatArray = np.stack([d * east - b * north, a * north - c * east], axis=-1) / (a * d - b * c)[..., None]
    return vectors


def _shared(
    roi: shapely.Geometry, roi_parts: shapely.STRtree, cells: FloatArray, centres: FloatArray, affine: FloatArray
) -> ObjectArray:
    """Return the intersection of cells with an affine map and ``roi``, in pixels; ``roi_parts`` are its polygons."""
    outlines = shapely.polygons(centres[:, None] + np.einsum("nij,kj->nki", affine, _NODES[_CORNERS]))
    is_inside = shapely.contains_properly(roi, outlines)
    is_cut = np.flatnonzero(~is_inside)
    # Each cell meets few of many polygons.
    cut, met = roi_parts.query(outlines[is_cut], predicate="intersects")
    shares = shapely.intersection(roi_parts.geometries[met], outlines[is_cut[cut]])
    parts, owners = shapely.get_parts(shares, return_index=True)
    is_area = shapely.get_dimensions(parts) == 2
    parts, owners = parts[is_area], is_cut[cut[owners[is_area]]]
    points, part_of = shapely.get_coordinates(parts, return_index=True)
    cell_of = owners[part_of]
    units = _undone(affine[cell_of], points - centres[cell_of])
    pixels = cells[cell_of, :2] + cells[cell_of, 2:] * np.clip(units, -1.0, 1.0)
    return np.concatenate([_boxes(cells[is_inside]), shapely.set_coordinates(parts, pixels)])


def _compared(roi: shapely.Geometry, nodes: FloatArray) -> tuple[BoolArray, BoolArray]:
    """Return which bent cells may share a part of their area with ``roi``, and which lie inside it.

    A cell counts as a rectangle in degrees around its nodes, twice as wide and high as they are apart. The rectangle
    decides nothing if it is wide, has nodes off the Earth, or may contain a pole.
    """
    if not len(nodes):
        return np.zeros(0, dtype=bool), np.zeros(0, dtype=bool)
    low, high = np.fmin.reduce(nodes, axis=1), np.fmax.reduce(nodes, axis=1)
    is_on_earth = np.isfinite(low).all(axis=1)
    margin = (high - low) / 2
    is_known = np.isfinite(nodes).all(axis=(1, 2)) & (high - low < _MAX_CELL_DEG).all(axis=1)
    is_known &= (np.abs(nodes[..., 1]).max(axis=1) + margin[:, 1]) < 90.0
    boxes = shapely.box(*(low - margin).T, *(high + margin).T)
    is_inside = is_known & shapely.contains(roi, boxes)
    return is_on_earth & ~is_inside & ~(is_known & shapely.disjoint(roi, boxes)), is_inside


def _boxes(cells: FloatArray) -> ObjectArray:
    low, high = cells[:, :2] - cells[:, 2:], cells[:, :2] + cells[:, 2:]
    return np.asarray(shapely.box(*low.T, *high.T), dtype=object)


def _in_image(pieces: ObjectArray, width: int, height: int) -> ObjectArray:
    """Return the pieces as valid polygons with an area, rounded and clipped to the image."""
    rounded = shapely.transform(pieces, lambda pixels: np.clip(np.round(pixels, _DECIMALS), 0.0, (width, height)))
    rounded = np.where(shapely.is_valid(rounded), rounded, shapely.make_valid(rounded))
    parts = shapely.get_parts(shapely.get_parts(rounded))
    kept: ObjectArray = parts[shapely.area(parts) > 0]
    return kept
