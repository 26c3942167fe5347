"""Tiles: the same pixels in every format that can hold them, really compressed, and true about where they are."""

import itertools
import re
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import structlog
from aws.osml.gdal import NITFDESAccessor
from osgeo import gdal

from aws.osml.model_runner.common.typing import ImageCompression, ImageFormats, ImageRegion
from aws.osml.model_runner.exceptions import TileEncodingError
from aws.osml.model_runner.raster import (
    RasterSettings,
    TileEncoder,
    decode_tile,
    image_to_world,
    open_image,
    read_window,
    write_geotiff,
)
from aws.osml.model_runner.raster.tile_formats import plan_tile
from raster_files import (
    SAMPLES,
    UTM_31N,
    pattern,
    place,
    rpc_metadata,
    sample_path,
    sicd_document,
    write_image,
    write_sicd,
)

SETTINGS = RasterSettings()
TILE = ImageRegion.of(((30, 50), (100, 80)))
TILE_CORNER = np.array([50.0, 30.0])
EVERY_PAIR = list(itertools.product(ImageFormats, ImageCompression))
LOSSLESS = {
    ("NITF", "NONE"),
    ("GTIFF", "NONE"),
    ("GTIFF", "LZW"),
    ("GTIFF", "J2K"),
    *(("PNG", compression) for compression in ImageCompression),
}


@pytest.fixture(autouse=True)
def nothing_left_in_memory():
    yield
    assert not gdal.ReadDir("/vsimem/")


def cut(pixels, tile):
    return pixels[:, tile.origin.row : tile.bottom, tile.origin.col : tile.right]


def opened_tile(tmp_path, encoded, name="tile"):
    (tmp_path / name).write_bytes(encoded)
    return gdal.Open(str(tmp_path / name))


# Pixels


def refusal_of(encoder):
    """Return the encoder's objection to an image, or None."""
    try:
        encoder.check()
    except TileEncodingError as err:
        with pytest.raises(TileEncodingError):
            encoder.encode(TILE)
        return str(err)
    return None


@pytest.mark.parametrize(
    ("bands", "dtype"),
    [
        (1, np.uint8),
        (2, np.uint8),
        (3, np.uint8),
        (4, np.uint8),
        (5, np.uint8),
        (1, np.uint16),
        (3, np.uint16),
        (8, np.uint16),
        (2, np.int16),
        (1, np.int32),
        (1, np.uint32),
        (1, np.float32),
        (1, np.float64),
        (1, np.complex64),
        (1, np.complex128),
    ],
)
def test_format_holds_pixels_or_names_another_that_does(tmp_path, bands, dtype):
    pixels = pattern(bands, 150, 200, dtype)
    source = open_image(place(write_image(tmp_path / "image.tif", pixels)), SETTINGS)
    held = 0
    for tile_format, compression in EVERY_PAIR:
        encoder = TileEncoder(source, tile_format, compression)
        if refusal := refusal_of(encoder):
            assert {tile_format.value, source.data_type, "GTIFF/NONE"} <= set(re.split(r"[ ;]+", refusal))
            continue
        decoded = decode_tile(encoder.encode(TILE))
        assert decoded.shape == (bands, 80, 100)
        assert decoded.dtype == pixels.dtype
        if (tile_format, compression) in LOSSLESS:
            assert np.array_equal(decoded, cut(pixels, TILE)), (tile_format, compression)
        held += 1
    assert held >= 3


@pytest.mark.parametrize("name", SAMPLES)
@pytest.mark.parametrize("tile_format", ImageFormats)
def test_samples_are_encoded_in_each_format_that_holds_them(name, tile_format):
    source = open_image(place(sample_path(name)), SETTINGS)
    corner = ImageRegion.of(((source.height - 256, source.width - 200), (200, 256)))
    encoder = TileEncoder(source, tile_format, "NONE")
    encoder.check()

    decoded = decode_tile(encoder.encode(corner))

    expected = read_window(source, corner)
    assert decoded.shape == expected.shape
    if tile_format == ImageFormats.JPEG:
        assert np.abs(decoded.astype(int) - expected).mean() < 16
    else:
        assert np.array_equal(decoded, expected)


