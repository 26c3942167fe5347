"""What every output is to the rest of the runner."""

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
    """The mechanism by which features are sent to their destination."""

    def __str__(self) -> str:
        return f"{self.name()} {self.mode.value}"

    @staticmethod
    @abstractmethod
    def name() -> str:
        """The name of this kind of sink."""

    @property
    @abstractmethod
    def mode(self) -> SinkMode:
        """Whether results are written per image (aggregate) or per tile (streaming)."""

    @abstractmethod
    def write(self, image_id: str, features: list[geojson.Feature]) -> bool:
        """Write all features of an image and tell whether that succeeded; ``image_id`` names the result."""

    def check(self, job_id: str, result_name: str = "") -> list[Problem]:  # noqa: ARG002 - the names of a result
        """Return every reason for which ``deliver`` can never write this result; nothing is written.

        The fields of the problems are those of the output in a request. A sink that cannot be checked has no problems.

        Raises:
            SinkError: the service cannot answer now, so nothing is known.
        """
        return []

    def deliver(
        self,
        delivery: Delivery,
        on_progress: Callable[[int], None] = lambda _position: None,  # noqa: ARG002 - all or nothing
    ) -> None:
        """Write what is left of a delivery; done again, it ends in the same state.

        A sink that can go on in the middle tells ``on_progress`` up to which index features are confirmed; one that
        writes all or nothing tells it nothing. A sink that only knows ``write`` is given a list of all features, which
        takes as much memory as they are: no setting limits it.

        Raises:
            SinkError: nothing, or not everything, was written; another try may help.
            SinkPermanentError: no further try can help.
        """
        features: list[Any] = [orjson.loads(feature) for feature in delivery.bodies()]
        if not self.write(delivery.job_id, features):
            raise SinkError(f"the sink {self} did not take the features")
