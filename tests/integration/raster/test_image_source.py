"""Opening images: allowed files, errors for others, signatures, and the use of handles."""

import http.server
import os
import re
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from osgeo import gdal

from aws.osml.model_runner.common.typing import ImageRegion
from aws.osml.model_runner.exceptions import ImageBreaksOffError, LoadImageException, TileEncodingError
from aws.osml.model_runner.raster import (
    AwsKeys,
    ImageUnreachableError,
    RasterSettings,
    TileEncoder,
    configure_gdal,
    decode_tile,
    open_image,
    read_window,
)
from raster_files import SAMPLES, UTM_31N, Place, pattern, place, sample_path, write_image

SETTINGS = RasterSettings(http_max_retries=0, http_timeout_s=5, read_retry_delay_s=0.01)
TOP_LEFT = ImageRegion.of(((0, 0), (16, 16)))


@pytest.fixture(autouse=True, scope="module")
def configured_gdal():
    configure_gdal(SETTINGS, {})


@pytest.fixture
def tiff(tmp_path):
    return write_image(tmp_path / "image.tif", pattern(3, 200, 300), geo_transform=UTM_31N, epsg=32631)


# Headers


@pytest.mark.parametrize("name", SAMPLES)
def test_samples_open_with_their_size_bands_and_type(name):
    source = open_image(place(sample_path(name)), SETTINGS)

    header = (source.width, source.height, source.band_count, source.data_type, source.extension)

    assert header == SAMPLES[name]
    source.close()


@pytest.mark.parametrize(
    ("driver", "suffix", "bands", "dtype", "driver_name", "extension", "type_name"),
    [
        ("GTiff", "tif", 5, np.uint16, "GTIFF", "TIFF", "UInt16"),
        ("GTiff", "tif", 1, np.complex64, "GTIFF", "TIFF", "CFloat32"),
        ("NITF", "ntf", 1, np.float32, "NITF", "NITF", "Float32"),
        ("PNG", "png", 4, np.uint8, "PNG", "PNG", "Byte"),
        ("JPEG", "jpg", 3, np.uint8, "JPEG", "JPEG", "Byte"),
        ("JP2OpenJPEG", "jp2", 1, np.uint16, "JP2OPENJPEG", "JP2", "UInt16"),
    ],
)
def test_formats_are_known_by_their_names(tmp_path, driver, suffix, bands, dtype, driver_name, extension, type_name):
    path = write_image(tmp_path / f"image.{suffix}", pattern(bands, 64, 96, dtype), driver)

    source = open_image(place(path), SETTINGS)

    assert (source.width, source.height, source.band_count) == (96, 64, bands)
    assert (source.driver_name, source.extension, source.data_type) == (driver_name, extension, type_name)


def test_block_size_and_metadata_are_read_once(tmp_path):
    tiles = ("TILED=YES", "BLOCKXSIZE=128", "BLOCKYSIZE=64")
    path = write_image(tmp_path / "b.tif", pattern(1, 300, 300), "GTiff", tiles, UTM_31N, 32631)

    source = open_image(place(path), SETTINGS)

    assert source.block_size == (128, 64)
    assert source.header.metadata["AREA_OR_POINT"] == "Area"


def test_etag_of_file_changes_with_file(tiff):
    first = open_image(place(tiff), SETTINGS).etag
    os.utime(tiff, ns=(1, 2))

    assert first is not None
    assert open_image(place(tiff), SETTINGS).etag != first


# Refused files


def refusal(path, settings=SETTINGS):
    with pytest.raises(LoadImageException) as caught:
        open_image(place(path), settings)
    return str(caught.value)


def test_missing_file_is_reported(tmp_path):
    assert refusal(tmp_path / "none.tif").endswith("none.tif does not exist")
    assert refusal("\0").endswith("does not exist")


def test_folders_and_devices_are_no_files(tmp_path):
    os.mkfifo(tmp_path / "pipe.tif")

    assert "not a regular file" in refusal(tmp_path)
    assert "not a regular file" in refusal(tmp_path / "pipe.tif")
    assert "not a regular file" in refusal("/dev/zero")


@pytest.mark.parametrize("path", ["/vsimem/x.tif", "/vsizip/a.zip/b.tif", "/vsistdin/", "/vsisubfile/0_9,/etc/hosts"])
def test_virtual_paths_are_no_files(path):
    assert "is not a file" in refusal(path)


