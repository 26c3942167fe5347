"""Positions through whole jobs: any scale, odd sizes, turned images and regions of interest, against the affine map."""

import itertools
import math
from dataclasses import dataclass

import numpy as np
import pytest
import shapely
from hypothesis import HealthCheck, Phase, assume, given, settings
from hypothesis import strategies as st
from osgeo import gdal, osr

from aws.osml.model_runner.common.typing import ImageDimensions, ImageRegion
from aws.osml.model_runner.local.stack.model_server import ModelServer, create_model
from aws.osml.model_runner.raster import write_geotiff
from aws.osml.model_runner.raster.gdal_values import memory_folder
from aws.osml.model_runner.tile_worker import VariableOverlapTilingStrategy
from examples import examples

TILE_PX, OVERLAP_PX, REGION_PX = 128, 20, 512
MAX_SIDE_PX = 1_501
EPSG = 32631
job_numbers = itertools.count()


@dataclass(frozen=True)
class Scene:
    """An image, the pixels of the model, and a region of interest in shares of the image's sides."""

    width: int
    height: int
    turn: float
    pixel_m: tuple[float, float]
    is_mirrored: bool
    scale: float | None
    gsd: float | None
    interest: tuple[tuple[float, float], ...] | None

    @property
    def transform(self):
        """GDAL's geotransform, of which the columns are turned by ``turn``."""
        (across, down), cos, sin = self.pixel_m, math.cos(self.turn), math.sin(self.turn)
        down = down if self.is_mirrored else -down
        return (500_000.0, across * cos, -down * sin, 5_400_000.0, across * sin, down * cos)

    @property
    def ratio(self):
        """Image pixels per model pixel, in x and y."""
        if self.gsd is None:
            return (1 / self.scale, 1 / self.scale)
        return (self.gsd / self.pixel_m[0], self.gsd / self.pixel_m[1])

    @property
    def asked(self):
        return {"scale": self.scale} if self.gsd is None else {"gsd": self.gsd}

    @property
    def polygon(self):
        """The region of interest in image pixels."""
        if self.interest is None:
            return None
        corners = [(x * self.width, y * self.height) for x, y in self.interest]
        return shapely.Polygon(corners).intersection(shapely.box(0, 0, self.width, self.height))

    def ground(self, pixels):
        """Return x and y in the projection of (n, 2) pixels."""
        t, (x, y) = self.transform, np.transpose(pixels)
        return np.column_stack([t[0] + t[1] * x + t[2] * y, t[3] + t[4] * x + t[5] * y])


