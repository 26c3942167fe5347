"""What every model endpoint is to the rest of the runner: bytes of a tile in, bytes of an answer out."""

import threading
from abc import ABC, abstractmethod
from io import BufferedReader
from typing import TYPE_CHECKING

from aws.osml.model_runner.api.inference import ModelInvokeMode
from aws.osml.model_runner.common.typing import EncodedTile

if TYPE_CHECKING:
    from aws_embedded_metrics.logger.metrics_logger import MetricsLogger
    from geojson import FeatureCollection


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
        """Call the model once with a tile and return what it found, in pixels of that tile.

        Raises:
            ModelCallError: the call failed; its class says what may help.
            BadModelResponseError: the answer is no feature collection.
        """

    @abstractmethod
    def invoke(self, tile: EncodedTile) -> bytes:
        """Call the model once and return its answer as it came.

        Raises:
            ModelCallError: the call failed; its class says what may help.
        """

    def refresh_credentials(self) -> None:  # noqa: B027 - an endpoint without credentials has none to refresh
        """Sign the next call with new credentials, where the endpoint wants any."""

    def close(self) -> None:  # noqa: B027 - most detectors share their connections with others
        """Let go of connections that are the detector's own; a later call opens new ones."""

    def _count_request(self) -> None:
        with self._count_lock:
            self.request_count += 1
