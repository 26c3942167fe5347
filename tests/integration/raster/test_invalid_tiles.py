"""Tiles without a valid pixel: compared with the masks that GDAL itself computes for every pixel."""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from osgeo import gdal

from aws.osml.model_runner.api.image_url import parse_image_url
from aws.osml.model_runner.common.typing import ImageDimensions, ImageRegion
from aws.osml.model_runner.raster import RasterSettings, invalid_tiles, open_image
from aws.osml.model_runner.raster.invalid_tiles import InvalidTiles, ReadBudget
from aws.osml.model_runner.tiling.region_plan import TilePlanner
from aws.osml.model_runner.tiling.strategy import VariableOverlapTilingStrategy

WIDTH, HEIGHT, TILE_PX = 700, 530, 96
WHOLE = ImageRegion.of(((0, 0), (WIDTH, HEIGHT)))
TILED = ("TILED=YES", "BLOCKXSIZE=64", "BLOCKYSIZE=64", "COMPRESS=DEFLATE")
SPARSE = (*TILED, "SPARSE_OK=TRUE")


class Kind(NamedTuple):
    """A way in which an image declares its valid pixels."""

    bands: int = 1
    data_type: int = gdal.GDT_Byte
    nodata: float | None = None
    options: tuple[str, ...] = TILED


KINDS = {
    "nodata": Kind(3, nodata=0),
    "nodata overviews": Kind(3, nodata=0),
    "average overviews": Kind(3, nodata=0),
    "float nan": Kind(1, gdal.GDT_Float32, np.nan),
    "float lowest": Kind(1, gdal.GDT_Float32, -3.4028234663852886e38),
    "int16": Kind(2, gdal.GDT_Int16, -9999),
    "alpha": Kind(4, options=(*TILED, "PHOTOMETRIC=RGB", "ALPHA=YES")),
    "strips": Kind(nodata=255, options=("COMPRESS=LZW",)),
    "one block": Kind(nodata=0, options=("BLOCKYSIZE=530",)),
    "sparse": Kind(nodata=7, options=SPARSE),
    "sparse overviews": Kind(nodata=7, options=SPARSE),
    "mask": Kind(),
    "mask overviews": Kind(),
    "sparse mask": Kind(options=SPARSE),
    "bands apart": Kind(2, nodata=0, options=(*TILED, "INTERLEAVE=BAND")),
}
PLAIN = Kind()


@pytest.fixture(autouse=True)
def masks_inside_files(monkeypatch):
    monkeypatch.setenv("GDAL_TIFF_INTERNAL_MASK", "YES")


def valid_area() -> np.ndarray:
    """Return which pixels hold data: a slanted strip, and single pixels far from it."""
    rows, columns = np.mgrid[:HEIGHT, :WIDTH]
    is_valid = np.abs(columns - 0.6 * rows - 150) < 120
    is_valid[20, 600] = is_valid[HEIGHT - 1, WIDTH - 1] = is_valid[400, 620] = True
    return is_valid


def write(path: Path, kind: str) -> Path:
    """Write an image that declares its valid pixels in one of many ways."""
    is_valid, rng = valid_area(), np.random.default_rng(5)
    bands, data_type, nodata, options = KINDS.get(kind, PLAIN)
    dataset = gdal.GetDriverByName("GTiff").Create(str(path), WIDTH, HEIGHT, bands, data_type, options)
    if "mask" in kind:
        dataset.CreateMaskBand(gdal.GMF_PER_DATASET)
    for number in range(1, bands + 1):
        band = dataset.GetRasterBand(number)
        if nodata is not None:
            band.SetNoDataValue(float(nodata))
        empty = 0 if nodata is None else nodata
        samples = np.where(is_valid, rng.integers(10, 200, is_valid.shape), empty)
        if kind == "bands apart" and number == 2:
            samples[20, 600] = samples[500, 20] = 9
        if kind == "alpha" and number == 4:
            samples = is_valid * 255
        _fill(band, samples, is_sparse="sparse" in kind, is_valid=is_valid)
        if "mask" in kind:
            _fill(band.GetMaskBand(), is_valid * 255, is_sparse="sparse" in kind, is_valid=is_valid)
    if "overviews" in kind:
        dataset.BuildOverviews("AVERAGE" if "average" in kind else "NEAREST", [2, 4, 8])
    del dataset
    return path


def _fill(band: Any, samples: np.ndarray, *, is_sparse: bool, is_valid: np.ndarray) -> None:
    """Write samples; a sparse band gets only its blocks with data."""
    for row in range(0, HEIGHT, 64):
        for col in range(0, WIDTH, 64):
            block = np.s_[row : row + 64, col : col + 64]
            if not is_sparse or is_valid[block].any():
                band.WriteArray(samples[block], col, row)


