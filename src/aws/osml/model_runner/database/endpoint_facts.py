"""Facts of endpoints that all workers share, such as the number of instances: one row per fact, with an age.

One worker at a time looks a fact up and stores it. All others read the row, so a control plane that throttles hinders
nobody: a fact stays in force until a newer one replaces it.
"""

import dataclasses
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from aws.osml.model_runner.exceptions import ConditionNotMetError

from .ddb_helper import DDBHelper

PARTITION = "_facts"


@dataclasses.dataclass(frozen=True)
class Fact:
    """A fact as it was last looked up; ``value`` is None until a look-up succeeded.

    Nobody looks it up again before ``due_at``, in epoch seconds. ``error`` names the error of the last look-up.
    """

    value: Mapping[str, Any] | None = None
    due_at: float = 0.0
    error: str | None = None


class EndpointFacts(Protocol):
    """Where facts are kept, by key."""

    def all(self) -> dict[str, Fact]:
        """Return every fact."""
        ...

    def get(self, key: str) -> Fact:
        """Return a fact as it stands now."""
        ...

    def claim(self, key: str, for_s: float) -> bool:
        """Take the right to look a fact up, for ``for_s``; False while it is not due, or another worker has it."""
        ...

    def store(self, key: str, value: Mapping[str, Any], due_at: float) -> None:
        """Replace a fact."""
        ...

    def note_error(self, key: str, error: str, due_at: float) -> None:
        """Record that a look-up failed; the value stays."""
        ...


class SharedFacts(DDBHelper):
    """Facts in rows of the table of open jobs that are no jobs."""

    def __init__(self, table_name: str, client: Any = None, now: Callable[[], float] = time.time) -> None:
        super().__init__(table_name, client)
        self._now = now

    def all(self) -> dict[str, Fact]:
        """See ``EndpointFacts``."""
        return {row["job_id"]: _fact(row) for row in self.query_partition("endpoint_id", PARTITION)}

    def get(self, key: str) -> Fact:
        """See ``EndpointFacts``."""
        return _fact(self.read(_key(key)) or {})

    def claim(self, key: str, for_s: float) -> bool:
        """L1: see ``EndpointFacts``."""
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
        """L2: see ``EndpointFacts``."""
        self.update(
            _key(key), "SET fact = :fact, due_time = :due REMOVE look_up_error", {":fact": value, ":due": due_at}
        )

    def note_error(self, key: str, error: str, due_at: float) -> None:
        """L2: see ``EndpointFacts``."""
        self.update(_key(key), "SET look_up_error = :error, due_time = :due", {":error": error, ":due": due_at})


class ProcessFacts:
    """Facts of one process, for a worker without a table of open jobs."""

    def __init__(self, now: Callable[[], float] = time.time) -> None:
        self._now = now
        self._facts: dict[str, Fact] = {}
        self._lock = threading.Lock()

    def all(self) -> dict[str, Fact]:
        """See ``EndpointFacts``."""
        with self._lock:
            return dict(self._facts)

    def get(self, key: str) -> Fact:
        """See ``EndpointFacts``."""
        with self._lock:
            return self._facts.get(key, Fact())

    def claim(self, key: str, for_s: float) -> bool:
        """See ``EndpointFacts``."""
        with self._lock:
            fact, now_s = self._facts.get(key, Fact()), self._now()
            if fact.due_at > now_s:
                return False
            self._facts[key] = dataclasses.replace(fact, due_at=now_s + for_s)
            return True

    def store(self, key: str, value: Mapping[str, Any], due_at: float) -> None:
        """See ``EndpointFacts``."""
        with self._lock:
            self._facts[key] = Fact(value, due_at)

    def note_error(self, key: str, error: str, due_at: float) -> None:
        """See ``EndpointFacts``."""
        with self._lock:
            self._facts[key] = dataclasses.replace(self._facts.get(key, Fact()), error=error, due_at=due_at)


def _key(key: str) -> dict[str, str]:
    return {"endpoint_id": PARTITION, "job_id": key}


def _fact(row: Mapping[str, Any]) -> Fact:
    return Fact(row.get("fact"), row.get("due_time", 0.0), row.get("look_up_error"))
