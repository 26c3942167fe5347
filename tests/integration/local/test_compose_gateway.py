"""The services of compose.yaml, started without containers: the written settings work for a worker."""

import subprocess
import sys
import time
from pathlib import Path

import boto3

from aws.osml.model_runner.local.stack.child_process import ACCESS_KEY, SECRET_KEY
from aws.osml.model_runner.local.stack.emulator import Emulator
from aws.osml.model_runner.local.stack.model_server import ModelServer, create_model

DOCKER = Path(__file__).parents[3] / "docker"


def wait_for(path: Path, process: subprocess.Popen[bytes], within_s: float = 20.0) -> None:
    deadline = time.monotonic() + within_s
    while not path.exists():
        assert process.poll() is None, "the gateway has ended"
        assert time.monotonic() < deadline, f"{path} was not written"
        time.sleep(0.05)


def settings_in(path: Path) -> dict[str, str]:
    """Return the settings as the entrypoint's shell reads them."""
    command = 'set -a; . "$0"; env -0'
    shell = subprocess.run(["/bin/sh", "-c", command, str(path)], env={}, capture_output=True, check=True, text=True)
    pairs = (entry.split("=", 1) for entry in shell.stdout.split("\0") if entry)
    return {name: value for name, value in pairs if name not in ("PWD", "OLDPWD", "_", "SHLVL")}


def test_workers_find_queues_and_models(tmp_path: Path) -> None:
    settings_file = tmp_path / "settings"
    with Emulator(tmp_path) as emulator, ModelServer(create_model("centerpoint"), 0) as model:
        endpoint = f"ships={model.url}/invocations"
        command = [sys.executable, str(DOCKER / "gateway.py"), "--emulator", emulator.url, "--port", "0"]
        gateway = subprocess.Popen([*command, "--endpoint", endpoint, "--settings", str(settings_file)])
        try:
            wait_for(settings_file, gateway)
            settings = settings_in(settings_file)
            session = boto3.Session(ACCESS_KEY, SECRET_KEY, region_name=settings["AWS_REGION"])
            queue = session.client("sqs", endpoint_url=settings["AWS_ENDPOINT_URL"])
            queue.send_message(QueueUrl=settings["IMAGE_QUEUE"], MessageBody="{}")
            sagemaker = session.client("sagemaker", endpoint_url=settings["AWS_ENDPOINT_URL_SAGEMAKER"])
            assert sagemaker.describe_endpoint(EndpointName="ships")["EndpointStatus"] == "InService"
            assert {"JOB_TABLE", "FEATURE_TABLE", "REGION_QUEUE", "IMAGE_DLQ"} <= settings.keys()
        finally:
            gateway.terminate()
        assert gateway.wait(10) == 0
    assert not settings_file.exists()
