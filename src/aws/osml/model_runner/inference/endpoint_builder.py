"""The interface of detector builders, under its published path."""

from abc import ABC, abstractmethod

from .detector import Detector


class FeatureEndpointBuilder(ABC):
    """Builds a detector for one way of calling a model."""

    @abstractmethod
    def build(self) -> Detector | None:
        """Return the detector; None where no detector of this kind exists."""
