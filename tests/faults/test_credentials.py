"""T12: the roles of image, model and outputs, with credentials that soon expire."""

import time

import pytest

from aws.osml.model_runner.local.stack.sagemaker_gateway import LocalEndpoint, SageMakerGateway
from faults.front_door import FrontDoor

_ROLES = {name: f"arn:aws:iam::000000000000:role/{name}" for name in ("image", "model", "sink")}


@pytest.mark.long
def test_tile_succeeds_when_credentials_of_role_expire(new_trial):
    """Credentials of ten seconds, and a job of a minute."""
    life_s, latency_ms = 10.0, 3500
    trial = new_trial(IMAGE_SOURCES="s3")
    model = trial.model(latency_ms=latency_ms)
    bucket = trial.site.data_plane.result_bucket
    trial.site.client("s3").upload_file(str(trial.images["small"]), bucket, "in/scene.tif")
    endpoint = LocalEndpoint(model.invocations_url)
    with (
        SageMakerGateway({"numbered": endpoint}) as gateway,
        FrontDoor(trial.site.emulator.url, gateway.url, life_s, renew_s=life_s / 2) as door,
    ):
        request = trial.request("numbered", f"s3://{bucket}/in/scene.tif", imageReadRole=_ROLES["image"])
        request["imageProcessor"] = {"name": "numbered", "type": "SM_ENDPOINT", "assumedRole": _ROLES["model"]}
        # Each kind of output has its own word for it.
        request["outputs"][0]["role"] = request["outputs"][1]["assumedRole"] = _ROLES["sink"]
        trial.submit(request)
        settings = {
            "AWS_ENDPOINT_URL": door.url,
            "AWS_S3_ENDPOINT": door.url.removeprefix("http://"),
            **dict.fromkeys(gateway.environment, door.url),
        }
        begun = time.monotonic()
        worker = trial.fleet.start(settings=settings)
        trial.wait(patience_s=150.0)
        assert time.monotonic() - begun > 3 * life_s, "the job outlived the credentials"
        trial.check()
        trial.fleet.end(worker)
    assert door.late == []
    for name in ("image", "model"):
        assert door.issued[_ROLES[name]] >= 5, name
    services = {service for service, role in door.used if role == _ROLES["sink"]}
    assert services == {"s3", "kinesis"}
