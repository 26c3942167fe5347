"""The decisions of the job protocol, as pure functions; handlers act on them."""

import random

from botocore.exceptions import BotoCoreError, ClientError, ParamValidationError

from aws.osml.model_runner.aws.errors import is_invalid_write, may_pass
from aws.osml.model_runner.exceptions import ModelRunnerError

from .backoff import HALF_JITTER, backoff_s
from .typing import RequestStatus

# Minimum time before a region, or a plan or an aggregation, that crashed several workers is ended. In an outage, or a
# roll-out that kills every worker, many attempts fail within minutes and the job is not the cause.
POISON_REGION_S = 600.0
POISON_IMAGE_S = 3600.0

# Rows of tiles expire this long after the longest job. A tile stored more recently still exists at the end of another
# job.
TILE_MARGIN_S = 48 * 3600

# A region whose row has not changed for this many leases may have lost its message, or its worker.
SILENT_LEASES = 3
_MAX_SILENCE_S = 1800.0

_FIRST_BACKOFF_S = 5.0
_MAX_BACKOFF_S = 300.0
_MAX_AGGREGATION_WAIT_S = 600.0
_FIRST_DELIVERY_WAIT_S = 20.0
_DELIVERY_JITTER = (0.75, 1.25)


def is_late(
    accepted_s: float, first_attempt_s: float | None, now_s: float, wait_limit_s: float, deadline_s: float
) -> bool:
    """Return True when a job has exceeded ``wait_limit_s`` before its first plan, or ``deadline_s`` after it."""
    if first_attempt_s is None:
        return now_s - accepted_s > wait_limit_s
    return now_s - first_attempt_s > deadline_s


def late_reason(deadline_s: float) -> str:
    """Return the status reason of work that ends because the deadline of its job is over."""
    return (
        f"the job's deadline of {deadline_s:g} s after its first plan (JOB_DEADLINE_S) is over:"
        " send the job again to process the missing tiles"
    )


def region_status(succeeded_tiles: int, failed_tiles: int) -> RequestStatus:
    """Return the terminal status of a region, from its tiles; a region without tiles succeeds."""
    if failed_tiles == 0:
        return RequestStatus.SUCCESS
    return RequestStatus.PARTIAL if succeeded_tiles else RequestStatus.FAILED


def image_status(succeeded_tiles: int, failed_tiles: int, sinks: int, failed_sinks: int) -> RequestStatus:
    """Return the terminal status of an image, from its tiles and its outputs.

    SUCCESS: no tile failed and every output is complete. FAILED: tiles failed and none succeeded, or no output is
    complete. PARTIAL: all other cases.
    """
    if failed_tiles == 0 and failed_sinks == 0:
        return RequestStatus.SUCCESS
    has_no_tile = failed_tiles > 0 and succeeded_tiles == 0
    has_no_output = failed_sinks == sinks
    return RequestStatus.FAILED if has_no_tile or has_no_output else RequestStatus.PARTIAL


def is_passing(error: BaseException) -> bool:
    """Return True when the step that raised ``error`` may succeed later without a change by the operator."""
    if isinstance(error, ClientError | BotoCoreError):
        return may_pass(error)
    return isinstance(error, ModelRunnerError) and error.can_retry


def is_hopeless(error: BaseException) -> bool:
    """Return True when the step that raised ``error`` fails at every attempt.

    An error of a class that no step expects is hopeless: a library such as GDAL or PROJ raised it for this image or
    request. Errors of AWS are not hopeless, because the owner may correct a role or a table. The exception is a write
    that DynamoDB refuses because of its content. A lack of memory or of files is not hopeless either.
    """
    if isinstance(error, ModelRunnerError):
        return not error.can_retry
    if isinstance(error, ClientError):
        return is_invalid_write(error)
    return isinstance(error, ParamValidationError) or not isinstance(error, BotoCoreError | MemoryError | OSError)


def is_redrivable(status: str | None) -> bool:
    """Return True when a job of this status may be redriven: it ended as PARTIAL or FAILED."""
    return status in (RequestStatus.PARTIAL, RequestStatus.FAILED)


def needs_outputs_only(
    regions_ended: int, region_count: int | None, failed_tiles: int, tiles_age_s: float | None, outputs_only: bool
) -> bool:
    """Return True when an image that is redriven only has to be delivered, and no region is processed again.

    Every region has ended, and no tile has failed; with ``outputs_only``, failed tiles stay failed. ``tiles_age_s`` is
    an upper bound on the age of the tiles; None where it is not known, because tiles may then have expired.
    """
    has_ended = region_count is not None and regions_ended == region_count
    is_stored = tiles_age_s is not None and tiles_age_s < TILE_MARGIN_S
    return has_ended and is_stored and (failed_tiles == 0 or outputs_only)


def is_poison(attempts: int, first_attempt_s: float | None, now_s: float, max_attempts: int, min_age_s: float) -> bool:
    """Return True when work crashed more than ``max_attempts`` workers in a row, over at least ``min_age_s``."""
    return attempts > max_attempts and first_attempt_s is not None and now_s - first_attempt_s >= min_age_s


def silence_s(waited_s: float, lease_s: float) -> float:
    """Return how long a region's row may stay unchanged before its message counts as lost, and is sent again.

    ``waited_s`` is the time from the plan to the last send. The wait doubles, because in a long queue most unchanged
    regions only wait, and each copy of their messages makes the queue longer.
    """
    return max(SILENT_LEASES * lease_s, min(_MAX_SILENCE_S, waited_s))


def region_wait_s(backoffs: int, rng: random.Random, at_least_s: float = 0.0) -> float:
    """Return the back-off of a region that was refused ``backoffs`` times in a row before."""
    return max(at_least_s, backoff_s(backoffs, _FIRST_BACKOFF_S, _MAX_BACKOFF_S, rng, HALF_JITTER))


def delivery_wait_s(backoffs: int, rng: random.Random) -> float:
    """Return the back-off of an image whose delivery failed ``backoffs`` times in a row before."""
    return backoff_s(backoffs, _FIRST_DELIVERY_WAIT_S, _MAX_AGGREGATION_WAIT_S, rng, _DELIVERY_JITTER)


def aggregation_wait_s(stalled: int) -> float:
    """Return how long the next claim of an aggregation waits after its worker died; the first retry does not wait."""
    return backoff_s(stalled, _FIRST_BACKOFF_S, _MAX_AGGREGATION_WAIT_S) if stalled else 0.0