@st.composite
def scenes(draw):
    scale = math.exp(draw(st.floats(math.log(0.05), math.log(8))))
    sides = [draw(st.integers(20, 560)) / scale for _ in range(2)]
    width, height = (2 * (min(max(3, round(side)), MAX_SIDE_PX) // 2) + 1 for side in sides)
    pixel_m = draw(st.tuples(st.floats(0.3, 2), st.floats(0.3, 2)))
    by_size = draw(st.booleans()) and max(pixel_m) / 7.99 < pixel_m[0] / scale < min(pixel_m) / 0.051
    share = st.floats(0.02, 0.98)
    return Scene(
        width=width,
        height=height,
        turn=draw(st.floats(0, 2 * math.pi)),
        pixel_m=pixel_m,
        is_mirrored=draw(st.booleans()),
        scale=None if by_size else scale,
        gsd=pixel_m[0] / scale if by_size else None,
        interest=draw(st.none() | st.tuples(*[st.tuples(share, share)] * 3)),
    )


def to_lonlat(places):
    """Return longitude and latitude by GDAL's own transformation."""
    utm, wgs84 = osr.SpatialReference(), osr.SpatialReference()
    utm.ImportFromEPSG(EPSG)
    wgs84.ImportFromEPSG(4326)
    for system in (utm, wgs84):
        system.SetAxisMappingStrategy(osr.OAMS_TRADITIONAL_GIS_ORDER)
    return np.array(osr.CoordinateTransformation(utm, wgs84).TransformPoints(places.tolist()))[:, :2]


def planned_boxes(scene):
    """Return the boxes, in image pixels, of all tiles of the plan over the region of interest."""
    across, down = scene.ratio
    size = [max(1, math.floor(side / step + 0.5)) for side, step in ((scene.width, across), (scene.height, down))]
    left, top, right, bottom = 0, 0, *size
    if scene.polygon is not None:
        inside = shapely.transform(scene.polygon, lambda pixels: pixels / (across, down))
        sides = inside.intersection(shapely.box(0, 0, *size)).bounds
        # A side so close to the edge of a pixel may be on either side of it.
        assume(all(abs(side - round(side)) > 0.02 for side in sides))
        left, top, right, bottom = (*map(math.floor, sides[:2]), *map(math.ceil, sides[2:]))
    strategy = VariableOverlapTilingStrategy()
    tile, overlap = ImageDimensions(TILE_PX, TILE_PX), ImageDimensions(OVERLAP_PX, OVERLAP_PX)
    bounds = ImageRegion.of(((top, left), (right - left, bottom - top)))
    regions = strategy.compute_regions(bounds, ImageDimensions(REGION_PX, REGION_PX), tile, overlap)
    tiles = [tile_ for region in regions for tile_ in strategy.compute_tiles(region, tile, overlap)]
    return [shapely.box(t.origin.col * across, t.origin.row * down, t.right * across, t.bottom * down) for t in tiles]


def sure_and_possible(scene):
    """Return the middles of tiles that the plan must have, and the middles of tiles that it may have."""
    boxes, polygon = planned_boxes(scene), scene.polygon
    if polygon is None:
        return [box.centroid.coords[0] for box in boxes], [box.centroid.coords[0] for box in boxes]
    slack = 0.02 * max(*scene.ratio, 1.0)
    core, hull = polygon.buffer(-slack), polygon.buffer(slack)
    return (
        [box.centroid.coords[0] for box in boxes if box.intersection(core).area > 0],
        [box.centroid.coords[0] for box in boxes if box.intersects(hull)],
    )


class PlacedModel(ModelServer):
    """Answers with the middle of each tile, and keeps where the tile's own georeference has that middle."""

    def __init__(self):
        super().__init__(create_model("centerpoint"))
        self.middles = []

    def _invoke(self, request):
        with memory_folder() as folder:
            gdal.FileFromMemBuffer(f"{folder}/tile.tif", request.body)
            dataset = gdal.Open(f"{folder}/tile.tif")
            middle = dataset.RasterXSize / 2, dataset.RasterYSize / 2
            self.middles.append(gdal.ApplyGeoTransform(dataset.GetGeoTransform(), *middle))
            del dataset
        return super()._invoke(request)


def farthest(found, expected):
    """Return the greatest distance of a point of ``found`` from the nearest of ``expected``."""
    distances = np.linalg.norm(np.array(found)[:, None] - np.array(expected)[None], axis=2)
    return distances.min(axis=1).max()


# A job takes a second, so examples are neither many nor made smaller.
@pytest.mark.timeout(600)
@settings(
    examples(60, least=4),
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    phases=[Phase.explicit, Phase.reuse, Phase.generate],
)
@given(scene=scenes())
def test_positions_are_those_of_affine_map(worker, tmp_path, scene):
    assume(scene.polygon is None or scene.polygon.area > 9 * math.prod(scene.ratio))
    assume(scene.polygon is None or isinstance(scene.polygon, shapely.Polygon))
    sure, possible = sure_and_possible(scene)
    assume(sure)
    job_id, path = f"job-{next(job_numbers)}", tmp_path / f"{next(job_numbers)}.tif"
    write_geotiff(path, np.zeros((1, scene.height, scene.width), np.uint8), scene.transform, EPSG)
    changes = {"imageProcessorInput": scene.asked}
    if scene.polygon is not None:
        corners = to_lonlat(scene.ground(np.array(scene.polygon.exterior.coords)))
        changes["regionOfInterest"] = shapely.Polygon(corners).wkt
    with PlacedModel() as model:
        request = worker.request(
            path,
            model.invocations_url,
            job_id,
            imageProcessorTileSize=TILE_PX,
            imageProcessorTileOverlap=OVERLAP_PX,
            imageProcessorTileFormat="GTIFF",
            postProcessing=[{"step": "FEATURE_DISTILLATION", "algorithm": {"algorithmType": "NONE"}}],
            **changes,
        )
        worker.image_handler.process_image_request(request)
        worker.work_off()
    job, features = worker.jobs.get_image_request(request.image_id), worker.result(job_id)
    path.unlink()
    assert (job.image_status, job.width, job.height) == ("SUCCESS", scene.width, scene.height), job.message
    boxes = np.array([feature["properties"]["imageBBox"] for feature in features])
    found = (boxes[:, :2] + boxes[:, 2:]) / 2
    # Every tile that must be in the plan has its feature within 0.01 pixel, and no feature is of another tile.
    assert farthest(found, possible) <= 0.01
    assert farthest(sure, found) <= 0.01
    assert len(sure) <= len(features) == job.tile_count <= len(possible)
    # The georeference of each tile has its middle there, and so have longitude and latitude.
    ground, step_m = scene.ground(found), min(scene.pixel_m)
    assert farthest(model.middles, ground) <= 0.01 * step_m
    assert farthest(ground, model.middles) <= 0.01 * step_m
    places = np.array([[f["properties"]["center_longitude"], f["properties"]["center_latitude"]] for f in features])
    off_m = (places - to_lonlat(ground)) * (111_320 * math.cos(math.radians(48.7)), 111_132)
    assert np.linalg.norm(off_m, axis=1).max() <= 0.05 * step_m


def test_scene_has_turned_and_mirrored_pixels_of_their_size():
    scene = Scene(3, 5, 0.7, (0.5, 2.0), False, 0.5, None, None)
    corners = scene.ground(np.array([[0, 0], [1, 0], [0, 1]]))
    assert np.linalg.norm(corners[1] - corners[0]) == pytest.approx(0.5)
    assert np.linalg.norm(corners[2] - corners[0]) == pytest.approx(2.0)
    assert np.dot(corners[1] - corners[0], corners[2] - corners[0]) == pytest.approx(0.0, abs=1e-9)
