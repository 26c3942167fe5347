"""Options of ``run`` for the protocol of the model, as keys of ``imageProcessor`` of an image request."""

import argparse
import json
from pathlib import Path
from typing import Any

# The names are repeated here, so that ``--help`` does not import the schema.
PROTOCOLS = (
    "OSML",
    "TORCHSERVE",
    "HUGGING_FACE",
    "ROBOFLOW",
    "ULTRALYTICS",
    "SAGEMAKER_DETECTION",
    "KSERVE_V2",
    "KSERVE_V2_IMAGE",
    "CUSTOM",
)


def add_protocol_options(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    protocol = parser.add_argument_group("protocol of the model (default: a tile in, GeoJSON in its pixels out)")
    protocol.add_argument("--protocol", choices=PROTOCOLS, help="kind of server that serves the model")
    protocol.add_argument(
        "--envelope", type=_object, metavar="JSON|FILE", help="body of a call, as imageProcessor.envelope of a request"
    )
    protocol.add_argument(
        "--answer", type=_object, metavar="JSON|FILE", help="reader of the response, as imageProcessor.answer"
    )


def protocol_of(arguments: argparse.Namespace) -> dict[str, Any] | None:
    """Return the keys of ``imageProcessor`` for the options that were given; None without any."""
    given = {name: getattr(arguments, name) for name in ("protocol", "envelope", "answer")}
    return {name: value for name, value in given.items() if value is not None} or None


def _object(text: str) -> dict[str, Any]:
    try:
        content = text if text.lstrip().startswith("{") else Path(text).read_text(encoding="utf-8")
        document = json.loads(content)
    except (OSError, ValueError) as err:
        raise argparse.ArgumentTypeError(f"{text[:80]!r} is neither JSON nor a file that holds JSON: {err}") from err
    if not isinstance(document, dict):
        raise argparse.ArgumentTypeError(f"{text[:80]!r} is not a JSON object")
    return document
