"""Every write of the job protocol, what it changes, when it refuses: on an emulator and on the simulation's twin."""

import dataclasses
import json
import random
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import boto3
import numpy as np
import pytest
import shapely

from aws.osml.model_runner.api.image_request import ImageRequest, requests_of, validated
from aws.osml.model_runner.api.job_keys import request_key
from aws.osml.model_runner.api.region_request import RegionRequest
from aws.osml.model_runner.common.typing import ImageRegion, RequestStatus, TileState
from aws.osml.model_runner.database import (
    Acceptance,
    EndpointStatisticsTable,
    FeatureTable,
    JobItem,
    JobTable,
    OutstandingJobsTable,
    RegionClaim,
    RegionEnded,
    RegionHeld,
    RegionRequestItem,
    RegionRequestTable,
    TileKey,
    TileOutcome,
)
from aws.osml.model_runner.database.blob_store import WorkBucket
from aws.osml.model_runner.database.ddb_helper import DDBHelper
from aws.osml.model_runner.database.endpoint_statistics_table import Slot
from aws.osml.model_runner.database.job_table import Redirection
from aws.osml.model_runner.database.scheduler_lock import SchedulerLock
from aws.osml.model_runner.exceptions import (
    ConditionNotMetError,
    ConservationError,
    FeaturesTooLargeError,
    StartRegionException,
    TableBusyError,
)
from aws.osml.model_runner.features.encoding import EncodedFeatures, encode_features
from aws.osml.model_runner.features.tile_blob import unpack_tile
from aws.osml.model_runner.tiling.region_plan import region_id_of
from simulation.dynamodb import TABLE_NAMES, DynamoDB, worker_tables
from simulation.services import S3

BOUNDS = ImageRegion.of(((0, 0), (512, 512)))


class Clock:
    def __init__(self) -> None:
        # Not far from the real time: the emulator deletes what has expired by its own clock.
        self.now_s = float(int(time.time()))

    def __call__(self) -> float:
        return self.now_s


@dataclasses.dataclass
class Tables:
    jobs: JobTable
    regions: RegionRequestTable
    features: FeatureTable
    outstanding_jobs: OutstandingJobsTable
    lock: SchedulerLock
    endpoints: EndpointStatisticsTable
    blobs: WorkBucket
    clock: Clock


@pytest.fixture(params=[pytest.param("emulator", marks=pytest.mark.unmeasured), "twin"])
def tables(request) -> Tables:
    clock = Clock()
    if request.param == "twin":
        env = TABLE_NAMES
        dynamodb = DynamoDB(worker_tables(), clock, random.Random(1), page_items=3).resource()
        blobs = WorkBucket("work", S3())
    else:
        env = request.getfixturevalue("data_plane").environment
        keys = {"aws_access_key_id": "test", "aws_secret_access_key": "test", "region_name": "us-west-2"}
        emulator = request.getfixturevalue("emulator")
        dynamodb = boto3.resource("dynamodb", endpoint_url=emulator.url, **keys)
        blobs = WorkBucket(env["WORK_BUCKET"], emulator.client("s3"))
    jobs = JobTable(env["JOB_TABLE"], dynamodb, clock)
    outstanding_jobs = OutstandingJobsTable(env["OUTSTANDING_JOBS_TABLE"], jobs, dynamodb, clock)
    return Tables(
        jobs=jobs,
        regions=RegionRequestTable(env["REGION_REQUEST_TABLE"], dynamodb, clock, rng=random.Random(1)),
        features=FeatureTable(env["FEATURE_TABLE"], (512, 512), (0, 0), dynamodb, clock, rng=random.Random(1)),
        outstanding_jobs=outstanding_jobs,
        lock=SchedulerLock(outstanding_jobs, jobs, clock),
        endpoints=EndpointStatisticsTable(env["ENDPOINT_TABLE"], dynamodb, clock, rng=random.Random(1)),
        blobs=blobs,
        clock=clock,
    )


WIDE = shapely.Point(0, 0).buffer(10, quad_segs=64).wkt


def message(**changes: Any) -> dict[str, Any]:
    return {
        "jobId": "job",
        "imageUrls": ["s3://images/a.tif"],
        "imageProcessor": {"name": "ships", "type": "SM_ENDPOINT"},
        "outputs": [{"type": "S3", "bucket": "results", "prefix": "p"}],
    } | changes


def request(job_id: str = "job", url: str = "s3://images/a.tif", **changes: object) -> ImageRequest:
    return ImageRequest.from_external_message(message(jobId=job_id, imageUrls=[url]) | changes)


def fresh(tables: Tables) -> JobTable:
    """Return the table of images as another process has it."""
    return JobTable(tables.jobs.table_name, tables.jobs.client, tables.clock)


def planned(tables: Tables, regions: int = 1) -> JobItem:
    tables.outstanding_jobs.accept(request())
    item = tables.jobs.get_image_request(request().image_id)
    item.region_count, item.width, item.height = regions, 512 * regions, 512
    return tables.jobs.fix_plan(item)


def region_item(number: int = 0) -> RegionRequestItem:
    bounds = ImageRegion.of(((0, 512 * number), (512, 512)))
    return RegionRequestItem.from_region_request(
        RegionRequest(request().get_shared_values(), region_bounds=bounds, region_id=region_id_of(bounds, "job"))
    )


def claimed(tables: Tables, number: int = 0, owner: str = "w1") -> RegionClaim:
    tables.regions.start_region_request(region_item(number))
    claim = tables.regions.claim(region_item(number).image_id, region_item(number).region_id, owner, 60)
    assert isinstance(claim, RegionClaim)
    return claim


@contextmanager
def answers_lost(table: DDBHelper) -> Iterator[None]:
    """Have the first answer to each call be lost, so that it is sent again, as boto3 does."""
    conditional = table._conditional

    def twice(operation, request):
        conditional(operation, request)
        return conditional(operation, request)

    with patch.object(table, "_conditional", twice):
        yield


