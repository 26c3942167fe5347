"""Turns a model's responses into delivered features. Pure functions of dictionaries and arrays."""

from .encoding import EncodedFeatures, decode_feature, encode_feature, encode_features
from .geolocation import refine_features
from .geolocation_grid import LocationGrid
from .image_geometry import feature_image_bounds, find_image_geometry
from .model_response import ParsedResponse, check_features, parse_response
from .properties import (
    INTERNAL_PREFIX,
    FeatureStamp,
    convert_deprecated_feature_properties,
    feature_id,
    finalize_feature,
)
from .selection import FeatureSelector

__all__ = [
    "INTERNAL_PREFIX",
    "EncodedFeatures",
    "FeatureSelector",
    "FeatureStamp",
    "LocationGrid",
    "ParsedResponse",
    "check_features",
    "convert_deprecated_feature_properties",
    "decode_feature",
    "encode_feature",
    "encode_features",
    "feature_id",
    "feature_image_bounds",
    "finalize_feature",
    "find_image_geometry",
    "parse_response",
    "refine_features",
]
