"""The surface of the Earth from a folder of elevation tiles, for images whose pixels depend on it."""

import threading
from typing import Any

from aws.osml.photogrammetry import (
    DigitalElevationModel,
    DigitalElevationModelTileFactory,
    ElevationModel,
    ElevationRegionSummary,
    GeodeticWorldCoordinate,
    SRTMTileSet,
)

from .exceptions import ImageUnreachableError
from .patient_reads import PatientReads
from .settings import RasterSettings
from .transfers import TransferWatch


class PatientTileFactory(DigitalElevationModelTileFactory):  # type: ignore[misc]  # the toolkit has no types
    """Loads elevation tiles as another factory does, and tells a tile that is missing from a store that broke off.

    The toolkit takes any error for a missing tile, and remembers it: places would lose their elevation for good. So
    ``lost`` keeps the error until somebody takes it.
    """

    def __init__(self, factory: Any, location: str, settings: RasterSettings) -> None:
        super().__init__()
        self.lost: ImageUnreachableError | None = None
        self._factory = factory
        self._location = location
        self._settings = settings

    def get_tile(self, tile_path: str) -> Any:
        """Return the array, sensor model and summary of a tile; raises RuntimeError where there is none."""

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
    """An elevation model that several threads may ask; the toolkit's keeps its tiles in a cache without a lock.

    Both methods raise ImageUnreachableError when the store of the tiles does not answer.
    """

    def __init__(self, model: DigitalElevationModel, tiles: PatientTileFactory) -> None:
        super().__init__()
        self._model = model
        self._tiles = tiles
        self._lock = threading.Lock()

    def set_elevation(self, world_coordinate: GeodeticWorldCoordinate) -> bool:
        """Set the place's elevation in metres; return False, and leave it, where there is no data."""
        with self._lock:
            is_set = bool(self._model.set_elevation(world_coordinate))
            self._check()
            return is_set

    def describe_region(self, world_coordinate: GeodeticWorldCoordinate) -> ElevationRegionSummary | None:
        """Return what is known of the tile at a place; None where there is none."""
        with self._lock:
            summary = self._model.describe_region(world_coordinate)
            self._check()
            return summary

    def _check(self) -> None:
        """Raise the error of a tile that could not be loaded, and forget that the model holds it for missing."""
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

    A tile is ``<location>/n47_e034_<version><extension>``. Nothing is read before the first place is asked for; a tile
    that is missing leaves places as they are, since there is none over the sea.
    """
    if not location:
        return None
    from aws.osml.gdal import GDALDigitalElevationModelTileFactory  # half a second, see sensor_model.py

    folder = location.rstrip("/")
    tiles = PatientTileFactory(GDALDigitalElevationModelTileFactory(folder), folder, settings or RasterSettings())
    names = SRTMTileSet(version=version, format_extension=extension)
    return SharedElevationModel(DigitalElevationModel(names, tiles), tiles)
