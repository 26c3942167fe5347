"""Imports the modules named on standard input and writes what that did: a script for a process of its own."""

import importlib
import json
import os
import sys
import threading
from collections.abc import Iterator, MutableMapping
from types import FrameType

import botocore.session

MAPPING_MODULES = ("os", "_collections_abc", "collections.abc", __name__)


class WatchedEnvironment(MutableMapping[str, str]):
    """The environment, noting where in the project's own source it is read; libraries may read theirs."""

    def __init__(self, real: MutableMapping[str, str], source: str) -> None:
        self.real = real
        self.source = source
        self.readers: list[str] = []

    def note(self) -> None:
        frame: FrameType | None = sys._getframe(1)
        while frame is not None and frame.f_globals.get("__name__") in MAPPING_MODULES:
            frame = frame.f_back
        if frame is not None and frame.f_code.co_filename.startswith(self.source):
            self.readers.append(f"{frame.f_code.co_filename}:{frame.f_lineno}")

    def __getitem__(self, key: str) -> str:
        self.note()
        return self.real[key]

    def __setitem__(self, key: str, value: str) -> None:
        self.real[key] = value

    def __delitem__(self, key: str) -> None:
        del self.real[key]

    def __iter__(self) -> Iterator[str]:
        self.note()
        return iter(self.real)

    def __len__(self) -> int:
        return len(self.real)

    def copy(self) -> dict[str, str]:
        self.note()
        return dict(self.real)


def main() -> None:
    modules, source = json.load(sys.stdin)
    environment = WatchedEnvironment(os.environ, source)
    os.environ = environment  # noqa: B003 - the point is to see who looks at it
    sockets: list[str] = []
    sys.addaudithook(lambda event, args: sockets.append(event) if event in ("socket.connect", "socket.bind") else None)
    clients: list[str] = []
    create_client = botocore.session.Session.create_client

    def noted_client(session: botocore.session.Session, service: str, *args: object, **settings: object) -> object:
        clients.append(service)
        return create_client(session, service, *args, **settings)

    botocore.session.Session.create_client = noted_client
    for module in modules:
        importlib.import_module(module)
    threads = [thread.name for thread in threading.enumerate() if thread is not threading.main_thread()]
    json.dump(
        {"environment": environment.readers, "sockets": sockets, "clients": clients, "threads": threads}, sys.stdout
    )


if __name__ == "__main__":
    main()
