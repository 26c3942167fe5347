"""The images are built with buildah and run with podman: a job through the four services of docker/compose.yaml."""

import json
import os
import re
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
WORKER, EMBEDDED = "localhost/tile-model-runner:latest", "localhost/tile-model-runner:embedded"
NOT_POSSIBLE = 77
PODMAN = ("podman", "--runtime", "runc")
# The limits of a machine that is a container itself; podman's own health checks require systemd.
LIMITS = ("--ulimit", "nofile=1024:20000", "--ulimit", "nproc=1024:4096", "--no-healthcheck", "--memory", "2g")
RESTRICTED = ("--read-only", "--cap-drop", "ALL", "--security-opt", "no-new-privileges")
MOST_BYTES = 900_000_000

# Runs in the container of the gateway, beside the emulator.
JOB = """\
import json, sys, time
import numpy as np
from aws.osml.model_runner.local.stack.emulator import local_client
from aws.osml.model_runner.raster.pixels import write_geotiff

job, url = sys.argv[1], "http://127.0.0.1:4566"
settings = dict(line.rstrip().split("=", 1) for line in open("/run/stack/settings"))
settings = {name: value.strip("'") for name, value in settings.items()}
s3, sqs, table = (local_client(name, url) for name in ("s3", "sqs", "dynamodb"))
bucket = settings["RESULT_BUCKET"]
write_geotiff("/tmp/scene.tif", np.zeros((1, 2500, 2500), np.uint8), (0.0, 1e-5, 0.0, 0.0, 0.0, -1e-5), epsg=4326)
s3.upload_file("/tmp/scene.tif", bucket, "in/scene.tif")
request = {
    "jobId": job, "imageUrls": [f"s3://{bucket}/in/scene.tif"], "imageProcessorTileSize": 256,
    "imageProcessor": {"name": "centerpoint", "type": "SM_ENDPOINT"}, "imageProcessorTileOverlap": 32,
    "outputs": [{"type": "S3", "bucket": bucket, "prefix": job}],
}
sqs.send_message(QueueUrl=settings["IMAGE_QUEUE"], MessageBody=json.dumps(request))
is_told = False
while True:
    rows = table.scan(TableName=settings["JOB_TABLE"])["Items"]
    rows = [row for row in rows if row.get("job_id", {}).get("S") == job]
    if rows and rows[0].get("image_status", {}).get("S") in ("SUCCESS", "PARTIAL", "FAILED"):
        break
    if not is_told and table.scan(TableName=settings["FEATURE_TABLE"], Select="COUNT")["Count"] > int(sys.argv[2]):
        print("begun", flush=True)
        is_told = True
    time.sleep(0.2)
(key,) = [item["Key"] for item in s3.list_objects_v2(Bucket=bucket, Prefix=job)["Contents"]]
features = json.loads(s3.get_object(Bucket=bucket, Key=key)["Body"].read())["features"]
print(json.dumps([rows[0]["image_status"]["S"], sorted(json.dumps(item["geometry"]) for item in features)]))
"""

pytestmark = pytest.mark.long


def podman(*arguments: str, **options: Any) -> str:
    """Run podman and return its standard output."""
    done = subprocess.run([*PODMAN, *arguments], capture_output=True, text=True, check=False, **options)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.fixture(scope="module")
def images() -> None:
    """Build both images, or skip with the reason why this machine cannot."""
    done = subprocess.run([ROOT / "scripts" / "build-images"], capture_output=True, text=True, check=False)
    if done.returncode == NOT_POSSIBLE:
        pytest.skip(done.stderr.strip())
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]


