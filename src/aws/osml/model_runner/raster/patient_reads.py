"""Repeats a read of a remote image after a broken transfer, and decides whether the store or the file is at fault.

===================================================  ===========================================================
a read fails, or lacks bytes, and                    then
===================================================  ===========================================================
the file is local                                    it is damaged: raise the error at once
the reason is known: missing, forbidden, too large   raise that error at once
a transfer broke off or was refused                  read again on a new handle, ``read_tries`` times in all
so each time, or for more than ``read_patience_s``   ImageBreaksOffError if the store responds, else
                                                     ImageUnreachableError
every transfer was whole, twice                      the file is damaged: raise the error if the store responds
===================================================  ===========================================================
"""

import math
import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeVar

import structlog

from aws.osml.model_runner.common.backoff import HALF_JITTER, backoff_s
from aws.osml.model_runner.exceptions import (
    ImageBreaksOffError,
    ImageError,
    ImageUnreachableError,
    LoadImageException,
    NotAnImageError,
)

from .open import forget_remote, is_remote
from .sensor_model import UNREADABLE
from .settings import RasterSettings
from .transfers import TransferWatch, watched_transfers

T = TypeVar("T")

logger = structlog.get_logger(__name__)

# Failures with complete transfers before the file counts as damaged. The first may come from a short piece that another
# thread's broken transfer left in the cache.
_CLEAN_FAILURES = 2


@dataclass(frozen=True)
class PatientReads:
    """Reads of one image; ``check_store`` raises ImageError when a store does not respond or has another version.

    ``more_paths`` are the paths of its other files, if it has several.
    """

    path: str
    url: str
    settings: RasterSettings
    check_store: Callable[[], object]
    sleep: Callable[[float], object] = time.sleep
    clock: Callable[[], float] = time.monotonic
    rng: random.Random = field(default_factory=random.Random)
    more_paths: tuple[str, ...] = ()

    def read(self, attempt: Callable[[TransferWatch], T]) -> T:
        """Return the result of ``attempt``, which opens a new handle when it is called again, and calls ``check``.

        Raises the last error of ``attempt`` where the file is at fault, ImageUnreachableError where its store is.
        """
        began_s, clean_failures = self.clock(), 0
        for number in range(1, self.settings.read_tries + 1):
            with watched_transfers() as transfers:
                try:
                    return attempt(transfers)
                except (*UNREADABLE, ImageError) as err:
                    failure = err
            is_temporary = isinstance(failure, ImageUnreachableError | NotAnImageError)
            is_definite = isinstance(failure, LoadImageException) and not is_temporary
            paths = (self.path, *self.more_paths)
            if is_definite or not any(map(is_remote, paths)):
                raise failure
            # The cache may hold a truncated piece, which the next handle would get as well.
            for path in paths:
                forget_remote(path)
            fault = transfers.fault or (str(failure) if isinstance(failure, ImageUnreachableError) else "")
            if not fault:
                clean_failures += 1
                if clean_failures == _CLEAN_FAILURES:
                    self.check_store()
                    raise failure
                continue
            logger.warning("image.read_broken", image=self.url, attempt=number, fault=fault, reason=str(failure))
            if self.clock() - began_s > self.settings.read_patience_s:
                break
            if number < self.settings.read_tries:
                base_s = self.settings.read_retry_delay_s
                self.sleep(backoff_s(number - 1, base_s, math.inf, self.rng, HALF_JITTER))
        if isinstance(failure, ImageUnreachableError):
            raise failure
        self.check_store()
        raise ImageBreaksOffError(f"{self.url} breaks off while it is read: {failure}") from failure
