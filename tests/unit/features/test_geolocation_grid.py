"""A grid of sensor model points stands for the sensor model: within its error bound, with few points."""

import math

import numpy as np
import pyproj
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aws.osml.model_runner.common.typing import ImageRegion
from aws.osml.model_runner.features import LocationGrid
from examples import examples

EARTH_RADIUS_M = 6_371_000.0


class CountingModel:
    """Any map from pixels to the ground, which remembers the pixels it was asked for."""

    def __init__(self, locate):
        self.locate = locate
        self.asked = []

    def __call__(self, xy):
        self.asked.append(xy)
        return self.locate(xy)

    @property
    def asked_points(self):
        return np.concatenate(self.asked)


def degrees_model(longitude=10.0, latitude=20.0, step=1e-5, height=0.0):
    """An image whose rows and columns follow longitude and latitude."""

    def locate(xy):
        longitudes = (longitude + step * xy[:, 0] + 180.0) % 360.0 - 180.0
        return np.column_stack([longitudes, latitude - step * xy[:, 1], np.full(len(xy), height)])

    return locate


def projected_model(epsg, left, top, pixel_m):
    """An image in a map projection, north up."""
    to_degrees = pyproj.Transformer.from_crs(epsg, 4326, always_xy=True)

    def locate(xy):
        longitudes, latitudes = to_degrees.transform(left + pixel_m * xy[:, 0], top - pixel_m * xy[:, 1])
        return np.column_stack([longitudes, latitudes, np.zeros(len(xy))])

    return locate


def wavy_model(wave_px, height_px=3.0):
    """An image that a sensor waving in flight took: no cubic spans a wave."""
    straight = degrees_model()

    def locate(xy):
        return straight(xy + height_px * np.sin(2 * np.pi * xy / wave_px))

    return locate


def region(row, col, width, height):
    return ImageRegion.of(((row, col), (width, height)))


def random_pixels(bounds, count=500, beyond_px=0):
    (row, col), (width, height) = bounds
    rng = np.random.default_rng(7)
    low, high = [col - beyond_px, row - beyond_px], [col + width + beyond_px, row + height + beyond_px]
    return rng.uniform(low, high, (count, 2))


def distances_m(found, true):
    """Great circle distances, exact for short ones (haversine)."""
    (lon_1, lat_1), (lon_2, lat_2) = np.radians(found[:, :2]).T, np.radians(true[:, :2]).T
    chord = np.sin((lat_2 - lat_1) / 2) ** 2 + np.cos(lat_1) * np.cos(lat_2) * np.sin((lon_2 - lon_1) / 2) ** 2
    return 2 * EARTH_RADIUS_M * np.arcsin(np.sqrt(chord))


SMOOTH_MODELS = {
    "degrees": (degrees_model(), 1e-5 * 111_000),
    "utm at 0.5 m": (projected_model(32633, 400_000, 5_000_000, 0.5), 0.5),
    "utm far north": (projected_model(32633, 400_000, 9_000_000, 0.5), 0.5),
    "around the antimeridian": (degrees_model(longitude=179.96), 1e-5 * 111_000),
    "over the pole": (projected_model(3413, -4000, 4000, 1.0), 1.0),
    "web mercator": (projected_model(3857, 1_000_000, 6_000_000, 0.6), 0.4),
}


@pytest.mark.parametrize("name", SMOOTH_MODELS)
def test_pixels_of_region_are_off_by_less_than_tolerance(name):
    model, pixel_m = SMOOTH_MODELS[name]
    bounds = region(0, 0, 8192, 8192)
    pixels = random_pixels(bounds, beyond_px=10)

    found = LocationGrid.from_sensor_model(model, bounds).locate(pixels)

    assert distances_m(found, model(pixels)).max() <= 0.1 * pixel_m
    assert np.abs(found[:, 0]).max() <= 180
    np.testing.assert_array_equal(found[:, 2], 0.0)


def test_whole_world_image_is_located():
    model = degrees_model(longitude=-180.0, latitude=90.0, step=0.1)
    bounds = region(0, 0, 3600, 1800)
    pixels = random_pixels(bounds)

    found = LocationGrid.from_sensor_model(model, bounds).locate(pixels)

    assert distances_m(found, model(pixels)).max() <= 0.1 * 0.1 * 111_000


def test_linear_model_needs_one_grid_and_its_middles():
    model = CountingModel(degrees_model())

    LocationGrid.from_sensor_model(model, region(0, 0, 4096, 4096))

    assert len(model.asked_points) == 5 * 5 + 4 * 4


def test_wavy_model_gets_denser_grid_without_repeated_points():
    wave = wavy_model(4000)
    model = CountingModel(wave)
    bounds = region(0, 0, 4000, 4000)
    pixels = random_pixels(bounds)

    found = LocationGrid.from_sensor_model(model, bounds).locate(pixels)

    assert distances_m(found, wave(pixels)).max() <= 0.1 * 1e-5 * 111_000
    assert len(model.asked_points) > 9 * 9
    assert len(np.unique(model.asked_points, axis=0)) == len(model.asked_points)


@pytest.mark.parametrize(("max_nodes", "points"), [(5, 25 + 1), (8, 25 + 1), (9, 81 + 4), (17, 289 + 16)])
def test_refinement_ends_at_node_limit_and_returns_error(max_nodes, points):
    model = CountingModel(wavy_model(37))

    grid = LocationGrid.from_sensor_model(model, region(0, 0, 4000, 4000), max_nodes=max_nodes)

    assert len(model.asked_points) == points
    assert grid.error_px > 0.05


