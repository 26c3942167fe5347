"""Small sound images of every kind that people have, and the same files damaged."""

import random
import struct
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from osgeo import gdal, osr

from raster_files import UTM_31N, pattern, rpc_metadata, write_image, write_sicd

Writer = Callable[[Path], object]

SIDE = 160
_EDGES = (0, 1, 0x7F, 0x80, 0xFF, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)
# Headers lie at the beginning, or for a TIFF where its directory was written: at the end.
_HEADER_BYTES = 2048


def sound_images() -> Mapping[str, Writer]:
    """Return how each image is written, by file name."""
    return dict(_pixels()) | dict(_places())


def _image(dtype: Any = np.uint8, bands: int = 1, driver: str = "GTiff", *options: str, **place: Any) -> Writer:
    return lambda path: write_image(path, pattern(bands, SIDE, SIDE, dtype), driver, options, **place)


def _pixels() -> Iterator[tuple[str, Writer]]:
    for dtype in ("uint8", "int8", "int16", "uint16", "int32", "uint32", "float32", "float64", "complex64"):
        yield f"{dtype}.tif", _image(dtype) if dtype != "int8" else _signed_bytes
    for compress in ("LZW", "DEFLATE", "PACKBITS", "ZSTD", "LERC"):
        yield f"{compress.lower()}.tif", _image(np.uint16, 1, "GTiff", f"COMPRESS={compress}")
        yield f"tiled-{compress.lower()}.tif", _image(np.uint16, 3, "GTiff", f"COMPRESS={compress}", "TILED=YES")
    yield "jpeg.tif", _image(np.uint8, 3, "GTiff", "COMPRESS=JPEG", "TILED=YES", "PHOTOMETRIC=YCBCR")
    for bits in (1, 2, 4, 7, 12, 15):
        dtype = np.uint8 if bits <= 8 else np.uint16
        yield f"bits-{bits}.tif", _image(dtype, 1, "GTiff", f"NBITS={bits}")
    yield "bigtiff.tif", _image(np.uint8, 1, "GTiff", "BIGTIFF=YES")
    yield "big-endian.tif", _image(np.uint16, 1, "GTiff", "ENDIANNESS=BIG")
    yield "bands.tif", _image(np.uint8, 12, "GTiff", "INTERLEAVE=BAND")
    yield "alpha.tif", _image(np.uint8, 4, "GTiff", "ALPHA=YES")
    yield "palette.tif", _palette
    yield "mask.tif", _mask
    yield "metadata.tif", _odd_metadata
    for bands in (1, 3, 4):
        yield f"{bands}.png", _image(np.uint8, bands, "PNG")
    yield "wide.png", _image(np.uint16, 1, "PNG")
    for bands in (1, 3):
        yield f"{bands}.jpg", _image(np.uint8, bands, "JPEG")
        yield f"{bands}.jp2", _image(np.uint8, bands, "JP2OpenJPEG", "QUALITY=100", "REVERSIBLE=YES")
    yield "wide.jp2", _image(np.uint16, 1, "JP2OpenJPEG", "QUALITY=100", "REVERSIBLE=YES", "BLOCKXSIZE=64")
    yield "exif.jpg", _broken_exif
    for compression in ("NC", "C3", "C8"):
        yield f"{compression.lower()}.ntf", _image(np.uint8, 1, "NITF", f"IC={compression}")
    yield "blocks.ntf", _image(np.uint16, 3, "NITF", "BLOCKXSIZE=64", "BLOCKYSIZE=64")


def _places() -> Iterator[tuple[str, Writer]]:
    yield "utm.tif", _image(geo_transform=UTM_31N, epsg=32631)
    yield "utm.ntf", _image(np.uint8, 1, "NITF", "ICORDS=N", geo_transform=UTM_31N, epsg=32631)
    yield "rpc.tif", _image(rpc=rpc_metadata(80.0, 80.0))
    yield "sicd.ntf", lambda path: write_sicd(path, SIDE, SIDE)
    yield "corners.ntf", _image(np.uint8, 1, "NITF", "ICORDS=G", gcps=(_corners(), 4326))
    yield "many-gcps.tif", _image(gcps=(_gcps([(x / 9, y / 9) for y in range(10) for x in range(10)]), 4326))
    yield "line-of-gcps.tif", _image(gcps=(_gcps([(x / 4, x / 4) for x in range(5)]), 4326))
    yield "antimeridian.tif", _image(geo_transform=(179.9, 0.002, 0.0, 10.0, 0.0, -0.002), epsg=4326)
    yield "0-to-360.tif", _image(geo_transform=(0.0, 360 / SIDE, 0.0, 90.0, 0.0, -180 / SIDE), epsg=4326)
    yield "beyond-the-pole.tif", _image(geo_transform=(0.0, 2.25, 0.0, 90.5, 0.0, -1.13125), epsg=4326)
    yield "mercator.tif", _image(geo_transform=(-20037508.0, 250000.0, 0.0, 20037508.0, 0.0, -250000.0), epsg=3857)
    yield "ease-grid.tif", _image(geo_transform=(-17367530.0, 217094.0, 0.0, 7314540.0, 0.0, -91431.0), epsg=6933)
    yield "polar.tif", _image(geo_transform=(-4e6, 5e4, 0.0, 4e6, 0.0, -5e4), epsg=3413)
    for name, text in {
        "geostationary": "+proj=geos +h=35785831 +lon_0=-75 +sweep=x +datum=WGS84",
        "mollweide": "+proj=moll +datum=WGS84",
        "orthographic": "+proj=ortho +lat_0=40 +lon_0=20 +datum=WGS84",
        "sinusoidal": "+proj=sinu +datum=WGS84",
        "moon": "+proj=longlat +R=1737400",
    }.items():
        yield f"{name}.tif", _projected(text)


