import dataclasses
import json
import string
from decimal import Decimal

import pytest
import shapely
import structlog
from hypothesis import given
from hypothesis import strategies as st

from aws.osml.model_runner.api import ImageRequest, ModelInvokeMode, job_id_of, parse_image_request_message
from aws.osml.model_runner.api.exceptions import InvalidImageRequestException
from aws.osml.model_runner.api.image_url import public_url
from aws.osml.model_runner.api.post_processing import (
    FeatureDistillationNMS,
    FeatureDistillationNone,
    FeatureDistillationSeam,
    FeatureDistillationSoftNMS,
    MRPostProcessing,
)
from aws.osml.model_runner.api.region_request import RegionRequest
from aws.osml.model_runner.common.typing import ImageCompression, ImageFormats
from aws.osml.model_runner.database.job_table import JobItem, request_row
from examples import examples
from malformed_requests import GOOD, MALFORMED, changed, without

MINIMAL = {
    "jobId": "job-1",
    "imageUrls": ["s3://images/scene.tif"],
    "imageProcessor": {"name": "centerpoint"},
    "outputs": [{"type": "S3", "bucket": "results"}],
}


def parse_one(**fields):
    (request,) = parse_image_request_message(changed(**fields))
    return request


def problems_in(body):
    with pytest.raises(InvalidImageRequestException) as refusal:
        parse_image_request_message(body)
    return {problem.field: problem for problem in refusal.value.problems}


@pytest.mark.parametrize(("body", "fields"), [row[1:] for row in MALFORMED], ids=[row[0] for row in MALFORMED])
def test_malformed_request_is_refused_with_every_wrong_field(body, fields):
    with pytest.raises(InvalidImageRequestException) as refusal:
        parse_image_request_message(body)
    problems = refusal.value.problems
    assert {problem.field for problem in problems} == fields
    assert len(problems) == len(fields)
    for problem in problems:
        assert problem.field in str(refusal.value)
        assert len(problem.value) <= 80
        assert problem.value.isprintable()
        assert problem.expectation
        assert "Model" not in problem.expectation.split("'")[0]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("featureProperties", [{"note": "x" * 17_000}]),
        ("featureProperties", [{"note": "\N{SATELLITE}" * 5_000}]),
        ("imageProcessorParameters", {"CustomAttributes": "x" * 66_000}),
        ("imageProcessorParameters", {"numbers": [1e15] * 5_000}),
        ("outputs", [{"type": "S3", "bucket": "results", "prefix": "p" * 500}] * 200),
    ],
)
def test_field_that_no_row_or_message_could_hold_is_refused_by_name(field, value):
    problems = problems_in(changed(**{field: value}))
    assert list(problems) == [field]
    assert "bytes as stored (it has " in problems[field].expectation


def test_largest_request_fits_rows_and_region_messages():
    satellite = "\N{SATELLITE}"
    fields = {
        "jobId": "\N{GREEK SMALL LETTER OMEGA}" * 128,
        "imageUrls": ["s3://images/" + "\N{GREEK SMALL LETTER OMEGA}" * 500],
        "imageProcessorParameters": {"CustomAttributes": satellite * 16_000},
        "featureProperties": [{"note": satellite * 4_000}],
        "outputs": [{"type": "S3", "bucket": "results", "prefix": satellite * 120}] * 100,
        "regionOfInterest": shapely.Point(0, 0).buffer(10, quad_segs=250).wkt,
    }
    (request,) = parse_image_request_message(json.dumps(GOOD | fields, ensure_ascii=False))
    body = changed(imageProcessorParameters={"CustomAttributes": satellite * 16_000})
    assert row_bytes(request_row(request, 0, body=body)) < 400 * 1024
    assert row_bytes(JobItem.from_image_request(request).to_put()) < 300 * 1024
    region = RegionRequest(request.get_shared_values(), region_id=f"(99999, 99999)(9999, 9999)-{request.job_id}")
    assert len(json.dumps(region.to_message())) < 256 * 1024


def row_bytes(row):
    return len(json.dumps(row, ensure_ascii=False, default=lambda value: "=" * len(value)).encode())


