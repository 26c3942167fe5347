"""The AWS emulator: SQS, SNS, DynamoDB, S3, Kinesis and CloudFormation on a loopback port, in memory.

This module and ``emulator_guard`` alone know which emulator it is.
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

from aws.osml.model_runner.local.exceptions import LocalStackError
from aws.osml.model_runner.local.stack.emulator_guard import ACCESS_KEY_VARIABLE, HEALTH_PATH

from .child_process import ChildProcess
from .clients import local_client
from .environment import ACCESS_KEY, LOOPBACK, REGION, aws_environment, clean_environment

GUARD = Path(__file__).with_name("emulator_guard.py")
START_TRIES = 3
SERVICES = "cloudformation,dynamodb,ec2,kinesis,s3,sns,sqs,sts"


class Emulator:
    """A context manager: the emulator runs inside the ``with`` block, and all that it holds is gone afterwards.

    ``command`` is what starts it, when it is installed apart from this environment. ``url`` is where it listens. It
    serves requests that are signed with ``access_key``, None being any key, and refuses those of browsers.
    """

    def __init__(self, directory: Path, command: Sequence[str] | None = None, access_key: str | None = None) -> None:
        self.directory = directory
        self.command = command
        self.access_key = access_key
        self.url = ""
        self._children = ExitStack()
        self._process: ChildProcess | None = None
        self._clients: dict[str, Any] = {}
        self._clients_lock = threading.Lock()

    @property
    def environment(self) -> dict[str, str]:
        """The variables that point boto3 and GDAL in another process at this emulator."""
        return aws_environment(self.url, self.access_key or ACCESS_KEY)

    def client(self, service: str) -> Any:
        """Return this process's client of ``service``; the same one for every caller, safe to share by threads."""
        with self._clients_lock:
            if service not in self._clients:
                self._clients[service] = local_client(service, self.url, access_key=self.access_key or ACCESS_KEY)
            return self._clients[service]

    def check_alive(self) -> None:
        """Raise LocalStackError with the end of its log when the emulator has ended."""
        if self._process is not None:
            self._process.check_alive()

    def __enter__(self) -> Self:
        command = self.command or default_command()
        for tries_left in reversed(range(START_TRIES)):
            try:
                self._start(command)
            except LocalStackError:
                # Between choosing a free port and listening on it, another process may have taken it.
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
        # Not traced when tests measure coverage: it is another program, and would run at half its speed.
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE_")}
        environment = clean_environment(inherited) | {
            "BIND_HOST": LOOPBACK,
            "MINISTACK_HOST": LOOPBACK,
            "GATEWAY_PORT": str(port),
            "MINISTACK_REGION": REGION,
            "SERVICES": SERVICES,
            ACCESS_KEY_VARIABLE: self.access_key or "",
            "LOG_LEVEL": "WARNING",
            # These listen on every interface, whatever BIND_HOST says.
            "IOT_MTLS_ENABLED": "0",
            "SFTP_ENABLED": "0",
            "TMPDIR": str(self.directory),
        }
        with ExitStack() as starting:
            self._process = starting.enter_context(
                ChildProcess.start("the AWS emulator", command, environment, self.directory / "emulator.log")
            )
            self._process.wait_until(self._probe)
            self._children = starting.pop_all()

    def _probe(self) -> bool | None:
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        try:
            with opener.open(self.url + HEALTH_PATH, timeout=5):
                return True
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            return None


def default_command() -> list[str]:
    """Return the command of the emulator that is installed here; LocalStackError says how to install one."""
    if importlib.util.find_spec("ministack") is not None:
        return [sys.executable, str(GUARD)]
    if (found := shutil.which("ministack")) is not None:
        return [str(Path(found).resolve().with_name("python")), str(GUARD)]
    raise LocalStackError("the AWS emulator is not installed: pip install '.[local]' in a clone of this project")


def free_port() -> int:
    """Return a loopback port on which nothing listens at the moment."""
    with socket.socket() as listener:
        listener.bind((LOOPBACK, 0))
        return int(listener.getsockname()[1])
