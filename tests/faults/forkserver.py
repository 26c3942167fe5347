"""Workers that meet faults, as tests handle them: start, kill, pause, and read what became of them."""

import json
import os
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from aws.osml.model_runner.local.stack.child_process import ChildProcess
from worker_process import eventually

_SCRIPT = Path(__file__).with_name("faulty_worker.py")
_GRACE_S = 30.0


@dataclass(frozen=True)
class FaultyWorker:
    """One worker process. ``exit_code`` is negative when a signal ended it, None while it runs."""

    pid: int
    log_file: Path

    @property
    def exit_code(self) -> int | None:
        path = Path(f"{self.log_file}.exit")
        return int(path.read_text()) if path.exists() else None

    @property
    def is_stopped(self) -> bool:
        """True while the process is paused by SIGSTOP."""
        try:
            return Path(f"/proc/{self.pid}/stat").read_text().rsplit(") ", 1)[1][0] == "T"
        except FileNotFoundError:
            return False

    def log_text(self) -> str:
        return self.log_file.read_text(errors="replace")

    def send(self, number: signal.Signals) -> None:
        if self.exit_code is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send(signal.SIGKILL)
        self.wait()

    def wait(self, patience_s: float = 60.0) -> int:
        """Return the exit code, once there is one."""
        eventually(lambda: self.exit_code is not None, patience_s)
        return int(self.exit_code or 0)

    def wait_until_ready(self) -> Self:
        eventually(lambda: "worker.started" in self.log_text() or self.exit_code is not None)
        return self


class ForkServer:
    """Forks workers from one process that has imported them, since ten imports take longer than a test may."""

    def __init__(self, directory: Path, environment: Mapping[str, str]) -> None:
        self._directory = directory
        self._environment = {
            # Coverage is measured in workers that start in the ordinary way, not in forked ones.
            **{name: value for name, value in environment.items() if not name.startswith("COVERAGE")},
            "OPENBLAS_NUM_THREADS": "1",
        }
        # A socket's path may have 108 bytes, and pytest's directories are longer.
        self._sockets = tempfile.TemporaryDirectory(prefix="mr-")
        self._socket = str(Path(self._sockets.name) / "fork-server")
        self._running = ExitStack()

    def __enter__(self) -> Self:
        command = [sys.executable, str(_SCRIPT), self._socket]
        log = self._directory / "fork-server.log"
        process = ChildProcess.start("the fork server", command, self._environment, log)
        self._running.callback(self._sockets.cleanup)
        self._running.enter_context(process)
        process.wait_until(lambda: os.path.exists(self._socket) or None, timeout_s=60)
        return self

    def __exit__(self, *_: object) -> None:
        self._running.close()

    def start(self, environment: Mapping[str, str], log: Path) -> FaultyWorker:
        log.touch()
        with socket.socket(socket.AF_UNIX) as connection:
            connection.connect(self._socket)
            with connection.makefile("rw") as stream:
                stream.write(json.dumps({"environment": dict(environment), "log": str(log)}) + "\n")
                stream.flush()
                return FaultyWorker(int(stream.readline()), log)


class Fleet:
    """The workers of one test, and the journal of what happened to them."""

    def __init__(self, forkserver: ForkServer, environment: Callable[..., dict[str, str]], directory: Path) -> None:
        self._fork_server = forkserver
        self._environment = environment
        self._directory = directory
        self.workers: list[FaultyWorker] = []
        self.journal_file = directory / "journal.jsonl"
        self.journal_file.touch()

    def start(
        self, *rules: Mapping[str, Any], settings: Mapping[str, str] | None = None, **faults: Any
    ) -> FaultyWorker:
        """Start a worker whose calls meet ``rules``; ``faults`` are further keys of ``FAULTS``."""
        number = len(self.workers)
        document = {"journal": str(self.journal_file), "rules": rules, "seed": number, **faults}
        environment = self._environment(**(settings or {})) | {"FAULTS": json.dumps(document)}
        environment = {name: value for name, value in environment.items() if not name.startswith("COVERAGE")}
        worker = self._fork_server.start(environment, self._directory / f"faulty-{number}.log")
        self.workers.append(worker)
        return worker

    @contextmanager
    def worker(self, *rules: Mapping[str, Any], **faults: Any) -> Iterator[FaultyWorker]:
        """Run a worker for the length of a ``with`` block."""
        worker = self.start(*rules, **faults).wait_until_ready()
        try:
            yield worker
        finally:
            self.end(worker)

    def end(self, *workers: FaultyWorker) -> None:
        """Stop workers in order, and kill a worker that does not stop."""
        for worker in workers:
            worker.send(signal.SIGCONT)
            worker.send(signal.SIGTERM)
        deadline = time.monotonic() + _GRACE_S
        for worker in workers:
            while worker.exit_code is None and time.monotonic() < deadline:
                time.sleep(0.02)
            worker.kill()

    def end_all(self) -> None:
        self.end(*[worker for worker in self.workers if worker.exit_code is None])

    def kill_all(self) -> None:
        for worker in self.workers:
            worker.send(signal.SIGKILL)

    def events(self) -> list[dict[str, Any]]:
        """Return everything that was noted, in order."""
        return [json.loads(line) for line in self.journal_file.read_text().splitlines()]

    def faults(self, on: str | None = None) -> list[dict[str, Any]]:
        """Return the faults that workers met, those ``on`` one write when it is named."""
        return [event for event in self.events() if "fault" in event and on in (None, event["on"])]

    def writes(self, *names: str, pid: int | None = None) -> list[dict[str, Any]]:
        """Return the conditional writes of these names that a server answered."""
        return [event for event in self.events() if event.get("write") in names and pid in (None, event["pid"])]

    def deaths(self) -> int:
        """Return how many workers ended other than by being asked to."""
        return sum(worker.exit_code not in (None, 0) for worker in self.workers)


def log_of(workers: Sequence[FaultyWorker]) -> str:
    return "\n".join(worker.log_text() for worker in workers)