@pytest.mark.parametrize(
    "body",
    [
        changed(featureProperties=[1] * 80_000),
        changed(outputs=[{}] * 60_000),
        changed(postProcessing=[{}] * 60_000),
        changed(imageUrls=[1] * 80_000),
        changed(jobName=[float("nan")] * 40_000),
        changed(jobName="X").replace('"X"', '["' + '\\ud800","' * 20_000 + '"]'),
        "{" + ",".join(f'"{number}":0,"{number}":0' for number in range(12_000)) + "}",
    ],
)
def test_request_with_many_problems_is_refused_by_few(body):
    """Each problem takes time, memory and space in logs, and a message has room for tens of thousands."""
    assert len(body) < 256 * 1024
    with pytest.raises(InvalidImageRequestException) as refusal:
        parse_image_request_message(body)
    assert len(refusal.value.problems) <= 1_000
    assert len(str(refusal.value)) < 20_000


def test_there_are_enough_kinds_of_malformed_requests():
    assert len(MALFORMED) >= 45
    assert len({row[0] for row in MALFORMED}) == len(MALFORMED)


def test_defaults_are_real():
    (request,) = parse_image_request_message(json.dumps(MINIMAL))
    assert request == ImageRequest(
        job_id="job-1",
        image_id="job-1:s3://images/scene.tif",
        image_url="s3://images/scene.tif",
        outputs=[{"type": "S3", "bucket": "results", "prefix": ""}],
        model_name="centerpoint",
        model_invoke_mode=ModelInvokeMode.SM_ENDPOINT,
        tile_size=(1024, 1024),
        tile_overlap=(50, 50),
        tile_format=ImageFormats.NITF,
        tile_compression=ImageCompression.NONE,
        post_processing=[MRPostProcessing(algorithm=FeatureDistillationSeam())],
        request_sha256=request.request_sha256,
    )
    assert request.is_valid()


def test_null_and_empty_text_mean_absent():
    optional = dict.fromkeys(
        [
            "imageReadRole",
            "imageProcessorParameters",
            "imageProcessorTileSize",
            "imageProcessorTileOverlap",
            "imageProcessorTileFormat",
            "imageProcessorTileCompression",
            "regionOfInterest",
            "featureProperties",
            "postProcessing",
            "outputBucket",
            "outputPrefix",
            "jobName",
        ]
    )
    processor = {"name": "centerpoint", "type": None, "assumedRole": None}
    outputs = [{"type": "S3", "bucket": "results", "prefix": None, "role": None}]
    nulls = json.dumps(MINIMAL | optional | {"imageProcessor": processor, "outputs": outputs})
    blanks = json.dumps(
        MINIMAL
        | {"imageReadRole": "", "imageProcessorTileFormat": "", "imageProcessorTileCompression": "", "outputBucket": ""}
        | {"regionOfInterest": "", "postProcessing": [], "imageProcessor": {"name": "centerpoint", "type": ""}}
    )
    (expected,) = parse_image_request_message(json.dumps(MINIMAL))
    for body in (nulls, blanks):
        (request,) = parse_image_request_message(body)
        assert dataclasses.replace(request, request_sha256=expected.request_sha256) == expected


@pytest.mark.parametrize(
    ("given_size", "size"), [(512, 512), ("512", 512), (" 512 ", 512), (512.9, 512), ("8192", 8192), (16, 16)]
)
def test_tile_size_is_number_or_its_digits(given_size, size):
    assert parse_one(imageProcessorTileSize=given_size, imageProcessorTileOverlap=0).tile_size == (size, size)


@pytest.mark.parametrize("overlap", [0, "0", 0.0, 0.9])
def test_overlap_may_be_zero(overlap):
    assert parse_one(imageProcessorTileOverlap=overlap).tile_overlap == (0, 0)


def test_default_overlap_must_fit_tile_too():
    body = json.loads(without("imageProcessorTileOverlap")) | {"imageProcessorTileSize": 32}
    assert problems_in(json.dumps(body))["imageProcessorTileOverlap"].value == "absent"


