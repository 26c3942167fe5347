"""Options for processing all features of an image before delivery."""

import dataclasses
from abc import ABC, ABCMeta, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from enum import Enum, EnumMeta, StrEnum
from typing import Any, ClassVar

from aws.osml.model_runner.exceptions import FeatureDistillationException

DEFAULT_IOU_THRESHOLD = 0.75
DEFAULT_SEAM_THRESHOLD = 0.5
DEFAULT_SKIP_BOX_THRESHOLD = 0.0001
DEFAULT_SIGMA = 0.1


class ABCEnumMeta(ABCMeta, EnumMeta):
    """Metaclass of an enumeration that is also an abstract class."""


class MRPostProcessingAlgorithmType(StrEnum):
    """Base of the enumerations of algorithms; each step has its own."""


class FeatureDistillationAlgorithmType(MRPostProcessingAlgorithmType):
    """Algorithms that reduce several features of one object to one feature."""

    SEAM = "SEAM"
    NMS = "NMS"
    SOFT_NMS = "SOFT_NMS"
    NONE = "NONE"

    @classmethod
    def of(cls, name: str) -> "FeatureDistillationAlgorithmType":
        """Return the member for its value, or for ``SOFT-NMS`` as the model guide spells it.

        Raises FeatureDistillationException for any other name.
        """
        try:
            return cls(name.replace("-", "_") if isinstance(name, str) else name)
        except ValueError as err:
            choices = ", ".join(cls)
            raise FeatureDistillationException(f"unknown algorithm {name!r}; allowed are {choices}") from err


class MRPostprocessingStep(StrEnum):
    """Steps of post-processing."""

    FEATURE_DISTILLATION = "FEATURE_DISTILLATION"


@dataclasses.dataclass(frozen=True)
class MRPostProcessingAlgorithm(ABC):
    """An algorithm with its options."""

    algorithm_type: MRPostProcessingAlgorithmType

    def to_dict(self) -> dict[str, Any]:
        """Return the algorithm's name and options in snake_case; unset options are omitted."""
        return dataclasses.asdict(self, dict_factory=mr_post_processing_options_factory)


@dataclasses.dataclass(frozen=True)
class FeatureDistillationAlgorithm(MRPostProcessingAlgorithm):
    """An algorithm that reduces several features to one; ``iou_threshold`` is a share in [0, 1]."""

    algorithm_type: FeatureDistillationAlgorithmType
    iou_threshold: float = DEFAULT_IOU_THRESHOLD


class OverlapMetric(StrEnum):
    """Denominator for the shared area of two features: the smaller area (IOS) or the area of the union (IOU)."""

    IOS = "IOS"
    IOU = "IOU"


class SeamMerge(StrEnum):
    """Delivery of the parts of one object: the strongest part, or the union of all parts."""

    STRONGEST = "STRONGEST"
    UNION = "UNION"


@dataclasses.dataclass(frozen=True)
class FeatureDistillationSeam(FeatureDistillationAlgorithm):
    """Keep the strongest of the features of one object in different tiles; see ``features.seam_merge``.

    Two areas are one object if their ``metric`` is above ``iou_threshold``. Two points or lines are one object if their
    distance is at most ``distance_px``, by default a share of the tiles' overlap. Only features of one class are
    compared, unless ``is_class_agnostic``.
    """

    algorithm_type: FeatureDistillationAlgorithmType = FeatureDistillationAlgorithmType.SEAM
    iou_threshold: float = DEFAULT_SEAM_THRESHOLD
    metric: OverlapMetric = OverlapMetric.IOS
    is_class_agnostic: bool = False
    merge: SeamMerge = SeamMerge.STRONGEST
    distance_px: float | None = None


@dataclasses.dataclass(frozen=True)
class FeatureDistillationNMS(FeatureDistillationAlgorithm):
    """Drop the feature with the lower score of two features of a class with an IoU above ``iou_threshold``.

    If ``skip_box_threshold`` is set, also drop features whose score is not above it; features without a score are
    kept.
    """

    algorithm_type: FeatureDistillationAlgorithmType = FeatureDistillationAlgorithmType.NMS
    skip_box_threshold: float | None = None


@dataclasses.dataclass(frozen=True)
class FeatureDistillationSoftNMS(FeatureDistillationAlgorithm):
    """Multiply a score by exp(-IoU^2 / sigma) for each stronger feature; drop it at ``skip_box_threshold``."""

    algorithm_type: FeatureDistillationAlgorithmType = FeatureDistillationAlgorithmType.SOFT_NMS
    skip_box_threshold: float = DEFAULT_SKIP_BOX_THRESHOLD
    sigma: float = DEFAULT_SIGMA


