"""Options of ``run`` and ``plan`` for the tiles that the model gets, and their members of an image request."""

import argparse
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from aws.osml.model_runner.common.typing import VALID_IMAGE_COMPRESSION, VALID_IMAGE_FORMATS

# How the parts of --stretch that follow its type are called in a request, and the parts that each type may have.
_STRETCH_PARTS = {"none": (), "minmax": ("min", "max"), "percentile": ("lower", "upper"), "sigma": ("n",)}

# Members of a request for the options of tiles that are not given.
TILE_DEFAULTS: Mapping[str, Any] = {
    "imageProcessorTileSize": 1024,
    "imageProcessorTileOverlap": 128,
    "imageProcessorTileFormat": "GTIFF",
    "imageProcessorTileCompression": "NONE",
}


# The URL of a mask may have colons itself; values or bits follow it, and a share.
_MASK = re.compile(r"(?P<file>.+?):(?P<bits>bits=)?(?P<list>[-\d.]+(?:,[-\d.]+)*)(?::(?P<above>[\d.]+))?")


def add_tile_options(parser: argparse.ArgumentParser, title: str = "tiles") -> None:
    """Add the options for size, format and pixels of tiles, and for the region of interest."""
    tiles = parser.add_argument_group(title)
    size, overlap, tile_format, compression = TILE_DEFAULTS.values()
    tiles.add_argument("--tile-size", type=int, default=size, metavar="PIXELS", help="width and height")
    tiles.add_argument(
        "--overlap", type=int, default=overlap, metavar="PIXELS", help="least overlap of neighbouring tiles"
    )
    tiles.add_argument(
        "--format",
        choices=VALID_IMAGE_FORMATS,
        default=tile_format,
        help="file format of the tiles that the model gets",
    )
    tiles.add_argument(
        "--compression", choices=VALID_IMAGE_COMPRESSION, default=compression, help="compression of the tiles"
    )
    pixels = parser.add_argument_group("pixels that the model gets (default: the image's own)")
    pixels.add_argument(
        "--bands", type=_bands, metavar="LIST", help="numbers or names in the order of the model, such as 5,3,2"
    )
    pixels.add_argument(
        "--stretch",
        type=_stretch,
        metavar="TYPE[:A[:B]][:all]",
        help="percentile:LOWER:UPPER, minmax:MIN:MAX, sigma:N or none; :all gives all bands one range",
    )
    pixels.add_argument("--pixel-type", choices=("uint8", "uint16", "float32"), help="type of the samples of a tile")
    size = pixels.add_mutually_exclusive_group()
    size.add_argument("--gsd", type=float, metavar="METRES", help="size of a model pixel on the ground")
    size.add_argument("--scale", type=float, metavar="FACTOR", help="model pixels per image pixel, 0.05 to 8")
    pixels.add_argument(
        "--resampling", choices=("nearest", "bilinear", "cubic", "average"), help="method of --gsd and --scale"
    )
    pixels.add_argument("--nodata-fill", type=float, metavar="VALUE", help="sample of pixels that are not valid")
    parser.add_argument(
        "--skip",
        type=_skip_rule,
        action="append",
        metavar="RULE",
        help="tiles that are not sent: nodata (the default), none, outside:FILE, inside:FILE, mask:FILE:VALUES[:ABOVE]"
        " or mask:FILE:bits=BITS[:ABOVE]. May be repeated. FILE may be a URL, and asset=KEY for a mask",
    )
    parser.add_argument(
        "--roi",
        type=_region_of_interest,
        metavar="WKT|FILE",
        help="region of interest: a POLYGON or MULTIPOLYGON in longitude and latitude, or a file of polygons"
        " (GeoJSON, GeoParquet or GeoPackage, or its URL)",
    )


