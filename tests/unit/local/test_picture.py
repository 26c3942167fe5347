"""The demo's picture: outlines where the features are, a caption, and the densest part enlarged."""

import numpy as np
import pytest
from PIL import Image

from aws.osml.model_runner.local.demo.picture import BAND_PX, INSET_PX, MARGIN_PX, OUTLINE, PICTURE_PX, draw_picture


def feature(left, top, width=40, height=20):
    ring = [[left, top], [left + width, top], [left + width, top + height], [left, top + height], [left, top]]
    return {"properties": {"imageGeometry": {"type": "Polygon", "coordinates": [ring]}}}


def draw(tmp_path, size, features):
    path = tmp_path / "picture.png"
    draw_picture(np.full((size, size, 3), 30, np.uint8), features, "title", "caption", path)
    with Image.open(path) as picture:
        return np.asarray(picture.convert("RGB")).astype(int)


def is_outline(pixels):
    return np.abs(pixels - OUTLINE).sum(axis=-1) < 40


@pytest.mark.parametrize("size", [400, 1600, 3200])
def test_picture_has_one_size_for_any_scene(tmp_path, size):
    assert draw(tmp_path, size, []).shape == (PICTURE_PX + BAND_PX, PICTURE_PX, 3)


def test_outline_surrounds_feature(tmp_path):
    picture = draw(tmp_path, 1600, [feature(1200, 300)])
    rows, columns = np.nonzero(is_outline(picture[200:420, 1100:1340]))
    assert (columns.min() + 1100, rows.min() + 200) == pytest.approx((1197, 297), abs=2)
    assert (columns.max() + 1100, rows.max() + 200) == pytest.approx((1243, 323), abs=2)
    assert (picture[305:315, 1205:1235] == 30).all()


def test_inset_enlarges_densest_part(tmp_path):
    crowd = [feature(1300 + 60 * column, 100 + 40 * row) for column in range(4) for row in range(6)]
    picture = draw(tmp_path, 1600, [feature(1500, 1500), *crowd])
    inset = picture[PICTURE_PX - INSET_PX - MARGIN_PX : PICTURE_PX - MARGIN_PX, MARGIN_PX : MARGIN_PX + INSET_PX]
    assert is_outline(inset).sum() > 24 * 60


def test_scene_too_small_for_inset_has_none(tmp_path):
    picture = draw(tmp_path, 400, [feature(300, 50)])
    assert (picture[900:1500, 30:600] == 30).all()