class TestAccept:
    def test_a1_puts_both_rows_and_request_survives_whole(self, tables):
        asked = request(
            regionOfInterest="POLYGON ((0 0, 1.23456789012345 0, 1 1, 0 0))",
            postProcessing=[
                {
                    "step": "FEATURE_DISTILLATION",
                    "algorithm": {"algorithmType": "SOFT_NMS", "iouThreshold": 0.1, "sigma": 0.37},
                }
            ],
            imageProcessorParameters={"CustomAttributes": "a=1", "deep": [1.5, None]},
            featureProperties=[{"mission": {"passes": 3, "ratio": 0.1}}],
        )
        assert tables.outstanding_jobs.accept(asked) is Acceptance.ACCEPTED
        (job,) = tables.outstanding_jobs.open_jobs()
        row = tables.jobs.get_image_request(asked.image_id)
        assert tables.jobs.request_of(row) == asked
        assert (job.request.job_id, job.request.model_name) == (asked.job_id, asked.model_name)
        assert json.loads(row.feature_properties) == asked.feature_properties
        assert row.roi_wkt == asked.roi.wkt
        assert (row.image_status, row.region_success, row.region_error, row.tile_success) == ("ACCEPTED", 0, 0, 0)

    def test_large_values_are_kept_out_of_rows_that_are_read_often(self, tables):
        """Turns read every open job, and R3 pays for each byte of an image's row."""
        asked = request(
            featureProperties=[{"note": "x" * 15_000}],
            regionOfInterest=shapely.Point(0, 0).buffer(10, quad_segs=64).wkt,
            imageProcessorParameters={"TargetVariant": "blue", "CustomAttributes": "a" * 1000},
        )
        assert tables.outstanding_jobs.accept(asked, "m", "b" * 5000) is Acceptance.ACCEPTED
        (job,) = tables.outstanding_jobs.open_jobs()
        assert job.request.model_endpoint_parameters == {"TargetVariant": "blue"}
        hot = tables.jobs.read({"image_id": asked.image_id})
        assert len(json.dumps(hot)) < 4000
        whole = tables.jobs.get_image_request(asked.image_id)
        assert (whole.body, json.loads(whole.feature_properties)) == ("b" * 5000, asked.feature_properties)
        assert len(json.dumps(tables.outstanding_jobs.read({"endpoint_id": "ships", "job_id": "job"}))) < 600

    def test_request_lives_as_long_as_its_image_that_begins_again(self, tables):
        tables.outstanding_jobs.accept(request())
        key = {"image_id": request_key(request().job_id)}
        first = tables.jobs.read(key)["expire_time"]
        ended = tables.jobs.fail_unplanned(request().image_id, "unreadable")
        tables.jobs.clear_outbox(ended.image_id)
        tables.outstanding_jobs.close(ended)
        tables.clock.now_s += 1000
        assert tables.outstanding_jobs.reopen(ended, request(), "again")
        assert tables.jobs.read(key)["expire_time"] == first + 1000

    def test_accept_is_idempotent_and_refuses_another_request_under_its_id(self, tables):
        tables.outstanding_jobs.accept(request())
        assert tables.outstanding_jobs.accept(request()) is Acceptance.KNOWN
        assert tables.outstanding_jobs.accept(request(imageProcessorTileSize=256)) is Acceptance.REUSED
        assert tables.outstanding_jobs.accept(request(url="s3://images/b.tif")) is Acceptance.REUSED
        assert len(list(tables.outstanding_jobs.open_jobs())) == 1

    def test_job_id_belongs_to_one_request(self, tables):
        images = {name: f"s3://images/{name}.tif" for name in "abc"}
        first = requests_of(validated(message(imageUrls=[images["a"], images["b"]])), "sha-of-first")
        assert [tables.outstanding_jobs.accept(one) for one in first] == [Acceptance.ACCEPTED] * 2
        others = [request(imageProcessor={"name": "boats", "type": "SM_ENDPOINT"}), request(url=images["c"])]
        assert [tables.outstanding_jobs.accept(other) for other in others] == [Acceptance.REUSED] * 2
        assert [tables.outstanding_jobs.accept(one) for one in first] == [Acceptance.KNOWN] * 2
        ended = [tables.jobs.fail_unplanned(one.image_id, "unreadable") for one in first]
        for image in ended:
            tables.jobs.clear_outbox(image.image_id)
            tables.outstanding_jobs.close(image)
        assert [tables.outstanding_jobs.accept(other) for other in others] == [Acceptance.REUSED] * 2
        assert {item.image_url for item in tables.jobs.images_of("job")} == {one.image_url for one in first}

    def test_accept_takes_all_images_of_one_request_when_two_share_an_id(self, tables):
        """Accepted at the same time, image by image, in every order that the threads make."""
        urls = [f"s3://images/{number}.tif" for number in range(6)]
        both = [requests_of(validated(message(imageUrls=urls)), name) for name in ("one", "other")]

        def accept(requests: list[ImageRequest]) -> list[Acceptance]:
            outstanding_jobs = OutstandingJobsTable(
                tables.outstanding_jobs.table_name, fresh(tables), tables.jobs.client, tables.clock
            )
            return [outstanding_jobs.accept(one) for one in requests]

        with ThreadPoolExecutor(2) as pool:
            outcomes = list(pool.map(accept, both))
        assert sorted(outcomes, key=str) == sorted([[Acceptance.ACCEPTED] * 6, [Acceptance.REUSED] * 6], key=str)

    def test_shared_values_of_images_are_stored_once(self, tables):
        """A message of 1,000 images may have 200 KB beside them: their rows would be 200 MB."""
        urls = [f"s3://images/{number}.tif" for number in range(20)]
        shared = message(imageUrls=urls, featureProperties=[{"note": "x" * 15_000}], regionOfInterest=WIDE)
        requests = requests_of(validated(shared), "sha")
        body = json.dumps(shared)
        for one in requests:
            tables.outstanding_jobs.accept(one, "m", body)
        assert [tables.jobs.request_of(tables.jobs.find(one.image_id)) for one in requests] == requests
        assert tables.jobs.find_whole(urls_id := requests[-1].image_id).body == body, urls_id
        rows = [len(json.dumps(row, default=repr)) for row in tables.jobs.scan()]
        rows += [len(json.dumps(row, default=repr)) for row in tables.outstanding_jobs.scan()]
        assert sum(rows) < 2 * len(body) + len(urls) * 3_000
        # The scheduler holds this of each open job, and twenty thousand jobs may wait.
        assert max(len(json.dumps(row, default=repr)) for row in tables.outstanding_jobs.scan()) < 600

    def test_accept_succeeds_once_when_sixteen_workers_try(self, tables):
        with ThreadPoolExecutor(16) as pool:
            answers = list(pool.map(lambda _: tables.outstanding_jobs.accept(request()), range(16)))
        assert answers.count(Acceptance.ACCEPTED) == 1


class TestExpired:
    """DynamoDB deletes rows some days after they have expired: until then they are there, and count as gone."""

    def expire(self, tables: Tables) -> None:
        # The row of the request, which has the job id, lives a day longer than its images.
        tables.clock.now_s += tables.jobs.life_s + 24 * 3600 + 10

    @pytest.mark.parametrize("is_closed", [True, False], ids=["closed", "left open"])
    def test_job_id_can_be_used_again(self, tables, is_closed):
        tables.outstanding_jobs.accept(request())
        if is_closed:
            tables.outstanding_jobs.close(tables.jobs.fail_unplanned(request().image_id, "unreadable"))
        self.expire(tables)
        other = request(imageProcessorTileSize=256)
        assert tables.outstanding_jobs.find(request()) is None
        assert tables.outstanding_jobs.accept(other) is Acceptance.ACCEPTED
        assert tables.outstanding_jobs.accept(other) is Acceptance.KNOWN
        (job,) = tables.outstanding_jobs.open_jobs()
        row = tables.jobs.get_image_request(job.image_id)
        assert (row.image_status, row.request_sha256) == ("ACCEPTED", other.request_sha256)
        assert tables.outstanding_jobs.find(other) == job

    def test_regions_and_tiles_of_job_before_do_not_count(self, tables):
        planned(tables)
        claim = claimed(tables)
        key = TileKey(claim.item.image_id, claim.item.region_id, 0)
        assert tables.features.commit_tile(key, BOUNDS, TileOutcome(TileState.SUCCEEDED)) is TileState.SUCCEEDED
        tables.regions.end_region(tables.jobs, claim, RequestStatus.SUCCESS, [BOUNDS], [])
        self.expire(tables)
        planned(tables)
        assert claimed(tables).fence == 1
        assert tables.features.committed_tiles(key.image_id, key.region_id, [0]) == {}
        assert tables.features.commit_tile(key, BOUNDS, TileOutcome(TileState.FAILED)) is TileState.FAILED


