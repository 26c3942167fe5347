"""Areas by reference: read from where images may be read, by a process that a hostile file may end."""

import json
import sys
import threading
from hashlib import sha256
from pathlib import Path

import pytest
import shapely
from shapely.geometry import box

from aws.osml.model_runner.exceptions import InvalidImageURLException, LoadImageException
from aws.osml.model_runner.raster import ImageUnreachableError, RasterSettings, area_reader
from aws.osml.model_runner.raster.area_reader import AreaReader
from aws.osml.model_runner.raster.open_images import OpenImages
from range_server import Fault, RangeServer

SQUARE = shapely.to_geojson(box(10, 50, 11, 51)).encode()
WRITES_SQUARE = "import sys, shapely; sys.stdout.buffer.write(shapely.to_wkb(shapely.box(10, 50, 11, 51)))"


def command(code: str) -> list[str]:
    return [sys.executable, "-c", code]


def images(*sources: str, **settings: object) -> OpenImages:
    return OpenImages(RasterSettings(read_retry_delay_s=0.0, **settings), sources, lambda _role: None)


def test_area_of_a_file_is_read_in_a_process_of_its_own(tmp_path: Path) -> None:
    path = tmp_path / "aoi.geojson"
    path.write_bytes(SQUARE)
    opened = images("file")
    found = opened.read_area(f"file://{path}")
    assert found.area.equals(box(10, 50, 11, 51))
    assert found.sha256 == sha256(SQUARE).hexdigest()
    path.write_text('{"type": "Point", "coordinates": [1, 2]}')
    with pytest.raises(LoadImageException, match=r"aoi.geojson must be polygons only; the file also has Point"):
        opened.read_area(f"file://{path}")
    # The parser of GEOS recurses, and some hundred levels are valid JSON.
    path.write_bytes(b'{"type":"GeometryCollection","geometries":[' * 400 + SQUARE + b"]}" * 400)
    with pytest.raises(LoadImageException, match="must be"):
        opened.read_area(f"file://{path}")


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("import os; os.abort()", "takes too much memory, or ends its process"),
        ("import time; time.sleep(60)", "takes longer than 0.5 s"),
        ("raise MemoryError", "takes too much memory, or ends its process"),
        ("print('polygons only', end=''); raise SystemExit(2)", "must be polygons only"),
    ],
)
def test_file_that_ends_its_process_is_refused_and_the_next_is_read(tmp_path: Path, code: str, reason: str) -> None:
    path = tmp_path / "aoi.gpkg"
    path.write_bytes(SQUARE)
    timeout_s = 0.5 if "sleep" in code else 60.0
    reader = AreaReader(RasterSettings(), timeout_s=timeout_s, command=command(code))
    with pytest.raises(LoadImageException, match=reason):
        reader.read(str(path), "s3://b/aoi.gpkg", None)


def test_child_gets_no_credentials(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    path = tmp_path / "aoi.json"
    path.write_bytes(SQUARE)
    code = f"import os; assert not any(name.startswith('AWS_') for name in os.environ); {WRITES_SQUARE}"
    assert AreaReader(RasterSettings(), command=command(code)).read(str(path), "u", None).area.area == 1


def test_file_that_is_too_large_is_refused_before_it_is_parsed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(area_reader, "MAX_AREA_BYTES", 100)
    path = tmp_path / "aoi.json"
    path.write_bytes(b" " * 101)
    reader = AreaReader(RasterSettings(), command=["/absent"])
    with pytest.raises(LoadImageException, match="a file of at most 100 bytes"):
        reader.read(str(path), "u", None)
    path.write_bytes(b" " * 100)
    with pytest.raises(ImageUnreachableError, match="cannot be parsed now"):
        reader.read(str(path), "u", None)


def test_area_is_held_to_the_rules_of_images(tmp_path: Path) -> None:
    path = tmp_path / "aoi.json"
    path.write_bytes(SQUARE)
    with pytest.raises(InvalidImageURLException):
        images("s3").read_area(f"file://{path}")
    with pytest.raises(LoadImageException, match="IMAGE_DIRECTORIES"):
        images("file", directories=(str(tmp_path / "other"),)).read_area(f"file://{path}")
    with pytest.raises(LoadImageException, match="does not exist"):
        images("file").read_area(f"file://{tmp_path}/absent.json")
    for url in ("http://169.254.169.254/a.json", "/vsizip/a.zip/b.json", "PG:dbname=a"):
        with pytest.raises((InvalidImageURLException, LoadImageException)):
            images("s3", "file", "http").read_area(url)


def test_area_of_a_web_server_is_read_once_while_it_does_not_change(monkeypatch: pytest.MonkeyPatch) -> None:
    with RangeServer({"/aoi.json": SQUARE}) as server:
        opened = images("http")
        opened._areas = AreaReader(RasterSettings(read_retry_delay_s=0.0), command=command(WRITES_SQUARE))
        assert opened.read_area(f"{server.url}/aoi.json").area.area == 1
        before = len(server.gets())
        assert opened.read_area(f"{server.url}/aoi.json").area.area == 1
        assert len(server.gets()) == before
        server.files["/aoi.json"] = SQUARE + b" "
        assert opened.read_area(f"{server.url}/aoi.json").sha256 == sha256(SQUARE + b" ").hexdigest()
        with pytest.raises(LoadImageException, match="does not exist"):
            opened.read_area(f"{server.url}/absent.json")
        with server.failing(lambda _request: Fault(close=True)), pytest.raises(ImageUnreachableError):
            opened.read_area(f"{server.url}/other.json")
        opened.close()


def test_broken_transfer_is_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    body = json.dumps({"type": "Feature", "geometry": json.loads(SQUARE), "properties": {"x": "y" * 100_000}}).encode()
    broken = threading.Event()

    def once(request) -> Fault | None:
        if request.method == "GET" and not broken.is_set():
            broken.set()
            return Fault(sent=10, is_reset=True)
        return None

    with RangeServer({"/aoi.json": body}) as server, server.failing(once):
        opened = images("http", http_max_retries=0)
        opened._areas = AreaReader(
            RasterSettings(read_retry_delay_s=0.0, http_max_retries=0), command=command(WRITES_SQUARE)
        )
        assert opened.read_area(f"{server.url}/aoi.json").sha256 == sha256(body).hexdigest()
        opened.close()
    assert broken.is_set()
