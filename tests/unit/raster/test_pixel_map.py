"""Samples of an image as samples of a tile, compared with NumPy."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aws.osml.model_runner.api.processor_input import ProcessorInput
from aws.osml.model_runner.common.pixel_ratio import PixelRatio
from aws.osml.model_runner.exceptions import InvalidImageRequestException
from aws.osml.model_runner.raster.pixel_map import PixelMap
from aws.osml.model_runner.raster.preparation import BandFacts, ImageFacts, Preparation, ranges_of, resolve
from examples import examples

TYPES = {"Byte": "u1", "Int8": "i1", "UInt16": "u2", "Int16": "i2", "Int32": "i4", "Float32": "f4", "Float64": "f8"}
IMAGE = ImageFacts(1000, 800, (0.5, 0.25))
TARGETS = {"Byte": (0, 255), "UInt16": (0, 65535), "Float32": (0.0, 1.0)}


def union(data_types):
    return max(data_types, key=lambda name: np.dtype(TYPES.get(name, "c8")).itemsize)


def asked(**keys):
    return ProcessorInput.model_validate(keys)


def resolved(data_type="UInt16", count=3, **keys):
    names = ("Red", "Green", "Blue", "NIR")
    bands = [BandFacts(n + 1, data_type, (names[n],) if n < len(names) else (), bits=11) for n in range(count)]
    return resolve(asked(**keys), bands, union, IMAGE)


def problems(**keys):
    with pytest.raises(InvalidImageRequestException) as refusal:
        resolved(**keys)
    return {problem.field: str(problem) for problem in refusal.value.problems}


def mapped(pixels, data_type, target, limits=None, nodata=None, mask=None, fill=0.0):
    ranges = None if limits is None else (limits,)
    out = np.empty((*pixels.shape, 2), TYPES[target])
    PixelMap(Preparation((1,), data_type, target, ranges, fill), limits, nodata).apply(pixels, mask, out[:, :, 1])
    return out[:, :, 1]


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("data_type", TYPES)
@examples(10)
@given(low=st.floats(-40_000, 70_000), span=st.floats(0.01, 90_000), seed=st.integers(0, 2**32 - 1))
def test_stretch_fills_range_of_type_and_clamps(data_type, target, low, span, seed):
    dtype = np.dtype(TYPES[data_type])
    limits = (-(2**31), 2**31) if dtype.kind == "f" else (np.iinfo(dtype).min, np.iinfo(dtype).max)
    pixels = np.random.default_rng(seed).integers(*limits, (7, 9), endpoint=True).astype(dtype)
    least, largest = TARGETS[target]
    expected = least + np.clip((pixels.astype(np.float64) - low) / span, 0, 1) * (largest - least)
    tolerance = 1e-6 if target == "Float32" else 0.51
    assert np.abs(mapped(pixels, data_type, target, (low, low + span)) - expected).max() <= tolerance


@pytest.mark.parametrize("data_type", TYPES)
def test_pixels_that_are_not_valid_are_filled(data_type):
    pixels = np.arange(60, dtype=TYPES[data_type]).reshape(6, 10)
    mask = np.ones((6, 10), np.uint8)
    mask[0, :3] = 0
    out = mapped(pixels, data_type, "Byte", (0.0, 255.0), nodata=42.0, mask=mask, fill=200.0)
    assert out[0, :3].tolist() == [200] * 3
    assert out.ravel()[42] == 200
    kept = np.setdiff1d(np.arange(60), [0, 1, 2, 42])
    assert out.ravel()[kept].tolist() == kept.tolist()


def test_nan_is_filled_and_unused_nodata_marks_no_sample():
    pixels = np.array([[np.nan, np.inf, -np.inf, 0.5]], np.float32)
    assert mapped(pixels, "Float32", "Byte", (0.0, 1.0), fill=7.0).tolist() == [[7, 7, 7, 128]]
    assert mapped(pixels, "Float32", "Float32", nodata=0.5, fill=-1.0).tolist() == [[-1.0] * 4]
    for nodata in (-9999.0, 0.5, 1e30, np.nan):
        assert mapped(np.array([[0, 1]], np.uint8), "Byte", "Byte", nodata=nodata, fill=9.0).tolist() == [[0, 1]]


def test_limits_that_are_equal_split_values():
    pixels = np.array([[4, 5, 6]], np.uint16)
    assert mapped(pixels, "UInt16", "Byte", (5.0, 5.0)).tolist() == [[0, 0, 255]]


@pytest.mark.parametrize(("data_type", "target"), [("Byte", "UInt16"), ("UInt16", "Float32"), ("Int16", "Float32")])
def test_values_are_kept_when_type_holds_them(data_type, target):
    pixels = np.arange(60, dtype=TYPES[data_type]).reshape(6, 10)
    assert np.array_equal(mapped(pixels, data_type, target), pixels)


@pytest.mark.parametrize(
    ("stretch", "expected"),
    [
        ({"type": "PERCENTILE", "lower": 5, "upper": 90}, lambda v: np.percentile(v, [5, 90])),
        ({"type": "SIGMA", "n": 1.5}, lambda v: [v.mean() - 1.5 * v.std(), v.mean() + 1.5 * v.std()]),
        ({"type": "MINMAX"}, lambda v: [v.min(), v.max()]),
        ({"type": "MINMAX", "min": 3}, lambda v: [3, v.max()]),
        ({"type": "MINMAX", "min": 3, "max": 9}, lambda _v: [3, 9]),
    ],
    ids=["percentile", "sigma", "minmax", "max of the image", "limits"],
)
@pytest.mark.parametrize("per", ["BAND", "ALL"])
def test_ranges_follow_from_valid_values_of_each_band_or_of_all(stretch, expected, per):
    values = {1: np.arange(100, dtype=np.uint16), 2: np.arange(50, 1000, 7, dtype=np.uint16)}
    ranges = ranges_of(
        asked(stretch=stretch | {"per": per}).stretch, (2, 1, 2), lambda bands: {band: values[band] for band in bands}
    )
    together = np.concatenate([values[2], values[1]])
    for band, found in zip((2, 1, 2), ranges, strict=True):
        assert found == pytest.approx(tuple(expected(together if per == "ALL" else values[band])))


def test_image_without_valid_pixels_needs_limits_of_its_own():
    with pytest.raises(InvalidImageRequestException, match=r"imageProcessorInput\.stretch=PERCENTILE: MINMAX with min"):
        ranges_of(asked(stretch={"type": "PERCENTILE"}).stretch, (1,), lambda _bands: {1: np.zeros(0)})


def test_bands_are_chosen_by_number_and_name():
    preparation = resolved(count=5, bands=["nir", 5, "RED", "Red"])
    assert preparation.bands == (4, 5, 1, 1)
    assert (preparation.source_type, preparation.data_type, preparation.samples.bits) == ("UInt16", "UInt16", 11)
    assert preparation.keeps_values
    assert resolved().bands == (1, 2, 3)


def test_every_problem_with_image_is_named_at_once():
    found = problems(bands=[9, "Purple", 1], pixelType="UINT8", stretch={"type": "NONE"})
    assert set(found) == {
        "imageProcessorInput.bands[0]",
        "imageProcessorInput.bands[1]",
        "imageProcessorInput.pixelType",
    }
    assert '"Purple": a band of the image: 1 (Red), 2 (Green), 3 (Blue)' in found["imageProcessorInput.bands[1]"]
    assert "a type that holds all values of UInt16, or a stretch" in found["imageProcessorInput.pixelType"]


@pytest.mark.parametrize(
    ("data_type", "pixel_type"),
    [("UInt16", "UINT8"), ("Int16", "UINT16"), ("Float64", "FLOAT32"), ("Int32", "FLOAT32")],
)
def test_narrowing_type_needs_stretch(data_type, pixel_type):
    assert set(problems(data_type=data_type, pixelType=pixel_type)) == {"imageProcessorInput.pixelType"}
    assert resolved(data_type=data_type, pixelType=pixel_type, stretch={"type": "MINMAX"}).ranges == ((0.0, 1.0),) * 3


def test_fill_and_limits_have_to_fit_image():
    stretch = {"type": "MINMAX", "min": [1, 2]}
    assert set(problems(data_type="Byte", nodataFill=-1, stretch=stretch)) == {
        "imageProcessorInput.nodataFill",
        "imageProcessorInput.stretch.min",
    }


def test_complex_samples_are_not_converted():
    keys = {"stretch": {"type": "MINMAX"}, "pixelType": "FLOAT32"}
    assert set(problems(data_type="CFloat32", count=1, **keys)) == {
        "imageProcessorInput.stretch",
        "imageProcessorInput.pixelType",
    }
    assert resolve(asked(bands=[1]), [BandFacts(1, "CFloat32")], lambda kinds: kinds[0], IMAGE).keeps_values


@pytest.mark.parametrize(
    ("keys", "ratio"),
    [
        ({}, (1, 1)),
        ({"scale": 0.5}, (2, 2)),
        ({"gsd": 1}, (2, 4)),
        ({"scale": 1}, (1, 1)),
        # Too little to drift by a hundredth of a pixel in the whole image.
        ({"scale": 1.000005}, (1, 1)),
    ],
    ids=str,
)
def test_scale_and_size_on_ground_are_ratio_of_pixels(keys, ratio):
    assert resolved(**keys).ratio == ratio


def test_size_on_ground_has_to_be_in_reach_and_needs_georeference():
    assert "from 0.0625 to 5 m: pixels of the image have 0.5 x 0.25 m" in problems(gsd=6)["imageProcessorInput.gsd"]
    assert set(problems(gsd=0.06)) == {"imageProcessorInput.gsd"}
    with pytest.raises(InvalidImageRequestException, match=r"imageProcessorInput\.gsd=1: absent: .* no georeference"):
        resolve(asked(gsd=1), [BandFacts(1, "Byte")], union, ImageFacts(10, 10))


def test_samples_that_have_no_mean_are_not_resampled():
    palette = [BandFacts(1, "Byte", palette_size=256)]
    with pytest.raises(InvalidImageRequestException, match=r'resampling="BILINEAR": NEAREST: .* palette'):
        resolve(asked(scale=0.5), palette, union, IMAGE)
    assert resolve(asked(scale=0.5, resampling="NEAREST"), palette, union, IMAGE).samples.palette_size == 256
    assert set(problems(data_type="CFloat32", count=1, scale=2)) == {"imageProcessorInput.scale"}


@given(st.lists(st.tuples(st.floats(-1e9, 1e9), st.floats(-1e9, 1e9)), min_size=1, max_size=4), st.floats(-9, 9))
def test_row_holds_preparation_to_bit(ranges, fill):
    bands = tuple(range(1, len(ranges) + 1))
    ratio = PixelRatio(1 / 3, abs(fill) + 0.1)
    preparation = Preparation(bands, "UInt16", "Float32", tuple(ranges), fill, ratio=ratio, resampling="CUBIC")
    assert Preparation.from_text(preparation.to_text()) == preparation


@pytest.mark.parametrize("data_type", ["Int64", "UInt64"])
@pytest.mark.parametrize("kind", ["MINMAX", "PERCENTILE", "SIGMA"])
def test_stretch_of_64_bits_needs_pixel_type(data_type, kind):
    found = problems(data_type=data_type, stretch={"type": kind})
    assert set(found) == {"imageProcessorInput.pixelType"}
    assert "pixelType=absent: UINT8, UINT16, FLOAT32: " in found["imageProcessorInput.pixelType"]
    assert data_type in found["imageProcessorInput.pixelType"]
    assert resolved(data_type=data_type, stretch={"type": kind}, pixelType="UINT8").data_type == "Byte"


@pytest.mark.parametrize("data_type", ["Int64", "UInt64"])
def test_resampled_samples_of_64_bits_do_not_wrap(data_type):
    dtype = np.dtype("i8" if data_type == "Int64" else "u8")
    limits = np.iinfo(dtype)
    out = np.empty((1, 3), dtype)
    values = np.array([[limits.min, 7.2, limits.max]], np.float64)
    PixelMap(Preparation((1,), data_type, data_type), None, None).apply_computed(values, None, out)
    assert out[0, :2].tolist() == [limits.min, 7]
    assert limits.max - 4096 < out[0, 2] <= limits.max


@pytest.mark.parametrize(
    ("limit", "problem"),
    [
        ({"min": 100}, r"stretch\.min=100: below 50, the largest value of band 2"),
        ({"min": [0, 50]}, r"stretch\.min=50: below 50, the largest value of band 2"),
        ({"max": 3}, r"stretch\.max=3: above 5, the least value of band 2"),
    ],
    ids=str,
)
def test_limit_beyond_all_values_of_image_is_refused(limit, problem):
    values = {1: np.arange(1000), 2: np.arange(5, 51)}
    with pytest.raises(InvalidImageRequestException, match=problem) as refusal:
        ranges_of(
            asked(stretch={"type": "MINMAX"} | limit).stretch, (1, 2), lambda bands: {b: values[b] for b in bands}
        )
    assert len(refusal.value.problems) == 1


def test_image_of_one_value_has_range_of_its_own():
    constant = {1: np.full(9, 7)}
    assert ranges_of(asked(stretch={"type": "MINMAX"}).stretch, (1,), lambda _bands: constant) == ((7.0, 7.0),)


def test_alpha_bands_are_not_measured():
    def samples(bands):
        assert 4 not in bands
        return {band: np.arange(10 * band) for band in bands}

    for per, expected in (("BAND", ((0, 9), (0, 1), (0, 19))), ("ALL", ((0, 19), (0, 1), (0, 19)))):
        stretch = asked(stretch={"type": "MINMAX", "per": per}).stretch
        assert ranges_of(stretch, (1, 4, 2), samples, alpha=(4,)) == expected
        assert ranges_of(stretch, (4,), samples, alpha=(4,)) == ((0.0, 1.0),)


def test_fill_of_complex_samples_is_zero():
    found = problems(data_type="CFloat32", count=1, nodataFill=5)
    assert "nodataFill=5: 0: samples of the image are of type CFloat32" in found["imageProcessorInput.nodataFill"]
