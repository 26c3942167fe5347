"""Errors of the embedded stack."""

from aws.osml.model_runner.exceptions import ModelRunnerError


class LocalStackError(ModelRunnerError):
    """A part of the embedded stack is missing, did not start, or ended; the message carries its last words."""


class InterruptedRunError(LocalStackError):
    """A run has ended before its job; ``cause`` is what ended it, and the message says what was kept."""

    def __init__(self, message: str, cause: BaseException) -> None:
        super().__init__(message)
        self.cause = cause
