"""Load snapshot: waiting and running images, from the rows of open jobs. Pure functions."""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from aws.osml.model_runner.api.image_request import ImageRequest
from aws.osml.model_runner.api.inference import ModelInvokeMode
from aws.osml.model_runner.api.region_request import RegionRequest
from aws.osml.model_runner.database.job_table import JobItem
from aws.osml.model_runner.database.outstanding_jobs_table import OpenJob

from .policy import Lane, LaneLoad, WaitingImage

# Regions assumed for an image whose header has not been read.
REGIONS_OF_UNKNOWN = 20

_ACCOUNT = re.compile(r"arn:[^:]*:iam::(\d+):")


@dataclass
class ClusterLoad:
    """The open jobs: waiting images by key, and the load of running images in each lane."""

    waiting: dict[str, WaitingImage] = field(default_factory=dict)
    loads: dict[Lane, LaneLoad] = field(default_factory=dict)
    jobs: dict[str, OpenJob] = field(default_factory=dict)
    # A request of each lane, by which its capacity is looked up.
    requests: dict[Lane, ImageRequest] = field(default_factory=dict)
    # Reasons why jobs were skipped, by image.
    left_out: dict[str, str] = field(default_factory=dict)

    def leave_out(self, key: str, reason: str) -> None:
        """Remove a waiting image from this snapshot, so that it does not start."""
        del self.waiting[key]
        self.left_out[key] = reason

    def record_start(self, image: WaitingImage) -> None:
        """Move a waiting image to the running images."""
        del self.waiting[image.key]
        load = self.loads.get(image.lane, LaneLoad())
        self.loads[image.lane] = LaneLoad(load.images + 1, load.calls + image.load)


@dataclass(frozen=True)
class LoadRules:
    """Parameters: concurrent calls per region, and the seconds after which a planner without renewal counts as dead."""

    calls_per_region: int
    lease_s: float


def lane_of(request: ImageRequest | RegionRequest) -> Lane:
    """Return the lane of a request: its endpoint, the account of its role, and the component or variant it names."""
    if request.model_invoke_mode != ModelInvokeMode.SM_ENDPOINT:
        return Lane(request.model_name)
    parameters = request.model_endpoint_parameters or {}
    part = parameters.get("InferenceComponentName") or parameters.get("TargetVariant") or ""
    account = _ACCOUNT.match(request.model_invocation_role or "")
    return Lane(request.model_name, str(part), account[1] if account else "")


def is_running(job: OpenJob, now_s: float, lease_s: float) -> bool:
    """Return True for an image that is planned, or whose planner renewed its claim in time."""
    return job.planned_time is not None or bool(job.num_attempts and job.last_attempt + lease_s >= now_s)


def cluster_load(
    jobs: Iterable[OpenJob],
    progress_of: Callable[[list[OpenJob]], Mapping[str, JobItem]],
    now_s: float,
    rules: LoadRules,
) -> ClusterLoad:
    """Return the waiting and the running images. ``progress_of`` returns the rows of planned images.

    An image that has ended does not count, even before its job is closed. A job that raises an error is skipped.
    """
    found = ClusterLoad()
    running: list[OpenJob] = []
    for job in jobs:
        try:
            if is_running(job, now_s, rules.lease_s):
                running.append(job)
            else:
                found.waiting[job.image_id] = _waiting(job, rules)
                found.jobs[job.image_id] = job
                found.requests[found.waiting[job.image_id].lane] = job.request
        except Exception as err:  # noqa: BLE001 - one bad row must not stop other images
            found.left_out[job.image_id] = f"{type(err).__name__}: {err}"
    progress = progress_of([job for job in running if job.planned_time is not None])
    for job in running:
        try:
            lane, regions = lane_of(job.request), _regions_left(job, progress.get(job.image_id))
        except Exception as err:  # noqa: BLE001 - the same
            found.left_out[job.image_id] = f"{type(err).__name__}: {err}"
            continue
        if regions:
            load = found.loads.get(lane, LaneLoad())
            found.loads[lane] = LaneLoad(load.images + 1, load.calls + regions * rules.calls_per_region)
            found.requests[lane] = job.request
    return found


def _waiting(job: OpenJob, rules: LoadRules) -> WaitingImage:
    regions = REGIONS_OF_UNKNOWN if job.region_count is None else job.region_count
    # The worker that accepted the image may still read its header. A failed plan waits for its lease anyway.
    ready_at = job.request_time + rules.lease_s if job.region_count is None else job.request_time
    return WaitingImage(
        key=job.image_id,
        lane=lane_of(job.request),
        load=max(1, regions) * rules.calls_per_region,
        request_time=job.request_time,
        priority=job.request.priority,
        ready_at=ready_at,
    )


def _regions_left(job: OpenJob, item: JobItem | None) -> int:
    """Return the number of regions of a running image that have not ended; all of them while it is planned."""
    if item is not None and item.is_terminal:
        return 0
    planned = item.region_count if item is not None else None
    total = next((count for count in (planned, job.region_count) if count is not None), REGIONS_OF_UNKNOWN)
    done = (item.region_success or 0) + (item.region_error or 0) if item is not None else 0
    return max(0, total - done)
