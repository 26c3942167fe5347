"""Tiles of images with unusual samples, palettes, places and texts: refused when planned, or true to the image."""

import io
import itertools
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import structlog
from osgeo import gdal
from PIL import Image

from aws.osml.model_runner.common.typing import ImageCompression, ImageFormats, ImageRegion
from aws.osml.model_runner.exceptions import TileEncodingError
from aws.osml.model_runner.raster import RasterSettings, TileEncoder, decode_tile, open_image
from raster_files import UTM_31N, pattern, place, wkt, write_image

SIDE = 64
TILE = ImageRegion.of(((8, 16), (40, 32)))
LOSSLESS = [
    *itertools.product([ImageFormats.NITF], [ImageCompression.NONE]),
    *itertools.product([ImageFormats.GTIFF], [ImageCompression.NONE, ImageCompression.LZW]),
    (ImageFormats.PNG, ImageCompression.NONE),
]
LOSSY = [
    (ImageFormats.NITF, ImageCompression.JPEG),
    (ImageFormats.NITF, ImageCompression.J2K),
    (ImageFormats.GTIFF, ImageCompression.JPEG),
    (ImageFormats.JPEG, ImageCompression.NONE),
]


def write_samples(path: Path, gdal_type: int, bits: int | None, palette: int, bands: int, signed: bool) -> Path:
    """Write an image whose samples go up to 2^bits - 1, with a palette of so many colours on its first band."""
    options = [*([f"NBITS={bits}"] if bits else []), *(["PIXELTYPE=SIGNEDBYTE"] if signed else [])]
    options += ["PHOTOMETRIC=PALETTE"] if palette and bands == 1 else []
    image = gdal.GetDriverByName("GTiff").Create(str(path), SIDE, SIDE, bands, gdal_type, options)
    highest = 2 ** min(bits or gdal.GetDataTypeSize(gdal_type), 16)
    values = (np.arange(SIDE * SIDE).reshape(SIDE, SIDE) * 37) % highest
    for number in range(1, bands + 1):
        image.GetRasterBand(number).WriteArray(values)
    if palette:
        table = gdal.ColorTable()
        for index in range(palette):
            table.SetColorEntry(index, (index % 256, 10, 20, 255))
        image.GetRasterBand(1).SetColorTable(table)
    image.FlushCache()
    return path


SAMPLES = [
    (gdal.GDT_Byte, None, 0, 1, True),
    *((gdal.GDT_Byte, bits, 0, 1, False) for bits in (1, 2, 4, 7)),
    *((gdal.GDT_UInt16, bits, 0, 3, False) for bits in (9, 12, 15)),
    (gdal.GDT_UInt32, 20, 0, 1, False),
    (gdal.GDT_Float32, 16, 0, 1, False),
    (gdal.GDT_Byte, None, 256, 1, False),
    (gdal.GDT_Byte, 1, 2, 1, False),
    (gdal.GDT_Byte, 4, 16, 1, False),
    (gdal.GDT_UInt16, None, 65536, 1, False),
]


def test_every_format_holds_unusual_samples_or_is_refused_when_planned(tmp_path: Path) -> None:
    for samples in SAMPLES:
        path = write_samples(tmp_path / "image.tif", *samples)
        source = open_image(place(path), RasterSettings())
        expected = gdal.Open(str(path)).ReadAsArray(16, 8, 40, 32).reshape(source.band_count, 32, 40)
        held = set()
        for pair in [*LOSSLESS, *LOSSY]:
            encoder = TileEncoder(source, *pair)
            if refusal := refusal_of(encoder):
                assert "GTIFF/NONE" in refusal.split("; use ")[1], (samples, pair)
                continue
            encoded = encoder.encode(TILE)
            held.add(pair)
            if pair in LOSSLESS:
                assert np.array_equal(decode_tile(encoded).reshape(expected.shape), expected), (samples, pair)
                assert reads_the_same_elsewhere(bytes(encoded), pair[0], expected, samples[2]), (samples, pair)
        assert set(LOSSLESS[1:3]) <= held, samples
        source.close()


def refusal_of(encoder: TileEncoder) -> str:
    try:
        encoder.check()
    except TileEncodingError as err:
        return str(err)
    return ""


def reads_the_same_elsewhere(encoded: bytes, tile_format: ImageFormats, expected: Any, palette: int) -> bool:
    """Return whether Pillow and OpenCV read the pixels of a tile of one band, where they read its kind at all."""
    is_usual = expected.dtype in (np.uint8, np.uint16) and len(expected) == 1 and palette <= 256
    if tile_format == ImageFormats.NITF or not is_usual:
        return True
    with Image.open(io.BytesIO(encoded)) as picture:
        is_equal = np.array_equal(np.asarray(picture), expected[0])
        # OpenCV makes colours of a palette.
        is_index = picture.mode == "P"
    return is_equal and (is_index or np.array_equal(cv2.imdecode(np.frombuffer(encoded, np.uint8), -1), expected[0]))


