"""Sound inputs from which a fuzzer sets out, where they can be made: headers of images, and coordinate systems."""

import random
import struct
import tempfile
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import numpy as np
from osgeo import gdal
from pyproj import CRS

from raster_files import UTM_31N, rpc_metadata, write_image, write_sicd
from security.hostile_images import CRS_TEXTS, PLAIN_CRS

_EPSG_CODES = (4326, 32631, 27700, 3035, 3413, 5514, 6933, 7405, 4979)
_PROJ_TEXTS = (
    "+proj=geos +sweep=x +lon_0=-75 +h=35786023 +x_0=0 +y_0=0 +ellps=GRS80 +units=m +no_defs",
    "+proj=ob_tran +o_proj=longlat +o_lon_p=-162 +o_lat_p=39.25 +lon_0=180 +to_meter=0.0174532925199433",
    "+proj=merc +a=6378137 +b=6378137 +lat_ts=0 +lon_0=0 +x_0=0 +y_0=0 +k=1 +units=m +nadgrids=@null +wktext",
)
# Beside or inside what names a file in a coordinate system.
_WORDS = (
    *(b'EXTENSION["PROJ4","+proj=utm +zone=31 +nadgrids=/a"]', b',EXTENSION["PROJ4_GRIDS","/a"]', b"+nadgrids=/a"),
    *(b'PARAMETERFILE["x","/a"]', b"+geoidgrids=/a ", b"+init=epsg:4326 ", b"ESRI PE String = ", b"@null", b"PROJ4"),
    *(b'"', b"[", b"]", b"(", b")", b",", b"=", b"|", b"+", b" ", b"\n", b"\t", b"\0", b"\xa0", b"\xff", b'""', b"//"),
)
_SIDE = 8
_LONLAT = (3.0, 0.01, 0.0, 48.0, 0.0, -0.01)


@cache
def seeds(target: str) -> list[bytes]:
    """Return the generated inputs of a target; none for a target that has a corpus alone."""
    makers = {"headers": headers, "crs": crs_texts}
    return list(makers[target]()) if target in makers else []


def headers() -> Iterator[bytes]:
    """Yield files of a few pixels, of every kind whose header is read before GDAL opens it."""
    pixels = np.zeros((1, _SIDE, _SIDE), np.uint8)
    points = [gdal.GCP(3.0 + x / 100, 48.0 - y / 100, 0.0, float(x), float(y)) for x in (0, 8) for y in (0, 8)]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "image"
        for options in ((), ("BIGTIFF=YES",), ("ENDIANNESS=BIG",), ("ENDIANNESS=BIG", "BIGTIFF=YES")):
            yield write_image(path, pixels, "GTiff", options, UTM_31N, 32631).read_bytes()
        yield write_image(path, pixels, "GTiff", gcps=(points, 4326)).read_bytes()
        yield write_image(path, pixels, "GTiff", rpc=rpc_metadata(4.0, 4.0)).read_bytes()
        for compression in ("NC", "C8"):
            options = (f"IC={compression}", "ICORDS=G")
            yield write_image(path, pixels, "NITF", options, _LONLAT, 4326).read_bytes()
        write_sicd(path, _SIDE, _SIDE)
        yield path.read_bytes()
        yield write_image(path, pixels, "JP2OpenJPEG", ("GMLJP2=YES", "GeoJP2=YES"), UTM_31N, 32631).read_bytes()
    yield of_tags(
        [(42112, b'<GDALMetadata><Item name="a" domain="b">c</Item></GDALMetadata>'), (34737, PLAIN_CRS.encode())]
    )
    yield of_many_segments(20)


def crs_texts() -> Iterator[bytes]:
    """Yield citations of GeoTIFFs: plain citations and citations that name files."""
    for code in _EPSG_CODES:
        for form in ("WKT1_GDAL", "WKT1_ESRI", "WKT2_2019"):
            try:
                yield f"UTM|ESRI PE String = {CRS.from_epsg(code).to_wkt(form)}|".encode()
            except Exception:  # noqa: BLE001 - the form has no words for this system, and pyproj no class for that
                continue
    for text in _PROJ_TEXTS:
        wkt = f'PROJCS["x",GEOGCS["y"],PROJECTION["z"],EXTENSION["PROJ4","{text}"]]'
        yield f"ESRI PE String = {wkt}|".encode()
    for text in CRS_TEXTS.values():
        yield f"ESRI PE String = {text}|".encode()


def of_tags(tags: list[tuple[int, bytes]]) -> bytes:
    """Return a TIFF of these tags alone, texts all, which may be there again and again; equal texts are stored once."""
    places: dict[bytes, int] = {}
    body, start = b"", 8 + 2 + 12 * len(tags) + 4
    for _, text in tags:
        if text not in places:
            places[text] = start + len(body)
            body += text
    entries = b"".join(struct.pack("<HHII", number, 2, len(text), places[text]) for number, text in tags)
    return struct.pack("<2sHIH", b"II", 42, 8, len(tags)) + entries + bytes(4) + body


def of_many_segments(count: int) -> bytes:
    """Return a NITF whose image segments, without a length, all begin with the same JP2 of ``count`` boxes."""
    boxes = struct.pack(">I4s", 8, b"free") * count
    jp2 = b"\x00\x00\x00\x0cjP  \r\n\x87\n" + boxes
    segments = f"{count:03d}".encode() + b"0" * 16 * count
    head = b"NITF02.10".ljust(354, b" ")
    start = len(head) + 6 + len(segments)
    return head + f"{start:06d}".encode() + segments + jp2


def damaged(target: str, rng: random.Random) -> bytes:
    """Return a seed with a few bytes changed, and pieces of other seeds put in."""
    sound = seeds(target)
    body = bytearray(rng.choice(sound))
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(len(body))
        match rng.randrange(4):
            case 0:
                body[at] = rng.randrange(256)
            case 1:
                body[at : at + 4] = struct.pack("<I", rng.choice((0, 1, 0x7FFFFFFF, 0xFFFFFFFF)))
            case 2:
                word = rng.choice(_WORDS)
                body[at : at + rng.choice((0, len(word)))] = word
            case _:
                piece = rng.choice(sound)
                start = rng.randrange(len(piece))
                body[at:at] = piece[start : start + rng.randint(1, 40)]
    return bytes(body)


def damaged_seeds(target: str, count: int) -> Iterator[bytes]:
    """Yield damaged seeds, the same ones each time."""
    rng = random.Random(1)
    for _ in range(count):
        yield damaged(target, rng)
