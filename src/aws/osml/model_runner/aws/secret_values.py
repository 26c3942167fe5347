"""Credentials of HTTP models by host: where the operator keeps each value, and the values, fetched on first use."""

import re
import threading
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Self

from botocore.exceptions import BotoCoreError, ClientError
from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from .errors import error_code

MAX_VALUE_CHARACTERS = 8_192
# A model that refuses every call has its value fetched again at most so often.
REFRESH_INTERVAL_S = 30.0
_HEADER_NAME = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]{1,128}", re.ASCII)
_VALUE = re.compile(r"[\x20-\x7e]+")
_HOST = re.compile(r"(\*\.)?[A-Za-z0-9._-]+(:[0-9]{1,5})?|\[[0-9A-Fa-f:.]+\](:[0-9]{1,5})?")
# Headers that frame a call or name its target.
_FRAMING = frozenset(
    {
        "accept-encoding",
        "connection",
        "content-encoding",
        "content-length",
        "content-type",
        "expect",
        "host",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
    }
)


class SecretUnavailableError(Exception):
    """A secret value cannot be read, or no header can hold it. The text has its location, never the value."""


class SecretPlace(BaseModel):
    """Where a value is kept: exactly one of a secret's ARN or name, a parameter's name, and an environment variable."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    secretsmanager: Annotated[str, Field(min_length=1, max_length=2_048)] | None = None
    ssm: Annotated[str, Field(min_length=1, max_length=2_048)] | None = None
    env: Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")] | None = None

    @model_validator(mode="after")
    def _is_one(self) -> Self:
        if len(self.model_fields_set) != 1:
            raise ValueError("exactly one of secretsmanager, ssm and env is needed")
        return self

    def __str__(self) -> str:
        (kind,) = self.model_fields_set
        return f"{kind} {getattr(self, kind)}"


class HostCredential(BaseModel):
    """The header that calls to a host carry. ``host`` is as in HTTP_ENDPOINT_HOSTS; without a port it is any port."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    host: str
    header: str
    value: SecretPlace
    prefix: Annotated[str, Field(max_length=128, pattern=r"^[\x20-\x7e]*$")] = ""

    @field_validator("host")
    @classmethod
    def _is_host(cls, host: str) -> str:
        if not _HOST.fullmatch(host):
            raise ValueError("expected a host, or host:port, without a scheme and a path")
        return host

    @field_validator("header")
    @classmethod
    def _is_header(cls, header: str) -> str:
        if not _HEADER_NAME.fullmatch(header) or header.lower() in _FRAMING:
            raise ValueError("expected the name of a header that does not frame the call")
        return header


class SecretValues:
    """The values of credentials, each fetched on first use and then cached. Any thread may call.

    ``client`` returns the process's boto3 client of a service.
    """

    def __init__(self, client: Callable[[str], Any], environment: Mapping[str, str], now: Callable[[], float]) -> None:
        self._client = client
        self._environment = environment
        self._now = now
        self._lock = threading.Lock()
        self._cached: dict[SecretPlace, str] = {}
        self._refreshed_at: dict[SecretPlace, float] = {}

    def header_value(self, credential: HostCredential) -> str:
        """Return the value of the header, with its prefix; raises SecretUnavailableError."""
        place = credential.value
        with self._lock:
            if place not in self._cached:
                self._cached[place] = self._fetched(place)
            return f"{credential.prefix}{self._cached[place]}"

    def refresh(self, credential: HostCredential, refused: str) -> bool:
        """Fetch a value that a model refused again; return True if the header now has another value.

        Raises SecretUnavailableError.
        """
        place = credential.value
        with self._lock:
            is_due = self._now() - self._refreshed_at.get(place, float("-inf")) >= REFRESH_INTERVAL_S
            if f"{credential.prefix}{self._cached.get(place)}" == refused and is_due:
                self._refreshed_at[place] = self._now()
                self._cached[place] = self._fetched(place)
            return f"{credential.prefix}{self._cached.get(place)}" != refused

    def _fetched(self, place: SecretPlace) -> str:
        try:
            value = self._read(place).strip()
        except (ClientError, BotoCoreError) as err:
            raise SecretUnavailableError(f"the credential in {place} cannot be read: {error_code(err)}") from err
        if not _VALUE.fullmatch(value) or len(value) > MAX_VALUE_CHARACTERS:
            # The value itself stays out of the error.
            raise SecretUnavailableError(
                f"the credential in {place} is not a text of 1 to {MAX_VALUE_CHARACTERS} printable ASCII characters"
            )
        return value

    def _read(self, place: SecretPlace) -> str:
        if place.secretsmanager is not None:
            found = self._client("secretsmanager").get_secret_value(SecretId=place.secretsmanager)
            return str(found.get("SecretString", ""))
        if place.ssm is not None:
            found = self._client("ssm").get_parameter(Name=place.ssm, WithDecryption=True)
            return str(found["Parameter"]["Value"])
        return self._environment.get(place.env or "", "")
