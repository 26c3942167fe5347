"""What all tests of images share: GDAL as a worker configures it, whatever the module before has set."""

import pytest

from aws.osml.model_runner.raster.settings import RasterSettings, configure_gdal


@pytest.fixture(autouse=True, scope="module")
def configured_gdal() -> None:
    configure_gdal(RasterSettings(), {})
