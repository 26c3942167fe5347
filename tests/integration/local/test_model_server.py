"""The example models over real HTTP: they follow the model contract, keep connections open, and fail on request."""

import json
import signal
import subprocess
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import urllib3
from pydantic import ValidationError

from aws.osml.model_runner.local.stack.model_server import MODELS, READY_LINE, create_model
from aws.osml.model_runner.raster.pixels import write_geotiff


@pytest.fixture(scope="module")
def tile(tmp_path_factory):
    path = tmp_path_factory.mktemp("tile") / "tile.tif"
    write_geotiff(path, np.full((3, 60, 100), 7, np.uint8))
    return path.read_bytes()


@pytest.fixture
def http():
    with urllib3.PoolManager(maxsize=16, retries=False, timeout=10) as pool:
        yield pool


def invoke(http, server, body, query="", **options):
    return http.request("POST", server.invocations_url + query, body=body, **options)


def features_of(response):
    answer = json.loads(response.data)
    assert answer["type"] == "FeatureCollection"
    return answer["features"]


def test_ping_responds_empty_and_other_paths_are_unknown(http, model_server):
    server = model_server("centerpoint")
    ping = http.request("GET", server.url + "/ping")
    assert (ping.status, ping.data) == (200, b"")
    assert http.request("GET", server.url + "/invocations").status == 404
    assert http.request("POST", server.url + "/else", body=b"x").status == 404


def test_centerpoint_returns_one_square_in_middle(http, model_server, tile):
    response = invoke(http, model_server("centerpoint", share=0.5), tile)
    [feature] = features_of(response)
    assert response.headers["Content-Type"] == "application/json"
    assert feature["geometry"] is None
    assert feature["properties"]["imageBBox"] == [35, 15, 65, 45]
    [ring] = feature["properties"]["imageGeometry"]["coordinates"]
    assert ring == [[35, 15], [65, 15], [65, 45], [35, 45], [35, 15]]
    assert feature["properties"]["featureClasses"] == [{"iri": "center", "score": 1.0}]


def test_flood_returns_requested_number_of_boxes_each_time(http, model_server, tile):
    server, other = model_server("flood", count=40, seed=1), model_server("flood", count=40, seed=1)
    answers = [features_of(invoke(http, where, tile)) for where in (server, server, other)]
    boxes = [feature["properties"]["imageBBox"] for feature in answers[0]]
    assert answers[0] == answers[1] == answers[2]
    assert len(boxes) == 40
    assert all(0 <= x0 < x1 <= 100 and 0 <= y0 < y1 <= 60 for x0, y0, x1, y1 in boxes)
    assert len(features_of(invoke(http, server, tile, "?count=3"))) == 3
    assert features_of(invoke(http, server, tile, "?seed=2")) != answers[0]


@pytest.mark.parametrize("model", ["bright-objects", "centerpoint", "flood"])
def test_tile_is_refused_when_it_is_not_image(http, model_server, model):
    response = invoke(http, model_server(model), b"no image")
    assert response.status == 415
    assert "cannot be decoded" in json.loads(response.data)["error"]


def test_query_that_does_not_fit_model_is_refused(http, model_server, tile):
    server = model_server("flood")
    assert invoke(http, server, tile, "?count=many").status == 400
    assert invoke(http, server, tile, "?boxes=3").status == 400
    assert invoke(http, server, tile, "?count={").status == 400


def test_failure_mixes_outcomes_by_weight_and_repeats_itself(http, model_server):
    outcomes = {"200": 0.5, "429": 0.2, "500": 0.2, "garbage": 0.1}
    tiles = [b"tile %d" % number for number in range(200)]

    def run():
        server = model_server("failure", outcomes=outcomes, seed=3)
        with ThreadPoolExecutor(8) as pool:
            return [response.status for response in pool.map(lambda body: invoke(http, server, body), tiles)]

    first, second = run(), run()
    counts = Counter(first)
    assert first == second
    assert set(counts) == {200, 429, 500}
    assert 90 <= counts[200] <= 150
    assert 20 <= counts[429] <= 60


def test_failure_lets_patient_client_through(http, model_server):
    server = model_server("failure", outcomes={"200": 1, "503": 1}, failures_first=2, retry_after_s=7)
    responses = [invoke(http, server, b"tile") for _ in range(2)]
    assert [response.status for response in responses] == [503, 503]
    assert responses[0].headers["Retry-After"] == "7"
    assert 200 in [invoke(http, server, b"tile").status for _ in range(20)]


def test_failure_is_configured_by_query(http, model_server):
    server = model_server("failure", outcomes={"200": 1})
    assert len(features_of(invoke(http, server, b"tile"))) == 1
    assert invoke(http, server, b"tile", '?outcomes={"418":1}').status == 418
    garbage = [invoke(http, server, b"tile %d" % n, '?outcomes={"garbage":1}') for n in range(20)]
    assert {response.status for response in garbage} == {200}
    assert not any(is_feature_collection(response.data) for response in garbage)
    slow = invoke(http, server, b"tile", "?latency_ms=[300,300]", timeout=5)
    assert slow.status == 200
    with pytest.raises(urllib3.exceptions.ReadTimeoutError):
        invoke(http, server, b"tile", "?latency_ms=[300,300]", timeout=0.1)


def is_feature_collection(body):
    try:
        answer = json.loads(body)
    except ValueError:
        return False
    return isinstance(answer, dict) and "features" in answer


def test_connection_stays_open(model_server, tile):
    server = model_server("centerpoint")
    host, port = server.url.removeprefix("http://").split(":")
    with urllib3.HTTPConnectionPool(host, int(port), maxsize=1, block=True, retries=False) as pool:
        for _ in range(20):
            assert pool.request("POST", "/invocations", body=tile).status == 200
        assert pool.num_connections == 1


def test_body_may_come_in_chunks(http, model_server, tile):
    server = model_server("centerpoint")
    parts = iter([tile[:100], tile[100:]])
    response = http.request("POST", server.invocations_url, body=parts, chunked=True)
    assert len(features_of(response)) == 1


def test_stats_count_requests(http, model_server, tile):
    server = model_server("failure", outcomes={"200": 1}, latency_ms=(100, 100))
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: invoke(http, server, b"12345"), range(4)))
    invoke(http, server, b"", '?outcomes={"500":1}')
    stats = json.loads(http.request("GET", server.url + "/stats").data)
    assert stats["requests"] == 5
    assert stats["bytes"] == 20
    assert stats["statuses"] == {"200": 4, "500": 1}
    assert 2 <= stats["peak"] <= 4
    assert stats["in_flight"] == 0


@pytest.mark.parametrize(
    ("model", "settings"),
    [
        ("flood", {"count": -1}),
        ("flood", {"colour": "red"}),
        ("centerpoint", {"share": 0}),
        ("failure", {"outcomes": {"teapot": 1}}),
        ("failure", {"outcomes": {"200": 0}}),
    ],
)
def test_settings_that_make_no_sense_are_refused(model, settings):
    with pytest.raises(ValidationError):
        create_model(model, **settings)


@pytest.mark.parametrize(
    "model", [pytest.param(name, marks=[] if name == "flood" else pytest.mark.long) for name in sorted(MODELS)]
)
def test_every_model_runs_as_process_of_its_own(http, model):
    command = [sys.executable, "-m", "aws.osml.model_runner.local.stack.model_server", "--model", model, "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        line = process.stdout.readline()
        assert line.startswith(READY_LINE)
        assert http.request("GET", line.removeprefix(READY_LINE).strip() + "/ping").status == 200
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 0
