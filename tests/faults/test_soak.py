"""T23: many jobs, many workers, every fault now and then."""

import random
import signal
import threading
import time

import psutil
import pytest

_CHANCE = 0.01
_RULES = (
    {"on": "*", "do": "lose", "chance": _CHANCE},
    {"on": "*", "do": "refuse", "code": "InternalServerError", "status": 500, "chance": _CHANCE},
    {"on": "*", "do": "delay", "seconds": 0.2, "chance": _CHANCE},
    {"on": ["A4-send", "send", "G4-publish"], "do": "repeat", "chance": 0.1},
    {"on": "Kinesis", "do": "partly", "share": 0.1, "chance": 0.1},
)
_MORTAL = (
    {"on": "*", "do": "die_before", "chance": _CHANCE / 4},
    {"on": "*", "do": "die_after", "chance": _CHANCE / 4},
)


@pytest.mark.long
@pytest.mark.timeout(900)
def test_jobs_end_and_workers_do_not_grow_when_faults_persist(new_trial):
    """Half of the workers are killed and paused all the time; the others live on and must not grow."""
    trial = new_trial()
    rng = random.Random(23)
    jobs, pairs, at_once = 200, 3, 20
    model = trial.model(latency_ms=20, first=dict.fromkeys(range(0, 16, 7), 500))
    steady = [trial.fleet.start(*_RULES) for _ in range(pairs)]
    mortal = [trial.fleet.start(*_MORTAL, *_RULES) for _ in range(pairs)]
    sizes = []
    paused = 0
    while True:
        while len(trial.jobs) < jobs and len(trial.running()) < at_once:
            trial.submit(trial.request(model, "one"))
            sizes.append([size_of(worker) for worker in steady])
        if not trial.running():
            break
        for place, worker in enumerate(mortal):
            if worker.exit_code is not None:
                mortal[place] = trial.fleet.start(*_MORTAL, *_RULES, seed=len(trial.fleet.workers))
            elif rng.random() < 0.02:
                pause(worker)
                paused += 1
        trial.site.listen()
        time.sleep(0.2)
    trial.tally["pauses"] += paused
    books = trial.check()
    assert trial.calls_per_tile(books) <= 2.0
    assert [worker.exit_code for worker in steady] == [None] * pairs
    for warm, last in zip(sizes[len(sizes) // 3], [size_of(worker) for worker in steady], strict=True):
        assert last["rss"] <= 1.05 * warm["rss"]
        assert last["fds"] <= warm["fds"] + 8
        assert last["threads"] <= warm["threads"] + 4


def pause(worker):
    """Stop a worker for longer than its lease."""
    worker.send(signal.SIGSTOP)
    threading.Timer(4.0, worker.send, [signal.SIGCONT]).start()


def size_of(worker):
    process = psutil.Process(worker.pid)
    with process.oneshot():
        return {"rss": process.memory_info().rss, "fds": process.num_fds(), "threads": process.num_threads()}
