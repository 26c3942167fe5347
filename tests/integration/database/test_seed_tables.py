"""The tables as existing users call them: jobs, regions, endpoints and features, against a real emulator."""

import dataclasses
import json
import time
from decimal import Decimal
from typing import Any

import geojson
import pytest
from aws_embedded_metrics import MetricsLogger
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from aws.osml.model_runner.api.image_request import ImageRequest
from aws.osml.model_runner.api.region_request import RegionRequest
from aws.osml.model_runner.common.typing import ImageRegion, RequestStatus, TileState
from aws.osml.model_runner.database import (
    EndpointStatisticsTable,
    FeatureTable,
    JobItem,
    JobTable,
    RegionRequestItem,
    RegionRequestTable,
)
from aws.osml.model_runner.database.endpoint_statistics_table import EndpointStatisticsItem
from aws.osml.model_runner.database.job_table import new_row
from aws.osml.model_runner.exceptions import (
    AddFeaturesException,
    CompleteRegionException,
    EndImageException,
    GetImageRequestItemException,
    IsImageCompleteException,
    StartImageException,
    TransactionConflictError,
    UpdateRegionException,
)
from aws_faults import answering, json_error, never_sending
from examples import examples

# Not far from the real time: the emulator deletes what has expired by its own clock.
START_S = float(int(time.time()))
IMAGE_ID = "job:s3://images/a.tif"


class Clock:
    def __init__(self) -> None:
        self.now_s = START_S

    def __call__(self) -> float:
        return self.now_s


class Metrics(MetricsLogger):
    """Notes what is put."""

    def __init__(self) -> None:
        self.put: list[str] = []

    def put_metric(self, key: str, *_: Any, **__: Any) -> None:
        self.put.append(key)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def jobs(data_plane, dynamodb, clock) -> JobTable:
    return JobTable(data_plane.environment["JOB_TABLE"], dynamodb, clock)


@pytest.fixture
def regions(data_plane, dynamodb, clock) -> RegionRequestTable:
    return RegionRequestTable(data_plane.environment["REGION_REQUEST_TABLE"], dynamodb, clock)


@pytest.fixture
def endpoints(data_plane, dynamodb) -> EndpointStatisticsTable:
    return EndpointStatisticsTable(data_plane.environment["ENDPOINT_TABLE"], dynamodb)


@pytest.fixture
def features(data_plane, dynamodb, clock) -> FeatureTable:
    return FeatureTable(data_plane.environment["FEATURE_TABLE"], (512, 512), (64, 64), dynamodb, clock)