def test_text_is_no_image(tmp_path):
    (tmp_path / "words.tif").write_text("these are words")

    message = refusal(tmp_path / "words.tif")

    assert "supported format" in message
    assert "GTiff, NITF, PNG, JPEG, JP2OpenJPEG" in message


@pytest.mark.parametrize("name", ["image.vrt", "image.tif"])
def test_vrt_is_refused_under_any_name_and_reads_no_file(tmp_path, tiff, name):
    (tmp_path / name).write_text(
        '<VRTDataset rasterXSize="10" rasterYSize="10"><VRTRasterBand dataType="Byte" band="1">'
        f'<SimpleSource><SourceFilename relativeToVRT="0">{tiff}</SourceFilename><SourceBand>1</SourceBand>'
        "</SimpleSource></VRTRasterBand></VRTDataset>"
    )

    assert "gdal_translate -of COG" in refusal(tmp_path / name)


@pytest.mark.parametrize("path", ["<VRTDataset/>", "WMS:http://example.invalid", "GTIFF_DIR:1:/etc/hosts"])
def test_connection_strings_are_refused_before_gdal_sees_them(path):
    assert "does not exist" in refusal(path)


@pytest.mark.parametrize(
    ("limits", "named"),
    [
        ({"max_side_px": 250}, "width in pixels is 300, the limit is 250"),
        ({"max_pixels": 59_999}, "number of pixels is 60000"),
        ({"max_bands": 2}, "number of bands is 3"),
        ({"max_block_bytes": 100}, "block in bytes"),
    ],
)
def test_limits_are_named(tiff, limits, named):
    assert named in refusal(tiff, RasterSettings(**limits))


def test_sparse_bomb_is_refused_by_its_header(tmp_path):
    options = ["TILED=YES", "SPARSE_OK=TRUE", "BIGTIFF=YES", "BLOCKXSIZE=16384", "BLOCKYSIZE=16384"]
    gdal.GetDriverByName("GTiff").Create(str(tmp_path / "bomb.tif"), 1_100_000, 500_000, 3, gdal.GDT_Byte, options)
    gdal.GetDriverByName("GTiff").Create(str(tmp_path / "block.tif"), 40_000, 40_000, 3, gdal.GDT_Byte, options)
    started = time.perf_counter()

    assert "width in pixels" in refusal(tmp_path / "bomb.tif")
    assert "block in bytes" in refusal(tmp_path / "block.tif")
    assert time.perf_counter() - started < 5


