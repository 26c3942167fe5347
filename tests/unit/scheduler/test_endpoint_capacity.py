"""Concurrent calls that endpoints take, and the draw of a variant, from SageMaker's descriptions."""

import dataclasses
import random
from collections import Counter
from typing import Any

import pytest
import structlog
from botocore.exceptions import ClientError

from aws.osml.model_runner.api.image_request import ImageRequest
from aws.osml.model_runner.common.endpoint_utils import EndpointUtils
from aws.osml.model_runner.config import ServiceConfig
from aws.osml.model_runner.database.endpoint_facts import SharedFacts
from aws.osml.model_runner.inference.endpoint_check import MAX_SERVERLESS_BODY_BYTES
from aws.osml.model_runner.scheduler.endpoint_capacity import EndpointCapacityEstimator
from aws.osml.model_runner.scheduler.policy import LaneCapacity
from aws.osml.model_runner.telemetry.metrics import MetricsRecorder
from simulation.dynamodb import DynamoDB, worker_tables

ENVIRONMENT = {
    "AWS_DEFAULT_REGION": "us-west-2",
    "JOB_TABLE": "jobs",
    "REGION_REQUEST_TABLE": "regions",
    "OUTSTANDING_JOBS_TABLE": "outstanding",
    "FEATURE_TABLE": "features",
    "IMAGE_QUEUE": "https://sqs.test/1/image",
    "REGION_QUEUE": "https://sqs.test/1/region",
    "WORKERS": "4",
}


class ScriptedSageMaker:
    """SageMaker's control calls, from a script: no endpoint of the local stack is serverless, or has components."""

    def __init__(self) -> None:
        self.is_throttled = False
        self.endpoints: dict[str, list[dict[str, Any]]] = {}
        self.tags: dict[str, str] = {}
        self.copies: dict[str, int] = {}
        self.calls = Counter[str]()
        self.roles: list[str | None] = []

    def client(self, service: str, assumed_role: str | None = None) -> "ScriptedSageMaker":
        assert service in ("sagemaker", "ec2")
        self.roles.append(assumed_role)
        return self

    def describe_endpoint(self, EndpointName: str) -> dict[str, Any]:
        self.calls[EndpointName] += 1
        if self.is_throttled:
            raise ClientError({"Error": {"Code": "ThrottlingException"}}, "DescribeEndpoint")
        if EndpointName not in self.endpoints:
            raise ClientError({"Error": {"Code": "ValidationException"}}, "DescribeEndpoint")
        return {
            "EndpointArn": f"arn:{EndpointName}",
            "EndpointConfigName": EndpointName,
            "ProductionVariants": self.endpoints[EndpointName],
        }

    def describe_endpoint_config(self, EndpointConfigName: str) -> dict[str, Any]:
        names = [variant["VariantName"] for variant in self.endpoints[EndpointConfigName]]
        return {"ProductionVariants": [{"VariantName": name, "InstanceType": "ml.m5.xlarge"} for name in names]}

    def describe_instance_types(self, InstanceTypes: list[str]) -> dict[str, Any]:
        assert InstanceTypes == ["m5.xlarge"]
        return {"InstanceTypes": [{"VCpuInfo": {"DefaultVCpus": 4}}]}

    def list_tags(self, ResourceArn: str, MaxResults: int) -> dict[str, Any]:
        return {"Tags": [{"Key": key, "Value": value} for key, value in self.tags.items()]}

    def describe_inference_component(self, InferenceComponentName: str) -> dict[str, Any]:
        self.calls[InferenceComponentName] += 1
        return {"RuntimeConfig": {"CurrentCopyCount": self.copies[InferenceComponentName]}}


class Clock:
    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s

    def sleep(self, seconds: float) -> None:
        self.now_s += seconds


@pytest.fixture(autouse=True)
def _quiet():
    with structlog.testing.capture_logs():
        yield


@pytest.fixture
def sagemaker() -> ScriptedSageMaker:
    return ScriptedSageMaker()


@pytest.fixture
def clock() -> Clock:
    return Clock()


def new_facts(clock: Clock) -> SharedFacts:
    return SharedFacts("outstanding", DynamoDB(worker_tables(), clock, random.Random(1)).resource(), now=clock)


