"""Builds the toolkit's sensor model of an opened image from the georeference that the file carries.

The first georeference of this list that can be read is used, the most exact first:

==================  ===============================================================================================
NITF                SICD or SIDD, else RSM, else RPC00B, each beside a rough one (CSCRNA, or corners in IGEOLO)
other formats       a geotransform with a coordinate system, else RPC tags, else three or more ground control points
none of these       no sensor model: features keep their pixels and get no place on the Earth
==================  ===============================================================================================

GDAL returns the identity where a file has no geotransform, so the identity is ignored. Without a coordinate system, a
geotransform is in degrees if all four corners are valid degrees and a pixel is smaller than a degree. Else it is a
local grid and is ignored. Metadata that cannot be understood is ignored with a warning.

The toolkit's builders import the classes of every version of SICD and SIDD. That takes half a second, as long as the
rest of a worker. So they are imported only where a NITF or elevation tiles need them.
"""

import re
from typing import Any

import numpy as np
import numpy.typing as npt
import structlog
from defusedxml import ElementTree
from osgeo import gdal
from pyproj import CRS, Transformer

from aws.osml.photogrammetry import (
    CompositeSensorModel,
    GDALAffineSensorModel,
    ProjectiveSensorModel,
    RPCPolynomial,
    RPCSensorModel,
    SICDSensorModel,
)

from .control_points import ControlPointModel, PlaneMap
from .georeference import image_to_world, transformed
from .rpc import RPCModel
from .settings import RasterSettings
from .solution import UNREADABLE as UNREADABLE

logger = structlog.get_logger(__name__)

_IDENTITY = (0.0, 1.0, 0.0, 0.0, 0.0, 1.0)
_WGS84 = "EPSG:4326"
_HALF_PIXEL = 0.5
_SAR_DOCUMENTS = ("SICD", "SIDD")
_OLDER_SICD = re.compile(r"urn:SICD:(?:1\.[01]\.\d|1\.2\.0)\b")
# Ratio of degrees of longitude to degrees of latitude above which a NITF's corners cross the antimeridian.
_MAX_STRETCH = 20.0
# Points on a side of the lattice at which a georeference is checked.
_PROBES = 5


def build_sensor_model(dataset: Any, settings: RasterSettings) -> Any | None:
    """Return the sensor model of a GDAL dataset, or None when it has no georeference that can be understood."""
    is_nitf = dataset.GetDriver().ShortName == "NITF"
    geo_transform = _geo_transform(dataset)
    rough = _usable(dataset, _control_points, dataset) or _usable(dataset, _affine, dataset, geo_transform)
    if is_nitf:
        if isinstance(rough, GDALAffineSensorModel):
            rough = _usable(dataset, _turned_corners, dataset) or rough
        exact = _usable(dataset, _nitf_model, dataset, settings)
        if isinstance(exact, CompositeSensorModel | ProjectiveSensorModel):
            return exact
        return _refined(rough, exact or _usable(dataset, _rpc_model, dataset))
    if isinstance(rough, GDALAffineSensorModel):
        return rough
    return _refined(rough, _usable(dataset, _rpc_model, dataset))


def parsed_des(dataset: Any, max_bytes: int) -> list[str]:
    """Return the data extension segments of a NITF as GDAL's XML, after a check that they are safe to parse.

    The toolkit passes the XML inside to a parser that is not hardened, so a hardened parser reads it first.
    Raises ValueError where a segment is too large or is an attack, ParseError where a SICD or SIDD is not XML.
    """
    segments = dataset.GetMetadata("xml:DES") or []
    _refuse_large(segments, max_bytes)
    if not segments:
        return []
    from aws.osml.gdal import NITFDESAccessor

    accessor = NITFDESAccessor(segments)
    for segment in accessor.get_segments_by_name("XML_DATA_CONTENT"):
        text = accessor.extract_desdata_xml(segment) or ""
        # The toolkit does not parse other documents.
        if any(name in text for name in _SAR_DOCUMENTS):
            ElementTree.fromstring(text)
    return list(segments)


