"""Every error that the model runner raises, as one tree.

::

    ModelRunnerError
    ├── ConfigurationError                       the environment is not valid: correct it and start again
    ├── InvalidRequestError                      the message is not valid: the same message fails again
    │   ├── InvalidImageRequestException
    │   ├── InvalidRegionRequestException
    │   ├── InvalidImageURLException
    │   └── UnsupportedModelException
    ├── ImageError                               the image cannot be read as the request requires
    │   ├── LoadImageException
    │   │   ├── ImageUnreachableError    (again) the image store does not respond, or breaks off
    │   │   └── NotAnImageError              the object is not an image
    │   ├── InvalidS3ObjectException
    │   └── TileEncodingError
    ├── ModelError                               the endpoint failed for one tile
    │   ├── ModelCallError                       has a code of "Errors" in docs/reference/model-contract.md
    │   ├── BadModelResponseError                the response is not a feature collection
    │   ├── ModelJobError                (again) no call of the job can succeed for now; see ``inference``
    │   ├── ModelBackPressureError       (again) the endpoint refuses for now: release the region
    │   └── ModelTileError                       this tile fails, the image continues
    ├── FeatureError
    │   ├── FeaturesTooLargeError                the features of a tile are too large to store: the tile fails
    │   ├── FeatureBlobError                     stored features cannot be read back
    │   ├── FeatureDistillationException
    │   └── InvalidFeaturePropertiesException
    ├── TableError                       (again) a call of DynamoDB failed
    │   ├── AddFeaturesException, DDBUpdateException, DDBBatchWriteException
    │   ├── StartImageException, EndImageException, GetImageRequestItemException, IsImageCompleteException
    │   ├── StartRegionException, UpdateRegionException, CompleteRegionException, GetRegionRequestItemException
    │   ├── ConditionNotMetError                 a conditional write was refused; has the stored item
    │   ├── TableBusyError               (again) DynamoDB or the work bucket throttles or does not respond
    │   │   └── TransactionConflictError (again) two transactions changed one item at once
    │   └── ConservationError                    rows and counters do not match: nothing is delivered
    ├── SinkError                        (again) an output was not written
    │   ├── SinkPermanentError                   a retry cannot succeed
    │   ├── InvalidS3BucketException
    │   └── InvalidKinesisStreamException
    ├── StatusError                      (again)
    │   ├── SNSPublishException
    │   └── StatusMonitorException
    ├── QueueError                       (again) a call of SQS failed
    ├── InvalidAssumedRoleException      (again) STS refused the role, or does not respond
    ├── JobError
    │   ├── JobRefusedError                      a request is in the dead-letter queue
    │   ├── JobNotFoundError                     a command names a job that does not exist, or is not open
    │   ├── JobNotFinishedError                  a command names a job that still waits or runs
    │   ├── ProcessImageException
    │   ├── ProcessRegionException
    │   │   ├── SetupTileWorkersException
    │   │   └── ProcessTilesException
    │   ├── AggregateFeaturesException   (again)
    │   ├── AggregationTooLargeError             AGGREGATION_MEMORY_BYTES is too little for the image
    │   └── AggregateOutputFeaturesException (again)
    ├── LocalStackError                          a part of the embedded stack is missing or ended
    │   └── InterruptedRunError                  a run of the embedded stack ended before its job
    └── RetryableJobException            (again) the message is released to its queue
        ├── RequestDeferredError         (again) an image request cannot be processed yet
        ├── AggregationDeferredError     (again) memory for the image is missing for now, or the process stops
        └── LeaseLostError               (again) another worker holds the lease

"(again)": ``can_retry`` is true, so the same call may succeed later without a change by the operator.
Names that end in ``Exception`` are published, and existing users import them; new names end in ``Error``.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, ClassVar


@dataclass(frozen=True)
class Problem:
    """One problem of an input: the field, its value, and the expectation."""

    field: str
    value: str
    expectation: str

    def __str__(self) -> str:
        return f"{self.field}={self.value}: {self.expectation}"


class ModelRunnerError(Exception):
    """The root of the tree. ``can_retry``: the same call may succeed later without a change by the operator."""

    can_retry: ClassVar[bool] = False


_MAX_LISTED = 50


class _ProblemsError(ModelRunnerError):
    """An error that lists its problems: all of them in ``problems``, the first fifty in its text."""

    def __init__(self, message: str, problems: Sequence[Problem] = ()):
        self.problems = tuple(problems)
        # A message of 256 KiB may have a hundred thousand problems, too many for a line of a log.
        listed = self.problems[:_MAX_LISTED]
        if len(listed) > 1:
            # The names of the fields come first, because a status may truncate the text.
            message = f"{message}: {', '.join(dict.fromkeys(problem.field for problem in listed))}"
        rest = len(self.problems) - len(listed)
        super().__init__("; ".join([message, *map(str, listed), *([f"and {rest} more problems"] if rest else [])]))


class ConfigurationError(_ProblemsError):
    """The environment does not describe a worker that can run."""


class InvalidRequestError(_ProblemsError):
    """A message that can never be processed."""


class InvalidImageRequestException(InvalidRequestError):
    """An image request that does not match the contract."""


class InvalidRegionRequestException(InvalidRequestError):
    """A region request that does not match the contract."""


class InvalidImageURLException(InvalidRequestError):
    """An image URL that is not valid, or may not be read."""


class UnsupportedModelException(InvalidRequestError):
    """An endpoint that may not be called, or a type of endpoint that is not supported."""


class ImageError(ModelRunnerError):
    """The image cannot be read as the request requires."""


class LoadImageException(ImageError):
    """The image cannot be opened or planned."""


class ImageUnreachableError(LoadImageException):
    """The image's store did not respond, or is overloaded: the same open may succeed later."""

    can_retry: ClassVar[bool] = True


