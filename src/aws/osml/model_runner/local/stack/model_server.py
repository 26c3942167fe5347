"""Serves an example model as its container would: ``GET /ping``, ``POST /invocations``.

``python -m aws.osml.model_runner.local.stack.model_server --model centerpoint --port 8080``
"""

import argparse
import json
import os
import signal
import sys
import threading
import time
import zlib
from collections import Counter
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any, Self

from pydantic import ValidationError

from aws.osml.model_runner.exceptions import ImageError
from aws.osml.model_runner.local.models.bright_objects import BrightObjects
from aws.osml.model_runner.local.models.centerpoint import Centerpoint
from aws.osml.model_runner.local.models.example_model import ExampleModel, ModelReply
from aws.osml.model_runner.local.models.failure import Failure
from aws.osml.model_runner.local.models.flood import Flood
from aws.osml.model_runner.raster.settings import RasterSettings, configure_gdal

from .environment import LOOPBACK
from .http_service import HttpRequest, HttpResponse, HttpService

MODELS: Mapping[str, type[ExampleModel]] = {
    "bright-objects": BrightObjects,
    "centerpoint": Centerpoint,
    "failure": Failure,
    "flood": Flood,
}
READY_LINE = "listening on "


class ModelServer:
    """Serves one model while its ``with`` block runs; ``invocations_url`` is what a request names as the model.

    ``GET /stats`` answers the number of requests and bytes, the most requests in flight, and the calls per status.
    """

    def __init__(self, model: ExampleModel, port: int = 0, host: str = LOOPBACK) -> None:
        self.model = model
        self._service = HttpService(self._answer, port, host)
        self._lock = threading.Lock()
        self._attempts: Counter[int] = Counter()
        self._statuses: Counter[int] = Counter()
        self._bytes = self._in_flight = self._peak = 0

    @property
    def url(self) -> str:
        """``http://host:port`` of the server."""
        return self._service.url

    @property
    def invocations_url(self) -> str:
        """The URL that tiles are posted to."""
        return f"{self.url}/invocations"

    def stats(self) -> dict[str, Any]:
        """Return what the server has done so far."""
        with self._lock:
            return {
                "requests": sum(self._statuses.values()),
                "bytes": self._bytes,
                "in_flight": self._in_flight,
                "peak": self._peak,
                "statuses": {str(status): count for status, count in sorted(self._statuses.items())},
            }

    def __enter__(self) -> Self:
        self._service.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._service.__exit__(kind, error, trace)

    def _answer(self, request: HttpRequest) -> HttpResponse:
        match request.method, request.path:
            case "GET", "/ping":
                return HttpResponse()
            case "GET", "/stats":
                return HttpResponse(body=json.dumps(self.stats()).encode())
            case "POST", "/invocations":
                return self._invoke(request)
        return _problem(404, f"{request.method} {request.path} is not served here")

    def _invoke(self, request: HttpRequest) -> HttpResponse:
        attempt = self._begin(request.body)
        status = 500
        try:
            response = _run_model(self.model, request, attempt)
            status = response.status
            return response
        finally:
            self._end(status)

    def _begin(self, tile: bytes) -> int:
        key = zlib.crc32(tile)
        with self._lock:
            self._bytes += len(tile)
            self._in_flight += 1
            self._peak = max(self._peak, self._in_flight)
            self._attempts[key] += 1
            return self._attempts[key] - 1

    def _end(self, status: int) -> None:
        with self._lock:
            self._in_flight -= 1
            self._statuses[status] += 1


def _run_model(model: ExampleModel, request: HttpRequest, attempt: int) -> HttpResponse:
    try:
        reply: ModelReply = model.with_query(request.query).reply(request.body, attempt)
    except ImageError as err:
        return _problem(415, f"the tile cannot be decoded: {err}")
    except (ValidationError, json.JSONDecodeError) as err:
        return _problem(400, f"the query does not fit the model: {err}")
    if reply.delay_s:
        time.sleep(reply.delay_s)
    return HttpResponse(reply.status, reply.body, headers=reply.headers)


def _problem(status: int, message: str) -> HttpResponse:
    return HttpResponse(status, json.dumps({"error": message}).encode())


def create_model(name: str, **settings: object) -> ExampleModel:
    """Return the example model ``name``; KeyError when there is none, ValidationError when the settings do not fit."""
    return MODELS[name].model_validate(settings)


def main(argv: Sequence[str] | None = None) -> int:
    """Serve one model in the foreground until the process is ended, and write the address as the first line."""
    parser = argparse.ArgumentParser(prog="model_server", description=__doc__.splitlines()[0])
    parser.add_argument("--model", choices=sorted(MODELS), default="centerpoint")
    parser.add_argument("--host", default=LOOPBACK, help="address to listen on; 0.0.0.0 in a container")
    parser.add_argument("--port", type=int, default=8080, help="0 takes a free one")
    parser.add_argument("--options", type=json.loads, default={}, help="settings of the model as a JSON object")
    arguments = parser.parse_args(argv)
    try:
        model = create_model(arguments.model, **arguments.options)
    except ValidationError as err:
        parser.error(str(err))
    configure_gdal(RasterSettings(), os.environ)
    ended = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: ended.set())  # the first process of a container has no default for these
    with ModelServer(model, arguments.port, arguments.host) as server:
        sys.stdout.write(f"{READY_LINE}{server.url}\n")
        sys.stdout.flush()
        ended.wait()
    return 0


if __name__ == "__main__":
    sys.exit(main())
