"""Resampling on the grid of the whole image, compared with sums that are written out, and with itself in parts."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aws.osml.model_runner.raster.resampling import axis_weights, nearest_pixels, resampled

METHODS = ["BILINEAR", "CUBIC", "AVERAGE"]
LENGTH = 61


def kernel(method, t):
    if method == "BILINEAR":
        return max(0.0, 1 - t)
    if t <= 1:
        return 1.5 * t**3 - 2.5 * t**2 + 1
    return -0.5 * t**3 + 2.5 * t**2 - 4 * t + 2 if t < 2 else 0.0


def weights_of(method, ratio, model, length):
    """Return the weights of all image pixels for one model pixel, one by one."""
    centre, stretch = (model + 0.5) * ratio, max(1.0, ratio)
    weights = [
        max(0.0, min(pixel + 1, (model + 1) * ratio) - max(pixel, model * ratio))
        if method == "AVERAGE"
        else kernel(method, abs(pixel + 0.5 - centre) / stretch)
        for pixel in range(length)
    ]
    return np.array(weights) / sum(weights)


def dense(axis, length):
    full = np.zeros((axis.height, length))
    full[:, axis.first : axis.first + axis.width] = axis.matrix.toarray()
    return full


@pytest.mark.parametrize("method", METHODS)
@settings(max_examples=40)
@given(scale=st.floats(0.05, 8))
def test_weights_are_those_of_kernel_which_widens_when_pixels_grow(method, scale):
    ratio = 1 / scale
    count = max(1, math.floor(LENGTH * scale + 0.5))
    found = dense(axis_weights(method, ratio, 0, count, LENGTH, "f8"), LENGTH)
    for model in {0, count // 3, count - 1}:
        assert np.abs(found[model] - weights_of(method, ratio, model, LENGTH)).max() < 1e-9
    assert np.allclose(found.sum(axis=1), 1)


@pytest.mark.parametrize("method", METHODS)
@settings(max_examples=40, deadline=None)
@given(scale=st.floats(0.05, 8), data=st.data())
def test_part_of_image_is_same_to_bit_whichever_tile_it_is_in(method, scale, data):
    ratio = 1 / scale
    side = min(40, max(1, math.floor(LENGTH * scale)))
    rng = np.random.default_rng(data.draw(st.integers(0, 99)))
    image = rng.integers(0, 2000, (LENGTH, LENGTH)).astype("f4")
    is_valid = rng.random(image.shape) > data.draw(st.sampled_from([0.0, 0.02, 0.5]))

    def cut(row, col, height, width):
        down = axis_weights(method, ratio, row, height, LENGTH, "f4")
        across = axis_weights(method, ratio, col, width, LENGTH, "f4")
        window = np.s_[down.first : down.first + down.width, across.first : across.first + across.width]
        values, valid = resampled(image[window], is_valid[window], down, across)
        return values, np.ones(values.shape, bool) if valid is None else valid

    row, col = (data.draw(st.integers(0, side - 1)) for _ in range(2))
    height, width = data.draw(st.integers(1, side - row)), data.draw(st.integers(1, side - col))
    whole, whole_valid = cut(0, 0, side, side)
    part, part_valid = cut(row, col, height, width)
    inside = np.s_[row : row + height, col : col + width]
    assert np.array_equal(part_valid, whole_valid[inside])
    assert np.array_equal(part[part_valid], whole[inside][part_valid])


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("scale", [0.07, 0.4, 1.7])
def test_what_is_not_valid_has_no_weight(method, scale):
    image = np.full((LENGTH, LENGTH), 700.0)
    is_valid = np.ones(image.shape, bool)
    is_valid[:, :30] = False
    image[~is_valid] = -9999.0
    axis = axis_weights(method, 1 / scale, 0, max(1, round(LENGTH * scale)), LENGTH, "f8")
    window = np.s_[axis.first : axis.first + axis.width, axis.first : axis.first + axis.width]
    values, valid = resampled(image[window], is_valid[window], axis, axis)
    assert np.allclose(values[valid], 700.0)
    middles = (np.arange(axis.height) + 0.5) / scale
    assert (valid.all(axis=0) == (middles > 30)).sum() >= axis.height - 1


@given(st.floats(0.05, 8), st.integers(0, 5_000))
def test_nearest_pixel_holds_middle(scale, start):
    length = math.ceil((start + 10) / scale) + 1
    pixels = nearest_pixels(1 / scale, start, 10, length)
    middles = (np.arange(start, start + 10) + 0.5) / scale
    assert (pixels <= middles + 1e-9).all()
    assert (middles < pixels + 1 + 1e-9).all()
