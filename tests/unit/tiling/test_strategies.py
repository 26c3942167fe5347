from itertools import pairwise
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from aws.osml.model_runner.exceptions import ProcessRegionException
from aws.osml.model_runner.tile_worker import (
    ProcessTilesException,
    SetupTileWorkersException,
    TilingStrategy,
    VariableOverlapTilingStrategy,
    VariableTileTilingStrategy,
    ceildiv,
    generate_crops,
)
from examples import examples

VO, VT = VariableOverlapTilingStrategy(), VariableTileTilingStrategy()
STRATEGIES = pytest.mark.parametrize("strategy", [VO, VT], ids=["variable-overlap", "variable-tile"])


class Case(NamedTuple):
    """Bounds ((row, col), (width, height)); region, tile and overlap, all square; and the plan.

    The plan is the (start, length) of the regions on each axis, and the number of tiles of each region.
    """

    bounds: tuple
    region: int
    tile: int
    overlap: int
    columns: list
    rows: list
    tile_counts: list


# Section 4 of the contract. In the last three, the known strategy leaves out columns and rows at the far edges. Here
# the same number of regions and tiles reaches the edges.
VARIABLE_OVERLAP_CASES = {
    "25000x12000": Case(
        ((0, 0), (25000, 12000)),
        *(10240, 4096, 100),
        [(0, 7580), (6968, 7580), (13936, 7580), (20904, 4096)],
        [(0, 8048), (7904, 4096)],
        [4, 4, 4, 2, 2, 2, 2, 1],
    ),
    "12000x2000": Case(((0, 0), (12000, 2000)), 10240, 4096, 100, [(0, 8048), (7904, 4096)], [(0, 2000)], [2, 1]),
    "1025x1025": Case(((0, 0), (1025, 1025)), 8192, 1024, 50, [(0, 1025)], [(0, 1025)], [4]),
    "500x300": Case(((0, 0), (500, 300)), 8192, 1024, 50, [(0, 500)], [(0, 300)], [1]),
    "40x40": Case(((0, 0), (40, 40)), 8192, 1024, 50, [(0, 40)], [(0, 40)], [1]),
    "1200x900": Case(
        ((0, 0), (1200, 900)), 600, 512, 64, [(0, 512), (344, 512), (688, 512)], [(0, 512), (388, 512)], [1] * 6
    ),
    "20000x20000": Case(
        ((0, 0), (20000, 20000)),
        *(8192, 1024, 50),
        [(0, 7665), (7590, 7666), (15180, 4820)],
        [(0, 7665), (7590, 7666), (15180, 4820)],
        [64, 64, 40, 64, 64, 40, 40, 40, 25],
    ),
    "10000x10000": Case(
        ((0, 0), (10000, 10000)),
        *(5000, 1024, 100),
        [(0, 4614), (4488, 4614), (8976, 1024)],
        [(0, 4614), (4488, 4614), (8976, 1024)],
        [25, 25, 5, 25, 25, 5, 5, 5, 1],
    ),
    "3000x2000 at (200, 100)": Case(
        ((200, 100), (3000, 2000)), 2048, 512, 0, [(100, 2004), (2090, 1010)], [(200, 2000)], [16, 8]
    ),
}
VARIABLE_TILE_CASES = {
    "25000x12000": Case(
        ((0, 0), (25000, 12000)),
        *(10240, 4096, 100),
        [(0, 10240), (10140, 10240), (20280, 4720)],
        [(0, 10240), (10140, 1860)],
        [9, 9, 6, 3, 3, 2],
    ),
    "1025x1025": Case(((0, 0), (1025, 1025)), 8192, 1024, 50, [(0, 1025)], [(0, 1025)], [4]),
    "500x300": Case(((0, 0), (500, 300)), 8192, 1024, 50, [(0, 500)], [(0, 300)], [1]),
    "40x40": Case(((0, 0), (40, 40)), 8192, 1024, 50, [(0, 40)], [(0, 40)], [1]),
}


def square(side):
    return (side, side)


def grid(columns, rows):
    return [((row, col), (width, height)) for row, height in rows for col, width in columns]


