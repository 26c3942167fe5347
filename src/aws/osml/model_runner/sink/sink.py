"""Interface of all sinks."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import geojson
import orjson

from aws.osml.model_runner.api.sink import SinkMode
from aws.osml.model_runner.exceptions import Problem

from .delivery import Delivery
from .exceptions import SinkError


class Sink(ABC):
    """Delivers features to one output."""

    def __str__(self) -> str:
        return f"{self.name()} {self.mode.value}"

    @staticmethod
    @abstractmethod
    def name() -> str:
        """Name of this type of sink."""

    @property
    @abstractmethod
    def mode(self) -> SinkMode:
        """AGGREGATE if results are written per image, STREAMING if per tile."""

    @property
    def has_coverage(self) -> bool:
        """True if the output also gets the coverage of the image."""
        return False

    @abstractmethod
    def write(self, image_id: str, features: list[geojson.Feature]) -> bool:
        """Write all features of an image and return True on success; ``image_id`` names the result."""

    def check(self, job_id: str, result_name: str = "") -> list[Problem]:  # noqa: ARG002 - the names of a result
        """Return every reason why ``deliver`` can never write this result; nothing is written.

        The problems name fields of the output in a request. A sink that cannot be checked returns an empty list.

        Raises:
            SinkError: the service does not respond now, so the check is not complete.
        """
        return []

    def deliver(
        self,
        delivery: Delivery,
        on_progress: Callable[[int], None] = lambda _position: None,  # noqa: ARG002 - all or nothing
    ) -> None:
        """Write the remaining features of a delivery; a second call ends in the same state.

        A sink that can continue in the middle calls ``on_progress`` with the number of confirmed features. A sink that
        writes all or nothing does not call it. For a sink that implements only ``write``, all features are in memory
        at once, and no setting limits that.

        Raises:
            SinkError: the result was not written, or only a part of it; a retry may succeed.
            SinkPermanentError: a retry cannot succeed.
        """
        features: list[Any] = [orjson.loads(feature) for feature in delivery.bodies()]
        if not self.write(delivery.job_id, features):
            raise SinkError(f"the sink {self} did not write the features")
