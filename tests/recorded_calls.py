"""AWS calls of a worker process, as actions and resources of IAM policies.

A worker process records its calls when the folder of ``recorder`` is first on its PYTHONPATH.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

ACCOUNT = "000000000000"
REGION = "us-west-2"
_RECORDER = '''\
"""Writes a line for each call of botocore: its service, its operation, and its arguments."""
import json
import os

import botocore.client

make_api_call = botocore.client.BaseClient._make_api_call


def recorded(self, operation, arguments):
    with open(os.environ["RECORDED_CALLS"], "a") as lines:
        lines.write(json.dumps([self.meta.service_model.service_name, operation, arguments], default=repr) + "\\n")
    return make_api_call(self, operation, arguments)


botocore.client.BaseClient._make_api_call = recorded
'''
# IAM names these actions otherwise than the operations.
_ACTIONS = {
    ("sqs", "SendMessageBatch"): "SendMessage",
    ("s3", "HeadObject"): "GetObject",
    ("s3", "HeadBucket"): "ListBucket",
    ("s3", "ListObjectsV2"): "ListBucket",
    ("s3", "CreateMultipartUpload"): "PutObject",
    ("s3", "UploadPart"): "PutObject",
    ("s3", "CompleteMultipartUpload"): "PutObject",
}


class Call(NamedTuple):
    """An action of IAM, such as ``sqs:SendMessage``, and the ARN of its resource."""

    action: str
    resource: str


def recorder(folder: Path) -> dict[str, str]:
    """Write the recorder into a folder, and return the variables with which a worker process uses it."""
    (folder / "sitecustomize.py").write_text(_RECORDER)
    return {"PYTHONPATH": str(folder), "RECORDED_CALLS": str(folder / "calls.jsonl")}


def calls(folder: Path) -> set[Call]:
    """Return what the worker processes of a folder have called."""
    lines = [json.loads(line) for line in (folder / "calls.jsonl").read_text().splitlines()]
    return {call for service, operation, arguments in lines for call in _calls(service, operation, arguments)}


def _calls(service: str, operation: str, arguments: dict[str, Any]) -> Iterator[Call]:
    if service == "dynamodb":
        for name, table in _table_actions(operation, arguments):
            yield Call(f"dynamodb:{name}", f"arn:aws:dynamodb:{REGION}:{ACCOUNT}:table/{table}")
        return
    action = f"{service.removesuffix('-runtime')}:{_ACTIONS.get((service, operation), operation)}"
    if service == "sqs":
        resource = f"arn:aws:sqs:{REGION}:{ACCOUNT}:{arguments['QueueUrl'].rpartition('/')[2]}"
    elif service == "s3":
        resource = "arn:aws:s3:::" + "/".join(filter(None, (arguments["Bucket"], arguments.get("Key"))))
    elif service == "kinesis":
        resource = f"arn:aws:kinesis:{REGION}:{ACCOUNT}:stream/{arguments['StreamName']}"
    elif service.startswith("sagemaker"):
        name = arguments.get("EndpointName", "")
        resource = arguments.get("ResourceArn") or f"arn:aws:sagemaker:{REGION}:{ACCOUNT}:endpoint/{name}"
    else:
        resource = arguments.get("TopicArn") or arguments["RoleArn"]
    yield Call(action, resource)


def _table_actions(operation: str, arguments: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield (action, table): a transaction needs the permission of each of its parts."""
    if operation in ("TransactWriteItems", "TransactGetItems"):
        for item in arguments["TransactItems"]:
            ((kind, part),) = item.items()
            yield ("ConditionCheckItem" if kind == "ConditionCheck" else f"{kind}Item"), part["TableName"]
    elif "RequestItems" in arguments:
        yield from ((operation, table) for table in arguments["RequestItems"])
    else:
        yield operation, arguments["TableName"]
