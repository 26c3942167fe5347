"""The names under which this room's errors are imported."""

from aws.osml.model_runner.exceptions import InvalidAssumedRoleException

__all__ = ["InvalidAssumedRoleException"]
