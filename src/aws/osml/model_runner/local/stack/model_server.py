"""Serves an example model or an ONNX file as its container would: ``GET /ping``, ``POST /invocations``.

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
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from pydantic import ValidationError

from aws.osml.model_runner.exceptions import ConfigurationError, ImageError
from aws.osml.model_runner.local.models.bright_objects import BrightObjects
from aws.osml.model_runner.local.models.centerpoint import Centerpoint
from aws.osml.model_runner.local.models.example_model import BadModelCallError, ExampleModel, ModelReply
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


# The name under which an ONNX file is a model; its settings are ``path`` and ``digest``.
ONNX = "onnx"
# A tile of 8,192 x 8,192 pixels of four bands of 16 bits.
MAX_TILE_BODY_BYTES = 512 * 1024 * 1024
DRAIN_S = 30.0


class TileModel(Protocol):
    """A model that replies to tiles, from any thread."""

    def with_query(self, query: Mapping[str, str]) -> "TileModel":
        """Return the model with the settings that the query of a request overrides."""

    def reply(self, tile: bytes, attempt: int) -> ModelReply:
        """Return the reply for an encoded tile; ``attempt`` counts from 0 the calls with the same bytes."""


class ModelServer(HttpService):
    """Serves one model while its ``with`` block runs.

    ``GET /stats`` returns the ended calls, the received bytes, the calls in flight and their maximum, and the calls
    per status.
    """

    def __init__(self, model: TileModel, port: int = 0, host: str = LOOPBACK) -> None:
        super().__init__(self._route, port, host, MAX_TILE_BODY_BYTES)
        self.model = model
        self._is_draining = False
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

    def drain(self, timeout_s: float) -> bool:
        """Refuse further calls with 503, and wait for the calls in flight; return False after ``timeout_s``."""
        self._is_draining = True
        return super().drain(timeout_s)

    def _route(self, request: HttpRequest) -> HttpResponse:
        match request.method, request.path:
            case "GET" | "POST", "/ping" | "/invocations" if self._is_draining:
                return HttpResponse.of_json({"error": "the server stops"}, 503)
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
        except BadModelCallError as err:
            response = HttpResponse.of_json({"error": str(err)}, 400)
        except (ValidationError, json.JSONDecodeError) as err:
            response = HttpResponse.of_json({"error": f"the query does not match the model's settings: {err}"}, 400)
        finally:
            with self._lock:
                self._in_flight -= 1
                self._statuses[response.status] += 1
        return response


def create_model(name: str, **settings: object) -> TileModel:
    """Return the example model ``name``, or the model of an ONNX file.

    Raises KeyError for an unknown name, ValidationError for settings that the model does not have, and
    ConfigurationError for a file that cannot be served.
    """
    if name == ONNX:
        from aws.osml.model_runner.local.onnx.onnx_model import OnnxModel

        return OnnxModel.open(Path(str(settings["path"])))
    return MODELS[name].model_validate(settings)


def serve(model: TileModel, port: int, host: str, announce: Callable[[str], None]) -> int:
    """Serve until SIGTERM or SIGINT, end the calls in flight, and return an exit status.

    ``announce`` is called with the address when calls are accepted. A second signal ends the process at once.
    """
    ended = threading.Event()

    def stop(*_: object) -> None:
        if ended.is_set():
            os._exit(1)
        ended.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)  # without a handler, a container's PID 1 ignores both
    with ModelServer(model, port, host) as server:
        announce(server.url)
        ended.wait()
        if not server.drain(DRAIN_S):
            os._exit(1)  # a call hangs, and an ordinary exit would wait for its thread
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Serve one model in the foreground until SIGTERM, and write the address as the first line."""
    parser = argparse.ArgumentParser(prog="model_server", description=__doc__.splitlines()[0])
    parser.add_argument("--model", choices=[*sorted(MODELS), ONNX], default="centerpoint")
    parser.add_argument("--host", default=LOOPBACK, help="address to listen on; 0.0.0.0 in a container")
    parser.add_argument("--port", type=int, default=8080, help="port to listen on; 0 selects a free port")
    parser.add_argument("--options", type=json.loads, default={}, help="settings of the model as a JSON object")
    arguments = parser.parse_args(argv)
    configure_gdal(RasterSettings(), os.environ)
    try:
        model = create_model(arguments.model, **arguments.options)
    except (ValidationError, ConfigurationError) as err:
        parser.error(str(err))

    def announce(url: str) -> None:
        sys.stdout.write(f"{READY_LINE}{url}\n")
        sys.stdout.flush()

    return serve(model, arguments.port, arguments.host, announce)


if __name__ == "__main__":
    sys.exit(main())
