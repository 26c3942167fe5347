"""Pixels of a tile: as the image has them, or in the bands, range and type that the model was trained on."""

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
from osgeo import gdal

from aws.osml.model_runner.api.processor_input import ProcessorInput
from aws.osml.model_runner.common.pixel_ratio import ONE, PixelRatio
from aws.osml.model_runner.common.typing import ImageCoord, ImageDimensions, ImageRegion
from aws.osml.model_runner.exceptions import LoadImageException

from .band_samples import valid_samples
from .gdal_values import decoded
from .georeference import ImageToWorld, image_to_world
from .handle_pool import ImageHandle
from .image_source import ImageSource
from .overviews import Level
from .pixel_map import PixelMap
from .pixel_size import pixel_size_m
from .preparation import BandFacts, ImageFacts, Preparation, needs_samples, ranges_of, resolve
from .stored_blocks import BlockRead
from .tiff_templates import TiffTemplates
from .tile_parts import PartAxis, parts_of
from .validity import Validity, read_mask
from .window import corner_of, prepared_view, read_pixels, tile_view

_STRUCTURE = "IMAGE_STRUCTURE"
# Numbers of bands that OpenCV writes as a picture.
PICTURE_BANDS = (1, 3, 4)


class TilePixels:
    """Pixels of tiles as the image has them. Any number of threads may use it, each with a handle of its own.

    ``width`` and ``height`` are the size of the raster that tiles are cut from. ``band_count``, ``data_type``, which is
    GDAL's name, and ``samples`` describe a tile. ``templates`` are of uncompressed GeoTIFF tiles with such pixels.
    """

    has_sar_document = True
    # True where tiles are read from the image pixel by pixel, so that several tiles can be fetched at once.
    is_read_whole = True

    def __init__(self, source: ImageSource) -> None:
        self._source = source
        self._whole = Level(None, source.width, source.height)
        self.width, self.height = source.width, source.height
        self.band_count, self.data_type = source.band_count, source.data_type
        self.samples, self.templates = source.header.samples, source.tiff_templates

    def source_bytes(self, size: ImageDimensions) -> int:
        """Return the bytes of samples that are read for a tile of this size, where they are more than the tile's."""
        return size.width * size.height * self.band_count

    def locate(self) -> ImageToWorld | None:
        """Return the function that maps (n, 2) pixels x, y of the raster to the Earth; None without a georeference."""
        model = self._source.sensor_model
        return None if model is None else image_to_world(model)

    def is_plain(self, handle: ImageHandle) -> bool:
        """Return True when tiles have neither a palette nor a value for "no data"."""
        return handle.companion("is plain", _is_plain)

    def corner(self, handle: ImageHandle, tile: ImageRegion) -> tuple[float, float] | None:
        """Return x and y of the tile's upper left corner in the image's coordinate system; None without one."""
        return corner_of(handle.dataset, tile)

    def read(self, handle: ImageHandle, tile: ImageRegion, into: memoryview | None = None) -> npt.NDArray[Any]:
        """Return the pixels of a tile as (rows, columns, bands); the array views ``into``, which they fill.

        Raises RuntimeError where the pixels cannot be read.
        """
        return read_pixels(handle.dataset, tile, self._source.data_type, into)

    def block_read(self, handle: ImageHandle, tile: ImageRegion) -> BlockRead:  # noqa: ARG002 - an overview needs it
        """Return the window of the image, or of an overview, that ``read`` reads for a tile."""
        return BlockRead(self._whole, tile, tuple(range(1, self._source.band_count + 1)))

    def view(self, handle: ImageHandle, tile: ImageRegion, pixels: npt.NDArray[Any], driver: str) -> Any:
        """Return a dataset in memory with the tile's pixels and the metadata that GDAL's ``driver`` can write."""
        return tile_view(handle.dataset, tile, self._source.data_type, pixels, driver)


