"""The stages that every tile of every region passes, as threads that live as long as the process.

::

    run() ──► to cut ──► cutters ──► to detect ──► callers ──► to store ──► storers ──► RegionProgress
             (shares)    one per core  (bytes)     WORKERS       (count)

Pixels, model and tables are waited for at the same time, and several regions share the stages: the next region is
cut while the slowest tile of this one is still with the model. Each queue is bounded, so a slow stage holds back the
ones before it and memory does not grow with the image. A tile whose endpoint takes no further call waits in its queue,
and tiles for other endpoints pass it. No region has more than its share of the tiles that wait for the model, so that
there is room for those others.

A call to an endpoint that does not respond holds its thread until it times out, and so does a read from a store of
images. So there are twice as many cutters and callers as may work for one store or one endpoint, see ``ThreadShares``.
"""

import threading
import time
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager, nullcontext

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
from .queue_shares import QueueShares
from .region_run import RegionProgress, TileStages
from .thread_shares import ThreadShares

logger = structlog.get_logger(__name__)

# What a failed tile's row says when it was not the endpoint that refused.
TILE_ENCODING = "TILE_ENCODING"
BAD_RESPONSE = "BAD_RESPONSE"
INTERNAL_ERROR = "INTERNAL_ERROR"

# A region that waits for its share so often in a row, 0.1 s each, waits for its endpoint: another region can be cut.
_WAITS_BEFORE_NEXT = 50


class _TileOnItsWay:
    """A tile in the pipeline, with what the last stage made of it."""

    __slots__ = ("answer", "encoded", "has_share", "has_thread", "is_calling", "result", "run", "steps", "tile")

    def __init__(self, run: RegionProgress, steps: TileStages, tile: Tile) -> None:
        self.run = run
        self.steps = steps
        self.tile = tile
        self.encoded: EncodedTile = b""
        self.answer = b""
        self.is_calling = False
        self.has_thread = False
        self.has_share = True
        self.result: TileOutcome | None = None


def _endpoint_of(item: _TileOnItsWay) -> Hashable:
    return item.steps.endpoint


def _store_of(item: _TileOnItsWay) -> Hashable:
    return item.steps.image_store


def _begin_call(item: _TileOnItsWay) -> bool:
    item.is_calling = item.steps.begin_call()
    return item.is_calling


_Step = Callable[[_TileOnItsWay], BoundedQueue[_TileOnItsWay] | None]


class _StageThreads:
    """Decides which tile a free thread of a stage takes. ``may_begin`` is called for a tile whose holder has room."""

    def __init__(
        self,
        most: int,
        holder_of: Callable[[_TileOnItsWay], Hashable],
        may_begin: Callable[[_TileOnItsWay], bool] = lambda _: True,
    ) -> None:
        self._shares = ThreadShares(most)
        self._holder_of = holder_of
        self._may_begin = may_begin
        self.count = self._shares.threads

    def is_ready(self, item: _TileOnItsWay) -> bool:
        """Return True when a thread may take a tile: to work on it, or to drop it."""
        if item.run.is_stopped:
            return True
        holder = self._holder_of(item)
        item.has_thread = self._shares.take(holder)
        if item.has_thread and not self._may_begin(item):
            item.has_thread = False
            self._shares.give_back(holder)
        return item.has_thread

    @contextmanager
    def working(self, item: _TileOnItsWay) -> Iterator[None]:
        """Count a tile's thread as free at the end, when the next stage may have the tile already."""
        holder, has_thread, item.has_thread = self._holder_of(item), item.has_thread, False
        try:
            yield
        finally:
            if has_thread:
                self._shares.give_back(holder)


