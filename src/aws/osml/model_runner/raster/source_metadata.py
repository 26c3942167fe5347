"""Source metadata of a NITF, in the form that features carry."""

from datetime import datetime
from typing import Any

from .image_source import ImageSource

_DATE_FORM = "%Y%m%d%H%M%S"


def source_metadata(source: ImageSource, url: str) -> dict[str, Any] | None:
    """Return ``{"sourceMetadata": [{…}]}`` to be added to each feature's properties; None for other formats than NITF.

    ``sourceDT`` is the acquisition date as ISO 8601 in UTC, or None where the header has no complete date.
    """
    if source.driver_name != "NITF":
        return None
    metadata = source.header.metadata
    return {
        "sourceMetadata": [
            {
                "location": url,
                "format": "NITF",
                "category": metadata.get("NITF_ICAT"),
                "sourceId": metadata.get("NITF_FTITLE"),
                "sourceDT": acquisition_date(metadata.get("NITF_IDATIM", "")),
            }
        ]
    }


def acquisition_date(text: str) -> str | None:
    """Return a NITF date (``CCYYMMDDhhmmss``) as ISO 8601 with ``Z``; None when a part of it is not a number."""
    digits = text.strip()
    if len(digits) != len("CCYYMMDDhhmmss") or not digits.isdigit():
        return None
    try:
        return f"{datetime.strptime(digits, _DATE_FORM).isoformat()}Z"  # noqa: DTZ007  # NITF dates are UTC by definition
    except ValueError:
        return None