@pytest.fixture
def estimator(sagemaker, clock):
    def make(facts: SharedFacts | None = None, sleep: Any = None, **settings: str) -> EndpointCapacityEstimator:
        config = ServiceConfig.from_environment(ENVIRONMENT | settings)
        facts = facts or new_facts(clock)
        return EndpointCapacityEstimator(
            config, sagemaker, MetricsRecorder(), facts, clock, random.Random(1), sleep or clock.sleep
        )

    return make


def described(known: EndpointCapacityEstimator, asked: ImageRequest) -> LaneCapacity:
    """Return the capacity of a request's lane after it was accepted, as in a worker."""
    known.choose_variant(asked)
    return known.capacity(asked)


def request(name: str = "ships", mode: str = "SM_ENDPOINT", **parameters: str) -> ImageRequest:
    message = {
        "jobId": "job",
        "imageUrls": ["s3://images/a.tif"],
        "imageProcessor": {"name": name, "type": mode, "assumedRole": "arn:aws:iam::1:role/r"},
        "imageProcessorParameters": parameters,
        "outputs": [{"type": "S3", "bucket": "results"}],
    }
    return ImageRequest.from_external_message(message)


def variant(name: str, instances: int = 1, weight: float = 1.0) -> dict[str, Any]:
    return {"VariantName": name, "CurrentInstanceCount": instances, "CurrentWeight": weight}


def serverless(name: str, most: int) -> dict[str, Any]:
    return {"VariantName": name, "CurrentServerlessConfig": {"MaxConcurrency": most, "MemorySizeInMB": 2048}}


def test_instances_take_default_each(estimator, sagemaker):
    sagemaker.endpoints["ships"] = [variant("a", 3), variant("b", 2)]
    assert described(estimator(), request()) == LaneCapacity(10, 10)
    assert described(estimator(DEFAULT_INSTANCE_CONCURRENCY="4"), request()) == LaneCapacity(20, 20)
    assert {session.role_arn for session in sagemaker.roles} == {"arn:aws:iam::1:role/r"}
    assert all("sagemaker:DescribeEndpoint" in session.policy for session in sagemaker.roles)


@pytest.mark.parametrize(("tag", "calls"), [("8", 24), ("many", 6), ("0", 6), ("-3", 6)])
def test_tag_sets_calls_per_instance(estimator, sagemaker, tag, calls):
    sagemaker.endpoints["ships"] = [variant("a", 3)]
    sagemaker.tags["osml:instance-concurrency"] = tag
    assert described(estimator(), request()).calls == calls


def test_call_limit_needs_description_of_endpoint(estimator, sagemaker):
    sagemaker.endpoints["ships"] = [variant("a", 3)]
    made = estimator()
    described(made, request())
    assert (made.known_calls(request()), made.certain_calls(request())) == (6, None)
    sagemaker.tags["osml:instance-concurrency"] = "8"
    tagged = estimator()
    described(tagged, request())
    assert tagged.certain_calls(request()) == 24
    sagemaker.tags.clear()
    sagemaker.endpoints["ships"] = [serverless("b", 20)]
    made = estimator()
    described(made, request())
    assert made.certain_calls(request()) == 20


def test_serverless_variant_limits_bytes_of_tile(estimator, sagemaker):
    sagemaker.endpoints["ships"] = [variant("a", 3), serverless("b", 20)]
    made = estimator()
    assert made.max_body_bytes(request(TargetVariant="b")) is None, "nothing is known yet"
    described(made, request())
    assert made.max_body_bytes(request(TargetVariant="a")) is None
    assert made.max_body_bytes(request(TargetVariant="b")) == MAX_SERVERLESS_BODY_BYTES
    assert made.max_body_bytes(request("http://models.example.com/ships", "HTTP_ENDPOINT")) is None


def test_each_variant_has_own_capacity(estimator, sagemaker):
    sagemaker.endpoints["ships"] = [variant("a", 3), serverless("b", 20)]
    assert described(estimator(), request(TargetVariant="a")).calls == 6
    assert described(estimator(), request(TargetVariant="b")).calls == 20
    assert described(estimator(), request(TargetVariant="c")).calls == 0
    assert described(estimator(), request()).calls == 26


