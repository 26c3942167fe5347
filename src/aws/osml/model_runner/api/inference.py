"""Types and limits of model endpoints."""

from enum import StrEnum

# Maximum size of a model's response for one tile.
MAX_ANSWER_BYTES = 50 * 1024 * 1024
# Maximum payloads of SageMaker: for an endpoint with instances, and for a serverless endpoint.
MAX_SAGEMAKER_BODY_BYTES = 6 * 1024 * 1024
MAX_SERVERLESS_BODY_BYTES = 4 * 1024 * 1024


class ModelInvokeMode(StrEnum):
    """The type of endpoint that serves a model."""

    NONE = "NONE"
    SM_ENDPOINT = "SM_ENDPOINT"
    HTTP_ENDPOINT = "HTTP_ENDPOINT"


# Old requests could have NONE. It is not an option, because it does not name an endpoint.
VALID_MODEL_HOSTING_OPTIONS = [ModelInvokeMode.SM_ENDPOINT.value, ModelInvokeMode.HTTP_ENDPOINT.value]
