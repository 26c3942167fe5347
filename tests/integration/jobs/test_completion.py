"""Images whose regions have ended: merged, delivered to each output, and published once."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from osgeo import gdal

from aws.osml.model_runner.api.image_request import ImageRequest
from aws.osml.model_runner.api.region_request import RegionRequest
from aws.osml.model_runner.database import JobItem, JobTable
from aws.osml.model_runner.exceptions import (
    AggregateFeaturesException,
    AggregateOutputFeaturesException,
    ConservationError,
    LeaseLostError,
)
from aws.osml.model_runner.image_request_handler import ImageRequestHandler
from aws_faults import answering, json_error, xml_error
from worker_in_process import TILES, InProcessWorker


def feature(name: str, x: float, y: float, score: float) -> dict[str, Any]:
    box = [x, y, x + 20, y + 20]
    ring = [[x, y], [x + 20, y], [x + 20, y + 20], [x, y + 20], [x, y]]
    return {
        "type": "Feature",
        "id": name,
        "geometry": {"type": "Polygon", "coordinates": [ring]},
        "properties": {
            "imageGeometry": {"type": "Polygon", "coordinates": [ring]},
            "imageBBox": box,
            "image_id": "internal",
            "featureClasses": [{"iri": "ship", "score": score}],
        },
    }


def s3_body(clients: Any, bucket: str, key: str) -> bytes:
    body: bytes = clients.client("s3").get_object(Bucket=bucket, Key=key)["Body"].read()
    return body


DISTILLATION = [
    {"step": "FEATURE_DISTILLATION", "algorithm": {"algorithmType": "NMS", "iouThreshold": 0.5}},
]


class TestEnd:
    def counted(self, worker: InProcessWorker, scene: Path, model: str, **changes: Any) -> ImageRequest:
        """Do every region and leave the end to the caller."""
        request = worker.request(scene, model, **changes)
        worker.plan(request)
        for region in worker.region_requests(request):
            worker.process(region)
        return request

    def test_complete_image_request_finishes_once_every_region_is_counted(self, worker, scene, model_server):
        request = worker.request(scene, model_server("centerpoint").invocations_url)
        worker.plan(request)
        first, second = worker.region_requests(request)
        worker.process(first)
        worker.image_handler.complete_image_request(first, "GTIFF")
        assert worker.jobs.get_image_request(request.image_id).image_status == "IN_PROGRESS"
        worker.process(second)
        worker.image_handler.complete_image_request(second, "GTIFF")
        row = worker.jobs.get_image_request(request.image_id)
        assert (row.image_status, row.message) == ("SUCCESS", "Completed image processing")
        assert row.processing_duration is not None
        worker.image_handler.complete_image_request(second, "GTIFF")
        assert len(worker.result("job")) == TILES

    def test_image_that_is_not_there_is_not_finished(self, worker):
        worker.image_handler.parts.completion.finish("none")
        worker.image_handler.complete_image_request(RegionRequest(image_id="none", job_id="none"), "")

    def test_duplicates_of_overlapping_tiles_are_merged_and_properties_stamped(self, worker, scene, model_server):
        request = self.counted(
            worker,
            scene,
            model_server("flood", count=40, largest_px=30).invocations_url,
            imageProcessorTileOverlap=64,
            postProcessing=DISTILLATION,
            featureProperties=[{"mission": "m-1"}],
        )
        worker.image_handler.parts.completion.finish(request.image_id)
        features = worker.result("job")
        stored = sum(len(tile.features) for tile in worker.features.stored_tiles(request.image_id))
        assert 0 < len(features) < stored
        assert {one["properties"]["mission"] for one in features} == {"m-1"}

    def test_image_fails_with_name_of_sink_when_sink_is_missing(self, worker, scene, model_server):
        worker.skip_preflight()
        outputs = [{"type": "S3", "bucket": "no-such-bucket-at-all", "prefix": "p"}]
        request = self.counted(worker, scene, model_server("centerpoint").invocations_url, outputs=outputs)
        worker.image_handler.parts.completion.finish(request.image_id)
        row = worker.jobs.get_image_request(request.image_id)
        assert row.image_status == "FAILED"
        assert "no-such-bucket-at-all" in row.message

    def test_image_is_partial_when_one_sink_of_two_fails(self, worker, scene, model_server, data_plane):
        worker.skip_preflight()
        outputs = [
            {"type": "S3", "bucket": "no-such-bucket-at-all", "prefix": "p"},
            {"type": "Kinesis", "stream": data_plane.result_stream},
            {"type": "S3", "bucket": data_plane.result_bucket, "prefix": "out"},
        ]
        request = self.counted(worker, scene, model_server("centerpoint").invocations_url, outputs=outputs)
        worker.image_handler.parts.completion.finish(request.image_id)
        row = worker.jobs.get_image_request(request.image_id)
        assert (row.image_status, row.sinks_done) == ("PARTIAL", {"1:Kinesis", "2:S3"})
        assert len(worker.result("job")) == TILES

    def test_unavailable_sink_is_written_later_and_others_once(
        self, worker, scene, model_server, data_plane, clients, clock
    ):
        outputs = [
            {"type": "Kinesis", "stream": data_plane.result_stream},
            {"type": "S3", "bucket": data_plane.result_bucket, "prefix": "out"},
        ]
        request = self.counted(worker, scene, model_server("centerpoint").invocations_url, outputs=outputs)
        away = answering(clients.client("s3"), "PutObject", xml_error("OperationAborted", 409))
        with away, pytest.raises(AggregateFeaturesException):
            worker.image_handler.parts.completion.finish(request.image_id)
        row = worker.jobs.get_image_request(request.image_id)
        assert (row.image_status, row.sinks_done, row.agg_stalled) == ("IN_PROGRESS", {"0:Kinesis"}, 0)
        worker.image_handler.parts.completion.finish(request.image_id)
        assert not worker.jobs.get_image_request(request.image_id).is_terminal, "it waits a while first"
        clock.ahead_s += 30
        with answering(clients.client("kinesis"), "PutRecords", None) as calls:
            worker.image_handler.parts.completion.finish(request.image_id)
        assert worker.jobs.get_image_request(request.image_id).image_status == "SUCCESS"
        assert calls == []

    def test_past_deadline_sink_that_is_away_has_failed(self, worker, scene, model_server, clients, clock):
        request = self.counted(worker, scene, model_server("centerpoint").invocations_url)
        clock.ahead_s += 25 * 3600
        with answering(clients.client("s3"), "PutObject", xml_error("OperationAborted", 409)):
            worker.image_handler.parts.completion.finish(request.image_id)
        assert worker.jobs.get_image_request(request.image_id).image_status == "FAILED"

    def test_result_is_not_delivered_when_features_are_lost(self, worker, scene, model_server):
        request = self.counted(worker, scene, model_server("centerpoint").invocations_url)
        row = next(worker.rows_of_tiles(request.image_id))
        worker.features.delete({"hash_key": row["hash_key"], "range_key": row["range_key"]})
        with pytest.raises(ConservationError, match="7 tiles are stored as good, 8 were counted"):
            worker.image_handler.parts.completion.finish(request.image_id)
        row = worker.jobs.get_image_request(request.image_id)
        assert (row.image_status, row.agg_stalled) == ("IN_PROGRESS", 1)

    def test_multipart_upload_is_aborted_when_features_are_lost(
        self, worker, scene, model_server, clients, data_plane, monkeypatch
    ):
        outputs = [{"type": "S3", "bucket": data_plane.result_bucket, "prefix": "out"}]
        request = self.counted(worker, scene, model_server("centerpoint").invocations_url, outputs=outputs)
        worker.jobs.update({"image_id": request.image_id}, "SET tile_success = :n", {":n": TILES + 1})
        make_sinks = worker.completion._make_sinks

        def in_small_parts(outputs):
            sinks = make_sinks(outputs)
            for sink in sinks:
                sink.part_bytes = 500
            return sinks

        monkeypatch.setattr(worker.completion, "_make_sinks", in_small_parts)
        with answering(clients.client("s3"), "UploadPart", None) as parts, pytest.raises(ConservationError):
            worker.image_handler.parts.completion.finish(request.image_id)
        s3 = clients.client("s3")
        assert len(parts) > 1
        assert s3.list_multipart_uploads(Bucket=data_plane.result_bucket).get("Uploads", []) == []
        assert "Contents" not in s3.list_objects_v2(Bucket=data_plane.result_bucket, Prefix="out/job.geojson")

    def test_all_outputs_are_written_from_one_read_of_tiles(self, worker, scene, model_server, clients, data_plane):
        s3 = {"type": "S3", "bucket": data_plane.result_bucket, "prefix": "out"}
        outputs = [s3, s3 | {"format": "GEOJSONSEQ"}, {"type": "Kinesis", "stream": data_plane.result_stream}]
        request = self.counted(worker, scene, model_server("centerpoint").invocations_url, outputs=outputs)
        dynamodb = worker.clients.dynamodb_resource().meta.client
        with answering(dynamodb, "BatchGetItem", None) as reads:
            worker.image_handler.parts.completion.finish(request.image_id)
        row = worker.jobs.get_image_request(request.image_id)
        assert (row.image_status, row.sinks_done) == ("SUCCESS", {"0:S3", "1:S3", "2:Kinesis"})
        assert len(reads) == 1, "eight tiles are one read"
        lines = s3_body(clients, data_plane.result_bucket, "out/job.geojsonl").splitlines()
        assert [json.loads(line) for line in lines] == worker.result("job")

    def test_stopping_worker_releases_claim_without_attempt(self, worker, scene, model_server):
        request = self.counted(worker, scene, model_server("centerpoint").invocations_url)
        worker.worker_process.stopping.set()
        worker.image_handler.parts.completion.finish(request.image_id)
        row = worker.jobs.get_image_request(request.image_id)
        assert (row.image_status, row.agg_stalled, row.agg_lease_until) == ("IN_PROGRESS", 0, 0)
        worker.worker_process.stopping.clear()
        worker.image_handler.parts.completion.finish(request.image_id)
        assert worker.jobs.get_image_request(request.image_id).image_status == "SUCCESS"

    def test_backoff_grows_when_output_stays_unavailable(self, worker, scene, model_server, clients, clock):
        request = self.counted(worker, scene, model_server("centerpoint").invocations_url)
        waits = []
        with answering(clients.client("s3"), "PutObject", xml_error("OperationAborted", 409)):
            for _ in range(7):
                with pytest.raises(AggregateFeaturesException):
                    worker.image_handler.parts.completion.finish(request.image_id)
                waits.append(worker.jobs.get_image_request(request.image_id).agg_not_before - clock())
                clock.ahead_s += 800
        assert waits == pytest.approx([20, 40, 80, 160, 320, 600, 600], rel=0.4)
        worker.image_handler.parts.completion.finish(request.image_id)
        row = worker.jobs.get_image_request(request.image_id)
        assert (row.image_status, row.agg_backoffs) == ("SUCCESS", 0)

    def test_region_has_ended_though_its_image_cannot_be_delivered_yet(self, worker, scene, model_server, clients):
        request = self.counted(worker, scene, model_server("centerpoint").invocations_url)
        job = worker.jobs.get_image_request(request.image_id)
        with answering(clients.client("s3"), "PutObject", xml_error("OperationAborted", 409)) as puts:
            worker.completion.region_ended(job)
        assert puts
        assert worker.jobs.get_image_request(request.image_id).image_status == "IN_PROGRESS"

    def test_image_that_no_worker_can_hold_fails_with_name_of_setting(self, worker, scene, model_server):
        request = self.counted(worker, scene, model_server("centerpoint").invocations_url)
        worker.completion.memory.total_bytes = 100
        worker.image_handler.parts.completion.finish(request.image_id)
        row = worker.jobs.get_image_request(request.image_id)
        assert row.image_status == "FAILED"
        assert "AGGREGATION_MEMORY_BYTES of 100 bytes is too little" in row.message
        assert "0:S3" in row.sink_errors

    def test_image_waits_for_memory_and_is_then_released(self, worker, scene, model_server, clock):
        request = self.counted(worker, scene, model_server("centerpoint").invocations_url)
        memory = worker.completion.memory
        memory.now = clock
        memory.pause = lambda seconds: setattr(clock, "ahead_s", clock.ahead_s + 100 * seconds)
        with memory.share(lambda: None) as other:
            other.read(memory.total_bytes)
            worker.image_handler.parts.completion.finish(request.image_id)
        row = worker.jobs.get_image_request(request.image_id)
        assert (row.image_status, row.agg_stalled) == ("IN_PROGRESS", 0)
        assert 5 <= row.agg_not_before - clock() + 1 <= 16
        clock.ahead_s += 20
        worker.image_handler.parts.completion.finish(request.image_id)
        assert worker.jobs.get_image_request(request.image_id).image_status == "SUCCESS"

    def test_aggregation_is_abandoned_when_it_kills_workers(self, worker, scene, model_server, clock, statuses):
        request = self.counted(worker, scene, model_server("centerpoint").invocations_url)
        for _ in range(6):
            job = worker.jobs.get_image_request(request.image_id)
            assert worker.jobs.claim_aggregation(job, "dead", 120, 0)
            clock.ahead_s += 700
        worker.image_handler.parts.completion.finish(request.image_id)
        row = worker.jobs.get_image_request(request.image_id)
        assert (row.image_status, row.message) == ("FAILED", "aggregation crashed 7 workers")
        assert statuses.heard().count("FAILED") == 1

    def test_aggregation_writes_no_row_when_another_worker_took_over(self, worker, scene, model_server, clock):
        request = self.counted(worker, scene, model_server("centerpoint").invocations_url)
        completion = worker.image_handler.parts.completion
        deliver = completion._deliver
        # A clock of its own: the claim's holder renews it all the time, and must not see it end.
        others_jobs = JobTable(worker.jobs.table_name, worker.jobs.client, lambda: clock() + 500)

        def lose_the_claim(*arguments):
            job = worker.jobs.get_image_request(request.image_id)
            assert others_jobs.claim_aggregation(job, "other", 120, 0)
            return deliver(*arguments)

        completion._deliver = lose_the_claim
        with pytest.raises(LeaseLostError):
            completion.finish(request.image_id)
        row = worker.jobs.get_image_request(request.image_id)
        assert (row.image_status, row.agg_owner.partition("#")[0], row.sinks_done) == ("IN_PROGRESS", "other", None)

    def test_stream_delivery_resumes_at_stored_position(self, worker, scene, model_server, data_plane, clients, clock):
        outputs = [{"type": "Kinesis", "stream": data_plane.result_stream, "batchSize": 3}]
        request = self.counted(worker, scene, model_server("centerpoint").invocations_url, outputs=outputs)
        worker.jobs.update({"image_id": request.image_id}, "SET sink_positions = :p", {":p": {"0:Kinesis": 6}})
        with answering(clients.client("kinesis"), "PutRecords", None) as calls:
            worker.image_handler.parts.completion.finish(request.image_id)
        assert len(calls) == 1, "six of eight features are there already"
        assert worker.jobs.get_image_request(request.image_id).image_status == "SUCCESS"

    def test_position_belongs_to_one_output(self, worker, scene, model_server, data_plane, clients, clock):
        worker.skip_preflight()
        stream = {"type": "Kinesis", "stream": data_plane.result_stream, "batchSize": 3}
        outputs = [stream | {"stream": "no-such-stream"}, stream]
        request = self.counted(worker, scene, model_server("centerpoint").invocations_url, outputs=outputs)
        away = answering(clients.client("kinesis"), "PutRecords", None, json_error("Unavailable"))
        with away, pytest.raises(AggregateFeaturesException):
            worker.image_handler.parts.completion.finish(request.image_id)
        row = worker.jobs.get_image_request(request.image_id)
        assert (list(row.sink_errors), row.sinks_done, row.sink_positions) == (["0:Kinesis"], None, {"1:Kinesis": 3})
        clock.ahead_s += 30
        with (
            answering(clients.client("kinesis"), "DescribeStreamSummary", None) as streams,
            answering(clients.client("kinesis"), "PutRecords", None) as batches,
        ):
            worker.image_handler.parts.completion.finish(request.image_id)
        assert (len(streams), len(batches)) == (1, 2), (
            "the other five of eight features, and nothing of the first output"
        )
        row = worker.jobs.get_image_request(request.image_id)
        assert (row.image_status, row.sinks_done, list(row.sink_errors)) == ("PARTIAL", {"1:Kinesis"}, ["0:Kinesis"])
        assert "no-such-stream" in row.message

    def test_end_image_request_needs_claim_that_is_in_force(self, worker, scene, model_server):
        request = self.counted(worker, scene, model_server("centerpoint").invocations_url)
        claimed = worker.jobs.claim_aggregation(worker.jobs.get_image_request(request.image_id), "w", 120, 0)
        worker.image_handler.end_image_request(dataclasses.replace(claimed, agg_fence=0), "GTIFF")
        assert not worker.jobs.get_image_request(request.image_id).is_terminal
        worker.image_handler.end_image_request(claimed, "GTIFF")
        assert worker.jobs.get_image_request(request.image_id).image_status == "SUCCESS"
        assert worker.open_jobs() == []

    def test_fail_image_request_before_and_after_plan(self, worker, scene, model_server, statuses):
        request = worker.request(scene, model_server("centerpoint").invocations_url)
        worker.image_handler.accept(request)
        item = worker.jobs.get_image_request(request.image_id)
        worker.image_handler.fail_image_request(item, ValueError("unreadable"))
        worker.image_handler.fail_image_request(item, ValueError("again"))
        row = worker.jobs.get_image_request(request.image_id)
        assert (row.image_status, row.message) == ("FAILED", "unreadable")
        assert statuses.heard().count("FAILED") == 1
        other = worker.request(scene, model_server("centerpoint").invocations_url, job_id="planned")
        as_planned = worker.plan(other)
        before = dataclasses.replace(as_planned, region_count=None)
        worker.image_handler.fail_image_request(before, ValueError("somebody has planned it meanwhile"))
        assert worker.jobs.get_image_request(other.image_id).image_status == "IN_PROGRESS"
        worker.image_handler.fail_image_request(as_planned, ValueError("the image is gone"))
        assert worker.jobs.get_image_request(other.image_id).message == "the image is gone"

    @pytest.mark.parametrize("has_bounds", [True, False])
    def test_deduplicate_merges_stamps_and_cleans(self, worker, scene, has_bounds):
        request = worker.request(
            scene,
            "http://127.0.0.1:9/invocations",
            imageProcessorTileOverlap=64,
            postProcessing=DISTILLATION,
            featureProperties=[{"mission": "m-1"}],
        )
        item = JobItem.from_image_request(request)
        item.processing_bounds = [[0, 0], [1024, 512]] if has_bounds else None
        # Both lie where two tiles overlap, and are the same ship.
        seen = [feature("a", 200, 10, 0.9), feature("b", 201, 10, 0.8), feature("c", 600, 300, 0.7)]
        kept = worker.image_handler.deduplicate(item, seen, gdal.Open(str(scene)))
        assert sorted(one["properties"]["featureClasses"][0]["score"] for one in kept) == [0.7, 0.9]
        for one in kept:
            assert one["properties"]["mission"] == "m-1"
            assert "image_id" not in one["properties"]

    def test_features_are_not_merged_without_distillation(self, worker, scene):
        item = JobItem.from_image_request(worker.request(scene, "http://127.0.0.1:9/invocations"))
        item.feature_distillation_option = None
        seen = [feature("a", 200, 10, 0.9), feature("b", 201, 10, 0.8)]
        assert len(worker.image_handler.deduplicate(item, seen)) == 2

    def test_sink_features_writes_every_output(self, worker, scene):
        item = JobItem.from_image_request(worker.request(scene, "http://127.0.0.1:9/invocations"))
        ImageRequestHandler.sink_features(item, [feature("a", 0, 0, 0.5)])
        assert [one["id"] for one in worker.result("job")] == ["a"]
        item.outputs = json.dumps([{"type": "S3", "bucket": "no-such-bucket-at-all"}])
        with pytest.raises(AggregateOutputFeaturesException):
            ImageRequestHandler.sink_features(item, [feature("a", 0, 0, 0.5)])

    def test_progress_counts_tiles(self, worker, scene, model_server, statuses):
        request = worker.request(scene, model_server("centerpoint").invocations_url)
        worker.plan(request)
        statuses.events()
        first, _ = worker.region_requests(request)
        worker.completion.region_ended(worker.process(first))
        ((_, attributes),) = statuses.events()
        assert {name: attributes.get(name) for name in ("tiles_done", "tiles_total", "percent")} == {
            "tiles_done": "4",
            "tiles_total": "8",
            "percent": "50",
        }