def test_truncated_image_opens_and_fails_at_its_end(tmp_path, tiff):
    whole = tiff.read_bytes()
    (tmp_path / "half.tif").write_bytes(whole[: len(whole) // 2])
    source = open_image(place(tmp_path / "half.tif"), SETTINGS)

    assert read_window(source, TOP_LEFT).shape == (3, 16, 16)
    with pytest.raises(TileEncodingError, match="cannot be read"):
        read_window(source, ImageRegion.of(((190, 290), (10, 10))))
    assert read_window(source, TOP_LEFT).shape == (3, 16, 16)


def test_nitf_is_refused_when_its_pixels_are_vrt(tmp_path):
    path = write_image(tmp_path / "c8.ntf", pattern(1, 256, 256), "NITF", ("IC=C8",))
    content = path.read_bytes()
    start = content.find(b"\xff\x4f\xff\x51")
    start = content.find(b"\x00\x00\x00\x0cjP  ") if b"\x00\x00\x00\x0cjP  " in content else start
    vrt = b'<VRTDataset rasterXSize="256" rasterYSize="256"><VRTRasterBand dataType="Byte" band="1"/></VRTDataset>'
    path.write_bytes(content[:start] + vrt.ljust(len(content) - start))

    assert "not a readable image" in refusal(path)


# Handles on loan


def test_handle_serves_one_thread_and_handles_are_limited(tiff):
    source = open_image(place(tiff), RasterSettings(max_handles=3))
    held, most, lock = set(), 0, threading.Lock()

    def work(_number):
        nonlocal most
        with source.dataset() as dataset:
            with lock:
                assert id(dataset) not in held
                held.add(id(dataset))
                most = max(most, len(held))
            pixels = dataset.ReadAsArray(0, 0, 300, 200)
            time.sleep(0.002)
            with lock:
                held.remove(id(dataset))
            return pixels

    with ThreadPoolExecutor(8) as threads:
        results = list(threads.map(work, range(60)))

    assert all(np.array_equal(pixels, pattern(3, 200, 300)) for pixels in results)
    assert 1 < most <= 3


def test_handles_are_lent_again_last_returned_first(tiff):
    source = open_image(place(tiff), SETTINGS)
    with source.handle() as first:
        pass
    with source.handle() as second, source.handle() as third:
        assert second is first
        assert third is not first


def test_handle_on_which_something_failed_is_not_lent_again(tiff):
    source = open_image(place(tiff), RasterSettings(max_handles=1))
    with pytest.raises(ZeroDivisionError), source.handle() as failed:
        _ = 1 / 0

    with source.handle() as fresh:
        assert fresh is not failed


def test_closed_image_lends_no_handle_and_wakes_waiting_threads(tiff):
    source = open_image(place(tiff), RasterSettings(max_handles=1))
    errors = []

    def wait_for_handle():
        try:
            with source.handle():
                pass
        except LoadImageException as err:
            errors.append(err)

    with source.handle() as held:
        waiting = threading.Thread(target=wait_for_handle)
        waiting.start()
        source.close()
        waiting.join(10)
        assert held.dataset.RasterXSize == 300

    assert len(errors) == 1
    with pytest.raises(LoadImageException, match="closed"), source.handle():
        pass
    source.close()


def test_failed_open_frees_its_handle(tiff):
    source = open_image(place(tiff), RasterSettings(max_handles=1))
    source.refresh_credentials()
    content = tiff.read_bytes()
    tiff.unlink()
    for _ in range(3):
        with pytest.raises(LoadImageException, match="does not exist"), source.handle():
            pass
    tiff.write_bytes(content)

    with source.dataset() as dataset:
        assert dataset.RasterXSize == 300


# A server that records who signs


class Recorder(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def respond(self, with_body):
        record = self.server
        signer = re.search(r"Credential=([^/]+)/", self.headers.get("Authorization", ""))
        record.calls.append((self.path, signer and signer.group(1), self.headers.get("x-amz-security-token")))
        status, body, headers = record.answer(self.path, self.headers.get("Range"))
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), "ETag": '"tag-1"', **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if with_body:
            self.wfile.write(body)

    def do_GET(self):
        self.respond(True)

    def do_HEAD(self):
        self.respond(False)

    def log_message(self, *_arguments):
        pass


def aws_error(status, code, text):
    body = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>{text}</Message></Error>".encode()
    return status, body, {"Content-Type": "application/xml"}


def part_of(content, ranges):
    if not ranges:
        return 200, content, {}
    first, last = (int(number) for number in ranges.removeprefix("bytes=").split("-"))
    part = content[first : last + 1]
    return 206, part, {"Content-Range": f"bytes {first}-{first + len(part) - 1}/{len(content)}"}


@pytest.fixture
def recorder(tiff):
    """Serves the image under every path but some; /vsis3/recorded/ goes there and nowhere else."""
    content = tiff.read_bytes()

    def answer(path, ranges):
        for word, reply in {
            "forbidden": aws_error(403, "AccessDenied", "Access Denied"),
            "expired": aws_error(400, "ExpiredToken", "The provided token has expired."),
            "absent": aws_error(404, "NoSuchKey", "The specified key does not exist."),
            "busy": aws_error(503, "SlowDown", "Please reduce your request rate."),
            "moved": (302, b"", {"Location": "/image.tif"}),
        }.items():
            if word in path:
                return reply
        return part_of(content, ranges)

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Recorder)
    server.calls, server.answer = [], answer
    threading.Thread(target=server.serve_forever, daemon=True).start()
    options = {
        "AWS_S3_ENDPOINT": f"127.0.0.1:{server.server_port}",
        "AWS_HTTPS": "NO",
        "AWS_VIRTUAL_HOSTING": "FALSE",
    }
    for name, value in options.items():
        gdal.SetPathSpecificOption("/vsis3/recorded/", name, value)
    yield server
    for name in options:
        gdal.SetPathSpecificOption("/vsis3/recorded/", name, None)
    gdal.VSICurlClearCache()
    server.shutdown()
    server.server_close()


@pytest.fixture
def own_keys(monkeypatch):
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "WORKER")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "worker-secret")
    monkeypatch.setenv("AWS_SESSION_TOKEN", "worker-token")


