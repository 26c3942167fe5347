"""Scheduler: the order in which waiting images start, and the capacity of endpoints."""

from .endpoint_capacity import EndpointCapacityEstimator
from .image_scheduler import EndpointLoadImageScheduler, FIFOImageScheduler, ImageScheduler, ScheduledImage
from .look_ahead import BufferedImageRequestQueue, LookAhead

__all__ = [
    "BufferedImageRequestQueue",
    "EndpointCapacityEstimator",
    "EndpointLoadImageScheduler",
    "FIFOImageScheduler",
    "ImageScheduler",
    "LookAhead",
    "ScheduledImage",
]
