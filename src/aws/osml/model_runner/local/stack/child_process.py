"""A child process that cannot outlive its parent, with its output in a file."""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar

from aws.osml.model_runner.exceptions import LocalStackError

LOOPBACK = "127.0.0.1"
REGION = "us-west-2"
ACCESS_KEY = "local"
SECRET_KEY = "local"  # noqa: S105 - the emulator checks no signature

DIE_WITH_PARENT = Path(__file__).with_name("die_with_parent.py")
POLL_S = 0.02
TAIL_LINES = 20

T = TypeVar("T")


class ChildProcess:
    """A running command. It ends when the ``with`` block ends, or with this process, whichever comes first.

    Start it from a thread that outlives the child, because the kernel ends the child with that thread.
    """

    def __init__(self, name: str, process: subprocess.Popen[bytes], log_file: Path, grace_s: float) -> None:
        self.name = name
        self.log_file = log_file
        self._process = process
        self._grace_s = grace_s

    @classmethod
    def start(
        cls,
        name: str,
        command: Sequence[str],
        environment: Mapping[str, str],
        log_file: Path,
        grace_s: float = 5.0,
    ) -> "ChildProcess":
        """Start ``command`` with exactly this environment; its output is appended to ``log_file``.

        ``grace_s`` is the time between SIGTERM and SIGKILL.
        """
        die_with_parent = [sys.executable, "-I", "-S", str(DIE_WITH_PARENT), str(os.getpid())]
        with log_file.open("ab") as log:
            process = subprocess.Popen(  # noqa: S603 - the command is the caller's own
                [*die_with_parent, *command],
                env=dict(environment),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C reaches the parent alone, which then stops its children in order
            )
        return cls(name, process, log_file, grace_s)

    @property
    def pid(self) -> int:
        """The process id, which stays the same from the wrapper to the command."""
        return self._process.pid

    @property
    def exit_code(self) -> int | None:
        """None while the process runs; negative when a signal ended it."""
        return self._process.poll()

    def log_text(self) -> str:
        """Return the output of the process so far."""
        return self.log_file.read_text(errors="replace")

    def check_alive(self) -> None:
        """Raise LocalStackError with the end of the log if the process has ended."""
        if self.exit_code is not None:
            raise LocalStackError(f"{self.name} ended with exit code {self.exit_code}{self._log_tail()}")

    def wait_until(self, probe: Callable[[], T | None], timeout_s: float = 30.0) -> T:
        """Call ``probe`` until it returns a value that is not None, and return that value.

        Raises LocalStackError if the process ends, or after ``timeout_s``.
        """
        deadline = time.monotonic() + timeout_s
        while (result := probe()) is None:
            self.check_alive()
            if time.monotonic() > deadline:
                raise LocalStackError(f"{self.name} was not ready after {timeout_s:.0f} s{self._log_tail()}")
            time.sleep(POLL_S)
        return result

    def terminate(self) -> None:
        """Send SIGTERM, and do not wait."""
        if self._process.poll() is None:
            self._process.terminate()

    def stop(self) -> None:
        """Send SIGTERM, and SIGKILL if the process has not ended after its time of grace."""
        self.terminate()
        try:
            self._process.wait(self._grace_s)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _log_tail(self) -> str:
        lines = self.log_text().splitlines()[-TAIL_LINES:]
        return "\n".join([f"; the end of {self.log_file}:", *(f"    {line}" for line in lines)])


def clean_environment(environ: Mapping[str, str]) -> dict[str, str]:
    """Return ``environ`` without AWS and GDAL settings, and with loopback addresses that bypass proxies."""
    kept = {name: value for name, value in environ.items() if not name.startswith(("AWS_", "GDAL_", "VSI_", "CPL_"))}
    for name in ("NO_PROXY", "no_proxy"):
        kept[name] = ",".join(filter(None, [environ.get(name), LOOPBACK, "localhost"]))
    return kept


def aws_environment(endpoint_url: str, access_key: str = ACCESS_KEY) -> dict[str, str]:
    """Return the variables that direct boto3 and GDAL to the emulator, with keys that only the emulator accepts."""
    return {
        "AWS_ACCESS_KEY_ID": access_key,
        "AWS_SECRET_ACCESS_KEY": SECRET_KEY,
        "AWS_DEFAULT_REGION": REGION,
        "AWS_REGION": REGION,
        "AWS_CONFIG_FILE": os.devnull,
        "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_ENDPOINT_URL": endpoint_url,
        "AWS_S3_ENDPOINT": endpoint_url.removeprefix("http://"),
        "AWS_HTTPS": "NO",
        "AWS_VIRTUAL_HOSTING": "FALSE",
    }
