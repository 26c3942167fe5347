"""Regions of interest and places in many projections, held against GDAL's own transformation of each pixel."""

import numpy as np
import pytest
import shapely
from osgeo import gdal, osr

from aws.osml.model_runner.common.typing import ImageCoord, ImageDimensions, ImageRegion
from aws.osml.model_runner.features.geolocation_grid import LocationGrid
from aws.osml.model_runner.jobs.image_roi import interest_in
from aws.osml.model_runner.raster import RasterSettings, image_to_world, is_quick
from aws.osml.model_runner.raster.sensor_model import build_sensor_model
from aws.osml.model_runner.tile_worker import VariableOverlapTilingStrategy
from aws.osml.model_runner.tiling.region_plan import TilePlanner

WIDTH, HEIGHT, TILE_PX = 120, 80, 10
WORLD = 20_037_508.34
NEAR = np.array([(x, y) for x in np.linspace(-0.75, 0.75, 7) for y in np.linspace(-0.75, 0.75, 7)])
GEOS = "+proj=geos +h=35786023 +ellps=GRS80 +units=m +sweep=x"

# Coordinate system, left, top, right, bottom in its units.
IMAGES = {
    "world": ("EPSG:4326", -180, 90, 180, -90),
    "world from 0": ("EPSG:4326", 0, 90, 360, -90),
    "world from 0, rows half beyond the poles": ("EPSG:4326", -1.5, 91.125, 358.5, -91.125),
    "across the antimeridian": ("EPSG:4326", 170, 20, 200, 0),
    "plate carree": ("EPSG:32662", -WORLD, 1e7, WORLD, -1e7),
    "mercator": ("EPSG:3857", -WORLD, WORLD, WORLD, -WORLD),
    "mercator from the antimeridian on": ("EPSG:3857", -WORLD - 5e5, 5e5, -WORLD + 2.5e6, -1.5e6),
    "mercator up to the antimeridian": ("EPSG:3857", WORLD - 2e6, 5e5, WORLD + 1e6, -1.5e6),
    "mercator around the Pacific": ("EPSG:3832", -9e6, 6e6, 9e6, -6e6),
    "ease": ("EPSG:6933", -17_367_530, 7_314_540, 17_367_530, -7_314_540),
    "ease north": ("EPSG:6931", -9e6, 9e6, 9e6, -9e6),
    "utm": ("EPSG:32633", 3e5, 5_100_000, 6e5, 4_900_000),
    "utm at the antimeridian": ("EPSG:32601", 1e5, 6_700_000, 5e5, 6_300_000),
    "state plane in feet": ("EPSG:2263", 980_000, 200_000, 980_400, 199_700),
    "british grid": ("EPSG:27700", 0, 1_000_000, 700_000, 0),
    "conus albers": ("EPSG:5070", -2_400_000, 3_200_000, 2_300_000, 200_000),
    "europe lambert": ("EPSG:3034", 2e6, 5e6, 7e6, 1e6),
    "europe azimuthal": ("EPSG:3035", 2e6, 5.5e6, 7e6, 1.2e6),
    "polar north": ("EPSG:3413", -4e6, 4e6, 4e6, -4e6),
    "polar south": ("EPSG:3031", -4e6, 4e6, 4e6, -4e6),
    "near the pole": ("EPSG:3413", -60_000, 50_000, 60_000, -30_000),
    "ups": ("EPSG:5041", 1e6, 3e6, 3e6, 1e6),
    "mollweide": ("ESRI:54009", -18_040_096, 9_020_048, 18_040_096, -9_020_048),
    "robinson": ("ESRI:54030", -17_005_833, 8_625_154, 17_005_833, -8_625_154),
    "equal earth": ("EPSG:8857", -17_243_959, 8_392_928, 17_243_959, -8_392_928),
    "sinusoidal": ("+proj=sinu +R=6371007.181", -20_015_109, 10_007_554, 20_015_109, -10_007_554),
    "a tile of modis": ("+proj=sinu +R=6371007.181", -16_679_258, 7_783_653, -13_343_406, 4_447_802),
    "homolosine": ("+proj=igh +R=6371007", -20_015_109, 8_673_532, 20_015_109, -8_673_532),
    "orthographic": ("+proj=ortho +lat_0=40 +lon_0=170 +R=6371007", -6.4e6, 6.4e6, 6.4e6, -6.4e6),
    "azimuthal": ("+proj=laea +lat_0=-30 +lon_0=179 +R=6371007", -1.27e7, 1.27e7, 1.27e7, -1.27e7),
    "full disk": (f"{GEOS} +lon_0=-75", -5_434_895, 5_434_895, 5_434_895, -5_434_895),
    "full disk over the antimeridian": (f"{GEOS} +lon_0=179", -5_434_895, 5_434_895, 5_434_895, -5_434_895),
}

INTERESTS = [
    shapely.box(-180, -90, 180, 90),
    shapely.box(170, -30, 190, 30),
    shapely.box(-190, 40, -170, 80),
    shapely.box(-20, 84, 100, 90),
    shapely.box(-100, -90, -60, -60),
    shapely.box(-125, 25, 30, 60),
    shapely.Polygon([(-110, 10), (-60, 70), (20, 50), (40, -20), (-30, -40)], holes=[[(-60, 20), (-20, 45), (0, 0)]]),
    shapely.box(12.6, 45.1, 14.2, 45.9),
]


