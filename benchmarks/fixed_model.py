"""A model that returns the same response for every tile after a fixed time. The runner takes the rest of a job's time.

fixed_model.py LATENCY_S FEATURES TILE_PX [MOST_AT_ONCE]      prints its port; GET /stats returns the calls
"""

import json
import random
import sys
import threading
import time
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import BinaryIO

# Where all tiles go; nobody reads it.
SINK = memoryview(bytearray(1 << 20))


class Counts:
    """Calls so far, calls under way, the most at once, refusals, and when the first and the last call came.

    The moments are of the monotonic clock, which all processes of a machine share.
    """

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.calls = self.now = self.peak = self.refused = 0
        self.first_s = self.last_s = 0.0


def answer_of(features: int, tile_px: int) -> bytes:
    """Return a feature collection of boxes that do not overlap much, the same for every tile."""
    rng = random.Random(1)
    boxes = []
    for _ in range(features):
        x, y = rng.uniform(0, tile_px - 40), rng.uniform(0, tile_px - 40)
        boxes.append([round(x, 2), round(y, 2), round(x + rng.uniform(8, 40), 2), round(y + rng.uniform(8, 40), 2)])
    found = [
        {
            "type": "Feature",
            "geometry": None,
            "properties": {
                "imageBBox": box,
                "featureClasses": [{"iri": "ship", "score": round(rng.uniform(0.4, 1), 3)}],
            },
        }
        for box in boxes
    ]
    return json.dumps({"type": "FeatureCollection", "features": found}).encode()


def drain(body: BinaryIO, headers: Mapping[str, str]) -> None:
    """Read a request's body, in whichever of the two ways it comes."""
    if "Content-Length" in headers:
        drop(body, int(headers["Content-Length"]))
        return
    while size := int(body.readline(), 16):
        drop(body, size + 2)  # a line break follows
    body.readline()


def drop(body: BinaryIO, size: int) -> None:
    while size > 0:
        size -= body.readinto(SINK[: min(size, len(SINK))])


def serve(latency_s: float, body: bytes, most: int | None) -> None:
    counts = Counts()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            names = ("calls", "peak", "refused", "first_s", "last_s")
            self.reply(200, json.dumps({name: getattr(counts, name) for name in names}).encode())

        def do_POST(self) -> None:
            drain(self.rfile, self.headers)
            with counts.lock:
                counts.last_s = time.monotonic()
                counts.first_s = counts.first_s or counts.last_s
                is_refused = most is not None and counts.now >= most
                counts.refused += is_refused
                counts.calls += not is_refused
                counts.now += 1
                counts.peak = max(counts.peak, counts.now)
            if not is_refused:
                time.sleep(latency_s)
            with counts.lock:
                counts.now -= 1
            self.reply(503, b"{}") if is_refused else self.reply(200, body)

        def reply(self, status: int, content: bytes) -> None:
            head = f"HTTP/1.1 {status} x\r\nContent-Type: application/json\r\nContent-Length: {len(content)}\r\n\r\n"
            self.wfile.write(head.encode() + content)

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    class Server(ThreadingHTTPServer):
        daemon_threads = True
        request_queue_size = 256

    server = Server(("127.0.0.1", 0), Handler)
    print(server.server_address[1], flush=True)
    server.serve_forever()


if __name__ == "__main__":
    limit = int(sys.argv[4]) if len(sys.argv) > 4 else None
    serve(float(sys.argv[1]), answer_of(int(sys.argv[2]), int(sys.argv[3])), limit)
