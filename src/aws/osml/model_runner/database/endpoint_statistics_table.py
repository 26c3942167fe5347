"""How many regions each endpoint works on, for workers that throttle themselves.

A region's place at its endpoint is a lease in the endpoint's row. The lease of a worker that died runs out, and the
place is free again. All places of an endpoint lie in one item and change under its version, so they are counted
exactly, whoever comes at the same time.
"""

import dataclasses
import random
import time
from collections.abc import Callable, Mapping
from typing import Any

from aws.osml.model_runner.exceptions import ConditionNotMetError, TransactionConflictError

from .ddb_helper import DDBHelper, DDBItem, DDBKey

_TRIES = 12
_LONGEST_WAIT_S = 0.5


@dataclasses.dataclass
class EndpointStatisticsItem(DDBItem):
    """One endpoint's row: the regions in progress, and the most that there may be.

    ``leases`` holds until when, in epoch seconds, each region in progress keeps its place; ``lease_version`` counts
    their changes.
    """

    endpoint: str
    regions_in_progress: int = 0
    max_regions: int = 0
    leases: dict[str, float] = dataclasses.field(default_factory=dict)
    lease_version: int = 0

    def __post_init__(self) -> None:
        """Set the key under which the table holds the row."""
        self.ddb_key = DDBKey("endpoint", self.endpoint)


class EndpointStatisticsTable(DDBHelper):
    """The table of endpoints: partition ``endpoint``, the endpoint's name or URL."""

    def __init__(
        self,
        table_name: str,
        client: Any = None,
        now: Callable[[], float] = time.time,
        sleep: Callable[[float], None] = time.sleep,
        rng: random.Random | None = None,
    ) -> None:
        super().__init__(table_name, client, sleep, rng, now)

    def upsert_endpoint(self, endpoint: str, max_regions: int) -> None:
        """Begin to follow an endpoint, or renew the most regions that it may work on; those in progress stay."""
        self.update(
            {"endpoint": endpoint},
            "SET max_regions = :max, regions_in_progress = if_not_exists(regions_in_progress, :zero)",
            {":max": max_regions, ":zero": 0},
        )

    def increment_region_count(self, endpoint: str) -> None:
        """Count one region more in progress; the worker itself takes places, which set the count."""
        self.update({"endpoint": endpoint}, "ADD regions_in_progress :one", {":one": 1})

    def decrement_region_count(self, endpoint: str) -> None:
        """Count one region less in progress, and never fewer than none."""
        try:
            self.update(
                {"endpoint": endpoint},
                "ADD regions_in_progress :less",
                {":less": -1, ":zero": 0},
                "regions_in_progress > :zero",
            )
        except ConditionNotMetError:
            return

    def current_in_progress_regions(self, endpoint: str) -> int:
        """Return how many regions are in progress now; an endpoint that is not followed has none."""
        row = self.read({"endpoint": endpoint})
        return int(row["regions_in_progress"]) if row else 0

    # Places ---------------------------------------------------------------------------------------------------------

    def take_place(self, endpoint: str, place: str, most: int, lease_s: float) -> bool:
        """E1: take a place under a name of its own; False when ``most`` regions have one.

        Raises:
            TransactionConflictError: others changed the row at each of several tries.
        """

        def taken(leases: dict[str, float], now_s: float) -> dict[str, float] | None:
            if place not in leases and len(leases) >= most:
                return None
            return leases | {place: now_s + lease_s}

        return self._change(endpoint, taken, most)

    def renew_place(self, endpoint: str, place: str, lease_s: float) -> bool:
        """E2: keep a place; False when it had run out and may be another region's."""

        def renewed(leases: dict[str, float], now_s: float) -> dict[str, float] | None:
            return leases | {place: now_s + lease_s} if place in leases else None

        return self._change(endpoint, renewed)

    def leave_place(self, endpoint: str, place: str) -> None:
        """E3: give a place back; one that has run out needs nothing."""

        def left(leases: dict[str, float], _now_s: float) -> dict[str, float] | None:
            return {name: until for name, until in leases.items() if name != place} if place in leases else None

        self._change(endpoint, left)

    def _change(
        self,
        endpoint: str,
        change: Callable[[dict[str, float], float], dict[str, float] | None],
        most: int | None = None,
    ) -> bool:
        """Change the leases that have not run out; False when ``change`` returns None, and nothing is written then."""
        for attempt in range(_TRIES):
            row: Mapping[str, Any] = self.read({"endpoint": endpoint}) or {}
            now_s = self._now()
            leases = change({name: until for name, until in row.get("leases", {}).items() if until > now_s}, now_s)
            if leases is None:
                return False
            if self._write(endpoint, leases, row, most):
                return True
            self._sleep(self._rng.uniform(0, min(_LONGEST_WAIT_S, 0.02 * 2**attempt)))
        raise TransactionConflictError(f"the places of {endpoint} changed at each of {_TRIES} tries")

    def _write(self, endpoint: str, leases: dict[str, float], row: Mapping[str, Any], most: int | None) -> bool:
        expression = "SET leases = :leases, lease_version = :next, regions_in_progress = :count"
        version = row.get("lease_version")
        values: dict[str, Any] = {":leases": leases, ":next": (version or 0) + 1, ":count": len(leases)}
        if most is not None:
            expression, values[":most"] = f"{expression}, max_regions = :most", most
        if version is None:
            condition = "attribute_not_exists(lease_version)"
        else:
            condition, values[":seen"] = "lease_version = :seen", version
        try:
            self.update({"endpoint": endpoint}, expression, values, condition)
        except ConditionNotMetError:
            return False
        return True
