"""Rows of the workers that call an endpoint, in the table of regions, so that they can share its capacity."""

from .ddb_helper import DDBHelper

# The rows of an endpoint's callers form a partition of their own; no image id has this prefix.
_PREFIX = "_callers#"
# DynamoDB deletes the rows of stopped workers after this time.
_LIFE_S = 3600


class EndpointCallers(DDBHelper):
    """The workers that hold regions of an endpoint, in reserved rows of the table of regions."""

    def record(self, endpoint: str, owner: str, for_s: float) -> None:
        """N1: record a worker as caller of an endpoint for the next ``for_s`` seconds; 0 ends its record."""
        now_s = self._now()
        row = {
            "image_id": _PREFIX + endpoint,
            "region_id": owner,
            "lease_until": now_s + for_s,
            "expire_time": int(now_s + _LIFE_S),
        }
        self.put(row)

    def others(self, endpoint: str, owner: str) -> int:
        """Return the number of other workers that call an endpoint now."""
        now_s = self._now()
        rows = self.query_partition("image_id", _PREFIX + endpoint)
        return sum(row["region_id"] != owner and row["lease_until"] > now_s for row in rows)
