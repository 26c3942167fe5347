"""Reads the reasons for trouble from the logs of a stack's workers."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

# Events below the level of a warning that are the reason of a wait.
_WAITS = frozenset({"image.deferred", "region.given_back", "region.left_to_queue", "request.deferred"})
_LEVELS = frozenset({"warning", "error", "critical"})


@dataclass
class WorkerLogs:
    """Reads the logs in ``directory`` as they grow."""

    directory: Path
    _read_bytes: dict[Path, int] = field(default_factory=dict)

    def latest_trouble(self) -> str:
        """Return the reason of the last event about trouble since the last call; empty without such an event."""
        latest: dict[str, Any] = {}
        for path in sorted(self.directory.glob("worker-*.log")):
            with path.open("rb") as file:
                file.seek(self._read_bytes.get(path, 0))
                lines, _, rest = file.read().rpartition(b"\n")
                self._read_bytes[path] = file.tell() - len(rest)
            for line in lines.splitlines():
                try:
                    event = json.loads(line)
                except ValueError:
                    continue
                if not isinstance(event, dict) or not event.get("reason") or "timestamp" not in event:
                    continue
                is_trouble = event.get("event") in _WAITS or event.get("level") in _LEVELS
                if is_trouble and event["timestamp"] > latest.get("timestamp", ""):
                    latest = event
        wait_s = latest.get("retry_after_s") or latest.get("wait_s")
        again = f"; next try {wait_s:.0f} s later" if isinstance(wait_s, int | float) else ""
        return f"{latest.get('reason', '')}{again}"
