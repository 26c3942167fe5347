"""A tile of an image as a dataset in memory: its pixels and the image's metadata, adjusted to the tile.

``gdal.Translate`` is not used, because it also looks for overviews and masks of the image. GDAL looks for them in files
beside the image and in a file that the metadata names, with any registered driver; Translate itself registers VRT. An
untrusted file could thus make the worker open arbitrary paths for data that tiles do not need.
"""

from typing import Any

import numpy as np
import numpy.typing as npt
from osgeo import gdal

from aws.osml.model_runner.common.pixel_ratio import ONE, PixelRatio
from aws.osml.model_runner.common.typing import ImageRegion

from .gdal_values import decoded, metadata_of
from .preparation import Preparation

# Prefix of a NITF's items with the corners of the whole image.
_WHOLE_IMAGE_PREFIX = "NITF_BLOCKA_"
_STRUCTURE = "IMAGE_STRUCTURE"
_BITS, _PIXEL_TYPE = "NBITS", "PIXELTYPE"
# The largest palette that a NITF look-up table holds.
_MAX_NITF_COLOURS = 256
_HALF_PX = 0.5


def read_pixels(dataset: Any, tile: ImageRegion, data_type: str, into: memoryview | None = None) -> npt.NDArray[Any]:
    """Return the pixels of ``tile``, as ``data_type``, in an array of (rows, columns, bands), which views ``into``.

    Without ``into`` the array has memory of its own. Its elements have the size of ``data_type``; they are integers
    only where they have one or two bytes. Raises RuntimeError where the pixels cannot be read.
    """
    (row, col), (width, height) = tile
    number = gdal.GetDataTypeByName(data_type)
    size_bytes = gdal.GetDataTypeSize(number) // 8
    pixel_bytes = size_bytes * dataset.RasterCount
    raw = dataset.ReadRaster(
        *(col, row, width, height),
        buf_type=number,
        buf_obj=into,
        buf_pixel_space=pixel_bytes,
        buf_line_space=pixel_bytes * width,
        buf_band_space=size_bytes,
    )
    element = np.dtype(f"u{size_bytes}" if size_bytes <= 2 else f"V{size_bytes}")
    return np.frombuffer(raw, element).reshape(height, width, dataset.RasterCount)


def corner_of(dataset: Any, tile: ImageRegion, ratio: PixelRatio = ONE) -> tuple[float, float] | None:
    """Return x and y of the tile's upper left corner by the image's geotransform; None without a geotransform.

    The tile is in pixels of ``ratio`` image pixels.
    """
    transform = dataset.GetGeoTransform(can_return_null=True)
    row, col = tile.origin
    return None if transform is None else tuple(gdal.ApplyGeoTransform(transform, col * ratio.x, row * ratio.y))


def tile_view(dataset: Any, tile: ImageRegion, data_type: str, pixels: npt.NDArray[Any], driver: str) -> Any:
    """Return a dataset of GDAL's MEM driver with the ``pixels`` of a ``tile``, as ``read_pixels`` gives them.

    It holds only metadata that GDAL's ``driver`` can write, because other metadata may fail the whole tile.
    """
    view = _memory_dataset(pixels, data_type)
    if driver == "GTiff":
        _copy_georeference(dataset, view, tile)
    rpc = metadata_of(dataset, "RPC")
    if rpc:
        view.SetMetadata(_shifted_rpc(rpc, *tile.origin), "RPC")
    items = metadata_of(dataset).items()
    view.SetMetadata({name: text for name, text in items if not name.startswith(_WHOLE_IMAGE_PREFIX)})
    for band in range(1, dataset.RasterCount + 1):
        _copy_band_metadata(dataset.GetRasterBand(band), view.GetRasterBand(band))
        _copy_palette(dataset.GetRasterBand(band), view.GetRasterBand(band), driver, dataset.RasterCount == 1)
    return view


def prepared_view(
    dataset: Any,
    tile: ImageRegion,
    data_type: str,
    pixels: npt.NDArray[Any],
    driver: str,
    preparation: Preparation,
) -> Any:
    """Return a dataset as ``tile_view`` does, with prepared pixels; ``tile`` is in model pixels.

    Where values are changed, a band keeps its description and its colour only: unit, scale, statistics and palette
    are those of other values. Samples that were not valid are filled, so no band has a value for "no data".
    """
    ratio, bands = preparation.ratio, preparation.bands
    view = _memory_dataset(pixels, data_type)
    if driver == "GTiff":
        _copy_georeference(dataset, view, tile, ratio)
    rpc = metadata_of(dataset, "RPC")
    if rpc:
        view.SetMetadata(_shifted_rpc(rpc, *tile.origin, ratio), "RPC")
    items = metadata_of(dataset).items()
    view.SetMetadata({name: text for name, text in items if not name.startswith(_WHOLE_IMAGE_PREFIX)})
    for index, number in enumerate(bands):
        source, target = dataset.GetRasterBand(number), view.GetRasterBand(index + 1)
        if preparation.keeps_values:
            _copy_band_metadata(source, target)
            target.DeleteNoDataValue()
            _copy_palette(source, target, driver, len(bands) == 1)
        else:
            colour = source.GetColorInterpretation()
            target.SetColorInterpretation(gdal.GCI_GrayIndex if colour == gdal.GCI_PaletteIndex else colour)
            target.SetDescription(decoded(source.GetDescription()))
    return view


