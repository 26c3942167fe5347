"""Builds the wheel, looks into it, and runs the command from it: what users install is what the tests ran."""

import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = "aws/osml/model_runner"

# Imports from the wheel's folder alone: -P and the path's order keep the checkout's own copy out.
IMPORT_FROM_WHEEL = """
import pathlib, sys
sys.path.insert(0, sys.argv.pop(1))
import aws.osml.model_runner.cli, aws.osml.photogrammetry
assert pathlib.Path(aws.osml.model_runner.cli.__file__).is_relative_to(sys.path[0]), "the checkout was imported"
sys.exit(aws.osml.model_runner.cli.main(["--help"]))
"""


def build_wheel(folder: Path) -> Path:
    """Build the project's wheel into a folder with the tools that are installed here."""
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    subprocess.run([*command, "--wheel-dir", str(folder), str(ROOT)], check=True)
    (wheel,) = folder.glob("*.whl")
    return wheel


def expected_names() -> set[str]:
    """Return every file under src, the data-plane template, the licence, and the mark of a typed package."""
    sources = (path for path in (ROOT / "src").rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    names = {str(path.relative_to(ROOT / "src")) for path in sources}
    return names | {f"{PACKAGE}/local/stack/data-plane.yaml", f"{PACKAGE}/py.typed"}


def problems_of(names: set[str]) -> list[str]:
    """Return what is wrong with the names in a wheel, one sentence each."""
    problems = [f"{name} is missing" for name in sorted(expected_names() - names)]
    problems += [
        f"{name} would shadow the toolkit's packages"
        for name in ("aws/__init__.py", "aws/osml/__init__.py")
        if name in names
    ]
    problems += [
        f"licenses/{text} is missing"
        for text in ("LICENSE", "NOTICE")
        if not any(name.endswith(f".dist-info/licenses/{text}") for name in names)
    ]
    problems += [
        f"{name} does not belong in a wheel"
        for name in sorted(names)
        if not name.startswith((PACKAGE, "tile_model_runner-"))
    ]
    return problems


def main() -> int:
    """Return 1 and say why when the wheel is incomplete or its command does not start."""
    with tempfile.TemporaryDirectory() as folder:
        wheel = build_wheel(Path(folder))
        with zipfile.ZipFile(wheel) as archive:
            problems = problems_of(set(archive.namelist()))
            archive.extractall(Path(folder, "installed"))
        for problem in problems:
            print(f"{wheel.name}: {problem}")
        started = subprocess.run(
            [sys.executable, "-P", "-c", IMPORT_FROM_WHEEL, str(Path(folder, "installed"))], cwd=folder
        )
    return int(bool(problems) or started.returncode != 0)


if __name__ == "__main__":
    sys.exit(main())
