"""A tile of an image as a dataset in memory: its pixels, and what the image says about them, as it is true of the tile.

``gdal.Translate`` does the same and asks for the image's overviews and masks on the way, which GDAL looks for in files
beside the image and in one that its metadata may name, with any driver that is registered; Translate itself registers
VRT. So a stranger's file would lead the worker wherever it likes, for something that nobody wants.
"""

from typing import Any

from osgeo import gdal

from aws.osml.model_runner.common.typing import ImageRegion

# Items of a NITF that hold the corners of the whole image.
_WHOLE_IMAGE_PREFIX = "NITF_BLOCKA_"
_STRUCTURE = "IMAGE_STRUCTURE"
# What changes the meaning of stored numbers, not their layout in the file.
_KEPT_STRUCTURE = ("NBITS", "PIXELTYPE")


def tile_view(dataset: Any, tile: ImageRegion, data_type: str) -> Any:
    """Return a dataset of GDAL's MEM driver with the pixels of ``tile``, all bands of them as ``data_type``.

    Raises RuntimeError where they cannot be read.
    """
    (row, col), (width, height) = tile
    number = gdal.GetDataTypeByName(data_type)
    pixels = dataset.ReadRaster(col, row, width, height, buf_type=number)
    view = gdal.GetDriverByName("MEM").Create("", width, height, dataset.RasterCount, number)
    view.WriteRaster(0, 0, width, height, pixels, buf_type=number)
    _keep_place(dataset, view, row, col)
    _keep_metadata(dataset, view)
    for band in range(1, dataset.RasterCount + 1):
        _keep_meaning(dataset.GetRasterBand(band), view.GetRasterBand(band))
    return view


def _keep_place(dataset: Any, view: Any, row: int, col: int) -> None:
    """Say of the tile where it is: by geotransform, control points and camera, as far as the image has them."""
    transform = dataset.GetGeoTransform(can_return_null=True)
    if transform is not None:
        x, y = gdal.ApplyGeoTransform(transform, col, row)
        view.SetGeoTransform((x, transform[1], transform[2], y, transform[4], transform[5]))
    if dataset.GetSpatialRef() is not None:
        view.SetSpatialRef(dataset.GetSpatialRef())
    points = dataset.GetGCPs()
    for point in points:
        point.GCPPixel -= col
        point.GCPLine -= row
    if points:
        view.SetGCPs(points, dataset.GetGCPProjection())
    camera = dataset.GetMetadata("RPC")
    if camera:
        view.SetMetadata(_moved(camera, row, col), "RPC")


def _moved(camera: dict[str, str], row: int, col: int) -> dict[str, str]:
    """Return an RPC that counts pixels from the tile's corner; an empty one where it has no numbers to count from."""
    try:
        line, sample = (float(camera[name].split()[0]) for name in ("LINE_OFF", "SAMP_OFF"))
    except (KeyError, ValueError, IndexError):
        return {}
    return {**camera, "LINE_OFF": f"{line - row:.15g}", "SAMP_OFF": f"{sample - col:.15g}"}


def _keep_metadata(dataset: Any, view: Any) -> None:
    items = dataset.GetMetadata() or {}
    view.SetMetadata({name: text for name, text in items.items() if not name.startswith(_WHOLE_IMAGE_PREFIX)})


def _keep_meaning(source: Any, target: Any) -> None:
    """Say of a band's numbers what they mean."""
    target.SetColorInterpretation(source.GetColorInterpretation())
    if source.GetColorTable() is not None:
        target.SetColorTable(source.GetColorTable())
    if source.GetNoDataValue() is not None:
        target.SetNoDataValue(source.GetNoDataValue())
    if source.GetScale() is not None:
        target.SetScale(source.GetScale())
    if source.GetOffset() is not None:
        target.SetOffset(source.GetOffset())
    target.SetUnitType(source.GetUnitType() or "")
    target.SetDescription(source.GetDescription())
    if source.GetCategoryNames():
        target.SetCategoryNames(source.GetCategoryNames())
    target.SetMetadata(source.GetMetadata() or {})
    for name in _KEPT_STRUCTURE:
        value = source.GetMetadataItem(name, _STRUCTURE)
        if value is not None:
            target.SetMetadataItem(name, value, _STRUCTURE)
