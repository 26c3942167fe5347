"""Every error that the model runner raises, as one tree.

::

    ModelRunnerError
    ├── ConfigurationError                       the environment is wrong: mend it and start again
    ├── InvalidRequestError                      the message is wrong: the same message fails again
    │   ├── InvalidImageRequestException
    │   ├── InvalidRegionRequestException
    │   ├── InvalidImageURLException
    │   └── UnsupportedModelException
    ├── ImageError                               the image cannot be read as asked
    │   ├── LoadImageException
    │   │   ├── ImageUnreachableError    (again) the image's store does not answer, or breaks off; see ``raster``
    │   │   └── NotAnImageError              what was fetched is not an image; see ``raster``
    │   ├── InvalidS3ObjectException
    │   └── TileEncodingError
    ├── ModelError                               what the endpoint did to one tile
    │   ├── ModelCallError                       carries a code of "Errors" in docs/reference/model-contract.md
    │   ├── BadModelResponseError                  the answer is no feature collection
    │   ├── ModelJobError                (again) no tile of the job can be answered for now; see ``inference``
    │   ├── ModelBackPressureError       (again) the endpoint refuses for now: give the region back
    │   └── ModelTileError                       this tile fails, the image goes on
    ├── FeatureError
    │   ├── FeaturesTooLargeError                a tile's features are more than can be stored: the tile fails
    │   ├── FeatureBlobError                     stored features cannot be read back
    │   ├── FeatureDistillationException
    │   └── InvalidFeaturePropertiesException
    ├── TableError                       (again) DynamoDB did not do what was asked
    │   ├── AddFeaturesException, DDBUpdateException, DDBBatchWriteException
    │   ├── StartImageException, EndImageException, GetImageRequestItemException, IsImageCompleteException
    │   ├── StartRegionException, UpdateRegionException, CompleteRegionException, GetRegionRequestItemException
    │   ├── ConditionNotMetError                 a conditional write did not happen; carries the item that stands there
    │   ├── TableBusyError               (again) DynamoDB or the work bucket throttles or does not respond
    │   │   └── TransactionConflictError (again) two transactions touched one item at once
    │   └── ConservationError                    rows and counters disagree: stop and alarm
    ├── SinkError                        (again) an output was not written
    │   ├── SinkPermanentError                   trying again cannot help
    │   ├── InvalidS3BucketException
    │   └── InvalidKinesisStreamException
    ├── StatusError                      (again)
    │   ├── SNSPublishException
    │   └── StatusMonitorException
    ├── QueueError                       (again) SQS did not do what was asked; see ``queue``
    ├── InvalidAssumedRoleException      (again) STS refused, or is away
    ├── JobError
    │   ├── JobNotFoundError                     an operator names a job that is not there, or not open
    │   ├── JobNotFinishedError                  an operator names a job that still waits or runs
    │   ├── ProcessImageException
    │   ├── ProcessRegionException
    │   │   ├── SetupTileWorkersException
    │   │   └── ProcessTilesException
    │   ├── AggregateFeaturesException   (again)
    │   ├── AggregationTooLargeError             AGGREGATION_MEMORY_BYTES is too little for the image
    │   └── AggregateOutputFeaturesException (again)
    └── RetryableJobException            (again) the work goes back to its queue
        ├── RequestDeferredError         (again) what an image request needs is not there yet
        ├── AggregationDeferredError     (again) there is no memory for the image now, or the process stops
        └── LeaseLostError               (again) another worker holds what we held

"(again)": ``can_retry`` is true, so the same call may succeed later without anyone's help.
Names that end in ``Exception`` are the ones that existing users import; new ones end in ``Error``.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, ClassVar


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong with an input: where, what stands there, and what was expected."""

    field: str
    value: str
    expectation: str

    def __str__(self) -> str:
        return f"{self.field}={self.value}: {self.expectation}"


