"""The tables of called functions in the architecture page name functions that exist."""

import ast
import re
from pathlib import Path

import pytest

from aws.osml.model_runner import model_runner

PAGE = Path(__file__).parents[2] / "docs/explanation/architecture.md"
STEPS = re.findall(r"^\| `([\w/]+\.py)` \| `([\w.]+)` \|", PAGE.read_text(), re.MULTILINE)


def test_the_page_lists_the_steps() -> None:
    assert len(STEPS) > 30


@pytest.mark.parametrize(("module", "function"), sorted(set(STEPS)), ids=lambda name: name)
def test_each_step_exists(module: str, function: str) -> None:
    tree = ast.parse((Path(model_runner.__file__).parent / module).read_text())
    *owners, name = function.split(".")
    body = tree.body
    for owner in owners:
        (found,) = (node for node in body if isinstance(node, ast.ClassDef) and node.name == owner)
        body = found.body
    assert name in {node.name for node in body if isinstance(node, ast.FunctionDef)}
