"""Parts of a tile: they cover it once, and none is made from more of the image than is allowed."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aws.osml.model_runner.raster import tile_parts
from aws.osml.model_runner.raster.resampling import AxisCache, axis_weights, kernel_width
from aws.osml.model_runner.raster.tile_parts import MAX_PART_BYTES, PartAxis, parts_of


@given(
    lengths=st.tuples(st.integers(1, 300), st.integers(1, 300)),
    block=st.tuples(st.integers(1, 5000), st.integers(1, 5000)),
    ratio=st.sampled_from([0.125, 0.7, 1.0, 3.3, 20.0]),
    method=st.sampled_from(["BILINEAR", "CUBIC", "AVERAGE", "NEAREST"]),
    pixel_bytes=st.sampled_from([1, 17, 513, 4097]),
)
def test_parts_cover_tile_once_and_fit(lengths, block, ratio, method, pixel_bytes):
    kernel = 1.0 if method == "NEAREST" else kernel_width(method, ratio)
    down, across = (PartAxis(length, side, ratio, kernel) for length, side in zip(lengths, block, strict=True))
    counts = np.zeros(lengths, int)
    for rows, columns in parts_of(down, across, pixel_bytes):
        counts[rows, columns] += 1
        height, width = down.image_pixels(rows.stop - rows.start), across.image_pixels(columns.stop - columns.start)
        assert height * width * pixel_bytes <= MAX_PART_BYTES
    assert (counts == 1).all()


@pytest.mark.parametrize("method", ["BILINEAR", "CUBIC", "AVERAGE"])
@given(scale=st.floats(0.05, 8), start=st.integers(0, 50), count=st.integers(1, 40))
def test_axis_is_no_wider_than_part_expects(method, scale, start, count):
    axis = axis_weights(method, 1 / scale, start, count, 10_000, "f4")
    assert axis.width <= PartAxis(count, 1, 1 / scale, kernel_width(method, 1 / scale)).image_pixels(count)


def test_tile_that_fits_is_one_part_and_rows_of_blocks_stay_whole(monkeypatch):
    whole = [(slice(0, 512), slice(0, 512))]
    assert list(parts_of(PartAxis(512, 256), PartAxis(512, 256), 16)) == whole
    monkeypatch.setattr(tile_parts, "MAX_PART_BYTES", 512 * 200)
    narrow = list(parts_of(PartAxis(512, 256), PartAxis(512, 256), 1))
    assert {rows.stop - rows.start for rows, _ in narrow} == {256}
    assert {columns.stop - columns.start for _, columns in narrow} == {400, 112}


def test_cache_of_axes_is_bounded_by_bytes_and_keeps_last_used():
    one = axis_weights("BILINEAR", 20.0, 0, 100, 10_000, "f4")
    cache = AxisCache(max_bytes=3 * one.size_bytes + one.size_bytes // 2)
    first = cache.weights("BILINEAR", 20.0, 0, 100, 10_000, "f4")
    for start in range(100, 400, 50):
        axis = cache.weights("BILINEAR", 20.0, start, 100, 10_000, "f4")
        assert np.array_equal(axis.matrix.data, axis_weights("BILINEAR", 20.0, start, 100, 10_000, "f4").matrix.data)
        assert 0 < cache.size_bytes <= 3.5 * one.size_bytes
        assert cache.weights("BILINEAR", 20.0, 0, 100, 10_000, "f4") is first
    tiny = AxisCache(max_bytes=1)
    assert tiny.weights("CUBIC", 2.0, 0, 9, 100, "f4").height == 9
    assert tiny.size_bytes == 0
