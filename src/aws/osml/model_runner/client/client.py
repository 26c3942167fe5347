"""A client of one deployment, for scripts, notebooks and the command line."""

import gzip
import io
import json
import os
import time
import uuid
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import orjson

from aws.osml.model_runner.api.image_request import ImageRequest
from aws.osml.model_runner.api.image_request_message import parse_image_request_message
from aws.osml.model_runner.api.job_keys import request_key
from aws.osml.model_runner.api.sink import OutputFormat
from aws.osml.model_runner.aws.clients import AwsClients, default_clients
from aws.osml.model_runner.database.job_table import JobItem, JobTable
from aws.osml.model_runner.database.outstanding_jobs_table import OutstandingJobsTable
from aws.osml.model_runner.database.region_request_table import RegionRequestTable
from aws.osml.model_runner.exceptions import ConfigurationError, JobNotFoundError, JobRefusedError
from aws.osml.model_runner.jobs.cancel import CancelReport, JobCanceller
from aws.osml.model_runner.jobs.redrive import JobRedriver, RedriveReport
from aws.osml.model_runner.queue.request_queue import RequestQueue
from aws.osml.model_runner.sink.result_key import result_key
from aws.osml.model_runner.sink.s3_sink import S3Sink
from aws.osml.model_runner.sink.sink_factory import SinkFactory

from .deployment import Deployment
from .reports import ImageReport, JobReport, QueueDepth, Refusal, Result

if TYPE_CHECKING:
    import geopandas

POLL_S = 2.0
# Dead letters are hidden from others for so long while they are read.
_LOOK_S = 10
# A worker accepts a request within seconds, unless all workers are busy or the request is refused.
_UNACCEPTED_S = 15.0
_MAX_DEAD_LETTERS = 1_000
_COUNTS = (
    "ApproximateNumberOfMessages",
    "ApproximateNumberOfMessagesNotVisible",
    "ApproximateNumberOfMessagesDelayed",
)


