"""The example that sends a request and waits, run as a user runs it, against a stand-in for the worker."""

import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[3] / "examples" / "submit_and_wait.py"
URLS = ["https://host/a.tif?token=1", "s3://images/b.tif"]


@pytest.fixture
def submit(emulator, data_plane, tmp_path):
    def submitted(request, statuses, results=()):
        """Run the example; the worker publishes ``statuses``, (status, image id, text) each."""

        def work():
            sqs = emulator.client("sqs")
            [message] = sqs.receive_message(QueueUrl=data_plane.image_queue, WaitTimeSeconds=20)["Messages"]
            sqs.delete_message(QueueUrl=data_plane.image_queue, ReceiptHandle=message["ReceiptHandle"])
            for key in results:
                emulator.client("s3").put_object(Bucket=data_plane.result_bucket, Key=key, Body=key.encode())
            for status, image_id, text in statuses:
                attributes = {"status": status, "job_id": request["jobId"]} | (
                    {"image_id": image_id} if image_id else {}
                )
                emulator.client("sns").publish(
                    TopicArn=data_plane.image_status_topic,
                    Message=f"StatusMonitor update: {status} {request['jobId']}: {text}",
                    MessageAttributes={
                        name: {"DataType": "String", "StringValue": value} for name, value in attributes.items()
                    },
                )

        (tmp_path / "request.json").write_text(json.dumps(request))
        worker = threading.Thread(target=work)
        worker.start()
        addresses = ["--queue-url", data_plane.image_queue, "--topic-arn", data_plane.image_status_topic]
        command = [sys.executable, str(SCRIPT), "request.json", *addresses, "--directory", "results"]
        environment = {**os.environ, **emulator.environment, "NO_PROXY": "127.0.0.1"}
        ended = subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60, check=False
        )
        worker.join()
        return ended

    return submitted


def request(data_plane, urls):
    return {
        "jobId": "job-1",
        "imageUrls": urls,
        "outputs": [
            {"type": "S3", "bucket": data_plane.result_bucket, "prefix": "p"},
            {"type": "S3", "bucket": data_plane.result_bucket, "prefix": "p", "format": "GEOPARQUET"},
        ],
    }


def test_refused_request_ends_wait_with_its_reason(submit, data_plane):
    refusal = ("FAILED", None, "the image request is not valid; imageProcessorTileSize=5: a number of at least 16")
    ended = submit(request(data_plane, URLS[:1]), [refusal])
    assert (ended.returncode, ended.stderr) == (1, "")
    assert f"FAILED job-1 {refusal[2]}" in ended.stdout


def test_results_of_every_format_are_fetched_when_all_images_have_ended(submit, data_plane, tmp_path):
    endings = [
        ("STARTED", "job-1:https://host/a.tif#212b674cbe97ccc8", "Started"),
        ("SUCCESS", "job-1:https://host/a.tif#212b674cbe97ccc8", "Completed image processing"),
        ("PARTIAL", "job-1:s3://images/b.tif", "1 of 9 tiles failed: BAD_RESPONSE 1"),
    ]
    names = ["a.tif.geojson", "a.tif.parquet", "b.tif.geojson"]
    ended = submit(request(data_plane, URLS), endings, [f"p/job-1/{name}" for name in names] + ["p/job-10.geojson"])
    assert (ended.returncode, ended.stderr) == (1, "")
    assert "PARTIAL job-1:s3://images/b.tif 1 of 9 tiles failed: BAD_RESPONSE 1" in ended.stdout
    assert sorted(os.listdir(tmp_path / "results")) == names
