"""Messages of scripts/bootstrap where it cannot continue; every other test shows that it works."""

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
COMMANDS = ("awk", "bash", "cat", "dirname", "env", "flock", "mkdir", "rm", "sed", "tail", "tr")


@pytest.fixture
def clone() -> Iterator[Path]:
    """A checkout with nothing set up, which every user may read."""
    with tempfile.TemporaryDirectory() as folder:
        clone = Path(folder)
        (clone / "scripts").mkdir()
        for name in ("pyproject.toml", "constraints.txt", "scripts/bootstrap"):
            shutil.copy(ROOT / name, clone / name)
        clone.chmod(0o755)
        yield clone


@pytest.fixture
def bare_path(clone: Path) -> Path:
    """A folder of commands for a machine with Python, and with neither GDAL nor a compiler nor apt."""
    folder = clone / "bin"
    folder.mkdir()
    for name in COMMANDS:
        (folder / name).symlink_to(shutil.which(name) or f"/bin/{name}")
    (folder / "python3.11").symlink_to(Path(sys.executable).resolve())
    return folder


def bootstrap(
    clone: Path, path: Path, *arguments: str, user: str | None = None, **environment: str
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [clone / "scripts" / "bootstrap", *arguments],
        env={"PATH": str(path), "HOME": str(clone), **environment},
        user=user,
        capture_output=True,
        text=True,
        check=False,
    )


def test_without_apt_it_says_what_to_install(clone: Path, bare_path: Path) -> None:
    done = bootstrap(clone, bare_path)
    assert done.returncode == 1
    assert "these are missing: libgdal-dev g++" in done.stderr
    assert all(name in done.stderr for name in ("apt-get install", "dnf install", "pacman -S", "brew install"))
    assert not (clone / ".venv").exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
@pytest.mark.skipif(not Path("/usr/bin/python3.11").exists(), reason="every user must be able to run the interpreter")
def test_without_permission_it_says_what_root_should_do(clone: Path, bare_path: Path) -> None:
    (bare_path / "apt-get").symlink_to("/bin/false")
    (clone / ".cache").mkdir()
    (clone / ".cache").chmod(0o777)
    done = bootstrap(clone, bare_path, user="nobody", PYTHON="/usr/bin/python3.11")
    assert done.returncode == 1
    assert "no permission" in done.stderr
    assert "apt-get update && apt-get install libgdal-dev g++" in done.stderr


def test_an_old_interpreter_is_refused(clone: Path, bare_path: Path) -> None:
    done = bootstrap(clone, bare_path, PYTHON="/bin/false")
    assert done.returncode == 1
    assert "PYTHON=/bin/false is no Python 3.11 or newer" in done.stderr


def test_no_interpreter_at_all_is_told(clone: Path, bare_path: Path) -> None:
    (bare_path / "python3.11").unlink()
    done = bootstrap(clone, bare_path)
    assert done.returncode == 1
    assert "Python 3.11 or newer is needed" in done.stderr


@pytest.mark.parametrize(("arguments", "status", "text"), [(["--help"], 0, "runtime"), (["everything"], 2, "--help")])
def test_arguments(clone: Path, bare_path: Path, arguments: list[str], status: int, text: str) -> None:
    done = bootstrap(clone, bare_path, *arguments)
    assert done.returncode == status
    assert text in done.stdout + done.stderr
