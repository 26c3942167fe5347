import contextlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aws.osml.model_runner.api import (
    ImageRequest,
    ModelInvokeMode,
    RegionRequest,
    get_image_path,
    parse_region_request_message,
    shared_properties_are_valid,
    validate_image_path,
)
from aws.osml.model_runner.api.exceptions import InvalidImageURLException, InvalidRegionRequestException
from aws.osml.model_runner.common.typing import ImageCompression, ImageDimensions, ImageFormats, ImageRegion
from examples import examples

MESSAGE = {
    "image_id": "job-1:s3://images/scene.tif",
    "job_id": "job-1",
    "image_url": "s3://images/scene.tif",
    "image_read_role": "",
    "model_name": "centerpoint",
    "model_invoke_mode": "SM_ENDPOINT",
    "model_endpoint_parameters": None,
    "model_invocation_role": "",
    "tile_size": [512, 512],
    "tile_overlap": [64, 64],
    "tile_format": "GTIFF",
    "tile_compression": "NONE",
    "region_bounds": [[0, 344], [512, 512]],
    "region_id": "(0, 344)(512, 512)-job-1",
    "image_extension": "TIFF",
}


def test_a_message_is_read_and_written_unchanged():
    request = parse_region_request_message(json.dumps(MESSAGE))
    assert request.to_message() == MESSAGE
    assert list(request.to_message()) == list(MESSAGE)
    assert request.region_bounds == ((0, 344), (512, 512))
    assert isinstance(request.region_bounds, ImageRegion)
    assert isinstance(request.tile_size, ImageDimensions)
    assert request.model_invoke_mode is ModelInvokeMode.SM_ENDPOINT
    assert request.tile_format is ImageFormats.GTIFF


def test_a_message_of_older_workers_is_read():
    older = {name: value for name, value in MESSAGE.items() if name != "model_endpoint_parameters"}
    request = parse_region_request_message(json.dumps(older | {"colour": "blue"}).encode())
    assert request.model_endpoint_parameters is None
    assert not hasattr(request, "colour")


def test_a_region_takes_the_shared_values_of_its_image():
    image = ImageRequest.from_external_message(
        {
            "jobId": "job-1",
            "imageUrls": ["s3://images/scene.tif"],
            "imageProcessor": {"name": "centerpoint"},
            "imageProcessorParameters": {"TargetVariant": "blue"},
            "outputs": [{"type": "S3", "bucket": "results"}],
        }
    )
    region = RegionRequest(
        image.get_shared_values(),
        region_bounds=((0, 0), (10, 20)),
        region_id="(0, 0)(10, 20)-job-1",
        image_extension="NITF",
    )
    assert region.is_valid()
    assert region.image_id == image.image_id
    assert region.tile_size == (1024, 1024)
    assert parse_region_request_message(json.dumps(region.to_message())) == region


def test_later_values_win_and_requests_compare_by_value():
    first = RegionRequest(MESSAGE, {"job_id": "b"}, job_id="c")
    assert first.job_id == "c"
    assert first == RegionRequest(MESSAGE, job_id="c")
    assert first != RegionRequest(MESSAGE)
    assert first != "c"
    assert "(0, 344)" in repr(first)


def test_an_empty_request_has_the_known_defaults_and_is_not_valid():
    request = RegionRequest()
    assert (request.job_id, request.tile_size, request.tile_overlap) == ("", (1024, 1024), (50, 50))
    assert request.region_bounds == ((0, 0), (0, 0))
    assert not request.is_valid()


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("region_bounds", [[0, 0], [0, 0]]),
        ("region_bounds", [[-1, 0], [5, 5]]),
        ("region_bounds", None),
        ("region_bounds", [[0, 0]]),
        ("tile_size", [10]),
        ("tile_size", "512"),
        ("tile_overlap", [512, 0]),
        ("model_invoke_mode", "NONE"),
        ("model_invoke_mode", "PIGEON"),
        ("tile_format", "BMP"),
        ("job_id", ""),
        ("image_read_role", "reader"),
    ],
)
def test_a_wrong_value_makes_a_region_invalid(field, value):
    request = RegionRequest(MESSAGE, {field: value})
    assert not request.is_valid()
    assert field in request.to_message()


