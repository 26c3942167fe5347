#!/usr/bin/env python3
"""Writes requirements/*.txt: what the container holds, each version with the hashes of its files.

``scripts/renew-constraints`` runs it with a Python in which the project and its extras are installed. Versions come
from ``constraints.txt``. pip reads hashes from the package index, for both processors on which the container runs.
"""

import argparse
import json
import re
import subprocess
import sys
from collections.abc import Iterable, Sequence
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]
# The Python and the C library of Debian 12, the base of the container.
PYTHON, GLIBC_MINOR, PROCESSORS = "3.11", 36, ("x86_64", "aarch64")
BUILD_TOOLS = ("pip", "setuptools", "wheel", "hatchling", "hatch-vcs", "editables")
HEADER = """\
# {what}
# Written by scripts/renew-constraints. The container installs nothing else.
"""


def needed(requirement: Requirement, seen: set[tuple[str, frozenset[str]]]) -> set[str]:
    """Return the names of a distribution and of all that it needs on Linux, as they are installed here."""
    name, extras = normalized(requirement.name), frozenset(requirement.extras)
    if (name, extras) in seen or name == "gdal":
        return set()
    seen.add((name, extras))
    found = {name}
    for text in metadata.requires(name) or []:
        inner = Requirement(text)
        markers = [{"extra": extra} for extra in extras or {""}]
        if inner.marker is None or any(inner.marker.evaluate(marker) for marker in markers):
            found |= needed(inner, seen)
    return found


def normalized(name: str) -> str:
    """Return a name as PyPI compares names."""
    return re.sub(r"[-_.]+", "-", name).lower()


def pins() -> dict[str, str]:
    """Return the version of each name in ``constraints.txt``."""
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pairs = [line.partition(";")[0].strip().split("==") for line in lines if not line.startswith("#")]
    return {normalized(name): version for name, version in pairs}


def hashes_of(requirements: Sequence[str], options: Iterable[str]) -> dict[str, str]:
    """Return the SHA-256 of the file of each name that pip would install with these options; nothing is installed."""
    command = [sys.executable, "-m", "pip", "install", "--dry-run", "--quiet", "--ignore-installed", "--no-deps"]
    done = subprocess.run([*command, "--report", "-", *options, *requirements], capture_output=True, check=True)
    report = json.loads(done.stdout)["install"]
    return {
        normalized(item["metadata"]["name"]): item["download_info"]["archive_info"]["hashes"]["sha256"]
        for item in report
    }


def wheel_options(processor: str) -> list[str]:
    """Return the options by which pip chooses the wheels of the container on a processor."""
    platforms = [f"manylinux_2_{minor}_{processor}" for minor in range(GLIBC_MINOR, 4, -1)]
    chosen = [option for platform in platforms for option in ("--platform", platform)]
    return ["--only-binary", ":all:", "--python-version", PYTHON, "--target", "unused", *chosen]


def locked(requirements: Sequence[str]) -> list[str]:
    """Return a line for each requirement, with the hash of its wheel on each processor."""
    found = [hashes_of(requirements, wheel_options(processor)) for processor in PROCESSORS]
    lines = []
    for requirement in requirements:
        name = requirement.partition("==")[0]
        hashes = dict.fromkeys(hashes[name] for hashes in found)
        lines.append(" ".join([requirement, *(f"--hash=sha256:{sha256}" for sha256 in hashes)]))
    return lines


def write(name: str, what: str, lines: Sequence[str]) -> None:
    """Write one file of requirements."""
    folder = ROOT / "requirements"
    folder.mkdir(exist_ok=True)
    (folder / name).write_text("\n".join([HEADER.format(what=what) + lines[0], *lines[1:], ""]))


def main() -> None:
    """Write the four files."""
    argparse.ArgumentParser(description=__doc__).parse_args()
    versions, project = pins(), "tile-model-runner"
    build = {name for tool in BUILD_TOOLS for name in needed(Requirement(tool), set())}
    runtime = needed(Requirement(f"{project}[parquet]"), set()) - {project}
    local = needed(Requirement(f"{project}[local,parquet]"), set()) - runtime - {project}
    onnx = needed(Requirement(f"{project}[onnx,parquet]"), set()) - runtime - {project}
    for name, what, names in (
        ("build.txt", "Packages that build the project.", build),
        ("runtime.txt", "Packages of a worker.", runtime),
        ("local.txt", "Further packages of the embedded stack.", local),
        ("onnx.txt", "Further packages of a container that serves ONNX files.", onnx),
    ):
        write(name, what, locked([f"{each}=={versions[each]}" for each in sorted(names)]))


if __name__ == "__main__":
    main()
