"""A tile of an image as a dataset in memory: its pixels, and what the image says about them, as it is true of the tile.

``gdal.Translate`` does the same and asks for the image's overviews and masks on the way, which GDAL looks for in files
beside the image and in one that its metadata may name, with any driver that is registered; Translate itself registers
VRT. So a stranger's file would lead the worker wherever it likes, for something that nobody wants.
"""

from typing import Any

import numpy as np
import numpy.typing as npt
from osgeo import gdal

from aws.osml.model_runner.common.typing import ImageRegion

from .gdal_text import decoded, metadata_of

# Items of a NITF that hold the corners of the whole image.
_WHOLE_IMAGE_PREFIX = "NITF_BLOCKA_"
_STRUCTURE = "IMAGE_STRUCTURE"
_BITS, _PIXEL_TYPE = "NBITS", "PIXELTYPE"
# The largest palette that a NITF look-up table holds.
_MOST_NITF_COLOURS = 256


def read_pixels(dataset: Any, tile: ImageRegion, data_type: str, into: memoryview | None = None) -> npt.NDArray[Any]:
    """Return the pixels of ``tile``, as ``data_type``, in an array of (rows, columns, bands); ``into`` a given memory.

    Its elements have the size of that type, and are numbers only where they have one or two bytes. Raises RuntimeError
    where the pixels cannot be read.
    """
    (row, col), (width, height) = tile
    number = gdal.GetDataTypeByName(data_type)
    spaces = _spaces(dataset, width, number)
    raw = dataset.ReadRaster(col, row, width, height, buf_type=number, buf_obj=into, **spaces)
    size_bytes = gdal.GetDataTypeSize(number) // 8
    element = np.dtype(f"u{size_bytes}" if size_bytes <= 2 else f"V{size_bytes}")
    return np.frombuffer(raw, element).reshape(height, width, dataset.RasterCount)


def _spaces(dataset: Any, width: int, data_type: int) -> dict[str, int]:
    """Return the distances, in bytes, of bands, pixels and lines that lie band by band in each pixel."""
    band = gdal.GetDataTypeSize(data_type) // 8
    pixel = band * dataset.RasterCount
    return {"buf_pixel_space": pixel, "buf_line_space": pixel * width, "buf_band_space": band}


def corner_of(dataset: Any, tile: ImageRegion) -> tuple[float, float] | None:
    """Return where the first pixel of ``tile`` lies, by the image's geotransform; None where it has none."""
    transform = dataset.GetGeoTransform(can_return_null=True)
    row, col = tile.origin
    return None if transform is None else tuple(gdal.ApplyGeoTransform(transform, col, row))


def tile_view(dataset: Any, tile: ImageRegion, data_type: str, pixels: npt.NDArray[Any], driver: str) -> Any:
    """Return a dataset of GDAL's MEM driver with the ``pixels`` of a ``tile``, as ``read_pixels`` gives them.

    It holds no more than GDAL's ``driver`` can write: a driver that cannot write something may fail the whole tile.
    """
    number = gdal.GetDataTypeByName(data_type)
    view = gdal.GetDriverByName("MEM").Create("", *tile.size, 0, number)
    spaces = _spaces(dataset, tile.size.width, number)
    layout = [f"PIXELOFFSET={spaces['buf_pixel_space']}", f"LINEOFFSET={spaces['buf_line_space']}"]
    for band in range(dataset.RasterCount):
        first = pixels.ctypes.data + band * spaces["buf_band_space"]
        view.AddBand(number, [f"DATAPOINTER={first}", *layout])
    # GDAL reads where they lie, and does not keep them alive.
    view.pixels = pixels
    if driver == "GTiff":
        _keep_place(dataset, view, tile)
    _keep_camera(dataset, view, tile)
    _keep_metadata(dataset, view)
    for band in range(1, dataset.RasterCount + 1):
        _keep_meaning(dataset.GetRasterBand(band), view.GetRasterBand(band))
        _keep_palette(dataset.GetRasterBand(band), view.GetRasterBand(band), driver, dataset.RasterCount == 1)
    return view


def _keep_place(dataset: Any, view: Any, tile: ImageRegion) -> None:
    """Say of the tile where it is: by geotransform and control points, as far as the image has them.

    A NITF gets neither: its corners are options of their own, and GDAL's writer refuses a tile whose geotransform or
    control points do not give four corners on the Earth.
    """
    row, col = tile.origin
    corner, transform = corner_of(dataset, tile), dataset.GetGeoTransform()
    if corner is not None:
        x, y = corner
        view.SetGeoTransform((x, transform[1], transform[2], y, transform[4], transform[5]))
    if dataset.GetSpatialRef() is not None:
        view.SetSpatialRef(dataset.GetSpatialRef())
    points = dataset.GetGCPs()
    for point in points:
        point.GCPPixel -= col
        point.GCPLine -= row
    if points:
        view.SetGCPs(points, dataset.GetGCPProjection())


def _keep_camera(dataset: Any, view: Any, tile: ImageRegion) -> None:
    camera = metadata_of(dataset, "RPC")
    if camera:
        view.SetMetadata(_moved(camera, *tile.origin), "RPC")


def _moved(camera: dict[str, str], row: int, col: int) -> dict[str, str]:
    """Return an RPC that counts pixels from the tile's corner; an empty one where it has no numbers to count from."""
    try:
        line, sample = (float(camera[name].split()[0]) for name in ("LINE_OFF", "SAMP_OFF"))
    except (KeyError, ValueError, IndexError):
        return {}
    return {**camera, "LINE_OFF": f"{line - row:.15g}", "SAMP_OFF": f"{sample - col:.15g}"}


def _keep_metadata(dataset: Any, view: Any) -> None:
    items = metadata_of(dataset).items()
    view.SetMetadata({name: text for name, text in items if not name.startswith(_WHOLE_IMAGE_PREFIX)})


def _keep_meaning(source: Any, target: Any) -> None:
    """Say of a band's numbers what they mean.

    The number of bits becomes an item of metadata. As part of the structure it would have GDAL write samples that are
    no whole bytes, which few libraries read, and the bits of the first band would cut the values of all others.
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


def _keep_palette(source: Any, target: Any, driver: str, is_only_band: bool) -> None:
    """Give a band the palette of its source, where ``driver`` can write it."""
    palette = source.GetColorTable()
    if palette is None:
        return
    if driver == "NITF" and not (is_only_band and palette.GetCount() <= _MOST_NITF_COLOURS):
        # Else GDAL takes the indices for a palette that is missing.
        target.SetColorInterpretation(gdal.GCI_GrayIndex)
        return
    if driver == "PNG" and palette.GetCount() < _MOST_NITF_COLOURS:
        # libpng refuses a tile in which a pixel lies beyond the palette.
        palette = palette.Clone()
        palette.SetColorEntry(_MOST_NITF_COLOURS - 1, (0, 0, 0, 255))
    target.SetColorTable(palette)