class TestJobTable:
    def test_start_writes_times_and_counters_once(self, jobs):
        started = jobs.start_image_request(JobItem(IMAGE_ID, job_id="job", region_count=2))
        row = jobs.get_image_request(IMAGE_ID)
        assert row == started
        assert (row.start_time, row.image_status) == (int(START_S * 1000), "ACCEPTED")
        assert (row.region_success, row.region_error, row.processing_duration) == (0, 0, 0)
        assert row.expire_time > START_S + 15 * 24 * 3600
        with pytest.raises(StartImageException):
            jobs.start_image_request(JobItem(IMAGE_ID))

    def test_start_does_not_change_callers_item(self, jobs):
        item = JobItem(IMAGE_ID)
        jobs.start_image_request(item)
        assert item == JobItem(IMAGE_ID)

    def test_regions_are_counted_until_image_is_complete(self, jobs):
        jobs.start_image_request(JobItem(IMAGE_ID, region_count=3))
        assert not jobs.is_image_request_complete(jobs.complete_region_request(IMAGE_ID, error=False))
        assert not jobs.is_image_request_complete(jobs.complete_region_request(IMAGE_ID, error=True))
        item = jobs.complete_region_request(IMAGE_ID, error=False)
        assert (item.region_success, item.region_error) == (2, 1)
        assert jobs.is_image_request_complete(item)

    def test_image_without_plan_is_not_complete(self, jobs):
        assert not jobs.is_image_request_complete(JobItem(IMAGE_ID, region_success=0, region_error=0))
        for counters in ({}, {"region_success": 1}, {"region_error": 1}):
            with pytest.raises(IsImageCompleteException):
                jobs.is_image_request_complete(JobItem(IMAGE_ID, region_count=1, **counters))

    def test_end_records_time(self, jobs, clock):
        jobs.start_image_request(JobItem(IMAGE_ID))
        clock.now_s += 5
        assert jobs.end_image_request(IMAGE_ID).end_time == int((START_S + 5) * 1000)
        with pytest.raises(EndImageException):
            jobs.end_image_request("none")

    def test_image_that_is_not_there_or_has_expired_is_not_found(self, jobs, clock):
        jobs.start_image_request(JobItem(IMAGE_ID))
        assert jobs.find("none") is None
        with pytest.raises(GetImageRequestItemException):
            jobs.get_image_request("none")
        clock.now_s += jobs.life_s + 1
        assert jobs.find(IMAGE_ID) is None

    def test_update_sets_given_attributes(self, jobs):
        jobs.start_image_request(JobItem(IMAGE_ID, job_id="job", width=10))
        updated = jobs.update_image_request(JobItem(IMAGE_ID, height=20))
        assert (updated.job_id, updated.width, updated.height) == ("job", 10, 20)
        timed = jobs.update_image_request(JobItem(IMAGE_ID, start_time=1))
        assert timed.processing_duration == jobs.get_processing_duration(1)
        assert timed.processing_duration > START_S

    @pytest.mark.parametrize("text", ["(512, 256)", "[512, 256]", "512,256"])
    def test_sizes_of_any_version_are_read(self, text):
        item = JobItem(IMAGE_ID, tile_size=text, tile_overlap=text)
        assert (item.tile_dimensions, item.overlap_dimensions) == ((512, 256), (512, 256))

    def test_attributes_of_other_versions_are_left_out(self, jobs):
        jobs.start_image_request(JobItem(IMAGE_ID, model_endpoint_parameters='{"a": [1.5]}'))
        jobs.table.update_item(
            Key={"image_id": IMAGE_ID},
            UpdateExpression="SET future = :x",
            ExpressionAttributeValues={":x": Decimal(1)},
        )
        item = jobs.get_image_request(IMAGE_ID)
        assert not hasattr(item, "future")
        assert item.endpoint_parameters == {"a": [1.5]}
        assert JobItem(IMAGE_ID).endpoint_parameters is None

    def test_outbox_of_missing_row_is_ignored(self, jobs):
        jobs.clear_outbox("none")
        assert jobs.find("none") is None


def region_item(number: int = 0) -> RegionRequestItem:
    bounds = ImageRegion.of(((0, 512 * number), (512, 512)))
    request = RegionRequest(
        image_id=IMAGE_ID,
        job_id="job",
        region_id=f"{tuple(bounds.origin)}{tuple(bounds.size)}-job",
        region_bounds=bounds,
        tile_size=(512, 512),
        tile_overlap=(64, 64),
        tile_format="PNG",
        tile_compression="NONE",
        image_read_role="",
    )
    return RegionRequestItem.from_region_request(request)


