"""The demo's verdict: what counts as found, found twice, and invented."""

import dataclasses

import pyproj
import pytest

from aws.osml.model_runner.local.demo.scene import EPSG, generate_scene
from aws.osml.model_runner.local.demo.score import Score, score_features


@pytest.fixture(scope="module")
def ships():
    return generate_scene(1600, seed=3).ships


def feature_at(ship, east_m=0.0, north_m=0.0):
    to_metres = pyproj.Transformer.from_crs(4326, EPSG, always_xy=True)
    x, y = to_metres.transform(ship.longitude, ship.latitude)
    longitude, latitude = to_metres.transform(x + east_m, y + north_m, direction="INVERSE")
    return {"properties": {"center_longitude": longitude, "center_latitude": latitude}}


def test_perfect_result_is_good(ships):
    score = score_features([feature_at(ship) for ship in ships], ships)
    assert dataclasses.replace(score, largest_error_px=0) == Score(len(ships), len(ships), 0, 0, 0)
    assert score.largest_error_px < 0.01
    assert score.is_good


def test_error_is_measured_on_ground_in_pixels(ships):
    score = score_features([feature_at(ship, 0.6, -0.8) for ship in ships], ships)
    assert score.largest_error_px == pytest.approx(1.0, abs=0.01)


def test_ship_found_twice_spoils_result(ships):
    features = [*(feature_at(ship) for ship in ships), feature_at(ships[0], 1.0)]
    score = score_features(features, ships)
    assert (score.found, score.doubles, score.is_good) == (len(ships), 1, False)


def test_distant_feature_matches_no_ship(ships):
    far = [feature_at(ship, 2.5) for ship in ships]
    assert score_features(far, ships).found == 0
    assert not score_features(far, ships).is_good


def test_feature_without_ship_is_false_alarm(ships):
    score = score_features([*(feature_at(ship) for ship in ships), feature_at(ships[0], 0, 50_000)], ships)
    assert score.false_alarms == 1


@pytest.mark.parametrize(("found", "is_good"), [(100, True), (99, True), (98, False)])
def test_one_ship_in_hundred_may_be_missed(found, is_good):
    assert Score(100, found, 0, 0, 0.0).is_good is is_good


def test_score_accepts_no_features_and_no_ships(ships):
    assert score_features([], ships).found == 0
    assert score_features([feature_at(ships[0])], []).false_alarms == 1
