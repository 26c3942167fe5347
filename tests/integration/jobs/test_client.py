"""The Python client against a worker: submit, follow, read results, and learn why a request was refused."""

import json

import pytest
import shapely

from aws.osml.model_runner import Client
from aws.osml.model_runner.client import Deployment, JobReport
from aws.osml.model_runner.database.region_request_table import RegionClaim
from aws.osml.model_runner.exceptions import (
    ConfigurationError,
    InvalidImageRequestException,
    JobNotFoundError,
    JobRefusedError,
)
from aws.osml.model_runner.queue.request_queue import RequestQueue
from aws.osml.model_runner.worker.messages import DeadLetters
from worker_in_process import TILES, Fleet


@pytest.fixture
def fleet(worker) -> Fleet:
    return Fleet(worker)


@pytest.fixture
def client(fleet, data_plane, clients, clock) -> Client:
    return Client(Deployment(data_plane.environment), clients, clock, fleet.work)


def message_of(worker, scene, model_server, **changes):
    request = worker.message(scene, model_server("centerpoint").invocations_url)
    del request["jobId"]
    return request | changes


def test_job_is_followed_to_its_frame(client, worker, scene, model_server):
    job = client.submit(message_of(worker, scene, model_server))
    seen: list[JobReport] = []
    report = job.wait(seen.append)
    assert (seen[0].status, seen[0].percent) == ("", None)
    assert (report.status, report.percent) == ("SUCCESS", 100.0)
    (image,) = report.images
    assert (image.tiles, image.tiles_succeeded, image.tiles_failed, image.features) == (TILES, TILES, 0, TILES)
    assert image.accepted_s <= image.started_s <= image.ended_s
    frame = job.frame()
    delivered = worker.result(job.job_id)
    assert sorted(frame["imageBBox"]) == sorted(feature["properties"]["imageBBox"] for feature in delivered)
    expected = shapely.union_all([shapely.geometry.shape(feature["geometry"]) for feature in delivered])
    assert frame.crs.to_authority() == ("OGC", "CRS84")
    assert expected.equals(frame.geometry.union_all())
    assert client.job(job.job_id).report() == report


@pytest.mark.parametrize("form", ["GEOJSON", "GEOJSONSEQ", "GEOPARQUET"])
@pytest.mark.parametrize("compression", ["NONE", "GZIP"])
def test_frame_reads_every_format_of_several_images(
    client, worker, scene, model_server, data_plane, form, compression, tmp_path
):
    if (form, compression) == ("GEOPARQUET", "GZIP"):
        compression = "NONE"
    output = {"type": "S3", "bucket": data_plane.result_bucket, "prefix": "made", "format": form}
    output |= {} if compression == "NONE" else {"compression": compression}
    other = tmp_path / "other.tif"
    other.write_bytes(scene.read_bytes())
    urls = [f"file://{scene}", f"file://{other}"]
    job = client.submit(message_of(worker, scene, model_server, outputs=[output], imageUrls=urls))
    assert job.wait().status == "SUCCESS"
    frame = job.frame()
    assert frame.groupby("image_url").size().to_dict() == dict.fromkeys(urls, TILES)
    assert frame.crs.equals("OGC:CRS84")


def test_invalid_request_is_not_sent(client, worker, scene, model_server):
    with pytest.raises(InvalidImageRequestException, match="imageProcessorTileSize"):
        client.submit(message_of(worker, scene, model_server, imageProcessorTileSize=3))
    assert worker.image_queue.receive() == []


def test_refused_request_has_its_reason(client, worker, scene, model_server):
    output = {"type": "S3", "bucket": "absent-bucket-of-nobody", "prefix": ""}
    job = client.submit(message_of(worker, scene, model_server, outputs=[output]))
    with pytest.raises(JobRefusedError, match=r"outputs.*absent-bucket-of-nobody"):
        job.wait()


def test_refusals_are_read_and_stay_in_queue(client, worker, data_plane, clients):
    dead_letters = DeadLetters(worker.image_queue, data_plane.environment["IMAGE_DLQ"])
    largest = json.dumps({"jobId": "large", "note": "x" * 262_000})
    bodies = {"not JSON": "the message is not valid JSON", '["a list"]': "not an object", largest: "z" * 3_000}
    for body, reason in bodies.items():
        dead_letters.put(body, reason)
    found = {refusal.body: refusal for refusal in client.refusals()}
    assert set(found) == set(bodies)
    assert found["not JSON"].reason == "the message is not valid JSON"
    assert (found[largest].job_id, found['["a list"]'].job_id) == ("large", "")
    # The whole message is at most 262,144 bytes.
    assert found[largest].reason == "z" * (262_144 - len(largest) - len("reasonString"))
    queue = RequestQueue(data_plane.environment["IMAGE_DLQ"], client=clients.client("sqs"))
    sizes = queue.sqs_client.get_queue_attributes(QueueUrl=queue.queue_url, AttributeNames=["All"])["Attributes"]
    total = int(sizes["ApproximateNumberOfMessages"]) + int(sizes["ApproximateNumberOfMessagesNotVisible"])
    assert total == len(bodies)


def test_wait_ends_in_time(client, worker, scene, model_server, fleet):
    client._sleep = lambda seconds: setattr(worker.clock, "ahead_s", worker.clock.ahead_s + seconds)
    job = client.submit(message_of(worker, scene, model_server))
    with pytest.raises(TimeoutError, match="not accepted after 60 s"):
        job.wait(timeout_s=60)


def test_cancelled_job_failed(client, worker, scene, model_server, fleet):
    job = client.submit(message_of(worker, scene, model_server))
    (message,) = worker.image_queue.receive()
    fleet.messages.handle(message)
    (open_job,) = client.open_jobs()
    assert (open_job.job_id, open_job.status) == (job.job_id, "ACCEPTED")
    assert job.cancel().cancelled
    report = job.wait()
    assert (report.status, report.images[0].message) == ("FAILED", "cancelled")


def test_unknown_job_and_stack_are_named(client, emulator, clients, data_plane):
    with pytest.raises(JobNotFoundError, match="no worker has accepted a job nothing"):
        client.job("nothing")
    with pytest.raises(ConfigurationError, match="the stack nowhere cannot be read"):
        Client.of_stack("nowhere", clients)
    assert Client.of_stack(data_plane.name, clients).deployment.settings == data_plane.environment
    with pytest.raises(ConfigurationError, match="JOB_TABLE"):
        Client(Deployment({}), clients).job("job")


def test_tiles_of_regions_in_work_count(client, worker, scene, model_server, fleet):
    job = client.submit(message_of(worker, scene, model_server))
    (message,) = worker.image_queue.receive()
    fleet.messages.handle(message)
    worker.start_waiting(is_first_processed=False)
    (_, region), *_ = worker.received_regions()
    image_id = worker.open_jobs()[0]
    claim = worker.regions.claim(image_id, region.region_id, "another", 60.0)
    assert isinstance(claim, RegionClaim)
    assert job.report().percent == 0.0
    assert worker.regions.renew(claim, 60.0, succeeded=2, failed=1)
    report = job.report()
    assert (report.images[0].tiles_succeeded, report.images[0].tiles_failed) == (2, 1)
    assert report.percent == pytest.approx(100 * 3 / TILES)
