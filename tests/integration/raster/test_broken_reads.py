"""Images in stores that break off: a whole image or a wait, and never wrong pixels, a lost header, or a failed tile."""

import itertools
import random

import numpy as np
import pytest
from aws.osml.photogrammetry import GeodeticWorldCoordinate
from osgeo import gdal

from aws.osml.model_runner.common.typing import ImageCoord, ImageDimensions, ImageRegion
from aws.osml.model_runner.exceptions import LoadImageException, NotAnImageError, TileEncodingError
from aws.osml.model_runner.raster import (
    ImageBreaksOffError,
    ImageUnreachableError,
    RasterSettings,
    TileEncoder,
    configure_gdal,
    open_elevation_model,
    open_image,
    write_geotiff,
)
from aws.osml.model_runner.raster.patient_reads import PatientReads
from aws.osml.model_runner.raster.transfers import TransferWatch
from range_server import Fault, RangeServer
from raster_files import UTM_31N, Place, pattern, place, rpc_metadata, write_image

SETTINGS = RasterSettings(http_retry_delay_s=0.001, read_retry_delay_s=0.001, http_stall_s=1, max_handles=2)
SIDE_PX, TILE_PX = 512, 128
UTM = {"geo_transform": UTM_31N, "epsg": 32631}
IMAGES = {
    "tiles.tif": ("GTiff", ("TILED=YES", "COMPRESS=DEFLATE", "BLOCKXSIZE=128", "BLOCKYSIZE=128"), UTM),
    "strips.tif": ("GTiff", (), UTM),
    "jpeg.tif": ("GTiff", ("TILED=YES", "COMPRESS=JPEG", "BLOCKXSIZE=128", "BLOCKYSIZE=128"), {"rpc": rpc_metadata()}),
    "plain.ntf": ("NITF", (), UTM),
    "jpeg.ntf": ("NITF", ("IC=C3",), {"rpc": rpc_metadata()}),
    "image.png": ("PNG", (), {}),
    "image.jpg": ("JPEG", (), {}),
    "image.jp2": ("JP2OpenJPEG", ("QUALITY=100", "REVERSIBLE=YES"), UTM),
}
RESET, CLOSED, SHORT = Fault(sent=3000), Fault(sent=3000, is_reset=False), Fault(sent=3000, is_announced=True)


@pytest.fixture(scope="module")
def contents(tmp_path_factory):
    """The files by name. Their pixels are noisy, so that they are long enough to be cut."""
    folder = tmp_path_factory.mktemp("images")
    noise = np.random.default_rng(0).integers(0, 32, (3, SIDE_PX, SIDE_PX), np.uint8)
    pixels = pattern(3, SIDE_PX, SIDE_PX) ^ noise
    files = {
        name: write_image(folder / name, pixels, driver, options, **georeference)
        for name, (driver, options, georeference) in IMAGES.items()
    }
    return {name: path.read_bytes() for name, path in files.items()}


@pytest.fixture(scope="module")
def running_store(contents):
    with RangeServer({f"/bucket/{name}": content for name, content in contents.items()}) as server:
        options = {
            "AWS_S3_ENDPOINT": server.url.removeprefix("http://"),
            "AWS_HTTPS": "NO",
            "AWS_VIRTUAL_HOSTING": "FALSE",
            "AWS_ACCESS_KEY_ID": "key",
            "AWS_SECRET_ACCESS_KEY": "secret",
        }
        configure_gdal(SETTINGS, {})
        for name, value in options.items():
            gdal.SetConfigOption(name, value)
        yield server
        for name in options:
            gdal.SetConfigOption(name, None)


@pytest.fixture
def store(running_store, contents):
    running_store.files.update({f"/bucket/{name}": content for name, content in contents.items()})
    running_store.faults = lambda _request: None
    running_store.requests.clear()
    return running_store


