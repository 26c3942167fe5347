"""Requests that could never be carried out are refused before their first tile; no other is."""

import dataclasses
import json
import socket
import threading
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from aws.osml.model_runner.exceptions import (
    InvalidImageRequestException,
    ModelCallError,
    ProcessImageException,
    RequestDeferredError,
)
from aws.osml.model_runner.inference.endpoint_check import MAX_SERVERLESS_BODY_BYTES
from aws.osml.model_runner.jobs.preflight import at_once
from aws.osml.model_runner.local.stack.http_service import HttpResponse, HttpService
from aws.osml.model_runner.local.stack.sagemaker_gateway import LocalEndpoint, Variant
from aws.osml.model_runner.queue.request_queue import RequestQueue
from aws.osml.model_runner.worker.messages import DeadLetters, ImageMessages
from aws_faults import answering, json_answer, json_error, never_sending, query_error, xml_error
from worker_in_process import Clock, InProcessWorker

ROLE = "arn:aws:iam::000000000000:role/team/writer"


@pytest.fixture
def endpoint(gateway, model_server) -> str:
    gateway.add_endpoint("ships", LocalEndpoint(model_server("centerpoint").invocations_url, (Variant("blue"),)))
    return "ships"


@pytest.fixture
def messages(worker, data_plane) -> ImageMessages:
    queue = RequestQueue(data_plane.image_queue, 0, client=worker.clients.client("sqs"))
    return ImageMessages(queue, DeadLetters(queue, worker.config.image_dlq), worker.image_handler, worker.visibility)


def body_of(worker: InProcessWorker, scene: Path, model: str, **changes: Any) -> str:
    document = {
        "jobId": "job",
        "imageUrls": [f"file://{scene}"],
        "imageProcessor": {"name": model, "type": "HTTP_ENDPOINT" if model.startswith("http") else "SM_ENDPOINT"},
        "imageProcessorTileSize": 256,
        "imageProcessorTileOverlap": 0,
        "imageProcessorTileFormat": "PNG",
        "outputs": json.loads(worker.outputs),
    }
    return json.dumps(document | changes, indent=1)


def handle(worker: InProcessWorker, messages: ImageMessages, body: str) -> None:
    worker.image_queue.send_body(body)
    (received,) = worker.image_queue.receive()
    messages.handle(received)


def dead_letters(worker: InProcessWorker) -> list[str]:
    queue = RequestQueue(worker.config.image_dlq, 0, 10, client=worker.clients.client("sqs"))
    return [found.body for found in queue.receive()]


def refusal(worker: InProcessWorker, scene: Path, model: str, **changes: Any) -> list[str]:
    """Return the problems for which a request is refused."""
    with pytest.raises(InvalidImageRequestException) as caught:
        worker.image_handler.check(worker.request(scene, model, **changes))
    return [str(problem) for problem in caught.value.problems]


