"""deploy/service.yaml on the emulator: its resources, and its role beside the calls of a real worker."""

import fnmatch
import json
import time
from pathlib import Path

import numpy as np
import pytest

from aws.osml.model_runner.config import ServiceConfig
from aws.osml.model_runner.local.stack.data_plane import create_data_plane
from aws.osml.model_runner.local.stack.emulator import SERVICES, Emulator
from aws.osml.model_runner.local.stack.model_server import ModelServer, create_model
from aws.osml.model_runner.local.stack.sagemaker_gateway import LocalEndpoint, SageMakerGateway
from aws.osml.model_runner.raster.pixels import write_geotiff
from recorded_calls import ACCOUNT, REGION, calls, recorder
from template_json import template_json, template_of
from worker_process import Site, eventually, kill

SERVICE = Path(__file__).parents[3] / "deploy" / "service.yaml"
DIGEST = "sha256:" + "0" * 64
ENDPOINT = f"arn:aws:sagemaker:{REGION}:{ACCOUNT}:endpoint/flood"
# The emulator lacks scaling and metric math, and compares numbers only if they are literal.
NOT_IN_EMULATOR = ("ScalableTarget", "ScalingPolicy", "StandstillAlarm")

# Permissions that no call of the job below needs, and what needs them.
UNSEEN = {
    ("FindImages", "s3:ListBucket"): "S3 returns 404 for a missing image only with this permission",
    ("ListLargeFeatures", "s3:ListBucket"): "S3 returns 404 for a missing object only with this permission",
    ("ReadImages", "s3:GetObject"): "GDAL reads images, not botocore",
    ("Queues", "sqs:SendMessage", "ImageRequestQueue"): "after ten releases a copy replaces the request",
    ("Queues", "sqs:ChangeMessageVisibility", "ImageRequestQueue"): "a request for a full endpoint waits in its queue",
    ("Roles", "sts:AssumeRole"): "only a request that names a role",
    ("Features", "dynamodb:Query"): "the row of an image that an earlier version queued has no plan of its tiles",
    ("Endpoints", "sagemaker:DescribeInferenceComponent"): "only a request that names a component",
    ("Key", "kms:Decrypt"): "the services call it for the role",
    ("Key", "kms:GenerateDataKey"): "the services call it for the role",
}


@pytest.fixture(scope="module")
def emulator(tmp_path_factory):
    """An emulator that has the services of the template too."""
    services = f"{SERVICES},cloudwatch,ecs,iam,logs,monitoring"
    with Emulator(tmp_path_factory.mktemp("emulator"), services=services) as running:
        yield running


@pytest.fixture(scope="module")
def site(emulator, tmp_path_factory):
    directory = tmp_path_factory.mktemp("service")
    return Site(emulator, create_data_plane(emulator.client, directory.name, template=template_json()), directory)


@pytest.fixture(scope="module")
def parameters(emulator, site):
    ec2 = emulator.client("ec2")
    vpc = ec2.create_vpc(CidrBlock="10.0.0.0/16")["Vpc"]["VpcId"]
    subnet = ec2.create_subnet(VpcId=vpc, CidrBlock="10.0.0.0/24")["Subnet"]["SubnetId"]
    stream = site.data_plane.environment["RESULT_STREAM_ARN"]
    return {
        "DataPlaneStack": site.data_plane.name,
        "Image": f"runner@{DIGEST}",
        "RepositoryArn": f"arn:aws:ecr:{REGION}:{ACCOUNT}:repository/runner",
        "ImageBucketArns": "arn:aws:s3:::images,arn:aws:s3:::more-images",
        "OutputBucketArns": "arn:aws:s3:::more-results",
        "OutputStreamArns": stream,
        "EndpointArns": ENDPOINT,
        "AssumableRoleArns": f"arn:aws:iam::{ACCOUNT}:role/reader",
        "VpcId": vpc,
        "SubnetIds": subnet,
        "CreatesEndpoints": "true",
        "RouteTableIds": "rtb-1",
    }


