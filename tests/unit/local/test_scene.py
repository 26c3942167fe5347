"""The demo's harbour: the same every time, ships at the listed positions, none touching."""

import itertools
import math
from collections import Counter

import numpy as np
import pytest
from scipy import ndimage

from aws.osml.model_runner.local.demo.scene import GEOTRANSFORM, generate_scene
from aws.osml.model_runner.local.demo.ships import BOAT, FERRY, FREIGHTER, Ship, draw_ship
from aws.osml.model_runner.local.demo.texture import Wave, periodic_noise, stretch_rows, tile_rows, wave_rows

SIZE = 2400


@pytest.fixture(scope="module")
def scene():
    return generate_scene(SIZE, seed=5)


def ship_at(x=50.0, y=40.0, heading_deg=0.0, ship_class=BOAT, length=16.0, **options):
    return Ship(x, y, length, length / 3, heading_deg, ship_class, ship_class.decks[0], **options)


def test_scene_is_same_for_same_seed_and_another_for_another(scene):
    again, other = generate_scene(SIZE, seed=5), generate_scene(SIZE, seed=6)
    assert scene.pixels.shape == (SIZE, SIZE, 3)
    assert scene.pixels.dtype == np.uint8
    assert np.array_equal(again.pixels, scene.pixels)
    assert again.ships == scene.ships
    assert other.ships != scene.ships


def test_scene_has_ships_of_every_kind_in_many_directions(scene):
    kinds = Counter(ship.ship_class.name for ship in scene.ships)
    assert set(kinds) == {"boat", "trawler", "ferry", "freighter"}
    assert len({round(ship.heading_deg / 30) for ship in scene.ships}) >= 8
    assert any(ship.is_under_way for ship in scene.ships)


def test_ships_keep_clear_of_each_other_and_of_border(scene):
    for a, b in itertools.combinations(scene.ships, 2):
        assert math.hypot(a.x - b.x, a.y - b.y) > (a.width_px + b.width_px) / 2 + 3
    for ship in scene.ships:
        assert all(10 < place < SIZE - 10 for corner in ship.corners() for place in corner)


def test_ships_are_brighter_than_water(scene):
    brightness = scene.pixels.mean(axis=2)
    for ship in scene.ships:
        assert brightness[int(ship.y), int(ship.x)] > 100
    assert np.median(brightness[SIZE // 2 :]) < 60


def test_longitude_and_latitude_follow_from_pixel(scene):
    ship = scene.ships[0]
    east, north = GEOTRANSFORM[0] + ship.x * GEOTRANSFORM[1], GEOTRANSFORM[3] + ship.y * GEOTRANSFORM[5]
    # Metres per degree by the radii of the WGS84 ellipsoid at this latitude, measured from zone 31's central meridian.
    sine = math.sin(math.radians(ship.latitude))
    radius = 6378137 / math.sqrt(1 - 0.00669438 * sine**2)
    arc = math.radians(3 - ship.longitude) * radius * math.cos(math.radians(ship.latitude))
    assert 0.9996 * arc == pytest.approx(500_000 - east, rel=1e-3)
    assert 110_000 * ship.latitude < north < 111_700 * ship.latitude


@pytest.mark.parametrize("heading_deg", [0, 37, 90, 180, 301.5])
@pytest.mark.parametrize("ship_class", [BOAT, FERRY, FREIGHTER])
def test_ship_is_drawn_at_its_position(heading_deg, ship_class):
    image = np.full((160, 170, 3), 20, np.uint8)
    ship = ship_at(81.3, 77.8, heading_deg, ship_class, ship_class.length_px[0])
    draw_ship(image, ship)
    rows, columns = np.nonzero(image.mean(axis=2) > 70)
    xs, ys = [x for x, _ in ship.corners()], [y for _, y in ship.corners()]
    assert min(xs) - 1 < columns.min() + 0.5
    assert columns.max() + 0.5 < max(xs) + 1
    assert min(ys) - 1 < rows.min() + 0.5
    assert rows.max() + 0.5 < max(ys) + 1
    u, v = ship.to_ship_axes(columns + 0.5, rows + 0.5)
    assert u.max() - u.min() == pytest.approx(ship.length_px - 1, abs=1.5)
    assert u.max() + u.min() == pytest.approx(0, abs=1.2)
    assert v.max() + v.min() == pytest.approx(0, abs=1.2)
    assert ndimage.label(image.mean(axis=2) > 70)[1] == 1


def test_bow_points_where_ship_heads():
    image = np.full((80, 80, 3), 20, np.uint8)
    draw_ship(image, ship_at(40, 40, heading_deg=90, ship_class=FERRY, length=60))
    bright = image.mean(axis=2) > 100
    columns = np.nonzero(bright.any(axis=0))[0]
    assert bright[:, columns[-1]].sum() < bright[:, columns[0]].sum()


def test_wake_is_faint_and_behind():
    still, moving = (np.full((300, 300, 3), 40, np.uint8) for _ in range(2))
    draw_ship(still, ship_at(150, 60, 0, FERRY, 60))
    draw_ship(moving, ship_at(150, 60, 0, FERRY, 60, is_under_way=True))
    difference = moving.astype(int) - still
    rows = np.nonzero(difference.any(axis=(1, 2)))[0]
    assert rows.min() >= 88
    assert 5 < difference.max() < 20


def test_ship_past_border_is_cut_and_not_error():
    image = np.full((40, 40, 3), 20, np.uint8)
    draw_ship(image, ship_at(1.0, 39.5))
    before = image.copy()
    draw_ship(image, ship_at(500.0, 500.0))
    assert image.max() > 100
    assert np.array_equal(image, before)


def test_texture_by_blocks_is_texture_in_one_piece():
    rng = np.random.default_rng(1)
    grid, pattern = rng.random((5, 7), dtype=np.float32), periodic_noise(rng, 64, 1.5)
    for rows in (
        lambda start, stop: stretch_rows(grid, 90, 120, start, stop),
        lambda start, stop: tile_rows(pattern, 120, start, stop),
        lambda start, stop: wave_rows((Wave(17, 30, 1.0), Wave(40, 0, 2.0)), 120, start, stop),
    ):
        whole = rows(0, 90)
        assert whole.shape == (90, 120)
        assert np.allclose(np.vstack([rows(0, 33), rows(33, 90)]), whole, atol=1e-5)
    assert pattern.mean() == pytest.approx(0, abs=1e-3)
    assert pattern.std() == pytest.approx(1, abs=1e-3)


def test_waves_are_sines_of_position():
    rows = wave_rows((Wave(17, 30, 1.5), Wave(40, 90, 2.0)), 50, 3, 9)
    y, x = np.mgrid[3:9, 0:50]
    along = x * math.cos(math.radians(30)) + y * math.sin(math.radians(30))
    assert np.allclose(rows, 1.5 * np.sin(2 * math.pi * along / 17) + 2 * np.sin(2 * math.pi * y / 40), atol=1e-4)
