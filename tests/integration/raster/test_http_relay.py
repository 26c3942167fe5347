"""Images of web servers: GDAL reads them through the relay, which goes nowhere that a model call would not go."""

import dataclasses
import http.server
import json
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import urllib3

from aws.osml.model_runner.api.image_request_message import parse_image_request_message
from aws.osml.model_runner.common.web_address import allowed_addresses
from aws.osml.model_runner.exceptions import ImageUnreachableError, InvalidImageRequestException, LoadImageException
from aws.osml.model_runner.raster import write_geotiff
from aws.osml.model_runner.raster.http_copies import HttpCopies, requested_bytes
from aws.osml.model_runner.raster.http_relay import HttpRelay
from aws.osml.model_runner.raster.open_images import OpenImages
from aws.osml.model_runner.raster.settings import RasterSettings
from hostile_urls import HOSTILE_MODEL_URLS
from range_server import Fault, RangeServer
from security.tiff_files import write_many_offsets_of_one_strip

SETTINGS = RasterSettings(
    http_max_retries=0, http_timeout_s=3, http_stall_s=2, read_retry_delay_s=0.001, read_patience_s=0.5
)
PIXELS = np.random.default_rng(1).integers(0, 255, (1, 700, 900), dtype=np.uint8)


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("relay") / "image.tif"
    write_geotiff(path, PIXELS)
    return Path(path).read_bytes()


@pytest.fixture
def images() -> Iterator[OpenImages]:
    opened = OpenImages(SETTINGS, {"http"}, lambda _role: None)
    yield opened
    opened.close()


