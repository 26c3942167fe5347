"""What a request asks to be done with all features of an image before they are delivered."""

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
    """The metaclass of an enumeration that is an abstract class too."""


class MRPostProcessingAlgorithmType(StrEnum):
    """The kinds of algorithms of one step; each step has an enumeration of its own."""


class FeatureDistillationAlgorithmType(MRPostProcessingAlgorithmType):
    """How features that report the same object become one."""

    SEAM = "SEAM"
    NMS = "NMS"
    SOFT_NMS = "SOFT_NMS"
    NONE = "NONE"

    @classmethod
    def of(cls, name: str) -> "FeatureDistillationAlgorithmType":
        """Return the member that ``name`` means: its value, or ``SOFT-NMS`` as the model guide spells it.

        Raises FeatureDistillationException for any other name.
        """
        try:
            return cls(name.replace("-", "_") if isinstance(name, str) else name)
        except ValueError as err:
            choices = ", ".join(cls)
            raise FeatureDistillationException(f"no algorithm {name!r}; there are {choices}") from err


class MRPostprocessingStep(StrEnum):
    """The steps that exist."""

    FEATURE_DISTILLATION = "FEATURE_DISTILLATION"


@dataclasses.dataclass(frozen=True)
class MRPostProcessingAlgorithm(ABC):
    """An algorithm with its options."""

    algorithm_type: MRPostProcessingAlgorithmType

    def to_dict(self) -> dict[str, Any]:
        """Return the algorithm's name and options in snake_case; options that are not set are left out."""
        return dataclasses.asdict(self, dict_factory=mr_post_processing_options_factory)


@dataclasses.dataclass(frozen=True)
class FeatureDistillationAlgorithm(MRPostProcessingAlgorithm):
    """A way to make one feature of several; ``iou_threshold`` is a share in [0, 1]."""

    algorithm_type: FeatureDistillationAlgorithmType
    iou_threshold: float = DEFAULT_IOU_THRESHOLD


class OverlapMetric(StrEnum):
    """What the area that two features share is compared with: the smaller of them, or both together."""

    IOS = "IOS"
    IOU = "IOU"


class SeamMerge(StrEnum):
    """What becomes of the parts of one object: the strongest is delivered, or all of them joined."""

    STRONGEST = "STRONGEST"
    UNION = "UNION"


@dataclasses.dataclass(frozen=True)
class FeatureDistillationSeam(FeatureDistillationAlgorithm):
    """Of features that different tiles report of one object the strongest stays; see ``features.seam_merge``.

    Areas are one object where ``metric`` is above ``iou_threshold``, within a class unless ``is_class_agnostic``;
    points and lines where they are no farther apart than ``distance_px``, by default a part of the tiles' overlap.
    """

    algorithm_type: FeatureDistillationAlgorithmType = FeatureDistillationAlgorithmType.SEAM
    iou_threshold: float = DEFAULT_SEAM_THRESHOLD
    metric: OverlapMetric = OverlapMetric.IOS
    is_class_agnostic: bool = False
    merge: SeamMerge = SeamMerge.STRONGEST
    distance_px: float | None = None


@dataclasses.dataclass(frozen=True)
class FeatureDistillationNMS(FeatureDistillationAlgorithm):
    """Of two features of one class with an IoU above ``iou_threshold`` the one with the lower score goes.

    A feature with a score at or below ``skip_box_threshold`` goes too, when that is set; one without a score stays.
    """

    algorithm_type: FeatureDistillationAlgorithmType = FeatureDistillationAlgorithmType.NMS
    skip_box_threshold: float | None = None


@dataclasses.dataclass(frozen=True)
class FeatureDistillationSoftNMS(FeatureDistillationAlgorithm):
    """A feature's score decays by exp(-IoU^2 / sigma) for every better one; at ``skip_box_threshold`` it goes."""

    algorithm_type: FeatureDistillationAlgorithmType = FeatureDistillationAlgorithmType.SOFT_NMS
    skip_box_threshold: float = DEFAULT_SKIP_BOX_THRESHOLD
    sigma: float = DEFAULT_SIGMA


@dataclasses.dataclass(frozen=True)
class FeatureDistillationNone(FeatureDistillationAlgorithm):
    """Every feature stays."""

    algorithm_type: FeatureDistillationAlgorithmType = FeatureDistillationAlgorithmType.NONE


@dataclasses.dataclass(frozen=True)
class MRPostProcessing:
    """One step with the algorithm that carries it out."""

    step: MRPostprocessingStep = MRPostprocessingStep.FEATURE_DISTILLATION
    algorithm: MRPostProcessingAlgorithm = dataclasses.field(default_factory=FeatureDistillationNMS)


class PostProcessingDeserializer(ABC):
    """Reads the options of one step."""

    @staticmethod
    @abstractmethod
    def deserialize(post_processing_algorithm: dict[str, Any]) -> MRPostProcessingAlgorithm:
        """Return the algorithm that a snake_case dict describes."""


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
        """Return the algorithm that ``{"algorithm_type", "iou_threshold", …}`` describes.

        Options that the algorithm does not have are left out, and numbers may be text or Decimals, as tables hold them.
        Raises FeatureDistillationException for an unknown algorithm or an option that cannot be read.
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


# What is read from an option's value; all others are numbers.
_OPTION_KINDS: Mapping[str, Callable[[Any], Any]] = {
    "metric": OverlapMetric,
    "merge": SeamMerge,
    "is_class_agnostic": _flag,
}


class MRPostProcessingDeserializer:
    """Knows who reads the options of each step."""

    @staticmethod
    def get_deserializer(step: MRPostprocessingStep) -> PostProcessingDeserializer:
        """Return the reader of a step's options; raises FeatureDistillationException for a step that does not exist."""
        if step != MRPostprocessingStep.FEATURE_DISTILLATION:
            raise FeatureDistillationException(f"no post-processing step {step!r}")
        return FeatureDistillationDeserializer()


def deserialize_post_processing_list(mr_processing_list: list[dict[str, Any]]) -> list[MRPostProcessing]:
    """Return the steps that ``[{"step", "algorithm": {…}}]`` describes, in order.

    Raises FeatureDistillationException when a step or its options cannot be read.
    """
    steps = []
    for entry in mr_processing_list:
        reader = MRPostProcessingDeserializer.get_deserializer(entry.get("step", ""))
        algorithm = reader.deserialize(entry.get("algorithm") or {})
        steps.append(MRPostProcessing(MRPostprocessingStep(entry["step"]), algorithm))
    return steps


def mr_post_processing_options_factory(properties_list: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    """Return a dict of a dataclass's fields fit for JSON: enumerations as their values, unset fields left out.

    Meant as the ``dict_factory`` of ``dataclasses.asdict``.
    """
    return {
        name: value.value if isinstance(value, Enum) else value for name, value in properties_list if value is not None
    }
