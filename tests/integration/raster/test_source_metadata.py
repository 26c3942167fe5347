"""Properties of features from the metadata of their NITF."""

import pytest

from aws.osml.model_runner.raster import RasterSettings, open_image, source_metadata
from aws.osml.model_runner.raster.source_metadata import acquisition_date
from raster_files import SAMPLE_FOLDER, pattern, place, write_image

SETTINGS = RasterSettings()
URL = "s3://bucket/image.ntf"


def test_nitf_reports_its_title_category_and_date(tmp_path):
    options = ("FTITLE=a title", "ICAT=SAR", "IDATIM=20260317121530")
    source = open_image(place(write_image(tmp_path / "image", pattern(1, 20, 30), "NITF", options)), SETTINGS)

    assert source_metadata(source, URL) == {
        "sourceMetadata": [
            {
                "location": URL,
                "format": "NITF",
                "category": "SAR",
                "sourceId": "a title",
                "sourceDT": "2026-03-17T12:15:30Z",
            }
        ]
    }


def test_nitf_without_complete_date_reports_rest(tmp_path):
    path = write_image(tmp_path / "image", pattern(1, 20, 30), "NITF", ("ICAT=MS", "IDATIM=202603--------"))

    metadata = source_metadata(open_image(place(path), SETTINGS), URL)["sourceMetadata"][0]

    assert (metadata["category"], metadata["sourceDT"]) == ("MS", None)


def test_header_fields_are_text_for_any_bytes(tmp_path):
    """GDAL hands out as bytes what is no UTF-8."""
    path = write_image(tmp_path / "image", pattern(1, 20, 30), "NITF")
    magnification = b"1.0 "
    assert path.read_bytes().count(magnification) == 1
    path.write_bytes(path.read_bytes().replace(magnification, b"1.0\xb5"))

    assert open_image(place(path), SETTINGS).header.metadata["NITF_IMAG"] == "1.0µ"


@pytest.mark.parametrize("driver", ["GTiff", "PNG", "JPEG"])
def test_other_formats_have_no_source_metadata(tmp_path, driver):
    source = open_image(place(write_image(tmp_path / "image", pattern(1, 20, 30), driver)), SETTINGS)

    assert source_metadata(source, URL) is None


def test_metadata_equals_header_of_real_nitf():
    path = SAMPLE_FOLDER / "i_3301a.ntf"
    if not path.exists():
        pytest.skip("the sample imagery is not here")

    metadata = source_metadata(open_image(place(path), SETTINGS), URL)["sourceMetadata"][0]

    assert metadata["category"] == "VIS"
    assert metadata["sourceId"].startswith("Checks uncomp. 1024x1024")
    assert metadata["sourceDT"] == "1998-03-30T12:20:24Z"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("20260317121530", "2026-03-17T12:15:30Z"),
        (" 19980330122024 ", "1998-03-30T12:20:24Z"),
        ("", None),
        ("--------------", None),
        ("20260317------", None),
        ("20261399121530", None),
        ("20260317121530.5", None),
    ],
)
def test_dates(text, expected):
    assert acquisition_date(text) == expected
