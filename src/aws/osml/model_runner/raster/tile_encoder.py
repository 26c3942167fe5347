"""Reads tiles of an image and encodes them in memory as the files that models get."""

import functools
import io
import itertools
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import structlog
from osgeo import gdal

from aws.osml.model_runner.common.typing import (
    EncodedTile,
    ImageCompression,
    ImageDimensions,
    ImageFormats,
    ImageRegion,
)
from aws.osml.model_runner.exceptions import TileEncodingError

from .gdal_values import memory_folder, read_memory_file
from .georeference import ImageToWorld
from .handle_pool import ImageHandle
from .image_source import ImageSource
from .nitf_tile import SarDocument, corner_options, header_options, keep_rpc
from .open import is_remote
from .preparation import Preparation
from .read_ahead import ReadAhead
from .resampled_pixels import pixels_of
from .sensor_model import UNREADABLE
from .stored_blocks import StoredBlocks, file_bytes, known_block_sizes
from .tile_formats import NUMPY, Samples, TilePlan, plan_tile
from .tile_pixels import TilePixels
from .transfers import last_warning

logger = structlog.get_logger(__name__)

# The metadata of a tile is rarely larger.
_MAX_HEADER_BYTES = 256 * 1024
# A tile of a small scale is made from many pixels of the image, which takes time but little memory: see ``tile_parts``.
_MAX_READ_SHARE = 64
_PLAIN_TIFF = TilePlan("GTiff", ("COMPRESS=NONE",))

_PICTURE_DRIVERS = ("PNG", "JPEG")
# GDAL's default.
_JPEG_QUALITY = 75
# Conversion to OpenCV's order of colours, by the number of bands.
_TO_OPENCV = {1: None, 3: cv2.COLOR_RGB2BGR, 4: cv2.COLOR_RGBA2BGRA}


