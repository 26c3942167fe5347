"""The detector that really looks at pixels: each ship once, at its position, and nothing else."""

import itertools
import math

import numpy as np
import pytest

from aws.osml.model_runner.local.demo.scene import generate_scene
from aws.osml.model_runner.local.demo.ships import BOAT, FERRY, FREIGHTER, TRAWLER, Ship, draw_ship
from aws.osml.model_runner.local.models.bright_objects import BrightObjects, find_objects, oriented_box

SEA = (14, 44, 64)
SIZE = 2400


def sea(height=256, width=256, colour=SEA, seed=1):
    noise = np.random.default_rng(seed).normal(0, 2, (height, width, 1))
    return np.clip(np.array(colour) + noise, 0, 255).astype(np.uint8)


def ship_at(x, y, heading_deg=30.0, ship_class=TRAWLER, length=30.0, slenderness=3.4):
    return Ship(x, y, length, length / slenderness, heading_deg, ship_class, ship_class.decks[0])


def detect(image, **settings):
    return find_objects(np.moveaxis(image, 2, 0), BrightObjects(**settings))["features"]


def middle_of(feature):
    [ring] = feature["properties"]["imageGeometry"]["coordinates"]
    return np.mean(ring[:4], axis=0)


@pytest.fixture(scope="module")
def scene():
    return generate_scene(SIZE, seed=7)


@pytest.mark.parametrize("corner", [(0, 0), (0, 1376), (300, 700), (688, 688), (1376, 0), (1376, 1376)])
def test_each_ship_of_tile_is_found_once(scene, corner):
    top, left = corner
    features = detect(scene.pixels[top : top + 1024, left : left + 1024])
    found = [np.add(middle_of(feature), (left, top)) for feature in features]
    whole = [ship for ship in scene.ships if is_within(ship, top, left, margin=2)]
    touched = [ship for ship in scene.ships if is_within(ship, top, left, margin=-2)]
    for ship in whole:
        assert sum(math.dist(place, (ship.x, ship.y)) < 1 for place in found) == 1
    for place in found:
        assert any(math.dist(place, (ship.x, ship.y)) < 1 for ship in touched)


def is_within(ship, top, left, margin):
    return all(
        left + margin < x < left + 1024 - margin and top + margin < y < top + 1024 - margin for x, y in ship.corners()
    )


def test_tiles_of_test_scene_hold_ships_land_and_buildings(scene):
    assert sum(is_within(ship, 300, 700, 2) for ship in scene.ships) >= 40
    assert len([ship for ship in scene.ships if ship.y < SIZE * 0.4]) >= 40


@pytest.mark.parametrize("heading_deg", range(0, 360, 25))
@pytest.mark.parametrize(("ship_class", "length"), [(BOAT, 14), (TRAWLER, 30), (FERRY, 60), (FREIGHTER, 100)])
def test_box_has_center_length_and_direction_of_ship(ship_class, length, heading_deg):
    image = sea()
    ship = ship_at(120.4, 130.7, heading_deg, ship_class, length)
    draw_ship(image, ship)
    [feature] = detect(image)
    [ring] = feature["properties"]["imageGeometry"]["coordinates"]
    sides = [math.dist(a, b) for a, b in itertools.pairwise(ring)]
    long = np.argmax(sides[:2])
    keel = np.subtract(ring[long + 1], ring[long])
    off_course = math.degrees(math.atan2(keel[0], -keel[1])) - heading_deg
    assert math.dist(middle_of(feature), (ship.x, ship.y)) < 1
    assert max(sides) == pytest.approx(ship.length_px, abs=1.6)
    assert min(sides) == pytest.approx(ship.width_px, abs=1.4)
    assert abs((off_course + 90) % 180 - 90) < (6 if ship_class is BOAT else 3)