def s3_place(key, bucket="recorded"):
    return Place(url=f"s3://{bucket}/{key}", gdal_path=f"/vsis3/{bucket}/{key}")


def signers(server):
    return {(path.removeprefix("/recorded/"), key, token) for path, key, token in server.calls}


def test_job_signs_with_its_own_keys_and_next_one_with_workers(recorder, own_keys):
    job = open_image(s3_place("a.tif"), SETTINGS, lambda: AwsKeys("JOB", "secret", "job-token"))
    other = open_image(s3_place("a.tiff"), SETTINGS)

    assert job.etag == '"tag-1"'
    assert np.array_equal(read_window(job, TOP_LEFT), read_window(other, TOP_LEFT))
    assert signers(recorder) == {("a.tif", "JOB", "job-token"), ("a.tiff", "WORKER", "worker-token")}


def test_keys_without_token_hide_workers_token(recorder, own_keys):
    open_image(s3_place("a.tif"), SETTINGS, lambda: ("JOB", "secret", None))

    assert signers(recorder) == {("a.tif", "JOB", None)}


def test_callable_that_has_no_keys_leaves_signing_to_worker(recorder, own_keys):
    open_image(s3_place("a.tif"), SETTINGS, lambda: None)

    assert signers(recorder) == {("a.tif", "WORKER", "worker-token")}


def test_no_option_of_any_scope_holds_keys_after_opening(recorder, monkeypatch):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    source = open_image(s3_place("a.tif"), SETTINGS, lambda: AwsKeys("JOB", "secret", "job-token"))
    for path in ("/vsis3/recorded/a.tif", "/vsis3/recorded/", "/vsis3/other/a.tif"):
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"):
            assert gdal.GetPathSpecificOption(path, name) is None
            assert gdal.GetThreadLocalConfigOption(name) is None
            assert gdal.GetConfigOption(name) is None
    source.close()


def test_two_jobs_read_one_object_under_their_own_roles(recorder, own_keys):
    """Each request for a job's own query of the object carries that job's key, on every handle and thread."""
    settings = RasterSettings(max_handles=3, http_max_retries=0)
    jobs = {
        name: open_image(s3_place("shared.tif"), settings, lambda name=name: AwsKeys(name, "secret", f"{name}-token"))
        for name in ("ALPHA", "BETA")
    }
    recorder.calls.clear()

    def read(number):
        name = ("ALPHA", "BETA")[number % 2]
        before = len(recorder.calls)
        gdal.VSICurlPartialClearCache("/vsis3/recorded/shared.tif")
        jobs[name].refresh_credentials()
        return before, read_window(jobs[name], ImageRegion.of(((number, number), (32, 32))))

    with ThreadPoolExecutor(4) as threads:
        for number, (_, pixels) in enumerate(threads.map(read, range(40))):
            assert np.array_equal(pixels, pattern(3, 200, 300)[:, number : number + 32, number : number + 32])

    assert signers(recorder) == {("shared.tif", "ALPHA", "ALPHA-token"), ("shared.tif", "BETA", "BETA-token")}


def test_cached_blocks_are_not_served_to_next_job(recorder, own_keys):
    read_window(open_image(s3_place("a.tif"), SETTINGS, lambda: AwsKeys("JOB", "secret")), TOP_LEFT)
    recorder.answer = lambda _path, _ranges: aws_error(403, "AccessDenied", "Access Denied")

    with pytest.raises(LoadImageException, match="may not be read"):
        open_image(s3_place("a.tif"), SETTINGS, lambda: AwsKeys("OTHER", "secret"))


def test_handles_follow_keys_that_change_while_image_is_open(recorder, own_keys):
    keys = [AwsKeys("OLD", "secret", "1")]
    source = open_image(s3_place("a.tif"), SETTINGS, lambda: keys[0])
    with source.handle() as first:
        pass
    with source.handle() as second:
        assert second is first
    keys[0] = AwsKeys("NEW", "secret", "2")
    source.refresh_credentials()
    recorder.calls.clear()

    read_window(source, TOP_LEFT)

    assert signers(recorder) == {("a.tif", "NEW", "2")}


