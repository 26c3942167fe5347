"""One region while its tiles are on their way through the pipeline."""

import math
import threading
from collections.abc import Callable, Hashable, Iterator, Mapping
from contextlib import contextmanager
from typing import Protocol

from aws.osml.model_runner.common.typing import EncodedTile, TileState
from aws.osml.model_runner.database.feature_table import TileOutcome
from aws.osml.model_runner.tiling.strategy import Tile

# How often a run that waits looks whether its process is to stop.
_STOP_POLL_S = 0.5


class TileStages(Protocol):
    """The four steps of a tile, and when the second may be taken.

    The pipeline knows when each is done; a region's steps know how.
    """

    @property
    def endpoint(self) -> Hashable:
        """The endpoint that is called: its calls last long together, and share their threads."""
        ...

    @property
    def image_store(self) -> Hashable:
        """The store that the image is read from: its reads last long together, and share their threads."""
        ...

    def cut(self, tile: Tile) -> EncodedTile:
        """Return the tile's pixels, encoded for the model."""
        ...

    def begin_call(self) -> bool:
        """Return True when the model may be called now; then ``end_call`` follows, whatever the call comes to."""
        ...

    def end_call(self) -> None:
        """Make room for the next call."""
        ...

    def detect(self, tile: Tile, encoded: EncodedTile) -> bytes:
        """Return the model's answer."""
        ...

    def locate(self, tile: Tile, response: bytes) -> TileOutcome:
        """Return the features that an answer holds, placed in the image and on the ground."""
        ...

    def store(self, tile: Tile, result: TileOutcome) -> TileState | None:
        """Commit a result and return the state that counts, which may be another worker's; None to decide later."""
        ...


class RegionProgress:
    """Counts a region's tiles in and out, and remembers why it was stopped, if it was.

    ``now`` is the clock that ``last_life`` is read from; ``log_fields`` are bound to every event that its tiles
    log; ``on_progress`` is called once, when the first tile has ended. ``stopping`` stops every run of the process;
    ``stop_grace_s`` is how long tiles in flight are waited for then. Past ``deadline`` no tile is begun either.

    A thread that hangs is found by ``last_life``. It covers threads that work on the region: a stage's thread between
    ``begin_step`` and ``end_step``, and the region's own thread outside of ``waiting``. A tile that waits in a queue
    does not count, however long the endpoint takes. A step that lasts long and is not stuck calls ``record_life``.
    """

    def __init__(
        self,
        now: Callable[[], float],
        log_fields: Mapping[str, str] | None = None,
        on_progress: Callable[[], object] = lambda: None,
        stopping: threading.Event | None = None,
        stop_grace_s: float = 10.0,
        deadline: float = math.inf,
    ) -> None:
        self._stop_grace_s = stop_grace_s
        self._deadline = deadline
        # Called by the region's own thread, often and without a lock, so that it may tell how far the region is.
        self.on_tick: Callable[[], None] = lambda: None
        # Tiles that earlier attempts have done.
        self.done_before: Mapping[int, TileState] = {}
        self._stopping = stopping or threading.Event()
        self.log_fields = dict(log_fields or {})
        self.outcomes: dict[int, TileState] = {}
        self._now = now
        self._on_progress = on_progress
        self._in_flight = 0
        self._stopped_by: Exception | None = None
        self._is_stopped = False
        self._is_given_up = False
        self._changed = threading.Condition()
        # Last sign of life of each thread that works on the region, by tile index; None is the region's own thread.
        self._life: dict[int | None, float] = {None: now()}

    @property
    def last_life(self) -> float:
        """Last sign of life of the thread that gave none for longest; the present when no thread works."""
        with self._changed:
            return min(self._life.values(), default=self._now())

    def begin_step(self, tile: Tile) -> None:
        """Note that a stage's thread begins to work on ``tile``."""
        with self._changed:
            self._life[tile.index] = self._now()

    def end_step(self, tile: Tile) -> None:
        """Note that no stage's thread works on ``tile`` any more; ``leave`` does the same."""
        with self._changed:
            self._life.pop(tile.index, None)

    def record_life(self, tile: Tile | None = None) -> None:
        """Note that the step of ``tile`` is not stuck, from inside the step.

        A step that makes one attempt after the other calls this after each, and may last as long as it needs to.
        Without a tile, or with one that is in no stage, it is the region's own thread that is not stuck.
        """
        with self._changed:
            key = tile.index if tile is not None and tile.index in self._life else None
            if key in self._life:
                self._life[key] = self._now()

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Do not count the region's own thread while it only waits for its tiles."""
        with self._changed:
            self._life.pop(None, None)
        try:
            yield
        finally:
            with self._changed:
                self._life[None] = self._now()

    @property
    def is_stopped(self) -> bool:
        """True when no further tile is to be begun."""
        return self._is_stopped or self._stopping.is_set() or self.is_late()

    def is_late(self) -> bool:
        """True when the time of the region's job is over."""
        return self._now() > self._deadline

    @property
    def stopped_by(self) -> Exception | None:
        """The first error that made going on pointless, if there was one."""
        return self._stopped_by

    def enter(self) -> bool:
        """Count one tile in; False when the run is stopped and the tile must not be begun."""
        self.on_tick()
        with self._changed:
            if self.is_stopped:
                return False
            self._in_flight += 1
            return True

    def leave(self, tile: Tile, state: TileState | None) -> None:
        """Count one tile out; ``state`` is None when the tile has no outcome, or none yet."""
        if state is not None and not self.outcomes:
            self._on_progress()
        with self._changed:
            self._in_flight -= 1
            self._life.pop(tile.index, None)
            if state is not None:
                self.outcomes[tile.index] = state
            self._changed.notify_all()

    def stop(self, error: Exception | None = None) -> None:
        """Begin no further tile; those that the model has answered still end."""
        with self._changed:
            self._is_stopped = True
            self._stopped_by = self._stopped_by or error
            self._changed.notify_all()

    def lose(self) -> None:
        """Stop because the region is not ours any more: what its tiles came to is not needed."""
        self._is_given_up = True
        self.stop()

    @property
    def may_store(self) -> bool:
        """True while results of the region's tiles are needed: the region is ours, and its thread waits for them."""
        return not self._is_given_up

    def wait(self) -> None:
        """Return when every tile that was counted in is counted out, or the process stops and cannot wait longer."""
        while not self._is_empty_within(_STOP_POLL_S):
            if self._stopping.is_set():
                self._is_given_up = not self._is_empty_within(self._stop_grace_s)
                return
            self.on_tick()

    def _is_empty_within(self, timeout_s: float) -> bool:
        with self._changed:
            return self._changed.wait_for(lambda: self._in_flight == 0, timeout=timeout_s)
