"""Model pixels and image pixels."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aws.osml.model_runner.common.pixel_ratio import ONE, PixelRatio
from aws.osml.model_runner.common.typing import ImageRegion

SCALES = st.floats(0.05, 8)
SIDES = st.integers(1, 1_000_000)
# Rounding may move an edge so far from a whole pixel.
TOLERANCE = 2e-9


@given(st.floats(0.05, 8), SIDES, SIDES)
def test_raster_of_model_pixels_covers_image_to_half_pixel(scale, width, height):
    ratio = PixelRatio(1 / scale, 1 / scale)
    size = ratio.size_of(width, height)
    for side, model_side in zip((width, height), size, strict=True):
        assert model_side >= 1
        assert abs(model_side / scale - side) <= 0.5001 / scale or model_side == 1


@pytest.mark.parametrize(
    ("scale", "side", "expected"), [(0.5, 1000, 500), (0.3, 1000, 300), (0.1, 1005, 101), (8, 3, 24), (0.05, 3, 1)]
)
def test_sides_that_divide_evenly_stay_even(scale, side, expected):
    assert PixelRatio(1 / scale, 1 / scale).size_of(side, side) == (expected, expected)


@given(SCALES, SCALES, *[st.integers(0, 100_000)] * 2, *[st.integers(1, 5_000)] * 2)
def test_region_in_image_pixels_holds_region_in_model_pixels(x_scale, y_scale, row, col, width, height):
    ratio, region = PixelRatio(1 / x_scale, 1 / y_scale), ImageRegion.of(((row, col), (width, height)))
    found = ratio.in_image(region)
    assert found.origin.col <= col * ratio.x + TOLERANCE < found.origin.col + 1 + 2 * TOLERANCE
    assert found.origin.row <= row * ratio.y + TOLERANCE < found.origin.row + 1 + 2 * TOLERANCE
    assert found.right - 1 - TOLERANCE < region.right * ratio.x <= found.right + TOLERANCE
    assert found.bottom - 1 - TOLERANCE < region.bottom * ratio.y <= found.bottom + TOLERANCE
    assert ONE.in_image(region) is region


def test_region_in_image_ends_at_a_whole_pixel_when_the_product_is_rounded():
    assert 50 * 1.1 > 55
    assert PixelRatio(1.1, 1.1).in_image(ImageRegion.of(((0, 0), (50, 50)))).size == (55, 55)