def in_store(store, name, file_system="s3"):
    root = f"/vsis3/bucket/{name}" if file_system == "s3" else f"/vsicurl/{store.url}/bucket/{name}"
    return Place(f"{file_system}://bucket/{name}", root)


def tile_at(row, col):
    return ImageRegion(ImageCoord(row, col), ImageDimensions(TILE_PX, TILE_PX))


TILES = [tile_at(row, col) for row in range(0, SIDE_PX, TILE_PX) for col in range(0, SIDE_PX, TILE_PX)]


def seen(source, tiles):
    """Return the header of a source and its encoded tiles, which must not depend on the network."""
    header = source.header
    facts = (header.metadata, header.geo_transform, header.etag, type(header.sensor_model))
    encoder = TileEncoder(source, "GTIFF", "NONE", tiles)
    return facts, [bytes(encoder.encode(tile)) for tile in tiles]


def opened_and_seen(where, tiles):
    source = open_image(where, SETTINGS)
    try:
        return seen(source, tiles)
    finally:
        source.close()


def at_request(number, fault):
    return lambda request: fault if request.number == number else None


# One break


@pytest.mark.parametrize("file_system", ["s3", "http"])
@pytest.mark.parametrize("name", IMAGES)
def test_read_succeeds_when_store_breaks_off_once(store, is_long, name, file_system):
    where, tiles = in_store(store, name, file_system), [tile_at(128, 128), tile_at(128, 256)]
    whole = opened_and_seen(where, tiles)
    healthy = len(store.requests)

    breaks = list(itertools.product(range(healthy), (RESET, CLOSED, SHORT, Fault(close=True), Fault(status=503))))
    for number, fault in breaks if is_long else random.Random(name + file_system).sample(breaks, 5):
        store.requests.clear()
        with store.failing(at_request(number, fault)):
            assert opened_and_seen(where, tiles) == whole, (number, fault)


@pytest.mark.parametrize("name", ["jpeg.tif", "image.jpg", "plain.ntf", "image.png"])
def test_piece_that_was_cut_is_not_kept_for_another_handle(store, name):
    where = in_store(store, name)
    whole = opened_and_seen(where, TILES)
    for sent in random.Random(name).sample(range(16 * 1024), 5):
        store.requests.clear()
        source = open_image(where, SETTINGS)
        first_read = len(store.requests)
        with store.failing(at_request(first_read, Fault(sent=sent, is_reset=False))):
            assert seen(source, TILES) == whole
        source.close()


def test_healthy_store_is_sent_no_request_more(store):
    """Opening takes the header and the version, reading what GDAL takes by itself."""
    for name, reading in (("tiles.tif", 3), ("strips.tif", 3), ("image.png", 6)):
        store.requests.clear()
        source = open_image(in_store(store, name), SETTINGS)
        opening = len(store.requests)
        seen(source, TILES)
        assert (opening, len(store.requests) - opening) == (2, reading), name
        source.close()


# More than one


@pytest.mark.parametrize("name", ["tiles.tif", "jpeg.ntf"])
def test_four_connections_closed_in_row_fail_no_tile(store, name):
    where = in_store(store, name)
    whole = opened_and_seen(where, TILES[:1])
    store.requests.clear()
    source = open_image(where, SETTINGS)
    first = len(store.requests)

    with store.failing(lambda request: Fault(close=True) if first <= request.number < first + 4 else None):
        assert seen(source, TILES[:1]) == whole


@pytest.mark.parametrize("name", ["tiles.tif", "strips.tif", "image.png"])
def test_one_break_in_twelve_fails_no_tile(store, name):
    where, chance = in_store(store, name), random.Random(3)
    whole = opened_and_seen(where, TILES)

    with store.failing(lambda request: RESET if request.method == "GET" and chance.random() < 1 / 12 else None):
        for _ in range(5):
            assert opened_and_seen(where, TILES) == whole


