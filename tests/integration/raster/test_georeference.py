"""Where pixels are on the Earth: each kind of georeference against GDAL's own answer, and the way back."""

import re
import threading
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import numpy as np
import pytest
import structlog
from aws.osml.photogrammetry import (
    ChippedImageSensorModel,
    CompositeSensorModel,
    ConstantElevationModel,
    GDALAffineSensorModel,
    GeodeticWorldCoordinate,
    ImageCoordinate,
    ProjectiveSensorModel,
    RPCSensorModel,
)
from hypothesis import given
from hypothesis import strategies as st
from osgeo import gdal
from pyproj import Geod, Transformer

from aws.osml.model_runner.exceptions import LoadImageException
from aws.osml.model_runner.raster import (
    RasterSettings,
    extents,
    georeference,
    georeference_of,
    image_to_world,
    open_elevation_model,
    open_image,
    world_to_image,
    write_geotiff,
)
from aws.osml.model_runner.raster.control_points import ControlPointModel
from aws.osml.model_runner.raster.rpc import RPCModel
from aws.osml.model_runner.raster.sensor_model import build_sensor_model
from aws.osml.model_runner.raster.solution import default_height
from raster_files import UTM_31N, pattern, place, rpc_metadata, sample_path, write_image, write_sicd

SETTINGS = RasterSettings()
POINTS = np.array([[0.0, 0.0], [0.5, 0.5], [123.25, 77.75], [300.0, 200.0], [-10.0, 500.0]])
# Turned by 30 degrees, 0.5 m pixels.
TURNED = (500000.0, 0.5 * np.cos(0.52), 0.5 * np.sin(0.52), 5400000.0, 0.5 * np.sin(0.52), -0.5 * np.cos(0.52))
LONLAT = (10.0, 0.001, 0.0, 20.0, 0.0, -0.001)


def opened(tmp_path, driver="GTiff", name="image", **georeference):
    path = write_image(tmp_path / name, pattern(1, 200, 300), driver, **georeference)
    return open_image(place(path), SETTINGS)


def gcps(locate, count=4):
    """Return control points on the image's corners and inside; ``locate`` maps x, y to X, Y."""
    pixels = [(0, 0), (300, 0), (300, 200), (0, 200), (150, 100), (75, 50)][:count]
    return [gdal.GCP(*locate(x, y), 0.0, float(x), float(y)) for x, y in pixels]


def by_toolkit(model, points):
    """The plain version: one point after the other by the toolkit itself."""
    places = [model.image_to_world(ImageCoordinate(point)) for point in points]
    return np.array([[np.degrees(p.longitude), np.degrees(p.latitude), p.elevation] for p in places])


# Affine


@pytest.mark.parametrize(
    ("geo_transform", "epsg"), [(UTM_31N, 32631), (TURNED, 32631), (LONLAT, 4326), (UTM_31N, 3857), (LONLAT, 4269)]
)
def test_affine_images_are_located_at_once_as_toolkit_does_one_by_one(tmp_path, geo_transform, epsg):
    source = opened(tmp_path, geo_transform=geo_transform, epsg=epsg)
    assert isinstance(source.sensor_model, GDALAffineSensorModel)

    places = image_to_world(source.sensor_model)(POINTS)

    np.testing.assert_allclose(places, by_toolkit(source.sensor_model, POINTS), rtol=0, atol=1e-12)
    np.testing.assert_allclose(world_to_image(source.sensor_model, places[:, :2]), POINTS, atol=1e-4)


def test_many_threads_locate_with_one_transformer(tmp_path, monkeypatch):
    locate = image_to_world(opened(tmp_path, geo_transform=UTM_31N, epsg=32631).sensor_model)
    expected, transform, users = locate(POINTS), Transformer.transform, set()

    def noted(self, *arguments, **options):
        users.add(threading.current_thread().name)
        return transform(self, *arguments, **options)

    monkeypatch.setattr(Transformer, "transform", noted)
    with ThreadPoolExecutor(4) as threads:
        places = list(threads.map(lambda _: locate(POINTS), range(20)))
    assert len(users) == 1
    assert all((found == expected).all() for found in places)


