"""The names under which this room's errors are imported."""

from aws.osml.model_runner.exceptions import (
    InvalidKinesisStreamException,
    InvalidS3BucketException,
    SinkError,
    SinkPermanentError,
)

__all__ = ["InvalidKinesisStreamException", "InvalidS3BucketException", "SinkError", "SinkPermanentError"]
