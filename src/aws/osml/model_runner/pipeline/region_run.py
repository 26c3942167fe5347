"""The progress of one region while its tiles pass the pipeline."""

import math
import threading
from collections.abc import Callable, Hashable, Iterator, Mapping
from contextlib import contextmanager
from typing import Protocol

from aws.osml.model_runner.common.typing import EncodedTile, TileState
from aws.osml.model_runner.database.feature_table import TileOutcome
from aws.osml.model_runner.tiling.strategy import Tile

# Interval at which a waiting run checks whether its process is to stop.
_STOP_POLL_S = 0.5


class TileStages(Protocol):
    """The four steps of a tile: cut, detect, locate, store. The pipeline decides when each of them is taken."""

    @property
    def endpoint(self) -> Hashable:
        """The endpoint that is called; all calls of one endpoint share their threads."""
        ...

    @property
    def image_store(self) -> Hashable:
        """The store that the image is read from; all reads of one store share their threads."""
        ...

    def cut(self, tile: Tile) -> EncodedTile:
        """Return the tile's pixels, encoded for the model."""
        ...

    def begin_call(self) -> bool:
        """Return True when the model may be called now; then ``end_call`` follows, even if the call fails."""
        ...

    def end_call(self) -> None:
        """Make room for the next call."""
        ...

    def detect(self, tile: Tile, encoded: EncodedTile) -> bytes:
        """Return the model's response."""
        ...

    def locate(self, tile: Tile, response: bytes) -> TileOutcome:
        """Return the features in a response, in pixels of the image and in degrees."""
        ...

    def store(self, tile: Tile, result: TileOutcome) -> TileState | None:
        """Commit a result and return the state that counts, which may be another worker's; None if not decided yet."""
        ...


class RegionProgress:
    """Counts a region's tiles in and out, and keeps the error that stopped it.

    ``now`` is the clock of ``last_life`` and ``deadline``. ``log_fields`` are bound to every event of the tiles.
    ``on_progress`` is called once, when the first tile has ended. ``stopping`` stops every run of the process; then a
    run waits ``stop_grace_s`` for its tiles in flight. After ``deadline`` no tile is begun either.

    ``last_life`` shows a thread that hangs. It covers threads that work on the region: the thread of a stage between
    ``begin_step`` and ``end_step``, and the region's own thread outside of ``waiting``. A tile that waits in a queue
    does not count, however long the endpoint takes. A long step that does not hang calls ``record_life``.
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
        # Called by the region's own thread, often and without a lock, so that it can report progress.
        self.on_tick: Callable[[], None] = lambda: None
        # Outcomes of tiles that earlier attempts have done, by tile index.
        self.done_before: Mapping[int, TileState] = {}
        self._stopping = stopping or threading.Event()
        self.log_fields = dict(log_fields or {})
        self.outcomes: dict[int, TileState] = {}
        self._now = now
        self._on_progress = on_progress
        self._in_flight = 0
        # The first error that stopped the region.
        self.stopped_by: Exception | None = None
        self._is_stopped = False
        self._is_given_up = False
        self._changed = threading.Condition()
        # Last sign of life of each thread that works on the region, by tile index; None is the region's own thread.
        self._life: dict[int | None, float] = {None: now()}

    def states(self) -> list[TileState]:
        """Return the outcomes of all tiles that are done, those of earlier attempts first."""
        with self._changed:
            return [*self.done_before.values(), *self.outcomes.values()]

    @property
    def last_life(self) -> float:
        """The oldest of all threads' last signs of life; the present when no thread works."""
        with self._changed:
            return min(self._life.values(), default=self._now())

    def begin_step(self, tile: Tile) -> None:
        """Record that the thread of a stage begins to work on ``tile``."""
        with self._changed:
            self._life[tile.index] = self._now()

    def end_step(self, tile: Tile) -> None:
        """Record that the thread of a stage no longer works on ``tile``; ``leave`` does the same."""
        with self._changed:
            self._life.pop(tile.index, None)

    def record_life(self, tile: Tile | None = None) -> None:
        """Record that the step of ``tile`` does not hang; the step itself calls this.

        A step with several attempts calls this after each attempt, and may then last as long as it needs. Without a
        tile, or with a tile that no stage works on, this records life of the region's own thread.
        """
        with self._changed:
            key = tile.index if tile is not None and tile.index in self._life else None
            if key in self._life:
                self._life[key] = self._now()

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Leave the region's own thread out of ``last_life`` while it only waits for its tiles."""
        with self._changed:
            self._life.pop(None, None)
        try:
            yield
        finally:
            with self._changed:
                self._life[None] = self._now()

    @property
    def is_stopped(self) -> bool:
        """True when no further tile may be begun."""
        return self._is_stopped or self._stopping.is_set() or self.is_late()

    def is_late(self) -> bool:
        """Return True when the deadline of the region's job is over."""
        return self._now() > self._deadline

    def enter(self) -> bool:
        """Count one tile in; return False when the run is stopped, and then do not begin the tile."""
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
        """Begin no further tile; tiles with a response are still stored."""
        with self._changed:
            self._is_stopped = True
            self.stopped_by = self.stopped_by or error
            self._changed.notify_all()

    def lose(self) -> None:
        """Stop because another worker holds the region: the results of its tiles are not needed."""
        self._is_given_up = True
        self.stop()

    @property
    def may_store(self) -> bool:
        """True while the results of the region's tiles are needed: this worker holds the region and waits for them."""
        return not self._is_given_up

    def wait(self) -> None:
        """Return when every tile that was counted in is counted out, or the process stops and its grace is over."""
        while not self._is_empty_within(_STOP_POLL_S):
            if self._stopping.is_set():
                self._is_given_up = not self._is_empty_within(self._stop_grace_s)
                return
            self.on_tick()

    def _is_empty_within(self, timeout_s: float) -> bool:
        with self._changed:
            return self._changed.wait_for(lambda: self._in_flight == 0, timeout=timeout_s)
