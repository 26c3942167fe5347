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
from typing import Any

from pydantic import ValidationError

from aws.osml.model_runner.exceptions import ImageError
from aws.osml.model_runner.local.models.bright_objects import BrightObjects
from aws.osml.model_runner.local.models.centerpoint import Centerpoint
from aws.osml.model_runner.local.models.example_model import ExampleModel
from aws.osml.model_runner.local.models.failure import Failure
from aws.osml.model_runner.local.models.flood import Flood
from aws.osml.model_runner.raster.settings import RasterSettings, configure_gdal

from .child_process import LOOPBACK
from .http_service import HttpRequest, HttpResponse, HttpService

MODELS: Mapping[str, type[ExampleModel]] = {
    "bright-objects": BrightObjects,
    "centerpoint": Centerpoint,
    "failure": Failure,
    "flood": Flood,
}
READY_LINE = "listening on "


class ModelServer(HttpService):
    """Serves one model while its ``with`` block runs.

    ``GET /stats`` returns the ended calls, the received bytes, the calls in flight and their maximum, and the calls
    per status.
    """

    def __init__(self, model: ExampleModel, port: int = 0, host: str = LOOPBACK) -> None:
        super().__init__(self._route, port, host)
        self.model = model
        self._lock = threading.Lock()
        self._attempts: Counter[int] = Counter()
        self._statuses: Counter[int] = Counter()
        self._bytes = self._in_flight = self._peak = 0

    @property
    def invocations_url(self) -> str:
        """URL for tiles; an image request names it as the model."""
        return f"{self.url}/invocations"

    def stats(self) -> dict[str, Any]:
        """Return the counts of requests so far, as ``GET /stats`` does."""
        with self._lock:
            return {
                "requests": sum(self._statuses.values()),
                "bytes": self._bytes,
                "in_flight": self._in_flight,
                "peak": self._peak,
                "statuses": {str(status): count for status, count in sorted(self._statuses.items())},
            }

    def _route(self, request: HttpRequest) -> HttpResponse:
        match request.method, request.path:
            case "GET", "/ping":
                return HttpResponse()
            case "GET", "/stats":
                return HttpResponse.of_json(self.stats())
            case "POST", "/invocations":
                return self._invoke(request)
        return HttpResponse.of_json({"error": f"{request.method} {request.path} is not served here"}, 404)

    def _invoke(self, request: HttpRequest) -> HttpResponse:
        tile_key = zlib.crc32(request.body)
        with self._lock:
            self._bytes += len(request.body)
            self._in_flight += 1
            self._peak = max(self._peak, self._in_flight)
            attempt = self._attempts[tile_key]
            self._attempts[tile_key] += 1
        response = HttpResponse(500)  # the status that is counted if the model raises another error
        try:
            reply = self.model.with_query(request.query).reply(request.body, attempt)
            if reply.delay_s:
                time.sleep(reply.delay_s)
            response = HttpResponse(reply.status, reply.body, headers=reply.headers)
        except ImageError as err:
            response = HttpResponse.of_json({"error": f"the tile cannot be decoded: {err}"}, 415)
        except (ValidationError, json.JSONDecodeError) as err:
            response = HttpResponse.of_json({"error": f"the query does not match the model's settings: {err}"}, 400)
        finally:
            with self._lock:
                self._in_flight -= 1
                self._statuses[response.status] += 1
        return response


def create_model(name: str, **settings: object) -> ExampleModel:
    """Return the example model ``name``.

    Raises KeyError for an unknown name, and ValidationError for settings that the model does not have.
    """
    return MODELS[name].model_validate(settings)


def main(argv: Sequence[str] | None = None) -> int:
    """Serve one model in the foreground until SIGTERM, and write the address as the first line."""
    parser = argparse.ArgumentParser(prog="model_server", description=__doc__.splitlines()[0])
    parser.add_argument("--model", choices=sorted(MODELS), default="centerpoint")
    parser.add_argument("--host", default=LOOPBACK, help="address to listen on; 0.0.0.0 in a container")
    parser.add_argument("--port", type=int, default=8080, help="port to listen on; 0 selects a free port")
    parser.add_argument("--options", type=json.loads, default={}, help="settings of the model as a JSON object")
    arguments = parser.parse_args(argv)
    try:
        model = create_model(arguments.model, **arguments.options)
    except ValidationError as err:
        parser.error(str(err))
    configure_gdal(RasterSettings(), os.environ)
    ended = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: ended.set())  # without a handler, a container's PID 1 ignores both
    with ModelServer(model, arguments.port, arguments.host) as server:
        sys.stdout.write(f"{READY_LINE}{server.url}\n")
        sys.stdout.flush()
        ended.wait()
    return 0


if __name__ == "__main__":
    sys.exit(main())