@pytest.mark.parametrize(
    ("strategy", "case"),
    [pytest.param(VO, case, id=f"overlap {name}") for name, case in VARIABLE_OVERLAP_CASES.items()]
    + [pytest.param(VT, case, id=f"tile {name}") for name, case in VARIABLE_TILE_CASES.items()],
)
def test_contract_vector(strategy, case):
    sizes = square(case.region), square(case.tile), square(case.overlap)
    regions = strategy.compute_regions(case.bounds, *sizes)
    assert regions == grid(case.columns, case.rows)
    assert [len(strategy.compute_tiles(region, *sizes[1:])) for region in regions] == case.tile_counts


@pytest.mark.parametrize(
    ("strategy", "region", "tile", "overlap", "tiles"),
    [
        (VO, ((0, 0), (7580, 8048)), 4096, 100, grid([(0, 4096), (3484, 4096)], [(0, 4096), (3952, 4096)])),
        (VO, ((0, 0), (8048, 2000)), 4096, 100, grid([(0, 4096), (3952, 4096)], [(0, 2000)])),
        (VO, ((0, 0), (1025, 1025)), 1024, 50, grid([(0, 1024), (1, 1024)], [(0, 1024), (1, 1024)])),
        (VT, ((0, 0), (1025, 1025)), 1024, 50, grid([(0, 1024), (974, 51)], [(0, 1024), (974, 51)])),
    ],
)
def test_contract_tiles(strategy, region, tile, overlap, tiles):
    assert strategy.compute_tiles(region, square(tile), square(overlap)) == tiles


# --- one axis at a time ---


class Axis(NamedTuple):
    """An axis to divide, in pixels."""

    start: int
    length: int
    region: int
    tile: int
    overlap: int

    @property
    def end(self):
        return self.start + self.length


@st.composite
def axes(draw):
    tile = draw(st.integers(1, 2048))
    overlap = draw(st.integers(0, tile - 1))
    most = min(60_000, tile + 200 * (tile - overlap))
    length = draw(st.integers(1, most) | st.integers(1, tile) | st.integers(tile, min(most, 4 * tile)))
    region = draw(st.integers(1, 20_000) | st.integers(tile, 8 * tile))
    return Axis(draw(st.integers(0, 100_000)), length, region, tile, overlap)


def plan_of(strategy, axis):
    """Return [(region, its tiles)] on the axis, as (start, end), from a picture that is one pixel high."""
    tile, overlap = (axis.tile, 1), (axis.overlap, 0)
    bounds = ((7, axis.start), (axis.length, 1))
    regions = strategy.compute_regions(bounds, (axis.region, 1), tile, overlap)
    return [
        (columns_of(region), [*map(columns_of, strategy.compute_tiles(region, tile, overlap))]) for region in regions
    ]


def columns_of(region):
    (row, col), (width, height) = region
    assert (row, height) == (7, 1)
    return col, col + width


def assert_covers(spans, axis, least_overlap):
    """The spans go from end to end of the axis, in order, each sharing at least this much with the one before."""
    assert spans[0][0] == axis.start
    assert spans[-1][1] == axis.end
    for (start, end), (next_start, next_end) in pairwise(spans):
        assert start < next_start <= end - least_overlap
        assert end < next_end


@examples(2500)
@given(axis=axes())
def test_default_strategy_covers_every_pixel_with_full_tiles(axis):
    plan = plan_of(VO, axis)
    tiles = [tile for _, tiles in plan for tile in tiles]
    assert_covers(tiles, axis, axis.overlap)
    assert {end - start for start, end in tiles} == {min(axis.tile, axis.length)}
    assert len(tiles) == max(1, ceildiv(axis.length - axis.overlap, axis.tile - axis.overlap))


@examples(600)
@given(axis=axes())
def test_default_strategy_builds_regions_of_whole_tiles(axis):
    plan = plan_of(VO, axis)
    assert_covers([region for region, _ in plan], axis, axis.overlap)
    for (start, end), tiles in plan:
        assert (start, end) == (tiles[0][0], tiles[-1][1])
        assert end - start <= max(axis.region, min(axis.tile, axis.length))
        assert len(tiles) == 1 or axis.region >= axis.tile
    sizes = [len(tiles) for _, tiles in plan]
    assert len(set(sizes[:-1])) <= 1
    assert sizes[-1] <= sizes[0]


