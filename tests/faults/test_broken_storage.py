"""A store of images that breaks off in the middle of bodies, and refuses for a while."""

import numpy as np
import pytest
from osgeo import gdal

from aws_proxy.storage import CutBodies, Outage, one_in
from raster_files import write_image


@pytest.fixture(scope="module")
def scene(scenes, tmp_path_factory):
    """The scene of 128 tiles, not compressed and in small blocks, so that it takes many requests."""
    pixels = gdal.Open(str(scenes["full"])).ReadAsArray()[np.newaxis]
    layout = ("TILED=YES", "BLOCKXSIZE=64", "BLOCKYSIZE=64")
    return write_image(tmp_path_factory.mktemp("store") / "scene.tif", pixels, "GTiff", layout)


@pytest.mark.long
@pytest.mark.timeout(300)
def test_store_that_cuts_bodies_and_refuses_for_while_fails_no_tile(new_trial, new_proxy, scene):
    cuts, refusals = CutBodies(one_in(12), "scene.tif"), Outage(40.0, after=15, key="scene.tif")
    proxy = new_proxy(refusals, cuts)
    trial = new_trial(**proxy.environment)
    bucket = trial.site.data_plane.result_bucket
    trial.site.client("s3").upload_file(str(scene), bucket, "in/scene.tif")
    model = trial.model()
    for _ in range(3):
        trial.submit(trial.request(model, f"s3://{bucket}/in/scene.tif"))
    with trial.fleet.worker(), trial.fleet.worker():
        trial.wait(patience_s=240.0)
        books = trial.check()
    assert cuts.cut > 0
    assert refusals.refused > 0
    assert trial.calls_per_tile(books) <= 1.3