@given(
    st.floats(1e-6, 0.05),
    st.floats(-3.1, 3.1),
    st.floats(-170, 170),
    st.floats(-70, 70),
    st.lists(st.tuples(st.floats(0, 20), st.floats(0, 20)), min_size=1, max_size=8),
)
def test_any_turned_grid_is_located_as_toolkit_does(size, turn, west, north, points):
    terms = [west, size * np.cos(turn), size * np.sin(turn), north, size * np.sin(turn), -size * np.cos(turn)]
    model = GDALAffineSensorModel(terms)

    places = image_to_world(model)(np.array(points))

    np.testing.assert_allclose(places, by_toolkit(model, points), rtol=0, atol=1e-9)


@pytest.mark.parametrize("count", [0, 1, 2])
def test_few_points_and_none_are_arrays_too(tmp_path, count):
    source = opened(tmp_path, geo_transform=UTM_31N, epsg=32631)

    assert image_to_world(source.sensor_model)(POINTS[:count]).shape == (count, 3)
    assert world_to_image(source.sensor_model, np.empty((0, 2))).shape == (0, 2)


def test_grid_of_degrees_is_longitude_and_latitude_without_crs(tmp_path):
    source = opened(tmp_path, geo_transform=LONLAT)

    np.testing.assert_allclose(image_to_world(source.sensor_model)(np.array([[100.0, 50.0]]))[0], [10.1, 19.95, 0.0])


@pytest.mark.parametrize(
    "geo_transform",
    [
        None,
        (0.0, 1.0, 0.0, 0.0, 0.0, 1.0),
        UTM_31N,  # metres of an unknown system
        (0.0, 1.0, 0.0, 80.0, 0.0, -0.5),  # as large as degrees, but a pixel is one
        (0.0, 0.0, 0.0, 20.0, 0.0, 0.0),  # cannot be inverted
    ],
)
def test_georeference_is_absent_without_coordinate_system(tmp_path, geo_transform):
    source = opened(tmp_path, geo_transform=geo_transform)

    assert source.sensor_model is None
    with pytest.raises(LoadImageException, match="no georeference"):
        extents(source)


@pytest.mark.parametrize("driver", ["PNG", "JPEG"])
def test_pictures_have_no_georeference_and_take_none_from_neighbour(tmp_path, driver):
    (tmp_path / "image.wld").write_text("0.001\n0\n0\n-0.001\n10\n20\n")
    (tmp_path / "image.aux.xml").write_text(
        "<PAMDataset><GeoTransform>10,0.001,0,20,0,-0.001</GeoTransform></PAMDataset>"
    )

    assert opened(tmp_path, driver, name="image").sensor_model is None


def test_coordinate_system_that_is_not_of_earth_is_no_georeference(tmp_path):
    path = tmp_path / "local.tif"
    dataset = gdal.GetDriverByName("GTiff").Create(str(path), 30, 20, 1, gdal.GDT_Byte)
    dataset.SetGeoTransform((0.0, 1.0, 0.0, 0.0, 0.0, -1.0))
    dataset.SetProjection('LOCAL_CS["a drawing",UNIT["metre",1]]')
    del dataset
    with structlog.testing.capture_logs() as logs:
        source = open_image(place(path), SETTINGS)

    assert source.sensor_model is None
    assert "image.georeference_unreadable" in [entry["event"] for entry in logs]


# Ground control points


@pytest.mark.parametrize("count", [4, 6])
def test_control_points_in_degrees(tmp_path, count):
    def locate(x, y):
        return 10.0 + 0.001 * x + 0.0002 * y, 20.0 - 0.001 * y + 0.0001 * x

    source = opened(tmp_path, gcps=(gcps(locate, count), 4326))
    assert isinstance(source.sensor_model, ControlPointModel)

    places = image_to_world(source.sensor_model)(POINTS)

    np.testing.assert_allclose(places[:, :2], [locate(x, y) for x, y in POINTS], atol=1e-7)
    np.testing.assert_allclose(places, by_toolkit(source.sensor_model, POINTS), rtol=0, atol=1e-12)
    np.testing.assert_allclose(world_to_image(source.sensor_model, places[:, :2]), POINTS, atol=1e-4)