class ImageBreaksOffError(ImageUnreachableError):
    """The image's store responds, but every transfer of this part of the image breaks off."""


class NotAnImageError(LoadImageException):
    """GDAL does not recognize the fetched bytes as an image of a supported format."""


class InvalidS3ObjectException(ImageError):
    """The object is missing, or may not be read."""


class TileEncodingError(ImageError):
    """One tile cannot be read or encoded."""


class ModelError(ModelRunnerError):
    """A model endpoint failed for one tile."""


class ModelErrorClass(StrEnum):
    """The class of a failed model call; ``inference.retry.decide`` decides by it whether to retry."""

    THROTTLE = "THROTTLE"  # The endpoint is busy: wait, call less often.
    TRANSIENT = "TRANSIENT"  # A temporary failure of the network or the service.
    SUSPICIOUS = "SUSPICIOUS"  # The model crashed, because of this tile or in an outage.
    PERMANENT = "PERMANENT"  # Every call with this tile fails.
    JOB = "JOB"  # Every call of this job fails: endpoint missing, access denied.
    CREDENTIAL = "CREDENTIAL"  # The credentials expired: refresh once and repeat.


class ModelCallError(ModelError):
    """One call of an endpoint failed. ``code`` is a short text for tables; ``retry_after_s`` is its Retry-After."""

    def __init__(
        self, message: str, error_class: ModelErrorClass, code: str, retry_after_s: float | None = None
    ) -> None:
        super().__init__(message)
        self.error_class = error_class
        self.code = code
        self.retry_after_s = retry_after_s


class BadModelResponseError(ModelError):
    """The endpoint returned status 200, but its response is not a feature collection."""


class ModelBackPressureError(ModelError):
    """The endpoint refuses for now; the region is released, which does not count as an attempt."""

    can_retry = True

    def __init__(self, message: str, retry_after_s: float | None = None):
        super().__init__(message)
        self.retry_after_s = retry_after_s


class ModelTileError(ModelError):
    """The endpoint permanently refuses this tile; ``code`` is the error code in the tile's row."""

    def __init__(self, message: str, code: str):
        super().__init__(message)
        self.code = code


class FeatureError(ModelRunnerError):
    """Features cannot be processed or stored."""


class FeaturesTooLargeError(FeatureError):
    """The features of a tile are too large to store."""


class FeatureBlobError(FeatureError):
    """The stored features of a tile cannot be read: their blob is damaged."""


class FeatureDistillationException(FeatureError):
    """Duplicates cannot be removed with these options."""


class InvalidFeaturePropertiesException(FeatureError):
    """The properties of a request cannot be added to features."""


