"""STAC Items as images: which assets are chosen, where they are, and what the Item states about them."""

import contextlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aws.osml.model_runner.api.image_url import parse_image_url
from aws.osml.model_runner.api.stac_item import (
    MAX_ITEM_ASSETS,
    MAX_ITEM_BYTES,
    AssetChoice,
    ItemImage,
    image_of,
    is_item_url,
    parse_item,
)
from aws.osml.model_runner.exceptions import InvalidImageRequestException
from stac_items import CATALOGUES, COG, changed, landsat, maxar, naip, planet, sentinel2

ITEM = "s3://catalogue/a/b/item.json"
RGB = AssetChoice(takes_rgb=True)


def image(item, choice=None, url=ITEM, allow=parse_image_url):
    return image_of(parse_item(json.dumps(item).encode()), url, choice or AssetChoice(), allow)


def asked(*names, **changes):
    return AssetChoice(names, **changes)


def refused(item, choice=None, **arguments):
    with pytest.raises(InvalidImageRequestException) as caught:
        image(item, choice, **arguments)
    return {problem.field: (problem.value, problem.expectation) for problem in caught.value.problems}


def only_s3(url):
    return parse_image_url(url, {"s3"})


@pytest.mark.parametrize(
    ("item", "choice", "keys"),
    [
        (sentinel2(), asked("red", "green", "blue"), ["red", "green", "blue"]),
        (sentinel2(), asked("visual"), ["visual"]),
        (sentinel2(), RGB, ["visual"]),
        (naip(), AssetChoice(), ["image"]),
        (naip(), RGB, ["image"]),
        (naip(), asked("data"), ["image"]),
        (planet(), AssetChoice(), ["20240603_101112_12_24a1_3B_AnalyticMS_SR_8b_clip_tif"]),
        (planet(), asked("reflectance"), ["20240603_101112_12_24a1_3B_AnalyticMS_SR_8b_clip_tif"]),
        (maxar(), RGB, ["visual"]),
        (maxar(), asked("ms_analytic"), ["ms_analytic"]),
        # Without roles, the only asset that may be an image.
        (changed(naip(), assets={"a": {"href": "a.txt"}, "b": {"href": "b.TIF"}}), AssetChoice(), ["b"]),
    ],
)
def test_assets_are_chosen_by_key_by_role_and_by_default(item, choice, keys):
    assert [asset.key for asset in image(item, choice).assets] == keys


def test_choice_that_is_not_clear_is_refused_with_assets_that_exist():
    (several,) = refused(maxar()).values()
    assert several == (
        "absent",
        "keys of assets, because the Item has several with role data: ms_analytic, pan_analytic",
    )
    problems = refused(sentinel2(), asked("B04", "data", "red"))
    assert problems["imageAssets[0]"][0] == '"B04"'
    assert "the key of an asset of the Item: blue, blue-jp2, green" in problems["imageAssets[0]"][1]
    assert problems["imageAssets[0]"][1].endswith("or a role: data, metadata, reflectance, thumbnail, visual")
    assert problems["imageAssets[1]"] == (
        '"data"',
        "one key of the assets with this role: blue, green, red, nir, nir08, scl",
    )
    assert refused(naip(), asked("image", "data")) == {"imageAssets": ('"image"', "each asset of the Item once")}
    nothing = changed(naip(), assets={"notes": {"href": "a.txt"}})
    assert refused(nothing) == {"imageAssets": ("absent", "the key of an asset that is an image: notes")}


@pytest.mark.parametrize(
    ("base", "href", "expected"),
    [
        ("s3://bucket/a/b/item.json", "./c.tif", "s3://bucket/a/b/c.tif"),
        ("s3://bucket/a/b/item.json", "../c?#%20.tif", "s3://bucket/a/c?#%20.tif"),
        ("s3://bucket/item.json", "../../../c.tif", "s3://bucket/c.tif"),
        ("s3://bucket/a/item.json", "/c//d.tif", "s3://bucket/c//d.tif"),
        ("/data/a/item.json", "b/../c.tif", "/data/a/c.tif"),
        ("file:///data/a/item.json", "c.tif", "file:///data/a/c.tif"),
        ("/data/a/item.json", "/other/c.tif", "/other/c.tif"),
        ("https://host/a/item.json?key=1", "./c.tif?sig=2", "https://host/a/c.tif?sig=2"),
        ("https://host/a/item.json", "//other/c.tif", None),
        ("https://host/collections/c/items/one", "https://other/c.tif", "https://other/c.tif"),
        ("https://host/a/item.json", "s3://bucket/c.tif", "s3://bucket/c.tif"),
        ("https://host/a/item.json", "/vsizip/c.tif", "https://host/vsizip/c.tif"),
        ("https://host/a/item.json", "file:///etc/c.tif", None),
        ("s3://bucket/item.json", "/vsis3/b/c.tif", "s3://bucket/vsis3/b/c.tif"),
        ("/data/item.json", "/vsicurl/c.tif", None),
        ("/data/item.json", "/vsicurl/http://host/c.tif", None),
        ("/data/item.json", "PG:dbname=x", None),
        ("s3://bucket/item.json", "//other/c.tif", None),
    ],
)
def test_href_is_relative_to_item_and_held_to_rules_of_image_urls(base, href, expected):
    item = changed(naip(), assets={"image": {"href": href, "type": COG}})
    if expected is None:
        assert "a URL that may be read" in refused(item, url=base)["imageAssets"][1]
    else:
        assert image(item, url=base).assets[0].url == expected


