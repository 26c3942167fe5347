"""The stages that the tiles of all regions pass, as threads that live as long as the process.

::

    run() ──► to cut ──► cutters ──► to detect ──► callers ──► to store ──► storers ──► RegionProgress
             (shares)    one per core  (bytes)     WORKERS       (count)

The stages wait for pixels, model and tables at the same time. Several regions share the stages: the next region is cut
while the model still processes the slowest tile of this one. Each queue is bounded, so a slow stage holds back the
stages before it, and memory does not grow with the image. A tile whose endpoint takes no further call waits in its
queue, and tiles for other endpoints pass it. Each region has a share of the tiles that wait for the model, which leaves
room for tiles of other endpoints.

A call to an endpoint that does not respond holds its thread until it times out; a read from an image store does the
same. So there are twice as many cutters and callers as may work for one store or one endpoint, see ``ThreadShares``.
"""

import threading
import time
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass

import structlog
from structlog.contextvars import bound_contextvars

from aws.osml.model_runner.common.typing import EncodedTile, TileState
from aws.osml.model_runner.database.feature_table import TileOutcome
from aws.osml.model_runner.exceptions import (
    BadModelResponseError,
    ModelRunnerError,
    ModelTileError,
    TableBusyError,
    TileEncodingError,
)
from aws.osml.model_runner.tiling.strategy import Tile

from .bounded_queue import BoundedQueue, QueueClosedError
from .region_run import RegionProgress, TileStages
from .shares import QueueShares, ThreadShares

logger = structlog.get_logger(__name__)

# Error codes of tiles that fail for another reason than the endpoint.
TILE_ENCODING = "TILE_ENCODING"
BAD_RESPONSE = "BAD_RESPONSE"
INTERNAL_ERROR = "INTERNAL_ERROR"

# After so many waits of 0.1 s in a row for its share, a region waits for its endpoint: another region can be cut.
_WAITS_BEFORE_NEXT = 50


@dataclass(slots=True, eq=False)
class _TileInFlight:
    """A tile in the pipeline, with the result of its last stage."""

    run: RegionProgress
    steps: TileStages
    tile: Tile
    encoded: EncodedTile = b""
    response: bytes = b""
    is_calling: bool = False
    has_thread: bool = False
    has_share: bool = True
    result: TileOutcome | None = None

    def begin_call(self) -> bool:
        """Return whether the model may be called with the tile now; see ``TileStages``."""
        self.is_calling = self.steps.begin_call()
        return self.is_calling


_Step = Callable[[_TileInFlight], BoundedQueue[_TileInFlight] | None]


class _StageThreads:
    """Decides which tile a free thread of a stage takes. ``may_begin`` is called for a tile whose holder has room.

    The holder of a tile is its endpoint or its image store; ``max_threads`` are the most for one holder.
    """

    def __init__(
        self,
        max_threads: int,
        holder_of: Callable[[_TileInFlight], Hashable],
        may_begin: Callable[[_TileInFlight], bool] = lambda _: True,
    ) -> None:
        self._shares = ThreadShares(max_threads)
        self._holder_of = holder_of
        self._may_begin = may_begin
        self.count = self._shares.threads

    def is_ready(self, item: _TileInFlight) -> bool:
        """Return True when a thread may take a tile: to work on it, or to drop it."""
        if item.run.is_stopped:
            return True
        holder = self._holder_of(item)
        item.has_thread = self._shares.take(holder)
        if item.has_thread and not self._may_begin(item):
            item.has_thread = False
            self._shares.release(holder)
        return item.has_thread

    @contextmanager
    def working(self, item: _TileInFlight) -> Iterator[None]:
        """Release the thread of a tile at the end; the next stage may have the tile by then."""
        holder, has_thread, item.has_thread = self._holder_of(item), item.has_thread, False
        try:
            yield
        finally:
            if has_thread:
                self._shares.release(holder)


