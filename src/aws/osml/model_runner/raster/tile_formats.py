"""Which tile format holds which pixels, and the GDAL options that write it. Pixels are never scaled or converted.

========  ===========  ==============================================  ============================================
format    compression  bands and pixel types                           written as
========  ===========  ==============================================  ============================================
NITF      NONE         any; integers to 32 bit, floats, CFloat32       IC=NC
NITF      JPEG         1 or 3; Byte                                    IC=C3, lossy
NITF      J2K, LZW     any; Byte, UInt16, Int16 (others as NONE)       IC=C8, lossy; LZW, which NITF lacks, warns
GTIFF     NONE         any; any                                        COMPRESS=NONE
GTIFF     LZW, J2K     any; any                                        COMPRESS=LZW; J2K, which GTIFF lacks, warns
GTIFF     JPEG         any; Byte                                       COMPRESS=JPEG, lossy
PNG       any          1 to 4; Byte, UInt16                            PNG, lossless; the compression means nothing
JPEG      any          1 or 3; Byte                                    JPEG at quality 75; likewise
========  ===========  ==============================================  ============================================
"""

from dataclasses import dataclass

from aws.osml.model_runner.common.typing import ImageCompression, ImageFormats
from aws.osml.model_runner.exceptions import TileEncodingError

_NITF_TYPES = frozenset({"Byte", "UInt16", "Int16", "UInt32", "Int32", "Float32", "Float64", "CFloat32"})
_J2K_TYPES = frozenset({"Byte", "UInt16", "Int16"})
_BYTE = frozenset({"Byte"})
_PNG_TYPES = frozenset({"Byte", "UInt16"})


@dataclass(frozen=True)
class TilePlan:
    """How a tile is written: GDAL's driver, its creation options, and what the user should be warned of."""

    driver: str
    options: tuple[str, ...] = ()
    warning: str | None = None

    @property
    def compresses(self) -> bool:
        """True where the bytes of a tile depend on its pixels, and not on their number alone."""
        return self.options not in (("IC=NC",), ("COMPRESS=NONE",))


def plan_tile(
    tile_format: ImageFormats, compression: ImageCompression | None, band_count: int, data_type: str
) -> TilePlan:
    """Return how to write tiles of ``band_count`` bands of GDAL's ``data_type``.

    Raises TileEncodingError when the format cannot hold them; the message names what would.
    """
    asked = compression or ImageCompression.NONE
    plan = _PLANNERS[tile_format](asked, band_count, data_type)
    if plan is None:
        raise TileEncodingError(
            f"tiles of format {tile_format} with compression {asked} cannot hold {band_count} band(s) of {data_type}; "
            f"use {formats_that_hold(band_count, data_type)}"
        )
    return plan


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


def _plan_png(_compression: ImageCompression, band_count: int, data_type: str) -> TilePlan | None:
    return TilePlan("PNG") if 1 <= band_count <= 4 and data_type in _PNG_TYPES else None


def _plan_jpeg(_compression: ImageCompression, band_count: int, data_type: str) -> TilePlan | None:
    return TilePlan("JPEG") if band_count in (1, 3) and data_type in _BYTE else None


_PLANNERS = {
    ImageFormats.NITF: _plan_nitf,
    ImageFormats.GTIFF: _plan_gtiff,
    ImageFormats.PNG: _plan_png,
    ImageFormats.JPEG: _plan_jpeg,
}


def formats_that_hold(band_count: int, data_type: str, must_compress: bool = False) -> str:
    """Return the pairs of format and compression that can hold such pixels without a warning, for a message."""
    return " or ".join(
        f"{tile_format}/{compression}" if tile_format in (ImageFormats.NITF, ImageFormats.GTIFF) else str(tile_format)
        for tile_format, planner in _PLANNERS.items()
        for compression in _DISTINCT[tile_format]
        if (plan := planner(compression, band_count, data_type)) is not None
        and plan.warning is None
        and (plan.compresses or not must_compress)
    )


_DISTINCT = {
    ImageFormats.NITF: (ImageCompression.NONE, ImageCompression.JPEG, ImageCompression.J2K),
    ImageFormats.GTIFF: (ImageCompression.NONE, ImageCompression.LZW, ImageCompression.JPEG),
    ImageFormats.PNG: (ImageCompression.NONE,),
    ImageFormats.JPEG: (ImageCompression.NONE,),
}
