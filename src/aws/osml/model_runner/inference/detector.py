"""The interface of model endpoints: bytes of a tile in, bytes of a response out; and what all detectors share."""

import threading
from abc import ABC, abstractmethod
from collections.abc import Callable
from io import BufferedReader
from typing import TYPE_CHECKING

from aws.osml.model_runner.api.inference import ModelInvokeMode
from aws.osml.model_runner.common.typing import EncodedTile, ImageFormats
from aws.osml.model_runner.exceptions import ModelCallError, ModelErrorClass

from .call_errors import ModelErrorCode

if TYPE_CHECKING:
    from aws_embedded_metrics.logger.metrics_logger import MetricsLogger
    from geojson import FeatureCollection

# Media types under which tiles are sent.
CONTENT_TYPES = {
    ImageFormats.NITF: "image/nitf",
    ImageFormats.GTIFF: "image/tiff",
    ImageFormats.PNG: "image/png",
    ImageFormats.JPEG: "image/jpeg",
}

_PIECE_BYTES = 64 * 1024


class Detector(ABC):
    """A model endpoint. Any thread may call it; ``request_count`` counts the calls that were sent."""

    def __init__(self, endpoint: str) -> None:
        self.endpoint = endpoint
        self.request_count = 0
        self._count_lock = threading.Lock()

    @property
    @abstractmethod
    def mode(self) -> ModelInvokeMode:
        """How the endpoint is called."""

    @abstractmethod
    def find_features(self, payload: BufferedReader | bytes, metrics: "MetricsLogger | None") -> "FeatureCollection":
        """Call the model once with a tile and return its detections, in pixels of that tile.

        Raises:
            ModelCallError: the call failed; its class decides whether to retry.
            BadModelResponseError: the response is not a feature collection.
        """

    @abstractmethod
    def invoke(self, tile: EncodedTile) -> bytes:
        """Call the model once and return the body of its response.

        Raises:
            ModelCallError: the call failed; its class decides whether to retry.
        """

    def refresh_credentials(self) -> None:  # noqa: B027 - an endpoint without credentials has none to refresh
        """Sign the next call with new credentials, where the endpoint requires credentials."""

    def close(self) -> None:  # noqa: B027 - most detectors share their connections with others
        """Close the connections that only this detector uses; a later call opens new ones."""

    def _count_request(self) -> None:
        with self._count_lock:
            self.request_count += 1


def content_type_of(tile_format: str | None) -> str | None:
    """Return the media type of a tile format; None when the format is not known, as in version 2."""
    return CONTENT_TYPES[ImageFormats(tile_format)] if tile_format else None


def read_bounded(read1: Callable[[int], bytes], max_bytes: int, deadline_s: float, clock: Callable[[], float]) -> bytes:
    """Read a response's body until ``read1`` returns nothing: at most ``max_bytes``, while ``clock() <= deadline_s``.

    ``read1`` returns the bytes that have arrived, at most its argument. So a server that sends a byte at a time cannot
    exceed the deadline by more than one piece.

    Raises:
        ModelCallError: permanent when the body is too long, transient when it came too slowly.
    """
    pieces: list[bytes] = []
    size = 0
    while piece := read1(_PIECE_BYTES):
        pieces.append(piece)
        size += len(piece)
        if size > max_bytes:
            message = f"the model's response is longer than {max_bytes} bytes"
            raise ModelCallError(message, ModelErrorClass.PERMANENT, ModelErrorCode.BAD_RESPONSE)
        if clock() > deadline_s:
            raise ModelCallError("the response came too slowly", ModelErrorClass.TRANSIENT, ModelErrorCode.TIMEOUT)
    return b"".join(pieces)
