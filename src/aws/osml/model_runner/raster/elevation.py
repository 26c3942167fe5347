"""Elevation model from a folder of elevation tiles, for images whose georeference depends on the ground's height."""

import threading
from typing import Any

from aws.osml.model_runner.exceptions import ImageUnreachableError
from aws.osml.photogrammetry import (
    DigitalElevationModel,
    DigitalElevationModelTileFactory,
    ElevationModel,
    ElevationRegionSummary,
    GeodeticWorldCoordinate,
    SRTMTileSet,
)

from .patient_reads import PatientReads
from .settings import RasterSettings
from .transfers import TransferWatch


class PatientTileFactory(DigitalElevationModelTileFactory):  # type: ignore[misc]  # the toolkit has no types
    """Loads elevation tiles by another factory, and distinguishes a missing tile from a store that does not respond.

    The toolkit treats any error as a missing tile, and caches that. Places would lose their elevation for good. So
    ``lost`` keeps the error of the store until the elevation model raises it.
    """

    def __init__(self, factory: Any, location: str, settings: RasterSettings) -> None:
        super().__init__()
        self.lost: ImageUnreachableError | None = None
        self._factory = factory
        self._location = location
        self._settings = settings

    def get_tile(self, tile_path: str) -> Any:
        """Return the array, sensor model and summary of a tile; raises RuntimeError where the tile is missing."""

        def attempt(transfers: TransferWatch) -> Any:
            tile = self._factory.get_tile(tile_path)
            transfers.check(is_header=True)
            return tile

        url = f"{self._location}/{tile_path}"
        path = url.replace("s3:/", "/vsis3", 1)
        try:
            return PatientReads(path, url, self._settings, check_store=lambda: None).read(attempt)
        except ImageUnreachableError as err:
            self.lost = err
            raise


class SharedElevationModel(ElevationModel):  # type: ignore[misc]  # the toolkit has no types
    """A thread-safe elevation model; the toolkit's model keeps its tiles in a cache without a lock.

    Both methods raise ImageUnreachableError when the store of the tiles does not respond.
    """

    def __init__(self, model: DigitalElevationModel, tiles: PatientTileFactory) -> None:
        super().__init__()
        self._model = model
        self._tiles = tiles
        self._lock = threading.Lock()

    def set_elevation(self, world_coordinate: GeodeticWorldCoordinate) -> bool:
        """Set the place's elevation in metres; return False, and leave it, where the tiles hold nothing."""
        with self._lock:
            is_set = bool(self._model.set_elevation(world_coordinate))
            self._check()
            return is_set

    def describe_region(self, world_coordinate: GeodeticWorldCoordinate) -> ElevationRegionSummary | None:
        """Return the summary of the tile at a place; None where a tile is missing."""
        with self._lock:
            summary = self._model.describe_region(world_coordinate)
            self._check()
            return summary

    def _check(self) -> None:
        """Raise the store's error, and clear the model's cache, in which the tile counts as missing."""
        lost, self._tiles.lost = self._tiles.lost, None
        if lost is not None:
            self._model.raster_cache.clear()
            raise lost


def open_elevation_model(
    location: str | None,
    extension: str = ".tif",
    version: str = "1arc_v3",
    settings: RasterSettings | None = None,
) -> Any | None:
    """Return the elevation model of a folder or an ``s3://`` prefix that holds tiles as SRTM names them; None for None.

    A tile is ``<location>/n47_e034_<version><extension>``. Tiles are read when the first place in them needs them.
    Places without a tile keep their elevation, because SRTM has no tiles over the sea.
    """
    if not location:
        return None
    from aws.osml.gdal import GDALDigitalElevationModelTileFactory  # takes half a second, see sensor_model.py

    folder = location.rstrip("/")
    tiles = PatientTileFactory(GDALDigitalElevationModelTileFactory(folder), folder, settings or RasterSettings())
    names = SRTMTileSet(version=version, format_extension=extension)
    return SharedElevationModel(DigitalElevationModel(names, tiles), tiles)
