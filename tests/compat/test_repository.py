"""Rules for every module and script."""

import ast
import json
import os
import re
import stat
import subprocess
import sys
import tomllib
from functools import cache
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from python_scripts import load_script

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "src"
PACKAGE = SOURCE / "aws" / "osml" / "model_runner"
MODULES = sorted(PACKAGE.rglob("*.py"))
SCRIPTS = [
    ROOT / ".ci" / "run",
    *(ROOT / "scripts" / name for name in ("bootstrap", "demo", "renew-constraints", "test")),
]


@cache
def tree_of(path: Path) -> ast.Module:
    """Return the syntax of a module, parsed once."""
    return ast.parse(path.read_text())


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(SOURCE).with_suffix("").parts).removesuffix(".__init__")


def test_importing_everything_does_nothing() -> None:
    names = [module_name(path) for path in MODULES if path.stem != "__main__"]
    done = subprocess.run(
        [sys.executable, "-W", "error", str(Path(__file__).with_name("import_everything.py"))],
        input=json.dumps([names, str(SOURCE)]),
        env={"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {"environment": [], "sockets": [], "clients": [], "threads": []}


@pytest.mark.parametrize("path", MODULES, ids=module_name)
def test_module_says_what_it_is_for(path: Path) -> None:
    docstring = ast.get_docstring(tree_of(path))
    assert docstring
    assert len(docstring) > 20


@pytest.mark.parametrize("path", MODULES, ids=module_name)
def test_only_what_a_person_starts_prints(path: Path) -> None:
    room = path.relative_to(PACKAGE).parts[0]
    calls = [node for node in ast.walk(tree_of(path)) if isinstance(node, ast.Call)]
    prints = [call.lineno for call in calls if isinstance(call.func, ast.Name) and call.func.id == "print"]
    assert room in ("cli", "local") or not prints


@pytest.mark.parametrize("path", [SOURCE / "aws", SOURCE / "aws" / "osml"], ids=str)
def test_the_namespace_is_shared_with_the_toolkit(path: Path) -> None:
    assert not (path / "__init__.py").exists()


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_script_can_be_run_and_stops_at_the_first_error(path: Path) -> None:
    assert path.stat().st_mode & stat.S_IXUSR
    lines = path.read_text().splitlines()
    assert lines[0] == "#!/usr/bin/env bash"
    assert "set -euo pipefail" in lines


def test_every_version_is_pinned_but_that_of_gdal() -> None:
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    pins = {re.split("==", line)[0].lower().replace("_", "-") for line in lines}
    assert all(re.fullmatch(r"[A-Za-z0-9._-]+==[^ ;]+(; python_version < \"3\.12\")?", line) for line in lines)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [
        *project["dependencies"],
        *(name for names in project["optional-dependencies"].values() for name in names),
    ]
    names = {re.match(r"[A-Za-z0-9._-]+", requirement)[0].lower().replace("_", "-") for requirement in wanted}
    assert names - {"tile-model-runner"} <= pins
    assert "gdal" not in pins


def test_the_container_installs_by_hashes_what_the_project_needs_and_nothing_else() -> None:
    lock_hashes = load_script(ROOT / "scripts" / "lock_hashes.py")
    versions = lock_hashes.pins()
    listed: dict[str, set[str]] = {}
    for name in ("build", "runtime", "local", "onnx"):
        lines = (ROOT / "requirements" / f"{name}.txt").read_text().splitlines()
        lines = [line for line in lines if not line.startswith("#")]
        assert all(re.fullmatch(r"[a-z0-9-]+==[^ ]+( --hash=sha256:[0-9a-f]{64}){1,2}", line) for line in lines)
        pins = dict(re.split("[= ]+", line)[:2] for line in lines)
        assert all(versions[each] == version for each, version in pins.items())
        listed[name] = set(pins)

    def needed(*requirements: str) -> set[str]:
        return {each for text in requirements for each in lock_hashes.needed(Requirement(text), set())}

    runtime = needed("tile-model-runner[parquet]") - {"tile-model-runner"}
    assert len(runtime) > 30
    assert listed["build"] == needed(*lock_hashes.BUILD_TOOLS)
    assert listed["runtime"] == runtime
    assert listed["onnx"] == needed("tile-model-runner[onnx,parquet]") - runtime - {"tile-model-runner"}
    assert listed["local"] == needed("tile-model-runner[local,parquet]") - runtime - {"tile-model-runner"}
