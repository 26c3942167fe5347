"""Text that may leave the worker: short, printable, and without secrets.

Reasons of failures contain errors of other services and parts of requests. Many users may read the topics and tables
that hold them.
"""

import re

from aws.osml.model_runner.telemetry.redaction import redacted_beginning

MAX_CHARACTERS = 512
ELLIPSIS = "…"

_UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff\ufffe\uffff]")


def safe_text(text: str, max_characters: int = MAX_CHARACTERS) -> str:
    """Return ``text`` with secrets hidden and control characters escaped, cut to ``max_characters``."""
    return shortened(printable(redacted_beginning(text, max_characters)), max_characters)


def printable(text: str) -> str:
    """Return ``text`` with control characters and lone surrogates escaped, so that it is valid in XML and in logs."""
    return _UNPRINTABLE.sub(lambda match: f"\\u{ord(match[0]):04x}", text)


def shortened(text: str, max_characters: int) -> str:
    """Return ``text``, or its beginning and an ellipsis when it is longer."""
    return text if len(text) <= max_characters else text[: max_characters - 1] + ELLIPSIS
