"""Text and metadata of a GDAL object as ``str``, also where the file is not UTF-8."""

from typing import Any

import structlog

logger = structlog.get_logger(__name__)


def decoded(text: str | bytes | None) -> str:
    """Return text of a file, decoded as Latin-1 where it is not UTF-8.

    GDAL returns such text as bytes, or as ``str`` with surrogates, which its setters refuse.
    """
    if not isinstance(text, str):
        return (text or b"").decode("latin-1")
    raw = text.encode("utf-8", "surrogateescape")
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return raw.decode("latin-1")


def metadata_of(owner: Any, domain: str = "") -> dict[str, str]:
    """Return the metadata of a dataset or band in ``domain``; empty, with a warning, where GDAL cannot parse it.

    A picture with a damaged EXIF block has sound pixels.
    """
    try:
        items = owner.GetMetadata(domain) or {}
    except RuntimeError as err:
        logger.warning("image.metadata_unreadable", domain=domain, reason=str(err))
        return {}
    return {decoded(name): decoded(value) for name, value in items.items()}
