"""Fault tests: workers that are killed, paused and lied to, in a short form and, with ``--long``, in a long one."""

import itertools
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from aws.osml.model_runner.local.stack.data_plane import create_data_plane
from aws.osml.model_runner.local.stack.model_server import ModelServer
from aws.osml.model_runner.local.stack.sagemaker_gateway import LocalEndpoint, SageMakerGateway
from aws_proxy.proxy import AwsProxy, Step
from faults.forkserver import Fleet, ForkServer
from faults.numbered_scene import NumberedModel, write_numbered_scene
from faults.queueing_model import QueueingModel
from faults.trial import SETTINGS, Trial
from template_json import template_json
from worker_process import Site

_numbers = itertools.count()
_COLUMNS = ("jobs", "tiles", "model calls", "kills", "pauses", "duplicates", "lost replies", "refusals", "violations")
_PROPERTY = "faults"
_NONE: Mapping[str, Any] = {}


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Print what happened to the jobs of all tests, as one table."""
    if not terminalreporter.config.getoption("--long", default=False):
        return
    rows: dict[str, Counter[str]] = {}
    for report in itertools.chain.from_iterable(terminalreporter.stats.values()):
        for name, counts in getattr(report, "user_properties", ()):
            if name == _PROPERTY:
                rows[report.nodeid.rpartition("::")[2]] = Counter(counts)
    if rows:
        _print_table(terminalreporter, rows)


def _print_table(terminal: Any, rows: dict[str, Counter[str]]) -> None:
    terminal.section("faults")
    width = max(map(len, rows))
    terminal.write_line(" ".join([" " * width, *(f"{column:>12}" for column in _COLUMNS), "  calls/tile"]))
    total: Counter[str] = sum(rows.values(), Counter())
    for name, counts in [*sorted(rows.items()), ("all", total)]:
        ratio = counts["model calls"] / max(1, counts["tiles"])
        terminal.write_line(
            " ".join([f"{name:{width}}", *(f"{counts[column]:12}" for column in _COLUMNS), f"{ratio:12.2f}"])
        )


@pytest.fixture(scope="session")
def forkserver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ForkServer]:
    with ForkServer(tmp_path_factory.mktemp("fork-server"), os.environ) as running:
        yield running


@pytest.fixture(scope="session")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Images by name, of 16 tiles to a region."""
    directory = tmp_path_factory.mktemp("scenes")
    sizes = {"one": (1, 1), "small": (2, 2), "full": (4, 2)}
    return {name: write_numbered_scene(directory / f"{name}.tif", size) for name, size in sizes.items()}


@pytest.fixture
def new_model() -> Iterator[Callable[..., ModelServer]]:
    with ExitStack() as running:
        yield lambda **settings: running.enter_context(ModelServer(NumberedModel.model_validate(settings)))


@pytest.fixture
def new_queueing_model() -> Iterator[Callable[..., ModelServer]]:
    with ExitStack() as running:
        yield lambda **settings: running.enter_context(ModelServer(QueueingModel.model_validate(settings)))


@pytest.fixture
def new_proxy(emulator: Any) -> Iterator[Callable[..., AwsProxy]]:
    """`new_proxy(*steps, endpoints={"name": server})`: a proxy before the emulator, and before those endpoints."""
    with ExitStack() as running:

        def start(
            *steps: Step, endpoints: Mapping[str, ModelServer] = _NONE, tags: Mapping[str, str] = _NONE
        ) -> AwsProxy:
            named = {name: LocalEndpoint(model.invocations_url, tags=tags) for name, model in endpoints.items()}
            gateway = running.enter_context(SageMakerGateway(named))
            return running.enter_context(AwsProxy(emulator.url, gateway.url, steps))

        yield start


@pytest.fixture
def new_trial(
    emulator: Any,
    forkserver: ForkServer,
    scenes: dict[str, Path],
    new_model: Callable[..., ModelServer],
    tmp_path: Path,
    request: pytest.FixtureRequest,
) -> Iterator[Callable[..., Trial]]:
    """`new_trial(lease="5")`: a data plane of its own; ``settings`` are environment variables of its workers."""
    tally: Counter[str] = Counter()
    trials: list[Trial] = []

    def make(**settings: str) -> Trial:
        directory = tmp_path / str(len(trials))
        directory.mkdir()
        name = f"faults-{os.getpid()}-{next(_numbers)}"
        data_plane = create_data_plane(emulator.client, name, template=template_json())
        site = Site(emulator, data_plane, directory)
        for queue in ("IMAGE_QUEUE", "REGION_QUEUE"):
            # The message of a worker that died comes again as soon as its lease ends.
            url = data_plane.environment[queue]
            site.client("sqs").set_queue_attributes(QueueUrl=url, Attributes={"VisibilityTimeout": "2"})
        fleet = Fleet(forkserver, lambda **more: site.environment(**{**SETTINGS, **settings, **more}), directory)
        trials.append(Trial(site, fleet, scenes, new_model, tally))
        return trials[-1]

    try:
        yield make
    finally:
        for trial in trials:
            trial.fleet.kill_all()
        request.node.user_properties.append((_PROPERTY, dict(tally)))


@pytest.fixture
def trial(new_trial: Callable[..., Trial]) -> Trial:
    return new_trial()
