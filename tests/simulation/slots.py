"""Which regions hold a slot at the world's endpoint, whatever its rows say."""

from greenlet import getcurrent

from .dynamodb import Key, Write
from .scheduler import Process, Scheduler


class Slots:
    """Follows the rows of slots: one is held from the write that takes it until its holder leaves or it runs out.

    A clock may be off by ``skew_s``, so a slot has certainly expired only that much later, and is certainly held until
    that much earlier. The time between is not counted.
    """

    def __init__(self, scheduler: Scheduler, most: int, skew_s: float) -> None:
        self._scheduler = scheduler
        self._most = most
        self._skew_s = skew_s
        self._held: dict[tuple[Key, str, Process], float] = {}
        self.most_held = 0

    def note(self, write: Write) -> None:
        """Note a write, by the thread that runs."""
        if write.table != "endpoints" or "#" not in str(write.key[0]):
            return
        # A holder trusts its own state, not the row: a slot that another worker deletes is still held.
        row = write.new or write.old or {}
        name = write.key, str(row.get("slot_owner")), getcurrent().process
        if write.new is not None:
            self._held[name] = float(write.new["lease_until"])
        else:
            self._held.pop(name, None)
        surely_s = self._scheduler.now + self._skew_s
        self.most_held = max(self.most_held, sum(until > surely_s for until in self._held.values()))

    def problem(self) -> str | None:
        """Return what is wrong, if anything is."""
        if self.most_held <= self._most:
            return None
        return f"{self.most_held} regions had a slot at once at an endpoint that has {self._most}"
