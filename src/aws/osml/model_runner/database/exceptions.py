"""Published import path of this package's errors."""

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
