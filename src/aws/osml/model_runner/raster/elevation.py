"""The surface of the Earth from a folder of elevation tiles, for images whose pixels depend on it."""

import threading
from typing import Any

from aws.osml.photogrammetry import (
    DigitalElevationModel,
    ElevationModel,
    ElevationRegionSummary,
    GeodeticWorldCoordinate,
    SRTMTileSet,
)


class SharedElevationModel(ElevationModel):  # type: ignore[misc]  # the toolkit has no types
    """An elevation model that several threads may ask; the toolkit's keeps its tiles in a cache without a lock."""

    def __init__(self, model: ElevationModel) -> None:
        super().__init__()
        self._model = model
        self._lock = threading.Lock()

    def set_elevation(self, world_coordinate: GeodeticWorldCoordinate) -> bool:
        """Set the place's elevation in metres; return False, and leave it, where there is no data."""
        with self._lock:
            return bool(self._model.set_elevation(world_coordinate))

    def describe_region(self, world_coordinate: GeodeticWorldCoordinate) -> ElevationRegionSummary | None:
        """Return what is known of the tile at a place; None where there is none."""
        with self._lock:
            return self._model.describe_region(world_coordinate)


def open_elevation_model(location: str | None, extension: str = ".tif", version: str = "1arc_v3") -> Any | None:
    """Return the elevation model of a folder or an ``s3://`` prefix that holds tiles as SRTM names them; None for None.

    A tile is ``<location>/n47_e034_<version><extension>``. Nothing is read before the first place is asked for; a tile
    that is missing leaves places as they are, since there is none over the sea.
    """
    if not location:
        return None
    from aws.osml.gdal import GDALDigitalElevationModelTileFactory  # half a second, see sensor_model.py

    tiles = SRTMTileSet(version=version, format_extension=extension)
    return SharedElevationModel(
        DigitalElevationModel(tiles, GDALDigitalElevationModelTileFactory(location.rstrip("/")))
    )
