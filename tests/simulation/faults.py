"""Kinds of faults in a world and their probabilities: the profiles."""

import dataclasses
import math


class InjectedError(RuntimeError):
    """A defect of the code, or of what it is given: it comes again however often the same is tried."""


@dataclasses.dataclass(frozen=True)
class Faults:
    """Probabilities, each for one send of one call unless noted; all faults end after ``until_s``.

    Attributes:
        error: the service refuses, or is not reached.
        lost_reply: the service executes the call, and the response is lost.
        crash_before, crash_after: the process dies on either side of the effect.
        pause: the process stands still for 20 to 200 s.
        stall: this one call takes that long, and the rest of the process goes on.
        late, late_write: of a send to DynamoDB that holds ``late_write`` in its text; it stalls.
        conflict: a transaction meets another one on its item.
        plain_conflict: a write by itself meets a transaction on its item.
        unprocessed: an item of a batch is handed back.
        duplicate, loss: of a message that is sent. early: of a message received, it is seen again within 2 s.
        refused_record: of a record for Kinesis.
        busy: of a model call, the endpoint refuses. stumble: it fails in a way that another call mends.
        kill, spot: of a worker, each 10 s: SIGKILL, or SIGTERM and SIGKILL 30 s later.
        skew_s: how far a worker's clock is off, at most.
        throttle: of a world, its workers hold back regions for which the endpoint has no room.
        cancel: of a job, somebody cancels it.
        is_resubmitted: of a job, its message is sent again, after one of ``resubmission_s``.
        again: of a job that ended PARTIAL or FAILED for the first time, its message is sent again at once.
        denied: of a job, its bucket refuses the result from the first delivery on until the job has ended; then its
            message is sent again.
        unreadable: of a job, its image cannot be read.
        spoilt_row: of a job, a row is spoilt after a while: its open job cannot be read, or a counter of
            its image is gone.
        has_bad_tiles: a tenth of the tiles is refused by the model for good.
        poison: what kills every worker that touches it: "", "tile", "plan" or "aggregation", of the first job; or
            "finish", which fails each time that somebody tries, and kills nobody.
    """

    until_s: float = 3000.0
    error: float = 0.02
    lost_reply: float = 0.03
    crash_before: float = 0.002
    crash_after: float = 0.004
    pause: float = 0.0015
    stall: float = 0.0015
    late: float = 0.5
    late_write: str = ""
    conflict: float = 0.05
    plain_conflict: float = 0.01
    unprocessed: float = 0.05
    duplicate: float = 0.05
    loss: float = 0.02
    early: float = 0.1
    refused_record: float = 0.1
    busy: float = 0.1
    stumble: float = 0.01
    kill: float = 0.01
    spot: float = 0.02
    skew_s: float = 30.0
    throttle: float = 0.1
    cancel: float = 0.05
    is_resubmitted: float = 0.4
    resubmission_s: tuple[float, ...] = (5.0, 100.0, 1000.0)
    again: float = 0.1
    denied: float = 0.08
    unreadable: float = 0.08
    spoilt_row: float = 0.0
    has_bad_tiles: bool = True
    poison: str = ""
    max_region_attempts: int = 6
    job_deadline_s: float = 86_400.0
    horizon_s: float = 20_000.0


HARD = Faults()
CALM = Faults(
    until_s=math.inf,
    error=0.0,
    lost_reply=0.0,
    crash_before=0.0,
    crash_after=0.0,
    pause=0.0,
    stall=0.0,
    conflict=0.0,
    plain_conflict=0.0,
    unprocessed=0.0,
    duplicate=0.0,
    loss=0.0,
    early=0.0,
    refused_record=0.0,
    busy=0.0,
    stumble=0.0,
    kill=0.0,
    spot=0.0,
    skew_s=0.0,
    throttle=0.0,
    cancel=0.0,
    is_resubmitted=0.0,
    again=0.0,
    denied=0.0,
    has_bad_tiles=False,
)
# Fewer deaths, so that what is looked for is not hidden by them.
_FEW_DEATHS = {"crash_before": 0.0003, "crash_after": 0.0006, "kill": 0.001, "spot": 0.002}

PROFILES = {
    "calm": CALM,
    "hard": HARD,
    "zombie": dataclasses.replace(HARD, pause=0.01, stall=0.01, skew_s=120.0, early=0.5, kill=0.002, spot=0.004),
    "lossy": dataclasses.replace(
        HARD,
        lost_reply=0.2,
        error=0.05,
        pause=0.0,
        stall=0.0,
        kill=0.0,
        spot=0.0,
        crash_before=0.0005,
        crash_after=0.002,
    ),
    "sqs": dataclasses.replace(HARD, loss=0.3, duplicate=0.3, early=0.5),
    "outage": dataclasses.replace(
        HARD,
        busy=1.0,
        until_s=3600.0,
        kill=0.002,
        spot=0.004,
        crash_before=0.0005,
        crash_after=0.001,
        # The time after the outage is asserted, and few places would make it longer.
        throttle=0.0,
    ),
    "poison-tile": dataclasses.replace(HARD, poison="tile", **_FEW_DEATHS),
    "poison-plan": dataclasses.replace(HARD, poison="plan", **_FEW_DEATHS),
    "poison-aggregation": dataclasses.replace(HARD, poison="aggregation", **_FEW_DEATHS),
    "poison-finish": dataclasses.replace(HARD, poison="finish", **_FEW_DEATHS),
    "spoilt": dataclasses.replace(HARD, spoilt_row=0.5, job_deadline_s=6000.0, horizon_s=30_000.0),
    "dead": dataclasses.replace(
        CALM, busy=1.0, error=0.01, lost_reply=0.01, kill=0.002, job_deadline_s=6000.0, horizon_s=30_000.0
    ),
}