@examples(600)
@given(axis=axes())
def test_default_strategy_spreads_slack_evenly(axis):
    plan = plan_of(VO, axis)
    tiles = [tile for _, tiles in plan for tile in tiles]
    gaps, slack = len(tiles) - 1, axis.length - axis.tile
    assume(gaps)
    even = [axis.start + i * slack // gaps for i in range(len(tiles))]
    starts = [start for start, _ in tiles]
    if len(plan) == 1 or slack % gaps == 0:
        assert starts == even
    assert np.abs(np.subtract(starts, even)).max() <= 1
    assert {region[0] for region, _ in plan} <= set(even)
    assert {region[1] - axis.tile for region, _ in plan} <= set(even)


@st.composite
def axes_without_remainder(draw):
    """Axes on which tiles can be spread without rounding, so that the known strategy covers them whole."""
    tile = draw(st.integers(1, 2048))
    overlap = draw(st.integers(0, tile - 1))
    gaps = draw(st.integers(0, 60))
    stride = tile - overlap - draw(st.integers(0, (tile - overlap - 1) // max(1, gaps)))
    region = draw(st.integers(tile, 20_000) | st.integers(tile, 8 * tile))
    return Axis(draw(st.integers(0, 100_000)), tile + gaps * stride, region, tile, overlap)


@examples(600)
@given(axis=axes_without_remainder())
def test_default_strategy_equals_original_where_it_covers(axis):
    known = known_variable_overlap(axis)
    assert known[-1][1][-1][1] == axis.end
    assert plan_of(VO, axis) == known


def known_variable_overlap(axis):
    """Return [(region, its tiles)] as v2.3.0 plans an axis of at least a tile (contract, section 4)."""
    overlap = known_overlap(axis.length, axis)
    stride = axis.tile - overlap
    full = [crop for crop in known_crops((axis.start, axis.end), axis.tile, overlap) if crop[1] - crop[0] == axis.tile]
    region_size = stride * ((axis.region - overlap) // stride) + overlap
    regions = known_crops((axis.start, full[-1][1]), region_size, overlap)
    return [(region, known_full_tiles(region, axis)) for region in regions]


def known_overlap(length, axis):
    count = ceildiv(length - axis.overlap, axis.tile - axis.overlap)
    extra = axis.overlap + count * (axis.tile - axis.overlap) - length
    return axis.overlap + ceildiv(extra, count - 1) if count > 1 else axis.overlap


def known_full_tiles(region, axis):
    crops = known_crops(region, axis.tile, known_overlap(region[1] - region[0], axis))
    return [crop for crop in crops if crop[1] - crop[0] == axis.tile]


@examples(600)
@given(axis=axes())
def test_fixed_stride_strategy_covers_all_pixels_with_overlap(axis):
    plan = plan_of(VT, axis)
    least_overlap = min(axis.overlap, axis.length)
    assert_covers([region for region, _ in plan], axis, least_overlap)
    assert_covers([tile for _, tiles in plan for tile in tiles], axis, least_overlap)
    for region, tiles in plan:
        assert_covers(tiles, Axis(region[0], region[1] - region[0], *axis[2:]), axis.overlap)
        assert all(end - start == axis.tile for start, end in tiles[:-1])
        assert all(end - next_start == axis.overlap for (_, end), (next_start, _) in pairwise(tiles))


@examples(400)
@given(axis=axes())
def test_fixed_stride_strategy_equals_original_where_it_has_tiles(axis):
    assume(axis.overlap < min(axis.length, axis.region))
    regions = known_crops((axis.start, axis.end), axis.region, axis.overlap)
    assert plan_of(VT, axis) == [(region, known_crops(region, axis.tile, axis.overlap)) for region in regions]


def known_crops(span, size, overlap):
    starts = range(span[0], span[1], size - overlap)
    crops = [(start, min(start + size, span[1])) for start in starts]
    return [(start, end) for start, end in crops if end - start > overlap]


# --- both axes ---


@STRATEGIES
@examples(150)
@given(across=axes(), down=axes())
def test_plan_is_product_of_its_axes_in_reading_order(strategy, across, down):
    tile, overlap = (across.tile, down.tile), (across.overlap, down.overlap)
    bounds = ((down.start, across.start), (across.length, down.length))
    regions = strategy.compute_regions(bounds, (across.region, down.region), tile, overlap)
    columns, rows = plan_of(strategy, across), plan_of(strategy, down)
    assert regions == grid([as_length(region) for region, _ in columns], [as_length(region) for region, _ in rows])
    corner = strategy.compute_tiles(regions[-1], tile, overlap)
    assert corner == grid([*map(as_length, columns[-1][1])], [*map(as_length, rows[-1][1])])


def as_length(span):
    return span[0], span[1] - span[0]


@STRATEGIES
@examples(200)
@given(data=st.data())
def test_every_pixel_of_picture_is_in_tile_and_none_outside(strategy, data):
    small = st.integers(1, 60)
    origin, size, tile = ((data.draw(small), data.draw(small)) for _ in range(3))
    overlap = tuple(data.draw(st.integers(0, side - 1)) for side in tile)
    region_size = data.draw(small), data.draw(small)
    regions = strategy.compute_regions((origin, size), region_size, tile, overlap)
    seen = np.zeros((130, 130), dtype=int)
    for region in regions:
        in_region = np.zeros_like(seen)
        for (row, col), (width, height) in strategy.compute_tiles(region, tile, overlap):
            in_region[row : row + height, col : col + width] += 1
        assert (in_region > 0).sum() == region.size.width * region.size.height
        assert in_region[region.origin.row : region.bottom, region.origin.col : region.right].all()
        seen += in_region
    assert (seen > 0).sum() == size[0] * size[1]
    assert seen[origin[0] : origin[0] + size[1], origin[1] : origin[1] + size[0]].all()


@STRATEGIES
def test_plan_is_same_for_lists_and_tuples(strategy):
    tuples = strategy.compute_regions(((5, 7), (5000, 4000)), (2048, 1500), (512, 400), (50, 20))
    lists = strategy.compute_regions([[5, 7], [5000, 4000]], [2048, 1500], [512, 400], [50, 20])
    assert tuples == lists
    assert strategy.compute_tiles(tuples[0], (512, 400), (50, 20)) == strategy.compute_tiles(
        tuples[0].to_lists(), [512, 400], [50, 20]
    )


@STRATEGIES
@pytest.mark.parametrize("overlap", [512, 600, -1])
def test_overlap_that_leaves_no_stride_is_refused(strategy, overlap):
    bounds = ((0, 0), (2000, 2000))
    with pytest.raises(ValueError, match=f"overlap {overlap} px: expected 0 or more, and less than the 512 px"):
        strategy.compute_regions(bounds, square(1024), square(512), square(overlap))
    with pytest.raises(ValueError, match=f"overlap {overlap} px"):
        strategy.compute_tiles(bounds, square(512), square(overlap))


@STRATEGIES
@pytest.mark.parametrize("size", [(0, 0), (0, 5), (5, 0)])
def test_empty_bounds_have_no_regions_and_no_tiles(strategy, size):
    assert strategy.compute_regions(((3, 4), size), square(1024), square(512), square(64)) == []
    assert strategy.compute_tiles(((3, 4), size), square(512), square(64)) == []


def test_regions_smaller_than_overlap_become_tiles():
    bounds = ((0, 0), (2000, 500))
    regions = VT.compute_regions(bounds, square(100), square(512), square(128))
    assert regions == grid([(0, 512), (384, 512), (768, 512), (1152, 512), (1536, 464)], [(0, 500)])
    assert [VT.compute_tiles(region, square(512), square(128)) for region in regions] == [
        [region] for region in regions
    ]


# --- what strategies share ---


@pytest.mark.parametrize(
    ("size", "only_full", "crops"),
    [
        ((10, 4), False, grid([(2, 4), (5, 4), (8, 4)], [(1, 4)])),
        ((11, 5), False, grid([(2, 4), (5, 4), (8, 4), (11, 2)], [(1, 4), (4, 2)])),
        ((11, 5), True, grid([(2, 4), (5, 4), (8, 4)], [(1, 4)])),
        ((1, 1), False, [((1, 2), (1, 1))]),
        ((1, 9), True, []),
    ],
)
def test_crops_at_fixed_stride(size, only_full, crops):
    assert generate_crops(((1, 2), size), (4, 4), (1, 1), only_full_tiles=only_full) == crops


@pytest.mark.parametrize(("a", "b", "quotient"), [(0, 5, 0), (1, 5, 1), (5, 5, 1), (6, 5, 2), (-1, 5, 0), (-5, 5, -1)])
def test_division_that_rounds_up(a, b, quotient):
    assert ceildiv(a, b) == quotient


def test_strategy_is_interface():
    with pytest.raises(TypeError, match="abstract"):
        TilingStrategy()


@pytest.mark.parametrize("error", [SetupTileWorkersException, ProcessTilesException])
def test_errors_of_room_are_errors_of_region(error):
    assert issubclass(error, ProcessRegionException)