class TileEncoder:
    """Encodes tiles of one image in one format. Thread-safe.

    NITF tiles carry the corners, the SICD or SIDD document and the RPC, adjusted to the tile. GTIFF tiles carry the
    georeference of the tile. PNG, JPEG and NumPy tiles carry pixels only.

    ``tiles`` are the tiles that the caller will encode, in order: for a remote image, several of them are fetched at
    once. ``on_part`` is called with a prepared tile after each part of the image that was read for it.
    """

    def __init__(
        self,
        source: ImageSource,
        tile_format: ImageFormats | str,
        compression: ImageCompression | str | None = None,
        tiles: Iterable[ImageRegion] = (),
        preparation: Preparation | None = None,
        on_part: Callable[[ImageRegion], object] = lambda _tile: None,
    ) -> None:
        self._source = source
        self._pixels = TilePixels(source) if preparation is None else pixels_of(source, preparation, on_part)
        self._tiles = tiles
        self._tile_format = tile_format if tile_format == NUMPY else ImageFormats(tile_format)
        self._compression = ImageCompression(compression) if compression else None

    def check(self, tile_size: ImageDimensions | None = None) -> None:
        """Raise TileEncodingError when the format cannot hold the image, or a tile of ``tile_size`` would be too large.

        Logs a warning where tiles are written with another compression than requested.
        """
        if tile_size is not None:
            width, height = min(tile_size.width, self._pixels.width), min(tile_size.height, self._pixels.height)
            self._refuse_large(f"a tile of {width} x {height} pixels", width * height)
            limit = _MAX_READ_SHARE * self._source.settings.max_tile_bytes
            if (size := self._pixels.source_bytes(ImageDimensions(width, height))) > limit:
                raise TileEncodingError(
                    f"a tile of {width} x {height} pixels is made from {size} bytes of the image, the limit is {limit}"
                    f" ({_MAX_READ_SHARE} times MAX_TILE_BYTES). Use smaller tiles or a larger scale"
                )
        if self._plan.warning:
            logger.warning("tile.compression_replaced", reason=self._plan.warning)

    def largest_payload(self, tile: ImageRegion, limit: int) -> int:
        """Return the bytes of the encoded ``tile``, where they depend only on its size; 0 for a compressed format.

        The header is not counted, except for a tile with nearly ``limit`` bytes of pixels, where the header decides.
        Such a tile is read and encoded. Raises TileEncodingError when it cannot be read.
        """
        if self._plan.compresses:
            return 0
        size = tile.size.width * tile.size.height * self.pixel_bytes
        return len(self.encode(tile)) if limit - _MAX_HEADER_BYTES < size <= limit else size

    def stored_bytes(self, tiles: Iterable[ImageRegion]) -> int:
        """Return the bytes of the image's file that hold the pixels of some tiles; see ``StoredBlocks``."""
        known_by, size = known_block_sizes(self._source), file_bytes(self._source)

        def stored(handle: ImageHandle) -> int:
            blocks = handle.companion("blocks", lambda dataset: StoredBlocks(dataset, known_by, size))
            return blocks.bytes_of(self._pixels.block_read(handle, tile) for tile in tiles)

        return self._source.read(stored)

    @property
    def warning(self) -> str | None:
        """A sentence for the user where tiles are written with another compression than requested."""
        return self._plan.warning

    @property
    def has_fixed_size(self) -> bool:
        """True where the length of an encoded tile follows from its size, because pixels are not compressed."""
        return not self._plan.compresses

    @property
    def pixel_bytes(self) -> int:
        """The bytes of a pixel, all bands of it."""
        return self._pixels.band_count * _bytes_per_pixel(self._pixels.data_type)

    @property
    def sample_bytes(self) -> int:
        """The bytes of a sample, which is one band of a pixel."""
        return _bytes_per_pixel(self._pixels.data_type)

    @property
    def pixel_kind(self) -> tuple[int, str, Samples]:
        """The number of bands of a tile, GDAL's name of their type, and other properties of their samples."""
        return self._pixels.band_count, self._pixels.data_type, self._pixels.samples

    def encode(self, tile: ImageRegion) -> EncodedTile:
        """Return the encoded pixels of ``tile``, which must lie inside the image.

        Raises TileEncodingError when the tile is outside, too large, damaged, or not supported by the format. Raises
        another ImageError when the image as a whole cannot be read, temporarily or permanently.
        """
        (row, col), (width, height) = tile
        is_inside = row >= 0 and col >= 0 and tile.right <= self._pixels.width and tile.bottom <= self._pixels.height
        if width <= 0 or height <= 0 or not is_inside:
            raise TileEncodingError(f"tile {tile.to_lists()} is not inside the image")
        self._refuse_large(f"tile {tile.to_lists()}", width * height)
        try:
            attempts = itertools.count()
            finish = self._source.read(lambda handle: self._read(handle, tile, is_again=next(attempts) > 0))
            return finish()
        except UNREADABLE as err:
            raise TileEncodingError(f"tile at {tuple(tile.origin)} cannot be read or encoded: {err}") from err

    @functools.cached_property
    def _plan(self) -> TilePlan:
        return plan_tile(self._tile_format, self._compression, *self.pixel_kind)

    @functools.cached_property
    def _ahead(self) -> ReadAhead:
        source = self._source
        # Here GDAL fetches all blocks of a read at once, and does not share them between handles.
        is_remote_tiff = source.driver_name == "GTIFF" and is_remote(source.location.gdal_path)
        tiles = self._tiles if is_remote_tiff and self._pixels.is_read_whole else ()
        return ReadAhead(tiles, source.band_count * _bytes_per_pixel(source.data_type), source.settings)

    @functools.cached_property
    def _locate(self) -> ImageToWorld | None:
        return self._pixels.locate()

    def _refuse_large(self, name: str, pixel_count: int) -> None:
        size = pixel_count * self.pixel_bytes
        limit = self._source.settings.max_tile_bytes
        if size > limit:
            raise TileEncodingError(
                f"{name} is too large: {size} bytes of pixels, the limit is {limit} (MAX_TILE_BYTES)"
            )

    def _read(self, handle: ImageHandle, tile: ImageRegion, is_again: bool) -> Callable[[], EncodedTile]:
        """Read the pixels of a tile; return the function that encodes them, without the handle, which takes longer."""
        if not is_again:  # the broken transfer may belong to another tile of the strip
            self._ahead.fetch(handle, tile)
        gdal.ErrorReset()
        if self._plan == _PLAIN_TIFF:
            return self._read_plain_tiff(handle, tile)
        pixels = self._pixels.read(handle, tile)
        if self._plan.driver == NUMPY:
            return partial(_numpy_file, pixels)
        if self._plan.driver in _PICTURE_DRIVERS and self._pixels.is_plain(handle):
            return partial(encode_picture, pixels, self._plan.driver)
        view = self._pixels.view(handle, tile, pixels, self._plan.driver)
        options = list(self._plan.options)
        if self._tile_format == ImageFormats.NITF:
            options += self._nitf_options(handle, tile)
            keep_rpc(view)
        return partial(self._by_gdal, view, options)

    def _read_plain_tiff(self, handle: ImageHandle, tile: ImageRegion) -> Callable[[], EncodedTile]:
        corner = self._pixels.corner(handle, tile)
        template = self._pixels.templates.find(tile.size)
        if template is not None:
            blank = template.blank(corner)
            self._pixels.read(handle, tile, into=blank.pixels)
            return lambda: blank.file
        view = self._pixels.view(handle, tile, self._pixels.read(handle, tile), self._plan.driver)

        def encode_and_learn() -> bytes:
            encoded = self._by_gdal(view, list(_PLAIN_TIFF.options))
            templates = self._pixels.templates
            if templates.wants(tile.size):
                templates.learn(tile, view.pixels, corner, encoded)
            return encoded

        return encode_and_learn

    def _by_gdal(self, view: Any, options: list[str]) -> bytes:
        """Return a tile's dataset as a file; raises RuntimeError where GDAL cannot write it."""
        with memory_folder() as folder, last_warning() as warning:
            path = f"{folder}/tile"
            try:
                copy = gdal.GetDriverByName(self._plan.driver).CreateCopy(path, view, strict=0, options=options)
            except RuntimeError as err:
                # GDAL's bindings lose the message of a driver that fails after it has made the file.
                last = f"; its last warning: {warning()}" if warning() else ""
                raise RuntimeError(str(err) or f"the {self._plan.driver} driver gives no reason{last}") from err
            copy.FlushCache()
            del copy  # closing writes the last bytes
            encoded = read_memory_file(path)
        if not encoded:
            raise RuntimeError("the encoder wrote an empty file")
        return encoded

    def _nitf_options(self, handle: ImageHandle, tile: ImageRegion) -> list[str]:
        source, options = self._source, list[str]()
        if self._pixels.has_sar_document:
            max_xml_bytes = source.settings.max_xml_bytes
            document = handle.companion("sar", lambda dataset: SarDocument.of(dataset, max_xml_bytes))
            options = document.options_for(tile, source.band_count)
        is_sar = bool(options)
        kept = [item for item in header_options(source.header.metadata) if not (is_sar and item.startswith("ICAT="))]
        return [*options, *kept, *corner_options(self._locate, tile)]


def encode_picture(pixels: npt.NDArray[Any], driver: str) -> bytes:
    """Return pixels of (rows, columns, bands), 1, 3 or 4 bands of one or two bytes, as a PNG or JPEG file.

    OpenCV takes a third of the time that GDAL takes: the same pixels, and JPEG of the same quality.
    """
    conversion = _TO_OPENCV[pixels.shape[2]]
    picture = pixels if conversion is None else cv2.cvtColor(pixels, conversion)
    if driver == "PNG":
        is_done, encoded = cv2.imencode(".png", picture)
    else:
        is_done, encoded = cv2.imencode(".jpg", picture, [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY])
    if not is_done:
        raise TileEncodingError(f"the {driver} encoder refuses {pixels.shape} pixels of {pixels.dtype}")
    return encoded.tobytes()


def _numpy_file(pixels: npt.NDArray[Any]) -> EncodedTile:
    file = io.BytesIO()
    np.save(file, pixels, allow_pickle=False)
    return file.getbuffer()


def _bytes_per_pixel(data_type: str) -> int:
    return int(gdal.GetDataTypeSize(gdal.GetDataTypeByName(data_type))) // 8
