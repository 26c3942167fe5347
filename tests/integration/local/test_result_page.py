"""Pages of results, opened from the disk in a real browser: drawn, changed by their controls, fetching nothing."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from osgeo import gdal

from aws.osml.model_runner.exceptions import ConfigurationError
from aws.osml.model_runner.local.result_view import read_result, write_view
from browser import EXECUTABLE, Browser
from raster_files import UTM_31N, pattern, write_image

needs_browser = pytest.mark.skipif(EXECUTABLE is None, reason="no Chromium: apt-get install chromium")
SIDE = 600
BOX, RING, POINT = (100.0, 50.0, 180.0, 90.0), (300.0, 300.0), (450.0, 120.0)
# Longitude and latitude of column 0, row 0 in UTM zone 31 N, by GDAL's own transformer.
ROTATED = (500000.0, 0.4, 0.3, 5400000.0, 0.3, -0.4)


def feature(geometry: dict[str, Any], name: str, score: float | None, **properties: Any) -> dict[str, Any]:
    bounds = np.array(list(points_of(geometry["coordinates"])))
    box = [*bounds.min(axis=0), *bounds.max(axis=0)]
    scored = {} if score is None else {"score": score}
    members = {"imageGeometry": geometry, "imageBBox": box, "class": name, **scored, **properties}
    return {"type": "Feature", "id": f"{name}-{box[0]:.0f}", "geometry": None, "properties": members}


def points_of(coordinates: Any) -> Any:
    if isinstance(coordinates[0], float):
        yield coordinates[:2]
    else:
        for each in coordinates:
            yield from points_of(each)


def box_of(left: float, top: float, right: float, bottom: float) -> dict[str, Any]:
    ring = [[left, top], [right, top], [right, bottom], [left, bottom], [left, top]]
    return {"type": "Polygon", "coordinates": [ring]}


def features_of() -> list[dict[str, Any]]:
    lines = [[RING[0], RING[1]], [RING[0] + 60.0, RING[1]], [RING[0] + 30.0, RING[1] + 60.0]]
    return [
        feature(box_of(*BOX), "ship", 0.9, note="</script><script>window.broken = 1</script>", length={"m": 40.5}),
        feature({"type": "Polygon", "coordinates": [[*lines, lines[0]]]}, "car", 0.4),
        feature({"type": "Point", "coordinates": list(POINT)}, "buoy", 0.2),
        feature({"type": "LineString", "coordinates": [[10.0, 500.0], [200.0, 580.0]]}, "wake", None),
    ]


def write_result(path: Path, features: list[dict[str, Any]], **run: Any) -> Path:
    members = {"jobId": "harbour <7>", "status": "SUCCESS", "tiles": {"planned": 4, "succeeded": 4, "failed": 0}} | run
    path.write_text(json.dumps({"type": "FeatureCollection", "features": features, "modelRunner": members}))
    return path


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    with Browser(tmp_path_factory.mktemp("profile")) as chromium:
        yield chromium


@pytest.fixture
def image(tmp_path):
    return write_image(tmp_path / "scene.tif", pattern(3, SIDE, SIDE), geo_transform=UTM_31N, epsg=32631)


def colour_count(browser: Browser, rgb: tuple[int, int, int]) -> int:
    """Return how many pixels of the canvas have a colour, as far as smoothed edges let them."""
    script = """(() => { const c = viewer.canvas, rgb = %s;
      const d = c.getContext('2d').getImageData(0, 0, c.width, c.height).data;
      let n = 0;
      for (let i = 0; i < d.length; i += 4)
        if (d[i + 3] > 80 && rgb.every((value, k) => Math.abs(d[i + k] - value) < 9)) n++;
      return n; })()"""
    return int(browser.evaluate(script % list(rgb)))


def state(browser: Browser) -> str:
    return str(browser.evaluate("document.documentElement.dataset.state"))


@needs_browser
class TestPage:
    def test_draws_features_where_they_are_and_fetches_nothing(self, browser, image, tmp_path):
        page = tmp_path / "page.html"
        assert write_view(write_result(tmp_path / "r.geojson", features_of()), page, str(image)) == []
        browser.open(page)
        assert (state(browser), browser.problems) == ("ready", [])
        assert browser.evaluate("document.getElementById('facts').textContent") == (
            "SUCCESS · 4 detections · 4 of 4 tiles · 600 x 600 pixels"
        )
        assert browser.evaluate("document.title") == "harbour <7>"
        # The middle of the left side of the box, by the map's own arithmetic of pixels, has the colour of its class.
        at = """(() => { const p = viewer.map.latLngToContainerPoint([-%f, %f]);
          const d = viewer.canvas.getContext('2d').getImageData(Math.round(p.x) - 2, Math.round(p.y), 5, 1).data;
          return [...d].filter((_, i) => i %% 4 === 3).some((alpha) => alpha > 0); })()"""
        assert browser.evaluate(at % ((BOX[1] + BOX[3]) / 2, BOX[0]))
        assert not browser.evaluate(at % ((BOX[1] + BOX[3]) / 2, (BOX[0] + BOX[2]) / 2))
        assert browser.evaluate("typeof window.broken") == "undefined"

    def test_slider_and_legend_change_drawing(self, browser, image, tmp_path):
        page = tmp_path / "page.html"
        write_view(write_result(tmp_path / "r.geojson", features_of()), page, str(image))
        browser.open(page)
        browser.evaluate("void viewer.map.setView([-70, 140], 1, {animate: false})")
        ships = browser.evaluate("viewer.classes.find((each) => each.name === 'ship').colour")
        rgb = tuple(int(ships[i : i + 2], 16) for i in (1, 3, 5))
        browser.evaluate("viewer.draw()")
        drawn = colour_count(browser, rgb)
        assert drawn > 100
        slide = (
            "(v => { const s = document.getElementById('score'); s.value = v; s.dispatchEvent(new Event('input')); })"
        )
        browser.evaluate(f"{slide}('0.95')")
        assert colour_count(browser, rgb) == 0
        assert browser.evaluate("document.getElementById('shown').textContent") == "0 of 4 shown"
        browser.evaluate(f"{slide}('0.4')")
        assert colour_count(browser, rgb) == drawn
        assert browser.evaluate("document.getElementById('shown').textContent") == "2 of 4 shown"
        box = "[...document.querySelectorAll('#classes li')].find((row) => row.textContent.includes('ship'))"
        browser.evaluate(f"{box}.querySelector('input').click()")
        assert colour_count(browser, rgb) == 0
        browser.evaluate("document.getElementById('all-classes').click()")
        assert colour_count(browser, rgb) == drawn

    def test_shows_properties_of_clicked_feature_as_text(self, browser, image, tmp_path):
        page = tmp_path / "page.html"
        write_view(write_result(tmp_path / "r.geojson", features_of()), page, str(image))
        browser.open(page)
        middle = f"[-{(BOX[1] + BOX[3]) / 2}, {(BOX[0] + BOX[2]) / 2}]"
        x, y = browser.evaluate(f"(p => [p.x, p.y])(viewer.map.latLngToContainerPoint({middle}))")
        browser.click(x, y)
        rows = browser.evaluate(
            "new Promise(done => setTimeout(() => done(Object.fromEntries("
            "[...document.querySelectorAll('#properties tr')]"
            ".map(row => [...row.children].map(cell => cell.textContent)))), 200))"
        )
        assert rows["score"] == "0.9000"
        assert rows["length.m"] == "40.5"
        assert rows["note"].startswith("</script>")
        assert browser.evaluate("document.querySelectorAll('#properties script').length") == 0
        longitude, latitude = map(float, rows["lon, lat"].split(", "))
        expected = lonlat_of(image, (BOX[0] + BOX[2]) / 2, (BOX[1] + BOX[3]) / 2)
        assert (longitude, latitude) == pytest.approx(expected, abs=2e-6)
        browser.press("Escape")
        assert browser.evaluate("document.getElementById('selected').hidden")
        browser.press("n")
        assert browser.evaluate("viewer.selected.i") == 0

    def test_places_follow_rotated_image(self, browser, tmp_path):
        image = write_image(tmp_path / "turned.tif", pattern(1, SIDE, 400), geo_transform=ROTATED, epsg=32631)
        page = tmp_path / "page.html"
        write_view(write_result(tmp_path / "r.geojson", features_of()), page, str(image))
        browser.open(page)
        assert (state(browser), browser.problems) == ("ready", [])
        for x, y in [(0.5, 0.5), (399.5, 10.0), (123.0, 456.0)]:
            browser.evaluate(f"viewer.readPosition(L.latLng({-y}, {x}))")
            text = browser.evaluate("viewer.position.textContent")
            longitude, latitude = (float(part.split()[-1]) for part in text.split("lon")[1].split(", "))
            assert (longitude, latitude) == pytest.approx(lonlat_of(image, x, y), abs=2e-6)

    @pytest.mark.parametrize("kind", ["NITF", "16 bits", "no georeference", "complex", "palette"])
    def test_opens_images_of_every_kind(self, browser, tmp_path, kind):
        image = tmp_path / "image"
        if kind == "NITF":
            write_image(image, pattern(3, 200, 300), "NITF", geo_transform=(10.0, 1e-5, 0, 50.0, 0, -1e-5), epsg=4326)
        elif kind == "16 bits":
            write_image(image, pattern(8, 200, 300, np.uint16), geo_transform=UTM_31N, epsg=32631)
        elif kind == "complex":
            write_image(image, pattern(1, 200, 300, np.complex64))
        elif kind == "palette":
            write_image(image, pattern(1, 200, 300) % 4)
            with_palette(image)
        else:
            write_image(image, pattern(3, 200, 300), "PNG")
        page = tmp_path / "page.html"
        write_view(write_result(tmp_path / "r.geojson", features_of()), page, str(image), preview=tmp_path / "p.png")
        browser.open(page)
        assert (state(browser), browser.problems) == ("ready", [])
        size = browser.evaluate(
            "(i => i.decode().then(() => [i.naturalWidth, i.naturalHeight]))(viewer.picture._image)"
        )
        assert size == [300, 200]
        assert gdal.Open(str(tmp_path / "p.png")).RasterXSize == 300

    def test_reports_partial_and_empty_results(self, browser, image, tmp_path):
        page = tmp_path / "page.html"
        tiles = {"planned": 9, "succeeded": 6, "failed": 3}
        write_view(write_result(tmp_path / "r.geojson", [], status="PARTIAL", tiles=tiles), page, str(image))
        browser.open(page)
        notices = browser.evaluate("[...document.querySelectorAll('.notice')].map((each) => each.textContent)")
        assert notices == [
            "PARTIAL. 3 tiles failed, so detections are missing.",
            "The model found nothing in this image.",
        ]
        assert (state(browser), browser.problems) == ("ready", [])

    def test_shows_coverage_and_features_before_merging(self, browser, image, tmp_path):
        page, result = tmp_path / "page.html", write_result(tmp_path / "r.geojson", features_of())
        before = write_result(tmp_path / "before.geojson", features_of() * 2)
        tiles = [{"properties": {"imageBBox": [0, 0, 300, 600], "state": "seen"}}]
        tiles.append({"properties": {"imageBBox": [300, 0, 600, 600], "state": "failed", "reason": "TIMEOUT"}})
        (tmp_path / "r.coverage.geojson").write_text(json.dumps({"features": tiles}))
        write_view(result, page, str(image), before, tmp_path / "r.coverage.geojson")
        browser.open(page)
        layers = browser.evaluate("[...document.querySelectorAll('#layers li')].map((row) => row.textContent)")
        assert layers == ["picture", "detections4", "before merging8", "tiles: 1 seen, 1 failed"]
        blank = colour_alpha(browser)
        browser.evaluate("[...document.querySelectorAll('#layers input')].at(-1).click()")
        assert colour_alpha(browser) > blank * 3
        assert browser.problems == []

    @pytest.mark.long
    def test_page_of_hundred_thousand_features_is_small_and_drawn(self, browser, tmp_path):
        chance = np.random.default_rng(7)
        corners = chance.uniform(0, 20_000, (100_000, 2)).round(2)
        sides = chance.uniform(8, 60, (100_000, 2)).round(2)
        features = [
            feature(box_of(x, y, x + w, y + h), f"class {i % 9}", i / 1e5, featureId=f"{i:032x}"[::-1])
            for i, ((x, y), (w, h)) in enumerate(zip(corners.tolist(), sides.tolist(), strict=True))
        ]
        page = tmp_path / "page.html"
        write_view(write_result(tmp_path / "r.geojson", features), page)
        assert page.stat().st_size < 5_000_000
        browser.open(page)
        assert (state(browser), browser.problems) == ("ready", [])
        assert browser.evaluate("viewer.drawn") == 100_000
        # The highest score comes first; its box was kept to an eighth of a pixel.
        kept = browser.evaluate("[...viewer.layers[0].boxes.slice(0, 4)]")
        assert kept == pytest.approx([*corners[-1], *(corners[-1] + sides[-1])], abs=1 / 16 + 1e-3)
        browser.evaluate("viewer.least = 0.5; viewer.update()")
        assert browser.evaluate("viewer.drawn") == sum(round(i / 10) >= 5000 for i in range(100_000))


def colour_alpha(browser: Browser) -> int:
    script = "viewer.canvas.getContext('2d').getImageData(0, 0, viewer.canvas.width, viewer.canvas.height).data"
    return int(browser.evaluate(f"{script}.filter((v, i) => i % 4 === 3 && v > 0).length"))


def lonlat_of(image: Path, x: float, y: float) -> tuple[float, float]:
    """Return the place of a pixel by GDAL's own transformer."""
    transformer = gdal.Transformer(gdal.Open(str(image)), None, ["DST_SRS=OGC:CRS84"])
    _, point = transformer.TransformPoint(0, x, y)
    return point[0], point[1]