def test_control_points_in_metres_are_brought_to_degrees(tmp_path):
    source = opened(tmp_path, gcps=(gcps(lambda x, y: (500000.0 + 0.5 * x, 5400000.0 - 0.5 * y)), 32631))
    grid = opened(tmp_path, name="grid", geo_transform=UTM_31N, epsg=32631)

    inside = POINTS[:4]

    expected = image_to_world(grid.sensor_model)(inside)
    np.testing.assert_allclose(image_to_world(source.sensor_model)(inside), expected, atol=1e-7)


def test_three_control_points_fix_affine_map_and_two_do_not(tmp_path):
    def locate(x, y):
        return 10 + x / 1e3, 20 - y / 1e3

    source = opened(tmp_path, gcps=(gcps(locate, 3), 4326))

    np.testing.assert_allclose(image_to_world(source.sensor_model)(POINTS)[:, :2], np.array(locate(*POINTS.T)).T)
    assert georeference_of(source) == ("control points: affine", pytest.approx(0, abs=1e-6))
    assert opened(tmp_path, name="two", gcps=(gcps(locate, 2), 4326)).sensor_model is None


@pytest.mark.parametrize(("latitude", "longitude"), [(45.0, 10.0), (70.0, 178.0), (-86.0, 40.0)])
def test_swath_of_many_control_points_is_located(tmp_path, latitude, longitude):
    geod = Geod(ellps="WGS84")

    def swath(x, y):
        """Return where a radar sees pixels of 100 m: lines leave its track at a right angle, 300 km from it on."""
        track = geod.fwd(np.full_like(x, longitude), np.full_like(x, latitude), np.full_like(x, -12.0), 100 * y)
        return geod.fwd(track[0], track[1], track[2] - 90, 100 * x + 300_000)[:2]

    xs, ys = (axis.ravel() for axis in np.meshgrid(np.linspace(0, 2500, 21), np.linspace(0, 1700, 10)))
    points = [gdal.GCP(lon, lat, 0.0, x, y) for lon, lat, x, y in zip(*swath(xs, ys), xs, ys, strict=True)]
    source = opened(tmp_path, gcps=(points, 4326))
    pixels = np.random.default_rng(0).uniform((0, 0), (2500, 1700), (100, 2))

    places = image_to_world(source.sensor_model)(pixels)

    _, _, off_m = geod.inv(places[:, 0], places[:, 1], *swath(*pixels.T))
    assert off_m.max() < 50
    assert georeference_of(source).error_px < 0.5
    np.testing.assert_allclose(world_to_image(source.sensor_model, places[:, :2]), pixels, atol=1e-3)


def test_wrong_control_point_is_reported(tmp_path):
    points = gcps(lambda x, y: (10 + x / 1e3, 20 - y / 1e3), 6)
    points[2].GCPX += 1.0

    georeference = georeference_of(opened(tmp_path, gcps=(points, 4326)))

    assert georeference.error_px > 100
    assert re.fullmatch(r"places may be off by \d+\.\d pixels \(control points: [a-z -]+\)", georeference.warning)


@pytest.mark.parametrize("west", [10.0, 179.9])
@pytest.mark.parametrize(("corner", "is_good"), [((0.3, 0.2), True), ((0.2, 0.0), False)])
def test_corners_are_bad_where_pixels_do_not_come_back(west, corner, is_good):
    """Four corners of which three lie on one line fix no projective map."""
    corners = [(0.0, 0.0), (0.1, 0.0), corner, (0.0, 0.2)]
    places = [GeodeticWorldCoordinate([*np.radians((west + x, 20.0 - y)), 0.0]) for x, y in corners]
    pixels = [ImageCoordinate(pixel) for pixel in ((0, 0), (300, 0), (300, 200), (0, 200))]
    source = SimpleNamespace(width=300, height=200, sensor_model=ProjectiveSensorModel(places, pixels))

    georeference = georeference_of(source)

    assert georeference.method == "corners"
    assert (georeference.error_px < 0.01) == is_good
    assert bool(georeference.warning) != is_good


