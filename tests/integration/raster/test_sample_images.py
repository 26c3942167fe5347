"""Real images in every tile format that can hold them. Skipped where the samples are not beside the project."""

from pathlib import Path

import pytest

from aws.osml.model_runner.local.stack.data_plane import create_data_plane
from worker_process import Site

SAMPLES = Path(__file__).resolve().parents[4] / "shared" / "data"

# The tiles of 512 pixels with an overlap of 64, and west, south, east, north of an image with a georeference.
EXPECTED = {
    "005_007_1024x1024_s_8_1_multi_j2c.ntf": (9, None),
    "autzen-utm10.ntf": (6, (-123.09, 44.03, -123.05, 44.07)),
    "i_3301a.ntf": (9, None),
    "rareplanes_tile.png": (1, None),
    "umbra_mount_yasur.tiff": (25, (169.41, -19.56, 169.49, -19.49)),
}

# In the short form each image in two formats, and each format with two images or more.
FORMATS = ("NITF", "GTIFF", "PNG", "JPEG")
CASES = [
    pytest.param(name, tile_format, marks=() if (place - turn) % 4 < 2 else pytest.mark.long)
    for place, name in enumerate(sorted(EXPECTED))
    for turn, tile_format in enumerate(FORMATS)
]

pytestmark = [
    pytest.mark.skipif(not SAMPLES.is_dir(), reason="the sample images are not here"),
    pytest.mark.unmeasured,  # what runs here runs in other tests too
]


@pytest.fixture(scope="module")
def busy_site(emulator, tmp_path_factory):
    directory = tmp_path_factory.mktemp("sample-tests")
    site = Site(emulator, create_data_plane(emulator.client, directory.name), directory)
    with site.worker(REGION_SIZE="(1024, 1024)"):
        yield site


@pytest.mark.parametrize(("name", "tile_format"), CASES)
def test_sample_runs_in_every_format(busy_site, model_server, name, tile_format):
    tiles, footprint = EXPECTED[name]
    request = busy_site.request(
        str(SAMPLES / name),
        model_server("centerpoint").invocations_url,
        imageProcessorTileFormat=tile_format,
        imageProcessorTileSize=512,
        imageProcessorTileOverlap=64,
    )
    busy_site.submit(request)
    assert busy_site.wait_for_end(request["jobId"])[-1] == "SUCCESS"
    features = busy_site.features(request["jobId"])
    assert len(features) == tiles
    for feature in features:
        if footprint is None:
            assert feature["geometry"] is None
            continue
        west, south, east, north = footprint
        for lon, lat, *_ in feature["geometry"]["coordinates"][0]:
            assert west < lon < east
            assert south < lat < north
    busy_site.check_books(request["jobId"])
