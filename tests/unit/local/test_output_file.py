"""The place of a result: refused before the work where it is wrong, replaced in one step, never lost."""

import os
import shutil
from pathlib import Path

import pytest

from aws.osml.model_runner.exceptions import ConfigurationError, LocalStackError
from aws.osml.model_runner.local.output_file import OutputFile


@pytest.mark.parametrize(
    ("place", "reason"),
    [
        (".", "it is a directory; name a file in it"),
        ("a-file/found.geojson", "cannot be written: File exists: .*a-file"),
        ("/proc/nowhere/found.geojson", "cannot be written"),
        (os.devnull, "it is not a regular file"),
    ],
)
def test_unwritable_path_is_refused(tmp_path, monkeypatch, place, reason):
    monkeypatch.chdir(tmp_path)
    Path("a-file").touch()
    with pytest.raises(ConfigurationError, match=f"--output {place}: {reason}"):
        OutputFile.prepared(Path(place))
    assert os.listdir() == ["a-file"]


def test_file_is_replaced_without_leftovers(tmp_path):
    path = tmp_path / "new" / "found.geojson"
    output = OutputFile.prepared(path)
    assert not path.exists()
    output.write(b"first")
    (tmp_path / "link.geojson").symlink_to(path)
    OutputFile.prepared(tmp_path / "link.geojson").write(b"second")
    assert path.read_bytes() == b"second"
    assert [file.name for file in path.parent.iterdir()] == ["found.geojson"]


def test_result_that_cannot_be_written_in_end_is_kept_elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    output = OutputFile.prepared(tmp_path / "gone" / "found.geojson")
    shutil.rmtree(tmp_path / "gone")
    with pytest.raises(LocalStackError, match=r"cannot be written: No such file.*; the result is in .*found-\w+"):
        output.write(b"whole")
    (kept,) = tmp_path.glob("found-*.geojson")
    assert kept.read_bytes() == b"whole"