def test_georeference_without_any_location_is_reported():
    nowhere = GDALAffineSensorModel([1e9, 1.0, 0.0, 1e9, 0.0, -1.0])

    georeference = georeference_of(SimpleNamespace(width=300, height=200, sensor_model=nowhere))

    assert georeference.error_px == np.inf
    assert georeference.warning == (
        "places are not to be relied on: pixels could not be placed and led back (geotransform)"
    )


def test_control_points_that_no_polynomial_fits_are_met_by_spline(tmp_path):
    def bent(x, y):
        return 10 + x / 1e4 + 1e-3 * np.sin(x / 8), 20 - y / 1e4 + 1e-3 * np.cos(y / 7)

    xs, ys = (axis.ravel() for axis in np.meshgrid(np.linspace(0, 100, 12), np.linspace(0, 80, 12)))
    points = [gdal.GCP(*bent(x, y), 0.0, x, y) for x, y in zip(xs, ys, strict=True)]
    source = opened(tmp_path, gcps=(points, 4326))
    with source.dataset() as dataset:
        transformer = gdal.Transformer(dataset, None, ["METHOD=GCP_TPS"])
        expected, _ = transformer.TransformPoints(0, [(x, y, 0.0) for x, y in POINTS[:5] / 10])

    places = image_to_world(source.sensor_model)(POINTS[:5] / 10)

    assert georeference_of(source).method == "control points: thin-plate spline"
    np.testing.assert_allclose(places[:, :2], np.array(expected)[:, :2], atol=1e-7)


def test_four_corners_across_antimeridian(tmp_path):
    corners = [(179.99, 20.0, 0, 0), (-179.99, 20.001, 400, 0), (-179.991, 19.98, 400, 300), (179.989, 19.979, 0, 300)]
    points = [gdal.GCP(lon, lat, 0.0, x, y) for lon, lat, x, y in corners]
    source = opened(tmp_path, gcps=(points, 4326))

    places = image_to_world(source.sensor_model)(np.array([(0, 0), (400, 0), (200, 150)], dtype=float))

    assert places[0, 0] == pytest.approx(179.99)
    assert places[1, 0] - 360 == pytest.approx(-179.99)
    assert places[2, 0] == pytest.approx(180, abs=0.002)


def test_control_points_off_earth_are_no_georeference(tmp_path):
    points = gcps(lambda x, y: (1e9 + x, 1e9 - y))

    assert opened(tmp_path, gcps=(points, 32631)).sensor_model is None


def test_control_points_on_one_line_are_no_georeference(tmp_path):
    points = [gdal.GCP(10.0 + i / 1e3, 20.0, 0.0, 10.0 * i, 0.0) for i in range(5)]
    with structlog.testing.capture_logs() as logs:
        source = opened(tmp_path, gcps=(points, 4326))

    assert source.sensor_model is None
    assert "lie on one line" in logs[0]["reason"]


def test_corners_of_nitf_across_antimeridian(tmp_path):
    corners = "200000N1795900E200000N1795900W195900N1795900W195900N1795900E"
    path = write_image(tmp_path / "image", pattern(1, 200, 300), "NITF", options=("ICORDS=G", f"IGEOLO={corners}"))
    source = open_image(place(path), SETTINGS)

    places = image_to_world(source.sensor_model)(np.array([(0.5, 0.5), (150, 100), (299.5, 199.5)]))

    np.testing.assert_allclose(places[:, 0] % 360, [179 + 59 / 60, 180, 180 + 1 / 60], atol=1e-6)
    np.testing.assert_allclose(places[:, 1], [20, 19 + 59.5 / 60, 19 + 59 / 60], atol=1e-4)


def test_corners_of_nitf_of_whole_world_are_no_crossing(tmp_path):
    world = (-180.0, 1.2, 0.0, 90.0, 0.0, -0.9)
    source = opened(tmp_path, "NITF", geo_transform=world, epsg=4326)

    assert isinstance(source.sensor_model, GDALAffineSensorModel)


class Stuck(ConstantElevationModel):
    """A sensor model whose search ends at the edge of its domain, as that of RSM does."""

    def image_to_world(self, pixel, elevation_model=None):
        return GeodeticWorldCoordinate([min(0.1, 0.1 + 1e-7 * pixel.x), 0.2, 30.0])

    def world_to_image(self, place):
        return ImageCoordinate([(place.longitude - 0.1) / 1e-7, (0.2 - place.latitude) / 1e-7 + 1e-3 * place.elevation])


