"""Fixtures over real servers: the AWS emulator, its data plane and the example models, each on a loopback port."""

import functools
import itertools
import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, nullcontext
from pathlib import Path

import botocore.session
import coverage
import pytest

from aws.osml.model_runner.local.stack.data_plane import DataPlane, create_data_plane
from aws.osml.model_runner.local.stack.emulator import Emulator
from aws.osml.model_runner.local.stack.model_server import ModelServer, create_model
from aws.osml.model_runner.raster.settings import RasterSettings, configure_gdal
from examples import choose_form
from measured import aws_calls_not_traced, coverage_stopped
from template_json import template_json

stack_numbers = itertools.count()
# They run again and again what other tests cover, and would take half as long again.
_NOT_MEASURED = {"compat", "faults", "fuzz", "images", "scheduling", "security", "simulation", "sweep"}


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--long", action="store_true", help="tests in their long form, and properties with all their examples"
    )


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "long: runs only with --long")
    config.addinivalue_line("markers", "unmeasured: runs without coverage, as some folders do")
    choose_form(config.getoption("--long"))


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Skip what takes long, unless asked for."""
    is_long = config.getoption("--long")
    for item in items:
        if item.get_closest_marker("long") and not is_long:
            item.add_marker(pytest.mark.skip(reason="runs only with --long"))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    """Measure no coverage of an unmeasured test, and none of AWS's client but in the tests of the package ``aws``."""
    folders = item.path.relative_to(Path(__file__).parent).parts[:-1]
    measuring: AbstractContextManager[None] = nullcontext()
    if folders[0] in _NOT_MEASURED or item.get_closest_marker("unmeasured"):
        measuring = coverage_stopped()
    elif "aws" not in folders and coverage.Coverage.current():
        measuring = aws_calls_not_traced()
    with measuring:
        return (yield)


@pytest.fixture(scope="session", autouse=True)
def _gdal() -> None:
    """GDAL as a worker sets it up."""
    configure_gdal(RasterSettings(), os.environ)


@pytest.fixture(scope="session", autouse=True)
def _service_models() -> Iterator[None]:
    """Share botocore's models of services by all sessions; each session would parse them again, for half a second."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(botocore.session, "create_loader", functools.cache(botocore.session.create_loader))
        yield


@pytest.fixture(scope="session")
def is_long(pytestconfig: pytest.Config) -> bool:
    """True when tests are to run in their long form."""
    return bool(pytestconfig.getoption("--long"))


@pytest.fixture(scope="session")
def emulator(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Emulator]:
    """One emulator for all tests: `.url`, `.environment` for other processes, `.client(service)` for this one."""
    with Emulator(tmp_path_factory.mktemp("emulator")) as running:
        yield running


@pytest.fixture
def data_plane(emulator: Emulator) -> DataPlane:
    """Queues, topics, tables, bucket and stream that no other test knows: `.environment["IMAGE_QUEUE"]` and so on."""
    return create_data_plane(emulator.client, f"test-{next(stack_numbers)}", template=template_json())


@pytest.fixture
def model_server() -> Iterator[Callable[..., ModelServer]]:
    """`model_server("flood", count=5).invocations_url`: an example model that runs until the test ends."""
    with ExitStack() as running:

        def start(name: str, **settings: object) -> ModelServer:
            return running.enter_context(ModelServer(create_model(name, **settings)))

        yield start
