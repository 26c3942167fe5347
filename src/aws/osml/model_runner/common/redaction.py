"""Takes credentials out of what is about to be logged, stored or published."""

import re
from collections.abc import Mapping
from typing import Any

REDACTED = "[redacted]"

_SECRET_NAMES = frozenset(
    {
        "accesskeyid",
        "awsaccesskeyid",
        "awssecretaccesskey",
        "awssessiontoken",
        "secretaccesskey",
        "secretkey",
        "sessiontoken",
        "authorization",
        "password",
        "xamzsecuritytoken",
        "xamzsignature",
        "xamzcredential",
    }
)
_NAME = r"[\w-]*(?:secret|password|passwd|token|credential|signature|access[_-]?key(?:[_-]?id)?)[\w-]*"
_RULES = (
    # A header's value may hold blanks (``AWS4-HMAC-SHA256 Credential=…, Signature=…``), so it ends with the line.
    (re.compile(r"(?i)\b(authorization[\"']?\s*[:=]\s*)[^\r\n]+"), rf"\1{REDACTED}"),
    # User name and password of a URL, and its query, in which nobody can tell what is a secret.
    (re.compile(r"(?i)(\b[a-z][a-z0-9+.-]*://)[^\s/?#@\"']+@"), rf"\1{REDACTED}@"),
    (re.compile(r"(?i)(\b[a-z][a-z0-9+.-]*://[^\s?#\"'<>]*\?)[^\s\"'<>]+"), rf"\1{REDACTED}"),
    # Shell variables, JSON and Python text: a name, a separator, perhaps a quote, the secret.
    (re.compile(rf"(?i)(?<![A-Za-z0-9])({_NAME}[\"']?\s*[:=]\s*[\"']?)[^\s\"'&,;}}<>]+"), rf"\1{REDACTED}"),
    (re.compile(rf"(?i)(<({_NAME})>)[^<]+"), rf"\1{REDACTED}"),
    (re.compile(r"(?i)(\b(?:Bearer|Basic)\s+)[A-Za-z0-9._~+/=-]{6,}"), rf"\1{REDACTED}"),
    # The ids of AWS's keys and principals, and the shape of its secret keys.
    (re.compile(r"\b(?:AKIA|ASIA|AROA|AIDA)[A-Z0-9]{12,}"), REDACTED),
    (
        re.compile(
            r"(?<![A-Za-z0-9/+=_.:-])(?=[A-Za-z0-9/+]*[A-Z])(?=[A-Za-z0-9/+]*[a-z])(?=[A-Za-z0-9/+]*[0-9])"
            r"[A-Za-z0-9/+]{40}(?![A-Za-z0-9/+=_.-])"
        ),
        REDACTED,
    ),
)
# Nothing that we log is deeper; past it, a value is shown by its type only.
_DEEPEST = 16


def is_secret_name(name: str) -> bool:
    """Return whether a field of this name holds a credential, however the name is spelled (case, ``-``, ``_``)."""
    return re.sub(r"[^a-z0-9]", "", name.lower()) in _SECRET_NAMES


def redact_text(text: str) -> str:
    """Return ``text`` with the values of credentials, signatures and tokens in it replaced by ``[redacted]``."""
    for pattern, replacement in _RULES:
        text = pattern.sub(replacement, text)
    return text


def redact(value: Any, depth: int = 0) -> Any:
    """Return a copy of ``value`` without credentials: dicts, lists and tuples are walked, text is searched.

    Other kinds of values come back as they are; what lies deeper than sixteen levels becomes the name of its type.
    """
    if isinstance(value, str):
        return redact_text(value)
    if depth >= _DEEPEST and isinstance(value, (Mapping, list, tuple, set, frozenset)):
        return f"<{type(value).__name__}>"
    if isinstance(value, Mapping):
        return {key: REDACTED if is_secret_name(str(key)) else redact(item, depth + 1) for key, item in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [redact(item, depth + 1) for item in value]
    return value
