"""Count the objects that the merge delivers twice or not at all, and time it, beside 2.3.0 if that is installed.

    .venv/bin/python benchmarks/merge.py [--peer /tmp/peer-venv/bin/python] [--quick]

``--peer`` names the Python of an environment with ``osml-model-runner==2.3.0``; see README.md.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import shapely
from scenes import OVERLAP, REGION, TILE, Detections, elongated_scene, scene

from aws.osml.model_runner.api.post_processing import (
    FeatureDistillationAlgorithm,
    FeatureDistillationNMS,
    FeatureDistillationSeam,
    SeamMerge,
)
from aws.osml.model_runner.features import detections as arrays
from aws.osml.model_runner.features.detections import Kind
from aws.osml.model_runner.features.selection import select
from aws.osml.model_runner.features.tiled_features import TiledFeatures

# count, distance of the grid's cells, sides of the objects in pixels
SCENES = {
    "85,000 objects": (85_000, 84.0, (12.0, 60.0)),
    "packed at 1.2 times their size": (85_000, 28.8, (24.0, 24.0)),
    "larger than the overlap": (20_000, 700.0, (130.0, 600.0)),
}
METHODS = {
    "SEAM": FeatureDistillationSeam(),
    "SEAM, UNION": FeatureDistillationSeam(merge=SeamMerge.UNION),
    "NMS 0.75": FeatureDistillationNMS(),
    "NMS 0.5": FeatureDistillationNMS(iou_threshold=0.5),
}
PEER_METHODS = {"peer, default (NMS 0.75)": 0.75, "peer, NMS 0.5": 0.5}
SEED = 20_261_121
POLYGON_CORNERS = 12


def tiled(detections: Detections, shapes: np.ndarray | None = None) -> TiledFeatures:
    """Return detections as the merge takes them: boxes, unless they come with shapes of their own."""
    count = len(detections.boxes)
    boxes = detections.boxes if shapes is None else shapely.bounds(shapes)
    kind = Kind.BOX if shapes is None else Kind.AREA
    return TiledFeatures(
        arrays.Detections(
            boxes,
            detections.scores,
            np.zeros(count, np.intp),
            np.full(count, kind, np.int8),
            np.zeros(count, np.uint32),
            [""],
        ),
        detections.tiles,
        detections.frames,
        lambda indices: shapely.box(*boxes[indices].T) if shapes is None else shapes[indices],
    )


def line(name: str, detections: Detections, kept: np.ndarray, seconds: float) -> str:
    """Return a row of the table."""
    twice, missed = detections.score_of(kept)
    return f"  {name:32} {twice:9.3f} % {missed:10.4f} % {seconds:9.2f} s"


def measured(features: TiledFeatures, options: FeatureDistillationAlgorithm) -> tuple[np.ndarray, float]:
    """Return what is kept, and the best of three times."""
    times = []
    for _ in range(3):
        started = time.perf_counter()
        kept = select(features, options).kept
        times.append(time.perf_counter() - started)
    return kept, min(times)


def peer_lines(python: str, detections: Detections, directory: Path) -> Iterator[str]:
    """Yield a row for each method of osml-model-runner 2.3.0, which times its own calls, without start-up."""
    given, found = directory / "detections.npz", directory / "kept.npz"
    np.savez(
        given,
        boxes=detections.boxes,
        scores=detections.scores,
        side_px=detections.side_px,
        sizes=[REGION, TILE, OVERLAP],
    )
    for name, threshold in PEER_METHODS.items():
        script = str(Path(__file__).with_name("peer.py"))
        subprocess.run([python, script, "merge", str(given), str(found), str(threshold)], check=True)
        result = np.load(found)
        yield line(name, detections, result["kept"], float(result["seconds"]))


def cut_polygons(detections: Detections) -> np.ndarray:
    """Return a polygon for each detection: an ellipse of its object's box with noise, cut as the detection is."""
    angles = np.linspace(0, 2 * np.pi, POLYGON_CORNERS, endpoint=False)
    circle = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    boxes = detections.whole_boxes
    middles, radii = (boxes[:, :2] + boxes[:, 2:]) / 2, np.abs(boxes[:, 2:] - boxes[:, :2]) / 2
    whole = shapely.polygons(middles[:, None] + radii[:, None] * circle)
    cut = shapely.intersection(whole, shapely.box(*detections.frames[detections.tiles].T))
    return np.where(detections.is_cut & (shapely.area(cut) > 1), cut, whole)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer", help="Python of an environment with osml-model-runner 2.3.0")
    parser.add_argument("--quick", action="store_true", help="leave out the large scenes")
    arguments = parser.parse_args()
    print(f"{'':34} {'twice':>11} {'missed':>12} {'time':>11}")
    with tempfile.TemporaryDirectory() as directory:
        for title, (count, pitch_px, sides_px) in SCENES.items():
            detections = scene(SEED, count, pitch_px, sides_px)
            print(f"{title}: {len(detections.boxes):,} detections")
            features = tiled(detections)
            for name, options in METHODS.items():
                print(line(name, detections, *measured(features, options)), flush=True)
            if arguments.peer:
                for row in peer_lines(arguments.peer, detections, Path(directory)):
                    print(row, flush=True)
    long_ones = elongated_scene(SEED, 20_000, 160.0, (30.0, 120.0))
    print(f"long and narrow, cut short of the edge: {len(long_ones.boxes):,} detections")
    for name in ("SEAM", "SEAM, UNION"):
        kept, seconds = measured(tiled(long_ones), METHODS[name])
        print(line(name, long_ones, kept, seconds), f"{long_ones.fragments_of(kept):9.3f} % by a part")
    if not arguments.quick:
        many = scene(SEED, 845_000, 60.0, (10.0, 50.0))
        print(f"boxes: {len(many.boxes):,} detections")
        print(line("SEAM", many, *measured(tiled(many), METHODS["SEAM"])))
        polygons = scene(SEED, 71_500, 84.0, (12.0, 60.0))
        print(f"polygons with {POLYGON_CORNERS} corners: {len(polygons.boxes):,} detections")
        features = tiled(polygons, cut_polygons(polygons))
        for name in ("SEAM", "SEAM, UNION"):
            print(line(name, polygons, *measured(features, METHODS[name])))


if __name__ == "__main__":
    sys.exit(main())
