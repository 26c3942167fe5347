"""What builds a detector of one kind."""

from abc import ABC, abstractmethod

from .detector import Detector


class FeatureEndpointBuilder(ABC):
    """Builds the detector of one way of calling a model."""

    @abstractmethod
    def build(self) -> Detector | None:
        """Return the detector, or None when there is none of this kind."""