@pytest.fixture(scope="module")
def service(emulator, site, parameters):
    """The physical names of the stack's resources, by logical id."""
    template = template_of(SERVICE)
    for name in NOT_IN_EMULATOR:
        del template["Resources"][name]
    template["Resources"]["Service"]["Properties"]["CapacityProviderStrategy"][0]["Base"] = 1
    cloudformation, name = emulator.client("cloudformation"), f"{site.data_plane.name}-service"
    cloudformation.create_stack(
        StackName=name,
        TemplateBody=json.dumps(template, default=str),
        Parameters=[{"ParameterKey": key, "ParameterValue": value} for key, value in parameters.items()],
        Capabilities=["CAPABILITY_IAM"],
    )
    while (stack := cloudformation.describe_stacks(StackName=name)["Stacks"][0])["StackStatus"] == "CREATE_IN_PROGRESS":
        time.sleep(0.05)
    events = cloudformation.describe_stack_events(StackName=name)["StackEvents"]
    assert stack["StackStatus"] == "CREATE_COMPLETE", [event.get("ResourceStatusReason") for event in events]
    resources = cloudformation.describe_stack_resources(StackName=name)["StackResources"]
    return {item["LogicalResourceId"]: item["PhysicalResourceId"] for item in resources}


@pytest.fixture(scope="module")
def policies(emulator, service):
    """The policies of the workers' role, by name."""
    iam, role = emulator.client("iam"), service["TaskRole"]
    names = iam.list_role_policies(RoleName=role)["PolicyNames"]
    return {name: iam.get_role_policy(RoleName=role, PolicyName=name)["PolicyDocument"] for name in names}


@pytest.fixture(scope="module")
def recorded(emulator, site, tmp_path_factory):
    """Calls of two workers: a job over both outputs with one worker killed, a refused request, a broken region."""
    folder = tmp_path_factory.mktemp("recorded")
    image = folder / "scene.tif"
    write_geotiff(image, np.zeros((1, 700, 500), np.uint8), (0.0, 1e-5, 0.0, 0.0, 0.0, -1e-5), epsg=4326)
    s3 = emulator.client("s3")
    for bucket in ("images", "more-results"):
        s3.create_bucket(Bucket=bucket, CreateBucketConfiguration={"LocationConstraint": REGION})
    s3.upload_file(str(image), "images", "scene.tif")
    with (
        ModelServer(create_model("flood", count=1500)) as model,
        SageMakerGateway({"flood": LocalEndpoint(model.invocations_url)}) as gateway,
    ):
        settings = gateway.environment | recorder(folder)
        request = site.request(
            "s3://images/scene.tif",
            "flood",
            imageProcessor={"name": "flood", "type": "SM_ENDPOINT"},
            outputs=[
                {"type": "S3", "bucket": site.data_plane.result_bucket, "prefix": "out/"},
                {"type": "S3", "bucket": "more-results", "prefix": "out/"},
                {"type": "Kinesis", "stream": site.data_plane.result_stream},
            ],
        )
        with site.worker(**settings) as first:
            site.submit(request)
            eventually(lambda: len(site.rows("FEATURE_TABLE")) > 1)
            kill(first)
        with site.worker(**settings):
            site.submit("nonsense")
            site.client("sqs").send_message(
                QueueUrl=site.data_plane.environment["REGION_QUEUE"], MessageBody="nonsense"
            )
            assert site.wait_for_end(request["jobId"])[-1] == "SUCCESS"
            eventually(lambda: site.messages_in("REGION_DLQ") and site.messages_in("IMAGE_DLQ"))
    return calls(folder)