@pytest.mark.parametrize(
    ("tile_format", "compression"), [("NITF", "JPEG"), ("NITF", "J2K"), ("GTIFF", "JPEG"), ("JPEG", "NONE")]
)
def test_lossy_tiles_look_like_image(tmp_path, tile_format, compression):
    rows, columns = np.mgrid[0:256, 0:256]
    smooth = np.stack([rows // 2 + columns // 4, columns // 2, 255 - rows // 2]).astype(np.uint8)
    source = open_image(place(write_image(tmp_path / "image.tif", smooth)), SETTINGS)

    decoded = decode_tile(TileEncoder(source, tile_format, compression).encode(TILE))

    assert np.abs(decoded.astype(int) - cut(smooth, TILE)).max() <= 12


def test_paletted_pixels_keep_their_numbers(tmp_path):
    pixels = pattern(1, 100, 100)
    path = tmp_path / "palette.tif"
    dataset = gdal.GetDriverByName("GTiff").Create(str(path), 100, 100, 1, gdal.GDT_Byte)
    colors = gdal.ColorTable()
    for index in range(256):
        colors.SetColorEntry(index, (index, 255 - index, 0, 255))
    dataset.GetRasterBand(1).SetColorTable(colors)
    dataset.WriteArray(pixels[0])
    del dataset
    source = open_image(place(path), SETTINGS)

    for tile_format in (ImageFormats.PNG, ImageFormats.GTIFF, ImageFormats.NITF):
        tile = ImageRegion.of(((0, 0), (100, 100)))
        assert np.array_equal(decode_tile(TileEncoder(source, tile_format).encode(tile)), pixels), tile_format


# Compression


@pytest.mark.parametrize(
    ("tile_format", "compression", "domain", "item", "expected"),
    [
        ("GTIFF", "NONE", "IMAGE_STRUCTURE", "COMPRESSION", None),
        ("GTIFF", None, "IMAGE_STRUCTURE", "COMPRESSION", None),
        ("GTIFF", "LZW", "IMAGE_STRUCTURE", "COMPRESSION", "LZW"),
        ("GTIFF", "J2K", "IMAGE_STRUCTURE", "COMPRESSION", "LZW"),
        ("GTIFF", "JPEG", "IMAGE_STRUCTURE", "COMPRESSION", "JPEG"),
        ("NITF", "NONE", "", "NITF_IC", "NC"),
        ("NITF", "JPEG", "", "NITF_IC", "C3"),
        ("NITF", "J2K", "", "NITF_IC", "C8"),
        ("NITF", "LZW", "", "NITF_IC", "C8"),
    ],
)
def test_tiles_have_requested_compression(tmp_path, tile_format, compression, domain, item, expected):
    plain = np.repeat(pattern(3, 200, 20), 15, axis=2)
    source = open_image(place(write_image(tmp_path / "image.tif", plain)), SETTINGS)
    tile = ImageRegion.of(((0, 0), (300, 200)))

    encoded = TileEncoder(source, tile_format, compression).encode(tile)

    assert opened_tile(tmp_path, encoded).GetMetadataItem(item, domain) == expected
    is_small = len(encoded) < 0.7 * 3 * 200 * 300
    assert is_small == (expected not in (None, "NC"))


@pytest.mark.parametrize("dtype", [np.float32, np.int32])
def test_jpeg_2000_is_replaced_when_it_cannot_hold_type(tmp_path, dtype):
    source = open_image(place(write_image(tmp_path / "image.tif", pattern(1, 200, 300, dtype))), SETTINGS)
    encoder = TileEncoder(source, "NITF", "J2K")
    with structlog.testing.capture_logs() as logs:
        encoder.check()

    assert opened_tile(tmp_path, encoder.encode(TILE)).GetMetadataItem("NITF_IC") == "NC"
    assert [entry["event"] for entry in logs] == ["tile.compression_replaced"]


def test_replaced_compression_is_warned_of_once_per_image_and_not_per_tile(tmp_path):
    source = open_image(place(write_image(tmp_path / "image.tif", pattern(1, 200, 300))), SETTINGS)
    encoder = TileEncoder(source, "NITF", "LZW")
    with structlog.testing.capture_logs() as logs:
        encoder.check()
        encoder.encode(TILE)
        encoder.encode(TILE)

    assert [entry["event"] for entry in logs if entry["log_level"] == "warning"] == ["tile.compression_replaced"]


@pytest.mark.parametrize(
    ("tile_format", "compression", "bands", "data_type", "options"),
    [
        ("NITF", None, 3, "Byte", ("IC=NC",)),
        ("NITF", "J2K", 12, "UInt16", ("IC=C8",)),
        ("NITF", "LZW", 1, "Float64", ("IC=NC",)),
        ("GTIFF", "JPEG", 7, "Byte", ("COMPRESS=JPEG", "INTERLEAVE=BAND")),
        ("PNG", "JPEG", 4, "UInt16", ("ZLEVEL=1",)),
        ("JPEG", "LZW", 1, "Byte", ()),
    ],
)
def test_plans_of_formats(tile_format, compression, bands, data_type, options):
    plan = plan_tile(ImageFormats(tile_format), compression and ImageCompression(compression), bands, data_type)

    assert plan.options == options


@pytest.mark.parametrize(
    ("tile_format", "compression", "bands", "data_type", "alternatives"),
    [
        ("JPEG", "NONE", 1, "UInt16", "NITF/NONE or NITF/J2K or GTIFF/NONE or GTIFF/LZW or PNG"),
        ("JPEG", "NONE", 4, "Byte", "NITF/NONE or NITF/J2K or GTIFF/NONE or GTIFF/LZW or GTIFF/JPEG or PNG"),
        ("PNG", "NONE", 5, "Byte", "NITF/NONE or NITF/J2K or GTIFF/NONE or GTIFF/LZW or GTIFF/JPEG"),
        ("PNG", "NONE", 1, "Int16", "NITF/NONE or NITF/J2K or GTIFF/NONE or GTIFF/LZW"),
        ("NITF", "JPEG", 2, "Byte", "NITF/NONE or NITF/J2K or GTIFF/NONE or GTIFF/LZW or GTIFF/JPEG or PNG"),
        ("NITF", "NONE", 1, "CInt16", "GTIFF/NONE or GTIFF/LZW"),
        ("GTIFF", "JPEG", 1, "Float32", "NITF/NONE or GTIFF/NONE or GTIFF/LZW"),
    ],
)
def test_refusal_names_allowed_formats(tile_format, compression, bands, data_type, alternatives):
    with pytest.raises(TileEncodingError) as caught:
        plan_tile(ImageFormats(tile_format), ImageCompression(compression), bands, data_type)

    assert str(caught.value).endswith(f"cannot hold {bands} band(s) of {data_type}; use {alternatives}")


def test_unknown_formats_and_compressions_are_errors_at_once(tmp_path):
    source = open_image(place(write_image(tmp_path / "image.tif", pattern(1, 20, 20))), SETTINGS)
    with pytest.raises(ValueError, match="BMP"):
        TileEncoder(source, "BMP")
    with pytest.raises(ValueError, match="ZSTD"):
        TileEncoder(source, "GTIFF", "ZSTD")


# Refused images


@pytest.mark.parametrize("bounds", [((0, 0), (301, 10)), ((195, 0), (10, 10)), ((-1, 0), (10, 10)), ((0, 0), (0, 10))])
def test_tiles_outside_image_are_refused(tmp_path, bounds):
    source = open_image(place(write_image(tmp_path / "image.tif", pattern(1, 200, 300))), SETTINGS)

    with pytest.raises(TileEncodingError, match="not inside"):
        TileEncoder(source, "GTIFF").encode(ImageRegion.of(bounds))


def test_tiles_of_too_many_bytes_are_refused(tmp_path):
    path = write_image(tmp_path / "image.tif", pattern(3, 200, 300, np.uint16))
    source = open_image(place(path), RasterSettings(max_tile_bytes=100 * 100 * 6))

    assert TileEncoder(source, "GTIFF").encode(ImageRegion.of(((0, 0), (100, 100))))
    with pytest.raises(TileEncodingError, match="60600 bytes of pixels, the limit is 60000"):
        TileEncoder(source, "GTIFF").encode(ImageRegion.of(((0, 0), (101, 100))))


@pytest.mark.parametrize("tile_format", ImageFormats)
def test_pixels_that_cannot_be_read_fail_tile_and_leave_no_file(tmp_path, tile_format):
    whole = write_image(tmp_path / "image.tif", pattern(3, 400, 400)).read_bytes()
    (tmp_path / "half.tif").write_bytes(whole[: len(whole) // 2])
    source = open_image(place(tmp_path / "half.tif"), SETTINGS)
    encoder = TileEncoder(source, tile_format)

    with pytest.raises(TileEncodingError, match="cannot be read or encoded"):
        encoder.encode(ImageRegion.of(((300, 0), (100, 100))))
    assert encoder.encode(ImageRegion.of(((0, 0), (100, 100))))


# Threads


@pytest.mark.parametrize("tile_format", ImageFormats)
def test_threads_get_requested_tiles(tmp_path, tile_format):
    pixels = pattern(3, 512, 512)
    path = write_image(tmp_path / "image.tif", pixels, "GTiff", ("TILED=YES", "COMPRESS=DEFLATE"), UTM_31N, 32631)
    source = open_image(place(path), RasterSettings(max_handles=3))
    encoder = TileEncoder(source, tile_format)
    tiles = [ImageRegion.of(((row, col), (96, 64))) for row in range(0, 448, 64) for col in range(0, 416, 52)]
    alone = [encoder.encode(tile) for tile in tiles]

    with ThreadPoolExecutor(6) as threads:
        together = list(threads.map(encoder.encode, tiles))

    assert together == alone
    if tile_format != ImageFormats.JPEG:
        for tile, encoded in zip(tiles, together, strict=True):
            assert np.array_equal(decode_tile(encoded), cut(pixels, tile))


def test_threads_do_not_mix_documents_of_sar_tiles(tmp_path):
    source = open_image(place(write_sicd(tmp_path / "sicd.ntf", 300, 400)), RasterSettings(max_handles=3))
    encoder = TileEncoder(source, "NITF")
    tiles = [ImageRegion.of(((row, col), (40, 30))) for row in range(0, 270, 30) for col in range(0, 360, 40)]

    with ThreadPoolExecutor(6) as threads:
        encoded = list(threads.map(encoder.encode, tiles))

    for tile, content in zip(tiles, encoded, strict=True):
        document = sar_document(opened_tile(tmp_path, content))
        assert f"FirstRow>{tile.origin.row}<" in document
        assert f"FirstCol>{tile.origin.col}<" in document


# Georeference of tiles


def test_gtiff_tiles_keep_georeference_of_their_pixels(tmp_path):
    path = write_image(tmp_path / "image.tif", pattern(1, 200, 300), geo_transform=UTM_31N, epsg=32631)
    source = open_image(place(path), SETTINGS)
    (tmp_path / "tile.tif").write_bytes(TileEncoder(source, "GTIFF").encode(TILE))
    tile = open_image(place(tmp_path / "tile.tif"), SETTINGS)

    inside = np.array([[0.0, 0.0], [10.0, 20.0], [100.0, 80.0]])

    expected = image_to_world(source.sensor_model)(inside + TILE_CORNER)
    np.testing.assert_allclose(image_to_world(tile.sensor_model)(inside), expected, atol=1e-12)


@pytest.mark.parametrize("tile_format", ["PNG", "JPEG"])
def test_png_and_jpeg_tiles_carry_pixels_only(tmp_path, tile_format):
    path = write_image(tmp_path / "image.tif", pattern(1, 200, 300), geo_transform=UTM_31N, epsg=32631)

    encoded = TileEncoder(open_image(place(path), SETTINGS), tile_format).encode(TILE)

    tile = opened_tile(tmp_path, encoded)
    assert tile.GetGeoTransform(can_return_null=True) is None
    assert not tile.GetProjection()
    assert tile.GetFileList() == [str(tmp_path / "tile")]
    assert b"UTM" not in encoded


def test_nitf_tiles_carry_their_corners_to_second_of_arc(tmp_path):
    path = write_image(
        tmp_path / "image.tif", pattern(1, 4000, 4000), geo_transform=(10.0, 0.001, 0, 20.0, 0, -0.001), epsg=4326
    )
    source = open_image(place(path), SETTINGS)

    encoded = TileEncoder(source, "NITF").encode(ImageRegion.of(((1000, 2000), (500, 250))))

    tile = opened_tile(tmp_path, encoded)
    assert tile.GetMetadataItem("NITF_ICORDS") == "G"
    expected = "190000N0120000E190000N0123000E184500N0123000E184500N0120000E"
    assert tile.GetMetadataItem("NITF_IGEOLO") == expected


def test_nitf_tiles_beyond_antimeridian_and_equator(tmp_path):
    path = write_image(
        tmp_path / "image.tif", pattern(1, 100, 100), geo_transform=(179.5, 0.01, 0, 0.5, 0, -0.01), epsg=4326
    )

    encoded = TileEncoder(open_image(place(path), SETTINGS), "NITF").encode(ImageRegion.of(((0, 0), (100, 100))))

    assert opened_tile(tmp_path, encoded).GetMetadataItem("NITF_IGEOLO") == (
        "003000N1793000E003000N1793000W003000S1793000W003000S1793000E"
    )


def test_nitf_tiles_without_georeference_claim_none(tmp_path):
    source = open_image(place(write_image(tmp_path / "image.png", pattern(1, 200, 300), "PNG")), SETTINGS)

    tile = opened_tile(tmp_path, TileEncoder(source, "NITF").encode(TILE))

    assert tile.GetGeoTransform(can_return_null=True) is None
    assert not (tile.GetMetadataItem("NITF_IGEOLO") or "").strip()


def test_nitf_tiles_keep_title_category_and_date(tmp_path):
    fields = ("FTITLE=harbour at noon", "ICAT=MS", "IDATIM=20260317121500")
    path = write_image(tmp_path / "image.ntf", pattern(1, 200, 300), "NITF", fields)

    tile = opened_tile(tmp_path, TileEncoder(open_image(place(path), SETTINGS), "NITF").encode(TILE))

    found = [tile.GetMetadataItem(f"NITF_{name}") for name in ("FTITLE", "ICAT", "IDATIM")]
    assert found == ["harbour at noon", "MS", "20260317121500"]


@pytest.mark.parametrize("driver", ["NITF", "GTiff"])
@pytest.mark.parametrize("tile_format", ["NITF", "GTIFF"])
@pytest.mark.parametrize("origin", [(0, 0), (100, 150), (290, 390), (310, 150), (100, 450), (520, 700)])
def test_camera_of_tile_agrees_with_camera_of_image(tmp_path, driver, tile_format, origin):
    """Also past the camera's own offset (300, 400), where GDAL alone drops the RPC00B."""
    path = write_image(tmp_path / "image", pattern(1, 600, 800), driver, rpc=rpc_metadata())
    source = open_image(place(path), SETTINGS)
    tile = ImageRegion.of((origin, (100, 80)))

    part = opened_tile(tmp_path, TileEncoder(source, tile_format).encode(tile))

    whole = gdal.Open(str(path))
    assert part.GetMetadata("RPC")["HEIGHT_OFF"] == whole.GetMetadata("RPC")["HEIGHT_OFF"]
    ground = [
        (10.0 + lon, 20.0 + lat, height) for lon in (-0.004, 0.006) for lat in (-0.007, 0.003) for height in (0, 400)
    ]
    seen = gdal.Transformer(whole, None, ["METHOD=RPC"]).TransformPoints(1, ground)[0]
    seen_in_tile = gdal.Transformer(part, None, ["METHOD=RPC"]).TransformPoints(1, ground)[0]
    shifted = np.array(seen)[:, :2] - [origin[1], origin[0]]
    np.testing.assert_allclose(np.array(seen_in_tile)[:, :2], shifted, atol=0.02)


def test_camera_finer_than_rpc00b_is_kept_in_nitf_tiles(tmp_path):
    """GDAL alone rounds latitude to four decimals and lines to whole numbers: five metres and half a pixel."""
    fine = rpc_metadata(line_offset=300.4, sample_offset=399.7)
    fine |= {"LAT_OFF": "20.00004567", "LONG_OFF": "9.99995432", "LAT_SCALE": "0.01002345", "HEIGHT_OFF": "100.7"}
    path = write_image(tmp_path / "image.tif", pattern(1, 600, 800), rpc=fine)

    part = opened_tile(tmp_path, TileEncoder(open_image(place(path), SETTINGS), "NITF").encode(TILE))

    ground = [(10.002, 20.003, 250.0), (9.996, 19.997, 0.0)]
    seen = np.array(gdal.Transformer(gdal.Open(str(path)), None, ["METHOD=RPC"]).TransformPoints(1, ground)[0])
    in_tile = np.array(gdal.Transformer(part, None, ["METHOD=RPC"]).TransformPoints(1, ground)[0])
    np.testing.assert_allclose(in_tile[:, :2], seen[:, :2] - [50, 30], atol=0.02)


def test_camera_that_cannot_be_written_is_left_out_with_warning(tmp_path):
    path = write_image(tmp_path / "image.tif", pattern(1, 200, 300), rpc=rpc_metadata() | {"HEIGHT_SCALE": "50000"})
    source = open_image(place(path), SETTINGS)
    with structlog.testing.capture_logs() as logs:
        encoded = TileEncoder(source, "NITF").encode(TILE)

    assert not opened_tile(tmp_path, encoded).GetMetadata("RPC")
    assert "tile.rpc_dropped" in [entry["event"] for entry in logs]


# SAR


def sar_document(dataset):
    accessor = NITFDESAccessor(dataset.GetMetadata("xml:DES"))
    (segment,) = accessor.get_segments_by_name("XML_DATA_CONTENT")
    return accessor.extract_desdata_xml(segment)


def test_sicd_tile_locates_pixels_as_its_image_does(tmp_path):
    source = open_image(place(write_sicd(tmp_path / "sicd.ntf", 300, 400)), SETTINGS)
    (tmp_path / "tile.ntf").write_bytes(TileEncoder(source, "NITF").encode(TILE))
    tile = open_image(place(tmp_path / "tile.ntf"), SETTINGS)

    inside = np.array([[0.0, 0.0], [33.0, 21.0], [100.0, 80.0]])

    assert (tile.band_count, tile.data_type) == (2, "Float32")
    expected = image_to_world(source.sensor_model)(inside + TILE_CORNER)
    np.testing.assert_allclose(image_to_world(tile.sensor_model)(inside), expected, atol=1e-7)
    assert tile.header.metadata["NITF_ICAT"] == "SAR"
    with tile.dataset() as dataset:
        assert [dataset.GetRasterBand(band).GetMetadataItem("NITF_ISUBCAT") for band in (1, 2)] == ["I", "Q"]


def test_sicd_document_keeps_its_words(tmp_path):
    source = open_image(place(write_sicd(tmp_path / "sicd.ntf", 300, 400)), SETTINGS)

    document = sar_document(opened_tile(tmp_path, TileEncoder(source, "NITF").encode(TILE)))

    assert r"test\made" in document
    assert "NumRows>80<" in document
    assert "NumCols>100<" in document


def test_tiles_of_other_formats_carry_parts_of_complex_pixels(tmp_path):
    source = open_image(place(write_sicd(tmp_path / "sicd.ntf", 300, 400)), SETTINGS)

    decoded = decode_tile(TileEncoder(source, "GTIFF", "LZW").encode(TILE))

    assert np.array_equal(decoded, cut(pattern(2, 300, 400, np.float32), TILE))


def test_sar_document_that_is_attack_is_never_parsed(tmp_path):
    bomb = '<!DOCTYPE x [<!ENTITY a "lol"><!ENTITY b "&a;&a;&a;&a;&a;&a;">]><SICD xmlns="urn:SICD:1.2.1">&b;</SICD>'
    document = gdal.EscapeString("01U" + " " * 166 + "0000" + bomb, gdal.CPLES_BackslashQuotable)
    path = write_image(
        tmp_path / "bomb.ntf", pattern(2, 50, 60, np.float32), "NITF", (f"DES=XML_DATA_CONTENT={document}",)
    )
    with structlog.testing.capture_logs() as logs:
        source = open_image(place(path), SETTINGS)
        encoded = TileEncoder(source, "NITF").encode(ImageRegion.of(((0, 0), (60, 50))))

    assert source.sensor_model is None
    assert {"image.georeference_unreadable", "tile.sar_document_unreadable"} <= {entry["event"] for entry in logs}
    assert not opened_tile(tmp_path, encoded).GetMetadata("xml:DES")


def test_sar_document_beyond_limit_is_never_parsed(tmp_path):
    path = write_sicd(tmp_path / "sicd.ntf", 60, 80)

    source = open_image(place(path), RasterSettings(max_xml_bytes=300))

    assert source.sensor_model is None
    assert TileEncoder(source, "NITF").encode(ImageRegion.of(((0, 0), (60, 50))))
    assert len(sicd_document(60, 80)) > 300


# Arrays


def test_bytes_that_are_no_image_are_error():
    with pytest.raises(TileEncodingError, match="cannot be read as an image"):
        decode_tile(b"not an image")


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
def test_geotiff_has_pixels_blocks_and_georeference_of_array(tmp_path, dtype):
    pixels = pattern(3, 700, 1100, dtype)
    write_geotiff(tmp_path / "scene.tif", pixels, UTM_31N, 32631)

    source = open_image(place(tmp_path / "scene.tif"), SETTINGS)

    assert np.array_equal(read_window(source, ImageRegion.of(((0, 0), (1100, 700)))), pixels)
    assert source.block_size == (512, 512)
    dataset = gdal.Open(str(tmp_path / "scene.tif"))
    assert dataset.GetGeoTransform() == UTM_31N
    assert dataset.GetMetadataItem("COMPRESSION", "IMAGE_STRUCTURE") == "DEFLATE"
    place_of_corner = image_to_world(source.sensor_model)(np.array([[0.0, 0.0]]))
    np.testing.assert_allclose(place_of_corner[0, :2], [3.0, 48.7526], atol=1e-3)


def test_geotiff_has_no_georeference_when_none_is_given(tmp_path):
    write_geotiff(tmp_path / "plain.tif", pattern(1, 20, 30), compression="NONE")

    assert open_image(place(tmp_path / "plain.tif"), SETTINGS).sensor_model is None
