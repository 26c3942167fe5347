"""Queues, tables, topics, buckets and stream on the emulator, made from the template that AWS gets."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from aws.osml.model_runner.exceptions import LocalStackError

TEMPLATE_NAME = "data-plane.yaml"
POLL_S = 0.05
CREATE_TIMEOUT_S = 60.0
# On AWS these parameters protect data; the emulator loses all data when it ends.
LOCAL_PARAMETERS = {"PointInTimeRecovery": "false", "DeletionProtection": "false", "StreamMode": "PROVISIONED"}


@dataclass(frozen=True)
class DataPlane:
    """The resources of a stack. ``environment`` maps a worker's variable to the name, URL or ARN of a resource."""

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
    """Create the stack ``name`` and return its resources when all of them are ready.

    ``client`` returns the AWS client of a service. Physical names contain the stack's name, so one emulator can hold
    several data planes. Raises LocalStackError with the resources that failed and the reasons.
    """
    cloudformation = client("cloudformation")
    body = template or template_text()
    cloudformation.create_stack(
        StackName=name,
        TemplateBody=body,
        Parameters=[{"ParameterKey": key, "ParameterValue": value} for key, value in parameters.items()],
    )
    outputs = _wait_for_outputs(cloudformation, name)
    # The emulator's CloudFormation omits the time to live of a table.
    dynamodb = client("dynamodb")
    for logical_id, specification in _times_to_live(body).items():
        resource = cloudformation.describe_stack_resource(StackName=name, LogicalResourceId=logical_id)
        table = resource["StackResourceDetail"]["PhysicalResourceId"]
        status = dynamodb.describe_time_to_live(TableName=table)["TimeToLiveDescription"]["TimeToLiveStatus"]
        if status == "DISABLED":
            dynamodb.update_time_to_live(TableName=table, TimeToLiveSpecification=specification)
    return DataPlane(name, {output["Description"]: output["OutputValue"] for output in outputs})


def _wait_for_outputs(cloudformation: Any, name: str) -> list[dict[str, str]]:
    # botocore's waiter polls every 30 s; the emulator needs a fraction of a second.
    deadline = time.monotonic() + CREATE_TIMEOUT_S
    while True:
        stack = cloudformation.describe_stacks(StackName=name)["Stacks"][0]
        if stack["StackStatus"] == "CREATE_COMPLETE":
            outputs: list[dict[str, str]] = stack["Outputs"]
            return outputs
        if stack["StackStatus"] != "CREATE_IN_PROGRESS":
            failures = [
                f"{event.get('LogicalResourceId', '?')}: {reason}"
                for event in cloudformation.describe_events(StackName=name)["OperationEvents"]
                if (reason := event.get("ValidationStatusReason") or event.get("ResourceStatusReason"))
            ]
            raise LocalStackError(f"stack {name}: {stack['StackStatus']}; {'; '.join(failures)}")
        if time.monotonic() > deadline:
            raise LocalStackError(f"stack {name} was not complete after {CREATE_TIMEOUT_S:.0f} s")
        time.sleep(POLL_S)


@lru_cache(maxsize=4)
def _times_to_live(template: str) -> Mapping[str, Any]:
    """Return the time to live of each table that has one, by logical id. Cached, because parsing is slow."""
    import yaml  # of the extra local, which the server of a model does without

    class TemplateLoader(yaml.SafeLoader):
        """Reads a template without evaluating it: ``!Ref X`` and other tags become null."""

    TemplateLoader.add_multi_constructor("!", lambda *_: None)
    resources = yaml.load(template, Loader=TemplateLoader)["Resources"]  # noqa: S506 - derived from SafeLoader
    specifications = {
        name: resource.get("Properties", {}).get("TimeToLiveSpecification") for name, resource in resources.items()
    }
    return {name: specification for name, specification in specifications.items() if specification is not None}
