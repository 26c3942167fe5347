"""Model endpoints: calls, the meaning of their failures, and retries."""

from .call_errors import ModelErrorCode
from .detector import Detector
from .endpoint_address import EndpointAddress, parse_endpoint_address
from .endpoint_builder import FeatureEndpointBuilder
from .endpoint_factory import FeatureDetectorFactory
from .exceptions import FeatureDistillationException, InvalidFeaturePropertiesException, ModelJobError
from .http_detector import CallTimeouts, HTTPDetector, HTTPDetectorBuilder
from .retry import Action, Decision, ModelResponse, RetryBudget, RetryPolicy, decide, invoke_with_retries
from .sm_detector import SMDetector, SMDetectorBuilder

__all__ = [
    "Action",
    "CallTimeouts",
    "Decision",
    "Detector",
    "EndpointAddress",
    "FeatureDetectorFactory",
    "FeatureDistillationException",
    "FeatureEndpointBuilder",
    "HTTPDetector",
    "HTTPDetectorBuilder",
    "InvalidFeaturePropertiesException",
    "ModelErrorCode",
    "ModelJobError",
    "ModelResponse",
    "RetryBudget",
    "RetryPolicy",
    "SMDetector",
    "SMDetectorBuilder",
    "decide",
    "invoke_with_retries",
    "parse_endpoint_address",
]