def test_changed_keys_are_used_at_next_loan(recorder, own_keys):
    keys = [AwsKeys("OLD", "secret", "1")]
    source = open_image(s3_place("a.tif"), SETTINGS, lambda: keys[0])
    keys[0] = AwsKeys("NEW", "secret", "2")

    with source.handle() as handle:
        assert handle.keys == (AwsKeys("NEW", "secret", "2"),)


@pytest.mark.parametrize(
    ("key", "text", "can_retry"),
    [
        ("forbidden.tif", "s3://recorded/forbidden.tif may not be read", False),
        ("expired.tif", "s3://recorded/expired.tif cannot be reached: The provided token has expired", True),
        ("absent.tif", "s3://recorded/absent.tif does not exist", False),
        ("busy.tif", "s3://recorded/busy.tif cannot be reached", True),
    ],
)
def test_refusals_of_s3_are_distinguished(recorder, own_keys, key, text, can_retry):
    with pytest.raises(LoadImageException, match=re.escape(text)) as caught:
        open_image(s3_place(key), SETTINGS)

    assert caught.value.can_retry is can_retry


def test_server_that_is_away_can_be_tried_again(recorder, own_keys):
    recorder.shutdown()
    recorder.server_close()
    with pytest.raises(ImageUnreachableError, match="cannot be reached"):
        open_image(s3_place("a.tif"), SETTINGS)


def test_http_image_opens_unless_it_redirects(recorder):
    base = f"http://127.0.0.1:{recorder.server_port}"
    source = open_image(Place(f"{base}/a.tif", f"/vsicurl/{base}/a.tif"), SETTINGS)

    assert source.etag == '"tag-1"'
    assert np.array_equal(read_window(source, TOP_LEFT), pattern(3, 200, 300)[:, :16, :16])
    recorder.calls.clear()
    with pytest.raises(LoadImageException, match="redirects"):
        open_image(Place(f"{base}/moved", f"/vsicurl/{base}/moved"), SETTINGS)
    assert [path for path, *_ in recorder.calls] == ["/moved"]


@pytest.mark.parametrize(("path", "text"), [("absent", "does not exist"), ("forbidden", "may not be read")])
def test_refusals_of_http_are_distinguished(recorder, path, text):
    base = f"http://127.0.0.1:{recorder.server_port}"

    with pytest.raises(LoadImageException, match=text):
        open_image(Place(f"{base}/{path}", f"/vsicurl/{base}/{path}"), SETTINGS)


def test_http_paths_that_are_no_http_urls_are_refused():
    with pytest.raises(LoadImageException, match="not an http"):
        open_image(Place("x", "/vsicurl/file:///etc/hosts"), SETTINGS)


def test_http_server_that_is_away_can_be_tried_again():
    with pytest.raises(ImageUnreachableError):
        open_image(Place("http://127.0.0.1:9/x", "/vsicurl/http://127.0.0.1:9/x"), SETTINGS)


# The emulator of S3


@pytest.fixture
def bucket(emulator, monkeypatch):
    """A bucket of the emulator, which GDAL reaches by the variables that the emulator gives to workers."""
    for name, value in emulator.environment.items():
        monkeypatch.setenv(name, value)
    configure_gdal(SETTINGS, emulator.environment)
    name = f"images-{time.time_ns()}"
    emulator.client("s3").create_bucket(
        Bucket=name, CreateBucketConfiguration={"LocationConstraint": emulator.environment["AWS_REGION"]}
    )
    yield name
    for option in ("AWS_S3_ENDPOINT", "AWS_HTTPS", "AWS_VIRTUAL_HOSTING"):
        gdal.SetConfigOption(option, None)
    gdal.VSICurlClearCache()


def upload(emulator, bucket, key, path):
    emulator.client("s3").upload_file(str(path), bucket, key)


def test_object_opens_from_emulator(emulator, bucket, tiff):
    upload(emulator, bucket, "deep/er/image one.tif", tiff)

    source = open_image(s3_place("deep/er/image one.tif", bucket), SETTINGS)

    assert (source.width, source.height, source.sensor_model is None) == (300, 200, False)
    assert source.etag
    assert np.array_equal(read_window(source, ImageRegion.of(((0, 0), (300, 200)))), pattern(3, 200, 300))


