"""Makes text fit to leave the worker: without credentials, printable and short.

Reasons of failures contain errors of other services and parts of requests. Many users may read the logs, topics and
tables that hold them.
"""

import re
from collections.abc import Mapping
from typing import Any

REDACTED = "[redacted]"
MAX_CHARACTERS = 512
ELLIPSIS = "…"
_UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff\ufffe\uffff]")

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
        "modelcredentials",
        "password",
        "xamzsecuritytoken",
        "xamzsignature",
        "xamzcredential",
    }
)


# A rule recognises a name by its word and the text after it, so that no rule reads backwards.
_WORD = (
    r"(?:secret|passw(?:or)?d|passphrase|pwd|token|credential|signature|(?<![^\W_])sig(?![^\W_])"
    r"|(?:access|account|api|functions|private|signing|subscription)[_-]?key(?:[_-]?id)?)"
)
# ``re`` holds the GIL, so each rule does linear work on any text. Repetitions before an optional part are bounded or
# possessive, and no repetition can start again within itself.
_RULES = (
    # The value of a header may have blanks (``AWS4-HMAC-SHA256 Credential=…, Signature=…``), so it ends with the line.
    (re.compile(r"(?i)\b((?:authorization|cookie)[\"']?\s{0,16}[:=]\s{0,16})[^\r\n]+"), rf"\1{REDACTED}"),
    # User name and password of a URL, and its whole query, because any part of it may be a secret.
    (re.compile(r"(://)[^\s/?#@\"']++@"), rf"\1{REDACTED}@"),
    (
        re.compile(r"(://[^\s?\"'<>]*+)(?:\?[^\s\"'<>]++)?"),
        lambda match: match[0] if match.end(1) == match.end() else f"{match[1]}?{REDACTED}",
    ),
    # Shell variables, JSON and Python text: a name, a separator, an optional bracket and quote, the secret.
    (
        re.compile(
            rf"(?i)({_WORD}[\w-]{{0,64}}+[\"']?\s{{0,16}}+(?:[:=]|%3[AD])[\s\[(]{{0,16}}+[\"']?)[^\s\"'&,;}}<>]+"
        ),
        rf"\1{REDACTED}",
    ),
    (re.compile(rf"(?i)(<[\w-]{{0,64}}?{_WORD}[\w-]{{0,64}}+>)[^<]+"), rf"\1{REDACTED}"),
    (re.compile(r"(?i)(\b(?:Bearer|Basic)\s{1,16}+)[A-Za-z0-9._~+/=-]{6,}"), rf"\1{REDACTED}"),
    # Segments of a path: a segment after a word for a secret, and segments that look like generated secrets.
    (
        re.compile(rf"(?i)(/{_WORD}s?/)(?=[^0-9/]{{0,64}}[0-9])[\w~+=-]{{16,}}(?![^\s/?#\"'<>,;)])"),
        rf"\1{REDACTED}",
    ),
    (
        re.compile(
            r"(?<=/)(?=[A-Za-z0-9]{32,512}+(?![^\s/?#\"'<>,;)]))"
            r"(?=[a-z0-9]*+[A-Z])(?=[A-Z0-9]*+[a-z])(?=[A-Za-z]*+[0-9])[A-Za-z0-9]+"
        ),
        REDACTED,
    ),
    # Tokens with a known beginning: JSON Web Tokens, GitHub's, Slack's.
    (
        re.compile(r"(?<![\w-])(?:eyJ[\w-]{16,}+(?:\.[\w-]*+)*+|gh[opsru]_[A-Za-z0-9]{20,}|xox[a-z]-[\w-]{10,})"),
        REDACTED,
    ),
    # The ids of AWS's keys and principals, and the pattern of its secret keys.
    (re.compile(r"\b(?:AKIA|ASIA|AROA|AIDA)[A-Z0-9]{12,}"), REDACTED),
    (
        re.compile(
            r"(?<![A-Za-z0-9/+=_.:-])(?=[A-Za-z0-9/+]{40}(?![A-Za-z0-9/+=_.-]))"
            r"(?=[a-z0-9/+]*+[A-Z])(?=[A-Z0-9/+]*+[a-z])(?=[A-Za-z/+]*+[0-9])[A-Za-z0-9/+]{40}"
        ),
        REDACTED,
    ),
)
# A truncated text may end within user information, without its @, or within a secret without a name.
_CUT_USER = re.compile(r"(://)[^\s/?#@\"':]*+:[^\s/?#@\"']*+\Z")
_MARGIN, _MAX_BARE_SECRET = 512, 64
# No logged value is deeper; a deeper value is replaced by the name of its type.
_MAX_DEPTH = 16


def is_secret_name(name: str) -> bool:
    """Return whether a field of this name holds a credential; case, ``-`` and ``_`` in the name do not matter."""
    return re.sub(r"[^a-z0-9]", "", name.lower()) in _SECRET_NAMES


def redact_text(text: str) -> str:
    """Return ``text`` with the values of credentials, signatures and tokens in it replaced by ``[redacted]``."""
    for pattern, replacement in _RULES:
        text = pattern.sub(replacement, text)
    return text


def redacted_beginning(text: str, length: int) -> str:
    """Return the beginning of ``text`` without credentials, in time that does not grow with ``text``.

    It has at least ``length`` characters, unless ``text`` is shorter or a long secret was removed. It may be longer, so
    that the caller sees whether to truncate it.
    """
    cut = text[: length + _MARGIN]
    redacted = redact_text(cut)
    if len(cut) == len(text):
        return redacted
    return _CUT_USER.sub(rf"\1{REDACTED}", redacted)[:-_MAX_BARE_SECRET]


def redact(value: Any, depth: int = 0) -> Any:
    """Return a copy of ``value`` without credentials: dicts, lists and tuples are walked, text is searched.

    Other kinds of values stay as they are; a container deeper than 16 levels is replaced by the name of its type.
    """
    if isinstance(value, str):
        return redact_text(value)
    if depth >= _MAX_DEPTH and isinstance(value, (Mapping, list, tuple, set, frozenset)):
        return f"<{type(value).__name__}>"
    if isinstance(value, Mapping):
        return {key: REDACTED if is_secret_name(str(key)) else redact(item, depth + 1) for key, item in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [redact(item, depth + 1) for item in value]
    return value


def safe_text(text: str, max_characters: int = MAX_CHARACTERS) -> str:
    """Return ``text`` with secrets hidden and control characters escaped, cut to ``max_characters``."""
    return shortened(printable(redacted_beginning(text, max_characters)), max_characters)


def printable(text: str) -> str:
    """Return ``text`` with control characters and lone surrogates escaped, so that it is valid in XML and in logs."""
    return _UNPRINTABLE.sub(lambda match: f"\\u{ord(match[0]):04x}", text)


def shortened(text: str, max_characters: int) -> str:
    """Return ``text``, or its beginning and an ellipsis when it is longer."""
    return text if len(text) <= max_characters else text[: max_characters - 1] + ELLIPSIS
