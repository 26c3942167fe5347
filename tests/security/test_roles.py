"""Jobs under roles of their own: no call of one is signed by the other's, and nothing that one read is the other's."""

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from aws.osml.model_runner.api.image_url import parse_image_url
from aws.osml.model_runner.aws.role_session import session_name
from aws.osml.model_runner.common.typing import ImageCoord, ImageDimensions, ImageRegion
from aws.osml.model_runner.exceptions import LoadImageException
from aws.osml.model_runner.local.stack.data_plane import create_data_plane
from aws.osml.model_runner.local.stack.emulator import Emulator
from aws.osml.model_runner.local.stack.sagemaker_gateway import LocalEndpoint, SageMakerGateway
from aws.osml.model_runner.raster import RasterSettings, image_source, open_image, read_window
from aws.osml.model_runner.raster.handle_pool import AwsKeys
from faults.front_door import Call, FrontDoor
from raster_files import pattern, write_image
from worker_process import Site

ACCOUNT = "arn:aws:iam::000000000000:role"
ROLES = {f"{ACCOUNT}/team/{name}": name for name in ("one", "two")}
WINDOW = ImageRegion(ImageCoord(0, 0), ImageDimensions(64, 64))


PRIVATE = ("images-", "found-")


def bucket_of(call: Call) -> str:
    return call.path.lstrip("/").partition("/")[0].partition("?")[0]


def may(call: Call) -> bool:
    """Let a role into the buckets that bear its name, and the worker itself into none of them."""
    if call.service != "s3" or not bucket_of(call).startswith(PRIVATE):
        return True
    return ROLES.get(call.role) == bucket_of(call).rpartition("-")[2]


@pytest.fixture(scope="session")
def site(emulator: Emulator, tmp_path_factory: pytest.TempPathFactory) -> Site:
    """Two buckets with an image each, under one key, and two for what is found in them."""
    tmp_path = tmp_path_factory.mktemp("roles")
    site = Site(emulator, create_data_plane(emulator.client, "roles"), tmp_path)
    s3 = site.client("s3")
    for number, name in enumerate(ROLES.values()):
        image = write_image(tmp_path / f"{name}.tif", pattern(1, 600, 900) + number)
        for kind in ("images", "found"):
            s3.create_bucket(
                Bucket=f"{kind}-{name}", CreateBucketConfiguration={"LocationConstraint": s3.meta.region_name}
            )
        s3.upload_file(str(image), f"images-{name}", "scene.tif")
    return site


def request_of(site: Site, name: str, job_id: str, image_owner: str) -> dict[str, object]:
    role = f"{ACCOUNT}/team/{name}"
    return site.request(
        f"s3://images-{image_owner}/scene.tif",
        "flood",
        jobId=job_id,
        imageReadRole=role,
        imageProcessor={"name": "flood", "type": "SM_ENDPOINT", "assumedRole": role},
        outputs=[{"type": "S3", "bucket": f"found-{name}", "prefix": "out", "role": role}],
    )


def test_two_jobs_sign_with_their_own_roles(site: Site, model_server) -> None:
    model = model_server("flood", count=2)
    with (
        SageMakerGateway({"flood": LocalEndpoint(model.invocations_url)}) as gateway,
        FrontDoor(site.emulator.url, gateway.url, may=may) as door,
    ):
        settings = {
            "AWS_ENDPOINT_URL": door.url,
            "AWS_S3_ENDPOINT": door.url.removeprefix("http://"),
            **dict.fromkeys(gateway.environment, door.url),
            "IMAGE_SOURCES": "s3",
            "ASSUMABLE_ROLES": f"{ACCOUNT}/team/*",
            "ROLE_EXTERNAL_ID": "a-shared-word",
        }
        with site.worker(**settings):
            for name in ROLES.values():
                site.submit(request_of(site, name, f"job-{name}", image_owner=name))
            # and a job that may not read the first job's image
            site.submit(request_of(site, "two", "job-thief", image_owner="one"))
            ends = {job: site.wait_for_end(job)[-1] for job in ("job-one", "job-two", "job-thief")}
    assert ends == {"job-one": "SUCCESS", "job-two": "SUCCESS", "job-thief": "FAILED"}
    assert {call.role for call in door.calls if call.service == "sagemaker"} == set(ROLES)
    private = [call for call in door.calls if call.service == "s3" and bucket_of(call).startswith(PRIVATE)]
    refused = [call for call in private if not may(call)]
    assert {ROLES[call.role] for call in private if may(call)} == {"one", "two"}
    assert {(ROLES.get(call.role), bucket_of(call), call.method) for call in refused} <= {
        ("two", "images-one", "GET"),
        ("two", "images-one", "HEAD"),
    }
    assert refused, "the thief tried"
    check_sessions(door)


