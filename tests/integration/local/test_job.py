"""Following a job from the outside, against a stand-in that writes what a worker writes."""

import json
import threading

import pytest

from aws.osml.model_runner.common.typing import RequestStatus
from aws.osml.model_runner.exceptions import LocalStackError
from aws.osml.model_runner.local.job import JobRun
from aws.osml.model_runner.local.stack.data_plane import DataPlane

IMAGE = "s3://images/a.tif"


def request_for(data_plane, job_id="job-1"):
    output = {"type": "S3", "bucket": data_plane.result_bucket, "prefix": job_id}
    return {"jobId": job_id, "imageUrls": [IMAGE], "outputs": [output]}


def publish(emulator, data_plane, status, message, job_id="job-1", image_id=None):
    attributes = {"status": status, "job_id": job_id, "image_id": image_id or f"{job_id}:{IMAGE}"}
    emulator.client("sns").publish(
        TopicArn=data_plane.image_status_topic,
        Message=f"StatusMonitor update: {status} {job_id}: {message}",
        MessageAttributes={name: {"DataType": "String", "StringValue": text} for name, text in attributes.items()},
    )


def put_tile(emulator, data_plane, number, image_id=f"job-1:{IMAGE}"):
    item = {"hash_key": f"{image_id}-{number % 50 + 1}", "range_key": f"region#{number:06}", "tile_status": "SUCCEEDED"}
    table = data_plane.environment["FEATURE_TABLE"]
    emulator.client("dynamodb").put_item(TableName=table, Item={key: {"S": value} for key, value in item.items()})


def put_job(emulator, data_plane, **numbers):
    item = {"image_id": {"S": f"job-1:{IMAGE}"}} | {name: {"N": str(value)} for name, value in numbers.items()}
    emulator.client("dynamodb").put_item(TableName=data_plane.environment["JOB_TABLE"], Item=item)


def test_job_is_followed_from_request_to_result(emulator, data_plane):
    reports, sqs = [], emulator.client("sqs")

    def work():
        [message] = sqs.receive_message(QueueUrl=data_plane.image_queue, WaitTimeSeconds=10)["Messages"]
        assert json.loads(message["Body"]) == request_for(data_plane)
        publish(emulator, data_plane, "STARTED", "Started image request")
        publish(emulator, data_plane, "FAILED", "another job", job_id="job-2")
        publish(emulator, data_plane, "FAILED", "another image", image_id="job-1:s3://images/b.tif")
        put_job(emulator, data_plane, tile_count=3)
        for number in range(2):
            put_tile(emulator, data_plane, number)
        put_tile(emulator, data_plane, 0, image_id="job-2:other")
        publish(emulator, data_plane, "IN_PROGRESS", "Processing regions")
        half_way.wait(10)
        put_tile(emulator, data_plane, 2)
        put_job(emulator, data_plane, tile_count=3, tile_success=2, tile_error=1)
        body = json.dumps({"type": "FeatureCollection", "features": [{"type": "Feature"}]})
        emulator.client("s3").put_object(Bucket=data_plane.result_bucket, Key="job-1/job-1.geojson", Body=body)
        publish(emulator, data_plane, "PARTIAL", "Completed image processing")

    half_way = threading.Event()

    def watch(progress):
        reports.append(progress)
        if progress.tiles_done == 2:
            half_way.set()

    worker = threading.Thread(target=work)
    worker.start()
    outcome = JobRun(emulator.client, data_plane, request_for(data_plane)).run(watch, timeout_s=30)
    worker.join()
    assert (outcome.status, outcome.message) == (RequestStatus.PARTIAL, "Completed image processing")
    assert (outcome.tiles_succeeded, outcome.tiles_failed) == (2, 1)
    assert outcome.location == f"s3://{data_plane.result_bucket}/job-1/job-1.geojson"
    assert outcome.features == [{"type": "Feature"}]
    assert outcome.duration_s >= 0
    assert (2, 3) in {(report.tiles_done, report.tiles_total) for report in reports}
    assert (reports[-1].tiles_done, reports[-1].tiles_total) == (3, 3)


def test_refused_request_ends_with_reason_and_without_result(emulator, data_plane):
    run = JobRun(emulator.client, data_plane, request_for(data_plane), check_alive=lambda: publish_once())
    published = []

    def publish_once():
        if not published:
            published.append(True)
            publish(emulator, data_plane, "FAILED", "tile size is wrong")

    outcome = run.run(timeout_s=30)
    assert (outcome.status, outcome.message) == (RequestStatus.FAILED, "tile size is wrong")
    assert (outcome.location, outcome.features) == (None, [])


def test_image_has_its_public_url():
    request = {"jobId": "job-1", "imageUrls": ["https://host/a.tif?token=1"]}
    expected = "job-1:https://host/a.tif#212b674cbe97ccc8"
    assert JobRun(lambda _: None, DataPlane("", {}), request).image_id == expected


def test_stack_that_dies_ends_wait(emulator, data_plane):
    def is_dead():
        raise LocalStackError("worker-0 ended with exit code 1")

    with pytest.raises(LocalStackError, match="worker-0 ended"):
        JobRun(emulator.client, data_plane, request_for(data_plane), is_dead).run()


def test_job_is_abandoned_when_it_never_ends(emulator, data_plane):
    with pytest.raises(LocalStackError, match="has not ended after 1 s: 0 of an unknown number of tiles done"):
        JobRun(emulator.client, data_plane, request_for(data_plane)).run(timeout_s=1)
