"""The AWS emulator: SQS, SNS, DynamoDB, S3, Kinesis and CloudFormation on a loopback port, in memory.

Only this module and ``emulator_guard`` depend on the product.
"""

import importlib.util
import os
import shutil
import socket
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import boto3
import botocore.session
from botocore.config import Config

from aws.osml.model_runner.exceptions import LocalStackError
from aws.osml.model_runner.local.stack.emulator_guard import ACCESS_KEY_VARIABLE, HEALTH_PATH

from .child_process import ACCESS_KEY, LOOPBACK, REGION, SECRET_KEY, ChildProcess, aws_environment, clean_environment

GUARD = Path(__file__).with_name("emulator_guard.py")
START_TRIES = 3
SERVICES = "cloudformation,dynamodb,ec2,kinesis,s3,sns,sqs,sts"
# The last entry of each is a fixed default. The other entries name no environment variable, so the user's AWS profile
# is not read.
_IGNORE_USER_SETTINGS = {
    "profile": (None, None, None, None),
    "config_file": (None, None, os.devnull, None),
    "credentials_file": (None, None, os.devnull, None),
}


class Emulator:
    """A context manager: the emulator runs inside the ``with`` block, and its data is lost at the end.

    ``command`` starts an emulator that is installed in another environment. ``url`` is its address. The emulator serves
    requests that are signed with ``access_key`` (None: with any key), and refuses requests of browsers. ``services``
    are the emulated services, separated by commas.
    """

    def __init__(
        self,
        directory: Path,
        command: Sequence[str] | None = None,
        access_key: str | None = None,
        services: str = SERVICES,
    ) -> None:
        self.directory = directory
        self.command = command
        self.access_key = access_key
        self.services = services
        self.url = ""
        self._children = ExitStack()
        self._process: ChildProcess | None = None
        self._clients: dict[str, Any] = {}
        self._clients_lock = threading.Lock()

    @property
    def environment(self) -> dict[str, str]:
        """Environment variables that direct boto3 and GDAL in another process to this emulator."""
        return aws_environment(self.url, self.access_key or ACCESS_KEY)

    def client(self, service: str) -> Any:
        """Return this process's client of ``service``. All callers share one client; threads can share it too."""
        with self._clients_lock:
            if service not in self._clients:
                self._clients[service] = local_client(service, self.url, access_key=self.access_key or ACCESS_KEY)
            return self._clients[service]

    def check_alive(self) -> None:
        """Raise LocalStackError with the end of its log if the emulator has ended."""
        if self._process is not None:
            self._process.check_alive()

    def __enter__(self) -> Self:
        command = self.command or default_command()
        for tries_left in reversed(range(START_TRIES)):
            try:
                self._start(command)
            except LocalStackError:
                # Another process may have taken the free port before the emulator listened on it.
                if not tries_left:
                    raise
            else:
                break
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for client in self._clients.values():
            client.close()
        self._clients.clear()
        self._children.close()

    def _start(self, command: Sequence[str]) -> None:
        port = free_port()
        self.url = f"http://{LOOPBACK}:{port}"
        # Without coverage, because the emulator is another program and would run at half its speed.
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE_")}
        environment = clean_environment(inherited) | {
            "BIND_HOST": LOOPBACK,
            "MINISTACK_HOST": LOOPBACK,
            "GATEWAY_PORT": str(port),
            "MINISTACK_REGION": REGION,
            "SERVICES": self.services,
            ACCESS_KEY_VARIABLE: self.access_key or "",
            "LOG_LEVEL": "WARNING",
            # These listen on every interface and ignore BIND_HOST.
            "IOT_MTLS_ENABLED": "0",
            "SFTP_ENABLED": "0",
            "TMPDIR": str(self.directory),
        }
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))

        def probe() -> bool | None:
            try:
                with opener.open(self.url + HEALTH_PATH, timeout=5):
                    return True
            except (urllib.error.URLError, ConnectionError, TimeoutError):
                return None

        with ExitStack() as starting:
            self._process = starting.enter_context(
                ChildProcess.start("the AWS emulator", command, environment, self.directory / "emulator.log")
            )
            self._process.wait_until(probe)
            self._children = starting.pop_all()


def local_client(service: str, endpoint_url: str, max_attempts: int = 5, access_key: str = ACCESS_KEY) -> Any:
    """Return a client of ``service`` that sends requests to ``endpoint_url`` with keys of the embedded stack.

    It ignores the AWS profile, proxy and endpoint that the user has configured.
    """
    config = Config(
        proxies={},
        max_pool_connections=32,
        connect_timeout=5,
        retries={"mode": "standard", "total_max_attempts": max_attempts},
        s3={"addressing_style": "path"},
    )
    session: Any = boto3.Session(
        aws_access_key_id=access_key,
        aws_secret_access_key=SECRET_KEY,
        region_name=REGION,
        botocore_session=botocore.session.Session(session_vars=_IGNORE_USER_SETTINGS),
    )
    return session.client(service, endpoint_url=endpoint_url, config=config)


def default_command() -> list[str]:
    """Return the command of the emulator that is installed here.

    Raises LocalStackError, with the command that installs the emulator, if it is not installed.
    """
    if importlib.util.find_spec("ministack") is not None:
        return [sys.executable, str(GUARD)]
    if (found := shutil.which("ministack")) is not None:
        return [str(Path(found).resolve().with_name("python")), str(GUARD)]
    raise LocalStackError("the AWS emulator is not installed: pip install '.[local]' in a clone of this project")


def free_port() -> int:
    """Return a loopback port that is not in use."""
    with socket.socket() as listener:
        listener.bind((LOOPBACK, 0))
        return int(listener.getsockname()[1])