def _gcps(places: list[tuple[float, float]]) -> list[Any]:
    """Return control points at fractions of the image, on a tenth of a degree that is bent a little."""
    return [
        gdal.GCP(3.0 + 0.1 * x + 0.002 * y * y, 48.0 - 0.1 * y + 0.001 * x * x, 0.0, x * SIDE, y * SIDE)
        for x, y in places
    ]


def _corners() -> list[Any]:
    """Return control points at the centres of the four corner pixels, as NITF has it, not a parallelogram."""
    near, far = 0.5, SIDE - 0.5
    places = [(3.0, 48.0, near, near), (3.1, 48.0, far, near), (3.08, 47.9, far, far), (3.02, 47.9, near, far)]
    return [gdal.GCP(longitude, latitude, 0.0, x, y) for longitude, latitude, x, y in places]


def _signed_bytes(path: Path) -> None:
    write_image(path, pattern(1, SIDE, SIDE), options=("PIXELTYPE=SIGNEDBYTE",))


def _palette(path: Path) -> None:
    write_image(path, pattern(1, SIDE, SIDE) % 16)
    dataset = gdal.Open(str(path), gdal.GA_Update)
    table = gdal.ColorTable()
    for entry in range(16):
        table.SetColorEntry(entry, (entry * 16, 255 - entry * 16, 128, 255))
    dataset.GetRasterBand(1).SetColorTable(table)
    dataset.FlushCache()


def _mask(path: Path) -> None:
    write_image(path, pattern(3, SIDE, SIDE))
    gdal.SetConfigOption("GDAL_TIFF_INTERNAL_MASK", "YES")
    dataset = gdal.Open(str(path), gdal.GA_Update)
    dataset.CreateMaskBand(gdal.GMF_PER_DATASET)
    dataset.GetRasterBand(1).GetMaskBand().WriteArray(np.full((SIDE, SIDE), 255, np.uint8))
    dataset.FlushCache()
    gdal.SetConfigOption("GDAL_TIFF_INTERNAL_MASK", None)


def _odd_metadata(path: Path) -> None:
    """Write texts that are no UTF-8 in place of others of the same length."""
    write_image(path, pattern(1, SIDE, SIDE))
    dataset = gdal.Open(str(path), gdal.GA_Update)
    dataset.SetMetadata({"KEYKEYKEY": "VALUEVALUE"})
    dataset.GetRasterBand(1).SetDescription("BANDBAND")
    dataset.FlushCache()
    del dataset
    body = path.read_bytes()
    for text in (b"KEYKEYKEY", b"VALUEVALUE", b"BANDBAND"):
        body = body.replace(text, b"\xe9" * len(text))
    path.write_bytes(body)


def _broken_exif(path: Path) -> None:
    write_image(path, pattern(3, SIDE, SIDE), "JPEG")
    body, exif = path.read_bytes(), b"Exif\0\0not a directory of tags"
    path.write_bytes(body[:2] + b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif + body[2:])


def _projected(text: str) -> Writer:
    """Return a writer of an image of the whole disk or world, corners off the Earth included."""

    def write(path: Path) -> None:
        write_image(path, pattern(1, SIDE, SIDE))
        dataset = gdal.Open(str(path), gdal.GA_Update)
        is_angular = "longlat" in text
        half, pixel = (160.0, 2.0) if is_angular else (1.8e7, 2.25e5)
        dataset.SetGeoTransform((-half, pixel, 0.0, half / (2 if is_angular else 1), 0.0, -pixel))
        dataset.SetProjection(_wkt_of(text))
        dataset.FlushCache()

    return write


def _wkt_of(text: str) -> str:
    reference = osr.SpatialReference()
    reference.ImportFromProj4(text)
    return str(reference.ExportToWkt())


def damaged(rng: random.Random, body: bytes) -> bytes:
    """Return a file with a few bytes changed, a part missing, or a part twice."""
    changed = bytearray(body)
    for _ in range(rng.choice((1, 1, 2, 4, 16))):
        match rng.randrange(6):
            case 0:
                changed[_place(rng, changed)] = rng.randrange(256)
            case 1:
                _write(changed, _place(rng, changed), rng.choice((">", "<")), rng.choice(_EDGES))
            case 2:
                start = _place(rng, changed)
                del changed[start : start + rng.choice((1, 4, 64, 1024))]
            case 3:
                start = _place(rng, changed)
                changed[start:start] = changed[start : start + rng.choice((1, 12, 256))]
            case 4:
                del changed[rng.randrange(len(changed)) :]
            case _:
                start = _place(rng, changed)
                changed[start : start + 16] = bytes(16)
        if len(changed) < 8:
            return bytes(changed) + bytes(8)
    return bytes(changed)


def _place(rng: random.Random, body: bytearray) -> int:
    """Return where to change a file: mostly in its headers."""
    count = len(body)
    match rng.randrange(4):
        case 0:
            return rng.randrange(count)
        case 1:
            return rng.randrange(max(0, count - _HEADER_BYTES), count)
        case _:
            return rng.randrange(min(count, _HEADER_BYTES))


def _write(body: bytearray, place: int, order: str, value: int) -> None:
    size = "B" if value < 256 else "H" if value < 65_536 else "I"
    packed = struct.pack(order + size, value)
    body[place : place + len(packed)] = packed