class PreparedPixels(TilePixels):
    """Pixels of tiles in the bands, range and type of a ``Preparation``."""

    has_sar_document = False

    def __init__(
        self,
        source: ImageSource,
        preparation: Preparation,
        on_part: Callable[[ImageRegion], object] = lambda _tile: None,
    ) -> None:
        """``on_part`` is called with a tile after each of its parts, which shows that a long read does not hang."""
        super().__init__(source)
        self.band_count, self.data_type = len(preparation.bands), gdal_type(preparation.data_type)
        self.samples, self.templates = preparation.samples, TiffTemplates()
        self._preparation = preparation
        self._on_part = on_part
        # They end with the region that the tiles belong to: an image stays open for jobs with other preparations.
        self._maps: dict[Hashable, PixelMap] = {}
        self._read_bands = tuple(dict.fromkeys(preparation.bands))

    def is_plain(self, handle: ImageHandle) -> bool:  # noqa: ARG002  # the image's own value for "no data" is filled
        """Return True when tiles have one, three or four bands without a palette."""
        return self.band_count in PICTURE_BANDS and not self._preparation.samples.palette_size

    def read(self, handle: ImageHandle, tile: ImageRegion, into: memoryview | None = None) -> npt.NDArray[Any]:
        """Return the prepared pixels of a tile; see ``TilePixels.read``."""
        (height, width), dtype = tile.size[::-1], np.dtype(self._preparation.dtype)
        shape = (height, width, len(self._preparation.bands))
        out = np.empty(shape, dtype) if into is None else np.frombuffer(into, dtype).reshape(shape)
        self._fill(handle, tile, out)
        return out

    def block_read(self, handle: ImageHandle, tile: ImageRegion) -> BlockRead:
        """Return the window that is read for a tile; see ``TilePixels.block_read``."""
        has_mask = handle.companion("validity", Validity.of).has_mask
        return BlockRead(self._whole, tile, self._read_bands, has_mask)

    def _fill(self, handle: ImageHandle, tile: ImageRegion, out: npt.NDArray[Any]) -> None:
        """Write the samples of a tile to ``out`` (rows, columns, bands)."""
        row, col = tile.origin
        for rows, columns in self._parts(handle, self._whole, tile):
            size = ImageDimensions(columns.stop - columns.start, rows.stop - rows.start)
            origin = ImageCoord(row + rows.start, col + columns.start)
            source, mask = self._samples(handle, self._whole, ImageRegion(origin, size))
            for index, number in enumerate(self._preparation.bands):
                samples = source[self._read_bands.index(number)]
                self._map(handle, index).apply(samples, mask, out[rows, columns, index])

    def _parts(
        self,
        handle: ImageHandle,
        level: Level,
        tile: ImageRegion,
        ratio: PixelRatio = ONE,
        kernel: Callable[[float], float] = lambda _ratio: 1.0,
    ) -> Iterator[tuple[slice, slice]]:
        """Yield (rows, columns) of the parts of a tile; see ``parts_of``.

        ``ratio`` is that of ``level``; ``kernel`` returns the image pixels that one model pixel is made from.
        """
        width, height = level.band(handle.dataset, self._read_bands[0]).GetBlockSize()
        has_mask = handle.companion("validity", Validity.of).has_mask
        pixel_bytes = np.dtype(self._preparation.source_dtype).itemsize * len(self._read_bands) + has_mask
        down = PartAxis(tile.size.height, height, ratio.y, kernel(ratio.y))
        across = PartAxis(tile.size.width, width, ratio.x, kernel(ratio.x))
        for part in parts_of(down, across, pixel_bytes):
            yield part
            self._on_part(tile)

    def _samples(
        self, handle: ImageHandle, level: Level, window: ImageRegion
    ) -> tuple[npt.NDArray[Any], npt.NDArray[np.uint8] | None]:
        """Return the stored samples of a window as (bands read, rows, columns), and its mask where there is one."""
        (row, col), (width, height) = window
        dataset, preparation = handle.dataset, self._preparation
        number = gdal.GetDataTypeByName(gdal_type(preparation.source_type))
        if level.overview is None:
            raw = dataset.ReadRaster(col, row, width, height, buf_type=number, band_list=list(self._read_bands))
            source = np.frombuffer(raw, preparation.source_dtype).reshape(len(self._read_bands), height, width)
        else:
            # GDAL reads overviews band by band.
            source = np.empty((len(self._read_bands), height, width), preparation.source_dtype)
            for samples, band in zip(source, self._read_bands, strict=True):
                place = samples.reshape(-1).view(np.uint8).data
                level.band(dataset, band).ReadRaster(col, row, width, height, buf_type=number, buf_obj=place)
        has_mask = handle.companion("validity", Validity.of).has_mask
        return source, read_mask(level.band(dataset, 1), col, row, width, height) if has_mask else None

    def view(self, handle: ImageHandle, tile: ImageRegion, pixels: npt.NDArray[Any], driver: str) -> Any:
        """Return a dataset in memory with the prepared pixels; see ``TilePixels.view``."""
        preparation = self._preparation
        return prepared_view(handle.dataset, tile, self.data_type, pixels, driver, preparation)

    def _map(self, handle: ImageHandle, index: int) -> PixelMap:
        """Return the map of a band of the tile; bands with the same map share it."""
        preparation = self._preparation
        number = preparation.bands[index]
        is_alpha = number in preparation.alpha
        nodata = handle.companion("validity", Validity.of).nodata[number - 1]
        limits = None if preparation.ranges is None else preparation.ranges[index]
        key = (limits, nodata, is_alpha)
        if (found := self._maps.get(key)) is None:
            # Two threads may make the same map; either will do.
            found = self._maps[key] = PixelMap(preparation, limits, nodata, is_alpha)
        return found