def test_older_output_form():
    body = json.loads(without("outputs")) | {"outputBucket": "results", "outputPrefix": "old/"}
    (request,) = parse_image_request_message(json.dumps(body))
    assert request.outputs == [{"type": "S3", "bucket": "results", "prefix": "old/"}]


def test_newer_output_form_wins_over_older_one():
    request = parse_one(outputBucket="elsewhere", outputPrefix="x")
    assert request.outputs == GOOD["outputs"]


def test_outputs_keep_names_of_message():
    role = "arn:aws:iam::123456789012:role/w"
    outputs = [
        {"type": "S3", "bucket": "results", "prefix": "p", "role": role},
        {"type": "Kinesis", "stream": "s", "batchSize": 1000, "assumedRole": role, "partitionKey": "JOB"},
        {"type": "Kinesis", "stream": "s", "batchSize": "10"},
    ]
    assert parse_one(outputs=outputs).outputs == [*outputs[:2], {"type": "Kinesis", "stream": "s", "batchSize": 10}]


@pytest.mark.parametrize(
    ("algorithm", "expected"),
    [
        ({"algorithmType": "NMS"}, FeatureDistillationNMS()),
        ({"algorithmType": "NMS", "iouThreshold": "0.5"}, FeatureDistillationNMS(iou_threshold=0.5)),
        (
            {"algorithmType": "NMS", "iouThreshold": 0.6, "skipBoxThreshold": 0.0001},
            FeatureDistillationNMS(iou_threshold=0.6, skip_box_threshold=0.0001),
        ),
        ({"algorithm_type": "SOFT_NMS"}, FeatureDistillationSoftNMS(skip_box_threshold=0.0001, sigma=0.1)),
        (
            {"algorithmType": "SOFT-NMS", "iou_threshold": 0.4, "skip_box_threshold": 0.01, "sigma": 0.2},
            FeatureDistillationSoftNMS(iou_threshold=0.4, skip_box_threshold=0.01, sigma=0.2),
        ),
        ({"algorithmType": "NONE"}, FeatureDistillationNone()),
    ],
)
def test_post_processing(algorithm, expected):
    request = parse_one(postProcessing=[{"step": "FEATURE_DISTILLATION", "algorithm": algorithm}])
    assert request.get_feature_distillation_option() == [expected]


def test_parameters_and_properties_are_kept_unchanged():
    parameters = {"TargetVariant": "blue", "CustomAttributes": None}
    properties = [{"a": {"b": [1, 2.5, None, "é"]}}, {}]
    request = parse_one(imageProcessorParameters=parameters, featureProperties=properties)
    assert request.model_endpoint_parameters == parameters
    assert request.feature_properties == properties


def test_input_of_model_is_kept_in_row():
    asked = {"bands": [5, "red", 5], "stretch": {"type": "MINMAX", "min": [1, 2, 3], "max": 4.5}, "pixelType": "UINT8"}
    request = parse_one(imageProcessorInput=asked)
    assert request.processor_input == asked | {"stretch": {"type": "MINMAX", "min": [1.0, 2.0, 3.0], "max": 4.5}}
    assert ImageRequest.from_item(json.loads(json.dumps(request.to_item()))) == request
    plain = parse_one()
    assert plain.processor_input is None
    assert "processor_input" not in plain.to_item()
    assert not [name for name, value in vars(JobItem.from_image_request(plain)).items() if value and "pixel" in name]


def test_region_of_interest_is_parsed():
    assert parse_one(regionOfInterest="POLYGON((0 0, 2 0, 2 2, 0 2, 0 0))").roi.area == 4


def test_unknown_keys_are_logged_by_path_and_ignored():
    outputs = [{"type": "S3", "bucket": "results", "assumedRole": "arn:x"}]
    with structlog.testing.capture_logs() as logs:
        request = parse_one(colour="blue", outputs=outputs, imageProcessor={"name": "m", "kind": 1})
    assert request.is_valid()
    (event,) = logs
    assert event["event"] == "image_request.unknown_keys"
    assert event["log_level"] == "warning"
    assert event["keys"] == ["colour", "image_processor.kind", "outputs.assumedRole"]


def test_known_request_logs_no_warning():
    with structlog.testing.capture_logs() as logs:
        parse_image_request_message(changed())
    assert logs == []


