"""The gateway as boto3 sees it: an endpoint's answers, its errors, and its description."""

import socket
import threading

import pytest
from botocore.exceptions import ClientError

from aws.osml.model_runner.api.inference import MAX_SAGEMAKER_BODY_BYTES, MAX_SERVERLESS_BODY_BYTES
from aws.osml.model_runner.local.stack.emulator import local_client
from aws.osml.model_runner.local.stack.http_service import HttpResponse, HttpService
from aws.osml.model_runner.local.stack.sagemaker_gateway import (
    NO_RESPONSE,
    TIMED_OUT,
    LocalEndpoint,
    Refusal,
    SageMakerGateway,
    Variant,
)


@pytest.fixture
def gateway():
    with SageMakerGateway({}) as running:
        yield running


@pytest.fixture
def runtime(gateway):
    client = local_client("sagemaker-runtime", gateway.url, max_attempts=1)
    yield client
    client.close()


@pytest.fixture
def control(gateway):
    client = local_client("sagemaker", gateway.url)
    yield client
    client.close()


def error_of(call, **arguments):
    with pytest.raises(ClientError) as caught:
        call(**arguments)
    return caught.value.response


def test_gateway_passes_tile_and_response_unchanged(gateway, runtime):
    received = []

    def answer_with_what_came(request):
        received.append(request)
        return HttpResponse(body=request.body, content_type="application/geo+json")

    body = bytes(range(256)) * 64
    with HttpService(answer_with_what_came) as model:
        gateway.add_endpoint("ships", LocalEndpoint(f"{model.url}/invocations", (Variant("blue"),)))
        answer = runtime.invoke_endpoint(
            EndpointName="ships", Body=body, ContentType="image/png", CustomAttributes="a=1", TargetVariant="blue"
        )
        assert answer["Body"].read() == body
    [request] = received
    assert request.headers["content-type"] == "image/png"
    assert request.headers["x-amzn-sagemaker-custom-attributes"] == "a=1"
    assert "authorization" not in request.headers
    assert answer["ContentType"] == "application/geo+json"
    assert answer["InvokedProductionVariant"] == "blue"


def test_connection_to_gateway_and_model_stays_open(gateway, runtime, model_server):
    gateway.add_endpoint("e", LocalEndpoint(model_server("failure", outcomes={"200": 1}).invocations_url))
    ports = set()
    original = gateway._models.request

    def count(*arguments, **options):
        answer = original(*arguments, **options)
        [pool] = gateway._models.pools._container.values()
        ports.add(pool.num_connections)
        return answer

    gateway._models.request = count
    for _ in range(10):
        runtime.invoke_endpoint(EndpointName="e", Body=b"tile")
    assert ports == {1}


@pytest.mark.parametrize("status", [400, 429, 500, 503])
def test_failing_model_becomes_model_error_with_its_status(gateway, runtime, model_server, status):
    server = model_server("failure", outcomes={str(status): 1})
    gateway.add_endpoint("broken", LocalEndpoint(server.invocations_url))
    response = error_of(runtime.invoke_endpoint, EndpointName="broken", Body=b"tile")
    assert response["Error"]["Code"] == "ModelError"
    assert response["ResponseMetadata"]["HTTPStatusCode"] == 424
    assert response["OriginalStatusCode"] == status
    assert f"configured to fail with {status}" in response["OriginalMessage"]


def test_model_that_does_not_listen_is_unavailable(gateway, runtime):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        gateway.add_endpoint("gone", LocalEndpoint(f"http://127.0.0.1:{unused.getsockname()[1]}/invocations"))
        response = error_of(runtime.invoke_endpoint, EndpointName="gone", Body=b"tile")
    assert response["Error"]["Code"] == "ServiceUnavailable"
    assert response["ResponseMetadata"]["HTTPStatusCode"] == 503


def test_slow_model_becomes_model_error_without_status(model_server):
    server = model_server("failure", outcomes={"200": 1}, latency_ms=(1000, 1000))
    endpoints = {"slow": LocalEndpoint(server.invocations_url)}
    with SageMakerGateway(endpoints, model_timeout_s=0.1) as gateway:
        runtime = local_client("sagemaker-runtime", gateway.url, max_attempts=1)
        response = error_of(runtime.invoke_endpoint, EndpointName="slow", Body=b"tile")
        runtime.close()
    assert response["Error"]["Code"] == "ModelError"
    assert response["ResponseMetadata"]["HTTPStatusCode"] == 424
    assert response["OriginalStatusCode"] == 0
    assert response["OriginalMessage"] == TIMED_OUT
    assert response["Error"]["Message"].startswith("Received server error (0) from primary with message")


def test_model_that_breaks_off_becomes_model_error_without_status(gateway, runtime):
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        threading.Thread(target=lambda: listener.accept()[0].close(), daemon=True).start()
        gateway.add_endpoint("dies", LocalEndpoint(f"http://127.0.0.1:{listener.getsockname()[1]}/invocations"))
        response = error_of(runtime.invoke_endpoint, EndpointName="dies", Body=b"tile")
    assert (response["OriginalStatusCode"], response["OriginalMessage"]) == (0, NO_RESPONSE)


