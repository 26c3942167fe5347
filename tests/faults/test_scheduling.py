"""A fleet and endpoints that refuse above their limit; slots at an endpoint whose holders are killed."""

import json
import re
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from aws.osml.model_runner.local.stack.http_service import HttpRequest, HttpResponse, HttpService
from aws.osml.model_runner.local.stack.model_server import ModelServer
from aws.osml.model_runner.local.stack.sagemaker_gateway import LocalEndpoint, SageMakerGateway, Variant
from aws.osml.model_runner.worker.messages import _RENEWED_AFTER
from aws_proxy.throttling import Chance, ThrottledCalls
from faults.limited_model import LimitedModel
from faults.numbered_scene import write_numbered_scene
from faults.trial import LEASE_S
from worker_process import eventually

# Two regions fill an endpoint, and four workers together could make twice the calls.
CALLS = 8
LIMIT = 2 * CALLS


@pytest.fixture
def limited() -> Iterator[Callable[..., ModelServer]]:
    with ExitStack() as running:
        yield lambda **settings: running.enter_context(ModelServer(LimitedModel.model_validate(settings)))


def _processors(request: HttpRequest) -> HttpResponse:
    """Answer as EC2 does, which the emulator does not: every instance type has two processors."""
    body = b"""<DescribeInstanceTypesResponse><instanceTypeSet><item><vCpuInfo><defaultVCpus>2</defaultVCpus></vCpuInfo>
        </item></instanceTypeSet></DescribeInstanceTypesResponse>"""
    return HttpResponse(200, body, "text/xml")


def _self_throttled(ec2_url: str, workers: int) -> dict[str, str]:
    """Return settings of workers that count the regions of an endpoint: one for each processor of its machines."""
    return {
        "AWS_ENDPOINT_URL_EC2": ec2_url,
        "SM_SELF_THROTTLING": "true",
        "THROTTLING_SCALE_FACTOR": "1",
        "THROTTLING_RETRY_TIMEOUT": "1",
        "REGIONS_IN_PROGRESS": "3",
        "WORKERS": str(workers),
    }


