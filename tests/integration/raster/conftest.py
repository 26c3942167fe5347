"""Fixtures of tests of images: GDAL as a worker configures it, in every module."""

import pytest

from aws.osml.model_runner.raster.settings import RasterSettings, configure_gdal


@pytest.fixture(autouse=True, scope="module")
def configured_gdal() -> None:
    configure_gdal(RasterSettings(), {})
