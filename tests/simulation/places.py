"""Who has a place at the world's endpoint, whatever its row says."""

from greenlet import getcurrent

from .dynamodb import Write
from .scheduler import Process, Scheduler


class Places:
    """Follows the endpoint's row: a place is held from the write that brings it until its holder leaves or it runs out.

    A clock may be off by ``skew_s``, so a place has run out for sure only that much later, and is held for sure until
    that much earlier; what lies between is left out.
    """

    def __init__(self, scheduler: Scheduler, most: int, skew_s: float) -> None:
        self._scheduler = scheduler
        self._most = most
        self._skew_s = skew_s
        self._held: dict[str, tuple[Process, float]] = {}
        self.most_held = 0

    def note(self, write: Write) -> None:
        """Hear of a write, by the thread that runs."""
        if write.table != "endpoints" or write.new is None:
            return
        process, new = getcurrent().process, write.new["leases"]
        for name, (holder, _until) in list(self._held.items()):
            if name not in new and holder is process:
                del self._held[name]
        old = (write.old or {}).get("leases", {})
        self._held |= {name: (process, float(until)) for name, until in new.items() if until != old.get(name)}
        surely_s = self._scheduler.now + self._skew_s
        held = sum(until > surely_s for _holder, until in self._held.values())
        self.most_held = max(self.most_held, held, len(new))

    def problem(self) -> str | None:
        """Return what is wrong, if anything is."""
        if self.most_held <= self._most:
            return None
        return f"{self.most_held} regions had a place at once at an endpoint that has {self._most}"
