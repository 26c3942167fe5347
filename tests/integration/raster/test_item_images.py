"""Images of STAC Items: stacks of files against one file that GDAL itself stacked, and who pays for what is read."""

import http.server
import json
import threading
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from osgeo import gdal

from aws.osml.model_runner.api.image_url import parse_image_url
from aws.osml.model_runner.api.processor_input import ProcessorInput
from aws.osml.model_runner.api.stac_item import AssetChoice, ItemAsset, ItemImage, image_of, parse_item
from aws.osml.model_runner.common.typing import ImageCoord, ImageDimensions, ImageRegion
from aws.osml.model_runner.exceptions import (
    ImageUnreachableError,
    InvalidImageRequestException,
    InvalidImageURLException,
    LoadImageException,
)
from aws.osml.model_runner.raster import RasterSettings, TileEncoder, decode_tile, prepare, read_window, source_metadata
from aws.osml.model_runner.raster.open_images import Access, OpenImages
from aws.osml.model_runner.raster.pixels import write_geotiff
from aws.osml.model_runner.raster.source_metadata import difference_from_item
from range_server import Fault, RangeServer
from raster_files import translated
from stac_items import EPSG, grid, planet, sentinel2, write_assets

SETTINGS = RasterSettings(http_retry_delay_s=0.001, read_retry_delay_s=0.001, read_tries=2)
SIZE = 300


def region(row, col, width, height):
    return ImageRegion(ImageCoord(row, col), ImageDimensions(width, height))


TILES = [region(0, 0, 128, 128), region(100, 172, 128, 128), region(236, 10, 200, 64)]


def no_credentials(_role):
    return None


def item_image(item, folder, *names, **choice):
    document = parse_item(json.dumps(item).encode())
    return image_of(document, f"{folder}/item.json", AssetChoice(names, **choice), parse_image_url)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("sentinel")
    write_assets(sentinel2(size=SIZE), path, SIZE)
    for index, name in enumerate(("B02", "B03", "B04")):
        dataset = gdal.Open(f"{path}/{name}.tif", gdal.GA_Update)
        dataset.GetRasterBand(1).SetNoDataValue(0)
        dataset.GetRasterBand(1).WriteArray(np.zeros((40, 50), np.uint16), 60 * index, 20)
        dataset.BuildOverviews("AVERAGE", [2, 4])
    return path


@pytest.fixture(scope="module")
def one_file(folder):
    """The bands that GDAL stacked, in the order red, green, blue."""
    paths = [str(folder / f"{name}.tif") for name in ("B04", "B03", "B02")]
    sources = "".join(
        f'<VRTRasterBand dataType="UInt16" band="{n}"><NoDataValue>0</NoDataValue>'
        f"<SimpleSource><SourceFilename>{path}</SourceFilename><SourceBand>1</SourceBand></SimpleSource></VRTRasterBand>"
        for n, path in enumerate(paths, 1)
    )
    transform = ", ".join(map(str, grid(10)))
    vrt = folder / "stack.vrt"
    vrt.write_text(
        f'<VRTDataset rasterXSize="{SIZE}" rasterYSize="{SIZE}"><SRS>EPSG:{EPSG}</SRS>'
        f"<GeoTransform>{transform}</GeoTransform>{sources}</VRTDataset>"
    )
    options = ["TILED=YES", "INTERLEAVE=BAND"]
    path = translated(vrt, folder / "stack.tif", format="GTiff", creationOptions=options)
    gdal.Open(str(path), gdal.GA_Update).BuildOverviews("AVERAGE", [2, 4])
    return path


@pytest.fixture
def images():
    made = OpenImages(SETTINGS, {"file", "http", "s3"}, no_credentials, sleep=lambda _: None)
    yield made
    made.close()


def lent(images, item, pays=False, credentials=None):
    return images.lend_item(item, lambda _bucket: Access(None, pays))


@pytest.mark.parametrize("tile_format", ["GTIFF", "NITF", "PNG"])
def test_stack_gives_tiles_of_one_file_that_gdal_stacked(images, folder, one_file, tile_format):
    item = item_image(sentinel2(size=SIZE), folder, "red", "green", "blue")
    with lent(images, item) as source, images.lend(str(one_file)) as whole:
        assert (source.width, source.height, source.band_count, source.data_type) == (SIZE, SIZE, 3, "UInt16")
        assert source.header.geo_transform == whole.header.geo_transform
        encoders = [TileEncoder(each, tile_format) for each in (source, whole)]
        for tile in TILES:
            stacked, expected = (decode_tile(encoder.encode(tile)) for encoder in encoders)
            assert np.array_equal(stacked, expected)
            assert np.array_equal(read_window(source, tile), expected)


