"""A region of interest in degrees, as shapes in pixels."""

import numpy as np
import pytest
import shapely

from aws.osml.model_runner.tiling.pixel_roi import roi_in_pixels


def degrees(pixels: np.ndarray) -> np.ndarray:
    """100 pixels to a degree, x to the east and y to the south of (10 E, 20 N)."""
    return np.column_stack([10 + pixels[:, 0] / 100, 20 - pixels[:, 1] / 100])


def test_interest_keeps_its_holes():
    shape = shapely.Polygon([(10, 20), (14, 20), (14, 16), (10, 16)], holes=[[(11, 19), (13, 19), (13, 17), (11, 17)]])
    pixels = roi_in_pixels(shape, degrees, 1000, 1000)
    assert pixels.area == pytest.approx(400 * 400 - 200 * 200, abs=1)
    assert not any(part.intersects(shapely.Point(200, 200)) for part in pixels.geoms)
    assert pixels.bounds == (0, 0, 400, 400)


def test_edges_that_are_straight_on_map_may_bend_in_image():
    def bent(pixels: np.ndarray) -> np.ndarray:
        return degrees(np.column_stack([pixels[:, 0], pixels[:, 1] - 20 * np.sin(np.pi * pixels[:, 0] / 400)]))

    pixels = roi_in_pixels(shapely.box(10, 18, 14, 20), bent, 400, 400)
    assert pixels.bounds[1] == pytest.approx(0, abs=0.5)
    assert pixels.bounds[3] == pytest.approx(220, abs=0.5), "the lower edge hangs through in its middle"


def test_heights_of_interest_do_not_matter():
    shape = shapely.Polygon([(10, 20, 500), (11, 20, 500), (11, 19, 0)])
    pixels = roi_in_pixels(shape, degrees, 400, 400)
    assert pixels.equals(roi_in_pixels(shapely.force_2d(shape), degrees, 400, 400))
    assert pixels.area == pytest.approx(5000, abs=1)


@pytest.mark.parametrize("west", [-352, 8, 368 - 16])
def test_region_of_interest_matches_longitudes_modulo_360(west):
    pixels = roi_in_pixels(shapely.box(west, 19, west + 3, 20), degrees, 400, 400)
    expected = (0, 0, 100, 100) if west != 352 else None
    assert pixels.is_empty if expected is None else pixels.bounds == expected


def test_image_off_earth_does_not_touch_region_of_interest():
    assert roi_in_pixels(shapely.box(0, 0, 1, 1), lambda pixels: pixels * np.nan, 400, 300).is_empty


def test_folded_map_touches_region_of_interest_twice():
    def folded(pixels: np.ndarray) -> np.ndarray:
        return degrees(np.column_stack([np.abs(pixels[:, 0] - 200), pixels[:, 1]]))

    pixels = roi_in_pixels(shapely.box(10.5, 18, 11, 19), folded, 400, 400)
    assert pixels.area == pytest.approx(2 * 50 * 100, abs=1)
