"""Jobs whose models speak another protocol than OSML, from the request to the features that are delivered."""

import json

import numpy as np
import pytest

import detection_servers
from aws.osml.model_runner.common.typing import ImageFormats
from aws.osml.model_runner.exceptions import ProcessImageException
from aws.osml.model_runner.local.stack.sagemaker_gateway import LocalEndpoint
from aws.osml.model_runner.raster import write_geotiff
from worker_in_process import UTM_31N

WIDTH, HEIGHT = 600, 400
ULTRALYTICS_FIELDS = {"model": "https://hub.ultralytics.com/models/MODEL", "imgsz": 256, "conf": 0.25}
VISION_TEMPLATE = {
    "model": "any",
    "messages": [{"role": "user", "content": [{"image_url": {"url": "data:image/png;base64,"}, "type": "image_url"}]}],
}
SPOKEN = {
    "torchserve": {"protocol": "TORCHSERVE"},
    "hugging_face": {"protocol": "HUGGING_FACE"},
    "roboflow": {"protocol": "ROBOFLOW", "envelope": {"template": {"model_id": "harbour/3"}}},
    "ultralytics": {"protocol": "ULTRALYTICS", "envelope": {"template": ULTRALYTICS_FIELDS}},
    "sagemaker_detection": {
        "protocol": "SAGEMAKER_DETECTION",
        "answer": {"classes": {"4": "ship", "0": "plane"}},
    },
    "kserve": {
        "protocol": "KSERVE_V2",
        "answer": {
            "tensors": {"layout": "BOXES_SCORES_LABELS", "boxes": "dets"},
            "classes": {"0": "plane", "1": "ship"},
        },
    },
    "kserve_float": {
        "protocol": "KSERVE_V2",
        "envelope": {"tensor": {"pixelScale": 1 / 255, "mean": [0.25, 0.25, 0.25], "std": 0.5}},
        "answer": {
            "tensors": {"layout": "BOXES_SCORES_LABELS", "boxes": "dets", "inputSize": [288, 320]},
            "classes": {"0": "plane", "1": "ship"},
        },
    },
    "kserve_image": {
        "protocol": "KSERVE_V2_IMAGE",
        "answer": {
            "tensors": {"layout": "YOLO_V8", "inputSize": [640, 640], "fit": "STRETCH"},
            "classes": {"0": "plane", "1": "ship"},
        },
    },
    "vision_model": {
        "protocol": "CUSTOM",
        "envelope": {
            "body": "BASE64_JSON",
            "field": "messages[0].content[0].image_url.url",
            "template": VISION_TEMPLATE,
        },
        "answer": {
            "items": "choices[0].objects",
            "box": "box_2d",
            "boxFormat": "YXYX",
            "units": "THOUSANDTHS",
            "label": "name",
            "score": "p",
        },
    },
}


@pytest.fixture(scope="module")
def harbour(tmp_path_factory):
    """An image with bright objects of two classes, some of them on seams of tiles."""
    pixels = np.full((1, HEIGHT, WIDTH), 20, dtype=np.uint8)
    for number, (row, col) in enumerate((row, col) for row in range(15, 370, 44) for col in range(11, 560, 62)):
        pixels[0, row : row + 11 + number % 5, col : col + 19 + number % 7] = 250 if number % 3 else 150
    path = tmp_path_factory.mktemp("harbour") / "harbour.tif"
    write_geotiff(path, pixels, UTM_31N, epsg=32631)
    return path


def run(worker, image, url, job_id="job", processor=None, **changes):
    message = worker.message(image, url, job_id) | {"imageProcessorTileOverlap": 40, **changes}
    if url.endswith("/infer"):
        message["imageProcessorInput"] = {"bands": [1, 1, 1]}
    message["imageProcessor"] |= processor or {}
    request = type(worker.request(image, url)).from_external_message(message)
    worker.image_handler.process_image_request(request)
    worker.work_off()
    return worker.jobs.get_image_request(request.image_id)


def facts_of(features):
    """Return label, score and box of features, in the order of their boxes."""
    found = []
    for feature in features:
        properties = feature["properties"]
        ((name, score),) = [(item["iri"], item["score"]) for item in properties["featureClasses"]]
        found.append((*properties["imageBBox"], name, score))
    return sorted(found)


@pytest.mark.parametrize("name", SPOKEN)
def test_server_of_each_protocol_gives_features_of_geojson_model(worker, harbour, name):
    with detection_servers.serving(detection_servers.osml) as url:
        run(worker, harbour, url, "plain")
    with detection_servers.serving(getattr(detection_servers, name)) as url:
        job = run(worker, harbour, url, processor=SPOKEN[name])
    assert (job.image_status, job.message) == ("SUCCESS", "Completed image processing")
    expected, found = facts_of(worker.result("plain")), facts_of(worker.result("job"))
    assert len(found) == len(expected) > 50
    assert [fact[4] for fact in found] == [fact[4] for fact in expected]
    assert [fact[5] for fact in found] == pytest.approx([fact[5] for fact in expected], abs=1e-6)
    boxes = np.array([[fact[:4] for fact in facts] for facts in (found, expected)])
    assert np.abs(boxes[0] - boxes[1]).max() < 0.5