def check_sessions(door: FrontDoor) -> None:
    """Assert that each session names its job or endpoint and its external id, and has no other permission."""
    names = {session["RoleSessionName"] for session in door.sessions}
    assert names == {session_name(job) for job in ("job-one", "job-two", "job-thief", "flood")}
    for session in door.sessions:
        assert session["ExternalId"] == "a-shared-word"
        allowed = json.loads(session["Policy"])["Statement"]
        resources = [resource for statement in allowed for resource in statement["Resource"]]
        assert "*" not in resources
        places = {resource.partition("/")[0] for resource in resources if ":s3:::" in resource}
        assert len(places) <= 1
        own = ROLES[session["RoleArn"]]
        if session["RoleSessionName"] == session_name(f"job-{own}"):
            assert places <= {f"arn:aws:s3:::images-{own}", f"arn:aws:s3:::found-{own}"}


@pytest.fixture
def door(site: Site, monkeypatch: pytest.MonkeyPatch) -> Iterator[FrontDoor]:
    """A front door that knows the roles' keys by their names, for GDAL in this process."""
    with FrontDoor(site.emulator.url, "", may=may) as door:
        for role, name in ROLES.items():
            door.admit(f"AKIA{name}", role)
        monkeypatch.setenv("AWS_S3_ENDPOINT", door.url.removeprefix("http://"))
        monkeypatch.setenv("AWS_HTTPS", "NO")
        monkeypatch.setenv("AWS_VIRTUAL_HOSTING", "FALSE")
        monkeypatch.setenv("AWS_REGION", "us-west-2")
        yield door


def keys_of(name: str) -> AwsKeys:
    return AwsKeys(f"AKIA{name}", "secret", f"AKIA{name}")


def test_two_threads_read_with_keys_of_their_own(door: FrontDoor) -> None:
    def read(name: str) -> int:
        source = open_image(parse_image_url(f"s3://images-{name}/scene.tif"), RasterSettings(), lambda: keys_of(name))
        try:
            return int(read_window(source, WINDOW)[0, 0, 0])
        finally:
            source.close()

    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(read, ["one", "two"] * 6))
    assert found == [0, 1] * 6
    assert [call for call in door.calls if not may(call)] == []


def test_image_of_one_role_is_not_lent_to_another(door: FrontDoor, monkeypatch: pytest.MonkeyPatch) -> None:
    """GDAL keeps what it fetched by URL, whoever signed: the other one reads between our forgetting and our opening."""
    location, settings = parse_image_url("s3://images-one/scene.tif"), RasterSettings()
    owner = open_image(location, settings, lambda: keys_of("one"))
    forget = image_source.forget_remote

    def forget_and_be_overtaken(path: str) -> None:
        forget(path)
        read_window(owner, WINDOW)
        owner.open_dataset()

    monkeypatch.setattr(image_source, "forget_remote", forget_and_be_overtaken)
    with pytest.raises(LoadImageException, match="may not be read"):
        open_image(location, settings, lambda: keys_of("two"))
    monkeypatch.undo()
    owner.close()
