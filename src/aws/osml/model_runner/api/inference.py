"""How a model is called."""

from enum import StrEnum

# The largest answer of a model for one tile that is read.
MAX_ANSWER_BYTES = 50 * 1024 * 1024
# The largest payloads that SageMaker takes: of an endpoint with instances, and of a serverless one.
MAX_SAGEMAKER_BODY_BYTES = 6 * 1024 * 1024
MAX_SERVERLESS_BODY_BYTES = 4 * 1024 * 1024


class ModelInvokeMode(StrEnum):
    """The kind of endpoint that serves a model."""

    NONE = "NONE"
    SM_ENDPOINT = "SM_ENDPOINT"
    HTTP_ENDPOINT = "HTTP_ENDPOINT"


# NONE is a word that requests of the past could carry; nothing can be called by it, so it is no option.
VALID_MODEL_HOSTING_OPTIONS = [ModelInvokeMode.SM_ENDPOINT.value, ModelInvokeMode.HTTP_ENDPOINT.value]
