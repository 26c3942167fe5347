"""Jobs that are made to harm, one after the other through one worker: each ends with its reason, and the worker lives.

Its memory, the calls that it should not make and the files that it should not open are looked at when all have ended.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from aws.osml.model_runner.local.stack.child_process import ChildProcess
from aws.osml.model_runner.local.stack.data_plane import create_data_plane
from aws.osml.model_runner.local.stack.emulator import Emulator
from hostile_urls import HOSTILE_IMAGE_URLS, HOSTILE_MODEL_URLS
from raster_files import pattern, write_image
from security.hostile_images import Bait, hostile_files
from security.hostile_model import BODIES, LATE, NO_ANSWER, HostileModel
from security.watched import CanaryServer, OpenedFiles, watching
from worker_process import Site, eventually

# A model that does not answer in time is waited for until its job's time is over; all others are done long before.
DEADLINE_S = 20
MEMORY_LIMIT_BYTES = 2 * 1024**3
MAX_PEAK_KIB = 1024 * 1024
PARTLY_GOOD = ("good", "far", "nothing", "nested", "long", "names")
# 16,384 pixels wide and high; its four tiles have 64 MiB each.
LARGEST = "deflate.tif"
BOMBS = {hostile.name: hostile for hostile in hostile_files()}
FILES = [name for name, hostile in BOMBS.items() if hostile.reason is not None or name.startswith("overview")]
FILES += ["sparse.tif", LARGEST]


@dataclass
class Siege:
    """A worker, whoever tempts it, and who watches."""

    site: Site
    worker: ChildProcess
    model: HostileModel
    canary: CanaryServer
    opened_outside: OpenedFiles
    images: Path
    _refused: list[str] = field(default_factory=list)

    def end_of(self, **changes: Any) -> tuple[str, str]:
        """Submit a job, wait for its end, and return its status and the reason for it."""
        model = changes.pop("model", None) or self.model.url("good")
        request = self.site.request(changes.pop("image", str(self.images / "sound.tif")), model, **changes)
        self.site.submit(request)
        status = self.site.wait_for_end(request["jobId"])[-1]
        ends = [event for event in self.site.events if event.attributes.get("job_id") == request["jobId"]]
        return status, ends[-1].message

    def tile_error(self, job_id: str) -> str:
        """Return the error of a job's only tile, from its row."""
        rows = self.site.rows("FEATURE_TABLE")
        (tile,) = [row for row in rows if "tile_status" in row and row["hash_key"]["S"].startswith(f"{job_id}:")]
        return str(tile["error_code"]["S"])

    def refused(self) -> list[str]:
        """Return every dead-lettered message so far."""
        self._refused += self.site.drain("IMAGE_DLQ")
        return self._refused

    def refusal_of(self, **changes: Any) -> str:
        status, reason = self.end_of(**changes)
        assert status == "FAILED", reason
        return reason


@pytest.fixture(scope="module")
def siege(emulator: Emulator, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Siege]:
    images, outside = tmp_path_factory.mktemp("images"), tmp_path_factory.mktemp("outside")
    # A process that gets tests of this module back from another one comes here a second time.
    directory = tmp_path_factory.mktemp("siege")
    site = Site(emulator, create_data_plane(emulator.client, directory.name), directory)
    write_image(images / "sound.tif", pattern(1, 64, 64))
    write_image(outside / "secret.tif", pattern(1, 64, 64))
    (images / "link.tif").symlink_to(outside / "secret.tif")
    with (
        CanaryServer((outside / "secret.tif").read_bytes()) as canary,
        HostileModel(canary.url).running() as model,
    ):
        for name in FILES:
            BOMBS[name].write(images / name, Bait(canary.url, outside))
        settings = {
            "IMAGE_DIRECTORIES": str(images),
            "OUTPUT_BUCKETS": site.data_plane.result_bucket,
            "OUTPUT_STREAMS": f"{site.data_plane.result_stream[:4]}*",
            "ASSUMABLE_ROLES": "arn:aws:iam::000000000000:role/team/*",
            "HTTP_ENDPOINT_HOSTS": f"127.0.0.1:{model.port}",
            "HTTP_ENDPOINT_TIMEOUT_S": "0.5",
            "JOB_DEADLINE_S": str(DEADLINE_S),
            "REGION_SIZE": "(16384, 16384)",
            "MAX_REGIONS": "100",
            "MEMORY_LIMIT_BYTES": str(MEMORY_LIMIT_BYTES),
        }
        with watching(outside) as opened, site.worker(**settings) as worker:
            yield Siege(site, worker, model, canary, opened, images)
            check_worker(Siege(site, worker, model, canary, opened, images))