class TilePipeline:
    """Runs tiles through cut, detect, and locate-and-store. One per process; ``close`` ends its threads.

    ``cutters`` and ``callers`` are the most threads for one store of images, and for one endpoint.
    """

    def __init__(self, cutters: int, callers: int, storers: int, max_encoded_bytes: int) -> None:
        self._cut_ahead = 2 * callers
        # The regions' shares bound how many tiles these two hold. With a bound of its own a queue would fill up with
        # the tiles of one store or endpoint.
        self._to_cut: BoundedQueue[_TileOnItsWay] = BoundedQueue()
        self._to_detect: BoundedQueue[_TileOnItsWay] = BoundedQueue(max_bytes=max_encoded_bytes)
        self._shares = QueueShares(cutters, self._cut_ahead, 2 * max_encoded_bytes // 3)
        self._to_store: BoundedQueue[_TileOnItsWay] = BoundedQueue(max_items=2 * callers)
        cut, detect = _StageThreads(cutters, _store_of), _StageThreads(callers, _endpoint_of, _begin_call)
        cutting = self._stage("cut", cut.count, self._to_cut, self._cut, cut)
        detecting = self._stage("detect", detect.count, self._to_detect, self._detect, detect)
        self._threads = [
            *(cutting[:cutters] + detecting[:callers]),
            *self._stage("store", storers, self._to_store, self._locate_and_store),
        ]
        # Idle threads cost memory and take turns with warm ones, so these start when a second holder appears.
        self._reserve = cutting[cutters:] + detecting[callers:]
        self._holders: tuple[Hashable, Hashable] | None = None
        self._lock = threading.Lock()

    def start(self) -> None:
        """Start the threads that one store of images and one endpoint need."""
        for thread in self._threads:
            thread.start()

    def _start_reserve_for(self, steps: TileStages) -> None:
        """Start the other threads when a region has another store or endpoint than all regions before it."""
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

        ``on_cut`` is called when the cutters will soon need another region's tiles, which take a while to come, but not
        before half of this region's are on their way; when this region's wait for their endpoint; and when none is left
        to be put in.
        """
        self._start_reserve_for(steps)
        few_left = len(tiles) - min(self._cut_ahead, len(tiles) // 2)
        with self._shares.of(run):
            for place, tile in enumerate(tiles):
                if place == few_left:
                    on_cut()
                if not self._enter(run, on_cut):
                    break
                try:
                    self._to_cut.put(_TileOnItsWay(run, steps, tile))
                except QueueClosedError:
                    run.leave(tile, None)
                    run.stop()
        on_cut()
        run.wait()

    def _enter(self, run: RegionProgress, on_wait: Callable[[], None]) -> bool:
        """Count one tile in when the region's share has room; False when the run is stopped."""
        waits = 0
        while not run.is_stopped:
            if self._shares.take(run):
                return run.enter()
            waits += 1
            if waits == _WAITS_BEFORE_NEXT:
                on_wait()
        return False

    def close(self, timeout_s: float = 1.0) -> None:
        """End the threads: what waits is dropped, what is in a stage ends first, all of it within ``timeout_s``."""
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
        inbox: BoundedQueue[_TileOnItsWay],
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

    def _advance(self, item: _TileOnItsWay, step: _Step) -> None:
        """Take one tile one stage further; whatever happens, it is counted out in the end.

        A step that ends its thread stays begun, so that the region is found to hang.
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
            # The process lacks memory, the tile is not at fault: its region is another worker's, or waits.
            logger.error("tile.out_of_memory", tile_index=item.tile.index)
            self._drop(item, err)
        except Exception as err:  # noqa: BLE001 - the stage's thread serves every region and must live on
            self._survive(item, err)

    def _survive(self, item: _TileOnItsWay, err: Exception) -> None:
        """Deal with an error that no stage foresaw: the tile fails alone, unless it is storing that does not work."""
        logger.exception("tile.broken", tile_index=item.tile.index)
        if item.result is not None:
            self._drop(item, err)
            return
        # Stored by this very thread: one of the last stage must not wait for room in the queue that it empties.
        self._advance(
            self._as_failed(item, INTERNAL_ERROR, f"{type(err).__name__}, see tile.broken in the log"),
            self._locate_and_store,
        )

    def _drop(self, item: _TileOnItsWay, err: Exception | None = None) -> None:
        """Count a tile out without an outcome, and begin none of its region's others."""
        self._give_share_back(item)
        item.run.stop(err)
        item.run.leave(item.tile, None)

    def _cut(self, item: _TileOnItsWay) -> BoundedQueue[_TileOnItsWay] | None:
        if item.run.is_stopped:
            self._drop(item)
            return None
        try:
            item.encoded = item.steps.cut(item.tile)
        except TileEncodingError as err:
            return self._failed(item, TILE_ENCODING, err)
        except ModelRunnerError as err:
            # The image cannot be read, for now or for good: the region goes back, no tile fails.
            self._drop(item, err)
            return None
        self._shares.record_bytes(item.run, len(item.encoded))
        return self._to_detect

    def _detect(self, item: _TileOnItsWay) -> BoundedQueue[_TileOnItsWay] | None:
        self._give_share_back(item)
        try:
            return self._detected(item)
        finally:
            if item.is_calling:
                item.steps.end_call()
                self._to_detect.wake()

    def _detected(self, item: _TileOnItsWay) -> BoundedQueue[_TileOnItsWay] | None:
        if item.run.is_stopped:
            self._drop(item)
            return None
        try:
            item.answer = item.steps.detect(item.tile, item.encoded)
        except ModelTileError as err:
            return self._failed(item, err.code, err)
        except ModelRunnerError as err:
            # Back-pressure, or an endpoint that answers no tile of this job: the region goes back, no tile fails.
            self._drop(item, err)
            return None
        item.encoded = b""
        return self._to_store

    def _locate_and_store(self, item: _TileOnItsWay) -> None:
        if item.result is None:
            item.result = self._locate(item)
        try:
            state = item.steps.store(item.tile, item.result)
        except TableBusyError as err:
            logger.warning("tile.not_stored", tile_index=item.tile.index, reason=str(err))
            self._drop(item, err)
            return
        item.run.leave(item.tile, state)

    def _locate(self, item: _TileOnItsWay) -> TileOutcome:
        try:
            return item.steps.locate(item.tile, item.answer)
        except BadModelResponseError as err:
            logger.warning("tile.failed", tile_index=item.tile.index, code=BAD_RESPONSE, reason=str(err))
            return TileOutcome(TileState.FAILED, error_code=BAD_RESPONSE, error_reason=str(err))

    def _failed(self, item: _TileOnItsWay, code: str, err: Exception) -> BoundedQueue[_TileOnItsWay]:
        logger.warning("tile.failed", tile_index=item.tile.index, code=code, reason=str(err))
        self._as_failed(item, code, str(err))
        return self._to_store

    def _give_share_back(self, item: _TileOnItsWay) -> None:
        if item.has_share:
            item.has_share = False
            self._shares.give_back(item.run)

    def _as_failed(self, item: _TileOnItsWay, code: str, reason: str) -> _TileOnItsWay:
        self._give_share_back(item)
        item.encoded = item.answer = b""
        item.result = TileOutcome(TileState.FAILED, error_code=code, error_reason=reason)
        return item