@pytest.mark.parametrize("file_system", ["s3", "http"])
@pytest.mark.parametrize(
    "fault", [Fault(status=503), Fault(close=True), Fault(wait_s=30)], ids=["503", "closed", "hung"]
)
def test_store_that_does_not_respond_is_waited_for(store, file_system, fault):
    where = in_store(store, "tiles.tif", file_system)
    whole = opened_and_seen(where, TILES[:2])
    source = open_image(where, RasterSettings(http_stall_s=1, read_retry_delay_s=0.001, read_patience_s=1.0))

    with store.failing(lambda _request: fault), pytest.raises(ImageUnreachableError) as caught:
        seen(source, TILES[:2])
    assert not isinstance(caught.value, ImageBreaksOffError)
    assert caught.value.can_retry

    assert seen(source, TILES[:2]) == whole


def test_read_waits_when_store_breaks_off_each_time(store):
    source = open_image(in_store(store, "tiles.tif"), SETTINGS)

    def cut(request):
        return RESET if request.method == "GET" and request.start > 0 else None

    with store.failing(cut), pytest.raises(ImageBreaksOffError, match="breaks off"):
        seen(source, TILES[:1])

    seen(source, TILES[:1])


def test_image_is_not_opened_with_half_header(store):
    def cut(request):
        return RESET if request.method == "GET" else None

    with store.failing(cut), pytest.raises(ImageUnreachableError):
        open_image(in_store(store, "tiles.tif"), SETTINGS)


# The file's own fault