def test_search_that_sticks_is_led_on_by_newton():
    model = Stuck(0.0)

    places = image_to_world(model)(POINTS)

    np.testing.assert_allclose(world_to_image(model, places), POINTS, atol=1.0)


# Rational polynomials


@pytest.mark.parametrize("driver", ["GTiff", "NITF"])
def test_rational_cameras_come_from_tags_and_from_tres(tmp_path, driver):
    source = opened(tmp_path, driver, rpc=rpc_metadata())
    assert isinstance(source.sensor_model, RPCSensorModel)

    places = image_to_world(source.sensor_model)(POINTS)

    assert np.all(places[:, 2] == 100.0)
    np.testing.assert_allclose(world_to_image(source.sensor_model, places), POINTS, atol=1e-3)
    np.testing.assert_allclose(world_to_image(source.sensor_model, places[:, :2]), POINTS, atol=1e-3)


@pytest.mark.parametrize("driver", ["GTiff", "NITF"])
def test_rpc_tags_and_tres_locate_pixels_as_gdal_does(tmp_path, driver):
    source = opened(tmp_path, driver, rpc=rpc_metadata())
    with source.dataset() as dataset:
        transformer = gdal.Transformer(dataset, None, ["METHOD=RPC", "RPC_HEIGHT=100"])
        expected, _ = transformer.TransformPoints(0, [(x, y, 0.0) for x, y in POINTS])

    places = image_to_world(source.sensor_model)(POINTS)

    np.testing.assert_allclose(places[:, :2], np.array(expected)[:, :2], atol=2e-6)


def test_newton_agrees_with_toolkit(tmp_path):
    source = opened(tmp_path, rpc=rpc_metadata())

    fast = image_to_world(source.sensor_model)(POINTS)

    plain = by_toolkit(source.sensor_model, POINTS)
    np.testing.assert_allclose(
        world_to_image(source.sensor_model, plain), world_to_image(source.sensor_model, fast), atol=1
    )


def test_points_that_newton_does_not_find_are_left_to_toolkit():
    camera = RPCModel.from_metadata(rpc_metadata())
    far = np.array([[1e9, 1e9], [400.0, 300.0]])

    places = camera.to_world(far, 100.0)

    assert np.isnan(places[0]).all()
    np.testing.assert_allclose(camera.to_pixels(places[1:]), far[1:], atol=1e-3)


def linear_camera():
    """A camera without curvature: Newton's method finds a solution for any pixel, wherever that is."""
    zeros = " 0.0" * 17
    return rpc_metadata() | {
        "LINE_NUM_COEFF": "0 0 -1" + zeros,
        "LINE_DEN_COEFF": "1 0 0" + zeros,
        "SAMP_NUM_COEFF": "0 1 0" + zeros,
        "SAMP_DEN_COEFF": "1 0 0" + zeros,
    }


@pytest.mark.parametrize("off_the_earth", [(400.0, 1e7), (1e8, 300.0), (1e8, 1e8)])
def test_solution_off_earth_is_no_solution(tmp_path, off_the_earth):
    source = opened(tmp_path, rpc=linear_camera())
    pixels = np.array([off_the_earth, (400.0, 300.0)])

    assert np.isnan(RPCModel.from_metadata(linear_camera()).to_world(pixels, 100.0)[:, 0]).tolist() == [
        True,
        False,
    ]
    for surface in (None, ConstantElevationModel(100.0)):
        places = image_to_world(source.sensor_model, surface)(pixels)
        assert np.isnan(places[:, 0]).tolist() == [True, False]


def test_newton_leaves_far_solutions_to_toolkit(tmp_path):
    source = opened(tmp_path, rpc=linear_camera())
    twenty_scales_south = np.array([[400.5, 300.5 + 20 * 500.0]])

    assert np.isnan(RPCModel.from_metadata(linear_camera()).to_world(twenty_scales_south, 100.0)).all()
    np.testing.assert_allclose(
        image_to_world(source.sensor_model)(twenty_scales_south), [[10.0, 19.8, 100.0]], atol=2e-5
    )


