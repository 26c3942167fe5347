"""The names under which this room's errors are imported."""

from aws.osml.model_runner.exceptions import (
    AddFeaturesException,
    CompleteRegionException,
    ConservationError,
    DDBBatchWriteException,
    DDBUpdateException,
    EndImageException,
    GetImageRequestItemException,
    GetRegionRequestItemException,
    InvalidRegionRequestException,
    IsImageCompleteException,
    StartImageException,
    StartRegionException,
    TableError,
    UpdateRegionException,
)

__all__ = [
    "AddFeaturesException",
    "CompleteRegionException",
    "ConservationError",
    "DDBBatchWriteException",
    "DDBUpdateException",
    "EndImageException",
    "GetImageRequestItemException",
    "GetRegionRequestItemException",
    "InvalidRegionRequestException",
    "IsImageCompleteException",
    "StartImageException",
    "StartRegionException",
    "TableError",
    "UpdateRegionException",
]
