"""Detects incomplete transfers from a remote store by the messages that libcurl logs through GDAL.

GDAL treats a truncated body as complete, and caches the short piece for every handle of the URL. A JPEG decoder fills
the rest with grey, and a TIFF loses the tags that were not read. So a successful read may lack bytes, and a failed
read may be the fault of the network or of the file. The messages of libcurl distinguish them, and arrive in the thread
that reads.
"""

import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from osgeo import gdal

# Texts that libcurl logs when a transfer did not complete.
_BROKEN = re.compile(
    r"failure:|timed out|too slow|closed with|empty reply|not closed cleanly|couldn't connect|could not resolve"
    r"|ssl_read|ssl_connect|recv error|framing layer|chunked-encoding",
    re.IGNORECASE,
)
_STATUS = re.compile(r"HTTP/[\d.]+ (\d{3})")
_CONTENT_RANGE = re.compile(r"content-range: *bytes (\d+)-(\d+)", re.IGNORECASE)
_CONTENT_LENGTH = re.compile(r"content-length: *(\d+)", re.IGNORECASE)
_REFUSED = frozenset({408, 429})

_TEXT, _HEADER = "CURL_INFO_TEXT: ", "CURL_INFO_HEADER_IN: "
_OPTIONS = {"CPL_DEBUG": "CURL_INFO_TEXT CURL_INFO_HEADER_IN", "CPL_CURL_VERBOSE": "YES"}

# GDAL only warns of a JPEG that ends too early, wherever it lies.
_SHORT_JPEG = "Premature end of JPEG file"

_local = threading.local()


class IncompleteReadError(RuntimeError):
    """A read lacks bytes, although GDAL reported success."""


class TransferWatch:
    """Network faults of one thread while it was watched.

    ``fault`` is the last fault, or empty. GDAL may have repeated the request, so a fault alone does not fail a read.
    """

    def __init__(self) -> None:
        self.fault = ""
        self._is_cut = False
        self._is_short = False
        self._range_bytes: int | None = None

    def check(self, is_header: bool = False) -> None:
        """Raise IncompleteReadError when bytes are missing, even if the read succeeded.

        ``is_header``: any fault counts, because GDAL omits unreadable parts of a header without an error.
        """
        if self._is_cut or (is_header and self.fault):
            raise IncompleteReadError(f"a transfer broke off: {self.fault}")
        if self._is_short:
            raise IncompleteReadError(f"the file lacks bytes: {_SHORT_JPEG}")

    def record(self, error_class: int, message: str) -> None:
        """Record a fault if one of GDAL's messages reports it."""
        if error_class != gdal.CE_Debug:
            self._is_short = self._is_short or _SHORT_JPEG in message
            return
        if message.startswith(_TEXT) and _BROKEN.search(message):
            self._cut(message.removeprefix(_TEXT).strip())
        if not message.startswith(_HEADER):
            return
        line = message.removeprefix(_HEADER)
        if found := _STATUS.match(line):
            self._range_bytes = None
            status = int(found[1])
            if status >= 500 or status in _REFUSED:
                self.fault = f"status {status}"
        elif found := _CONTENT_RANGE.match(line):
            self._range_bytes = int(found[2]) - int(found[1]) + 1
        elif (found := _CONTENT_LENGTH.match(line)) and self._range_bytes not in (None, int(found[1])):
            self._cut(f"a body of {found[1]} bytes for a range of {self._range_bytes}")

    def _cut(self, fault: str) -> None:
        self.fault = fault
        self._is_cut = True


@contextmanager
def watched_transfers() -> Iterator[TransferWatch]:
    """Watch the transfers of this thread in the ``with`` block; GDAL's error handler has to call ``record_message``."""
    before, watch = getattr(_local, "watch", None), TransferWatch()
    _local.watch = watch
    for name, value in _OPTIONS.items():
        gdal.SetThreadLocalConfigOption(name, value)
    try:
        yield watch
    finally:
        _local.watch = before
        if before is not None:
            before.fault = watch.fault or before.fault
        else:
            for name in _OPTIONS:
                gdal.SetThreadLocalConfigOption(name, None)


@contextmanager
def last_warning() -> Iterator[Callable[[], str]]:
    """Yield a function that returns GDAL's last warning in this thread during the ``with`` block, or an empty text."""
    _local.warning = ""
    yield lambda: str(_local.warning)


def record_message(error_class: int, message: str) -> bool:
    """Pass one of GDAL's messages to this thread's watch; return True when it must not be logged.

    libcurl's messages contain headers, and thus signatures.
    """
    if error_class == gdal.CE_Warning:
        _local.warning = message
    watch = getattr(_local, "watch", None)
    if watch is not None:
        watch.record(error_class, message)
    return bool(error_class == gdal.CE_Debug and message.startswith("CURL_"))
