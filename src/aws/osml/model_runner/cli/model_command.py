"""`model-runner model MODEL`: serve an ONNX file, or an example model, by the model contract."""

import argparse
import os
import sys
from pathlib import Path
from typing import Any

from aws.osml.model_runner.exceptions import ConfigurationError

_EXAMPLES = """\
examples:
  model-runner model best.onnx
  model-runner model best.onnx --port 9000 --host 0.0.0.0
"""


def add_parser(commands: Any) -> None:
    """Add this command to the command line."""
    parser = commands.add_parser(
        "model",
        help="serve an ONNX file as a model endpoint",
        description=(
            "Serves a detection network: POST /invocations takes a tile and returns GeoJSON in its pixels; GET /ping."
            " SIGTERM and Ctrl-C end the calls in flight, then the server. Exits with 2 when the file cannot be served."
        ),
        epilog=_EXAMPLES,
    )
    parser.add_argument(
        "model",
        metavar="MODEL",
        help="ONNX file, a directory with one, or an example model; best.json is the card of best.onnx",
    )
    parser.add_argument("--port", type=int, default=8080, help="port to listen on; 0 selects a free port")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on; 0.0.0.0 in a container")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Serve the model until a signal, and return an exit status. Raises ConfigurationError for a model of no use."""
    from aws.osml.model_runner.local.onnx.onnx_model import OnnxModel, onnx_file
    from aws.osml.model_runner.local.stack.model_server import MODELS, READY_LINE, TileModel, create_model, serve
    from aws.osml.model_runner.raster import RasterSettings, configure_gdal

    configure_gdal(RasterSettings(), os.environ)
    if arguments.model in MODELS:
        model: TileModel = create_model(arguments.model)
        summary = arguments.model
    else:
        network = OnnxModel.open(onnx_file(Path(arguments.model)))
        model, summary = network, network.summary()

    def announce(url: str) -> None:
        sys.stdout.write(f"{READY_LINE}{url}/invocations\n")
        sys.stdout.flush()

    sys.stdout.write(f"{summary}\n")
    try:
        return serve(model, arguments.port, arguments.host, announce)
    except OSError as err:
        raise ConfigurationError(f"--host {arguments.host} --port {arguments.port}: {err.strerror}") from err