class TestRefusal:
    def test_preflight_reports_all_problems_and_message_is_dead_lettered(
        self, worker, messages, scene, statuses, clients
    ):
        outputs = [
            {"type": "S3", "bucket": "no-such-bucket-at-all", "prefix": "p"},
            {"type": "Kinesis", "stream": "no-such-stream"},
            {"type": "S3", "bucket": "another-bucket", "prefix": "p", "role": ROLE},
        ]
        body = body_of(worker, scene, "no-such-endpoint", outputs=outputs)
        with answering(clients.client("sts"), "AssumeRole", query_error("AccessDenied", 403)):
            handle(worker, messages, body)
        assert dead_letters(worker) == [body]
        ((status, attributes),) = statuses.events()
        assert (attributes["status"], attributes["job_id"]) == ("FAILED", "job")
        assert "outputs[0].bucket, outputs[1].stream, outputs[2].role" in status
        assert worker.open_jobs() == []
        assert worker.jobs.find(worker.request(scene, "no-such-endpoint").image_id) is None
        with answering(clients.client("sts"), "AssumeRole", query_error("AccessDenied", 403)):
            problems = refusal(worker, scene, "no-such-endpoint", outputs=outputs)
        assert problems == [
            'imageProcessor.name="no-such-endpoint": an endpoint that exists (ValidationException)',
            'outputs[0].bucket="no-such-bucket-at-all": a bucket that exists (NoSuchBucket)',
            'outputs[1].stream="no-such-stream": a stream that exists (ResourceNotFoundException)',
            f'outputs[2].role="{ROLE}": a role that the worker may assume (AccessDenied)',
        ]

    def test_request_is_refused_when_one_output_is_missing(self, worker, scene, endpoint, data_plane):
        outputs = [*json.loads(worker.outputs), {"type": "Kinesis", "stream": "no-such-stream"}]
        (problem,) = refusal(worker, scene, endpoint, outputs=outputs)
        assert problem.startswith("outputs[1].stream")

    def test_variant_that_endpoint_does_not_have(self, worker, scene, endpoint):
        (problem,) = refusal(worker, scene, endpoint, imageProcessorParameters={"TargetVariant": "green"})
        assert problem == 'imageProcessorParameters.TargetVariant="green": a variant of the endpoint: one of blue'

    def test_endpoint_that_may_not_be_called(self, worker, scene, endpoint, clients):
        runtime = clients.client("sagemaker-runtime")
        with answering(runtime, "InvokeEndpoint", json_error("AccessDeniedException", 403)):
            (problem,) = refusal(worker, scene, endpoint)
        assert problem == (
            'imageProcessor.name="ships": an endpoint that the worker, or imageProcessor.assumedRole, may call'
            " (AccessDeniedException)"
        )

    def test_roles_that_cannot_be_assumed(self, worker, scene, endpoint, clients):
        processor = {"name": endpoint, "type": "SM_ENDPOINT", "assumedRole": ROLE}
        with answering(clients.client("sts"), "AssumeRole", query_error("AccessDenied", 403)):
            found = refusal(worker, "s3://images/a.tif", endpoint, imageReadRole=ROLE, imageProcessor=processor)
        assert [problem.partition("=")[0] for problem in found] == ["imageProcessor.assumedRole", "imageReadRole"]

    def test_request_is_accepted_when_problem_was_fixed(self, worker, scene, endpoint, clients):
        outputs = [{"type": "S3", "bucket": "made-a-moment-later", "prefix": "p"}]
        assert len(refusal(worker, scene, endpoint, outputs=outputs)) == 1
        where = {"LocationConstraint": "us-west-2"}
        clients.client("s3").create_bucket(Bucket="made-a-moment-later", CreateBucketConfiguration=where)
        worker.image_handler.check(worker.request(scene, endpoint, outputs=outputs))

    def test_job_that_was_accepted_is_not_refused_when_its_message_comes_again(
        self, worker, messages, scene, endpoint, clients, statuses
    ):
        bucket = "gone-a-moment-later"
        clients.client("s3").create_bucket(Bucket=bucket, CreateBucketConfiguration={"LocationConstraint": "us-west-2"})
        body = body_of(worker, scene, endpoint, outputs=[{"type": "S3", "bucket": bucket, "prefix": "p"}])
        handle(worker, messages, body)
        clients.client("s3").delete_bucket(Bucket=bucket)
        worker.image_handler.parts = dataclasses.replace(worker.image_handler.parts, preflight=worker.new_preflight())
        handle(worker, messages, body)
        assert dead_letters(worker) == []
        assert "FAILED" not in statuses.heard()

    def test_image_fails_before_first_tile_when_endpoint_was_deleted(self, worker, scene, endpoint, clients):
        bucket = "gone-while-it-waited"
        clients.client("s3").create_bucket(Bucket=bucket, CreateBucketConfiguration={"LocationConstraint": "us-west-2"})
        request = worker.request(scene, endpoint, outputs=[{"type": "S3", "bucket": bucket, "prefix": "p"}])
        worker.image_handler.check(request)
        job = worker.image_handler.accept(request)
        clients.client("s3").delete_bucket(Bucket=bucket)
        worker.image_handler.parts = dataclasses.replace(worker.image_handler.parts, preflight=worker.new_preflight())
        with pytest.raises(ProcessImageException, match=bucket):
            worker.image_handler.plan(job)
        row = worker.jobs.get_image_request(request.image_id)
        assert (row.image_status, row.region_count) == ("FAILED", None)
        assert worker.received_regions() == []

    def test_second_planner_does_not_end_running_job(self, worker, scene, endpoint, clients):
        bucket = "gone-while-its-tiles-ran"
        clients.client("s3").create_bucket(Bucket=bucket, CreateBucketConfiguration={"LocationConstraint": "us-west-2"})
        request = worker.request(scene, endpoint, outputs=[{"type": "S3", "bucket": bucket, "prefix": "p"}])
        job = worker.image_handler.accept(request)
        item = worker.jobs.get_image_request(request.image_id)
        worker.jobs.fix_plan(dataclasses.replace(item, region_count=1, first_attempt=1.0))
        clients.client("s3").delete_bucket(Bucket=bucket)
        worker.image_handler.parts = dataclasses.replace(worker.image_handler.parts, preflight=worker.new_preflight())
        worker.image_handler.plan(job)
        assert worker.jobs.get_image_request(request.image_id).image_status == "IN_PROGRESS"