class TableError(ModelRunnerError):
    """A call of DynamoDB failed."""

    can_retry = True


class AddFeaturesException(TableError):
    """Features could not be stored."""


class DDBUpdateException(TableError):
    """An item could not be updated."""


class DDBBatchWriteException(TableError):
    """A batch of items could not be written within the allowed tries."""


class StartImageException(TableError):
    """An image's row could not be created."""


class EndImageException(TableError):
    """An image's row could not be completed."""


class GetImageRequestItemException(TableError):
    """An image's row could not be read."""


class IsImageCompleteException(TableError):
    """An image's row has no counters, so its completion cannot be determined."""

    can_retry = False


class StartRegionException(TableError):
    """A region's row could not be created."""


class UpdateRegionException(TableError):
    """A region's row could not be updated."""


class CompleteRegionException(TableError):
    """A region's row could not be completed."""


class GetRegionRequestItemException(TableError):
    """A region's row could not be read."""


class ConditionNotMetError(TableError):
    """DynamoDB refused a conditional write because its condition does not hold.

    ``old`` is the stored item, None without an item, so the caller needs no second read.
    """

    can_retry = False

    def __init__(self, old: dict[str, Any] | None) -> None:
        super().__init__("condition not met")
        self.old = old


class TableBusyError(TableError):
    """DynamoDB, or the work bucket, throttles or does not respond: the same call may succeed later."""


class TransactionConflictError(TableBusyError):
    """A transaction was cancelled for another reason than its conditions, mostly by a conflicting transaction."""


class ConservationError(TableError):
    """The stored tiles do not match the counters: nothing is delivered from this state."""

    can_retry = False


class SinkError(ModelRunnerError):
    """An output was not written."""

    can_retry = True


class SinkPermanentError(SinkError):
    """An output that no retry can write; the message names the sink and the reason."""

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
    """A status cannot be published: a field is missing, or the call failed."""


class QueueError(ModelRunnerError):
    """A call to SQS failed."""

    can_retry: ClassVar[bool] = True


class InvalidAssumedRoleException(ModelRunnerError):
    """A role could not be assumed."""

    can_retry = True


class JobError(ModelRunnerError):
    """A step of a job ended in an error."""


class JobNotFoundError(JobError):
    """A job with this id does not exist, or is not in the state that a command requires."""


class JobRefusedError(JobError):
    """A request was refused: it is in the dead-letter queue, and has no rows."""


class JobNotFinishedError(JobError):
    """The job waits or runs, and a command requires a job that has ended."""


class ProcessImageException(JobError):
    """An image could not be processed."""


class ProcessRegionException(JobError):
    """A region could not be processed."""


class SetupTileWorkersException(ProcessRegionException):
    """The workers of a region could not be prepared: the model, the credentials or the image is missing."""


class ProcessTilesException(ProcessRegionException):
    """The tiles of a region could not be processed."""


class AggregateFeaturesException(JobError):
    """The features of an image could not be aggregated."""

    can_retry = True


class AggregationTooLargeError(JobError):
    """Features of an image that have to be merged together take more memory than the budget of aggregations."""


class AggregateOutputFeaturesException(JobError):
    """All outputs failed."""

    can_retry = True


class RetryableJobException(ModelRunnerError):
    """The message is released to its queue, and this or another worker processes it later."""

    can_retry = True


class RequestDeferredError(RetryableJobException):
    """An image request cannot be processed yet: retry it after ``retry_after_s``."""

    def __init__(self, message: str, retry_after_s: float) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class EndpointFullError(RequestDeferredError):
    """The queue of the request's endpoint is full; requests for other endpoints are still received."""


class AggregationDeferredError(RetryableJobException):
    """An image is aggregated later: the process stops, or other images hold the memory that it needs."""


class LeaseLostError(RetryableJobException):
    """Another worker holds the lease that this worker held: stop, and write nothing more."""


class LocalStackError(ModelRunnerError):
    """A part of the embedded stack is missing, did not start, or ended; the message has the end of its log."""


class InterruptedRunError(LocalStackError):
    """A run has ended before its job, because of ``cause``; the message names the checkpoint."""

    def __init__(self, message: str, cause: BaseException) -> None:
        super().__init__(message)
        self.cause = cause