def test_task_runs_as_restricted_as_image_allows(emulator, service):
    task = emulator.client("ecs").describe_task_definition(taskDefinition=service["TaskDefinition"])["taskDefinition"]
    (container,) = task["containerDefinitions"]
    assert (container["user"], container["readonlyRootFilesystem"]) == ("10001:10001", True)
    assert container["mountPoints"] == [{"sourceVolume": "tmp", "containerPath": "/tmp"}]
    assert (task["cpu"], task["memory"], task["networkMode"]) == ("2048", "4096", "awsvpc")
    settings = {item["name"]: item["value"] for item in container["environment"]}
    config = ServiceConfig.from_environment(settings)
    assert config.shutdown_budget_s < container["stopTimeout"] <= 120
    assert config.assumable_roles == (f"arn:aws:iam::{ACCOUNT}:role/reader",)
    # The emulator drops these.
    template = template_of(SERVICE)["Resources"]["TaskDefinition"]["Properties"]["ContainerDefinitions"][0]
    assert template["LinuxParameters"] == {"Capabilities": {"Drop": ["ALL"]}}
    assert template["HealthCheck"]["Command"] == ["CMD", "model-runner", "health"]


def test_worker_of_task_finds_its_data_plane(emulator, site, service):
    task = emulator.client("ecs").describe_task_definition(taskDefinition=service["TaskDefinition"])["taskDefinition"]
    settings = {item["name"]: item["value"] for item in task["containerDefinitions"][0]["environment"]}
    names = set(site.data_plane.environment) & set(settings)
    assert {name: settings[name] for name in names} == {name: site.data_plane.environment[name] for name in names}
    assert {"IMAGE_QUEUE", "REGION_QUEUE", "JOB_TABLE", "FEATURE_TABLE", "WORK_BUCKET"} <= names


def test_every_call_of_worker_is_permitted(emulator, policies, recorded):
    iam, documents = emulator.client("iam"), [json.dumps(document) for document in policies.values()]
    decisions = {
        call: iam.simulate_custom_policy(
            PolicyInputList=documents, ActionNames=[call.action], ResourceArns=[call.resource]
        )["EvaluationResults"][0]["EvalDecision"]
        for call in recorded
    }
    assert len(recorded) > 30
    assert [call for call, decision in decisions.items() if decision != "allowed"] == []


def test_every_permission_is_used(policies, recorded):
    unused = set()
    for statement in (statement for document in policies.values() for statement in document["Statement"]):
        for action in _as_list(statement["Action"]):
            for resource in _as_list(statement["Resource"]):
                if not any(call.action == action and fnmatch.fnmatchcase(call.resource, resource) for call in recorded):
                    unused.add((statement["Sid"], action, resource))
    unexplained = [
        " ".join(entry)
        for entry in unused
        if entry[:2] not in UNSEEN and not any(_explains(key, entry) for key in UNSEEN)
    ]
    assert "\n".join(sorted(unexplained)) == ""


def test_role_is_no_wider_than_its_resources(policies):
    statements = [statement for document in policies.values() for statement in document["Statement"]]
    assert all("*" not in action for statement in statements for action in _as_list(statement["Action"]))
    assert all(resource != "*" for statement in statements for resource in _as_list(statement["Resource"]))


def test_alarms_and_endpoints_are_made(emulator, service):
    alarms = emulator.client("cloudwatch").describe_alarms()["MetricAlarms"]
    made = {alarm["AlarmName"] for alarm in alarms} & set(service.values())
    assert len(made) == 7
    endpoints = emulator.client("ec2").describe_vpc_endpoints()["VpcEndpoints"]
    services = {endpoint["ServiceName"].removeprefix(f"com.amazonaws.{REGION}.") for endpoint in endpoints}
    assert {"s3", "dynamodb", "sqs", "sns", "sts", "logs", "ecr.api", "ecr.dkr", "sagemaker.runtime"} <= services


def _explains(key, entry):
    return len(key) == 3 and key[:2] == entry[:2] and key[2] in entry[2]


def _as_list(value):
    return value if isinstance(value, list) else [value]