class TestNoRefusal:
    """A check that cannot be made now refuses nothing."""

    @pytest.mark.parametrize("error", [xml_error("SlowDown", 503), xml_error("ExpiredToken", 400), None])
    def test_preflight_accepts_when_bucket_does_not_respond(self, worker, scene, endpoint, clients, error, monkeypatch):
        s3 = clients.client("s3")
        monkeypatch.setattr(s3._endpoint, "_should_retry_exceptions", None, raising=False)
        fault = answering(s3, "CreateMultipartUpload", error) if error else never_sending(s3, "CreateMultipartUpload")
        with fault:
            worker.image_handler.check(worker.request(scene, endpoint))

    @pytest.mark.parametrize(
        ("code", "status"), [("ThrottlingException", 400), ("InternalFailure", 500), ("ExpiredTokenException", 403)]
    )
    def test_endpoint_that_does_not_respond_to_permission_check(
        self, worker, scene, endpoint, clients, code, status, logs
    ):
        with answering(clients.client("sagemaker-runtime"), "InvokeEndpoint", json_error(code, status)):
            worker.image_handler.check(worker.request(scene, endpoint))
        assert [entry["check"] for entry in logs if entry["event"] == "preflight.unknown"] == ["invocation"]

    @pytest.mark.parametrize("code", ["ThrottlingException", "AccessDeniedException", "InternalFailure"])
    def test_endpoint_that_may_not_be_described(self, worker, scene, endpoint, clients, code):
        with answering(clients.client("sagemaker"), "DescribeEndpoint", json_error(code)):
            worker.image_handler.check(worker.request(scene, endpoint))

    def test_credentials_of_worker_that_are_wrong(self, worker, scene, endpoint, clients):
        with answering(clients.client("sts"), "AssumeRole", query_error("InvalidClientTokenId", 403)):
            worker.image_handler.check(worker.request("s3://images/a.tif", endpoint, imageReadRole=ROLE))

    def test_preflight_accepts_when_check_takes_too_long(self, worker, scene, endpoint, logs):
        preflight = worker.new_preflight(run=lambda looks, _within_s: [*(look() for look in looks[:-1]), None])
        worker.image_handler.parts = dataclasses.replace(worker.image_handler.parts, preflight=preflight)
        worker.image_handler.check(worker.request(scene, endpoint))
        assert [entry["check"] for entry in logs if entry["event"] == "preflight.unknown"] == ["output"]

    def test_model_that_is_being_replaced_is_waited_for(self, worker, messages, scene, logs):
        """Its port refuses connections until the new one listens; the request comes again meanwhile."""
        with socket.socket() as port:
            port.bind(("127.0.0.1", 0))
            url = f"http://127.0.0.1:{port.getsockname()[1]}/invocations"
            handle(worker, messages, body_of(worker, scene, url))
            assert [entry["event"] for entry in logs].count("request.deferred") == 1
            assert (dead_letters(worker), worker.open_jobs()) == ([], [])
            request = worker.request(scene, url)
            with pytest.raises(RequestDeferredError):
                worker.image_handler.check(request, tries=3)
            with pytest.raises(InvalidImageRequestException, match="connection refused"):
                worker.image_handler.check(request, tries=4)
            port.listen()
            worker.image_handler.check(request, tries=4)


