"""Errors of this package."""

from aws.osml.model_runner.exceptions import ModelRunnerError


class QueueError(ModelRunnerError):
    """A call to SQS failed."""

    can_retry = True


__all__ = ["QueueError"]