def test_several_images_become_several_requests():
    urls = ["s3://images/a/scene.tif", "s3://images/b/scene.tif", "s3://images/c/scene.tif-2", "s3://images/o d%.ntf"]
    urls += ["s3://images/e?.tif", "https://host/f.tif?v=1/2"]
    requests = parse_image_request_message(changed(imageUrls=urls, jobId="team/job 1"))
    assert [request.image_url for request in requests] == urls
    assert [request.image_id for request in requests] == [f"team/job 1:{public_url(url)}" for url in urls]
    assert "v=1" not in requests[-1].image_id
    assert [request.result_name for request in requests] == [
        "scene.tif",
        "scene.tif-2",
        "scene.tif-2-2",
        "o d%.ntf",
        "e?.tif",
        "f.tif",
    ]
    assert {request.job_id for request in requests} == {"team/job 1"}


@given(st.lists(st.sampled_from(["x.tif", "x.tif-2", "x.tif-3", "y"]), min_size=2, max_size=8))
def test_result_names_are_unique(names):
    urls = [f"s3://images/{number}/{name}" for number, name in enumerate(names)]
    requests = parse_image_request_message(changed(imageUrls=urls))
    assert len({request.result_name for request in requests}) == len(urls)


def test_fingerprint_ignores_layout_and_sees_content():
    plain = parse_image_request_message(changed())[0].request_sha256
    spread = json.dumps(dict(reversed(GOOD.items())), indent=3)
    assert parse_image_request_message(spread.encode())[0].request_sha256 == plain
    assert parse_one(imageProcessorTileSize=513).request_sha256 != plain
    assert len(plain) == 64


def test_from_external_message_reads_first_image():
    request = ImageRequest.from_external_message(GOOD | {"imageUrls": ["s3://images/a.tif", "s3://images/b.tif"]})
    assert request.image_url == "s3://images/a.tif"
    assert request.result_name == "a.tif"


def test_from_external_message_refuses_values_outside_json():
    deep = []
    for _ in range(5_000):
        deep = [deep]
    with pytest.raises(InvalidImageRequestException) as refusal:
        ImageRequest.from_external_message(GOOD | {"featureProperties": [{"deep": deep}]})
    assert "32 levels" in str(refusal.value)


def test_shared_values_have_order_of_region_message():
    assert list(parse_one().get_shared_values()) == [
        "image_id",
        "job_id",
        "image_url",
        "image_read_role",
        "model_name",
        "model_invoke_mode",
        "model_endpoint_parameters",
        "model_invocation_role",
        "tile_size",
        "tile_overlap",
        "tile_format",
        "tile_compression",
    ]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("job_id", ""),
        ("image_id", ""),
        ("image_url", ""),
        ("model_name", ""),
        ("model_invoke_mode", ModelInvokeMode.NONE),
        ("tile_size", (512,)),
        ("tile_size", (512, 0)),
        ("tile_size", None),
        ("tile_size", (512.0, 512)),
        ("tile_overlap", (64, 512)),
        ("tile_overlap", (-1, 0)),
        ("tile_format", "BMP"),
        ("tile_compression", "ZIP"),
        ("image_read_role", "reader"),
        ("model_invocation_role", "invoker"),
        ("outputs", []),
        ("outputs", [{"type": "FTP", "bucket": "b"}]),
        ("outputs", [{"type": "S3", "prefix": "p"}]),
        ("outputs", [{"type": "Kinesis", "stream": ""}]),
        ("post_processing", [MRPostProcessing(), MRPostProcessing()]),
    ],
)
def test_request_with_wrong_value_is_not_valid(field, value):
    request = parse_one()
    assert request.is_valid()
    assert not dataclasses.replace(request, **{field: value}).is_valid()


def test_empty_request_is_not_valid():
    assert not ImageRequest().is_valid()


