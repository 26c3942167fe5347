"""Rows about endpoints that workers share: facts, such as the number of instances, and the workers that call one.

A fact has a row with a due time. One worker at a time looks a fact up and stores it. All others read the row. A fact
stays valid until a newer fact replaces it, so a throttled control plane does not stop workers.
"""

import dataclasses
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from aws.osml.model_runner.exceptions import ConditionNotMetError

from .ddb_helper import DDBHelper

PARTITION = "_facts"
# The rows of an endpoint's callers form a partition of their own; no image id has this prefix.
_PREFIX = "_callers#"
# DynamoDB deletes the rows of stopped workers after this time.
_LIFE_S = 3600


@dataclasses.dataclass(frozen=True)
class Fact:
    """Result of the last look-up; ``value`` is None until a look-up succeeded.

    ``value`` was looked up at ``looked_up_at``; the next look-up happens at ``due_at`` or later, in epoch seconds.
    ``error`` is that of the last look-up.
    """

    value: Mapping[str, Any] | None = None
    due_at: float = 0.0
    error: str | None = None
    looked_up_at: float = 0.0


class SharedFacts(DDBHelper):
    """Facts, in reserved rows of the table of open jobs."""

    def all(self) -> dict[str, Fact]:
        """Return every fact, by key."""
        return {row["job_id"]: _fact(row) for row in self.query_partition("endpoint_id", PARTITION)}

    def get(self, key: str) -> Fact:
        """Return the current fact, by a consistent read."""
        return _fact(self.read(_key(key)) or {})

    def claim(self, key: str, for_s: float) -> bool:
        """L1: claim the look-up of a fact for ``for_s`` seconds; False when it is not due, or claimed already."""
        now_s = self._now()
        try:
            self.update(
                _key(key),
                "SET due_time = :until",
                {":until": now_s + for_s, ":now": now_s},
                "attribute_not_exists(due_time) OR due_time <= :now",
            )
        except ConditionNotMetError:
            return False
        return True

    def store(self, key: str, value: Mapping[str, Any], due_at: float) -> None:
        """L2: replace a fact."""
        self.update(
            _key(key),
            "SET fact = :fact, due_time = :due, look_up_time = :now REMOVE look_up_error",
            {":fact": value, ":due": due_at, ":now": self._now()},
        )

    def record_error(self, key: str, error: str, due_at: float) -> None:
        """L2: record that a look-up failed; the value stays."""
        self.update(_key(key), "SET look_up_error = :error, due_time = :due", {":error": error, ":due": due_at})

    def forget(self, key: str) -> None:
        """L3: delete the row of a fact without a value, so that names of missing endpoints leave no rows."""
        with suppress(ConditionNotMetError):
            self.delete(_key(key), "attribute_not_exists(fact)")


def _key(key: str) -> dict[str, str]:
    return {"endpoint_id": PARTITION, "job_id": key}


def _fact(row: Mapping[str, Any]) -> Fact:
    return Fact(row.get("fact"), row.get("due_time", 0.0), row.get("look_up_error"), row.get("look_up_time", 0.0))


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
