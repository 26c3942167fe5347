"""The error of this room."""

from aws.osml.model_runner.exceptions import ModelRunnerError


class QueueError(ModelRunnerError):
    """SQS did not do what was asked."""

    can_retry = True


__all__ = ["QueueError"]
