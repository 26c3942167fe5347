"""Members of a result beside its features: its job, its image, what was processed of it, and how well it is placed."""

from functools import cache
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from aws.osml.model_runner.api.image_url import public_url
from aws.osml.model_runner.common.job_rules import image_status
from aws.osml.model_runner.database.job_table import JobItem
from aws.osml.model_runner.database.tile_problems import split_dropped

from .tile_reader import TileTally

# Name of the foreign member of a feature collection, and of the metadata of a GeoParquet file.
MEMBER = "modelRunner"


def result_members(job: JobItem, tally: TileTally, stored: int, delivered: int, unmerged: int) -> dict[str, Any]:
    """Return the members of a result's file beside its features; ``tally`` and counts are those of the whole image.

    ``status`` is that of the tiles: an output that is not written does not concern the others.
    """
    succeeded, failed = tally.succeeded, job.tile_error or 0
    planned = job.tile_count if job.tile_count is not None else succeeded + failed
    tiles: dict[str, Any] = {"planned": planned, "succeeded": succeeded, "failed": failed}
    if job.tiles_skipped:
        tiles["skipped"] = job.tiles_skipped
    if tally.failed:
        tiles["errors"] = dict(sorted(tally.failed.items()))
    features: dict[str, Any] = {"reported": stored, "delivered": delivered}
    if unmerged:
        features["unmerged"] = unmerged
    for name, counts in zip(("dropped", "unselected"), split_dropped(tally.dropped), strict=True):
        if counts:
            features[name] = dict(sorted(counts.items()))
    about: dict[str, Any] = {
        "version": _version(),
        "jobId": str(job.job_id),
        "image": public_url(job.image_url or ""),
        "status": str(image_status(succeeded, failed, sinks=1, failed_sinks=0)),
        "tiles": tiles,
        "features": features,
    }
    if job.accuracy:
        about["georeference"] = job.accuracy
    return {MEMBER: about}


@cache
def _version() -> str:
    try:
        return version("tile-model-runner")
    except PackageNotFoundError:
        return "unknown"
