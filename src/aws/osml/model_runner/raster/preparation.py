"""Rules that turn the pixels of an image into the pixels that a model was trained on. Pure.

``resolve`` turns ``imageProcessorInput`` into a ``Preparation``. The plan stores it in the image's row, so every worker
gives a tile the same bytes.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from aws.osml.model_runner.api.processor_input import MAX_SCALE, MIN_SCALE, ProcessorInput, Stretch
from aws.osml.model_runner.common.pixel_ratio import ONE, PixelRatio
from aws.osml.model_runner.exceptions import InvalidImageRequestException, Problem

from .tile_formats import PLAIN_SAMPLES, Samples

_FIELD = "imageProcessorInput"
_REFUSED = "the image cannot be prepared as imageProcessorInput asks"
_PIXEL_TYPES = {"UINT8": "Byte", "UINT16": "UInt16", "FLOAT32": "Float32"}
_DTYPES = {
    "Byte": "u1",
    "Int8": "i1",
    "UInt16": "u2",
    "Int16": "i2",
    "UInt32": "u4",
    "Int32": "i4",
    "UInt64": "u8",
    "Int64": "i8",
    "Float32": "f4",
    "Float64": "f8",
}
# Integers that float64, in which values are stretched, does not hold.
_WIDE_INTEGERS = ("Int64", "UInt64")
# Names of bands that a refusal lists.
_MAX_NAMED = 64
# Drift of a whole image below which model pixels are image pixels.
_DRIFT_PX = 0.01
_ROUNDING = 1e-9
# Bands whose values are measured at a time; bands of which all values are held for one range of all.
_BANDS_AT_ONCE = 4
_MAX_BANDS_WHOLE = 8

Range = tuple[float, float]


@dataclass(frozen=True)
class BandFacts:
    """Facts of a band that its file declares. ``data_type`` is GDAL's name, or ``Int8`` for signed bytes.

    ``names`` are the band's description and its colour interpretation, as far as the file has them. ``bits`` is the
    number of bits that the file stores per sample. ``is_alpha``: samples are the opacity of the other bands.
    """

    number: int
    data_type: str
    names: tuple[str, ...] = ()
    bits: int = 8
    palette_size: int = 0
    is_alpha: bool = False


class ImageFacts(NamedTuple):
    """Size of an image, and the width and height in metres of its pixels, where they have a place on the Earth."""

    width: int
    height: int
    pixel_size_m: tuple[float, float] | None = None


@dataclass(frozen=True)
class Preparation:
    """Steps that every tile of a job goes through.

    ``bands`` are the numbers of the image's bands, from 1, in the order of the model; a band may repeat.
    ``source_type`` holds the samples of all of them, ``data_type`` the samples of a tile; both are GDAL's names, or
    ``Int8`` for signed bytes. ``ranges`` are the values of each band that become the least and the largest sample;
    None leaves values as they are. ``fill`` is the sample of pixels that are not valid. ``alpha`` are numbers of the
    image's alpha bands. They have no range and are filled with 0: where values are stretched, a valid pixel is opaque.
    ``ratio`` is the size of a model pixel in image pixels, ``resampling`` the method by which it is made where the
    ratio is not 1.
    """

    bands: tuple[int, ...]
    source_type: str
    data_type: str
    ranges: tuple[Range, ...] | None = None
    fill: float = 0.0
    samples: Samples = PLAIN_SAMPLES
    ratio: PixelRatio = ONE
    resampling: str = "BILINEAR"
    alpha: tuple[int, ...] = ()

    @property
    def source_dtype(self) -> npt.DTypeLike:
        """The numpy type of samples of the image; the bytes of complex samples."""
        return dtype_of(self.source_type)

    @property
    def dtype(self) -> npt.DTypeLike:
        """The numpy type of samples of a tile."""
        return dtype_of(self.data_type)

    @property
    def keeps_values(self) -> bool:
        """True when each valid sample is a sample of the image."""
        is_resampled = not self.ratio.is_one and self.resampling != "NEAREST"
        return self.ranges is None and self.data_type == self.source_type and not is_resampled

    def to_text(self) -> str:
        """Return the preparation as the image's row holds it."""
        names = ("bands", "source_type", "data_type", "ranges", "fill", "ratio", "resampling", "alpha")
        values = {name: getattr(self, name) for name in names}
        values["samples"] = [self.samples.bits, self.samples.palette_size, self.samples.is_signed_byte]
        return json.dumps(values, separators=(",", ":"))

    @classmethod
    def from_text(cls, text: str | None) -> "Preparation | None":
        """Return the preparation that ``to_text`` wrote, equal to the bit; None for tiles of the image's own pixels."""
        if not text:
            return None
        values = json.loads(text)
        ranges = values["ranges"]
        return cls(
            bands=tuple(values["bands"]),
            source_type=values["source_type"],
            data_type=values["data_type"],
            ranges=None if ranges is None else tuple((low, high) for low, high in ranges),
            fill=values["fill"],
            samples=Samples(*values["samples"]),
            ratio=PixelRatio(*values["ratio"]),
            resampling=values["resampling"],
            alpha=tuple(values["alpha"]),
        )