def check_worker(siege: Siege) -> None:
    """Assert what has to hold when all is over: the same worker does the next job right, and has done nothing else."""
    status, _ = siege.end_of(jobId="the-last-one")
    (feature,) = siege.site.features("the-last-one")
    assert (status, feature["properties"]["imageGeometry"]["coordinates"]) == ("SUCCESS", [5.0, 6.0])
    assert siege.canary.hits == []
    assert siege.opened_outside.names() == set()
    assert siege.worker.exit_code is None
    limits = Path(f"/proc/{siege.worker.pid}/limits").read_text()
    assert f"Max data size             {MEMORY_LIMIT_BYTES}" in limits
    text = Path(f"/proc/{siege.worker.pid}/status").read_text()
    assert int(text.partition("VmHWM:")[2].split()[0]) < MAX_PEAK_KIB


@pytest.mark.parametrize("name", [name for name in FILES if BOMBS[name].reason is not None])
def test_hostile_file_fails_its_job_with_reason(siege: Siege, name: str) -> None:
    reason = siege.refusal_of(image=str(siege.images / name))
    assert any(part in reason for part in str(BOMBS[name].reason).split("|")), reason


def test_huge_image_without_pixels_is_refused_by_its_plan(siege: Siege) -> None:
    assert "too many" in siege.refusal_of(image=str(siege.images / "sparse.tif"))
    assert "too many" in siege.refusal_of(
        image=str(siege.images / LARGEST), imageProcessorTileSize=16, imageProcessorTileOverlap=15
    )


def test_largest_tiles_that_are_allowed_do_not_fill_memory(siege: Siege) -> None:
    changes = {"imageProcessorTileSize": 8192, "imageProcessorTileOverlap": 0}
    status, reason = siege.end_of(image=str(siege.images / LARGEST), **changes)
    assert status == "SUCCESS", reason


@pytest.mark.parametrize("name", [name for name in FILES if name.startswith("overview")])
def test_image_is_read_without_files_that_its_metadata_name(siege: Siege, name: str) -> None:
    assert siege.end_of(image=str(siege.images / name))[0] == "SUCCESS"


ELSEWHERE = ["link.tif", "../outside0/secret.tif", "/etc/passwd", "/proc/self/environ", "/dev/zero"]


@pytest.mark.parametrize("path", ELSEWHERE)
def test_files_elsewhere_are_not_read(siege: Siege, path: str) -> None:
    assert siege.refusal_of(image=str(siege.images / path))


def test_hostile_urls_are_refused(siege: Siege) -> None:
    urls = [url for url in HOSTILE_IMAGE_URLS if url and url.isprintable()]
    canary = f"{siege.canary.url}/a.tif"
    urls += [canary, f"/vsicurl/{canary}", f"/vsizip//vsicurl/{canary}", f"file:///vsicurl/{canary}"]
    for number, url in enumerate(urls):
        siege.site.submit(siege.site.request(url, siege.model.url("good"), jobId=f"url-{number}"))
    for number, url in enumerate(urls):
        assert siege.site.wait_for_end(f"url-{number}")[-1] == "FAILED", url


def test_hostile_endpoints_are_never_called(siege: Siege) -> None:
    urls = [url for url in HOSTILE_MODEL_URLS if url and len(url) < 200]
    for host in ("localhost", "127.1", "0x7f000001", "2130706433", "[::1]", "[::ffff:127.0.0.1]", "127.0.0.1.", "0"):
        urls.append(siege.canary.url.replace("127.0.0.1", host))
    urls += [siege.canary.url, siege.canary.url.replace("http://", f"http://127.0.0.1:{siege.model.port}@")]
    for number, url in enumerate(urls):
        siege.site.submit(siege.site.request(str(siege.images / "sound.tif"), url, jobId=f"endpoint-{number}"))
    for number, url in enumerate(urls):
        assert siege.site.wait_for_end(f"endpoint-{number}")[-1] == "FAILED", url


