"""Queues, tables, topics, buckets and stream on the emulator, made from the template that AWS gets."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml

from aws.osml.model_runner.local.exceptions import LocalStackError

TEMPLATE_NAME = "data-plane.yaml"
POLL_S = 0.05
CREATE_TIMEOUT_S = 60.0
# On AWS these parameters protect data; the emulator forgets everything at its end.
LOCAL_PARAMETERS = {"PointInTimeRecovery": "false", "StreamMode": "PROVISIONED"}


@dataclass(frozen=True)
class DataPlane:
    """What a stack has made. ``environment`` maps a worker's variable to the name, URL or ARN that it takes."""

    name: str
    environment: Mapping[str, str]

    @property
    def image_queue(self) -> str:
        """URL of the queue for image requests."""
        return self.environment["IMAGE_QUEUE"]

    @property
    def image_status_topic(self) -> str:
        """ARN of the topic on which image status is published."""
        return self.environment["IMAGE_STATUS_TOPIC"]

    @property
    def result_bucket(self) -> str:
        """Name of the bucket for results."""
        return self.environment["RESULT_BUCKET"]

    @property
    def result_stream(self) -> str:
        """Name of the Kinesis stream for results."""
        return self.environment["RESULT_STREAM"]


def template_text() -> str:
    """Return the data-plane template: from the package when installed, from ``deploy/`` in a checkout."""
    here = Path(__file__).resolve()
    installed = here.with_name(TEMPLATE_NAME)
    in_checkout = [parent / "deploy" / TEMPLATE_NAME for parent in here.parents if (parent / "pyproject.toml").exists()]
    for path in (installed, *in_checkout):
        if path.exists():
            return path.read_text()
    raise LocalStackError(f"the template {TEMPLATE_NAME} is neither beside {here} nor in a checkout's deploy/")


def create_data_plane(
    client: Callable[[str], Any],
    name: str = "model-runner",
    parameters: Mapping[str, str] = LOCAL_PARAMETERS,
    template: str | None = None,
) -> DataPlane:
    """Create the stack ``name`` and return what it made, once everything in it is ready.

    ``client`` gives the AWS client of a service. Physical names derive from the stack's name, so several data planes
    live side by side on one emulator. LocalStackError tells which resource failed and why.
    """
    cloudformation = client("cloudformation")
    body = template or template_text()
    cloudformation.create_stack(
        StackName=name,
        TemplateBody=body,
        Parameters=[{"ParameterKey": key, "ParameterValue": value} for key, value in parameters.items()],
    )
    outputs = _wait_for_outputs(cloudformation, name)
    _complete_time_to_live(cloudformation, client("dynamodb"), name, body)
    return DataPlane(name, {output["Description"]: output["OutputValue"] for output in outputs})


def _wait_for_outputs(cloudformation: Any, name: str) -> list[dict[str, str]]:
    # botocore's own waiter looks every 30 s; the emulator is done in a fraction of one.
    deadline = time.monotonic() + CREATE_TIMEOUT_S
    while True:
        stack = cloudformation.describe_stacks(StackName=name)["Stacks"][0]
        if stack["StackStatus"] == "CREATE_COMPLETE":
            outputs: list[dict[str, str]] = stack["Outputs"]
            return outputs
        if stack["StackStatus"] != "CREATE_IN_PROGRESS":
            raise LocalStackError(f"stack {name}: {stack['StackStatus']}; {_failures(cloudformation, name)}")
        if time.monotonic() > deadline:
            raise LocalStackError(f"stack {name} was not complete after {CREATE_TIMEOUT_S:.0f} s")
        time.sleep(POLL_S)


def _failures(cloudformation: Any, name: str) -> str:
    events = cloudformation.describe_events(StackName=name)["OperationEvents"]
    reasons = [event.get("ValidationStatusReason") or event.get("ResourceStatusReason") for event in events]
    pairs = zip((event.get("LogicalResourceId", "?") for event in events), reasons, strict=True)
    return "; ".join(f"{resource}: {reason}" for resource, reason in pairs if reason)


class _TemplateLoader(yaml.SafeLoader):
    """Reads a template without evaluating it: ``!Ref X`` and its like become null."""


_TemplateLoader.add_multi_constructor("!", lambda *_: None)


def _complete_time_to_live(cloudformation: Any, dynamodb: Any, name: str, template: str) -> None:
    """Switch on the time to live that the template asks for: the emulator's CloudFormation leaves it out."""
    for logical_id, specification in _times_to_live(template).items():
        found = cloudformation.describe_stack_resource(StackName=name, LogicalResourceId=logical_id)
        table = found["StackResourceDetail"]["PhysicalResourceId"]
        status = dynamodb.describe_time_to_live(TableName=table)["TimeToLiveDescription"]["TimeToLiveStatus"]
        if status == "DISABLED":
            dynamodb.update_time_to_live(TableName=table, TimeToLiveSpecification=specification)


@lru_cache(maxsize=4)
def _times_to_live(template: str) -> Mapping[str, Any]:
    """Return the time to live of each table that has one, by logical id; parsing takes longer than the rest."""
    resources = yaml.load(template, Loader=_TemplateLoader)["Resources"]  # noqa: S506 - derived from SafeLoader
    found = {name: one.get("Properties", {}).get("TimeToLiveSpecification") for name, one in resources.items()}
    return {name: specification for name, specification in found.items() if specification is not None}
