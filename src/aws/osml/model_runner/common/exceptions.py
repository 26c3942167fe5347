"""The errors of this package under their published path."""

from aws.osml.model_runner.exceptions import InvalidAssumedRoleException

__all__ = ["InvalidAssumedRoleException"]
