"""Writes the bill of materials of the image as CycloneDX 1.6: its packages of Debian and of Python.

The same packages give the same text. CycloneDX: https://cyclonedx.org/docs/1.6/json/
"""

import argparse
import json
import platform
import re
import sys
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path
from urllib.parse import quote

PROJECT = "tile-model-runner"
_DEBIAN_NAMES = {"x86_64": "amd64", "aarch64": "arm64"}


def python_component(distribution: metadata.Distribution) -> dict[str, object]:
    """Return the component of an installed distribution; its licence as its metadata has it."""
    facts = distribution.metadata
    name = re.sub(r"[-_.]+", "-", facts["Name"]).lower()
    purl = f"pkg:pypi/{name}@{quote(distribution.version)}"
    found: dict[str, object] = {"type": "library", "bom-ref": purl, "name": name, "version": distribution.version}
    licence = facts.get("License-Expression")
    named = facts.get("License") or "; ".join(
        text.rpartition(" :: ")[2] for text in facts.get_all("Classifier", []) if text.startswith("License")
    )
    if licence:
        found["licenses"] = [{"expression": licence}]
    elif named:
        # Some distributions have the whole text in this field.
        found["licenses"] = [{"license": {"name": named.splitlines()[0]}}]
    return found | {"purl": purl}


def debian_component(line: str, processor: str) -> dict[str, object]:
    """Return the component of a line of ``dpkg-query --show``: NAME[:PROCESSOR], a tab, VERSION."""
    name, version = line.split("\t")
    name = name.partition(":")[0]
    purl = f"pkg:deb/debian/{quote(name, safe='')}@{quote(version, safe='')}?arch={processor}&distro=bookworm"
    return {"type": "library", "bom-ref": purl, "name": name, "version": version, "purl": purl}


def bill_of_materials(site_packages: Iterable[Path], debian_lines: Iterable[str]) -> dict[str, object]:
    """Return the document; the project is its subject, and every other package a component."""
    processor = _DEBIAN_NAMES.get(platform.machine(), platform.machine())
    found = [python_component(each) for each in metadata.distributions(path=[str(path) for path in site_packages])]
    (subject,) = [component for component in found if component["name"] == PROJECT]
    found = [component for component in found if component is not subject]
    found += [debian_component(line, processor) for line in debian_lines]
    return {
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "metadata": {"component": subject | {"type": "application"}},
        "components": sorted(found, key=lambda component: str(component["bom-ref"])),
    }


def main() -> None:
    """Write the document to the standard output."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--debian", required=True, type=Path, metavar="FILE", help="output of dpkg-query --show")
    parser.add_argument("site_packages", nargs="+", type=Path, metavar="DIR", help="folders of installed packages")
    arguments = parser.parse_args()
    document = bill_of_materials(arguments.site_packages, arguments.debian.read_text().splitlines())
    json.dump(document, sys.stdout, indent=1)


if __name__ == "__main__":
    main()