def dataset_of(name):
    crs, left, top, right, bottom = IMAGES[name]
    dataset = gdal.GetDriverByName("MEM").Create("", WIDTH, HEIGHT, 1)
    dataset.SetGeoTransform((left, (right - left) / WIDTH, 0, top, 0, (bottom - top) / HEIGHT))
    system = osr.SpatialReference()
    system.SetFromUserInput(crs)
    dataset.SetSpatialRef(system)
    return dataset


def truth_of(dataset, pixels):
    """Return longitude and latitude by GDAL, NaN where its way back leads to another place."""
    transform, system, degrees = dataset.GetGeoTransform(), dataset.GetSpatialRef(), osr.SpatialReference()
    degrees.ImportFromEPSG(4326)
    for each in (system, degrees):
        each.SetAxisMappingStrategy(osr.OAMS_TRADITIONAL_GIS_ORDER)
    projected = np.column_stack(
        [
            transform[0] + pixels[:, 0] * transform[1],
            transform[3] + pixels[:, 1] * transform[5],
        ]
    )
    if system.IsGeographic() or not len(pixels):
        return np.where(np.abs(projected[:, 1:]) <= 90, projected, np.nan)
    there, back = osr.CoordinateTransformation(system, degrees), osr.CoordinateTransformation(degrees, system)
    gdal.PushErrorHandler("CPLQuietErrorHandler")
    places = np.array(there.TransformPoints(projected.tolist()))[:, :2]
    again = np.array(back.TransformPoints(places.tolist()))[:, :2]
    gdal.PopErrorHandler()
    off = np.abs(again - projected)
    if system.ExportToProj4().startswith(("+proj=merc", "+proj=eqc", "+proj=cea")):
        off[:, 0] = np.minimum(off[:, 0], np.abs(off[:, 0] - 2 * WORLD))
    places[~(off < abs(transform[1])).all(axis=1)] = np.nan
    return places


def pixel_degrees(dataset):
    return dataset.GetGeoTransform()[1] * (1 if dataset.GetSpatialRef().IsGeographic() else 1 / 111_320)


def centres_of():
    xs, ys = np.meshgrid(np.arange(0.5, WIDTH), np.arange(0.5, HEIGHT))
    return np.column_stack([xs.ravel(), ys.ravel()])


def inside(roi, places):
    return np.any([shapely.contains_xy(roi, places[:, 0] + turn, places[:, 1]) for turn in (-360, 0, 360)], axis=0)


@pytest.mark.parametrize("name", IMAGES)
def test_tiles_equal_those_that_touch_region_of_interest(name):
    dataset = dataset_of(name)
    model = build_sensor_model(dataset, RasterSettings())
    pixels = centres_of()
    places = truth_of(dataset, pixels)
    whole = ImageRegion(ImageCoord(0, 0), ImageDimensions(WIDTH, HEIGHT))
    square = ImageDimensions(TILE_PX, TILE_PX)
    for roi in INTERESTS[list(IMAGES).index(name) % 3 :: 3]:
        shape = interest_in(model, WIDTH, HEIGHT, roi)
        planner = TilePlanner(VariableOverlapTilingStrategy(), square, ImageDimensions(0, 0), shape)
        planned = {tuple(tile.bounds.origin) for tile in planner.tiles(whole)}
        wanted = pixels[inside(roi, places)] // TILE_PX * TILE_PX
        lost = {(int(row), int(col)) for col, row in wanted} - planned
        assert not lost, f"{roi}: lost {lost}"
        # A point in each part of the shape, and points less than a pixel away from it.
        parts = shapely.get_coordinates(shapely.point_on_surface(shapely.get_parts(shape)))[::31]
        around = (parts[:, None] + NEAR).reshape(-1, 2)
        is_near = inside(roi.buffer(pixel_degrees(dataset)), truth_of(dataset, around))
        is_right = is_near.reshape(len(parts), len(NEAR)).any(axis=1)
        assert is_right.all(), f"{roi}: invented {parts[~is_right]}"


@pytest.mark.parametrize("name", IMAGES)
def test_pixels_lie_where_gdal_transforms_them(name):
    dataset = dataset_of(name)
    model = build_sensor_model(dataset, RasterSettings())
    pixels = centres_of()
    truth = truth_of(dataset, pixels)
    whole = ImageRegion(ImageCoord(0, 0), ImageDimensions(WIDTH, HEIGHT))
    grid = LocationGrid.from_sensor_model(image_to_world(model), whole, is_quick=is_quick(model))
    found = grid.locate(pixels)
    np.testing.assert_array_equal(np.isnan(found[:, 0]), np.isnan(truth[:, 0]))
    is_place = ~np.isnan(truth[:, 0])
    pixel = pixel_degrees(dataset)
    assert np.abs(found[is_place, 1] - truth[is_place, 1]).max() < 0.1 * pixel
    east = found[is_place, 0] - truth[is_place, 0]
    off = np.abs(east - 360 * np.round(east / 360)) * np.cos(np.radians(truth[is_place, 1]))
    assert off.max() < 0.1 * pixel