class ModelRunnerError(Exception):
    """The root of the tree. ``can_retry`` says whether the same call may succeed later without anyone's help."""

    can_retry: ClassVar[bool] = False


class _ProblemsError(ModelRunnerError):
    """An error that lists every problem found, not only the first."""

    def __init__(self, message: str, problems: Sequence[Problem] = ()):
        self.problems = tuple(problems)
        super().__init__(_listed(message, self.problems))


def _listed(message: str, problems: Sequence[Problem]) -> str:
    """Return the message with every problem; the fields come first, because a status may cut the text short."""
    if len(problems) < 2:
        return "; ".join([message, *map(str, problems)])
    fields = ", ".join(dict.fromkeys(problem.field for problem in problems))
    return "; ".join([f"{message}: {fields}", *map(str, problems)])


class ConfigurationError(_ProblemsError):
    """The environment does not describe a worker that can run."""


class InvalidRequestError(_ProblemsError):
    """A message that can never be carried out."""


class InvalidImageRequestException(InvalidRequestError):
    """An image request that breaks the contract."""


class InvalidRegionRequestException(InvalidRequestError):
    """A region request that breaks the contract."""


class InvalidImageURLException(InvalidRequestError):
    """An image URL that may not be read, or is none."""


class UnsupportedModelException(InvalidRequestError):
    """A way of calling a model that does not exist."""


class ImageError(ModelRunnerError):
    """The image cannot be read as the request asks."""


class LoadImageException(ImageError):
    """The image cannot be opened, or its plan cannot be made."""


class InvalidS3ObjectException(ImageError):
    """The object is missing, or may not be read."""


class TileEncodingError(ImageError):
    """One tile cannot be read or encoded."""


class ModelError(ModelRunnerError):
    """What a model endpoint did to one tile."""


class ModelErrorClass(StrEnum):
    """What a failed model call says about trying again; ``inference.retry`` turns it into a decision."""

    THROTTLE = "THROTTLE"  # the endpoint is busy: wait, call less often
    TRANSIENT = "TRANSIENT"  # the network or the service stumbled
    SUSPICIOUS = "SUSPICIOUS"  # the model crashed: this tile, or an outage
    PERMANENT = "PERMANENT"  # this tile will never be answered
    JOB = "JOB"  # no tile of this job will be answered: endpoint missing, access denied
    CREDENTIAL = "CREDENTIAL"  # the credentials expired: refresh once and repeat


class ModelCallError(ModelError):
    """One call of an endpoint failed. ``code`` is short and fit for tables; ``retry_after_s`` is its wish."""

    def __init__(
        self, message: str, error_class: ModelErrorClass, code: str, retry_after_s: float | None = None
    ) -> None:
        super().__init__(message)
        self.error_class = error_class
        self.code = code
        self.retry_after_s = retry_after_s


class BadModelResponseError(ModelError):
    """The endpoint answered with success, and with something that is no feature collection."""


class ModelBackPressureError(ModelError):
    """The endpoint refuses for now; the region goes back to its queue and this is no attempt."""

    can_retry = True

    def __init__(self, message: str, retry_after_s: float | None = None):
        super().__init__(message)
        self.retry_after_s = retry_after_s


class ModelTileError(ModelError):
    """The endpoint has refused this tile for good; ``code`` is what the tile's row records."""

    def __init__(self, message: str, code: str):
        super().__init__(message)
        self.code = code


class FeatureError(ModelRunnerError):
    """Features cannot be turned into what was asked."""


class FeaturesTooLargeError(FeatureError):
    """The features of a tile are more than can be stored."""


class FeatureBlobError(FeatureError):
    """The stored features of a tile cannot be read: their blob is damaged."""


class FeatureDistillationException(FeatureError):
    """Duplicates cannot be removed with these options."""


class InvalidFeaturePropertiesException(FeatureError):
    """The properties of a request cannot be stamped on features."""


class TableError(ModelRunnerError):
    """DynamoDB did not do what was asked."""

    can_retry = True


