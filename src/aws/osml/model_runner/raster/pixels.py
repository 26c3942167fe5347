"""Pixels as numpy arrays of (bands, rows, columns): read an image, decode a tile, write a GeoTIFF."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from osgeo import gdal, gdal_array
from pyproj import CRS

from aws.osml.model_runner.common.typing import ImageRegion
from aws.osml.model_runner.exceptions import TileEncodingError

from .gdal_values import memory_folder
from .image_source import ImageSource

_TILE_DRIVERS = ["GTiff", "NITF", "PNG", "JPEG", "JP2OpenJPEG"]
_BLOCK_PX = 512


def read_window(source: ImageSource, window: ImageRegion) -> npt.NDArray[Any]:
    """Return the pixels of ``window`` as (bands, rows, columns); raises TileEncodingError when they cannot be read."""
    (row, col), (width, height) = window
    try:
        return source.read(lambda handle: _all_bands(handle.dataset, col, row, width, height))
    except RuntimeError as err:
        raise TileEncodingError(f"window at {tuple(window.origin)} cannot be read: {err}") from err


def decode_tile(encoded: bytes) -> npt.NDArray[Any]:
    """Return the pixels of an encoded tile as (bands, rows, columns).

    Raises TileEncodingError when the bytes are not an image of a tile format.
    """
    with memory_folder() as folder:
        path = f"{folder}/tile"
        gdal.FileFromMemBuffer(path, encoded)
        try:
            dataset = gdal.OpenEx(path, gdal.OF_RASTER, allowed_drivers=_TILE_DRIVERS)
            if dataset is None:
                raise TileEncodingError(f"the bytes are not an image; the formats are {', '.join(_TILE_DRIVERS)}")
            return _all_bands(dataset, 0, 0, dataset.RasterXSize, dataset.RasterYSize)
        except RuntimeError as err:
            raise TileEncodingError(f"the bytes cannot be read as an image: {err}") from err


def write_geotiff(
    path: str | Path,
    pixels: npt.NDArray[Any],
    geo_transform: Sequence[float] | None = None,
    epsg: int | None = None,
    compression: str = "DEFLATE",
) -> None:
    """Write (bands, rows, columns) as a GeoTIFF in blocks of 512 pixels.

    ``geo_transform`` is GDAL's six numbers in the units of the coordinate system ``epsg``; ``compression`` is GDAL's
    name, such as ``NONE`` or ``DEFLATE``. Raises RuntimeError when the file cannot be written.
    """
    bands, height, width = pixels.shape
    options = [f"COMPRESS={compression}", "TILED=YES", f"BLOCKXSIZE={_BLOCK_PX}", f"BLOCKYSIZE={_BLOCK_PX}"]
    data_type = gdal_array.NumericTypeCodeToGDALTypeCode(pixels.dtype)
    dataset = gdal.GetDriverByName("GTiff").Create(
        str(path), width, height, bands, data_type, [*options, "INTERLEAVE=PIXEL", "BIGTIFF=IF_SAFER"]
    )
    if geo_transform is not None:
        dataset.SetGeoTransform(list(geo_transform))
    if epsg is not None:
        dataset.SetProjection(CRS.from_epsg(epsg).to_wkt("WKT1_GDAL"))
    # All bands of a row of blocks at a time. Otherwise each block is compressed once per band.
    for row in range(0, height, _BLOCK_PX):
        dataset.WriteArray(pixels[:, row : row + _BLOCK_PX], 0, row)
    dataset.FlushCache()


def _all_bands(dataset: Any, col: int, row: int, width: int, height: int) -> npt.NDArray[Any]:
    pixels = dataset.ReadAsArray(col, row, width, height)
    return np.asarray(pixels).reshape(dataset.RasterCount, height, width)
