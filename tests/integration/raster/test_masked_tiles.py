"""Tiles that a raster on another grid masks: compared with samples taken by pyproj and NumPy, one by one."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from osgeo import gdal
from pyproj import Transformer

from aws.osml.model_runner.api.image_url import parse_image_url
from aws.osml.model_runner.common.typing import ImageDimensions, ImageRegion
from aws.osml.model_runner.exceptions import LoadImageException
from aws.osml.model_runner.raster import ImageSource, RasterSettings, masked_tiles, open_image
from aws.osml.model_runner.raster.masked_tiles import MaskedTiles, MaskRule
from aws.osml.model_runner.tiling.region_plan import TilePlanner
from aws.osml.model_runner.tiling.strategy import VariableOverlapTilingStrategy
from raster_files import write_image

WIDTH, HEIGHT, TILE_PX = 1100, 900, 128
# Two metres in UTM 31N, turned by 20 degrees.
IMAGE = (500_000.0, 1.88, 0.684, 5_400_000.0, 0.684, -1.88)


class Grid(NamedTuple):
    """A grid of a mask: its size, its geotransform, and its coordinate system."""

    width: int
    height: int
    transform: tuple[float, ...]
    epsg: int


# Each covers the image, or a part of it: the image lies at 3.0 to 3.04 degrees east and 48.73 to 48.76 north.
GRIDS = {
    "its own": Grid(WIDTH, HEIGHT, IMAGE, 32631),
    "neighbouring zone": Grid(300, 320, (58_500.0, 12.0, 0.0, 5_418_200.0, 0.0, -12.0), 32632),
    "web": Grid(800, 700, (333_000.0, 6.5, 0.0, 6_236_000.0, 0.0, -6.5), 3857),
    "degrees": Grid(600, 500, (2.99, 0.0001, 0.0, 48.77, 0.0, -0.0001), 4326),
    "south up": Grid(600, 500, (2.99, 0.0001, 0.0, 48.72, 0.0, 0.0001), 4326),
    "in part": Grid(200, 90, (3.005, 0.0001, 0.0, 48.755, 0.0, -0.0001), 4326),
    "turned": Grid(900, 900, (499_000.0, 2.5, 1.5, 5_401_000.0, 1.5, -2.5), 32631),
    "elsewhere": Grid(50, 50, (10.0, 0.0001, 0.0, 50.0, 0.0, -0.0001), 4326),
    "from 0 to 360": Grid(720, 360, (0.0, 0.5, 0.0, 90.0, 0.0, -0.5), 4326),
}


def classes(grid: Grid) -> np.ndarray:
    """Return samples of a mask: blobs of a few classes."""
    rows, columns = np.mgrid[: grid.height, : grid.width]
    waves = np.sin(columns * 9.0 / grid.width) + np.cos(rows * 7.0 / grid.height)
    return (np.digitize(waves, [-0.9, -0.2, 0.5, 1.1]) * 3).astype(np.uint8)[None]


@pytest.fixture
def opened(tmp_path: Path) -> Any:
    """Write and open an image or a mask."""
    sources: list[ImageSource] = []

    def make(name: str, pixels: np.ndarray, grid: Grid | None, **options: Any) -> ImageSource:
        place = {} if grid is None else {"geo_transform": grid.transform, "epsg": grid.epsg}
        path = write_image(tmp_path / f"{name}.tif", pixels, **place, **options)
        sources.append(open_image(parse_image_url(str(path)), RasterSettings()))
        return sources[-1]

    yield make
    for source in sources:
        source.close()


@pytest.fixture
def image(opened: Callable[..., ImageSource]) -> ImageSource:
    return opened("image", np.ones((1, HEIGHT, WIDTH), np.uint8), Grid(WIDTH, HEIGHT, IMAGE, 32631))


def tiles() -> list[ImageRegion]:
    size, overlap = ImageDimensions(TILE_PX, TILE_PX), ImageDimensions(10, 10)
    planner = TilePlanner(VariableOverlapTilingStrategy(), size, overlap)
    return [tile.bounds for tile in planner.tiles(ImageRegion.of(((0, 0), (WIDTH, HEIGHT))))]


def shares(grid: Grid, is_masked: np.ndarray) -> np.ndarray:
    """Return the share of masked samples of each tile."""
    to_mask = Transformer.from_crs("EPSG:32631", f"EPSG:{grid.epsg}", always_xy=True)
    a, b, c, d, e, f = grid.transform
    inverse = np.linalg.inv([[b, c], [e, f]])
    found = []
    for (row, col), (width, height) in tiles():
        x, y = np.meshgrid(col + (np.arange(16) + 0.5) * width / 16, row + (np.arange(16) + 0.5) * height / 16)
        east = IMAGE[0] + IMAGE[1] * x + IMAGE[2] * y
        north = IMAGE[3] + IMAGE[4] * x + IMAGE[5] * y
        place = np.stack([axis.ravel() for axis in to_mask.transform(east, north)])
        at = np.floor(inverse @ (place - [[a], [d]])).astype(int)
        inside = (at >= 0).all(axis=0) & (at[0] < grid.width) & (at[1] < grid.height)
        found.append(is_masked[at[1, inside], at[0, inside]].sum() / 256)
    return np.array(found)


def found_by(image: ImageSource, mask: ImageSource, rule: MaskRule) -> np.ndarray:
    return np.concatenate(list(MaskedTiles(image, mask, rule).find(tiles())))


@pytest.mark.parametrize("name", GRIDS)
def test_tiles_are_masked_from_share_on(opened, image, name):
    grid = GRIDS[name]
    samples = classes(grid)
    mask = opened(name.replace(" ", "-"), samples, grid)
    true = shares(grid, np.isin(samples[0], [3, 6]))
    for above in (0.25, 0.7, 1.0):
        found = found_by(image, mask, MaskRule(values=(3, 6), above=above))
        # A sample at the edge of a pixel of the mask may fall to either side.
        is_clear = np.abs(true - above) > 4 / 256
        is_clear |= true == above
        assert (found == (true >= above))[is_clear].all()
        assert is_clear.sum() > len(found) * 0.8
    if name not in ("elsewhere", "from 0 to 360"):
        assert 0 < found_by(image, mask, MaskRule(values=(3, 6), above=0.25)).sum() < len(tiles())


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int16, np.int32])
def test_bits_are_masked_where_one_is_set(opened, image, dtype):
    grid = GRIDS["degrees"]
    samples = classes(grid).astype(dtype)
    mask = opened("bits", samples, grid)
    true = shares(grid, (samples[0] & 0b1010) != 0)
    found = found_by(image, mask, MaskRule(bits=(1, 3), above=0.5))
    is_clear = np.abs(true - 0.5) > 4 / 256
    assert (found == (true >= 0.5))[is_clear].all()
    assert 0 < found.sum() < len(found)


def test_too_fine_mask_is_read_from_overview(opened, image, monkeypatch, tmp_path):
    grid = GRIDS["its own"]
    samples = np.repeat(np.repeat(classes(grid)[:, ::16, ::16], 16, axis=1), 16, axis=2)[:, :HEIGHT, :WIDTH]
    mask = opened("fine", samples, grid)
    whole = found_by(image, mask, MaskRule(values=(3, 6), above=0.5))
    monkeypatch.setattr(masked_tiles, "MAX_MASK_PX", WIDTH * HEIGHT // 2)
    with pytest.raises(LoadImageException, match="990000 pixels over the image, the limit is 495000; add overviews"):
        found_by(image, mask, MaskRule(values=(3, 6), above=0.5))
    dataset = gdal.Open(str(tmp_path / "fine.tif"), gdal.GA_Update)
    dataset.BuildOverviews("NEAREST", [4])
    del dataset
    other = open_image(parse_image_url(str(tmp_path / "fine.tif")), RasterSettings())
    assert found_by(image, other, MaskRule(values=(3, 6), above=0.5)).tolist() == whole.tolist()
    other.close()


def test_parts_of_mask_give_same_tiles(opened, image, monkeypatch):
    mask = opened("turned", classes(GRIDS["turned"]), GRIDS["turned"])
    whole = found_by(image, mask, MaskRule(values=(3, 6), above=0.5))
    monkeypatch.setattr(masked_tiles, "_PART_PX", 5000)
    assert found_by(image, mask, MaskRule(values=(3, 6), above=0.5)).tolist() == whole.tolist()


def test_mask_across_antimeridian_masks_both_sides(opened):
    degrees = 0.001
    width = 400
    image = opened(
        "pacific", np.ones((1, 200, width), np.uint8), Grid(width, 200, (179.8, degrees, 0, 10, 0, -degrees), 4326)
    )
    samples = np.zeros((1, 1800, 3600), np.uint8)
    samples[:, :, :10] = 1
    mask = opened("world", samples, Grid(3600, 1800, (-180.0, 0.1, 0, 90, 0, -0.1), 4326))
    windows = [ImageRegion.of(((0, col), (50, 50))) for col in range(0, width, 50)]
    found = np.concatenate(list(MaskedTiles(image, mask, MaskRule(values=(1,))).find(windows)))
    assert found.tolist() == [col * degrees + 179.8 >= 180 - 1e-9 for col in range(0, width, 50)]


def test_rasters_that_cannot_be_used_are_refused(opened, image):
    plain = opened("plain", np.ones((1, 50, 50), np.uint8), None)
    floats = opened("floats", np.ones((1, 50, 50), np.float32), Grid(50, 50, IMAGE, 32631))
    for pair, rule, reason in (
        ((plain, image), MaskRule(values=(1,)), "the image has no georeference"),
        ((image, plain), MaskRule(values=(1,)), "plain.tif has no georeference"),
        ((image, floats), MaskRule(bits=(1,)), "must hold whole numbers"),
    ):
        with pytest.raises(LoadImageException, match=reason):
            MaskedTiles(*pair, rule)
    assert math.isclose(found_by(image, floats, MaskRule(values=(1,), above=0.5)).mean(), 0, abs_tol=0.1)
