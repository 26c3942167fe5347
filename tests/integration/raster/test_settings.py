"""The options that GDAL runs with, and where its messages go."""

import os
import subprocess
import sys

import pytest
import structlog
from osgeo import gdal

from aws.osml.model_runner.raster import open_image
from aws.osml.model_runner.raster.settings import (
    FIRST_CACHE_BYTES,
    RasterSettings,
    configure_gdal,
    gdal_options,
    log_gdal_message,
)
from raster_files import place


@pytest.fixture
def restored_options():
    names = [*gdal_options(RasterSettings(), {"AWS_ENDPOINT_URL": "http://x"})]
    before = {name: gdal.GetConfigOption(name) for name in names}
    yield
    for name, value in before.items():
        gdal.SetConfigOption(name, value)
    gdal.SetCacheMax(FIRST_CACHE_BYTES)


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({}, {}),
        (
            {"AWS_ENDPOINT_URL": "http://127.0.0.1:4566"},
            {"AWS_S3_ENDPOINT": "127.0.0.1:4566", "AWS_HTTPS": "NO", "AWS_VIRTUAL_HOSTING": "FALSE"},
        ),
        (
            {"AWS_ENDPOINT_URL": "http://all:1", "AWS_ENDPOINT_URL_S3": "https://s3.example/base/"},
            {"AWS_S3_ENDPOINT": "s3.example/base", "AWS_HTTPS": "YES", "AWS_VIRTUAL_HOSTING": "FALSE"},
        ),
        ({"AWS_ENDPOINT_URL": "http://all:1", "AWS_S3_ENDPOINT": "mine:2"}, {}),
        (
            {"AWS_ENDPOINT_URL_S3": "https://s3.example", "AWS_VIRTUAL_HOSTING": "TRUE"},
            {"AWS_S3_ENDPOINT": "s3.example", "AWS_HTTPS": "YES", "AWS_VIRTUAL_HOSTING": "TRUE"},
        ),
    ],
)
def test_s3_endpoint_follows_environment_of_boto3(environ, expected):
    options = gdal_options(RasterSettings(), environ)

    assert {name: value for name, value in options.items() if name.startswith("AWS_")} == expected


def test_gdal_cache_follows_settings():
    settings = RasterSettings(cache_bytes=7_000_000, curl_cache_bytes=8_000_000, vsi_cache_bytes=9_000_000)

    options = gdal_options(settings, {})

    assert options["GDAL_CACHEMAX"] == "7000000"
    assert options["CPL_VSIL_CURL_CACHE_SIZE"] == "8000000"
    assert (options["VSI_CACHE"], options["VSI_CACHE_SIZE"]) == ("YES", "9000000")
    assert gdal_options(RasterSettings(), {})["VSI_CACHE"] == "NO"


@pytest.mark.parametrize(
    ("options", "needed"),
    [
        # Every tile of a row touches 1024 rows and the rows of one strip more, of two regions.
        (["TILED=NO", "BLOCKYSIZE=16"], 2 * (1024 + 16) * 20_000 * 3),
        # Two rows of smaller blocks, as wide as a region.
        (["TILED=YES", "BLOCKXSIZE=2048", "BLOCKYSIZE=2048"], 2 * 2 * 2048 * 10_240 * 3),
        (["TILED=YES", "BLOCKXSIZE=256", "BLOCKYSIZE=256"], FIRST_CACHE_BYTES),
    ],
)
def test_cache_grows_to_blocks_that_tiles_share(tmp_path, restored_options, options, needed):
    path = tmp_path / "wide.tif"
    sparse = ["SPARSE_OK=TRUE", "INTERLEAVE=PIXEL", *options]
    gdal.GetDriverByName("GTiff").Create(str(path), 20_000, 5_000, 3, gdal.GDT_Byte, sparse).FlushCache()
    configure_gdal(RasterSettings(), {})
    assert gdal.GetCacheMax() == FIRST_CACHE_BYTES
    open_image(place(path), RasterSettings()).close()
    assert gdal.GetCacheMax() == needed
    configure_gdal(RasterSettings(), {})
    open_image(place(path), RasterSettings(cache_bytes=80 * 2**20)).close()
    assert gdal.GetCacheMax() == min(needed, 80 * 2**20)


