"""The packages export names that can be imported."""

import importlib
import pkgutil

import pytest

import aws.osml.model_runner

PACKAGES = [
    package.name
    for package in pkgutil.walk_packages(aws.osml.model_runner.__path__, "aws.osml.model_runner.")
    if package.ispkg
]


@pytest.mark.parametrize("name", PACKAGES)
def test_each_exported_name_can_be_imported(name: str) -> None:
    package = importlib.import_module(name)
    missing = [exported for exported in getattr(package, "__all__", ()) if not hasattr(package, exported)]
    assert missing == []
