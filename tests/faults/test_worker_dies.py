"""Jobs whose worker is killed or stopped, or runs beside another worker."""

import signal

import numpy as np
import pytest

from aws.osml.model_runner.raster.pixels import write_geotiff
from faults.forkserver import Fleet
from worker_process import Site, eventually, kill

TILES = 64


@pytest.fixture(scope="module")
def image(tmp_path_factory):
    path = tmp_path_factory.mktemp("images") / "scene.tif"
    write_geotiff(path, np.zeros((1, 1024, 1024), np.uint8), (0.0, 1e-5, 0.0, 0.0, 0.0, -1e-5), epsg=4326)
    return path


@pytest.fixture
def site(emulator, data_plane, tmp_path):
    return Site(emulator, data_plane, tmp_path)


@pytest.fixture
def fleet(site, forkserver, tmp_path):
    """Workers of ``site``, forked instead of started."""
    running = Fleet(forkserver, lambda **more: site.environment(REGION_LEASE_S="1", **more), tmp_path)
    yield running
    running.kill_all()


@pytest.fixture
def slow_model(model_server):
    """A model that takes long enough for a worker to be caught in the middle."""
    return model_server("failure", outcomes={"200": 1}, latency_ms=(80, 120))


def small_tiles(site, image, model):
    return site.request(str(image), model.invocations_url, imageProcessorTileSize=128, imageProcessorTileOverlap=0)


def test_job_is_resumed_by_another_worker_when_its_worker_is_killed(site, image, slow_model):
    """With workers that are started as everybody starts them."""
    request = small_tiles(site, image, slow_model)
    with site.worker(REGION_LEASE_S="1") as first:
        site.submit(request)
        eventually(lambda: slow_model.stats()["requests"] > TILES // 4)
        kill(first)
    with site.worker(REGION_LEASE_S="1"):
        assert site.wait_for_end(request["jobId"])[-1] == "SUCCESS"
    assert len(site.features(request["jobId"])) == TILES
    # Only what was in flight when the worker died is asked again.
    assert slow_model.stats()["requests"] <= TILES + 2 * 4
    ids = site.stream_ids(request["jobId"])
    assert len(set(ids)) == TILES
    site.check_books(request["jobId"])


def test_worker_releases_its_work_and_exits_with_0_when_it_stops(site, fleet, image, slow_model):
    request = small_tiles(site, image, slow_model)
    first = fleet.start()
    site.submit(request)
    eventually(lambda: slow_model.stats()["requests"] > TILES // 4)
    first.send(signal.SIGTERM)
    assert first.wait() == 0
    open_regions = [row for row in site.rows("REGION_REQUEST_TABLE") if "end_time" not in row]
    assert {row["stalled_attempts"]["N"] for row in open_regions} == {"0"}
    assert {row["lease_until"]["N"] for row in open_regions} == {"0"}
    with fleet.worker():
        assert site.wait_for_end(request["jobId"])[-1] == "SUCCESS"
    # Every tile that the model had answered was committed before the exit.
    assert slow_model.stats()["requests"] <= TILES + 4
    site.check_books(request["jobId"])


def test_two_workers_share_regions_and_each_tile_is_called_once(site, fleet, image, slow_model):
    request = small_tiles(site, image, slow_model)
    with fleet.worker() as first, fleet.worker() as second:
        site.submit(request)
        assert site.wait_for_end(request["jobId"])[-1] == "SUCCESS"
        assert all("region.finished" in worker.log_text() for worker in (first, second))
    assert slow_model.stats()["requests"] == TILES
    site.check_books(request["jobId"])
