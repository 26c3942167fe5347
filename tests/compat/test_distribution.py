"""The built and installed distribution: its name, version and licences, and the commands that install it."""

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from aws.osml.model_runner.sink.geoparquet import REQUIREMENT

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "RELEASING.md", *sorted((ROOT / "docs").rglob("*.md"))]
FOREIGN = "osml-model-runner"


def name_of(requirement: str) -> str:
    return re.split(r"[^A-Za-z0-9._-]", requirement, maxsplit=1)[0].lower().replace("_", "-")


def version_of(folder: Path, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "hatchling", "metadata", "version"],
        cwd=folder,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.strip()


@pytest.fixture
def folder_without_git(tmp_path: Path) -> Path:
    for name in ("pyproject.toml", "README.md", "LICENSE", "NOTICE"):
        (tmp_path / name).write_bytes((ROOT / name).read_bytes())
    return tmp_path


def test_project_has_a_name_and_no_link_of_another_project() -> None:
    assert PROJECT["project"]["name"] != FOREIGN
    assert FOREIGN not in str(PROJECT["project"].get("urls", {}))


def test_folder_without_git_has_the_fallback_version(folder_without_git: Path) -> None:
    fallback = PROJECT["tool"]["hatch"]["version"]["raw-options"]["fallback_version"]
    assert version_of(folder_without_git, GIT_CEILING_DIRECTORIES=str(folder_without_git.parent)) == fallback


def test_container_build_takes_the_version_of_its_argument(folder_without_git: Path) -> None:
    variable = re.search(r"(SETUPTOOLS_SCM_\w+)=\"\$\{VERSION\}\"", (ROOT / "Dockerfile").read_text())
    assert variable
    assert version_of(folder_without_git, **{variable[1]: "3.1.0"}) == "3.1.0"


def test_notice_names_every_package_that_a_worker_needs() -> None:
    extras = PROJECT["project"]["optional-dependencies"]
    shipped = {name_of(each) for each in (*PROJECT["project"]["dependencies"], *extras["parquet"])}
    assert shipped <= set(re.findall(r"[a-z0-9-]+", (ROOT / "NOTICE").read_text()))


def test_message_about_geoparquet_names_the_version_of_the_project() -> None:
    assert REQUIREMENT in PROJECT["project"]["optional-dependencies"]["parquet"]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_install_line_takes_this_project_from_the_clone(page: Path) -> None:
    lines = [line for line in page.read_text().splitlines() if "pip install" in line]
    assert not [line for line in lines if FOREIGN in line or PROJECT["project"]["name"] in line]
