"""The S3 sink against a real server: a result is there whole, once, and as the request asked for it."""

import base64
import hashlib
import json
from collections.abc import Iterator
from typing import Any

import pytest

from aws.osml.model_runner.api.sink import OutputFormat
from aws.osml.model_runner.aws.clients import default_clients
from aws.osml.model_runner.sink import Delivery, InvalidS3BucketException, S3Sink, SinkError, SinkPermanentError
from aws.osml.model_runner.sink.geoparquet import REQUIREMENT
from aws_faults import answering, losing_first_reply, never_sending, single_try_client, xml_error

BUCKET = "s3-sink-results"
FEATURES = [{"type": "Feature", "geometry": None, "properties": {"n": n, "name": "é"}, "id": str(n)} for n in range(3)]


@pytest.fixture(scope="session")
def s3(emulator: Any) -> Any:
    client = emulator.client("s3")
    client.create_bucket(Bucket=BUCKET, CreateBucketConfiguration={"LocationConstraint": "us-west-2"})
    return client


@pytest.fixture
def s3_once(s3: Any, emulator: Any) -> Iterator[Any]:
    client = single_try_client(emulator, "s3")
    yield client
    client.close()


def delivery(count: int = 3, job_id: str = "job-1", **options: Any) -> Delivery:
    features = [json.dumps({"type": "Feature", "n": n, "pad": "x" * 100}).encode() for n in range(count)]
    return Delivery.of(job_id, options.pop("result_name", ""), features, [str(n) for n in range(count)], **options)


def stored(s3: Any, key: str) -> tuple[dict[str, Any], bytes]:
    answer = s3.get_object(Bucket=BUCKET, Key=key)
    return answer, answer["Body"].read()


def uploads(s3: Any, prefix: str) -> list[str]:
    keys = [upload["Key"] for upload in s3.list_multipart_uploads(Bucket=BUCKET).get("Uploads", [])]
    return [key for key in keys if key.startswith(prefix)]


def keys(s3: Any, prefix: str) -> list[str]:
    return [entry["Key"] for entry in s3.list_objects_v2(Bucket=BUCKET, Prefix=prefix).get("Contents", [])]


def test_write_puts_feature_collection_under_jobs_name(s3: Any) -> None:
    sink = S3Sink(BUCKET, "written", client=s3)
    assert sink.write("job-1", FEATURES)
    answer, body = stored(s3, "written/job-1.geojson")
    assert json.loads(body) == {"type": "FeatureCollection", "features": FEATURES}
    assert answer["ContentType"] == "application/geo+json"
    assert answer["Metadata"]["job-id"] == "job-1"
    assert answer["Metadata"]["feature-count"] == "3"


def test_no_features_are_empty_collection(s3: Any) -> None:
    assert S3Sink(BUCKET, "empty", client=s3).write("job", [])
    assert json.loads(stored(s3, "empty/job.geojson")[1]) == {"type": "FeatureCollection", "features": []}


@pytest.mark.parametrize("count", [3, 200])
def test_every_call_names_account_that_has_to_own_bucket(s3: Any, count: int) -> None:
    sent: list[dict[str, str]] = []

    def watch(params: dict[str, Any], **_: Any) -> None:
        sent.append(dict(params["headers"]))

    s3.meta.events.register("before-call.s3", watch)
    sink = S3Sink(BUCKET, "owned", client=s3, part_bytes=10_000, expected_owner="000000000000")
    sink.deliver(delivery(count))
    s3.meta.events.unregister("before-call.s3", watch)
    assert len(sent) == (2 if count == 3 else 6)
    assert {headers.get("x-amz-expected-bucket-owner") for headers in sent} == {"000000000000"}


def test_result_carries_its_checksum(s3: Any) -> None:
    sent: list[dict[str, str]] = []

    def watch(params: dict[str, Any], **_: Any) -> None:
        sent.append(dict(params["headers"]))

    s3.meta.events.register("before-call.s3.PutObject", watch)
    S3Sink(BUCKET, "sum", client=s3).deliver(delivery())
    s3.meta.events.unregister("before-call.s3.PutObject", watch)
    body = stored(s3, "sum/job-1.geojson")[1]
    assert sent[0]["x-amz-checksum-sha256"] == base64.b64encode(hashlib.sha256(body).digest()).decode()
    assert "x-amz-acl" not in sent[0]