def test_quick_model_locates_points_when_grid_is_too_coarse():
    wave, bounds = wavy_model(37), region(0, 0, 4000, 4000)
    pixels = random_pixels(bounds)

    grid = LocationGrid.from_sensor_model(wave, bounds, is_quick=True)

    np.testing.assert_allclose(grid.locate(pixels), wave(pixels), atol=1e-12)


def test_cut_of_map_between_two_nodes_is_found():
    def cut(xy):
        world = degrees_model()(xy)
        world[(xy[:, 0] > 1500) & (xy[:, 0] < 1650), 0] += 20
        return world

    bounds = region(0, 0, 4000, 4000)
    pixels = random_pixels(bounds)

    found = LocationGrid.from_sensor_model(cut, bounds, is_quick=True).locate(pixels)

    np.testing.assert_allclose(found, cut(pixels), atol=1e-9)


def test_finer_tolerance_requests_more_points():
    coarse, fine = CountingModel(wavy_model(4000)), CountingModel(wavy_model(4000))

    LocationGrid.from_sensor_model(coarse, region(0, 0, 4000, 4000), tolerance_px=0.5)
    LocationGrid.from_sensor_model(fine, region(0, 0, 4000, 4000), tolerance_px=0.005)

    assert len(fine.asked_points) > len(coarse.asked_points)


@pytest.mark.parametrize(("row", "col"), [(0, 0), (700, 90_000)])
@pytest.mark.parametrize(("width", "height"), [(1, 1), (1, 5000), (5000, 1)])
def test_region_of_one_pixel_is_region(row, col, width, height):
    bounds = region(row, col, width, height)
    model = degrees_model()
    pixels = random_pixels(bounds)

    found = LocationGrid.from_sensor_model(model, bounds).locate(pixels)

    np.testing.assert_allclose(found, model(pixels), atol=1e-9)


def test_longitudes_stay_within_half_turn_on_both_sides_of_antimeridian():
    grid = LocationGrid.from_sensor_model(degrees_model(longitude=179.99), region(0, 0, 2000, 10))

    longitudes = grid.locate(np.array([[0.0, 0.0], [900.0, 0.0], [1100.0, 0.0], [2000.0, 0.0]]))[:, 0]

    np.testing.assert_allclose(longitudes, [179.99, 179.999, -179.999, -179.99], atol=1e-9)


def test_elevation_is_linear_between_nodes():
    def cliff(xy):
        return np.column_stack([1e-5 * xy[:, 0], 1e-5 * xy[:, 1], np.where(xy[:, 0] < 500, 0.0, 300.0)])

    grid = LocationGrid.from_sensor_model(cliff, region(0, 0, 1000, 1000))

    elevations = grid.locate(random_pixels(region(0, 0, 1000, 1000), beyond_px=500))[:, 2]

    assert elevations.min() == pytest.approx(0, abs=1e-9)
    assert elevations.max() == pytest.approx(300, abs=1e-9)


@given(
    beyond=st.tuples(st.floats(-1e5, 1e5), st.floats(-1e5, 1e5)),
    longitude=st.sampled_from([-180.0, 10.0, 179.99]),
    latitude=st.sampled_from([-89.99, 0.0, 60.0]),
)
@examples(60)
def test_location_is_finite_far_beyond_grid(beyond, longitude, latitude):
    grid = LocationGrid.from_sensor_model(degrees_model(longitude, latitude), region(0, 0, 512, 512))

    ((found_longitude, found_latitude, elevation),) = grid.locate(np.array([beyond]))

    assert abs(found_longitude) <= 180
    assert abs(found_latitude) <= 90
    assert elevation == 0


def test_map_is_linear_beyond_grid():
    model = projected_model(32633, 400_000, 5_000_000, 0.5)
    bounds = region(0, 0, 1024, 1024)
    pixels = random_pixels(bounds, beyond_px=1024)

    found = LocationGrid.from_sensor_model(model, bounds).locate(pixels)

    assert distances_m(found, model(pixels)).max() < 0.5


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("is_quick", [True, False])
def test_only_pixels_off_earth_have_no_location(bad, is_quick):
    def disk(xy):
        world = degrees_model()(xy)
        world[np.hypot(xy[:, 0] - 500, xy[:, 1] - 500) > 480] = bad
        return world

    bounds = region(0, 0, 1000, 1000)
    pixels = random_pixels(bounds, count=2000)
    truth = disk(pixels)
    is_on_earth = np.isfinite(truth[:, 0])

    found = LocationGrid.from_sensor_model(disk, bounds, is_quick=is_quick).locate(pixels)

    is_found = ~np.isnan(found[:, 0])
    assert not is_found[~is_on_earth].any()
    assert is_found[is_on_earth].mean() > (0.999 if is_quick else 0.9)
    np.testing.assert_allclose(found[is_found], truth[is_found], atol=1e-9)


def test_no_pixels_have_no_locations():
    grid = LocationGrid.from_sensor_model(degrees_model(), region(0, 0, 10, 10))

    assert grid.locate(np.empty((0, 2))).shape == (0, 3)


@pytest.mark.parametrize("is_quick", [True, False])
def test_pixels_at_one_location_are_located_there(is_quick):
    def one_location(xy):
        return np.tile([10.0, 20.0, 0.0], (len(xy), 1))

    grid = LocationGrid.from_sensor_model(one_location, region(0, 0, 100, 100), is_quick=is_quick)

    np.testing.assert_allclose(grid.locate(np.array([[50.0, 50.0]]))[0], [10.0, 20.0, 0.0], atol=1e-9)
