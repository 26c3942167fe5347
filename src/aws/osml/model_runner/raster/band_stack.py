"""Bands of several files on one grid, read as one dataset.

A VRT of GDAL does the same, and is not used. Its driver would stay registered, and then GDAL would open any VRT that
lies beside an image as its overviews. A VRT also opens its files by itself, later, without the keys of the job.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from osgeo import gdal, osr

from aws.osml.model_runner.exceptions import LoadImageException

# Drift between two grids, at a corner of the image, below which they are one.
_DRIFT_PX = 0.01
_IGNORE_AXIS_ORDER = ["IGNORE_DATA_AXIS_TO_SRS_AXIS_MAPPING=YES"]
_OVERVIEW_FILE = ("OVERVIEW_FILE", "OVERVIEWS")


class BandStack:
    """The part of a GDAL dataset that images need, over the bands of ``datasets`` in order.

    All but bands and pixels is that of the first dataset: georeference, format and metadata.
    """

    def __init__(self, datasets: Sequence[Any]) -> None:
        self.datasets = tuple(datasets)
        self._places = [(dataset, number) for dataset in self.datasets for number in range(1, dataset.RasterCount + 1)]
        self.RasterCount = len(self._places)
        firsts = [dataset.GetRasterBand(1) for dataset in self.datasets]
        self._masked = _MaskedBand(firsts) if any(map(_has_mask, firsts[1:])) else None

    def __getattr__(self, name: str) -> Any:
        return getattr(self.datasets[0], name)

    def GetRasterBand(self, number: int) -> Any:
        """Return band ``number``, from 1. The mask of the first band is that of the whole stack."""
        if number == 1 and self._masked is not None:
            return self._masked
        dataset, own_number = self._places[number - 1]
        return dataset.GetRasterBand(own_number)

    def GetMetadataItem(self, name: str, domain: str = "") -> str | None:
        """Return an item of the first dataset; the name of a file of overviews also where another dataset has it."""
        owners = self.datasets if (name, domain) == _OVERVIEW_FILE else self.datasets[:1]
        return next((item for owner in owners if (item := owner.GetMetadataItem(name, domain)) is not None), None)

    def ReadAsArray(self, col: int, row: int, width: int, height: int) -> npt.NDArray[Any]:
        """Return a window of all bands as (bands, rows, columns)."""
        arrays = (dataset.ReadAsArray(col, row, width, height) for dataset in self.datasets)
        return np.concatenate([np.reshape(array, (-1, height, width)) for array in arrays])

    def ReadRaster(
        self,
        col: int,
        row: int,
        width: int,
        height: int,
        *,
        buf_type: int | None = None,
        buf_pixel_space: int | None = None,
        buf_line_space: int | None = None,
        buf_band_space: int | None = None,
        band_list: Sequence[int] | None = None,
        buf_obj: Any = None,
    ) -> Any:
        """Read a window of some bands, or of all, into ``buf_obj``; without it, into a new buffer. Return the buffer.

        Spaces are in bytes, and those of a band-sequential array by default. Raises RuntimeError as GDAL does.
        """
        numbers = list(band_list) if band_list else list(range(1, self.RasterCount + 1))
        kind = self.GetRasterBand(1).DataType if buf_type is None else buf_type
        sample_bytes = gdal.GetDataTypeSize(kind) // 8
        pixel_space = buf_pixel_space or sample_bytes
        line_space = buf_line_space or pixel_space * width
        band_space = buf_band_space or line_space * height
        last = (len(numbers) - 1) * band_space + (height - 1) * line_space + (width - 1) * pixel_space
        buffer = bytearray(last + sample_bytes) if buf_obj is None else buf_obj
        view = memoryview(buffer).cast("B")
        for index, number in enumerate(numbers):
            self.GetRasterBand(number).ReadRaster(
                *(col, row, width, height),
                buf_type=kind,
                buf_pixel_space=pixel_space,
                buf_line_space=line_space,
                buf_obj=view[index * band_space :],
            )
        return buffer


class _MaskedBand:
    """The first of some bands, each of another file, with a mask in which a pixel is valid if it is in all files."""

    def __init__(self, bands: Sequence[Any]) -> None:
        self._bands = bands

    def __getattr__(self, name: str) -> Any:
        return getattr(self._bands[0], name)

    def GetMaskFlags(self) -> int:
        """Return GDAL's flag of a mask that counts for all bands."""
        return int(gdal.GMF_PER_DATASET) if any(map(_has_mask, self._bands)) else int(self._bands[0].GetMaskFlags())

    def GetOverview(self, index: int) -> "_MaskedBand":
        """Return the overview of all bands."""
        return _MaskedBand([band.GetOverview(index) for band in self._bands])

    def GetOverviewCount(self) -> int:
        """Return the number of overviews that all bands have."""
        return min(int(band.GetOverviewCount()) for band in self._bands)

    def GetMaskBand(self) -> "_CommonMask":
        """Return the mask."""
        return _CommonMask([band.GetMaskBand() for band in self._bands if _has_mask(band)])


