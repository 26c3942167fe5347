"""Row of an image in the table of images."""

import dataclasses
import json
import zlib
from typing import Any

from aws.osml.model_runner.api.image_request import ImageRequest, stored_tile_format, tile_format_of
from aws.osml.model_runner.api.inference import ModelInvokeMode
from aws.osml.model_runner.api.post_processing import deserialize_post_processing_list
from aws.osml.model_runner.api.region_of_interest import parse_roi
from aws.osml.model_runner.api.request_utils import json_text
from aws.osml.model_runner.common.job_rules import needs_outputs_only
from aws.osml.model_runner.common.typing import TERMINAL_STATUSES, ImageCompression, ImageDimensions, ImageFormats

from .ddb_helper import DDBItem, DDBKey
from .tile_problems import TileProblems


@dataclasses.dataclass
class JobItem(DDBItem):
    """One image's row. Times are epoch milliseconds.

    ``expire_time``, ``first_attempt``, leases and waits are in epoch seconds instead.

    Sizes and outputs are kept as text, as existing readers of the table expect: ``tile_size`` is ``"(512, 512)"``,
    ``outputs``, ``feature_properties`` and ``feature_distillation_option`` are JSON.
    """

    image_id: str
    job_id: str | None = None
    image_url: str | None = None
    image_read_role: str | None = None
    model_invoke_mode: str | None = None
    start_time: int | None = None
    expire_time: int | None = None
    end_time: int | None = None
    region_success: int | None = None
    region_error: int | None = None
    region_count: int | None = None
    width: int | None = None
    height: int | None = None
    extents: str | None = None
    tile_size: str | None = None
    tile_overlap: str | None = None
    model_name: str | None = None
    outputs: str | None = None
    processing_duration: int | None = None
    feature_properties: str | None = None
    feature_distillation_option: str | None = None
    roi_wkt: str | None = None
    # Attributes of the job protocol.
    image_status: str | None = None
    message: str | None = None
    request_sha256: str | None = None
    message_id: str | None = None
    generation: int | None = None
    source_properties: str | None = None
    georeference: str | None = None
    image_etag: str | None = None
    image_extension: str | None = None
    image_format: str | None = None
    image_count: int | None = None
    region_size: list[int] | None = None
    tile_count: int | None = None
    processing_bounds: list[list[int]] | None = None
    tile_success: int | None = None
    tile_error: int | None = None
    tile_format: str | None = None
    tile_compression: str | None = None
    model_invocation_role: str | None = None
    model_endpoint_parameters: str | None = None
    result_name: str | None = None
    agg_owner: str | None = None
    agg_fence: int | None = None
    agg_lease_until: float | None = None
    agg_not_before: float | None = None
    agg_stalled: int | None = None
    agg_first_time: float | None = None
    agg_error: str | None = None
    sinks_done: set[str] | None = None
    sink_errors: dict[str, str] | None = None
    sink_positions: dict[str, int] | None = None
    # Counts of the merge: failed tiles by error code, dropped features by reason, features that tiles reported, and
    # delivered features. ``features_unmerged`` counts features of crowded tiles, which were not compared with others.
    # ``first_failure`` is the error of the first failed tile.
    tile_errors: dict[str, int] | None = None
    first_failure: str | None = None
    features_dropped: dict[str, int] | None = None
    features_stored: int | None = None
    features_delivered: int | None = None
    features_unmerged: int | None = None
    agg_backoffs: int | None = None
    status_outbox: dict[str, Any] | None = None
    priority: int | None = None
    first_attempt: float | None = None
    message_body: bytes | None = None
    # Time at which the plan was fixed, in epoch seconds: no tile's row is older.
    tiles_since: float | None = None
    # JSON of ``imageProcessorInput``, and of what its plan does to the pixels of each tile.
    processor_input: str | None = None
    pixel_preparation: str | None = None
    # JSON of ``skip``; how many tiles it skips in the plan; and the versions of the files that its rules name.
    skip: str | None = None
    tiles_skipped: int | None = None
    skip_versions: list[str | None] | None = None
    # JSON of the protocol of the model, and of how its responses are read.
    model_protocol: str | None = None
    # JSON of ``imageAssets``, and of the ``ItemImage`` of the plan; whether the requester pays for reads of the image.
    image_assets: str | None = None
    image_item: str | None = None
    requester_pays: bool | None = None
    # File of the region of interest, and the SHA-256 of its content when the image was planned.
    roi_url: str | None = None
    roi_sha256: str | None = None

    def __post_init__(self) -> None:
        """Set the key under which the table holds the row."""
        self.ddb_key = DDBKey(hash_key="image_id", hash_value=self.image_id)

    @classmethod
    def from_image_request(cls, image_request: ImageRequest) -> "JobItem":
        """Return the row of a new image, without times and counters."""
        option = image_request.get_feature_distillation_option()
        parameters = image_request.model_endpoint_parameters
        return cls(
            image_id=image_request.image_id,
            job_id=image_request.job_id,
            image_url=image_request.image_url,
            image_read_role=image_request.image_read_role,
            model_invoke_mode=str(image_request.model_invoke_mode),
            model_name=image_request.model_name,
            model_invocation_role=image_request.model_invocation_role,
            model_endpoint_parameters=json_text(parameters) if parameters else None,
            tile_size=str(tuple(image_request.tile_size)),
            tile_overlap=str(tuple(image_request.tile_overlap)),
            tile_format=stored_tile_format(image_request),
            tile_compression=str(image_request.tile_compression),
            outputs=json_text(image_request.outputs),
            feature_properties=json_text(image_request.feature_properties),
            feature_distillation_option=json_text(option[0].to_dict()) if option else None,
            roi_wkt=image_request.roi.wkt if image_request.roi is not None else None,
            result_name=image_request.result_name or None,
            request_sha256=image_request.request_sha256 or None,
            priority=image_request.priority or None,
            processor_input=None if (asked := image_request.processor_input) is None else json_text(asked),
            skip=None if image_request.skip is None else json_text(image_request.skip),
            model_protocol=None if (spoken := image_request.model_protocol) is None else json_text(spoken),
            image_assets=None if (names := image_request.image_assets) is None else json_text(names),
            requester_pays=image_request.requester_pays or None,
            roi_url=image_request.roi_url,
        )

    def image_request(self) -> ImageRequest:
        """Return the image's request, rebuilt from the attributes of the image's row."""
        option = self.feature_distillation_option
        steps = [{"step": "FEATURE_DISTILLATION", "algorithm": json.loads(option)}] if option else []
        return ImageRequest(
            job_id=str(self.job_id),
            image_id=self.image_id,
            image_url=str(self.image_url),
            image_read_role=self.image_read_role or "",
            outputs=json.loads(self.outputs or "[]"),
            model_name=self.model_name or "",
            model_invoke_mode=ModelInvokeMode(self.model_invoke_mode or ModelInvokeMode.NONE),
            tile_size=self.tile_dimensions,
            tile_overlap=self.overlap_dimensions,
            tile_format=tile_format_of(self.tile_format or ImageFormats.NITF),
            tile_compression=ImageCompression(self.tile_compression or ImageCompression.NONE),
            model_invocation_role=self.model_invocation_role or "",
            feature_properties=json.loads(self.feature_properties or "[]"),
            roi=parse_roi(self.roi_wkt) if self.roi_wkt else None,
            post_processing=deserialize_post_processing_list(steps),
            model_endpoint_parameters=self.endpoint_parameters,
            result_name=self.result_name or "",
            request_sha256=self.request_sha256 or "",
            priority=self.priority or 0,
            processor_input=json.loads(self.processor_input) if self.processor_input else None,
            skip=json.loads(self.skip) if self.skip else None,
            model_protocol=self.protocol_keys,
            image_assets=json.loads(self.image_assets) if self.image_assets else None,
            image_item=self.image_item,
            requester_pays=bool(self.requester_pays),
            roi_url=self.roi_url,
        )

    @property
    def tile_dimensions(self) -> ImageDimensions:
        """The size of a tile, from its text."""
        return _dimensions(self.tile_size)

    @property
    def overlap_dimensions(self) -> ImageDimensions:
        """The overlap of neighbouring tiles, from its text."""
        return _dimensions(self.tile_overlap)

    @property
    def endpoint_parameters(self) -> dict[str, Any] | None:
        """Parameters that the request sends to the endpoint with each tile."""
        return json.loads(self.model_endpoint_parameters) if self.model_endpoint_parameters else None

    @property
    def protocol_keys(self) -> dict[str, Any] | None:
        """Keys of the request that define the protocol of its model; None for the default."""
        return json.loads(self.model_protocol) if self.model_protocol else None

    @property
    def body(self) -> str | None:
        """Unchanged text of the image's request message; None where the row does not hold it."""
        return zlib.decompress(bytes(self.message_body)).decode() if self.message_body else None

    @property
    def problems(self) -> TileProblems:
        """Reasons of failed tiles and dropped features, as the merge counted them."""
        return TileProblems(self.tile_errors or {}, self.features_dropped or {}, self.first_failure or "")

    def needs_outputs_only(self, now_s: float, outputs_only: bool = False) -> bool:
        """Return True when D3 starts this image again, and False when D1 does; see ``job_rules``."""
        regions_ended = (self.region_success or 0) + (self.region_error or 0)
        age_s = None if self.tiles_since is None else now_s - self.tiles_since
        return needs_outputs_only(regions_ended, self.region_count, self.tile_error or 0, age_s, outputs_only)

    @property
    def accuracy(self) -> dict[str, Any] | None:
        """Accuracy of the georeference, as in results; None without a georeference or without a plan."""
        return json.loads(self.georeference) if self.georeference else None

    @property
    def running_since(self) -> float:
        """Start of the first planning, in epoch seconds. The deadline counts from it."""
        # Rows of earlier versions hold the time of acceptance only.
        return self.first_attempt if self.first_attempt is not None else (self.start_time or 0) / 1000

    @property
    def is_terminal(self) -> bool:
        """True when the image has a terminal status."""
        return self.image_status in TERMINAL_STATUSES


def _dimensions(text: str | None) -> ImageDimensions:
    """Parse a size from a row's text: ``(512, 512)``, or ``[512, 512]`` as other versions write it."""
    width, height = (text or "").strip("()[] ").split(",")
    return ImageDimensions(int(width), int(height))
