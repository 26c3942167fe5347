"""The errors of the tile pipeline."""

from aws.osml.model_runner.exceptions import ProcessRegionException


class SetupTileWorkersException(ProcessRegionException):
    """The workers of a region could not be made ready: no model, no credentials, no image."""


class ProcessTilesException(ProcessRegionException):
    """The tiles of a region could not be worked through."""


__all__ = ["ProcessTilesException", "SetupTileWorkersException"]
