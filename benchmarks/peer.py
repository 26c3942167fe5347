"""Run osml-model-runner 2.3.0 for the comparison, in an environment with ``osml-model-runner==2.3.0``.

peer.py merge DETECTIONS.npz KEPT.npz IOU         time its merge of detections
peer.py aggregate IMAGE_ID TILE_PX OVERLAP_PX     aggregate an image's features to S3
"""

import json
import os
import resource
import sys
import time

for name in (
    "AWS_DEFAULT_REGION",
    "WORKERS_PER_CPU",
    "WORKERS",
    "JOB_TABLE",
    "ENDPOINT_TABLE",
    "FEATURE_TABLE",
    "REGION_REQUEST_TABLE",
    "IMAGE_QUEUE",
    "REGION_QUEUE",
):
    os.environ.setdefault(name, "us-west-2" if name == "AWS_DEFAULT_REGION" else "1")

import numpy as np  # noqa: E402
from aws.osml.model_runner.inference.feature_selection import FeatureSelector  # noqa: E402
from geojson import Feature  # noqa: E402

from aws.osml.model_runner.api import post_processing as mr_post_processing  # noqa: E402
from aws.osml.model_runner.tiling.strategy import VariableOverlapTilingStrategy  # noqa: E402


def merge(given: str, found: str, threshold: str) -> None:
    data = np.load(given)
    features = [
        Feature(
            id=number,
            properties={"imageBBox": box, "featureClasses": [{"iri": "ship", "score": score}]},
        )
        for number, (box, score) in enumerate(zip(data["boxes"].tolist(), data["scores"].tolist(), strict=True))
    ]
    side_px = int(data["side_px"])
    sizes = [tuple(size) for size in data["sizes"].tolist()]
    selector = FeatureSelector(mr_post_processing.FeatureDistillationNMS(iou_threshold=float(threshold)))
    # The first call compiles; only later ones are measured.
    selector.select_features(features[:50])
    started = time.perf_counter()
    kept = VariableOverlapTilingStrategy().cleanup_duplicate_features(
        ((0, 0), (side_px, side_px)), *sizes, features, selector
    )
    seconds = time.perf_counter() - started
    np.savez(found, kept=[feature["id"] for feature in kept], seconds=seconds)


def aggregate(image_id: str, side_px: str, tile_px: str, overlap_px: str) -> None:
    from aws.osml.model_runner.inference.feature_utils import add_properties_to_features
    from aws.osml.model_runner.tile_worker.tile_worker_utils import select_features

    from aws.osml.model_runner.database import FeatureTable, JobTable
    from aws.osml.model_runner.sink import SinkFactory

    sizes = (int(tile_px),) * 2, (int(overlap_px),) * 2
    started, cpu_started = time.perf_counter(), time.process_time()
    item = JobTable(os.environ["JOB_TABLE"]).get_image_request(image_id)
    features = FeatureTable(os.environ["FEATURE_TABLE"], *sizes).aggregate_features(item)
    kept = select_features(
        item.feature_distillation_option,
        features,
        ((0, 0), (int(side_px), int(side_px))),
        "(10240, 10240)",
        *map(str, sizes),
        VariableOverlapTilingStrategy(),
    )
    final = add_properties_to_features(item.job_id, item.feature_properties, kept)
    SinkFactory.sink_features(item.job_id, item.outputs, final)
    seconds, cpu_seconds = time.perf_counter() - started, time.process_time() - cpu_started
    peak_bytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    found = {"seconds": seconds, "cpu_seconds": cpu_seconds, "peak_bytes": peak_bytes}
    print(json.dumps(found | {"stored": len(features), "kept": len(kept)}))


if __name__ == "__main__":
    {"merge": merge, "aggregate": aggregate}[sys.argv[1]](*sys.argv[2:])
