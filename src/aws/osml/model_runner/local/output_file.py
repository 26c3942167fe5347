"""The file that a result goes to: checked before any work is done, whole or not there, and never lost."""

import os
import secrets
import tempfile
from collections.abc import Iterable
from pathlib import Path

from aws.osml.model_runner.exceptions import ConfigurationError
from aws.osml.model_runner.local.exceptions import LocalStackError


class OutputFile:
    """A place for a result. ``path`` is absolute, and no symbolic link."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @classmethod
    def prepared(cls, path: Path) -> "OutputFile":
        """Make the directory of ``path`` and see that a file can be written there.

        Raises:
            ConfigurationError: no file can be written there.
        """
        try:
            whole = path.expanduser().resolve()
            if whole.exists() and not whole.is_file():
                kind = "a directory; name a file in it" if whole.is_dir() else "not a regular file"
                raise ConfigurationError(f"--output {path}: it is {kind}")
            whole.parent.mkdir(parents=True, exist_ok=True)
            probe = _beside(whole)
            probe.touch()
            probe.unlink()
        except OSError as err:
            raise ConfigurationError(f"--output {path}: cannot be written: {err.strerror}: {err.filename}") from err
        return cls(whole)

    def write(self, body: bytes) -> None:
        """Write ``body``; a file that was there is replaced in one step.

        Raises:
            LocalStackError: it cannot be written; the message names the file elsewhere that holds ``body``.
        """
        try:
            _write_whole(self.path, body)
        except OSError as err:
            kept = _kept_elsewhere(self.path, body, (Path.cwd(), Path(tempfile.gettempdir())))
            where = f"the result is in {kept}" if kept else "nor can another directory: the result is lost"
            raise LocalStackError(f"{self.path} cannot be written: {err.strerror}; {where}") from err


def _beside(path: Path) -> Path:
    return path.with_name(f".model-runner-{secrets.token_hex(4)}.part")


def _write_whole(path: Path, body: bytes) -> None:
    part = _beside(path)
    try:
        with part.open("xb") as file:
            file.write(body)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def _kept_elsewhere(path: Path, body: bytes, directories: Iterable[Path]) -> Path | None:
    for directory in directories:
        place = directory / f"{path.stem[:100]}-{secrets.token_hex(4)}{path.suffix[:20]}"
        try:
            _write_whole(place, body)
        except OSError:
            continue
        return place
    return None
