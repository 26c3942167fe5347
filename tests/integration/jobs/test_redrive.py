"""Jobs that have ended and begin again: their failed tiles, and their failed outputs."""

import shutil
from pathlib import Path
from typing import Any

import pytest

from aws.osml.model_runner.api.image_request import ImageRequest
from aws.osml.model_runner.database.outstanding_jobs_table import OpenJob
from aws.osml.model_runner.exceptions import (
    InvalidImageRequestException,
)
from aws.osml.model_runner.jobs.redrive import JobRedriver
from aws_faults import answering
from worker_in_process import TILES, InProcessWorker


class TestRedrive:
    def undelivered(
        self, worker: InProcessWorker, scene: Path, model: str, data_plane: Any, **changes: Any
    ) -> ImageRequest:
        """Return a job that ended PARTIAL: the stream has its features, a bucket that went missing has not."""
        outputs = [
            {"type": "S3", "bucket": "went-missing", "prefix": "p"},
            {"type": "Kinesis", "stream": data_plane.result_stream},
        ]
        request = worker.request(scene, model, outputs=outputs, **changes)
        check = worker.image_handler.parts.preflight.check
        worker.skip_preflight()
        worker.image_handler.process_image_request(request)
        worker.image_handler.parts.preflight.check = check  # type: ignore[method-assign]
        assert worker.work_off().image_status in ("PARTIAL", "FAILED")
        assert worker.open_jobs() == []
        return request

    def redriver(self, worker: InProcessWorker) -> JobRedriver:
        return JobRedriver(worker.jobs, worker.outstanding_jobs, worker.config.policy.check, worker.clock)

    def test_redrive_writes_failed_output_elsewhere_without_model_call(
        self, worker, scene, model_server, data_plane, clients, statuses, tmp_path
    ):
        """Nor is the image read: it may be gone."""
        image = Path(shutil.copy(scene, tmp_path / "scene.tif"))
        model = model_server("centerpoint")
        request = self.undelivered(worker, image, model.invocations_url, data_plane)
        image.unlink()
        ends = [attributes["status_id"] for text, attributes in statuses.events() if attributes["status"] == "PARTIAL"]
        report = self.redriver(worker).redrive("job", [f"s3://{data_plane.result_bucket}/out"])
        assert report.begun == {request.image_id: "outputs are written, no tile is done again"}
        with answering(clients.client("kinesis"), "PutRecords", None) as batches:
            worker.look_after()
        row = worker.jobs.get_image_request(request.image_id)
        assert (row.image_status, row.generation, row.sinks_done) == ("SUCCESS", 1, {"0:Kinesis", "1:S3"})
        assert len(worker.result("job")) == TILES
        assert (model.stats()["requests"], batches, worker.open_jobs()) == (TILES, [], [])
        heard = [attributes for _, attributes in statuses.events() if attributes["status"] == "SUCCESS"]
        assert len(heard) == 1
        assert heard[0]["status_id"] not in ends

    def test_late_planner_restarts_no_region_after_redrive(self, worker, scene, model_server, data_plane, monkeypatch):
        """It would count each region a second time, and the image would never be complete."""
        model = model_server("centerpoint")
        slept: list[OpenJob] = []
        start = worker.outstanding_jobs.start_planning

        def started_twice(job: OpenJob, *given: Any) -> OpenJob | None:
            slept.append(start(job, *given))
            return slept[0]

        monkeypatch.setattr(worker.outstanding_jobs, "start_planning", started_twice)
        request = self.undelivered(worker, scene, model.invocations_url, data_plane)
        report = self.redriver(worker).redrive("job", [f"s3://{data_plane.result_bucket}/out"])
        assert report.begun == {request.image_id: "outputs are written, no tile is done again"}
        worker.image_handler.plan_started(slept[0])
        worker.look_after()
        row = worker.jobs.get_image_request(request.image_id)
        assert (row.image_status, row.generation, row.region_success) == ("SUCCESS", 1, row.region_count)

    def test_failed_output_is_written_when_request_is_sent_again(
        self, worker, scene, model_server, data_plane, clients
    ):
        model = model_server("centerpoint")
        request = self.undelivered(worker, scene, model.invocations_url, data_plane)
        where = {"LocationConstraint": "us-west-2"}
        clients.client("s3").create_bucket(Bucket="went-missing", CreateBucketConfiguration=where)
        worker.image_handler.accept(request, "another message")
        worker.look_after()
        row = worker.jobs.get_image_request(request.image_id)
        assert (row.image_status, row.sinks_done) == ("SUCCESS", {"0:S3", "1:Kinesis"})
        assert model.stats()["requests"] == TILES
        clients.client("s3").delete_object(Bucket="went-missing", Key="p/job.geojson")
        clients.client("s3").delete_bucket(Bucket="went-missing")

    def test_job_ends_partial_again_when_output_is_still_missing(self, worker, scene, model_server, data_plane):
        request = self.undelivered(worker, scene, model_server("centerpoint").invocations_url, data_plane)
        assert self.redriver(worker).redrive("job").begun
        worker.look_after()
        row = worker.jobs.get_image_request(request.image_id)
        assert (row.image_status, row.generation, list(row.sink_errors)) == ("PARTIAL", 1, ["0:S3"])

    def test_redrive_repeats_failed_tiles_and_outputs_or_outputs_only(self, worker, scene, model_server, data_plane):
        model = model_server("failure", outcomes={"200": 0.5, "400": 0.5}, seed=3)
        place = f"s3://{data_plane.result_bucket}/out"
        request = self.undelivered(worker, scene, model.invocations_url, data_plane)
        calls, before = model.stats()["requests"], worker.jobs.get_image_request(request.image_id)
        assert before.tile_success
        assert before.tile_error
        self.redriver(worker).redrive("job", [place], outputs_only=True)
        worker.look_after()
        row = worker.jobs.get_image_request(request.image_id)
        assert (row.image_status, row.sinks_done, row.tile_error) == (
            "PARTIAL",
            {"0:Kinesis", "1:S3"},
            before.tile_error,
        )
        assert (len(worker.result("job")), model.stats()["requests"]) == (before.tile_success, calls)
        report = self.redriver(worker).redrive("job")
        assert list(report.begun.values()) == ["tiles that failed, or whose features have expired, are done again"]
        worker.look_after()
        worker.work_off()
        row = worker.jobs.get_image_request(request.image_id)
        assert (row.generation, row.sinks_done) == (2, {"0:Kinesis", "1:S3"})
        assert model.stats()["requests"] == calls + before.tile_error

    def test_redrive_repeats_tiles_whose_features_may_expire(self, worker, scene, model_server, data_plane, clock):
        model = model_server("centerpoint")
        request = self.undelivered(worker, scene, model.invocations_url, data_plane)
        place = f"s3://{data_plane.result_bucket}/out"
        clock.ahead_s += 49 * 3600
        left = self.redriver(worker).redrive("job", [place], outputs_only=True).left
        assert left == {
            request.image_id: "not all of its regions have ended, or its features are more than 48 hours old"
        }
        assert self.redriver(worker).redrive("job", [place]).begun
        worker.look_after()
        worker.work_off()
        row = worker.jobs.get_image_request(request.image_id)
        assert (row.image_status, row.sinks_done) == ("SUCCESS", {"0:Kinesis", "1:S3"})
        assert model.stats()["requests"] == 2 * TILES
        clock.ahead_s += 47 * 3600
        assert len(worker.features.stored_tiles(request.image_id)) == TILES, "the new rows live on"

    def test_redrive_refuses_output_that_policy_does_not_allow(self, new_worker, scene, model_server, data_plane):
        worker = new_worker(OUTPUT_BUCKETS="went-missing")
        request = self.undelivered(worker, scene, model_server("centerpoint").invocations_url, data_plane)
        with pytest.raises(InvalidImageRequestException, match="OUTPUT_BUCKETS"):
            self.redriver(worker).redrive("job", ["s3://elsewhere/p"])
        assert worker.jobs.get_image_request(request.image_id).generation == 0

    def test_redrive_runs_preflight_before_first_tile(self, worker, scene, model_server, data_plane, clients):
        model = model_server("failure", outcomes={"200": 0.5, "400": 0.5}, seed=3)
        request = self.undelivered(worker, scene, model.invocations_url, data_plane)
        calls = model.stats()["requests"]
        assert self.redriver(worker).redrive("job").begun
        worker.look_after()
        row = worker.jobs.get_image_request(request.image_id)
        assert row.image_status == "FAILED"
        assert 'outputs[0].bucket="went-missing": a bucket that exists (NoSuchBucket)' in row.message
        assert model.stats()["requests"] == calls