class TilePipeline:
    """Runs tiles through cut, detect, and locate-and-store. One per process; ``close`` ends its threads.

    ``cutters`` is the maximum of threads for one store of images, ``callers`` for one endpoint.
    """

    def __init__(self, cutters: int, callers: int, storers: int, max_encoded_bytes: int) -> None:
        self._cut_ahead = 2 * callers
        # The shares of the regions bound the number of tiles in these two queues. With a bound of its own, a queue
        # would fill up with the tiles of one store or endpoint.
        self._to_cut: BoundedQueue[_TileInFlight] = BoundedQueue()
        self._to_detect: BoundedQueue[_TileInFlight] = BoundedQueue(max_bytes=max_encoded_bytes)
        self._shares = QueueShares(cutters, self._cut_ahead, 2 * max_encoded_bytes // 3)
        self._to_store: BoundedQueue[_TileInFlight] = BoundedQueue(max_items=2 * callers)
        cut = _StageThreads(cutters, lambda item: item.steps.image_store)
        detect = _StageThreads(callers, lambda item: item.steps.endpoint, _TileInFlight.begin_call)
        cutting = self._stage("cut", cut.count, self._to_cut, self._cut, cut)
        detecting = self._stage("detect", detect.count, self._to_detect, self._detect, detect)
        self._threads = [
            *(cutting[:cutters] + detecting[:callers]),
            *self._stage("store", storers, self._to_store, self._locate_and_store),
        ]
        # Idle threads cost memory, and work moves to them from threads with warm caches. So these threads start only
        # when a second endpoint or image store appears.
        self._reserve = cutting[cutters:] + detecting[callers:]
        self._holders: tuple[Hashable, Hashable] | None = None
        self._lock = threading.Lock()

    def start(self) -> None:
        """Start the threads for one image store and one endpoint."""
        for thread in self._threads:
            thread.start()

    def _start_reserve_for(self, steps: TileStages) -> None:
        """Start the other threads when a region has another image store or endpoint than all regions before it."""
        with self._lock:
            holders = (steps.image_store, steps.endpoint)
            self._holders = self._holders or holders
            if holders == self._holders or not self._reserve:
                return
            started, self._reserve = self._reserve, []
            for thread in started:
                thread.start()
            self._threads += started

    def run(
        self, run: RegionProgress, steps: TileStages, tiles: Sequence[Tile], on_cut: Callable[[], None] = lambda: None
    ) -> None:
        """Put a region's ``tiles`` through the stages; return when each has ended, or the run was stopped.

        ``on_cut`` is called when another region should be fetched, because the cutters will soon need its tiles:

        - when few tiles of this region are left, but at least half of them have been put in;
        - when its tiles wait for their endpoint;
        - when no tile is left to be put in.
        """
        self._start_reserve_for(steps)
        few_left = len(tiles) - min(self._cut_ahead, len(tiles) // 2)
        with self._shares.of(run):
            for position, tile in enumerate(tiles):
                if position == few_left:
                    on_cut()
                if not self._enter(run, on_cut):
                    break
                try:
                    self._to_cut.put(_TileInFlight(run, steps, tile))
                except QueueClosedError:
                    run.leave(tile, None)
                    run.stop()
        on_cut()
        run.wait()

    def _enter(self, run: RegionProgress, on_wait: Callable[[], None]) -> bool:
        """Count one tile in once the region's share has room; return False when the run is stopped."""
        waits = 0
        while not run.is_stopped:
            if self._shares.take(run):
                return run.enter()
            waits += 1
            if waits == _WAITS_BEFORE_NEXT:
                on_wait()
        return False

    def close(self, timeout_s: float = 1.0) -> None:
        """End the threads within ``timeout_s``: drop tiles that wait, and finish the steps in progress."""
        for queue in (self._to_cut, self._to_detect, self._to_store):
            queue.close()
        deadline_s = time.monotonic() + timeout_s
        for thread in self._threads:
            if thread.is_alive():
                thread.join(max(0.0, deadline_s - time.monotonic()))

    def _stage(
        self,
        name: str,
        threads: int,
        inbox: BoundedQueue[_TileInFlight],
        step: _Step,
        shares: _StageThreads | None = None,
    ) -> list[threading.Thread]:
        is_ready = shares.is_ready if shares is not None else lambda _: True
        working = shares.working if shares is not None else nullcontext

        def work() -> None:
            while True:
                try:
                    item = inbox.get(is_ready, lambda waiting: id(waiting.steps))
                except QueueClosedError:
                    return
                with working(item), bound_contextvars(**item.run.log_fields):
                    self._advance(item, step)

        return [threading.Thread(target=work, name=f"{name}-{n}", daemon=True) for n in range(threads)]

    def _advance(self, item: _TileInFlight, step: _Step) -> None:
        """Take one tile one stage further; after any error the tile is counted out in the end.

        A step that ends its thread stays begun, so ``last_life`` shows that the region hangs.
        """
        item.run.begin_step(item.tile)
        try:
            next_queue = step(item)
            item.run.end_step(item.tile)
            if next_queue is not None:
                next_queue.put(item, len(item.encoded))
        except QueueClosedError:
            self._drop(item)
        except MemoryError as err:
            # The process lacks memory, which is not the tile's fault: the region goes to another worker, or waits.
            logger.error("tile.out_of_memory", tile_index=item.tile.index)
            self._drop(item, err)
        except Exception as err:  # The thread of a stage serves every region, so no error may end it
            logger.exception("tile.broken", tile_index=item.tile.index)
            if item.result is not None:
                # Storing fails, so no tile of the region can end.
                self._drop(item, err)
                return
            # Only this tile fails. This thread stores it: a thread of the last stage must not wait for room in the
            # queue that it empties.
            self._set_failed(item, INTERNAL_ERROR, f"{type(err).__name__}, see tile.broken in the log")
            self._advance(item, self._locate_and_store)

    def _drop(self, item: _TileInFlight, err: Exception | None = None) -> None:
        """Count a tile out without an outcome, and begin no other tile of its region."""
        self._release_share(item)
        item.run.stop(err)
        item.run.leave(item.tile, None)

    def _cut(self, item: _TileInFlight) -> BoundedQueue[_TileInFlight] | None:
        if item.run.is_stopped:
            self._drop(item)
            return None
        try:
            item.encoded = item.steps.cut(item.tile)
        except TileEncodingError as err:
            return self._failed(item, TILE_ENCODING, err)
        except ModelRunnerError as err:
            # The image cannot be read, now or ever: the region is released, and no tile fails.
            self._drop(item, err)
            return None
        self._shares.record_bytes(item.run, len(item.encoded))
        return self._to_detect

    def _detect(self, item: _TileInFlight) -> BoundedQueue[_TileInFlight] | None:
        self._release_share(item)
        try:
            if item.run.is_stopped:
                self._drop(item)
                return None
            item.response = item.steps.detect(item.tile, item.encoded)
        except ModelTileError as err:
            return self._failed(item, err.code, err)
        except ModelRunnerError as err:
            # Back-pressure, or an endpoint that refuses all tiles of this job: the region is released, no tile fails.
            self._drop(item, err)
            return None
        finally:
            if item.is_calling:
                item.steps.end_call()
                self._to_detect.wake()
        item.encoded = b""
        return self._to_store

    def _locate_and_store(self, item: _TileInFlight) -> None:
        if item.result is None:
            item.result = self._locate(item)
        try:
            state = item.steps.store(item.tile, item.result)
        except TableBusyError as err:
            logger.warning("tile.not_stored", tile_index=item.tile.index, reason=str(err))
            self._drop(item, err)
            return
        item.run.leave(item.tile, state)

    def _locate(self, item: _TileInFlight) -> TileOutcome:
        try:
            return item.steps.locate(item.tile, item.response)
        except BadModelResponseError as err:
            logger.warning("tile.failed", tile_index=item.tile.index, code=BAD_RESPONSE, reason=str(err))
            return TileOutcome(TileState.FAILED, error_code=BAD_RESPONSE, error_reason=str(err))

    def _failed(self, item: _TileInFlight, code: str, err: Exception) -> BoundedQueue[_TileInFlight]:
        logger.warning("tile.failed", tile_index=item.tile.index, code=code, reason=str(err))
        self._set_failed(item, code, str(err))
        return self._to_store

    def _release_share(self, item: _TileInFlight) -> None:
        if item.has_share:
            item.has_share = False
            self._shares.release(item.run)

    def _set_failed(self, item: _TileInFlight, code: str, reason: str) -> None:
        self._release_share(item)
        item.encoded = item.response = b""
        item.result = TileOutcome(TileState.FAILED, error_code=code, error_reason=reason)
