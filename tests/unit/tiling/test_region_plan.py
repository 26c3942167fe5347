"""Which regions an image has, and which tiles a region has."""

import pytest
import shapely
from hypothesis import given
from hypothesis import strategies as st

from aws.osml.model_runner.common.typing import ImageCoord, ImageDimensions, ImageRegion
from aws.osml.model_runner.exceptions import LoadImageException
from aws.osml.model_runner.features.tile_spans import TileSpans, bounds_of_tiles
from aws.osml.model_runner.tile_worker import VariableOverlapTilingStrategy, VariableTileTilingStrategy
from aws.osml.model_runner.tiling.region_plan import TilePlanner, processing_bounds, region_id_of

VO, VT = VariableOverlapTilingStrategy(), VariableTileTilingStrategy()
STRATEGIES = pytest.mark.parametrize("strategy", [VO, VT], ids=["variable-overlap", "variable-tile"])


def square(size_px: int) -> ImageDimensions:
    return ImageDimensions(size_px, size_px)


def region(row: int, col: int, width: int, height: int) -> ImageRegion:
    return ImageRegion(ImageCoord(row, col), ImageDimensions(width, height))


@pytest.mark.parametrize(
    ("bounds", "job_id", "region_id"),
    [
        (((0, 344), (512, 512)), "job-1", "(0, 344)(512, 512)-job-1"),
        (((0, 0), (40, 30)), "j", "(0, 0)(40, 30)-j"),
        ([[7904, 20904], [4096, 4096]], "a-b", "(7904, 20904)(4096, 4096)-a-b"),
    ],
)
def test_region_ids_are_those_in_tables(bounds, job_id, region_id):
    assert region_id_of(ImageRegion.of(bounds), job_id) == region_id


def test_bounds_of_whole_image():
    assert processing_bounds(1200, 900, None) == ((0, 0), (1200, 900))


@pytest.mark.parametrize(
    ("roi", "bounds"),
    [
        (shapely.box(100, 200, 300, 250), ((200, 100), (200, 50))),
        (shapely.box(100.2, 200.9, 300.1, 250.5), ((200, 100), (201, 51))),
        (shapely.box(-50, -50, 10, 20), ((0, 0), (10, 20))),
        (shapely.box(1100, 850, 5000, 5000), ((850, 1100), (100, 50))),
        (shapely.box(-1, -1, 5000, 5000), ((0, 0), (1200, 900))),
        (shapely.box(5.1, 5.1, 5.2, 5.2), ((5, 5), (1, 1))),
        (shapely.union(shapely.box(0, 0, 10, 10), shapely.box(90, 90, 100, 100)), ((0, 0), (100, 100))),
    ],
)
def test_bounds_are_smallest_rectangle_of_whole_pixels_around_interest(roi, bounds):
    assert processing_bounds(1200, 900, roi) == bounds


@pytest.mark.parametrize(
    "roi",
    [
        shapely.box(1200, 0, 1300, 900),
        shapely.box(-100, -100, -1, -1),
        shapely.box(-100, 0, 0, 900),
        shapely.Point(1200, 900),
        shapely.Polygon(),
    ],
    ids=["beside", "before", "touching", "corner", "empty"],
)
def test_interest_off_image_is_refused(roi):
    with pytest.raises(LoadImageException, match="does not touch"):
        processing_bounds(1200, 900, roi)


@given(x0=st.floats(-200, 1300), y0=st.floats(-200, 1000), width=st.floats(0.5, 1500), height=st.floats(0.5, 1500))
def test_bounds_cover_image_part_of_region_of_interest(x0, y0, width, height):
    roi = shapely.box(x0, y0, x0 + width, y0 + height)
    shared = shapely.intersection(roi, shapely.box(0, 0, 1200, 900))
    if shared.area == 0:
        with pytest.raises(LoadImageException):
            processing_bounds(1200, 900, roi)
        return
    bounds = processing_bounds(1200, 900, roi)
    left, top = bounds.origin.col, bounds.origin.row
    assert left >= 0
    assert top >= 0
    assert bounds.right <= 1200
    assert bounds.bottom <= 900
    assert shapely.box(left, top, bounds.right, bounds.bottom).covers(shared)
    assert left >= shared.bounds[0] - 1
    assert bounds.bottom <= shared.bounds[3] + 1


@STRATEGIES
def test_without_interest_every_tile_of_strategy_is_wanted(strategy):
    bounds = region(0, 0, 1200, 900)
    planner = TilePlanner(strategy, square(256), square(32))
    regions = planner.regions(bounds, square(600))
    assert regions == strategy.compute_regions(bounds, square(600), square(256), square(32))
    for one in regions:
        tiles = planner.tiles(one)
        assert [tile.bounds for tile in tiles] == strategy.compute_tiles(one, square(256), square(32))
        assert [tile.index for tile in tiles] == list(range(len(tiles)))