class TestPlan:
    def test_a2_succeeds_once_until_stale_and_never_after_planning(self, tables):
        tables.outstanding_jobs.accept(request())
        (job,) = tables.outstanding_jobs.open_jobs()
        assert tables.outstanding_jobs.start_planning(job, "w1", 60)
        assert not tables.outstanding_jobs.start_planning(job, "w2", 60)
        (job,) = tables.outstanding_jobs.open_jobs()
        assert not tables.outstanding_jobs.start_planning(job, "w2", 60)
        tables.clock.now_s += 61
        assert tables.outstanding_jobs.start_planning(job, "w2", 60)
        tables.outstanding_jobs.finish_planning(job)
        tables.clock.now_s += 61
        (job,) = tables.outstanding_jobs.open_jobs()
        assert not tables.outstanding_jobs.start_planning(job, "w3", 60)

    def test_a3_keeps_first_plan(self, tables):
        first = planned(tables, regions=2)
        second = dataclasses.replace(first, region_count=5, width=1)
        stored = tables.jobs.fix_plan(second)
        assert (stored.region_count, stored.width, stored.image_status) == (2, 1024, "IN_PROGRESS")

    def test_a3_refuses_image_that_has_ended(self, tables):
        tables.outstanding_jobs.accept(request())
        item = tables.jobs.get_image_request(request().image_id)
        tables.jobs.fail_unplanned(item.image_id, "unreadable")
        with pytest.raises(ConditionNotMetError):
            tables.jobs.fix_plan(dataclasses.replace(item, region_count=1))

    def test_f0_fails_image_once_and_only_before_its_plan(self, tables):
        tables.outstanding_jobs.accept(request())
        ended = tables.jobs.fail_unplanned(request().image_id, "unreadable")
        assert ended is not None
        assert (ended.image_status, ended.message) == ("FAILED", "unreadable")
        assert ended.status_outbox == {"status": "FAILED", "message": "unreadable", "is_dead_letter": True}
        assert tables.jobs.fail_unplanned(request().image_id, "again") is None

    def test_f0_f1_and_f2_end_no_other_generation(self, tables):
        image_id, jobs = request().image_id, tables.jobs
        tables.outstanding_jobs.accept(request())
        ended = jobs.fail_unplanned(image_id, "the bucket refuses the worker")
        tables.outstanding_jobs.close(ended)
        jobs.clear_outbox(image_id)
        assert tables.outstanding_jobs.reopen(jobs.get_image_request(image_id), request(), "again")
        assert jobs.fail_unplanned(image_id, "the bucket refuses the worker") is None
        assert jobs.fail_hopeless(image_id, "its time is over", generation=0) is None
        planned_again = jobs.fix_plan(dataclasses.replace(jobs.get_image_request(image_id), region_count=1))
        assert jobs.fail_unshared(image_id, "the image is gone") is None
        assert jobs.fail_unshared(image_id, "the image is gone", planned_again.generation).image_status == "FAILED"

    def test_f0_changes_no_planned_image(self, tables):
        item = planned(tables)
        assert tables.jobs.fail_unplanned(item.image_id, "too late") is None
        assert tables.jobs.get_image_request(item.image_id).image_status == "IN_PROGRESS"

    def test_a4_writes_row_once_and_refuses_ended_region(self, tables):
        planned(tables)
        claim = claimed(tables)
        again = tables.regions.start_region_request(region_item())
        assert again.lease_owner == claim.owner
        assert claim.owner.startswith("w1#")
        tables.regions.end_region(tables.jobs, claim, RequestStatus.SUCCESS, [BOUNDS], [])
        with pytest.raises(StartRegionException):
            tables.regions.start_region_request(region_item())


class TestRegion:
    def test_r1_returns_same_claim_when_first_response_was_lost(self, tables):
        planned(tables)
        item = tables.regions.start_region_request(region_item())
        with answers_lost(tables.regions):
            claim = tables.regions.claim(item.image_id, item.region_id, "w1", 60)
        assert isinstance(claim, RegionClaim)
        assert (claim.item.stalled_attempts, claim.fence) == (1, 1)
        assert isinstance(tables.regions.claim(item.image_id, item.region_id, "w1", 60), RegionHeld)
        assert tables.regions.release(claim)

    def test_r1_holds_off_others_until_lease_ends_and_then_fences_first_out(self, tables):
        planned(tables)
        first = claimed(tables)
        held = tables.regions.claim(first.item.image_id, first.item.region_id, "w2", 60)
        assert isinstance(held, RegionHeld)
        assert 59 <= held.retry_after_s <= 61
        tables.clock.now_s += 61
        second = tables.regions.claim(first.item.image_id, first.item.region_id, "w2", 60)
        assert isinstance(second, RegionClaim)
        assert (second.fence, second.item.stalled_attempts) == (first.fence + 1, 2)
        assert not tables.regions.renew(first, 60)
        assert not tables.regions.release(first)
        assert tables.regions.renew(second, 60)

    def test_r2_release_opens_region_at_its_time_and_forgets_attempt(self, tables):
        planned(tables)
        claim = claimed(tables)
        assert tables.regions.release(claim, not_before=tables.clock.now_s + 30, is_backoff=True)
        assert isinstance(tables.regions.claim(claim.item.image_id, claim.item.region_id, "w2", 60), RegionHeld)
        tables.clock.now_s += 31
        again = tables.regions.claim(claim.item.image_id, claim.item.region_id, "w2", 60)
        assert isinstance(again, RegionClaim)
        assert (again.item.stalled_attempts, again.item.backoffs) == (1, 1)
        assert tables.regions.record_progress(again)
        row = tables.regions.get_region_request(claim.item.region_id, claim.item.image_id)
        assert (row.stalled_attempts, row.backoffs, row.stall_first_time) == (1, 0, None)

    def test_r3_counts_region_once_when_sent_again(self, tables):
        item = planned(tables, regions=2)
        claim = claimed(tables)
        other = ImageRegion.of(((0, 512), (512, 512)))
        assert tables.regions.end_region(tables.jobs, claim, RequestStatus.PARTIAL, [BOUNDS], [other])
        assert not tables.regions.end_region(tables.jobs, claim, RequestStatus.PARTIAL, [BOUNDS], [other])
        image = tables.jobs.get_image_request(item.image_id)
        assert (image.region_success, image.region_error, image.tile_success, image.tile_error) == (0, 1, 1, 1)
        row = tables.regions.get_region_request(claim.item.region_id, claim.item.image_id)
        assert (row.region_status, row.total_tiles, row.failed_tiles) == ("PARTIAL", 2, [other.to_lists()])
        assert isinstance(tables.regions.claim(item.image_id, claim.item.region_id, "w2", 60), RegionEnded)

    def test_r3_lists_no_tiles_where_list_would_outgrow_row(self, tables):
        planned(tables)
        claim = claimed(tables)
        tables.regions.end_region(tables.jobs, claim, RequestStatus.SUCCESS, [BOUNDS] * 5001, [])
        row = tables.regions.get_region_request(claim.item.region_id, claim.item.image_id)
        assert (row.tiles_truncated, row.succeeded_tiles, row.succeeded_tile_count) == (True, None, 5001)

    def test_longest_list_of_tiles_fits_row(self, tables):
        planned(tables)
        claim = claimed(tables)
        far = ImageRegion.of(((1_000_000, 1_000_000), (8192, 8192)))
        tables.regions.end_region(tables.jobs, claim, RequestStatus.SUCCESS, [far] * 5000, [])
        row = tables.regions.get_region_request(claim.item.region_id, claim.item.image_id)
        assert len(row.succeeded_tiles) == 5000

    def test_sixteen_workers_that_end_sixteen_regions_lose_no_count(self, tables):
        item = planned(tables, regions=16)
        claims = [claimed(tables, number, f"w{number}") for number in range(16)]
        with ThreadPoolExecutor(16) as pool:
            ended = pool.map(
                lambda claim: tables.regions.end_region(tables.jobs, claim, RequestStatus.SUCCESS, [BOUNDS], []), claims
            )
            assert all(ended)
        image = tables.jobs.get_image_request(item.image_id)
        assert (image.region_success, image.tile_success) == (16, 16)