@pytest.mark.parametrize("scale", [1.0, 0.6, 0.23, 1.7])
def test_stack_is_prepared_as_one_file(images, folder, one_file, scale):
    item = item_image(sentinel2(size=SIZE), folder, "red", "green", "blue")
    asked = {"stretch": {"type": "PERCENTILE"}, "pixelType": "UINT8", "scale": scale, "nodataFill": 7}
    by_name = ProcessorInput.model_validate(asked | {"bands": ["blue", "red", "GREEN"]})
    by_number = ProcessorInput.model_validate(asked | {"bands": [3, 1, 2]})
    with lent(images, item) as source, images.lend(str(one_file)) as whole:
        first, second = prepare(source, by_name), prepare(whole, by_number)
        assert first.bands == (3, 1, 2)
        assert first.ranges == second.ranges
        tile = region(3, 5, 50, 40)
        stacked, expected = (
            decode_tile(TileEncoder(each, "GTIFF", preparation=made).encode(tile))
            for each, made in ((source, first), (whole, second))
        )
        assert np.array_equal(stacked, expected)
        assert len(np.unique(expected)) > 50


def test_assets_on_different_grids_are_refused_by_name(images, folder, tmp_path):
    item = item_image(sentinel2(size=SIZE), folder, "red", "nir08")
    with pytest.raises(LoadImageException, match="on one grid") as caught, lent(images, item):
        pass
    for part in ("red (", "nir08 (", "300 x 300 pixels of 10 x -10", "150 x 150 pixels of 20 x -20", "UTM zone 31N"):
        assert part in str(caught.value)


@pytest.mark.parametrize(
    ("transform", "epsg", "is_one"),
    [
        (grid(10), EPSG, True),
        ((500_000.05, 10.0, 0.0, 5_400_000.0, 0.0, -10.0), EPSG, True),
        ((500_000.2, 10.0, 0.0, 5_400_000.0, 0.0, -10.0), EPSG, False),
        ((500_000.0, 10.001, 0.0, 5_400_000.0, 0.0, -10.0), EPSG, False),
        (grid(10), EPSG + 1, False),
        (None, None, False),
    ],
)
def test_grids_are_one_to_hundredth_of_pixel(images, folder, tmp_path, transform, epsg, is_one):
    other = tmp_path / "other.tif"
    write_geotiff(other, np.ones((1, SIZE, SIZE), np.uint16), transform, epsg)
    item = item_image(sentinel2(size=SIZE), folder, "red", "green")
    item = replace(item, assets=(item.assets[0], replace(item.assets[1], url=str(other))))
    if is_one:
        with lent(images, item) as source:
            assert source.band_count == 2
    else:
        with pytest.raises(LoadImageException, match="on one grid"), lent(images, item):
            pass


@pytest.mark.parametrize("scale", [1.0, 0.2])
def test_pixel_is_valid_where_it_is_in_all_files(images, tmp_path, scale):
    gdal.SetThreadLocalConfigOption("GDAL_TIFF_INTERNAL_MASK", "YES")
    for index, name in enumerate(("B04", "B03", "B02")):
        path = tmp_path / f"{name}.tif"
        write_geotiff(path, np.full((1, SIZE, SIZE), 100, np.uint16), grid(10), EPSG)
        dataset = gdal.Open(str(path), gdal.GA_Update)
        if index:
            dataset.CreateMaskBand(gdal.GMF_PER_DATASET)
            valid = np.full((SIZE, SIZE), 255, np.uint8)
            valid[:, 100 * index : 100 * index + 50] = 0
            dataset.GetRasterBand(1).GetMaskBand().WriteArray(valid)
        dataset.BuildOverviews("NEAREST", [2, 4])
        del dataset  # written when it is closed
    gdal.SetThreadLocalConfigOption("GDAL_TIFF_INTERNAL_MASK", None)
    with lent(images, item_image(sentinel2(size=SIZE), tmp_path, "red", "green", "blue")) as source:
        made = prepare(source, ProcessorInput.model_validate({"scale": scale, "nodataFill": 7}))
        whole = region(0, 0, round(SIZE * scale), round(SIZE * scale))
        pixels = decode_tile(TileEncoder(source, "GTIFF", preparation=made).encode(whole))
    steps = {(100, 150), (200, 250)}
    columns = (np.arange(whole.size.width) + 0.5) / scale
    is_valid = ~np.logical_or.reduce([(columns > first) & (columns < last) for first, last in steps])
    assert (pixels == np.where(is_valid, 100, 7)).all()


