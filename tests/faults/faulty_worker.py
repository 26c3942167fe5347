"""Starts workers that meet faults: ``model-runner serve``, in a process forked after its imports.

``python faulty_worker.py SOCKET`` listens there, forks a worker for each JSON line ``{"environment", "log"}``, and
returns its process id. The exit status is written beside its log as ``LOG.exit``. A worker ends with this process.
The variable ``FAULTS`` of its environment is a JSON object: ``journal``, ``rules`` (see ``injection``), ``seed``, and
faults outside calls: ``clock_ahead_s``, ``killer_tile`` (path of an image, row and column of the tile whose encoding
kills the process) and ``stuck_tile`` (the same, whose encoding never ends).
"""

import ctypes
import faulthandler
import json
import os
import select
import signal
import socket
import sys
import threading
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

_system_time = time.time
_clock = {"ahead_s": 0.0}


def _skewed_time() -> float:
    return _system_time() + _clock["ahead_s"]


# Before anything is imported that keeps the function.
time.time = _skewed_time

from aws.osml.model_runner.cli import main as command_line  # noqa: E402
from aws.osml.model_runner.common.typing import ImageRegion  # noqa: E402
from aws.osml.model_runner.model_runner import ModelRunner  # noqa: E402, F401 - workers need not import it again
from aws.osml.model_runner.raster import TileEncoder  # noqa: E402
from faults.injection import Injector, Journal  # noqa: E402

_PR_SET_PDEATHSIG = 1


def serve_forks(path: str) -> dict[str, Any] | None:
    """Fork workers as they are asked for. Returns what was asked in a forked worker, and in no other process."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(f"{path}.new")
        listener.listen()
        os.rename(f"{path}.new", path)
        logs: dict[int, str] = {}
        while True:
            readable, _, _ = select.select([listener], [], [], 0.02)
            _reap(logs)
            if not readable:
                continue
            with listener.accept()[0] as connection, connection.makefile("rw") as stream:
                order = json.loads(stream.readline())
                pid = os.fork()
                if pid == 0:
                    return order
                logs[pid] = order["log"]
                stream.write(f"{pid}\n")


def _reap(logs: dict[int, str]) -> None:
    while logs:
        pid, status = os.waitpid(-1, os.WNOHANG)
        if pid == 0:
            return
        fresh = Path(f"{logs[pid]}.new")
        fresh.write_text(str(os.waitstatus_to_exitcode(status)))
        fresh.replace(f"{logs.pop(pid)}.exit")


def become_worker(order: dict[str, Any], parent: int) -> None:
    """Take on the worker's environment, output, clock and faults."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)
    log = os.open(order["log"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.environ.clear()
    os.environ.update(order["environment"])
    faulthandler.register(signal.SIGUSR1)
    faults = json.loads(os.environ.get("FAULTS", "{}"))
    _clock["ahead_s"] = faults.get("clock_ahead_s", 0.0)
    if "journal" in faults:
        journal = Journal(Path(faults["journal"]))
        Injector(faults.get("rules", []), journal, faults.get("seed", os.getpid())).install()
        _spoil_tiles(faults, journal)


def _spoil_tiles(faults: dict[str, Any], journal: Journal) -> None:
    encode = TileEncoder.encode

    def encode_or_worse(encoder: TileEncoder, tile: ImageRegion) -> bytes:
        here = [encoder._source.location.gdal_path, *tile.origin]
        if here == faults.get("killer_tile"):
            journal.note(fault="segfault", on="tile")
            os.kill(os.getpid(), signal.SIGSEGV)
        if here == faults.get("stuck_tile"):
            journal.note(fault="stuck", on="tile")
            threading.Event().wait()
        return encode(encoder, tile)

    TileEncoder.encode = encode_or_worse


if __name__ == "__main__":
    forkserver = os.getpid()
    order = serve_forks(sys.argv[1])
    if order is not None:
        become_worker(order, forkserver)
        sys.exit(command_line(["serve"]))
