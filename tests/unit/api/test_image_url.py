import pytest
from hypothesis import given
from hypothesis import strategies as st

from aws.osml.model_runner.api import ImageLocation, parse_image_url
from aws.osml.model_runner.api.exceptions import InvalidImageURLException
from aws.osml.model_runner.api.image_url import ALL_SOURCES, web_host
from hostile_urls import HOSTILE_IMAGE_URLS

LOCATIONS = [
    ImageLocation("s3://images/scene.tif", "s3", "/vsis3/images/scene.tif", "images", "scene.tif"),
    ImageLocation(
        "s3://my.images-1/a b/ü?&#.ntf", "s3", "/vsis3/my.images-1/a b/ü?&#.ntf", "my.images-1", "a b/ü?&#.ntf"
    ),
    ImageLocation("s3://images//double//slash", "s3", "/vsis3/images//double//slash", "images", "/double//slash"),
    ImageLocation("/data/scenes/a b.tif", "file", "/data/scenes/a b.tif"),
    ImageLocation("file:///data/a%20b.tif", "file", "/data/a b.tif"),
    ImageLocation("http://host:8080/a.tif", "http", "/vsicurl/http://host:8080/a.tif"),
    ImageLocation("https://host.example/a.tif?v=1", "http", "/vsicurl/https://host.example/a.tif?v=1"),
    ImageLocation("http://[2001:db8::1]/a.tif", "http", "/vsicurl/http://[2001:db8::1]/a.tif"),
    ImageLocation("http://10.1.2.3/a.tif", "http", "/vsicurl/http://10.1.2.3/a.tif"),
]


@pytest.mark.parametrize("location", LOCATIONS, ids=lambda location: location.url)
def test_image_url_is_parsed_to_location(location):
    assert parse_image_url(location.url, ALL_SOURCES) == location
    assert parse_image_url(location.url, {location.source}) == location


@pytest.mark.parametrize("url", HOSTILE_IMAGE_URLS)
def test_hostile_url_is_refused(url):
    with pytest.raises(InvalidImageURLException) as refusal:
        parse_image_url(url, ALL_SOURCES)
    (problem,) = refusal.value.problems
    assert problem.field == "imageUrls"
    assert problem.expectation
    assert str(refusal.value).isprintable()
    assert "secret" not in str(refusal.value) or "@" not in url or url.startswith("s3")


def test_there_are_enough_hostile_urls():
    assert len(HOSTILE_IMAGE_URLS) == len(set(HOSTILE_IMAGE_URLS)) >= 40


@pytest.mark.parametrize("url", [None, 5, b"s3://images/a.tif", ["s3://images/a.tif"]])
def test_value_that_is_not_text_is_refused(url):
    with pytest.raises(InvalidImageURLException):
        parse_image_url(url, ALL_SOURCES)


@pytest.mark.parametrize("location", LOCATIONS, ids=lambda location: location.url)
def test_source_that_is_not_allowed_is_refused(location):
    others = ALL_SOURCES - {location.source}
    for allowed in (others, set()):
        with pytest.raises(InvalidImageURLException, match="IMAGE_SOURCES"):
            parse_image_url(location.url, allowed)


@given(st.text(max_size=60) | st.text("s3:/htpfilevs.[]@0159xZ ", max_size=60))
def test_any_text_is_parsed_or_refused(url):
    try:
        location = parse_image_url(url, ALL_SOURCES)
    except InvalidImageURLException:
        return
    assert location.url == url
    if location.source == "file":
        assert not location.gdal_path.lower().lstrip("/").startswith("vsi")
    else:
        assert location.gdal_path.startswith(("/vsis3/", "/vsicurl/http"))


@pytest.mark.parametrize(
    ("url", "host"),
    [
        ("http://127.0.0.1:5601/invocations", "127.0.0.1"),
        ("https://Model.Example.com./x?y=1", "model.example.com."),
        ("http://model_server", "model_server"),
        ("http://face.cafe/", "face.cafe"),
        ("s3://images/a", None),
        ("model", None),
    ],
)
def test_host_of_web_address(url, host):
    assert web_host(url) == host