def ratio_of(preparation: Preparation | None) -> PixelRatio:
    """Return the size of a model pixel in image pixels."""
    return ONE if preparation is None else preparation.ratio


def dtype_of(data_type: str) -> np.dtype[Any]:
    """Return the numpy type of GDAL's type, or of ``Int8``; complex types are opaque bytes."""
    code = _DTYPES.get(data_type)
    return np.dtype(code) if code else np.dtype(f"V{_COMPLEX_BYTES[data_type]}")


_COMPLEX_BYTES = {"CInt16": 4, "CInt32": 8, "CFloat32": 8, "CFloat64": 16}


def resolve(
    asked: ProcessorInput, bands: Sequence[BandFacts], union: Callable[[list[str]], str], image: ImageFacts
) -> Preparation:
    """Return the preparation of an image with these ``bands``; its ranges are (0, 1) until they are measured.

    ``union`` returns the smallest type that holds samples of all of the given types. Raises
    InvalidImageRequestException with every problem.
    """
    problems: list[Problem] = []
    chosen = _chosen(asked, bands, problems)
    source_type = union([band.data_type for band in chosen]) if chosen else ""
    data_type = _PIXEL_TYPES[asked.pixel_type] if asked.pixel_type else source_type
    if chosen:
        problems += _type_problems(asked, source_type, data_type)
        problems += _limit_problems(asked.stretch, len(chosen))
    ratio = _ratio(asked, image, problems)
    if not ratio.is_one and chosen:
        problems += _resampling_problems(asked, source_type, chosen)
    if problems:
        raise InvalidImageRequestException(_REFUSED, problems)
    preparation = Preparation(
        bands=tuple(band.number for band in chosen),
        source_type=source_type,
        data_type=data_type,
        ranges=((0.0, 1.0),) * len(chosen) if asked.is_stretched else None,
        fill=asked.nodata_fill,
        ratio=ratio,
        resampling=asked.resampling,
        alpha=tuple(dict.fromkeys(band.number for band in chosen if band.is_alpha)),
    )
    return replace(preparation, samples=_samples(preparation, chosen))


def _chosen(asked: ProcessorInput, bands: Sequence[BandFacts], problems: list[Problem]) -> list[BandFacts]:
    """Return the bands in the order of the model; add a problem for each that the image does not have."""
    if asked.bands is None:
        return list(bands)
    chosen = []
    for index, key in enumerate(asked.bands):
        if isinstance(key, int):
            found = [band for band in bands if band.number == key]
        else:
            found = [band for band in bands if key.casefold() in (name.casefold() for name in band.names)]
        if len(found) == 1:
            chosen.append(found[0])
            continue
        expected = "a name that one band has" if found else "a band of the image"
        problems.append(Problem(f"{_FIELD}.bands[{index}]", json.dumps(key), f"{expected}: {_listed(bands)}"))
    return chosen


def _listed(bands: Sequence[BandFacts]) -> str:
    """Return the bands of an image for a message, each with its names."""
    texts = [f"{band.number} ({', '.join(band.names)})" if band.names else str(band.number) for band in bands]
    return ", ".join(texts[:_MAX_NAMED])