class Services:
    """The services of docker/compose.yaml, in one network that nothing else is in."""

    def __init__(self, prefix: str, settings: Path, running: ExitStack) -> None:
        self.prefix = prefix
        self._settings = settings
        self._running = running
        self._services = yaml.safe_load((ROOT / "docker" / "compose.yaml").read_text())["services"]

    def start(self, service: str, name: str = "") -> str:
        """Start a service as compose does, restricted alike, and return the name of its container."""
        facts, name = self._services[service], f"{self.prefix}-{name or service}"
        network = "none" if service == "emulator" else f"container:{self.prefix}-emulator"
        options = [*LIMITS, *RESTRICTED, "--network", network, "--volume", f"{self._settings}:/run/stack"]
        for variable, value in facts.get("environment", {}).items():
            options += ["--env", f"{variable}={value}"]
        if service == "gateway":
            options += ["--volume", f"{ROOT / 'docker' / 'gateway.py'}:/opt/gateway.py:ro"]
        command = facts.get("command", [])
        if "entrypoint" in facts:
            entrypoint, *arguments = facts["entrypoint"]
            options += ["--entrypoint", entrypoint]
            command = [*arguments, *command]
        image = WORKER if facts["image"].endswith(":latest") else EMBEDDED
        podman("run", "--detach", "--name", name, *options, image, *command)
        self._running.callback(podman, "rm", "--force", "--time", "1", name)
        return name

    def wait_until_healthy(self, service: str) -> None:
        """Wait until the health command of a service succeeds."""
        _kind, *command = self._services[service]["healthcheck"]["test"]
        name, deadline_s = f"{self.prefix}-{service}", time.monotonic() + 120
        while subprocess.run([*PODMAN, "exec", name, *command], capture_output=True).returncode:
            assert time.monotonic() < deadline_s, podman("logs", name)
            time.sleep(0.5)

    def submit(self, job: str, begun_after_rows: int) -> subprocess.Popen[str]:
        """Start a job in the gateway's container: a line ``begun``, and a line with its status and geometries."""
        command = [*PODMAN, "exec", "--interactive", f"{self.prefix}-gateway", "python", "-c", JOB, job]
        return subprocess.Popen([*command, str(begun_after_rows)], stdout=subprocess.PIPE, text=True)


@pytest.fixture
def services(images: None, tmp_path: Path) -> Iterator[Services]:
    """The emulator, the model and the gateway; a test starts workers."""
    settings = tmp_path / "settings"
    settings.mkdir()
    os.chown(settings, 10001, 10001)
    with ExitStack() as running:
        found = Services(f"test-{os.getpid()}", settings, running)
        for service in ("emulator", "model", "gateway"):
            found.start(service)
            found.wait_until_healthy(service)
        yield found


def test_job_survives_killed_worker_with_same_result(services: Services) -> None:
    services.start("worker", "first")
    with services.submit("whole", 10) as job:
        whole = json.loads(job.stdout.read().splitlines()[-1])
    podman("exec", f"{services.prefix}-first", "model-runner", "health")
    with services.submit("broken", 100 + len(whole[1])) as job:
        assert job.stdout.readline().strip() == "begun"
        podman("kill", f"{services.prefix}-first")
        services.start("worker", "second")
        broken = json.loads(job.stdout.read().splitlines()[-1])
    assert whole[0] == broken[0] == "SUCCESS"
    assert len(whole[1]) > 50
    assert broken[1] == whole[1]


@pytest.mark.parametrize("wait_s", [0.0, 0.5, 1.0, 8.0])
def test_signal_ends_worker_at_any_time(services: Services, wait_s: float) -> None:
    name = services.start("worker")
    time.sleep(wait_s)
    podman("kill", "--signal", "TERM", name)
    code = int(subprocess.run([*PODMAN, "wait", name], capture_output=True, text=True, timeout=30).stdout)
    assert code in (0, 143)
    assert code == 143 or "worker.stopped" in podman("logs", name)


def test_worker_starts_without_settings_and_names_them(images: None) -> None:
    done = subprocess.run(
        [*PODMAN, "run", "--rm", "--network", "none", *LIMITS, *RESTRICTED, "--read-only-tmpfs=false", WORKER],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert "IMAGE_QUEUE=unset" in done.stderr


def test_image_holds_worker_only_and_its_bill_of_materials(images: None) -> None:
    run = ("run", "--rm", "--network", "none", *LIMITS, *RESTRICTED, "--entrypoint")
    stack = podman(
        *run, "sh", WORKER, "-c", "ls /opt/model-runner/lib/python3.11/site-packages/aws/osml/model_runner/local"
    )
    assert {"stack", "demo", "models", "onnx"}.isdisjoint(stack.split())
    tools = podman(
        *run, "sh", WORKER, "-c", "command -v gcc g++ pip pip3 curl git make; find / -xdev -perm /6000 -type f; :"
    )
    assert tools == ""
    bill = json.loads(podman(*run, "cat", WORKER, "/usr/share/tile-model-runner/sbom.cdx.json"))
    names = {item["name"] for item in bill["components"] if item["purl"].startswith("pkg:pypi/")}
    locked = re.findall(r"^([a-z0-9-]+)==", (ROOT / "requirements" / "runtime.txt").read_text(), re.MULTILINE)
    assert names == {*locked, "gdal"}
    assert sum(item["purl"].startswith("pkg:deb/") for item in bill["components"]) > 100
    assert bill["metadata"]["component"]["name"] == "tile-model-runner"
    facts = json.loads(podman("image", "inspect", WORKER))[0]
    assert facts["Labels"]["org.opencontainers.image.licenses"] == "Apache-2.0"
    assert facts["Config"]["User"] == "10001:10001"
    assert facts["Size"] < MOST_BYTES