@pytest.mark.parametrize(
    ("samples", "pair", "named"),
    [
        (SAMPLES[0], (ImageFormats.PNG, "NONE"), "1 band(s) of Int8; use GTIFF/NONE or GTIFF/LZW"),
        (SAMPLES[0], (ImageFormats.GTIFF, "JPEG"), "1 band(s) of Int8; use GTIFF/NONE or GTIFF/LZW"),
        (
            SAMPLES[1],
            (ImageFormats.NITF, "J2K"),
            "with a palette of 2 colours; use NITF/NONE or GTIFF/NONE or GTIFF/LZW or PNG",
        ),
        (SAMPLES[-1], (ImageFormats.PNG, "NONE"), "palette of 65536 colours; use NITF/NONE or GTIFF/NONE or GTIFF/LZW"),
    ],
)
def test_refusal_names_samples_and_suitable_formats(
    tmp_path: Path, samples: tuple[Any, ...], pair: tuple[str, str], named: str
) -> None:
    source = open_image(place(write_samples(tmp_path / "image.tif", *samples)), RasterSettings())
    with pytest.raises(TileEncodingError) as caught:
        TileEncoder(source, *pair).check()
    assert str(caught.value).endswith(named)


def test_number_of_bits_stays_known(tmp_path: Path) -> None:
    source = open_image(place(write_samples(tmp_path / "i.tif", gdal.GDT_UInt16, 12, 0, 1, False)), RasterSettings())
    (tmp_path / "tile.tif").write_bytes(TileEncoder(source, "GTIFF").encode(TILE))
    tile = gdal.Open(str(tmp_path / "tile.tif"))
    band = tile.GetRasterBand(1)
    assert band.GetMetadataItem("NBITS") == "12"
    assert band.GetMetadataItem("NBITS", "IMAGE_STRUCTURE") is None


def test_pixel_beyond_its_palette_fails_no_png(tmp_path: Path) -> None:
    path = write_samples(tmp_path / "image.tif", gdal.GDT_Byte, None, 16, 1, False)
    source = open_image(place(path), RasterSettings())
    assert np.array_equal(decode_tile(TileEncoder(source, "PNG").encode(TILE))[0], pixels_of(path))


def pixels_of(path: Path) -> Any:
    return gdal.Open(str(path)).ReadAsArray(16, 8, 40, 32)


# Places that GDAL's NITF writer refuses


def control_points(*places: tuple[float, float, float, float]) -> tuple[list[Any], int]:
    return [gdal.GCP(x, y, 0.0, column, row) for column, row, x, y in places], 4326


MARS = (
    'PROJCS["Mars",GEOGCS["GCS_Mars",DATUM["D_Mars",SPHEROID["Mars",3396190,169.89]],PRIMEM["Reference_Meridian",0],'
    'UNIT["degree",0.0174532925199433]],PROJECTION["Equirectangular"],UNIT["metre",1]]'
)
PLACES: dict[str, dict[str, Any]] = {
    "no CRS, metres": {"geo_transform": UTM_31N},
    "another planet": {"geo_transform": (0.0, 1.0, 0.0, 0.0, 0.0, -1.0), "system": MARS},
    "two control points": {"gcps": control_points((0, 0, 10, 20), (60, 60, 11, 19))},
    "control points within": {
        "gcps": control_points((5, 5, 10, 20), (50, 5, 11, 20), (50, 50, 11, 19), (5, 50, 10, 19))
    },
    "a lattice of control points": {
        "gcps": control_points(*((x, y, 10 + x / 99 + y / 999, 20 - y / 99) for x in (0, 32, 64) for y in (0, 32, 64)))
    },
    "a CRS without geotransform": {"epsg": 32631},
    "off the Earth": {"geo_transform": (-5.5e6, 1.7e5, 0.0, 5.5e6, 0.0, -1.7e5), "system": "+proj=geos +h=35785831"},
}


@pytest.mark.parametrize("name", PLACES)
def test_nitf_tiles_are_written_at_any_location(tmp_path: Path, name: str) -> None:
    georeference = dict(PLACES[name])
    system = georeference.pop("system", None)
    path = write_image(tmp_path / "image.tif", pattern(1, SIDE, SIDE), **georeference)
    if system:
        from osgeo import osr

        reference = osr.SpatialReference()
        reference.SetFromUserInput(system)
        dataset = gdal.Open(str(path), gdal.GA_Update)
        dataset.SetSpatialRef(reference)
        dataset.FlushCache()
        del dataset
    source = open_image(place(path), RasterSettings())
    assert np.array_equal(decode_tile(TileEncoder(source, "NITF").encode(TILE))[0], pixels_of(path))


