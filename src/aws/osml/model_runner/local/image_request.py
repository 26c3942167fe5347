"""Image requests for the embedded stack."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from aws.osml.model_runner.local.stack import RESULT_BUCKET


@dataclass(frozen=True)
class TileSettings:
    """Size, overlap, file format and compression of tiles; names are those of an image request."""

    size_px: int = 1024
    overlap_px: int = 128
    tile_format: str = "GTIFF"
    compression: str = "NONE"


@dataclass(frozen=True)
class ModelTarget:
    """The endpoint of the tiles: its name with mode ``SM_ENDPOINT``, or its URL with mode ``HTTP_ENDPOINT``."""

    name: str
    mode: str
    parameters: Mapping[str, Any] = field(default_factory=dict)


def image_request(
    job_id: str, image_url: str, model: ModelTarget, tiles: TileSettings, **members: Any
) -> dict[str, Any]:
    """Return the body of a request for one image whose result goes to the stack's bucket; ``members`` are added.

    The keys of a member ``imageProcessor`` join the model's name and type; ``extras`` belong to the output.
    """
    processor, extras = members.pop("imageProcessor", {}), members.pop("extras", ())
    return {
        "jobId": job_id,
        "imageUrls": [image_url],
        "outputs": [
            {"type": "S3", "bucket": RESULT_BUCKET, "prefix": job_id, **({"extras": list(extras)} if extras else {})}
        ],
        "imageProcessor": {"name": model.name, "type": model.mode, **processor},
        "imageProcessorTileSize": tiles.size_px,
        "imageProcessorTileOverlap": tiles.overlap_px,
        "imageProcessorTileFormat": tiles.tile_format,
        "imageProcessorTileCompression": tiles.compression,
        **({"imageProcessorParameters": dict(model.parameters)} if model.parameters else {}),
        **members,
    }


def merge_step(algorithm: str, iou: float | None = None) -> list[dict[str, Any]]:
    """Return the post-processing that merges features of overlapping tiles."""
    threshold = {} if iou is None else {"iouThreshold": iou}
    return [{"step": "FEATURE_DISTILLATION", "algorithm": {"algorithmType": algorithm, **threshold}}]