def test_triton_on_sagemaker_gives_same_features(worker, new_worker, harbour, gateway):
    tensor = {"name": "images", "datatype": "UINT8", "layout": "NCHW"}
    processor = SPOKEN["kserve"] | {"envelope": {"tensor": tensor}}
    with detection_servers.serving(detection_servers.kserve) as url:
        gateway.add_endpoint("triton", LocalEndpoint(url))
        asked = {"bands": [1, 1, 1]}
        job = run(worker, harbour, "triton", processor=processor, imageProcessorInput=asked)
        assert (job.image_status, job.message) == ("SUCCESS", "Completed image processing")
        # A tile of 512 x 400 pixels has 614,400 samples of four bytes.
        processor["envelope"] = {"tensor": tensor | {"datatype": "FP32"}}
        changes = {"imageProcessorInput": asked, "imageProcessorTileSize": 512}
        small = new_worker("small", SM_MAX_BODY="820000")
        with pytest.raises(ProcessImageException, match="in a body of 820000 bytes, which the endpoint takes"):
            run(small, harbour, "triton", "large", processor, **changes)
    with detection_servers.serving(detection_servers.osml) as url:
        run(worker, harbour, url, "plain")
    found, expected = facts_of(worker.result("job")), facts_of(worker.result("plain"))
    assert [fact[4] for fact in found] == [fact[4] for fact in expected]
    assert np.abs(np.array([f[:4] for f in found]) - np.array([f[:4] for f in expected])).max() < 0.5


def test_tile_that_input_does_not_take_fails_with_reason(worker, harbour):
    with detection_servers.serving(detection_servers.kserve_float) as url:
        job = run(worker, harbour, url, processor=SPOKEN["kserve_float"], imageProcessorTileSize=400)
    assert job.image_status == "FAILED"
    reason = "BAD_REQUEST: the input pixels [-1, 320, 288, 3] takes 288 x 320 pixels, and the tile has 400 x 400"
    assert reason in job.message


def test_path_that_selects_nothing_is_named_in_status(worker, harbour, logs):
    processor = {"protocol": "HUGGING_FACE", "answer": {"score": "confidence"}}
    with detection_servers.serving(detection_servers.hugging_face) as url:
        job = run(worker, harbour, url, processor=processor)
    assert job.image_status == "SUCCESS"
    assert f"answer.score (confidence) selected nothing in {job.features_stored} items" in job.message
    assert [event for event in logs if event["event"] == "features.unselected"]
    members = worker.result_file("job")["modelRunner"]["features"]
    assert members["unselected"] == {"answer.score (confidence)": job.features_stored}
    assert "dropped" not in members


def test_path_of_items_that_selects_nothing_fails_tiles_and_is_named(worker, harbour):
    processor = {"protocol": "ULTRALYTICS", "answer": {"items": "images[].result[]"}}
    processor["envelope"] = {"template": ULTRALYTICS_FIELDS}
    with detection_servers.serving(detection_servers.ultralytics) as url:
        job = run(worker, harbour, url, processor=processor)
    assert job.image_status == "FAILED"
    assert "BAD_RESPONSE: answer.items (images[].result[]) selects nothing in the response" in job.message


def test_items_without_box_are_dropped_and_path_is_named(worker, harbour):
    processor = {"protocol": "HUGGING_FACE", "answer": {"box": "bbox"}}
    with detection_servers.serving(detection_servers.hugging_face) as url:
        job = run(worker, harbour, url, processor=processor)
    assert job.image_status == "SUCCESS"
    assert list(job.features_dropped) == ["NO_IMAGE_GEOMETRY at answer.box (bbox)"]
    assert "dropped: NO_IMAGE_GEOMETRY at answer.box (bbox)" in job.message


def test_key_of_model_reaches_model_and_nothing_else(new_worker, harbour, monkeypatch, logs, statuses, capfd):
    key, seen = "canary-7f3a9c1e5b2d4806", []

    def guarded(body, headers):
        seen.append(headers.get("x-api-key"))
        is_known = seen[-1] == key and len(seen) > 1  # the first call is refused
        return detection_servers.osml(body, headers) if is_known else detection_servers.Reply(b"no", {}, 401)

    monkeypatch.setenv("MODEL_KEY", key)
    entry = {"host": "127.0.0.1", "header": "X-Api-Key", "value": {"env": "MODEL_KEY"}}
    worker = new_worker(MODEL_CREDENTIALS=json.dumps([entry]))
    with detection_servers.serving(guarded) as url:
        job = run(worker, harbour, url)
    assert job.image_status == "PARTIAL"
    assert set(seen) == {key}
    written = [logs, statuses.heard(), worker.result_file("job"), capfd.readouterr()]
    written += [list(table.scan()) for table in (worker.jobs, worker.regions, worker.features, worker.outstanding_jobs)]
    assert len(written[5]) > 0
    assert key not in repr(written)


def test_rows_of_job_keep_its_protocol_and_are_not_readable_for_earlier_versions(worker, harbour):
    processor = SPOKEN["vision_model"]
    message = worker.message(harbour, "http://127.0.0.1:9/v1") | {"imageProcessorInput": {"bands": [1]}}
    message["imageProcessor"] |= processor
    request = type(worker.request(harbour, "http://127.0.0.1:9/v1")).from_external_message(message)
    worker.image_handler.accept(request)
    stored = worker.jobs.get_image_request(request.image_id)
    (opened,) = worker.outstanding_jobs.open_rows()
    assert opened.request.tile_format == request.tile_format
    for found in (stored.image_request(), worker.jobs.request_of(stored)):
        assert (found.model_protocol, found.tile_format) == (processor, ImageFormats.PNG)
    row = worker.jobs.read({"image_id": request.image_id})
    key = {"endpoint_id": request.model_name, "job_id": request.job_id}
    payload = worker.outstanding_jobs.read(key)["request_payload"]
    for text in (row["tile_format"], payload["tile_format"], request.to_item()["tile_format"]):
        assert text == "CUSTOM:PREPARED:PNG"
        # The versions before, without words and with one word.
        for as_they_read in (text, text.removeprefix("PREPARED:")):
            with pytest.raises(ValueError, match="CUSTOM"):
                ImageFormats(as_they_read)