class TestRegionRequestTable:
    def test_start_returns_existing_row_when_called_again(self, regions, clock):
        started = regions.start_region_request(region_item())
        assert (started.region_status, started.start_time) == ("STARTED", int(START_S * 1000))
        assert (started.fence, started.lease_until, started.region_retry_count) == (0, 0, 0)
        clock.now_s += 10
        assert regions.start_region_request(region_item()) == started
        assert regions.get_region_request(started.region_id, IMAGE_ID) == started

    def test_complete_writes_end(self, regions, clock):
        started = regions.start_region_request(region_item())
        clock.now_s += 2.5
        started.succeeded_tile_count, started.total_tiles = 3, 4
        ended = regions.complete_region_request(started, RequestStatus.PARTIAL)
        assert (ended.region_status, ended.is_terminal) == ("PARTIAL", True)
        assert (ended.end_time, ended.processing_duration) == (int((START_S + 2.5) * 1000), 2500)
        assert (ended.succeeded_tile_count, ended.total_tiles) == (3, 4)

    def test_update_sets_given_attributes(self, regions, clock):
        regions.start_region_request(region_item())
        clock.now_s += 1
        item = region_item()
        updated = regions.update_region_request(
            RegionRequestItem(region_id=item.region_id, image_id=item.image_id, message="half way")
        )
        assert (updated.message, updated.region_status) == ("half way", "STARTED")
        assert updated.last_updated_time == int((START_S + 1) * 1000)

    def test_region_without_row_is_not_updated_or_completed(self, regions):
        with pytest.raises(UpdateRegionException):
            regions.update_region_request(region_item())
        with pytest.raises(CompleteRegionException):
            regions.complete_region_request(region_item(), RequestStatus.SUCCESS)
        assert regions.get_region_request(region_item().region_id, IMAGE_ID) is None

    def test_tiles_are_appended_to_list_of_their_state(self, regions):
        item = regions.start_region_request(region_item())
        for row, state in ((0, TileState.SUCCEEDED), (64, TileState.FAILED), (128, TileState.SUCCEEDED)):
            tile = ImageRegion.of(((row, 0), (64, 64)))
            item = regions.add_tile(IMAGE_ID, item.region_id, tile, state)
        assert item.succeeded_tiles == [[[0, 0], [64, 64]], [[128, 0], [64, 64]]]
        assert item.failed_tiles == [[[64, 0], [64, 64]]]

    def test_expired_row_counts_as_gone(self, regions, clock):
        item = regions.start_region_request(region_item())
        clock.now_s += 17 * 24 * 3600
        assert regions.get_region_request(item.region_id, IMAGE_ID) is None

    def test_regions_of_image_come_in_order(self, regions):
        for number in (2, 0, 1):
            regions.start_region_request(region_item(number))
        other = dataclasses.replace(region_item(), image_id="other")
        regions.start_region_request(other)
        ids = [item.region_id for item in regions.regions_of(IMAGE_ID)]
        assert ids == sorted(region_item(number).region_id for number in range(3))

    @pytest.mark.parametrize(("conflicts", "is_counted"), [(1, True), (5, True), (6, False)])
    def test_busy_row_of_image_is_tried_six_times(self, jobs, regions, dynamodb, conflicts, is_counted):
        jobs.put(new_row(ImageRequest(job_id="job", image_id=IMAGE_ID), START_S))
        item = regions.start_region_request(region_item())
        claim = regions.claim(IMAGE_ID, item.region_id, "w", 60)
        waits: list[float] = []
        regions._sleep = waits.append
        body = {
            "__type": "com.amazonaws.dynamodb.v20120810#TransactionCanceledException",
            "CancellationReasons": [{"Code": "None"}, {"Code": "TransactionConflict"}],
        }
        conflict = (400, {"Content-Type": "application/x-amz-json-1.0"}, json.dumps(body).encode())
        with answering(dynamodb.meta.client, "TransactWriteItems", *[conflict] * conflicts, None):
            try:
                assert regions.end_region(jobs, claim, RequestStatus.SUCCESS, [], [])
            except TransactionConflictError:
                assert not is_counted
        assert jobs.get_image_request(IMAGE_ID).region_success == int(is_counted)
        assert len(waits) == min(conflicts, 5)
        assert all(0 <= wait <= 20 for wait in waits)

    def test_ended_row_has_nothing_to_queue(self, regions):
        item = regions.start_region_request(region_item())
        assert regions.record_queued(IMAGE_ID, item.region_id)
        regions.complete_region_request(item, RequestStatus.SUCCESS)
        assert not regions.record_queued(IMAGE_ID, item.region_id)
        assert not regions.record_queued(IMAGE_ID, "none")


class TestEndpointStatisticsTable:
    def test_regions_in_progress_never_falls_below_zero(self, endpoints):
        assert endpoints.current_in_progress_regions("ships") == 0
        endpoints.upsert_endpoint("ships", 3)
        endpoints.increment_region_count("ships")
        endpoints.increment_region_count("ships")
        endpoints.upsert_endpoint("ships", 5)
        assert endpoints.current_in_progress_regions("ships") == 2
        for left in (1, 0, 0):
            endpoints.decrement_region_count("ships")
            assert endpoints.current_in_progress_regions("ships") == left
        endpoints.decrement_region_count("unknown")
        assert endpoints.current_in_progress_regions("unknown") == 0
        assert endpoints.read({"endpoint": "ships"})["max_regions"] == 5

    def test_row_is_item(self, endpoints):
        endpoints.put_ddb_item(EndpointStatisticsItem("ships", 1, 9))
        assert endpoints.get_ddb_item(EndpointStatisticsItem("ships")) == {
            "endpoint": "ships",
            "regions_in_progress": 1,
            "max_regions": 9,
        }


def feature(name: str, box: tuple[float, float, float, float], image_id: str = IMAGE_ID, **properties: Any) -> Any:
    return geojson.Feature(
        id=name, geometry=None, properties={"image_id": image_id, "imageBBox": list(box), **properties}
    )