def _memory_dataset(pixels: npt.NDArray[Any], data_type: str) -> Any:
    """Return a dataset of GDAL's MEM driver that views ``pixels``, contiguous (rows, columns, bands)."""
    height, width, bands = pixels.shape
    number = gdal.GetDataTypeByName(data_type)
    view = gdal.GetDriverByName("MEM").Create("", width, height, 0, number)
    band_bytes = gdal.GetDataTypeSize(number) // 8
    layout = [f"PIXELOFFSET={band_bytes * bands}", f"LINEOFFSET={band_bytes * bands * width}"]
    for band in range(bands):
        view.AddBand(number, [f"DATAPOINTER={pixels.ctypes.data + band * band_bytes}", *layout])
    # GDAL reads from this memory, but does not keep it alive.
    view.pixels = pixels
    return view


def _copy_georeference(dataset: Any, view: Any, tile: ImageRegion, ratio: PixelRatio = ONE) -> None:
    """Copy geotransform, coordinate system and GCPs to the tile, shifted to its origin.

    A NITF gets none of them: its corners are creation options. GDAL's writer refuses a tile whose geotransform or GCPs
    do not give four corners on the Earth.
    """
    row, col = tile.origin
    corner, transform = corner_of(dataset, tile, ratio), dataset.GetGeoTransform()
    if corner is not None:
        (x, y), (across, down) = corner, ratio
        steps = (transform[1] * across, transform[2] * down, transform[4] * across, transform[5] * down)
        view.SetGeoTransform((x, steps[0], steps[1], y, steps[2], steps[3]))
    if dataset.GetSpatialRef() is not None:
        view.SetSpatialRef(dataset.GetSpatialRef())
    points = dataset.GetGCPs()
    for point in points:
        point.GCPPixel = point.GCPPixel / ratio.x - col
        point.GCPLine = point.GCPLine / ratio.y - row
    if points:
        view.SetGCPs(points, dataset.GetGCPProjection())


def _shifted_rpc(rpc: dict[str, str], row: int, col: int, ratio: PixelRatio = ONE) -> dict[str, str]:
    """Return the RPC of a tile whose upper left corner is at ``row``, ``col``; empty where offsets are not numbers.

    Both count from the middle of a pixel, so half a pixel is added before the scaling and subtracted after it.
    """
    try:
        line, sample = (float(rpc[name].split()[0]) for name in ("LINE_OFF", "SAMP_OFF"))
        if ratio.is_one:
            return {**rpc, "LINE_OFF": f"{line - row:.15g}", "SAMP_OFF": f"{sample - col:.15g}"}
        line_scale, sample_scale = (float(rpc[name].split()[0]) for name in ("LINE_SCALE", "SAMP_SCALE"))
    except (KeyError, ValueError, IndexError):
        return {}
    return {
        **rpc,
        "LINE_OFF": f"{(line + _HALF_PX) / ratio.y - _HALF_PX - row:.15g}",
        "SAMP_OFF": f"{(sample + _HALF_PX) / ratio.x - _HALF_PX - col:.15g}",
        "LINE_SCALE": f"{line_scale / ratio.y:.15g}",
        "SAMP_SCALE": f"{sample_scale / ratio.x:.15g}",
    }


def _copy_band_metadata(source: Any, target: Any) -> None:
    """Copy colour interpretation, nodata, scale, offset, unit, description, categories and items of a band.

    NBITS moves from IMAGE_STRUCTURE to the default domain. In IMAGE_STRUCTURE it would make GDAL write samples that do
    not fill whole bytes, which few libraries read. The bits of the first band would also cut the values of the others.
    """
    target.SetColorInterpretation(source.GetColorInterpretation())
    if source.GetNoDataValue() is not None:
        target.SetNoDataValue(source.GetNoDataValue())
    if source.GetScale() is not None:
        target.SetScale(source.GetScale())
    if source.GetOffset() is not None:
        target.SetOffset(source.GetOffset())
    target.SetUnitType(decoded(source.GetUnitType()))
    target.SetDescription(decoded(source.GetDescription()))
    if source.GetCategoryNames():
        target.SetCategoryNames([decoded(name) for name in source.GetCategoryNames()])
    bits, pixel_type = (source.GetMetadataItem(name, _STRUCTURE) for name in (_BITS, _PIXEL_TYPE))
    target.SetMetadata(metadata_of(source) | ({_BITS: bits} if bits else {}))
    if pixel_type:
        target.SetMetadataItem(_PIXEL_TYPE, pixel_type, _STRUCTURE)


def _copy_palette(source: Any, target: Any, driver: str, is_only_band: bool) -> None:
    """Copy the palette of a band, where ``driver`` can write it."""
    palette = source.GetColorTable()
    if palette is None:
        return
    if driver == "NITF" and not (is_only_band and palette.GetCount() <= _MAX_NITF_COLOURS):
        # Otherwise GDAL would treat the values as indices of a palette that is missing.
        target.SetColorInterpretation(gdal.GCI_GrayIndex)
        return
    if driver == "PNG" and palette.GetCount() < _MAX_NITF_COLOURS:
        # libpng refuses a tile with a pixel that exceeds the palette.
        palette = palette.Clone()
        palette.SetColorEntry(_MAX_NITF_COLOURS - 1, (0, 0, 0, 255))
    target.SetColorTable(palette)