class Client:
    """Submits jobs to a deployment and follows them.

    ``deployment`` is by default that of the environment variables of a worker. Its permissions are ``sqs:SendMessage``
    on the image queue, ``dynamodb:GetItem`` on the table of images, and ``s3:GetObject`` on results.
    """

    def __init__(
        self,
        deployment: Deployment | None = None,
        clients: AwsClients | None = None,
        now: Callable[[], float] = time.time,
        sleep: Callable[[float], object] = time.sleep,
    ) -> None:
        self.deployment = deployment or Deployment(dict(os.environ))
        self.clients = clients or default_clients()
        self._now = now
        self._sleep = sleep

    @classmethod
    def of_stack(cls, name: str, clients: AwsClients | None = None) -> "Client":
        """Return the client of the deployment that the CloudFormation stack ``name`` made.

        Raises:
            ConfigurationError: the stack does not exist, or is not a data plane.
        """
        made = clients or default_clients()
        return cls(Deployment.from_stack(name, made.client("cloudformation")), made)

    def submit(self, request: Mapping[str, Any]) -> "Job":
        """Check a request, send it, and return its job. A request without ``jobId`` gets a random one.

        Raises:
            InvalidImageRequestException: the request is not valid; it names every problem.
            QueueError: the queue did not take it.
        """
        document = {"jobId": f"job-{uuid.uuid4().hex[:12]}", **request}
        requests = parse_image_request_message(json.dumps(document))
        self._queue("IMAGE_QUEUE").send_request(document)
        return Job(self, document["jobId"], requests)

    def job(self, job_id: str) -> "Job":
        """Return a job that was submitted before.

        Raises:
            JobNotFoundError: no worker has accepted such a job, or its rows have expired.
        """
        row = self.job_table.read({"image_id": request_key(job_id)})
        if row is None or self.job_table.is_expired(row):
            raise JobNotFoundError(f"no worker has accepted a job {job_id}, or its rows have expired")
        body = JobItem.from_row(row).body
        if body is not None:
            return Job(self, job_id, parse_image_request_message(body))
        # The row does not hold a long message, so the images are searched.
        return Job(self, job_id, [item.image_request() for item in self.job_table.images_of(job_id)])

    def open_jobs(self) -> Iterator[JobReport]:
        """Yield a report of each job that waits or runs, oldest first."""
        images: dict[str, list[tuple[float, str]]] = {}
        for row in self.outstanding_jobs.open_jobs():
            images.setdefault(row.job_id, []).append((row.request_time, row.image_id))
        for job_id, rows in sorted(images.items(), key=lambda pair: min(pair[1])):
            found = [self.job_table.find(image_id) for _, image_id in rows]
            yield JobReport(job_id, [ImageReport.of(item) for item in found if item is not None])

    def refusals(self) -> list[Refusal]:
        """Return the requests in the dead-letter queue, with the reason; they stay there.

        Other readers of the queue do not receive them for ten seconds.
        """
        sqs, url, found = self.clients.client("sqs"), self.deployment.setting("IMAGE_DLQ"), dict[str, Refusal]()
        while len(found) < _MAX_DEAD_LETTERS:
            answer = sqs.receive_message(
                QueueUrl=url, MaxNumberOfMessages=10, VisibilityTimeout=_LOOK_S, MessageAttributeNames=["reason"]
            )
            new = [message for message in answer.get("Messages", []) if message["MessageId"] not in found]
            if not new:
                break
            found |= {message["MessageId"]: Refusal.of(message) for message in new}
        return list(found.values())

    def queue_depths(self) -> list[QueueDepth]:
        """Return the approximate numbers of messages in the queues of the deployment."""
        sqs, depths = self.clients.client("sqs"), []
        for name in ("IMAGE_QUEUE", "REGION_QUEUE", "IMAGE_DLQ", "REGION_DLQ"):
            if url := self.deployment.settings.get(name):
                counts = sqs.get_queue_attributes(QueueUrl=url, AttributeNames=list(_COUNTS))["Attributes"]
                depths.append(QueueDepth(name, *(int(counts.get(count, 0)) for count in _COUNTS)))
        return depths

    @property
    def job_table(self) -> JobTable:
        """The table of images."""
        return JobTable(self.deployment.setting("JOB_TABLE"), self.clients.dynamodb_resource())

    @property
    def region_table(self) -> RegionRequestTable:
        """The table of regions."""
        return RegionRequestTable(self.deployment.setting("REGION_REQUEST_TABLE"), self.clients.dynamodb_resource())

    @property
    def outstanding_jobs(self) -> OutstandingJobsTable:
        """The table of open jobs."""
        name = self.deployment.setting("OUTSTANDING_JOBS_TABLE")
        return OutstandingJobsTable(name, self.job_table, self.clients.dynamodb_resource())

    def _queue(self, name: str) -> RequestQueue:
        return RequestQueue(self.deployment.setting(name), client=self.clients.client("sqs"))


