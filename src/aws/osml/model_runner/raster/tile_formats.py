"""Tile formats: the pixels that each can hold, and the GDAL options that write it. Pixels are never scaled.

========  ===========  ==============================================  ============================================
format    compression  bands and pixel types                           written as
========  ===========  ==============================================  ============================================
NITF      NONE         any; integers to 32 bit, floats, CFloat32       IC=NC
NITF      JPEG         1 or 3; Byte                                    IC=C3, lossy
NITF      J2K, LZW     any; Byte, UInt16, Int16 (others as NONE)       IC=C8, lossy; LZW, which NITF lacks, warns
GTIFF     NONE         any; any                                        COMPRESS=NONE
GTIFF     LZW, J2K     any; any                                        COMPRESS=LZW; J2K, which GTIFF lacks, warns
GTIFF     JPEG         any; Byte                                       COMPRESS=JPEG, lossy
PNG       any          1 to 4; Byte, UInt16                            PNG, lossless; the compression has no effect
JPEG      any          1 or 3; Byte                                    JPEG at quality 75; no effect either
========  ===========  ==============================================  ============================================

Samples of an odd number of bits fill whole bytes, because most libraries cannot read other samples. GDAL 3.6 has no
type for signed bytes; they are ``Int8`` here, and only a lossless GTIFF holds them. Lossy formats hold neither one-bit
samples nor indices into a palette. PNG holds a palette of one band of bytes. NITF and GTIFF omit a palette that they
cannot hold, and keep the indices.
"""

from dataclasses import dataclass

from aws.osml.model_runner.common.typing import ImageCompression, ImageFormats
from aws.osml.model_runner.exceptions import TileEncodingError

_NITF_TYPES = frozenset({"Byte", "UInt16", "Int16", "UInt32", "Int32", "Float32", "Float64", "CFloat32"})
_J2K_TYPES = frozenset({"Byte", "UInt16", "Int16"})
_BYTE = frozenset({"Byte"})
_LOSSY = frozenset({"IC=C3", "IC=C8", "COMPRESS=JPEG"})
_PNG_TYPES = frozenset({"Byte", "UInt16"})


# Tiles that are sent as tensors: a NumPy file of (rows, columns, bands). It is not a format that a request can name.
NUMPY = "NPY"


@dataclass(frozen=True)
class Samples:
    """Properties of an image's samples beside their type.

    ``bits`` is the least number of bits of a band. ``palette_size`` is the number of colours in the largest palette, 0
    without a palette. ``is_signed_byte``: GDAL's type is Byte and the values are -128 to 127.
    """

    bits: int = 8
    palette_size: int = 0
    is_signed_byte: bool = False

    @property
    def can_lose(self) -> bool:
        """True where a nearly correct value has nearly the same meaning, unlike an index into a palette."""
        return self.bits > 1 and not self.palette_size

    def named(self, data_type: str) -> str:
        """Return the name of the samples in messages."""
        odd_bits = f" of {self.bits} bit" if self.bits == 1 else ""
        palette = f" with a palette of {self.palette_size} colours" if self.palette_size else ""
        return f"{data_type}{odd_bits}{palette}"


@dataclass(frozen=True)
class TilePlan:
    """GDAL's driver and creation options for a tile, and a warning for the user when its compression is replaced."""

    driver: str
    options: tuple[str, ...] = ()
    warning: str | None = None

    @property
    def compresses(self) -> bool:
        """True where the size of an encoded tile depends on the values of its pixels."""
        return self.driver != NUMPY and self.options not in (("IC=NC",), ("COMPRESS=NONE",))

    @property
    def is_lossy(self) -> bool:
        """True where pixels change a little."""
        return self.driver == "JPEG" or not _LOSSY.isdisjoint(self.options)


PLAIN_SAMPLES = Samples()