class Server(http.server.ThreadingHTTPServer):
    """Answers HEAD with a size, or as GET for None, and GET by ``answer``; records requests."""

    def __init__(self, answer: Any, head: int | None = 1000) -> None:
        self.requests: list[str] = []

        class Handler(http.server.BaseHTTPRequestHandler):
            def log_message(self, *_: Any) -> None:
                pass

            def do_HEAD(self) -> None:
                self.server.requests.append("HEAD")  # type: ignore[attr-defined]
                if head is None:
                    answer(self)
                    return
                self.send_response(200)
                self.send_header("Content-Length", str(head))
                self.end_headers()

            def do_GET(self) -> None:
                self.server.requests.append("GET")  # type: ignore[attr-defined]
                answer(self)

        super().__init__(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/image.tif"

    def __exit__(self, *_: Any) -> None:
        self.shutdown()
        self.server_close()


@pytest.mark.parametrize("status", [403, 405, 501])
def test_image_is_read_when_url_is_signed_for_get_only(images, image, status):
    with RangeServer({"/image.tif": image}) as server:
        server.faults = lambda request: Fault(status) if request.method == "HEAD" else None
        with images.lend(f"{server.url}/image.tif?signature=hidden") as source, source.dataset() as dataset:
            assert (dataset.ReadAsArray() == PIXELS[0]).all()
        assert "HEAD" in {request.method for request in server.requests}


def test_image_is_read_whole_over_few_connections(images, image):
    with RangeServer({"/image.tif": image}) as server, images.lend(f"{server.url}/image.tif?token=hidden") as source:
        with source.dataset() as dataset:
            assert (dataset.ReadAsArray() == PIXELS[0]).all()
        assert "hidden" not in source.location.gdal_path
        assert {request.path for request in server.requests} == {"/image.tif"}


def test_strip_with_many_offsets_is_refused_before_it_ends_process(images, tmp_path):
    image = write_many_offsets_of_one_strip(tmp_path / "offsets.tif")
    code = (
        "import sys; from osgeo import gdal; image = gdal.Open(sys.argv[1])\n"
        "for y in (1700, 0, 400): image.ReadRaster(0, y, 20, 200)"
    )
    with RangeServer({"/offsets.tif": image.read_bytes()}) as server:
        url = f"{server.url}/offsets.tif"
        gdal_alone = subprocess.run([sys.executable, "-c", code, f"/vsicurl/{url}"], capture_output=True, check=False)
        assert gdal_alone.returncode == -signal.SIGABRT
        with pytest.raises(LoadImageException, match="100 values for an image in one strip"), images.lend(url):
            pass


def without_ranges(image: bytes, version: list[str]) -> Any:
    def answer(handler: Any) -> None:
        handler.send_response(200)
        handler.send_header("Content-Length", str(len(image)))
        handler.send_header("ETag", version[-1])
        handler.end_headers()
        if handler.command == "GET":
            handler.wfile.write(image)

    return answer


def test_image_is_fetched_once_when_its_server_lacks_ranges(images, image):
    with Server(without_ranges(image, ["a"]), head=None) as server:
        for _ in range(2):
            with images.lend(server.url) as source, source.dataset() as dataset:
                assert (dataset.ReadAsArray() == PIXELS[0]).all()
        assert server.requests.count("GET") == 1


def test_new_version_is_fetched_when_server_lacks_ranges(image):
    copies, version = HttpCopies(len(image)), ["a"]
    with Server(without_ranges(image, version), head=None) as server:
        first = urllib3.request("GET", server.url, preload_content=False)
        assert copies.make(server.url, first) is copies.find(server.url) is not None
        copies.forget_older(server.url, urllib3.request("HEAD", server.url))
        assert copies.find(server.url) is not None
        bare = urllib3.HTTPResponse(headers={})
        copies.forget_older(server.url, bare)
        assert copies.find(server.url) is not None
        version.append("b")
        copies.forget_older(server.url, urllib3.request("HEAD", server.url))
        assert copies.find(server.url) is None


def test_image_above_limit_fails_when_its_server_lacks_ranges(image):
    images = OpenImages(dataclasses.replace(SETTINGS, max_copy_bytes=len(image) - 1), {"http"}, lambda _role: None)
    with (
        Server(without_ranges(image, ["a"]), head=None) as server,
        pytest.raises((LoadImageException, ImageUnreachableError), match="Range"),
        images.lend(server.url),
    ):
        pass
    images.close()


@pytest.mark.parametrize(
    ("header", "asked"),
    [
        ("bytes=0-9", range(10)),
        ("bytes=95-200", range(95, 100)),
        ("bytes=7-", range(7, 100)),
        ("bytes=100-", range(0)),
    ],
)
def test_range_ends_with_file(header, asked):
    assert requested_bytes(header, 100) == asked


def test_redirect_is_not_followed_when_only_gdal_sees_it(images):
    def fine(handler: Any) -> None:
        handler.send_error(404)

    with Server(fine) as canary:

        def redirect(handler: Any) -> None:
            handler.send_response(302)
            handler.send_header("Location", canary.url)
            handler.send_header("Content-Length", "0")
            handler.end_headers()

        with Server(redirect) as server:
            with pytest.raises((LoadImageException, ImageUnreachableError)), images.lend(server.url):
                pass
            assert "GET" in server.requests
        assert canary.requests == []


def test_host_is_resolved_and_checked_each_time(image):
    looked_up: list[str] = []

    def rebinding(host: str, port: int) -> list[str]:
        looked_up.append(host)
        answer = "127.0.0.1" if len(looked_up) == 1 else "169.254.169.254"
        return allowed_addresses(host, port, lambda *_, **__: [(2, 1, 6, "", (answer, port))])

    def forbidden(host: str, port: int) -> list[str]:
        return allowed_addresses(host, port, lambda *_, **__: [(2, 1, 6, "", ("::ffff:a9fe:a9fe", port))])

    with RangeServer({"/image.tif": image}) as server:
        url = server.url.replace("127.0.0.1", "rebind.test") + "/image.tif"
        images = OpenImages(SETTINGS, {"http"}, lambda _role: None)
        images._relay = HttpRelay(SETTINGS, rebinding)
        with pytest.raises(LoadImageException), images.lend(url):
            pass
        images.close()
        assert len(looked_up) > 1
        assert server.requests == []
    with pytest.raises(LoadImageException, match="link-local"):
        HttpRelay(SETTINGS, forbidden).gdal_path("http://metadata.test/image.tif")


def test_header_that_never_ends_is_abandoned_in_time(images):
    stopping = threading.Event()

    def drip(handler: Any) -> None:
        handler.wfile.write(b"HTTP/1.1 200 OK\r\nX-Slow: ")
        while not stopping.wait(0.1):
            handler.wfile.write(b"a")

    with Server(drip) as server:
        server.RequestHandlerClass.do_HEAD = server.RequestHandlerClass.do_GET  # type: ignore[attr-defined]
        with pytest.raises((LoadImageException, ImageUnreachableError)), images.lend(server.url):
            pass
        stopping.set()


def test_relay_serves_only_opened_images():
    relay = HttpRelay(SETTINGS)
    path = relay.gdal_path("http://127.0.0.1:9/a.tif").removeprefix("/vsicurl/")
    port = int(path.split(":")[2].partition("/")[0])
    with socket.create_connection(("127.0.0.1", port)) as client:
        client.sendall(b"GET http://169.254.169.254/latest/ HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        assert client.recv(100).startswith(b"HTTP/1.1 404")
    relay.close()


@pytest.mark.parametrize("url", HOSTILE_MODEL_URLS)
def test_hostile_url_is_refused_as_image_and_as_endpoint(url):
    request = {
        "jobId": "job",
        "imageUrls": [url],
        "imageProcessor": {"name": url, "type": "HTTP_ENDPOINT"},
        "outputs": [{"type": "S3", "bucket": "results", "prefix": "p"}],
    }
    with pytest.raises(InvalidImageRequestException) as caught:
        parse_image_request_message(json.dumps(request))
    fields = " ".join(problem.field for problem in caught.value.problems)
    assert "imageProcessor" in fields
    # The path of a local file is an image's place, where IMAGE_SOURCES has files.
    assert "imageUrls" in fields or url.startswith("file://")
