"""Chooses the credential of a call by its host, and keeps it off connections on which others could read it."""

from collections.abc import Sequence

from aws.osml.model_runner.aws.secret_values import HostCredential, SecretUnavailableError, SecretValues
from aws.osml.model_runner.common.web_address import literal_address
from aws.osml.model_runner.exceptions import (
    ModelCallError,
    ModelErrorClass,
    Problem,
    UnsupportedModelException,
)

from .call_errors import ModelErrorCode
from .endpoint_address import EndpointAddress, matches


class ModelCredentials:
    """The credentials of all HTTP models, by the operator's list. The first entry that covers a host is used."""

    def __init__(self, credentials: Sequence[HostCredential], values: SecretValues) -> None:
        self._credentials = credentials
        self._values = values

    def covering(self, address: EndpointAddress) -> HostCredential | None:
        """Return the credential of a host; None where the operator names none.

        Raises UnsupportedModelException where a credential would travel without TLS beyond this machine.
        """
        found = next((one for one in self._credentials if matches(address, one.host)), None)
        if found is not None and address.scheme != "https" and not _is_loopback(address.host):
            expected = "expected a URL that starts with https://: MODEL_CREDENTIALS has a credential for its host"
            problem = Problem("imageProcessor.name", f"{address.scheme}://{address.host}", expected)
            raise UnsupportedModelException("this endpoint may not be called", [problem])
        return found

    def header_value(self, credential: HostCredential) -> str:
        """Return the value of a credential's header.

        Raises ModelCallError of class JOB where the value cannot be read: no call of the job can succeed for now.
        """
        try:
            return self._values.header_value(credential)
        except SecretUnavailableError as err:
            raise _unavailable(err) from err

    def refresh(self, credential: HostCredential, refused: str) -> bool:
        """Fetch a value that a model refused again; return True if it has changed. Raises ModelCallError."""
        try:
            return self._values.refresh(credential, refused)
        except SecretUnavailableError as err:
            raise _unavailable(err) from err


def _unavailable(error: SecretUnavailableError) -> ModelCallError:
    return ModelCallError(str(error), ModelErrorClass.JOB, ModelErrorCode.CREDENTIALS)


def _is_loopback(host: str) -> bool:
    address = literal_address(host)
    # RFC 6761 reserves the name for loopback addresses.
    return host == "localhost" if address is None else address.is_loopback
