"""How a model is called."""

from enum import StrEnum


class ModelInvokeMode(StrEnum):
    """The kind of endpoint that serves a model."""

    NONE = "NONE"
    SM_ENDPOINT = "SM_ENDPOINT"
    HTTP_ENDPOINT = "HTTP_ENDPOINT"


# NONE is a word that requests of the past could carry; nothing can be called by it, so it is no option.
VALID_MODEL_HOSTING_OPTIONS = [ModelInvokeMode.SM_ENDPOINT.value, ModelInvokeMode.HTTP_ENDPOINT.value]