def test_response_follows_model_contract():
    image = sea()
    draw_ship(image, ship_at(100, 100))
    [feature] = detect(image)
    properties = feature["properties"]
    ring = properties["imageGeometry"]["coordinates"][0]
    assert feature["type"] == "Feature"
    assert feature["geometry"] is None
    assert ring[0] == ring[-1]
    xs, ys = zip(*ring, strict=True)
    assert properties["imageBBox"] == [min(xs), min(ys), max(xs), max(ys)]
    assert properties["featureClasses"][0]["iri"] == "ship"
    assert 0.5 < properties["featureClasses"][0]["score"] <= 1


@pytest.mark.parametrize(("x", "y"), [(3, 100), (253, 100), (100, 2), (100, 254), (1, 1)])
def test_ship_cut_by_tile_s_edge_is_left_to_neighbour(x, y):
    image = sea()
    draw_ship(image, ship_at(x, y))
    assert detect(image) == []


def test_brighter_ship_scores_higher():
    scores = []
    for deck in ((90, 110, 120), (150, 170, 170), (235, 235, 235)):
        image = sea()
        ship = ship_at(100, 100, ship_class=FERRY, length=60)
        draw_ship(image, Ship(ship.x, ship.y, 60, 14, 30, FERRY, deck))
        scores.append(detect(image)[0]["properties"]["featureClasses"][0]["score"])
    assert scores == sorted(scores)
    assert len(set(scores)) == 3


def painted(*rectangles, colour=SEA):
    image = sea(colour=colour)
    for top, left, bottom, right, fill in rectangles:
        image[top:bottom, left:right] = fill
    return image


@pytest.mark.parametrize(
    "image",
    [
        sea(),
        painted((0, 0, 256, 120, (142, 139, 132))),  # a quay
        painted((60, 60, 90, 100, (226, 226, 222)), colour=(142, 139, 132)),  # a roof on concrete
        painted((60, 60, 90, 100, (226, 226, 222)), colour=(92, 108, 66)),  # a house in a meadow
        painted((40, 20, 46, 230, (168, 158, 142))),  # a pontoon, far too long
        painted((100, 100, 103, 103, (255, 255, 255))),  # a buoy, far too small
        painted((100, 100, 101, 140, (255, 255, 255))),  # a scratch
        painted((60, 60, 64, 100, (230, 230, 230)), (60, 60, 100, 64, (230, 230, 230))),  # an angle is not compact
        painted((60, 60, 90, 72, (30, 60, 80))),  # hardly brighter than the sea
    ],
)
def test_other_objects_are_not_reported(image):
    assert detect(image) == []


@pytest.mark.parametrize(("data_type", "scale"), [(np.uint16, 40), (np.float32, 0.01), (np.complex64, 3)])
def test_pictures_of_one_band_and_any_type_work(data_type, scale):
    image = sea(512, 512, (20, 20, 20))
    ships = [ship_at(100, 100), ship_at(300, 260, 80, FREIGHTER, 100)]
    for ship in ships:
        draw_ship(image, ship)
    tile = (image[..., :1].astype(np.float64) * scale).astype(data_type)
    found = [middle_of(feature) for feature in detect(tile)]
    assert len(found) == 2
    for place, ship in zip(found, ships, strict=True):
        assert math.dist(place, (ship.x, ship.y)) < 1


@pytest.mark.parametrize("shape", [(1, 1), (3, 200), (65, 63), (130, 1025)])
def test_tiles_of_odd_sizes_work(shape):
    assert detect(sea(*shape)) == []


def test_empty_tile_of_floats_has_no_detection():
    assert find_objects(np.zeros((1, 64, 64), np.float32), BrightObjects())["features"] == []


def test_oriented_box_of_rectangle_of_pixels_is_that_rectangle():
    x, y = np.meshgrid(np.arange(10, 50) + 0.5, np.arange(20, 28) + 0.5)
    box = oriented_box(x.ravel(), y.ravel())
    assert (box.length_px, box.width_px, box.fill) == (40, 8, 1)
    assert sorted(map(tuple, box.corners.tolist())) == [(10, 20), (10, 28), (50, 20), (50, 28)]
