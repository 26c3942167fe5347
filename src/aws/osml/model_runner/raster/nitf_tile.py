"""Metadata of a NITF tile: corners, SICD or SIDD document, RPC, title, category and date."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import structlog
from osgeo import gdal

from aws.osml.model_runner.common.typing import ImageRegion
from aws.osml.photogrammetry import GeodeticWorldCoordinate

from .georeference import ImageToWorld
from .rpc import RPCModel
from .sensor_model import UNREADABLE, parsed_des

logger = structlog.get_logger(__name__)

_IGEOLO_CHARS = 60
# Header fields of the source that are valid for a tile too; without these options GDAL writes constants.
_KEPT_FIELDS = ("FTITLE", "ICAT", "IDATIM")


class SarDocument:
    """The SICD or SIDD document of one dataset, rewritten for each tile. Not thread-safe."""

    def __init__(self, updater: Any | None, header: str | None) -> None:
        self._updater = updater
        self._header = header

    @classmethod
    def of(cls, dataset: Any, max_xml_bytes: int) -> "SarDocument":
        """Return the document of a NITF; an empty document where the NITF has none or it cannot be read."""
        if dataset.GetDriver().ShortName != "NITF":
            return cls(None, None)
        try:
            if not parsed_des(dataset, max_xml_bytes):
                return cls(None, None)
            from aws.osml.gdal import GDALImageFormats  # both: half a second, see sensor_model.py
            from aws.osml.image_processing import GDALTileFactory

            factory = GDALTileFactory(dataset, tile_format=GDALImageFormats.NITF)
        except UNREADABLE as err:
            logger.warning("tile.sar_document_unreadable", reason=f"{type(err).__name__}: {err}")
            return cls(None, None)
        return cls(factory.sar_updater, factory.sar_des_header)

    def options_for(self, tile: ImageRegion, band_count: int) -> list[str]:
        """Return creation options with the document adjusted to ``tile``; empty without a document."""
        if self._updater is None:
            return []
        (row, col), (width, height) = tile
        self._updater.update_image_data_for_chip([col, row, width, height], None)
        segment = f"{self._header}{self._updater.encode_current_xml()}"
        # GDAL removes one level of backslashes, so backslashes in the document must be doubled.
        options = ["ICAT=SAR", f"DES=XML_DATA_CONTENT={gdal.EscapeString(segment, gdal.CPLES_BackslashQuotable)}"]
        # Two bands are the parts of complex pixels, which are not for display.
        return [*options, "IREP=NODISPLY", "IREPBAND= , ", "ISUBCAT=I,Q"] if band_count == 2 else options


def corner_options(locate: ImageToWorld | None, tile: ImageRegion) -> list[str]:
    """Return creation options with the tile's four corners in seconds of arc; empty where one is off the Earth."""
    if locate is None:
        return []
    left, top, right, bottom = tile.origin.col, tile.origin.row, tile.right, tile.bottom
    places = locate(np.array([[left, top], [right, top], [right, bottom], [left, bottom]], dtype=np.float64))
    if not np.isfinite(places).all() or np.abs(places[:, 1]).max() > 90.0:
        return []
    longitudes = (places[:, 0] + 180.0) % 360.0 - 180.0
    corners = [
        GeodeticWorldCoordinate([np.radians(lon), np.radians(lat), 0.0]).to_dms_string()
        for lon, lat in zip(longitudes, places[:, 1], strict=True)
    ]
    text = "".join(corners)
    return ["ICORDS=G", f"IGEOLO={text}"] if len(text) == _IGEOLO_CHARS else []


def header_options(metadata: Mapping[str, str]) -> list[str]:
    """Return creation options that carry title, category and date over from a NITF's metadata."""
    return [f"{name}={metadata[f'NITF_{name}']}" for name in _KEPT_FIELDS if metadata.get(f"NITF_{name}")]


def keep_rpc(view: Any) -> None:
    """Make the RPC of the tile fit into RPC00B, or remove it: GDAL refuses offsets left of or above the tile."""
    metadata = view.GetMetadata("RPC")
    if not metadata:
        return
    try:
        rpc = RPCModel.from_metadata(metadata).encodable()
    except UNREADABLE as err:
        logger.warning("tile.rpc_dropped", reason=f"{type(err).__name__}: {err}")
        view.SetMetadata({}, "RPC")
        return
    view.SetMetadata(rpc.to_metadata(), "RPC")