def test_asset_is_read_at_first_place_that_is_allowed_and_never_at_hidden_cost():
    by_web = image(landsat(), asked("red"))
    assert by_web.assets[0].url == "https://landsatlook.example/data/LC09_L2SP_SR_B4.TIF"
    paid = asked("red", "qa_pixel", may_pay=True)
    assert [asset.url for asset in image(landsat(), paid).assets] == [
        "s3://usgs-landsat/x/LC09_L2SP_SR_B4.TIF",
        "s3://usgs-landsat/x/LC09_L2SP_QA_PIXEL.TIF",
    ]
    problem = refused(landsat(), asked("red"), allow=only_s3)["imageAssets[0]"]
    assert problem[0] == '"red"'
    assert "IMAGE_SOURCES allows: s3" in problem[1]
    assert "is read at the cost of the requester: requesterPays must be true" in problem[1]
    alternate = image(maxar("s3://private"), asked("visual"), allow=lambda url: parse_image_url(url, {"http"}))
    assert alternate.assets[0].url == "https://maxar-opendata.example/10300100DB064000-visual.tif"


def test_cost_is_found_in_newer_storage_extension():
    storage = {"storage:schemes": {"aws": {"type": "aws-s3", "requester_pays": True}}}
    item = changed(naip("s3://paid"), properties=storage)
    item["assets"]["image"]["storage:refs"] = ["aws"]
    assert "requesterPays must be true" in refused(item)["imageAssets"][1]
    assert image(item, AssetChoice(may_pay=True)).assets[0].url == "s3://paid/m_4407001.tif"


def test_image_has_what_item_states():
    found = image(sentinel2(), asked("nir08"))
    assert (found.item_id, found.collection) == ("S2B_31UDP_20240601_0_L2A", "sentinel-2-l2a")
    assert (found.datetime, found.platform) == ("2024-06-01T10:51:02.024000Z", "sentinel-2b")
    assert (found.gsd_m, found.crs, found.shape) == (20.0, "EPSG:32631", (128, 128))
    assert found.transform == (500_000.0, 20.0, 0.0, 5_400_000.0, 0.0, -20.0)
    of_item = image(planet())
    assert (of_item.gsd_m, of_item.crs, of_item.transform[1]) == (3.7, "EPSG:32631", 3.0)
    assert image(landsat(), asked("red")).gsd_m == 30.0
    odd = changed(naip(), properties={"gsd": True, "eo:gsd": 0.5, "datetime": 7})
    assert (image(odd).gsd_m, image(odd).datetime) == (0.5, None)


@pytest.mark.parametrize(
    ("item", "choice", "names"),
    [
        (sentinel2(), asked("red", "nir08"), [("red",), ("nir08",)]),
        (landsat(), asked("nir08"), [("OLI_B5", "nir08")]),
        (landsat(), asked("qa_pixel"), [("qa_pixel",)]),
        (naip(), None, [("Red", "red"), ("Green", "green"), ("Blue", "blue"), ("NIR", "nir")]),
        (
            planet(),
            None,
            [
                (f"band{n}", name)
                for n, name in enumerate(("coastal", "blue", "green05", "green", "yellow", "red", "rededge", "nir"), 1)
            ],
        ),
    ],
)
def test_bands_have_names_of_every_version(item, choice, names):
    assert [of_band for asset in image(item, choice).assets for of_band in asset.bands] == names


def test_bands_of_older_item_are_indices_of_its_properties():
    bands = [{"name": "B1", "common_name": "coastal"}, {"name": "B2", "common_name": "blue"}]
    assets = {"B2": {"href": "B2.TIF", "type": "image/x.geotiff", "eo:bands": [1]}}
    item = changed(
        naip(), stac_version="0.8.1", properties={"eo:bands": bands, "eo:gsd": 15.0, "eo:platform": "L8"}, assets=assets
    )
    found = image(item, asked("B2"))
    assert (found.assets[0].bands, found.gsd_m, found.platform) == ((("B2", "blue"),), 15.0, "L8")


