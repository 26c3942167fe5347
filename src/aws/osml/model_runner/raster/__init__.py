"""The only package that imports GDAL: opens images with credentials, encodes tiles, maps pixels to the Earth."""

from aws.osml.model_runner.exceptions import ImageBreaksOffError, ImageUnreachableError

from .elevation import open_elevation_model
from .georeference import extents, georeference_of, image_to_world, is_quick, world_to_image
from .handle_pool import AwsKeys
from .image_source import ImageSource, open_image
from .overview_picture import overview_picture, overview_pixels, place_grid, preview_picture
from .pixel_size import pixel_size_m
from .pixels import decode_tile, read_window, write_geotiff
from .preparation import Preparation
from .settings import RasterSettings, configure_gdal
from .source_metadata import source_metadata
from .stored_blocks import BlockSizes, file_bytes, known_block_sizes
from .tile_encoder import TileEncoder
from .tile_pixels import prepare

__all__ = [
    "AwsKeys",
    "BlockSizes",
    "ImageBreaksOffError",
    "ImageSource",
    "ImageUnreachableError",
    "Preparation",
    "RasterSettings",
    "TileEncoder",
    "configure_gdal",
    "decode_tile",
    "extents",
    "file_bytes",
    "georeference_of",
    "image_to_world",
    "is_quick",
    "known_block_sizes",
    "open_elevation_model",
    "open_image",
    "overview_picture",
    "overview_pixels",
    "pixel_size_m",
    "place_grid",
    "prepare",
    "preview_picture",
    "read_window",
    "source_metadata",
    "world_to_image",
    "write_geotiff",
]