def test_acl_is_set_only_when_requested(s3: Any) -> None:
    sent: list[str | None] = []

    def watch(params: dict[str, Any], **_: Any) -> None:
        sent.append(params["headers"].get("x-amz-acl"))

    s3.meta.events.register("before-call.s3.PutObject", watch)
    S3Sink(BUCKET, "acl", acl="bucket-owner-full-control", client=s3).deliver(delivery())
    S3Sink(BUCKET, "acl", client=s3).deliver(delivery())
    s3.meta.events.unregister("before-call.s3.PutObject", watch)
    assert sent == ["bucket-owner-full-control", None]


def test_named_result_is_in_directory_of_job(s3: Any) -> None:
    S3Sink(BUCKET, "named/", client=s3).deliver(delivery(result_name="image one.tif"))
    assert keys(s3, "named/") == ["named/job-1/image%20one.tif.geojson"]


def test_metadata_of_delivery_is_kept(s3: Any) -> None:
    S3Sink(BUCKET, "meta", client=s3).deliver(delivery(job_id="jöb", metadata={"agg-fence": "7"}))
    (key,) = keys(s3, "meta/")
    assert stored(s3, key)[0]["Metadata"] == {"job-id": "j%C3%B6b", "feature-count": "3", "agg-fence": "7"}


@pytest.mark.parametrize("count", [0, 1, 60_000, 120_001])
def test_in_parts_or_in_one_piece_bytes_are_same(s3: Any, count: int) -> None:
    heard: list[int] = []
    sink = S3Sink(BUCKET, "large", client=s3, part_bytes=5 * 1024 * 1024)
    sink.deliver(delivery(count), heard.append)
    body = stored(s3, "large/job-1.geojson")[1]
    assert body == b'{"type":"FeatureCollection","features":[' + b",".join(delivery(count).bodies()) + b"]}"
    assert heard == [], "a result that is there whole or not at all has no progress to resume from"
    assert uploads(s3, "large/") == []


def test_result_in_parts_has_same_options(s3: Any) -> None:
    S3Sink(BUCKET, "parts", client=s3, part_bytes=5 * 1024 * 1024).deliver(delivery(60_000))
    answer = s3.head_object(Bucket=BUCKET, Key="parts/job-1.geojson")
    assert answer["ContentType"] == "application/geo+json"
    assert answer["Metadata"] == {"job-id": "job-1"}, "features are not counted before the upload begins"


def test_failed_part_leaves_no_upload(s3: Any) -> None:
    sink = S3Sink(BUCKET, "broken", client=s3, part_bytes=5 * 1024 * 1024)
    with answering(s3, "UploadPart", None, xml_error("AccessDenied", 403)), pytest.raises(InvalidS3BucketException):
        sink.deliver(delivery(120_000))
    assert keys(s3, "broken/") == []
    assert uploads(s3, "broken/") == []


def test_abort_that_fails_hides_no_error(s3: Any) -> None:
    sink = S3Sink(BUCKET, "stuck", client=s3, part_bytes=5 * 1024 * 1024)
    with (
        answering(s3, "UploadPart", xml_error("AccessDenied", 403)),
        answering(s3, "AbortMultipartUpload", xml_error("AccessDenied", 403)),
        pytest.raises(InvalidS3BucketException),
    ):
        sink.deliver(delivery(60_000))


def test_lost_reply_does_no_harm(s3: Any) -> None:
    with losing_first_reply(s3, "PutObject") as lost:
        S3Sink(BUCKET, "lost", client=s3).deliver(delivery())
    assert len(lost) == 1
    assert keys(s3, "lost/") == ["lost/job-1.geojson"]


