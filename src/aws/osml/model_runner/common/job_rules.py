"""The decisions of the job protocol, as pure functions: values in, a value out. Handlers act on them."""

import random

from botocore.exceptions import BotoCoreError, ClientError, ParamValidationError

from aws.osml.model_runner.aws.errors import is_invalid_write, may_pass
from aws.osml.model_runner.exceptions import ModelRunnerError

from .backoff import HALF_JITTER, backoff_s
from .typing import RequestStatus

# A region, a plan or an aggregation that crashed its workers too often is given up only after a time as well: in an
# outage, or a roll-out that kills every worker, many tries fail within minutes and none of them is the job's fault.
POISON_REGION_S = 600.0
POISON_IMAGE_S = 3600.0

# Rows of tiles outlive the longest job by this. A tile stored more recently will be there for one more whole job.
TILE_MARGIN_S = 48 * 3600

# A region that nobody has touched for this many leases may have lost its message, or its worker.
SILENT_LEASES = 3
_LONGEST_SILENCE_S = 1800.0

_FIRST_BACKOFF_S = 5.0
_LONGEST_BACKOFF_S = 300.0
_LONGEST_AGGREGATION_WAIT_S = 600.0
_FIRST_DELIVERY_WAIT_S = 20.0
_DELIVERY_JITTER = (0.75, 1.25)


def is_late(
    accepted_s: float, first_attempt_s: float | None, now_s: float, wait_limit_s: float, deadline_s: float
) -> bool:
    """Return True when the time of a job is over: that to wait until its first plan, or from then on that to run."""
    if first_attempt_s is None:
        return now_s - accepted_s > wait_limit_s
    return now_s - first_attempt_s > deadline_s


def late_reason(deadline_s: float) -> str:
    """Return why work ends that its job has no time for any more."""
    return (
        f"the job's deadline of {deadline_s:g} s after its first plan (JOB_DEADLINE_S) is over:"
        " send the job again to have the missing tiles done"
    )


def region_status(succeeded_tiles: int, failed_tiles: int) -> RequestStatus:
    """Return how a region ended; one without tiles has nothing that could fail."""
    if failed_tiles == 0:
        return RequestStatus.SUCCESS
    return RequestStatus.PARTIAL if succeeded_tiles else RequestStatus.FAILED


def image_status(succeeded_tiles: int, failed_tiles: int, sinks: int, failed_sinks: int) -> RequestStatus:
    """Return how an image ended, by its tiles and its outputs.

    SUCCESS: no tile failed and every output is complete. FAILED: tiles failed and none succeeded, or no output is
    complete. Anything between is PARTIAL.
    """
    if failed_tiles == 0 and failed_sinks == 0:
        return RequestStatus.SUCCESS
    has_no_tile = failed_tiles > 0 and succeeded_tiles == 0
    has_no_output = failed_sinks == sinks
    return RequestStatus.FAILED if has_no_tile or has_no_output else RequestStatus.PARTIAL


def is_passing(error: BaseException) -> bool:
    """Return True when the same step may succeed later without anyone's help, by what it failed with."""
    if isinstance(error, ClientError | BotoCoreError):
        return may_pass(error)
    return isinstance(error, ModelRunnerError) and error.can_retry


def is_hopeless(error: BaseException) -> bool:
    """Return True when the same step fails whenever it is tried, by what it failed with.

    An error of a class that no step foresees is hopeless: a library such as GDAL, PROJ or GEOS raised it for this image
    or this request. An error of AWS is not, except a write that DynamoDB refuses for what is in it, since its owner may
    mend a role or a table. Nor is a lack of memory or of files.
    """
    if isinstance(error, ModelRunnerError):
        return not error.can_retry
    if isinstance(error, ClientError):
        return is_invalid_write(error)
    return isinstance(error, ParamValidationError) or not isinstance(error, BotoCoreError | MemoryError | OSError)


def is_redrivable(status: str | None) -> bool:
    """Return True when a job of this status may be begun again: it has ended, and not wholly well."""
    return status in (RequestStatus.PARTIAL, RequestStatus.FAILED)


def needs_outputs_only(
    regions_ended: int, region_count: int | None, failed_tiles: int, tiles_age_s: float | None, outputs_only: bool
) -> bool:
    """Return True when an image that is begun again only has to be delivered: no region is done again.

    Every region has ended, and no tile has failed or, with ``outputs_only``, failed tiles stay failed.
    ``tiles_age_s`` is the age of the oldest tile at most; None where it is not known, and then tiles may be gone.
    """
    has_ended = region_count is not None and regions_ended == region_count
    is_stored = tiles_age_s is not None and tiles_age_s < TILE_MARGIN_S
    return has_ended and is_stored and (failed_tiles == 0 or outputs_only)


def is_poison(attempts: int, first_attempt_s: float | None, now_s: float, max_attempts: int, min_age_s: float) -> bool:
    """Return True when work crashed more than ``max_attempts`` workers in a row, over at least ``min_age_s``."""
    return attempts > max_attempts and first_attempt_s is not None and now_s - first_attempt_s >= min_age_s


def silence_s(waited_s: float, lease_s: float) -> float:
    """Return for how long nobody may touch a region before its message counts as lost, and is sent again.

    ``waited_s`` lay between the plan and the last time it was sent. The wait doubles, since in a long queue most
    regions that nobody touches merely wait, and each copy of their messages makes the queue longer.
    """
    return max(SILENT_LEASES * lease_s, min(_LONGEST_SILENCE_S, waited_s))


def region_wait_s(backoffs: int, rng: random.Random, at_least_s: float = 0.0) -> float:
    """Return how long a region waits that was refused ``backoffs`` times in a row before."""
    return max(at_least_s, backoff_s(backoffs, _FIRST_BACKOFF_S, _LONGEST_BACKOFF_S, rng, HALF_JITTER))


def delivery_wait_s(backoffs: int, rng: random.Random) -> float:
    """Return how long an image waits whose outputs did not take it ``backoffs`` times in a row before."""
    return backoff_s(backoffs, _FIRST_DELIVERY_WAIT_S, _LONGEST_AGGREGATION_WAIT_S, rng, _DELIVERY_JITTER)


def aggregation_wait_s(stalled: int) -> float:
    """Return how long the next claim waits if this one's worker dies; the first retry does not wait."""
    return backoff_s(stalled, _FIRST_BACKOFF_S, _LONGEST_AGGREGATION_WAIT_S) if stalled else 0.0