def test_pixels_without_georeference_have_size_that_item_states(images, tmp_path):
    item = planet(size=SIZE)
    (key, *_), stem = item["assets"], "20240603_101112_12_24a1_3B"
    write_geotiff(tmp_path / f"{stem}_AnalyticMS_SR_8b_clip.tif", np.ones((8, SIZE, SIZE), np.uint16))
    with lent(images, item_image(item, tmp_path, key)) as source:
        made = prepare(source, ProcessorInput.model_validate({"gsd": 7.4, "bands": ["nir", "Red", "band4"]}))
    assert made.bands == (8, 6, 4)
    assert (made.ratio.x, made.ratio.y) == pytest.approx((2.0, 2.0))


def test_image_has_metadata_of_item_and_its_differences(images, folder):
    stated = sentinel2(size=SIZE)
    with lent(images, item_image(stated, folder, "red", "green")) as source:
        (about,) = source_metadata(source, "s3://catalogue/item.json")["sourceMetadata"]
        assert difference_from_item(source) == ""
    assert about["location"] == "s3://catalogue/item.json"
    assert (about["sourceId"], about["sourceDT"]) == ("S2B_31UDP_20240601_0_L2A", "2024-06-01T10:51:02.024000Z")
    assert (about["platform"], about["gsd"], about["assets"]) == ("sentinel-2b", 10.0, ["red", "green"])
    stated["assets"]["red"] |= {"proj:shape": [SIZE, 200], "proj:transform": [10, 0, 500_006, 0, -10, 5_400_000]}
    stated["properties"]["proj:code"] = "EPSG:32632"
    with lent(images, item_image(stated, folder, "red", "green")) as source:
        difference = difference_from_item(source)
    assert "proj:shape [300, 200] for [300, 300]" in difference
    assert "proj:transform for another grid" in difference
    assert "EPSG:32632 for WGS 84 / UTM zone 31N" in difference


def test_version_of_stack_is_that_of_all_files(images, folder, tmp_path):
    item = item_image(sentinel2(size=SIZE), folder, "red", "green")
    other = tmp_path / "other.tif"
    other.write_bytes((folder / "B03.tif").read_bytes())
    item = replace(item, assets=(item.assets[0], replace(item.assets[1], url=str(other))))
    with lent(images, item) as source:
        first = source.etag
        assert not source.is_outdated()
        write_geotiff(other, np.full((1, SIZE, SIZE), 9, np.uint16), grid(10), EPSG)
        assert source.is_outdated()
    with lent(images, item) as source:
        assert source.etag != first
        assert (read_window(source, TILES[0])[1] == 9).all()


def test_files_of_web_server_are_stacked_and_never_followed_elsewhere(images, folder):
    with RangeServer({f"/{path.name}": path.read_bytes() for path in folder.glob("B0*.tif")}) as server:
        item = item_image(sentinel2(server.url, SIZE), "https://catalogue.example", "red", "green")
        with lent(images, item) as source, images.lend(str(folder / "B03.tif")) as green:
            assert np.array_equal(read_window(source, TILES[1])[1], read_window(green, TILES[1])[0])
        moved = item_image(sentinel2(server.url, SIZE), "https://catalogue.example", "blue", "green")
        away = server.failing(lambda request: Fault(status=302) if "B03" in request.path else None)
        with away, pytest.raises(LoadImageException, match=r"green \(http.*redirects"), lent(images, moved):
            pass
    metadata = replace(item, assets=(replace(item.assets[0], url="http://169.254.169.254/latest/a.tif"),))
    with pytest.raises(InvalidImageURLException), lent(images, metadata):
        pass


def test_item_is_fetched_whole_or_refused_with_reason(images, tmp_path):
    body = json.dumps(sentinel2()).encode()
    (tmp_path / "item.json").write_bytes(body)
    assert images.read_file(f"{tmp_path}/item.json", len(body)) == body
    with pytest.raises(LoadImageException, match="more than 100 bytes"):
        images.read_file(f"{tmp_path}/item.json", 100)
    with pytest.raises(LoadImageException, match="does not exist"):
        images.read_file(f"{tmp_path}/absent.json", 100)
    with RangeServer({"/item.json": body}) as server:
        url = f"{server.url}/item.json"
        assert images.read_file(url, len(body)) == body
        with pytest.raises(LoadImageException, match="more than 100 bytes"):
            images.read_file(url, 100)
        for status, reason in ((302, "redirects"), (403, "may not be read"), (404, "does not exist"), (400, "400")):
            with server.failing(lambda _, status=status: Fault(status=status)):
                with pytest.raises(LoadImageException, match=reason) as caught:
                    images.read_file(url, len(body))
                assert not isinstance(caught.value, ImageUnreachableError)
        with server.failing(lambda _: Fault(status=503)), pytest.raises(ImageUnreachableError, match="503"):
            images.read_file(url, len(body))
        with server.failing(lambda _: Fault(sent=50)), pytest.raises(ImageUnreachableError):
            images.read_file(url, len(body))
        # A connection that is closed once, as an idle one may be, does not put the job off.
        once = iter([Fault(close=True)])
        with server.failing(lambda _: next(once, None)):
            assert images.read_file(url, len(body)) == body
    with pytest.raises(LoadImageException, match="cannot be reached"):
        images.read_file("http://nowhere.invalid/item.json", 100)


