"""The names under which this room's errors are imported."""

from aws.osml.model_runner.exceptions import SNSPublishException, StatusError, StatusMonitorException

__all__ = ["SNSPublishException", "StatusError", "StatusMonitorException"]