def test_copies_of_inference_component_count_like_instances(estimator, sagemaker):
    sagemaker.endpoints["ships"] = [variant("a", 3)]
    sagemaker.tags["osml:instance-concurrency"] = "5"
    sagemaker.copies["detector"] = 4
    assert described(estimator(), request(InferenceComponentName="detector")).calls == 20


def test_http_model_has_default_capacity_without_call(estimator, sagemaker):
    asked = request("http://model/invocations", "HTTP_ENDPOINT")
    assert estimator().capacity(asked).calls == 10
    assert estimator(DEFAULT_HTTP_ENDPOINT_CONCURRENCY="3").capacity(asked).calls == 3
    assert not sagemaker.calls


@pytest.mark.parametrize(("share", "target"), [("0.5", 5), ("0.25", 2), ("1.5", 15), ("0", 10)])
def test_target_is_share_of_capacity(estimator, share, target):
    asked = request("http://model/invocations", "HTTP_ENDPOINT")
    assert estimator(CAPACITY_TARGET_PERCENTAGE=share).capacity(asked) == LaneCapacity(10, target)


def test_without_throttling_there_is_no_target(estimator):
    capacity = estimator(SCHEDULER_THROTTLING_ENABLED="False").capacity(request("http://m/i", "HTTP_ENDPOINT"))
    assert capacity == LaneCapacity(10, float("inf"))


def test_description_is_kept_until_replaced(estimator, sagemaker, clock):
    sagemaker.endpoints["ships"] = [variant("a", 3)]
    known = estimator()
    assert [described(known, request()).calls for _ in range(3)] == [6, 6, 6]
    sagemaker.endpoints["ships"] = [variant("a", 9)]
    clock.now_s = 239.0
    known.capacity(request())
    known.refresh()
    assert (known.capacity(request()).calls, sagemaker.calls["ships"]) == (6, 1)
    clock.now_s = 301.0
    assert (known.capacity(request()).calls, sagemaker.calls["ships"]) == (6, 1), "no decision waits for SageMaker"
    known.refresh()
    assert (known.capacity(request()).calls, sagemaker.calls["ships"]) == (18, 2)


def test_control_plane_that_throttles_leaves_last_description_in_force(estimator, sagemaker, clock):
    sagemaker.endpoints["ships"] = [variant("a", 20)]
    known = estimator()
    assert described(known, request()).calls == 40
    sagemaker.is_throttled = True
    for _ in range(100):
        clock.now_s += 10.0
        assert known.capacity(request()).calls == known.known_calls(request()) == 40
        known.refresh()
    assert 20 < sagemaker.calls["ships"] < 60, "it is called again each 15 to 30 s"
    sagemaker.is_throttled, sagemaker.endpoints["ships"] = False, [variant("a", 30)]
    clock.now_s += 31.0
    known.capacity(request())
    known.refresh()
    assert known.capacity(request()).calls == 60


def test_undescribed_endpoint_counts_as_one_instance(estimator, sagemaker, clock):
    known = estimator()
    assert described(known, request()).calls == described(known, request()).calls == 2
    assert known.known_calls(request()) is None
    assert sagemaker.calls["ships"] == 1
    sagemaker.endpoints["ships"] = [variant("a", 9)]
    clock.now_s = 31.0
    assert known.capacity(request()).calls == 2
    known.refresh()
    assert known.capacity(request()).calls == known.known_calls(request()) == 18


def test_fleet_describes_endpoint_once(estimator, sagemaker, clock):
    sagemaker.endpoints["ships"] = [variant("a", 3)]
    shared = new_facts(clock)
    fleet = [estimator(shared) for _ in range(20)]
    assert {worker.choose_variant(request()) for worker in fleet} == {"a"}
    assert sagemaker.calls["ships"] == 1
    clock.now_s = 301.0
    assert {worker.capacity(request()).calls for worker in fleet} == {6}
    for worker in fleet:
        worker.refresh()
    assert sagemaker.calls["ships"] == 2


