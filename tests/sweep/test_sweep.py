"""Some hundred of the images of ``run.py``."""

import random

import pytest

from sweep.images import damaged, sound_images
from sweep.run import sweep


@pytest.mark.long
@pytest.mark.timeout(900)
def test_worker_survives_sound_and_damaged_images(tmp_path):
    report = sweep(damaged_count=300, seed=1, kept=tmp_path)
    assert report.problems == []
    assert report.statuses.total() >= 300
    assert report.statuses["SUCCESS"] >= 6


def test_file_is_damaged_in_another_way_each_time(tmp_path):
    path = tmp_path / "uint8.tif"
    sound_images()["uint8.tif"](path)
    rng, body = random.Random(1), path.read_bytes()
    assert len({damaged(rng, body) for _ in range(50)} - {body}) > 40
