"""Any order of the protocol's writes, by any worker, sent once or twice: the books stay right. Against the emulator."""

import itertools
import random
from typing import Any

import boto3
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from aws.osml.model_runner.api.image_request import ImageRequest
from aws.osml.model_runner.api.region_request import RegionRequest
from aws.osml.model_runner.common.job_rules import image_status, region_status
from aws.osml.model_runner.common.typing import ImageRegion, RequestStatus, TileState
from aws.osml.model_runner.database import (
    FeatureTable,
    JobItem,
    JobTable,
    OutstandingJobsTable,
    RegionClaim,
    RegionRequestItem,
    RegionRequestTable,
    TileKey,
    TileOutcome,
)
from aws.osml.model_runner.local.stack.data_plane import DataPlane
from aws.osml.model_runner.tiling.region_plan import region_id_of
from examples import examples

REGIONS, TILES = 2, 2
LEASE_S = 60.0
TILE = ImageRegion.of(((0, 0), (64, 64)))

jobs = itertools.count()
workers = st.integers(0, 2)
regions = st.integers(0, REGIONS - 1)
sends = st.integers(1, 2)


class Protocol(RuleBasedStateMachine):
    """Three workers on one image of two regions with two tiles each. Each worker acts on what it last claimed."""

    data_plane: DataPlane
    dynamodb: Any

    def __init__(self) -> None:
        super().__init__()
        environment, dynamodb = self.data_plane.environment, self.dynamodb
        # Not far from the real time: the emulator deletes what has expired by its own clock.
        self.now_s = 4_000_000_000.0
        self.jobs = JobTable(environment["JOB_TABLE"], dynamodb, self.clock)
        self.regions = RegionRequestTable(environment["REGION_REQUEST_TABLE"], dynamodb, self.clock)
        self.features = FeatureTable(
            environment["FEATURE_TABLE"], (64, 64), (0, 0), dynamodb, self.clock, rng=random.Random(0)
        )
        self.outstanding_jobs = OutstandingJobsTable(
            environment["OUTSTANDING_JOBS_TABLE"], self.jobs, dynamodb, self.clock
        )
        self.claims: dict[tuple[int, int], RegionClaim] = {}
        self.finishers: dict[int, JobItem] = {}
        self.committed: dict[tuple[int, int], TileState] = {}
        self.ended: dict[int, RequestStatus] = {}
        self.terminal: RequestStatus | None = None
        self.generation = 0

    def clock(self) -> float:
        return self.now_s

    @initialize()
    def plan(self) -> None:
        self.request = ImageRequest.from_external_message(
            {
                "jobId": f"job-{next(jobs)}",
                "imageUrls": ["s3://images/a.tif"],
                "imageProcessor": {"name": "ships"},
                "outputs": [{"type": "S3", "bucket": "results"}],
            }
        )
        self.outstanding_jobs.accept(self.request)
        item = self.jobs.get_image_request(self.request.image_id)
        item.region_count = REGIONS
        self.jobs.fix_plan(item)
        self.names = []
        for number in range(REGIONS):
            bounds = ImageRegion.of(((0, 128 * number), (128, 64)))
            name = region_id_of(bounds, self.request.job_id)
            message = RegionRequest(self.request.get_shared_values(), region_bounds=bounds, region_id=name)
            self.regions.start_region_request(RegionRequestItem.from_region_request(message))
            self.names.append(name)

    @rule(seconds=st.sampled_from([1.0, 30.0, 61.0]))
    def time_passes(self, seconds: float) -> None:
        self.now_s += seconds

    @rule(worker=workers, region=regions)
    def claim(self, worker: int, region: int) -> None:
        held = [claim for (_, number), claim in self.claims.items() if number == region]
        claim = self.regions.claim(self.request.image_id, self.names[region], f"w{worker}", LEASE_S)
        if not isinstance(claim, RegionClaim):
            return
        assert region not in self.ended
        assert all(claim.fence > other.fence for other in held)
        self.claims[worker, region] = claim

    @rule(worker=workers, region=regions, wait_s=st.sampled_from([0.0, 20.0]))
    def give_back(self, worker: int, region: int, wait_s: float) -> None:
        claim = self.claims.get((worker, region))
        if claim is not None:
            self.regions.release(claim, self.now_s + wait_s if wait_s else 0.0, is_backoff=bool(wait_s))

    @rule(worker=workers, region=regions)
    def beat(self, worker: int, region: int) -> None:
        claim = self.claims.get((worker, region))
        if claim is None or not self.regions.renew(claim, LEASE_S):
            return
        newest = max(other.fence for (_, number), other in self.claims.items() if number == region)
        assert claim.fence == newest
        assert region not in self.ended

    @rule(worker=workers, region=regions, tile=st.integers(0, TILES - 1), is_good=st.booleans(), sent=sends)
    def commit(self, worker: int, region: int, tile: int, is_good: bool, sent: int) -> None:
        claim = self.claims.get((worker, region))
        if claim is None:
            return
        mine = TileState.SUCCEEDED if is_good else TileState.FAILED
        feature = b'{"type":"Feature","id":%d,"properties":{}}' % worker
        outcome = TileOutcome(mine, [feature] if is_good else [])
        key = TileKey(self.request.image_id, self.names[region], tile)
        generation = claim.item.generation or 0
        for _ in range(sent):
            counted = self.features.commit_tile(key, TILE, outcome, generation)
        before = self.committed.get((region, tile))
        gives_way = before is None or (before is TileState.FAILED and generation > self.tile_generation[region, tile])
        assert counted is (mine if gives_way else before)
        if gives_way:
            self.committed[region, tile] = mine
            self.tile_generation[region, tile] = generation

    @rule(worker=workers, region=regions, sent=sends)
    def end(self, worker: int, region: int, sent: int) -> None:
        claim = self.claims.get((worker, region))
        if claim is None:
            return
        indexes = range(TILES)
        states = self.features.committed_tiles(
            self.request.image_id, self.names[region], indexes, claim.item.generation or 0
        )
        if len(states) < TILES:
            return
        good = [TILE for state in states.values() if state is TileState.SUCCEEDED]
        bad = [TILE] * (TILES - len(good))
        status = region_status(len(good), len(bad))
        counted = [self.regions.end_region(self.jobs, claim, status, good, bad) is not None for _ in range(sent)]
        is_first = region not in self.ended and self.terminal is None
        is_first = is_first and (claim.item.generation or 0) == self.generation
        assert counted == [is_first, *[False] * (sent - 1)]
        if is_first:
            self.ended[region] = status

    @rule(worker=workers)
    def claim_finish(self, worker: int) -> None:
        item = self.jobs.get_image_request(self.request.image_id)
        claimed = self.jobs.claim_aggregation(item, f"w{worker}", LEASE_S, 0.0)
        if claimed is not None:
            assert len(self.ended) == REGIONS
            assert all(claimed.agg_fence > other.agg_fence for other in self.finishers.values())
            self.finishers[worker] = claimed

    @rule(worker=workers, sent=sends)
    def finish(self, worker: int, sent: int) -> None:
        item = self.finishers.get(worker)
        if item is None:
            return
        status = image_status(item.tile_success, item.tile_error, sinks=1, failed_sinks=0)
        ended = [self.jobs.end_aggregation(item.image_id, item.agg_fence, status, "done") for _ in range(sent)]
        newest = max(other.agg_fence for other in self.finishers.values())
        may_end = self.terminal is None and item.agg_fence == newest and not self.is_reopened_since(item)
        assert [row is not None for row in ended] == [may_end, *[False] * (sent - 1)]
        if may_end:
            self.terminal = status

    @rule(worker=workers, region=regions, are_good=st.tuples(st.booleans(), st.booleans()))
    def do_a_region(self, worker: int, region: int, are_good: tuple[bool, bool]) -> None:
        """The steps of a region one after the other, since chance alone seldom lines them up."""
        self.time_passes(61.0)
        self.claim(worker, region)
        for tile, is_good in enumerate(are_good):
            self.commit(worker, region, tile, is_good, 1)
        self.end(worker, region, 1)

    @rule(worker=workers, sleeper=workers)
    def do_the_end(self, worker: int, sleeper: int) -> None:
        """One worker claims the end and sleeps, another one ends the image, and the first goes on."""
        self.time_passes(61.0)
        self.claim_finish(sleeper)
        self.time_passes(61.0)
        self.claim_finish(worker)
        self.finish(sleeper, 1)
        self.finish(worker, 1)

    @rule(sent=sends)
    def close_and_send_again(self, sent: int) -> None:
        item = self.jobs.get_image_request(self.request.image_id)
        if not item.is_terminal:
            return
        self.jobs.clear_outbox(item.image_id, item.generation or 0)
        self.outstanding_jobs.close(item)
        item = self.jobs.get_image_request(item.image_id)
        if self.terminal is RequestStatus.SUCCESS:
            return
        reopened = [self.outstanding_jobs.reopen(item, self.request, f"again-{number}") for number in range(sent)]
        assert reopened == [True, *[False] * (sent - 1)]
        self.terminal, self.generation, self.ended = None, self.generation + 1, {}
        for name in self.names:
            assert self.regions.reopen(item.image_id, name, self.generation)

    def is_reopened_since(self, item: JobItem) -> bool:
        return (item.generation or 0) < self.generation

    @property
    def tile_generation(self) -> dict[tuple[int, int], int]:
        return self.__dict__.setdefault("_tile_generation", {})

    @invariant()
    def books_are_right(self) -> None:
        if not hasattr(self, "names"):
            return
        row = self.jobs.get_image_request(self.request.image_id)
        good = sum(status is RequestStatus.SUCCESS for status in self.ended.values())
        assert (row.region_success, row.region_error) == (good, len(self.ended) - good)
        assert row.tile_success + row.tile_error == TILES * len(self.ended)
        assert row.image_status == (self.terminal or "IN_PROGRESS")
        assert (row.status_outbox is not None) <= (self.terminal is not None)


@pytest.mark.unmeasured
@pytest.mark.timeout(300)
def test_rows_stay_consistent_in_any_order_of_writes(emulator, data_plane):
    keys = {"aws_access_key_id": "test", "aws_secret_access_key": "test", "region_name": "us-west-2"}
    dynamodb = boto3.resource("dynamodb", endpoint_url=emulator.url, **keys)
    machine = type("ProtocolHere", (Protocol,), {"data_plane": data_plane, "dynamodb": dynamodb})
    run_state_machine_as_test(
        machine,
        settings=settings(
            examples(33, least=8),
            stateful_step_count=40,
            deadline=None,
            suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
        ),
    )