@pytest.mark.parametrize(
    ("code", "status", "raised"),
    [
        ("AccessDenied", 403, InvalidS3BucketException),
        ("NoSuchBucket", 404, InvalidS3BucketException),
        ("PermanentRedirect", 301, InvalidS3BucketException),
        ("InvalidArgument", 400, SinkPermanentError),
        ("EntityTooLarge", 400, SinkPermanentError),
        ("InternalError", 500, SinkError),
        ("SlowDown", 503, SinkError),
        ("ThrottlingException", 400, SinkError),
        ("ExpiredToken", 400, SinkError),
        ("ConditionalRequestConflict", 409, SinkError),
        ("PreconditionFailed", 412, SinkError),
    ],
)
def test_classes_of_errors(s3_once: Any, code: str, status: int, raised: type[SinkError]) -> None:
    client = s3_once
    with answering(client, "PutObject", xml_error(code, status)), pytest.raises(SinkError) as caught:
        S3Sink(BUCKET, "errors", client=client).deliver(delivery())
    assert type(caught.value) is raised
    assert caught.value.can_retry == (raised is SinkError)
    assert BUCKET in str(caught.value)
    assert code in str(caught.value)


def test_service_that_is_away_may_come_back(s3_once: Any) -> None:
    with never_sending(s3_once, "PutObject"), pytest.raises(SinkError) as caught:
        S3Sink(BUCKET, "away", client=s3_once).deliver(delivery())
    assert caught.value.can_retry


def test_bucket_that_is_missing(s3: Any) -> None:
    sink = S3Sink("no-such-bucket-here", "p", client=s3)
    assert sink.validate_s3_bucket() is False
    assert sink.write("job", FEATURES) is False
    with pytest.raises(InvalidS3BucketException, match="no-such-bucket-here"):
        sink.deliver(delivery())


def test_bucket_name_that_is_none(s3: Any) -> None:
    sink = S3Sink("not a bucket", "p", client=s3)
    assert sink.validate_s3_bucket() is False
    with pytest.raises(InvalidS3BucketException):
        sink.deliver(delivery())


def test_write_returns_false_when_it_fails(s3: Any) -> None:
    assert S3Sink(BUCKET, "/odd", client=s3).write("job", FEATURES) is False


def test_sink_has_name_and_mode(s3: Any) -> None:
    sink = S3Sink(BUCKET, "p", client=s3)
    assert (S3Sink.name(), str(sink), sink.bucket, sink.prefix) == ("S3", "S3 AGGREGATE", BUCKET, "p")
    assert sink.validate_s3_bucket() is True


