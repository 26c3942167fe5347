"""Images are read first in a child process: its death ends the image, and nothing else."""

import os
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

import pytest

from aws.osml.model_runner.common.typing import ImageRegion
from aws.osml.model_runner.exceptions import LoadImageException
from aws.osml.model_runner.raster import RasterSettings, image_probe
from aws.osml.model_runner.raster.image_probe import ImageProbe
from aws.osml.model_runner.raster.open_images import OpenImages
from raster_files import pattern, write_image

# Behaves as a decoder may: no file does so with every build of the libraries.
FAULTY = """
import json, os, sys, time
sys.stdin.readline()
print("ready", flush=True)
for line in sys.stdin:
    path = json.loads(line)["path"]
    with open("{log}", "a") as log:
        log.write("x")
    if "crash" in path:
        os.abort()
    if "hang" in path:
        time.sleep(60)
    print("memory" if "greedy" in path else "done", flush=True)
"""


def faulty_probe(tmp_path: Path, timeout_s: float = 60.0) -> ImageProbe:
    log = tmp_path / "log"
    return ImageProbe(RasterSettings(), timeout_s, [sys.executable, "-I", "-S", "-c", FAULTY.format(log=log)])


def children() -> set[str]:
    mine = str(os.getpid())
    stats = [path.read_text() for path in Path("/proc").glob("[0-9]*/stat") if os.access(path, os.R_OK)]
    return {text.split()[0] for text in stats if text.rpartition(")")[2].split()[1] == mine}


@pytest.mark.parametrize(
    ("name", "timeout_s", "reason"),
    [
        ("crash.tif", 60.0, "ends its process by signal 6"),
        ("hang.tif", 0.2, "takes longer than 0.2 s"),
        ("greedy.tif", 60.0, "takes too much memory"),
    ],
)
def test_image_of_which_three_children_die_is_abandoned(
    tmp_path: Path, name: str, timeout_s: float, reason: str
) -> None:
    before = children()
    probe = faulty_probe(tmp_path, timeout_s)
    with pytest.raises(LoadImageException, match=f"{name} cannot be read: reading its header and first tiles {reason}"):
        probe.check(f"/{name}", f"file:///{name}", None)
    assert (tmp_path / "log").read_text() == "xxx"
    probe.check("/sound.tif", "file:///sound.tif", None)
    probe.close()
    assert children() == before


def test_one_image_that_hangs_keeps_no_other_waiting(tmp_path: Path) -> None:
    before = children()
    probe = faulty_probe(tmp_path)

    def check_hanging() -> None:
        with suppress(LoadImageException):
            probe.check("/hang.tif", "file:///hang.tif", None)

    hanging = threading.Thread(target=check_hanging, daemon=True)
    hanging.start()
    while not (tmp_path / "log").exists():
        time.sleep(0.01)
    probe.check("/sound.tif", "file:///sound.tif", None)
    assert hanging.is_alive()
    # Three children die of the image, one after the other.
    while hanging.is_alive():
        for child in children() - before:
            os.kill(int(child), 9)
        hanging.join(0.05)
    probe.close()


def test_real_child_reads_images_and_is_used_again(tmp_path: Path) -> None:
    path = write_image(tmp_path / "image.tif", pattern(3, 300, 400))
    (tmp_path / "text.tif").write_text("no image")
    before = children()
    probe = ImageProbe(RasterSettings(), 60.0)
    probe.warm()
    (child,) = children() - before
    images = OpenImages(RasterSettings(), ["file"], lambda _: None, probe=probe)
    with images.lend(f"file://{path}", is_new=True) as source:
        assert source.width == 400
    with (
        pytest.raises(LoadImageException, match="not a readable image"),
        images.lend(f"file://{tmp_path}/text.tif", is_new=True),
    ):
        pass
    assert children() - before == {child}
    images.close()
    assert children() == before


@pytest.mark.parametrize("is_broken", [False, True])
def test_child_reads_both_tiles_of_first_handle_and_of_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_broken: bool
) -> None:
    """A TIFF may crash GDAL through a handle that was never asked for a header, or at its last tile alone."""
    image = write_image(tmp_path / "image.tif", pattern(1, 600, 400))
    read: list[tuple[int, int]] = []
    handles: list[object] = []

    def noted(dataset: object, tile: ImageRegion, *_: object) -> None:
        handles.append(dataset)
        read.append((len({id(handle) for handle in handles}), tile.origin.row))
        if is_broken:
            raise RuntimeError("a block cannot be read")

    monkeypatch.setattr(image_probe, "read_pixels", noted)
    assert image_probe._read(RasterSettings(), str(image), "file:///image.tif", None) == "done"
    assert read == [(1, 0), (1, 344), (2, 0), (2, 344)]
