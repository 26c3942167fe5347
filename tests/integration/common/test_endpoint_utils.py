"""How many regions an endpoint may work on, from the descriptions of SageMaker and EC2."""

import json
from collections.abc import Iterator
from typing import Any

import pytest
from botocore.awsrequest import AWSResponse
from botocore.exceptions import ClientError

from aws.osml.model_runner.aws.clients import AwsClients, default_clients
from aws.osml.model_runner.aws.role_session import describing_session
from aws.osml.model_runner.common.endpoint_utils import EndpointUtils
from aws.osml.model_runner.local.stack.sagemaker_gateway import LocalEndpoint, SageMakerGateway, Variant
from aws_faults import Raw, answering

PROCESSORS = {"m5.xlarge": 4, "m5.12xlarge": 48, "g4dn.2xlarge": 8}
ROLE = "arn:aws:iam::123456789012:role/models"


class InstanceTypes:
    """EC2 that knows the processors of a few instance types; the emulator does not return them."""

    def __init__(self, ec2: Any) -> None:
        self.asked: list[str] = []
        ec2.meta.events.register_first("before-call.ec2.DescribeInstanceTypes", self._note)
        ec2.meta.events.register_first("before-send.ec2.DescribeInstanceTypes", self._answer)

    def _note(self, params: dict[str, Any], **_: Any) -> None:
        self.asked.append(params["body"]["InstanceType.1"])

    def _answer(self, request: Any, **_: Any) -> AWSResponse:
        body = f"""<DescribeInstanceTypesResponse><instanceTypeSet><item><vCpuInfo>
            <defaultVCpus>{PROCESSORS[self.asked[-1]]}</defaultVCpus>
            </vCpuInfo></item></instanceTypeSet></DescribeInstanceTypesResponse>"""
        return AWSResponse(request.url, 200, {"Content-Type": "text/xml"}, Raw(body.encode()))


@pytest.fixture(scope="module")
def gateway() -> Iterator[SageMakerGateway]:
    with SageMakerGateway({}) as running:
        yield running


@pytest.fixture(scope="module")
def clients(emulator, gateway) -> Iterator[AwsClients]:
    """Clients of emulator and gateway; EC2's service model alone takes half a second to load."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in (emulator.environment | gateway.environment).items():
            patch.setenv(name, value)
        default_clients.cache_clear()
        yield AwsClients()
        default_clients.cache_clear()


@pytest.fixture(scope="module")
def known_types(clients) -> InstanceTypes:
    return InstanceTypes(clients.client("ec2"))


@pytest.fixture
def instance_types(known_types) -> InstanceTypes:
    known_types.asked.clear()
    return known_types


def endpoint(*variants: Variant) -> LocalEndpoint:
    return LocalEndpoint("http://127.0.0.1:1/invocations", variants)


@pytest.mark.parametrize(
    ("variants", "scale_factor", "workers_per_cpu", "max_regions"),
    [
        ([Variant("a", "ml.m5.12xlarge")], 10, 1, 480),
        ([Variant("a", "ml.m5.12xlarge", 3)], 10, 1, 1440),
        ([Variant("a", "ml.m5.xlarge", 2), Variant("b", "ml.g4dn.2xlarge")], 10, 1, 160),
        ([Variant("a", "ml.m5.xlarge")], 10, 3, 13),
        ([Variant("a", "ml.m5.xlarge")], 0.1, 1, 0),
        ([Variant("a", "ml.m5.xlarge", 0)], 10, 1, 0),
        ([Variant("a", "m5.xlarge")], 10, 1, 40),
    ],
)
def test_capacity(gateway, clients, instance_types, variants, scale_factor, workers_per_cpu, max_regions):
    gateway.add_endpoint("ships", endpoint(*variants))
    assert EndpointUtils(scale_factor, workers_per_cpu, clients).calculate_max_regions("ships", None) == max_regions


def test_variant_without_machines_of_its_own_counts_none(gateway, clients, instance_types):
    gateway.add_endpoint("ships", endpoint(Variant("a", "ml.m5.xlarge")))
    config = {
        "EndpointConfigName": "ships",
        "ProductionVariants": [
            {"VariantName": "serverless", "ServerlessConfig": {"MaxConcurrency": 5, "MemorySizeInMB": 1024}}
        ],
    }
    answer = (200, {"Content-Type": "application/x-amz-json-1.1"}, json.dumps(config).encode())
    with answering(clients.client("sagemaker"), "DescribeEndpointConfig", answer):
        assert EndpointUtils(clients=clients).calculate_max_regions("ships") == 0
    assert instance_types.asked == []


def test_capacity_is_cached_for_minute(gateway, clients, instance_types, monkeypatch):
    now_s = [0.0]
    utils = EndpointUtils(clients=clients)
    utils.max_region_cache = type(utils.max_region_cache)(10, 60, timer=lambda: now_s[0])
    gateway.add_endpoint("ships", endpoint(Variant("a", "ml.m5.xlarge")))
    assert utils.calculate_max_regions("ships") == 40
    gateway.add_endpoint("ships", endpoint(Variant("a", "ml.m5.xlarge", 2)))
    assert utils.calculate_max_regions("ships") == 40
    now_s[0] = 61.0
    assert utils.calculate_max_regions("ships") == 80


def test_capacity_is_read_again_when_endpoint_is_missing(gateway, clients, instance_types):
    utils = EndpointUtils(clients=clients)
    with pytest.raises(ClientError, match="Could not find endpoint"):
        utils.calculate_max_regions("planes")
    gateway.add_endpoint("planes", endpoint(Variant("a", "ml.m5.xlarge")))
    assert utils.calculate_max_regions("planes") == 40


def test_endpoint_is_described_under_invocation_role(gateway, clients, instance_types):
    keys: list[str] = []
    client = clients.client("sagemaker", describing_session(ROLE, "ships"))
    client.meta.events.register_first(
        "before-send.sagemaker.DescribeEndpoint", lambda request, **_: keys.append(request.headers["Authorization"])
    )
    gateway.add_endpoint("ships", endpoint(Variant("a", "ml.m5.xlarge")))
    EndpointUtils(clients=clients).calculate_max_regions("ships", ROLE)
    assert len(keys) == 1
    assert "Credential=local/" not in str(keys[0])


def test_without_clients_processs_own_are_used(clients):
    utils = EndpointUtils()
    assert utils.clients is default_clients()
    assert utils.ec2_client is default_clients().client("ec2")