@pytest.mark.parametrize(
    ("refusal", "code", "status"),
    [
        (Refusal.THROTTLING, "ThrottlingException", 400),
        (Refusal.NOT_READY, "ModelNotReadyException", 429),
        (Refusal.UNAVAILABLE, "ServiceUnavailable", 503),
        (Refusal.NO_RESPONSE, "ModelError", 424),
    ],
)
def test_busy_endpoint_refuses_as_sagemaker_does(gateway, runtime, model_server, refusal, code, status):
    server = model_server("failure", outcomes={"200": 1})
    gateway.add_endpoint("busy", LocalEndpoint(server.invocations_url, refusal=refusal))
    response = error_of(runtime.invoke_endpoint, EndpointName="busy", Body=b"tile")
    assert (response["Error"]["Code"], response["ResponseMetadata"]["HTTPStatusCode"]) == (code, status)
    assert response.get("OriginalStatusCode", 0) == 0
    assert server.stats()["requests"] == 0
    gateway.add_endpoint("busy", LocalEndpoint(server.invocations_url))
    assert runtime.invoke_endpoint(EndpointName="busy", Body=b"tile")["Body"].read()


def test_serverless_endpoint_limits_body_and_concurrency(gateway, control, runtime):
    began, release = threading.Event(), threading.Event()

    def hold(request):
        began.set()
        release.wait(5)
        return HttpResponse()

    with HttpService(hold) as model:
        variants = (Variant(max_concurrency=1),)
        gateway.add_endpoint("small", LocalEndpoint(f"{model.url}/invocations", variants))
        arguments = {"EndpointName": "small", "Body": bytes(MAX_SERVERLESS_BODY_BYTES)}
        first = threading.Thread(target=runtime.invoke_endpoint, kwargs=arguments)
        first.start()
        assert began.wait(5)
        response = error_of(runtime.invoke_endpoint, EndpointName="small", Body=b"tile")
        assert response["Error"]["Code"] == "ThrottlingException"
        release.set()
        first.join()
        response = error_of(runtime.invoke_endpoint, EndpointName="small", Body=bytes(MAX_SERVERLESS_BODY_BYTES + 1))
        assert response["ResponseMetadata"]["HTTPStatusCode"] == 413
    [variant] = control.describe_endpoint(EndpointName="small")["ProductionVariants"]
    assert variant["CurrentServerlessConfig"]["MaxConcurrency"] == 1


def test_unknown_endpoint_is_validation_error(runtime, control):
    response = error_of(runtime.invoke_endpoint, EndpointName="nowhere", Body=b"tile")
    assert response["Error"]["Code"] == "ValidationError"
    assert "nowhere" in response["Error"]["Message"]
    response = error_of(control.describe_endpoint, EndpointName="nowhere")
    assert response["Error"]["Code"] == "ValidationException"


def test_body_past_sagemaker_s_limit_is_refused(gateway, runtime, model_server):
    server = model_server("failure", outcomes={"200": 1})
    gateway.add_endpoint("e", LocalEndpoint(server.invocations_url))
    runtime.invoke_endpoint(EndpointName="e", Body=bytes(MAX_SAGEMAKER_BODY_BYTES))
    response = error_of(runtime.invoke_endpoint, EndpointName="e", Body=bytes(MAX_SAGEMAKER_BODY_BYTES + 1))
    assert response["ResponseMetadata"]["HTTPStatusCode"] == 413
    assert server.stats()["requests"] == 1


def test_endpoint_is_described(gateway, control):
    variants = (Variant("blue", "ml.g5.xlarge", 2, 0.75), Variant("green", "ml.m5.large", 1, 0.25))
    gateway.add_endpoint(
        "ships", LocalEndpoint("http://127.0.0.1:1/invocations", variants, {"osml:instance-concurrency": "4"})
    )
    endpoint = control.describe_endpoint(EndpointName="ships")
    config = control.describe_endpoint_config(EndpointConfigName=endpoint["EndpointConfigName"])
    listed = control.list_tags(ResourceArn=endpoint["EndpointArn"])["Tags"]
    assert endpoint["EndpointStatus"] == "InService"
    described = [
        (v["VariantName"], v["CurrentInstanceCount"], v["CurrentWeight"]) for v in endpoint["ProductionVariants"]
    ]
    assert described == [("blue", 2, 0.75), ("green", 1, 0.25)]
    assert [v["InstanceType"] for v in config["ProductionVariants"]] == ["ml.g5.xlarge", "ml.m5.large"]
    assert listed == [{"Key": "osml:instance-concurrency", "Value": "4"}]


def test_call_that_gateway_does_not_know_is_refused(control):
    response = error_of(control.list_models)
    assert response["Error"]["Code"] == "UnknownOperationException"
