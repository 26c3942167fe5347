"""What the workers of a stack log about trouble, for a person who waits for a job."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

# Events that say why a job does not get on; others do so by their level.
_WAITS = frozenset({"image.deferred", "region.given_back", "region.left_to_queue", "request.deferred"})
_LEVELS = frozenset({"warning", "error", "critical"})


@dataclass
class WorkerLogs:
    """Reads the logs in ``directory`` as they grow."""

    directory: Path
    _read_bytes: dict[Path, int] = field(default_factory=dict)

    def latest_trouble(self) -> str:
        """Return the reason of the last event since the last call that tells of trouble; empty without one."""
        found: tuple[str, str] = ("", "")
        for path in sorted(self.directory.glob("worker-*.log")):
            found = max([found, *self._troubles(path)], key=lambda trouble: trouble[0])
        return found[1]

    def _troubles(self, path: Path) -> list[tuple[str, str]]:
        with path.open("rb") as file:
            file.seek(self._read_bytes.get(path, 0))
            whole, _, rest = file.read().rpartition(b"\n")
            self._read_bytes[path] = file.tell() - len(rest)
        return [(event["timestamp"], _words(event)) for event in map(_event, whole.splitlines()) if _is_trouble(event)]


def _event(line: bytes) -> dict[str, Any]:
    try:
        event = json.loads(line)
    except ValueError:
        return {}
    return event if isinstance(event, dict) else {}


def _is_trouble(event: dict[str, Any]) -> bool:
    has_words = bool(event.get("reason")) and "timestamp" in event
    return has_words and (event.get("event") in _WAITS or event.get("level") in _LEVELS)


def _words(event: dict[str, Any]) -> str:
    wait_s = event.get("retry_after_s") or event.get("wait_s")
    again = f"; next try {wait_s:.0f} s later" if isinstance(wait_s, int | float) else ""
    return f"{event['reason']}{again}"
