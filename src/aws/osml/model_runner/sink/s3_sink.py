"""S3 sink: one file per image, complete or absent, with the same bytes from every worker."""

import base64
import hashlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import replace
from itertools import chain
from typing import Any
from urllib.parse import quote, unquote

import geojson
import structlog
from botocore.exceptions import BotoCoreError, ClientError, ParamValidationError

from aws.osml.model_runner.api.problems import role_problem, shortened
from aws.osml.model_runner.api.sink import OutputCompression, OutputExtra, OutputFormat, SinkMode, SinkType
from aws.osml.model_runner.aws.clients import default_clients
from aws.osml.model_runner.aws.errors import error_code, error_status, is_role_refusal
from aws.osml.model_runner.aws.role_session import writing_session
from aws.osml.model_runner.exceptions import Problem

from .delivery import Delivery
from .exceptions import InvalidS3BucketException, SinkError, SinkPermanentError
from .result_format import ResultFormat, in_parts
from .result_key import result_key
from .sink import Sink

logger = structlog.get_logger(__name__)

_EXPECTED_BUCKETS = {
    "NoSuchBucket": "a bucket that exists",
    "AccessDenied": "a bucket that the worker, or the role of the output, may write",
}

# Parts are small, so that little remains to be written after the last feature; 10,000 parts hold a result of 80 GB.
PART_BYTES = 8 * 1024 * 1024
# Several uploads at once, because one upload is slower than the production of parts.
PARTS_AT_ONCE = 3

_BUCKET_ERRORS = frozenset(
    {
        "403",
        "AccessDenied",
        "AccessDeniedException",
        "AllAccessDisabled",
        "AuthorizationHeaderMalformed",
        "InvalidBucketName",
        "NoSuchBucket",
        "PermanentRedirect",
    }
)
# Errors with a 4xx status after which a retry may succeed.
_PASSING_ERRORS = frozenset(
    {
        "ConditionalRequestConflict",
        "ExpiredToken",
        "ExpiredTokenException",
        "InvalidAccessKeyId",
        "NoSuchKey",  # from If-Match: the result was deleted meanwhile
        "NoSuchUpload",
        "OperationAborted",
        "PreconditionFailed",
        "RequestTimeTooSkewed",
        "RequestTimeout",
        "SlowDown",
        "Throttling",
        "ThrottlingException",  # the key of a bucket that KMS encrypts
        "TokenRefreshRequired",
    }
)


_COVERAGE_COLUMNS = {"state": "string", "reason": "string", "region_id": "string", "detections": "int64"}
# Name of the metadata that holds the job id of a result.
_JOB_ID = "job-id"
# Error codes of S3 when the stored object is not the object that the sink read.
_CHANGED = frozenset({"PreconditionFailed", "NoSuchKey"})
_PUTS = 3


def _threads() -> Executor:
    return ThreadPoolExecutor(PARTS_AT_ONCE, thread_name_prefix="write-part")