@pytest.mark.long
def test_fleet_fills_its_endpoints_and_floods_none(new_trial, limited, tmp_path):
    """60 images for three endpoints, four workers of which one is killed; refused calls are under one in a hundred."""
    images, workers = 60, 4
    models = [limited(limit=LIMIT) for _ in range(3)]
    trial = new_trial(
        WORKERS=str(CALLS), TILE_WORKERS_PER_INSTANCE=str(CALLS), DEFAULT_HTTP_ENDPOINT_CONCURRENCY=str(LIMIT)
    )
    trial.models += models
    scenes = [str(write_numbered_scene(tmp_path / f"{count}.tif", (count, 1))) for count in (1, 2)]
    for number in range(images):
        trial.submit(trial.request(models[number % 3], scenes[number % 2]))
    fleet = [trial.fleet.start() for _ in range(workers)]
    for worker in fleet:
        worker.wait_until_ready()
    eventually(lambda: trial.tiles_done() > 16 * images // 4)
    trial.kill(fleet[0])
    trial.fleet.start()
    trial.wait(patience_s=300.0)
    books = trial.check()
    calls, refused = sum(model.stats()["requests"] for model in models), sum(model.model.refused for model in models)
    print(
        f"\n{len(books.images)} images, {calls} calls, {refused} refused, peaks {[m.stats()['peak'] for m in models]}"
    )
    assert refused < calls / 100
    assert all(image["tile_error"] == 0 for image in books.images.values())
    starts = Counter(re.findall(r"SCHEDULER EVENT", "".join(worker.log_text() for worker in trial.fleet.workers)))
    assert starts["SCHEDULER EVENT"] >= images


@pytest.mark.long
def test_worker_that_is_killed_leaves_no_room_taken(new_trial, limited):
    """Another worker continues its image, and the next image of the endpoint starts."""
    trial = new_trial(WORKERS="4", DEFAULT_HTTP_ENDPOINT_CONCURRENCY="4")
    model = limited(call_ms=300)
    trial.models.append(model)
    first = trial.submit(trial.request(model, "one"))
    doomed = trial.fleet.start().wait_until_ready()
    eventually(lambda: model.stats()["requests"] > 0 or model.stats()["in_flight"])
    second = trial.submit(trial.request(model, "one"))
    eventually(lambda: len(trial.site.open_jobs()) == 2)
    trial.kill(doomed)
    with trial.fleet.worker():
        trial.wait(first, second)
        trial.check()


@pytest.mark.long
def test_slots_limit_regions_and_expire_when_worker_is_killed(new_trial, limited):
    model = limited(call_ms=100, tiles_across=16)
    # 2 processors, one instance, one worker per processor: two regions.
    endpoint = LocalEndpoint(model.invocations_url, (Variant(),))
    with SageMakerGateway({"numbered": endpoint}) as gateway, HttpService(_processors) as ec2:
        trial = new_trial(**gateway.environment, **_self_throttled(ec2.url, workers=6))
        trial.models.append(model)
        request = trial.request("numbered", "full")
        request["imageProcessor"] = {"name": "numbered", "type": "SM_ENDPOINT"}
        trial.submit(request)
        doomed = trial.fleet.start().wait_until_ready()
        eventually(lambda: model.model.regions_now == 2)
        trial.kill(doomed)
        killed_at = time.monotonic()
        with trial.fleet.worker(), trial.fleet.worker():
            eventually(lambda: model.model.regions_now == 2)
            print(
                f"\nboth slots were taken again {time.monotonic() - killed_at:.1f} s after the kill; lease {LEASE_S} s"
            )
            trial.wait()
            # While they run: messages of the killed worker may still be invisible.
            trial.check()
    assert model.model.most_regions == 2
    (row,) = trial.site.rows("ENDPOINT_TABLE")
    assert (row["endpoint"]["S"], row["max_regions"]["N"]) == ("numbered", "2"), "no slot is left"


@pytest.mark.long
def test_region_message_is_not_dead_lettered_when_it_waits_long(new_trial, limited):
    """SQS counts receives, and a region without a slot is received again and again."""
    model = limited(call_ms=3_000)
    endpoint = LocalEndpoint(model.invocations_url, (Variant(),))
    with SageMakerGateway({"numbered": endpoint}) as gateway, HttpService(_processors) as ec2:
        trial = new_trial(**gateway.environment, **_self_throttled(ec2.url, workers=2))
        trial.models.append(model)
        plane, sqs = trial.site.data_plane.environment, trial.site.client("sqs")
        _set_max_receives(sqs, plane["REGION_QUEUE"], _RENEWED_AFTER + 1)
        trial.submit(trial.sagemaker_request("numbered", "small"))
        with trial.fleet.worker() as worker:
            trial.wait(patience_s=300.0)
            trial.check()
    assert worker.log_text().count("region.given_back") > 2 * (_RENEWED_AFTER + 1)
    assert sqs.receive_message(QueueUrl=plane["REGION_DLQ"]).get("Messages", []) == []


def _set_max_receives(sqs: Any, url: str, count: int) -> None:
    policy = json.loads(sqs.get_queue_attributes(QueueUrl=url, AttributeNames=["All"])["Attributes"]["RedrivePolicy"])
    policy["maxReceiveCount"] = count
    sqs.set_queue_attributes(QueueUrl=url, Attributes={"RedrivePolicy": json.dumps(policy)})


@pytest.mark.long
def test_endpoint_keeps_its_limit_while_control_plane_refuses(new_trial, new_proxy, limited):
    """A worker that joins then knows what the fleet found out before."""
    model = limited(call_ms=300, tiles_across=16)
    proxy = new_proxy(endpoints={"numbered": model})
    with HttpService(_processors) as ec2:
        trial = new_trial(**proxy.environment, **_self_throttled(ec2.url, workers=6))
        trial.models.append(model)
        trial.submit(trial.sagemaker_request("numbered", "full"))
        with trial.fleet.worker():
            eventually(lambda: model.model.regions_now == 2)
            operations = ("DescribeEndpoint", "DescribeEndpointConfig", "ListTags")
            # A code that botocore does not try again, for the sake of time.
            proxy.steps.append(ThrottledCalls(Chance(0.0), *operations, code="AccessDeniedException"))
            with trial.fleet.worker():
                trial.wait()
                trial.check()
    assert model.model.most_regions == 2
