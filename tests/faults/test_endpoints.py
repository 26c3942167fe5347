"""T7, T8, T17: the model is busy, refuses, lies, never answers, or answers without end."""

import shutil
import socket
import threading
import time

import psutil
import pytest

from aws.osml.model_runner.local.stack.model_server import ModelServer
from faults.books import TERMINAL
from faults.numbered_scene import TILE_PX, SilentModel
from worker_process import eventually


@pytest.mark.long
@pytest.mark.timeout(300)
def test_endpoint_that_is_busy_for_while_fails_no_tile(trial):
    """T7; an hour of it is simulated."""
    model = trial.model(busy_until=time.time() + 60)
    trial.submit(trial.request(model, "small"))
    with trial.fleet.worker(), trial.fleet.worker():
        trial.wait(patience_s=240.0)
        books = trial.check()
    assert trial.calls_per_tile(books) <= 10


@pytest.mark.long
def test_exactly_tiles_that_model_refuses_for_good_fail(trial):
    """T8. An endpoint that fails once is called again. A good body under an error status is not a response."""
    refused = {number: 400 if number % 2 else 422 for number in range(0, 128, 10)}
    once = dict.fromkeys(range(3, 128, 10), 500) | dict.fromkeys(range(7, 128, 20), 503)
    model = trial.model(always=refused, first=once, is_json_error=True)
    job_id = trial.submit(trial.request(model, "full"), ends="PARTIAL")
    with trial.fleet.worker(), trial.fleet.worker():
        trial.wait(patience_s=90.0)
        books = trial.check()
    failed = [tile for tile in books.tiles[job_id] if tile["tile_status"] == "FAILED"]
    assert {tile["error_code"] for tile in failed} == {"MODEL_4XX"}
    across = 16
    origins = {(int(row) // TILE_PX, int(col) // TILE_PX) for (row, col), _ in (tile["tile_bounds"] for tile in failed)}
    assert {row * across + col for row, col in origins} == set(refused)


class RawModel:
    """A server that reads a request and then passes the socket to ``answer``."""

    def __init__(self, answer):
        self._answer = answer
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.calls = []
        self.is_called = False
        self._is_open = True
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def url(self):
        return f"http://127.0.0.1:{self._listener.getsockname()[1]}/invocations"

    def close(self):
        self._is_open = False
        self._listener.close()

    def _accept(self):
        while self._is_open:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=[connection], daemon=True).start()

    def _serve(self, connection):
        begun = time.monotonic()
        with connection:
            try:
                self.is_called = bool(connection.recv(1 << 16)) or self.is_called
                self._answer(connection)
            except OSError:
                pass
        self.calls.append(time.monotonic() - begun)


def never_answer(connection):
    while connection.recv(1 << 16):
        pass


def trickle(connection):
    connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n")
    while True:
        connection.sendall(b" ")
        time.sleep(1)


def flood(connection):
    connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 62914560\r\n\r\n")
    for _ in range(60):
        connection.sendall(b" " * (1 << 20))


@pytest.fixture
def raw_model():
    started = []

    def start(answer):
        started.append(RawModel(answer))
        return started[-1]

    yield start
    for model in started:
        model.close()


def test_response_of_60_mib_is_not_buffered(trial, raw_model):
    """T17."""
    model = raw_model(flood)
    job_id = trial.submit(trial.request(model.url, "one"), ends="FAILED")
    with trial.fleet.worker() as worker:
        process, peak = psutil.Process(worker.pid), 0
        while not TERMINAL.intersection(trial.site.statuses(job_id)):
            peak = max(peak, process.memory_info().rss)
            time.sleep(0.02)
        books = trial.check()
    (tiles,) = books.tiles.values()
    assert {tile["error_code"] for tile in tiles} == {"BAD_RESPONSE"}
    # Four calls at a time, none of which may hold more than the 50 MiB that an answer may have.
    assert peak < 600 * 2**20


@pytest.mark.long
def test_message_of_many_images_for_dead_endpoint_holds_up_no_other_job(new_trial, raw_model, tmp_path):
    """Neither in the look-ahead nor in the slots in which images are started."""
    trial = new_trial(IMAGE_LOOK_AHEAD="4", REGIONS_IN_PROGRESS="1")
    dead = raw_model(never_answer)
    copies = [shutil.copy(trial.images["one"], tmp_path / f"{number}.tif") for number in range(8)]
    images = [str(copy) for copy in copies]
    many = trial.request(dead.url, "one", imageUrls=images, imageProcessorTileSize=4 * TILE_PX)
    trial.site.submit(many)
    with trial.fleet.worker():
        eventually(lambda: len(trial.site.open_jobs()) == len(copies) and dead.is_called)
        trial.wait(trial.submit(trial.request(trial.model(), "one")))


@pytest.mark.long
@pytest.mark.parametrize("responses", [0, 12])
def test_job_is_not_delayed_when_another_endpoint_never_responds(new_trial, responses):
    """After 12 responses the endpoint gets as many calls at once as a worker makes; none of them ends in this test."""
    trial, model = new_trial(WORKERS="4"), SilentModel(responses=responses)
    with ModelServer(model) as silent, trial.fleet.worker():
        held = trial.submit(trial.request(silent))
        eventually(lambda: silent.stats()["in_flight"] == (4 if responses else 1))
        trial.wait(trial.submit(trial.request(trial.model())))
        assert trial.running(held)
        assert silent.stats()["requests"] == responses
        model.wake()
        trial.wait(held)
        trial.check()


@pytest.mark.long
@pytest.mark.timeout(300)
@pytest.mark.parametrize("answer", [never_answer, trickle])
def test_job_ends_when_call_never_ends(new_trial, raw_model, answer):
    """T17, with the time limits of production, which nothing sets: a call may take 70 s."""
    trial = new_trial(JOB_DEADLINE_S="100")
    model = raw_model(answer)
    trial.submit(trial.request(model.url, "one", imageProcessorTileSize=4 * TILE_PX), ends="FAILED")
    with trial.fleet.worker():
        trial.wait(patience_s=250.0)
        trial.check()
    eventually(lambda: model.calls)
    assert max(model.calls) <= 75
