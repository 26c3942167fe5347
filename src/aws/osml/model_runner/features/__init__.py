"""From what a model said to what is delivered: pure functions over dictionaries and arrays."""

from .answer import ParsedAnswer, check_features, parse_answer
from .encoding import EncodedFeatures, decode_feature, encode_feature, encode_features
from .image_geometry import feature_image_bounds, find_image_geometry
from .location_grid import LocationGrid
from .properties import (
    INTERNAL_PREFIX,
    FeatureStamp,
    convert_deprecated_feature_properties,
    feature_id,
    finalize_feature,
)
from .refinement import refine_features
from .selection import FeatureSelector

__all__ = [
    "INTERNAL_PREFIX",
    "EncodedFeatures",
    "FeatureSelector",
    "FeatureStamp",
    "LocationGrid",
    "ParsedAnswer",
    "check_features",
    "convert_deprecated_feature_properties",
    "decode_feature",
    "encode_feature",
    "encode_features",
    "feature_id",
    "feature_image_bounds",
    "finalize_feature",
    "find_image_geometry",
    "parse_answer",
    "refine_features",
]
