"""Status messages, and their form as SNS attributes."""

import dataclasses
import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from aws.osml.model_runner.common.typing import RequestStatus
from aws.osml.model_runner.telemetry.redaction import printable

# SNS limits text and attributes together to 256 KiB; the rest of a message is far shorter than the remainder.
MAX_FAILED_TILES_BYTES = 100 * 1024


@dataclass
class StatusMessage:
    """The status of an image or, with ``region_id``, of a region.

    ``processing_duration`` is in seconds for an image and in milliseconds for a region. ``failed_tiles`` holds the
    bounds ``[[row, col], [width, height]]`` of tiles.
    """

    status: RequestStatus
    job_id: str
    image_status: RequestStatus | None = None
    image_id: str | None = None
    region_id: str | None = None
    processing_duration: int | None = None
    failed_tiles: list[list[list[int]]] | None = None
    tiles_skipped: int | None = None

    @property
    def status_id(self) -> str:
        """Event id for a status that an image or region has once."""
        return self.event_id()

    def event_id(self, *marks: object) -> str:
        """Return an id that is the same in every copy of an event, so that subscribers can drop copies.

        ``marks`` distinguish the events of one status, such as a job's generation and its progress.
        """
        parts = [self.job_id, self.image_id, self.region_id, status_name(self.status), *map(str, marks)]
        # JSON escapes separators, so two different lists never give the same text.
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()

    def asdict(self) -> dict[str, Any]:
        """Return every field unchanged."""
        return dataclasses.asdict(self)

    def asdict_str_values(self) -> dict[str, str]:
        """Return the fields as text, the form of SNS attributes; empty and zero fields are omitted."""
        values = {field: _text(value) for field, value in self.asdict().items() if value and field != "failed_tiles"}
        if self.failed_tiles:
            values["failed_tiles"], is_whole = tiles_json(self.failed_tiles)
            if not is_whole:
                values["failed_tiles_truncated"] = "true"
        return values


def tiles_json(tiles: Sequence[Any], max_bytes: int = MAX_FAILED_TILES_BYTES) -> tuple[str, bool]:
    """Return as many of ``tiles`` as fit into ``max_bytes`` of JSON, and True when that is all of them."""
    texts: list[str] = []
    size = 1
    for tile in tiles:
        text = json.dumps(tile, default=_plain, separators=(",", ":"))
        size += len(text) + 1
        if size > max_bytes:
            return f"[{','.join(texts)}]", False
        texts.append(text)
    return f"[{','.join(texts)}]", True


def status_name(status: RequestStatus | str) -> str:
    """Return the bare name; on some versions of Python, an f-string of an enumeration adds its class."""
    return RequestStatus(status).value


def _text(value: object) -> str:
    return status_name(value) if isinstance(value, RequestStatus) else printable(str(value))


def _plain(value: object) -> object:
    """Convert values of tables, such as decimals and sets, to JSON types."""
    return list(value) if isinstance(value, Iterable) else int(str(value))
