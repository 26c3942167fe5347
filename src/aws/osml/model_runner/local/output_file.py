"""Writes a result to a file: checked before the job starts, complete or absent, with a fallback directory."""

import contextlib
import os
import secrets
import tempfile
from collections.abc import Collection
from pathlib import Path

from aws.osml.model_runner.exceptions import ConfigurationError, LocalStackError

COVERAGE_SUFFIX = ".coverage.geojson"


def beside(result: Path, suffix: str) -> Path:
    """Return the path beside a result with another suffix: ``a.v2.geojson.gz`` and ``.html`` give ``a.v2.html``."""
    plain = result.with_suffix("") if result.suffix == ".gz" else result
    return plain.with_name(f"{plain.stem}{suffix}")


class OutputFile:
    """The file of a result. ``path`` is absolute and does not contain symbolic links."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @classmethod
    def prepared(cls, path: Path, inputs: Collection[str] = ()) -> "OutputFile":
        """Create the directory of ``path`` and check that a file can be written there.

        ``inputs`` are paths or URLs that are read. A file of them is not written.

        Raises:
            ConfigurationError: a file cannot be written there, or it is one of ``inputs``.
        """
        try:
            absolute = path.expanduser().resolve()
            refuse_replacing(path, inputs, "--output")
            absolute.parent.mkdir(parents=True, exist_ok=True)
            probe = _part_of(absolute)
            probe.touch()
            probe.unlink()
        except OSError as err:
            raise ConfigurationError(f"--output {path}: cannot be written: {err.strerror}: {err.filename}") from err
        return cls(absolute)

    def write(self, body: bytes) -> None:
        """Write ``body``; an existing file is replaced in one step.

        If that fails, ``body`` is written to the current or the temporary directory.

        Raises:
            LocalStackError: the file cannot be written; the message names the other file that holds ``body``.
        """
        try:
            _write_whole(self.path, body)
        except OSError as err:
            fallback = "the current and the temporary directory cannot be written either: the result is lost"
            for directory in (Path.cwd(), Path(tempfile.gettempdir())):
                path = directory / f"{self.path.stem[:100]}-{secrets.token_hex(4)}{self.path.suffix[:20]}"
                with contextlib.suppress(OSError):
                    _write_whole(path, body)
                    fallback = f"the result is in {path}"
                    break
            raise LocalStackError(f"{self.path} cannot be written: {err.strerror}; {fallback}") from err


def refuse_replacing(path: Path, inputs: Collection[str], option: str) -> None:
    """Raise ConfigurationError if ``path`` is one of ``inputs``, a directory, or a device; ``option`` names it."""
    absolute = path.expanduser().resolve()
    if any(_is_same_file(each, absolute) for each in inputs):
        raise ConfigurationError(f"{option} {path}: it would replace an input of this command; name another file")
    if absolute.exists() and not absolute.is_file():
        kind = "a directory; name a file in it" if absolute.is_dir() else "not a regular file"
        raise ConfigurationError(f"{option} {path}: it is {kind}")


def _is_same_file(name: str, path: Path) -> bool:
    """Return whether a path, which may be a URL too, names the existing file ``path``."""
    with contextlib.suppress(OSError):
        return "://" not in name and path.samefile(Path(name).expanduser())
    return False


def _part_of(path: Path) -> Path:
    return path.with_name(f".model-runner-{secrets.token_hex(4)}.part")


def _write_whole(path: Path, body: bytes) -> None:
    """Write a file that appears only when it is complete and on the disk."""
    part = _part_of(path)
    try:
        with part.open("xb") as file:
            file.write(body)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
