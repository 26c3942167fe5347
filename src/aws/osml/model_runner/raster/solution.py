"""Check of a sensor model's solution, and the errors that a broken georeference raises."""

from typing import Any
from xml.etree.ElementTree import ParseError

import numpy as np
from pyproj.exceptions import ProjError

from aws.osml.photogrammetry import (
    CompositeSensorModel,
    ConstantElevationModel,
    GeodeticWorldCoordinate,
    ImageCoordinate,
    RPCSensorModel,
    geocentric_to_geodetic,
)

from .rpc import is_on_earth

# Errors of the toolkit's builders and pyproj on broken or hostile metadata. defusedxml raises ValueErrors.
UNREADABLE = (
    ArithmeticError,
    AttributeError,
    LookupError,
    ParseError,
    ProjError,
    RuntimeError,
    TypeError,
    ValueError,
)

# The toolkit's own limit for a solution that converged.
CLOSED_PX = 1.0


def is_solution(sensor_model: Any, pixel: ImageCoordinate, place: GeodeticWorldCoordinate) -> bool:
    """Return whether ``place`` lies on the Earth and projects back to ``pixel``.

    The toolkit's solvers return where they stopped, whether they converged or not.
    """
    degrees = np.degrees([[place.longitude, place.latitude]])
    if not is_on_earth(degrees)[0]:
        return False
    projected = sensor_model.world_to_image(place)
    residual_px = np.hypot(projected.x - pixel.x, projected.y - pixel.y)
    return bool(residual_px <= CLOSED_PX)


def default_height(sensor_model: Any) -> float:
    """Return the height in metres that a sensor model uses without an elevation model."""
    if isinstance(sensor_model, CompositeSensorModel):
        return default_height(sensor_model.precision_sensor_model)
    if hasattr(sensor_model, "full_image_sensor_model"):
        return default_height(sensor_model.full_image_sensor_model)
    if isinstance(sensor_model, RPCSensorModel):
        return float(sensor_model.height_off)
    scene_centre = getattr(getattr(sensor_model, "coord_converter", None), "scp_ecf", None)
    return 0.0 if scene_centre is None else float(geocentric_to_geodetic(scene_centre).elevation)


def surface_of(sensor_model: Any) -> Any | None:
    """Return the surface for a sensor model without an elevation model; None to use the model's own surface.

    A SICD's own surface is the plane that touches the Earth at the scene's centre. At the edges of the scene, it
    is tens of metres above the ground.
    """
    precise = getattr(sensor_model, "precision_sensor_model", sensor_model)
    if hasattr(getattr(precise, "coord_converter", None), "scp_ecf"):
        return ConstantElevationModel(default_height(precise))
    ground_domain = getattr(getattr(precise, "context", None), "ground_domain", None)
    return getattr(ground_domain, "default_elevation_model", None)