class Cliff(ConstantElevationModel):
    """Ten kilometres high east of a meridian, so that a strip of pixels sees no point of it."""

    def set_elevation(self, world_coordinate):
        world_coordinate.elevation = 10_000.0 if np.degrees(world_coordinate.longitude) > 10.0 else 0.0
        return True


def test_pixel_that_sees_no_point_of_surface_is_placed_at_height_of_camera(tmp_path):
    source = opened(tmp_path, rpc=rpc_metadata())
    pixels = np.array([[500.0, 300.0], [200.0, 300.0]])

    places = image_to_world(source.sensor_model, Cliff(0.0))(pixels)

    np.testing.assert_allclose(places[:, 2], [100.0, 0.0])
    np.testing.assert_allclose(world_to_image(source.sensor_model, places), pixels, atol=1.0)


def test_camera_that_cannot_be_fitted_is_not_encoded():
    # Its denominator vanishes within a scale of its offset.
    camera = RPCModel.from_metadata(
        rpc_metadata() | {"LINE_DEN_COEFF": "0 1 0" + " 0.0" * 17, "LAT_OFF": "20.00004", "LINE_OFF": "-300"}
    )

    with pytest.raises(ValueError, match="cannot be fitted"):
        camera.encodable()


@given(
    st.floats(-40_000, 90_000),
    st.floats(-40_000, 90_000),
    st.floats(-0.4, 0.4),
    st.lists(st.tuples(st.floats(-0.01, 0.01), st.floats(-0.01, 0.01), st.floats(-400, 600)), min_size=1, max_size=5),
)
def test_encodable_camera_sees_same(line, sample, fraction, ground):
    metadata = rpc_metadata(line + fraction, sample - fraction) | {"LAT_OFF": "20.00004", "LONG_SCALE": "0.01234567"}
    camera = RPCModel.from_metadata(metadata)
    places = np.array(ground) + np.array([10.0, 20.0, 0.0])

    encodable = camera.encodable()

    np.testing.assert_allclose(encodable.to_pixels(places), camera.to_pixels(places), atol=1e-6)
    for axis in (encodable.line, encodable.sample):
        assert axis.offset == int(axis.offset) >= 0
    assert RPCModel.from_metadata(encodable.to_metadata()).latitude == encodable.latitude


@pytest.mark.parametrize(
    "broken",
    [
        {"LINE_OFF": "not a number"},
        {"LINE_NUM_COEFF": "1 2 3"},
        {"LAT_SCALE": "0", "LONG_SCALE": "0"},
        {"LINE_DEN_COEFF": " ".join(["0"] * 20)},
        {"LINE_NUM_COEFF": " ".join(["nan"] * 20)},
        {"SAMP_NUM_COEFF": " ".join(["0"] * 19)},
        {"HEIGHT_OFF": "inf"},
        {"LONG_OFF": "1e6"},
    ],
)
def test_broken_camera_is_no_georeference(tmp_path, broken):
    memory = gdal.GetDriverByName("MEM").Create("", 30, 20, 1)
    memory.SetMetadata(rpc_metadata() | broken, "RPC")
    with structlog.testing.capture_logs() as logs:
        assert build_sensor_model(memory, SETTINGS) is None

    assert [entry["event"] for entry in logs] == ["image.georeference_unreadable"]


def test_units_behind_numbers_are_read_over():
    camera = RPCModel.from_metadata(rpc_metadata() | {"LINE_OFF": "+000300.00 pixels"})

    assert camera.line.offset == 300.0


def test_grid_beats_camera_and_camera_beats_control_points(tmp_path):
    both = opened(tmp_path, geo_transform=UTM_31N, epsg=32631, rpc=rpc_metadata())
    points = gcps(lambda x, y: (10 + x / 1e5, 20 - y / 1e5))
    pair = opened(tmp_path, name="pair", gcps=(points, 4326), rpc=rpc_metadata())

    assert isinstance(both.sensor_model, GDALAffineSensorModel)
    assert isinstance(pair.sensor_model, CompositeSensorModel)
    assert default_height(pair.sensor_model) == 100.0
    np.testing.assert_allclose(
        image_to_world(pair.sensor_model)(POINTS),
        image_to_world(opened(tmp_path, name="alone", rpc=rpc_metadata()).sensor_model)(POINTS),
    )


