"""What scripts/bootstrap says where it cannot help itself; that it works is shown by every other test."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
COMMANDS = ("awk", "bash", "cat", "dirname", "env", "flock", "mkdir", "rm", "sed", "tail", "tr")


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """A checkout with nothing set up."""
    (tmp_path / "scripts").mkdir()
    for name in ("pyproject.toml", "constraints.txt", "scripts/bootstrap"):
        shutil.copy(ROOT / name, tmp_path / name)
    return tmp_path


@pytest.fixture
def bare_path(tmp_path: Path) -> Path:
    """A folder of commands for a machine with Python, and with neither GDAL nor a compiler nor apt."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name in COMMANDS:
        (folder / name).symlink_to(shutil.which(name) or f"/bin/{name}")
    (folder / "python3.11").symlink_to("/usr/bin/python3" if Path("/usr/bin/python3").exists() else "/bin/false")
    return folder


def bootstrap(clone: Path, path: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [clone / "scripts" / "bootstrap", *arguments],
        env={"PATH": str(path), "HOME": str(clone), **environment},
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
def test_without_permission_it_says_what_root_should_do(clone: Path, bare_path: Path) -> None:
    (bare_path / "apt-get").symlink_to("/bin/false")
    for path in (clone, *clone.parents):
        if path.owner() == "root" and path.is_relative_to(clone.parents[1]):
            path.chmod(path.stat().st_mode | 0o055)
    (clone / ".cache").mkdir(mode=0o777)
    (clone / ".cache").chmod(0o777)
    done = subprocess.run(
        [clone / "scripts" / "bootstrap"],
        env={"PATH": str(bare_path), "HOME": "/"},
        user="nobody",
        capture_output=True,
        text=True,
        check=False,
    )
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
