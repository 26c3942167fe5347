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
from typing import Any, NamedTuple

import numpy as np
from PIL import Image
from scipy import ndimage

Found = list[tuple[str, float, tuple[float, float, float, float]]]


class Reply(NamedTuple):
    """A response with headers of its own."""

    body: bytes
    headers: Mapping[str, str]
    status: int = 200


Dialect = Callable[[bytes, Mapping[str, str]], bytes | Reply]
JSON_LENGTH = "inference-header-content-length"
TRITON = "application/vnd.sagemaker-triton.binary+json;json-header-size="
CLASSES = ["plane", "ship"]


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


def kserve_request(body: bytes, headers: Mapping[str, str]) -> tuple[dict[str, Any], bytes]:
    """Return the JSON of a call of the Open Inference Protocol, and its bytes after that."""
    on_sagemaker = headers["content-type"].startswith(TRITON)
    length = int(headers["content-type"].removeprefix(TRITON) if on_sagemaker else headers[JSON_LENGTH])
    return json.loads(body[:length]), body[length:]


def kserve_reply(outputs: Mapping[str, np.ndarray], headers: Mapping[str, str], *, is_binary: bool = True) -> Reply:
    """Return output tensors in binary or as JSON."""
    names = {"float32": "FP32", "float16": "FP16", "int64": "INT64", "int32": "INT32", "float64": "FP64"}
    described, content = [], b""
    for name, tensor in outputs.items():
        entry = {"name": name, "datatype": names[tensor.dtype.name], "shape": list(tensor.shape)}
        if is_binary:
            entry["parameters"] = {"binary_data_size": tensor.nbytes}
            content += tensor.astype(tensor.dtype.newbyteorder("<")).tobytes()
        else:
            entry["data"] = tensor.reshape(-1).tolist()
        described.append(entry)
    head = json.dumps({"model_name": "ships", "model_version": "1", "outputs": described}).encode()
    if not is_binary:
        return Reply(head, {"Content-Type": "application/json"})
    if headers["content-type"].startswith(TRITON):
        return Reply(head + content, {"Content-Type": f"{TRITON}{len(head)}"})
    return Reply(head + content, {"Content-Type": "application/octet-stream", JSON_LENGTH: str(len(head))})


def tensors_of(found: Found) -> dict[str, np.ndarray]:
    """Return what a torchvision detector returns."""
    return {
        "dets": np.array([box for *_, box in found], np.float32).reshape(-1, 4),
        "scores": np.array([score for _, score, _ in found], np.float32),
        "labels": np.array([CLASSES.index(label) for label, *_ in found], np.int64),
    }


def kserve(body: bytes, headers: Mapping[str, str]) -> Reply:
    """A model that takes UINT8 pixels [1, 3, -1, -1]."""
    head, content = kserve_request(body, headers)
    (tensor,) = head["inputs"]
    assert (tensor["name"], tensor["datatype"]) == ("images", "UINT8")
    assert head["parameters"] == {"binary_data_output": True}
    pixels = np.frombuffer(content, "u1").reshape(tensor["shape"])
    assert pixels.shape[:2] == (1, 3)
    return kserve_reply(tensors_of(found_in(pixels[0, 0])), headers)


def kserve_float(body: bytes, headers: Mapping[str, str]) -> Reply:
    """A model that takes normalised FP32 pixels [-1, 320, 288, 3], and answers in JSON."""
    head, content = kserve_request(body, headers)
    (tensor,) = head["inputs"]
    assert (tensor["datatype"], tensor["shape"]) == ("FP32", [1, 320, 288, 3])
    pixels = np.frombuffer(content, "<f4").reshape(tensor["shape"])[0, :256, :256, 1]
    return kserve_reply(tensors_of(found_in(np.round((pixels * 0.5 + 0.25) * 255))), headers, is_binary=False)


def kserve_image(body: bytes, headers: Mapping[str, str]) -> Reply:
    """An ensemble that decodes a picture, and has the head of a YOLOv8: boxes in pixels of an input of 640 x 640."""
    head, content = kserve_request(body, headers)
    (tensor,) = head["inputs"]
    assert (tensor["datatype"], tensor["shape"]) == ("BYTES", [1])
    assert int.from_bytes(content[:4], "little") == len(content) - 4
    picture = content[4:]
    width, height = opened(picture).size
    found = seen(picture)
    rows = np.zeros((4 + len(CLASSES), 2 * len(found)), np.float32)
    for index, (label, score, box) in enumerate(found * 2):  # each box twice, as before suppression
        x1, y1, x2, y2 = np.array(box) * np.array([640 / width, 640 / height] * 2)
        rows[:4, index] = (x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1
        rows[4 + CLASSES.index(label), index] = score - (0.1 if index >= len(found) else 0)
    return kserve_reply({"output0": rows[np.newaxis]}, headers)


METADATA: dict[Dialect, dict[str, Any]] = {
    kserve: {"name": "images", "datatype": "UINT8", "shape": [1, 3, -1, -1]},
    kserve_float: {"name": "pixels", "datatype": "FP32", "shape": [-1, 320, 288, 3]},
    kserve_image: {"name": "picture", "datatype": "BYTES", "shape": [-1]},
}


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: "_Server"

    def do_GET(self) -> None:
        """Describe a model of the Open Inference Protocol."""
        self.server.described += 1
        is_found = self.path == "/v2/models/ships" and self.server.dialect in METADATA
        answer = {"name": "ships", "platform": "onnx", "inputs": [METADATA[self.server.dialect]]} if is_found else {}
        body = json.dumps(answer).encode()
        self.send_response(200 if is_found else 404)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        try:
            answer = self.server.dialect(body, {name.lower(): value for name, value in self.headers.items()})
            reply = answer if isinstance(answer, Reply) else Reply(answer, {"Content-Type": "application/json"})
        except Exception as err:  # noqa: BLE001 - the test raises it again
            reply = Reply(repr(err).encode(), {}, 422)
            self.server.errors.append(err)
        self.send_response(reply.status)
        for name, value in reply.headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(reply.body)))
        self.end_headers()
        self.wfile.write(reply.body)

    def log_message(self, *_args: Any) -> None:
        pass


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False

    def __init__(self, dialect: Dialect) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.dialect = dialect
        self.errors: list[Exception] = []
        self.described = 0


@contextmanager
def serving(dialect: Dialect) -> Iterator[str]:
    """Serve a dialect; yield its URL. A call that the dialect refuses fails the test at the end."""
    with _Server(dialect) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            path = "v2/models/ships/infer" if dialect in METADATA else "predict"
            yield f"http://127.0.0.1:{server.server_address[1]}/{path}"
        finally:
            server.shutdown()
            thread.join()
        for error in server.errors:
            raise error