@dataclasses.dataclass(frozen=True)
class FeatureDistillationNone(FeatureDistillationAlgorithm):
    """Keep all features."""

    algorithm_type: FeatureDistillationAlgorithmType = FeatureDistillationAlgorithmType.NONE


@dataclasses.dataclass(frozen=True)
class MRPostProcessing:
    """One step and its algorithm."""

    step: MRPostprocessingStep = MRPostprocessingStep.FEATURE_DISTILLATION
    algorithm: MRPostProcessingAlgorithm = dataclasses.field(default_factory=FeatureDistillationNMS)


class PostProcessingDeserializer(ABC):
    """Reads the options of one step."""

    @staticmethod
    @abstractmethod
    def deserialize(post_processing_algorithm: dict[str, Any]) -> MRPostProcessingAlgorithm:
        """Return the algorithm of a snake_case dict."""


class FeatureDistillationDeserializer(PostProcessingDeserializer):
    """Reads the options of feature distillation."""

    algorithms: ClassVar[Mapping[FeatureDistillationAlgorithmType, type[FeatureDistillationAlgorithm]]] = {
        FeatureDistillationAlgorithmType.SEAM: FeatureDistillationSeam,
        FeatureDistillationAlgorithmType.NMS: FeatureDistillationNMS,
        FeatureDistillationAlgorithmType.SOFT_NMS: FeatureDistillationSoftNMS,
        FeatureDistillationAlgorithmType.NONE: FeatureDistillationNone,
    }

    @staticmethod
    def deserialize(post_processing_algorithm: dict[str, Any]) -> FeatureDistillationAlgorithm:
        """Return the algorithm of ``{"algorithm_type", "iou_threshold", …}``.

        Options that the algorithm does not have are ignored. Numbers may be text or Decimals, as rows store them.
        Raises FeatureDistillationException for an unknown algorithm or an invalid option.
        """
        options = dict(post_processing_algorithm)
        chosen = FeatureDistillationAlgorithmType.of(options.pop("algorithm_type", ""))
        algorithm = FeatureDistillationDeserializer.algorithms[chosen]
        known = {field.name for field in dataclasses.fields(algorithm)}
        try:
            values = {
                name: _OPTION_KINDS.get(name, float)(value)
                for name, value in options.items()
                if name in known and value is not None
            }
        except (TypeError, ValueError, ArithmeticError) as err:
            raise FeatureDistillationException(f"the options of {chosen} cannot be read: {err}") from err
        return algorithm(algorithm_type=chosen, **values)


def _flag(value: Any) -> bool:
    if not isinstance(value, bool):
        raise TypeError(f"{value!r} is neither true nor false")
    return value


# Converters of options; all other options are numbers.
_OPTION_KINDS: Mapping[str, Callable[[Any], Any]] = {
    "metric": OverlapMetric,
    "merge": SeamMerge,
    "is_class_agnostic": _flag,
}


class MRPostProcessingDeserializer:
    """Finds the deserializer of each step."""

    @staticmethod
    def get_deserializer(step: MRPostprocessingStep) -> PostProcessingDeserializer:
        """Return the deserializer of a step; raises FeatureDistillationException for an unknown step."""
        if step != MRPostprocessingStep.FEATURE_DISTILLATION:
            raise FeatureDistillationException(f"unknown post-processing step {step!r}")
        return FeatureDistillationDeserializer()


def deserialize_post_processing_list(mr_processing_list: list[dict[str, Any]]) -> list[MRPostProcessing]:
    """Return the steps of ``[{"step", "algorithm": {…}}]``, in order.

    Raises FeatureDistillationException for an unknown step or invalid options.
    """
    steps = []
    for entry in mr_processing_list:
        reader = MRPostProcessingDeserializer.get_deserializer(entry.get("step", ""))
        algorithm = reader.deserialize(entry.get("algorithm") or {})
        steps.append(MRPostProcessing(MRPostprocessingStep(entry["step"]), algorithm))
    return steps


def mr_post_processing_options_factory(properties_list: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    """Return a dataclass's fields as a dict for JSON: enumerations as values, unset fields omitted.

    Use it as the ``dict_factory`` of ``dataclasses.asdict``.
    """
    return {
        name: value.value if isinstance(value, Enum) else value for name, value in properties_list if value is not None
    }
