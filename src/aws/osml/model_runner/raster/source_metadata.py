"""Source metadata of a NITF or a STAC Item, in the form that features carry, and how an Item differs from its file."""

from datetime import datetime
from typing import Any

import numpy as np
from osgeo import gdal, osr

from .band_stack import is_same_system
from .image_source import ImageSource

_DATE_FORM = "%Y%m%d%H%M%S"
# Pixels by which the corners of an image may lie elsewhere than its Item states.
_MAX_DRIFT_PX = 0.5


def source_metadata(source: ImageSource, url: str) -> dict[str, Any] | None:
    """Return ``{"sourceMetadata": [{…}]}`` to be added to each feature's properties; None for a file that has none.

    ``sourceDT`` is the acquisition date as ISO 8601 in UTC, or None where the header has no complete date. Where the
    image is one of a STAC Item, the Item's id, date, platform and collection come first.
    """
    item = source.item
    if source.driver_name != "NITF" and item is None:
        return None
    metadata = source.header.metadata
    about: dict[str, Any] = {
        "location": url,
        "format": source.extension,
        "category": metadata.get("NITF_ICAT"),
        "sourceId": metadata.get("NITF_FTITLE"),
        "sourceDT": acquisition_date(metadata.get("NITF_IDATIM", "")),
    }
    if item is not None:
        about["sourceId"] = item.item_id or about["sourceId"]
        about["sourceDT"] = item.datetime or about["sourceDT"]
        about |= {"collection": item.collection, "platform": item.platform, "gsd": item.gsd_m}
        about["assets"] = [asset.key for asset in item.assets]
    return {"sourceMetadata": [about]}


def difference_from_item(source: ImageSource) -> str:
    """Return how size, place or coordinate system of an image differ from its STAC Item; empty where they do not."""
    item, header = source.item, source.header
    if item is None:
        return ""
    differences = []
    if item.shape is not None and item.shape != (header.height, header.width):
        differences.append(f"proj:shape {list(item.shape)} for {[header.height, header.width]}")
    if item.transform is not None and header.geo_transform is not None:
        corners = [(x, y) for x in (0, header.width) for y in (0, header.height)]
        places = np.array(
            [
                [gdal.ApplyGeoTransform(transform, *corner) for corner in corners]
                for transform in (item.transform, header.geo_transform)
            ]
        )
        pixel = max(map(abs, (header.geo_transform[i] for i in (1, 2, 4, 5))))
        if np.abs(places[0] - places[1]).max() > _MAX_DRIFT_PX * pixel:
            differences.append("proj:transform for another grid")
    if item.crs is not None and item.crs.startswith("EPSG:"):
        system, stated = source.read(lambda handle: handle.dataset.GetSpatialRef()), osr.SpatialReference()
        try:
            is_same = system is None or (
                stated.ImportFromEPSG(int(item.crs.removeprefix("EPSG:"))) == 0 and is_same_system(system, stated)
            )
        except (RuntimeError, ValueError):
            is_same = False
        if not is_same:
            differences.append(f"{item.crs} for {system.GetName()}")
    if not differences:
        return ""
    return f"the STAC Item states {', '.join(differences)} of the file, which counts"


def acquisition_date(text: str) -> str | None:
    """Return a NITF date (``CCYYMMDDhhmmss``) as ISO 8601 with ``Z``; None when a part of it is not a number."""
    digits = text.strip()
    if len(digits) != len("CCYYMMDDhhmmss") or not digits.isdigit():
        return None
    try:
        return f"{datetime.strptime(digits, _DATE_FORM).isoformat()}Z"  # noqa: DTZ007  # NITF dates are UTC by definition
    except ValueError:
        return None
