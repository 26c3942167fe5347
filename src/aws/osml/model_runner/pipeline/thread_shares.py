"""Shares of endpoints, or of stores of images, in the threads of a stage."""

import threading
from collections import Counter
from collections.abc import Hashable


class ThreadShares:
    """Bounds the threads of a stage that work for one holder, so that a holder that never responds stops no other one.

    A holder takes a thread while it has fewer than are free. This is the dynamic threshold of A. K. Choudhury and
    E. L. Hahne, "Dynamic Queue Length Thresholds for Shared-Memory Packet Switches", 1998. The stage has twice ``most``
    threads: a holder alone takes ``most`` of them, the next holder half of the others, and so on. Holders of one thread
    each leave all others free.
    """

    def __init__(self, most: int) -> None:
        self.threads = 2 * most
        self._free = self.threads
        self._held: Counter[Hashable] = Counter()
        self._lock = threading.Lock()

    def take(self, holder: Hashable) -> bool:
        """Count one thread more for ``holder`` if it has fewer than are free; return whether it was counted."""
        with self._lock:
            has_room = self._held[holder] < self._free
            self._held[holder] += has_room
            self._free -= has_room
            return has_room

    def give_back(self, holder: Hashable) -> None:
        """Count one thread less for ``holder``."""
        with self._lock:
            self._held[holder] -= 1
            self._free += 1
            if not self._held[holder]:
                del self._held[holder]