class TestCost:
    def test_outputs_and_endpoint_are_checked_once_for_thousand_jobs(self, worker, scene, gateway, clients):
        received = []
        # Neither the time of day nor a busy machine may make a second check.
        preflight = worker.new_preflight(now=lambda: 0.0, run=lambda looks, _within_s: [look() for look in looks])
        worker.image_handler.parts = dataclasses.replace(worker.image_handler.parts, preflight=preflight)
        with ExitStack() as stack:
            model = stack.enter_context(HttpService(lambda request: received.append(request) or HttpResponse()))
            gateway.add_endpoint("ships", LocalEndpoint(f"{model.url}/invocations"))
            calls = {
                name: stack.enter_context(answering(clients.client(service), name, None))
                for service, name in (
                    ("s3", "CreateMultipartUpload"),
                    ("s3", "AbortMultipartUpload"),
                    ("sagemaker", "DescribeEndpoint"),
                    ("sagemaker-runtime", "InvokeEndpoint"),
                )
            }
            for number in range(1000):
                worker.image_handler.check(worker.request(scene, "ships", job_id=f"job-{number}"))
        assert {name: len(made) for name, made in calls.items()} == dict.fromkeys(calls, 1)
        assert received == [], "the model got a call"

    def test_cold_job_describes_its_endpoint_once(self, worker, scene, endpoint, clients):
        sagemaker = clients.client("sagemaker")
        with answering(sagemaker, "DescribeEndpoint", None) as calls, answering(sagemaker, "ListTags", None) as tags:
            worker.image_handler.process_image_request(worker.request(scene, endpoint))
        assert (len(calls), len(tags)) == (1, 1)
        assert worker.capacities.known_calls(worker.request(scene, endpoint)) == 2

    def test_cold_job_describes_its_component_once(self, worker, scene, endpoint, clients):
        sagemaker = clients.client("sagemaker")
        document = {"InferenceComponentStatus": "InService", "EndpointName": endpoint}
        component = json_answer(document | {"RuntimeConfig": {"CurrentCopyCount": 3}})
        request = worker.request(scene, endpoint, imageProcessorParameters={"InferenceComponentName": "part"})
        with (
            answering(sagemaker, "DescribeEndpoint", None) as endpoints,
            answering(sagemaker, "DescribeInferenceComponent", component) as components,
        ):
            worker.plan(request)
        assert (len(endpoints), len(components)) == (1, 1)
        assert worker.capacities.known_calls(request) == 6

    def test_missing_endpoint_is_looked_up_once_and_leaves_no_row(self, worker, scene, clients):
        with answering(clients.client("sagemaker"), "DescribeEndpoint", None) as calls:
            assert len(refusal(worker, scene, "no-such-endpoint")) == 1
            worker.capacities.refresh()
        assert len(calls) == 1
        assert [row for row in worker.outstanding_jobs.scan() if "no-such-endpoint" in row["job_id"]] == []

    def test_endpoint_that_fleet_has_described_is_not_described_again(
        self, worker, scene, endpoint, clients, data_plane
    ):
        worker.image_handler.process_image_request(worker.request(scene, endpoint))
        other = InProcessWorker(data_plane.environment, clients, worker.clock, "other")
        other.outputs = worker.outputs
        with answering(clients.client("sagemaker"), "DescribeEndpoint", None) as calls:
            other.image_handler.check(other.request(scene, endpoint, job_id="second"))
            assert calls == []
            worker.clock.ahead_s += 10
            parameters = {"TargetVariant": "green"}
            assert len(refusal(other, scene, endpoint, imageProcessorParameters=parameters, job_id="third")) == 1
        assert len(calls) == 1, "nothing is refused for what was seen minutes ago"
        other.close()

    def test_findings_are_cached_and_unknown_ones_shorter(self, worker, scene, endpoint, clients):
        now = [0.0]
        worker.image_handler.parts = dataclasses.replace(
            worker.image_handler.parts, preflight=worker.new_preflight(now=lambda: now[0])
        )
        request = worker.request(scene, endpoint)
        described = answering(clients.client("sagemaker"), "DescribeEndpoint", json_error("AccessDeniedException"))
        with described as endpoints, answering(clients.client("s3"), "CreateMultipartUpload", None) as buckets:
            for at_s in (0, 29, 31, 299, 301):
                now[0] = at_s
                worker.image_handler.check(request)
        assert (len(endpoints), len(buckets)) == (3, 2)