@STRATEGIES
def test_tiles_in_hole_are_left_out_and_others_keep_index(strategy):
    hole = [(300, 300), (900, 300), (900, 900), (300, 900)]
    roi = shapely.Polygon([(0, 0), (1200, 0), (1200, 1200), (0, 1200)], holes=[hole])
    whole = region(0, 0, 1200, 1200)
    all_tiles = TilePlanner(strategy, square(200), square(0)).tiles(whole)
    tiles = TilePlanner(strategy, square(200), square(0), roi).tiles(whole)
    assert 0 < len(tiles) < len(all_tiles)
    assert set(tiles) <= set(all_tiles)
    for tile in set(all_tiles) - set(tiles):
        assert shapely.Polygon(hole).covers(
            shapely.box(tile.bounds.origin.col, tile.bounds.origin.row, tile.bounds.right, tile.bounds.bottom)
        )


@STRATEGIES
def test_regions_in_hole_are_left_out(strategy):
    roi = shapely.union(shapely.box(0, 0, 100, 100), shapely.box(1100, 1100, 1200, 1200))
    planner = TilePlanner(strategy, square(200), square(0), roi)
    regions = planner.regions(region(0, 0, 1200, 1200), square(400))
    assert [tuple(one.origin) for one in regions] == [(0, 0), (800, 800)]
    assert all(planner.tiles(one) for one in regions)


def test_tile_that_only_touches_interest_is_not_wanted():
    planner = TilePlanner(VO, square(100), square(0), shapely.box(0, 0, 100, 100))
    assert [tile.index for tile in planner.tiles(region(0, 0, 200, 200))] == [0]


@STRATEGIES
@given(x=st.floats(0, 1000), y=st.floats(0, 800), side=st.floats(1, 600))
def test_every_pixel_of_interest_is_in_tile(strategy, x, y, side):
    roi = shapely.intersection(shapely.box(x, y, x + side, y + side), shapely.box(0, 0, 1200, 900))
    bounds = processing_bounds(1200, 900, roi)
    planner = TilePlanner(strategy, square(256), square(32), roi)
    tiles = [tile.bounds for one in planner.regions(bounds, square(600)) for tile in planner.tiles(one)]
    cover = shapely.union_all([shapely.box(t.origin.col, t.origin.row, t.right, t.bottom) for t in tiles])
    assert shapely.difference(roi, cover).area == pytest.approx(0, abs=1e-6)


@STRATEGIES
@given(
    x=st.integers(0, 50),
    y=st.integers(0, 50),
    width=st.integers(1, 900),
    height=st.integers(1, 900),
    tile_px=st.integers(20, 200),
    overlap_px=st.integers(0, 19),
    region_px=st.integers(10, 500),
)
def test_rows_hold_every_tile_once_with_its_spans(strategy, x, y, width, height, tile_px, overlap_px, region_px):
    planner = TilePlanner(strategy, square(tile_px), square(overlap_px))
    bounds = region(y, x, width, height)
    in_order = [(one, tile) for one in planner.regions(bounds, square(region_px)) for tile in planner.tiles(one)]
    rows = list(planner.rows(bounds, square(region_px)))
    starts = [{tile.bounds.origin.row for _, tile in row} for row in rows]
    assert all(len(start) == 1 for start in starts)
    assert [tile for row in rows for tile in row] == sorted(in_order, key=lambda pair: pair[1].bounds.origin.row)
    expected = TileSpans.of(bounds_of_tiles(tile.bounds for _, tile in in_order))
    spans = planner.spans(bounds, square(region_px))
    assert spans.columns.tolist() == expected.columns.tolist()
    assert spans.rows.tolist() == expected.rows.tolist()
    assert [start for one in starts for start in one] == spans.row_starts.tolist()


@STRATEGIES
@given(
    width=st.integers(1, 1_000),
    height=st.integers(1, 1_000),
    tile_px=st.integers(64, 400),
    overlap_px=st.integers(0, 30),
    region_px=st.integers(16, 700),
)
def test_plan_size_is_computed_before_plan(strategy, width, height, tile_px, overlap_px, region_px):
    planner = TilePlanner(strategy, square(tile_px), ImageDimensions(overlap_px, overlap_px))
    bounds = region(7, 5, width, height)
    size = planner.size(bounds, square(region_px))
    counts = [len(planner.tiles(part)) for part in planner.regions(bounds, square(region_px))]
    assert size == (len(counts), max(counts), sum(counts))


@STRATEGIES
@given(
    width=st.integers(1, 600), height=st.integers(1, 600), tile_px=st.integers(16, 99), overlap_px=st.integers(0, 15)
)
def test_no_plan_has_fewer_tiles_than_are_certain(strategy, width, height, tile_px, overlap_px):
    planner = TilePlanner(strategy, square(tile_px), square(overlap_px))
    bounds = region(7, 5, width, height)
    least = planner.min_tiles(bounds)
    assert 1 <= least <= planner.size(bounds, square(200)).tiles


def test_oversized_plan_is_detected_at_once():
    planner = TilePlanner(VO, square(16), square(15))
    assert planner.min_tiles(region(0, 0, 2**20, 900_000)) == (2**20 - 15) * (900_000 - 15)