@pytest.mark.parametrize("catalogue", CATALOGUES)
def test_stored_image_is_read_back_equal(catalogue):
    item = CATALOGUES[catalogue]()
    names = [key for key, asset in item["assets"].items() if asset["href"].lower().endswith(".tif")][:2]
    found = image(item, asked(*names, masks={names[0]: "skip[0].asset"}))
    assert ItemImage.from_text(found.to_text()) == found
    assert hash(found) == hash(ItemImage.from_text(found.to_text()))


def test_masks_are_resolved_with_image_and_missing_ones_named():
    found = image(landsat(), asked("red", masks={"qa_pixel": "skip[0].asset"}))
    assert found.mask("qa_pixel").url == "https://landsatlook.example/data/LC09_L2SP_QA_PIXEL.TIF"
    problems = refused(landsat(), asked("red", masks={"scl": "skip[0].asset"}))
    assert problems["skip[0].asset"] == (
        '"scl"',
        "an asset of the Item: blue, green, red, nir08, qa_pixel, MTL.json, thumbnail",
    )


@pytest.mark.parametrize(
    ("body", "expectation"),
    [
        (b"", "a STAC Item: valid JSON"),
        (b"[]", "a STAC Item: a JSON object"),
        (b'{"type": "FeatureCollection", "features": []}', "a STAC Item: an object of type Feature with assets"),
        (b'{"type": "Collection", "assets": {}}', "a STAC Item: an object of type Feature with assets"),
        (b'{"type": "Feature", "assets": []}', "a STAC Item: an object of type Feature with assets"),
        (b'{"a":' * 40, "a STAC Item: JSON of at most 32 levels"),
        (b'"' + b"a" * MAX_ITEM_BYTES, f"a STAC Item: at most {MAX_ITEM_BYTES} bytes"),
        (
            json.dumps({"type": "Feature", "assets": {str(n): {} for n in range(MAX_ITEM_ASSETS + 1)}}).encode(),
            f"a STAC Item with at most {MAX_ITEM_ASSETS} assets",
        ),
    ],
)
def test_other_documents_are_refused(body, expectation):
    with pytest.raises(InvalidImageRequestException) as caught:
        parse_item(body)
    (problem,) = caught.value.problems
    assert problem.field == "imageUrls"
    assert problem.expectation.startswith(expectation)


def test_image_that_does_not_fit_into_row_is_refused():
    long = "s3://bucket/" + "a" * 1_000
    assets = {
        "".join(("k" * 250, str(n))): {
            "href": f"{long}{n}.tif",
            "type": COG,
            "bands": [{"name": "n" * 256, "eo:common_name": f"c{n}" + "n" * 250} for _ in range(3)],
        }
        for n in range(32)
    }
    item = changed(naip(), assets=assets)
    assert "take at most 49152 bytes" in refused(item, asked(*assets))["imageAssets"][1]


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
MEMBERS = ["gsd", "bands", "eo:bands", "raster:bands", "roles", "type", "alternate", "storage:refs", "href"]
MEMBERS += ["proj:shape", "proj:transform", "proj:code", "proj:epsg", "storage:schemes", "datetime", "platform"]


@given(
    asset=st.dictionaries(st.sampled_from(MEMBERS), JSON), properties=st.dictionaries(st.sampled_from(MEMBERS), JSON)
)
def test_any_members_give_image_or_refusal(asset, properties):
    item = changed(naip(), properties=properties, assets={"image": asset, "other": {"href": "a.tif", **asset}})
    for choice in (AssetChoice(), asked("image"), asked("other", may_pay=True)):
        with contextlib.suppress(InvalidImageRequestException):
            found = image_of(item, ITEM, choice, parse_image_url)
            assert ItemImage.from_text(found.to_text()) == found


@pytest.mark.parametrize(
    ("url", "is_item"),
    [
        ("s3://bucket/item.json", True),
        ("/data/item.JSON", True),
        ("https://host/item.json?sig=a.tif", True),
        ("https://host/v1/collections/sentinel-2-l2a/items/S2B_31UDP", True),
        ("https://host/image.tif?item=a.json", False),
        ("s3://bucket/item.json.tif", False),
        ("s3://bucket/a.ntf", False),
    ],
)
def test_item_is_known_by_its_url(url, is_item):
    assert is_item_url(url) is is_item
