"""Errors of the embedded stack."""

from aws.osml.model_runner.exceptions import ModelRunnerError


class LocalStackError(ModelRunnerError):
    """A part of the embedded stack is missing, did not start, or ended; the message has the end of its log."""


class InterruptedRunError(LocalStackError):
    """A run has ended before its job, because of ``cause``; the message names the checkpoint."""

    def __init__(self, message: str, cause: BaseException) -> None:
        super().__init__(message)
        self.cause = cause
