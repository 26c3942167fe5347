"""What a SageMaker endpoint may be called."""

import re

from aws.osml.model_runner.exceptions import Problem, UnsupportedModelException

_ENDPOINT_NAME = re.compile(r"[a-zA-Z0-9](-*[a-zA-Z0-9]){0,62}", re.ASCII)


def check_endpoint_name(name: str) -> None:
    """Raise UnsupportedModelException for a name that CreateEndpoint would not have taken."""
    if not _ENDPOINT_NAME.fullmatch(name):
        expectation = "expected the name of a SageMaker endpoint: at most 63 letters, digits and inner hyphens"
        raise UnsupportedModelException(
            "this endpoint may not be called", [Problem("imageProcessor.name", name[:80], expectation)]
        )
