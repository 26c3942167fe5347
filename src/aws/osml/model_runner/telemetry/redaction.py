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


def _without_query(match: re.Match[str]) -> str:
    return match[0] if match.end(1) == match.end() else f"{match[1]}?{REDACTED}"


# A name is recognised by its word and what follows it, so that no rule reads backwards.
_WORD = (
    r"(?:secret|password|passwd|token|credential|signature|(?:access|api)[_-]?key(?:[_-]?id)?|(?<![^\W_])sig(?![^\W_]))"
)
# ``re`` holds the GIL: each rule does linear work on any text. Runs in front of something that may be missing are
# bounded or possessive, and none of them can begin again within itself.
_RULES = (
    # A header's value may hold blanks (``AWS4-HMAC-SHA256 Credential=…, Signature=…``), so it ends with the line.
    (re.compile(r"(?i)\b(authorization[\"']?\s{0,16}[:=]\s{0,16})[^\r\n]+"), rf"\1{REDACTED}"),
    # User name and password of a URL, and its query, in which nobody can tell what is a secret.
    (re.compile(r"(://)[^\s/?#@\"']++@"), rf"\1{REDACTED}@"),
    (re.compile(r"(://[^\s?\"'<>]*+)(?:\?[^\s\"'<>]++)?"), _without_query),
    # Shell variables, JSON and Python text: a name, a separator, perhaps a quote, the secret.
    (
        re.compile(rf"(?i)({_WORD}[\w-]{{0,64}}+[\"']?\s{{0,16}}+[:=]\s{{0,16}}+[\"']?)[^\s\"'&,;}}<>]+"),
        rf"\1{REDACTED}",
    ),
    (re.compile(rf"(?i)(<[\w-]{{0,64}}?{_WORD}[\w-]{{0,64}}+>)[^<]+"), rf"\1{REDACTED}"),
    (re.compile(r"(?i)(\b(?:Bearer|Basic)\s{1,16}+)[A-Za-z0-9._~+/=-]{6,}"), rf"\1{REDACTED}"),
    # Segments of a path: the one after a word for a secret, and any that only a generator of secrets makes.
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
    # Tokens that say by their beginning what they are: JSON Web Tokens, GitHub's, Slack's.
    (
        re.compile(r"(?<![\w-])(?:eyJ[\w-]{16,}+(?:\.[\w-]*+)*+|gh[opsru]_[A-Za-z0-9]{20,}|xox[a-z]-[\w-]{10,})"),
        REDACTED,
    ),
    # The ids of AWS's keys and principals, and the shape of its secret keys.
    (re.compile(r"\b(?:AKIA|ASIA|AROA|AIDA)[A-Z0-9]{12,}"), REDACTED),
    (
        re.compile(
            r"(?<![A-Za-z0-9/+=_.:-])(?=[A-Za-z0-9/+]{40}(?![A-Za-z0-9/+=_.-]))"
            r"(?=[a-z0-9/+]*+[A-Z])(?=[A-Z0-9/+]*+[a-z])(?=[A-Za-z/+]*+[0-9])[A-Za-z0-9/+]{40}"
        ),
        REDACTED,
    ),
)
# A text that is cut may end within user information, whose @ is missing then, or within a secret without a name.
_CUT_USER = re.compile(r"(://)[^\s/?#@\"':]*+:[^\s/?#@\"']*+\Z")
_MARGIN, _LONGEST_BARE_SECRET = 512, 64
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


def redacted_beginning(text: str, length: int) -> str:
    """Return the beginning of ``text`` without credentials, in work that does not grow with ``text``.

    It has at least ``length`` characters where ``text`` has, unless a long secret was taken out. It is longer than
    ``length``, so that the caller can see whether to cut.
    """
    cut = text[: length + _MARGIN]
    redacted = redact_text(cut)
    if len(cut) == len(text):
        return redacted
    return _CUT_USER.sub(rf"\1{REDACTED}", redacted)[:-_LONGEST_BARE_SECRET]


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
