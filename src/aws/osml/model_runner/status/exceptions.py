"""Published import path of this package's errors."""

from aws.osml.model_runner.exceptions import SNSPublishException, StatusError, StatusMonitorException

__all__ = ["SNSPublishException", "StatusError", "StatusMonitorException"]