class S3Sink(Sink):
    """Writes the features of an image to ``<prefix>/<name>.geojson``, or with the extension of its format.

    A result below ``part_bytes`` is one put. A larger result is uploaded in parts while the next parts are produced,
    and appears after the last part. ``make_writer`` creates the executor that uploads parts. ``acl`` is set on the
    object if given; buckets that enforce their owner refuse any ACL. With ``expected_owner``, an account, S3 refuses to
    write to a bucket of another account. The result of another job is never replaced if the sink may read the object's
    metadata: S3 writes only if the object has not changed since the sink read it. ``extras`` are written after the
    result, in the same way.
    """

    def __init__(
        self,
        bucket: str,
        prefix: str,
        assumed_role: str | None = None,
        acl: str | None = None,
        client: Any = None,
        part_bytes: int = PART_BYTES,
        expected_owner: str | None = None,
        result_format: OutputFormat = OutputFormat.GEOJSON,
        compression: OutputCompression = OutputCompression.NONE,
        make_writer: Callable[[], Executor] = _threads,
        extras: frozenset[OutputExtra] = frozenset(),
    ) -> None:
        self.bucket = bucket
        self.prefix = prefix
        self.assumed_role = assumed_role
        self.acl = acl
        self.part_bytes = part_bytes
        self.format = ResultFormat.of(result_format, compression)
        self.expected_owner = expected_owner
        self.make_writer = make_writer
        self.extras = extras
        self._client = client

    @staticmethod
    def name() -> str:
        """Name of this type of sink."""
        return SinkType.S3.value

    @property
    def mode(self) -> SinkMode:
        """One result per image."""
        return SinkMode.AGGREGATE

    @property
    def has_coverage(self) -> bool:
        """See ``Sink``."""
        return OutputExtra.COVERAGE in self.extras

    @property
    def s3_client(self) -> Any:
        """The client that writes, created at the first use."""
        if self._client is None:
            self._client = default_clients().client("s3", self.assumed_role)
        return self._client

    def write(self, image_id: str, features: list[geojson.Feature]) -> bool:
        """Write all features of an image; ``image_id`` names the object. Return False if that fails, and log why."""
        if not self.validate_s3_bucket():
            return False
        try:
            self.deliver(Delivery.from_features(image_id, features))
        except SinkError as err:
            logger.error("sink.failed", sink=str(self), bucket=self.bucket, reason=str(err))
            return False
        return True

    def check(self, job_id: str, result_name: str = "") -> list[Problem]:
        """See ``Sink``. To check the bucket, this begins an upload in parts at the result's key and aborts it.

        Such an upload needs the permissions of the delivery and creates no object. If it may not be aborted, it stays
        without parts until a lifecycle rule of the bucket removes it.
        """
        problems = []
        if library := self.format.missing_library():
            expected = f"a format whose library is installed: {library}"
            problems.append(Problem("format", shortened(self.format.name), expected))
        try:
            key = result_key(self.prefix, job_id, result_name, self.format.extension)
            if self.has_coverage:
                result_key(self.prefix, job_id, result_name, self._coverage_format.extension)
        except SinkPermanentError as err:
            return [*problems, Problem("prefix", shortened(self.prefix), str(err))]
        problem = self._bucket_problem(key, job_id)
        return [*problems, problem] if problem else problems

    def _bucket_problem(self, key: str, job_id: str) -> Problem | None:
        try:
            self._sign_for(job_id)
            try:
                self._condition(key, job_id)
            except SinkPermanentError as err:
                return Problem("prefix", shortened(self.prefix), str(err).removeprefix("S3: "))
            target, options = self._target(key), self._object_options({_JOB_ID: job_id}, self.format)
            upload_id = self.s3_client.create_multipart_upload(**target, **options)["UploadId"]
            self._abort({**target, "UploadId": upload_id})
        except (ClientError, BotoCoreError) as err:
            code = error_code(err)
            if is_role_refusal(err):
                return role_problem("role", str(self.assumed_role), code)
            error = sink_error(self.bucket, err)
            # An upload in parts needs the permission to decrypt, and a small result does not.
            if error.can_retry or "kms:Decrypt" in str(err):
                raise SinkError(str(error)) from err
            expected = _EXPECTED_BUCKETS.get(code, "a bucket that can be written")
            return Problem("bucket", shortened(self.bucket), f"{expected} ({code})")
        return None

    def deliver(
        self,
        delivery: Delivery,
        on_progress: Callable[[int], None] = lambda _position: None,  # noqa: ARG002 - all or nothing
    ) -> None:
        """Write the whole result, then its extras; a second delivery writes the same bytes over the first.

        Raises:
            InvalidS3BucketException: the bucket does not exist, or may not be written; the message names it.
            SinkPermanentError: the key is not allowed, or holds the result of another job.
            SinkError: a retry may succeed.
        """
        self._sign_for(delivery.job_id)
        self._deliver_file(delivery, self.format)
        if self.has_coverage and delivery.coverage is not None:
            coverage = replace(delivery, batches=delivery.coverage(), columns=_COVERAGE_COLUMNS)
            self._deliver_file(coverage, self._coverage_format)

    @property
    def _coverage_format(self) -> ResultFormat:
        is_table = self.format.name is OutputFormat.GEOPARQUET
        plain = ResultFormat.of(OutputFormat.GEOPARQUET if is_table else OutputFormat.GEOJSON)
        return replace(plain, extension=f".coverage{plain.extension}")

    def _deliver_file(self, delivery: Delivery, file_format: ResultFormat) -> None:
        # Raises SinkPermanentError if the prefix or the length of the key is not allowed.
        key = result_key(self.prefix, delivery.job_id, delivery.result_name, file_format.extension)
        counts: list[int] = []
        try:
            condition = self._condition(key, delivery.job_id)
            self._write(key, file_format, condition, delivery.counting(counts.append), counts)
        except (ClientError, BotoCoreError) as err:
            raise sink_error(self.bucket, err) from err
        logger.info("sink.written", sink=str(self), bucket=self.bucket, key=key, features=sum(counts))

    def validate_s3_bucket(self) -> bool:
        """Return True if the bucket exists and can be reached; otherwise log the reason."""
        try:
            self.s3_client.head_bucket(Bucket=self.bucket)
        except (ClientError, BotoCoreError) as err:
            logger.error("sink.invalid", sink=str(self), bucket=self.bucket, reason=error_code(err))
            return False
        return True

    def _sign_for(self, job_id: str) -> None:
        """Create the client that writes for a job, unless it exists."""
        if self._client is None:
            session = writing_session(self.assumed_role, job_id, self.bucket, self.prefix)
            self._client = default_clients().client("s3", session)

    def _condition(self, key: str, job_id: str) -> dict[str, str]:
        """Return the condition that the object at ``key`` is unchanged, or still does not exist.

        Empty if the sink may not read the object. Raises SinkPermanentError for the result of another job.
        """
        try:
            stored = self.s3_client.head_object(**self._target(key))
        except ClientError as err:
            # S3 returns 403 if the object may not be read, and if it does not exist and the bucket may not be listed.
            if error_status(err) == 403:
                return {}
            if error_status(err) == 404:
                return {"IfNoneMatch": "*"}
            raise
        owner = unquote(stored["Metadata"].get(_JOB_ID, "")).strip()
        if owner and owner != job_id.strip():
            conflict = f"{shortened(key)} is the result of the job {shortened(owner)}"
            raise SinkPermanentError(f"S3: a prefix without results of other jobs: {conflict}")
        return {"IfMatch": stored["ETag"]}

    def _target(self, key: str) -> dict[str, str]:
        """Return the parameters that name an object in every call of S3."""
        owner = {"ExpectedBucketOwner": self.expected_owner} if self.expected_owner else {}
        return {"Bucket": self.bucket, "Key": key, **owner}

    def _write(
        self,
        key: str,
        file_format: ResultFormat,
        condition: dict[str, str],
        delivery: Delivery,
        counts: Sequence[int],
    ) -> None:
        """Write the object; the sum of ``counts`` is the number of features read from the delivery so far."""
        target = self._target(key)
        metadata = {_JOB_ID: delivery.job_id, **delivery.metadata}
        parts = in_parts(file_format.pieces(delivery), self.part_bytes)
        first = next(parts)
        second = next(parts, None)
        if second is None:
            # Only a put can hold the count: an upload in parts sends its metadata before features are counted.
            options = self._object_options({**metadata, "feature-count": str(sum(counts))}, file_format)
            self._put(first, target | options, condition, delivery.job_id)
            return
        options = self._object_options(metadata, file_format)
        upload = {**target, "UploadId": self.s3_client.create_multipart_upload(**target, **options)["UploadId"]}
        is_complete = False
        try:
            done = list(self._upload_parts(upload, chain((first, second), parts), delivery.note))
            self.s3_client.complete_multipart_upload(MultipartUpload={"Parts": done}, **upload, **condition)
            is_complete = True
        finally:
            if not is_complete:
                self._abort(upload)

    def _put(self, body: bytes, options: dict[str, Any], condition: dict[str, str], job_id: str) -> None:
        """Write a small object. If its condition fails, read again: an earlier request may have written the object."""
        for tries_left in reversed(range(_PUTS)):
            try:
                self.s3_client.put_object(Body=body, ChecksumSHA256=sha256_base64(body), **options, **condition)
            except ClientError as err:
                if not tries_left or error_code(err) not in _CHANGED:
                    raise
                condition = self._condition(options["Key"], job_id)
            else:
                return

    def _upload_parts(
        self, upload: Mapping[str, str], parts: Iterable[bytes], note: Callable[[], None]
    ) -> Iterator[dict[str, Any]]:
        """Upload parts while the next parts are produced; at most a few are in memory.

        ``note`` is called before each part. Yields each part as CompleteMultipartUpload needs it.
        """

        def upload_part(number: int, body: bytes) -> dict[str, Any]:
            checksum = {"ChecksumSHA256": sha256_base64(body)}
            response = self.s3_client.upload_part(
                PartNumber=number, Body=body, ChecksumAlgorithm="SHA256", **checksum, **upload
            )
            return {"PartNumber": number, "ETag": response["ETag"], **checksum}

        with self.make_writer() as writer:
            pending: deque[Future[dict[str, Any]]] = deque()
            for number, body in enumerate(parts, start=1):
                note()
                if len(pending) == PARTS_AT_ONCE:
                    yield pending.popleft().result()
                if body:
                    pending.append(writer.submit(upload_part, number, body))
            for part in pending:
                yield part.result()

    def _abort(self, upload: Mapping[str, str]) -> None:
        """Abort an upload, which frees its storage; if that fails, the bucket's lifecycle rule removes it."""
        try:
            self.s3_client.abort_multipart_upload(**upload)
        except (ClientError, BotoCoreError) as err:
            logger.warning("sink.abort_failed", bucket=self.bucket, key=upload["Key"], reason=error_code(err))

    def _object_options(self, metadata: Mapping[str, str], file_format: ResultFormat) -> dict[str, Any]:
        options: dict[str, Any] = {
            "ContentType": file_format.content_type,
            "ChecksumAlgorithm": "SHA256",
            "Metadata": {name: quote(value, safe=" /:._-", errors="surrogatepass") for name, value in metadata.items()},
        }
        if self.acl:
            options["ACL"] = self.acl
        return options


def sink_error(bucket: str, error: ClientError | BotoCoreError) -> SinkError:
    """Return the sink's error for a failure of S3."""
    code = error_code(error)
    if code in _BUCKET_ERRORS or isinstance(error, ParamValidationError):
        return InvalidS3BucketException(f"S3: the bucket {bucket} cannot be written: {code}")
    status = error_status(error)
    if 400 <= status < 500 and status not in (408, 409, 429) and code not in _PASSING_ERRORS:
        return SinkPermanentError(f"S3: the bucket {bucket} refused the result: {code}")
    return SinkError(f"S3: the bucket {bucket} did not accept the result: {code}")


def sha256_base64(body: bytes) -> str:
    """Return the SHA-256 of ``body`` in base64, the form of S3."""
    return base64.b64encode(hashlib.sha256(body).digest()).decode("ascii")