class TestFeatureTable:
    def test_features_are_read_as_they_were_added(self, features):
        added = [feature(f"f{n}", (n * 100, 0, n * 100 + 10, 10), score=0.1234567890123456) for n in range(30)]
        metrics = Metrics()
        features.add_features(added, metrics)
        found = features.get_features(IMAGE_ID, metrics)
        assert sorted(found, key=lambda one: one["id"]) == sorted(added, key=lambda one: one["id"])
        assert metrics.put == ["Invocations", "Invocations"]
        assert features.aggregate_features(JobItem(IMAGE_ID)) == found
        assert features.get_features("other") == []

    def test_adding_same_features_again_is_idempotent(self, features):
        added = [feature(f"f{n}", (0, 0, 10, 10)) for n in range(5)]
        features.add_features(added)
        features.add_features(added)
        assert len(features.get_features(IMAGE_ID)) == 5

    def test_features_that_fill_several_items_come_back_whole(self, features):
        added = [feature(f"f{n:02}", (0, 0, 10, 10), text="ä" * 30_000) for n in range(12)]
        features.add_features(added)
        assert sorted(one["id"] for one in features.get_features(IMAGE_ID)) == [f"f{n:02}" for n in range(12)]

    def test_coordinates_keep_every_digit(self, features):
        point = geojson.Feature(
            id="p",
            geometry={"type": "Point", "coordinates": [10.123456789012345, -20.98765432109876]},
            properties={"image_id": IMAGE_ID, "imageBBox": [0, 0, 1, 1]},
        )
        point["geometry"]["coordinates"] = [10.123456789012345, -20.98765432109876]
        features.add_features([point])
        (found,) = features.get_features(IMAGE_ID)
        assert found["geometry"]["coordinates"] == [10.123456789012345, -20.98765432109876]

    def test_expired_features_are_gone(self, features, clock):
        features.add_features([feature("f", (0, 0, 10, 10))])
        clock.now_s += 73 * 3600
        assert features.get_features(IMAGE_ID) == []

    def test_feature_without_geometry_cannot_be_stored(self, features):
        nowhere = geojson.Feature(id="x", geometry=None, properties={"image_id": IMAGE_ID})
        with pytest.raises(AddFeaturesException):
            features.add_features([feature("f", (0, 0, 1, 1)), nowhere])
        assert features.get_features(IMAGE_ID) == []
        with pytest.raises(ValueError, match="neither"):
            features.generate_tile_key(nowhere)

    def test_add_raises_when_table_refuses_writes(self, features, dynamodb):
        client = dynamodb.meta.client
        features._sleep = lambda _: None
        with never_sending(client, "BatchWriteItem"), pytest.raises(AddFeaturesException):
            features.add_features([feature("f", (0, 0, 1, 1))])
        denied = answering(client, "BatchWriteItem", json_error("AccessDeniedException"))
        with denied, pytest.raises(AddFeaturesException):
            features.add_features([feature("f", (0, 0, 1, 1))])

    @pytest.mark.parametrize(
        ("box", "tiles"),
        [
            # Tiles of 512 every 448 pixels; the first 64 of each belong to the one before as well.
            ((0, 0, 10, 10), "0:0:0:0"),
            ((100, 460, 120, 470), "0:0:0:1"),
            ((440, 0, 450, 10), "0:1:0:0"),
            ((448, 448, 460, 460), "0:1:0:1"),
            ((512, 0, 520, 10), "1:1:0:0"),
            ((900, 0, 1400, 10), "1:3:0:0"),
        ],
    )
    def test_tile_keys(self, features, box, tiles):
        assert features.generate_tile_key(feature("f", box)) == f"{IMAGE_ID}-region-{tiles}"

    def test_features_are_grouped_by_tiles_that_cover_them(self, features):
        near, beside, far = (feature(name, box) for name, box in (
            ("near", (0, 0, 10, 10)), ("beside", (20, 20, 30, 30)), ("far", (2000, 2000, 2010, 2010))
        ))  # fmt: skip
        groups = features.group_features_by_key([near, far, beside])
        assert list(groups.values()) == [[near, beside], [far]]

    @settings(examples(50), suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(x=st.floats(0, 1e5), y=st.floats(0, 1e5), width=st.floats(0, 400), height=st.floats(0, 400))
    def test_tiles_of_key_cover_feature(self, features, x, y, width, height):
        key = features.generate_tile_key(feature("f", (x, y, x + width, y + height)))
        first_x, last_x, first_y, last_y = map(int, key.rpartition("-region-")[2].split(":"))
        assert first_x * 448 <= x
        assert x + width < last_x * 448 + 512
        assert first_y * 448 <= y
        assert y + height < last_y * 448 + 512
