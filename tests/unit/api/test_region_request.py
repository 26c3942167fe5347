import contextlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aws.osml.model_runner.api import (
    ImageRequest,
    ModelInvokeMode,
    RegionName,
    RegionRequest,
    get_image_path,
    parse_region_message,
    shared_properties_are_valid,
    validate_image_path,
)
from aws.osml.model_runner.api.exceptions import InvalidImageURLException, InvalidRegionRequestException
from aws.osml.model_runner.common.typing import ImageDimensions, ImageFormats, ImageRegion
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


def test_request_is_read_from_its_fields_and_written_unchanged():
    request = RegionRequest(MESSAGE)
    assert request.to_message() == MESSAGE
    assert list(request.to_message()) == list(MESSAGE)
    assert request.region_bounds == ((0, 344), (512, 512))
    assert isinstance(request.region_bounds, ImageRegion)
    assert isinstance(request.tile_size, ImageDimensions)
    assert request.model_invoke_mode is ModelInvokeMode.SM_ENDPOINT
    assert request.tile_format is ImageFormats.GTIFF


NAME = RegionName(image_id=MESSAGE["image_id"], region_id=MESSAGE["region_id"], job_id="job-1")


def test_message_holds_only_name_of_region():
    assert NAME.to_message() == {name: MESSAGE[name] for name in ("image_id", "region_id", "job_id")}
    assert parse_region_message(json.dumps(NAME.to_message())) == NAME
    assert RegionName.of(RegionRequest(MESSAGE)) == NAME


@pytest.mark.parametrize("more", [MESSAGE, {"colour": "blue"}, {"tile_size": "nonsense"}])
def test_further_fields_of_message_are_ignored(more):
    assert parse_region_message(json.dumps(more | NAME.to_message()).encode()) == NAME


def test_region_has_shared_values_of_its_image():
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


def test_later_values_win_and_requests_compare_by_value():
    first = RegionRequest(MESSAGE, {"job_id": "b"}, job_id="c")
    assert first.job_id == "c"
    assert first == RegionRequest(MESSAGE, job_id="c")
    assert first != RegionRequest(MESSAGE)
    assert first != "c"
    assert "(0, 344)" in repr(first)


def test_empty_request_has_known_defaults_and_is_not_valid():
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
def test_wrong_value_makes_region_invalid(field, value):
    request = RegionRequest(MESSAGE, {field: value})
    assert not request.is_valid()
    assert field in request.to_message()


def test_absent_roles_are_no_roles():
    request = RegionRequest(MESSAGE, image_read_role=None, model_invocation_role=None)
    assert shared_properties_are_valid(request)


@pytest.mark.parametrize("field", ["image_id", "region_id", "job_id"])
@pytest.mark.parametrize("value", [None, "", 5, ["name"]])
def test_message_that_names_no_region_is_refused_by_field(field, value):
    with pytest.raises(InvalidRegionRequestException) as refusal:
        parse_region_message(json.dumps(MESSAGE | {field: value}))
    assert [problem.field for problem in refusal.value.problems] == [field]


@pytest.mark.parametrize("body", ["", "[]", "{}", "{", b"\xff", "[" * 1000, "null", '{"job_id": NaN}'])
def test_body_that_is_no_message_is_refused(body):
    with pytest.raises(InvalidRegionRequestException) as refusal:
        parse_region_message(body)
    assert refusal.value.problems


@examples(200)
@given(
    st.dictionaries(st.sampled_from(sorted(MESSAGE)), st.none() | st.integers() | st.text() | st.lists(st.integers()))
)
def test_any_message_is_parsed_or_refused(changes):
    with contextlib.suppress(InvalidRegionRequestException):
        assert all(parse_region_message(json.dumps(MESSAGE | changes)).to_message().values())


names = st.text(min_size=1, max_size=20)


@examples(200)
@given(st.builds(RegionName, image_id=names, region_id=names, job_id=names))
def test_name_survives_queue(name):
    assert parse_region_message(json.dumps(name.to_message())) == name


def test_known_names_for_image_paths():
    assert get_image_path("s3://images/a/b.tif", "") == "/vsis3/images/a/b.tif"
    assert get_image_path("/data/b.tif", "arn:aws:iam::1:role/r") == "/data/b.tif"
    assert validate_image_path("s3://images/a/b.tif") is True
    assert validate_image_path("/vsis3/images/a") is False
    with pytest.raises(InvalidImageURLException):
        get_image_path("PG:dbname=x", "")