# NITF and SAR


def test_nitf_with_corners_is_affine(tmp_path):
    source = opened(tmp_path, "NITF", geo_transform=LONLAT, epsg=4326)

    assert isinstance(source.sensor_model, GDALAffineSensorModel)
    np.testing.assert_allclose(image_to_world(source.sensor_model)(np.array([[0.0, 0.0]]))[0, :2], [10, 20], atol=1e-3)


@pytest.mark.parametrize("version", [b"1.0.1", b"1.1.0", b"1.2.0", b"1.2.1"])
def test_centre_of_sicd_s_scene_pixel_is_its_scene_point(tmp_path, version):
    path = write_sicd(tmp_path / "sicd.ntf", 300, 400)
    path.write_bytes(re.sub(rb"urn:SICD:1\.\d\.\d", b"urn:SICD:" + version, path.read_bytes()))
    source = open_image(place(path), SETTINGS)

    # SCPPixel is row 150, column 200, and SICD numbers the centres of pixels.
    centre = image_to_world(source.sensor_model)(np.array([[200.5, 150.5]]))

    np.testing.assert_allclose(centre[0], [10.0, 20.0, 50.0], rtol=0, atol=1e-7)
    assert default_height(source.sensor_model) == pytest.approx(50.0, abs=1e-3)
    np.testing.assert_allclose(world_to_image(source.sensor_model, [[10.0, 20.0]]), [[200.5, 150.5]], atol=0.01)


@pytest.mark.parametrize(
    ("name", "inside"), [("umbra_mount_yasur.tiff", (169.449, -19.527)), ("autzen-utm10.ntf", (-123.069, 44.056))]
)
def test_georeferenced_samples_are_located(name, inside):
    source = open_image(place(sample_path(name)), SETTINGS)

    span = extents(source)

    assert span["west"] < inside[0] < span["east"]
    assert span["south"] < inside[1] < span["north"]
    assert span["east"] - span["west"] < 0.02


def test_camera_of_window_uses_height_of_image():
    camera = RPCSensorModel(*[0.0] * 6, 321.0, *[1.0] * 9)
    corners = [ImageCoordinate(point) for point in ([0, 0], [9, 0], [9, 9], [0, 9])]

    assert default_height(ChippedImageSensorModel(corners, corners, camera)) == 321.0


def test_control_points_in_system_that_is_not_of_earth_are_no_georeference():
    memory = gdal.GetDriverByName("MEM").Create("", 300, 200, 1)
    memory.SetGCPs(gcps(lambda x, y: (x, y)), 'LOCAL_CS["a drawing",UNIT["metre",1]]')

    assert build_sensor_model(memory, SETTINGS) is None


# Extents


def test_extents_of_north_up_image(tmp_path):
    source = opened(tmp_path, geo_transform=LONLAT, epsg=4326)

    assert extents(source) == pytest.approx({"north": 20.0, "south": 19.8, "east": 10.3, "west": 10.0})


def test_extents_across_antimeridian_have_west_greater_than_east(tmp_path):
    # UTM zone 1 begins at 180 degrees; this image begins before it.
    source = opened(tmp_path, geo_transform=(166000.0, 5.0, 0.0, 0.0, 0.0, -5.0), epsg=32601)

    span = extents(source)

    assert span["west"] > 179.9
    assert span["east"] < -179.9


@pytest.mark.parametrize(("west", "east"), [(10.0, 310.0), (-310.0, -10.0)])
def test_extents_of_more_than_half_globe_on_one_side_of_greenwich(tmp_path, west, east):
    source = opened(tmp_path, geo_transform=(west, 1.0, 0.0, 20.0, 0.0, -0.01), epsg=4326)

    span = extents(source)

    assert (span["west"], span["east"]) == pytest.approx((west, east))


def test_extents_ignore_corners_off_earth(tmp_path):
    metadata = linear_camera() | {"LAT_OFF": "89.9999", "LAT_SCALE": "1"}
    source = opened(tmp_path, rpc=metadata | {"LINE_OFF": "50.5"})

    assert extents(source)["north"] == pytest.approx(90, abs=0.1)