def _type_problems(asked: ProcessorInput, source_type: str, data_type: str) -> list[Problem]:
    if source_type not in _DTYPES:
        kind = f"samples of the image are of type {source_type}"
        asked_for: list[tuple[str, str]] = [("stretch", asked.stretch.type)] if asked.is_stretched else []
        asked_for += [("pixelType", asked.pixel_type)] if asked.pixel_type else []
        problems = [Problem(f"{_FIELD}.{name}", json.dumps(value), f"absent: {kind}") for name, value in asked_for]
        if asked.nodata_fill:
            problems.append(Problem(f"{_FIELD}.nodataFill", f"{asked.nodata_fill:g}", f"0: {kind}"))
        return problems
    problems = []
    if asked.is_stretched and data_type in _WIDE_INTEGERS:
        expected = f"{', '.join(_PIXEL_TYPES)}: a stretch cannot fill the range of {data_type}, the type of the image"
        problems.append(Problem(f"{_FIELD}.pixelType", "absent", expected))
    if not asked.is_stretched and not np.can_cast(dtype_of(source_type), dtype_of(data_type), "safe"):
        expected = f"a type that holds all values of {source_type}, or a stretch"
        problems.append(Problem(f"{_FIELD}.pixelType", json.dumps(asked.pixel_type), expected))
    target = dtype_of(data_type)
    if target.kind in "iu":
        least, largest = int(np.iinfo(target).min), int(np.iinfo(target).max)
        if not (least <= asked.nodata_fill <= largest and asked.nodata_fill == int(asked.nodata_fill)):
            expected = f"a whole number from {least} to {largest}, as {data_type} holds"
            problems.append(Problem(f"{_FIELD}.nodataFill", f"{asked.nodata_fill:g}", expected))
    return problems


def _ratio(asked: ProcessorInput, image: ImageFacts, problems: list[Problem]) -> PixelRatio:
    """Return the image pixels per model pixel; add a problem where the image has no such pixels."""
    if asked.scale is not None:
        ratios = (1 / asked.scale, 1 / asked.scale)
    elif asked.gsd is None:
        return ONE
    elif image.pixel_size_m is None:
        expected = "absent: the image has no georeference that gives its pixels a size"
        problems.append(Problem(f"{_FIELD}.gsd", f"{asked.gsd:g}", expected))
        return ONE
    else:
        width, height = image.pixel_size_m
        ratios = (asked.gsd / width, asked.gsd / height)
        least, largest = max(width, height) / MAX_SCALE, min(width, height) / MIN_SCALE
        if not least * (1 - _ROUNDING) <= asked.gsd <= largest * (1 + _ROUNDING):
            expected = f"from {least:.4g} to {largest:.4g} m: pixels of the image have {width:.4g} x {height:.4g} m"
            problems.append(Problem(f"{_FIELD}.gsd", f"{asked.gsd:g}", expected))
            return ONE
    # Where the rasters drift apart by less than can be measured, pixels stay as they are.
    x, y = (
        1.0 if abs(ratio - 1) * length < _DRIFT_PX else ratio
        for ratio, length in zip(ratios, (image.width, image.height), strict=True)
    )
    return PixelRatio(x, y)


def _resampling_problems(asked: ProcessorInput, source_type: str, chosen: Sequence[BandFacts]) -> list[Problem]:
    if source_type not in _DTYPES:
        key, value = ("gsd", asked.gsd) if asked.scale is None else ("scale", asked.scale)
        return [Problem(f"{_FIELD}.{key}", f"{value:g}", f"absent: samples of the image are of type {source_type}")]
    if asked.resampling != "NEAREST" and any(band.palette_size for band in chosen):
        expected = "NEAREST: samples of the image are indices into a palette"
        return [Problem(f"{_FIELD}.resampling", json.dumps(asked.resampling), expected)]
    return []


def _limit_problems(stretch: Stretch, bands: int) -> list[Problem]:
    expected = f"one number, or one for each of the {bands} bands"
    return [
        Problem(f"{_FIELD}.stretch.{name}", f"a list of {len(limit)} items", expected)
        for name in _LIMIT_NAMES
        if isinstance(limit := getattr(stretch, name), tuple) and len(limit) not in (1, bands)
    ]