def _is_plain(dataset: Any) -> bool:
    """Return True when OpenCV can write the image: it has no palette and no nodata value, which only GDAL writes."""
    bands = [dataset.GetRasterBand(number + 1) for number in range(dataset.RasterCount)]
    has_meaning = any(band.GetRasterColorTable() is not None or band.GetNoDataValue() is not None for band in bands)
    return len(bands) in PICTURE_BANDS and not has_meaning


def prepare(source: ImageSource, asked: ProcessorInput, measures: bool = True) -> Preparation:
    """Return the preparation of an open image; with ``measures`` its ranges follow from the image's own values.

    The same image gives the same preparation on every worker. Raises InvalidImageRequestException with every problem,
    ImageError when the image cannot be read.
    """
    bands = source.read(lambda handle: band_facts(handle.dataset))
    size_m = None if asked.gsd is None else pixel_size_m(source)
    if source.item is not None:
        bands = with_names(bands, source.band_names)
        if asked.gsd is not None and size_m is None and source.item.gsd_m is not None:
            size_m = (source.item.gsd_m, source.item.gsd_m)
    preparation = resolve(asked, bands, union_of, ImageFacts(source.width, source.height, size_m))
    stretch = asked.stretch
    if not asked.is_stretched or (needs_samples(stretch) and not measures):
        return preparation

    def samples(chosen: Sequence[int]) -> Mapping[int, npt.NDArray[Any]]:
        return source.read(lambda handle: valid_samples(handle.dataset, chosen, preparation.source_type))

    try:
        return replace(preparation, ranges=ranges_of(stretch, preparation.bands, samples, preparation.alpha))
    except RuntimeError as err:
        raise LoadImageException(f"the values of the image cannot be read: {err}") from err


def with_names(bands: Sequence[BandFacts], names: Sequence[Sequence[str]]) -> list[BandFacts]:
    """Return bands that have ``names`` beside their own; a name of theirs that ``names`` gives to a band is dropped."""
    taken = {name.casefold() for of_band in names for name in of_band}
    return [
        replace(band, names=(*of_band, *(name for name in band.names if name.casefold() not in taken)))
        for band, of_band in zip(bands, names, strict=True)
    ]


def band_facts(dataset: Any) -> list[BandFacts]:
    """Return the facts of each band of a dataset, in order."""
    return [_facts(dataset.GetRasterBand(number + 1), number + 1) for number in range(dataset.RasterCount)]


def union_of(data_types: list[str]) -> str:
    """Return the smallest type that holds samples of all types."""
    if len(set(data_types)) == 1:
        return data_types[0]
    union = gdal.GDT_Byte
    for data_type in data_types:
        union = gdal.DataTypeUnion(union, gdal.GetDataTypeByName("Int16" if data_type == "Int8" else data_type))
    return str(gdal.GetDataTypeName(union))


def _facts(band: Any, number: int) -> BandFacts:
    is_signed = band.GetMetadataItem("PIXELTYPE", _STRUCTURE) == "SIGNEDBYTE"
    bits = band.GetMetadataItem("NBITS", _STRUCTURE) or ""
    table, colour = band.GetColorTable(), gdal.GetColorInterpretationName(band.GetColorInterpretation())
    names = (decoded(band.GetDescription()).strip(), "" if colour == "Undefined" else colour)
    return BandFacts(
        number=number,
        data_type="Int8" if is_signed else str(gdal.GetDataTypeName(band.DataType)),
        names=tuple(dict.fromkeys(name for name in names if name)),
        bits=int(bits) if bits.isdigit() else int(gdal.GetDataTypeSize(band.DataType)),
        palette_size=0 if table is None else table.GetCount(),
        is_alpha=band.GetColorInterpretation() == gdal.GCI_AlphaBand,
    )


def gdal_type(data_type: str) -> str:
    """Return GDAL's name of a type; it has none for signed bytes."""
    return "Byte" if data_type == "Int8" else data_type