class Job:
    """A job of a deployment. Made by ``Client.submit`` and ``Client.job``."""

    def __init__(self, client: Client, job_id: str, requests: Collection[ImageRequest]) -> None:
        self.job_id = job_id
        self._client = client
        self._requests = tuple(requests)

    def report(self) -> JobReport:
        """Return the state of the job: one report for each image that a worker has accepted.

        Tiles of regions in work count too, if the deployment names REGION_REQUEST_TABLE. Workers store them with each
        renewal of a lease, every 30 s by default.
        """
        client, images = self._client, []
        for request in self._requests:
            if (item := client.job_table.find(request.image_id)) is None:
                continue
            if item.image_status == "IN_PROGRESS" and "REGION_REQUEST_TABLE" in client.deployment.settings:
                succeeded, failed = client.region_table.tiles_in_work(request.image_id)
                item.tile_success = (item.tile_success or 0) + succeeded
                item.tile_error = (item.tile_error or 0) + failed
            images.append(ImageReport.of(item))
        return JobReport(self.job_id, images)

    def wait(
        self, on_progress: Callable[[JobReport], None] = lambda _report: None, timeout_s: float | None = None
    ) -> JobReport:
        """Wait for the end of the job, and return its report. ``on_progress`` gets a report every two seconds.

        Raises:
            JobRefusedError: the request is in the dead-letter queue, and no worker has accepted it.
            TimeoutError: the job has not ended after ``timeout_s``.
        """
        began = self._client._now()
        looked = began
        while True:
            report = self.report()
            on_progress(report)
            if report.has_ended and len(report.images) == len(self._requests):
                return report
            now_s = self._client._now()
            if not report.images and now_s - looked > _UNACCEPTED_S:
                looked = now_s
                self._check_refused()
            if timeout_s is not None and now_s - began > timeout_s:
                raise TimeoutError(f"job {self.job_id} is {report.status or 'not accepted'} after {timeout_s:g} s")
            self._client._sleep(POLL_S)

    def _check_refused(self) -> None:
        if "IMAGE_DLQ" in self._client.deployment.settings:
            for refusal in self._client.refusals():
                if refusal.job_id == self.job_id:
                    raise JobRefusedError(f"job {self.job_id} was refused: {refusal.reason}")

    def results(self) -> list[Result]:
        """Return the files in S3 that the job's outputs name, image by image, whether or not they exist yet."""
        found = []
        for request in self._requests:
            for sink in SinkFactory.outputs_to_sinks(request.outputs):
                if isinstance(sink, S3Sink):
                    key = result_key(sink.prefix, self.job_id, request.result_name, sink.format.extension)
                    found.append(Result(sink.bucket, key, str(sink.format.name), request.image_url))
        return found

    def download(self, result: Result) -> bytes:
        """Return the bytes of a result. Raises FileNotFoundError where it does not exist."""
        s3 = self._client.clients.client("s3")
        try:
            body: bytes = s3.get_object(Bucket=result.bucket, Key=result.key)["Body"].read()
        except s3.exceptions.NoSuchKey as err:
            raise FileNotFoundError(result.url) from err
        return body

    def frame(self) -> "geopandas.GeoDataFrame":
        """Return the features of all images in one frame, in degrees, with the column ``image_url``.

        The first S3 output of each image is read. geopandas must be installed.

        Raises:
            ConfigurationError: no output of the job is in S3.
            FileNotFoundError: a result does not exist.
        """
        import geopandas

        first: dict[str, Result] = {}
        for result in self.results():
            first.setdefault(result.image_url, result)
        if not first:
            raise ConfigurationError(f"no output of job {self.job_id} is in S3")
        frames = []
        for result in first.values():
            body = self.download(result)
            if result.format == OutputFormat.GEOPARQUET:
                frame = geopandas.read_parquet(io.BytesIO(body))
            else:
                plain = gzip.decompress(body) if result.key.endswith(".gz") else body
                features = _features_of(plain, result.format)
                frame = geopandas.GeoDataFrame.from_features(features, columns=None if features else ["geometry"])
                frame = frame.set_crs("OGC:CRS84")
            frames.append(frame.assign(image_url=result.image_url))
        return frames[0] if len(frames) == 1 else geopandas.pd.concat(frames, ignore_index=True)

    def cancel(self) -> CancelReport:
        """End the images that wait or run as FAILED.

        Raises:
            JobNotFoundError: no image of the job is open.
        """
        return JobCanceller(self._client.job_table, self._client.outstanding_jobs).cancel(self.job_id)

    def redrive(self, outputs_only: bool = False) -> RedriveReport:
        """Begin again each image that ended PARTIAL or FAILED; with ``outputs_only`` no tile is done again.

        Raises:
            JobNotFoundError: the job does not exist.
        """
        redriver = JobRedriver(self._client.job_table, self._client.outstanding_jobs)
        return redriver.redrive(self.job_id, outputs_only=outputs_only)


def _features_of(body: bytes, result_format: str) -> list[dict[str, Any]]:
    if result_format == OutputFormat.GEOJSONSEQ:
        return [orjson.loads(line) for line in body.splitlines() if line]
    features: list[dict[str, Any]] = orjson.loads(body)["features"]
    return features