ITEM_OF_OLDER_WORKERS = {
    "job_id": "j",
    "image_id": "j:s3://b/k",
    "image_url": "s3://b/k",
    "model_name": "m",
    "model_invoke_mode": "SM_ENDPOINT",
    "tile_size": [Decimal(512), Decimal(256)],
    "tile_overlap": [Decimal(0), Decimal(8)],
    "tile_format": "NITF",
    "tile_compression": "NONE",
    "outputs": [{"type": "Kinesis", "stream": "s", "batchSize": Decimal(500)}],
    "feature_properties": [{"a": "b"}],
    "post_processing": [
        {"step": "FEATURE_DISTILLATION", "algorithm": {"algorithm_type": "NMS", "iou_threshold": Decimal("0.3")}}
    ],
}


def test_items_of_older_workers_are_read():
    request = ImageRequest.from_item(ITEM_OF_OLDER_WORKERS)
    assert request.tile_size == (512, 256)
    assert request.outputs[0]["batchSize"] == 500
    assert request.feature_properties == [{"a": "b"}]
    assert request.get_feature_distillation_option() == [FeatureDistillationNMS(iou_threshold=0.3)]
    assert request.is_valid()


def test_item_without_field_gets_default():
    short = {
        name: value for name, value in ITEM_OF_OLDER_WORKERS.items() if name not in ("post_processing", "tile_size")
    }
    request = ImageRequest.from_item(short)
    assert request.tile_size == (1024, 1024)
    assert request.get_feature_distillation_option() == [FeatureDistillationSeam()]


@pytest.mark.parametrize(
    "change",
    [
        {"tile_size": 5},
        {"tile_size": ["a", "b"]},
        {"model_invoke_mode": "CARRIER_PIGEON"},
        {"roi": "POLYGON(("},
        {"feature_properties": "{"},
        {"outputs": [{"batchSize": "x"}, {"batchSize": []}]},
        {"post_processing": [{"step": "SORT"}]},
    ],
)
def test_item_that_is_no_request_is_refused(change):
    with pytest.raises(InvalidImageRequestException):
        ImageRequest.from_item(ITEM_OF_OLDER_WORKERS | change)


scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()
json_values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
properties = st.dictionaries(st.text(max_size=8), json_values, max_size=3)
degrees = st.floats(-80, 80, allow_nan=False)
threshold = st.floats(0, 1, allow_nan=False)
regions = st.builds(
    lambda x, y, size: f"POLYGON(({x} {y}, {x + size} {y}, {x + size} {y + size}, {x} {y}))",
    degrees,
    degrees,
    st.floats(1e-6, 9),
)
algorithms = st.fixed_dictionaries(
    {"algorithmType": st.sampled_from(["NMS", "SOFT_NMS", "SOFT-NMS", "NONE"]), "iouThreshold": threshold},
    optional={"skipBoxThreshold": threshold, "sigma": st.floats(1e-6, 100)},
)
job_ids = st.text(string.ascii_letters + string.digits + "._:- é", min_size=1, max_size=128).filter(
    lambda text: text.strip() not in ("", ".", "..")
)
messages = st.fixed_dictionaries(
    {
        "jobId": job_ids,
        "imageUrls": st.lists(
            st.sampled_from(["s3://images/a.tif", "s3://images/b/a.tif", "/data/c.ntf", "https://host/d.png?v=1"]),
            min_size=1,
            unique=True,
        ),
        "imageProcessor": st.fixed_dictionaries(
            {"name": st.just("centerpoint")}, optional={"assumedRole": st.just("arn:aws:iam::1:role/r")}
        ),
        "outputs": st.just(GOOD["outputs"]) | st.just([{"type": "Kinesis", "stream": "s", "batchSize": 7}]),
    },
    optional={
        "imageProcessorTileSize": st.integers(64, 8192),
        "imageProcessorTileOverlap": st.integers(0, 63),
        "imageProcessorTileFormat": st.sampled_from(ImageFormats),
        "imageProcessorTileCompression": st.sampled_from(ImageCompression),
        "imageProcessorParameters": properties,
        "featureProperties": st.lists(properties, max_size=2),
        "regionOfInterest": regions,
        "postProcessing": st.lists(
            st.fixed_dictionaries({"step": st.just("FEATURE_DISTILLATION"), "algorithm": algorithms}), max_size=1
        ),
    },
)


