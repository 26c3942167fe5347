"""Published import path of this package's errors."""

from aws.osml.model_runner.exceptions import (
    InvalidKinesisStreamException,
    InvalidS3BucketException,
    SinkError,
    SinkPermanentError,
)

__all__ = ["InvalidKinesisStreamException", "InvalidS3BucketException", "SinkError", "SinkPermanentError"]