def test_cache_grows_with_regions_that_worker_is_set_to_do(tmp_path, restored_options):
    path = tmp_path / "wide.tif"
    sparse = ["SPARSE_OK=TRUE", "INTERLEAVE=PIXEL", "TILED=YES", "BLOCKXSIZE=512", "BLOCKYSIZE=512"]
    gdal.GetDriverByName("GTiff").Create(str(path), 20_000, 5_000, 3, gdal.GDT_Byte, sparse).FlushCache()
    configure_gdal(RasterSettings(), {})
    open_image(place(path), RasterSettings(region_width_px=16_000, regions_at_once=3)).close()
    assert gdal.GetCacheMax() == 3 * 16_000 * (2 * 512) * 3


def test_configuring_applies_options_cache_and_exceptions(restored_options):
    configure_gdal(RasterSettings(cache_bytes=33 * 1024 * 1024), {})

    assert gdal.GetCacheMax() == 33 * 1024 * 1024
    assert gdal.GetConfigOption("GDAL_DISABLE_READDIR_ON_OPEN") == "EMPTY_DIR"
    assert gdal.GetConfigOption("GDAL_PAM_ENABLED") == "NO"
    assert gdal.GetConfigOption("GDAL_VRT_ENABLE_PYTHON") == "NO"
    assert gdal.GetConfigOption("GDAL_NUM_THREADS") == "1"
    with pytest.raises(RuntimeError, match="No such file"):
        gdal.Open("/absent/image.tif")


def test_drivers_that_reach_elsewhere_are_gone(restored_options):
    configure_gdal(RasterSettings(), {})

    left = {gdal.GetDriver(index).ShortName for index in range(gdal.GetDriverCount())}

    assert left.isdisjoint({"WMS", "WCS", "HTTP", "PostGISRaster", "GPKG", "netCDF", "PDF"})
    assert {"GTiff", "NITF", "PNG", "JPEG", "JP2OpenJPEG"} <= left


@pytest.mark.parametrize(
    ("error_class", "event", "level"),
    [
        (gdal.CE_Debug, "gdal.debug", "debug"),
        (gdal.CE_Warning, "gdal.warning", "info"),
        (gdal.CE_Failure, "gdal.error", "warning"),
    ],
)
def test_messages_become_events_without_secrets_of_presigned_urls(error_class, event, level):
    with structlog.testing.capture_logs() as logs:
        log_gdal_message(error_class, 1, "cannot read https://b.s3/k?X-Amz-Signature=topsecret now")

    assert [(entry["event"], entry["log_level"]) for entry in logs] == [(event, level)]
    assert "topsecret" not in str(logs)
    assert "now" in logs[0]["message"]


def test_warnings_of_gdal_reach_log(restored_options):
    configure_gdal(RasterSettings(), {})
    with structlog.testing.capture_logs() as logs:
        gdal.Error(gdal.CE_Warning, 6, "a word of warning")

    assert [(entry["event"], entry["message"]) for entry in logs] == [("gdal.warning", "a word of warning")]


def test_gdal_writes_no_stderr_and_import_configures_no_option(tmp_path):
    script = (
        "from aws.osml.model_runner.raster import RasterSettings, configure_gdal\n"
        "from osgeo import gdal\n"
        "assert not gdal.GetUseExceptions()\n"
        "assert gdal.GetConfigOption('GDAL_PAM_ENABLED') is None\n"
        "configure_gdal(RasterSettings(), {})\n"
        "configure_gdal(RasterSettings(), {})\n"
        "gdal.Error(gdal.CE_Warning, 1, 'hush')\n"
    )
    finished = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False, timeout=60)

    assert finished.returncode == 0, finished.stderr
    assert "hush" not in finished.stderr


def test_search_for_credentials_prints_no_messages_of_libcurl():
    """GDAL's own handler passes them to its log, with headers of the responses."""
    code = """if True:
        import os
        from aws.osml.model_runner.api.image_url import parse_image_url
        from aws.osml.model_runner.raster import RasterSettings, configure_gdal, open_image
        configure_gdal(RasterSettings(), os.environ)
        open_image(parse_image_url("s3://my-images/a.tif"), RasterSettings(), sleep=lambda _: None)
    """
    nowhere = {"CPL_AWS_EC2_API_ROOT_URL": "http://127.0.0.1:9", "AWS_CONFIG_FILE": "/dev/null", "HOME": "/nowhere"}
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
    ended = subprocess.run([sys.executable, "-c", code], env=inherited | nowhere, capture_output=True, text=True)
    assert "LoadImageException" in ended.stderr
    assert "CURL_INFO" not in ended.stderr
