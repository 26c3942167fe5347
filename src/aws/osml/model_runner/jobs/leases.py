"""Renews the leases of this worker while their work makes progress.

Leases save work, but correctness does not depend on them. If a lease ends under a living worker, another worker
processes the same tiles, and the conditional writes count them once.

Separate threads renew leases in tables and the visibility of messages, several at a time. So neither a call that hangs
nor a failure of SQS ends the leases in the tables.
"""

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import Enum

import structlog
from botocore.exceptions import BotoCoreError, ClientError

from aws.osml.model_runner.exceptions import ModelRunnerError

logger = structlog.get_logger(__name__)


# Number of threads that renew leases of one kind.
_RENEWERS = 4


class LeaseKind(Enum):
    """Where a claim is kept; each kind is renewed by its own threads."""

    TABLE = "tables"
    MESSAGE = "messages"


@dataclass(eq=False)
class Lease:
    """A claim with an end time.

    Attributes:
        name: name of the claim, for the log.
        renew: extends the claim; False after it was lost.
        on_lost: called once after the claim was lost.
        kind: where the claim is kept.
        last_progress: returns the time of the last progress, by the keeper's clock; a lease whose work hangs is lost.
        lost: set when the claim is gone.
        renewing: held during a renewal, so that ``keep`` returns only after a renewal in progress.
    """

    name: str
    renew: Callable[[], bool]
    on_lost: Callable[[], None]
    last_progress: Callable[[], float]
    kind: LeaseKind = LeaseKind.TABLE
    lost: threading.Event = field(default_factory=threading.Event)
    renewing: threading.Lock = field(default_factory=threading.Lock)


class LeaseKeeper:
    """Renews every lease each ``interval_s``, until its holder leaves or its work stalls.

    ``on_stall`` is called for work without progress for ``stall_s``, after its lease was dropped. ``make_pool`` makes
    the threads that renew the leases of one kind.
    """

    def __init__(
        self,
        interval_s: float,
        stall_s: float,
        now: Callable[[], float] = time.time,
        on_stall: Callable[[Lease], None] = lambda _lease: None,
        make_pool: Callable[[LeaseKind], Executor] = lambda kind: ThreadPoolExecutor(_RENEWERS, f"leases-{kind.value}"),
    ) -> None:
        self.on_stall = on_stall
        self._interval_s = interval_s
        self._stall_s = stall_s
        self._now = now
        self._make_pool = make_pool
        self._leases: set[Lease] = set()
        self._lock = threading.Lock()
        self._stopped = threading.Event()
        self._threads = [
            threading.Thread(target=self._beat, args=(kind,), name=f"leases-{kind.value}", daemon=True)
            for kind in LeaseKind
        ]

    def start(self) -> None:
        """Start the threads that renew."""
        for thread in self._threads:
            thread.start()

    def close(self) -> None:
        """Stop renewing; leases that are still held end by themselves."""
        self._stopped.set()

    @contextmanager
    def keep(self, lease: Lease) -> Iterator[Lease]:
        """Renew ``lease`` while the caller is inside, and never after, so that a released claim stays released."""
        with self._lock:
            self._leases.add(lease)
        try:
            yield lease
        finally:
            with lease.renewing, self._lock:
                self._leases.discard(lease)

    def _beat(self, kind: LeaseKind) -> None:
        pool, under_way = self._make_pool(kind), dict[Lease, Future[None]]()
        while not self._stopped.wait(self._interval_s):
            with self._lock:
                leases = [lease for lease in self._leases if lease.kind is kind]
            # A renewal that hangs does not delay the others.
            under_way = {lease: renewal for lease, renewal in under_way.items() if not renewal.done()}
            for lease in leases:
                if lease not in under_way:
                    try:
                        under_way[lease] = pool.submit(self._renew, lease)
                    except RuntimeError:  # Memory for another thread is lacking; the next heartbeat tries again
                        logger.exception("lease.not_renewed", lease=lease.name)
        pool.shutdown(wait=False, cancel_futures=True)

    def _renew(self, lease: Lease) -> None:
        with lease.renewing:
            with self._lock:
                if lease not in self._leases:
                    return
            if self._now() - lease.last_progress() > self._stall_s:
                logger.error("lease.stalled", lease=lease.name, stall_s=self._stall_s)
                self._lose(lease)
                self.on_stall(lease)
                return
            try:
                is_ours = lease.renew()
            except (ModelRunnerError, ClientError, BotoCoreError) as err:
                # The next heartbeat tries again; two heartbeats may fail before the lease ends.
                logger.warning("lease.not_renewed", lease=lease.name, error=type(err).__name__)
                return
            except Exception:  # A defect may end this lease, but not the thread that renews all
                logger.exception("lease.not_renewed", lease=lease.name)
                return
            if not is_ours:
                logger.warning("lease.lost", lease=lease.name)
                self._lose(lease)

    def _lose(self, lease: Lease) -> None:
        with self._lock:
            self._leases.discard(lease)
        lease.lost.set()
        lease.on_lost()
