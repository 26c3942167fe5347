"""Table of endpoints: limits how many regions call each endpoint, for workers with self-throttling.

An endpoint has one slot for each region that may call it, and each slot is a row with a lease. So regions of one
endpoint do not contend for one row, and the lease of a worker that died runs out.
"""

import dataclasses
import random
import time
from collections.abc import Callable
from typing import Any

from aws.osml.model_runner.exceptions import ConditionNotMetError

from ._published import PublishedEndpointStatisticsTable
from .ddb_helper import DDBItem, DDBKey

# Maximum number of slots that a region tries before it waits. With more slots, it may miss a free slot.
_TRIES = 12
# Time for which a process skips a slot that was taken, or an endpoint that was full. A region may end at any time.
_BELIEVED_S = 5.0
# Time until the limit of an endpoint is looked up again, after a success and after an error.
_DUE_AFTER_S = (240.0, 300.0)
_DUE_AFTER_ERROR_S = (15.0, 30.0)
_LOOK_UP_S = 60.0


@dataclasses.dataclass
class EndpointStatisticsItem(DDBItem):
    """One endpoint's row: the maximum number of regions, and the time of its next look-up, in epoch seconds.

    ``regions_in_progress`` is for callers that count regions themselves; workers use slots.
    """

    endpoint: str
    regions_in_progress: int = 0
    max_regions: int = 0
    due_time: float | None = None

    def __post_init__(self) -> None:
        """Set the key under which the table holds the row."""
        self.ddb_key = DDBKey("endpoint", self.endpoint)


@dataclasses.dataclass
class EndpointSlotItem(DDBItem):
    """One slot's row; ``endpoint`` is the endpoint's name, ``#``, and the number of the slot."""

    endpoint: str
    slot_owner: str
    lease_until: float

    def __post_init__(self) -> None:
        """Set the key under which the table holds the row."""
        self.ddb_key = DDBKey("endpoint", self.endpoint)


@dataclasses.dataclass(frozen=True)
class Slot:
    """A slot that a region holds; ``owner`` is unique to the claim."""

    endpoint: str
    number: int
    owner: str

    @property
    def key(self) -> dict[str, str]:
        """The row's key."""
        return {"endpoint": f"{self.endpoint}#{self.number}"}


class EndpointStatisticsTable(PublishedEndpointStatisticsTable):
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
        # Until when this process skips a taken slot, by endpoint and number, and an endpoint without free slots.
        self._taken_until: dict[tuple[str, int], float] = {}
        self._full_until: dict[str, float] = {}

    # Slots ----------------------------------------------------------------------------------------------------------

    def max_regions(self, endpoint: str, look_up: Callable[[], int | None]) -> int | None:
        """Return the maximum number of regions of an endpoint; one worker at a time calls ``look_up`` when it is due.

        ``look_up`` returns None when it fails. Then the last value stays valid; without a last value, None is returned.
        """
        row = self.read({"endpoint": endpoint}) or {}
        known, now_s = row.get("max_regions") if "due_time" in row else None, self._now()
        if known is not None:
            if row["due_time"] > now_s:
                return int(known)
            values = {":until": now_s + _LOOK_UP_S, ":now": now_s}
            try:
                self.update({"endpoint": endpoint}, "SET due_time = :until", values, "due_time <= :now")
            except ConditionNotMetError:
                return int(known)
        found = look_up()
        limit = known if found is None else found
        if limit is None:
            return None
        due_s = self._now() + self._rng.uniform(*(_DUE_AFTER_ERROR_S if found is None else _DUE_AFTER_S))
        self.update({"endpoint": endpoint}, "SET max_regions = :max, due_time = :due", {":max": limit, ":due": due_s})
        return int(limit)

    def is_full(self, endpoint: str) -> bool:
        """Return True when this process recently found all slots of an endpoint taken. This does not read a table."""
        return self._full_until.get(endpoint, 0.0) > self._now()

    def take_slot(self, endpoint: str, owner: str, limit: int, lease_s: float) -> Slot | None:
        """E1: take one of ``limit`` slots, or return None when no free slot is found."""
        now_s = self._now()
        open_slots = [number for number in range(limit) if self._taken_until.get((endpoint, number), 0.0) <= now_s]
        for number in self._rng.sample(open_slots, min(_TRIES, len(open_slots))):
            slot = Slot(endpoint, number, self.name_of_claim(owner))
            if self._claim_slot(slot, lease_s):
                return slot
            self._taken_until[endpoint, number] = now_s + _BELIEVED_S
        self._full_until[endpoint] = now_s + _BELIEVED_S
        return None

    def _claim_slot(self, slot: Slot, lease_s: float) -> bool:
        """Claim a free slot. An earlier send of this call, whose response was lost, counts as success."""
        now_s = self._now()
        values = {":owner": slot.owner, ":until": now_s + lease_s, ":now": now_s}
        try:
            self.update(
                slot.key,
                "SET slot_owner = :owner, lease_until = :until",
                values,
                "attribute_not_exists(lease_until) OR lease_until < :now",
            )
        except ConditionNotMetError as err:
            return err.old is not None and err.old.get("slot_owner") == slot.owner
        return True

    def renew_slot(self, slot: Slot, lease_s: float) -> bool:
        """E2: renew a slot; False when its lease had run out and another region took it."""
        values: dict[str, Any] = {":until": self._now() + lease_s, ":owner": slot.owner}
        try:
            self.update(slot.key, "SET lease_until = :until", values, "slot_owner = :owner")
        except ConditionNotMetError:
            return False
        return True

    def leave_slot(self, slot: Slot) -> None:
        """E3: release a slot; nothing changes when another region holds it."""
        self._full_until.pop(slot.endpoint, None)
        self._taken_until.pop((slot.endpoint, slot.number), None)
        try:
            self.delete(slot.key, "slot_owner = :owner", {":owner": slot.owner})
        except ConditionNotMetError:
            return