class _CommonMask:
    def __init__(self, masks: Sequence[Any]) -> None:
        self._masks = masks

    def ReadRaster(self, col: int, row: int, width: int, height: int, *, buf_type: int) -> bytes:
        """Return the least value of all masks; pixels that are not valid are 0."""
        raws = (mask.ReadRaster(col, row, width, height, buf_type=buf_type) for mask in self._masks)
        return bytes(np.minimum.reduce([np.frombuffer(raw, np.uint8) for raw in raws]))


def _has_mask(band: Any) -> bool:
    return bool(band.GetMaskFlags() & gdal.GMF_PER_DATASET)


def check_one_grid(datasets: Sequence[Any], names: Sequence[str]) -> None:
    """Raise LoadImageException, with the ``names`` of two datasets, unless all have one grid and one format."""
    first = datasets[0]
    for dataset, name in zip(datasets[1:], names[1:], strict=True):
        own, other = _format(first), _format(dataset)
        if own != other:
            raise _different(names[0], own, name, other, "of one format")
        if not _is_same_grid(first, dataset):
            raise _different(names[0], _grid(first), name, _grid(dataset), "on one grid")


def _different(first: str, own: str, second: str, other: str, expected: str) -> LoadImageException:
    return LoadImageException(
        f"imageAssets are stacked only where they are {expected}: {first} is {own}, and {second} is {other}"
    )


def _format(dataset: Any) -> str:
    return str(dataset.GetDriver().ShortName)


def _is_same_grid(first: Any, second: Any) -> bool:
    width, height = first.RasterXSize, first.RasterYSize
    if (width, height) != (second.RasterXSize, second.RasterYSize):
        return False
    transforms = [dataset.GetGeoTransform(can_return_null=True) for dataset in (first, second)]
    if None in transforms:
        return bool(transforms[0] == transforms[1]) and _control_points(first) == _control_points(second)
    inverse = gdal.InvGeoTransform(transforms[0])
    if inverse is None:
        return bool(transforms[0] == transforms[1])
    corners = [(x, y) for x in (0, width) for y in (0, height)]
    drifts = [
        abs(own - other)
        for corner in corners
        for own, other in zip(
            corner, gdal.ApplyGeoTransform(inverse, *gdal.ApplyGeoTransform(transforms[1], *corner)), strict=True
        )
    ]
    systems = [dataset.GetSpatialRef() for dataset in (first, second)]
    return bool(max(drifts) <= _DRIFT_PX) and is_same_system(*systems)


def is_same_system(first: osr.SpatialReference | None, second: osr.SpatialReference | None) -> bool:
    """Return whether two coordinate systems are equal, whatever the order of their axes; None is equal to None."""
    if first is None or second is None:
        return first is second
    return bool(first.IsSame(second, _IGNORE_AXIS_ORDER))


def _control_points(dataset: Any) -> list[tuple[float, ...]]:
    return [(point.GCPPixel, point.GCPLine, point.GCPX, point.GCPY) for point in dataset.GetGCPs()]


def _grid(dataset: Any) -> str:
    """Return size, pixel size, origin and coordinate system for a message."""
    transform, system = dataset.GetGeoTransform(can_return_null=True), dataset.GetSpatialRef()
    size = f"{dataset.RasterXSize} x {dataset.RasterYSize} pixels"
    if transform is None:
        return size
    placed = f"{size} of {transform[1]:g} x {transform[5]:g} from ({transform[0]:.10g}, {transform[3]:.10g})"
    return placed if system is None else f"{placed} in {system.GetName()}"
