"""Errors of the embedded stack."""

from aws.osml.model_runner.exceptions import ModelRunnerError


class LocalStackError(ModelRunnerError):
    """A part of the embedded stack is missing, did not start, or ended; the message carries its last words."""