def processor_input_of(arguments: argparse.Namespace) -> dict[str, Any] | None:
    """Return ``imageProcessorInput`` for the options that were given; None without any."""
    words = {"pixelType": arguments.pixel_type, "resampling": arguments.resampling}
    given = {
        "bands": arguments.bands,
        "stretch": arguments.stretch,
        "gsd": arguments.gsd,
        "scale": arguments.scale,
        "nodataFill": arguments.nodata_fill,
        **{name: word and word.upper() for name, word in words.items()},
    }
    return {name: value for name, value in given.items() if value is not None} or None


def request_members(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return the members of an image request for the options that ``add_tile_options`` adds."""
    members = {
        "imageProcessorTileSize": arguments.tile_size,
        "imageProcessorTileOverlap": arguments.overlap,
        "imageProcessorTileFormat": arguments.format,
        "imageProcessorTileCompression": arguments.compression,
        "imageProcessorInput": processor_input_of(arguments),
        "regionOfInterest": arguments.roi,
        "skip": skip_of(arguments),
    }
    return {name: value for name, value in members.items() if value is not None}


def skip_of(arguments: argparse.Namespace) -> list[dict[str, Any]] | None:
    """Return ``skip`` for the options that were given; None without any."""
    if arguments.skip is None:
        return None
    return [rule for rule in arguments.skip if rule]


def _skip_rule(text: str) -> dict[str, Any]:
    """Return a rule of ``skip``; an empty one for ``none``."""
    where, _, rest = text.partition(":")
    if text in ("none", "nodata"):
        return {} if text == "none" else {"where": "NODATA"}
    if where in ("outside", "inside") and rest:
        return {"where": where.upper(), "url": _file_url(rest)}
    found = _MASK.fullmatch(rest)
    if where != "mask" or not found:
        forms = "nodata, none, mask:FILE:VALUES[:ABOVE], mask:FILE:bits=BITS[:ABOVE], outside:FILE, inside:FILE"
        raise argparse.ArgumentTypeError(f"{text!r} is not one of {forms}")
    file = found["file"]
    is_asset = file.startswith("asset=")
    place = {"asset": file.removeprefix("asset=")} if is_asset else {"url": _file_url(file)}
    try:
        numbers = [float(number) for number in found["list"].split(",")]
        above = {} if found["above"] is None else {"above": float(found["above"])}
    except ValueError as err:
        raise argparse.ArgumentTypeError(f"{text!r} has a part that is not a number: {err}") from err
    samples = {"bits": [int(number) for number in numbers]} if found["bits"] else {"values": numbers}
    return {"where": "MASK", **place, **samples, **above}


def _file_url(file: str) -> str:
    return file if "://" in file else str(Path(file).expanduser().resolve())


def whole_number(text: str) -> int:
    """Return the number of an option; raises ArgumentTypeError unless it is a whole number of at least 1."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return int(text)


def _region_of_interest(text: str) -> str | dict[str, str]:
    """Return ``regionOfInterest`` of a request: WKT, or the URL or absolute path of a file."""
    path = Path(text).expanduser()
    if "(" in text and not path.is_file():
        return text
    return {"url": text if "://" in text else str(path.resolve())}


def _bands(text: str) -> list[int | str]:
    names = [name.strip() for name in text.split(",")]
    return [int(name) if name.isdecimal() else name for name in names]


def _stretch(text: str) -> dict[str, Any]:
    kind, *parts = text.lower().split(":")
    if kind not in _STRETCH_PARTS:
        raise argparse.ArgumentTypeError(f"{text!r} does not begin with one of {', '.join(_STRETCH_PARTS)}")
    stretch: dict[str, Any] = {"type": kind.upper()}
    if parts and parts[-1] == "all":
        stretch["per"] = "ALL"
        parts.pop()
    names = _STRETCH_PARTS[kind]
    if len(parts) > len(names):
        raise argparse.ArgumentTypeError(f"{text!r} has {len(parts)} numbers: {kind} takes at most {len(names)}")
    try:
        return stretch | {name: float(part) for name, part in zip(names, parts, strict=False) if part}
    except ValueError as err:
        raise argparse.ArgumentTypeError(f"{text!r} has a part that is not a number: {err}") from err