def _usable(dataset: Any, build: Any, *arguments: Any) -> Any | None:
    """Return the model of ``build`` if it maps a part of the image to the Earth; else None, with a warning."""
    try:
        model = build(*arguments)
        if model is None:
            return None
        # The image's centre, then a lattice that ends half a pixel inside the edges.
        width, height = dataset.RasterXSize, dataset.RasterYSize
        xs, ys = np.meshgrid(np.linspace(0.5, width - 0.5, _PROBES), np.linspace(0.5, height - 0.5, _PROBES))
        probes = np.vstack([[width / 2, height / 2], np.column_stack([xs.ravel(), ys.ravel()])])
        with np.errstate(all="ignore"):
            if np.isfinite(image_to_world(model)(probes)).all(axis=1).any():
                return model
        reason = "no part of the image has a place on the Earth"
    except UNREADABLE as err:
        reason = f"{type(err).__name__}: {err}"
    logger.warning("image.georeference_unreadable", source=build.__name__.strip("_"), reason=reason)
    return None


def _refined(rough: Any | None, exact: Any | None) -> Any | None:
    if rough is None or exact is None:
        return exact or rough
    return CompositeSensorModel(approximate_sensor_model=rough, precision_sensor_model=exact)


def _affine(dataset: Any, geo_transform: list[float] | None) -> Any | None:
    return None if geo_transform is None else GDALAffineSensorModel(geo_transform, dataset.GetProjection())


def _turned_corners(dataset: Any) -> ControlPointModel | None:
    """Return the model of a NITF whose corners lie on both sides of the antimeridian; None for others.

    GDAL's geotransform of such corners goes the wrong way around the Earth.
    """
    transform, system = dataset.GetGeoTransform(), dataset.GetSpatialRef()
    width, height = dataset.RasterXSize, dataset.RasterYSize
    turns = [abs(side * step) for side, step in ((width, transform[1]), (height, transform[2]))]
    if system is None or not system.IsGeographic() or max(turns) < 180.0:
        return None
    of_latitude = max(abs(side * step) for side, step in ((width, transform[4]), (height, transform[5])))
    if max(turns) < _MAX_STRETCH * of_latitude * max(1.0, width / height, height / width):
        return None
    pixels = [(x, y) for x in (0.5, width - 0.5) for y in (0.5, height - 0.5)]
    corners = np.array([gdal.ApplyGeoTransform(transform, x, y) for x, y in pixels])
    return ControlPointModel.fitted(np.array(pixels), corners)


