"""Delivers features: one file per image to S3, one record per feature to Kinesis."""

from .delivery import Delivery, FeatureBatch
from .exceptions import InvalidKinesisStreamException, InvalidS3BucketException, SinkError, SinkPermanentError
from .kinesis_sink import KinesisSink
from .s3_sink import S3Sink
from .sink import Sink
from .sink_factory import SinkFactory

__all__ = [
    "Delivery",
    "FeatureBatch",
    "InvalidKinesisStreamException",
    "InvalidS3BucketException",
    "KinesisSink",
    "S3Sink",
    "Sink",
    "SinkError",
    "SinkFactory",
    "SinkPermanentError",
]
