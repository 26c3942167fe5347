"""Programs beside the package: nothing imports them in the tests, so the names that they import are checked here."""

import ast
import importlib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = "aws.osml.model_runner"
FOLDERS = ("benchmarks", "docker", "examples", "scripts")
# Programs whose names start with "peer" run with version 2.3.0, whose package has the same name.
PROGRAMS = [
    path for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*.py")) if not path.name.startswith("peer")
]


@pytest.mark.parametrize("path", PROGRAMS, ids=lambda path: str(path.relative_to(ROOT)))
def test_program_imports_names_that_exist(path: Path) -> None:
    missing = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith(PACKAGE):
            missing += [
                f"{node.module}.{alias.name}" for alias in node.names if not exists(str(node.module), alias.name)
            ]
    assert missing == []


def exists(module: str, name: str) -> bool:
    try:
        if hasattr(importlib.import_module(module), name):
            return True
        importlib.import_module(f"{module}.{name}")
    except ModuleNotFoundError:
        return False
    return True
