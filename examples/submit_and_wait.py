"""Sends an image request, follows its status, and fetches the results: boto3 and nothing else.

    python examples/submit_and_wait.py examples/image-request.json --queue-url … --topic-arn …

The addresses are the outputs IMAGE_QUEUE and IMAGE_STATUS_TOPIC of deploy/data-plane.yaml. With AWS_ENDPOINT_URL it
calls an emulator. It needs s3:ListBucket and s3:GetObject for the results.
"""

import argparse
import json
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote

import boto3

TERMINAL = {"SUCCESS", "PARTIAL", "FAILED"}


class Status(NamedTuple):
    """A status message. ``image_id`` is empty where the request was refused, since no image belongs to it."""

    status: str
    job_id: str
    image_id: str
    percent: str
    text: str


def main() -> int:
    """Return 0 when every image of the request ended with SUCCESS."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("request", type=Path, help="an image request in a file")
    parser.add_argument("--queue-url", required=True, help="IMAGE_QUEUE of the worker")
    parser.add_argument("--topic-arn", required=True, help="IMAGE_STATUS_TOPIC of the worker")
    parser.add_argument("--directory", type=Path, default=Path(), help="where results go")
    arguments = parser.parse_args()
    request = json.loads(arguments.request.read_text())
    sqs = boto3.client("sqs")
    watch_url = subscribe(sqs, arguments.topic_arn)  # before the request, so that no status is missed
    try:
        sqs.send_message(QueueUrl=arguments.queue_url, MessageBody=json.dumps(request))
        endings = wait(sqs, watch_url, request)
    finally:
        sqs.delete_queue(QueueUrl=watch_url)
    if endings & {"SUCCESS", "PARTIAL"}:
        fetch(request, arguments.directory)
    return 0 if endings == {"SUCCESS"} else 1


def subscribe(sqs: "boto3.client", topic_arn: str) -> str:
    """Make a queue that gets what the topic publishes, and return its URL."""
    url = sqs.create_queue(QueueName=f"watch-{uuid.uuid4().hex}")["QueueUrl"]
    arn = sqs.get_queue_attributes(QueueUrl=url, AttributeNames=["QueueArn"])["Attributes"]["QueueArn"]
    statement = {
        "Effect": "Allow",
        "Principal": {"Service": "sns.amazonaws.com"},
        "Action": "sqs:SendMessage",
        "Resource": arn,
        "Condition": {"ArnEquals": {"aws:SourceArn": topic_arn}},
    }
    policy = json.dumps({"Version": "2012-10-17", "Statement": [statement]})
    sqs.set_queue_attributes(QueueUrl=url, Attributes={"Policy": policy})
    boto3.client("sns").subscribe(TopicArn=topic_arn, Protocol="sqs", Endpoint=arn)
    return url


def wait(sqs: "boto3.client", watch_url: str, request: dict) -> set[str]:
    """Print each status until all images have ended, or the request is refused; return the terminal statuses."""
    job_id, endings = request["jobId"], {}
    while len(endings) < len(set(request["imageUrls"])):
        for status in statuses(sqs, watch_url):
            if status.job_id != job_id:
                continue
            print(status.status, status.image_id or job_id, f"{status.percent} %" if status.percent else status.text)
            if status.status in TERMINAL:
                endings[status.image_id] = status.status
            if not status.image_id:
                return {status.status}
    return set(endings.values())


def statuses(sqs: "boto3.client", watch_url: str) -> Iterator[Status]:
    """Yield the status messages that are there, after a wait of 10 s at most."""
    answer = sqs.receive_message(QueueUrl=watch_url, MaxNumberOfMessages=10, WaitTimeSeconds=10)
    for message in answer.get("Messages", []):
        sqs.delete_message(QueueUrl=watch_url, ReceiptHandle=message["ReceiptHandle"])
        envelope = json.loads(message["Body"])
        found = {name: entry["Value"] for name, entry in envelope["MessageAttributes"].items()}
        status, job_id = found["status"], found["job_id"]
        text = envelope["Message"].removeprefix(f"StatusMonitor update: {status} {job_id}: ")
        yield Status(status, job_id, found.get("image_id", ""), found.get("percent", ""), text)


def fetch(request: dict, directory: Path) -> None:
    """Download what is in S3 of each output, whatever its format."""
    s3, job = boto3.client("s3"), quote(request["jobId"], safe="._:-")
    name = f"{job}." if len(request["imageUrls"]) == 1 else f"{job}/"
    directory.mkdir(parents=True, exist_ok=True)
    for output in request["outputs"]:
        if output["type"] != "S3":
            continue
        prefix = output.get("prefix", "")
        whole = f"{prefix}{'/' if prefix and not prefix.endswith('/') else ''}{name}"
        for page in s3.get_paginator("list_objects_v2").paginate(Bucket=output["bucket"], Prefix=whole):
            for found in page.get("Contents", []):
                target = directory / Path(found["Key"]).name
                s3.download_file(output["bucket"], found["Key"], str(target))
                print(f"s3://{output['bucket']}/{found['Key']} is in {target}")


if __name__ == "__main__":
    sys.exit(main())