@pytest.mark.parametrize("kind", PARTLY_GOOD)
def test_bad_features_are_dropped_and_good_ones_delivered(siege: Siege, kind: str) -> None:
    status, reason = siege.end_of(model=siege.model.url(kind), jobId=f"answer-{kind}")
    assert status == "SUCCESS", reason
    found = [feature["properties"]["imageGeometry"]["coordinates"] for feature in siege.site.features(f"answer-{kind}")]
    assert [5.0, 6.0] in found
    assert len(found) <= 2


@pytest.mark.parametrize("kind", [*(kind for kind in BODIES if kind not in PARTLY_GOOD), *NO_ANSWER])
def test_tile_fails_with_reason_when_response_is_hostile(siege: Siege, kind: str) -> None:
    siege.refusal_of(model=siege.model.url(kind), jobId=f"answer-{kind}")
    assert siege.tile_error(f"answer-{kind}") == "BAD_RESPONSE"


def test_job_ends_at_deadline_when_responses_never_come(siege: Siege) -> None:
    for kind in LATE:
        siege.site.submit(
            siege.site.request(str(siege.images / "sound.tif"), siege.model.url(kind), jobId=f"late-{kind}")
        )
    # Others are served meanwhile.
    assert siege.end_of(jobId="meanwhile")[0] == "SUCCESS"
    for kind in LATE:
        assert siege.site.wait_for_end(f"late-{kind}")[-1] == "FAILED"
        assert siege.tile_error(f"late-{kind}") == "ABANDONED"


@pytest.mark.parametrize(
    ("field", "output"),
    [
        ("outputs[0].bucket", {"type": "S3", "bucket": "somebody-elses"}),
        ("outputs[0].stream", {"type": "Kinesis", "stream": "x-else"}),
        ("outputs[0].prefix", {"type": "S3", "bucket": "results", "prefix": "../up"}),
        ("outputs[0].role", {"type": "S3", "bucket": "results", "role": "arn:aws:iam::000000000000:role/admin"}),
        ("outputs[0].role", {"type": "S3", "bucket": "results", "role": "arn:aws:s3:::bucket"}),
    ],
)
def test_outputs_and_roles_that_are_not_allowed_are_refused(siege: Siege, field: str, output: dict[str, str]) -> None:
    changed = {**output, "bucket": siege.site.data_plane.result_bucket} if output.get("bucket") == "results" else output
    assert field in siege.refusal_of(outputs=[changed])


@pytest.mark.parametrize("field", ["imageReadRole", "imageProcessor"])
def test_roles_of_others_are_never_assumed(siege: Siege, field: str) -> None:
    role = "arn:aws:iam::999999999999:role/team/reader"
    value = {"name": "ships", "type": "SM_ENDPOINT", "assumedRole": role} if field == "imageProcessor" else role
    assert "ASSUMABLE_ROLES" in siege.refusal_of(**{field: value})


IDS = ["a/b", "c/b", "../../up", "a%2Fb", "ä ö", "'; drop", "${jndi:ldap://x}", "<script>", "a" * 128, "%", "con"]


def test_hostile_ids_stay_below_prefix_and_apart(siege: Siege) -> None:
    bucket = siege.site.data_plane.result_bucket
    outputs = [{"type": "S3", "bucket": bucket, "prefix": "ids"}]
    for name in IDS:
        image = str(siege.images / "sound.tif")
        siege.site.submit(siege.site.request(image, siege.model.url("good"), jobId=name, outputs=outputs))
    for name in IDS:
        assert siege.site.wait_for_end(name)[-1] == "SUCCESS"
    listing = siege.site.client("s3").list_objects_v2(Bucket=bucket, Prefix="ids/")["Contents"]
    assert len({entry["Key"] for entry in listing}) == len(IDS)
    assert all(entry["Key"].count("/") == 1 for entry in listing)


def test_deep_and_long_messages_are_dead_lettered(siege: Siege) -> None:
    sound = json.dumps(siege.site.request("s3://a-bucket/k", "m"))
    deep = f'{sound[:-1]}, "jobName": {"[" * 5_000 + "]" * 5_000}}}'
    bodies = [deep, "{" * 100_000, "[" * 100_000]
    for body in bodies:
        siege.site.submit(body)
    eventually(lambda: set(bodies) <= set(siege.refused()))
    assert "regionOfInterest" in siege.refusal_of(regionOfInterest="POLYGON" + "(" * 60_000)