def test_absent_roles_are_no_roles():
    request = RegionRequest(MESSAGE, image_read_role=None, model_invocation_role=None)
    assert shared_properties_are_valid(request)


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"job_id": None}, "job_id"),
        ({"job_id": ""}, "job_id"),
        ({"image_id": 5}, "image_id"),
        ({"tile_size": 512}, "tile_size"),
        ({"tile_size": [512]}, "tile_size"),
        ({"tile_size": ["512", "512"]}, "tile_size[0]"),
        ({"tile_format": "BMP"}, "tile_format"),
        ({"model_invoke_mode": "PIGEON"}, "model_invoke_mode"),
        ({"model_endpoint_parameters": []}, "model_endpoint_parameters"),
        ({"region_bounds": [[0, 0], [5, "5"]]}, "region_bounds[1][1]"),
        ({"region_bounds": [[0, 0], [0, 5]]}, "region_bounds[1][0]"),
        ({"region_bounds": [[-5, 0], [5, 5]]}, "region_bounds[0][0]"),
        ({"tile_overlap": [600, 0]}, "tile_overlap"),
        ({"model_invoke_mode": "NONE"}, "model_invoke_mode"),
        ({"image_read_role": "reader"}, "image_read_role"),
    ],
)
def test_a_wrong_message_is_refused_by_field(change, field):
    with pytest.raises(InvalidRegionRequestException) as refusal:
        parse_region_request_message(json.dumps(MESSAGE | change))
    assert field in {problem.field for problem in refusal.value.problems}


@pytest.mark.parametrize("body", ["", "[]", "{}", "{", b"\xff", "[" * 1000, "null", '{"job_id": NaN}'])
def test_a_body_that_is_no_request_is_refused(body):
    with pytest.raises(InvalidRegionRequestException) as refusal:
        parse_region_request_message(body)
    assert refusal.value.problems


@examples(200)
@given(
    st.dictionaries(st.sampled_from(sorted(MESSAGE)), st.none() | st.integers() | st.text() | st.lists(st.integers()))
)
def test_any_message_gives_a_request_or_the_one_refusal(changes):
    with contextlib.suppress(InvalidRegionRequestException):
        assert parse_region_request_message(json.dumps(MESSAGE | changes)).is_valid()


sides = st.integers(1, 2**31)
names = st.text(min_size=1, max_size=20)


@examples(200)
@given(
    st.builds(
        RegionRequest,
        st.fixed_dictionaries(
            {
                "image_id": names,
                "job_id": names,
                "image_url": names,
                "model_name": names,
                "model_invoke_mode": st.sampled_from([ModelInvokeMode.SM_ENDPOINT, ModelInvokeMode.HTTP_ENDPOINT]),
                "model_endpoint_parameters": st.none() | st.dictionaries(names, names | st.integers() | st.booleans()),
                "tile_size": st.tuples(st.integers(65, 8192), st.integers(65, 8192)),
                "tile_overlap": st.tuples(st.integers(0, 64), st.integers(0, 64)),
                "tile_format": st.sampled_from(ImageFormats),
                "tile_compression": st.sampled_from(ImageCompression),
                "region_bounds": st.tuples(
                    st.tuples(st.integers(0, 2**31), st.integers(0, 2**31)), st.tuples(sides, sides)
                ),
                "region_id": names,
                "image_extension": names,
            }
        ),
    )
)
def test_a_region_survives_the_queue(request_sent):
    received = parse_region_request_message(json.dumps(request_sent.to_message()))
    assert received == request_sent
    assert received.region_bounds == request_sent.region_bounds
    assert received.is_valid()


def test_known_names_for_image_paths():
    assert get_image_path("s3://images/a/b.tif", "") == "/vsis3/images/a/b.tif"
    assert get_image_path("/data/b.tif", "arn:aws:iam::1:role/r") == "/data/b.tif"
    assert validate_image_path("s3://images/a/b.tif") is True
    assert validate_image_path("/vsis3/images/a") is False
    with pytest.raises(InvalidImageURLException):
        get_image_path("PG:dbname=x", "")