def _samples(preparation: Preparation, chosen: Sequence[BandFacts]) -> Samples:
    is_signed = preparation.data_type == "Int8"
    if not preparation.keeps_values:
        return Samples(8 * dtype_of(preparation.data_type).itemsize, 0, is_signed)
    return Samples(min(band.bits for band in chosen), max(band.palette_size for band in chosen), is_signed)


def needs_samples(stretch: Stretch) -> bool:
    """Return True when the ranges of a stretch follow from values of the image."""
    return stretch.type in ("PERCENTILE", "SIGMA") or (stretch.type == "MINMAX" and None in (stretch.min, stretch.max))


def ranges_of(
    stretch: Stretch,
    bands: Sequence[int],
    samples: Callable[[Sequence[int]], Mapping[int, npt.NDArray[Any]]],
    alpha: Sequence[int] = (),
) -> tuple[Range, ...]:
    """Return the (low, high) value of each of ``bands``, for a stretch that is not NONE; (0, 1) of ``alpha`` bands.

    ``samples`` returns valid values of each of some bands, one-dimensional. Raises InvalidImageRequestException when a
    band that is needed has none, or when none of its values lies between its limits.
    """
    measured: dict[int, Range] = {}
    different = [band for band in dict.fromkeys(bands) if band not in alpha]
    if needs_samples(stretch) and different:
        parts = list[npt.NDArray[Any]]()
        # A few bands at a time, because all values of many bands take too much memory.
        step = -(-len(different) // _MAX_BANDS_WHOLE)
        for first in range(0, len(different), _BANDS_AT_ONCE):
            for band, values in samples(different[first : first + _BANDS_AT_ONCE]).items():
                if stretch.per == "ALL":
                    parts.append(values[::step].copy())
                else:
                    measured[band] = _measured(stretch, values)
        if stretch.per == "ALL":
            measured = dict.fromkeys(different, _measured(stretch, np.concatenate(parts)))
    return _limited(stretch, bands, measured, alpha)


def _limited(
    stretch: Stretch, bands: Sequence[int], measured: Mapping[int, Range], alpha: Sequence[int]
) -> tuple[Range, ...]:
    """Return the measured ranges with the explicit limits of a stretch instead."""
    lows, highs = (stretch.limits(name, len(bands)) for name in _LIMIT_NAMES)
    ranges, problems = list[Range](), list[Problem]()
    for index, band in enumerate(bands):
        if band in alpha:
            ranges.append((0.0, 1.0))
            continue
        low, high = measured.get(band, (0.0, 1.0))
        if lows and not highs and lows[index] >= high:
            problems.append(_crossed("min", lows[index], f"below {high:g}, the largest value of band {band}"))
        if highs and not lows and highs[index] <= low:
            problems.append(_crossed("max", highs[index], f"above {low:g}, the least value of band {band}"))
        ranges.append((lows[index] if lows else low, highs[index] if highs else high))
    if problems:
        raise InvalidImageRequestException(_REFUSED, problems)
    return tuple(ranges)


def _crossed(name: str, value: float, expected: str) -> Problem:
    return Problem(f"{_FIELD}.stretch.{name}", f"{value:g}", expected)


_LIMIT_NAMES: tuple[Literal["min", "max"], ...] = ("min", "max")


def _measured(stretch: Stretch, values: npt.NDArray[Any]) -> Range:
    if not values.size:
        problem = Problem(f"{_FIELD}.stretch", stretch.type, "MINMAX with min and max: no valid pixel was found")
        raise InvalidImageRequestException(_REFUSED, [problem])
    if stretch.type == "MINMAX":
        return float(values.min()), float(values.max())
    if stretch.type == "PERCENTILE":
        low, high = np.percentile(values, [stretch.lower, stretch.upper])
        return float(low), float(high)
    mean, deviation = float(values.mean(dtype=np.float64)), float(values.std(dtype=np.float64))
    return mean - stretch.n * deviation, mean + stretch.n * deviation