@examples(150)
@given(messages)
def test_request_survives_table(message):
    for request in parse_image_request_message(json.dumps(message)):
        item = request.to_item()
        assert ImageRequest.from_item(item) == request
        assert ImageRequest.from_item(json.loads(json.dumps(item))) == request
        assert request.is_valid()


def numbers_in(value):
    if isinstance(value, dict):
        return [number for item in value.values() for number in numbers_in(item)]
    if isinstance(value, list):
        return [number for item in value for number in numbers_in(item)]
    return [value] if isinstance(value, float) else []


def test_item_holds_no_floats_and_no_unset_value():
    item = parse_one(featureProperties=[{"a": 0.1}], imageProcessorParameters={"b": 0.2}).to_item()
    assert numbers_in(item) == []
    assert None not in item.values()


def cut_and_changed(draw_body, position, replacement):
    at = position % (len(draw_body) + 1)
    return draw_body[:at] + replacement + draw_body[at + len(replacement) :]


@examples(400)
@given(
    st.one_of(
        st.text(),
        st.binary(),
        json_values.map(json.dumps),
        st.builds(cut_and_changed, st.just(changed()), st.integers(0, 10_000), st.text(max_size=4)),
        st.builds(lambda key, value: changed(**{key: value}), st.sampled_from(sorted(GOOD)), json_values),
        st.builds(
            lambda key, value: changed(**{key: value}),
            st.sampled_from(["postProcessing", "regionOfInterest", "featureProperties", "imageProcessorParameters"]),
            json_values | st.lists(st.fixed_dictionaries({"step": json_values, "algorithm": json_values})),
        ),
        st.builds(
            lambda entry: changed(outputs=[entry]),
            st.fixed_dictionaries(
                {"type": st.sampled_from(["S3", "Kinesis"]) | json_values},
                optional=dict.fromkeys(("bucket", "prefix", "role", "stream", "batchSize"), json_values),
            ),
        ),
    )
)
def test_any_body_is_parsed_or_refused(body):
    job_id = job_id_of(body)
    assert job_id is None or (0 < len(job_id) <= 128 and job_id.isprintable())
    requests, refusal = [], None
    try:
        requests = parse_image_request_message(body)
    except InvalidImageRequestException as err:
        refusal = err
    assert all(request.is_valid() for request in requests)
    assert refusal is None or (refusal.problems and str(refusal).isprintable())
    assert bool(requests) != bool(refusal)


@pytest.mark.parametrize(
    ("body", "job_id"),
    [
        (changed(), "job-1"),
        (changed().encode(), "job-1"),
        (changed()[:-10], "job-1"),
        (changed()[:-10].encode() + b"\xff", "job-1"),
        (changed(jobId=5), None),
        (changed(jobId="  "), None),
        (changed(jobId="a\nb\x1b"), "a?b?"),
        (changed(jobId="x" * 200), "x" * 128),
        (without("jobId"), None),
        ("[]", None),
        ("", None),
        ('{"jobId": "unfinished', None),
        ("[" * 100_000 + '"jobId": "deep"', "deep"),
    ],
)
def test_refusal_names_job_id_when_readable(body, job_id):
    assert job_id_of(body) == job_id


def test_problem_shows_no_credentials_and_no_bodies():
    url = "ftp://host/a.tif?X-Amz-Signature=canary"
    problems = problems_in(changed(imageUrls=[url], outputs={"secret": "canary"}, imageReadRole="AKIAIOSFODNN7EXAMPLE"))
    assert not any("canary" in str(problem) or "AKIA" in str(problem) for problem in problems.values())
    assert problems["outputs"].value == "an object of 1 keys"


def test_value_under_credential_name_is_not_shown():
    problems = problems_in(changed(featureProperties=[{"SecretAccessKey": "canary\ud800"}]))
    assert problems["featureProperties[0].SecretAccessKey"].value == '"[redacted]"'


def test_unknown_keys_are_shown_short_and_printable():
    (name,) = problems_in(changed(featureProperties=[{"a\n" + "k" * 500: float("nan")}]))
    assert name.startswith("featureProperties[0].a\\nkkk")
    assert len(name) < 100
