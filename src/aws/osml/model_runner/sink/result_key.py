"""Object key of a result: always below the prefix, and never shared by two jobs."""

import re
from urllib.parse import quote

from .exceptions import SinkPermanentError

MAX_KEY_BYTES = 1024

_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
# Characters that are not encoded. The percent sign is encoded, so different names give different keys.
_SAFE = "._:-"


def result_key(prefix: str, job_id: str, result_name: str = "", extension: str = ".geojson") -> str:
    """Return ``<prefix>/<job id>.geojson``, or ``<prefix>/<job id>/<result name>.geojson`` if a job has several images.

    Characters of a name other than letters, digits and ``. _ : - ~`` are percent-encoded. Slashes of a job id are
    encoded too, because ``a/b`` and ``c/b`` are two jobs. A name of only dots is encoded as a whole, since some clients
    would resolve it as a directory. An empty name becomes a percent sign.

    Raises:
        SinkPermanentError: the prefix is not allowed, or the key is longer than S3 allows.
    """
    check_prefix(prefix)
    name = f"{_encode(job_id)}/{_encode(result_name)}" if result_name else _encode(job_id)
    separator = "" if not prefix or prefix.endswith("/") else "/"
    key = f"{prefix}{separator}{name}{extension}"
    if len(key.encode(errors="surrogatepass")) > MAX_KEY_BYTES:
        raise SinkPermanentError(f"S3: the object key of the result is longer than {MAX_KEY_BYTES} bytes")
    return key


def check_prefix(prefix: str) -> None:
    """Raise SinkPermanentError for a prefix with a leading slash, dot segments or control characters."""
    parts = prefix.split("/")
    if prefix.startswith("/") or ".." in parts or "." in parts or _CONTROL.search(prefix):
        raise SinkPermanentError("S3: the prefix must not have a leading /, segments . or .., or control characters")


def _encode(name: str) -> str:
    if name.strip(".") == "":
        return "%2E" * len(name) or "%"
    return quote(name, safe=_SAFE, errors="surrogatepass")
