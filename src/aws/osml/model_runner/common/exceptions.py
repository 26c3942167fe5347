"""The names under which this room's errors are imported."""

from ..exceptions import InvalidAssumedRoleException

__all__ = ["InvalidAssumedRoleException"]
