"""Status events of images and regions, on SNS."""

from .base_status_monitor import BaseStatusMonitor
from .exceptions import SNSPublishException, StatusMonitorException
from .image_status_monitor import ImageStatusMonitor
from .region_status_monitor import RegionStatusMonitor
from .sns_helper import SNSHelper
from .status_message import StatusMessage

__all__ = [
    "BaseStatusMonitor",
    "ImageStatusMonitor",
    "RegionStatusMonitor",
    "SNSHelper",
    "SNSPublishException",
    "StatusMessage",
    "StatusMonitorException",
]