class AddFeaturesException(TableError):
    """Features could not be stored."""


class DDBUpdateException(TableError):
    """An item could not be updated."""


class DDBBatchWriteException(TableError):
    """A batch of items could not be written in the tries allowed."""


class StartImageException(TableError):
    """An image's row could not be created."""


class EndImageException(TableError):
    """An image's row could not be ended."""


class GetImageRequestItemException(TableError):
    """An image's row could not be read."""


class IsImageCompleteException(TableError):
    """Whether an image is complete could not be told: its row has no counters."""

    can_retry = False


class StartRegionException(TableError):
    """A region's row could not be created."""


class UpdateRegionException(TableError):
    """A region's row could not be updated."""


class CompleteRegionException(TableError):
    """A region's row could not be ended."""


class GetRegionRequestItemException(TableError):
    """A region's row could not be read."""


class ConditionNotMetError(TableError):
    """A conditional write did not happen because its condition did not hold.

    ``old`` is the item as it stood, None when there was none: the caller learns the state without a second read.
    """

    can_retry = False

    def __init__(self, old: dict[str, Any] | None) -> None:
        super().__init__("condition not met")
        self.old = old


class TableBusyError(TableError):
    """DynamoDB, or the work bucket, throttles or does not respond: the same call may succeed later."""


class TransactionConflictError(TableBusyError):
    """A transaction was cancelled for another reason than its conditions, mostly because two met on one item."""


class ConservationError(TableError):
    """The tiles that are stored are not the tiles that were counted: nothing is delivered from such a state."""

    can_retry = False


class SinkError(ModelRunnerError):
    """An output was not written."""

    can_retry = True


class SinkPermanentError(SinkError):
    """An output that no further try can write; the message names the sink and why."""

    can_retry = False


class InvalidS3BucketException(SinkPermanentError):
    """The bucket is missing or may not be written."""


class InvalidKinesisStreamException(SinkPermanentError):
    """The stream is missing or may not be written."""


class StatusError(ModelRunnerError):
    """A status was not published."""

    can_retry = True


class SNSPublishException(StatusError):
    """SNS did not take a message."""


class StatusMonitorException(StatusError):
    """A status cannot be told: a field is missing, or publishing failed."""


class InvalidAssumedRoleException(ModelRunnerError):
    """A role could not be assumed."""

    can_retry = True


class JobError(ModelRunnerError):
    """A step of a job ended in an error."""


class JobNotFoundError(JobError):
    """There is no job of this id in the state that a command needs."""


class JobNotFinishedError(JobError):
    """The job waits or runs, and a command needs one that has ended."""


class ProcessImageException(JobError):
    """An image could not be processed."""


class ProcessRegionException(JobError):
    """A region could not be processed."""


class SetupTileWorkersException(ProcessRegionException):
    """The workers of a region could not be prepared: the model, the credentials or the image is missing."""


class ProcessTilesException(ProcessRegionException):
    """The tiles of a region could not be processed."""


class AggregateFeaturesException(JobError):
    """The features of an image could not be brought together."""

    can_retry = True


class AggregationTooLargeError(JobError):
    """Features of an image that can only be decided together take more memory than there is for aggregations."""


class AggregateOutputFeaturesException(JobError):
    """No output took the features."""

    can_retry = True


class RetryableJobException(ModelRunnerError):
    """The work goes back to its queue and is done later, here or elsewhere."""

    can_retry = True


class RequestDeferredError(RetryableJobException):
    """What an image request needs is not there yet: look again in ``retry_after_s``."""

    def __init__(self, message: str, retry_after_s: float) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class EndpointFullError(RequestDeferredError):
    """As many images of the request's endpoint wait as may; others' requests are received meanwhile."""


class AggregationDeferredError(RetryableJobException):
    """An image is finished later: the process stops, or other images hold the memory that it needs."""


class LeaseLostError(RetryableJobException):
    """Another worker holds what this one held: stop, and write nothing more."""
