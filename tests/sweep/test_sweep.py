"""A few of the images of ``run.py``, and with ``--long`` some hundred."""

import random

from sweep.images import damaged, sound_images
from sweep.run import sweep


def test_neither_sound_nor_damaged_images_harm_a_worker(is_long, tmp_path):
    report = sweep(names=None if is_long else FEW, damaged_count=300 if is_long else len(FEW), seed=1, kept=tmp_path)
    assert report.problems == []
    assert report.statuses.total() >= 2 * len(FEW)
    assert report.statuses["SUCCESS"] >= len(FEW)


FEW = ("uint8.tif", "3.jpg", "wide.jp2", "c3.ntf", "many-gcps.tif", "geostationary.tif")


def test_a_file_is_damaged_in_another_way_each_time(tmp_path):
    path = tmp_path / "uint8.tif"
    sound_images()["uint8.tif"](path)
    rng, body = random.Random(1), path.read_bytes()
    assert len({damaged(rng, body) for _ in range(50)} - {body}) > 40
