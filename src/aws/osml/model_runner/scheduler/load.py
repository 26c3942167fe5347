"""What waits and what runs, from the rows of the open jobs. Pure."""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from aws.osml.model_runner.api.image_request import ImageRequest
from aws.osml.model_runner.api.inference import ModelInvokeMode
from aws.osml.model_runner.api.region_request import RegionRequest
from aws.osml.model_runner.database.job_table import JobItem
from aws.osml.model_runner.database.outstanding_jobs_table import OpenJob

from .policy import Lane, LaneLoad, WaitingImage

# What an image is taken for whose header nobody could read yet.
REGIONS_OF_UNKNOWN = 20

_ACCOUNT = re.compile(r"arn:[^:]*:iam::(\d+):")


@dataclass
class ClusterLoad:
    """The open jobs, sorted: those that wait, by key, as the decision sees them, and what runs in each lane."""

    waiting: dict[str, WaitingImage] = field(default_factory=dict)
    loads: dict[Lane, LaneLoad] = field(default_factory=dict)
    jobs: dict[str, OpenJob] = field(default_factory=dict)
    # Jobs that nobody can make anything of, by image, and why.
    left_out: dict[str, str] = field(default_factory=dict)

    def leave_out(self, key: str, reason: str) -> None:
        """Have an image that waits start in no turn that rests on this."""
        del self.waiting[key]
        self.left_out[key] = reason

    def note_start(self, image: WaitingImage) -> None:
        """Count an image that waited as one that runs."""
        del self.waiting[image.key]
        load = self.loads.get(image.lane, LaneLoad())
        self.loads[image.lane] = LaneLoad(load.images + 1, load.calls + image.load)


@dataclass(frozen=True)
class LoadRules:
    """How rows are read: calls at once per region, and for how long a worker may be silent that plans or measures."""

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
    """Return True for an image that is planned, or that a living worker plans."""
    return job.planned_time is not None or bool(job.num_attempts and job.last_attempt + lease_s >= now_s)


def cluster_load(
    jobs: Iterable[OpenJob],
    progress_of: Callable[[list[OpenJob]], Mapping[str, JobItem]],
    now_s: float,
    rules: LoadRules,
) -> ClusterLoad:
    """Return what waits and what runs. ``progress_of`` is asked for the rows of images that are planned.

    An image that has ended counts no more, even before it is struck off. A job that cannot be sorted is left out.
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
        except Exception as err:  # noqa: BLE001 - one job's row keeps no other image from starting
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
    return found


def _waiting(job: OpenJob, rules: LoadRules) -> WaitingImage:
    regions = REGIONS_OF_UNKNOWN if job.region_count is None else job.region_count
    # Who accepted it may still be reading its header. A plan that did not succeed waits for its lease anyway.
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
    """Return the regions of a running image that have not ended; one that is being planned has none ended."""
    if item is not None and item.is_terminal:
        return 0
    planned = item.region_count if item is not None else None
    total = next((count for count in (planned, job.region_count) if count is not None), REGIONS_OF_UNKNOWN)
    done = (item.region_success or 0) + (item.region_error or 0) if item is not None else 0
    return max(0, total - done)
