"""DynamoDB: images, regions, features, endpoints and open jobs."""

from .ddb_helper import DDBHelper, DDBItem, DDBKey
from .endpoint_statistics_table import EndpointStatisticsTable
from .exceptions import (
    AddFeaturesException,
    CompleteRegionException,
    DDBUpdateException,
    EndImageException,
    GetImageRequestItemException,
    GetRegionRequestItemException,
    IsImageCompleteException,
    StartImageException,
    StartRegionException,
    UpdateRegionException,
)
from .feature_table import FeatureTable, StoredTile, TileKey, TileOutcome
from .job_table import JobItem, JobTable
from .outstanding_jobs_table import Acceptance, OpenJob, OutstandingJobsTable
from .region_request_table import (
    RegionClaim,
    RegionEnded,
    RegionHeld,
    RegionRequestItem,
    RegionRequestTable,
)

__all__ = [
    "Acceptance",
    "AddFeaturesException",
    "CompleteRegionException",
    "DDBHelper",
    "DDBItem",
    "DDBKey",
    "DDBUpdateException",
    "EndImageException",
    "EndpointStatisticsTable",
    "FeatureTable",
    "GetImageRequestItemException",
    "GetRegionRequestItemException",
    "IsImageCompleteException",
    "JobItem",
    "JobTable",
    "OpenJob",
    "OutstandingJobsTable",
    "RegionClaim",
    "RegionEnded",
    "RegionHeld",
    "RegionRequestItem",
    "RegionRequestTable",
    "StartImageException",
    "StartRegionException",
    "StoredTile",
    "TileKey",
    "TileOutcome",
    "UpdateRegionException",
]
