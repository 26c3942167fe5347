"""Servers of models, each in its own dialect as its documentation describes it. All find the same bright objects.

A dialect takes the body and the headers of a call and returns the body of the response. The servers decode pictures
with Pillow and label objects with SciPy, which the worker uses for neither.
"""

import base64
import email.parser
import email.policy
import io
import json
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np
from PIL import Image
from scipy import ndimage

Found = list[tuple[str, float, tuple[float, float, float, float]]]
Dialect = Callable[[bytes, Mapping[str, str]], bytes]


def found_in(pixels: np.ndarray) -> Found:
    """Return label, score and box of each bright object in an array (rows, columns); its value gives the class."""
    labels, count = ndimage.label(pixels > 100)
    found: Found = []
    for number, (rows, columns) in zip(range(1, count + 1), ndimage.find_objects(labels), strict=True):
        value = int(pixels[labels == number].max())
        box = (float(columns.start), float(rows.start), float(columns.stop), float(rows.stop))
        found.append(("ship" if value > 200 else "plane", round(value / 256, 4), box))
    return found


def opened(picture: bytes) -> Image.Image:
    return Image.open(io.BytesIO(picture)).convert("L")


def seen(picture: bytes) -> Found:
    return found_in(np.asarray(opened(picture)))


def osml(body: bytes, _headers: Mapping[str, str]) -> bytes:
    features = [
        {
            "type": "Feature",
            "geometry": None,
            "properties": {"imageBBox": list(box), "featureClasses": [{"iri": label, "score": score}]},
        }
        for label, score, box in seen(body)
    ]
    return json.dumps({"type": "FeatureCollection", "features": features}).encode()


def torchserve(body: bytes, _headers: Mapping[str, str]) -> bytes:
    """The handler ``object_detector``."""
    return json.dumps([{label: list(box), "score": score} for label, score, box in seen(body)]).encode()


def hugging_face(body: bytes, _headers: Mapping[str, str]) -> bytes:
    """The task ``object-detection``; its boxes are whole numbers."""
    names = ("xmin", "ymin", "xmax", "ymax")
    items = [
        {"score": score, "label": label, "box": dict(zip(names, map(int, box), strict=True))}
        for label, score, box in seen(body)
    ]
    return json.dumps(items).encode()


def roboflow(body: bytes, headers: Mapping[str, str]) -> bytes:
    """The route ``/infer/object_detection`` of an inference server."""
    assert headers["content-type"] == "application/json"
    request = json.loads(body)
    assert request["image"]["type"] == "base64"
    assert request["model_id"] == "harbour/3"
    picture = base64.b64decode(request["image"]["value"], validate=True)
    width, height = opened(picture).size
    predictions = [
        {
            "x": (box[0] + box[2]) / 2,
            "y": (box[1] + box[3]) / 2,
            "width": box[2] - box[0],
            "height": box[3] - box[1],
            "confidence": score,
            "class": label,
            "class_id": 0,
            "detection_id": "5b1c",
        }
        for label, score, box in seen(picture)
    ]
    answer = {"time": 0.1, "image": {"width": width, "height": height}, "predictions": predictions}
    return json.dumps(answer).encode()


def parts_of_form(body: bytes, headers: Mapping[str, str]) -> dict[str, Any]:
    """Return the fields of a form, by the parser of e-mails."""
    head = f"Content-Type: {headers['content-type']}\r\n\r\n".encode()
    message = email.parser.BytesParser(policy=email.policy.HTTP).parsebytes(head + body)
    assert message.get_content_type() == "multipart/form-data"
    return {part.get_param("name", header="content-disposition"): part for part in message.iter_parts()}


def ultralytics(body: bytes, headers: Mapping[str, str]) -> bytes:
    """The inference API of Ultralytics HUB."""
    parts = parts_of_form(body, headers)
    assert parts["imgsz"].get_payload() == "256"
    assert parts["model"].get_payload() == "https://hub.ultralytics.com/models/MODEL"
    assert parts["file"].get_content_type().startswith("image/")
    picture = parts["file"].get_payload(decode=True)
    width, height = opened(picture).size
    results = [
        {"name": label, "class": 0, "confidence": score, "box": dict(zip(("x1", "y1", "x2", "y2"), box, strict=True))}
        for label, score, box in seen(picture)
    ]
    image = {"shape": [height, width], "results": results, "speed": {"inference": 0.1}}
    return json.dumps({"images": [image], "metadata": {"imageCount": 1}}).encode()


def sagemaker_detection(body: bytes, headers: Mapping[str, str]) -> bytes:
    """SageMaker's built-in object detection."""
    assert headers["content-type"] in ("image/jpeg", "image/png", "application/x-image")
    width, height = opened(body).size
    numbers = {"plane": 0.0, "ship": 4.0}
    rows = [
        [numbers[label], score, box[0] / width, box[1] / height, box[2] / width, box[3] / height]
        for label, score, box in seen(body)
    ]
    return json.dumps({"prediction": rows}).encode()


def vision_model(body: bytes, _headers: Mapping[str, str]) -> bytes:
    """A model for pictures and language: a data URL in, boxes in thousandths, y before x."""
    url = json.loads(body)["messages"][0]["content"][0]["image_url"]["url"]
    picture = base64.b64decode(url.removeprefix("data:image/png;base64,"), validate=True)
    width, height = opened(picture).size
    scale = np.array([height, width, height, width]) / 1000
    objects = [
        {"name": label, "p": score, "box_2d": (np.array(box)[[1, 0, 3, 2]] / scale).tolist()}
        for label, score, box in seen(picture)
    ]
    return json.dumps({"choices": [{"objects": objects}]}).encode()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: "_Server"

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        try:
            answer = self.server.dialect(body, {name.lower(): value for name, value in self.headers.items()})
            status, media_type = 200, "application/json"
        except Exception as err:  # noqa: BLE001 - the test raises it again
            answer, status, media_type = repr(err).encode(), 422, "text/plain"
            self.server.errors.append(err)
        self.send_response(status)
        self.send_header("Content-Type", media_type)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *_args: Any) -> None:
        pass


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False

    def __init__(self, dialect: Dialect) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.dialect = dialect
        self.errors: list[Exception] = []


@contextmanager
def serving(dialect: Dialect) -> Iterator[str]:
    """Serve a dialect; yield its URL. A call that the dialect refuses fails the test at the end."""
    with _Server(dialect) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}/predict"
        finally:
            server.shutdown()
            thread.join()
        for error in server.errors:
            raise error
