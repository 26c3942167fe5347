"""A model behind HTTP: finds bright spots. The smallest whole answer to the model contract of OSML Model Runner."""

import argparse
import io
import json
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
from PIL import Image

CELL_PX = 16
LEAST_CONTRAST = 100.0


def find_spots(tile: bytes) -> list[dict]:
    """Return a box, in pixels of the tile, around each cell that is much brighter than the tile as a whole."""
    pixels = np.asarray(Image.open(io.BytesIO(tile)).convert("L"), dtype=np.float32)
    rows, columns = (length // CELL_PX for length in pixels.shape)
    cells = pixels[: rows * CELL_PX, : columns * CELL_PX].reshape(rows, CELL_PX, columns, CELL_PX).max(axis=(1, 3))
    contrast = cells - np.median(pixels)
    return [
        feature(column * CELL_PX, row * CELL_PX, float(contrast[row, column]) / 255)
        for row, column in np.argwhere(contrast >= LEAST_CONTRAST).tolist()
    ]


def feature(x: int, y: int, score: float) -> dict:
    """Return one detection; ``geometry`` is left to the worker, which knows where the tile lies."""
    properties = {
        "imageBBox": [x, y, x + CELL_PX, y + CELL_PX],
        "featureClasses": [{"iri": "bright-spot", "score": round(score, 4)}],
    }
    return {"type": "Feature", "geometry": None, "properties": properties}


class Handler(BaseHTTPRequestHandler):
    """``GET /ping`` and ``POST /invocations``, on connections that stay open."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = -1  # head and body leave in one piece

    def do_GET(self) -> None:
        """Tell that the model is ready."""
        self.answer(200 if self.path == "/ping" else 404, {})

    def do_POST(self) -> None:
        """Answer for one tile."""
        tile = self.rfile.read(int(self.headers["Content-Length"]))
        try:
            self.answer(200, {"type": "FeatureCollection", "features": find_spots(tile)})
        except OSError as err:  # what Pillow raises for a tile that it cannot read
            self.answer(415, {"error": str(err)})

    def answer(self, status: int, content: dict) -> None:
        """Send ``content`` as JSON."""
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Log nothing: a line for each tile helps nobody."""


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("serve", nargs="?", help="SageMaker starts every container with this word")
    parser.add_argument("--host", default="127.0.0.1", help="0.0.0.0 in a container")
    parser.add_argument("--port", type=int, default=8080)
    arguments = parser.parse_args()
    try:
        server = ThreadingHTTPServer((arguments.host, arguments.port), Handler)
    except OSError as err:
        raise SystemExit(f"--port {arguments.port}: {err.strerror}") from err
    server.serve_forever()
