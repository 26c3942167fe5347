"""Tiles put together by example are, byte for byte, what GDAL writes; and where they would not be, GDAL writes them."""

import itertools

import numpy as np
import pytest
from osgeo import gdal

from aws.osml.model_runner.common.typing import ImageDimensions, ImageRegion
from aws.osml.model_runner.raster import RasterSettings, TileEncoder, open_image
from raster_files import UTM_31N, pattern, place, rpc_metadata, write_image

# Byte for byte the same tiles again and again; test_tile_encoder.py covers the code.
pytestmark = pytest.mark.unmeasured

SIZE = ImageDimensions(64, 48)
TILES = [ImageRegion.of(((row, col), SIZE)) for row, col in itertools.product((0, 40, 97), (0, 50, 111))]
ROTATED = (500000.0, 0.4, 0.3, 5400000.0, 0.3, -0.4)


def source_of(tmp_path, pixels, **more):
    return open_image(place(write_image(tmp_path / "image.tif", pixels, **more)), RasterSettings())


def written_by_gdal(source, tile):
    """The first tile of an image just opened, without a template so far."""
    return TileEncoder(open_image(source.location, source.settings), "GTIFF").encode(tile)


def said_by(encoded):
    """Content of a file: GDAL puts empty strips behind the others."""
    path = "/vsimem/said.tif"
    gdal.FileFromMemBuffer(path, encoded)
    try:
        dataset = gdal.Open(path)
        return dataset.ReadAsArray().tobytes(), dataset.GetGeoTransform(), dataset.GetProjection()
    finally:
        gdal.Unlink(path)


def is_learned(source):
    return source.tiff_templates.find(SIZE) is not None


@pytest.mark.parametrize(
    ("bands", "dtype"),
    [(1, np.uint8), (3, np.uint8), (4, np.uint16), (7, np.int16), (2, np.float32), (1, np.float64), (1, np.complex64)],
)
@pytest.mark.parametrize("geo_transform", [None, UTM_31N, ROTATED], ids=["nowhere", "north-up", "rotated"])
def test_tiles_equal_those_of_gdal_byte_for_byte(tmp_path, bands, dtype, geo_transform):
    epsg = None if geo_transform is None else 32631
    source = source_of(tmp_path, pattern(bands, 200, 250, dtype), geo_transform=geo_transform, epsg=epsg)
    encoder = TileEncoder(source, "GTIFF")
    for tile in TILES * 2:
        assert encoder.encode(tile) == written_by_gdal(source, tile)
    assert is_learned(source)


def test_each_size_has_template_of_its_own(tmp_path):
    source = source_of(tmp_path, pattern(3, 200, 250), geo_transform=UTM_31N, epsg=32631)
    encoder = TileEncoder(source, "GTIFF")
    sizes = [ImageDimensions(64, 48), ImageDimensions(48, 64)]
    for origin, size in itertools.product([(0, 0), (7, 9), (20, 30), (70, 80)], sizes):
        tile = ImageRegion.of((origin, size))
        assert encoder.encode(tile) == written_by_gdal(source, tile)
    assert all(source.tiff_templates.find(size) for size in sizes)


def test_camera_of_tiles_own_is_written_by_gdal(tmp_path):
    source = source_of(tmp_path, pattern(1, 200, 250), rpc=rpc_metadata())
    encoder = TileEncoder(source, "GTIFF")
    for tile in TILES * 2:
        assert encoder.encode(tile) == written_by_gdal(source, tile)
    assert not is_learned(source)


def test_control_points_are_written_by_gdal(tmp_path):
    points = [gdal.GCP(3 + col / 1e3, 50 - row / 1e3, 0, col, row) for row in (0, 199) for col in (0, 249)]
    source = source_of(tmp_path, pattern(1, 200, 250), gcps=(points, 4326))
    encoder = TileEncoder(source, "GTIFF")
    for tile in TILES * 2:
        assert encoder.encode(tile) == written_by_gdal(source, tile)
    assert not is_learned(source)


def test_tiles_of_one_value_are_not_learnt_from(tmp_path):
    pixels = np.zeros((3, 200, 250), np.uint8)
    pixels[:, 60:, 100:] = pattern(3, 140, 150)
    source = source_of(tmp_path, pixels, geo_transform=UTM_31N, epsg=32631)
    encoder = TileEncoder(source, "GTIFF")
    dark = [ImageRegion.of(((row, col), SIZE)) for row, col in ((0, 0), (10, 20), (30, 30))]
    for tile in dark:
        assert encoder.encode(tile) == written_by_gdal(source, tile)
    assert not is_learned(source)
    for tile in [*TILES, *dark]:
        assert said_by(encoder.encode(tile)) == said_by(written_by_gdal(source, tile))
    assert is_learned(source)


def test_tiles_of_single_row_are_not_learnt_from(tmp_path):
    source = source_of(tmp_path, pattern(1, 48, 400), geo_transform=UTM_31N, epsg=32631)
    encoder = TileEncoder(source, "GTIFF")
    for col in range(0, 330, 30):
        tile = ImageRegion.of(((0, col), SIZE))
        assert encoder.encode(tile) == written_by_gdal(source, tile)
    assert not is_learned(source)