@pytest.mark.parametrize("name", ["tiles.tif", "plain.ntf", "image.jpg", "jpeg.ntf"])
def test_only_tiles_that_are_missing_from_truncated_file_fail(store, contents, tmp_path, name):
    content = contents[name][: len(contents[name]) * 2 // 3]
    store.files[f"/bucket/{name}"] = content
    (tmp_path / name).write_bytes(content)
    failed = {}
    for where in (in_store(store, name), place(tmp_path / name)):
        source = open_image(where, SETTINGS)
        encoder = TileEncoder(source, "PNG", tiles=TILES)
        failed[where] = []
        for tile in TILES:
            try:
                encoder.encode(tile)
            except TileEncodingError:
                failed[where].append(tile)
        source.close()

    remote, local = failed.values()
    assert remote == local
    assert 0 < len(local) < len(TILES) or name != "tiles.tif"
    assert local


def test_file_that_is_no_image_is_refused_without_wait(store):
    store.files["/bucket/words.tif"] = b"these are words" * 100

    with pytest.raises(NotAnImageError):
        open_image(in_store(store, "words.tif"), SETTINGS, sleep=_never)
    with pytest.raises(LoadImageException, match="does not exist"):
        open_image(in_store(store, "none.tif"), SETTINGS, sleep=_never)


def test_read_reports_when_image_is_replaced(store, contents):
    source = open_image(in_store(store, "tiles.tif"), SETTINGS)
    store.files["/bucket/tiles.tif"] = contents["image.png"]
    source.refresh_credentials()

    with pytest.raises(LoadImageException, match="was replaced"):
        seen(source, TILES)


def _never(_seconds):
    raise AssertionError("there is nothing to wait for")


# Elevation


def test_elevation_that_cannot_be_read_now_is_not_taken_for_missing(store, tmp_path):
    heights = np.full((1, 101, 101), 70, np.float32)
    write_geotiff(tmp_path / "dem.tif", heights, (10.0, 1 / 101, 0, 21.0, 0, -1 / 101), 4326)
    dataset = gdal.Open(str(tmp_path / "dem.tif"), gdal.GA_Update)
    dataset.GetRasterBand(1).SetNoDataValue(-32768)
    del dataset
    store.files["/bucket/n20_e010_1arc_v3.tif"] = (tmp_path / "dem.tif").read_bytes()
    model = open_elevation_model("s3://bucket", settings=SETTINGS)
    here, sea = (GeodeticWorldCoordinate(np.radians([longitude, 20.5, 0.0])) for longitude in (10.5, 30.5))

    with store.failing(lambda _request: Fault(status=503)):
        with pytest.raises(ImageUnreachableError):
            model.set_elevation(here)
        with pytest.raises(ImageUnreachableError):
            model.describe_region(here)

    assert model.set_elevation(here)
    assert here.elevation == pytest.approx(70.0)
    assert not model.set_elevation(sea)


# The rules by themselves


HEADERS = ("HTTP/1.1 206 Partial Content\r\n", "Content-Range: bytes 0-99/500\r\n")


@pytest.mark.parametrize(
    ("messages", "is_cut", "has_fault"),
    [
        (["CURL_INFO_TEXT: Connection #0 to host bucket left intact"], False, False),
        (["CURL_INFO_TEXT: Couldn't find host bucket in the (nil) file; using defaults"], False, False),
        (["CURL_INFO_TEXT: Recv failure: Connection reset by peer"], True, True),
        (["CURL_INFO_TEXT: transfer closed with 97 bytes remaining to read"], True, True),
        (["CURL_INFO_TEXT: Operation too slow. Less than 1 bytes/sec transferred the last 15 seconds"], True, True),
        (["CURL_INFO_TEXT: Operation timed out after 60001 milliseconds with 5 out of 9 bytes received"], True, True),
        (["CURL_INFO_TEXT: OpenSSL SSL_read: Connection reset by peer, errno 104"], True, True),
        (["CURL_INFO_TEXT: GnuTLS recv error (-110): The TLS connection was non-properly terminated."], True, True),
        (["CURL_INFO_TEXT: HTTP/2 stream 3 was not closed cleanly: INTERNAL_ERROR (err 2)"], True, True),
        ([f"CURL_INFO_HEADER_IN: {line}" for line in (*HEADERS, "Content-Length: 100\r\n")], False, False),
        ([f"CURL_INFO_HEADER_IN: {line}" for line in (*HEADERS, "content-length: 60\r\n")], True, True),
        (["CURL_INFO_HEADER_IN: HTTP/1.1 503 Slow Down"], False, True),
        (["CURL_INFO_HEADER_IN: HTTP/2 429"], False, True),
        (["CURL_INFO_HEADER_IN: HTTP/1.1 404 Not Found"], False, False),
        (["CURL_INFO_HEADER_IN: HTTP/1.1 416 Range Not Satisfiable"], False, False),
    ],
)
def test_messages_of_libcurl_report_whether_bytes_are_missing(messages, is_cut, has_fault):
    watch = TransferWatch()
    for message in messages:
        watch.record(gdal.CE_Debug, message)

    assert bool(watch.fault) is has_fault
    for is_header, is_refused in ((False, is_cut), (True, has_fault)):
        if is_refused:
            with pytest.raises(RuntimeError, match="broke off"):
                watch.check(is_header)
        else:
            watch.check(is_header)


def test_waits_between_attempts_double_and_end_with_patience():
    waits, clock = [], iter(range(0, 1000, 6))

    def broken(transfers):
        transfers.record(gdal.CE_Debug, "CURL_INFO_TEXT: Recv failure: Connection reset by peer")
        transfers.check()

    def reads(**changes):
        settings = RasterSettings(read_retry_delay_s=1.0, **changes)
        store = {"check_store": lambda: None, "sleep": waits.append, "clock": lambda: next(clock)}
        return PatientReads("/vsis3/bucket/key", "s3://bucket/key", settings, **store)

    with pytest.raises(ImageBreaksOffError):
        reads(read_patience_s=1000.0).read(broken)
    assert [0.5 * 2**n <= wait <= 1.0 * 2**n for n, wait in enumerate(waits)] == [True] * 3

    waits.clear()
    with pytest.raises(ImageBreaksOffError):
        reads(read_patience_s=10.0).read(broken)
    assert len(waits) == 1