def ship(number: int, iri: str, text: str = "") -> dict[str, Any]:
    properties = {
        "imageBBox": [number, 0.0, number + 0.1, 5.0],
        "featureClasses": [{"iri": iri, "score": 0.5 + number / 100}],
        "text": text,
    }
    return {"type": "Feature", "geometry": None, "properties": properties}


def succeeded(encoded: EncodedFeatures) -> TileOutcome:
    return TileOutcome(TileState.SUCCEEDED, encoded.bodies, encoded.detections, inference_time="2026-11-20T22:42:58Z")


def noisy_features(mark: str, bytes_each: int, count: int = 40) -> list[bytes]:
    """Return features of a tile that do not become much smaller when they are compressed."""
    rng = random.Random(mark)
    texts = [rng.randbytes(bytes_each // 2).hex() for _ in range(count)]
    return encode_features(ship(number, mark, text) for number, text in enumerate(texts)).bodies


@pytest.fixture(params=["in rows", "in the bucket"])
def features(request, tables, monkeypatch) -> FeatureTable:
    """Return a table of features that keeps large blobs in overflow rows, or in the work bucket."""
    if request.param == "in the bucket":
        monkeypatch.setattr(tables.features, "_blobs", tables.blobs)
    return tables.features


class TestTile:
    KEY = TileKey("job:s3://images/a.tif", "(0, 0)(512, 512)-job", 7)

    def test_t1_first_outcome_counts(self, tables):
        good = TileOutcome(TileState.SUCCEEDED, [b'{"type":"Feature"}'], dropped={"NO_GEOMETRY": 2})
        bad = TileOutcome(TileState.FAILED, error_code="MODEL_4XX")
        assert tables.features.commit_tile(self.KEY, BOUNDS, good) is TileState.SUCCEEDED
        assert tables.features.commit_tile(self.KEY, BOUNDS, bad) is TileState.SUCCEEDED
        (tile,) = tables.features.stored_tiles(self.KEY.image_id)
        assert (tile.state, tile.features, tile.bounds) == (TileState.SUCCEEDED, [b'{"type":"Feature"}'], BOUNDS)

    @pytest.mark.parametrize("bytes_each", [20, 1_000, 30_000], ids=["small", "large", "very large"])
    def test_features_of_winner_are_read_whole(self, features, bytes_each):
        first, second = (TileOutcome(TileState.SUCCEEDED, noisy_features(mark, bytes_each)) for mark in "ab")
        features.commit_tile(self.KEY, BOUNDS, first)
        features.commit_tile(self.KEY, BOUNDS, second)
        (tile,) = features.stored_tiles(self.KEY.image_id)
        assert list(tile.features) == first.features
        assert features.stored_tiles(self.KEY.image_id, [self.KEY]) == [tile]
        assert features.read_tiles([self.KEY]) == [tile]

    @pytest.mark.parametrize("text_bytes", [10, 30_000], ids=["small", "large"])
    def test_detections_are_read_with_their_features(self, features, text_bytes):
        rng = random.Random(1)
        texts = [rng.randbytes(text_bytes // 2).hex() for _ in range(40)]
        encoded = encode_features(ship(number, f"class-{number % 7}", text) for number, text in enumerate(texts))
        features.commit_tile(self.KEY, BOUNDS, succeeded(encoded))
        (tile,) = features.stored_tiles(self.KEY.image_id)
        assert tile.features == encoded.bodies
        for field, values in vars(encoded.detections).items():
            np.testing.assert_array_equal(getattr(tile.detections, field), values)
        assert list(tile.detections.iris) == [f"class-{number}" for number in range(7)]
        assert tile.inference_time == "2026-11-20T22:42:58Z"

    def test_detections_are_computed_when_not_given(self, tables):
        encoded = encode_features(ship(number, f"class-{number % 2}") for number in range(5))
        tables.features.commit_tile(self.KEY, BOUNDS, TileOutcome(TileState.SUCCEEDED, encoded.bodies))
        (tile,) = tables.features.stored_tiles(self.KEY.image_id)
        for name in ("boxes", "scores", "categories", "kinds"):
            np.testing.assert_array_equal(getattr(tile.detections, name), getattr(encoded.detections, name))

    def test_features_of_tile_carry_shared_values(self, tables):
        tables.features.commit_tile(self.KEY, BOUNDS, succeeded(encode_features([ship(1, "ship")])))
        (found,) = tables.features.get_features(self.KEY.image_id)
        assert list(found["properties"].items())[-3:] == [
            ("image_id", self.KEY.image_id),
            ("inferenceTime", "2026-11-20T22:42:58Z"),
            ("_modelRunnerTile", BOUNDS.to_lists()),
        ]

    def test_tile_writes_no_row_when_features_are_too_many(self, features, monkeypatch):
        monkeypatch.setattr("aws.osml.model_runner.features.tile_blob.MAX_CONTENT_BYTES", 100_000)
        with pytest.raises(FeaturesTooLargeError):
            features.commit_tile(self.KEY, BOUNDS, TileOutcome(TileState.SUCCEEDED, noisy_features("a", 30_000)))
        assert list(features.scan()) == []

    def test_row_stays_below_item_limit(self, tables, monkeypatch):
        monkeypatch.setattr(tables.features, "_blobs", None)
        tables.features.commit_tile(self.KEY, BOUNDS, TileOutcome(TileState.SUCCEEDED, noisy_features("a", 60_000)))
        blobs = [bytes(row["feature_blob"]) for row in tables.features.scan()]
        assert len(blobs) > 2
        assert max(map(len, blobs)) <= 200_000

    def test_large_tile_is_one_object_and_row_that_names_it(self, tables, monkeypatch):
        monkeypatch.setattr(tables.features, "_blobs", tables.blobs)
        outcome = TileOutcome(TileState.SUCCEEDED, noisy_features("a", 1_000))
        tables.features.commit_tile(self.KEY, BOUNDS, outcome)
        (row,) = tables.features.scan()
        assert "feature_blob" not in row
        assert row["blob_key"].startswith("tiles/")
        assert row["blob_key"].endswith(row["tile_token"])
        assert len(unpack_tile(tables.blobs.get(row["blob_key"]))[0]) == row["feature_count"] == 40

    @pytest.mark.parametrize("read", ["read_tiles", "stored_tiles"])
    def test_tile_is_not_read_when_its_second_row_is_missing(self, tables, read):
        large = TileOutcome(TileState.SUCCEEDED, noisy_features("a", 30_000))
        tables.features.commit_tile(self.KEY, BOUNDS, large)
        rest = next(row for row in tables.features.scan() if "chunk" in row)
        tables.features.delete({name: rest[name] for name in ("hash_key", "range_key")})
        argument = [self.KEY] if read == "read_tiles" else self.KEY.image_id
        with pytest.raises(ConservationError, match="rows are missing"):
            getattr(tables.features, read)(argument)

    def test_tile_is_not_read_when_its_object_is_missing(self, tables, monkeypatch):
        monkeypatch.setattr(tables.features, "_blobs", tables.blobs)
        tables.features.commit_tile(self.KEY, BOUNDS, TileOutcome(TileState.SUCCEEDED, noisy_features("a", 1_000)))
        (row,) = tables.features.scan()
        tables.features.update(
            {name: row[name] for name in ("hash_key", "range_key")}, "SET blob_key = :key", {":key": "tiles/other"}
        )
        with pytest.raises(ConservationError, match="not in the work bucket"):
            tables.features.read_tiles([self.KEY])
        monkeypatch.setattr(tables.features, "_blobs", None)
        with pytest.raises(ConservationError, match="WORK_BUCKET"):
            tables.features.read_tiles([self.KEY])

    @pytest.mark.parametrize("bytes_each", [20, 30_000], ids=["small", "large"])
    def test_write_repeats_same_rows_while_table_is_busy(self, features, monkeypatch, bytes_each):
        written: list[tuple[str, str]] = []
        busy = iter([True, True, False, True, False, False, False])

        def call(self: FeatureTable, operation: Any, request: dict[str, Any]) -> Any:
            written.append((operation.__name__, json.dumps(request, sort_keys=True, default=repr)))
            if next(busy):
                raise TableBusyError("throttled")
            return original(self, operation, request)

        original, waits, asked = FeatureTable._call, [], []
        monkeypatch.setattr(FeatureTable, "_call", call)
        monkeypatch.setattr(features, "_sleep", waits.append)
        outcome = TileOutcome(TileState.SUCCEEDED, noisy_features("a", bytes_each))
        keep_trying = lambda: not asked.append(1)  # noqa: E731
        assert features.commit_tile(self.KEY, BOUNDS, outcome, keep_trying=keep_trying) is TileState.SUCCEEDED
        monkeypatch.setattr(FeatureTable, "_call", original)
        assert len(waits) == len(asked) == len(written) - len(set(written)) >= 2
        assert max(waits) <= 8
        (tile,) = features.read_tiles([self.KEY])
        assert list(tile.features) == outcome.features

    def test_write_repeats_same_object_while_bucket_is_busy(self, tables, monkeypatch):
        put: list[str] = []

        class BusyBucket:
            def put(self, key: str, blob: bytes) -> None:
                put.append(key)
                if len(put) < 4:
                    raise TableBusyError("slow down")
                tables.blobs.put(key, blob)

            get = tables.blobs.get

        monkeypatch.setattr(tables.features, "_blobs", BusyBucket())
        monkeypatch.setattr(tables.features, "_sleep", lambda _: None)
        outcome = TileOutcome(TileState.SUCCEEDED, noisy_features("a", 1_000))
        tables.features.commit_tile(self.KEY, BOUNDS, outcome, keep_trying=lambda: True)
        (row,) = tables.features.scan()
        assert put == [row["blob_key"]] * 4
        put.clear()
        with pytest.raises(TableBusyError):
            tables.features.commit_tile(self.KEY, BOUNDS, outcome, keep_trying=lambda: len(put) < 3)
        assert len(put) == 3

    def test_row_of_another_version_is_refused_with_sentence(self, tables):
        tables.features.commit_tile(self.KEY, BOUNDS, TileOutcome(TileState.SUCCEEDED))
        (row,) = tables.features.scan()
        tables.features.update({name: row[name] for name in ("hash_key", "range_key")}, "REMOVE feature_count", {})
        with pytest.raises(ConservationError, match="another version"):
            tables.features.read_tiles([self.KEY])

    def test_committed_tiles_returns_outcomes_by_index(self, tables):
        for index in range(130):
            state = TileState.FAILED if index % 10 == 0 else TileState.SUCCEEDED
            tables.features.commit_tile(dataclasses.replace(self.KEY, index=index), BOUNDS, TileOutcome(state))
        known = tables.features.committed_tiles(self.KEY.image_id, self.KEY.region_id, range(200))
        assert sorted(known) == list(range(130))
        assert [index for index, state in known.items() if state is TileState.FAILED] != []
        assert {index for index, state in known.items() if state is TileState.FAILED} == set(range(0, 130, 10))

    def test_expired_rows_are_not_read(self, tables):
        tables.features.commit_tile(self.KEY, BOUNDS, TileOutcome(TileState.SUCCEEDED, noisy_features("a", 4)))
        tables.clock.now_s += 73 * 3600
        assert tables.features.stored_tiles(self.KEY.image_id) == []
        assert tables.features.committed_tiles(self.KEY.image_id, self.KEY.region_id, range(10)) == {}

    def test_order_does_not_depend_on_when_tiles_were_stored(self, tables):
        indexes = list(range(60))
        random.Random(5).shuffle(indexes)
        for index in indexes:
            outcome = TileOutcome(TileState.SUCCEEDED, noisy_features(str(index), 4, count=1))
            tables.features.commit_tile(dataclasses.replace(self.KEY, index=index), BOUNDS, outcome)
        tiles = tables.features.stored_tiles(self.KEY.image_id)
        assert [tile.key.index for tile in tiles] == list(range(60))
        planned = [dataclasses.replace(self.KEY, index=index) for index in range(80)]
        assert tables.features.stored_tiles(self.KEY.image_id, planned) == tiles

    def test_tiles_are_read_by_key_in_order_that_is_wanted(self, features):
        large, small = noisy_features("a", 10_000), noisy_features("b", 10, count=2)
        keys = [dataclasses.replace(self.KEY, index=index) for index in range(60)]
        for key in keys[::2]:
            outcome = TileOutcome(TileState.SUCCEEDED, large if key.index == 4 else small)
            features.commit_tile(key, BOUNDS, outcome)
        features.commit_tile(keys[1], BOUNDS, TileOutcome(TileState.FAILED, error_code="MODEL_4XX"))
        wanted = [*reversed(keys), dataclasses.replace(self.KEY, image_id="another")]
        tiles = features.read_tiles(wanted)
        assert [tile.key.index for tile in tiles] == [*range(58, 0, -2), 1, 0]
        assert [tile.features == large for tile in tiles] == [tile.key.index == 4 for tile in tiles]
        assert [tile.error_code for tile in tiles if tile.state is TileState.FAILED] == ["MODEL_4XX"]
        assert features.read_tiles([]) == []


class TestFinish:
    def test_g1_returns_same_claim_when_first_response_was_lost(self, tables):
        planned(tables)
        tables.regions.end_region(tables.jobs, claimed(tables), RequestStatus.SUCCESS, [BOUNDS], [])
        counted = tables.jobs.get_image_request(request().image_id)
        with answers_lost(tables.jobs):
            held = tables.jobs.claim_aggregation(counted, "w1", 60, 0)
        assert (held.agg_fence, held.agg_stalled) == (1, 1)
        assert tables.jobs.claim_aggregation(counted, "w1", 60, 0) is None
        assert tables.jobs.renew_aggregation(held.image_id, held.agg_fence, 60)

    def complete(self, tables: Tables) -> JobItem:
        planned(tables)
        tables.regions.end_region(tables.jobs, claimed(tables), RequestStatus.SUCCESS, [BOUNDS], [])
        return tables.jobs.get_image_request(request().image_id)

    def test_g1_is_claimed_by_one_worker_and_next_fence_is_higher(self, tables):
        item = self.complete(tables)
        with ThreadPoolExecutor(8) as pool:
            claims = list(pool.map(lambda n: tables.jobs.claim_aggregation(item, f"w{n}", 120, 0), range(8)))
        (first,) = [claim for claim in claims if claim]
        tables.clock.now_s += 121
        second = tables.jobs.claim_aggregation(item, "late", 120, 0)
        assert (second.agg_fence, second.agg_stalled) == (first.agg_fence + 1, 2)
        assert not tables.jobs.renew_aggregation(item.image_id, first.agg_fence, 120)
        assert tables.jobs.end_aggregation(item.image_id, first.agg_fence, RequestStatus.FAILED, "zombie") is None
        assert tables.jobs.renew_aggregation(item.image_id, second.agg_fence, 120)

    def test_g1_waits_its_time_after_claim_that_died(self, tables):
        item = self.complete(tables)
        assert tables.jobs.claim_aggregation(item, "w1", 10, 300)
        tables.clock.now_s += 11
        assert tables.jobs.claim_aggregation(item, "w2", 10, 300) is None
        tables.clock.now_s += 300
        assert tables.jobs.claim_aggregation(item, "w2", 10, 300)

    def test_g1_refuses_counters_that_have_moved_on(self, tables):
        item = self.complete(tables)
        assert tables.jobs.claim_aggregation(dataclasses.replace(item, region_success=0), "w1", 120, 0) is None

    def test_g2_to_g5_end_job_once_and_close_it_last(self, tables):
        item = tables.jobs.claim_aggregation(self.complete(tables), "w1", 120, 0)
        assert tables.jobs.record_sink_progress(item.image_id, item.agg_fence, {"1:Kinesis": 500})
        assert tables.jobs.get_image_request(item.image_id).sink_positions == {"1:Kinesis": 500}
        assert tables.jobs.record_sink_done(item.image_id, item.agg_fence, "0:S3")
        row = tables.jobs.get_image_request(item.image_id)
        assert (row.sinks_done, row.agg_backoffs, row.agg_stalled) == ({"0:S3"}, 0, 0)
        tables.clock.now_s += 5
        ended = tables.jobs.end_aggregation(item.image_id, item.agg_fence, RequestStatus.SUCCESS, "done")
        assert (ended.image_status, ended.processing_duration) == ("SUCCESS", 5)
        assert tables.jobs.end_aggregation(item.image_id, item.agg_fence, RequestStatus.FAILED, "again") is None
        assert not tables.jobs.record_sink_done(item.image_id, item.agg_fence, "1:Kinesis")
        tables.jobs.clear_outbox(item.image_id)
        assert tables.jobs.get_image_request(item.image_id).status_outbox is None
        tables.outstanding_jobs.close(ended)
        tables.outstanding_jobs.close(ended)
        assert list(tables.outstanding_jobs.open_jobs()) == []

    def test_release_forgets_attempt(self, tables):
        item = tables.jobs.claim_aggregation(self.complete(tables), "w1", 120, 500)
        assert tables.jobs.release_aggregation(item.image_id, item.agg_fence, backoffs=3)
        second = tables.jobs.claim_aggregation(item, "w2", 120, 0)
        assert (second.agg_stalled, second.agg_backoffs) == (1, 3)

    def test_no_write_brings_back_row_that_is_gone(self, tables):
        item = self.complete(tables)
        tables.jobs.delete({"image_id": item.image_id})
        tables.jobs.clear_outbox(item.image_id)
        assert tables.jobs.claim_aggregation(item, "w1", 120, 0) is None
        assert tables.jobs.find(item.image_id) is None


class TestRedrive:
    OTHER = ImageRegion.of(((0, 512), (512, 512)))

    def ended_partial(self, tables: Tables) -> tuple[JobItem, RegionClaim]:
        planned(tables)
        claim = claimed(tables)
        tables.regions.end_region(tables.jobs, claim, RequestStatus.PARTIAL, [BOUNDS], [self.OTHER])
        item = tables.jobs.claim_aggregation(tables.jobs.get_image_request(request().image_id), "w1", 120, 0)
        tables.jobs.record_sink_done(item.image_id, item.agg_fence, "0:S3")
        ended = tables.jobs.end_aggregation(item.image_id, item.agg_fence, RequestStatus.PARTIAL, "done")
        assert ended is not None
        tables.jobs.clear_outbox(ended.image_id)
        tables.outstanding_jobs.close(ended)
        return tables.jobs.get_image_request(ended.image_id), claim

    def test_d1_begins_next_generation_once_and_keeps_plan(self, tables):
        item, _ = self.ended_partial(tables)
        with ThreadPoolExecutor(8) as pool:
            assert sum(pool.map(lambda n: tables.outstanding_jobs.reopen(item, request(), f"m{n}"), range(8))) == 1
        row = tables.jobs.get_image_request(item.image_id)
        assert (row.image_status, row.generation, row.region_count) == ("IN_PROGRESS", 1, 1)
        assert (row.region_success, row.region_error, row.tile_success, row.tile_error) == (0, 0, 0, 0)
        assert (row.sinks_done, row.end_time, row.message) == (None, None, None)
        (job,) = tables.outstanding_jobs.open_jobs()
        assert tables.jobs.request_of(row) == request()
        assert tables.outstanding_jobs.start_planning(job, "w2", 60)

    def test_only_failed_output_is_written_again(self, tables):
        planned(tables)
        tables.regions.end_region(tables.jobs, claimed(tables), RequestStatus.SUCCESS, [BOUNDS], [])
        item = tables.jobs.claim_aggregation(tables.jobs.get_image_request(request().image_id), "w1", 120, 0)
        tables.jobs.record_sink_done(item.image_id, item.agg_fence, "0:S3")
        errors = {"1:Kinesis": "no such stream"}
        assert tables.jobs.record_sink_progress(item.image_id, item.agg_fence, {"1:Kinesis": 500})
        assert tables.jobs.record_sink_failed(item.image_id, item.agg_fence, errors)
        assert not tables.jobs.record_sink_failed(item.image_id, item.agg_fence - 1, {})
        ended = tables.jobs.end_aggregation(item.image_id, item.agg_fence, RequestStatus.PARTIAL, "done")
        assert ended.sink_errors == errors
        tables.jobs.clear_outbox(ended.image_id)
        tables.outstanding_jobs.close(ended)
        assert tables.outstanding_jobs.reopen(ended, request(), "again")
        row = tables.jobs.get_image_request(ended.image_id)
        assert (row.sinks_done, row.sink_errors) == ({"0:S3"}, None)

    def undelivered(self, tables: Tables) -> JobItem:
        """Return an image whose tiles have all succeeded, of two outputs the second one has failed."""
        planned(tables)
        tables.regions.end_region(tables.jobs, claimed(tables), RequestStatus.SUCCESS, [BOUNDS], [])
        item = tables.jobs.claim_aggregation(tables.jobs.get_image_request(request().image_id), "w1", 120, 0)
        tables.jobs.record_sink_done(item.image_id, item.agg_fence, "0:S3")
        tables.jobs.record_sink_failed(item.image_id, item.agg_fence, {"1:Kinesis": "no such stream"})
        ended = tables.jobs.end_aggregation(item.image_id, item.agg_fence, RequestStatus.PARTIAL, "done")
        tables.jobs.clear_outbox(ended.image_id)
        tables.outstanding_jobs.close(ended)
        return tables.jobs.get_image_request(ended.image_id)

    def test_d3_leaves_only_delivery(self, tables):
        item = self.undelivered(tables)
        with ThreadPoolExecutor(8) as pool:
            assert sum(pool.map(lambda n: tables.outstanding_jobs.reopen(item, request(), f"m{n}"), range(8))) == 1
        row = tables.jobs.get_image_request(item.image_id)
        assert (row.image_status, row.generation, row.agg_fence) == ("IN_PROGRESS", 1, item.agg_fence + 1)
        counts = ("region_count", "region_success", "region_error", "tile_success", "tile_error")
        assert [getattr(row, name) for name in counts] == [getattr(item, name) for name in counts]
        assert JobTable.is_image_request_complete(row)
        (job,) = tables.outstanding_jobs.open_jobs()
        assert (job.planned_time is not None, job.region_count, job.generation) == (True, 1, 1)
        assert tables.outstanding_jobs.start_planning(job, "w2", 60) is None
        assert tables.jobs.end_aggregation(item.image_id, item.agg_fence, RequestStatus.FAILED, "late") is None
        assert tables.jobs.claim_aggregation(row, "w2", 120, 0) is not None

    def test_d3_with_other_outputs(self, tables):
        item = self.undelivered(tables)
        other = Redirection('[{"type": "S3"}]', frozenset())
        assert tables.outstanding_jobs.reopen(item, request(), "again", other)
        row = tables.jobs.get_image_request(item.image_id)
        assert (row.outputs, row.sinks_done) == (other.outputs, None)

    def test_tiles_that_may_expire_under_way_are_done_again(self, tables):
        item = self.undelivered(tables)
        tables.clock.now_s += 49 * 3600
        assert tables.outstanding_jobs.reopen(item, request(), "again")
        row = tables.jobs.get_image_request(item.image_id)
        assert (row.region_success, row.tile_success, row.sinks_done) == (0, 0, None)

    def test_expiring_tile_is_replaced_in_next_generation_only(self, tables):
        image_id, region_id = request().image_id, region_id_of(BOUNDS, "job")
        keys = [TileKey(image_id, region_id, index) for index in range(2)]
        good, bad = TileOutcome(TileState.SUCCEEDED), TileOutcome(TileState.FAILED)
        tables.features.commit_tile(keys[0], BOUNDS, good)
        tables.clock.now_s += 47 * 3600
        assert tables.features.committed_tiles(image_id, region_id, [0], 1) == {0: TileState.SUCCEEDED}
        assert tables.features.commit_tile(keys[0], BOUNDS, bad, 1) is TileState.SUCCEEDED, "it outlives one more job"
        tables.clock.now_s += 2 * 3600
        assert tables.features.committed_tiles(image_id, region_id, [0], 1) == {}
        assert tables.features.committed_tiles(image_id, region_id, [0], 0) == {0: TileState.SUCCEEDED}
        assert tables.features.commit_tile(keys[0], BOUNDS, bad, 0) is TileState.SUCCEEDED, (
            "another may have counted it"
        )
        assert tables.features.commit_tile(keys[0], BOUNDS, bad, 1) is TileState.FAILED

    def test_worker_of_earlier_generation_changes_no_row(self, tables):
        item, old_claim = self.ended_partial(tables)
        tables.outstanding_jobs.reopen(item, request(), "again")
        assert tables.regions.reopen(item.image_id, old_claim.item.region_id, 1)
        assert not tables.regions.reopen(item.image_id, old_claim.item.region_id, 1)
        assert not tables.regions.end_region(tables.jobs, old_claim, RequestStatus.SUCCESS, [BOUNDS], [])
        assert not tables.jobs.renew_aggregation(item.image_id, item.agg_fence, 120)
        assert tables.jobs.end_aggregation(item.image_id, item.agg_fence, RequestStatus.FAILED, "late") is None
        row = tables.jobs.get_image_request(item.image_id)
        assert (row.region_success, row.region_error, row.image_status) == (0, 0, "IN_PROGRESS")

    def test_late_plan_or_close_of_earlier_generation_changes_no_open_job(self, tables):
        item, _ = self.ended_partial(tables)
        tables.outstanding_jobs.reopen(item, request(), "again")
        (job,) = tables.outstanding_jobs.open_jobs()
        tables.outstanding_jobs.finish_planning(dataclasses.replace(job, generation=0))
        tables.outstanding_jobs.close(item)
        (job,) = tables.outstanding_jobs.open_jobs()
        assert (job.generation, job.planned_time) == (1, None)
        tables.outstanding_jobs.finish_planning(job)
        assert tables.outstanding_jobs.find(request()).planned_time is not None
        tables.outstanding_jobs.close(tables.jobs.get_image_request(item.image_id))
        assert list(tables.outstanding_jobs.open_jobs()) == []

    def test_status_that_waits_is_cleared_by_its_own_generation(self, tables):
        tables.outstanding_jobs.accept(request())
        ended = tables.jobs.fail_unplanned(request().image_id, "unreadable")
        tables.jobs.clear_outbox(ended.image_id)
        tables.outstanding_jobs.close(ended)
        assert tables.outstanding_jobs.reopen(ended, request(), "again")
        tables.jobs.fail_unplanned(request().image_id, "still unreadable", generation=1)
        tables.jobs.clear_outbox(ended.image_id, 0)
        waiting = {"status": "FAILED", "message": "still unreadable", "is_dead_letter": True}
        assert tables.jobs.get_image_request(ended.image_id).status_outbox == waiting
        tables.jobs.clear_outbox(ended.image_id, 1)
        assert tables.jobs.get_image_request(ended.image_id).status_outbox is None

    def test_only_failures_of_generation_before_are_done_again(self, tables):
        good, bad = TileKey("i", "r", 0), TileKey("i", "r", 1)
        tables.features.commit_tile(good, BOUNDS, TileOutcome(TileState.SUCCEEDED, noisy_features("a", 4)))
        tables.features.commit_tile(bad, BOUNDS, TileOutcome(TileState.FAILED, error_code="MODEL_4XX"))
        assert tables.features.committed_tiles("i", "r", [0, 1], 1) == {0: TileState.SUCCEEDED}
        done = TileOutcome(TileState.SUCCEEDED, noisy_features("b", 4))
        assert tables.features.commit_tile(bad, BOUNDS, done, 0) is TileState.FAILED
        assert tables.features.commit_tile(bad, BOUNDS, done, 1) is TileState.SUCCEEDED
        failed = TileOutcome(TileState.FAILED, error_code="ABANDONED")
        assert tables.features.commit_tile(good, BOUNDS, failed, 1) is TileState.SUCCEEDED
        assert [tile.features for tile in tables.features.stored_tiles("i")] == [
            noisy_features("a", 4),
            noisy_features("b", 4),
        ]


class TestSweep:
    def test_one_worker_sweeps_at_a_time(self, tables):
        with ThreadPoolExecutor(8) as pool:
            assert sum(pool.map(lambda n: tables.outstanding_jobs.claim_sweep(f"w{n}", 30), range(8))) == 1
        assert list(tables.outstanding_jobs.open_jobs()) == []
        tables.clock.now_s += 31
        assert tables.outstanding_jobs.claim_sweep("next", 30)

    def test_job_is_claimed_by_one_sweeper(self, tables):
        tables.outstanding_jobs.accept(request())
        (job,) = tables.outstanding_jobs.open_jobs()
        assert tables.outstanding_jobs.mark_swept(job)
        assert not tables.outstanding_jobs.mark_swept(job)
        (job,) = tables.outstanding_jobs.open_jobs()
        tables.clock.now_s += 1
        assert tables.outstanding_jobs.mark_swept(job)
        assert not tables.outstanding_jobs.mark_swept(job)


class TestSchedule:
    def test_count_of_regions_is_noted_for_its_own_generation(self, tables):
        tables.outstanding_jobs.accept(request())
        (job,) = tables.outstanding_jobs.open_jobs()
        assert job.region_count is None
        tables.outstanding_jobs.record_region_count(job, 7)
        tables.outstanding_jobs.record_region_count(dataclasses.replace(job, generation=3), 9)
        (job,) = tables.outstanding_jobs.open_jobs()
        assert job.region_count == 7

    def test_counting_regions_of_closed_job_creates_no_row(self, tables):
        tables.outstanding_jobs.accept(request())
        (job,) = tables.outstanding_jobs.open_jobs()
        tables.outstanding_jobs.close(tables.jobs.get_image_request(request().image_id))
        tables.outstanding_jobs.record_region_count(job, 7)
        assert list(tables.outstanding_jobs.open_jobs()) == []

    def test_a2_is_renewed_while_planning_and_released_without_attempt(self, tables):
        tables.outstanding_jobs.accept(request())
        (job,) = tables.outstanding_jobs.open_jobs()
        started = tables.outstanding_jobs.start_planning(job, "w1", 60)
        assert started.num_attempts == 1
        tables.clock.now_s += 50
        assert tables.outstanding_jobs.renew_planning(started, "w1")
        assert not tables.outstanding_jobs.renew_planning(started, "w2")
        tables.clock.now_s += 50
        (job,) = tables.outstanding_jobs.open_jobs()
        assert tables.outstanding_jobs.start_planning(job, "w2", 60) is None
        tables.outstanding_jobs.release_planning(started, "w2")
        tables.outstanding_jobs.release_planning(started, "w1")
        (job,) = tables.outstanding_jobs.open_jobs()
        assert (job.num_attempts, job.last_attempt, job.first_attempt) == (0, 0, None)
        second = tables.outstanding_jobs.start_planning(job, "w2", 60)
        assert second.first_attempt == started.first_attempt + 100
        assert not tables.outstanding_jobs.renew_planning(started, "w1")
        tables.outstanding_jobs.finish_planning(second)
        assert not tables.outstanding_jobs.renew_planning(second, "w2")

    def test_q1_is_held_by_one_worker_and_next_fence_is_higher(self, tables):
        with ThreadPoolExecutor(8) as pool:
            turns = list(pool.map(lambda n: tables.lock.claim(f"w{n}", 15), range(8)))
        (first,) = [turn for turn in turns if turn]
        assert tables.lock.claim("late", 15) is None
        tables.clock.now_s += 16
        second = tables.lock.claim("late", 15)
        assert second.fence == first.fence + 1
        tables.lock.end(first, 1.0, 99, 2.0)
        assert tables.lock.state().waiting == 0
        tables.lock.end(second, tables.clock.now_s + 5, 3, tables.clock.now_s)
        state = tables.lock.state()
        assert (state.locked_until, state.next_look, state.waiting) == (0, tables.clock.now_s + 5, 3)
        assert list(tables.outstanding_jobs.open_jobs()) == []

    def test_image_starts_once_under_lock_in_force(self, tables):
        tables.outstanding_jobs.accept(request())
        tables.outstanding_jobs.accept(request("other", "s3://images/b.tif"))
        job, other = tables.outstanding_jobs.open_jobs()
        old = tables.lock.claim("w1", 15)
        tables.clock.now_s += 16
        new = tables.lock.claim("w2", 15)
        assert tables.lock.start(old, job, 60) is None, "it slept until its lock was over"
        started = tables.lock.start(new, job, 60)
        assert (started.num_attempts, started.image_id) == (1, job.image_id)
        assert tables.lock.start(new, job, 60) is None
        assert tables.outstanding_jobs.renew_planning(started, "w2")
        assert tables.lock.start(new, other, 60) is not None

    def test_progress_follows_image_rows(self, tables):
        item = planned(tables, regions=2)
        tables.regions.end_region(tables.jobs, claimed(tables), RequestStatus.SUCCESS, [BOUNDS], [])
        jobs = list(tables.lock.open_jobs())
        row = tables.lock.progress(jobs)[item.image_id]
        assert (row.region_count, row.region_success, row.region_error, row.is_terminal) == (2, 1, 0, False)
        assert tables.lock.progress([]) == {}


class TestCancel:
    def test_c1_ends_open_image_once_and_running_region_is_not_counted(self, tables):
        item = planned(tables)
        claim = claimed(tables)
        ended = tables.jobs.cancel(item.image_id)
        assert (ended.image_status, ended.message) == ("FAILED", "cancelled")
        assert ended.status_outbox == {"status": "FAILED", "message": "cancelled"}
        assert tables.jobs.cancel(item.image_id) is None
        assert not tables.regions.end_region(tables.jobs, claim, RequestStatus.SUCCESS, [BOUNDS], [])
        assert tables.jobs.get_image_request(item.image_id).region_success == 0

    def test_d2_restarts_region_that_was_open_when_image_was_cancelled(self, tables):
        item = planned(tables)
        old = claimed(tables)
        ended = tables.jobs.cancel(item.image_id)
        tables.jobs.clear_outbox(item.image_id)
        tables.outstanding_jobs.close(ended)
        assert tables.outstanding_jobs.reopen(ended, request(), "again")
        assert tables.regions.reopen(item.image_id, old.item.region_id, 1)
        assert not tables.regions.renew(old, 60)
        new = tables.regions.claim(item.image_id, old.item.region_id, "w2", 60)
        assert isinstance(new, RegionClaim)
        assert tables.regions.end_region(tables.jobs, new, RequestStatus.SUCCESS, [BOUNDS], [])
        assert tables.jobs.get_image_request(item.image_id).region_success == 1


class TestSlots:
    def test_e1_grants_no_more_slots_than_exist_when_workers_race(self, tables):
        with ThreadPoolExecutor(8) as pool:
            taken = list(pool.map(lambda n: tables.endpoints.take_slot("ships", f"w{n}", 3, 60), range(8)))
        slots = [slot for slot in taken if slot is not None]
        assert len({slot.number for slot in slots}) == len(slots) <= 3
        # A worker that saw all slots taken keeps that answer for a while.
        tables.clock.now_s += 6
        while slot := tables.endpoints.take_slot("ships", "late", 3, 60):
            slots.append(slot)
        assert sorted(slot.number for slot in slots) == [0, 1, 2]
        assert {row["endpoint"] for row in tables.endpoints.scan()} == {"ships#0", "ships#1", "ships#2"}
        assert tables.endpoints.is_full("ships")
        assert not tables.endpoints.is_full("boats")

    def test_e1_returns_same_slot_when_first_response_was_lost(self, tables):
        slot = Slot("ships", 0, "mine#1")
        assert tables.endpoints._claim_slot(slot, 60)
        assert tables.endpoints._claim_slot(slot, 60)
        assert not tables.endpoints._claim_slot(Slot("ships", 0, "mine#2"), 60)

    def test_e2_renews_slot_and_expired_slot_is_free(self, tables):
        kept, dead = (tables.endpoints.take_slot("ships", name, 2, 60) for name in ("kept", "dead"))
        tables.clock.now_s += 40
        assert tables.endpoints.renew_slot(kept, 60)
        tables.clock.now_s += 40
        assert tables.endpoints.take_slot("ships", "next", 2, 60).number == dead.number
        assert tables.endpoints.take_slot("ships", "one more", 2, 60) is None
        assert not tables.endpoints.renew_slot(dead, 60)

    def test_e3_frees_own_slot_once(self, tables):
        slot = tables.endpoints.take_slot("ships", "a", 1, 60)
        tables.endpoints.leave_slot(slot)
        tables.endpoints.leave_slot(slot)
        assert list(tables.endpoints.scan()) == []
        other = tables.endpoints.take_slot("ships", "b", 1, 60)
        tables.endpoints.leave_slot(slot)
        assert tables.endpoints.renew_slot(other, 60)

    def test_full_endpoint_costs_no_call_for_while(self, tables):
        slot = tables.endpoints.take_slot("ships", "a", 1, 60)
        assert tables.endpoints.take_slot("ships", "b", 1, 60) is None
        assert tables.endpoints.is_full("ships")
        tables.clock.now_s += 6
        assert not tables.endpoints.is_full("ships")
        assert tables.endpoints.take_slot("ships", "b", 1, 60) is None
        tables.endpoints.leave_slot(slot)
        assert not tables.endpoints.is_full("ships")

    def test_max_regions_is_read_once_and_stays_in_force_when_read_fails(self, tables):
        found: list[int | None] = [40, None, 60]
        calls: list[float] = []

        def look_up() -> int | None:
            calls.append(tables.clock.now_s)
            return found[len(calls) - 1]

        assert [tables.endpoints.max_regions("ships", look_up) for _ in range(3)] == [40, 40, 40]
        assert len(calls) == 1
        tables.clock.now_s += 301
        assert [tables.endpoints.max_regions("ships", look_up) for _ in range(3)] == [40, 40, 40]
        assert len(calls) == 2
        tables.clock.now_s += 31
        assert tables.endpoints.max_regions("ships", look_up) == 60
        assert tables.endpoints.max_regions("boats", lambda: None) is None