def test_buckets_are_those_that_are_allowed():
    images = OpenImages(SETTINGS, {"s3"}, no_credentials, allowed_buckets=["open-*"])
    assert images.allow("s3://open-data/a.tif").bucket == "open-data"
    for url in ("s3://secret/a.tif", "/etc/a.tif"):
        with pytest.raises(InvalidImageURLException):
            images.allow(url)
        with pytest.raises(InvalidImageURLException), lent(images, ItemImage("", (ItemAsset("a", url),))):
            pass


class PaidStore(http.server.ThreadingHTTPServer):
    """A bucket whose requester pays: it refuses each request that does not state so."""

    def __init__(self, files):
        self.files, self.payers = files, []
        super().__init__(("127.0.0.1", 0), _PaidHandler)


class _PaidHandler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        path, payer = self.path.partition("?")[0], self.headers.get("x-amz-request-payer")
        self.server.payers.append((path, payer))
        content = self.server.files.get(path)
        is_signed = "x-amz-request-payer" in self.headers.get("Authorization", "")
        if payer != "requester" or not is_signed or content is None:
            status, body = (404, b"") if content is None else (403, b"<Error><Code>AccessDenied</Code></Error>")
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)
            return
        start, stop = 0, len(content)
        if asked := self.headers.get("Range"):
            start, last = (int(text) for text in asked.removeprefix("bytes=").split("-"))
            stop = min(stop, last + 1)
        self.send_response(206 if asked else 200)
        self.send_header("Content-Length", str(stop - start))
        if asked:
            self.send_header("Content-Range", f"bytes {start}-{stop - 1}/{len(content)}")
        self.send_header("ETag", '"one"')
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content[start:stop])

    do_HEAD = do_GET

    def log_message(self, *_):
        pass


@pytest.fixture
def paid_store(folder):
    files = {f"/paid-bucket/{path.name}": path.read_bytes() for path in folder.glob("B0*.tif")}
    server = PaidStore(files | {"/paid-bucket/item.json": b"{}"})
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    options = {
        "AWS_S3_ENDPOINT": f"127.0.0.1:{server.server_port}",
        "AWS_HTTPS": "NO",
        "AWS_VIRTUAL_HOSTING": "FALSE",
    }
    for name, value in options.items():
        gdal.SetPathSpecificOption("/vsis3/paid-bucket/", name, value)
    yield server
    for name in options:
        gdal.SetPathSpecificOption("/vsis3/paid-bucket/", name, None)
    gdal.VSICurlClearCache()
    server.shutdown()
    server.server_close()


def test_requester_pays_only_where_request_states_so(paid_store, folder, monkeypatch):
    # The environment of a worker must not make the account pay for each read.
    monkeypatch.setenv("AWS_REQUEST_PAYER", "requester")
    keys = SimpleNamespace(get_frozen_credentials=lambda: SimpleNamespace(access_key="A", secret_key="S", token=None))
    images = OpenImages(SETTINGS, {"s3"}, lambda _role: keys)
    item = item_image(sentinel2("s3://paid-bucket", SIZE), "s3://paid-bucket", "red", "green")
    with lent(images, item, pays=True) as source, images.lend("s3://paid-bucket/B04.tif", pays=True) as red:
        assert np.array_equal(read_window(source, TILES[0])[:1], read_window(red, TILES[0]))
    assert images.read_file("s3://paid-bucket/item.json", 10, Access(None, True)) == b"{}"
    assert {payer for _, payer in paid_store.payers} == {"requester"}
    paid_store.payers.clear()
    for refused in (lambda: lent(images, item), lambda: images.lend("s3://paid-bucket/B04.tif")):
        with pytest.raises(LoadImageException, match="may not be read"), refused():
            pass
    with pytest.raises(LoadImageException, match="may not be read"):
        images.read_file("s3://paid-bucket/item.json", 10)
    assert {payer for _, payer in paid_store.payers} == {None}
    images.close()


def test_choice_is_refused_before_a_file_is_opened(folder):
    with pytest.raises(InvalidImageRequestException, match="imageAssets"):
        item_image(sentinel2(), folder, "B04")