def with_palette(path: Path) -> None:
    dataset = gdal.Open(str(path), gdal.GA_Update)
    table = gdal.ColorTable()
    for index, colour in enumerate([(0, 0, 0), (255, 0, 0), (0, 255, 0), (0, 0, 255)]):
        table.SetColorEntry(index, colour)
    dataset.GetRasterBand(1).SetColorTable(table)
    dataset.FlushCache()


class TestWriteView:
    def test_coverage_of_another_job_is_not_shown(self, tmp_path):
        result = write_result(tmp_path / "r.geojson", features_of(), jobId="new")
        tile = {"properties": {"imageBBox": [0, 0, 9, 9], "state": "failed"}}
        shown = []
        for job_id in ("new", "old"):
            coverage = write_result(tmp_path / "r.coverage.geojson", [tile], jobId=job_id)
            notes = write_view(result, tmp_path / "p.html", coverage=coverage)
            shown.append(('"state":"failed"' in (tmp_path / "p.html").read_text(), [n for n in notes if "old" in n]))
        assert shown[0] == (True, [])
        assert not shown[1][0]
        assert shown[1][1][0].endswith("is the coverage of job old, so the page does not show it")

    def test_image_that_only_result_names_may_be_unreadable(self, tmp_path):
        (tmp_path / "gone.tif").write_text("no image")
        result = write_result(tmp_path / "r.geojson", features_of(), image=str(tmp_path / "gone.tif"))
        assert "gone.tif" in write_view(result, tmp_path / "p.html")[0]
        with pytest.raises(ConfigurationError, match=r"--image .*gone\.tif"):
            write_view(result, tmp_path / "p.html", str(tmp_path / "gone.tif"))

    def test_assets_of_item_are_those_of_run(self, tmp_path):
        for name in ("red", "green"):
            write_image(tmp_path / f"{name}.tif", pattern(1, 40, 60), geo_transform=UTM_31N, epsg=32631)
        assets = {name: {"href": f"./{name}.tif", "type": "image/tiff", "roles": ["data"]} for name in ("red", "green")}
        (tmp_path / "item.json").write_text(
            json.dumps({"type": "Feature", "id": "i", "properties": {}, "assets": assets})
        )
        result = write_result(tmp_path / "r.geojson", [])
        assert write_view(result, tmp_path / "p.html", str(tmp_path / "item.json"), assets=["red"]) == []
        with pytest.raises(ConfigurationError, match="imageAssets"):
            write_view(result, tmp_path / "p.html", str(tmp_path / "item.json"))


class TestReadResult:
    @pytest.mark.parametrize(
        ("name", "body"),
        [
            ("a.geojson", b"[]"),
            ("a.geojson", b"{"),
            ("a.json", b'{"type": "FeatureCollection"}'),
            ("a.geojson.gz", b"not gzip"),
            ("a.parquet", b"PAR1"),
            ("a.txt", b"{}"),
        ],
    )
    def test_refuses_other_files(self, tmp_path, name, body):
        (tmp_path / name).write_bytes(body)
        with pytest.raises(ConfigurationError, match=name):
            read_result(tmp_path / name)

    def test_refuses_absent_file(self, tmp_path):
        with pytest.raises(ConfigurationError, match="No such file"):
            read_result(tmp_path / "a.geojson")