@pytest.fixture
def own_clients(emulator: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name, value in emulator.environment.items():
        monkeypatch.setenv(name, value)
    default_clients.cache_clear()
    yield
    default_clients.cache_clear()


def test_without_client_processs_own_is_used(s3: Any, own_clients: None) -> None:
    assert S3Sink(BUCKET, "own").write("job", FEATURES)
    assert keys(s3, "own/") == ["own/job.geojson"]


class TestCheck:
    """A result's properties before it exists."""

    def test_check_of_bucket_leaves_no_object(self, s3: Any) -> None:
        assert S3Sink(BUCKET, "checked", client=s3).check("job-1") == []
        assert (keys(s3, "checked"), uploads(s3, "checked")) == ([], [])

    def test_bucket_that_is_missing_is_named(self, s3: Any) -> None:
        (problem,) = S3Sink("no-such-bucket-here", "p", client=s3).check("job-1")
        assert str(problem) == 'bucket="no-such-bucket-here": a bucket that exists (NoSuchBucket)'

    @pytest.mark.parametrize(
        ("code", "status"), [("AccessDenied", 403), ("AllAccessDisabled", 403), ("PermanentRedirect", 301)]
    )
    def test_bucket_that_may_not_be_written_is_named(self, s3: Any, code: str, status: int) -> None:
        with answering(s3, "CreateMultipartUpload", xml_error(code, status)):
            (problem,) = S3Sink(BUCKET, "denied", client=s3).check("job-1")
        assert problem.field == "bucket"
        assert code in problem.expectation

    @pytest.mark.parametrize(("code", "status"), [("SlowDown", 503), ("InternalError", 500), ("ExpiredToken", 400)])
    def test_check_passes_when_service_cannot_respond(self, s3_once: Any, code: str, status: int) -> None:
        answer = answering(s3_once, "CreateMultipartUpload", xml_error(code, status))
        with answer, pytest.raises(SinkError) as caught:
            S3Sink(BUCKET, "away", client=s3_once).check("job-1")
        assert caught.value.can_retry

    def test_check_passes_when_service_is_unavailable(self, s3_once: Any) -> None:
        with never_sending(s3_once, "CreateMultipartUpload"), pytest.raises(SinkError) as caught:
            S3Sink(BUCKET, "away", client=s3_once).check("job-1")
        assert caught.value.can_retry

    def test_check_passes_when_key_may_only_encrypt(self, s3: Any) -> None:
        """A result that is one put needs no more."""
        body = b"<Error><Code>AccessDenied</Code><Message>not authorized to perform: kms:Decrypt</Message></Error>"
        with answering(s3, "CreateMultipartUpload", (403, {}, body)), pytest.raises(SinkError):
            S3Sink(BUCKET, "keys", client=s3).check("job-1")

    def test_check_passes_when_upload_may_not_be_aborted(self, s3: Any) -> None:
        with answering(s3, "AbortMultipartUpload", xml_error("AccessDenied", 403)):
            assert S3Sink(BUCKET, "stays", client=s3).check("job-1") == []
        assert keys(s3, "stays") == []

    def test_sink_refuses_escaping_prefix_and_missing_library_at_once(
        self, s3: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)
        problems = S3Sink(BUCKET, "../up", client=s3, result_format=OutputFormat.GEOPARQUET).check("job-1")
        assert [problem.field for problem in problems] == ["format", "prefix"]
        assert f"pip install '{REQUIREMENT}'" in problems[0].expectation


def test_result_of_another_job_is_never_replaced(s3: Any) -> None:
    """The image i1.tif of job J below out, and the job i1.tif below out/J, have one key."""
    first = S3Sink(BUCKET, "taken", client=s3)
    other = S3Sink(BUCKET, "taken/J", client=s3)
    first.deliver(delivery(job_id="J", result_name="i1.tif"))
    first.deliver(delivery(job_id="J", result_name="i1.tif", count=2))
    _, body = stored(s3, "taken/J/i1.tif.geojson")
    assert [problem.field for problem in other.check("i1.tif")] == ["prefix"]
    with pytest.raises(SinkPermanentError, match="is the result of the job"):
        other.deliver(delivery(job_id="i1.tif"))
    assert stored(s3, "taken/J/i1.tif.geojson")[1] == body
    assert first.check("J", "i1.tif") == []


@pytest.mark.parametrize(("count", "call"), [(3, "PutObject"), (60_000, "CompleteMultipartUpload")])
def test_result_that_another_job_writes_meanwhile_stays(s3: Any, s3_once: Any, count: int, call: str) -> None:
    prefix = f"raced-{count}"

    def write_as_another(**_: Any) -> None:
        S3Sink(BUCKET, f"{prefix}/J", client=s3).deliver(delivery(job_id="i1.tif"))

    late = S3Sink(BUCKET, prefix, client=s3_once, part_bytes=5 * 1024 * 1024)
    s3_once.meta.events.register_first(f"before-call.s3.{call}", write_as_another)
    with pytest.raises(SinkError) as caught:
        late.deliver(delivery(count, job_id="J", result_name="i1.tif"))
    s3_once.meta.events.unregister(f"before-call.s3.{call}", write_as_another)
    with pytest.raises(SinkPermanentError, match="is the result of the job"):
        late.deliver(delivery(count, job_id="J", result_name="i1.tif"))
    assert isinstance(caught.value, SinkPermanentError) or caught.value.can_retry
    assert stored(s3, f"{prefix}/J/i1.tif.geojson")[0]["Metadata"]["job-id"] == "i1.tif"
    assert uploads(s3, prefix) == []


def test_result_that_is_deleted_meanwhile_is_written_again(s3: Any, s3_once: Any) -> None:
    sink = S3Sink(BUCKET, "deleted", client=s3_once)
    sink.deliver(delivery())

    def delete(**_: Any) -> None:
        s3.delete_object(Bucket=BUCKET, Key="deleted/job-1.geojson")
        s3_once.meta.events.unregister("before-call.s3.PutObject", delete)

    s3_once.meta.events.register_first("before-call.s3.PutObject", delete)
    sink.deliver(delivery())
    assert keys(s3, "deleted/") == ["deleted/job-1.geojson"]


def test_sink_that_may_not_read_still_writes(s3: Any, s3_once: Any) -> None:
    with answering(s3_once, "HeadObject", xml_error("AccessDenied", 403)):
        S3Sink(BUCKET, "unread", client=s3_once).deliver(delivery())
    assert keys(s3, "unread") == ["unread/job-1.geojson"]
