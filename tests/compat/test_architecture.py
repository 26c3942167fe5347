"""The tables of called functions in the architecture page name functions that exist, and each module once."""

import ast
import re
from collections import Counter
from itertools import groupby
from pathlib import Path

import pytest

from aws.osml.model_runner import model_runner
from trips import PAGE, TRIPS

STEPS = sorted({step for trip in TRIPS.values() for step in trip})
HANDLERS = ("image_request_handler.py", "region_request_handler.py")
# A table or a queue is entered for each of its reads and writes.
ADAPTERS = ("database/", "queue/")


def returned_to(trip: list[tuple[str, str]]) -> set[str]:
    """Return the modules that a trip enters again after it left them, the handlers and adapters aside."""
    modules = [module for module, _ in trip if module not in HANDLERS and not module.startswith(ADAPTERS)]
    entered = Counter(module for module, _ in groupby(modules))
    return {module for module, count in entered.items() if count > 1}


def test_the_page_draws_three_trips() -> None:
    assert list(TRIPS) == ["image request", "started image", "region message"]
    assert len(TRIPS["image request"]) + len(TRIPS["started image"]) <= 25
    assert len(TRIPS["region message"]) <= 20


@pytest.mark.parametrize(("module", "function"), STEPS, ids=lambda name: name)
def test_each_step_exists(module: str, function: str) -> None:
    tree = ast.parse((Path(model_runner.__file__).parent / module).read_text())
    *owners, name = function.split(".")
    body = tree.body
    for owner in owners:
        (found,) = (node for node in body if isinstance(node, ast.ClassDef) and node.name == owner)
        body = found.body
    assert name in {node.name for node in body if isinstance(node, ast.FunctionDef)}


@pytest.mark.parametrize("name", TRIPS)
def test_a_trip_enters_no_module_but_the_handler_twice(name: str) -> None:
    assert returned_to(TRIPS[name]) == set()
    assert [step for step, count in Counter(TRIPS[name]).items() if count > 1] == []


def test_a_module_that_is_entered_twice_is_found() -> None:
    trip = [("jobs/region.py", "a"), ("jobs/leases.py", "b"), ("jobs/region.py", "c"), ("jobs/region.py", "d")]
    assert returned_to(trip) == {"jobs/region.py"}


def test_the_page_has_no_other_table_of_functions() -> None:
    assert len(re.findall(r"^\| `[\w/]+\.py` \| `[\w.]+` \|", PAGE.read_text(), re.MULTILINE)) == sum(
        map(len, TRIPS.values())
    )
