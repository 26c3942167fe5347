"""Which tiles of a remote image are fetched together."""

from hypothesis import given
from hypothesis import strategies as st

from aws.osml.model_runner.common.typing import ImageDimensions, ImageRegion
from aws.osml.model_runner.raster.read_ahead import strips_of
from aws.osml.model_runner.tile_worker import VariableOverlapTilingStrategy
from examples import examples


def region(row: int, col: int, width: int, height: int) -> ImageRegion:
    return ImageRegion.of(((row, col), (width, height)))


ROW = [region(0, col, 100, 100) for col in (0, 90, 180, 270)]


def test_tiles_side_by_side_make_one_strip_up_to_limit():
    assert set(strips_of(ROW, 37_000).values()) == {region(0, 0, 370, 100)}
    assert list(strips_of(ROW, 36_999).values()) == [region(0, 0, 280, 100)] * 3 + [ROW[3]]
    assert list(strips_of(ROW, 1).values()) == ROW


def test_gap_another_row_another_height_and_another_order_begin_new_strip():
    below = region(90, 270, 100, 100)
    lower = region(0, 270, 100, 50)
    assert list(strips_of([*ROW[:2], ROW[3]], 10**6).values()) == [region(0, 0, 190, 100)] * 2 + [ROW[3]]
    assert strips_of([*ROW[:3], below], 10**6)[below] == below
    assert strips_of([*ROW[:3], lower], 10**6)[lower] == lower
    assert list(strips_of(ROW[::-1], 10**6).values()) == ROW[::-1]
    assert strips_of([], 10**6) == {}


@given(st.integers(1, 2000), st.integers(1, 2000), st.integers(1, 400_000))
@examples(100)
def test_strip_is_made_of_its_tiles(width, height, max_pixels):
    tiles = VariableOverlapTilingStrategy().compute_tiles(
        region(7, 5, width, height), ImageDimensions(256, 256), ImageDimensions(32, 32)
    )
    strips = strips_of(tiles, max_pixels)

    assert list(strips) == list(tiles)
    for tile, strip in strips.items():
        members = [other for other in tiles if strips[other] == strip]
        assert (tile.origin.row, tile.size.height) == (strip.origin.row, strip.size.height)
        assert (members[0].origin, members[-1].right) == (strip.origin, strip.right)
        assert len(members) == 1 or strip.size.width * strip.size.height <= max_pixels