def test_every_tile_of_oblique_nitf_is_written(tmp_path: Path) -> None:
    """Corners to the second of arc are a parallelogram in some tiles and none in others."""
    side = 1200
    corners = ((0.5, 0.5, 5.0, 52.004), (1199.5, 0.5, 5.0061, 52.0043), (1199.5, 1199.5, 5.0073, 52.0))
    points = control_points(*corners, (0.5, 1199.5, 4.9991, 51.9997))
    path = write_image(tmp_path / "oblique.ntf", pattern(1, side, side), "NITF", ("ICORDS=G",), gcps=points)
    source = open_image(place(path), RasterSettings())
    tiles = [ImageRegion.of(((row, col), (200, 200))) for row in range(0, side, 200) for col in range(0, side, 200)]
    encoder = TileEncoder(source, "NITF")
    encoded = [encoder.encode(tile) for tile in tiles]
    (tmp_path / "tile.ntf").write_bytes(encoded[7])
    assert gdal.Open(str(tmp_path / "tile.ntf")).GetMetadataItem("NITF_IGEOLO").startswith("5200")
    assert len(encoded) == 36


# Texts that are not UTF-8


def test_texts_of_another_encoding_fail_no_tile(tmp_path: Path) -> None:
    path = write_image(tmp_path / "image.tif", pattern(1, SIDE, SIDE), geo_transform=UTM_31N, epsg=32631)
    dataset = gdal.Open(str(path), gdal.GA_Update)
    dataset.SetMetadataItem("NOTE_QQQ", "caf_e")
    dataset.GetRasterBand(1).SetDescription("band_name")
    dataset.GetRasterBand(1).SetUnitType("unit_x")
    del dataset
    raw = path.read_bytes()
    for old, new in ((b"caf_e", b"caf\xe9e"), (b"band_name", b"band\xfcname"), (b"unit_x", b"unit\xfcx")):
        assert old in raw
        raw = raw.replace(old, new)
    path.write_bytes(raw.replace(b"NOTE_QQQ", b"NOTE\xfcQQQ"))
    source = open_image(place(path), RasterSettings())
    assert source.header.metadata["NOTE\xfcQQQ"] == "caf\xe9e"
    for tile_format in ImageFormats:
        assert TileEncoder(source, tile_format).encode(TILE)
    (tmp_path / "tile.tif").write_bytes(TileEncoder(source, "GTIFF").encode(TILE))
    tile = gdal.Open(str(tmp_path / "tile.tif"))
    band = tile.GetRasterBand(1)
    assert (band.GetDescription(), band.GetUnitType()) == ("band\xfcname", "unit\xfcx")


def test_picture_with_broken_exif_is_read_without_metadata(tmp_path: Path) -> None:
    path = write_image(tmp_path / "image.jpg", pattern(1, SIDE, SIDE), "JPEG")
    body, exif = path.read_bytes(), b"Exif\0\0II*\0" + b"\xff" * 20
    exif = exif.replace(b"II*\0", b"eseq")
    path.write_bytes(body[:2] + b"\xff\xe1" + (len(exif) + 2).to_bytes(2, "big") + exif + body[2:])
    with pytest.raises(RuntimeError):
        gdal.Open(str(path)).GetMetadata()
    source = open_image(place(path), RasterSettings())
    assert source.header.metadata == {}
    assert decode_tile(TileEncoder(source, "PNG").encode(TILE)).shape == (1, 32, 40)


def test_tile_that_gdal_refuses_without_word_has_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_image(tmp_path / "image.tif", pattern(1, SIDE, SIDE), **PLACES["two control points"])
    monkeypatch.setattr("aws.osml.model_runner.raster.tile_pixels.tile_view", placed_view)
    monkeypatch.setattr("aws.osml.model_runner.raster.tile_encoder.keep_rpc", lambda view: None)
    reason = "the NITF driver gives no reason; its last warning: Cannot format a valid RPC00B"
    with pytest.raises(TileEncodingError, match=reason):
        TileEncoder(open_image(place(path), RasterSettings()), "NITF").encode(TILE)


def placed_view(dataset: Any, tile: ImageRegion, _data_type: str, _pixels: Any, _driver: str) -> Any:
    """Return a view with a place and a camera that no NITF holds."""
    view = gdal.GetDriverByName("MEM").Create("", *tile.size, 1)
    view.SetGCPs(dataset.GetGCPs(), wkt(4326))
    view.SetMetadata({"LINE_OFF": "-5"}, "RPC")
    return view


def test_file_of_several_images_reports_that_first_is_read(tmp_path: Path) -> None:
    path = write_image(tmp_path / "pages.tif", pattern(1, SIDE, SIDE))
    memory = gdal.Open(str(write_image(tmp_path / "two.tif", pattern(1, 32, 32))))
    gdal.GetDriverByName("GTiff").CreateCopy(str(path), memory, options=["APPEND_SUBDATASET=YES"]).FlushCache()
    with structlog.testing.capture_logs() as logs:
        assert open_image(place(path), RasterSettings()).width == SIDE
        open_image(place(tmp_path / "two.tif"), RasterSettings())
    (event,) = [log for log in logs if log["event"] == "image.first_of_several"]
    assert (event["images"], event["image"]) == (2, f"file://{path}")