def plan_tile(
    tile_format: ImageFormats | str,
    compression: ImageCompression | None,
    band_count: int,
    data_type: str,
    samples: Samples = PLAIN_SAMPLES,
) -> TilePlan:
    """Return the plan for tiles of ``band_count`` bands of GDAL's ``data_type``.

    Raises TileEncodingError when the format cannot hold them; the message names the formats that can.
    """
    if tile_format == NUMPY:
        return TilePlan(NUMPY)
    requested = compression or ImageCompression.NONE
    plan = _plan(tile_format, requested, band_count, data_type, samples)
    if plan is None:
        name = samples.named(_type_name(data_type, samples))
        raise TileEncodingError(
            f"tiles of format {tile_format} with compression {requested} cannot hold {band_count} band(s) of {name}; "
            f"use {formats_that_hold(band_count, data_type, samples)}"
        )
    return plan


def _plan(
    tile_format: ImageFormats | str, compression: ImageCompression, band_count: int, data_type: str, samples: Samples
) -> TilePlan | None:
    type_name, is_byte = _type_name(data_type, samples), data_type in _BYTE and not samples.is_signed_byte
    plan: TilePlan | None = None
    if tile_format == ImageFormats.NITF:
        plan = _plan_nitf(compression, band_count, type_name)
    elif tile_format == ImageFormats.GTIFF:
        plan = _plan_gtiff(compression, band_count, type_name)
    elif tile_format == ImageFormats.PNG:
        has_odd_palette = samples.palette_size and not (band_count == 1 and is_byte)
        if 1 <= band_count <= 4 and type_name in _PNG_TYPES and not has_odd_palette:
            plan = TilePlan("PNG", ("ZLEVEL=1",))
    elif is_byte and band_count in (1, 3):
        plan = TilePlan("JPEG")
    return None if plan is not None and plan.is_lossy and not samples.can_lose else plan


def _type_name(data_type: str, samples: Samples) -> str:
    return "Int8" if samples.is_signed_byte else data_type


def _plan_nitf(compression: ImageCompression, band_count: int, data_type: str) -> TilePlan | None:
    if data_type not in _NITF_TYPES:
        return None
    if compression == ImageCompression.JPEG:
        return TilePlan("NITF", ("IC=C3",)) if band_count in (1, 3) and data_type in _BYTE else None
    if compression == ImageCompression.NONE:
        return TilePlan("NITF", ("IC=NC",))
    lacking = "NITF has no LZW compression: tiles are compressed by JPEG 2000"
    warning = lacking if compression == ImageCompression.LZW else None
    if data_type not in _J2K_TYPES:
        return TilePlan("NITF", ("IC=NC",), f"JPEG 2000 cannot hold {data_type}: tiles are not compressed")
    return TilePlan("NITF", ("IC=C8",), warning)


def _plan_gtiff(compression: ImageCompression, band_count: int, data_type: str) -> TilePlan | None:
    if compression == ImageCompression.JPEG:
        # libtiff compresses up to four bands together; more of them one by one.
        layout = ("INTERLEAVE=BAND",) if band_count > 4 else ()
        return TilePlan("GTiff", ("COMPRESS=JPEG", *layout)) if data_type in _BYTE else None
    if compression == ImageCompression.J2K:
        return TilePlan("GTiff", ("COMPRESS=LZW",), "GTIFF has no J2K compression: tiles are compressed by LZW")
    return TilePlan("GTiff", (f"COMPRESS={compression}",))


def formats_that_hold(
    band_count: int, data_type: str, samples: Samples = PLAIN_SAMPLES, must_compress: bool = False
) -> str:
    """Return the pairs of format and compression that can hold such pixels without a warning, for a message."""
    return " or ".join(
        f"{tile_format}/{compression}" if tile_format in (ImageFormats.NITF, ImageFormats.GTIFF) else str(tile_format)
        for tile_format, compressions in _DISTINCT.items()
        for compression in compressions
        if (plan := _plan(tile_format, compression, band_count, data_type, samples)) is not None
        and plan.warning is None
        and (plan.compresses or not must_compress)
    )


_DISTINCT = {
    ImageFormats.NITF: (ImageCompression.NONE, ImageCompression.JPEG, ImageCompression.J2K),
    ImageFormats.GTIFF: (ImageCompression.NONE, ImageCompression.LZW, ImageCompression.JPEG),
    ImageFormats.PNG: (ImageCompression.NONE,),
    ImageFormats.JPEG: (ImageCompression.NONE,),
}
