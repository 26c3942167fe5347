"""The process of a worker without AWS: its signals, its memory limit and its health."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from aws.osml.model_runner.common.machine import memory_limit_bytes
from aws.osml.model_runner.local.stack.child_process import ChildProcess, clean_environment
from worker_process import eventually

SERVE = [sys.executable, "-m", "aws.osml.model_runner", "serve"]


@pytest.fixture
def environment(tmp_path):
    """The settings of a worker whose AWS refuses every connection."""
    return {
        **clean_environment(os.environ),
        "AWS_ENDPOINT_URL": "http://127.0.0.1:1",
        "AWS_ACCESS_KEY_ID": "none",
        "AWS_SECRET_ACCESS_KEY": "none",
        "AWS_DEFAULT_REGION": "us-west-2",
        "AWS_MAX_ATTEMPTS": "1",
        "IMAGE_QUEUE": "http://127.0.0.1:1/1/images",
        "IMAGE_DLQ": "http://127.0.0.1:1/1/refused",
        "REGION_QUEUE": "http://127.0.0.1:1/1/regions",
        "JOB_TABLE": "jobs",
        "REGION_REQUEST_TABLE": "regions",
        "FEATURE_TABLE": "features",
        "OUTSTANDING_JOBS_TABLE": "open",
        "IMAGE_OPEN_TIMEOUT_S": "0",
        "HEALTH_FILE": str(tmp_path / "health.json"),
    }


def test_worker_without_aws_is_healthy_limited_and_stops(environment, tmp_path):
    health = Path(environment["HEALTH_FILE"])
    with ChildProcess.start("worker", SERVE, environment, tmp_path / "worker.log") as worker:
        eventually(lambda: health.exists() and json.loads(health.read_text())["state"] == "aws_unreachable")
        limits = Path(f"/proc/{worker.pid}/limits").read_text()
        checked = subprocess.run([*SERVE[:-1], "health", "--file", str(health)])
        worker.terminate()
        eventually(lambda: worker.exit_code is not None)
    assert checked.returncode == 0
    assert int(re.search(r"Max data size +(\d+)", limits)[1]) == 7 * memory_limit_bytes() // 8
    assert worker.exit_code == 0
    assert json.loads(health.read_text())["state"] == "stopped"


def test_health_file_in_read_only_folder_is_named(environment, tmp_path):
    environment["HEALTH_FILE"] = "/proc/health.json"
    with ChildProcess.start("worker", SERVE, environment, tmp_path / "worker.log") as worker:
        eventually(lambda: worker.exit_code is not None)
    assert worker.exit_code == 2
    assert 'HEALTH_FILE="/proc/health.json"' in worker.log_text()
    assert "Traceback" not in worker.log_text()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make a namespace of process ids")
def test_first_process_of_container_ends_while_it_imports(environment):
    # The kernel ignores a signal to process 1 that has no handler for it. On a busy machine a worker may have started
    # before the first signal, so the test tries again.
    ends = [end_of_first_process(environment)]
    while ends[-1][0] != 128 + signal.SIGTERM and len(ends) < 5:
        ends.append(end_of_first_process(environment))
    status, output = ends[-1]
    assert status == 128 + signal.SIGTERM
    assert "worker.started" not in output


def end_of_first_process(environment):
    """Start a worker as process 1, send SIGTERM until it ends, and return its exit status and output."""
    as_first = ["unshare", "--pid", "--fork", "--kill-child", *SERVE]
    with subprocess.Popen(as_first, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as unshare:
        children = Path(f"/proc/{unshare.pid}/task/{unshare.pid}/children")
        worker_pid = int(eventually(children.read_text))
        while unshare.poll() is None:
            try:
                os.kill(worker_pid, signal.SIGTERM)
            except ProcessLookupError:
                break
            time.sleep(0.02)
        output = unshare.communicate()[0].decode()
    return unshare.returncode, output
