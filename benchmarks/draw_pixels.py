"""Draws the pictures of docs/how-to/prepare-pixels.md: a tile with the image's own pixels, and a prepared tile.

``.venv/bin/python benchmarks/draw_pixels.py`` makes eight bands of 16 bits from the demo's harbour and cuts both tiles.
"""

import os
import tempfile
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from aws.osml.model_runner.api.image_url import parse_image_url
from aws.osml.model_runner.api.processor_input import ProcessorInput
from aws.osml.model_runner.common.typing import ImageRegion
from aws.osml.model_runner.local.demo.scene import EPSG, GEOTRANSFORM, generate_scene
from aws.osml.model_runner.raster import (
    ImageSource,
    Preparation,
    RasterSettings,
    TileEncoder,
    configure_gdal,
    decode_tile,
    open_image,
    prepare,
    write_geotiff,
)

IMAGES = Path(__file__).resolve().parents[1] / "docs" / "images"
SIDE_PX = 2400
# The places of red, green and blue among the eight bands of the image, from 1.
BANDS = [5, 3, 2]
STRETCH = {"type": "PERCENTILE", "lower": 1, "upper": 99.5, "per": "ALL"}
ASKED = {"bands": BANDS, "stretch": STRETCH, "pixelType": "UINT8", "gsd": 2}
CORNER, TILE_PX = (260, 900), 800


def eight_bands(picture: NDArray[np.uint8]) -> NDArray[np.uint16]:
    """Return 11-bit samples as a satellite delivers them: colours between other bands, haze, and little contrast."""
    rng = np.random.default_rng(5)
    grey = picture.mean(axis=2)
    bands = np.stack([grey * gain for gain in (0.6, 1.0, 1.0, 0.9, 1.0, 0.8, 1.3, 1.1)])
    for colour, band in enumerate(BANDS):
        bands[band - 1] = picture[:, :, colour]
    noise = rng.normal(0, 2, bands.shape)
    return (180 + 2.2 * bands + noise).clip(1, 2047).astype(np.uint16)


def tile_of(source: ImageSource, tile: ImageRegion, preparation: Preparation | None) -> NDArray[np.uint8]:
    """Return the first three bands of a tile in 8 bits; samples of 11 bits lose their last three."""
    encoded = TileEncoder(source, "GTIFF", preparation=preparation).encode(tile)
    pixels = decode_tile(bytes(encoded))[:3]
    shown = pixels if pixels.dtype == np.uint8 else pixels >> 3
    return np.moveaxis(shown, 0, 2).astype(np.uint8)


def main() -> None:
    """Write both pictures."""
    configure_gdal(RasterSettings(), os.environ)
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "harbour.tif"
        write_geotiff(path, eight_bands(generate_scene(SIDE_PX).pixels), GEOTRANSFORM, EPSG, "NONE")
        source = open_image(parse_image_url(str(path), {"file"}), RasterSettings())
        preparation = prepare(source, ProcessorInput.model_validate(ASKED))
        row, col = CORNER
        whole = ImageRegion.of((CORNER, (TILE_PX, TILE_PX)))
        half = ImageRegion.of(((row // 2, col // 2), (TILE_PX // 2, TILE_PX // 2)))
        for name, tile, prepared in (("before", whole, None), ("after", half, preparation)):
            picture = Image.fromarray(tile_of(source, tile, prepared))
            target = IMAGES / f"pixels-{name}.png"
            picture.save(target, optimize=True)
            print(f"{target}: {picture.width} x {picture.height}")
        source.close()


if __name__ == "__main__":
    main()