def test_object_uploaded_after_its_bucket_was_looked_at_is_found(emulator, bucket, tiff):
    upload(emulator, bucket, "early.tif", tiff)
    open_image(s3_place("early.tif", bucket), SETTINGS)
    gdal.ReadDir(f"/vsis3/{bucket}/")
    with pytest.raises(LoadImageException, match="does not exist"):
        open_image(s3_place("late.tif", bucket), SETTINGS)
    upload(emulator, bucket, "late.tif", tiff)

    assert open_image(s3_place("late.tif", bucket), SETTINGS).width == 300


def test_replaced_object_is_opened_again(emulator, bucket, tiff, tmp_path):
    upload(emulator, bucket, "same.tif", tiff)
    first = open_image(s3_place("same.tif", bucket), SETTINGS)
    read_window(first, TOP_LEFT)
    upload(emulator, bucket, "same.tif", write_image(tmp_path / "other.tif", pattern(1, 77, 99)))

    second = open_image(s3_place("same.tif", bucket), SETTINGS)

    assert (second.width, second.height) == (99, 77)
    assert second.etag != first.etag


def test_missing_bucket_is_reported(emulator, bucket):
    with pytest.raises(LoadImageException, match="does not exist"):
        open_image(s3_place("x.tif", "no-such-bucket-here"), SETTINGS)


# Fetching ahead


@pytest.fixture
def blocks(tmp_path):
    """An image in 4 x 16 blocks of 64 pixels, 12 KB each."""
    options = ("TILED=YES", "BLOCKXSIZE=64", "BLOCKYSIZE=64", "INTERLEAVE=PIXEL")
    return write_image(tmp_path / "blocks.tif", pattern(3, 256, 1024), options=options)


def tiles_of(rows, columns):
    """Tiles of 128 pixels that overlap by 16."""
    return [ImageRegion.of(((112 * row, 112 * col), (128, 128))) for row in range(rows) for col in range(columns)]


def test_adjacent_tiles_are_fetched_at_once_and_blocks_once(recorder, own_keys, blocks):
    content, fetched, tiles = blocks.read_bytes(), [], tiles_of(2, 8)

    def answer(_path, ranges):
        found = part_of(content, ranges)
        fetched.append(len(found[1]))
        return found

    recorder.answer = answer
    source = open_image(s3_place("blocks.tif"), RasterSettings(max_handles=3, http_max_retries=0))
    encoder = TileEncoder(source, "PNG", tiles=tiles)
    fetched.clear()
    encoder.encode(tiles[0])
    first = len(fetched)
    with ThreadPoolExecutor(4) as threads:
        encoded = list(threads.map(encoder.encode, tiles))

    assert len(fetched) < 2 * first + 2  # the second row, and no more
    assert sum(fetched) <= len(content)
    for tile, body in zip(tiles, encoded, strict=True):
        row, col = tile.origin
        assert np.array_equal(decode_tile(body), pattern(3, 256, 1024)[:, row : row + 128, col : col + 128])


def test_unreadable_block_fails_only_its_own_tiles(recorder, own_keys, blocks):
    content = blocks.read_bytes()
    dataset = gdal.Open(str(blocks))
    broken = int(dataset.GetRasterBand(1).GetMetadataItem("BLOCK_OFFSET_8_0", "TIFF"))
    recorder.answer = lambda _path, ranges: part_of(content, ranges)
    tiles = tiles_of(1, 8)
    source = open_image(
        s3_place("blocks.tif"), RasterSettings(max_handles=3, http_max_retries=0, read_retry_delay_s=0.01)
    )
    encoder = TileEncoder(source, "PNG", tiles=tiles)

    def answer(_path, ranges):
        first, last = (int(number) for number in ranges.removeprefix("bytes=").split("-"))
        return aws_error(500, "InternalError", "no") if first <= broken <= last else part_of(content, ranges)

    recorder.answer = answer
    ends = []
    for tile in tiles:
        try:
            encoder.encode(tile)
            ends.append(True)
        except ImageBreaksOffError:
            ends.append(False)

    hit = [tile.origin.col < 9 * 64 and tile.right > 8 * 64 for tile in tiles]
    assert ends == [not is_hit for is_hit in hit]
    assert 0 < sum(hit) < len(tiles)
