"""Sends an image request, follows its status, and fetches the results: boto3 and nothing else.

    python examples/submit_and_wait.py examples/image-request.json --queue-url … --topic-arn …

The addresses are the outputs IMAGE_QUEUE and IMAGE_STATUS_TOPIC of deploy/data-plane.yaml. With AWS_ENDPOINT_URL it
speaks to an emulator. Of images with the same file name only the first one's result is fetched.
"""

import argparse
import json
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import boto3

TERMINAL = {"SUCCESS", "PARTIAL", "FAILED"}


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
    for bucket, key in results(request, endings):
        target = arguments.directory / Path(key).name
        boto3.client("s3").download_file(bucket, key, str(target))
        print(f"s3://{bucket}/{key} is in {target}")
    return 0 if set(endings.values()) == {"SUCCESS"} else 1


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


def wait(sqs: "boto3.client", watch_url: str, request: dict) -> dict[str, str]:
    """Print each status of the job until all its images have ended; return how, by image id."""
    job_id = request["jobId"]
    images = {f"{job_id}:{url}" for url in request["imageUrls"]}
    endings: dict[str, str] = {}
    while not images <= endings.keys():
        for attributes in statuses(sqs, watch_url):
            if attributes.get("job_id") != job_id:
                continue
            image_id, status = attributes["image_id"], attributes["status"]
            print(status, image_id, f"{attributes['percent']} %" if "percent" in attributes else "")
            if status in TERMINAL:
                endings[image_id] = status
            if image_id == job_id:  # no image's status: the request itself was refused
                return endings
    return endings


def statuses(sqs: "boto3.client", watch_url: str) -> Iterator[dict[str, str]]:
    """Yield the attributes of the status messages that are there, after a wait of 10 s at most."""
    answer = sqs.receive_message(QueueUrl=watch_url, MaxNumberOfMessages=10, WaitTimeSeconds=10)
    for message in answer.get("Messages", []):
        sqs.delete_message(QueueUrl=watch_url, ReceiptHandle=message["ReceiptHandle"])
        envelope = json.loads(message["Body"])
        yield {name: entry["Value"] for name, entry in envelope["MessageAttributes"].items()}


def results(request: dict, endings: dict[str, str]) -> Iterator[tuple[str, str]]:
    """Yield the bucket and the key of each result in S3; images that failed have none."""
    job, urls = quote(request["jobId"], safe="._:-"), request["imageUrls"]
    done = [url for url in urls if endings.get(f"{request['jobId']}:{url}") in ("SUCCESS", "PARTIAL")]
    names = [job if len(urls) == 1 else f"{job}/{quote(Path(url).name, safe='._:-')}" for url in done]
    for output in request["outputs"]:
        if output["type"] == "S3":
            prefix = output.get("prefix", "").rstrip("/")
            yield from ((output["bucket"], f"{prefix}/{name}.geojson".lstrip("/")) for name in names)


if __name__ == "__main__":
    sys.exit(main())