def test_hanging_check_does_not_delay_other_checks() -> None:
    for_ever = threading.Event()
    assert at_once([lambda: for_ever.wait(60), lambda: True], 1.0) == [None, True]
    for_ever.set()


class TestPayload:
    """Tiles that no call can carry are found in the plan."""

    @pytest.fixture
    def wide(self, tmp_path) -> Path:
        """Eight bands of sixteen bits."""
        import numpy as np

        from aws.osml.model_runner.raster import write_geotiff

        write_geotiff(tmp_path / "wide.tif", np.zeros((8, 1100, 1100), np.uint16))
        return tmp_path / "wide.tif"

    def plan(self, worker: InProcessWorker, image: Path, endpoint: str, **changes: Any) -> str:
        """Plan an image and return why it failed."""
        settings = {"imageProcessorTileSize": 1024, "imageProcessorTileFormat": "GTIFF"} | changes
        request = worker.request(image, endpoint, **settings)
        try:
            worker.image_handler.process_image_request(request)
        except ProcessImageException as err:
            return str(err)
        return ""

    def test_refusal_of_too_large_tile_names_smallest_change(self, worker, wide, endpoint):
        reason = self.plan(worker, wide, endpoint)
        assert reason == (
            "no tile fits into a call of the endpoint; imageProcessorTileSize=1024: a tile of at most 6291456 bytes,"
            " which the endpoint takes; 1024 x 1024 pixels with 8 band(s) of UInt16 have 16777216: use"
            " imageProcessorTileSize 608, or a format that compresses (NITF/J2K or GTIFF/LZW)"
        )
        assert self.plan(worker, wide, endpoint, imageProcessorTileSize=608, job_id="fits") == ""

    def test_compressed_tile_is_not_judged_beforehand(self, worker, wide, endpoint):
        assert self.plan(worker, wide, endpoint, imageProcessorTileCompression="LZW") == ""

    def test_http_endpoints_have_no_limit(self, worker, wide, model_server):
        assert self.plan(worker, wide, model_server("centerpoint").invocations_url) == ""

    def test_header_decides_where_pixels_just_fit(self, worker, wide, endpoint, clients, data_plane):
        pixels = 256 * 256 * 16
        for limit, is_refused in ((pixels, True), (pixels + 10_000, False)):
            tight = InProcessWorker(data_plane.environment, clients, Clock(), SM_MAX_BODY=str(limit))
            tight.outputs = worker.outputs
            settings = {"imageProcessorTileSize": 256, "job_id": f"job-{limit}"}
            assert bool(self.plan(tight, wide, endpoint, **settings)) is is_refused
            tight.close()

    def test_serverless_endpoint_has_smaller_limit(self, worker, wide, gateway, model_server):
        url = model_server("centerpoint").invocations_url
        gateway.add_endpoint("cheap", LocalEndpoint(url, (Variant("v", max_concurrency=5),)))
        assert self.plan(worker, wide, "cheap", imageProcessorTileSize=480) == ""
        assert "at most 4194304 bytes" in self.plan(worker, wide, "cheap", imageProcessorTileSize=608, job_id="large")

    def test_compressed_tile_is_measured_when_endpoint_is_serverless(self, worker, wide, gateway, model_server):
        model = model_server("centerpoint")
        gateway.add_endpoint("cheap", LocalEndpoint(model.invocations_url, (Variant("v", max_concurrency=5),)))
        request = worker.request(wide, "cheap", imageProcessorTileSize=1024, imageProcessorTileFormat="GTIFF")
        worker.capacities.choose_variant(request)
        with pytest.raises(ModelCallError) as caught:
            worker.model_endpoints.detector_for(request).invoke(bytes(MAX_SERVERLESS_BODY_BYTES + 1))
        assert caught.value.code == "TILE_TOO_LARGE"
        assert "the endpoint takes at most 4194304" in str(caught.value)
