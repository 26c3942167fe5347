"""A region that killed a worker: a few tiles alone, then more and more at once, and never too many."""

from hypothesis import given
from hypothesis import strategies as st

from aws.osml.model_runner.common.typing import ImageRegion
from aws.osml.model_runner.jobs.region import careful_batches
from aws.osml.model_runner.tiling.strategy import Tile


def tiles(count: int) -> list[Tile]:
    return [Tile(index, ImageRegion.of(((0, 64 * index), (64, 64)))) for index in range(count)]


def test_hundred_tiles_take_quarter_of_rounds():
    sizes = [len(batch) for batch in careful_batches(tiles(100))]
    assert sizes[:8] == [1, 1, 1, 1, 2, 4, 8, 16]
    assert len(sizes) <= 25


@given(st.integers(0, 300))
def test_careful_batches_lose_at_most_quarter_of_rest(count):
    given_tiles, left = tiles(count), count
    batches = list(careful_batches(given_tiles))
    assert [tile for batch in batches for tile in batch] == given_tiles
    for batch in batches:
        assert 1 <= len(batch) <= max(1, left // 4)
        left -= len(batch)
