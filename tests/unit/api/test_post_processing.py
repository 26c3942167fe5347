import dataclasses
import json
from decimal import Decimal
from enum import Enum

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aws.osml.model_runner.api.post_processing import (
    ABCEnumMeta,
    FeatureDistillationAlgorithmType,
    FeatureDistillationDeserializer,
    FeatureDistillationNMS,
    FeatureDistillationNone,
    FeatureDistillationSoftNMS,
    MRPostProcessing,
    MRPostProcessingDeserializer,
    MRPostprocessingStep,
    deserialize_post_processing_list,
    mr_post_processing_options_factory,
)
from aws.osml.model_runner.exceptions import FeatureDistillationException


def test_defaults_are_known_ones():
    assert FeatureDistillationNMS().iou_threshold == 0.75
    soft = FeatureDistillationSoftNMS()
    assert (soft.iou_threshold, soft.skip_box_threshold, soft.sigma) == (0.75, 0.0001, 0.1)
    assert MRPostProcessing().step == MRPostprocessingStep.FEATURE_DISTILLATION
    assert MRPostProcessing().algorithm == FeatureDistillationNMS()


def test_stored_form_is_known_one():
    assert json.dumps(FeatureDistillationNMS().to_dict()) == '{"algorithm_type": "NMS", "iou_threshold": 0.75}'
    assert FeatureDistillationSoftNMS().to_dict() == {
        "algorithm_type": "SOFT_NMS",
        "iou_threshold": 0.75,
        "skip_box_threshold": 0.0001,
        "sigma": 0.1,
    }


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"algorithm_type": "NMS"}, FeatureDistillationNMS()),
        ({"algorithm_type": "NMS", "iou_threshold": Decimal("0.5")}, FeatureDistillationNMS(iou_threshold=0.5)),
        ({"algorithm_type": "NMS", "skip_box_threshold": "0.2"}, FeatureDistillationNMS(skip_box_threshold=0.2)),
        ({"algorithm_type": "NMS", "sigma": 1}, FeatureDistillationNMS()),
        ({"algorithm_type": "SOFT-NMS", "sigma": "0.3"}, FeatureDistillationSoftNMS(sigma=0.3)),
        ({"algorithm_type": "SOFT_NMS", "sigma": None}, FeatureDistillationSoftNMS()),
        ({"algorithm_type": "NONE"}, FeatureDistillationNone()),
    ],
)
def test_options_are_read(options, expected):
    assert FeatureDistillationDeserializer.deserialize(options) == expected


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"algorithm_type": None},
        {"algorithm_type": "WBF"},
        {"algorithm_type": ["NMS"]},
        {"algorithm_type": "NMS", "iou_threshold": "much"},
        {"algorithm_type": "NMS", "iou_threshold": [1]},
    ],
)
def test_options_that_cannot_be_read_are_refused(options):
    with pytest.raises(FeatureDistillationException):
        FeatureDistillationDeserializer.deserialize(options)


def test_list_of_steps_is_read():
    steps = deserialize_post_processing_list(
        [{"step": "FEATURE_DISTILLATION", "algorithm": {"algorithm_type": "NONE"}}]
    )
    assert steps == [MRPostProcessing(algorithm=FeatureDistillationNone())]
    assert deserialize_post_processing_list([]) == []


@pytest.mark.parametrize("entry", [{}, {"step": "SORT"}, {"step": "FEATURE_DISTILLATION"}])
def test_step_that_does_not_exist_is_refused(entry):
    with pytest.raises(FeatureDistillationException):
        deserialize_post_processing_list([entry])


def test_reader_of_step():
    reader = MRPostProcessingDeserializer.get_deserializer(MRPostprocessingStep.FEATURE_DISTILLATION)
    assert isinstance(reader, FeatureDistillationDeserializer)


@pytest.mark.parametrize("name", ["SOFT-NMS", "SOFT_NMS"])
def test_both_spellings_of_soft_nms(name):
    assert FeatureDistillationAlgorithmType.of(name) is FeatureDistillationAlgorithmType.SOFT_NMS


def test_enumerations_can_be_abstract():
    class Colour(Enum, metaclass=ABCEnumMeta):
        RED = 1

    assert Colour(1) is Colour.RED


share = st.floats(0, 1)


@given(
    st.builds(FeatureDistillationNMS, iou_threshold=share, skip_box_threshold=st.none() | share)
    | st.builds(FeatureDistillationSoftNMS, iou_threshold=share, skip_box_threshold=share, sigma=st.floats(0.01, 9))
    | st.builds(FeatureDistillationNone, iou_threshold=share)
)
def test_algorithm_survives_table(algorithm):
    text = json.dumps(algorithm.to_dict())
    assert FeatureDistillationDeserializer.deserialize(json.loads(text)) == algorithm
    step = MRPostProcessing(algorithm=algorithm)
    stored = dataclasses.asdict(step, dict_factory=mr_post_processing_options_factory)
    assert deserialize_post_processing_list([json.loads(json.dumps(stored))]) == [step]