def test_image_that_is_nowhere_has_no_extents(tmp_path):
    nowhere = SimpleNamespace(width=10, height=10, sensor_model=GDALAffineSensorModel([0, 1, 0, 1000, 0, -1]))

    with pytest.raises(LoadImageException, match="corners"):
        extents(nowhere)


# Elevation


@pytest.fixture
def hills(tmp_path):
    """A tile of elevation that rises by 100 m per degree eastwards from 10 E, 20 N, and a hole in it."""
    heights = np.tile(np.linspace(0, 100, 101, dtype=np.float32), (101, 1))[np.newaxis]
    heights[0, :10, :10] = -32768
    folder = tmp_path / "dem"
    folder.mkdir()
    write_geotiff(folder / "n20_e010_1arc_v3.tif", heights, (10.0, 1 / 101, 0, 21.0, 0, -1 / 101), 4326)
    dataset = gdal.Open(str(folder / "n20_e010_1arc_v3.tif"), gdal.GA_Update)
    dataset.GetRasterBand(1).SetNoDataValue(-32768)
    del dataset
    return folder


def test_elevation_comes_from_tile_under_pixel(tmp_path, hills):
    source = opened(tmp_path, geo_transform=(10.3, 0.001, 0.0, 20.4, 0.0, -0.001), epsg=4326)
    model = open_elevation_model(f"{hills}/")

    places = image_to_world(source.sensor_model, model)(np.array([[0.0, 0.0], [200.0, 100.0]]))

    np.testing.assert_allclose(places[:, 2], [30.0, 50.0], atol=1.0)
    assert model.describe_region(GeodeticWorldCoordinate(np.radians([10.5, 20.5, 0]))) is not None


def test_locations_without_elevation_data_are_unchanged(tmp_path, hills):
    source = opened(tmp_path, geo_transform=(50.0, 0.001, 0.0, 50.0, 0.0, -0.001), epsg=4326)
    model = open_elevation_model(str(hills))

    assert np.all(image_to_world(source.sensor_model, model)(POINTS)[:, 2] == 0.0)


def test_no_location_is_no_elevation_model():
    assert open_elevation_model(None) is None
    assert open_elevation_model("") is None


def test_elevation_is_read_by_many_threads(hills):
    model = open_elevation_model(str(hills))
    failures = []

    def ask(longitude):
        for _ in range(30):
            place_there = GeodeticWorldCoordinate(np.radians([longitude, 20.5, 0.0]))
            model.set_elevation(place_there)
            if abs(place_there.elevation - (longitude - 10) * 100) > 1.0:
                failures.append(longitude)

    threads = [threading.Thread(target=ask, args=(10.2 + i / 10,)) for i in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert not failures


@pytest.mark.parametrize("height", [0.0, 400.0])
def test_camera_on_surface_sees_surface(tmp_path, height):
    source = opened(tmp_path, rpc=rpc_metadata())
    surface = ConstantElevationModel(height)
    few = POINTS[1:3]

    places = image_to_world(source.sensor_model, surface)(few)

    assert np.all(places[:, 2] == height)
    np.testing.assert_allclose(world_to_image(source.sensor_model, places), few, atol=1.0)
    np.testing.assert_allclose(world_to_image(source.sensor_model, places[:, :2], surface), few, atol=1.0)


def test_few_points_of_rpc_are_searched_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """The search of the toolkit takes 10 ms for a point, and an RPC with a pole has many points without a place."""
    searched = []

    class Nowhere:
        def to_world(self, pixels: np.ndarray, height: float) -> np.ndarray:
            return np.full((len(pixels), 3), np.nan)

    def each(pixels: np.ndarray) -> np.ndarray:
        searched.extend(pixels)
        return np.zeros((len(pixels), 3))

    monkeypatch.setattr(georeference.RPCModel, "from_sensor_model", lambda _: Nowhere())
    monkeypatch.setattr(georeference, "default_height", lambda _: 0.0)
    locate = georeference._rational(object(), each)
    places = np.vstack([locate(np.zeros((1_000, 2))) for _ in range(2)])
    assert len(searched) == 32
    assert np.isfinite(places[:, 0]).sum() == 32
