"""Bytes of stored blocks, compared with the index of the file as Pillow reads it."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from osgeo import gdal
from PIL.TiffImagePlugin import ImageFileDirectory_v2

from aws.osml.model_runner.api.processor_input import ProcessorInput
from aws.osml.model_runner.common.typing import ImageRegion
from aws.osml.model_runner.raster import BlockSizes, RasterSettings, TileEncoder, known_block_sizes, open_image, prepare
from raster_files import pattern, place, sample_path, write_image

TILED = ("TILED=YES", "BLOCKXSIZE=128", "BLOCKYSIZE=128", "COMPRESS=DEFLATE")


def stored(path: Path, *windows: tuple[int, int, int, int], **asked: Any) -> int:
    """Return the bytes for windows of (row, column, width, height), in model pixels."""
    source = open_image(place(path), RasterSettings())
    try:
        preparation = prepare(source, ProcessorInput.model_validate(asked)) if asked else None
        tiles = [ImageRegion.of(((row, col), (width, height))) for row, col, width, height in windows]
        return TileEncoder(source, "GTIFF", preparation=preparation).stored_bytes(tiles)
    finally:
        source.close()


def indexed(path: Path, page: int = 0) -> list[int]:
    """Return the sizes of blocks in the index of a TIFF's page."""
    with path.open("rb") as file:
        directory = ImageFileDirectory_v2(file.read(8))
        for _ in range(page + 1):
            file.seek(directory.next)
            directory.load(file)
        return list(directory.get(325) or directory[279])


@pytest.mark.parametrize("layout", [TILED, ("COMPRESS=LZW", "BLOCKYSIZE=16"), ()])
@pytest.mark.parametrize("interleave", ["PIXEL", "BAND"])
def test_whole_image_takes_all_blocks_of_index(tmp_path, layout, interleave):
    path = write_image(tmp_path / "a.tif", pattern(3, 300, 500), options=(*layout, f"INTERLEAVE={interleave}"))
    assert stored(path, (0, 0, 500, 300)) == sum(indexed(path))


def test_tiles_that_share_blocks_count_them_once(tmp_path):
    path = write_image(tmp_path / "a.tif", pattern(1, 300, 500), options=TILED)
    first, second = indexed(path)[:2]
    assert stored(path, (0, 0, 128, 128)) == first
    assert stored(path, (0, 0, 129, 128), (10, 100, 100, 100)) == first + second


def test_bands_that_model_does_not_get_are_not_read(tmp_path):
    path = write_image(tmp_path / "a.tif", pattern(3, 256, 256), options=(*TILED, "INTERLEAVE=BAND"))
    sizes = indexed(path)
    assert stored(path, (0, 0, 256, 256), bands=[2]) == sum(sizes[4:8])


def test_sparse_blocks_take_nothing(tmp_path):
    path = tmp_path / "a.tif"
    dataset = gdal.GetDriverByName("GTiff").Create(str(path), 512, 512, 1, options=[*TILED, "SPARSE_OK=TRUE"])
    dataset.GetRasterBand(1).WriteArray(pattern(1, 128, 128)[0], 128, 128)
    dataset = None
    assert stored(path, (0, 0, 512, 512)) == sum(indexed(path)) > 0


@pytest.mark.parametrize("resampling", ["BILINEAR", "NEAREST"])
def test_smaller_scale_reads_overview_except_nearest(tmp_path, resampling):
    path = write_image(tmp_path / "a.tif", pattern(1, 600, 800), options=TILED)
    dataset = gdal.Open(str(path), gdal.GA_Update)
    dataset.BuildOverviews("AVERAGE", [2])
    dataset = None
    page = 1 if resampling == "BILINEAR" else 0
    assert stored(path, (0, 0, 400, 300), scale=0.5, resampling=resampling) == sum(indexed(path, page))


def test_mask_is_read_where_pixels_are_prepared(tmp_path):
    path = write_image(tmp_path / "a.tif", pattern(1, 256, 256), options=TILED)
    gdal.SetConfigOption("GDAL_TIFF_INTERNAL_MASK", "YES")
    try:
        dataset = gdal.Open(str(path), gdal.GA_Update)
        dataset.CreateMaskBand(gdal.GMF_PER_DATASET)
        dataset.GetRasterBand(1).GetMaskBand().WriteArray(np.eye(256, dtype=np.uint8) * 255)
        dataset = None
    finally:
        gdal.SetConfigOption("GDAL_TIFF_INTERNAL_MASK", None)
    pixels, mask = indexed(path), indexed(path, 1)
    assert stored(path, (0, 0, 256, 256)) == sum(pixels)
    assert stored(path, (0, 0, 256, 256), bands=[1]) == sum(pixels) + sum(mask)


@pytest.mark.parametrize(
    ("name", "known_by", "size_bytes"),
    [
        ("autzen-utm10.ntf", BlockSizes.PIXELS, 742 * 1024),
        ("i_3301a.ntf", BlockSizes.PIXELS, 1024 * 1024 * 3),
        ("005_007_1024x1024_s_8_1_multi_j2c.ntf", BlockSizes.SHARE, 747_928),
        ("rareplanes_tile.png", BlockSizes.WHOLE_FILE, 318_664),
    ],
)
def test_other_formats_take_pixels_or_file(name, known_by, size_bytes):
    path = sample_path(name)
    source = open_image(place(path), RasterSettings())
    assert known_block_sizes(source) is known_by
    width, height = source.width, source.height
    source.close()
    assert stored(path, (0, 0, width, height)) == size_bytes
