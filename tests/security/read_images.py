"""Opens images as a worker does and cuts two tiles of each, in a process that an image may end.

``python read_images.py SIDE PATH…`` prints one JSON object for each path, when it is done with it.
"""

import json
import logging
import os
import sys
from pathlib import Path

import structlog

from aws.osml.model_runner.api.image_url import parse_image_url
from aws.osml.model_runner.common.typing import ImageCoord, ImageDimensions, ImageRegion
from aws.osml.model_runner.exceptions import ModelRunnerError
from aws.osml.model_runner.raster import (
    RasterSettings,
    TileEncoder,
    configure_gdal,
    extents,
    open_image,
    source_metadata,
)


def read(path: str, side: int) -> dict[str, object]:
    try:
        source = open_image(parse_image_url(path), RasterSettings())
    except ModelRunnerError as err:
        return {"problem": str(err)}
    try:
        width, height = min(side, source.width), min(side, source.height)
        encoder = TileEncoder(source, "GTIFF", "NONE")
        encoder.check(ImageDimensions(width, height))
        source_metadata(source, path)
        is_placed = source.sensor_model is not None and bool(extents(source))
        for row, col in {(0, 0), (source.height - height, source.width - width)}:
            encoder.encode(ImageRegion(ImageCoord(row, col), ImageDimensions(width, height)))
    except ModelRunnerError as err:
        return {"problem": str(err), "is_tile": True}
    finally:
        source.close()
    return {"size": [source.width, source.height], "is_placed": is_placed, "metadata": dict(source.header.metadata)}


def peak_memory_kib() -> int:
    """Return the peak memory of this program; ``getrusage`` would include the memory of its parent."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0])


def main() -> None:
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    configure_gdal(RasterSettings(), os.environ)
    side = int(sys.argv[1])
    for path in sys.argv[2:]:
        result = read(path, side)
        peak_kib = peak_memory_kib()
        print(json.dumps({"path": path, "peak_kib": peak_kib} | result), flush=True)


if __name__ == "__main__":
    main()
