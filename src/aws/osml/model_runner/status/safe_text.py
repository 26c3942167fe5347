"""Text that may leave the runner: short, printable, and without secrets.

The reason of a failure is made from errors of other people's services and from what stood in a request, and it ends
on topics and in tables that many may read.
"""

import re

MAX_CHARACTERS = 512
HIDDEN = "[hidden]"
ELLIPSIS = "…"

# Each pattern keeps its group "kept", if it has one, and loses the rest.
_SECRETS = (
    re.compile(r"(?P<kept>\b[a-z][a-z0-9+.-]*://)[^\s/?#@]+@", re.IGNORECASE),  # user name and password of a URL
    re.compile(r"(?P<kept>\b[a-z][a-z0-9+.-]*://[^\s?#]*\?)[^\s\"'>]*", re.IGNORECASE),  # query: presigned URLs
    re.compile(r"\b(?:AKIA|ASIA|AROA|AIDA)[A-Z0-9]{12,}\b"),  # ids of AWS keys and principals
    re.compile(r"(?P<kept>\b(?:Bearer|Basic)\s+)[A-Za-z0-9._~+/=-]{6,}", re.IGNORECASE),
    re.compile(
        r"(?P<kept>\b[\w-]*(?:secret|password|passwd|token|credential|signature|access[_-]?key(?:[_-]?id)?)[\w-]*"
        r"[\"']?\s*[=:]\s*[\"']?)[^\s\"',;&}]+",
        re.IGNORECASE,
    ),
    re.compile(
        r"(?<![A-Za-z0-9/+=_.:-])(?=[A-Za-z0-9/+]*[A-Z])(?=[A-Za-z0-9/+]*[a-z])(?=[A-Za-z0-9/+]*[0-9])"
        r"[A-Za-z0-9/+]{40}(?![A-Za-z0-9/+=_.-])"
    ),  # the shape of an AWS secret key
)
_UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff\ufffe\uffff]")


def safe_text(text: str, max_characters: int = MAX_CHARACTERS) -> str:
    """Return ``text`` with secrets hidden and control characters escaped, cut to ``max_characters``."""
    # Secrets first, in a text that is cut generously: what is cut in the middle of a secret is no longer recognised.
    text = text[: 8 * max_characters]
    for pattern in _SECRETS:
        text = pattern.sub(_hide, text)
    return shortened(printable(text), max_characters)


def printable(text: str) -> str:
    """Return ``text`` with control characters and lone surrogates as escapes, so that XML and log lines hold it."""
    return _UNPRINTABLE.sub(lambda match: f"\\u{ord(match[0]):04x}", text)


def shortened(text: str, max_characters: int) -> str:
    """Return ``text``, or its beginning and an ellipsis when it is longer."""
    return text if len(text) <= max_characters else text[: max_characters - 1] + ELLIPSIS


def _hide(match: re.Match[str]) -> str:
    return match.groupdict().get("kept", "") + HIDDEN
