"""The published interface, pinned: the stubs in ``surface/`` name every module, class, parameter and default.

A stub is a table and nothing else: it is parsed, never imported. ``Any`` there means that no type was published.
"""

import ast
import importlib
import inspect
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

PACKAGE = "aws.osml.model_runner"
STUBS = sorted((Path(__file__).parent / "surface").glob("*.pyi"))
REFERENCE_CHECK = Path(__file__).parents[2].parent / "shared" / "tools" / "check_seed_api.py"
SUBMODULES = {
    "database": "ddb_helper endpoint_statistics_table exceptions feature_table job_table region_request_table",
    "sink": "exceptions kinesis_sink s3_sink sink sink_factory",
    "status": "base_status_monitor exceptions image_status_monitor region_status_monitor sns_helper status_message",
}


@dataclass(frozen=True)
class Published:
    """One name of a stub: what kind of thing it declares, and where."""

    module: str
    owner: str | None
    node: ast.stmt

    @property
    def name(self) -> str:
        if isinstance(self.node, ast.AnnAssign):
            assert isinstance(self.node.target, ast.Name)
            return self.node.target.id
        return self.node.name

    @property
    def flags(self) -> set[str]:
        return {ast.unparse(decorator) for decorator in getattr(self.node, "decorator_list", ())}

    def __str__(self) -> str:
        return ".".join(part for part in (self.module, self.owner, self.name) if part)


def published() -> Iterator[Published]:
    for stub in STUBS:
        module = f"{PACKAGE}.{stub.stem}"
        for node in ast.parse(stub.read_text()).body:
            yield Published(module, None, node)
            if isinstance(node, ast.ClassDef):
                members = (member for member in node.body if not isinstance(member, ast.Expr))
                yield from (Published(module, node.name, member) for member in members)


def of_kind(kind: type[ast.stmt], *, is_member: bool) -> list[Any]:
    chosen = (entry for entry in published() if isinstance(entry.node, kind) and bool(entry.owner) == is_member)
    return [pytest.param(entry, id=str(entry).removeprefix(PACKAGE + ".")) for entry in chosen]


def class_of(entry: Published) -> type:
    return getattr(importlib.import_module(entry.module), entry.owner or entry.name)


def static_member(entry: Published) -> Any:
    return inspect.getattr_static(class_of(entry), entry.name)


def test_the_table_is_whole() -> None:
    # 185 names are published. The pages name constructors together with their class; and DDBItem.__get_fields cannot be
    # called from outside its class, so its form is unknown.
    assert sum(entry.name != "__init__" for entry in published()) == 184


@pytest.mark.parametrize("module", [f"{room}.{name}" for room, names in SUBMODULES.items() for name in names.split()])
def test_module_exists(module: str) -> None:
    assert importlib.import_module(f"{PACKAGE}.{module}").__doc__


@pytest.mark.parametrize("entry", of_kind(ast.ClassDef, is_member=False))
def test_class_has_its_bases(entry: Published) -> None:
    assert isinstance(entry.node, ast.ClassDef)
    ancestors = {ancestor.__name__ for ancestor in class_of(entry).__mro__}
    assert {ast.unparse(base) for base in entry.node.bases} <= ancestors


@pytest.mark.parametrize("entry", of_kind(ast.AnnAssign, is_member=False))
def test_module_has_its_data(entry: Published) -> None:
    assert hasattr(importlib.import_module(entry.module), entry.name)


@pytest.mark.parametrize("entry", of_kind(ast.FunctionDef, is_member=True))
def test_method_is_of_its_kind(entry: Published) -> None:
    member = static_member(entry)
    kinds = {"staticmethod": staticmethod, "classmethod": classmethod, "property": property}
    for flag, kind in kinds.items():
        assert isinstance(member, kind) == (flag in entry.flags)
    function = getattr(member, "fget", None) or getattr(member, "__func__", member)
    assert getattr(function, "__isabstractmethod__", False) == ("abstractmethod" in entry.flags)


@pytest.mark.parametrize("entry", of_kind(ast.FunctionDef, is_member=True))
def test_method_takes_its_parameters(entry: Published) -> None:
    assert isinstance(entry.node, ast.FunctionDef)
    member = static_member(entry)
    function = inspect.unwrap(getattr(member, "fget", None) or getattr(member, "__func__", member))
    names = [argument.arg for argument in entry.node.args.args]
    defaults = [ast.literal_eval(default) for default in entry.node.args.defaults]
    parameters = list(inspect.signature(function).parameters.values())
    assert [parameter.name for parameter in parameters[: len(names)]] == names
    # A required parameter may be optional here, and further parameters may follow: a call by the page still works.
    with_default = parameters[len(names) - len(defaults) : len(names)]
    assert [parameter.default for parameter in with_default] == defaults
    variable = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    further = [parameter for parameter in parameters[len(names) :] if parameter.kind not in variable]
    assert all(parameter.default is not inspect.Parameter.empty for parameter in further)


def placeholder(parameter: inspect.Parameter) -> object:
    """Return something of the shape that a constructor may look at; it may not use it."""
    annotation = str(parameter.annotation)
    if "ImageDimensions" in annotation:
        return (1024, 1024)
    return f"a-{parameter.name}" if "str" in annotation else object()


@pytest.mark.parametrize("entry", of_kind(ast.AnnAssign, is_member=True))
def test_instance_has_its_attribute(entry: Published) -> None:
    assert isinstance(entry.node, ast.AnnAssign)
    owner = class_of(entry)
    required = [
        parameter
        for parameter in inspect.signature(owner).parameters.values()
        if parameter.default is parameter.empty and parameter.kind is parameter.POSITIONAL_OR_KEYWORD
    ]
    instance = owner(**{parameter.name: placeholder(parameter) for parameter in required})
    is_lazy = isinstance(inspect.getattr_static(owner, entry.name, None), property)
    is_set_by_subclasses = entry.name in getattr(owner, "__dataclass_fields__", {})
    assert is_lazy or is_set_by_subclasses or hasattr(instance, entry.name)
    if entry.node.value is not None:
        assert getattr(instance, entry.name) == ast.literal_eval(entry.node.value)


@pytest.mark.skipif(not REFERENCE_CHECK.exists(), reason="the reference pages are not here")
def test_reference_pages_match_with_an_empty_environment() -> None:
    environment = {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    check = subprocess.run(
        [sys.executable, str(REFERENCE_CHECK), "--all"], env=environment, capture_output=True, text=True, check=False
    )
    assert check.stdout.splitlines()[-1].startswith("185 of 185"), check.stdout + check.stderr
    assert check.returncode == 0