def _control_points(dataset: Any) -> ControlPointModel | None:
    """Return the model of ground control points; None without any, or where they are not on the Earth."""
    points, wkt = dataset.GetGCPs(), dataset.GetGCPProjection()
    if not points:
        return None
    pixels = np.array([(point.GCPPixel, point.GCPLine) for point in points])
    ground = np.array([(point.GCPX, point.GCPY) for point in points])
    if not wkt:
        return ControlPointModel.fitted(pixels, ground) if _are_lonlat(ground.tolist()) else None
    system = CRS.from_string(wkt)
    to_lonlat = Transformer.from_crs(system, _WGS84, always_xy=True)
    lonlat = transformed(to_lonlat, "FORWARD", ground)
    if not np.isfinite(lonlat).all():
        raise ValueError("control points are off the Earth")
    if system.is_geographic:
        return ControlPointModel.fitted(pixels, lonlat)

    def on_earth(plane: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        places = transformed(to_lonlat, "FORWARD", plane)
        with np.errstate(invalid="ignore"):
            is_back = np.abs(transformed(to_lonlat, "INVERSE", places) - plane).max(axis=1, initial=0.0) <= 1.0
        return np.where(is_back[:, None], places, np.nan)

    plane = PlaneMap(on_earth, lambda places: transformed(to_lonlat, "INVERSE", places))
    return ControlPointModel.fitted(pixels, lonlat, plane)


def _nitf_model(dataset: Any, settings: RasterSettings) -> Any | None:
    """Return the toolkit's model of a NITF's TREs and data extension segments; None when it has neither."""
    texts = dataset.GetMetadata("xml:TRE") or []
    _refuse_large(texts, settings.max_xml_bytes)
    tres = ElementTree.fromstring(texts[0]) if texts else None
    segments = parsed_des(dataset, settings.max_xml_bytes)
    if tres is None and not segments:
        return None
    from aws.osml.gdal import NITFDESAccessor, SensorModelFactory, SensorModelTypes

    accessor = NITFDESAccessor(segments)
    texts = [accessor.extract_desdata_xml(des) or "" for des in accessor.get_segments_by_name("XML_DATA_CONTENT") or []]
    older = next((text for text in texts if _OLDER_SICD.search(text)), None)
    if any("SIDD" in text for text in texts):
        older = None
    model = SensorModelFactory(
        dataset.RasterXSize,
        dataset.RasterYSize,
        xml_tres=tres,
        xml_dess=segments if older is None else [],
        selected_sensor_model_types=list(SensorModelTypes),
    ).build()
    _count_from_corner(model)
    if older is None:
        return model
    from aws.osml.gdal.sicd_sensor_model_builder import SICDSensorModelBuilder

    # The schema of SICD 1.2.1 holds all elements of older versions.
    exact = SICDSensorModelBuilder(sicd_xml=_OLDER_SICD.sub("urn:SICD:1.2.1", older)).build()
    _count_from_corner(exact)
    return _refined(model, exact)


def _count_from_corner(model: Any) -> None:
    """Shift an RPC, SICD or SIDD to count pixels from the corner of the first pixel, as all sensor models here do.

    RPC00B numbers the centre of the first pixel (0, 0), in NITF as in tags of a GeoTIFF. So do SICD (volume 1, 4.1.1)
    and SIDD. RSM counts from the corner.
    """
    exact = getattr(model, "precision_sensor_model", model)
    exact = getattr(exact, "full_image_sensor_model", exact)
    if isinstance(exact, RPCSensorModel):
        exact.line_off += _HALF_PIXEL
        exact.samp_off += _HALF_PIXEL
    elif isinstance(exact, SICDSensorModel):
        exact.coord_converter.scp_pixel.c += _HALF_PIXEL
        exact.coord_converter.scp_pixel.r += _HALF_PIXEL


def _rpc_model(dataset: Any) -> Any | None:
    metadata = dataset.GetMetadata("RPC")
    if not metadata:
        return None
    rpc = RPCModel.from_metadata(metadata)
    model = RPCSensorModel(
        rpc.error_bias,
        rpc.error_random,
        rpc.line.offset,
        rpc.sample.offset,
        rpc.latitude.offset,
        rpc.longitude.offset,
        rpc.height.offset,
        rpc.line.scale,
        rpc.sample.scale,
        rpc.latitude.scale,
        rpc.longitude.scale,
        rpc.height.scale,
        *(RPCPolynomial(row.tolist()) for row in rpc.polynomials),
    )
    _count_from_corner(model)
    return model


def _refuse_large(texts: list[str], max_bytes: int) -> None:
    if sum(map(len, texts)) > max_bytes:
        raise ValueError(f"metadata of more than {max_bytes} bytes")


def _geo_transform(dataset: Any) -> list[float] | None:
    """Return the geotransform if it maps pixels to the Earth; else None."""
    values = dataset.GetGeoTransform(can_return_null=True)
    if values is None or tuple(values) == _IDENTITY:
        return None
    if values[1] * values[5] == values[2] * values[4]:
        logger.warning("image.georeference_unreadable", source="geo_transform", reason="it cannot be inverted")
        return None
    if dataset.GetProjection():
        return list(values)
    width, height = dataset.RasterXSize, dataset.RasterYSize
    corners = [gdal.ApplyGeoTransform(values, x, y) for x in (0, width) for y in (0, height)]
    is_small = max(abs(values[i]) for i in (1, 2, 4, 5)) < 1.0
    return list(values) if is_small and _are_lonlat(corners) else None


def _are_lonlat(places: list[tuple[float, float]]) -> bool:
    return all(abs(x) <= 180.0 and abs(y) <= 90.0 for x, y in places)