def found_in(path: Path, bands: Any = None, **budget: int) -> tuple[list[ImageRegion], np.ndarray, ReadBudget]:
    """Return the tiles of an image, a flag for each that is found, and the budget that is left."""
    source = open_image(parse_image_url(str(path)), RasterSettings())
    left = ReadBudget(**budget)
    size, overlap = ImageDimensions(TILE_PX, TILE_PX), ImageDimensions(8, 8)
    planner = TilePlanner(VariableOverlapTilingStrategy(), size, overlap)
    tiles = [tile.bounds for tile in planner.tiles(WHOLE)]
    found = np.concatenate(list(InvalidTiles(source, bands, left).find(tiles)))
    source.close()
    return tiles, found, left


def expected(path: Path, tiles: list[ImageRegion], bands: Any = None) -> list[bool]:
    """Return which tiles have no pixel that GDAL's mask of any band shows as valid."""
    dataset = gdal.Open(str(path))
    numbers = bands or range(1, dataset.RasterCount + 1)
    coloured = [n for n in numbers if dataset.GetRasterBand(n).GetColorInterpretation() != gdal.GCI_AlphaBand]
    is_valid = np.max([dataset.GetRasterBand(number).GetMaskBand().ReadAsArray() for number in coloured], axis=0) != 0
    return [not is_valid[row : row + height, col : col + width].any() for (row, col), (width, height) in tiles]


@pytest.mark.parametrize("kind", KINDS)
def test_tiles_without_valid_pixel_are_found(tmp_path, kind):
    path = write(tmp_path / "image.tif", kind)
    tiles, found, _ = found_in(path)
    assert found.tolist() == expected(path, tiles)
    assert 10 < found.sum() < len(tiles) - 10


def test_only_bands_of_model_count(tmp_path):
    path = write(tmp_path / "image.tif", "bands apart")
    tiles, both, _ = found_in(path)
    for bands in ([1], [2]):
        _, one, _ = found_in(path, bands)
        assert one.tolist() == expected(path, tiles, bands)
        assert one.sum() >= both.sum()
    assert found_in(path, [1])[1].sum() > both.sum()


def test_image_that_declares_nothing_has_no_such_tile(tmp_path):
    path = write(tmp_path / "image.tif", "plain")
    _, found, left = found_in(path)
    assert not found.any()
    assert left.bytes_left == ReadBudget().bytes_left, "nothing is read"


def test_missing_blocks_cost_no_read(tmp_path):
    path = tmp_path / "image.tif"
    dataset = gdal.GetDriverByName("GTiff").Create(str(path), WIDTH, HEIGHT, 1, gdal.GDT_Byte, SPARSE)
    dataset.GetRasterBand(1).SetNoDataValue(7)
    dataset.FlushCache()
    _, found, left = found_in(path)
    assert found.all()
    assert left.bytes_left == ReadBudget().bytes_left


def test_valid_samples_of_overviews_spare_reads(tmp_path):
    read = {}
    for kind in ("nodata", "nodata overviews"):
        *_, left = found_in(write(tmp_path / f"{kind}.tif", kind))
        read[kind] = ReadBudget().bytes_left - left.bytes_left
    assert read["nodata overviews"] < read["nodata"]


def test_tiles_stay_undecided_without_budget(tmp_path, monkeypatch):
    path = write(tmp_path / "image.tif", "nodata")
    assert not found_in(path, bytes_left=0)[1].any()
    whole = found_in(path)[1]
    some = found_in(path, bytes_left=20 * TILE_PX * TILE_PX * 3)[1]
    assert 0 < some.sum() < whole.sum()
    assert not (some & ~whole).any()
    monkeypatch.setattr(invalid_tiles, "_PART_PX", 1000)
    assert found_in(path)[1].tolist() == whole.tolist()


def test_damaged_blocks_count_as_valid(tmp_path):
    path = write(tmp_path / "image.tif", "nodata")
    tiles, whole, _ = found_in(path)
    row, col = tiles[int(np.flatnonzero(whole)[0])].origin
    block = f"{(col + TILE_PX // 2) // 64}_{(row + TILE_PX // 2) // 64}"
    dataset = gdal.Open(str(path))
    band = dataset.GetRasterBand(1)
    offset, length = (int(band.GetMetadataItem(f"BLOCK_{name}_{block}", "TIFF")) for name in ("OFFSET", "SIZE"))
    body = bytearray(path.read_bytes())
    body[offset : offset + length] = bytes(length)
    path.write_bytes(body)
    found = found_in(path)[1]
    assert found.sum() < whole.sum()
    assert not (found & ~whole).any()
