"""Outcomes of a region that a worker received. The outcome decides what happens to the region's message."""

import dataclasses
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from aws.osml.model_runner.database.job_table import JobItem


@dataclasses.dataclass(frozen=True)
class Ended:
    """The region needs no further work: its message is deleted.

    The region has ended, here or before, or its image has. ``job`` is the image's row; None when the row is gone.
    """

    job: "JobItem | None"


@dataclasses.dataclass(frozen=True)
class Deferred:
    """The region cannot be processed now: its message becomes visible again after ``retry_after_s``.

    ``is_backoff`` is True when the region's endpoint, image or tables are the reason: the row counts those waits.
    """

    reason: str
    retry_after_s: float
    is_backoff: bool = False