def test_first_request_waits_for_worker_that_describes_its_endpoint(estimator, sagemaker, clock):
    sagemaker.endpoints["ships"] = [variant("a", 3)]
    shared = new_facts(clock)
    first = estimator(shared)

    def first_ends(seconds: float) -> None:
        clock.now_s += seconds
        if clock.now_s > 1.0:
            subject = next(iter(first._due.values()))
            first._look_up(subject)

    first.capacity(request())
    (subject,) = first._due.values()
    assert shared.claim(subject.key, 60.0)
    second = estimator(shared, first_ends)
    assert second.choose_variant(request()) == "a"
    assert (sagemaker.calls["ships"], clock.now_s) == (1, pytest.approx(1.2, abs=0.25))


def test_first_request_looks_up_itself_when_that_worker_dies(estimator, sagemaker, clock):
    sagemaker.endpoints["ships"] = [variant("a", 3)]
    shared = new_facts(clock)
    known = estimator(shared)
    known.capacity(request())
    (subject,) = known._due.values()
    assert shared.claim(subject.key, 60.0)
    assert known.choose_variant(request()) == "a"
    assert 5.0 <= clock.now_s < 6.0


def test_endpoint_is_described_once_for_all_workers(estimator, sagemaker, clock):
    sagemaker.endpoints["ships"] = [variant("a", 3)]
    known = estimator()
    role = request().model_invocation_role
    for _ in range(3):
        described_variants = known.describe("endpoint", "ships", role)["ProductionVariants"]
        assert [one["CurrentInstanceCount"] for one in described_variants] == [3]
        assert known.choose_variant(request()) == "a"
        known.describe("endpoint", "ships", role, is_new=True)
    assert sagemaker.calls["ships"] == 1
    clock.now_s = 6.0
    known.describe("endpoint", "ships", role)
    assert sagemaker.calls["ships"] == 1
    known.describe("endpoint", "ships", role, is_new=True)
    assert sagemaker.calls["ships"] == 2
    clock.now_s = 400.0
    known.describe("endpoint", "ships", role)
    assert sagemaker.calls["ships"] == 3


def test_self_throttling_rests_on_same_description(estimator, sagemaker):
    sagemaker.endpoints["ships"] = [variant("a", 3)]
    known = estimator()
    known.choose_variant(request())
    throttling = EndpointUtils(
        clients=sagemaker, describe=lambda name, role: known.describe("endpoint", name, role or "")
    )
    assert throttling.calculate_max_regions("ships", request().model_invocation_role) == 10 * 3 * 4
    assert sagemaker.calls["ships"] == 1


def test_variant_and_component_are_described_as_lanes(estimator, sagemaker):
    sagemaker.endpoints["ships"] = [variant("a", 3), variant("b", 5)]
    sagemaker.copies["detector"] = 4
    known = estimator()
    assert described(known, request(TargetVariant="b")).calls == 10
    assert described(known, request(InferenceComponentName="detector")).calls == 8


def test_http_model_has_no_description(estimator):
    assert estimator().known_calls(request("http://model/invocations", "HTTP_ENDPOINT")) is None


def test_roles_do_not_share_descriptions(estimator, sagemaker, clock):
    sagemaker.endpoints["ships"] = [variant("a", 3)]
    known = estimator()
    described(known, request())
    assert known.known_calls(dataclasses.replace(request(), model_invocation_role="arn:aws:iam::2:role/r")) is None


def test_variants_are_drawn_by_weight(estimator, sagemaker):
    sagemaker.endpoints["ships"] = [variant("a", weight=3.0), variant("b", weight=1.0), variant("off", weight=0.0)]
    known = estimator()
    drawn = Counter(known.choose_variant(request()) for _ in range(4000))
    assert set(drawn) == {"a", "b"}
    assert 0.71 < drawn["a"] / 4000 < 0.79


def test_variant_is_drawn_only_where_there_is_choice_to_make(estimator, sagemaker):
    known = estimator()
    assert known.choose_variant(request()) is None, "it cannot be described"
    sagemaker.endpoints["boats"] = [variant("a", weight=0.0)]
    assert known.choose_variant(request("boats")) is None
    sagemaker.endpoints["planes"], sagemaker.copies["c"] = [variant("a")], 1
    assert known.choose_variant(request("planes")) == "a"
    assert known.choose_variant(request("planes", TargetVariant="b")) is None
    assert known.choose_variant(request("planes", InferenceComponentName="c")) is None
    assert known.choose_variant(request("http://m/i", "HTTP_ENDPOINT")) is None
